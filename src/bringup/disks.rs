//! The board's disks: opened when somebody asks for them, and given to one machine whole or to
//! several in parts.

use sparkler::arch::barrier;
use sparkler::arch::interrupts::Doorbell;
use sparkler::arch::timer::Counter;
use sparkler::backend::block::{
    BlockBackend, BlockOp, BlockRequest, BlockStatus, SECTOR_SIZE, Tag,
};
use sparkler::backend::clock::Clock;
use sparkler::backend::partition::gpt::{self, ReadBlocks, Selector};
use sparkler::backend::partition::{self, Partition, Sectors};
use sparkler::backend::shared_disk::SharedDisk;
use sparkler::backend::wake::Waker;
use sparkler::fdt::{Board, DiskPart, VirtioSlot};
use sparkler::memory::{FramePool, PAGE_SIZE, SharedSlice};
use sparkler::vm::config::{Configuration, DiskUse, Disks, PartError};

use super::arena::place;
use super::devices::{self, Disk, MAX_DISKS};

type Shared = SharedDisk<'static, &'static mut Disk>;

/// A disk that somebody has asked for.
struct Opened {
    /// It, until somebody has it.
    disk: Option<&'static mut Disk>,
    /// It, if it is shared.
    shared: Option<&'static Shared>,
    /// Its doorbell, until a core has it.
    doorbell: Option<Doorbell>,
}

/// Disk `n` is in the `n`th slot.
pub(super) struct BoardDisks {
    slots: heapless::Vec<&'static VirtioSlot, MAX_DISKS>,
    opened: [Option<Opened>; MAX_DISKS],
    /// Where partition tables are read to, and copied to.
    scratch: Option<(SharedSlice<'static>, &'static mut [u8])>,
}

impl BoardDisks {
    pub(super) fn new(board: &'static Board<'static>) -> Self {
        let slots = devices::disks(board);
        Self { slots, opened: [const { None }; MAX_DISKS], scratch: None }
    }

    /// Opens a disk if nobody has yet.
    fn open(&mut self, disk: usize, pool: &mut FramePool<'static>) -> Option<&mut Opened> {
        let place_of = self.opened.get_mut(disk)?;
        if place_of.is_none() {
            let (disk, doorbell) = driver(self.slots.get(disk)?, pool)?;
            *place_of = Some(Opened { disk: Some(disk), shared: None, doorbell });
        }
        place_of.as_mut()
    }

    /// What `wanted`, of `config`, is to a device whose machine has its home on `waker`'s core; with the
    /// disk's doorbell, if that core is to have it.
    pub(super) fn connect(
        &mut self,
        wanted: &DiskUse<'_>,
        config: &Configuration<'_>,
        waker: Waker<'static>,
    ) -> Option<(&'static mut dyn BlockBackend<'static>, Option<Doorbell>)> {
        let sectors = wanted.sectors()?;
        let opened = self.opened.get_mut(usize::try_from(wanted.disk).ok()?)?.as_mut()?;
        let devices = config.vms().iter().flat_map(|vm| &vm.devices);
        let users = devices.filter_map(DiskUse::of).filter(|it| it.disk == wanted.disk).count();
        if let Some(disk) = &opened.disk {
            if users == 1 && sectors.first() == 0 && sectors.count() == disk.info().sectors {
                return Some((opened.disk.take()?, opened.doorbell.take()));
            }
            opened.shared = Some(share(opened.disk.take()?)?);
        }
        let shared = opened.shared?;
        let doorbell = opened.doorbell.take();
        let doorbell = doorbell.map(|doorbell| doorbell.shared(shared));
        Some((part(shared, sectors, wanted.read_only, waker)?, doorbell))
    }
}

// As in `machines`: what is large is built in a function of its own.

#[inline(never)]
fn driver(
    slot: &VirtioSlot,
    pool: &mut FramePool<'static>,
) -> Option<(&'static mut Disk, Option<Doorbell>)> {
    let (disk, doorbell) = devices::open(slot, pool)?;
    Some((place(|| disk)?, doorbell))
}

