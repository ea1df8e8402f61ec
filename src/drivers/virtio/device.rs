//! What the drivers here have in common: what they agreed on with their device, and the way of a device
//! that has misbehaved through a reset and back.

use embedded_hal::delay::DelayNs;

use super::mmio::{InitError, RingFeatures, Transport};
use super::queue::SplitQueue;
use crate::backend::clock::Ticks;
use crate::drivers::registers::Registers;

/// Whether requests can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// They can.
    Working,
    /// The device is being reset, which takes too long from `deadline` on.
    Resetting { deadline: Ticks },
    /// Given up.
    Failed,
}

/// How far a reset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reset {
    /// Not complete.
    Pending,
    /// Not complete, and it has just begun to take too long.
    Overdue,
    /// Complete: the device owns no buffer and does no DMA.
    Done,
}

/// A device and how things stand with it.
pub(super) struct Device<R> {
    transport: Transport<R>,
    /// What it is called in the log.
    name: &'static str,
    features: u64,
    state: State,
    timeout: Ticks,
    resets: u32,
}

impl<R: Registers> Device<R> {
    /// Resets the device behind `registers` and agrees with it on the features that `wanted` makes of
    /// those offered, and on what rings can have. `timeout` is the time that a reset may take later.
    pub(super) fn open(
        name: &'static str,
        registers: R,
        wanted: &dyn Fn(u64) -> u64,
        timeout: Ticks,
        delay: &mut impl DelayNs,
    ) -> Result<Self, InitError> {
        let transport = Transport::new(registers);
        transport.reset(delay)?;
        let features = transport
            .negotiate_with(&|offered| wanted(offered) | RingFeatures::all().bits())
            .inspect_err(|_| transport.fail())?;
        Ok(Self { transport, name, features, state: State::Working, timeout, resets: 0 })
    }

    #[inline(always)]
    pub(super) const fn transport(&self) -> &Transport<R> {
        &self.transport
    }

    /// The registers, for their ordering methods.
    #[inline(always)]
    pub(super) const fn registers(&self) -> &R {
        self.transport.registers()
    }

    /// The features agreed on.
    pub(super) const fn features(&self) -> u64 {
        self.features
    }

    /// Whether this was agreed on.
    pub(super) const fn has(&self, feature: RingFeatures) -> bool {
        self.features & feature.bits() != 0
    }

    /// Whether requests can be made.
    #[inline(always)]
    pub(super) fn is_working(&self) -> bool {
        self.state == State::Working
    }

    /// Whether it was given up.
    pub(super) fn has_failed(&self) -> bool {
        self.state == State::Failed
    }

    /// Times that it was reset because it misbehaved.
    pub(super) const fn resets(&self) -> u32 {
        self.resets
    }

    /// Gives the device its queues, and lets it work.
    pub(super) fn start(&self, queues: &[&SplitQueue<'_>]) {
        for (number, queue) in (0..).zip(queues) {
            self.transport.set_queue(number, queue.size(), &queue.addresses());
        }
        self.transport.start();
    }

    /// Starts the reset of a device that has misbehaved.
    pub(super) fn begin_reset(&mut self, problem: &str, now: Ticks) {
        self.resets = self.resets.saturating_add(1);
        // One that does so again and again does not fill the log.
        if self.resets.is_power_of_two() {
            let Self { name, resets, .. } = self;
            log::warn!("{name}: {problem}; resetting the device ({resets})");
        }
        self.transport.begin_reset();
        self.state = State::Resetting { deadline: now.after(self.timeout) };
    }

    /// Looks once whether the reset is complete.
    pub(super) fn look(&mut self, now: Ticks) -> Reset {
        let State::Resetting { deadline } = self.state else { return Reset::Pending };
        if self.transport.is_reset() {
            return Reset::Done;
        }
        if now < deadline {
            return Reset::Pending;
        }
        log::error!("{}: the device does not reset", self.name);
        self.state = State::Resetting { deadline: Ticks(u64::MAX) };
        Reset::Overdue
    }

    /// Takes the device, which has been reset, as far as [`Self::open`] had; its queues must still be
    /// able to have the size they had.
    pub(super) fn agree_again(&self, queues: &[&SplitQueue<'_>]) -> Result<(), InitError> {
        if self.transport.negotiate(self.features)? != self.features {
            return Err(InitError::FeaturesRefused);
        }
        for (number, queue) in (0..).zip(queues) {
            if self.transport.queue_num_max(number)? < u32::from(queue.size()) {
                return Err(InitError::QueueTooSmall);
            }
        }
        Ok(())
    }

    /// The device is back, or has been given up.
    pub(super) fn end_reset(&mut self, result: Result<(), InitError>) {
        self.state = match result {
            Ok(()) => State::Working,
            Err(error) => {
                log::error!("{}: the device does not come back: {error}", self.name);
                self.transport.fail();
                State::Failed
            }
        };
    }

    /// Gives up a device whose reset is not complete. It is left alone.
    pub(super) fn abandon(&mut self) {
        self.state = State::Failed;
    }
}
