//! virtio-blk, driven by polling: many requests in flight, guest memory given to the device as it
//! is (zero-copy), completed in any order. Source: virtio 5.2.

mod chain;
mod config;
mod layout;
#[cfg(test)]
mod model_tests;
mod recovery;
#[cfg(test)]
mod restart_tests;
mod submission;
#[cfg(test)]
mod tests;

use embedded_hal::delay::DelayNs;

use self::config::{BlockFeatures, DiskConfig};
use self::layout::{Geometry, Layout, MAX_SLOTS, STATUS};
use self::submission::{T_GET_ID, T_IN, T_OUT};
use super::device::Device;
use super::mmio::{InitError, InterruptCauses, RingFeatures};
use super::queue::{DESC_F_WRITE, SplitQueue};
use crate::backend::block::{
    BlockBackend, BlockInfo, BlockOp, BlockRequest, BlockStatus, SubmitError, Tag,
};
use crate::backend::clock::Ticks;
use crate::drivers::registers::Registers;
use crate::memory::SharedSlice;

/// The one queue there is without VIRTIO_BLK_F_MQ.
const QUEUE: u16 = 0;

/// Status bytes (virtio 5.2.6).
const S_OK: u8 = 0;
const S_UNSUPP: u8 = 2;
/// What we put there: a device that ends a request without writing a status has not done it.
const S_NONE: u8 = 0xff;

/// Time between two looks for the answer to the first request.
const ANSWER_STEP_US: u32 = 10;
/// Looks for the answer to the first request: 1 s in all.
const ANSWER_STEPS: u32 = 100_000;

/// A request's place.
#[derive(Clone, Copy)]
struct Slot {
    tag: Tag,
    /// Times that it was given to the device again.
    restarts: u8,
    deadline: Ticks,
}

/// A virtio block device.
///
/// # When the device misbehaves
/// A request not answered in time, or an answer to what was never asked, gets the device reset.
/// Only when the reset is complete, and so nothing can touch the requests' memory any more, do those
/// that took too long end with [`BlockStatus::IoError`]. The device is then brought up and given the
/// others again, with their time anew; one that has seen this twice before ends too.
///
/// A device that does not complete its reset within another time-out, or cannot be brought up, has
/// failed for good, and all its requests with it. In the first of these cases they end since somebody
/// waits for them, but [`dma_stopped`](Self::dma_stopped) turns false: their memory must not get
/// another owner.
///
/// # Why requests can be given again
/// Each does the same if it is done twice, wholly or in part, as long as nobody has been told that it has
/// ended: until then its memory is as it was, and no other request was ordered after it (virtio 5.2.6
/// orders requests by their ends alone). What has ended, well or badly, is never given
/// again, and nothing of it is left at a device that has been reset: so a write that comes after
/// it stays. A flush covers the writes that had ended before it came, whosesoever they were. The device had done them, and
/// keeps them: a reset forgets queues and features, not what is in the disk's cache. Done later, a flush
/// covers them still. One that had ended covers nothing that is done again.
///
/// # Flush
/// A device without VIRTIO_BLK_F_FLUSH writes through (virtio 5.2.6.2): there
/// [`BlockOp::Flush`] ends at once with [`BlockStatus::Ok`], at the next poll.
pub struct VirtioBlk<'m, R: Registers> {
    queue: SplitQueue<'m>,
    layout: Layout<'m>,
    /// Slots without a request. These masks do not overlap; together they are all slots.
    free: u64,
    /// Slots whose request the device has not been shown.
    unpublished: u64,
    /// Slots whose request the device has.
    at_device: u64,
    /// Slots whose request has ended without the device, and how.
    ended_ok: u64,
    ended_badly: u64,
    /// No request at the device has an earlier deadline.
    next_deadline: Ticks,
    /// Slots whose request does not outlive the reset that has begun.
    doomed: u64,
    timeout: Ticks,
    geometry: Geometry,
    segment_bytes: u64,
    slots: [Slot; MAX_SLOTS as usize],
    device: Device<R>,
    info: BlockInfo,
    interrupts: bool,
    /// Given up without a completed reset.
    abandoned: bool,
}

impl<'m, R: Registers + Send> VirtioBlk<'m, R> {
    /// Bytes of memory to share with the device.
    pub const DMA_BYTES: usize = layout::DMA_BYTES;

