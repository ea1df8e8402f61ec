//! Where a guest's files go, and that they get there.

use proptest::prelude::*;

use super::*;
use crate::memory::{HostRam, Pa};

const MIB: u64 = 0x10_0000;
const RAM: u64 = 0x4000_0000;

fn plan(ram: u64, kernel: (u64, u64), ramdisk: u64, fdt: u64) -> Result<Placement, LoadError> {
    let (offset, memory) = kernel;
    Placement::plan(Ipa::new(RAM), ram, KernelImage { offset, memory }, ramdisk, fdt)
}

#[test]
fn a_usual_guest_is_loaded_where_qemu_loads_it() {
    let placement = plan(512 * MIB, (0, 32 * MIB), 5 * MIB, 0x4000).unwrap();
    assert_eq!(placement.kernel, Ipa::new(RAM + 2 * MIB));
    let ramdisk = RAM + 128 * MIB;
    assert_eq!(placement.ramdisk, Some((Ipa::new(ramdisk), Ipa::new(ramdisk + 5 * MIB))));
    assert_eq!(placement.fdt, Ipa::new(ramdisk + 6 * MIB));
    let old = plan(512 * MIB, (0x8_0000, 100), 0, 0x4000).unwrap();
    assert_eq!(old.kernel, Ipa::new(RAM + 0x8_0000));
    assert_eq!((old.ramdisk, old.fdt), (None, Ipa::new(ramdisk)));
}

#[test]
fn little_ram_is_filled_from_below() {
    // 2 MiB free, 9 of kernel, to the next 2: 12; 3 of ramdisk take 4; then the tree.
    let placement = plan(17 * MIB, (0, 9 * MIB), 3 * MIB, MIB).unwrap();
    assert_eq!(placement.ramdisk.unwrap().0, Ipa::new(RAM + 12 * MIB));
    assert_eq!(placement.fdt, Ipa::new(RAM + 16 * MIB));
    let needed = LoadError::TooLarge { needed: 17 * MIB, ram: 17 * MIB - 1 };
    assert_eq!(plan(17 * MIB - 1, (0, 9 * MIB), 3 * MIB, MIB), Err(needed));
    assert_eq!(
        needed.to_string(),
        "kernel, ramdisk and device tree need 17408 KiB of RAM, the VM has 17407 KiB"
    );
}

#[test]
fn sizes_that_no_sum_can_hold_are_too_large() {
    for (kernel, ramdisk, fdt) in [
        ((0, u64::MAX), 0, 0),
        ((u64::MAX, 1), 0, 0),
        ((0, 1), u64::MAX, 0),
        ((0, 1), 1, u64::MAX),
        ((u64::MAX, u64::MAX), u64::MAX, u64::MAX),
    ] {
        let expected = LoadError::TooLarge { needed: u64::MAX, ram: 1 << 40 };
        assert_eq!(plan(1 << 40, kernel, ramdisk, fdt), Err(expected));
    }
}

/// Sizes around everything the plan looks at.
fn size() -> impl Strategy<Value = u64> {
    prop_oneof![0..0x3000u64, 0..600 * MIB, (0..300u64).prop_map(|n| n * 2 * MIB), 0..1u64 << 41]
}

proptest! {
    #[test]
    fn a_plan_fits_overlaps_nothing_and_keeps_the_alignments(
        ram in size(), offset in size(), memory in size(), ramdisk in size(), fdt in 0..0x1_0000u64,
    ) {
        match plan(ram, (offset, memory), ramdisk, fdt) {
            Ok(placement) => {
                let kernel = placement.kernel.raw();
                let tree = placement.fdt.raw();
                prop_assert_eq!(kernel.wrapping_sub(offset) % (2 * MIB), 0);
                prop_assert!(kernel >= RAM);
                prop_assert_eq!(tree % (2 * MIB), 0);
                let before_tree = match placement.ramdisk {
                    Some((start, end)) => {
                        prop_assert_eq!(start.raw() % (2 * MIB), 0);
                        prop_assert_eq!(end.raw() - start.raw(), ramdisk);
                        prop_assert!(kernel + memory <= start.raw());
                        end.raw()
                    }
                    None => {
                        prop_assert_eq!(ramdisk, 0);
                        kernel + memory
                    }
                };
                prop_assert!(before_tree <= tree);
                prop_assert!(tree + fdt <= RAM + ram);
            }
            Err(LoadError::TooLarge { needed, ram: had }) => {
                prop_assert_eq!(had, ram);
                prop_assert!(needed > ram);
                // It is what would do, and a byte less would not.
                prop_assert!(plan(needed, (offset, memory), ramdisk, fdt).is_ok());
                prop_assert!(plan(needed - 1, (offset, memory), ramdisk, fdt).is_err());
            }
            Err(other) => prop_assert!(false, "{other:?}"),
        }
    }
}

/// Bytes that are different wherever one looks.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mix = |n: u64| (n ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (0..len as u64).map(|n| (mix(n) >> 56) as u8).collect()
}

