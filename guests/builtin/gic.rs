//! The interrupt controller as a guest uses it. A GICv3 (Arm IHI 0069): distributor, redistributors,
//! CPU interface by system registers, group 1 only. A GICv2 (Arm IHI 0048): distributor, CPU interface
//! in memory, group 0 only. EOImode 0.

use crate::board::{Board, Gic};
use crate::console::line;
use crate::mmio::{read8, read32, write8, write32, write64};
use crate::{report, timer};
use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// GICD_CTLR.
pub(crate) const GICD_CTLR: usize = 0x0000;
/// GICD_TYPER.
pub(crate) const GICD_TYPER: usize = 0x0004;
/// GICD_ISENABLER0; GICR_ISENABLER0 is as far from SGI_base.
pub(crate) const ISENABLER: usize = 0x0100;
/// GICD_ICENABLER0.
pub(crate) const ICENABLER: usize = 0x0180;
/// GICD_ISPENDR0.
pub(crate) const ISPENDR: usize = 0x0200;
/// GICD_ICPENDR0.
pub(crate) const ICPENDR: usize = 0x0280;
/// GICD_ISACTIVER0.
pub(crate) const ISACTIVER: usize = 0x0300;
/// GICD_IPRIORITYR0, a byte an INTID.
pub(crate) const IPRIORITYR: usize = 0x0400;
/// GICD_ITARGETSR0, a byte an INTID; GICv2.
pub(crate) const ITARGETSR: usize = 0x0800;
/// GICD_IROUTER0, 64 bits an INTID; GICv3.
pub(crate) const IROUTER: usize = 0x6000;
/// GICD_PIDR2 and GICR_PIDR2; ArchRev in bits 7:4.
pub(crate) const PIDR2: usize = 0xffe8;
/// ICPIDR2 of a GICv2's distributor.
pub(crate) const PIDR2_V2: usize = 0x0fe8;
/// GICC_IIDR; the architecture's version in bits 19:16.
pub(crate) const GICC_IIDR: usize = 0x00fc;
/// GICR_TYPER.
pub(crate) const GICR_TYPER: usize = 0x0008;

const IGROUPR: usize = 0x0080;
const ICFGR: usize = 0x0c00;
const GICR_WAKER: usize = 0x0014;
/// GICR_WAKER.ProcessorSleep and .ChildrenAsleep.
const PROCESSOR_SLEEP: u32 = 1 << 1;
const CHILDREN_ASLEEP: u32 = 1 << 2;
/// From RD_base to SGI_base.
const SGI_BASE: usize = 0x1_0000;
/// From a redistributor to the next: two frames of 64 KiB.
const REDISTRIBUTOR: usize = 0x2_0000;
/// GICD_CTLR.ARE and .EnableGrp1.
const ARE_AND_GROUP_1: u32 = 1 << 4 | 1 << 1;
/// GICD_CTLR.EnableGrp0 and GICC_CTLR.EnableGrp0 of a GICv2.
const GROUP_0: u32 = 1 << 0;
/// GICD_SGIR.
const SGIR: usize = 0x0f00;
const GICC_CTLR: usize = 0x0000;
const GICC_PMR: usize = 0x0004;
const GICC_BPR: usize = 0x0008;
const GICC_IAR: usize = 0x000c;
/// GICC_EOIR.
pub(crate) const GICC_EOIR: usize = 0x0010;
const GICC_DIR: usize = 0x1000;
/// GICC_CTLR.EOImode.
const EOI_MODE: u32 = 1 << 9;
/// The INTID in GICC_IAR; above it is the sender of an SGI.
const INTID: u32 = 0x3ff;
/// No interrupt to acknowledge.
const SPURIOUS: u32 = 1020;

/// The priority interrupts are given unless a check wants another.
pub(crate) const DEFAULT_PRIORITY: u8 = 0xa0;

/// The distributor.
static GICD: AtomicUsize = AtomicUsize::new(0);
/// The CPU interface of a GICv2; 0 with a GICv3.
static GICC: AtomicUsize = AtomicUsize::new(0);

/// The INTIDs taken since [`forget`], in order.
static LOG: [AtomicU32; 32] = [const { AtomicU32::new(0) }; 32];
static TAKEN: AtomicU32 = AtomicU32::new(0);
/// Times the timer's handler leaves its condition as it is.
static KEEP_TIMER: AtomicU32 = AtomicU32::new(0);
/// The virtio device whose interrupt the handler acknowledges, and what it said.
static DEVICE: AtomicUsize = AtomicUsize::new(0);
static DEVICE_INTID: AtomicU32 = AtomicU32::new(u32::MAX);
static DEVICE_CAUSES: AtomicU32 = AtomicU32::new(0);

