//! The device tree a guest gets: a `virt`-like board, with the devices its configuration names.

use super::writer::{FdtWriter, WriteError};
use crate::memory::Ipa;

/// Bytes that are enough for the tree of a guest with 32 virtio slots and 8 vCPUs, and kernel
/// arguments of 2 KiB.
pub const GUEST_FDT_LEN: usize = 16 << 10;

/// A guest's board. Every address is one the guest sees.
#[derive(Clone, Copy, Debug)]
pub struct GuestTree<'a> {
    /// RAM: address and length in bytes.
    pub memory: &'a [(Ipa, u64)],
    /// A vCPU each: its affinity, as in `MPIDR_EL1` bits \[39:32\] and \[23:0\].
    pub cpus: &'a [u64],
    /// Kernel arguments; empty for none.
    pub bootargs: &'a str,
    /// Where the ramdisk is, if there is one: address and length in bytes.
    pub initrd: Option<(Ipa, u64)>,
    /// The interrupt controller.
    pub gic: GuestGic,
    /// PL011, the console (SPI 1), if there is one.
    pub uart: Option<Ipa>,
    /// PL031 (SPI 2), if there is one.
    pub rtc: Option<Ipa>,
    /// Generic watchdog (SPI 10), if there is one.
    pub watchdog: Option<GuestWatchdog>,
    /// Boot timer, if there is one.
    pub boot_timer: Option<Ipa>,
    /// virtio-mmio slots.
    pub virtio: &'a [GuestSlot],
}

/// A generic watchdog's frames, 4 KiB each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestWatchdog {
    /// The control frame.
    pub control: Ipa,
    /// The refresh frame.
    pub refresh: Ipa,
}

/// A guest's interrupt controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestGic {
    /// GICv2: a distributor of 64 KiB, and 8 KiB of CPU interface.
    V2 {
        /// GICD.
        distributor: Ipa,
        /// GICC.
        cpu_interface: Ipa,
    },
    /// GICv3: a distributor of 64 KiB, and 128 KiB a vCPU for the redistributors.
    V3 {
        /// GICD.
        distributor: Ipa,
        /// GICR of the first vCPU.
        redistributors: Ipa,
    },
}

/// A virtio-mmio slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestSlot {
    /// Its registers.
    pub base: Ipa,
    /// Their length in bytes.
    pub len: u64,
    /// Its interrupt, an edge-triggered SPI: 32 or more.
    pub intid: u32,
}

const GIC_PHANDLE: u32 = 1;
const CLOCK_PHANDLE: u32 = 2;

/// Kinds and flags of interrupts in the GIC's binding.
const SPI: u32 = 0;
const PPI: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;

const FIRST_SPI: u32 = 32;
const UART_SPI: u32 = 1;
const RTC_SPI: u32 = 2;
const WATCHDOG_SPI: u32 = 10;
/// Secure physical, physical, virtual and hypervisor timer.
const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

const GIC_FRAME_LEN: u64 = 0x1_0000;
const GICC_LEN: u64 = 0x2000;
const REDISTRIBUTOR_LEN: u64 = 0x2_0000;
const PRIMECELL_LEN: u64 = 0x1000;
const BOOT_TIMER_LEN: u64 = 0x1000;
const WATCHDOG_FRAME_LEN: u64 = 0x1000;
const PRIMECELL_CLOCK_HZ: u32 = 24_000_000;

