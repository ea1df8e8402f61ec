//! A disk whose medium can be changed: one of several disks is in it, or none.
//!
//! What it is, but for its capacity, holds with any of them in it: so drivers need not negotiate anew.
//! Requests that are under way when the medium is taken out end at that medium, and what was written
//! to it is made durable before the first request of another.

use super::block::{
    BlockBackend, BlockInfo, BlockOp, BlockRequest, BlockStatus, DiscardLimits, MediumError,
    SubmitError, Tag, Topology, WriteZeroesLimits,
};
use super::clock::Ticks;

/// Media that a drive can have.
pub const MAX_MEDIA: usize = 8;

/// The disks that can be in a drive.
pub type Media<'d, 'm> = heapless::Vec<&'d mut (dyn BlockBackend<'m> + 'd), MAX_MEDIA>;

/// Our own flush. Nobody in front of us has so many requests.
const OWN: Tag = Tag(u16::MAX);

/// A disk whose medium can be changed.
pub struct Drive<'d, 'm> {
    media: Media<'d, 'm>,
    /// What it is without any.
    info: BlockInfo,
    inside: Option<u8>,
    /// The medium that has the requests that are under way.
    active: u8,
    /// It is to be flushed before another is.
    owed: bool,
}

impl<'d, 'm> Drive<'d, 'm> {
    /// A drive for `media`, with the first inside.
    pub fn new(media: Media<'d, 'm>) -> Self {
        let infos = media.iter().map(|medium| medium.info());
        let info = infos.reduce(common).unwrap_or(BlockInfo::new(0));
        let info = BlockInfo { sectors: 0, topology: Topology::FLAT, ..info };
        Self { media, info, inside: Some(0), active: 0, owed: false }
    }

    fn active(&mut self) -> Option<&mut (dyn BlockBackend<'m> + 'd)> {
        self.media.get_mut(usize::from(self.active)).map(|medium| &mut **medium)
    }

    /// Goes on with another medium, once that before has ended what it was given.
    #[cold]
    fn go_on_with(&mut self, medium: u8, now: Ticks) -> Result<(), SubmitError> {
        let owed = self.owed;
        let before = self.active().ok_or(SubmitError::Failed)?;
        if before.in_flight() != 0 {
            return Err(SubmitError::Busy);
        }
        if owed {
            let flush = BlockRequest { tag: OWN, op: BlockOp::Flush, sector: 0, segments: &[] };
            let submitted = before.submit(flush, now);
            if submitted != Err(SubmitError::Failed) {
                before.kick();
                self.owed = submitted.is_err();
                return Err(SubmitError::Busy);
            }
        }
        self.active = medium;
        Ok(())
    }
}

/// What both are.
fn common(one: BlockInfo, other: BlockInfo) -> BlockInfo {
    let discard = one.discard.zip(other.discard).map(|(one, other)| DiscardLimits {
        max_sectors: one.max_sectors.min(other.max_sectors),
        alignment: one.alignment.max(other.alignment),
    });
    let zeroes = one.write_zeroes.zip(other.write_zeroes);
    BlockInfo {
        block_size: one.block_size.max(other.block_size),
        read_only: one.read_only | other.read_only,
        // One without a cache has nothing to do.
        flush: one.flush | other.flush,
        max_segments: one.max_segments.min(other.max_segments),
        max_segment_bytes: one.max_segment_bytes.min(other.max_segment_bytes),
        depth: one.depth.min(other.depth),
        discard,
        write_zeroes: zeroes.map(|(one, other)| WriteZeroesLimits {
            max_sectors: one.max_sectors.min(other.max_sectors),
            may_unmap: one.may_unmap & other.may_unmap,
        }),
        ..one
    }
}

impl<'m> BlockBackend<'m> for Drive<'_, 'm> {
    fn info(&self) -> BlockInfo {
        let medium = self.inside.and_then(|medium| self.media.get(usize::from(medium)));
        BlockInfo { sectors: medium.map_or(0, |medium| medium.info().sectors), ..self.info }
    }

