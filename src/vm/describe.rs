//! A machine, described for its guest.

use super::layout;
use super::loader::Placement;
use super::machine::{MAX_DEVICES, Vm};
use crate::fdt::guest::{GuestGic, GuestSlot, GuestTree};
use crate::memory::Ipa;
use crate::memory::guest::MAX_REGIONS;

impl Vm<'_> {
    /// Writes the device tree of this machine, loaded by `placement`, to `buffer`; its length.
    /// `None` if it does not fit.
    pub fn describe(
        &self,
        placement: &Placement,
        bootargs: &str,
        buffer: &mut [u8],
    ) -> Option<usize> {
        let mut memory = heapless::Vec::<(Ipa, u64), MAX_REGIONS>::new();
        for (at, region) in self.memory.regions() {
            memory.push((*at, region.len() as u64)).ok()?;
        }
        let mut virtio = heapless::Vec::<GuestSlot, MAX_DEVICES>::new();
        for slot in 0..self.devices() as u64 {
            let base = layout::VIRTIO.checked_add(slot * layout::VIRTIO_SIZE)?;
            let intid = layout::FIRST_SPI + layout::VIRTIO_SPI + slot as u32;
            virtio.push(GuestSlot { base, len: layout::VIRTIO_SIZE, intid }).ok()?;
        }
        let tree = GuestTree {
            memory: &memory,
            cpus: &[0],
            bootargs,
            initrd: placement.ramdisk.map(|(start, end)| (start, end.raw() - start.raw())),
            gic: GuestGic::V3 { distributor: layout::GICD, redistributors: layout::GICR },
            uart: Some(layout::UART),
            rtc: Some(layout::RTC),
            virtio: &virtio,
        };
        tree.write(buffer).ok()
    }
}
