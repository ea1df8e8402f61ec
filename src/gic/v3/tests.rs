//! The register maps, as a driver sees them.

use super::super::model::{FakeCore, Machine};
use super::super::{Affinity, VcpuIndex, Vgic};
use super::*;

#[test]
fn identification_says_gicv3_with_256_intids_and_one_security_state() {
    let mut machine = Machine::at_reset(4);
    assert_eq!(machine.gicd_read(0x0, 4), 0x50, "ARE and DS");
    assert_eq!(machine.gicd_read(0x4, 4), 0x0348_0007);
    assert_ne!(machine.gicd_read(0x8, 4), 0);
    assert_eq!(machine.gicd_read(0xffe8, 4) >> 4 & 0xf, 3);
    assert_eq!(machine.gicr_read(0xffe8, 4) >> 4 & 0xf, 3);
    assert_eq!(machine.gicd_read(0xfff0, 4), 0x0d);
    assert_eq!(machine.gicd_read(0xfffc, 4), 0xb1);
}

#[test]
fn ctlr_keeps_the_group_enables_only() {
    let mut machine = Machine::at_reset(4);
    machine.gicd_write(0x0, 4, 0xffff_ffff);
    assert_eq!(machine.gicd_read(0x0, 4), 0x53);
    machine.gicd_write(0x0, 4, 0);
    assert_eq!(machine.gicd_read(0x0, 4), 0x50);
}

#[test]
fn v4_each_set_and_clear_register_does_what_its_name_says() {
    let mut machine = Machine::at_reset(4);
    // (frame, set, clear) for enable, pending, active, in GICD and in GICR.
    for (gicr, base) in [(false, 0u64), (true, 0x1_0000)] {
        for class in [0x100, 0x200, 0x300] {
            let (set, clear) = if gicr {
                (base + class, base + class + 0x80)
            } else {
                (class + 4 * 3, class + 0x80 + 4 * 3)
            };
            let write = |machine: &mut Machine, offset, value| match gicr {
                true => machine.gicr_write(offset, 4, value),
                false => machine.gicd_write(offset, 4, value),
            };
            let read = |machine: &mut Machine| {
                let at = |machine: &mut Machine, offset| match gicr {
                    true => machine.gicr_read(offset, 4),
                    false => machine.gicd_read(offset, 4),
                };
                let (by_set, by_clear) = (at(machine, set), at(machine, clear));
                assert_eq!(by_set, by_clear);
                by_set
            };
            write(&mut machine, set, 0xf0f0_0ff0);
            machine.enter();
            assert_eq!(read(&mut machine), 0xf0f0_0ff0, "{set:#x}");
            write(&mut machine, clear, 0x00f0_0f00);
            machine.enter();
            assert_eq!(read(&mut machine), 0xf000_00f0, "{clear:#x}");
            write(&mut machine, clear, 0xffff_ffff);
            machine.enter();
            assert_eq!(read(&mut machine), 0);
        }
    }
}

#[test]
fn word_0_of_the_distributor_belongs_to_the_redistributors() {
    let mut machine = Machine::at_reset(4);
    for class in (0x80..0x400).step_by(0x80) {
        machine.gicd_write(class, 4, 0xffff_ffff);
        assert_eq!(machine.gicd_read(class, 4), 0);
        assert_eq!(machine.gicr_read(0x1_0000 + class, 4), 0);
    }
    machine.gicd_write(0x400, 4, 0xffff_ffff);
    assert_eq!(machine.gicd_read(0x400, 4), 0);
    assert_eq!(machine.gicr_read(0x1_0400, 4), 0);
    assert_eq!(machine.gicd_read(0xc00, 4), 0);
}

