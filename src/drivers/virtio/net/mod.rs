//! virtio-net, driven by polling: frames are sent from where they are (zero-copy), and received in
//! memory of the driver's. Source: virtio 5.1.

mod config;
#[cfg(test)]
mod fake;
mod header;
mod layout;
mod receive;
mod send;
#[cfg(test)]
mod tests;

use core::sync::atomic::{AtomicBool, Ordering};

use embedded_hal::delay::DelayNs;

use self::config::{NetFeatures, NicConfig};
use self::layout::{Layout, ReceiveGeometry, SendGeometry};
use self::receive::{Arrival, Receiver};
use self::send::Sender;
use super::mmio::{InitError, RingFeatures, Transport};
use crate::backend::clock::Ticks;
use crate::backend::net::{Busy, Frame};
use crate::backend::switch::{Room, Uplink, UplinkFrame, UplinkInfo, UplinkTag};
use crate::drivers::registers::Registers;
use crate::memory::SharedSlice;

/// The queues there are without VIRTIO_NET_F_MQ and VIRTIO_NET_F_CTRL_VQ (5.1.2).
const RECEIVE: u16 = 0;
const SEND: u16 = 1;

/// Bad frames that one look for the next good one gets over.
const BAD_AT_ONCE: usize = 16;

/// Whether frames come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// They do.
    Working,
    /// The device is being reset, and it was said at this time that it takes long.
    Resetting { patience: Ticks },
    /// Given up; the device has been reset.
    Failed,
}

/// What is counted.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    sent: u64,
    received: u64,
    lost: u64,
    bad: u64,
    resets: u64,
}

/// A virtio network card.
///
/// # When the device misbehaves
/// A frame not sent in time, or an answer to what was never asked, gets the device reset. Only when
/// the reset is complete, and so nothing can reach the frames' memory any more, do those that it had
/// end; the device is then brought up again. As long as it takes, there is no link, and what is
/// submitted is lost. A device that does not complete its reset is asked again at every poll, for
/// ever: what it was given stays where it is. One that cannot be brought up again has failed for
/// good: there is no link, ever.
pub struct VirtioNet<'m, R: Registers> {
    receiver: Receiver<'m>,
    sender: Sender<'m>,
    state: State,
    timeout: Ticks,
    counters: Counters,
    transport: Transport<R>,
    layout: Layout<'m>,
    config: NicConfig,
    features: NetFeatures,
    /// All that was agreed on.
    agreed: u64,
    interrupts: bool,
    /// Set by whoever takes the device's configuration interrupts.
    reconfigured: &'m AtomicBool,
    /// Something is to be told by [`Uplink::take_change`].
    changed: bool,
}

impl<'m, R: Registers + Send> VirtioNet<'m, R> {
    /// Bytes of memory to share with the device.
    pub const DMA_BYTES: usize = layout::DMA_BYTES;

    /// Brings up the network card behind `registers`, which [`probe`](super::probe) has found
    /// there. Waits for it, for 100 ms at most. `dma` is memory of [`Self::DMA_BYTES`], page-aligned,
    /// for the device and this driver alone, for good; `timeout` is the time that a frame may take
    /// to be sent. `reconfigured` is to be set when the device has interrupted for a change of its
    /// configuration. The device does not interrupt.
    ///
    /// # Errors
    /// [`InitError`]. After [`InitError::ResetTimeout`] the device may still write where an
    /// earlier driver told it to.
    pub fn new(
        registers: R,
        dma: SharedSlice<'m>,
        timeout: Ticks,
        reconfigured: &'m AtomicBool,
        delay: &mut impl DelayNs,
    ) -> Result<Self, InitError> {
        let layout = Layout::new(dma).ok_or(InitError::DmaMemory)?;
        let transport = Transport::new(registers);
        transport.reset(delay)?;
        let fail = |error| {
            transport.fail();
            error
        };
        let wanted = |offered| NetFeatures::from_bits_truncate(offered).wanted().bits();
        let ring = RingFeatures::all().bits();
        let agreed = transport.negotiate_with(&|offered| wanted(offered) | ring).map_err(fail)?;
        let features = NetFeatures::from_bits_truncate(agreed);
        let config = NicConfig::read(&transport, features).map_err(fail)?;

        let event_index = agreed & RingFeatures::EVENT_IDX.bits() != 0;
        let max = transport.queue_num_max(RECEIVE).map_err(fail)?;
        let mergeable = features.contains(NetFeatures::MRG_RXBUF);
        let geometry = ReceiveGeometry::new(max, config.mtu, mergeable).map_err(fail)?;
        let receiver = Receiver::new(&layout, geometry, features.gives(), event_index, false);
        let receiver = receiver.map_err(fail)?;
        let max = transport.queue_num_max(SEND).map_err(fail)?;
        let indirect = agreed & RingFeatures::INDIRECT_DESC.bits() != 0;
        let geometry = SendGeometry::new(max, indirect).map_err(fail)?;
        let sender = Sender::new(&layout, geometry, event_index, false).map_err(fail)?;
        let mut card = Self {
            receiver,
            sender,
            state: State::Working,
            timeout,
            counters: Counters::default(),
            transport,
            layout,
            config,
            features,
            agreed,
            interrupts: false,
            reconfigured,
            changed: false,
        };
        card.start();
        Ok(card)
    }

