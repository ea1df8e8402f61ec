//! Requests given again to a device that was reset.

use proptest::prelude::*;

use super::*;
use crate::drivers::testing::{CountedDelay, FakeRam, dump, fill};
use crate::drivers::virtio::fake::{
    F_DISCARD, F_EVENT_IDX, F_INDIRECT, F_WRITE_ZEROES, FakeDisk, USUAL, contents,
};

type Disk<'m, 'd> = VirtioBlk<'m, &'d FakeDisk<'m>>;

const TIMEOUT: Ticks = Ticks(1000);

fn ram() -> FakeRam {
    FakeRam::new(layout::DMA_BYTES + 64 * 512)
}

fn open<'m, 'd>(ram: &'m FakeRam, device: &'d FakeDisk<'m>) -> Disk<'m, 'd> {
    let dma = ram.allocate(layout::DMA_BYTES);
    let disk = VirtioBlk::new(device, dma, TIMEOUT, &mut CountedDelay::default()).unwrap();
    device.set().prompt = false;
    disk
}

fn submit<'m>(
    disk: &mut Disk<'m, '_>,
    (tag, op, sector): (u16, BlockOp, u64),
    segments: &[SharedSlice<'m>],
    now: u64,
) {
    disk.submit(BlockRequest { tag: Tag(tag), op, sector, segments }, Ticks(now)).unwrap();
    disk.kick();
}

#[test]
fn what_is_given_again_is_what_it_was_whatever_the_ring() {
    for features in [USUAL, USUAL & !F_INDIRECT] {
        let ram = ram();
        let device = FakeDisk::new(&ram, features | F_DISCARD | F_WRITE_ZEROES);
        let mut disk = open(&ram, &device);
        let buffers = [ram.allocate(512), ram.allocate(512), ram.allocate(512)];
        fill(buffers[1], &[0x5a; 512]);
        let zeroes = BlockOp::WriteZeroes { sectors: 2, unmap: false };
        submit(&mut disk, (0, BlockOp::Read, 9), &buffers[..1], 0);
        // In two pieces: not neighbours.
        submit(&mut disk, (1, BlockOp::Read, 7), &[buffers[2], buffers[0]], 1);
        submit(&mut disk, (2, BlockOp::Write, 20), &buffers[1..2], 1);
        submit(&mut disk, (3, zeroes, 30), &[], 1);
        submit(&mut disk, (4, BlockOp::Discard { sectors: 3 }, 40), &[], 1);
        submit(&mut disk, (5, BlockOp::Flush, 0), &[], 1);
        let before = device.get().requests.clone();
        assert_eq!(disk.poll(Ticks(1000)), Some((Tag(0), BlockStatus::IoError)));
        let told = |request: &crate::drivers::virtio::fake::Request| {
            (request.head, request.kind, request.sector, request.data.clone())
        };
        let again = device.get().requests.iter().map(told).collect::<Vec<_>>();
        assert_eq!(again, before.iter().skip(1).map(told).collect::<Vec<_>>());
        device.complete_all();
        for tag in 1..6 {
            assert_eq!(disk.poll(Ticks(1001)), Some((Tag(tag), BlockStatus::Ok)));
        }
        assert_eq!([dump(buffers[2]), dump(buffers[0])].concat(), contents(7, 2));
        assert_eq!(device.get().disk[20 * 512..21 * 512], [0x5a; 512]);
        assert_eq!(device.get().ranges, [(30, 2, 0), (40, 3, 0)]);
        assert_eq!((disk.in_flight(), disk.resets()), (0, 1));
    }
}

#[test]
fn a_status_of_before_the_reset_does_not_count() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    let mut disk = open(&ram, &device);
    let buffers = [ram.allocate(512), ram.allocate(512)];
    submit(&mut disk, (0, BlockOp::Read, 1), &buffers[..1], 0);
    submit(&mut disk, (1, BlockOp::Read, 2), &buffers[1..], 1);
    // Done, but not told.
    let request = device.get().requests[1].clone();
    device.perform(&request);
    assert_eq!(disk.poll(Ticks(1000)), Some((Tag(0), BlockStatus::IoError)));
    // This time told, but not done.
    let head = device.set().requests.remove(0).head;
    device.push_used(head.into(), 0);
    assert_eq!(disk.poll(Ticks(1001)), Some((Tag(1), BlockStatus::IoError)));
}

