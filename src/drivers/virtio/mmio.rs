//! The MMIO transport from the driver's side: probing, status handshake, features, queue set-up.
//! Source: virtio 3.1 (device initialization) and 4.2 (virtio over MMIO).

use core::fmt;

use embedded_hal::delay::DelayNs;

use super::queue::QueueAddresses;
use crate::drivers::registers::Registers;
use crate::memory::Pa;

/// Register offsets in bytes (virtio 4.2.2, table 4.1).
mod offset {
    pub(super) const MAGIC_VALUE: usize = 0x000;
    pub(super) const VERSION: usize = 0x004;
    pub(super) const DEVICE_ID: usize = 0x008;
    pub(super) const DEVICE_FEATURES: usize = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: usize = 0x014;
    pub(super) const DRIVER_FEATURES: usize = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: usize = 0x024;
    pub(super) const QUEUE_SEL: usize = 0x030;
    pub(super) const QUEUE_NUM_MAX: usize = 0x034;
    pub(super) const QUEUE_NUM: usize = 0x038;
    pub(super) const QUEUE_READY: usize = 0x044;
    pub(super) const QUEUE_NOTIFY: usize = 0x050;
    pub(super) const INTERRUPT_STATUS: usize = 0x060;
    pub(super) const INTERRUPT_ACK: usize = 0x064;
    pub(super) const STATUS: usize = 0x070;
    pub(super) const QUEUE_DESC_LOW: usize = 0x080;
    pub(super) const QUEUE_DRIVER_LOW: usize = 0x090;
    pub(super) const QUEUE_DEVICE_LOW: usize = 0x0a0;
    pub(super) const CONFIG_GENERATION: usize = 0x0fc;
    pub(super) const CONFIG: usize = 0x100;
}

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// The modern register layout.
const VERSION_MODERN: u32 = 2;
/// The layout from before virtio 1.0, with guest-endian rings and page-number addresses.
const VERSION_LEGACY: u32 = 1;

/// Time between two looks at a device that is resetting.
const RESET_STEP_US: u32 = 10;
/// Looks at a device that is resetting: 100 ms in all.
const RESET_STEPS: u32 = 10_000;
/// Times a configuration field is read again because the configuration changed meanwhile.
const CONFIG_ATTEMPTS: u32 = 8;

bitflags::bitflags! {
    /// Device status (virtio 2.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DeviceStatus: u32 {
        /// The device has been noticed.
        const ACKNOWLEDGE = 1;
        /// There is a driver for it.
        const DRIVER = 2;
        /// The driver is set up; the device may work.
        const DRIVER_OK = 4;
        /// Both agree on the features.
        const FEATURES_OK = 8;
        /// The device has met an error only a reset mends.
        const DEVICE_NEEDS_RESET = 64;
        /// The driver has given the device up.
        const FAILED = 128;
    }

    /// Why a device raised its interrupt (InterruptStatus).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InterruptCauses: u32 {
        /// Buffers were put into a used ring.
        const USED_BUFFER = 1;
        /// The configuration changed.
        const CONFIGURATION = 2;
    }

    /// Features not peculiar to a type of device (virtio 6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RingFeatures: u64 {
        /// A descriptor may refer to a table of descriptors.
        const INDIRECT_DESC = 1 << 28;
        /// Notifications are asked for by ring index.
        const EVENT_IDX = 1 << 29;
        /// The device follows virtio 1.0 or later.
        const VERSION_1 = 1 << 32;
        /// The device's accesses pass the platform's IOMMU, if there is one.
        const ACCESS_PLATFORM = 1 << 33;
        /// The device needs the barriers real hardware needs, which are the ones we use.
        const ORDER_PLATFORM = 1 << 36;
    }
}

/// What kind of device it is (virtio 5, device ids).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Id 1.
    Network,
    /// Id 2.
    Block,
    /// Id 3.
    Console,
    /// Id 4.
    Entropy,
    /// Id 19.
    Socket,
    /// Any other id.
    Other(u32),
}

/// Why there is no device to drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeError {
    /// MagicValue is not "virt" but this.
    NotVirtio(u32),
    /// The device speaks the legacy layout only (for QEMU: `virtio-mmio.force-legacy=false`).
    Legacy,
    /// A version from the future.
    Version(u32),
    /// The slot has no device in it: device id 0.
    Empty,
}

