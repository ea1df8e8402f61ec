//! The MMIO bus: which device answers at an IPA, and what it does.

use super::host::Host;
use super::layout;
use super::machine::Vcpu;
use super::watchdog::Frame;
use crate::cpu::Width;
use crate::memory::Ipa;
use crate::virtio::{self, WriteOutcome};

/// What is at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Virtio slot `slot`.
    Virtio {
        /// The slot.
        slot: usize,
        /// The register.
        offset: u16,
    },
    /// The distributor.
    Distributor(u64),
    /// The redistributors, from the first one's frame on.
    Redistributor(u64),
    /// The PL011.
    Uart(u64),
    /// The PL031.
    Rtc(u64),
    /// The watchdog.
    Watchdog(Frame, u64),
}

/// How an access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load got this value, or a store was taken (the value then means nothing).
    Done(u64),
    /// The store must be tried again: the instruction is not over.
    Retry,
    /// Nothing is there.
    Nobody,
}

/// Offset of the virtio register QueueNotify (virtio 1.3, 4.2.2).
const QUEUE_NOTIFY: u16 = 0x50;

impl Target {
    /// What is at `ipa` in a machine with `devices` virtio devices and `vcpus` vCPUs.
    #[inline]
    pub fn at(ipa: Ipa, devices: usize, vcpus: usize) -> Option<Self> {
        let raw = ipa.raw();
        let virtio = raw.wrapping_sub(layout::VIRTIO.raw());
        if virtio < devices as u64 * layout::VIRTIO_SIZE {
            let slot = (virtio / layout::VIRTIO_SIZE) as usize;
            return Some(Self::Virtio { slot, offset: (virtio % layout::VIRTIO_SIZE) as u16 });
        }
        let distributor = raw.wrapping_sub(layout::GICD.raw());
        if distributor < layout::GICD_SIZE {
            return Some(Self::Distributor(distributor));
        }
        let redistributor = raw.wrapping_sub(layout::GICR.raw());
        if redistributor < vcpus as u64 * layout::GICR_SIZE {
            return Some(Self::Redistributor(redistributor));
        }
        match raw & !0xfff {
            page if page == layout::UART.raw() => Some(Self::Uart(raw & 0xfff)),
            page if page == layout::RTC.raw() => Some(Self::Rtc(raw & 0xfff)),
            page if page == layout::WATCHDOG_CONTROL.raw() => {
                Some(Self::Watchdog(Frame::Control, raw & 0xfff))
            }
            page if page == layout::WATCHDOG_REFRESH.raw() => {
                Some(Self::Watchdog(Frame::Refresh, raw & 0xfff))
            }
            _ => None,
        }
    }
}

const fn virtio_width(width: Width) -> virtio::Width {
    match width {
        Width::Byte => virtio::Width::Byte,
        Width::Half => virtio::Width::Half,
        Width::Word => virtio::Width::Word,
        Width::Double => virtio::Width::Double,
    }
}

impl Vcpu<'_> {
    /// Serves a load.
    #[inline]
    pub fn load<H: Host>(&mut self, ipa: Ipa, width: Width, host: &mut H) -> Access {
        let vm = self.vm;
        let Some(target) = Target::at(ipa, vm.devices(), vm.vcpus.count()) else {
            return Access::Nobody;
        };
        Access::Done(match target {
            Target::Virtio { slot, offset } => {
                self.exits.virtio_reads += 1;
                let Some(device) = vm.slot(slot) else { return Access::Nobody };
                device.lock().read(offset, virtio_width(width))
            }
            Target::Distributor(offset) => {
                self.exits.gic += 1;
                let width = width.bytes() as u32;
                let vcpu = self.index;
                vm.with_gic(vcpu, host, |gic, lrs| gic.gicd_read(vcpu, offset, width, lrs))
            }
            Target::Redistributor(offset) => {
                self.exits.gic += 1;
                let width = width.bytes() as u32;
                let vcpu = self.index;
                vm.with_gic(vcpu, host, |gic, lrs| gic.gicr_read(vcpu, offset, width, lrs))
            }
            Target::Uart(offset) => {
                self.exits.mmio += 1;
                vm.with_uart(Some(self.index), host, |uart| uart.read(offset, width))
            }
            Target::Rtc(offset) => {
                self.exits.mmio += 1;
                vm.with_rtc(Some(self.index), host, |rtc, now| rtc.read(offset, width, now))
            }
            Target::Watchdog(frame, offset) => {
                self.exits.mmio += 1;
                vm.with_watchdog(Some(self.index), host, |watchdog, now| {
                    watchdog.read(frame, offset, width, now)
                })
            }
        })
    }

    /// Serves a store.
    #[inline]
    pub fn store<H: Host>(&mut self, ipa: Ipa, width: Width, value: u64, host: &mut H) -> Access {
        let vm = self.vm;
        let Some(target) = Target::at(ipa, vm.devices(), vm.vcpus.count()) else {
            return Access::Nobody;
        };
        match target {
            Target::Virtio { slot, offset } => {
                if offset == QUEUE_NOTIFY {
                    self.exits.kicks += 1;
                } else {
                    self.exits.virtio_writes += 1;
                }
                let Some(device) = vm.slot(slot) else { return Access::Nobody };
                let mut device = device.lock();
                let outcome = device.write(offset, virtio_width(width), value, host.now());
                vm.after_work(slot, &mut device, Some(self.index), host);
                if outcome == WriteOutcome::Retry {
                    return Access::Retry;
                }
            }
            Target::Distributor(offset) => {
                self.exits.gic += 1;
                let width = width.bytes() as u32;
                let vcpu = self.index;
                vm.interrupt(vcpu, host, |gic, _| gic.gicd_write(vcpu, offset, width, value));
            }
            Target::Redistributor(offset) => {
                self.exits.gic += 1;
                let width = width.bytes() as u32;
                vm.interrupt(self.index, host, |gic, _| gic.gicr_write(offset, width, value));
            }
            Target::Uart(offset) => {
                self.exits.mmio += 1;
                let sent =
                    vm.with_uart(Some(self.index), host, |uart| uart.write(offset, width, value));
                if let Some(byte) = sent {
                    host.transmit(vm.number, byte);
                }
            }
            Target::Rtc(offset) => {
                self.exits.mmio += 1;
                vm.with_rtc(Some(self.index), host, |rtc, now| {
                    rtc.write(offset, width, value, now)
                });
            }
            Target::Watchdog(frame, offset) => {
                self.exits.mmio += 1;
                vm.with_watchdog(Some(self.index), host, |watchdog, now| {
                    watchdog.write(frame, offset, width, value, now);
                });
            }
        }
        Access::Done(0)
    }
}