    /// Gives the device its queues, and lets it work.
    fn start(&mut self) {
        let Self { transport, receiver, sender, .. } = self;
        transport.set_queue(RECEIVE, receiver.ring(), &receiver.addresses());
        transport.set_queue(SEND, sender.ring(), &sender.addresses());
        transport.start();
        if receiver.publish(transport.registers()) {
            transport.notify(RECEIVE);
        }
    }

    /// Whether the device shall raise its interrupt when frames have come, or have been sent: once,
    /// after everything was found by polling, for the next one (EVENT_IDX; without that feature, for
    /// each one). Poll once more after turning it on: what was there before does not interrupt.
    pub fn set_interrupts(&mut self, on: bool) {
        self.interrupts = on;
        self.receiver.set_interrupts(on);
        self.sender.set_interrupts(on);
    }

    /// Times the device was reset because it misbehaved.
    pub const fn resets(&self) -> u64 {
        self.counters.resets
    }

    /// Whether the device has been given up for good.
    pub fn has_failed(&self) -> bool {
        self.state == State::Failed
    }

    /// The device answered what it had not been asked.
    #[inline(never)]
    fn distrust(&mut self, now: Ticks) {
        self.recover("its rings make no sense", now);
    }

    /// Starts the reset of a device that has misbehaved.
    #[inline(never)]
    fn recover(&mut self, problem: &str, now: Ticks) {
        self.counters.resets += 1;
        // One that does so again and again does not fill the log.
        if self.counters.resets.is_power_of_two() {
            let resets = self.counters.resets;
            log::warn!("virtio-net: {problem}; resetting the device ({resets})");
        }
        self.sender.begin_reset();
        self.receiver.forget();
        self.transport.begin_reset();
        self.state = State::Resetting { patience: now.after(self.timeout) };
        self.changed = true;
        self.go_on_resetting(now);
    }

    /// Looks once whether the reset is complete, and goes on with whatever follows.
    #[inline(never)]
    fn go_on_resetting(&mut self, now: Ticks) {
        let State::Resetting { patience } = self.state else { return };
        if !self.transport.is_reset() {
            if now >= patience {
                log::error!("virtio-net: the device does not reset");
                self.state = State::Resetting { patience: Ticks(u64::MAX) };
            }
            return;
        }
        self.sender.end_all();
        self.state = match self.bring_up_again() {
            Ok(()) => State::Working,
            Err(error) => {
                log::error!("virtio-net: the device does not come back: {error}");
                self.transport.fail();
                State::Failed
            }
        };
        self.changed = true;
    }

    /// Takes the device, which has been reset, back to where [`Self::new`] had brought it.
    fn bring_up_again(&mut self) -> Result<(), InitError> {
        if self.transport.negotiate(self.agreed)? != self.agreed {
            return Err(InitError::FeaturesRefused);
        }
        let config = NicConfig::read(&self.transport, self.features)?;
        for (queue, ring) in [(RECEIVE, self.receiver.ring()), (SEND, self.sender.ring())] {
            if self.transport.queue_num_max(queue)? < u32::from(ring) {
                return Err(InitError::QueueTooSmall);
            }
        }
        // The buffers were made for frames of the first one's MTU.
        let mtu = config.mtu.min(self.config.mtu);
        self.config = NicConfig { mtu, ..config };
        let event_index = self.agreed & RingFeatures::EVENT_IDX.bits() != 0;
        self.receiver.renew(&self.layout, event_index, self.interrupts)?;
        self.sender.renew(&self.layout, event_index, self.interrupts)?;
        self.start();
        Ok(())
    }