/// More than any check causes: something does not stop asking.
const STORM: u32 = 20_000;

/// This core's affinity as PSCI and ICC_SGI1R_EL1 take it (MPIDR_EL1 without its flags).
pub(crate) fn affinity() -> u64 {
    let mpidr: u64;
    // SAFETY: a register read.
    unsafe { asm!("mrs {}, mpidr_el1", out(reg) mpidr, options(nomem, nostack)) };
    mpidr & 0xff_00ff_ffff
}

/// What GICD_CTLR is set to: the groups used, on.
pub(crate) fn controls(board: &Board) -> u32 {
    match board.gic {
        Gic::V2 { .. } => GROUP_0,
        Gic::V3 { .. } => ARE_AND_GROUP_1,
    }
}

/// Brings up the distributor and this core's part; unmasks interrupts.
pub(crate) fn start(board: &Board) {
    GICD.store(board.gicd, Ordering::Relaxed);
    if let Gic::V2 { interface } = board.gic {
        GICC.store(interface, Ordering::Relaxed);
    }
    write32(board.gicd + GICD_CTLR, controls(board));
    start_core(private(board, 0));
    enable(board, timer::INTID, false);
    enable(board, 1, true);
    unmask();
}

fn gicc() -> usize {
    GICC.load(Ordering::Relaxed)
}

/// The frame with the registers of the private interrupts of the `core`th core: a GICv3 has one for each,
/// a GICv2 shows every core its own at the same addresses.
pub(crate) fn private(board: &Board, core: usize) -> usize {
    match board.gic {
        Gic::V2 { .. } => board.gicd,
        Gic::V3 { redistributor } => redistributor + core * REDISTRIBUTOR + SGI_BASE,
    }
}

/// Brings up this core's redistributor or CPU interface, once [`start`] was called on the first core.
/// `frame` is that of its private interrupts.
pub(crate) fn start_core(frame: usize) {
    let gicc = gicc();
    if gicc != 0 {
        write32(gicc + GICC_BPR, 0);
        write32(gicc + GICC_PMR, 0xf8);
        write32(gicc + GICC_CTLR, GROUP_0);
        // SAFETY: the same as the vectors there are, but for interrupts.
        unsafe {
            asm!("adrp {0}, vectors_v2", "add {0}, {0}, :lo12:vectors_v2", "msr vbar_el1, {0}",
                "isb", out(reg) _, options(nostack));
        }
        return;
    }
    let waker = frame - SGI_BASE + GICR_WAKER;
    write32(waker, read32(waker) & !PROCESSOR_SLEEP);
    timer::wait(100, || read32(waker) & CHILDREN_ASLEEP == 0);
    write32(frame + IGROUPR, u32::MAX);
    // SAFETY: our own CPU interface, before interrupts are unmasked.
    unsafe {
        asm!(
            "msr icc_sre_el1, {one}", "isb",
            "msr icc_bpr1_el1, xzr",
            "msr icc_pmr_el1, {all}",
            "msr icc_igrpen1_el1, {one}", "isb",
            one = in(reg) 1u64, all = in(reg) 0xf8u64, options(nostack)
        );
    }
}

/// Gives `intid` to this core at the default priority, edge-triggered or level-sensitive.
pub(crate) fn enable(board: &Board, intid: u32, edge: bool) {
    let (base, word, bit) = bank(board, intid);
    write8(base + IPRIORITYR + intid as usize, DEFAULT_PRIORITY);
    if intid >= 32 {
        match board.gic {
            // A uniprocessor's has no targets, and ignores that.
            Gic::V2 { .. } => write8(base + ITARGETSR + intid as usize, own_targets() as u8),
            Gic::V3 { .. } => {
                let group = base + IGROUPR + word;
                write32(group, read32(group) | bit);
                write64(base + IROUTER + 8 * intid as usize, affinity());
            }
        }
        let trigger = base + ICFGR + intid as usize / 16 * 4;
        let field = 2 << (intid % 16 * 2);
        let others = read32(trigger) & !field;
        write32(trigger, if edge { others | field } else { others });
    }
    write32(base + ISENABLER + word, bit);
}

/// The frame that holds `intid`, the offset of its word in a one-bit array, and its bit.
pub(crate) fn bank(board: &Board, intid: u32) -> (usize, usize, u32) {
    let base = if intid < 32 { private(board, 0) } else { board.gicd };
    (base, intid as usize / 32 * 4, 1 << (intid % 32))
}