#[test]
fn priorities_have_five_bits_and_are_byte_accessible() {
    let mut machine = Machine::at_reset(4);
    machine.gicd_write(0x400 + 48, 4, 0x0f_ff_a5_07);
    assert_eq!(machine.gicd_read(0x400 + 48, 4), 0x08_f8_a0_00);
    machine.gicd_write(0x400 + 49, 1, 0x37);
    assert_eq!(machine.gicd_read(0x400 + 49, 1), 0x30);
    assert_eq!(machine.gicd_read(0x400 + 48, 4), 0x08_f8_30_00);
    machine.gicr_write(0x1_0400 + 27, 1, 0xff);
    assert_eq!(machine.gicr_read(0x1_0400 + 24, 4), 0xf800_0000);
    assert_eq!(machine.gicr_read(0x1_0400 + 27, 1), 0xf8);
    machine.gicd_write(0x400 + 255, 1, 0x88);
    assert_eq!(machine.gicd_read(0x400 + 252, 4), 0x8800_0000);
    machine.gicd_write(0x500, 4, 0xffff_ffff);
    assert_eq!(machine.gicd_read(0x500, 4), 0, "INTID 256 does not exist");
}

#[test]
fn configuration_is_fixed_for_private_interrupts() {
    let mut machine = Machine::at_reset(4);
    machine.gicr_write(0x1_0c00, 4, 0);
    machine.gicr_write(0x1_0c04, 4, 0xffff_ffff);
    assert_eq!(machine.gicr_read(0x1_0c00, 4), 0xaaaa_aaaa);
    assert_eq!(machine.gicr_read(0x1_0c04, 4), 0);
    machine.gicd_write(0xc0c, 4, 0xc000_000f);
    assert_eq!(machine.gicd_read(0xc0c, 4), 0x8000_000a);
    assert_eq!(machine.gicd_read(0xc08, 4), 0);
    machine.gicd_write(0xc3c, 4, 0x8000_0000);
    assert_eq!(machine.gicd_read(0xc3c, 4), 0x8000_0000);
}

#[test]
fn v5_a_route_can_be_written_whole_or_in_halves() {
    let mut machine = Machine::at_reset(4);
    let route = 0x6000 + 8 * 40;
    machine.gicd_write(route, 8, 0x12_0034_5678);
    assert_eq!(machine.gicd_read(route, 8), 0x12_0034_5678);
    machine.gicd_write(route, 4, 0x00ab_cdef);
    assert_eq!(machine.gicd_read(route, 8), 0x12_00ab_cdef);
    machine.gicd_write(route + 4, 4, 0x99);
    assert_eq!(machine.gicd_read(route, 8), 0x99_00ab_cdef);
    assert_eq!(machine.gicd_read(route + 4, 4), 0x99);
    machine.gicd_write(route, 8, u64::MAX);
    assert_eq!(machine.gicd_read(route, 8), 0xff_00ff_ffff, "no IRM, no reserved bits");
    machine.gicd_write(0x6000, 8, 5);
    assert_eq!(machine.gicd_read(0x6000, 8), 0, "private interrupts have no route");
    machine.gicd_write(0x6000 + 8 * 255, 8, 5);
    assert_eq!(machine.gicd_read(0x6000 + 8 * 255, 8), 5);
    machine.gicd_write(0x6000 + 8 * 256, 8, 5);
    assert_eq!(machine.gicd_read(0x6000 + 8 * 256, 8), 0);
}

#[test]
fn v5_a_redistributor_names_its_own_vcpu_whoever_reads_it() {
    let mut core = FakeCore::new(4);
    let mut vgic = Vgic::new(3);
    let reader = VcpuIndex::BOOT;
    vgic.set_affinity(VcpuIndex::new(2).unwrap(), Affinity::from_mpidr(0x8100_0302));
    let mut typer = |frame: u64| vgic.gicr_read(reader, frame * GICR_STRIDE + 8, 8, &mut core);
    assert_eq!(typer(0), 0);
    assert_eq!(typer(1), 0x1_0000_0100);
    assert_eq!(typer(2), 0x0000_0302_0000_0210);
    assert_eq!(typer(3), 0, "no such vCPU");
    let (low, high) = (2 * GICR_STRIDE + 8, 2 * GICR_STRIDE + 12);
    assert_eq!(vgic.gicr_read(reader, low, 4, &mut core), 0x210);
    assert_eq!(vgic.gicr_read(reader, high, 4, &mut core), 0x302);
    let _ = vgic.gicr_write(GICR_STRIDE + 0x1_0100, 4, 0xff);
    assert_eq!(vgic.gicr_read(reader, 0x1_0100, 4, &mut core), 0);
    assert_eq!(vgic.gicr_read(reader, GICR_STRIDE + 0x1_0100, 4, &mut core), 0xff);
}