    /// Reads the configuration anew.
    #[cold]
    fn look_at_configuration(&mut self) {
        // What cannot be read now is read at the next change.
        if self.state == State::Working
            && let Ok(config) = NicConfig::read(&self.transport, self.features)
        {
            let config = NicConfig { mtu: config.mtu.min(self.config.mtu), ..config };
            self.changed |= config != self.config;
            self.config = config;
        }
    }
}

impl<'m, R: Registers + Send> Uplink<'m> for VirtioNet<'m, R> {
    fn info(&self) -> UplinkInfo {
        UplinkInfo {
            mac: self.config.mac,
            mtu: self.config.mtu,
            link_up: self.config.link_up && self.state == State::Working,
            speed: self.config.speed,
            takes: self.features.takes(),
            gives: self.features.gives(),
            max_segments: self.sender.max_segments(),
        }
    }

    #[inline]
    fn room(&self) -> Room {
        let frames = self.sender.room();
        Room { frames, segments: frames * usize::from(self.sender.max_segments()) }
    }

    #[inline]
    fn submit(
        &mut self,
        tag: UplinkTag,
        frame: UplinkFrame<'_, 'm>,
        now: Ticks,
    ) -> Result<(), Busy> {
        if self.state != State::Working {
            self.sender.lose(tag)?;
            self.counters.lost += 1;
            return Ok(());
        }
        self.sender.add(tag, &frame, now.after(self.timeout))?;
        self.counters.sent += 1;
        Ok(())
    }

    #[inline]
    fn kick(&mut self) {
        if self.state != State::Working {
            return;
        }
        if self.sender.publish(self.transport.registers()) {
            self.transport.notify(SEND);
        }
        if self.receiver.publish(self.transport.registers()) {
            self.transport.notify(RECEIVE);
        }
    }

    #[inline]
    fn poll_sent(&mut self, now: Ticks) -> Option<UplinkTag> {
        if self.state != State::Working {
            self.go_on_resetting(now);
            return self.sender.take_ended();
        }
        if let Some(tag) = self.sender.take_ended() {
            return Some(tag);
        }
        match self.sender.take_sent(self.transport.registers()) {
            Ok(Some(tag)) => return Some(tag),
            Ok(None) if !self.sender.is_late(now) => return None,
            Ok(None) => self.recover("a frame was not sent in time", now),
            Err(_) => self.distrust(now),
        }
        self.sender.take_ended()
    }

    fn poll_received(&mut self, now: Ticks) -> Option<Frame<'_, 'm>> {
        if self.state != State::Working {
            self.go_on_resetting(now);
            return None;
        }
        if self.receiver.frame().is_none() {
            for _ in 0..BAD_AT_ONCE {
                match self.receiver.next(self.transport.registers()) {
                    Ok(Arrival::Frame) => {
                        self.counters.received += 1;
                        break;
                    }
                    Ok(Arrival::Bad) => self.counters.bad += 1,
                    Ok(Arrival::None) => return None,
                    Err(_) => {
                        self.distrust(now);
                        return None;
                    }
                }
            }
        }
        self.receiver.frame()
    }

    #[inline]
    fn release_received(&mut self) {
        self.receiver.release();
    }

    fn take_change(&mut self) -> bool {
        if self.reconfigured.load(Ordering::Relaxed)
            && self.reconfigured.swap(false, Ordering::Acquire)
        {
            self.look_at_configuration();
        }
        core::mem::take(&mut self.changed)
    }

    fn statistics(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        let Counters { sent, received, lost, bad, resets } = self.counters;
        visit("sent", sent);
        visit("received", received);
        visit("lost", lost);
        visit("bad", bad);
        visit("resets", resets);
    }
}
