//! What the device tree in x0 says the machine has.

use crate::mmio::read32;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};
use heapless::Vec;

/// First INTID of the shared peripheral interrupts; the device tree counts from 0.
const FIRST_SPI: u32 = 32;
/// DeviceID of a block device, and where a virtio-MMIO slot has it.
const BLOCK: u32 = 2;
const DEVICE_ID: usize = 0x8;

/// A range of guest-physical addresses.
#[derive(Clone, Copy)]
pub(crate) struct Range {
    /// First byte.
    pub base: usize,
    /// Length in bytes.
    pub size: usize,
}

/// A virtio-MMIO slot, filled or not.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    /// Its registers and configuration space.
    pub registers: Range,
    /// INTID of its interrupt.
    pub intid: u32,
}

/// What the interrupt controller has beside its distributor, by its version.
#[derive(Clone, Copy)]
pub(crate) enum Gic {
    /// GICv2.
    V2 {
        /// Base of the CPU interface, each core's own at the same address.
        interface: usize,
    },
    /// GICv3.
    V3 {
        /// Base of the redistributor of the boot core.
        redistributor: usize,
    },
}

/// The machine.
pub(crate) struct Board {
    /// Main memory: the first range of the first memory node.
    pub memory: Range,
    /// Base of the first PL011.
    pub uart: usize,
    /// Base of the PL031, if there is one.
    pub rtc: Option<usize>,
    /// Base of the interrupt controller's distributor.
    pub gicd: usize,
    /// The rest of the interrupt controller.
    pub gic: Gic,
    /// All virtio-MMIO slots, by address.
    pub slots: Vec<Slot, 32>,
    /// The machine was made by sparkler, so its promises are checked too.
    pub is_sparkler: bool,
    /// Where the device tree itself lies.
    pub fdt: Range,
    arguments: &'static str,
}

impl Board {
    /// Reads the device tree at `address`; `None` if it is none, or names no UART, GIC or memory.
    ///
    /// # Safety
    ///
    /// `address` is what the boot protocol passed in x0.
    pub(crate) unsafe fn from_fdt(address: usize) -> Option<Self> {
        if address == 0 || !address.is_multiple_of(8) {
            return None;
        }
        // SAFETY: the boot protocol leaves a device tree there, for as long as we leave it alone.
        let fdt = unsafe { Fdt::from_raw(address as *const u8) }.ok()?;
        let root = fdt.root();
        let mut memory = None;
        let mut uart = None;
        let mut rtc = None;
        let mut gic = None;
        let mut slots: Vec<Slot, 32> = Vec::new();
        let mut arguments = "";
        for node in root.children() {
            if node.name_without_address() == "memory" && memory.is_none() {
                memory = range(node, 0);
            } else if node.name() == "chosen" {
                arguments = string(node, "bootargs").unwrap_or("");
            } else if node.is_compatible("arm,pl011") && uart.is_none() {
                uart = range(node, 0);
            } else if node.is_compatible("arm,pl031") {
                rtc = range(node, 0);
            } else if node.is_compatible("arm,gic-v3") {
                let redistributor = range(node, 1).map(|second| second.base);
                gic = redistributor
                    .zip(range(node, 0))
                    .map(|(redistributor, gicd)| (gicd.base, Gic::V3 { redistributor }));
            } else if node.is_compatible("arm,cortex-a15-gic") || node.is_compatible("arm,gic-400")
            {
                let interface = range(node, 1).map(|second| second.base);
                gic = interface
                    .zip(range(node, 0))
                    .map(|(interface, gicd)| (gicd.base, Gic::V2 { interface }));
            } else if node.is_compatible("virtio,mmio")
                && let (Some(registers), Some(spi)) = (range(node, 0), cell(node, "interrupts", 1))
            {
                let place = slots
                    .iter()
                    .position(|slot| slot.registers.base > registers.base)
                    .unwrap_or(slots.len());
                // Beyond the 32nd slot there is nothing this guest needs.
                let _ = slots.insert(place, Slot { registers, intid: spi + FIRST_SPI });
            }
        }
        let (gicd, gic) = gic?;
        Some(Self {
            memory: memory?,
            uart: uart?.base,
            rtc: rtc.map(|rtc| rtc.base),
            gicd,
            gic,
            slots,
            is_sparkler: root.is_compatible("sparkler,virt"),
            fdt: Range { base: address, size: fdt.data().len() },
            arguments,
        })
    }

    /// The first slot with a block device in it.
    pub(crate) fn disk(&self) -> Option<Slot> {
        self.slots.iter().copied().find(|slot| read32(slot.registers.base + DEVICE_ID) == BLOCK)
    }

    /// Whether `word` is among the boot arguments.
    pub(crate) fn has_argument(&self, word: &str) -> bool {
        self.arguments.split_ascii_whitespace().any(|argument| argument == word)
    }
}

fn range(node: FdtNode<'_>, index: usize) -> Option<Range> {
    let entry = node.reg().ok()??.nth(index)?;
    let base = entry.address::<u64>().ok()?;
    let size = entry.size::<u64>().ok()?;
    Some(Range { base: base as usize, size: size as usize })
}

fn string(node: FdtNode<'static>, name: &str) -> Option<&'static str> {
    let property = node.properties().find(|property| property.name() == name)?;
    property.value_as::<&'static str>().ok()
}

fn cell(node: FdtNode<'_>, name: &str, index: usize) -> Option<u32> {
    let property = node.property(name)?;
    let bytes = property.value().get(index * 4..index * 4 + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}
