use proptest::prelude::*;

use super::*;
use crate::fdt::{ModuleKind, Trigger};

const VIRT_GICV3: &[u8] = include_bytes!("../../../tests/data/virt-gicv3.dtb");
const VIRT_GICV2: &[u8] = include_bytes!("../../../tests/data/virt-gicv2.dtb");
const VERSAL: &[u8] = include_bytes!("../../../tests/data/versal-virt.dtb");
const SOC_RANGES: &[u8] = include_bytes!("../../../tests/data/soc-ranges.dtb");

fn read(blob: &[u8]) -> Board<'_> {
    Board::read(blob, Pa::new(0x4800_0000)).unwrap()
}

fn level(intid: u32) -> Option<Interrupt> {
    Some(Interrupt { intid, trigger: Trigger::Level })
}

fn edge(intid: u32) -> Option<Interrupt> {
    Some(Interrupt { intid, trigger: Trigger::Edge })
}

/// `blob` with every occurrence of `from` replaced by `to`, of the same length.
fn patched(blob: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut blob = blob.to_vec();
    let mut found = false;
    for at in 0..=blob.len() - from.len() {
        if blob[at..].starts_with(from) {
            blob[at..at + to.len()].copy_from_slice(to);
            found = true;
        }
    }
    assert!(found);
    blob
}