    fn submit(&mut self, request: BlockRequest<'_, 'm>, now: Ticks) -> Result<(), SubmitError> {
        let medium = match self.inside {
            Some(medium) => medium,
            // What was written to the one taken out last is still made durable.
            None if request.op == BlockOp::Flush => self.active,
            None => return Err(SubmitError::Failed),
        };
        if medium != self.active {
            self.go_on_with(medium, now)?;
        }
        self.active().ok_or(SubmitError::Failed)?.submit(request, now)
    }

    fn kick(&mut self) {
        if let Some(medium) = self.active() {
            medium.kick();
        }
    }

    fn poll(&mut self, now: Ticks) -> Option<(Tag, BlockStatus)> {
        let medium = self.active()?;
        match medium.poll(now)? {
            (OWN, _) => medium.poll(now),
            end => Some(end),
        }
    }

    fn in_flight(&self) -> usize {
        self.media.get(usize::from(self.active)).map_or(0, |medium| medium.in_flight())
    }

    fn dma_stopped(&self) -> bool {
        self.media.iter().all(|medium| medium.dma_stopped())
    }

    fn refresh(&mut self) {
        for medium in &mut self.media {
            medium.refresh();
        }
    }

    fn change_medium(&mut self, medium: Option<u8>) -> Result<(), MediumError> {
        if let Some(medium) = medium {
            if usize::from(medium) >= self.media.len() {
                return Err(MediumError::Missing);
            }
            if self.inside.is_some() {
                return Err(MediumError::Occupied);
            }
            self.owed = true;
        }
        self.inside = medium;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::null::NullDisk;
    use crate::backend::ram::RamDisk;
    use crate::memory::{HostRam, Pa, SharedSlice};

    const NOW: Ticks = Ticks(0);

    /// A disk that ends nothing before it is told to, and remembers what it was asked.
    #[derive(Default)]
    struct Slow {
        under_way: Vec<Tag>,
        asked: Vec<(Tag, BlockOp)>,
        answers: usize,
    }

    impl<'m> BlockBackend<'m> for Slow {
        fn info(&self) -> BlockInfo {
            BlockInfo { flush: true, depth: 8, ..BlockInfo::new(100) }
        }

        fn submit(&mut self, request: BlockRequest<'_, 'm>, _: Ticks) -> Result<(), SubmitError> {
            self.under_way.push(request.tag);
            self.asked.push((request.tag, request.op));
            Ok(())
        }

        fn kick(&mut self) {}

        fn poll(&mut self, _now: Ticks) -> Option<(Tag, BlockStatus)> {
            self.answers = self.answers.checked_sub(1)?;
            Some((self.under_way.remove(0), BlockStatus::Ok))
        }

        fn in_flight(&self) -> usize {
            self.under_way.len()
        }
    }

    fn request<'m>(tag: u16, op: BlockOp) -> BlockRequest<'static, 'm> {
        BlockRequest { tag: Tag(tag), op, sector: 0, segments: &[] }
    }