impl GuestTree<'_> {
    /// Writes the tree into `buffer` and says how many bytes it takes.
    ///
    /// # Errors
    /// [`WriteError::Full`] if the buffer is too small, [`WriteError::Text`] if the arguments have
    /// a zero byte inside.
    pub fn write(&self, buffer: &mut [u8]) -> Result<usize, WriteError> {
        let mut fdt = FdtWriter::new(buffer, &[])?;
        fdt.begin_node("")?;
        fdt.u32("#address-cells", 2)?;
        fdt.u32("#size-cells", 2)?;
        fdt.strs("compatible", &["sparkler,virt", "linux,dummy-virt"])?;
        fdt.str("model", "sparkler,virt")?;
        fdt.u32("interrupt-parent", GIC_PHANDLE)?;
        self.write_chosen(&mut fdt)?;
        for (base, len) in self.memory {
            fdt.begin_node(format_args!("memory@{:x}", base.raw()))?;
            fdt.str("device_type", "memory")?;
            fdt.u64s("reg", &[base.raw(), *len])?;
            fdt.end_node()?;
        }
        self.write_cpus(&mut fdt)?;
        self.write_timer(&mut fdt)?;
        self.write_gic(&mut fdt)?;
        self.write_primecells(&mut fdt)?;
        if let Some(GuestWatchdog { control, refresh }) = self.watchdog {
            fdt.begin_node(format_args!("watchdog@{:x}", control.raw()))?;
            fdt.str("compatible", "arm,sbsa-gwdt")?;
            let (control, refresh) = (control.raw(), refresh.raw());
            fdt.u64s("reg", &[control, WATCHDOG_FRAME_LEN, refresh, WATCHDOG_FRAME_LEN])?;
            fdt.cells("interrupts", &[SPI, WATCHDOG_SPI, LEVEL_HIGH])?;
            fdt.end_node()?;
        }
        if let Some(at) = self.boot_timer {
            fdt.begin_node(format_args!("boot-timer@{:x}", at.raw()))?;
            fdt.str("compatible", "sparkler,boot-timer")?;
            fdt.u64s("reg", &[at.raw(), BOOT_TIMER_LEN])?;
            fdt.end_node()?;
        }
        for slot in self.virtio {
            fdt.begin_node(format_args!("virtio_mmio@{:x}", slot.base.raw()))?;
            fdt.str("compatible", "virtio,mmio")?;
            fdt.u64s("reg", &[slot.base.raw(), slot.len])?;
            fdt.cells("interrupts", &[SPI, slot.intid.saturating_sub(FIRST_SPI), EDGE_RISING])?;
            fdt.empty("dma-coherent")?;
            fdt.end_node()?;
        }
        fdt.end_node()?;
        fdt.finish()
    }

    fn write_chosen(&self, fdt: &mut FdtWriter<'_>) -> Result<(), WriteError> {
        if let Some(uart) = self.uart {
            fdt.begin_node("aliases")?;
            fdt.formatted("serial0", format_args!("/pl011@{:x}", uart.raw()))?;
            fdt.end_node()?;
        }
        fdt.begin_node("chosen")?;
        if let Some(uart) = self.uart {
            fdt.formatted("stdout-path", format_args!("/pl011@{:x}", uart.raw()))?;
        }
        if !self.bootargs.is_empty() {
            fdt.str("bootargs", self.bootargs)?;
        }
        if let Some((start, len)) = self.initrd {
            fdt.u64("linux,initrd-start", start.raw())?;
            fdt.u64("linux,initrd-end", start.raw().saturating_add(len))?;
        }
        fdt.end_node()
    }

    fn write_cpus(&self, fdt: &mut FdtWriter<'_>) -> Result<(), WriteError> {
        fdt.begin_node("cpus")?;
        fdt.u32("#address-cells", 2)?;
        fdt.u32("#size-cells", 0)?;
        for mpidr in self.cpus {
            fdt.begin_node(format_args!("cpu@{mpidr:x}"))?;
            fdt.str("device_type", "cpu")?;
            fdt.str("compatible", "arm,armv8")?;
            fdt.u64("reg", *mpidr)?;
            fdt.str("enable-method", "psci")?;
            fdt.end_node()?;
        }
        fdt.end_node()?;
        fdt.begin_node("psci")?;
        fdt.strs("compatible", &["arm,psci-1.0", "arm,psci-0.2"])?;
        fdt.str("method", "hvc")?;
        fdt.end_node()
    }

    fn write_timer(&self, fdt: &mut FdtWriter<'_>) -> Result<(), WriteError> {
        // GICv2's binding wants the cores a private interrupt goes to in bits 15:8.
        let cores = match self.gic {
            GuestGic::V2 { .. } => ((1 << self.cpus.len().min(8)) - 1) << 8,
            GuestGic::V3 { .. } => 0,
        };
        let mut interrupts = [0; TIMER_PPIS.len() * 3];
        for (cells, ppi) in interrupts.as_chunks_mut().0.iter_mut().zip(TIMER_PPIS) {
            *cells = [PPI, ppi, LEVEL_HIGH | cores];
        }
        fdt.begin_node("timer")?;
        fdt.str("compatible", "arm,armv8-timer")?;
        fdt.cells("interrupts", &interrupts)?;
        fdt.empty("always-on")?;
        fdt.end_node()
    }

    fn write_gic(&self, fdt: &mut FdtWriter<'_>) -> Result<(), WriteError> {
        match self.gic {
            GuestGic::V2 { distributor, cpu_interface } => {
                fdt.begin_node(format_args!("intc@{:x}", distributor.raw()))?;
                fdt.str("compatible", "arm,cortex-a15-gic")?;
                let (distributor, cpu_interface) = (distributor.raw(), cpu_interface.raw());
                fdt.u64s("reg", &[distributor, GIC_FRAME_LEN, cpu_interface, GICC_LEN])?;
            }
            GuestGic::V3 { distributor, redistributors } => {
                fdt.begin_node(format_args!("intc@{:x}", distributor.raw()))?;
                fdt.str("compatible", "arm,gic-v3")?;
                let len = REDISTRIBUTOR_LEN * self.cpus.len() as u64;
                let (distributor, redistributors) = (distributor.raw(), redistributors.raw());
                fdt.u64s("reg", &[distributor, GIC_FRAME_LEN, redistributors, len])?;
                fdt.u32("#redistributor-regions", 1)?;
            }
        }
        fdt.u32("#interrupt-cells", 3)?;
        fdt.u32("#address-cells", 0)?;
        fdt.empty("interrupt-controller")?;
        fdt.u32("phandle", GIC_PHANDLE)?;
        fdt.end_node()
    }

    fn write_primecells(&self, fdt: &mut FdtWriter<'_>) -> Result<(), WriteError> {
        fdt.begin_node("apb-pclk")?;
        fdt.str("compatible", "fixed-clock")?;
        fdt.u32("#clock-cells", 0)?;
        fdt.u32("clock-frequency", PRIMECELL_CLOCK_HZ)?;
        fdt.str("clock-output-names", "clk24mhz")?;
        fdt.u32("phandle", CLOCK_PHANDLE)?;
        fdt.end_node()?;
        if let Some(uart) = self.uart {
            fdt.begin_node(format_args!("pl011@{:x}", uart.raw()))?;
            fdt.strs("compatible", &["arm,pl011", "arm,primecell"])?;
            fdt.u64s("reg", &[uart.raw(), PRIMECELL_LEN])?;
            fdt.cells("interrupts", &[SPI, UART_SPI, LEVEL_HIGH])?;
            fdt.cells("clocks", &[CLOCK_PHANDLE, CLOCK_PHANDLE])?;
            fdt.strs("clock-names", &["uartclk", "apb_pclk"])?;
            fdt.end_node()?;
        }
        if let Some(rtc) = self.rtc {
            fdt.begin_node(format_args!("pl031@{:x}", rtc.raw()))?;
            fdt.strs("compatible", &["arm,pl031", "arm,primecell"])?;
            fdt.u64s("reg", &[rtc.raw(), PRIMECELL_LEN])?;
            fdt.cells("interrupts", &[SPI, RTC_SPI, LEVEL_HIGH])?;
            fdt.u32("clocks", CLOCK_PHANDLE)?;
            fdt.str("clock-names", "apb_pclk")?;
            fdt.end_node()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use dtoolkit::fdt::Fdt;
    use dtoolkit::{Node, Property};

    use super::*;
    use crate::fdt::{Board, Conduit, CpuEnable, Gic, Interrupt, Trigger};
    use crate::memory::{Pa, PaRange};

    const CPUS: [u64; 8] = [0, 1, 2, 3, 0x100, 0x101, 0x102, 1 << 32];

    const MEMORY: [(Ipa, u64); 2] =
        [(Ipa::new(0x4000_0000), 1 << 30), (Ipa::new(0x1_0000_0000), 2 << 20)];

    fn slots() -> Vec<GuestSlot> {
        let slot = |n: u32| GuestSlot {
            base: Ipa::new(0x0f00_0000 + u64::from(n) * 0x1000),
            len: 0x1000,
            intid: 48 + n,
        };
        (0..32).map(slot).collect()
    }

    fn tree<'a>(slots: &'a [GuestSlot], bootargs: &'a str) -> GuestTree<'a> {
        GuestTree {
            memory: &MEMORY,
            cpus: &CPUS,
            bootargs,
            initrd: Some((Ipa::new(0x4800_0000), 0x1234)),
            gic: GuestGic::V3 {
                distributor: Ipa::new(0x0800_0000),
                redistributors: Ipa::new(0x080a_0000),
            },
            uart: Some(Ipa::new(0x0900_0000)),
            rtc: Some(Ipa::new(0x0901_0000)),
            watchdog: Some(GuestWatchdog {
                control: Ipa::new(0x090e_0000),
                refresh: Ipa::new(0x090f_0000),
            }),
            boot_timer: Some(Ipa::new(0x090d_0000)),
            virtio: slots,
        }
    }

    fn written(tree: &GuestTree<'_>) -> Vec<u8> {
        let mut buffer = vec![0xee; GUEST_FDT_LEN];
        let size = tree.write(&mut buffer).unwrap();
        buffer.truncate(size);
        buffer
    }

    #[test]
    fn our_own_reader_finds_the_board_that_was_written() {
        let slots = slots();
        let blob = written(&tree(&slots, "console=ttyAMA0 root=/dev/vda"));
        let board = Board::read(&blob, Pa::new(0)).unwrap();
        let level = |intid| Some(Interrupt { intid, trigger: Trigger::Level });
        let memory = [PaRange::new(0x4000_0000, 1 << 30), PaRange::new(0x1_0000_0000, 2 << 20)];
        assert_eq!(board.memory, memory);
        assert_eq!(board.cpus.iter().map(|cpu| cpu.mpidr).collect::<Vec<_>>(), CPUS);
        assert!(board.cpus.iter().all(|cpu| cpu.enable == CpuEnable::Psci));
        assert_eq!(board.psci, Some(Conduit::Hvc));
        assert_eq!(
            board.gic,
            Some(Gic::V3 {
                distributor: PaRange::new(0x0800_0000, 0x1_0000),
                redistributors: [PaRange::new(0x080a_0000, 8 * 0x2_0000)].into_iter().collect(),
                maintenance: None,
            })
        );
        let timer = board.timer.unwrap();
        assert_eq!((timer.secure_physical, timer.physical), (level(29), level(30)));
        assert_eq!((timer.virtual_timer, timer.hypervisor), (level(27), level(26)));
        let console = board.console.unwrap();
        assert_eq!(console.registers, PaRange::new(0x0900_0000, 0x1000));
        assert_eq!(console.interrupt, level(33));
        assert_eq!(board.rtc, Some(PaRange::new(0x0901_0000, 0x1000)));
        assert_eq!(board.bootargs, "console=ttyAMA0 root=/dev/vda");
        assert_eq!(board.initrd, Some(PaRange::new(0x4800_0000, 0x1234)));
        assert_eq!(board.virtio.len(), 32);
        for (found, slot) in board.virtio.iter().zip(&slots) {
            assert_eq!(found.registers, PaRange::new(slot.base.raw(), slot.len));
            let interrupt = Interrupt { intid: slot.intid, trigger: Trigger::Edge };
            assert_eq!(found.interrupt, Some(interrupt));
            assert!(found.coherent);
        }
    }

    #[test]
    fn a_strict_reader_finds_the_nodes_linux_needs() {
        let slots = slots();
        let blob = written(&tree(&slots, "quiet"));
        let fdt = Fdt::new(&blob).unwrap();
        let text = |path: &str, name: &str| {
            let node = fdt.find_node(path).unwrap();
            let value = node.property(name).unwrap().value().to_vec();
            String::from_utf8(value).unwrap()
        };
        assert_eq!(text("/", "compatible"), "sparkler,virt\0linux,dummy-virt\0");
        assert_eq!(text("/chosen", "stdout-path"), "/pl011@9000000\0");
        assert_eq!(text("/aliases", "serial0"), "/pl011@9000000\0");
        assert_eq!(text("/psci", "compatible"), "arm,psci-1.0\0arm,psci-0.2\0");
        assert_eq!(text("/cpus/cpu@100", "enable-method"), "psci\0");
        assert_eq!(text("/pl011@9000000", "clock-names"), "uartclk\0apb_pclk\0");
        let phandle = |path: &str| {
            let node = fdt.find_node(path).unwrap();
            node.property("phandle").unwrap().value().to_vec()
        };
        let uart = fdt.find_node("/pl011@9000000").unwrap();
        let clocks = uart.property("clocks").unwrap().value().to_vec();
        assert_eq!(clocks, phandle("/apb-pclk").repeat(2));
        let root = fdt.root();
        let parent = root.property("interrupt-parent").unwrap().value().to_vec();
        assert_eq!(parent, phandle("/intc@8000000"));
        assert!(fdt.find_node("/timer").unwrap().property("always-on").is_some());
        // Control frame first, as the driver wants them.
        let watchdog = fdt.find_node("/watchdog@90e0000").unwrap();
        let frames = watchdog.property("reg").unwrap().value().to_vec();
        let frames: Vec<u64> =
            frames.as_chunks().0.iter().map(|cells| u64::from_be_bytes(*cells)).collect();
        assert_eq!(frames, [0x090e_0000, 0x1000, 0x090f_0000, 0x1000]);
        let interrupts = watchdog.property("interrupts").unwrap().value().to_vec();
        assert_eq!(interrupts, [0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 4]);
    }

    #[test]
    fn a_gicv2_guest_gets_its_two_frames_and_the_cores_of_its_private_interrupts() {
        let gic = GuestGic::V2 {
            distributor: Ipa::new(0x0800_0000),
            cpu_interface: Ipa::new(0x0801_0000),
        };
        let blob = written(&GuestTree { gic, cpus: &CPUS[..2], ..tree(&[], "") });
        let board = Board::read(&blob, Pa::new(0)).unwrap();
        assert_eq!(
            board.gic,
            Some(Gic::V2 {
                distributor: PaRange::new(0x0800_0000, 0x1_0000),
                cpu_interface: PaRange::new(0x0801_0000, 0x2000),
                hypervisor: None,
                virtual_cpu: None,
                maintenance: None,
            })
        );
        let fdt = Fdt::new(&blob).unwrap();
        let timer = fdt.find_node("/timer").unwrap();
        let first = timer.property("interrupts").unwrap().value()[..12].to_vec();
        assert_eq!(first, [0, 0, 0, 1, 0, 0, 0, 13, 0, 0, 3, 4]);
    }

    #[test]
    fn what_a_guest_does_not_have_is_not_there() {
        let tree =
            GuestTree { uart: None, rtc: None, watchdog: None, initrd: None, ..tree(&[], "") };
        let blob = written(&tree);
        let board = Board::read(&blob, Pa::new(0)).unwrap();
        assert_eq!((board.console, board.rtc, board.initrd), (None, None, None));
        assert_eq!(board.bootargs, "");
        assert!(board.virtio.is_empty());
        let fdt = Fdt::new(&blob).unwrap();
        assert!(fdt.find_node("/chosen").unwrap().property("bootargs").is_none());
        assert!(fdt.find_node("/watchdog@90e0000").is_none());
    }

    #[test]
    fn the_length_given_is_enough_for_long_arguments_and_less_is_an_error() {
        let slots = slots();
        let bootargs = "x".repeat(2048);
        let tree = tree(&slots, &bootargs);
        let size = written(&tree).len();
        let mut buffer = vec![0; size - 1];
        assert_eq!(tree.write(&mut buffer), Err(WriteError::Full));
        let bad = GuestTree { bootargs: "a\0b", ..tree };
        assert_eq!(bad.write(&mut [0; GUEST_FDT_LEN]), Err(WriteError::Text));
    }
}
