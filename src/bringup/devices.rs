//! The physical devices behind the guest's.
#![allow(unsafe_code)]

use core::sync::atomic::AtomicBool;
use core::time::Duration;

use sparkler::arch::interrupts::{Doorbell, Source};
use sparkler::arch::mmio::Mmio;
use sparkler::arch::timer::Counter;
use sparkler::backend::block::{BlockBackend, SECTOR_SIZE};
use sparkler::backend::clock::Clock;
use sparkler::backend::switch::{Switch, Uplink};
use sparkler::drivers::virtio::{
    DeviceKind, ProbeError, VirtioBlk, VirtioEntropy, VirtioNet, probe,
};
use sparkler::fdt::{Board, Trigger, VirtioSlot};
use sparkler::memory::{FramePool, PAGE_SIZE};

/// How long a disk may take for a request.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a network card may take to send a frame: less than Linux waits before it resets a device.
const CARD_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an entropy device may take for an answer.
const ENTROPY_TIMEOUT: Duration = Duration::from_secs(10);

/// Disks that EL2 uses.
pub(super) const MAX_DISKS: usize = 16;

/// A physical disk.
pub(super) type Disk = VirtioBlk<'static, Mmio>;

/// A physical network card.
pub(super) type Card = VirtioNet<'static, Mmio>;

/// A physical entropy device.
pub(super) type Entropy = VirtioEntropy<'static, Mmio>;

/// The virtio-mmio slot with the board's network card: the highest that has one.
pub(super) fn card<'b>(board: &'b Board<'_>) -> Option<&'b VirtioSlot> {
    board.virtio.iter().rev().find(|slot| kind(slot) == Some(DeviceKind::Network))
}

/// The virtio-mmio slot with the board's entropy device: the highest that has one.
pub(super) fn entropy<'b>(board: &'b Board<'_>) -> Option<&'b VirtioSlot> {
    board.virtio.iter().rev().find(|slot| kind(slot) == Some(DeviceKind::Entropy))
}

/// The virtio-mmio slots that have a disk, the highest first: QEMU fills them from the top, so that
/// this is the order of its command line.
pub(super) fn disks<'b>(board: &'b Board<'_>) -> heapless::Vec<&'b VirtioSlot, MAX_DISKS> {
    let mut disks = heapless::Vec::new();
    for slot in board.virtio.iter().rev().filter(|slot| kind(slot) == Some(DeviceKind::Block)) {
        if disks.push(slot).is_err() {
            log::warn!("more than {MAX_DISKS} disks: the others are not used");
            break;
        }
    }
    disks
}

/// What kind of device is in a slot, if one is.
fn kind(slot: &VirtioSlot) -> Option<DeviceKind> {
    let at = slot.registers.base;
    // SAFETY: as in `open`.
    let registers = unsafe { Mmio::map(at, slot.registers.len as usize) }.ok()?;
    match probe(&registers) {
        Ok(kind) => Some(kind),
        Err(ProbeError::Empty) => None,
        Err(error) => {
            log::warn!("virtio-mmio at {at}: {error}");
            None
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

/// Brings the entropy device up.
pub(super) fn open_entropy(slot: &VirtioSlot, pool: &mut FramePool<'static>) -> Option<Entropy> {
    let at = slot.registers.base;
    // SAFETY: as in `open`.
    let registers = unsafe { Mmio::map(at, slot.registers.len as usize) }.ok()?;
    let dma = pool.alloc_run(Entropy::DMA_BYTES.div_ceil(PAGE_SIZE as usize), PAGE_SIZE).ok()?;
    let timeout = Counter.frequency().ticks(ENTROPY_TIMEOUT);
    match Entropy::new(registers, dma, timeout, Counter.now(), &mut Counter) {
        Ok(device) => Some(device),
        Err(error) => {
            log::warn!("entropy device at {at} is not used: {error}");
            None
        }
    }
}

/// Brings the network card up; with its doorbell, which has `switch` collect.
pub(super) fn open_card(
    slot: &VirtioSlot,
    pool: &mut FramePool<'static>,
    switch: &'static Switch<'static>,
    reconfigured: &'static AtomicBool,
) -> Option<(Card, Option<Doorbell>)> {
    let at = slot.registers.base;
    // SAFETY: as in `open`.
    let registers = unsafe { Mmio::map(at, slot.registers.len as usize) }.ok()?;
    let frames = Card::DMA_BYTES.div_ceil(PAGE_SIZE as usize);
    let dma = match pool.alloc_run(frames, PAGE_SIZE) {
        Ok(dma) => dma,
        Err(error) => {
            log::warn!("network card at {at}: {error}");
            return None;
        }
    };
    let timeout = Counter.frequency().ticks(CARD_TIMEOUT);
    let mut card = match Card::new(registers, dma, timeout, reconfigured, &mut Counter) {
        Ok(card) => card,
        Err(error) => {
            log::warn!("network card at {at} is not used: {error}");
            return None;
        }
    };
    let doorbell = slot.interrupt.map(|interrupt| {
        let edge = interrupt.trigger == Trigger::Edge;
        let source = Source::Network { registers, reconfigured, switch };
        Doorbell::new(interrupt.intid, edge, source)
    });
    card.set_interrupts(doorbell.is_some());
    let info = card.info();
    let link = if info.link_up { "" } else { ", no link" };
    log::info!("network card at {at}: {}, MTU {}{link}", info.mac, info.mtu);
    Some((card, doorbell))
}
