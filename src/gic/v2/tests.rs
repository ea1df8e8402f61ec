//! The register map, as a driver sees it, and what is GICv2's own: senders and targets. Names that
//! begin with a letter and a number cite the list of known defects of other virtual GICs.

use proptest::prelude::*;

use super::super::model::FakeCore;
use super::super::*;

const SPI: u32 = 48;

struct System {
    vgic: Vgic,
    cores: Vec<FakeCore>,
}

fn vcpu(index: usize) -> VcpuIndex {
    VcpuIndex::new(index).unwrap()
}

fn members(set: VcpuSet) -> Vec<usize> {
    set.iter().map(VcpuIndex::get).collect()
}

impl System {
    fn at_reset(vcpus: usize) -> Self {
        let cores = (0..vcpus).map(|_| FakeCore::new(4)).collect();
        Self { vgic: Vgic::new_v2(vcpus), cores }
    }

    /// As Linux leaves it: group 0, everything enabled, priority 0xa0.
    fn new(vcpus: usize) -> Self {
        let mut system = Self::at_reset(vcpus);
        system.write(0, 0, 4, 1);
        for word in 1..8 {
            system.write(0, 0x100 + 4 * word, 4, 0xffff_ffff);
        }
        for index in 0..vcpus {
            for offset in (0x400..0x500).step_by(4) {
                system.write(index, offset, 4, 0xa0a0_a0a0);
            }
        }
        system
    }

    fn read(&mut self, index: usize, offset: u64, width: u32) -> u64 {
        self.vgic.gicd_read(vcpu(index), offset, width, &mut self.cores[index])
    }

    fn write(&mut self, index: usize, offset: u64, width: u32, value: u64) -> Vec<usize> {
        members(self.vgic.gicd_write(vcpu(index), offset, width, value))
    }

    fn enter(&mut self, index: usize) {
        for _ in 0..2 {
            if self.cores[index].maintenance_asserted() {
                self.vgic.on_maintenance(vcpu(index));
            }
            if self.vgic.needs_flush(vcpu(index)) {
                let _ = self.vgic.flush(vcpu(index), &mut self.cores[index]);
            }
        }
    }

    /// Reads the guest's GICC_IAR.
    fn acknowledge(&mut self, index: usize) -> Option<u32> {
        self.enter(index);
        let iar = self.cores[index].acknowledge();
        self.enter(index);
        iar
    }

    fn end(&mut self, index: usize) {
        self.cores[index].end_of_interrupt().unwrap();
        self.enter(index);
    }

    fn drain(&mut self, index: usize) -> Vec<u32> {
        let mut order = Vec::new();
        while let Some(iar) = self.acknowledge(index) {
            order.push(iar);
            assert!(order.len() < 100, "for ever");
            self.end(index);
        }
        order
    }
}

#[test]
fn identification_says_gicv2_with_256_intids_and_so_many_cpu_interfaces() {
    for vcpus in 1..=8 {
        let mut system = System::at_reset(vcpus);
        assert_eq!(system.read(0, 0x4, 4), (vcpus as u64 - 1) << 5 | 7);
        assert_ne!(system.read(0, 0x8, 4), 0);
        assert_eq!(system.read(0, 0xfe8, 4) >> 4, 2);
        assert_eq!(system.read(0, 0xffc, 4), 0xb1);
        assert_eq!(system.vgic.version(), GicVersion::V2);
        assert_eq!(system.vgic.vcpus(), vcpus);
    }
}

#[test]
fn ctlr_keeps_the_group_enables_only() {
    let mut system = System::at_reset(2);
    system.write(1, 0, 4, 0xffff_ffff);
    assert_eq!(system.read(0, 0, 4), 3);
}