    /// Brings up the block device behind `registers`, which [`probe`](super::probe) has found
    /// there. Waits for it, for about a second at most. `dma` is memory of
    /// [`Self::DMA_BYTES`], page-aligned, for the device and this driver alone, for good;
    /// `timeout` is the time a request may take. The device does not interrupt.
    ///
    /// # Errors
    /// [`InitError`]. After [`InitError::ResetTimeout`] the device may still write where an
    /// earlier driver told it to.
    pub fn new(
        registers: R,
        dma: SharedSlice<'m>,
        timeout: Ticks,
        delay: &mut impl DelayNs,
    ) -> Result<Self, InitError> {
        let layout = Layout::new(dma).ok_or(InitError::DmaMemory)?;
        let wanted = |_| BlockFeatures::all().bits();
        let device = Device::open("virtio-blk", registers, &wanted, timeout, delay)?;
        let described = describe(&device, &layout).inspect_err(|_| device.transport().fail());
        let (queue, geometry, info) = described?;
        let mut disk = Self {
            queue,
            layout,
            free: u64::MAX >> (MAX_SLOTS - geometry.slots),
            unpublished: 0,
            at_device: 0,
            ended_ok: 0,
            ended_badly: 0,
            next_deadline: Ticks(0),
            doomed: 0,
            timeout,
            geometry,
            segment_bytes: u64::from(info.max_segment_bytes),
            slots: [Slot { tag: Tag(0), restarts: 0, deadline: Ticks(0) }; MAX_SLOTS as usize],
            device,
            info,
            interrupts: false,
            abandoned: false,
        };
        disk.prepare_slots().ok_or(InitError::DmaMemory)?;
        disk.device.start(&[&disk.queue]);
        if let Err(error) = disk.identify(delay) {
            // Nothing of it may stay at the device: the memory goes back to the caller.
            disk.device.transport().reset(delay)?;
            disk.device.transport().fail();
            return Err(error);
        }
        Ok(disk)
    }

    /// Asks the device for its identity and waits for the answer. A device that has none leaves
    /// it zero.
    fn identify(&mut self, delay: &mut impl DelayNs) -> Result<(), InitError> {
        let buffer = self.layout.identity;
        let never = Ticks(u64::MAX);
        self.start_rarely(Tag(0), T_GET_ID, DESC_F_WRITE, buffer, never)
            .map_err(|_| InitError::NoAnswer)?;
        self.kick();
        for _ in 0..ANSWER_STEPS {
            match self.poll(Ticks(0)) {
                Some((_, BlockStatus::Ok)) => {
                    return buffer.read_bytes(0, &mut self.info.id).ok_or(InitError::DmaMemory);
                }
                Some((_, BlockStatus::Unsupported)) => return Ok(()),
                Some((_, BlockStatus::IoError)) => return Err(InitError::NoAnswer),
                None => delay.delay_us(ANSWER_STEP_US),
            }
        }
        Err(InitError::NoAnswer)
    }

    /// Whether the device shall raise its interrupt when it finishes a request: once, after
    /// [`poll`](BlockBackend::poll) has returned `None`, for the next one finished
    /// (EVENT_IDX; without that feature, for each one). Poll once more after turning it on: what
    /// was finished before does not interrupt.
    pub fn set_interrupts(&mut self, on: bool) {
        self.interrupts = on;
        self.queue.set_interrupts(on);
    }

    /// Takes the device's interrupt back and says what it was for. Two register accesses. Poll
    /// afterwards.
    #[inline]
    pub fn acknowledge_interrupt(&self) -> InterruptCauses {
        self.device.transport().acknowledge_interrupt()
    }

    /// Takes a used-buffer interrupt back without asking whether it is one; one register access.
    /// A line that stays up is for [`acknowledge_interrupt`](Self::acknowledge_interrupt).
    #[inline]
    pub fn acknowledge_used_buffer(&self) {
        self.device.transport().acknowledge_used_buffer();
    }

    /// Looks at the disk's capacity again, as is due when the device says that its configuration has
    /// changed ([`InterruptCauses::CONFIGURATION`]). Whether it is another; the device in front of this
    /// driver is then to be told.
    pub fn update_capacity(&mut self) -> bool {
        match config::capacity(self.device.transport()) {
            Ok(sectors) if sectors != self.info.sectors => {
                self.info.sectors = sectors;
                true
            }
            _ => false,
        }
    }

    /// Times the device was reset because it misbehaved.
    pub const fn resets(&self) -> u32 {
        self.device.resets()
    }