/// Why a device could not be brought up. It has been given up (FAILED), if it was reached at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitError {
    /// The memory given for DMA is too small or not page-aligned.
    DmaMemory,
    /// The device did not complete its reset.
    ResetTimeout,
    /// The device does not offer VERSION_1.
    NoVersion1,
    /// The device refused a subset of the features it offers, or no longer offers them.
    FeaturesRefused,
    /// The device does not have the queue.
    NoQueue,
    /// The device already uses the queue, right after its reset.
    QueueInUse,
    /// The queue is too short for one request, or has become shorter.
    QueueTooSmall,
    /// The configuration space holds an impossible value, or does not hold still.
    BadConfiguration,
    /// The device did not answer its first request.
    NoAnswer,
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotVirtio(magic) => write!(f, "not a virtio device: magic {magic:#x}"),
            Self::Legacy => f.write_str("legacy layout (QEMU: virtio-mmio.force-legacy=false)"),
            Self::Version(version) => write!(f, "unknown layout version {version}"),
            Self::Empty => f.write_str("no device"),
        }
    }
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DmaMemory => "its DMA memory is too small",
            Self::ResetTimeout => "it does not complete its reset",
            Self::NoVersion1 => "it does not offer VERSION_1",
            Self::FeaturesRefused => "it refuses the features it offers",
            Self::NoQueue => "it has no queue",
            Self::QueueInUse => "its queue is in use after its reset",
            Self::QueueTooSmall => "its queue is too short for a request",
            Self::BadConfiguration => "its configuration is impossible",
            Self::NoAnswer => "it does not answer",
        })
    }
}

/// Which device `registers` belong to.
///
/// # Errors
/// [`ProbeError`]: nothing here that could be driven.
pub fn probe<R: Registers>(registers: &R) -> Result<DeviceKind, ProbeError> {
    let magic = registers.read32(offset::MAGIC_VALUE);
    if magic != MAGIC {
        return Err(ProbeError::NotVirtio(magic));
    }
    // The id before the version: QEMU gives empty slots the legacy layout, too.
    let id = registers.read32(offset::DEVICE_ID);
    if id == 0 {
        return Err(ProbeError::Empty);
    }
    match registers.read32(offset::VERSION) {
        VERSION_MODERN => {}
        VERSION_LEGACY => return Err(ProbeError::Legacy),
        version => return Err(ProbeError::Version(version)),
    }
    Ok(match id {
        1 => DeviceKind::Network,
        2 => DeviceKind::Block,
        3 => DeviceKind::Console,
        4 => DeviceKind::Entropy,
        19 => DeviceKind::Socket,
        other => DeviceKind::Other(other),
    })
}

/// A device's transport. Nothing in it waits, but for [`Transport::reset`].
pub struct Transport<R> {
    registers: R,
}

impl<R: Registers> Transport<R> {
    /// The transport behind `registers`, which [`probe`] has found to be a modern device's.
    pub const fn new(registers: R) -> Self {
        Self { registers }
    }

    /// The registers, for their ordering methods.
    #[inline(always)]
    pub const fn registers(&self) -> &R {
        &self.registers
    }

