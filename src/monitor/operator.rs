//! What the monitor may look at and do.

use core::fmt;

use log::LevelFilter;

use super::command::Action;
use crate::backend::clock::Frequency;
use crate::virtio::device::DeviceType;
use crate::virtio::histogram::Histogram;
use crate::virtio::limiter::Limits;
use crate::virtio::{Adjustment, Direction, MmioTransport, NotAdjusted, Status};
use crate::vm::lifecycle::Request;
pub use crate::vm::lifecycle::State as VmState;
use crate::vm::{ExitCounts, Host, Milestones, Vm};

/// A VM at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmInfo<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is doing.
    pub state: VmState,
    /// vCPUs it has.
    pub vcpus: usize,
    /// vCPUs that its guest has turned on.
    pub online: usize,
    /// Its RAM in bytes.
    pub memory: u64,
    /// The board's cores that its vCPUs are on, one bit each.
    pub cores: u8,
    /// How often it was started again since the board was.
    pub restarts: u32,
}

impl VmInfo<'static> {
    /// What `vm` is doing.
    pub fn of(vm: &Vm<'_>) -> Self {
        Self {
            name: vm.name,
            state: vm.life.state(),
            vcpus: vm.vcpus.count(),
            online: vm.vcpus.count_on(),
            memory: vm.memory.regions().iter().map(|(_, memory)| memory.len() as u64).sum(),
            cores: vm.vcpus.cores(),
            restarts: vm.life.starts().saturating_sub(1),
        }
    }
}

/// What can be the reason for a frame's drop, and some more.
const MAX_DROPS: usize = 12;

/// A virtio device at a glance. Counters count from when the device was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The device type.
    pub kind: DeviceType,
    /// Whether the driver uses it, has not set it up, or must reset it.
    pub status: Status,
    /// Whether hardware behind it has been given up that may still reach the guest's memory.
    pub stuck: bool,
    /// Writes to QueueNotify.
    pub kicks: u64,
    /// Interrupts the guest was sent.
    pub interrupts: u64,
    /// Requests that were answered; of a network device, frames of both directions.
    pub requests: u64,
    /// Of these, those that failed; of a network device, frames that were dropped, but for those that
    /// the driver did not ask for.
    pub errors: u64,
    /// Bytes from the device to the guest.
    pub bytes_in: u64,
    /// Bytes from the guest to the device.
    pub bytes_out: u64,
    /// Ticks that requests answered by a back end took, together.
    pub latency: u64,
    /// Ticks that the longest of them took.
    pub latency_max: u64,
    /// How many took how long.
    pub latencies: Histogram,
    /// What it may do: to the guest, and from it.
    pub limits: [Limits; 2],
    /// Buffers given back to the driver without an interrupt of their own.
    pub merged: u64,
    /// Frames dropped, each with the reason; the rest is 0.
    pub drops: [(&'static str, u64); MAX_DROPS],
}

impl DeviceInfo {
    /// What `device` counts: a few words are copied, so that its lock is held for no longer.
    pub fn of(device: &MmioTransport<'_, '_>) -> Self {
        let mut info = Self {
            kind: device.device_type(),
            status: device.status(),
            stuck: !device.dma_stopped(),
            kicks: device.kicks(),
            interrupts: device.interrupts(),
            requests: 0,
            errors: 0,
            bytes_in: 0,
            bytes_out: 0,
            latency: 0,
            latency_max: 0,
            latencies: device.latencies().copied().unwrap_or_default(),
            limits: [device.limits(Direction::In), device.limits(Direction::Out)],
            merged: 0,
            drops: [("", 0); MAX_DROPS],
        };
        let mut drops = 0;
        device.statistics(&mut |name, value| {
            if let "requests" | "tx_frames" | "tx_bad_header" | "tx_bad_length" | "rx_buffers"
            | "commands" = name
            {
                info.merged = info.merged.wrapping_add(value);
            }
            let reason = name.strip_prefix("dropped: ").or_else(|| name.strip_prefix("tx_bad_"));
            if let (Some(reason), Some(place)) = (reason, info.drops.get_mut(drops))
                && value != 0
            {
                *place = (reason, value);
                drops += 1;
            }
            let counter = match name {
                "requests" | "tx_frames" | "rx_frames" | "tx_packets" | "rx_packets" => {
                    &mut info.requests
                }
                // Its filter does not want what is flooded to all.
                "dropped: filtered" => return,
                "errors" | "tx_bad_header" | "tx_bad_length" | "refused" => &mut info.errors,
                name if name.starts_with("dropped: ") => &mut info.errors,
                "bytes_read" | "rx_bytes" => &mut info.bytes_in,
                "bytes_written" | "tx_bytes" => &mut info.bytes_out,
                "latency" => &mut info.latency,
                "latency_max" => &mut info.latency_max,
                _ => return,
            };
            *counter = counter.wrapping_add(value);
        });
        info.merged = info.merged.saturating_sub(info.interrupts);
        info
    }

    /// The device type's name.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            DeviceType::NETWORK => "net",
            DeviceType::BLOCK => "block",
            DeviceType::CONSOLE => "console",
            DeviceType::ENTROPY => "entropy",
            DeviceType::BALLOON => "balloon",
            DeviceType::SOCKET => "socket",
            DeviceType::MEMORY => "memory",
            DeviceType::PMEM => "pmem",
            _ => "other",
        }
    }

    /// The state in a word.
    pub fn state_name(&self) -> &'static str {
        if self.stuck {
            "stuck"
        } else if self.status.contains(Status::DEVICE_NEEDS_RESET) {
            "broken"
        } else if self.status.contains(Status::DRIVER_OK) {
            "live"
        } else {
            "idle"
        }
    }
}