#[test]
fn a_redistributor_wakes_at_once() {
    let mut machine = Machine::at_reset(4);
    assert_eq!(machine.gicr_read(0x14, 4), 0b110);
    machine.gicr_write(0x14, 4, 0);
    assert_eq!(machine.gicr_read(0x14, 4), 0);
    machine.gicr_write(0x14, 4, 0b010);
    assert_eq!(machine.gicr_read(0x14, 4), 0b110);
}

#[test]
fn v8_unknown_offsets_read_as_zero_and_ignore_writes() {
    let mut machine = Machine::at_reset(4);
    let known = |offset: u64| {
        matches!(offset, 0..0xc | 0x80..0x400 | 0x420..0x500 | 0xc08..0xc40)
            || matches!(offset, 0x6100..0x6800 | 0xffd0..)
    };
    for offset in (0..GICD_SIZE).step_by(4).filter(|&offset| !known(offset)) {
        machine.gicd_write(offset, 4, 0xffff_ffff);
        assert_eq!(machine.gicd_read(offset, 4), 0, "{offset:#x}");
    }
    for offset in [u64::MAX, u64::MAX - 3, 1 << 32, GICD_SIZE] {
        machine.gicd_write(offset, 4, 1);
        assert_eq!(machine.gicr_read(offset, 4), 0);
    }
}

#[test]
fn v9_there_are_no_lpi_registers() {
    let mut machine = Machine::at_reset(4);
    // CTLR.EnableLPIs, SETLPIR, CLRLPIR, PROPBASER, PENDBASER, INVLPIR, INVALLR, SYNCR
    for offset in [0x0, 0x40, 0x48, 0x70, 0x78, 0xa0, 0xb0, 0xc0] {
        for width in [4, 8] {
            machine.gicr_write(offset, width, u64::MAX);
            assert_eq!(machine.gicr_read(offset, width), 0, "{offset:#x}");
        }
    }
    assert_eq!(machine.gicd_read(0x4, 4) & (1 << 17), 0, "TYPER.LPIS");
    assert_eq!(machine.gicr_read(0x8, 8) & 1, 0, "GICR_TYPER.PLPIS");
}

#[test]
fn v10_cpu_targets_of_gicv2_do_not_exist_with_affinity_routing() {
    let mut machine = Machine::at_reset(4);
    for offset in (0x800..0xc00).step_by(4) {
        machine.gicd_write(offset, 4, 0x0101_0101);
        assert_eq!(machine.gicd_read(offset, 4), 0);
    }
}

#[test]
fn v8_wrong_widths_and_misaligned_accesses_do_nothing() {
    let mut machine = Machine::at_reset(4);
    for (offset, width) in
        [(0x104, 1), (0x104, 2), (0x104, 8), (0x105, 4), (0x106, 4), (0x104, 0), (0x104, 3)]
    {
        machine.gicd_write(offset, width, 0xffff_ffff);
        assert_eq!(machine.gicd_read(offset, width), 0, "{offset:#x} {width}");
    }
    assert_eq!(machine.gicd_read(0x104, 4), 0);
    for (offset, width) in [(0x6144, 8), (0x6140, 2), (0x430, 2), (0x430, 8), (0x431, 4)] {
        machine.gicd_write(offset, width, u64::MAX);
        assert_eq!(machine.gicd_read(offset, width), 0, "{offset:#x} {width}");
    }
    for (offset, width) in [(0x1_0100, 1), (0x1_0102, 4), (0x1_0104, 4), (0x1_0100, 8), (0xc, 8)] {
        machine.gicr_write(offset, width, u64::MAX);
        assert_eq!(machine.gicr_read(offset, width), 0, "{offset:#x} {width}");
    }
}
