//! What a chain costs the device side, in instructions of the host.
//!
//! ```text
//! cargo bench --bench queue
//! ```
//! needs valgrind, runs itself under it as
//! ```text
//! valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*measured*' queue --run KIND BATCH ROUNDS
//! ```
//! for two numbers of rounds, and prints the difference for each chain: popped, validated, its
//! buffers resolved, completed and shown to the driver with one interrupt decision for the batch.
//! What the driver writes is outside of the function that is collected. The peer is rust-vmm's
//! `virtio-queue`, doing the same over `vm-memory`, compiled the same, in the same run.
#![cfg(not(target_os = "none"))]
#![allow(missing_docs, clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use std::hint::black_box;
use std::process::Command;

use sparkler::backend::clock::Ticks;
use sparkler::memory::{GuestMemory, HostRam, Ipa, Pa, SharedSlice};
use sparkler::virtio::queue::ChainBuffer;
use sparkler::virtio::{Context, DeviceType, Features, MmioTransport, VirtioDevice, Width};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const RAM: u64 = 0x4000_0000;
const RAM_SIZE: usize = 0x10_0000;
/// Entries of the queue: room for a batch of chains of [`CHAIN`] descriptors.
const SIZE: u16 = 128;
const DRIVER_AREA: u64 = 0x2000;
const DEVICE_AREA: u64 = 0x3000;
const TABLES: u64 = 0x4000;
const BUFFERS: u64 = 0x8000;
/// A block request: header, data, status; (length, writable).
const CHAIN: [(u32, bool); 3] = [(16, false), (4096, true), (1, true)];
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

const KINDS: [&str; 5] = ["split", "packed", "split-indirect", "packed-indirect", "peer"];
const BATCHES: [usize; 2] = [1, 32];

/// What is counted: everything that happens in `work`.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    work();
}

/// The driver's stores, to whichever memory.
struct Driver<'a> {
    put: &'a dyn Fn(u64, &[u8]),
    packed: bool,
    indirect: bool,
    next: u16,
    wrap: bool,
}

impl Driver<'_> {
    fn descriptor(&self, at: u64, buffer: (u64, u32), first: u16, second: u16) {
        (self.put)(at, &buffer.0.to_le_bytes());
        (self.put)(at + 8, &buffer.1.to_le_bytes());
        (self.put)(at + 12, &first.to_le_bytes());
        (self.put)(at + 14, &second.to_le_bytes());
    }

    /// Makes a batch of chains available.
    fn offer(&mut self, batch: usize) {
        for chain in 0..batch as u16 {
            let flags = |at: usize| {
                let next = if at + 1 < CHAIN.len() { NEXT } else { 0 };
                next | if CHAIN[at].1 { WRITE } else { 0 }
            };
            let buffer = |at: usize| (RAM + BUFFERS + 0x2000 * at as u64, CHAIN[at].0);
            let table = TABLES + u64::from(chain) * 64;
            let count = if self.indirect { 1 } else { CHAIN.len() as u16 };
            for at in 0..CHAIN.len() {
                if self.packed && self.indirect {
                    let flags = flags(at) & WRITE;
                    self.descriptor(table + 16 * at as u64, buffer(at), 0, flags);
                } else if self.packed {
                    self.available(buffer(at), chain, flags(at));
                } else if self.indirect {
                    let next = at as u16 + 1;
                    self.descriptor(table + 16 * at as u64, buffer(at), flags(at), next);
                } else {
                    let index = chain * count + at as u16;
                    let place = u64::from(index) * 16;
                    self.descriptor(place, buffer(at), flags(at), index + 1);
                }
            }
            let table = (RAM + table, 16 * CHAIN.len() as u32);
            if self.packed {
                if self.indirect {
                    self.available(table, chain, INDIRECT);
                }
                continue;
            }
            let head = chain * count;
            if self.indirect {
                self.descriptor(u64::from(head) * 16, table, INDIRECT, 0);
            }
            let slot = u64::from(self.next % SIZE);
            (self.put)(DRIVER_AREA + 4 + 2 * slot, &head.to_le_bytes());
            self.next = self.next.wrapping_add(1);
        }
        if !self.packed {
            (self.put)(DRIVER_AREA + 2, &self.next.to_le_bytes());
        }
    }

    /// Writes the next descriptor of a packed ring.
    fn available(&mut self, buffer: (u64, u32), id: u16, flags: u16) {
        let owner = if self.wrap { AVAIL } else { USED };
        self.descriptor(u64::from(self.next) * 16, buffer, id, flags | owner);
        self.next += 1;
        if self.next == SIZE {
            (self.next, self.wrap) = (0, !self.wrap);
        }
    }
}

/// Completes every chain at once.
struct Null<'m> {
    chain: ChainBuffer<'m>,
    completed: usize,
}