#[test]
fn a_request_that_is_reset_a_third_time_fails_and_later_ones_do_not() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    let mut disk = open(&ram, &device);
    let buffer = [ram.allocate(512)];
    submit(&mut disk, (1, BlockOp::Read, 5), &buffer, 0);
    for resets in 1..3 {
        device.push_used(63, 0);
        assert_eq!(disk.poll(Ticks(0)), None);
        assert_eq!((disk.resets(), disk.in_flight()), (resets, 1));
    }
    submit(&mut disk, (2, BlockOp::Flush, 0), &[], 0);
    device.push_used(63, 0);
    assert_eq!(disk.poll(Ticks(0)), Some((Tag(1), BlockStatus::IoError)));
    assert_eq!(disk.poll(Ticks(0)), None);
    device.complete(0);
    assert_eq!(disk.poll(Ticks(0)), Some((Tag(2), BlockStatus::Ok)));
    // Its slot has all its chances again.
    submit(&mut disk, (3, BlockOp::Read, 5), &buffer, 0);
    device.push_used(63, 0);
    assert_eq!(disk.poll(Ticks(0)), None);
    device.complete(0);
    assert_eq!(disk.poll(Ticks(0)), Some((Tag(3), BlockStatus::Ok)));
    assert_eq!(dump(buffer[0]), contents(5, 1));
}

#[test]
fn a_slow_reset_costs_no_request_its_time() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    let mut disk = open(&ram, &device);
    disk.set_interrupts(true);
    submit(&mut disk, (1, BlockOp::Flush, 0), &[], 0);
    submit(&mut disk, (2, BlockOp::Flush, 0), &[], 500);
    device.set().slow_reset = 1;
    assert_eq!(disk.poll(Ticks(1400)), None);
    assert_eq!(disk.poll(Ticks(1900)), Some((Tag(1), BlockStatus::IoError)));
    assert_eq!(disk.poll(Ticks(2899)), None);
    device.complete(0);
    assert_eq!(device.get().interrupts, 1);
    assert_eq!(disk.poll(Ticks(2899)), Some((Tag(2), BlockStatus::Ok)));
}

#[test]
fn a_device_that_does_not_reset_is_shown_nothing_more() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    let mut disk = open(&ram, &device);
    submit(&mut disk, (1, BlockOp::Flush, 0), &[], 0);
    let flush = BlockRequest { tag: Tag(2), op: BlockOp::Flush, sector: 0, segments: &[] };
    disk.submit(flush, Ticks(900)).unwrap();
    device.set().slow_reset = u32::MAX;
    let (index, rung) = (device.available().load_u16(2), device.get().notifies);
    assert_eq!(disk.poll(Ticks(1000)), None);
    disk.kick();
    assert_eq!(disk.poll(Ticks(2000)), Some((Tag(1), BlockStatus::IoError)));
    assert_eq!(disk.poll(Ticks(2000)), Some((Tag(2), BlockStatus::IoError)));
    disk.kick();
    assert_eq!((device.available().load_u16(2), device.get().notifies), (index, rung));
    assert!(disk.has_failed() && !disk.dma_stopped());
}

/// Something done to a disk of [`CELLS`] sectors.
#[derive(Clone, Debug)]
enum Step {
    Submit {
        op: u8,
        cell: u64,
    },
    Kick,
    /// The device finishes the request of this number, modulo how many it has.
    Complete(usize),
    /// It does it, and does not tell.
    Perform(usize),
    /// It loses it.
    Lose(usize),
    Poll,
    Wait(u64),
    /// It says that it has done what it was not given.
    Lie,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0u8..6, 0..CELLS).prop_map(|(op, cell)| Step::Submit { op, cell }),
        6 => Just(Step::Kick),
        8 => any::<usize>().prop_map(Step::Complete),
        3 => any::<usize>().prop_map(Step::Perform),
        1 => any::<usize>().prop_map(Step::Lose),
        12 => Just(Step::Poll),
        3 => (0u64..400).prop_map(Step::Wait),
        1 => Just(Step::Lie),
    ]
}

const CELLS: u64 = 3;

/// What is known of a request: when it came and ended by the count of steps, and whether well. A
/// write's version is its place among them all, the disk's first one 0.
#[derive(Clone, Debug)]
struct Known {
    op: BlockOp,
    cell: u64,
    came: usize,
    ended: Option<(usize, BlockStatus)>,
    /// When its time began, and how often it was given again.
    since: u64,
    restarts: u32,
    /// It must end badly.
    doomed: bool,
}

/// Whether a cell may hold `version` for whoever looks from step `at` on: no write that came after that
/// one's end had ended well before.
fn may_hold(all: &[Known], cell: u64, version: usize, at: usize) -> bool {
    let Some(end) = all[version].ended.map(|(end, _)| end) else { return true };
    all.iter().filter(|other| other.op == BlockOp::Write && other.cell == cell).all(|other| {
        let ended = matches!(other.ended, Some((ended, BlockStatus::Ok)) if ended < at);
        !(ended && other.came > end)
    })
}

