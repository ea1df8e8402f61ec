//! The guest's machine: QEMU `virt`'s map, so that images with built-in addresses run, with the
//! virtio slots where squib has them.

use super::machine::MAX_DEVICES;
use crate::gic;
use crate::memory::Ipa;
use crate::virtio::transport::REGION_SIZE;

/// Distributor.
pub const GICD: Ipa = Ipa::new(0x0800_0000);
/// Size of the distributor frame.
pub const GICD_SIZE: u64 = gic::GICD_SIZE;
/// CPU interface of a GICv2.
pub const GICC: Ipa = Ipa::new(0x0801_0000);
/// Size of the CPU interface frame.
pub const GICC_SIZE: u64 = gic::v2::GICC_SIZE;
/// First redistributor of a GICv3.
pub const GICR: Ipa = Ipa::new(0x080a_0000);
/// Size of one vCPU's redistributor frames.
pub const GICR_SIZE: u64 = gic::GICR_STRIDE;
/// PL011.
pub const UART: Ipa = Ipa::new(0x0900_0000);
/// The PL011's SPI number; its INTID is 32 more.
pub const UART_SPI: u32 = 1;
/// PL031.
pub const RTC: Ipa = Ipa::new(0x0901_0000);
/// The PL031's SPI number; its INTID is 32 more.
pub const RTC_SPI: u32 = 2;
/// The boot timer; QEMU's `virt` has nothing here.
pub const BOOT_TIMER: Ipa = Ipa::new(0x090d_0000);
/// The watchdog's control frame; QEMU's `virt` has nothing here.
pub const WATCHDOG_CONTROL: Ipa = Ipa::new(0x090e_0000);
/// The watchdog's refresh frame.
pub const WATCHDOG_REFRESH: Ipa = Ipa::new(0x090f_0000);
/// The watchdog's SPI number; its INTID is 32 more.
pub const WATCHDOG_SPI: u32 = 10;
/// First virtio slot.
pub const VIRTIO: Ipa = Ipa::new(0x0f00_0000);
/// Size of a virtio slot.
pub const VIRTIO_SIZE: u64 = REGION_SIZE;
/// Number of virtio slots.
pub const VIRTIO_SLOTS: usize = 32;
/// SPI number of virtio slot 0; those of the others follow.
pub const VIRTIO_SPI: u32 = 16;
/// RAM.
pub const RAM: Ipa = Ipa::new(0x4000_0000);
/// Bits of the guest's physical address space where the board has as many.
pub const IPA_BITS: u8 = 40;
/// Number of the first SPI among the INTIDs.
pub const FIRST_SPI: u32 = gic::SPI_BASE;

const _: () = assert!(MAX_DEVICES <= VIRTIO_SLOTS);
