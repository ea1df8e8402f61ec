//! Random traces with four vCPUs, each on a core of its own, on both versions: whatever happens,
//! each guest core must be able to acknowledge exactly what a GIC without list registers would
//! signal to it. Only the vCPUs that a call names are made to look.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::model::FakeCore;
use super::super::*;
use super::{ICACTIVER, ICENABLER, ICPENDR, ISACTIVER, ISENABLER, ISPENDR};

const VCPUS: usize = 4;
const SGIS: [u32; 3] = [0, 1, 15];
const PPI: u32 = 20;
const SPIS: [u32; 5] = [33, 48, 49, 70, 255];

#[derive(Clone, Copy, Debug)]
enum Step {
    Send { from: usize, sgi: u32, targets: u8 },
    Pulse(u32),
    Level { vcpu: usize, intid: u32, high: bool },
    Enable { vcpu: usize, intid: u32, on: bool },
    Priority { vcpu: usize, intid: u32, priority: u8 },
    Pend { vcpu: usize, intid: u32, on: bool },
    Senders { vcpu: usize, sgi: u32, senders: u8, on: bool },
    Activate { vcpu: usize, intid: u32, on: bool },
    Edge(u32, bool),
    Route { vcpu: usize, spi: u32, targets: u8 },
    Acknowledge(usize),
    End(usize),
    Inspect(usize, usize),
    Unload(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    use Step::*;
    let vcpu = || 0..VCPUS;
    let sgi = || prop::sample::select(SGIS.as_slice());
    let spi = || prop::sample::select(SPIS.as_slice());
    let intid = || prop_oneof![1 => sgi(), 1 => Just(PPI), 3 => spi()];
    let wire = || prop_oneof![1 => Just(PPI), 3 => spi()];
    let step = prop_oneof![
        6 => (vcpu(), sgi(), 0u8..32).prop_map(|(from, sgi, targets)| Send { from, sgi, targets }),
        6 => spi().prop_map(Pulse),
        5 => (vcpu(), wire(), any::<bool>())
            .prop_map(|(vcpu, intid, high)| Level { vcpu, intid, high }),
        3 => (vcpu(), intid(), prop::bool::weighted(0.6))
            .prop_map(|(vcpu, intid, on)| Enable { vcpu, intid, on }),
        4 => (vcpu(), intid(), any::<u8>())
            .prop_map(|(vcpu, intid, priority)| Priority { vcpu, intid, priority }),
        3 => (vcpu(), intid(), any::<bool>()).prop_map(|(vcpu, intid, on)| Pend { vcpu, intid, on }),
        2 => (vcpu(), sgi(), 0u8..32, any::<bool>())
            .prop_map(|(vcpu, sgi, senders, on)| Senders { vcpu, sgi, senders, on }),
        2 => (vcpu(), intid(), prop::bool::weighted(0.3))
            .prop_map(|(vcpu, intid, on)| Activate { vcpu, intid, on }),
        1 => (spi(), any::<bool>()).prop_map(|(spi, edge)| Edge(spi, edge)),
        6 => (vcpu(), spi(), 0u8..32).prop_map(|(vcpu, spi, targets)| Route { vcpu, spi, targets }),
        16 => vcpu().prop_map(Acknowledge),
        14 => vcpu().prop_map(End),
        2 => (vcpu(), vcpu()).prop_map(|(vcpu, owner)| Inspect(vcpu, owner)),
        2 => vcpu().prop_map(Unload),
    ];
    prop::collection::vec(step, 1..300)
}

/// One interrupt of a GIC that signals the CPU directly.
#[derive(Clone, Copy, Debug, Default)]
struct Naive {
    enabled: bool,
    edge: bool,
    latch: bool,
    line: bool,
    active: bool,
    priority: u8,
    /// Of a GICv2's SGI, in place of the latch.
    senders: u8,
}

impl Naive {
    fn pending(&self) -> bool {
        self.latch || self.senders != 0 || (self.line && !self.edge)
    }
    fn signalled(&self) -> bool {
        self.pending() && self.enabled && !self.active
    }
}

struct System {
    version: GicVersion,
    vgic: Vgic,
    cores: [FakeCore; VCPUS],
    /// SGIs and PPIs by vCPU; SPIs under vCPU 0.
    naive: BTreeMap<(usize, u32), Naive>,
    routes: BTreeMap<u32, Option<usize>>,
}

fn index(vcpu: usize) -> VcpuIndex {
    VcpuIndex::new(vcpu).unwrap()
}

impl System {
    fn new(version: GicVersion, list_registers: usize) -> Self {
        let mut naive = BTreeMap::new();
        let interrupt = |edge| Naive { enabled: true, edge, priority: 0xa0, ..Naive::default() };
        for vcpu in 0..VCPUS {
            naive.extend(SGIS.map(|sgi| ((vcpu, sgi), interrupt(true))));
            naive.insert((vcpu, PPI), interrupt(false));
        }
        naive.extend(SPIS.map(|spi| ((0, spi), interrupt(false))));
        let mut system = Self {
            version,
            vgic: Vgic::with_version(version, VCPUS),
            cores: core::array::from_fn(|_| FakeCore::new(list_registers)),
            naive,
            routes: SPIS.map(|spi| (spi, None)).into(),
        };
        let all = system.vgic.gicd_write(index(0), 0, 4, 0b11);
        system.enter(all);
        for vcpu in 0..VCPUS {
            for word in 0..8 {
                system.write(vcpu, vcpu, 0x80, word * 32, u32::MAX);
                system.write(vcpu, vcpu, ISENABLER, word * 32, u32::MAX);
            }
            for intid in SGIS.into_iter().chain([PPI]).chain(SPIS) {
                system.run(Step::Priority { vcpu, intid, priority: 0xa0 });
            }
        }
        for spi in SPIS {
            system.run(Step::Route { vcpu: 0, spi, targets: 1 });
        }
        system
    }