#[test]
fn v4_each_set_and_clear_register_does_what_its_name_says() {
    let mut system = System::at_reset(2);
    // Of word 0 the PPIs; SGIs have rules of their own.
    for (word, ones) in [(0, 0xf0f0_0000u64), (3, 0xf0f0_0ff0)] {
        let fixed = if word == 0 { 0xffff } else { 0 };
        for class in [0x100, 0x200, 0x300] {
            let fixed = if class == 0x100 { fixed } else { 0 };
            let (set, clear) = (class + 4 * word, class + 0x80 + 4 * word);
            system.write(1, set, 4, ones);
            system.enter(1);
            assert_eq!(system.read(1, set, 4), ones | fixed);
            assert_eq!(system.read(1, clear, 4), ones | fixed);
            system.write(1, clear, 4, 0x00f0_0f00);
            system.enter(1);
            assert_eq!(system.read(1, set, 4), ones & !0x00f0_0f00 | fixed);
            system.write(1, clear, 4, 0xffff_ffff);
            system.enter(1);
            assert_eq!(system.read(1, set, 4), fixed);
        }
    }
}

#[test]
fn word_0_belongs_to_whoever_accesses_it() {
    let mut system = System::at_reset(3);
    system.write(1, 0x100, 4, 1 << 27);
    system.write(2, 0x400 + 27, 1, 0x50);
    system.write(0, 0x80, 4, 1 << 27);
    for index in 0..3 {
        assert_eq!(system.read(index, 0x100, 4) >> 27 & 1, u64::from(index == 1));
        assert_eq!(system.read(index, 0x400 + 27, 1), if index == 2 { 0x50 } else { 0 });
        assert_eq!(system.read(index, 0x80, 4) >> 27 & 1, u64::from(index == 0));
    }
}

#[test]
fn v10_each_vcpu_finds_the_bit_it_is_wired_to_in_its_own_targets() {
    let mut system = System::at_reset(8);
    for index in 0..8 {
        // Whatever its MPIDR says.
        system.vgic.set_affinity(vcpu(index), Affinity::from_mpidr(0x100 * (7 - index as u64)));
        let bit = 1u64 << index;
        for offset in (0x800..0x820).step_by(4) {
            system.write(index, offset, 4, 0xffff_ffff);
            assert_eq!(system.read(index, offset, 4), bit * 0x0101_0101);
            assert_eq!(system.read(index, offset + 3, 1), bit);
        }
    }
}

#[test]
fn v10_an_spi_goes_to_the_lowest_numbered_of_its_targets() {
    let mut system = System::new(4);
    let at = 0x800 + u64::from(SPI);
    let spi = IntId::new(SPI).unwrap();
    assert!(system.vgic.pulse(spi).is_empty(), "out of reset it has no target");
    assert_eq!(system.write(3, at, 1, 0b1100), [2], "and waits for one");
    assert_eq!(system.drain(3), []);
    assert_eq!(system.drain(2), [SPI]);
    assert_eq!(members(system.vgic.pulse(spi)), [2]);
    system.enter(2);
    assert_eq!(system.write(0, at, 1, 0b1000), [2, 3], "one has it listed, the other gets it");
    system.enter(2);
    assert_eq!(system.drain(3), [SPI]);
}

#[test]
fn targets_are_written_by_bytes_and_words_and_hold_existing_interfaces_only() {
    let mut system = System::at_reset(3);
    system.write(0, 0x830, 4, 0xff04_0201);
    assert_eq!(system.read(1, 0x830, 4), 0x0704_0201);
    system.write(0, 0x831, 1, 0xfff3);
    assert_eq!(system.read(1, 0x830, 4), 0x0704_0301);
    assert_eq!(system.read(1, 0x831, 1), 3);
    system.write(0, 0x8ff, 1, 1);
    assert_eq!(system.read(0, 0x8fc, 4), 0x0100_0000);
    system.write(0, 0x900, 4, 1);
    assert_eq!(system.read(0, 0x900, 4), 0, "INTID 256 does not exist");
}

#[test]
fn a_uniprocessor_gets_every_spi_and_has_no_targets() {
    let mut system = System::new(1);
    for offset in (0x800..0x900).step_by(4) {
        system.write(0, offset, 4, 0);
        assert_eq!(system.read(0, offset, 4), 0);
    }
    assert_eq!(members(system.vgic.pulse(IntId::new(SPI).unwrap())), [0]);
    assert_eq!(system.drain(0), [SPI]);
}

