//! The board, as its device tree describes it.

use super::check;
use super::error::{BoardError, NodePath};
use super::modules::{self, Module};
use super::node::{Interrupt, Place, StringList};
use super::tree::Tree;
use crate::memory::{Pa, PaRange, RamMap};

/// Ranges of memory a board can have.
pub const MAX_MEMORY: usize = 8;
/// Reserved ranges a board can have.
pub const MAX_RESERVED: usize = 32;
/// Cores that are used; a board's further ones are left alone.
pub const MAX_CPUS: usize = 16;
/// Redistributor regions a GICv3 can have.
pub const MAX_REDISTRIBUTOR_REGIONS: usize = 4;
/// virtio-mmio slots that are looked at; a board's further ones are left alone.
pub const MAX_VIRTIO_SLOTS: usize = 32;

/// What a board has, as far as its device tree says so and in a form that was understood.
#[derive(Clone, Debug)]
pub struct Board<'a> {
    /// `compatible` of the root node.
    pub compatible: StringList<'a>,
    /// RAM, as the tree lists it. At least one range, none empty.
    pub memory: heapless::Vec<PaRange, MAX_MEMORY>,
    /// Ranges that are spoken for: `/memreserve/` entries and `/reserved-memory`.
    pub reserved: heapless::Vec<PaRange, MAX_RESERVED>,
    /// The cores, in the tree's order.
    pub cpus: heapless::Vec<Cpu, MAX_CPUS>,
    /// How PSCI calls reach the firmware; `None` if it has no PSCI.
    pub psci: Option<Conduit>,
    /// The interrupt controller, if it is a GICv2 or GICv3.
    pub gic: Option<Gic>,
    /// The generic timer.
    pub timer: Option<Timer>,
    /// The UART `/chosen/stdout-path` names, or else the first PL011.
    pub console: Option<Uart<'a>>,
    /// A PL031 real-time clock.
    pub rtc: Option<PaRange>,
    /// virtio-mmio slots in ascending order of address, whether or not a device is in them.
    pub virtio: heapless::Vec<VirtioSlot, MAX_VIRTIO_SLOTS>,
    /// Boot modules in ascending order of address.
    pub modules: heapless::Vec<Module<'a>, { modules::MAX_MODULES }>,
    /// `/chosen/bootargs`: the hypervisor's own arguments.
    pub bootargs: &'a str,
    /// `/chosen/linux,initrd-start` and `-end`: a ramdisk given as if to a plain kernel.
    pub initrd: Option<PaRange>,
    /// The tree it was read from, for what is read later.
    pub(super) tree: Tree<'a>,
}

/// How calls reach the firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// The SMC instruction.
    Smc,
    /// The HVC instruction.
    Hvc,
}

/// A core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its affinity, as in `MPIDR_EL1`: bits \[39:32\] and \[23:0\].
    pub mpidr: u64,
    /// How it is started.
    pub enable: CpuEnable,
}

/// How a core is started (`enable-method`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuEnable {
    /// PSCI CPU_ON, or not said.
    Psci,
    /// Its entry address is written here, then SEV.
    SpinTable(Pa),
    /// Some other way.
    Unknown,
}

/// The interrupt controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gic {
    /// GICv2, such as GIC-400.
    V2 {
        /// GICD.
        distributor: PaRange,
        /// GICC.
        cpu_interface: PaRange,
        /// GICH, if it has the virtualization extensions.
        hypervisor: Option<PaRange>,
        /// GICV, if it has the virtualization extensions.
        virtual_cpu: Option<PaRange>,
        /// The maintenance interrupt.
        maintenance: Option<Interrupt>,
    },
    /// GICv3 or GICv4.
    V3 {
        /// GICD.
        distributor: PaRange,
        /// GICR: regions with the cores' redistributors in a row.
        redistributors: heapless::Vec<PaRange, MAX_REDISTRIBUTOR_REGIONS>,
        /// The maintenance interrupt.
        maintenance: Option<Interrupt>,
    },
}

/// The generic timer's interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    /// EL1 physical timer in secure state.
    pub secure_physical: Option<Interrupt>,
    /// EL1 physical timer (CNTP).
    pub physical: Option<Interrupt>,
    /// Virtual timer (CNTV).
    pub virtual_timer: Option<Interrupt>,
    /// EL2 physical timer (CNTHP).
    pub hypervisor: Option<Interrupt>,
}

/// A UART.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uart<'a> {
    /// What it is.
    pub compatible: StringList<'a>,
    /// Its registers.
    pub registers: PaRange,
    /// Its interrupt, if it goes to the GIC.
    pub interrupt: Option<Interrupt>,
}

impl Uart<'_> {
    /// Whether it is a PL011 or has a PL011's data and flag registers.
    pub fn is_pl011(&self) -> bool {
        self.compatible.contains("arm,pl011") || self.compatible.contains("arm,sbsa-uart")
    }
}

/// A virtio-mmio slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioSlot {
    /// Its registers and configuration space.
    pub registers: PaRange,
    /// Its interrupt, if it goes to the GIC.
    pub interrupt: Option<Interrupt>,
    /// Whether its DMA sees the caches.
    pub coherent: bool,
}

