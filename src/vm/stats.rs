//! What a vCPU's exits were for.

use core::fmt;

/// Exits by kind since the VM was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounts {
    /// Hypercalls: HVC, and SMC, which is trapped.
    pub calls: u64,
    /// Accesses to emulated devices other than virtio and the interrupt controller.
    pub mmio: u64,
    /// Reads of virtio registers.
    pub virtio_reads: u64,
    /// Writes to virtio registers other than QueueNotify.
    pub virtio_writes: u64,
    /// Writes to QueueNotify.
    pub kicks: u64,
    /// Accesses to the distributor and the redistributors.
    pub gic: u64,
    /// Trapped system registers.
    pub system_registers: u64,
    /// Physical interrupts.
    pub interrupts: u64,
    /// Physical interrupts that said "poll"; several may come in one exit, so they are not added to
    /// the total.
    pub doorbells: u64,
    /// WFI and WFE.
    pub waits: u64,
    /// Exits that ended in an exception for the guest.
    pub faults: u64,
}

impl ExitCounts {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.calls
            + self.mmio
            + self.virtio_reads
            + self.virtio_writes
            + self.kicks
            + self.gic
            + self.system_registers
            + self.interrupts
            + self.waits
            + self.faults
    }
}

impl fmt::Display for ExitCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "call={} mmio={} virtio_read={} virtio_write={} kick={} gic={} sysreg={} irq={} doorbell={} wfx={} \
             fault={} total={}",
            self.calls,
            self.mmio,
            self.virtio_reads,
            self.virtio_writes,
            self.kicks,
            self.gic,
            self.system_registers,
            self.interrupts,
            self.doorbells,
            self.waits,
            self.faults,
            self.total()
        )
    }
}
