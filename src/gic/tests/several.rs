//! Several vCPUs: SGIs, routes, private interrupts.

use super::*;

/// Four vCPUs, SGIs and SPIs enabled in Group 1 on all of them.
fn four() -> (Vgic, [model::FakeCore; 4]) {
    let mut vgic = Vgic::new(4);
    let _ = vgic.gicd_write(BOOT, 0, 4, 0b10);
    let _ = vgic.gicd_write(BOOT, 0x84, 4, 0xffff_ffff);
    let _ = vgic.gicd_write(BOOT, 0x104, 4, 0xffff_ffff);
    for frame in 0..4 {
        let _ = vgic.gicr_write(frame * GICR_STRIDE + 0x1_0080, 4, 0xffff_ffff);
        let _ = vgic.gicr_write(frame * GICR_STRIDE + 0x1_0100, 4, 0xffff_ffff);
    }
    (vgic, core::array::from_fn(|_| model::FakeCore::new(4)))
}

fn vcpu(index: usize) -> VcpuIndex {
    VcpuIndex::new(index).unwrap()
}

fn members(set: VcpuSet) -> Vec<usize> {
    set.iter().map(VcpuIndex::get).collect()
}

#[test]
fn sgis_reach_listed_targets_and_all_but_self() {
    let (mut vgic, mut cores) = four();
    assert_eq!(members(vgic.send_sgi(vcpu(0), 5 << 24 | 0b1010)), [1, 3]);
    assert_eq!(members(vgic.send_sgi(vcpu(2), 6 << 24 | 1 << 40)), [0, 1, 3]);
    assert_eq!(members(vgic.send_sgi(vcpu(2), 7 << 24 | 0b100)), [2], "a vCPU may name itself");
    for (index, expected) in [vec![6], vec![5, 6], vec![7], vec![5, 6]].into_iter().enumerate() {
        let core = &mut cores[index];
        let _ = vgic.flush(vcpu(index), core);
        let mut got: Vec<u32> =
            core.lrs.iter().filter(|lr| lr.is_pending()).map(|lr| lr.vintid()).collect();
        got.sort_unstable();
        assert_eq!(got, expected, "vCPU {index}");
    }
}

#[test]
fn sgis_to_nobody_are_ignored() {
    let (mut vgic, _) = four();
    for value in [
        5 << 24 | 0xfff0,           // Aff0 4 to 15
        5 << 24 | 1 << 44 | 0b1111, // Aff0 16 to 19
        5 << 24 | 1 << 16 | 0b1111, // Aff1 1
        5 << 24 | 1 << 32 | 0b1111, // Aff2 1
        5 << 24 | 1 << 48 | 0b1111, // Aff3 1
        5 << 24,
    ] {
        assert!(vgic.send_sgi(vcpu(0), value).is_empty(), "{value:#x}");
    }
    for index in 0..4 {
        assert!(!vgic.has_deliverable(vcpu(index), 0xff));
    }
}

#[test]
fn v5_every_affinity_field_selects() {
    let (mut vgic, _) = four();
    vgic.set_affinity(vcpu(1), Affinity::from_mpidr(0x04_8003_0212));
    let value = 5 << 24 | 4 << 48 | 3 << 32 | 2 << 16 | 1 << 44 | 1 << 2;
    assert_eq!(members(vgic.send_sgi(vcpu(0), value)), [1]);
    let _ = vgic.gicd_write(BOOT, 0x6000 + 8 * 48, 8, 0x04_0003_0212);
    assert_eq!(members(vgic.pulse(IntId::new(48).unwrap())), [1]);
    assert_eq!(
        vgic.gicr_read(vcpu(0), GICR_STRIDE + 8, 8, &mut model::FakeCore::new(1)) >> 32,
        0x0403_0212
    );
}

#[test]
fn group_0_sgi_registers_do_not_reach_group_1_interrupts() {
    let (mut vgic, _) = four();
    let _ = vgic.gicr_write(0x1_0080 + GICR_STRIDE, 4, !(1 << 5));
    assert_eq!(members(vgic.send_group0_sgi(vcpu(0), 5 << 24 | 0b1111)), [1]);
}

