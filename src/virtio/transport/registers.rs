//! The MMIO registers (4.2.2), read and written.

use super::{MmioTransport, Stop, WriteOutcome};
use crate::backend::clock::Ticks;
use crate::virtio::Width;
use crate::virtio::features::Features;
use crate::virtio::queue::{Areas, QueueState};
use crate::virtio::status::Status;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// The version of a device that is not a legacy one.
const VERSION: u32 = 2;
/// "sprk", little-endian: no list of vendors exists.
const VENDOR: u32 = 0x6B72_7073;

/// First byte of configuration space.
const CONFIG: u16 = 0x100;
/// End of the region.
const END: usize = super::REGION_SIZE as usize;

/// Offsets of the registers.
mod offset {
    pub(super) const MAGIC_VALUE: u16 = 0x000;
    pub(super) const VERSION: u16 = 0x004;
    pub(super) const DEVICE_ID: u16 = 0x008;
    pub(super) const VENDOR_ID: u16 = 0x00C;
    pub(super) const DEVICE_FEATURES: u16 = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: u16 = 0x014;
    pub(super) const DRIVER_FEATURES: u16 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u16 = 0x024;
    pub(super) const QUEUE_SEL: u16 = 0x030;
    pub(super) const QUEUE_SIZE_MAX: u16 = 0x034;
    pub(super) const QUEUE_SIZE: u16 = 0x038;
    pub(super) const QUEUE_READY: u16 = 0x044;
    pub(super) const QUEUE_NOTIFY: u16 = 0x050;
    pub(super) const INTERRUPT_STATUS: u16 = 0x060;
    pub(super) const INTERRUPT_ACK: u16 = 0x064;
    pub(super) const STATUS: u16 = 0x070;
    pub(super) const QUEUE_DESC_LOW: u16 = 0x080;
    pub(super) const QUEUE_DESC_HIGH: u16 = 0x084;
    pub(super) const QUEUE_DRIVER_LOW: u16 = 0x090;
    pub(super) const QUEUE_DRIVER_HIGH: u16 = 0x094;
    pub(super) const QUEUE_DEVICE_LOW: u16 = 0x0A0;
    pub(super) const QUEUE_DEVICE_HIGH: u16 = 0x0A4;
    pub(super) const SHM_SEL: u16 = 0x0AC;
    pub(super) const SHM_LEN_LOW: u16 = 0x0B0;
    pub(super) const SHM_LEN_HIGH: u16 = 0x0B4;
    pub(super) const SHM_BASE_LOW: u16 = 0x0B8;
    pub(super) const SHM_BASE_HIGH: u16 = 0x0BC;
    pub(super) const QUEUE_RESET: u16 = 0x0C0;
    pub(super) const CONFIG_GENERATION: u16 = 0x0FC;
}

/// Feature pages from here on are kept track of together: what is accepted of one of them only a
/// reset takes back.
const LAST_PAGES: u32 = 31;

/// `whole` with its low or high half replaced.
const fn with_half(whole: u64, high: bool, half: u32) -> u64 {
    if high {
        whole & 0xFFFF_FFFF | (half as u64) << 32
    } else {
        whole & !0xFFFF_FFFF | half as u64
    }
}

impl MmioTransport<'_, '_> {
    /// What a load of `width` at `offset` from the region's start gives; never has a side effect.
    ///
    /// Registers answer aligned 32-bit accesses only (4.2.2.2), configuration space any that lie
    /// in the region. All else, and write-only registers, read as zero.
    #[inline]
    pub fn read(&self, offset: u16, width: Width) -> u64 {
        if offset >= CONFIG {
            return self.read_config(offset, width);
        }
        if width != Width::Word {
            return 0;
        }
        u64::from(self.read_register(offset))
    }

    /// A store of `width` at `offset` from the region's start. Accesses that [`Self::read`] would
    /// not answer, and writes to read-only registers, are ignored.
    #[inline]
    pub fn write(&mut self, offset: u16, width: Width, value: u64, now: Ticks) -> WriteOutcome {
        if offset >= CONFIG {
            self.write_config(offset, width, value, now);
            return WriteOutcome::Done;
        }
        if width != Width::Word {
            return WriteOutcome::Done;
        }
        let value = value as u32;
        if offset == offset::QUEUE_NOTIFY {
            self.kicks += 1;
            self.notify(value, now);
            return WriteOutcome::Done;
        }
        self.write_register(offset, value, now)
    }

