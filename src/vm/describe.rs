//! A machine, described for its guest.

use super::layout;
use super::loader::Placement;
use super::machine::{MAX_DEVICES, Vm};
use crate::fdt::WriteError;
use crate::fdt::guest::{GuestGic, GuestSlot, GuestTree, GuestWatchdog};
use crate::gic::{GicVersion, MAX_VCPUS};
use crate::memory::Ipa;
use crate::memory::guest::MAX_REGIONS;

impl Vm<'_> {
    /// Writes the device tree of this machine, loaded by `placement`, to `buffer`; its length.
    ///
    /// # Errors
    /// [`WriteError::Full`] if it does not fit, [`WriteError::Text`] if the kernel's arguments are
    /// no text for a device tree.
    pub fn describe(
        &self,
        placement: &Placement,
        bootargs: &str,
        buffer: &mut [u8],
    ) -> Result<usize, WriteError> {
        let mut memory = heapless::Vec::<(Ipa, u64), MAX_REGIONS>::new();
        for (at, region) in self.memory.regions() {
            memory.push((*at, region.len() as u64)).map_err(|_| WriteError::Full)?;
        }
        let mut virtio = heapless::Vec::<GuestSlot, MAX_DEVICES>::new();
        for slot in 0..self.devices() as u64 {
            let base = Ipa::new(layout::VIRTIO.raw() + slot * layout::VIRTIO_SIZE);
            let intid = layout::FIRST_SPI + layout::VIRTIO_SPI + slot as u32;
            let slot = GuestSlot { base, len: layout::VIRTIO_SIZE, intid };
            virtio.push(slot).map_err(|_| WriteError::Full)?;
        }
        // Their affinities are 0.0.0.n.
        let cpus: [u64; MAX_VCPUS] = core::array::from_fn(|index| index as u64);
        let tree = GuestTree {
            memory: &memory,
            cpus: cpus.get(..self.vcpus.count()).unwrap_or(&[]),
            bootargs,
            initrd: placement.ramdisk.map(|(start, end)| (start, end.raw() - start.raw())),
            gic: match self.gic_version() {
                GicVersion::V2 => {
                    GuestGic::V2 { distributor: layout::GICD, cpu_interface: layout::GICC }
                }
                GicVersion::V3 => {
                    GuestGic::V3 { distributor: layout::GICD, redistributors: layout::GICR }
                }
            },
            uart: Some(layout::UART),
            rtc: Some(layout::RTC),
            watchdog: Some(GuestWatchdog {
                control: layout::WATCHDOG_CONTROL,
                refresh: layout::WATCHDOG_REFRESH,
            }),
            boot_timer: Some(layout::BOOT_TIMER),
            virtio: &virtio,
        };
        tree.write(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fdt::guest::GUEST_FDT_LEN;
    use crate::fdt::{Board, Gic, Interrupt, Trigger};
    use crate::gic::{GICD_SIZE, GICR_STRIDE};
    use crate::memory::{Pa, PaRange};
    use crate::vm::testing::{HeldDisk, RAM_SIZE, plug, vm};

    const RAM: u64 = layout::RAM.raw();

    fn placement(ramdisk: Option<(Ipa, Ipa)>) -> Placement {
        Placement { kernel: layout::RAM, ramdisk, fdt: layout::RAM }
    }

    #[test]
    fn our_own_reader_finds_the_machine_that_is_described() {
        let mut vm = vm();
        for _ in 0..3 {
            plug(&mut vm, Box::new(HeldDisk::default())).unwrap();
        }
        let ramdisk = Some((Ipa::new(RAM + 0x1000), Ipa::new(RAM + 0x3456)));
        let mut buffer = vec![0; GUEST_FDT_LEN];
        let len = vm.describe(&placement(ramdisk), "console=ttyAMA0", &mut buffer).unwrap();
        let board = Board::read(&buffer[..len], Pa::new(0)).unwrap();

        assert_eq!(board.memory, [PaRange::new(RAM, RAM_SIZE as u64)]);
        assert_eq!(board.cpus.len(), 1);
        assert_eq!(board.cpus[0].mpidr, 0);
        assert_eq!(board.bootargs, "console=ttyAMA0");
        assert_eq!(board.initrd, Some(PaRange::new(RAM + 0x1000, 0x2456)));
        let Some(Gic::V3 { distributor, redistributors, .. }) = board.gic else {
            panic!("no GICv3")
        };
        assert_eq!(distributor, PaRange::new(layout::GICD.raw(), GICD_SIZE));
        assert_eq!(redistributors, [PaRange::new(layout::GICR.raw(), GICR_STRIDE)]);
        let console = board.console.unwrap();
        assert_eq!(console.registers.base, Pa::new(layout::UART.raw()));
        let intid = layout::FIRST_SPI + layout::UART_SPI;
        assert_eq!(console.interrupt, Some(Interrupt { intid, trigger: Trigger::Level }));
        assert_eq!(board.rtc.unwrap().base, Pa::new(layout::RTC.raw()));
        assert_eq!(board.virtio.len(), vm.devices());
        for (n, slot) in (0..).zip(&board.virtio) {
            assert_eq!(slot.registers, PaRange::new(0x0f00_0000 + 0x1000 * n, 0x1000));
            let intid = 48 + n as u32;
            assert_eq!(slot.interrupt, Some(Interrupt { intid, trigger: Trigger::Edge }));
        }
    }

    #[test]
    fn without_a_ramdisk_or_devices_none_are_described() {
        let mut buffer = vec![0; GUEST_FDT_LEN];
        let len = vm().describe(&placement(None), "", &mut buffer).unwrap();
        let board = Board::read(&buffer[..len], Pa::new(0)).unwrap();
        assert_eq!((board.initrd, board.bootargs, board.virtio.len()), (None, "", 0));
    }

    #[test]
    fn a_tree_that_does_not_fit_or_is_no_text_is_refused() {
        let mut buffer = vec![0; GUEST_FDT_LEN];
        let mut describe = |bootargs: &str, len: usize| {
            vm().describe(&placement(None), bootargs, &mut buffer[..len])
        };
        let len = describe("quiet", GUEST_FDT_LEN).unwrap();
        assert_eq!(describe("quiet", len), Ok(len));
        assert_eq!(describe("quiet", len - 1), Err(WriteError::Full));
        assert_eq!(describe("qui\0et", GUEST_FDT_LEN), Err(WriteError::Text));
    }
}