    fn status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.registers.read32(offset::STATUS))
    }

    fn set_status(&self, status: DeviceStatus) {
        self.registers.write32(offset::STATUS, status.bits());
    }

    /// Asks the device to reset.
    pub fn begin_reset(&self) {
        self.registers.write32(offset::STATUS, 0);
    }

    /// Whether the device has completed the reset: it then owns no buffer and does no DMA.
    pub fn is_reset(&self) -> bool {
        self.registers.read32(offset::STATUS) == 0
    }

    /// Whether the device says that it has met an error that only a reset mends.
    pub fn needs_reset(&self) -> bool {
        self.status().contains(DeviceStatus::DEVICE_NEEDS_RESET)
    }

    /// Resets the device and waits for it, 100 ms at most.
    ///
    /// # Errors
    /// [`InitError::ResetTimeout`]: the device may still do DMA.
    pub fn reset(&self, delay: &mut impl DelayNs) -> Result<(), InitError> {
        self.begin_reset();
        for _ in 0..RESET_STEPS {
            if self.is_reset() {
                return Ok(());
            }
            delay.delay_us(RESET_STEP_US);
        }
        Err(InitError::ResetTimeout)
    }

    /// Takes a device that has just been reset up to FEATURES_OK (virtio 3.1.1, steps 2 to 6),
    /// with all of `wanted` that it offers and VERSION_1; returns the features agreed on.
    ///
    /// # Errors
    /// [`InitError::NoVersion1`], [`InitError::FeaturesRefused`].
    pub fn negotiate(&self, wanted: u64) -> Result<u64, InitError> {
        self.negotiate_with(&|_| wanted)
    }

    /// As [`Self::negotiate`]; what is wanted depends on what is offered.
    ///
    /// # Errors
    /// [`InitError::NoVersion1`], [`InitError::FeaturesRefused`].
    pub fn negotiate_with(&self, wanted: &dyn Fn(u64) -> u64) -> Result<u64, InitError> {
        let mut status = DeviceStatus::ACKNOWLEDGE;
        self.set_status(status);
        status |= DeviceStatus::DRIVER;
        self.set_status(status);

        self.registers.write32(offset::DEVICE_FEATURES_SEL, 0);
        let low = self.registers.read32(offset::DEVICE_FEATURES);
        self.registers.write32(offset::DEVICE_FEATURES_SEL, 1);
        let high = self.registers.read32(offset::DEVICE_FEATURES);
        let offered = u64::from(high) << 32 | u64::from(low);
        if offered & RingFeatures::VERSION_1.bits() == 0 {
            return Err(InitError::NoVersion1);
        }
        let features = offered & (wanted(offered) | RingFeatures::VERSION_1.bits());
        self.registers.write32(offset::DRIVER_FEATURES_SEL, 0);
        self.registers.write32(offset::DRIVER_FEATURES, features as u32);
        self.registers.write32(offset::DRIVER_FEATURES_SEL, 1);
        self.registers.write32(offset::DRIVER_FEATURES, (features >> 32) as u32);

        self.set_status(status | DeviceStatus::FEATURES_OK);
        if !self.status().contains(DeviceStatus::FEATURES_OK) {
            return Err(InitError::FeaturesRefused);
        }
        Ok(features)
    }

    /// The most entries queue `queue` can have. The queue stays selected.
    ///
    /// # Errors
    /// [`InitError::NoQueue`], [`InitError::QueueInUse`].
    pub fn queue_num_max(&self, queue: u16) -> Result<u32, InitError> {
        self.registers.write32(offset::QUEUE_SEL, u32::from(queue));
        if self.registers.read32(offset::QUEUE_READY) != 0 {
            return Err(InitError::QueueInUse);
        }
        match self.registers.read32(offset::QUEUE_NUM_MAX) {
            0 => Err(InitError::NoQueue),
            max => Ok(max),
        }
    }

    /// Gives the device queue `queue` of `size` entries (virtio 4.2.3.2).
    pub fn set_queue(&self, queue: u16, size: u16, addresses: &QueueAddresses) {
        self.registers.write32(offset::QUEUE_SEL, u32::from(queue));
        self.registers.write32(offset::QUEUE_NUM, u32::from(size));
        self.write_address(offset::QUEUE_DESC_LOW, addresses.descriptors);
        self.write_address(offset::QUEUE_DRIVER_LOW, addresses.available);
        self.write_address(offset::QUEUE_DEVICE_LOW, addresses.used);
        self.registers.write32(offset::QUEUE_READY, 1);
    }

    fn write_address(&self, low: usize, address: Pa) {
        self.registers.write32(low, address.raw() as u32);
        self.registers.write32(low + 4, (address.raw() >> 32) as u32);
    }

    /// Lets the device work (DRIVER_OK); its queues must be set.
    pub fn start(&self) {
        self.set_status(
            DeviceStatus::ACKNOWLEDGE
                | DeviceStatus::DRIVER
                | DeviceStatus::FEATURES_OK
                | DeviceStatus::DRIVER_OK,
        );
    }

    /// Gives the device up.
    pub fn fail(&self) {
        self.set_status(DeviceStatus::FAILED);
    }

    /// Tells the device that queue `queue` has new entries.
    #[inline(always)]
    pub fn notify(&self, queue: u16) {
        self.registers.write32(offset::QUEUE_NOTIFY, u32::from(queue));
    }

    /// The 32-bit configuration field at `field` bytes.
    pub fn config32(&self, field: usize) -> u32 {
        self.registers.read32(offset::CONFIG + field)
    }

    /// The 16-bit configuration field at `field` bytes.
    pub fn config16(&self, field: usize) -> u16 {
        self.registers.read16(offset::CONFIG + field)
    }

    /// The 8-bit configuration field at `field` bytes.
    pub fn config8(&self, field: usize) -> u8 {
        self.registers.read8(offset::CONFIG + field)
    }

    /// Writes the 8-bit configuration field at `field` bytes.
    pub fn set_config8(&self, field: usize, value: u8) {
        self.registers.write8(offset::CONFIG + field, value);
    }

    /// What `read` finds in configuration space, all of one generation (virtio 2.5.1).
    ///
    /// # Errors
    /// [`InitError::BadConfiguration`]: it changes faster than it can be read.
    pub fn config<T>(&self, read: impl Fn(&Self) -> T) -> Result<T, InitError> {
        for _ in 0..CONFIG_ATTEMPTS {
            let before = self.registers.read32(offset::CONFIG_GENERATION);
            let value = read(self);
            if self.registers.read32(offset::CONFIG_GENERATION) == before {
                return Ok(value);
            }
        }
        Err(InitError::BadConfiguration)
    }

    /// The 64-bit configuration field at `field` bytes, its halves of one generation
    /// (virtio 2.5.1).
    ///
    /// # Errors
    /// [`InitError::BadConfiguration`]: it changes faster than it can be read.
    pub fn config64(&self, field: usize) -> Result<u64, InitError> {
        self.config(|device| {
            u64::from(device.config32(field + 4)) << 32 | u64::from(device.config32(field))
        })
    }

    /// Reads why the device interrupts and takes the interrupt back. Two register accesses.
    #[inline]
    pub fn acknowledge_interrupt(&self) -> InterruptCauses {
        let causes = self.registers.read32(offset::INTERRUPT_STATUS);
        self.registers.write32(offset::INTERRUPT_ACK, causes);
        InterruptCauses::from_bits_truncate(causes)
    }

    /// Takes a used-buffer interrupt back without asking for the cause. One register access.
    #[inline]
    pub fn acknowledge_used_buffer(&self) {
        self.registers.write32(offset::INTERRUPT_ACK, InterruptCauses::USED_BUFFER.bits());
    }
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
