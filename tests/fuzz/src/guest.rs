//! The guest's side: its RAM, and the registers of its device.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use sparkler::backend::clock::Ticks;
use sparkler::memory::{GuestMemory, HostRam, Ipa, Pa, SharedSlice};
use sparkler::virtio::queue::Areas;
use sparkler::virtio::{MmioTransport, Width, WriteOutcome};

use crate::input::Input;

/// Guest address of the first byte of RAM.
pub(crate) const RAM: u64 = 0x4000_0000;
/// Length of the first region.
pub(crate) const RAM_SIZE: usize = 0x8000;
/// Where buffers may be, behind the rings.
pub(crate) const BUFFERS: u64 = RAM + 0x2000;

/// Regions: guest address, bus address, length. The second begins where the first ends, but it is
/// other memory; the third has an odd end; the
/// last is for the rings of large queues.
const REGIONS: [(u64, u64, usize); 4] = [
    (RAM, 0x9_8000_0000, RAM_SIZE),
    (RAM + RAM_SIZE as u64, 0x3_0000_0000, 0x1000),
    (RAM + 0x1_0000, 0xF_FFF0_0000, 4001),
    (LARGE, 0x5_0000_0000, 0x8000),
];
/// Sectors of the disk.
pub(crate) const SECTORS: usize = 16;
/// Bytes in a sector.
pub(crate) const SECTOR: usize = 512;

/// Where the rings of a queue are that a driver sets up properly.
pub(crate) const AREAS: Areas =
    Areas { descriptor: RAM, driver: RAM + 0x1000, device: RAM + 0x1400 };

/// Where the rings of queues of more than 256 entries are.
const LARGE: u64 = RAM + 0x10_0000;

/// Where a driver sets up a queue of `size` entries, at most 1024.
pub(crate) fn areas(size: u16) -> Areas {
    if size <= 256 {
        return AREAS;
    }
    Areas { descriptor: LARGE, driver: LARGE + 0x4000, device: LARGE + 0x5000 }
}

/// RING_PACKED.
pub(crate) const PACKED: u64 = 1 << 34;
/// Bytes from the driver area on that the rings of the largest queue take, event fields included.
pub(crate) const RINGS: usize = 0x400 + 4 + 8 * 256 + 2;

/// All memory of one input; made once, and cleared for each.
pub(crate) struct Memories {
    regions: [HostRam; 4],
    disk: HostRam,
}

/// The memory, cleared, for this input alone.
pub(crate) fn memories() -> (MutexGuard<'static, ()>, Guest, SharedSlice<'static>) {
    static MEMORIES: OnceLock<Memories> = OnceLock::new();
    static USE: Mutex<()> = Mutex::new(());
    let guard = USE.lock().unwrap_or_else(PoisonError::into_inner);
    let memories = MEMORIES.get_or_init(|| Memories {
        regions: REGIONS.map(|(_, _, len)| HostRam::new(len)),
        disk: HostRam::new(SECTORS * SECTOR),
    });
    let mut memory = GuestMemory::new();
    for (ram, (ipa, pa, len)) in memories.regions.iter().zip(REGIONS) {
        let slice = ram.slice(Pa::new(pa)).subslice(0, len).unwrap();
        slice.fill(0, len, 0).unwrap();
        assert!(memory.add(Ipa::new(ipa), slice).is_ok());
    }
    let disk = memories.disk.slice(Pa::new(0x7_0000_0000));
    for sector in 0..SECTORS {
        disk.fill(sector * SECTOR, SECTOR, 0xC0 | sector as u8).unwrap();
    }
    (guard, Guest { memory }, disk)
}

/// Whether the bus sees RAM at `pa..pa + len`.
pub(crate) fn is_ram(pa: Pa, len: usize) -> bool {
    REGIONS
        .iter()
        .any(|(_, base, size)| pa.raw() >= *base && pa.raw() + len as u64 <= base + *size as u64)
}

/// A guest's memory, by guest address. Writes to what is no RAM are lost.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) memory: GuestMemory<'static>,
}

impl Guest {
    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        if let Ok(slice) = self.memory.slice(Ipa::new(address), bytes.len()) {
            slice.write_bytes(0, bytes).unwrap();
        }
    }

    pub(crate) fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let slice = self.memory.slice(Ipa::new(address), N).unwrap();
        slice.read_bytes(0, &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn get_vec(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let slice = self.memory.slice(Ipa::new(address), len).unwrap();
        slice.read_bytes(0, &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn get_u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.get(address))
    }

    pub(crate) fn put_u16(&self, address: u64, value: u16) {
        self.put(address, &value.to_le_bytes());
    }

    /// Writes a descriptor: address, length, flags, next.
    pub(crate) fn descriptor(&self, at: u64, (address, len, flags, next): (u64, u32, u16, u16)) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(at, &bytes);
    }
}

