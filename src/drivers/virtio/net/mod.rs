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
use super::device::{Device, Reset};
use super::mmio::{InitError, RingFeatures};
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

/// What is counted.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    sent: u64,
    received: u64,
    lost: u64,
    bad: u64,
}

/// A virtio network card.
///
/// # When the device misbehaves
/// A frame not sent in time, an answer to what was never asked, or its own word that it needs a reset
/// gets the device reset. That nothing is received says nothing: a wire may be silent. Only when
/// the reset is complete, and so nothing can reach the frames' memory any more, do those that it had
/// end; the device is then brought up again. As long as it takes, there is no link, and what is
/// submitted is lost. A device that does not complete its reset is asked again at every poll, for
/// ever: what it was given stays where it is. One that cannot be brought up again has failed for
/// good: there is no link, ever.
pub struct VirtioNet<'m, R: Registers> {
    receiver: Receiver<'m>,
    sender: Sender<'m>,
    timeout: Ticks,
    counters: Counters,
    device: Device<R>,
    config: NicConfig,
    features: NetFeatures,
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
        let wanted = |offered| NetFeatures::from_bits_truncate(offered).wanted().bits();
        let device = Device::open("virtio-net", registers, &wanted, timeout, delay)?;
        let features = NetFeatures::from_bits_truncate(device.features());
        let described =
            describe(&device, features, &layout).inspect_err(|_| device.transport().fail());
        let (config, receiver, sender) = described?;
        let mut card = Self {
            receiver,
            sender,
            timeout,
            counters: Counters::default(),
            device,
            config,
            features,
            reconfigured,
            changed: false,
        };
        card.start();
        Ok(card)
    }

    /// Gives the device its queues, and lets it work.
    fn start(&mut self) {
        let Self { device, receiver, sender, .. } = self;
        device.start(&[receiver.queue(), sender.queue()]);
        if receiver.publish(device.registers()) {
            device.transport().notify(RECEIVE);
        }
    }

    /// Whether the device shall raise its interrupt when frames have come, or have been sent: once,
    /// after everything was found by polling, for the next one (EVENT_IDX; without that feature, for
    /// each one). Poll once more after turning it on: what was there before does not interrupt.
    pub fn set_interrupts(&mut self, on: bool) {
        self.receiver.set_interrupts(on);
        self.sender.set_interrupts(on);
    }

    /// Times the device was reset because it misbehaved.
    pub const fn resets(&self) -> u32 {
        self.device.resets()
    }

    /// Whether the device has been given up for good.
    pub fn has_failed(&self) -> bool {
        self.device.has_failed()
    }

    /// The device answered what it had not been asked.
    #[inline(never)]
    fn distrust(&mut self, now: Ticks) {
        self.recover("its rings make no sense", now);
    }

    /// Starts the reset of a device that has misbehaved.
    #[inline(never)]
    fn recover(&mut self, problem: &str, now: Ticks) {
        self.begin_reset(problem, now);
        self.go_on_resetting(now);
    }

    fn begin_reset(&mut self, problem: &str, now: Ticks) {
        self.sender.begin_reset();
        self.receiver.forget();
        self.device.begin_reset(problem, now);
        self.changed = true;
    }

    /// Looks once whether the reset is complete, and goes on with whatever follows.
    #[inline(never)]
    fn go_on_resetting(&mut self, now: Ticks) {
        if self.device.look(now) != Reset::Done {
            return;
        }
        self.sender.end_all();
        let result = self.bring_up_again();
        self.device.end_reset(result);
        self.changed = true;
    }

    /// Takes the device, which has been reset, back to where [`Self::new`] had brought it.
    fn bring_up_again(&mut self) -> Result<(), InitError> {
        self.device.agree_again(&[self.receiver.queue(), self.sender.queue()])?;
        let config = NicConfig::read(self.device.transport(), self.features)?;
        // The buffers were made for frames of the first one's MTU.
        let mtu = config.mtu.min(self.config.mtu);
        self.config = NicConfig { mtu, ..config };
        self.receiver.restart();
        self.sender.restart();
        self.start();
        Ok(())
    }

    /// Reads the configuration anew.
    #[cold]
    fn look_at_configuration(&mut self) {
        if !self.device.is_working() {
            return;
        }
        if self.device.transport().needs_reset() {
            // The next poll looks how far it is, whatever the time.
            self.begin_reset("it says that it needs a reset", Ticks(u64::MAX));
        } else if let Ok(config) = NicConfig::read(self.device.transport(), self.features) {
            // What cannot be read now is read at the next change.
            let config = NicConfig { mtu: config.mtu.min(self.config.mtu), ..config };
            self.changed |= config != self.config;
            self.config = config;
        }
    }
}

/// What the card is, and its queues, which it has not been given yet.
fn describe<'m, R: Registers>(
    device: &Device<R>,
    features: NetFeatures,
    layout: &Layout<'m>,
) -> Result<(NicConfig, Receiver<'m>, Sender<'m>), InitError> {
    let transport = device.transport();
    let config = NicConfig::read(transport, features)?;
    let event_index = device.has(RingFeatures::EVENT_IDX);
    let max = transport.queue_num_max(RECEIVE)?;
    let mergeable = features.contains(NetFeatures::MRG_RXBUF);
    let geometry = ReceiveGeometry::new(max, config.mtu, mergeable)?;
    let receiver = Receiver::new(layout, geometry, features.gives(), event_index)?;
    let max = transport.queue_num_max(SEND)?;
    let geometry = SendGeometry::new(max, device.has(RingFeatures::INDIRECT_DESC))?;
    let sender = Sender::new(layout, geometry, event_index)?;
    Ok((config, receiver, sender))
}

impl<'m, R: Registers + Send> Uplink<'m> for VirtioNet<'m, R> {
    fn info(&self) -> UplinkInfo {
        UplinkInfo {
            mac: self.config.mac,
            mtu: self.config.mtu,
            link_up: self.config.link_up && self.device.is_working(),
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
        if !self.device.is_working() {
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
        if !self.device.is_working() {
            return;
        }
        if self.sender.publish(self.device.registers()) {
            self.device.transport().notify(SEND);
        }
        if self.receiver.publish(self.device.registers()) {
            self.device.transport().notify(RECEIVE);
        }
    }

    #[inline]
    fn poll_sent(&mut self, now: Ticks) -> Option<UplinkTag> {
        if !self.device.is_working() {
            self.go_on_resetting(now);
            return self.sender.take_ended();
        }
        if let Some(tag) = self.sender.take_ended() {
            return Some(tag);
        }
        let silent = now.after(self.timeout);
        match self.sender.take_sent(self.device.registers(), silent) {
            Ok(Some(tag)) => return Some(tag),
            Ok(None) if !self.sender.is_late(now) => return None,
            Ok(None) => self.recover("a frame was not sent in time", now),
            Err(_) => self.distrust(now),
        }
        self.sender.take_ended()
    }

    fn poll_received(&mut self, now: Ticks) -> Option<Frame<'_, 'm>> {
        if !self.device.is_working() {
            self.go_on_resetting(now);
            return None;
        }
        if self.receiver.frame().is_none() {
            for _ in 0..BAD_AT_ONCE {
                match self.receiver.next(self.device.registers()) {
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
        let Counters { sent, received, lost, bad } = self.counters;
        visit("sent", sent);
        visit("received", received);
        visit("lost", lost);
        visit("bad", bad);
        visit("resets", self.resets().into());
    }
}
