//! sparkler's devices as a library, in a program of one's own: here the smallest virtual machine
//! monitor there can be, on a host, with a guest that is played by a function.
//!
//! The program brings three things:
//! - guest memory, as [`GuestMemory`](sparkler::memory::GuestMemory): where the guest believes its
//!   RAM to be, and where it is;
//! - back ends: a disk, here one in memory. Any [`BlockBackend`] will do;
//! - an interrupt sink: whatever [`MmioTransport::take_interrupt`] is to be passed on to.
//!
//! And it calls: [`MmioTransport::read`] and [`MmioTransport::write`] when the guest accesses the
//! device's page, [`MmioTransport::poll`] while the transport says that something is in flight.
//!
//! `cargo run --example host_vmm`

mod guest;

use guest::{BUFFERS, Driver, RAM_SIZE, Registers};
use sparkler::backend::block::BlockBackend;
use sparkler::backend::clock::Ticks;
use sparkler::backend::ram::RamDisk;
use sparkler::memory::{HostRam, Pa};
use sparkler::virtio::devices::block::{Block, FLUSH};
use sparkler::virtio::{Features, MmioTransport, Width, WriteOutcome};

/// Sectors of the disk, and bytes in one.
const SECTORS: usize = 64;
const SECTOR: usize = 512;

/// Where a machine's interrupts go. A hypervisor would make one pending in its interrupt
/// controller, KVM would have an eventfd written.
#[derive(Default)]
struct InterruptSink {
    raised: usize,
}

impl InterruptSink {
    fn raise(&mut self) {
        self.raised += 1;
    }
}

/// A machine with one device.
struct Machine<'d, 'm> {
    device: MmioTransport<'d, 'm>,
    interrupts: InterruptSink,
    time: u64,
}

impl Machine<'_, '_> {
    /// After whatever was done to the device: its interrupt is passed on.
    fn after_work(&mut self) {
        if self.device.take_interrupt() {
            self.interrupts.raise();
        }
    }

    /// Polls the device until it has nothing more in flight. A real machine does this at every exit
    /// and on a timer, not in a loop.
    fn run_to_idle(&mut self) {
        while self.device.has_work_in_flight() {
            self.time += 1;
            self.device.poll(Ticks(self.time));
            self.after_work();
        }
    }
}

/// What the guest's loads and stores in the device's page come to.
impl Registers for Machine<'_, '_> {
    fn read(&mut self, offset: u16) -> u32 {
        self.device.read(offset, Width::Word) as u32
    }

    fn write(&mut self, offset: u16, value: u32) {
        // A store that cannot be done yet is executed again, as a vCPU does that is resumed at the
        // same instruction.
        loop {
            let now = Ticks(self.time);
            let outcome = self.device.write(offset, Width::Word, value.into(), now);
            self.after_work();
            match outcome {
                WriteOutcome::Done => return,
                WriteOutcome::Retry => self.run_to_idle(),
            }
        }
    }
}

/// Request types of the block device (5.2.6).
const READ: u32 = 0;
const WRITE: u32 = 1;
const GET_ID: u32 = 8;
const SYNC: u32 = 4;

/// Where the guest puts its requests: header, data, status.
const DATA: u64 = BUFFERS + 0x1000;
const STATUS: u64 = BUFFERS + 0x800;

/// The guest's driver sends one request of `len` bytes of data and waits for it: status and used
/// length.
fn request(
    machine: &mut Machine<'_, '_>,
    driver: &mut Driver<'_>,
    (kind, sector): (u32, u64),
    len: u32,
) -> (u8, u32) {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    driver.put(BUFFERS, &header);
    driver.put(STATUS, &[0xFF]);
    let mut chain = vec![(BUFFERS, 16, false)];
    if len != 0 {
        chain.push((DATA, len, kind != WRITE));
    }
    chain.push((STATUS, 1, true));
    driver.offer(0, &chain);
    driver.ring(machine);
    // The request is in flight, and the guest could do something else.
    machine.run_to_idle();
    driver.acknowledge(machine);
    let Some((_, used)) = driver.used() else { return (0xFF, 0) };
    (driver.get(STATUS, 1).first().copied().unwrap_or(0xFF), used)
}

/// The guest: writes a sector, makes it durable, reads it back, and asks for the disk's name.
fn guest_main(machine: &mut Machine<'_, '_>, driver: &mut Driver<'_>) {
    driver.start(machine, FLUSH | Features::EVENT_IDX);
    let capacity = machine.read(0x100);
    println!("disk: {capacity} sectors");
    assert_eq!(capacity as usize, SECTORS);

    driver.put(DATA, &[0x5A; SECTOR]);
    assert_eq!(request(machine, driver, (WRITE, 7), SECTOR as u32), (0, 1));
    driver.set_used_event(1);
    assert_eq!(request(machine, driver, (SYNC, 0), 0), (0, 1));
    driver.put(DATA, &[0; SECTOR]);
    driver.set_used_event(2);
    assert_eq!(request(machine, driver, (READ, 7), SECTOR as u32), (0, SECTOR as u32 + 1));
    assert_eq!(driver.get(DATA, SECTOR), [0x5A; SECTOR]);
    // This one is not worth an interrupt to the driver.
    driver.set_used_event(100);
    assert_eq!(request(machine, driver, (GET_ID, 0), 20), (0, 21));
    println!("name: {}", String::from_utf8_lossy(&driver.get(DATA, 13)));
    // Past the end: an error, and nothing happens.
    assert_eq!(request(machine, driver, (READ, SECTORS as u64), SECTOR as u32), (1, 0));
}

fn main() {
    // Guest memory, and a disk.
    let ram = HostRam::new(RAM_SIZE);
    let storage = HostRam::new(SECTORS * SECTOR);
    let mut disk = RamDisk::new(storage.slice(Pa::new(0)), *b"sparkler disk\0\0\0\0\0\0\0");
    println!("back end: {} sectors", disk.info().sectors);

    // The device, behind its registers.
    let mut block = Block::new(&mut disk);
    let device = MmioTransport::new(&mut block, guest::memory(&ram));
    let mut machine = Machine { device, interrupts: InterruptSink::default(), time: 0 };

    guest_main(&mut machine, &mut Driver::new(guest::memory(&ram)));
    println!("interrupts: {}", machine.interrupts.raised);
    assert_eq!(machine.interrupts.raised, 3);
    // What the guest wrote is on the disk.
    let sector = storage.slice(Pa::new(0));
    assert_eq!(sector.load_u8(7 * SECTOR), Some(0x5A));
}

#[test]
fn the_example_runs() {
    main();
}