impl<'m> VirtioDevice<'m> for Null<'m> {
    fn device_type(&self) -> DeviceType {
        DeviceType::ENTROPY
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[SIZE]
    }

    fn queue_notified(&mut self, index: u16, context: &mut Context<'_, 'm>) {
        let Some(mut queue) = context.queue(index) else { return };
        while let Some(chain) = queue.pop(&mut self.chain) {
            let head = chain.head;
            black_box(chain.readable.into_segments());
            black_box(chain.writable.into_segments());
            queue.complete(head, 4097);
            self.completed += 1;
        }
    }
}

fn run_ours(packed: bool, indirect: bool, batch: usize, rounds: usize) {
    let ram = HostRam::new(RAM_SIZE);
    let all: SharedSlice<'_> = ram.slice(Pa::new(0x8_0000_0000));
    let mut memory = GuestMemory::new();
    assert!(memory.add(Ipa::new(RAM), all).is_ok());
    let mut device = Null { chain: ChainBuffer::new(), completed: 0 };
    let mut transport = MmioTransport::new(&mut device, memory);
    let mut set = |offset, value: u64| {
        let _ = transport.write(offset, Width::Word, value & 0xFFFF_FFFF, Ticks(0));
    };
    let mut features = Features::VERSION_1;
    features.set(Features::RING_PACKED, packed);
    features.set(Features::INDIRECT_DESC, indirect);
    set(0x70, 3);
    for page in 0..2 {
        set(0x24, page);
        set(0x20, features.bits() >> (32 * page));
    }
    set(0x70, 11);
    set(0x38, SIZE.into());
    for (offset, area) in [(0x80, 0), (0x90, DRIVER_AREA), (0xA0, DEVICE_AREA)] {
        set(offset, RAM + area);
    }
    set(0x44, 1);
    set(0x70, 15);
    let put = |at: u64, bytes: &[u8]| all.write_bytes(at as usize, bytes).unwrap();
    let mut driver = Driver { put: &put, packed, indirect, next: 0, wrap: true };
    for _ in 0..rounds {
        driver.offer(batch);
        measured(&mut || {
            let _ = transport.write(0x50, Width::Word, 0, Ticks(0));
            black_box(transport.take_interrupt());
        });
    }
    assert_eq!(transport.status().bits(), 15);
    drop(transport);
    assert_eq!(device.completed, batch * rounds);
}

fn run_peer(batch: usize, rounds: usize) {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(RAM), RAM_SIZE)]).unwrap();
    let memory = &memory;
    let mut queue = Queue::new(SIZE).unwrap();
    let half = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
    let (low, high) = half(RAM);
    queue.set_desc_table_address(low, high);
    let (low, high) = half(RAM + DRIVER_AREA);
    queue.set_avail_ring_address(low, high);
    let (low, high) = half(RAM + DEVICE_AREA);
    queue.set_used_ring_address(low, high);
    queue.set_ready(true);
    assert!(queue.is_valid(memory));
    let put = |at: u64, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(RAM + at)).unwrap();
    let mut driver = Driver { put: &put, packed: false, indirect: false, next: 0, wrap: true };
    let mut completed = 0;
    for _ in 0..rounds {
        driver.offer(batch);
        measured(&mut || {
            while let Some(chain) = queue.pop_descriptor_chain(memory) {
                let head = chain.head_index();
                for descriptor in chain {
                    let slice = memory.get_slice(descriptor.addr(), descriptor.len() as usize);
                    black_box(slice.unwrap());
                }
                queue.add_used(memory, head, 4097).unwrap();
                completed += 1;
            }
            black_box(queue.needs_notification(memory).unwrap());
        });
    }
    assert_eq!(completed, batch * rounds);
}

fn run(kind: &str, batch: usize, rounds: usize) {
    match kind {
        "peer" => run_peer(batch, rounds),
        _ => run_ours(kind.starts_with("packed"), kind.ends_with("indirect"), batch, rounds),
    }
}

/// Instructions collected in one run under callgrind.
fn collected(kind: &str, batch: usize, rounds: usize) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg("--toggle-collect=*measured*")
        .arg(std::env::current_exe().ok()?)
        .args(["--run", kind, &batch.to_string(), &rounds.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [option, kind, batch, rounds] = &arguments[..]
        && option == "--run"
    {
        return run(kind, batch.parse().unwrap(), rounds.parse().unwrap());
    }
    println!(
        "instructions a chain of 3 descriptors; {} a kick",
        BATCHES.map(|it| it.to_string()).join(", ")
    );
    for kind in KINDS {
        let figures = BATCHES.map(|batch| {
            let few = collected(kind, batch, 100)?;
            let more = collected(kind, batch, 1100)?;
            Some((more - few) as f64 / (1000 * batch) as f64)
        });
        let [one, many] =
            figures.map(|it| it.map_or("no valgrind".into(), |it| format!("{it:.1}")));
        println!("{kind:<16} {one:>12} {many:>12}");
    }
}