/// One of the board's cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreInfo {
    /// Its affinity: MPIDR_EL1 bits \[39:32\] and \[23:0\].
    pub affinity: u64,
    /// Whether it is at EL2 and takes part.
    pub online: bool,
    /// vCPUs that are assigned to it.
    pub vcpus: usize,
    /// The vCPU it runs, or ran last: number of its VM, and its own within.
    pub running: Option<(usize, usize)>,
    /// How often it has changed to another vCPU.
    pub switches: u64,
}

/// The board's memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryInfo {
    /// All RAM.
    pub total: u64,
    /// What the guests have.
    pub guests: u64,
    /// What EL2 has for tables, queues and the like.
    pub pool: u64,
    /// What of that is free.
    pub pool_free: u64,
    /// What nobody has.
    pub free: u64,
}

/// Why an action was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionError {
    /// The VM is in a state, or on its way to one, in which this has no meaning.
    WrongState(VmState),
    /// Whoever asked may not do this.
    Denied,
    /// The VM has no such device, or it has no such thing to change.
    NoSuchThing,
    /// That is more than it can be, or less.
    OutOfRange,
    /// There is something where this is to be.
    Occupied,
}

impl From<NotAdjusted> for ActionError {
    fn from(error: NotAdjusted) -> Self {
        match error {
            NotAdjusted::Unsupported => Self::NoSuchThing,
            NotAdjusted::OutOfRange => Self::OutOfRange,
            NotAdjusted::Occupied => Self::Occupied,
        }
    }
}

impl fmt::Display for ActionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongState(state) => write!(f, "it is {state}"),
            Self::Denied => f.write_str("not allowed"),
            Self::NoSuchThing => f.write_str("it has no such thing"),
            Self::OutOfRange => f.write_str("out of range"),
            Self::Occupied => f.write_str("eject first"),
        }
    }
}

impl Action {
    /// What is to be asked of a VM.
    pub const fn request(self) -> Request {
        match self {
            Self::Start => Request::Start,
            Self::Stop => Request::Stop,
            Self::Pause => Request::Pause,
            Self::Resume => Request::Resume,
            Self::Reset => Request::Reset,
        }
    }

    /// Asks `vm` for it; its home core does it.
    ///
    /// # Errors
    /// If that has no meaning for what `vm` is doing, or is about to.
    pub fn ask<H: Host>(self, vm: &Vm<'_>, host: &mut H) -> Result<(), ActionError> {
        vm.ask(self.request(), host).map_err(ActionError::WrongState)
    }
}

