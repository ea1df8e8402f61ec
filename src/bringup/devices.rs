//! The physical devices behind the guest's.
#![allow(unsafe_code)]

use core::time::Duration;

use sparkler::arch::interrupts::{Doorbell, Source};
use sparkler::arch::mmio::Mmio;
use sparkler::arch::timer::Counter;
use sparkler::backend::block::{BlockBackend, SECTOR_SIZE};
use sparkler::backend::clock::Clock;
use sparkler::drivers::virtio::{DeviceKind, ProbeError, VirtioBlk, probe};
use sparkler::fdt::{Board, Trigger, VirtioSlot};
use sparkler::memory::{FramePool, PAGE_SIZE};

/// How long a disk may take for a request.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);

/// Disks that EL2 uses.
pub(super) const MAX_DISKS: usize = 16;

/// A physical disk.
pub(super) type Disk = VirtioBlk<'static, Mmio>;

/// The virtio-mmio slots that have a disk, the highest first: QEMU fills them from the top, so that
/// this is the order of its command line.
pub(super) fn disks<'b>(board: &'b Board<'_>) -> heapless::Vec<&'b VirtioSlot, MAX_DISKS> {
    let mut disks = heapless::Vec::new();
    for slot in board.virtio.iter().rev().filter(|slot| is_disk(slot)) {
        if disks.push(slot).is_err() {
            log::warn!("more than {MAX_DISKS} disks: the others are not used");
            break;
        }
    }
    disks
}

fn is_disk(slot: &VirtioSlot) -> bool {
    let at = slot.registers.base;
    // SAFETY: as in `open`.
    let Ok(registers) = (unsafe { Mmio::map(at, slot.registers.len as usize) }) else {
        return false;
    };
    match probe(&registers) {
        Ok(kind) => kind == DeviceKind::Block,
        Err(ProbeError::Empty) => false,
        Err(error) => {
            log::warn!("virtio-mmio at {at}: {error}");
            false
        }
    }
}

/// Brings a disk up; with its doorbell.
pub(super) fn open(
    slot: &VirtioSlot,
    pool: &mut FramePool<'static>,
) -> Option<(Disk, Option<Doorbell>)> {
    let at = slot.registers.base;
    // SAFETY: the tree has a virtio-mmio device there. What it may reach by DMA is what its driver
    // gives it: memory of its own, and guests' buffers.
    let registers = unsafe { Mmio::map(at, slot.registers.len as usize) }.ok()?;
    let frames = Disk::DMA_BYTES.div_ceil(PAGE_SIZE as usize);
    let dma = match pool.alloc_run(frames, PAGE_SIZE) {
        Ok(dma) => dma,
        Err(error) => {
            log::warn!("disk at {at}: {error}");
            return None;
        }
    };
    let timeout = Counter.frequency().ticks(DISK_TIMEOUT);
    let mut disk = match Disk::new(registers, dma, timeout, &mut Counter) {
        Ok(disk) => disk,
        Err(error) => {
            log::warn!("disk at {at} is not used: {error}");
            return None;
        }
    };
    let doorbell = slot.interrupt.map(|interrupt| {
        let edge = interrupt.trigger == Trigger::Edge;
        Doorbell::new(interrupt.intid, edge, Source::VirtioMmio(registers))
    });
    disk.set_interrupts(doorbell.is_some());
    let info = disk.info();
    let mode = if info.read_only { ", read-only" } else { "" };
    log::info!("disk at {at}: {} MiB{mode}", info.sectors / (0x10_0000 / SECTOR_SIZE));
    Some((disk, doorbell))
}
