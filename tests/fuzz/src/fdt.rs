//! Device trees of boards.

use sparkler::fdt::{Board, MAX_BLOB, blob_size};
use sparkler::memory::{Pa, PaRange};

/// Where the blob claims to be.
const ADDRESS: Pa = Pa::new(0x4800_0000);

/// Any blob: read, its memory sorted out, its modules checked.
pub fn fdt(data: &[u8]) {
    // As aligned as a boot loader has it.
    let mut words = vec![0_u64; data.len().div_ceil(8)];
    for (word, bytes) in words.iter_mut().zip(data.chunks(8)) {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(whole);
    }
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let blob = &bytes[..data.len()];
    let size = blob_size(blob, ADDRESS);
    if let Ok(size) = size {
        assert!((40..=MAX_BLOB).contains(&size));
    }
    let board = match Board::read(blob, ADDRESS) {
        Ok(board) => board,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(size.is_ok_and(|size| size <= blob.len()));
    assert!(!board.memory.is_empty() && board.memory.iter().all(|range| !range.is_empty()));
    assert!(board.modules.is_sorted_by_key(|module| module.range.base.raw()));
    assert!(board.virtio.is_sorted_by_key(|slot| slot.registers.base.raw()));
    let image = PaRange::new(0x4008_0000, 0x10_0000);
    if let Ok(map) = board.free_ram(&[image]) {
        let free = map.free();
        assert!(free.iter().all(|range| !range.is_empty()));
        assert!(free.is_sorted_by(|a, b| a.end() < b.base.raw()), "{free:?}");
        let taken = board.reserved.iter().chain(&board.initrd).chain([&image]);
        for range in taken.chain(board.modules.iter().map(|module| &module.range)) {
            assert!(!free.iter().any(|free| free.overlaps(*range)), "{range} is taken");
        }
    }
    if let Err(error) = board.check_modules(&[("the image", image)]) {
        assert!(!error.to_string().is_empty());
    }
    assert_eq!(board.first_guest().is_some(), board.kernels().next().is_some());
    let _ = format!("{board:?}");
}