#[test]
fn an_spi_follows_its_route_even_out_of_a_list_register() {
    let (mut vgic, mut cores) = four();
    let spi = IntId::new(48).unwrap();
    assert_eq!(members(vgic.pulse(spi)), [0]);
    let _ = vgic.flush(vcpu(0), &mut cores[0]);
    assert!(cores[0].lrs[0].is_pending());
    let concerned = vgic.gicd_write(BOOT, 0x6000 + 8 * 48, 8, 2);
    assert!(concerned.contains(vcpu(0)) && concerned.contains(vcpu(2)));
    let _ = vgic.flush(vcpu(2), &mut cores[2]);
    assert!(cores[2].lrs[0].is_invalid(), "vCPU 0 still holds it");
    assert_eq!(members(vgic.flush(vcpu(0), &mut cores[0])), [2]);
    assert!(cores[0].lrs[0].is_invalid());
    let _ = vgic.flush(vcpu(2), &mut cores[2]);
    assert_eq!((cores[2].lrs[0].vintid(), cores[2].lrs[0].state()), (48, State::Pending));
    assert!(!vgic.has_deliverable(vcpu(0), 0xff));
    assert!(vgic.has_deliverable(vcpu(2), 0xff));
}

#[test]
fn an_spi_routed_to_nobody_waits() {
    let (mut vgic, _) = four();
    let _ = vgic.gicd_write(BOOT, 0x6000 + 8 * 48, 8, 9);
    assert!(vgic.pulse(IntId::new(48).unwrap()).is_empty());
    assert_eq!(members(vgic.gicd_write(BOOT, 0x6000 + 8 * 48, 8, 1)), [1]);
    assert!(vgic.has_deliverable(vcpu(1), 0xff));
}

#[test]
fn private_interrupts_of_one_vcpu_are_not_anothers() {
    let (mut vgic, _) = four();
    assert_eq!(members(vgic.set_ppi_level(vcpu(3), IntId::new(20).unwrap(), true)), [3]);
    for index in 0..4 {
        assert_eq!(vgic.has_deliverable(vcpu(index), 0xff), index == 3);
    }
}

#[test]
fn device_calls_ignore_interrupts_of_the_wrong_kind() {
    let (mut vgic, _) = four();
    let (sgi, ppi, spi) =
        (IntId::new(3).unwrap(), IntId::new(20).unwrap(), IntId::new(48).unwrap());
    assert!(vgic.pulse(sgi).is_empty());
    assert!(vgic.pulse(ppi).is_empty());
    assert!(vgic.set_level(ppi, true).is_empty());
    assert!(vgic.set_ppi_level(vcpu(0), sgi, true).is_empty());
    assert!(vgic.set_ppi_level(vcpu(0), spi, true).is_empty());
    assert!((0..4).all(|index| !vgic.has_deliverable(vcpu(index), 0xff)));
}

#[test]
fn the_number_of_vcpus_is_clamped() {
    let mut core = model::FakeCore::new(1);
    for (asked, last) in [(0, 0), (1, 0), (8, 7), (9, 7), (usize::MAX, 7)] {
        let mut vgic = Vgic::new(asked);
        let typer = vgic.gicr_read(BOOT, last * GICR_STRIDE + 8, 8, &mut core);
        assert_eq!(typer & 0x10, 0x10, "{asked}");
    }
}

#[test]
fn an_active_spi_that_is_pending_again_follows_its_route_after_its_end() {
    let (mut vgic, mut cores) = four();
    let spi = IntId::new(48).unwrap();
    let _ = vgic.pulse(spi);
    let _ = vgic.flush(vcpu(0), &mut cores[0]);
    assert_eq!(cores[0].lrs[0].state(), State::Pending);
    let _ = vgic.gicd_write(BOOT, 0x400 + 48, 1, 0x80);
    let _ = vgic.flush(vcpu(0), &mut cores[0]);
    assert_eq!(cores[0].acknowledge(), Some(48));
    let _ = vgic.gicd_write(BOOT, 0x6000 + 8 * 48, 8, 2);
    let concerned = vgic.pulse(spi);
    assert!(concerned.contains(vcpu(0)), "its list register must say so at the end");
    let _ = vgic.flush(vcpu(0), &mut cores[0]);
    let _ = vgic.flush(vcpu(2), &mut cores[2]);
    assert!(cores[2].lrs[0].is_invalid(), "it is active elsewhere");
    assert!(!vgic.has_deliverable(vcpu(2), 0xff));
    let _ = cores[0].end_of_interrupt();
    assert!(cores[0].maintenance_asserted(), "nobody else would tell vCPU 2");
    vgic.on_maintenance(vcpu(0));
    assert_eq!(members(vgic.flush(vcpu(0), &mut cores[0])), [2]);
    let _ = vgic.flush(vcpu(2), &mut cores[2]);
    assert_eq!(cores[2].lrs[0].vintid(), 48);
}

