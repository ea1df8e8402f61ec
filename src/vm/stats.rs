//! What a vCPU's exits were for. Each is counted once, where it is served.

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
    /// Trapped system registers, those the guest does not have included.
    pub system_registers: u64,
    /// Physical interrupts.
    pub interrupts: u64,
    /// Physical interrupts that said "poll"; several may come in one exit, so they are not added to
    /// the total.
    pub doorbells: u64,
    /// WFI and WFE.
    pub waits: u64,
    /// Accesses that nobody answers and instructions that are not there: an exception for the guest.
    pub faults: u64,
}

impl ExitCounts {
    /// None yet.
    pub const NONE: Self = Self {
        calls: 0,
        mmio: 0,
        virtio_reads: 0,
        virtio_writes: 0,
        kicks: 0,
        gic: 0,
        system_registers: 0,
        interrupts: 0,
        doorbells: 0,
        waits: 0,
        faults: 0,
    };

    /// Adds those of another vCPU.
    pub fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.mmio += other.mmio;
        self.virtio_reads += other.virtio_reads;
        self.virtio_writes += other.virtio_writes;
        self.kicks += other.kicks;
        self.gic += other.gic;
        self.system_registers += other.system_registers;
        self.interrupts += other.interrupts;
        self.doorbells += other.doorbells;
        self.waits += other.waits;
        self.faults += other.faults;
    }

    /// All of them but [`Self::doorbells`]: the exits.
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
            "call={} mmio={} virtio_read={} virtio_write={} kick={} gic={} sysreg={} irq={} \
             doorbell={} wfx={} fault={} total={}",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_every_kind_and_their_sum() {
        let counts = ExitCounts {
            calls: 1,
            mmio: 20,
            virtio_reads: 300,
            virtio_writes: 4000,
            kicks: 50_000,
            gic: 600_000,
            system_registers: 7_000_000,
            interrupts: 80_000_000,
            // Not in the sum: they come in interrupts.
            doorbells: 55_555,
            waits: 900_000_000,
            faults: 1_000_000_000,
        };
        assert_eq!(
            counts.to_string(),
            "call=1 mmio=20 virtio_read=300 virtio_write=4000 kick=50000 gic=600000 \
             sysreg=7000000 irq=80000000 doorbell=55555 wfx=900000000 fault=1000000000 \
             total=1987654321"
        );
    }
}