    /// Whether the device has been given up for good.
    pub fn has_failed(&self) -> bool {
        self.device.has_failed()
    }

    /// Whether the memory of requests that have ended is out of the device's reach. False only
    /// after a device failed for good without completing its reset; asks it again.
    pub fn dma_stopped(&self) -> bool {
        !self.abandoned || self.device.transport().is_reset()
    }

    /// The end of the request whose chain the device says is `id`; `None` if there is none such.
    #[inline(always)]
    fn finish(&mut self, id: u32) -> Option<(Tag, BlockStatus)> {
        let index = id >> self.geometry.stride;
        if index >= u32::from(MAX_SLOTS)
            || index << self.geometry.stride != id
            || self.at_device & (1 << index) == 0
        {
            return None;
        }
        self.at_device &= !(1 << index);
        self.free |= 1 << index;
        let status = match self.layout.slot(index as u16)?.load_u8(STATUS)? {
            S_OK => BlockStatus::Ok,
            S_UNSUPP => BlockStatus::Unsupported,
            _ => BlockStatus::IoError,
        };
        Some((self.slots.get(index as usize)?.tag, status))
    }
}

/// What the device is, and its queue, which it has not been given yet.
fn describe<'m, R: Registers>(
    device: &Device<R>,
    layout: &Layout<'m>,
) -> Result<(SplitQueue<'m>, Geometry, BlockInfo), InitError> {
    let features = BlockFeatures::from_bits_truncate(device.features());
    let transport = device.transport();
    let config = DiskConfig::read(transport, features)?;
    let max = transport.queue_num_max(QUEUE)?;
    let indirect = device.has(RingFeatures::INDIRECT_DESC);
    let geometry = Geometry::new(max, indirect, config.segments)?;
    let event_index = device.has(RingFeatures::EVENT_IDX);
    let queue = SplitQueue::new(layout.queue, geometry.ring, event_index, false)
        .ok_or(InitError::DmaMemory)?;
    let mut info = BlockInfo {
        block_size: config.block_size,
        read_only: features.contains(BlockFeatures::RO),
        flush: features.contains(BlockFeatures::FLUSH),
        max_segments: geometry.segments,
        max_segment_bytes: config.segment_bytes,
        depth: geometry.slots,
        ..BlockInfo::new(config.sectors)
    };
    DiskConfig::read_limits(transport, features, &mut info);
    config::turn_cache_on(transport, features);
    Ok((queue, geometry, info))
}

impl<'m, R: Registers + Send> BlockBackend<'m> for VirtioBlk<'m, R> {
    fn info(&self) -> BlockInfo {
        self.info
    }

    #[inline]
    fn submit(&mut self, request: BlockRequest<'_, 'm>, now: Ticks) -> Result<(), SubmitError> {
        if !self.device.is_working() {
            let failed = self.device.has_failed();
            return Err(if failed { SubmitError::Failed } else { SubmitError::Busy });
        }
        let deadline = now.after(self.timeout);
        let (kind, direction) = match request.op {
            BlockOp::Read => (T_IN, DESC_F_WRITE),
            BlockOp::Write if !self.info.read_only => (T_OUT, 0),
            _ => return self.submit_without_data(&request, deadline),
        };
        self.start(request.tag, kind, request.sector, direction, request.segments, deadline)
    }

    #[inline]
    fn kick(&mut self) {
        self.at_device |= self.unpublished;
        self.unpublished = 0;
        if self.queue.publish(self.device.registers()) {
            self.device.transport().notify(QUEUE);
        }
    }

    #[inline]
    fn poll(&mut self, now: Ticks) -> Option<(Tag, BlockStatus)> {
        if self.ended_ok | self.ended_badly != 0 {
            return self.take_ended();
        }
        if self.at_device == 0 {
            return None;
        }
        if !self.device.is_working() {
            return self.go_on_resetting(now);
        }
        match self.queue.take_used(self.device.registers()) {
            Ok(None) if now < self.next_deadline => None,
            Ok(None) => self.check_deadlines(now),
            Ok(Some(id)) => match self.finish(id) {
                Some(end) => Some(end),
                None => self.distrust(now),
            },
            Err(_) => self.distrust(now),
        }
    }

    fn in_flight(&self) -> usize {
        usize::from(self.geometry.slots) - self.free.count_ones() as usize
    }

    fn dma_stopped(&self) -> bool {
        Self::dma_stopped(self)
    }

    fn refresh(&mut self) {
        self.update_capacity();
    }
}
