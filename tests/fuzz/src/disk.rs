//! Disks: those of the library, and one that fails, is busy and takes its time. All are watched for
//! what the device asks of them, and can have the guest change its memory while the device works.

use std::collections::VecDeque;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use sparkler::backend::block::{
    BlockBackend, BlockInfo, BlockOp, BlockRequest, BlockStatus, DiscardLimits, SubmitError, Tag,
    WriteZeroesLimits,
};
use sparkler::backend::clock::Ticks;
use sparkler::backend::null::NullDisk;
use sparkler::backend::ram::{CompletionOrder, RamDisk};
use sparkler::memory::SharedSlice;

use crate::guest::{Guest, SECTOR, SECTORS, is_ram};

/// Identity of the disks that have one.
pub(crate) const IDENTITY: [u8; 20] = *b"sparkler fuzz disk\0\0";

/// Sectors that the moody disk discards or zeroes at most.
pub(crate) const MOODY_RANGE: u32 = 4;

/// Which disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Ram,
    Reversed,
    ReadOnly,
    Null,
    /// Busy, slow and failing by chance.
    Moody,
}

impl Kind {
    pub(crate) fn from_byte(byte: u8) -> Self {
        match byte % 5 {
            0 => Self::Ram,
            1 => Self::Reversed,
            2 => Self::ReadOnly,
            3 => Self::Null,
            _ => Self::Moody,
        }
    }

    /// Whether what is written can be read.
    pub(crate) fn keeps_data(self) -> bool {
        !matches!(self, Self::Null | Self::ReadOnly)
    }
}

/// As a `Cell` or a `RefCell`, in what can go to another core, as a disk must.
#[derive(Default)]
pub(crate) struct Shared<T>(RwLock<T>);

impl<T> Shared<T> {
    pub(crate) fn borrow(&self) -> RwLockReadGuard<'_, T> {
        self.0.try_read().expect("being written")
    }

    pub(crate) fn borrow_mut(&self) -> RwLockWriteGuard<'_, T> {
        self.0.try_write().expect("in use")
    }
}

impl<T: Copy> Shared<T> {
    pub(crate) fn get(&self) -> T {
        *self.borrow()
    }

    pub(crate) fn set(&self, value: T) {
        *self.borrow_mut() = value;
    }
}

/// What the test sees of a disk, and does through it.
#[derive(Default)]
pub(crate) struct Watch {
    /// Tags of the requests in flight.
    tags: Shared<Vec<u16>>,
    /// Requests taken since this was last set to zero.
    pub(crate) submitted: Shared<usize>,
    /// Chance of the moody disk; none if zero.
    pub(crate) mood: Shared<u32>,
    /// What the guest writes while the device works: one at every call of the disk.
    pub(crate) scribbles: Shared<VecDeque<(u64, Vec<u8>)>>,
}

impl Watch {
    pub(crate) fn in_flight(&self) -> usize {
        self.tags.borrow().len()
    }

    /// A number below `bound`; zero in a good mood.
    fn chance(&self, bound: u32) -> u32 {
        let mut mood = self.mood.get();
        mood ^= mood << 13;
        mood ^= mood >> 17;
        mood ^= mood << 5;
        self.mood.set(mood);
        mood % bound
    }

    fn scribble(&self, guest: &Guest) {
        if let Some((address, bytes)) = self.scribbles.borrow_mut().pop_front() {
            guest.put(address, &bytes);
        }
    }
}

/// The disk under watch. No trait object: it must not be what keeps guest memory alive.
// One at a time, for a while.
#[allow(clippy::large_enum_variant)]
enum Inner<'m> {
    Ram(RamDisk<'m>),
    Null(NullDisk),
    Moody(Moody<'m>),
}

impl<'m> Inner<'m> {
    fn get(&mut self) -> &mut dyn BlockBackend<'m> {
        match self {
            Self::Ram(disk) => disk,
            Self::Null(disk) => disk,
            Self::Moody(disk) => disk,
        }
    }
}

/// A disk under watch.
pub(crate) struct Disk<'m> {
    inner: Inner<'m>,
    info: BlockInfo,
    guest: Guest,
    watch: Arc<Watch>,
}

impl<'m> Disk<'m> {
    pub(crate) fn new(kind: Kind, disk: SharedSlice<'m>, guest: &Guest) -> (Self, Arc<Watch>) {
        let watch = Arc::new(Watch::default());
        let ram = RamDisk::new(disk, IDENTITY);
        let mut inner = match kind {
            Kind::Ram => Inner::Ram(ram),
            Kind::Reversed => Inner::Ram(ram.with_order(CompletionOrder::Reversed)),
            Kind::ReadOnly => Inner::Ram(ram.read_only()),
            Kind::Null => Inner::Null(NullDisk::new(SECTORS as u64)),
            Kind::Moody => Inner::Moody(Moody {
                disk,
                watch: watch.clone(),
                waiting: vec![],
                kicked: 0,
                refused: 0,
                quiet: 0,
            }),
        };
        let info = inner.get().info();
        (Self { inner, info, guest: guest.clone(), watch: watch.clone() }, watch)
    }
}