/// This core in the target list of an SGI, one bit, among the cores of its cluster: what its private
/// GICD_ITARGETSR0 says (0 if it is the only one), or the lowest affinity.
pub(crate) fn own_targets() -> u64 {
    if gicc() != 0 {
        return read8(GICD.load(Ordering::Relaxed) + ITARGETSR).into();
    }
    1 << (affinity() & 0xf)
}

/// A software-generated interrupt.
#[derive(Clone, Copy)]
pub(crate) struct Sgi {
    /// GICD_SGIR of a GICv2; 0 for ICC_SGI1R_EL1.
    register: usize,
    value: u64,
}

impl Sgi {
    /// `intid` for the cores whose bits are set in `targets`, in the cluster with affinity 0.
    pub(crate) fn to(targets: u64, intid: u64) -> Self {
        match gicc() {
            0 => Self { register: 0, value: targets | intid << 24 },
            _ => {
                Self { register: GICD.load(Ordering::Relaxed) + SGIR, value: targets << 16 | intid }
            }
        }
    }

    /// Sends it.
    #[inline]
    pub(crate) fn send(self) {
        if self.register != 0 {
            return write32(self.register, self.value as u32);
        }
        // SAFETY: sends an interrupt that the handler below takes.
        unsafe { asm!("msr icc_sgi1r_el1, {}", "isb", in(reg) self.value, options(nostack)) };
    }
}

/// Sends SGI `intid` to this core.
#[inline]
pub(crate) fn send_to_self(intid: u64) {
    if gicc() != 0 {
        // TargetListFilter: the sender alone.
        return write32(GICD.load(Ordering::Relaxed) + SGIR, 2 << 24 | intid as u32);
    }
    let me = affinity();
    let to = (me >> 32 & 0xff) << 48 | (me >> 16 & 0xff) << 32 | (me >> 8 & 0xff) << 16;
    let value = to | intid << 24 | 1 << (me & 0xf);
    // SAFETY: sends an interrupt that the handler below takes.
    unsafe { asm!("msr icc_sgi1r_el1, {}", "isb", in(reg) value, options(nostack)) };
}

/// ICC_PMR_EL1, GICC_PMR: only priorities above (numerically below) `mask` are signalled.
pub(crate) fn set_priority_mask(mask: u8) {
    if gicc() != 0 {
        return write32(gicc() + GICC_PMR, mask.into());
    }
    // SAFETY: our own CPU interface.
    unsafe { asm!("msr icc_pmr_el1, {}", "isb", in(reg) u64::from(mask), options(nostack)) };
}

/// EOImode of ICC_CTLR_EL1, GICC_CTLR: whether the end of an interrupt only drops the priority, and
/// [`deactivate`] is needed.
pub(crate) fn set_end_mode(split: bool) {
    if gicc() != 0 {
        return write32(gicc() + GICC_CTLR, if split { GROUP_0 | EOI_MODE } else { GROUP_0 });
    }
    // SAFETY: our own CPU interface.
    unsafe { asm!("msr icc_ctlr_el1, {}", "isb", in(reg) u64::from(split) << 1, options(nostack)) };
}

/// Acknowledges what is pending without taking it, and drops its priority; the INTID. For callers that
/// have interrupts masked.
pub(crate) fn acknowledge_and_drop() -> u32 {
    fn by<I: Interface>() -> u32 {
        // SAFETY: barriers.
        unsafe { asm!("dsb sy", "isb", options(nostack)) };
        let word = I::acknowledge();
        I::end(word);
        word
    }
    if gicc() != 0 { by::<MemoryMapped>() & INTID } else { by::<SystemRegisters>() }
}

/// Deactivates `intid`, with EOImode 1.
pub(crate) fn deactivate(intid: u32) {
    if gicc() != 0 {
        return write32(gicc() + GICC_DIR, intid);
    }
    // SAFETY: our own CPU interface.
    unsafe { asm!("msr icc_dir_el1, {}", "isb", in(reg) u64::from(intid), options(nostack)) };
}

/// PSTATE.I = 0.
#[inline]
pub(crate) fn unmask() {
    // SAFETY: the handler is in place before anything is enabled.
    unsafe { asm!("msr daifclr, #2", "isb", options(nostack)) };
}

/// PSTATE.I = 1.
#[inline]
pub(crate) fn mask() {
    // SAFETY: masks interrupts.
    unsafe { asm!("msr daifset, #2", "isb", options(nostack)) };
}

/// Sleeps until `done`, which an interrupt makes true. Only in [`timer::bounded`] or with the timer
/// set, because there is no other way out.
#[inline]
pub(crate) fn sleep_until(mut done: impl FnMut() -> bool) {
    loop {
        mask();
        if done() {
            break;
        }
        // SAFETY: an interrupt that is pending but masked ends it, so none is missed.
        unsafe { asm!("wfi", options(nostack)) };
        unmask();
    }
    unmask();
}