#[inline(never)]
fn share(disk: &'static mut Disk) -> Option<&'static Shared> {
    place(|| SharedDisk::new(disk)).map(|shared| &*shared)
}

#[inline(never)]
fn part(
    shared: &'static Shared,
    sectors: Sectors,
    read_only: bool,
    waker: Waker<'static>,
) -> Option<&'static mut dyn BlockBackend<'static>> {
    let part = Partition::new(shared.client(waker)?, sectors).ok()?;
    let part = if read_only { part.read_only() } else { part };
    Some(place(|| part)?)
}

/// The disks while the configuration is checked.
pub(super) struct Finder<'a> {
    pub(super) disks: &'a mut BoardDisks,
    pub(super) pool: &'a mut FramePool<'static>,
}

impl Disks for Finder<'_> {
    fn count(&self) -> usize {
        self.disks.slots.len()
    }

    fn find(&mut self, disk: usize, part: DiskPart<'_>) -> Result<Sectors, PartError> {
        let opened = self.disks.open(disk, self.pool);
        let info = match opened.and_then(|opened| opened.disk.as_deref()) {
            Some(disk) => disk.info(),
            None => return Err(PartError::Unusable),
        };
        let selector = match part {
            DiskPart::Whole => return Sectors::new(0, info.sectors).ok_or(PartError::Empty),
            DiskPart::Sectors { first, count } => {
                let sectors = Sectors::new(first, count).ok_or(PartError::Empty)?;
                return partition::check(&info, sectors)
                    .map_err(PartError::Range)
                    .map(|()| sectors);
            }
            DiskPart::Label(label) => Selector::Label(label),
            DiskPart::Number(number) => Selector::Number(number),
        };
        self.find_partition(disk, selector)
    }
}

impl Finder<'_> {
    fn find_partition(&mut self, disk: usize, which: Selector<'_>) -> Result<Sectors, PartError> {
        let BoardDisks { opened, scratch, .. } = self.disks;
        if scratch.is_none() {
            let page = self.pool.alloc_run(1, PAGE_SIZE).ok();
            let copy = place(|| [0; PAGE_SIZE as usize]);
            *scratch = page.zip(copy.map(|copy| copy.as_mut_slice()));
        }
        let opened = opened.get_mut(disk).and_then(Option::as_mut);
        let driver = opened.and_then(|opened| opened.disk.as_deref_mut());
        let (Some(driver), Some((page, copy))) = (driver, scratch) else {
            return Err(PartError::Unusable);
        };
        let info = driver.info();
        let mut table = Table { disk: driver, page: *page, copy };
        let found = gpt::find(&mut table, which).map_err(PartError::Gpt)?;
        if let Some(damage) = found.primary {
            log::warn!("disk {disk}: the partition table is its copy at the end: {damage}");
        }
        partition::check(&info, found.sectors).map_err(PartError::Range).map(|()| found.sectors)
    }
}

/// A disk while its partition table is read, before any guest runs.
struct Table<'a> {
    disk: &'a mut Disk,
    page: SharedSlice<'static>,
    copy: &'a mut [u8],
}

impl ReadBlocks for Table<'_> {
    fn block_size(&self) -> usize {
        self.disk.info().block_size as usize
    }

    fn blocks(&self) -> u64 {
        let info = self.disk.info();
        info.sectors / (u64::from(info.block_size) / SECTOR_SIZE).max(1)
    }

    fn read(&mut self, block: u64) -> Option<&[u8]> {
        let size = self.block_size();
        let sector = block.checked_mul(size as u64 / SECTOR_SIZE)?;
        let segments = [self.page.subslice(0, size)?];
        let tag = Tag(0);
        let request = BlockRequest { tag, op: BlockOp::Read, sector, segments: &segments };
        self.disk.submit(request, Counter.now()).ok()?;
        self.disk.kick();
        // The driver has a time-out, and ends what takes longer.
        let (_, status) = loop {
            match self.disk.poll(Counter.now()) {
                Some(end) => break end,
                None => barrier::relax(),
            }
        };
        let copy = self.copy.get_mut(..size)?;
        segments.first()?.read_bytes(0, copy)?;
        (status == BlockStatus::Ok).then_some(copy)
    }
}