    /// The vCPUs that a call has named look, and whomever they name, until nobody is left.
    fn enter(&mut self, set: VcpuSet) {
        let mut waiting: Vec<VcpuIndex> = set.iter().collect();
        for _ in 0..100 {
            for vcpu in 0..VCPUS {
                if self.cores[vcpu].maintenance_asserted() {
                    self.vgic.on_maintenance(index(vcpu));
                    waiting.push(index(vcpu));
                }
            }
            let Some(vcpu) = waiting.pop() else { return };
            if self.vgic.needs_flush(vcpu) {
                let core = &mut self.cores[vcpu.get()];
                waiting.extend(self.vgic.flush(vcpu, core).iter());
                assert!(!core.maintenance_asserted(), "maintenance storm: {core:?}");
            }
        }
        panic!("they wake each other for ever");
    }

    /// Writes a word of a bit register of `owner`'s view, from `vcpu`.
    fn write(&mut self, vcpu: usize, owner: usize, class: u64, intid: u32, value: u32) {
        let word = 4 * u64::from(intid / 32);
        let value = u64::from(value);
        let set = match self.version {
            GicVersion::V3 if intid < 32 => {
                self.vgic.gicr_write(owner as u64 * GICR_STRIDE + 0x1_0000 + class, 4, value)
            }
            GicVersion::V2 if intid < 32 => self.vgic.gicd_write(index(owner), class, 4, value),
            _ => self.vgic.gicd_write(index(vcpu), class + word, 4, value),
        };
        self.enter(set);
    }

    fn read(&mut self, vcpu: usize, owner: usize, class: u64, intid: u32) -> bool {
        let word = 4 * u64::from(intid / 32);
        let mut value = 0;
        // The first read may be stale, and makes others look.
        for _ in 0..2 {
            let core = &mut self.cores[vcpu];
            value = match self.version {
                GicVersion::V3 if intid < 32 => {
                    let frame = owner as u64 * GICR_STRIDE + 0x1_0000;
                    self.vgic.gicr_read(index(vcpu), frame + class, 4, core)
                }
                GicVersion::V2 if intid < 32 => {
                    let core = &mut self.cores[owner];
                    self.vgic.gicd_read(index(owner), class, 4, core)
                }
                _ => self.vgic.gicd_read(index(vcpu), class + word, 4, core),
            };
            let mut set = VcpuSet::EMPTY;
            set.insert(index(vcpu));
            set.insert(index(owner));
            self.enter(set);
        }
        value >> (intid % 32) & 1 != 0
    }

    fn naive(&mut self, vcpu: usize, intid: u32) -> &mut Naive {
        self.naive.get_mut(&(if intid < 32 { vcpu } else { 0 }, intid)).unwrap()
    }

    /// What is signalled to `vcpu`, with its INTID.
    fn signalled(&self, vcpu: usize) -> impl Iterator<Item = (u32, Naive)> {
        self.naive.iter().filter_map(move |(&(owner, intid), naive)| {
            let here = if intid < 32 { owner == vcpu } else { self.routes[&intid] == Some(vcpu) };
            (here && naive.signalled()).then_some((intid, *naive))
        })
    }