#[test]
fn a_read_of_anothers_state_makes_it_look_and_the_next_read_is_true() {
    let (mut vgic, mut cores) = four();
    let _ = vgic.gicd_write(BOOT, 0x6000 + 8 * 48, 8, 3);
    let _ = vgic.gicd_write(BOOT, 0x400 + 48, 1, 0x80);
    let _ = vgic.pulse(IntId::new(48).unwrap());
    let _ = vgic.flush(vcpu(3), &mut cores[3]);
    assert_eq!(cores[3].acknowledge(), Some(48));
    let active = |vgic: &mut Vgic, core: &mut model::FakeCore| {
        vgic.gicd_read(vcpu(1), 0x304, 4, core) >> 16 & 1
    };
    assert_eq!(active(&mut vgic, &mut cores[1]), 0, "as before the acknowledge");
    assert!(vgic.needs_flush(vcpu(1)));
    assert_eq!(members(vgic.flush(vcpu(1), &mut cores[1])), [3]);
    assert!(vgic.needs_flush(vcpu(3)));
    let _ = vgic.flush(vcpu(3), &mut cores[3]);
    assert_eq!(active(&mut vgic, &mut cores[1]), 1);
    let _ = vgic.flush(vcpu(1), &mut cores[1]);
    // Nothing of word 2 is listed anywhere: nobody is disturbed.
    let _ = vgic.gicd_read(vcpu(1), 0x308, 4, &mut cores[1]);
    assert!(vgic.flush(vcpu(1), &mut cores[1]).is_empty());
}

#[test]
fn a_write_to_what_another_vcpu_has_listed_takes_effect_at_its_next_flush() {
    for (class, still_pending, still_active) in
        [(ICENABLER, true, false), (ICPENDR, false, false), (ICACTIVER, false, false)]
    {
        let (mut vgic, mut cores) = four();
        let _ = vgic.gicd_write(BOOT, 0x6000 + 8 * 48, 8, 3);
        let _ = vgic.gicd_write(BOOT, 0x400 + 48, 1, 0x80);
        let _ = vgic.pulse(IntId::new(48).unwrap());
        let _ = vgic.flush(vcpu(3), &mut cores[3]);
        if class == ICACTIVER {
            assert_eq!(cores[3].acknowledge(), Some(48));
        }
        assert_eq!(members(vgic.gicd_write(vcpu(1), class + 4, 4, 1 << 16)), [3], "{class:#x}");
        let _ = vgic.flush(vcpu(3), &mut cores[3]);
        assert!(cores[3].lrs[0].is_invalid());
        let read = |vgic: &mut Vgic, core: &mut model::FakeCore, class| {
            vgic.gicd_read(vcpu(1), class, 4, core) >> 16 & 1
        };
        assert_eq!(read(&mut vgic, &mut cores[1], 0x204) != 0, still_pending);
        assert_eq!(read(&mut vgic, &mut cores[1], 0x304) != 0, still_active);
    }
}

#[test]
fn a_machine_whose_vcpus_are_all_unloaded_is_reset_from_any_core() {
    let (mut vgic, mut cores) = four();
    let _ = vgic.pulse(IntId::new(48).unwrap());
    let _ = vgic.send_sgi(vcpu(1), 5 << 24 | 1 << 40);
    for (index, core) in cores.iter_mut().enumerate() {
        let _ = vgic.flush(vcpu(index), core);
        let _ = vgic.unload(vcpu(index), core);
    }
    vgic.reset_unloaded();
    for (index, core) in cores.iter_mut().enumerate() {
        assert!(!vgic.has_deliverable(vcpu(index), 0xff));
        assert_eq!(vgic.gicr_read(vcpu(index), 0x1_0200, 4, core), 0);
    }
    assert_eq!(vgic.gicd_read(BOOT, 0x204, 4, &mut cores[0]), 0);
}