impl<'a> Board<'a> {
    /// Reads the device tree in `blob`, which is at `address` (for messages) and may have other
    /// bytes behind it.
    ///
    /// Devices that cannot be understood are left out; only what would be dangerous to
    /// misunderstand - the tree's structure, memory, reservations, modules - is an error.
    ///
    /// # Errors
    /// See [`BoardError`].
    pub fn read(blob: &'a [u8], address: Pa) -> Result<Self, BoardError<'a>> {
        let tree = check::checked(blob, address)?;
        let root = Place::root(tree);
        let mut board = Self {
            compatible: root.compatible(),
            memory: heapless::Vec::new(),
            reserved: heapless::Vec::new(),
            cpus: heapless::Vec::new(),
            psci: None,
            gic: None,
            timer: None,
            console: None,
            rtc: None,
            virtio: heapless::Vec::new(),
            modules: heapless::Vec::new(),
            bootargs: "",
            initrd: None,
            tree,
        };
        board.read_memory(&root)?;
        for range in tree.reservations() {
            board.reserve(range)?;
        }
        root.at("reserved-memory", &mut |node| board.read_reserved(node)).transpose()?;
        root.at("cpus", &mut |node| board.read_cpus(node));
        root.at("chosen", &mut |node| board.read_chosen(&root, node)).transpose()?;
        board.read_devices(&root);
        board.console = board.console.or_else(|| named_console(&root, gic_phandle(&root)));
        board.console = board.console.or_else(|| first_pl011(&root, gic_phandle(&root)));
        Ok(board)
    }

    /// The RAM nobody uses: memory less what the tree reserves, the modules and ramdisk it names,
    /// and `taken` - the hypervisor's image, the tree itself.
    ///
    /// # Errors
    /// [`BoardError::TooMany`].
    pub fn free_ram(&self, taken: &[PaRange]) -> Result<RamMap, BoardError<'a>> {
        let too_many = |_| BoardError::TooMany {
            what: "separate pieces of free memory",
            limit: crate::memory::ram::MAX_FREE_RANGES,
        };
        let mut map = RamMap::from_ranges(&self.memory, &self.reserved).map_err(too_many)?;
        let modules = self.modules.iter().map(|module| &module.range);
        for range in modules.chain(&self.initrd).chain(taken) {
            map.reserve(*range).map_err(too_many)?;
        }
        Ok(map)
    }

    fn reserve(&mut self, range: PaRange) -> Result<(), BoardError<'a>> {
        let full = BoardError::TooMany { what: "reserved ranges", limit: MAX_RESERVED };
        if range.is_empty() {
            return Ok(());
        }
        self.reserved.push(range).map_err(|_| full)
    }

    fn read_memory(&mut self, root: &Place<'_, 'a>) -> Result<(), BoardError<'a>> {
        let mut result = Ok(());
        let cells = root.cells_below();
        root.for_each_child(|node| {
            if node.text("device_type") != Some("memory") || !node.is_enabled() {
                return;
            }
            let path = NodePath::new("", node.name());
            let Some(ranges) = node.reg_in(cells) else {
                result = Err(BoardError::BadNode { node: path, reason: "reg is not understood" });
                return;
            };
            for range in ranges.filter(|range| !range.is_empty()) {
                if range.base.checked_add(range.len).is_none() {
                    let reason = "memory passes the end of the address space";
                    result = Err(BoardError::BadNode { node: path, reason });
                } else if self.memory.push(range).is_err() {
                    let (what, limit) = ("ranges of memory", MAX_MEMORY);
                    result = Err(BoardError::TooMany { what, limit });
                }
            }
        });
        result?;
        if self.memory.is_empty() { Err(BoardError::NoMemory) } else { Ok(()) }
    }

    fn read_reserved(&mut self, parent: &Place<'_, 'a>) -> Result<(), BoardError<'a>> {
        let mut result = Ok(());
        let cells = parent.cells_below();
        parent.for_each_child(|node| {
            // Without reg it is a wish for memory anywhere, addressed to an operating system.
            if node.value("reg").is_none() || !node.is_enabled() || result.is_err() {
                return;
            }
            let path = NodePath::new("/reserved-memory", node.name());
            result = match node.reg_in(cells) {
                Some(mut ranges) => ranges.try_for_each(|range| self.reserve(range)),
                None => Err(BoardError::BadNode { node: path, reason: "reg is not understood" }),
            };
        });
        result
    }

    fn read_cpus(&mut self, parent: &Place<'_, 'a>) {
        let cells = parent.cells_below();
        parent.for_each_child(|node| {
            if node.text("device_type") != Some("cpu") || node.text("status") == Some("fail") {
                return;
            }
            let Some(id) = node.reg_in(cells).and_then(|mut reg| reg.next()) else {
                return;
            };
            let enable = match (node.text("enable-method"), node.number("cpu-release-addr")) {
                (None | Some("psci"), _) => CpuEnable::Psci,
                (Some("spin-table"), Some(address)) => CpuEnable::SpinTable(Pa::new(address)),
                _ => CpuEnable::Unknown,
            };
            // The cores that do not fit are simply not used.
            let _ = self.cpus.push(Cpu { mpidr: id.base.raw(), enable });
        });
    }

    fn read_chosen(
        &mut self,
        root: &Place<'_, 'a>,
        chosen: &Place<'_, 'a>,
    ) -> Result<(), BoardError<'a>> {
        self.bootargs = chosen.text("bootargs").unwrap_or("");
        let (start, end) = (chosen.number("linux,initrd-start"), chosen.number("linux,initrd-end"));
        if let (Some(start), Some(end)) = (start, end)
            && start < end
        {
            self.initrd = Some(PaRange::new(start, end - start));
        }
        self.modules = modules::read(root, chosen)?;
        Ok(())
    }

    fn read_devices(&mut self, root: &Place<'_, 'a>) {
        let gic = gic_phandle(root);
        root.for_each_below(&mut |node| {
            let compatible = node.compatible();
            let is = |wanted| compatible.contains(wanted);
            if is("arm,psci-1.0") || is("arm,psci-0.2") || is("arm,psci") {
                self.psci = self.psci.or(match node.text("method") {
                    Some("smc") => Some(Conduit::Smc),
                    Some("hvc") => Some(Conduit::Hvc),
                    _ => None,
                });
            } else if gic_version(compatible).is_some() {
                if self.gic.is_none() {
                    self.gic = read_gic(node, gic);
                }
            } else if is("arm,armv8-timer") {
                self.timer = self.timer.or(Some(Timer {
                    secure_physical: node.interrupt(0, gic),
                    physical: node.interrupt(1, gic),
                    virtual_timer: node.interrupt(2, gic),
                    hypervisor: node.interrupt(3, gic),
                }));
            } else if is("arm,pl031") {
                self.rtc = self.rtc.or_else(|| node.reg(0));
            } else if is("virtio,mmio") {
                let Some(registers) = node.reg(0) else { return };
                let coherent = node.value("dma-coherent").is_some();
                let interrupt = node.interrupt(0, gic);
                // The slots that do not fit are simply not looked at.
                let _ = self.virtio.push(VirtioSlot { registers, interrupt, coherent });
            }
        });
        super::sort_by_address(&mut self.virtio, |slot| slot.registers.base);
    }
}