    fn read_register(&self, offset: u16) -> u32 {
        match offset {
            offset::INTERRUPT_STATUS => self.interrupt_status,
            offset::STATUS => self.status.bits(),
            offset::MAGIC_VALUE => MAGIC,
            offset::VERSION => VERSION,
            offset::DEVICE_ID => self.device.device_type().0,
            offset::VENDOR_ID => VENDOR,
            offset::DEVICE_FEATURES => self.offered.page(self.device_features_page),
            offset::QUEUE_SIZE_MAX => self.selected().map_or(0, |queue| queue.max_size().into()),
            offset::QUEUE_READY => {
                self.selected().map_or(0, |queue| u32::from(queue.state() != QueueState::Disabled))
            }
            offset::QUEUE_RESET => self.selected().map_or(0, |queue| {
                u32::from(queue.state() == QueueState::Stopping { by_reset: true })
            }),
            offset::SHM_LEN_LOW => self.shared_memory().1 as u32,
            offset::SHM_LEN_HIGH => (self.shared_memory().1 >> 32) as u32,
            offset::SHM_BASE_LOW => self.shared_memory().0 as u32,
            offset::SHM_BASE_HIGH => (self.shared_memory().0 >> 32) as u32,
            offset::CONFIG_GENERATION => self.generation,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u16, value: u32, now: Ticks) -> WriteOutcome {
        if offset == offset::STATUS && value == 0 {
            return self.reset(now);
        }
        if self.stop == Stop::Resetting {
            // The driver has asked for a reset: nothing but its end is of interest.
            return WriteOutcome::Done;
        }
        match offset {
            offset::INTERRUPT_ACK => self.interrupt_status &= !value,
            offset::STATUS => self.advance(value, now),
            offset::DEVICE_FEATURES_SEL => self.device_features_page = value,
            offset::DRIVER_FEATURES_SEL => self.driver_features_page = value,
            offset::DRIVER_FEATURES => self.accept_features(value),
            offset::QUEUE_SEL => self.queue_select = value,
            offset::QUEUE_SIZE => self.with_selected(|queue| queue.set_size(value)),
            offset::QUEUE_DESC_LOW => self.set_areas(|areas| &mut areas.descriptor, false, value),
            offset::QUEUE_DESC_HIGH => self.set_areas(|areas| &mut areas.descriptor, true, value),
            offset::QUEUE_DRIVER_LOW => self.set_areas(|areas| &mut areas.driver, false, value),
            offset::QUEUE_DRIVER_HIGH => self.set_areas(|areas| &mut areas.driver, true, value),
            offset::QUEUE_DEVICE_LOW => self.set_areas(|areas| &mut areas.device, false, value),
            offset::QUEUE_DEVICE_HIGH => self.set_areas(|areas| &mut areas.device, true, value),
            offset::QUEUE_READY if value == 1 => self.enable_queue(now),
            offset::QUEUE_READY if value == 0 => return self.stop_queue(false, now),
            offset::QUEUE_RESET if value == 1 && self.accepted.contains(Features::RING_RESET) => {
                // Not retried: the driver reads the register until it is 0.
                let _ = self.stop_queue(true, now);
            }
            offset::SHM_SEL => self.shared_memory_select = value,
            _ => (),
        }
        WriteOutcome::Done
    }

    /// DriverFeatures: replaces the selected page, until FEATURES_OK freezes them (3.1.1).
    fn accept_features(&mut self, bits: u32) {
        if self.status.contains(Status::FEATURES_OK) {
            return;
        }
        match self.accepted.with_page(self.driver_features_page, bits) {
            Some(accepted) => self.accepted = accepted,
            // Features from 64 on (2.2 has 128 of them, 4.2.2 any number of pages): none is offered,
            // so ones cannot be agreed to, and zeros take them back, as on any other page.
            None => {
                let page = 1 << self.driver_features_page.min(LAST_PAGES);
                if bits != 0 {
                    self.accepted_unknown |= page;
                } else if self.driver_features_page < LAST_PAGES {
                    self.accepted_unknown &= !page;
                }
            }
        }
    }

    fn set_areas(&mut self, area: impl FnOnce(&mut Areas) -> &mut u64, high: bool, half: u32) {
        self.with_selected(|queue| {
            queue.set_areas(|areas| {
                let address = area(areas);
                *address = with_half(*address, high, half);
            });
        });
    }

    /// Base and length of the selected shared memory region; all ones if there is none.
    fn shared_memory(&self) -> (u64, u64) {
        self.device
            .shared_memory(self.shared_memory_select)
            .map_or((u64::MAX, u64::MAX), |region| (region.base.raw(), region.len))
    }

    fn read_config(&self, offset: u16, width: Width) -> u64 {
        let mut bytes = [0; 8];
        if usize::from(offset) + width.bytes() <= END
            && let Some(data) = bytes.get_mut(..width.bytes())
        {
            self.device.read_config(usize::from(offset - CONFIG), data);
        }
        u64::from_le_bytes(bytes)
    }

    fn write_config(&mut self, offset: u16, width: Width, value: u64, now: Ticks) {
        let bytes = value.to_le_bytes();
        let Some(data) = bytes.get(..width.bytes()) else {
            return;
        };
        if usize::from(offset) + data.len() > END || self.stop == Stop::Resetting {
            return;
        }
        let at = usize::from(offset - CONFIG);
        self.dispatch_rarely(now, &mut |device, context| device.write_config(at, data, context));
    }
}
