//! Tests of [`SharedSlice`].
//!
//! Clean under Miri with `MIRIFLAGS=-Zmiri-disable-weak-memory-emulation`: Miri's weak-memory
//! emulation cannot follow atomics of different sizes on the same bytes and stops on them.

use super::*;
use crate::memory::HostRam;

const LEN: usize = 64;

/// Offsets and lengths to try: Miri takes fewer, still every phase within a word.
const OFFSETS: core::ops::Range<usize> = if cfg!(miri) { 0..8 } else { 0..20 };
const LENGTHS: [usize; 9] = [0, 1, 3, 7, 8, 9, 15, 17, 27];

fn numbered(ram: &HostRam) -> SharedSlice<'_> {
    let slice = ram.slice(Pa::new(0x8000_0000)).subslice(0, LEN).unwrap();
    for index in 0..LEN {
        slice.store_u8(index, index as u8).unwrap();
    }
    slice
}

fn bytes(slice: &SharedSlice<'_>) -> Vec<u8> {
    let mut out = vec![0; slice.len()];
    slice.read_bytes(0, &mut out).unwrap();
    out
}

#[test]
fn reads_and_writes_are_exact_at_every_offset_and_length() {
    let ram = HostRam::new(LEN);
    for offset in OFFSETS {
        for len in LENGTHS {
            let slice = numbered(&ram);
            let mut out = vec![0xEE; len];
            slice.read_bytes(offset, &mut out).unwrap();
            let expected: Vec<u8> = (offset..offset + len).map(|n| n as u8).collect();
            assert_eq!(out, expected);

            let new: Vec<u8> = expected.iter().map(|byte| byte | 0x80).collect();
            slice.write_bytes(offset, &new).unwrap();
            for (index, byte) in bytes(&slice).into_iter().enumerate() {
                let written = (offset..offset + len).contains(&index);
                assert_eq!(byte, index as u8 | if written { 0x80 } else { 0 });
            }
        }
    }
}

#[test]
fn a_fill_touches_its_range_only() {
    let ram = HostRam::new(LEN);
    for offset in OFFSETS {
        for len in LENGTHS {
            let slice = numbered(&ram);
            slice.fill(offset, len, 0xA5).unwrap();
            for (index, byte) in bytes(&slice).into_iter().enumerate() {
                let filled = (offset..offset + len).contains(&index);
                assert_eq!(byte, if filled { 0xA5 } else { index as u8 });
            }
        }
    }
}

#[test]
fn a_copy_is_exact_whatever_the_phases_and_the_length() {
    const ROOM: usize = 256;
    let (from, to) = (HostRam::new(ROOM), HostRam::new(ROOM));
    let source = from.slice(Pa::new(0)).subslice(0, ROOM).unwrap();
    let numbers: Vec<u8> = (0..ROOM).map(|index| index as u8 & 0x7F).collect();
    source.write_bytes(0, &numbers).unwrap();
    let target = to.slice(Pa::new(0)).subslice(0, ROOM).unwrap();
    let lengths: Vec<usize> = if cfg!(miri) { vec![0, 1, 29, 77] } else { (0..200).collect() };
    for source_offset in 0..9 {
        for offset in 0..9 {
            for &len in &lengths {
                target.fill(0, ROOM, 0xFF).unwrap();
                let part = source.subslice(source_offset, len).unwrap();
                target.subslice(offset, len).unwrap().copy_from(&part).unwrap();
                let mut expected = vec![0xFF; ROOM];
                expected[offset..offset + len]
                    .copy_from_slice(&numbers[source_offset..source_offset + len]);
                assert_eq!(bytes(&target), expected, "{source_offset} {offset} {len}");
            }
        }
    }
}

#[test]
fn bulk_operations_outside_the_slice_have_no_effect() {
    let ram = HostRam::new(LEN);
    let slice = numbered(&ram);
    let mut out = [0xEE; 4];
    for offset in [LEN - 3, LEN, LEN + 1, usize::MAX - 1, usize::MAX] {
        assert_eq!(slice.read_bytes(offset, &mut out), None);
        assert_eq!(slice.write_bytes(offset, &[1; 4]), None);
        assert_eq!(slice.fill(offset, 4, 1), None);
    }
    assert_eq!(slice.fill(8, usize::MAX, 1), None);
    assert_eq!(out, [0xEE; 4]);
    assert_eq!(bytes(&slice), (0..LEN as u8).collect::<Vec<_>>());
}

#[test]
fn a_copy_between_different_lengths_is_refused() {
    let ram = HostRam::new(LEN);
    let slice = numbered(&ram);
    let short = slice.subslice(0, 8).unwrap();
    assert_eq!(slice.copy_from(&short), None);
    assert_eq!(bytes(&slice), (0..LEN as u8).collect::<Vec<_>>());
}