    fn has_senders(&self, intid: u32) -> bool {
        self.version == GicVersion::V2 && intid < 16
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Send { from, sgi, targets } => {
                let existing = targets & 0xf;
                let set = match self.version {
                    GicVersion::V3 => {
                        self.vgic.send_sgi(index(from), u64::from(sgi) << 24 | u64::from(targets))
                    }
                    GicVersion::V2 => {
                        let value = u64::from(targets) << 16 | u64::from(sgi);
                        self.vgic.gicd_write(index(from), 0xf00, 4, value)
                    }
                };
                for target in (0..VCPUS).filter(|target| existing >> target & 1 != 0) {
                    if self.version == GicVersion::V2 {
                        self.naive(target, sgi).senders |= 1 << from;
                    } else {
                        self.naive(target, sgi).latch = true;
                    }
                }
                self.enter(set);
            }
            Step::Pulse(spi) => {
                self.naive(0, spi).latch = true;
                let set = self.vgic.pulse(IntId::new(spi).unwrap());
                self.enter(set);
            }
            Step::Level { vcpu, intid, high } => {
                let naive = self.naive(vcpu, intid);
                naive.latch |= naive.edge && high && !naive.line;
                naive.line = high;
                let id = IntId::new(intid).unwrap();
                let set = match intid {
                    PPI => self.vgic.set_ppi_level(index(vcpu), id, high),
                    _ => self.vgic.set_level(id, high),
                };
                self.enter(set);
            }
            Step::Enable { vcpu, intid, on } => {
                if on || !self.has_senders(intid) {
                    self.naive(vcpu, intid).enabled = on;
                }
                let class = if on { ISENABLER } else { ICENABLER };
                self.write(3, vcpu, class, intid, 1 << (intid % 32));
            }
            Step::Priority { vcpu, intid, priority } => {
                self.naive(vcpu, intid).priority = priority & 0xf8;
                let offset = 0x400 + u64::from(intid);
                let set = if intid < 32 && self.version == GicVersion::V3 {
                    let frame = vcpu as u64 * GICR_STRIDE + 0x1_0000;
                    self.vgic.gicr_write(frame + offset, 1, priority.into())
                } else {
                    self.vgic.gicd_write(index(vcpu), offset, 1, priority.into())
                };
                self.enter(set);
            }
            Step::Pend { vcpu, intid, on } => {
                if !self.has_senders(intid) {
                    self.naive(vcpu, intid).latch = on;
                }
                let class = if on { ISPENDR } else { ICPENDR };
                self.write(2, vcpu, class, intid, 1 << (intid % 32));
            }
            Step::Senders { vcpu, sgi, senders, on } if self.version == GicVersion::V2 => {
                let offset = if on { 0xf20 } else { 0xf10 } + u64::from(sgi);
                let set = self.vgic.gicd_write(index(vcpu), offset, 1, senders.into());
                let naive = self.naive(vcpu, sgi);
                naive.senders =
                    if on { naive.senders | senders & 0xf } else { naive.senders & !senders };
                self.enter(set);
            }
            Step::Activate { vcpu, intid, on } => {
                // See the traces with one vCPU.
                let running = |core: &FakeCore| core.running.iter().any(|r| r.1 & 0x3ff == intid);
                let acknowledged = match intid {
                    ..32 => running(&self.cores[vcpu]),
                    _ => self.cores.iter().any(running),
                };
                if on || !acknowledged {
                    self.naive(vcpu, intid).active = on;
                    let class = if on { ISACTIVER } else { ICACTIVER };
                    self.write(1, vcpu, class, intid, 1 << (intid % 32));
                }
            }
            Step::Edge(spi, edge) => {
                let offset = 0xc00 + 4 * u64::from(spi / 16);
                let field = 0b10 << (2 * (spi % 16));
                let others = self.vgic.gicd_read(index(0), offset, 4, &mut self.cores[0]) & !field;
                let value = others | if edge { field } else { 0 };
                let set = self.vgic.gicd_write(index(0), offset, 4, value);
                self.naive(0, spi).edge = edge;
                self.enter(set);
            }
            Step::Route { vcpu, spi, targets } => {
                // GICv2: of several targets the lowest. GICv3: one, 4 is nobody.
                let lowest = targets.trailing_zeros() as usize;
                let route = (lowest < VCPUS).then_some(lowest);
                let set = match self.version {
                    GicVersion::V2 => {
                        let offset = 0x800 + u64::from(spi);
                        self.vgic.gicd_write(index(vcpu), offset, 1, targets.into())
                    }
                    GicVersion::V3 => {
                        let offset = 0x6000 + 8 * u64::from(spi);
                        self.vgic.gicd_write(index(vcpu), offset, 8, lowest as u64)
                    }
                };
                self.routes.insert(spi, route);
                self.enter(set);
            }
            Step::Acknowledge(vcpu) => self.acknowledge(vcpu),
            Step::End(vcpu) => {
                if let Some(raw) = self.cores[vcpu].end_of_interrupt() {
                    self.naive(vcpu, raw & 0x3ff).active = false;
                }
                self.enter(VcpuSet::EMPTY);
            }
            Step::Inspect(vcpu, owner) => self.inspect(vcpu, owner),
            Step::Unload(vcpu) => {
                let set = self.vgic.unload(index(vcpu), &mut self.cores[vcpu]);
                assert!(self.cores[vcpu].lrs.iter().all(|lr| lr.is_invalid()));
                assert!(!self.cores[vcpu].maintenance_asserted());
                assert_eq!(
                    self.vgic.has_deliverable(index(vcpu), 0xff),
                    self.signalled(vcpu).next().is_some()
                );
                self.enter(set);
                let mut again = VcpuSet::EMPTY;
                again.insert(index(vcpu));
                self.enter(again);
            }
            _ => {}
        }
    }