#[test]
fn sgir_reaches_the_list_all_others_or_oneself() {
    let mut system = System::new(4);
    assert_eq!(system.write(1, 0xf00, 4, 0xfb << 16 | 5), [0, 1, 3], "the list");
    assert_eq!(system.write(1, 0xf00, 4, 1 << 24 | 0xff << 16 | 6), [0, 2, 3], "all others");
    assert_eq!(system.write(1, 0xf00, 4, 2 << 24 | 7), [1], "oneself");
    assert_eq!(system.write(1, 0xf00, 4, 3 << 24 | 0xff << 16 | 8), [], "reserved");
    assert_eq!(system.write(1, 0xf00, 4, 0xf0 << 16 | 9), [], "nobody");
    assert_eq!(system.read(1, 0xf00, 4), 0, "write-only");
    let from = 1 << 10;
    for (index, expected) in [vec![5, 6], vec![5, 7], vec![6], vec![5, 6]].into_iter().enumerate() {
        let expected: Vec<u32> = expected.into_iter().map(|sgi| sgi | from).collect();
        assert_eq!(system.drain(index), expected, "vCPU {index}");
    }
}

#[test]
fn an_sgi_of_each_sender_is_delivered_with_its_number() {
    let mut system = System::new(4);
    for sender in [3, 0, 2, 3] {
        system.write(sender, 0xf00, 4, 0b10 << 16 | 4);
    }
    assert_eq!(system.read(1, 0xf24, 1), 0b1101);
    assert_eq!(system.acknowledge(1), Some(4));
    assert_eq!(system.read(1, 0xf14, 4), 0b1100);
    assert_eq!(system.read(1, 0x200, 4), 1 << 4, "still pending");
    assert_eq!(system.read(1, 0x300, 4), 1 << 4, "and active");
    // One sends again what has been acknowledged.
    system.write(0, 0xf00, 4, 0b10 << 16 | 4);
    assert_eq!(system.acknowledge(1), None);
    system.end(1);
    assert_eq!(system.drain(1), [4, 2 << 10 | 4, 3 << 10 | 4]);
    assert_eq!(system.read(1, 0x200, 4), 0);
}

#[test]
fn senders_are_set_and_cleared_one_by_one() {
    let mut system = System::new(4);
    system.write(1, 0xf20, 4, 0xff_0f_00_06);
    assert_eq!(system.read(1, 0xf20, 4), 0x0f_0f_00_06, "only vCPUs send");
    assert_eq!(system.read(1, 0x200, 4), 0b1101);
    system.enter(1);
    // One that is in a list register already, and one that waits.
    system.write(1, 0xf10, 4, 0x0c_0f_00_02);
    system.enter(1);
    assert_eq!(system.read(1, 0xf10, 4), 0x03_00_00_04);
    assert_eq!(system.drain(1), [2 << 10, 3, 1 << 10 | 3]);
    assert_eq!(system.read(0, 0xf20, 4), 0, "it is banked");
}

#[test]
fn sgis_cannot_be_disabled_nor_made_pending_like_others() {
    let mut system = System::new(2);
    system.write(1, 0x180, 4, 0xffff_ffff);
    assert_eq!(system.read(1, 0x100, 4), 0xffff);
    system.write(1, 0x200, 4, 0xffff);
    assert_eq!(system.read(1, 0x200, 4), 0);
    system.write(0, 0xf00, 4, 0b10 << 16 | 1);
    system.write(1, 0x280, 4, 0xffff);
    assert_eq!(system.drain(1), [1]);
}

#[test]
fn an_unloaded_vcpu_keeps_the_senders_of_what_was_listed() {
    let mut system = System::new(4);
    system.write(3, 0xf00, 4, 1 << 16 | 2);
    system.write(2, 0xf00, 4, 1 << 16 | 2);
    assert_eq!(system.acknowledge(0), Some(2 << 10 | 2));
    let _ = system.vgic.unload(vcpu(0), &mut system.cores[0]);
    assert!(system.cores[0].lrs.iter().all(|lr| lr.is_invalid()));
    system.enter(0);
    assert!(system.cores[0].lrs.iter().any(|lr| lr.vintid() == 2 << 10 | 2 && lr.is_active()));
    system.end(0);
    assert_eq!(system.drain(0), [3 << 10 | 2]);
}