#[test]
fn words_are_little_endian_aligned_and_inside() {
    let ram = HostRam::new(LEN);
    let slice = numbered(&ram);
    assert_eq!(slice.load_u16(2), Some(0x0302));
    assert_eq!(slice.load_u32(4), Some(0x0706_0504));
    assert_eq!(slice.load_u64(8), Some(0x0F0E_0D0C_0B0A_0908));
    assert_eq!(slice.load_u16(1), None);
    assert_eq!(slice.load_u32(LEN - 2), None);
    assert_eq!(slice.load_u64(usize::MAX - 3), None);
}

#[test]
fn entries_are_little_endian_aligned_and_inside() {
    let ram = HostRam::new(LEN);
    let slice = numbered(&ram);
    let last = Entry { first: 0x3736_3534_3332_3130, low: 0x3B3A_3938, high: 0x3F3E_3D3C };
    assert_eq!(slice.load_entry(48), Some(last));
    assert_eq!(slice.load_entry(52), None);
    assert_eq!(slice.load_entry(56), None);
    let table = slice.table().unwrap();
    let entry = table.entry(EntryOffset::of(3)).unwrap();
    assert_eq!(entry.load(), last);
    assert_eq!(entry.load_high(), last.high);
    assert_eq!(entry.load_first_and_low(), (last.first, last.low));
    table.entry(EntryOffset::of(2)).unwrap().store_low_and_high(0x0807_0605_0403_0201);
    assert_eq!(slice.load_u64(40), Some(0x0807_0605_0403_0201));
    assert!(table.entry(EntryOffset::of(4)).is_none());
    assert!(table.entry(EntryOffset::of(u32::MAX)).is_none());
    let half = table.up_to(EntryOffset::of(2)).unwrap();
    assert!(half.entry(EntryOffset::ONE).is_some());
    assert!(half.entry(EntryOffset::ONE.plus(EntryOffset::ONE)).is_none());
    assert!(half.entry(EntryOffset::START.minus(EntryOffset::ONE)).is_none());
    assert!(table.up_to(EntryOffset::of(4)).is_some());
    assert!(table.up_to(EntryOffset::of(5)).is_none());
    assert!(slice.subslice(0, 40).unwrap().table().is_none());
    assert!(slice.subslice(4, 48).unwrap().table().is_none());
}

#[test]
fn a_ring_goes_round_inside_of_its_slice() {
    let ram = HostRam::new(LEN);
    let slice = numbered(&ram);
    let ring = slice.ring::<u16>(2, 4).unwrap();
    for index in [1, 5, u16::MAX - 2] {
        assert_eq!(ring.load(index), 0x0504);
    }
    let pairs = slice.ring::<[u32; 2]>(4, 2).unwrap();
    pairs.store(3, [0x0403_0201, 0x0807_0605]);
    assert_eq!(slice.load_u32(12), Some(0x0403_0201));
    assert_eq!(slice.load_u32(16), Some(0x0807_0605));
    assert_eq!(slice.load_u32(20), Some(0x1716_1514));
    for (offset, count) in [(1, 4), (2, 3), (2, 0), (2, 32), (LEN, 1), (2, usize::MAX)] {
        assert!(slice.ring::<u16>(offset, count).is_none());
    }
}

#[test]
fn a_subslice_for_hot_paths_is_the_usual_one_unless_it_is_empty() {
    let ram = HostRam::new(LEN);
    let slice = numbered(&ram);
    let offsets = (0..LEN as u64 + 3).chain([1 << 63, u64::MAX - 1, u64::MAX]);
    for offset in offsets {
        for len in (0..LEN as u32 + 3).chain([u32::MAX]) {
            let usual = slice.subslice(offset as usize, len as usize).filter(|it| !it.is_empty());
            let place = |it: SharedSlice<'_>| (it.base, it.pa(), it.len());
            assert_eq!(slice.nonempty(offset, len).map(place), usual.map(place));
        }
    }
}

#[test]
fn a_subslice_moves_both_addresses_and_stays_inside() {
    let ram = HostRam::new(LEN);
    let slice = numbered(&ram);
    let part = slice.subslice(16, 8).unwrap();
    assert_eq!(part.pa(), Pa::new(0x8000_0010));
    assert_eq!(part.load_u8(0), Some(16));
    assert_eq!(part.load_u8(8), None);
    assert!(slice.subslice(LEN, 0).is_some());
    assert!(slice.subslice(LEN, 1).is_none());
    assert!(slice.subslice(1, usize::MAX).is_none());
}