/// An address a hostile driver might think of.
pub(crate) fn address(input: &mut Input<'_>) -> u64 {
    match input.below(8) {
        0 => input.u64(),
        1 => u64::MAX - u64::from(input.u8()),
        2 => {
            let (base, _, len) = REGIONS[input.below(3)];
            (base + len as u64).wrapping_add_signed(i64::from(input.u8() as i8))
        }
        3 => 0x9_8000_0000 + u64::from(input.u16()),
        4 => AREAS.descriptor + u64::from(input.u8()),
        5 => AREAS.device + u64::from(input.u8()),
        _ => RAM + u64::from(input.u16()),
    }
}

/// A device's registers, as a guest's loads and stores reach them.
pub(crate) struct Bus<'t, 'd, 'm> {
    pub(crate) transport: &'t mut MmioTransport<'d, 'm>,
    pub(crate) now: Ticks,
    /// Interrupts that were taken.
    pub(crate) interrupts: usize,
}

/// Polls within which a well-behaved disk lets a reset end.
const PATIENCE: usize = 10_000;

impl<'t, 'd, 'm> Bus<'t, 'd, 'm> {
    pub(crate) fn new(transport: &'t mut MmioTransport<'d, 'm>) -> Self {
        Self { transport, now: Ticks(0), interrupts: 0 }
    }

    pub(crate) fn get(&self, offset: u16) -> u32 {
        self.transport.read(offset, Width::Word) as u32
    }

    fn take_interrupt(&mut self) {
        self.interrupts += usize::from(self.transport.take_interrupt());
    }

    pub(crate) fn poll(&mut self) {
        self.now = self.now.after(Ticks(1));
        self.transport.poll(self.now);
        self.take_interrupt();
    }

    /// One execution of a store.
    pub(crate) fn store(&mut self, offset: u16, width: Width, value: u64) -> WriteOutcome {
        let outcome = self.transport.write(offset, width, value, self.now);
        self.take_interrupt();
        outcome
    }

    /// A store, executed until it is done.
    pub(crate) fn set(&mut self, offset: u16, value: u32) {
        for _ in 0..PATIENCE {
            if self.store(offset, Width::Word, value.into()) == WriteOutcome::Done {
                return;
            }
            assert!(self.transport.has_work_in_flight(), "a retried store that nothing ends");
            self.poll();
        }
        panic!("the store to {offset:#x} never ends");
    }

    /// From reset to FEATURES_OK, with those of `wanted` that are offered; what was agreed.
    pub(crate) fn negotiate(&mut self, wanted: u64) -> u64 {
        for status in [0, 1, 3] {
            self.set(0x70, status);
            assert_eq!(self.get(0x70), status);
        }
        let mut agreed = 0;
        for page in 0..2 {
            self.set(0x14, page);
            let offered = u64::from(self.get(0x10)) << (32 * page);
            agreed |= offered & wanted;
            self.set(0x24, page);
            self.set(0x20, (agreed >> (32 * page)) as u32);
        }
        self.set(0x70, 11);
        assert_eq!(self.get(0x70), 11, "good features are refused");
        agreed
    }

    /// Sets up queue 0, up to QueueReady.
    pub(crate) fn configure_queue(&mut self, size: u16, areas: &Areas) {
        self.set(0x30, 0);
        self.set(0x38, size.into());
        for (low, address) in [(0x80, areas.descriptor), (0x90, areas.driver), (0xA0, areas.device)]
        {
            self.set(low, address as u32);
            self.set(low + 4, (address >> 32) as u32);
        }
        self.set(0x44, 1);
    }

    /// Resets queue 0 alone.
    pub(crate) fn reset_queue(&mut self) {
        self.set(0x30, 0);
        self.set(0xC0, 1);
        for _ in 0..PATIENCE {
            if self.get(0xC0) == 0 {
                break;
            }
            self.poll();
        }
        assert_eq!((self.get(0xC0), self.get(0x44)), (0, 0), "a queue's reset never ends");
    }

    /// From reset to DRIVER_OK with `size` entries at [`AREAS`]; what was agreed.
    pub(crate) fn bring_up(&mut self, wanted: u64, size: u16) -> u64 {
        let agreed = self.negotiate(wanted);
        self.configure_queue(size, &AREAS);
        self.set(0x70, 15);
        assert_eq!(self.get(0x70), 15, "{:?}", self.transport.fault());
        agreed
    }
}
