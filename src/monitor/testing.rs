//! An operator of VMs that are not there.

use log::LevelFilter;

use super::*;
use crate::backend::clock::{Frequency, Ticks};
use crate::virtio::device::DeviceType;
use crate::virtio::histogram::Histogram;
use crate::virtio::limiter::{Limits, Rate};
use crate::virtio::{Adjustment, Status};
use crate::vm::{ExitCounts, Milestones};

/// Two VMs, `a` with a disk and `b-two` that crashed; two cores.
pub(crate) struct Fake {
    /// What was asked for.
    pub(crate) done: Vec<String>,
    pub(crate) log: Vec<u8>,
    pub(crate) refuse: Option<ActionError>,
}

impl Default for Fake {
    fn default() -> Self {
        Self { done: Vec::new(), log: b"[sparkler] one\n[sparkler] two\n".to_vec(), refuse: None }
    }
}

impl Fake {
    fn did(&mut self, what: String) -> Result<(), ActionError> {
        match self.refuse {
            Some(error) => Err(error),
            None => {
                self.done.push(what);
                Ok(())
            }
        }
    }

    fn name(vm: usize) -> &'static str {
        ["a", "b-two"][vm]
    }
}

impl Operator for Fake {
    fn vm(&self, vm: usize) -> Option<VmInfo<'_>> {
        let first = VmInfo {
            name: Self::name(0),
            state: VmState::Running,
            vcpus: 2,
            online: 1,
            memory: 256 << 20,
            cores: 0b11,
            restarts: 0,
        };
        match vm {
            0 => Some(first),
            1 => Some(VmInfo {
                name: Self::name(1),
                state: VmState::Crashed,
                vcpus: 1,
                online: 0,
                memory: 64 << 20,
                cores: 0b10,
                restarts: 12,
            }),
            _ => None,
        }
    }

    fn exits(&self, vm: usize, vcpu: usize) -> Option<ExitCounts> {
        Some(ExitCounts { calls: 10 * vm as u64 + vcpu as u64, ..ExitCounts::default() })
    }

    fn boot(&self, vm: usize) -> Option<Milestones> {
        let mut boot = Milestones::NONE;
        if vm == 0 {
            boot.begin(Ticks(625_000_000));
            boot.access(Ticks(625_000_125));
            boot.driver_ok(0, Ticks(625_062_500));
            boot.write(0, 123, Ticks(656_250_000));
        }
        Some(boot)
    }

    fn device(&self, vm: usize, slot: usize) -> Option<DeviceInfo> {
        (vm == 0 && slot == 0).then_some(DeviceInfo {
            kind: DeviceType::BLOCK,
            status: Status::DRIVER_OK,
            stuck: false,
            kicks: 900,
            interrupts: 800,
            requests: 1000,
            errors: 1,
            bytes_in: 4 << 20,
            bytes_out: 2048,
            latency: 2_500_000,
            latency_max: 62_500_000,
            latencies: {
                let mut latencies = Histogram::EMPTY;
                for ticks in [2000, 2500, 2500, 62_500_000] {
                    latencies.record(ticks);
                }
                latencies
            },
            limits: [
                Limits::default(),
                Limits {
                    bytes: Some(Rate { per_second: 1_000_000, burst: 65_536 }),
                    requests: None,
                },
            ],
            merged: 200,
            drops: {
                let mut drops = [("", 0); _];
                drops[0] = ("no buffer", 7);
                drops[1] = ("VLAN", 1);
                drops
            },
        })
    }

    fn uplink(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        for (name, count) in [("sent frames", 5), ("flooded", 0), ("dropped: no buffer", 2)] {
            visit(name, count);
        }
    }

    fn core(&self, core: usize) -> Option<CoreInfo> {
        match core {
            0 => Some(CoreInfo {
                affinity: 0,
                online: true,
                vcpus: 1,
                running: Some((0, 0)),
                switches: 0,
            }),
            1 => Some(CoreInfo {
                affinity: 0x100,
                online: false,
                vcpus: 2,
                running: None,
                switches: 77,
            }),
            _ => None,
        }
    }

    fn memory(&self) -> MemoryInfo {
        let mib = |mib: u64| mib << 20;
        MemoryInfo { total: mib(1024), guests: mib(320), pool: mib(16), pool_free: mib(8), free: 0 }
    }

    fn frequency(&self) -> Frequency {
        Frequency::new(62_500_000).unwrap()
    }

    fn log_written(&self) -> u64 {
        self.log.len() as u64
    }

    fn read_log(&self, position: u64, out: &mut [u8]) -> (usize, u64) {
        let rest = &self.log[position as usize..];
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        (count, position + count as u64)
    }

    fn set_log_level(&mut self, level: LevelFilter) {
        self.done.push(format!("log {level}"));
    }

    fn act(&mut self, vm: usize, action: Action) -> Result<(), ActionError> {
        self.did(format!("{} {action:?}", Self::name(vm)))
    }

    fn adjust(&mut self, vm: usize, slot: usize, change: Adjustment) -> Result<(), ActionError> {
        match (vm, slot) {
            (0, 0) => self.did(format!("{} {slot} {change:?}", Self::name(vm))),
            _ => Err(ActionError::NoSuchThing),
        }
    }

    fn attach(&mut self, vm: usize) -> Result<(), ActionError> {
        self.did(format!("attach {}", Self::name(vm)))
    }

    fn quit(&mut self) -> Result<(), ActionError> {
        self.did("quit".to_owned())
    }
}