/// 2 or 3, if it is a GIC that can serve virtual machines.
fn gic_version(compatible: StringList<'_>) -> Option<u8> {
    compatible.iter().find_map(|name| match name {
        "arm,gic-v3" => Some(3),
        "arm,gic-400" | "arm,cortex-a15-gic" | "arm,cortex-a7-gic" => Some(2),
        _ => None,
    })
}

/// The `phandle` by which devices name the GIC.
fn gic_phandle(root: &Place<'_, '_>) -> Option<u64> {
    let mut phandle = None;
    root.for_each_below(&mut |node| {
        if phandle.is_none() && gic_version(node.compatible()).is_some() {
            phandle = node.number("phandle");
        }
    });
    phandle
}

fn read_gic(node: &Place<'_, '_>, phandle: Option<u64>) -> Option<Gic> {
    let distributor = node.reg(0)?;
    // A GIC's own interrupt is its own, whatever it says its parent is.
    let maintenance = node.interrupt(0, phandle);
    if gic_version(node.compatible()) == Some(2) {
        return Some(Gic::V2 {
            distributor,
            cpu_interface: node.reg(1)?,
            hypervisor: node.reg(2),
            virtual_cpu: node.reg(3),
            maintenance,
        });
    }
    let regions = node.number("#redistributor-regions").unwrap_or(1);
    let regions = usize::try_from(regions).ok()?.min(MAX_REDISTRIBUTOR_REGIONS);
    let redistributors = (0..regions).map_while(|index| node.reg(1 + index)).collect();
    Some(Gic::V3 { distributor, redistributors, maintenance })
}

/// The UART that `/chosen/stdout-path` names by path or alias; options behind a colon are ignored.
fn named_console<'a>(root: &Place<'_, 'a>, gic: Option<u64>) -> Option<Uart<'a>> {
    let stdout = root.at("chosen", &mut |chosen| chosen.text("stdout-path"))??;
    let name = stdout.split(':').next()?;
    let path = match name.strip_prefix('/') {
        Some(path) => path,
        None => root.at("aliases", &mut |aliases| aliases.text(name))??.strip_prefix('/')?,
    };
    root.at(path, &mut |node| read_uart(node, gic))?
}

fn first_pl011<'a>(root: &Place<'_, 'a>, gic: Option<u64>) -> Option<Uart<'a>> {
    let mut first = None;
    root.for_each_below(&mut |node| {
        if first.is_none() && node.compatible().contains("arm,pl011") {
            first = read_uart(node, gic);
        }
    });
    first
}

fn read_uart<'a>(node: &Place<'_, 'a>, gic: Option<u64>) -> Option<Uart<'a>> {
    Some(Uart {
        compatible: node.compatible(),
        registers: node.reg(0)?,
        interrupt: node.interrupt(0, gic),
    })
}

#[cfg(test)]
mod tests;