impl<'m> BlockBackend<'m> for Disk<'m> {
    fn info(&self) -> BlockInfo {
        self.info
    }

    fn submit(&mut self, request: BlockRequest<'_, 'm>, now: Ticks) -> Result<(), SubmitError> {
        self.watch.scribble(&self.guest);
        let (tag, info) = (request.tag.0, self.info);
        let bytes: usize = request.segments.iter().map(|segment| segment.len()).sum();
        assert!(!self.watch.tags.borrow().contains(&tag), "tag {tag} twice");
        assert!(request.segments.iter().all(|it| !it.is_empty() && is_ram(it.pa(), it.len())));
        let most = match request.op {
            BlockOp::Read | BlockOp::Write => {
                assert!(bytes > 0 && bytes.is_multiple_of(SECTOR), "{bytes} bytes");
                u32::MAX
            }
            BlockOp::Flush => 0,
            BlockOp::Discard { sectors } => {
                assert!(sectors > 0);
                info.discard.expect("not offered").max_sectors
            }
            BlockOp::WriteZeroes { sectors, .. } => {
                assert!(sectors > 0);
                info.write_zeroes.expect("not offered").max_sectors
            }
        };
        let sectors = request.sectors();
        assert!(sectors <= most.into(), "{sectors} sectors");
        assert!(request.sector + sectors <= info.sectors, "past the end");
        assert!(bytes == 0 || matches!(request.op, BlockOp::Read | BlockOp::Write));
        assert!(!(info.read_only && request.op.modifies()));
        let result = self.inner.get().submit(request, now);
        if result.is_ok() {
            self.watch.tags.borrow_mut().push(tag);
            self.watch.submitted.set(self.watch.submitted.get() + 1);
        }
        result
    }

    fn kick(&mut self) {
        self.watch.scribble(&self.guest);
        self.inner.get().kick();
    }

    fn poll(&mut self, now: Ticks) -> Option<(Tag, BlockStatus)> {
        self.watch.scribble(&self.guest);
        let (tag, status) = self.inner.get().poll(now)?;
        let mut tags = self.watch.tags.borrow_mut();
        let at = tags.iter().position(|it| *it == tag.0).expect("completed what was not there");
        tags.swap_remove(at);
        Some((tag, status))
    }

    fn in_flight(&self) -> usize {
        self.watch.in_flight()
    }
}

/// A request the moody disk has not done.
struct Job<'m> {
    tag: Tag,
    op: BlockOp,
    sector: u64,
    segments: Vec<SharedSlice<'m>>,
}

/// Touches the guest's memory as late as it may: when it reports the request as finished.
struct Moody<'m> {
    disk: SharedSlice<'m>,
    watch: Arc<Watch>,
    waiting: Vec<Job<'m>>,
    kicked: usize,
    refused: u32,
    /// Polls since something was finished.
    quiet: u32,
}

impl<'m> Moody<'m> {
    fn transfer(&self, job: &Job<'m>) -> Option<()> {
        let mut at = job.sector as usize * SECTOR;
        if let BlockOp::Discard { sectors } | BlockOp::WriteZeroes { sectors, .. } = job.op {
            return self.disk.fill(at, sectors as usize * SECTOR, 0);
        }
        for segment in &job.segments {
            let part = self.disk.subslice(at, segment.len())?;
            match job.op {
                BlockOp::Read => segment.copy_from(&part)?,
                _ => part.copy_from(segment)?,
            }
            at += segment.len();
        }
        Some(())
    }
}

impl<'m> BlockBackend<'m> for Moody<'m> {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            flush: true,
            max_segments: 4,
            depth: 4,
            discard: Some(DiscardLimits { max_sectors: MOODY_RANGE, alignment: 2 }),
            write_zeroes: Some(WriteZeroesLimits { max_sectors: MOODY_RANGE, may_unmap: true }),
            id: IDENTITY,
            ..BlockInfo::new(SECTORS as u64)
        }
    }

    fn submit(&mut self, request: BlockRequest<'_, 'm>, _: Ticks) -> Result<(), SubmitError> {
        let busy = self.watch.chance(8) == 1 && self.refused < 8;
        if !self.waiting.is_empty() && (busy || self.waiting.len() >= 4) {
            self.refused += 1;
            return Err(SubmitError::Busy);
        }
        self.refused = 0;
        match self.watch.chance(16) {
            1 => return Err(SubmitError::Failed),
            2 => return Err(SubmitError::Unsupported),
            _ => (),
        }
        let BlockRequest { tag, op, sector, segments } = request;
        self.waiting.push(Job { tag, op, sector, segments: segments.to_vec() });
        Ok(())
    }

    fn kick(&mut self) {
        self.kicked = self.waiting.len();
    }

    fn poll(&mut self, _: Ticks) -> Option<(Tag, BlockStatus)> {
        if self.kicked == 0 {
            return None;
        }
        self.quiet += 1;
        if self.watch.chance(2) == 1 && self.quiet < 8 {
            return None;
        }
        self.quiet = 0;
        let job = self.waiting.remove(self.watch.chance(self.kicked as u32) as usize);
        self.kicked -= 1;
        let status = match self.watch.chance(8) {
            1 => BlockStatus::IoError,
            2 => BlockStatus::Unsupported,
            _ => self.transfer(&job).map_or(BlockStatus::IoError, |()| BlockStatus::Ok),
        };
        Some((job.tag, status))
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }
}
