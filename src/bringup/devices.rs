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

/// A physical disk.
pub(super) type Disk = VirtioBlk<'static, Mmio>;

/// The disk in the highest virtio-mmio slot that has one (QEMU fills them from the top, so that it
/// is the first on its command line), and its doorbell.
pub(super) fn find_disk(
    board: &Board<'_>,
    pool: &mut FramePool<'static>,
) -> Option<(Disk, Option<Doorbell>)> {
    board.virtio.iter().rev().find_map(|slot| open(slot, pool))
}

fn open(slot: &VirtioSlot, pool: &mut FramePool<'static>) -> Option<(Disk, Option<Doorbell>)> {
    let at = slot.registers.base;
    // SAFETY: the tree has a virtio-mmio device there. What it may reach by DMA is what its driver
    // gives it: memory of its own, and guests' buffers.
    let registers = unsafe { Mmio::map(at, slot.registers.len as usize) }.ok()?;
    match probe(&registers) {
        Ok(DeviceKind::Block) => {}
        Ok(_) | Err(ProbeError::Empty) => return None,
        Err(error) => {
            log::warn!("virtio-mmio at {at}: {error}");
            return None;
        }
    }
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