    #[test]
    fn what_is_said_of_a_drive_holds_for_all_its_media() {
        let ram = HostRam::new(4096);
        let image: SharedSlice<'_> = ram.slice(Pa::new(0));
        let (mut null, mut disk) = (NullDisk::new(9), RamDisk::new(image, [7; 20]).read_only());
        let (all, one) = (null.info(), disk.info());
        let media = [&mut null as &mut dyn BlockBackend<'_>, &mut disk];
        let mut drive = Drive::new(media.into_iter().collect());
        let info = drive.info();
        assert_eq!(info.sectors, 9);
        assert!(info.read_only && info.flush);
        assert_eq!(info.max_segments, all.max_segments.min(one.max_segments));
        assert_eq!(info.depth, all.depth.min(one.depth));
        assert_eq!(info.discard.is_some(), one.discard.is_some());
        assert_eq!(info.write_zeroes.is_some(), one.write_zeroes.is_some());
        for (medium, sectors) in [(None, 0), (Some(1), 8), (None, 0), (Some(0), 9)] {
            drive.change_medium(medium).unwrap();
            assert_eq!(drive.info(), BlockInfo { sectors, ..info });
        }
    }

    #[test]
    fn a_medium_goes_in_only_where_none_is_and_if_it_is_there() {
        let (mut one, mut other) = (NullDisk::new(1), NullDisk::new(2));
        let media = [&mut one as &mut dyn BlockBackend<'_>, &mut other];
        let mut drive = Drive::new(media.into_iter().collect());
        assert_eq!(drive.change_medium(Some(1)), Err(MediumError::Occupied));
        assert_eq!(drive.change_medium(None), Ok(()));
        assert_eq!(drive.change_medium(None), Ok(()));
        assert_eq!(drive.change_medium(Some(2)), Err(MediumError::Missing));
        assert_eq!(drive.submit(request(0, BlockOp::Read), NOW), Err(SubmitError::Failed));
        // The one that was taken out needs no flush before it is used again.
        assert_eq!(drive.change_medium(Some(0)), Ok(()));
        assert_eq!(drive.submit(request(0, BlockOp::Read), NOW), Ok(()));
        assert_eq!(NullDisk::new(1).change_medium(None), Err(MediumError::Missing));
    }

    #[test]
    fn requests_under_way_end_at_their_medium_which_is_flushed_before_the_next_is_used() {
        let (mut one, mut other) = (Slow::default(), Slow::default());
        {
            let media = [&mut one as &mut dyn BlockBackend<'_>, &mut other];
            let mut drive = Drive::new(media.into_iter().collect());
            drive.submit(request(1, BlockOp::Write), NOW).unwrap();
            drive.change_medium(None).unwrap();
            // Nothing new, but that what was written may be made durable.
            assert_eq!(drive.submit(request(2, BlockOp::Read), NOW), Err(SubmitError::Failed));
            assert_eq!(drive.submit(request(3, BlockOp::Flush), NOW), Ok(()));
            drive.change_medium(Some(1)).unwrap();
            assert_eq!(drive.submit(request(4, BlockOp::Read), NOW), Err(SubmitError::Busy));
            assert_eq!((drive.in_flight(), drive.poll(NOW)), (2, None));
        }
        // They are answered.
        one.answers = 2;
        let media = [&mut one as &mut dyn BlockBackend<'_>, &mut other];
        let mut drive = Drive::new(media.into_iter().collect());
        drive.change_medium(None).unwrap();
        drive.change_medium(Some(1)).unwrap();
        assert_eq!(drive.poll(NOW), Some((Tag(1), BlockStatus::Ok)));
        assert_eq!(drive.submit(request(4, BlockOp::Read), NOW), Err(SubmitError::Busy));
        assert_eq!(drive.poll(NOW), Some((Tag(3), BlockStatus::Ok)));
        // Our flush is under way, and then it is not.
        assert_eq!(drive.submit(request(4, BlockOp::Read), NOW), Err(SubmitError::Busy));
        assert_eq!(drive.submit(request(4, BlockOp::Read), NOW), Err(SubmitError::Busy));
        assert_eq!((drive.in_flight(), drive.poll(NOW)), (1, None));
        drop(drive);
        one.answers = 1;
        let media = [&mut one as &mut dyn BlockBackend<'_>, &mut other];
        let mut drive =
            Drive { inside: Some(1), owed: false, ..Drive::new(media.into_iter().collect()) };
        assert_eq!(drive.poll(NOW), None);
        assert_eq!(drive.submit(request(4, BlockOp::Read), NOW), Ok(()));
        drop(drive);
        assert_eq!(one.asked.last(), Some(&(OWN, BlockOp::Flush)));
        assert_eq!(one.asked.len(), 3);
        assert_eq!(other.asked, [(Tag(4), BlockOp::Read)]);
    }
}