/// Sleeps until `done`, with interrupts masked, so that what is pending stays so. The timer must be
/// set, because there may be no other way out.
pub(crate) fn doze_until(mut done: impl FnMut() -> bool) {
    mask();
    while !done() {
        // SAFETY: an interrupt that is pending but masked ends it.
        unsafe { asm!("wfi", options(nostack)) };
    }
}

/// Starts a new log.
#[inline]
pub(crate) fn forget() {
    TAKEN.store(0, Ordering::Relaxed);
    DEVICE_CAUSES.store(0, Ordering::Relaxed);
}

/// Interrupts taken since [`forget`].
#[inline]
pub(crate) fn taken() -> u32 {
    TAKEN.load(Ordering::Relaxed)
}

/// The INTID taken as number `index` since [`forget`].
pub(crate) fn taken_at(index: usize) -> u32 {
    LOG[index % LOG.len()].load(Ordering::Relaxed)
}

/// Leaves the timer's condition in place `times` times, as a level that stays asserted.
pub(crate) fn keep_timer(times: u32) {
    KEEP_TIMER.store(times, Ordering::Relaxed);
}

/// The handler reads and acknowledges InterruptStatus of the device at `base` from now on.
pub(crate) fn serve_device(board: &Board, base: usize, intid: u32) {
    DEVICE.store(base, Ordering::Relaxed);
    DEVICE_INTID.store(intid, Ordering::Relaxed);
    enable(board, intid, true);
}

/// InterruptStatus bits acknowledged since [`forget`].
pub(crate) fn device_causes() -> u32 {
    DEVICE_CAUSES.load(Ordering::Relaxed)
}

/// A CPU interface, by how it is reached.
pub(crate) trait Interface {
    /// Acknowledges the most urgent interrupt: its INTID, with the sender above it if it is a GICv2's SGI.
    fn acknowledge() -> u32;
    /// Ends an interrupt, named as when it was acknowledged.
    fn end(word: u32);
}

/// ICC_IAR1_EL1 and ICC_EOIR1_EL1.
pub(crate) struct SystemRegisters;

impl Interface for SystemRegisters {
    #[inline(always)]
    fn acknowledge() -> u32 {
        let intid: u64;
        // SAFETY: our own CPU interface.
        unsafe { asm!("mrs {}, icc_iar1_el1", "dsb sy", out(reg) intid, options(nostack)) };
        intid as u32
    }

    #[inline(always)]
    fn end(word: u32) {
        // SAFETY: ends what was acknowledged.
        unsafe { asm!("msr icc_eoir1_el1, {}", "isb", in(reg) u64::from(word), options(nostack)) };
    }
}

/// GICC_IAR and GICC_EOIR.
pub(crate) struct MemoryMapped;

impl Interface for MemoryMapped {
    #[inline(always)]
    fn acknowledge() -> u32 {
        read32(gicc() + GICC_IAR)
    }

    #[inline(always)]
    fn end(word: u32) {
        // The device has to have withdrawn its interrupt first.
        // SAFETY: a barrier.
        unsafe { asm!("dsb sy", options(nostack)) };
        write32(gicc() + GICC_EOIR, word);
    }
}

/// Takes one interrupt.
#[inline(always)]
pub(crate) fn interrupt<I: Interface>() {
    let word = I::acknowledge();
    let intid = word & INTID;
    if intid >= SPURIOUS {
        return;
    }
    let number = TAKEN.load(Ordering::Relaxed);
    TAKEN.store(number + 1, Ordering::Relaxed);
    LOG[number as usize % LOG.len()].store(intid, Ordering::Relaxed);
    if intid == timer::INTID {
        timer_expired();
    } else if intid == DEVICE_INTID.load(Ordering::Relaxed) {
        let base = DEVICE.load(Ordering::Relaxed);
        let causes = read32(base + 0x60);
        write32(base + 0x64, causes);
        DEVICE_CAUSES.store(DEVICE_CAUSES.load(Ordering::Relaxed) | causes, Ordering::Relaxed);
    }
    if number > STORM {
        line!("\nINTID ", intid, " does not stop");
        report::abandon();
    }
    I::end(word);
}

fn timer_expired() {
    if timer::watchdog_armed() {
        line!("FAILED: timed out");
        report::abandon();
    }
    let keep = KEEP_TIMER.load(Ordering::Relaxed);
    if keep == 0 {
        timer::stop();
    } else {
        KEEP_TIMER.store(keep - 1, Ordering::Relaxed);
    }
}
