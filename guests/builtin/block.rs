//! Checks of a block device through the `virtio-drivers` crate.
//!
//! What is overwritten is put back, so any disk may be given.

use crate::board::Board;
use crate::console::line;
use crate::dma::Flat;
use crate::mmio::read32;
use crate::racy::Racy;
use crate::report::{Failed, Verdict, check, expect};
use crate::ring::CONFIG;
use crate::timer;
use core::ptr::NonNull;
use virtio_drivers::device::blk::{BlkReq, BlkResp, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::mmio::MmioTransport;

/// Sectors at the end of the disk that are written, and restored.
const AREA: usize = 64;
/// Requests in flight at once, each with a buffer of its own.
const DEPTH: usize = 8;

type Disk = VirtIOBlk<Flat, MmioTransport<'static>>;
type Area = [u8; AREA * SECTOR_SIZE];

static SAVED: Racy<Area> = Racy::new([0; AREA * SECTOR_SIZE]);
static BUFFER: Racy<[u8; AREA * SECTOR_SIZE + 8]> = Racy::new([0; AREA * SECTOR_SIZE + 8]);

/// Runs them all, on the first disk.
pub(crate) fn run(board: &Board) {
    let Some(slot) = board.disk() else {
        line!("block: this machine has no disk; nothing to check");
        return;
    };
    // The crate waits without a bound of its own.
    let mut disk = None;
    check("block: initialises", || {
        let registers =
            NonNull::new(slot.registers.base as *mut _).ok_or(Failed::because("at 0"))?;
        // SAFETY: a virtio-MMIO slot by the device tree; no other driver of ours is using it.
        let transport = unsafe { MmioTransport::new(registers, slot.registers.size) }
            .map_err(|_| Failed::because("no modern virtio-MMIO device"))?;
        let new = timer::bounded(5_000, || Disk::new(transport));
        disk = Some(new.map_err(|_| Failed::because("refused by the driver"))?);
        Ok(())
    });
    let Some(mut disk) = disk else { return };
    let capacity = disk.capacity();
    let access = if disk.readonly() { "read-only" } else { "writable" };
    line!("block: ", capacity, " sectors, ", access);
    check("block: capacity is what the configuration says", || {
        let base = slot.registers.base + CONFIG;
        let seen = u64::from(read32(base)) | u64::from(read32(base + 4)) << 32;
        expect(seen == capacity && capacity != 0, "capacity", seen)
    });
    check("block: GET_ID answers", || {
        let mut id = [0xff; 20];
        let length = bounded(|| disk.device_id(&mut id))?;
        let printable = id[..length].iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
        expect(printable, "byte", id[0])
    });
    check("block: a read past the capacity fails", || past_the_end(&mut disk, false));
    let Some(first) = capacity.checked_sub(AREA as u64) else {
        line!("block: too small for the other checks");
        return;
    };
    let first = first as usize;
    if disk.readonly() {
        check("block: a write to a read-only disk fails", || {
            let buffer = sectors(1);
            match bounded_result(|| disk.write_blocks(first, buffer)) {
                Ok(()) => Err(Failed::because("it did not")),
                Err(_) => Ok(()),
            }
        });
        return;
    }
    // SAFETY: used here only.
    let saved = unsafe { &mut *SAVED.get() };
    if !check("block: reads 32 KiB", || bounded(|| disk.read_blocks(first, saved))) {
        return;
    }
    check("block: what is written is read back, in pieces", || pieces(&mut disk, first));
    check("block: a buffer at an odd address", || odd_address(&mut disk, first));
    let rounds = if board.has_argument("long") { 70_000 } else { 1_000 };
    check("block: many in flight, past the ring's wrap", || in_flight(&mut disk, first, rounds));
    check("block: FLUSH", || bounded(|| disk.flush()));
    check("block: a write past the capacity fails", || past_the_end(&mut disk, true));
    check("block: the capacity is unchanged by it", || {
        expect(read32(slot.registers.base + CONFIG) == capacity as u32, "capacity", 0u32)
    });
    check("block: puts back what was there", || {
        bounded(|| disk.write_blocks(first, saved))?;
        let again = sectors(AREA);
        bounded(|| disk.read_blocks(first, again))?;
        expect(again == saved, "differs", 0u32)?;
        bounded(|| disk.flush())
    });
}

/// Different lengths at different places, overlapping; then read back by other cuts.
fn pieces(disk: &mut Disk, first: usize) -> Verdict {
    let mut tag = 0;
    for (at, count) in [(0, 1), (1, 7), (8, 8), (3, 32), (63, 1), (16, 48), (0, 2), (62, 2)] {
        tag += 1;
        let buffer = sectors(count);
        fill(buffer, at, tag);
        bounded(|| disk.write_blocks(first + at, buffer))?;
        buffer.fill(0);
        bounded(|| disk.read_blocks(first + at, buffer))?;
        verify(buffer, at, |_| tag)?;
    }
    let whole = sectors(AREA);
    bounded(|| disk.read_blocks(first, whole))?;
    // The last piece to cover each sector.
    verify(whole, 0, |sector| match sector {
        0..=1 => 7,
        62..=63 => 8,
        16..=61 => 6,
        3..=15 => 4,
        _ => 2,
    })
}

fn odd_address(disk: &mut Disk, first: usize) -> Verdict {
    // SAFETY: used through one reference at a time.
    let buffer = unsafe { &mut *BUFFER.get() };
    let end = 3 + 4 * SECTOR_SIZE;
    fill(&mut buffer[3..end], 20, 77);
    bounded(|| disk.write_blocks(first + 20, &buffer[3..end]))?;
    buffer[..end + 5].fill(0x99);
    bounded(|| disk.read_blocks(first + 20, &mut buffer[3..end]))?;
    verify(&buffer[3..end], 20, |_| 77)?;
    expect(buffer[..3] == [0x99; 3], "the byte before", buffer[2])?;
    expect(buffer[end..end + 5] == [0x99; 5], "the byte after", buffer[end])
}

fn past_the_end(disk: &mut Disk, write: bool) -> Verdict {
    let capacity = disk.capacity() as usize;
    // Wholly past, straddling, and wrapping 64 bits of sector number or of byte offset.
    for (at, count) in [(capacity, 1), (capacity - 1, 2), (usize::MAX, 1), (1 << 55, 1)] {
        let buffer = sectors(count);
        let result = if write {
            bounded_result(|| disk.write_blocks(at, buffer))
        } else {
            bounded_result(|| disk.read_blocks(at, buffer))
        };
        if result.is_ok() {
            return Err(Failed::seeing("done at sector", at as u64));
        }
    }
    Ok(())
}

/// One request with what it borrows.
struct Flight {
    token: Option<u16>,
    sector: usize,
    tag: u8,
    writing: bool,
    request: BlkReq,
    response: BlkResp,
}

/// Keeps [`DEPTH`] requests going, each on sectors of its own: write, read back, compare.
fn in_flight(disk: &mut Disk, first: usize, rounds: usize) -> Verdict {
    let mut flights: [Flight; DEPTH] = core::array::from_fn(|n| Flight {
        token: None,
        sector: n * (AREA / DEPTH),
        tag: 0,
        writing: false,
        request: BlkReq::default(),
        response: BlkResp::default(),
    });
    let buffers = sectors(DEPTH * 2);
    let mut done = 0;
    timer::bounded(120_000, || {
        while done < rounds {
            for (flight, buffer) in flights.iter_mut().zip(buffers.chunks_mut(2 * SECTOR_SIZE)) {
                if flight.token.is_none() {
                    launch(disk, first, flight, buffer)?;
                }
            }
            let Some(token) = disk.peek_used() else {
                core::hint::spin_loop();
                continue;
            };
            for (flight, buffer) in flights.iter_mut().zip(buffers.chunks_mut(2 * SECTOR_SIZE)) {
                if flight.token == Some(token) {
                    land(disk, flight, buffer)?;
                    done += 1;
                }
            }
        }
        // No buffer may be in use when this returns.
        while flights.iter().any(|flight| flight.token.is_some()) {
            if let Some(token) = disk.peek_used() {
                for (flight, buffer) in flights.iter_mut().zip(buffers.chunks_mut(2 * SECTOR_SIZE))
                {
                    if flight.token == Some(token) {
                        land(disk, flight, buffer)?;
                    }
                }
            }
        }
        Ok(())
    })
}

fn launch(disk: &mut Disk, first: usize, flight: &mut Flight, buffer: &mut [u8]) -> Verdict {
    let at = first + flight.sector;
    flight.writing = !flight.writing;
    // SAFETY: request, buffer and response stay where they are until `land`.
    let token = unsafe {
        if flight.writing {
            flight.tag = flight.tag.wrapping_add(1);
            fill(buffer, flight.sector, flight.tag);
            disk.write_blocks_nb(at, &mut flight.request, buffer, &mut flight.response)
        } else {
            buffer.fill(0);
            disk.read_blocks_nb(at, &mut flight.request, buffer, &mut flight.response)
        }
    };
    flight.token = Some(token.map_err(|_| Failed::because("not accepted by the driver"))?);
    Ok(())
}

fn land(disk: &mut Disk, flight: &mut Flight, buffer: &mut [u8]) -> Verdict {
    let Some(token) = flight.token.take() else {
        return Ok(());
    };
    // SAFETY: the same buffers as in `launch`.
    let result = unsafe {
        if flight.writing {
            disk.complete_write_blocks(token, &flight.request, buffer, &mut flight.response)
        } else {
            disk.complete_read_blocks(token, &flight.request, buffer, &mut flight.response)
        }
    };
    result.map_err(|_| Failed::because("failed"))?;
    if flight.writing { Ok(()) } else { verify(buffer, flight.sector, |_| flight.tag) }
}

/// The first `count` sectors of the buffer.
fn sectors(count: usize) -> &'static mut [u8] {
    // SAFETY: callers use one at a time.
    let buffer = unsafe { &mut *BUFFER.get() };
    &mut buffer[..count * SECTOR_SIZE]
}