    fn acknowledge(&mut self, vcpu: usize) {
        let running = self.cores[vcpu].running_priority();
        let best = self.signalled(vcpu).map(|(_, naive)| naive.priority).min();
        let best = best.filter(|&best| best < running);
        let Some(raw) = self.cores[vcpu].acknowledge() else {
            let signalled: Vec<_> = self.signalled(vcpu).collect();
            assert_eq!(best, None, "vCPU {vcpu} loses one of {signalled:?}");
            return;
        };
        let (intid, sender) = (raw & 0x3ff, raw >> 10);
        assert!(self.signalled(vcpu).any(|(other, _)| other == intid), "{intid} is not signalled");
        let per_sender = self.has_senders(intid);
        let naive = self.naive(vcpu, intid);
        assert_eq!(Some(naive.priority), best, "{intid} is not the most urgent");
        naive.active = true;
        naive.latch = false;
        if per_sender {
            assert_ne!(naive.senders & 1 << sender, 0, "nobody like that has sent {intid}");
            naive.senders &= !(1 << sender);
        } else {
            assert_eq!(sender, 0);
        }
        self.enter(VcpuSet::EMPTY);
    }

    /// `vcpu` reads the state of SPIs and of the private interrupts of `owner`.
    fn inspect(&mut self, vcpu: usize, owner: usize) {
        for intid in SGIS.into_iter().chain([PPI]).chain(SPIS) {
            let naive = *self.naive(owner, intid);
            assert_eq!(self.read(vcpu, owner, ISACTIVER, intid), naive.active, "{intid} active");
            assert_eq!(self.read(vcpu, owner, ISENABLER, intid), naive.enabled, "{intid} enabled");
            assert_eq!(self.read(vcpu, owner, ISPENDR, intid), naive.pending(), "{intid} pending");
            if self.has_senders(intid) {
                let offset = 0xf10 + u64::from(intid);
                let core = &mut self.cores[owner];
                let senders = self.vgic.gicd_read(index(owner), offset, 1, core);
                assert_eq!(senders, u64::from(naive.senders), "{intid} senders");
                let mut set = VcpuSet::EMPTY;
                set.insert(index(owner));
                self.enter(set);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn four_vcpus_see_what_a_gicv3_without_list_registers_would_show(
        list_registers in prop::sample::select(&[1usize, 2, 4, 16][..]),
        steps in steps(),
    ) {
        let mut system = System::new(GicVersion::V3, list_registers);
        for step in steps {
            system.run(step);
        }
        (0..VCPUS).for_each(|vcpu| system.inspect(3 - vcpu, vcpu));
    }

    #[test]
    fn four_vcpus_see_what_a_gicv2_without_list_registers_would_show(
        list_registers in prop::sample::select(&[1usize, 2, 4, 16][..]),
        steps in steps(),
    ) {
        let mut system = System::new(GicVersion::V2, list_registers);
        for step in steps {
            system.run(step);
        }
        (0..VCPUS).for_each(|vcpu| system.inspect(3 - vcpu, vcpu));
    }
}