fn file(contents: &[u8]) -> HostRam {
    let ram = HostRam::new(contents.len().max(1));
    ram.slice(Pa::new(0)).write_bytes(0, contents).unwrap();
    ram
}

fn bytes(memory: &GuestMemory<'_>, at: Ipa, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.slice(at, len).unwrap().read_bytes(0, &mut bytes).unwrap();
    bytes
}

/// Copies all, and makes the tree.
fn load(
    modules: &Modules<'_>,
    memory: &GuestMemory<'_>,
    scratch: &mut [u8],
    write_fdt: impl FnOnce(&Placement, &mut [u8]) -> Result<usize, WriteError>,
    mut loaded: impl FnMut(SharedSlice<'_>),
) -> Result<Placement, LoadError> {
    let mut done = 0;
    loop {
        match copy(modules, memory, scratch.len(), done, &mut loaded)? {
            0 => return finish(modules, memory, scratch, write_fdt, loaded),
            bytes => done += bytes,
        }
    }
}

#[test]
fn every_file_gets_to_its_place_and_nothing_else_is_written() {
    let (kernel, ramdisk, tree) = (pattern(1, 3 << 20 | 5), pattern(2, 12345), pattern(3, 321));
    let (kernel_file, ramdisk_file) = (file(&kernel), file(&ramdisk));
    let ram = HostRam::new(16 << 20);
    let mut memory = GuestMemory::new();
    assert!(memory.add(Ipa::new(RAM), ram.slice(Pa::new(0x8_0000_0000))).is_ok());
    let modules = Modules {
        kernel: kernel_file.slice(Pa::new(0)).subslice(0, kernel.len()).unwrap(),
        ramdisk: ramdisk_file.slice(Pa::new(0)).subslice(0, ramdisk.len()),
        bootargs: "",
    };
    let mut scratch = [0; 4096];
    let (mut written, mut told) = (vec![], None);
    let placement = load(
        &modules,
        &memory,
        &mut scratch,
        |placement, scratch| {
            told = Some(*placement);
            scratch[..tree.len()].copy_from_slice(&tree);
            Ok(tree.len())
        },
        |range| written.push((range.pa().raw() - 0x8_0000_0000 + RAM, range.len())),
    )
    .unwrap();
    assert_eq!(told, Some(placement));
    let (ramdisk_at, ramdisk_end) = placement.ramdisk.unwrap();
    assert_eq!(ramdisk_end.raw() - ramdisk_at.raw(), ramdisk.len() as u64);
    let pieces = [(placement.kernel, kernel), (ramdisk_at, ramdisk), (placement.fdt, tree)];
    let mut copied = vec![];
    for (at, piece) in &pieces {
        let steps = piece.chunks(COPY).enumerate();
        copied.extend(steps.map(|(n, step)| (at.raw() + (n * COPY) as u64, step.len())));
    }
    assert_eq!(copied.len(), 4 + 1 + 1, "no step has more than its share");
    assert_eq!(written, copied);

    let mut expected = vec![0; 16 << 20];
    for (at, piece) in &pieces {
        let at = (at.raw() - RAM) as usize;
        expected[at..at + piece.len()].copy_from_slice(piece);
    }
    assert!(bytes(&memory, Ipa::new(RAM), 16 << 20) == expected);
}

#[test]
fn what_cannot_be_loaded_says_why_and_writes_nothing() {
    let kernel = file(&pattern(1, 4096));
    let kernel = kernel.slice(Pa::new(0));
    let ram = HostRam::new(4 << 20);
    let mut memory = GuestMemory::new();
    let attempt = |memory: &GuestMemory<'_>, kernel, tree| {
        let modules = Modules { kernel, ramdisk: None, bootargs: "" };
        let mut scratch = [0; 64];
        load(&modules, memory, &mut scratch, |_, _| tree, |_| ())
    };
    assert_eq!(attempt(&memory, kernel, Ok(0)), Err(LoadError::NoRam));
    assert!(memory.add(Ipa::new(RAM), ram.slice(Pa::new(0))).is_ok());
    let empty = kernel.subslice(0, 2).unwrap();
    let error = attempt(&memory, empty, Ok(0));
    assert_eq!(error, Err(LoadError::Kernel(ImageError::Empty)));
    let huge = HostRam::new(4 << 20);
    assert_eq!(
        attempt(&memory, huge.slice(Pa::new(0)), Ok(0)),
        Err(LoadError::TooLarge { needed: (6 << 20) + 64, ram: 4 << 20 })
    );
    assert!(bytes(&memory, Ipa::new(RAM), 4 << 20).iter().all(|byte| *byte == 0));

    let full = LoadError::DeviceTree(WriteError::Full);
    assert_eq!(attempt(&memory, kernel, Err(WriteError::Full)), Err(full));
    // A writer that claims more than it was given.
    assert_eq!(attempt(&memory, kernel, Ok(65)), Err(full));
    assert!(attempt(&memory, kernel, Ok(64)).is_ok());
}
