//! Random traces against a naive GIC: whatever happens, the guest must be able to acknowledge
//! exactly what a GIC without list registers would signal.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::model::{Machine, TIMER};
use super::super::*;
use super::{BOOT, ICACTIVER, ICENABLER, ICPENDR, ISACTIVER, ISENABLER, ISPENDR};

const IGROUPR: u64 = 0x80;
/// An SGI, PPIs with the timer among them, SPIs in several words.
const POOL: [u32; 14] = [1, 5, 20, TIMER, 33, 48, 49, 50, 63, 64, 70, 100, 200, 255];

#[derive(Clone, Copy, Debug)]
enum Step {
    Signal(u32),
    Level(u32, bool),
    Timer(bool),
    Enable(u32, bool),
    Priority(u32, u8),
    Pend(u32, bool),
    Activate(u32, bool),
    Edge(u32, bool),
    Group(u32, bool),
    Groups(u8),
    Acknowledge,
    End,
    DropPriority,
    Deactivate(u8),
    Inspect,
    Unload,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let intid = || prop::sample::select(POOL.as_slice());
    let step = prop_oneof![
        8 => intid().prop_map(Step::Signal),
        5 => (intid(), any::<bool>()).prop_map(|(i, on)| Step::Level(i, on)),
        3 => any::<bool>().prop_map(Step::Timer),
        3 => (intid(), prop::bool::weighted(0.6)).prop_map(|(i, on)| Step::Enable(i, on)),
        6 => (intid(), any::<u8>()).prop_map(|(i, p)| Step::Priority(i, p)),
        3 => (intid(), any::<bool>()).prop_map(|(i, on)| Step::Pend(i, on)),
        2 => (intid(), prop::bool::weighted(0.3)).prop_map(|(i, on)| Step::Activate(i, on)),
        1 => (intid(), any::<bool>()).prop_map(|(i, on)| Step::Edge(i, on)),
        1 => (intid(), prop::bool::weighted(0.8)).prop_map(|(i, on)| Step::Group(i, on)),
        1 => prop_oneof![1 => 0u8..4, 3 => Just(3)].prop_map(Step::Groups),
        14 => Just(Step::Acknowledge),
        9 => Just(Step::End),
        5 => Just(Step::DropPriority),
        5 => any::<u8>().prop_map(Step::Deactivate),
        2 => Just(Step::Inspect),
        1 => Just(Step::Unload),
    ];
    prop::collection::vec(step, 1..250)
}

/// One interrupt of a GIC that signals the CPU directly.
#[derive(Clone, Copy, Debug, Default)]
struct Naive {
    enabled: bool,
    group1: bool,
    edge: bool,
    latch: bool,
    line: bool,
    active: bool,
    priority: u8,
}

impl Naive {
    fn pending(&self) -> bool {
        self.latch || (self.line && !self.edge)
    }
    fn raise(&mut self, high: bool) {
        self.latch |= self.edge && high && !self.line;
        self.line = high;
    }
}

struct Trace {
    machine: Machine,
    naive: BTreeMap<u32, Naive>,
    groups: u8,
    /// With EOImode = 1: priority dropped, not deactivated.
    dropped: Vec<u32>,
}

impl Trace {
    fn new(list_registers: usize) -> Self {
        let interrupt = |&intid| {
            let naive = Naive {
                enabled: true,
                group1: true,
                edge: intid < 16,
                priority: 0xa0,
                ..Naive::default()
            };
            (intid, naive)
        };
        Self {
            machine: Machine::new(list_registers),
            naive: POOL.iter().map(interrupt).collect(),
            groups: 0b11,
            dropped: Vec::new(),
        }
    }

    fn naive(&mut self, intid: u32) -> &mut Naive {
        self.naive.get_mut(&intid).unwrap()
    }

    fn signalled(&self, naive: &Naive) -> bool {
        let group = if naive.group1 { 0b10 } else { 0b01 };
        naive.pending() && naive.enabled && !naive.active && self.groups & group != 0
    }

    /// The priority of the most urgent interrupt that the naive GIC would signal.
    fn best(&self) -> Option<u8> {
        let signalled = self.naive.values().filter(|naive| self.signalled(naive));
        signalled.map(|naive| naive.priority).min()
    }