#[test]
fn reset_is_power_on_from_any_core() {
    let mut system = System::new(4);
    system.write(3, 0xf00, 4, 0xf << 16 | 2);
    system.write(0, 0x830, 4, 0x0f0f_0f0f);
    let _ = system.vgic.pulse(IntId::new(SPI).unwrap());
    for index in 0..4 {
        system.enter(index);
        let _ = system.vgic.unload(vcpu(index), &mut system.cores[index]);
    }
    system.vgic.reset_unloaded();
    for index in 0..4 {
        for offset in (0..0xfd0).step_by(4).filter(|offset| !matches!(offset, 4 | 8)) {
            let expected = match offset {
                0x100 | 0x180 => 0xffff,
                0x800..0x820 => 0x0101_0101 << index,
                0xc00 => 0xaaaa_aaaa,
                _ => 0,
            };
            assert_eq!(system.read(index, offset, 4), expected, "{offset:#x}");
        }
        assert_eq!(system.drain(index), []);
    }
}

#[test]
fn there_is_neither_a_redistributor_nor_a_system_register() {
    let mut system = System::new(2);
    assert!(system.vgic.gicr_write(0x1_0100, 4, 0xffff_ffff).is_empty());
    let core = &mut system.cores[0];
    assert_eq!(system.vgic.gicr_read(vcpu(0), 0x1_0100, 4, core), 0);
    assert_eq!(system.vgic.gicr_read(vcpu(0), 0x8, 8, core), 0);
    assert!(system.vgic.send_sgi(vcpu(0), 1 << 40).is_empty());
}

#[test]
fn v8_every_offset_with_every_width_is_a_register_or_nothing() {
    let known = |offset: u64| {
        matches!(offset, 0..0xc | 0x400..0x500 | 0x800..0x900 | 0xc00..0xc40 | 0xf10..0xf30)
            || matches!(offset, 0xfd0..0x1000)
            || matches!(offset, 0x80..0x400 if offset & 0x7f < 0x20)
    };
    let by_bytes = |offset: u64| matches!(offset, 0x400..0x500 | 0x800..0x900 | 0xf10..0xf30);
    let mut system = System::at_reset(4);
    for width in [0, 1, 2, 3, 4, 8, 16] {
        for offset in (0..0x1_0004).chain([1 << 32, u64::MAX - 3, u64::MAX]) {
            system.write(1, offset, width, u64::MAX);
            let value = system.read(1, offset, width);
            let served = width == 4 && offset & 3 == 0 || width == 1 && by_bytes(offset);
            if !served || !known(offset) {
                assert_eq!(value, 0, "{offset:#x} {width}");
            }
            assert!(width >= 8 || value >> (8 * width) == 0, "{offset:#x} {width}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn v8_no_register_access_panics_or_stops_the_guest(
        accesses in prop::collection::vec(
            (0..8usize, any::<bool>(), 0..0x1000u64, 0..3u64, any::<u64>()), 1..300,
        ),
        vcpus in 1usize..=8,
    ) {
        let mut system = System::new(vcpus);
        for (index, write, offset, align, value) in accesses {
            let index = index % vcpus;
            // Most accesses should hit something.
            let (offset, width) = match align {
                0 => (offset, value as u32 & 7),
                1 => (offset, 1),
                _ => (offset & !3, 4),
            };
            if write {
                system.write(index, offset, width, value);
            } else {
                system.read(index, offset, width);
            }
            let _ = system.vgic.deactivate(vcpu(index), value);
            for index in 0..vcpus {
                if system.acknowledge(index).is_some() && value & 1 == 0 {
                    system.end(index);
                }
                prop_assert!(!system.cores[index].maintenance_asserted());
            }
        }
    }
}