fn version(bytes: &[u8]) -> usize {
    u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 300 }))]

    /// However often the device is reset: only what took too long, or was given again twice, fails;
    /// nobody reads what was overwritten before he asked, not even by a write that failed; and what
    /// was written before a flush came is durable when it ends well.
    #[test]
    fn nothing_that_has_ended_is_undone_and_only_the_late_fail(
        steps in prop::collection::vec(step(), 1..300),
        indirect: bool,
        event_index: bool,
    ) {
        let ram = ram();
        let mut offered = USUAL;
        if !indirect { offered &= !F_INDIRECT; }
        if !event_index { offered &= !F_EVENT_IDX; }
        let device = FakeDisk::new(&ram, offered);
        device.set().disk = vec![0; CELLS as usize * 512];
        let mut disk = open(&ram, &device);
        let depth = usize::from(disk.info().depth);
        let memory = ram.allocate(64 * 512);
        let buffer = |tag: usize| memory.subslice(tag * 512, 512).unwrap();
        let first = Known {
            op: BlockOp::Flush, cell: 0, came: 0, ended: Some((0, BlockStatus::Ok)),
            since: 0, restarts: 0, doomed: false,
        };
        let mut all = vec![first];
        let mut waiting: Vec<Option<usize>> = vec![None; depth];
        let (mut now, mut resets) = (0, 0);
        let end = [Step::Kick, Step::Wait(TIMEOUT.0)];
        let steps = steps.into_iter().chain(end).chain((0..66).map(|_| Step::Poll));
        for (at, step) in (1..).zip(steps) {
            let held = device.get().requests.len().max(1);
            match step {
                Step::Submit { op, cell } => {
                    let Some(tag) = waiting.iter().position(Option::is_none) else { continue };
                    let (op, segments) = match op {
                        0..3 => (BlockOp::Write, vec![buffer(tag)]),
                        3..5 => (BlockOp::Read, vec![buffer(tag)]),
                        _ => (BlockOp::Flush, vec![]),
                    };
                    fill(buffer(tag), &(all.len() as u64).to_le_bytes());
                    let request =
                        BlockRequest { tag: Tag(tag as u16), op, sector: cell, segments: &segments };
                    prop_assert_eq!(disk.submit(request, Ticks(now)), Ok(()));
                    waiting[tag] = Some(all.len());
                    all.push(Known {
                        op, cell, came: at, ended: None, since: now, restarts: 0, doomed: false,
                    });
                }
                Step::Kick => disk.kick(),
                Step::Complete(_) | Step::Perform(_) | Step::Lose(_)
                    if device.get().requests.is_empty() => {}
                Step::Complete(n) => device.complete(n % held),
                Step::Perform(n) => {
                    let request = device.get().requests[n % held].clone();
                    device.perform(&request);
                }
                Step::Lose(n) => drop(device.set().requests.remove(n % held)),
                Step::Poll => {
                    let end = disk.poll(Ticks(now));
                    if disk.resets() != resets {
                        resets = disk.resets();
                        for known in waiting.iter().flatten() {
                            let known = &mut all[*known];
                            known.doomed =
                                known.since + TIMEOUT.0 <= now || known.restarts == 2;
                            (known.since, known.restarts) = (now, known.restarts + 1);
                        }
                    }
                    let Some((Tag(tag), status)) = end else { continue };
                    let tag = usize::from(tag);
                    let known = waiting[tag].take();
                    prop_assert!(known.is_some(), "{} ended twice", tag);
                    let known = known.unwrap();
                    prop_assert_eq!(status == BlockStatus::IoError, all[known].doomed);
                    all[known].ended = Some((at, status));
                    let Known { op, cell, came, .. } = all[known];
                    match op {
                        _ if status != BlockStatus::Ok => {}
                        BlockOp::Read => {
                            let found = version(&dump(buffer(tag)));
                            prop_assert!(may_hold(&all, cell, found, came), "reads {}", found);
                        }
                        BlockOp::Flush => for cell in 0..CELLS {
                            let found = version(&device.get().durable[cell as usize * 512..]);
                            prop_assert!(may_hold(&all, cell, found, came), "keeps {}", found);
                        },
                        _ => {}
                    }
                }
                Step::Wait(span) => now += span,
                Step::Lie => {
                    device.set().lied = true;
                    device.push_used(255, 0);
                }
            }
            prop_assert_eq!(disk.in_flight(), waiting.iter().flatten().count());
        }
        prop_assert_eq!(disk.in_flight(), 0);
        prop_assert!(!disk.has_failed());
    }
}
