//! What docs/conformance.md says of the disk and its transport, seen from the guest: registers and
//! memory, as any driver sees them.
#![cfg(not(target_os = "none"))]
// Lints for code that serves guests; a test may fail loudly.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod block;
mod device;
#[path = "../../examples/guest/mod.rs"]
mod guest;
mod hostile;
mod packed;
mod split;

use std::ops::Range;

use guest::{BUFFERS, Driver, QUEUE_SIZE, RAM, RAM_SIZE, Registers};
use sparkler::backend::clock::Ticks;
use sparkler::backend::ram::RamDisk;
use sparkler::memory::{HostRam, Pa};
use sparkler::virtio::devices::block::{Block, FLUSH};
use sparkler::virtio::{Features, MmioTransport, Width, WriteOutcome};

const SECTOR: usize = 512;
const SECTORS: usize = 64;
const NOW: Ticks = Ticks(0);

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH_CACHE: u32 = 4;
const GET_ID: u32 = 8;

const STATUS: u64 = BUFFERS + 0x800;
const DATA: u64 = BUFFERS + 0x1000;
/// The used ring, `avail_event` included.
const USED_RING: Range<u64> = RAM + 0x2000..RAM + 0x2000 + 6 + 8 * QUEUE_SIZE as u64;

/// A device behind its registers, and what has been heard of it.
struct Machine<'d, 'm> {
    device: MmioTransport<'d, 'm>,
    interrupts: usize,
}

impl Machine<'_, '_> {
    fn poll(&mut self) {
        self.device.poll(NOW);
        self.interrupts += usize::from(self.device.take_interrupt());
    }

    fn run_to_idle(&mut self) {
        for _ in 0..1000 {
            if !self.device.has_work_in_flight() {
                return;
            }
            self.poll();
        }
        panic!("the device never comes to rest");
    }
}

impl Registers for Machine<'_, '_> {
    fn read(&mut self, offset: u16) -> u32 {
        self.device.read(offset, Width::Word) as u32
    }

    fn write(&mut self, offset: u16, value: u32) {
        for _ in 0..1000 {
            let outcome = self.device.write(offset, Width::Word, value.into(), NOW);
            self.interrupts += usize::from(self.device.take_interrupt());
            if outcome == WriteOutcome::Done {
                return;
            }
            self.poll();
        }
        panic!("the store at {offset:#x} never ends");
    }
}

/// A disk of 64 sectors, a guest, and the device between them.
macro_rules! disk {
    ($ram:ident, $storage:ident, $driver:ident, $machine:ident $(, $change:ident)?) => {
        let $ram = HostRam::new(RAM_SIZE);
        let $storage = HostRam::new(SECTORS * SECTOR);
        let mut disk = RamDisk::new($storage.slice(Pa::new(0)), *b"conformance\0\0\0\0\0\0\0\0\0")
            $(.$change())?;
        let mut block = Block::new(&mut disk);
        #[allow(unused)]
        let mut $driver = Driver::new(guest::memory(&$ram));
        let device = MmioTransport::new(&mut block, guest::memory(&$ram));
        #[allow(unused)]
        let mut $machine = Machine { device, interrupts: 0 };
    };
}

use disk;

/// All of RAM.
fn snapshot(driver: &Driver<'_>) -> Vec<u8> {
    driver.get(RAM, RAM_SIZE)
}

/// Puts a request of `data` (address, length, writable) into the queue at descriptor 0.
fn offer(driver: &mut Driver<'_>, (kind, sector): (u32, u64), data: &[(u64, u32, bool)]) {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    driver.put(BUFFERS, &header);
    driver.put(STATUS, &[0xFF]);
    let mut chain = vec![(BUFFERS, 16, false)];
    chain.extend(data);
    chain.push((STATUS, 1, true));
    driver.offer(0, &chain);
}

/// A request from beginning to end: its status and used length.
fn request(
    machine: &mut Machine<'_, '_>,
    driver: &mut Driver<'_>,
    request: (u32, u64),
    data: &[(u64, u32, bool)],
) -> (u8, u32) {
    offer(driver, request, data);
    driver.ring(machine);
    machine.run_to_idle();
    let (head, used) = driver.used().expect("an answer");
    assert_eq!(head, 0);
    (driver.get(STATUS, 1)[0], used)
}