    fn run(&mut self, step: Step, split_eoi: bool) {
        match step {
            Step::Signal(intid @ 0..16) => {
                let _ = self.machine.vgic.send_sgi(BOOT, u64::from(intid) << 24 | 1);
                self.naive(intid).latch = true;
            }
            Step::Signal(intid @ 32..) => {
                self.machine.pulse(intid);
                self.naive(intid).latch = true;
            }
            Step::Level(intid @ 16.., high) if intid != TIMER => {
                self.machine.set_level(intid, high);
                self.naive(intid).raise(high);
            }
            Step::Timer(high) => {
                self.machine.set_timer(high);
                self.naive(TIMER).raise(high);
            }
            Step::Enable(intid, on) => {
                self.machine.write_bit(if on { ISENABLER } else { ICENABLER }, intid);
                self.naive(intid).enabled = on;
            }
            Step::Priority(intid, priority) => {
                self.machine.set_priority(intid, priority);
                self.naive(intid).priority = priority & 0xf8;
            }
            Step::Pend(intid, on) => {
                self.machine.write_bit(if on { ISPENDR } else { ICPENDR }, intid);
                self.naive(intid).latch = on;
            }
            Step::Activate(intid, on) => {
                // The deactivation of an interrupt the guest has acknowledged is the guest's to do
                // in order; a guest that does it twice confuses EOIcount, and only itself.
                let acknowledged = self.machine.core.running.iter().any(|&(_, i)| i == intid);
                if on || !acknowledged {
                    self.machine.write_bit(if on { ISACTIVER } else { ICACTIVER }, intid);
                    self.naive(intid).active = on;
                }
            }
            Step::Edge(intid @ 32.., edge) => {
                self.machine.set_edge(intid, edge);
                self.naive(intid).edge = edge;
            }
            Step::Group(intid, group1) if !self.naive(intid).active => {
                let bank = if intid < 32 { 0x1_0000 + IGROUPR } else { IGROUPR };
                let word = if intid < 32 { 0 } else { 4 * u64::from(intid / 32) };
                let read = |machine: &mut Machine| match intid {
                    0..32 => machine.gicr_read(bank, 4),
                    _ => machine.gicd_read(bank + word, 4),
                };
                let others = read(&mut self.machine) & !(1 << (intid & 31));
                let value = others | u64::from(group1) << (intid & 31);
                match intid {
                    0..32 => self.machine.gicr_write(bank, 4, value),
                    _ => self.machine.gicd_write(bank + word, 4, value),
                }
                self.naive(intid).group1 = group1;
            }
            Step::Groups(groups) => {
                self.machine.gicd_write(0, 4, u64::from(groups));
                self.groups = groups;
            }
            Step::Acknowledge => {
                let running = self.machine.core.running_priority();
                let best = self.best().filter(|&best| best < running);
                let got = self.machine.core.acknowledge();
                match got {
                    Some(intid) => {
                        let naive = self.naive[&intid];
                        assert!(self.signalled(&naive), "{intid} must not be signalled: {naive:?}");
                        assert_eq!(Some(naive.priority), best, "{intid} is not the most urgent");
                        let naive = self.naive(intid);
                        naive.active = true;
                        naive.latch = false;
                        self.dropped.retain(|&other| other != intid);
                    }
                    None => assert_eq!(best, None, "an interrupt is lost"),
                }
            }
            Step::End if !split_eoi => {
                if let Some(intid) = self.machine.core.end_of_interrupt() {
                    self.naive(intid).active = false;
                }
            }
            Step::DropPriority if split_eoi => {
                self.dropped.extend(self.machine.drop_priority());
            }
            Step::Deactivate(which) if split_eoi && !self.dropped.is_empty() => {
                let intid = self.dropped.remove(usize::from(which) % self.dropped.len());
                self.naive(intid).active = false;
                self.machine.dir(intid);
            }
            Step::Inspect => self.inspect(),
            Step::Unload => {
                let _ = self.machine.vgic.unload(BOOT, &mut self.machine.core);
                assert!(self.machine.core.lrs.iter().all(|lr| lr.is_invalid()));
                assert!(self.machine.core.physical.is_empty());
                // What the physical timer had signalled is pending by software from here on.
                if self.machine.read_bit(ISPENDR, TIMER) {
                    self.naive(TIMER).latch = true;
                }
            }
            _ => {}
        }
        self.machine.enter();
    }

    fn inspect(&mut self) {
        for intid in POOL {
            let naive = self.naive[&intid];
            assert_eq!(self.machine.read_bit(ISACTIVER, intid), naive.active, "{intid} active");
            assert_eq!(self.machine.read_bit(ISENABLER, intid), naive.enabled, "{intid} enabled");
            // The line of a physical interrupt that is active is not seen before its deactivation.
            if intid != TIMER || !naive.active {
                assert_eq!(
                    self.machine.read_bit(ISPENDR, intid),
                    naive.pending(),
                    "{intid} pending"
                );
            }
        }
        let deliverable = self.naive.values().any(|naive| self.signalled(naive));
        assert_eq!(self.machine.vgic.has_deliverable(BOOT, 0xff), deliverable);
    }
}

#[test]
fn an_active_interrupt_pending_again_does_not_pass_a_more_urgent_one_that_waits() {
    use Step::{Acknowledge, End, Pend, Priority, Signal};
    let mut trace = Trace::new(2);
    for step in [
        Priority(200, 0),
        Signal(1),
        Signal(33),
        Signal(200),
        Acknowledge,
        Pend(200, true),
        Priority(200, 168),
        End,
        Acknowledge,
        End,
        Acknowledge,
        End,
        Acknowledge,
    ] {
        trace.run(step, false);
    }
    trace.inspect();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_guest_sees_what_a_gic_without_list_registers_would_show(
        list_registers in prop::sample::select(&[1usize, 2, 4, 16][..]),
        split_eoi in any::<bool>(),
        steps in steps(),
    ) {
        let mut trace = Trace::new(list_registers);
        for step in steps {
            trace.run(step, split_eoi);
        }
        trace.inspect();
    }

    #[test]
    fn v8_no_register_access_panics_or_stops_the_guest(
        accesses in prop::collection::vec(
            (any::<bool>(), any::<bool>(), 0..0x10_0000u64, 0..3u64, 0..10u32, any::<u64>()),
            1..200,
        ),
        vcpus in 1usize..=8,
    ) {
        let mut machine = Machine::new(4);
        machine.vgic = Vgic::new(vcpus);
        for (write, redistributor, offset, align, width, value) in accesses {
            // Most accesses should hit something.
            let offset = if align == 0 { offset } else { offset & !3 };
            let gicd = if align == 2 { offset & 0xffc } else { offset & 0xffff };
            match (write, redistributor) {
                (true, true) => machine.gicr_write(offset, width, value),
                (true, false) => machine.gicd_write(gicd, width, value),
                (false, true) => { machine.gicr_read(offset, width); }
                (false, false) => { machine.gicd_read(gicd, width); }
            }
            let _ = machine.vgic.send_sgi(BOOT, value);
            let _ = machine.vgic.deactivate(BOOT, value);
            machine.enter();
            if machine.core.acknowledge().is_some() {
                machine.enter();
            }
        }
    }
}
