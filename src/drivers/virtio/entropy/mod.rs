//! virtio-rng, driven by polling: a seed's worth of bytes is gathered in advance. Source: virtio 5.4.

#[cfg(test)]
mod tests;

use embedded_hal::delay::DelayNs;

use super::mmio::{InitError, Transport};
use super::queue::{DESC_F_WRITE, SplitQueue, attributes, write_descriptor};
use crate::backend::clock::Ticks;
use crate::backend::entropy::{EntropySource, NoEntropy, Seed};
use crate::drivers::registers::Registers;
use crate::memory::SharedSlice;

/// The only queue, requestq.
const QUEUE: u16 = 0;
/// Its entries: one request at a time.
const RING: u16 = 2;
/// Where the bytes are in the memory for DMA, behind the ring.
const BUFFER: usize = SplitQueue::bytes(RING).next_multiple_of(64);

/// What the device is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It has a request, given to it at this time.
    Asked(Ticks),
    /// All bytes of a seed are there, and it has no request.
    Full,
    /// It has misbehaved, and is to complete its reset.
    Resetting,
    /// It has been given up for good.
    Failed,
}

/// A virtio entropy device of the board's.
///
/// A device that answers nonsense, or not in time, has failed, and is reset and brought up again.
pub struct VirtioEntropy<'m, R> {
    transport: Transport<R>,
    queue: SplitQueue<'m>,
    dma: SharedSlice<'m>,
    state: State,
    /// Bytes of the next seed that are in the buffer.
    gathered: usize,
    timeout: Ticks,
    /// Times it was reset because it misbehaved.
    resets: u32,
}

impl<'m, R: Registers> VirtioEntropy<'m, R> {
    /// Bytes of memory to share with the device.
    pub const DMA_BYTES: usize = BUFFER + size_of::<Seed>();

    /// Brings up the entropy device behind `registers`, which [`probe`](super::probe) has found there.
    /// Waits for it, for 100 ms at most. `dma` is memory of [`Self::DMA_BYTES`], page-aligned, for the
    /// device and this driver alone, for good; the device may take `timeout` for an answer. It does not
    /// interrupt.
    ///
    /// # Errors
    /// [`InitError`]. After [`InitError::ResetTimeout`] the device may still write where an earlier
    /// driver told it to.
    pub fn new(
        registers: R,
        dma: SharedSlice<'m>,
        timeout: Ticks,
        now: Ticks,
        delay: &mut impl DelayNs,
    ) -> Result<Self, InitError> {
        let queue = SplitQueue::new(dma, RING, false, false).ok_or(InitError::DmaMemory)?;
        let transport = Transport::new(registers);
        transport.reset(delay)?;
        let state = State::Resetting;
        let mut device = Self { transport, queue, dma, state, gathered: 0, timeout, resets: 0 };
        device.bring_up(now).inspect_err(|_| device.transport.fail())?;
        Ok(device)
    }

    /// Takes a device that has been reset to where it gathers bytes.
    fn bring_up(&mut self, now: Ticks) -> Result<(), InitError> {
        self.transport.negotiate(0)?;
        if self.transport.queue_num_max(QUEUE)? < u32::from(RING) {
            return Err(InitError::QueueTooSmall);
        }
        self.queue = SplitQueue::new(self.dma, RING, false, false).ok_or(InitError::DmaMemory)?;
        self.transport.set_queue(QUEUE, RING, &self.queue.addresses());
        self.transport.start();
        self.gathered = 0;
        self.ask(now);
        Ok(())
    }

    /// Asks for the bytes that are missing.
    fn ask(&mut self, now: Ticks) {
        let (place, missing) = (BUFFER + self.gathered, size_of::<Seed>() - self.gathered);
        let Some(buffer) = self.dma.subslice(place, missing) else { return };
        let attributes = attributes(missing as u32, DESC_F_WRITE, 0);
        write_descriptor(self.queue.descriptors(), 0, buffer.pa(), attributes);
        self.queue.offer(0);
        if self.queue.publish(self.transport.registers()) {
            self.transport.notify(QUEUE);
        }
        self.state = State::Asked(now);
    }

    /// Takes what has come. The device is as it must be, or its reset begins.
    fn gather(&mut self, since: Ticks, now: Ticks) {
        let missing = size_of::<Seed>() - self.gathered;
        match self.queue.take_used_with_length(self.transport.registers()) {
            Ok(None) if now < since.after(self.timeout) => {}
            Ok(Some((0, len))) if (1..=missing).contains(&(len as usize)) => {
                self.gathered += len as usize;
                if self.gathered == size_of::<Seed>() {
                    self.state = State::Full;
                } else {
                    self.ask(now);
                }
            }
            _ => {
                self.resets = self.resets.wrapping_add(1);
                // One that does so again and again does not fill the log.
                if self.resets.is_power_of_two() {
                    log::warn!("virtio-rng: no answer, or a bad one; resetting the device");
                }
                self.transport.begin_reset();
                self.state = State::Resetting;
            }
        }
    }
}

impl<R: Registers + Send> EntropySource for VirtioEntropy<'_, R> {
    fn fill(&mut self, seed: &mut Seed, now: Ticks) -> Result<(), NoEntropy> {
        match self.state {
            State::Asked(since) => self.gather(since, now),
            State::Resetting if self.transport.is_reset() => {
                if let Err(error) = self.bring_up(now) {
                    log::error!("virtio-rng: the device does not come back: {error}");
                    self.transport.fail();
                    self.state = State::Failed;
                }
            }
            _ => {}
        }
        match self.state {
            State::Full => {}
            State::Asked(_) => return Err(NoEntropy::NotYet),
            State::Resetting | State::Failed => return Err(NoEntropy::Failed),
        }
        // In bounds: `DMA_BYTES`. Nobody else is to find them there.
        let _ = self.dma.read_bytes(BUFFER, seed);
        let _ = self.dma.fill(BUFFER, size_of::<Seed>(), 0);
        self.gathered = 0;
        self.ask(now);
        Ok(())
    }
}