fn cells(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

#[test]
fn qemu_virt_with_gicv3_is_understood() {
    let board = read(VIRT_GICV3);
    assert!(board.compatible.contains("linux,dummy-virt"));
    assert_eq!(board.memory, [PaRange::new(0x4000_0000, 1 << 30)]);
    assert!(board.reserved.is_empty());
    let enable = CpuEnable::Psci;
    assert_eq!(board.cpus, [Cpu { mpidr: 0, enable }, Cpu { mpidr: 1, enable }]);
    assert_eq!(board.psci, Some(Conduit::Smc));
    assert_eq!(
        board.gic,
        Some(Gic::V3 {
            distributor: PaRange::new(0x0800_0000, 0x1_0000),
            redistributors: [PaRange::new(0x080a_0000, 0xf6_0000)].into_iter().collect(),
            maintenance: level(25),
        })
    );
    assert_eq!(
        board.timer,
        Some(Timer {
            secure_physical: level(29),
            physical: level(30),
            virtual_timer: level(27),
            hypervisor: level(26),
        })
    );
    let console = board.console.unwrap();
    assert!(console.is_pl011());
    assert_eq!(console.registers, PaRange::new(0x0900_0000, 0x1000));
    assert_eq!(console.interrupt, level(33));
    assert_eq!(board.rtc, Some(PaRange::new(0x0901_0000, 0x1000)));
    assert_eq!(board.virtio.len(), 32);
    for (n, slot) in board.virtio.iter().enumerate() {
        assert_eq!(slot.registers, PaRange::new(0x0a00_0000 + n as u64 * 0x200, 0x200));
        assert_eq!(slot.interrupt, edge(48 + n as u32));
        assert!(slot.coherent);
    }
    assert_eq!((board.bootargs, board.initrd), ("", None));
}

#[test]
fn the_modules_of_the_guest_loader_are_found_in_order_of_address() {
    let board = read(VIRT_GICV3);
    let guest = board.first_guest().unwrap();
    assert_eq!(guest.kernel.node.to_string(), "/chosen/module@0x50000000");
    assert_eq!(guest.kernel.range, PaRange::new(0x5000_0000, 10000));
    assert_eq!(guest.kernel.bootargs, "console=ttyAMA0");
    let ramdisk = guest.ramdisk.unwrap();
    assert_eq!(ramdisk.range, PaRange::new(0x5800_0000, 8192));
    assert_eq!(board.modules, [guest.kernel, ramdisk]);
    assert_eq!(board.check_modules(&[("the FDT", PaRange::new(0x4800_0000, 0x10_0000))]), Ok(()));
}

#[test]
fn qemu_virt_with_gicv2_is_understood() {
    let board = read(VIRT_GICV2);
    let at = |base| PaRange::new(base, 0x1_0000);
    assert_eq!(
        board.gic,
        Some(Gic::V2 {
            distributor: at(0x0800_0000),
            cpu_interface: at(0x0801_0000),
            hypervisor: Some(at(0x0803_0000)),
            virtual_cpu: Some(at(0x0804_0000)),
            maintenance: level(25),
        })
    );
    assert_eq!(board.bootargs, "log=debug");
    assert_eq!(board.initrd, Some(PaRange::new(0x4800_0000, 0x2000)));
    assert_eq!(board.first_guest(), None);
}

/// Its tree has a property name of 34 bytes, which the format's limit of 31 does not keep out of
/// real trees.
#[test]
fn xlnx_versal_virt_is_understood() {
    let board = read(VERSAL);
    assert_eq!(board.cpus.len(), 2);
    assert!(matches!(board.gic, Some(Gic::V3 { distributor, .. })
        if distributor == PaRange::new(0xf900_0000, 0x1_0000)));
    let console = board.console.unwrap();
    assert_eq!((console.registers.base.raw(), console.interrupt), (0xff00_0000, level(50)));
    let slots: Vec<_> = board.virtio.iter().map(|slot| slot.registers.base.raw()).collect();
    assert_eq!(slots, (0..8).map(|n| 0xa000_0000 + n * 0x200).collect::<Vec<_>>());
    assert_eq!(board.virtio[0].interrupt, edge(32 + 0x6f));
}

#[test]
fn addresses_are_translated_through_every_bus() {
    let board = read(SOC_RANGES);
    assert_eq!(
        board.gic,
        Some(Gic::V2 {
            distributor: PaRange::new(0xff84_1000, 0x1000),
            cpu_interface: PaRange::new(0xff84_2000, 0x2000),
            hypervisor: Some(PaRange::new(0xff84_4000, 0x2000)),
            virtual_cpu: Some(PaRange::new(0xff84_6000, 0x2000)),
            maintenance: level(25),
        })
    );
    // The third slot is outside its bridge's window; the one on another controller has no INTID.
    let slot = |base, interrupt| VirtioSlot {
        registers: PaRange::new(base, 0x200),
        interrupt,
        coherent: false,
    };
    assert_eq!(board.virtio, [slot(0xfe30_0000, level(80)), slot(0xfe30_0200, None)]);
    // On a bus that does not map it to memory.
    assert_eq!(board.rtc, None);
}

#[test]
fn the_console_is_found_by_alias_with_options_behind_it() {
    let console = read(SOC_RANGES).console.unwrap();
    assert_eq!(console.registers, PaRange::new(0xfe20_1000, 0x200));
    assert_eq!(console.interrupt, level(153));
}

#[test]
fn the_first_enabled_pl011_is_the_console_if_none_is_named() {
    let no_alias = patched(SOC_RANGES, b"serial1:115200n8", b"serial9:115200n8");
    assert_eq!(read(&no_alias).console, read(SOC_RANGES).console);
    let no_path = patched(VIRT_GICV3, b"/pl011@9000000\0", b"/pl011@9000001\0");
    // The node's own name has no slash before it.
    assert_eq!(read(&no_path).console, read(VIRT_GICV3).console);
}

#[test]
fn disabled_memory_is_not_used_and_reservations_are_kept() {
    let board = read(SOC_RANGES);
    let memory = [PaRange::new(0, 0x3c00_0000), PaRange::new(0x4000_0000, 0xbc00_0000)];
    assert_eq!(board.memory, memory);
    let reserved = [PaRange::new(0, 0x1000), PaRange::new(0x3b00_0000, 0x10_0000)];
    assert_eq!(board.reserved, reserved);
    let image = PaRange::new(0x20_0000, 0x10_0000);
    let map = board.free_ram(&[image]).unwrap();
    for taken in reserved.iter().chain(board.modules.iter().map(|m| &m.range)).chain([&image]) {
        assert!(!map.free().iter().any(|free| free.overlaps(*taken)));
    }
    assert_eq!(map.largest(1 << 21), Some(memory[1]));
}

#[test]
fn cores_with_a_spin_table_and_two_cell_affinities_are_understood() {
    let board = read(SOC_RANGES);
    assert_eq!(board.psci, None);
    let spin = |address| CpuEnable::SpinTable(Pa::new(address));
    let cpus =
        [Cpu { mpidr: 0, enable: spin(0xd8) }, Cpu { mpidr: 1 << 32 | 1, enable: spin(0xe0) }];
    assert_eq!(board.cpus, cpus);
}

#[test]
fn the_only_ramdisk_goes_to_the_first_kernel() {
    let board = read(SOC_RANGES);
    assert_eq!(board.kernels().map(|kernel| kernel.bootargs).collect::<Vec<_>>(), ["one", "two"]);
    let guest = board.first_guest().unwrap();
    assert_eq!(guest.kernel.bootargs, "one");
    assert_eq!(guest.ramdisk.unwrap().range, PaRange::new(0x200_0000, 0x1234));
}

#[test]
fn of_two_ramdisks_the_one_behind_the_kernel_is_its() {
    let mut board = read(SOC_RANGES);
    let ramdisk = board.modules[1];
    assert_eq!(ramdisk.kind, ModuleKind::Ramdisk);
    let first = Module { range: PaRange::new(0x10_0000, 0x1000), ..ramdisk };
    board.modules.insert(0, first).unwrap();
    assert_eq!(board.first_guest().unwrap().ramdisk, Some(ramdisk));
}

#[test]
fn a_tree_without_memory_is_refused() {
    let blob = patched(VIRT_GICV3, b"memory\0", b"memorY\0");
    assert_eq!(Board::read(&blob, Pa::new(0)).unwrap_err(), BoardError::NoMemory);
    let empty = patched(VIRT_GICV3, &cells(&[0, 0x4000_0000, 0, 0x4000_0000]), &cells(&[0; 4]));
    assert_eq!(Board::read(&empty, Pa::new(0)).unwrap_err(), BoardError::NoMemory);
}

#[test]
fn memory_that_wraps_is_refused_with_the_node_s_path() {
    let from = cells(&[0, 0x4000_0000, 0, 0x4000_0000]);
    let blob = patched(VIRT_GICV3, &from, &cells(&[0, 0x4000_0000, u32::MAX, 0xf000_0000]));
    let error = Board::read(&blob, Pa::new(0)).unwrap_err();
    let expected = "/memory@40000000: memory passes the end of the address space";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_module_that_is_truncated_or_misplaced_is_refused_with_its_path() {
    let kernel = cells(&[0, 0x5000_0000, 0, 10000]);
    let refused = |base: u32, len: u32, taken: &[(&'static str, PaRange)]| {
        let blob = patched(VIRT_GICV3, &kernel, &cells(&[0, base, 0, len]));
        read(&blob).check_modules(taken).unwrap_err().to_string()
    };
    let path = "/chosen/module@0x50000000: module";
    assert_eq!(refused(0x5000_0000, 0, &[]), format!("{path} has no bytes"));
    let outside = "is not in the board's memory";
    let expected = format!("{path} at 0x7ffff000..0x80001000 {outside}");
    assert_eq!(refused(0x7fff_f000, 0x2000, &[]), expected);
    let expected = format!("{path} at 0x9000000..0x9002710 {outside}");
    assert_eq!(refused(0x0900_0000, 10000, &[]), expected);
    let other = "/chosen/module@0x58000000";
    assert_eq!(refused(0x57ff_0000, 0x10001, &[]), format!("{path} overlaps {other}"));
    assert_eq!(
        refused(0x5800_1fff, 1, &[]),
        format!("{other}: module overlaps {}", path.get(..25).unwrap())
    );
    let taken = [("the FDT", PaRange::new(0x4800_0000, 0x10_0000))];
    let expected = format!("{path} at 0x480fffff..0x48100000 overlaps the FDT");
    assert_eq!(refused(0x480f_ffff, 1, &taken), expected);
}

#[test]
fn a_module_without_reg_is_refused_with_its_path() {
    let kernel = cells(&[0, 0x5000_0000, 0, 10000]);
    // The length of reg, in front of its name, says 15 bytes.
    let at = VIRT_GICV3.windows(16).position(|window| window == kernel).unwrap();
    let mut blob = VIRT_GICV3.to_vec();
    blob[at - 5] = 15;
    let error = Board::read(&blob, Pa::new(0)).unwrap_err();
    assert_eq!(error.to_string(), "/chosen/module@0x50000000: reg is not understood");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is in the tree: an answer or an error, and no panic.
    #[test]
    fn a_damaged_tree_is_read_or_refused(
        which in 0..3usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        words in prop::collection::vec(
            (any::<prop::sample::Index>(), prop_oneof![0u32..10, Just(u32::MAX), any::<u32>()]),
            0..6,
        ),
    ) {
        let mut blob = [VIRT_GICV3, VERSAL, SOC_RANGES][which].to_vec();
        for (at, byte) in damage {
            let at = at.index(blob.len());
            blob[at] = byte;
        }
        for (at, word) in words {
            let at = at.index(blob.len() / 4) * 4;
            blob[at..at + 4].copy_from_slice(&word.to_be_bytes());
        }
        match Board::read(&blob, Pa::new(0)) {
            Ok(board) => {
                let _ = board.check_modules(&[]);
                let _ = board.first_guest();
                let _ = board.free_ram(&[]);
                prop_assert!(!board.memory.is_empty());
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    /// The same for numbers alone, which leave the structure whole and reach further in.
    #[test]
    fn a_tree_with_other_numbers_is_read_or_refused(
        which in 0..3usize,
        changes in prop::collection::vec(
            (any::<prop::sample::Index>(), prop_oneof![0u32..5, Just(u32::MAX), any::<u32>()]),
            1..20,
        ),
    ) {
        let mut blob = [VIRT_GICV3, VERSAL, SOC_RANGES][which].to_vec();
        let structure = u32::from_be_bytes(*blob[8..].first_chunk::<4>().unwrap()) as usize;
        let mut values = Vec::new();
        let mut at = structure;
        loop {
            let word = |at: usize| u32::from_be_bytes(*blob[at..].first_chunk::<4>().unwrap());
            match word(at) {
                1 => {
                    let len = blob[at + 4..].iter().position(|byte| *byte == 0).unwrap();
                    at += 4 + (len + 1).next_multiple_of(4);
                }
                3 => {
                    let len = word(at + 4) as usize;
                    values.extend((at + 12..at + 12 + len / 4 * 4).step_by(4));
                    at += 12 + len.next_multiple_of(4);
                }
                9 => break,
                _ => at += 4,
            }
        }
        for (index, value) in changes {
            let at = *index.get(&values);
            blob[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        if let Ok(board) = Board::read(&blob, Pa::new(0)) {
            let _ = board.check_modules(&[]);
            let _ = board.free_ram(&[]);
        }
    }
}
