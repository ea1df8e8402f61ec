//! What happens to the requests of a device that misbehaves.

use super::config::{self, BlockFeatures};
use super::layout::STATUS;
use super::{S_NONE, VirtioBlk};
use crate::backend::block::{BlockBackend, BlockStatus, Tag};
use crate::backend::clock::Ticks;
use crate::drivers::registers::Registers;
use crate::drivers::virtio::device::Reset;
use crate::drivers::virtio::mmio::InitError;

/// Times that a request is given to the device again which has been reset for another's sake, or for
/// its own lies.
const MAX_RESTARTS: u8 = 2;

impl<'m, R: Registers + Send> VirtioBlk<'m, R> {
    /// The device answered what it had not been asked.
    #[inline(never)]
    pub(super) fn distrust(&mut self, now: Ticks) -> Option<(Tag, BlockStatus)> {
        self.recover("the used ring makes no sense", now)
    }

    /// A request that ended without the device.
    #[inline(never)]
    pub(super) fn take_ended(&mut self) -> Option<(Tag, BlockStatus)> {
        let index = (self.ended_ok | self.ended_badly).trailing_zeros();
        let tag = self.slots.get(index as usize)?.tag;
        let bit = 1 << index;
        let status = if self.ended_ok & bit != 0 { BlockStatus::Ok } else { BlockStatus::IoError };
        self.ended_ok &= !bit;
        self.ended_badly &= !bit;
        self.free |= bit;
        Some((tag, status))
    }

    /// Finds the earliest deadline anew, and acts if it has passed.
    #[inline(never)]
    pub(super) fn check_deadlines(&mut self, now: Ticks) -> Option<(Tag, BlockStatus)> {
        let waiting = self.at_device | self.unpublished;
        let mut earliest = Ticks(u64::MAX);
        for (index, slot) in self.slots.iter().enumerate() {
            if waiting >> index & 1 != 0 {
                earliest = earliest.min(slot.deadline);
            }
        }
        self.next_deadline = earliest;
        if now < earliest {
            return None;
        }
        self.recover("a request was not answered in time", now)
    }

    /// Starts the reset of a device that has misbehaved.
    #[inline(never)]
    fn recover(&mut self, problem: &str, now: Ticks) -> Option<(Tag, BlockStatus)> {
        self.at_device |= self.unpublished;
        self.unpublished = 0;
        self.queue.retract();
        // Judged now: how long the reset takes is no request's fault.
        self.doomed = 0;
        for (index, slot) in self.slots.iter().enumerate() {
            if now >= slot.deadline || slot.restarts >= MAX_RESTARTS {
                self.doomed |= 1 << index;
            }
        }
        self.device.begin_reset(problem, now);
        self.go_on_resetting(now)
    }

    /// Looks once whether the reset is complete, and goes on with whatever follows.
    #[inline(never)]
    pub(super) fn go_on_resetting(&mut self, now: Ticks) -> Option<(Tag, BlockStatus)> {
        match self.device.look(now) {
            Reset::Pending => return None,
            Reset::Overdue => {
                self.abandoned = true;
                self.device.abandon();
            }
            Reset::Done => {
                let result = self.bring_up_again();
                self.device.end_reset(result);
            }
        }
        let works = self.device.is_working();
        let ended = if works { self.doomed } else { u64::MAX };
        self.ended_badly |= self.at_device & ended;
        self.at_device &= !ended;
        if works {
            self.restart(now);
        }
        self.take_ended()
    }

    /// Takes the device, which has been reset, back to where [`Self::new`] had brought it.
    fn bring_up_again(&mut self) -> Result<(), InitError> {
        self.device.agree_again(&[&self.queue])?;
        let features = BlockFeatures::from_bits_truncate(self.device.features());
        config::turn_cache_on(self.device.transport(), features);
        self.queue.restart();
        self.device.start(&[&self.queue]);
        Ok(())
    }

    /// Gives the device again what it had before it was reset. Chains and headers are as they were.
    fn restart(&mut self, now: Ticks) {
        self.next_deadline = now.after(self.timeout);
        for (index, slot) in (0..).zip(&mut self.slots) {
            if self.at_device >> index & 1 != 0 {
                slot.restarts += 1;
                slot.deadline = self.next_deadline;
                // It may have been done already, as far as to its status.
                if let Some(memory) = self.layout.slot(index) {
                    memory.store_u8(STATUS, S_NONE);
                }
                self.queue.offer(index << self.geometry.stride);
            }
        }
        self.kick();
    }
}
