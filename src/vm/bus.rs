//! The MMIO bus: which device answers at an IPA, and what it does.

use super::host::Host;
use super::layout;
use super::machine::{Vcpu, Vm};
use super::watchdog::Frame;
use crate::cpu::{LoadTarget, Width};
use crate::memory::Ipa;
use crate::sync::Mutex;
use crate::virtio::{self, MmioTransport, Status, WriteOutcome};

/// What is at an address.
enum Target<'a, 'm> {
    /// A virtio device.
    Virtio {
        /// Its slot.
        slot: usize,
        /// The device.
        device: &'a Mutex<MmioTransport<'m, 'm>>,
        /// The register.
        offset: u16,
    },
    /// The distributor.
    Distributor(u64),
    /// Another device.
    Other(Other),
}

/// What has few accesses.
#[derive(Clone, Copy)]
enum Other {
    /// The redistributors, from the first one's frame on.
    Redistributor(u64),
    /// The PL011.
    Uart(u64),
    /// The PL031.
    Rtc(u64),
    /// The watchdog.
    Watchdog(Frame, u64),
    /// The boot timer.
    BootTimer(u64),
}

/// How an access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load has its value, or a store was taken.
    Done,
    /// The store must be tried again: the instruction is not over.
    Retry,
    /// Nothing is there.
    Nobody,
}

/// Offset of the virtio register QueueNotify (virtio 1.3, 4.2.2).
const QUEUE_NOTIFY: u16 = 0x50;
/// Offset of Status.
const STATUS: u16 = 0x70;
/// Offset of InterruptACK.
const INTERRUPT_ACK: u16 = 0x64;

impl<'a, 'm> Target<'a, 'm> {
    /// What is at `ipa` in `vm`.
    #[inline(always)]
    fn at(ipa: Ipa, vm: &'a Vm<'m>) -> Option<Self> {
        let raw = ipa.raw();
        let virtio = raw.wrapping_sub(layout::VIRTIO.raw());
        let slot = (virtio / layout::VIRTIO_SIZE) as usize;
        if let Some(device) = vm.slot(slot) {
            let offset = (virtio % layout::VIRTIO_SIZE) as u16;
            return Some(Self::Virtio { slot, device, offset });
        }
        let distributor = raw.wrapping_sub(layout::GICD.raw());
        if distributor < layout::GICD_SIZE {
            return Some(Self::Distributor(distributor));
        }
        Other::at(ipa, vm.redistributors).map(Self::Other)
    }
}

impl Other {
    /// What is at `ipa` in a machine with so many `redistributors`.
    #[inline]
    fn at(ipa: Ipa, redistributors: usize) -> Option<Self> {
        let raw = ipa.raw();
        let redistributor = raw.wrapping_sub(layout::GICR.raw());
        if redistributor < redistributors as u64 * layout::GICR_SIZE {
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
            page if page == layout::BOOT_TIMER.raw() => Some(Self::BootTimer(raw & 0xfff)),
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
    /// Serves a load, and gives the register its value.
    #[inline(never)]
    pub(super) fn load<H: Host>(&mut self, ipa: Ipa, into: LoadTarget, host: &mut H) -> Access {
        let vm = self.vm;
        let width = into.width();
        let Some(target) = Target::at(ipa, vm) else { return Access::Nobody };
        // Who it is, is known by jumps, not by a value: nothing comes between the two matches.
        let value = match target {
            Target::Virtio { device, offset, .. } => {
                vm.note_access(host);
                self.exits.virtio_reads += 1;
                device.lock().read(offset, virtio_width(width))
            }
            Target::Distributor(offset) => {
                vm.note_access(host);
                self.exits.gic += 1;
                let width = width.bytes() as u32;
                let vcpu = self.index;
                vm.with_gic(vcpu, host, |gic, lrs| gic.gicd_read(vcpu, offset, width, lrs))
            }
            Target::Other(other) => self.other(other, width, None, host),
        };
        into.complete(value, &mut self.registers);
        Access::Done
    }

    /// Serves an access to what has few: a store of a value, or a load, whose value it answers.
    #[inline(never)]
    fn other<H: Host>(
        &mut self,
        target: Other,
        width: Width,
        store: Option<u64>,
        host: &mut H,
    ) -> u64 {
        let vm = self.vm;
        let here = Some(self.index);
        vm.note_access(host);
        let mut loaded = 0;
        match target {
            Other::Redistributor(offset) => {
                self.exits.gic += 1;
                let (vcpu, width) = (self.index, width.bytes() as u32);
                match store {
                    None => {
                        return vm.with_gic(vcpu, host, |gic, lrs| {
                            gic.gicr_read(vcpu, offset, width, lrs)
                        });
                    }
                    Some(value) => {
                        vm.interrupt(vcpu, host, |gic, _| gic.gicr_write(offset, width, value));
                    }
                }
                return 0;
            }
            Other::Uart(offset) => {
                let mut sent = None;
                vm.with_uart(here, host, &mut |uart| match store {
                    None => loaded = uart.read(offset, width),
                    Some(value) => sent = uart.write(offset, width, value),
                });
                if let Some(byte) = sent {
                    host.transmit(vm.number, byte);
                }
            }
            Other::Rtc(offset) => vm.with_rtc(here, host, &mut |rtc, now| match store {
                None => loaded = rtc.read(offset, width, now),
                Some(value) => rtc.write(offset, width, value, now),
            }),
            Other::Watchdog(frame, offset) => {
                vm.with_watchdog(here, host, &mut |watchdog, now| match store {
                    None => loaded = watchdog.read(frame, offset, width, now),
                    Some(value) => watchdog.write(frame, offset, width, value, now),
                });
            }
            Other::BootTimer(offset) => {
                let now = host.now();
                match store {
                    None => {
                        let frequency = vm.frequency();
                        let width = width.bytes();
                        loaded = vm.with_boot(|boot| boot.read(offset, width, now, frequency));
                    }
                    Some(value) => vm.with_boot(|boot| boot.write(offset, value, now)),
                }
            }
        }
        self.exits.mmio += 1;
        loaded
    }

    /// Serves a store.
    #[inline(never)]
    pub(super) fn store<H: Host>(
        &mut self,
        ipa: Ipa,
        width: Width,
        value: u64,
        host: &mut H,
    ) -> Access {
        let vm = self.vm;
        let Some(target) = Target::at(ipa, vm) else { return Access::Nobody };
        match target {
            Target::Virtio { slot, device, offset } => {
                vm.note_access(host);
                let count = match offset {
                    QUEUE_NOTIFY => &mut self.exits.kicks,
                    _ => &mut self.exits.virtio_writes,
                };
                *count += 1;
                let mut device = device.lock();
                let outcome = device.write(offset, virtio_width(width), value, host.now());
                if offset == STATUS && device.status().contains(Status::DRIVER_OK) {
                    let now = host.now();
                    vm.with_boot(|boot| boot.driver_ok(slot, now));
                }
                // An acknowledgement gives the device nothing to do, and no cause to interrupt.
                if offset != INTERRUPT_ACK {
                    vm.after_work(slot, &mut device, Some(self.index), host);
                }
                if outcome == WriteOutcome::Retry {
                    return Access::Retry;
                }
            }
            Target::Distributor(offset) => {
                vm.note_access(host);
                self.exits.gic += 1;
                let width = width.bytes() as u32;
                let vcpu = self.index;
                vm.interrupt(vcpu, host, |gic, _| gic.gicd_write(vcpu, offset, width, value));
            }
            Target::Other(other) => {
                self.other(other, width, Some(value), host);
            }
        }
        Access::Done
    }
}