/// A pattern in which every sector, every byte of it and every round differ.
fn pattern(sector: usize, byte: usize, tag: u8) -> u8 {
    (sector as u8).wrapping_mul(31)
        ^ (byte as u8)
        ^ ((byte >> 8) as u8).wrapping_mul(97)
        ^ tag.wrapping_mul(59)
}

fn fill(buffer: &mut [u8], sector: usize, tag: u8) {
    for (n, byte) in buffer.iter_mut().enumerate() {
        *byte = pattern(sector + n / SECTOR_SIZE, n % SECTOR_SIZE, tag);
    }
}

fn verify(buffer: &[u8], sector: usize, tag: impl Fn(usize) -> u8) -> Verdict {
    for (n, byte) in buffer.iter().enumerate() {
        let at = sector + n / SECTOR_SIZE;
        if *byte != pattern(at, n % SECTOR_SIZE, tag(at)) {
            return Err(Failed::seeing("differs at byte", (sector * SECTOR_SIZE + n) as u64));
        }
    }
    Ok(())
}

fn bounded_result<T>(
    request: impl FnOnce() -> virtio_drivers::Result<T>,
) -> virtio_drivers::Result<T> {
    timer::bounded(10_000, request)
}

fn bounded<T>(request: impl FnOnce() -> virtio_drivers::Result<T>) -> Result<T, Failed> {
    bounded_result(request).map_err(|_| Failed::because("the request failed"))
}
