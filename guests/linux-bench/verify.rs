//! A whole disk is written, in pieces of random sizes, at random places, some at a time, and read back
//! in other pieces: not a byte may differ.

use core::ffi::CStr;
use core::ops::Range;

use crate::Random;
use crate::linux::{self, Event, Request, Ring};

/// The most requests at once.
const DEPTH: usize = 32;
/// The largest request.
const LARGEST: usize = 256 << 10;
/// What the disk is cut into; each piece is written by requests of one size.
const PIECE: usize = 1 << 20;
/// The unit of addresses.
const SECTOR: usize = 512;
/// Memory needed.
pub(crate) const MEMORY: usize = DEPTH * LARGEST;

/// What a sector holds: a word of it is the seed, the place and a constant, mixed.
fn word(seed: u64, sector: u64, index: usize) -> u64 {
    let mixed = (seed ^ sector << 8 ^ index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
}

fn fill(seed: u64, at: u64, bytes: &mut [u8]) {
    for (number, sector) in bytes.chunks_exact_mut(SECTOR).enumerate() {
        let number = at / SECTOR as u64 + number as u64;
        for (index, place) in sector.chunks_exact_mut(8).enumerate() {
            place.copy_from_slice(&word(seed, number, index).to_le_bytes());
        }
    }
}

/// The first byte that is not as written.
fn first_difference(seed: u64, at: u64, bytes: &[u8]) -> Option<u64> {
    bytes.chunks_exact(8).enumerate().find_map(|(number, place)| {
        let byte = at + 8 * number as u64;
        let expected = word(seed, byte / SECTOR as u64, byte as usize % SECTOR / 8);
        (place != expected.to_le_bytes()).then_some(byte)
    })
}

/// What is done with the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    Write,
    Read,
}

/// Writes or reads what the device has of these bytes, whole pieces; what was written is flushed. The seed decides what is written;
/// the sizes and the order are new for each pass.
pub(crate) fn run(
    device: &CStr,
    seed: u64,
    range: Range<u64>,
    pass: Pass,
    memory: &mut [u8],
) -> Result<(), isize> {
    let file = linux::open_direct_both(device)?;
    let ring = Ring::new(DEPTH)?;
    let pieces = linux::size(file)?.min(range.end).saturating_sub(range.start) / PIECE as u64;
    let mut random = Random(seed ^ if pass == Pass::Write { 0x5555 } else { 0xaaaa });
    // Every piece once: an odd stride goes through a power of two, and what is beyond is left out.
    let (all, stride) = (pieces.next_power_of_two(), random.next() | 1);
    let first = random.next();
    for turn in 0..all {
        let piece = first.wrapping_add(turn.wrapping_mul(stride)) & (all - 1);
        if piece >= pieces {
            continue;
        }
        let size = (SECTOR << random.below(10)).min(LARGEST);
        let depth = 1 + random.below(DEPTH as u64) as usize;
        let base = range.start + piece * PIECE as u64;
        work(file, &ring, base, size, depth, seed, pass, memory)?;
    }
    if pass == Pass::Write { linux::flush(file) } else { Ok(()) }
}

/// One piece, `depth` requests of `size` bytes at a time.
#[allow(clippy::too_many_arguments)]
fn work(
    file: usize,
    ring: &Ring,
    base: u64,
    size: usize,
    depth: usize,
    seed: u64,
    pass: Pass,
    memory: &mut [u8],
) -> Result<(), isize> {
    let mut places = [0u64; DEPTH];
    let (mut next, mut in_flight) = (0, 0);
    let mut free: u32 = if depth == 32 { u32::MAX } else { (1 << depth) - 1 };
    while next < PIECE || in_flight > 0 {
        while free != 0 && next < PIECE {
            let slot = free.trailing_zeros() as usize;
            free &= free - 1;
            let buffer = &mut memory[slot * LARGEST..][..size];
            let at = base + next as u64;
            match pass {
                Pass::Write => fill(seed, at, buffer),
                Pass::Read => buffer.fill(0),
            }
            places[slot] = at;
            let write = pass == Pass::Write;
            let request = Request::new(slot as u64, write, file, buffer.as_mut_ptr(), size, at);
            ring.submit(&mut [request])?;
            next += size;
            in_flight += 1;
        }
        let mut events = [Event::default(); DEPTH];
        let count = ring.wait(&mut events)?;
        for event in &events[..count] {
            if event.result != size as i64 {
                return Err((event.result as isize).min(-5));
            }
            let slot = event.name as usize;
            let bytes = &memory[slot * LARGEST..][..size];
            if pass == Pass::Read
                && let Some(byte) = first_difference(seed, places[slot], bytes)
            {
                say!("linux-bench: byte {byte} is not what was written");
                return Err(-74);
            }
            free |= 1 << slot;
            in_flight -= 1;
        }
    }
    Ok(())
}