/// What the monitor works on. Snapshots are copies; the monitor holds no lock while it writes.
///
/// VMs, devices and cores are numbered from 0 without gaps: the first `None` is the end.
pub trait Operator {
    /// The VM of this number.
    fn vm(&self, vm: usize) -> Option<VmInfo<'_>>;
    /// The exits of a VM's vCPU.
    fn exits(&self, vm: usize, vcpu: usize) -> Option<ExitCounts>;
    /// What is known of a VM's last boot.
    fn boot(&self, vm: usize) -> Option<Milestones>;
    /// The device in a VM's virtio slot.
    fn device(&self, vm: usize, slot: usize) -> Option<DeviceInfo>;
    /// Counters of the switch's uplink, if there is one.
    fn uplink(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        let _ = visit;
    }
    /// The core of this number.
    fn core(&self, core: usize) -> Option<CoreInfo>;
    /// The board's memory.
    fn memory(&self) -> MemoryInfo;
    /// The frequency of the ticks in [`DeviceInfo`].
    fn frequency(&self) -> Frequency;
    /// How many bytes were ever logged.
    fn log_written(&self) -> u64;
    /// The log from `position` on, or from the oldest byte that is kept, into `out`: how many bytes,
    /// and the position after them. None once there is no more.
    fn read_log(&self, position: u64, out: &mut [u8]) -> (usize, u64);
    /// Logs from this level up from now on.
    fn set_log_level(&mut self, level: LevelFilter);
    /// Begins an action; it may end later.
    ///
    /// # Errors
    /// If it is not begun.
    fn act(&mut self, vm: usize, action: Action) -> Result<(), ActionError>;
    /// Changes the device in a VM's virtio slot.
    ///
    /// # Errors
    /// If nothing is changed.
    fn adjust(&mut self, vm: usize, slot: usize, change: Adjustment) -> Result<(), ActionError>;
    /// Gives the terminal to a VM.
    ///
    /// # Errors
    /// If that may not be.
    fn attach(&mut self, vm: usize) -> Result<(), ActionError>;
    /// Gives the terminal back to the guests.
    ///
    /// # Errors
    /// If that may not be.
    fn quit(&mut self) -> Result<(), ActionError>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::HostRam;
    use crate::virtio::testing::guest_memory;
    use crate::virtio::{Context, VirtioDevice};

    struct Counting(&'static [(&'static str, u64)]);

    impl<'m> VirtioDevice<'m> for Counting {
        fn device_type(&self) -> DeviceType {
            DeviceType::NETWORK
        }

        fn queue_max_sizes(&self) -> &[u16] {
            &[4]
        }

        fn queue_notified(&mut self, _index: u16, _context: &mut Context<'_, 'm>) {}

        fn statistics(&self, visit: &mut dyn FnMut(&'static str, u64)) {
            for &(name, value) in self.0 {
                visit(name, value);
            }
        }
    }

    fn info(counters: &'static [(&'static str, u64)]) -> DeviceInfo {
        let ram = HostRam::new(0x1000);
        let mut device = Counting(counters);
        DeviceInfo::of(&MmioTransport::new(&mut device, guest_memory(&ram)))
    }

    fn seen(counters: &'static [(&'static str, u64)]) -> [u64; 4] {
        let info = info(counters);
        [info.requests, info.errors, info.bytes_in, info.bytes_out]
    }

    #[test]
    fn a_disks_counters_are_shown_as_they_are() {
        let disk = [("requests", 5), ("errors", 1), ("bytes_read", 512), ("bytes_written", 1024)];
        assert_eq!(seen(Box::leak(Box::new(disk))), [5, 1, 512, 1024]);
    }

    #[test]
    fn frames_of_both_directions_and_what_was_dropped_of_them_are_summed_up() {
        let net = [
            ("tx_frames", 5),
            ("tx_bytes", 300),
            ("tx_bad_header", 1),
            ("tx_bad_length", 2),
            ("rx_frames", 7),
            ("rx_buffers", 9),
            ("rx_bytes", 420),
            ("sent frames", 5),
            ("dropped: source address", 4),
            ("dropped: filtered", 100),
            ("dropped: no buffer", 8),
        ];
        let net = Box::leak(Box::new(net));
        assert_eq!(seen(net), [12, 15, 420, 300]);
        let info = info(net);
        // What was sent, in whatever way it ended, and what was filled.
        assert_eq!(info.merged, 5 + 1 + 2 + 9);
        let drops = [
            ("header", 1),
            ("length", 2),
            ("source address", 4),
            ("filtered", 100),
            ("no buffer", 8),
        ];
        assert_eq!((&info.drops[..5], info.drops[5]), (&drops[..], ("", 0)));
    }
}
