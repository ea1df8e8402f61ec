use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::backend::block::{BlockOp, ID_SIZE};
use crate::backend::ram::RamDisk;
use crate::backend::wake::Wake;
use crate::memory::{HostRam, Pa};
use crate::sync::testing::Shared;

const NOW: Ticks = Ticks(0);

/// Counts who was woken.
#[derive(Default)]
struct Bells([AtomicU32; 8]);

impl Wake for Bells {
    fn wake(&self, core: u8) {
        self.0[usize::from(core)].fetch_add(1, Ordering::Relaxed);
    }
}

impl Bells {
    fn take(&self, core: usize) -> u32 {
        self.0[core].swap(0, Ordering::Relaxed)
    }
}

/// A disk that does what a test says.
#[derive(Default)]
struct Script {
    depth: u16,
    /// What was submitted and is not finished: name, operation, sector.
    at_work: Vec<(Tag, BlockOp, u64)>,
    finished: Vec<(Tag, BlockStatus)>,
    refuses: Option<SubmitError>,
    kicks: usize,
}

#[derive(Clone, Default)]
struct Disk(Shared<Script>);

impl Disk {
    fn new(depth: u16) -> Self {
        Self(Shared::new(Script { depth, ..Script::default() }))
    }

    /// Finishes what was submitted with this sector.
    fn finish(&self, sector: u64, status: BlockStatus) {
        let mut script = self.0.borrow_mut();
        let at = script.at_work.iter().position(|it| it.2 == sector).unwrap();
        let (tag, ..) = script.at_work.remove(at);
        script.finished.push((tag, status));
    }
}

impl<'m> BlockBackend<'m> for Disk {
    fn info(&self) -> BlockInfo {
        BlockInfo { depth: self.0.borrow().depth, ..BlockInfo::new(1 << 20) }
    }

    fn submit(&mut self, request: BlockRequest<'_, 'm>, _: Ticks) -> Result<(), SubmitError> {
        let mut script = self.0.borrow_mut();
        if let Some(refusal) = script.refuses {
            return Err(refusal);
        }
        let tag = request.tag;
        assert!(!script.at_work.iter().any(|it| it.0 == tag), "{tag:?} is in use");
        assert!(!script.finished.iter().any(|it| it.0 == tag), "{tag:?} is in use");
        assert!(script.at_work.len() < usize::from(script.depth));
        script.at_work.push((tag, request.op, request.sector));
        Ok(())
    }

    fn kick(&mut self) {
        self.0.borrow_mut().kicks += 1;
    }

    fn poll(&mut self, _: Ticks) -> Option<(Tag, BlockStatus)> {
        let mut script = self.0.borrow_mut();
        (!script.finished.is_empty()).then(|| script.finished.remove(0))
    }

    fn in_flight(&self) -> usize {
        self.0.borrow().at_work.len()
    }
}

fn read(tag: u16, sector: u64) -> BlockRequest<'static, 'static> {
    BlockRequest { tag: Tag(tag), op: BlockOp::Read, sector, segments: &[] }
}

#[test]
fn a_completion_reaches_its_client_whoever_polls() {
    let (bells, disk) = (Bells::default(), Disk::new(8));
    let shared = SharedDisk::new(disk.clone());
    let [mut alice, mut bob] = [1, 2].map(|core| shared.client(Waker::new(&bells, core)).unwrap());
    // Both call theirs 5.
    alice.submit(read(5, 100), NOW).unwrap();
    bob.submit(read(5, 200), NOW).unwrap();
    alice.submit(read(6, 101), NOW).unwrap();
    assert_eq!((alice.in_flight(), bob.in_flight()), (2, 1));
    assert_eq!(alice.poll(NOW), None);
    disk.finish(200, BlockStatus::IoError);
    disk.finish(101, BlockStatus::Ok);
    disk.finish(100, BlockStatus::Unsupported);
    assert_eq!(alice.poll(NOW), Some((Tag(6), BlockStatus::Ok)));
    assert_eq!((bells.take(1), bells.take(2)), (0, 1));
    assert_eq!((alice.in_flight(), bob.in_flight()), (1, 1));
    assert_eq!(bob.poll(NOW), Some((Tag(5), BlockStatus::IoError)));
    assert_eq!(bob.poll(NOW), None);
    assert_eq!((bells.take(1), bells.take(2)), (1, 0));
    assert_eq!(alice.poll(NOW), Some((Tag(5), BlockStatus::Unsupported)));
    assert_eq!((alice.in_flight(), bob.in_flight()), (0, 0));
}

#[test]
fn a_mailbox_is_announced_once_until_it_is_empty() {
    let (bells, disk) = (Bells::default(), Disk::new(8));
    let shared = SharedDisk::new(disk.clone());
    let [mut alice, mut bob] = [1, 2].map(|core| shared.client(Waker::new(&bells, core)).unwrap());
    for n in 0..3 {
        bob.submit(read(n, u64::from(n)), NOW).unwrap();
    }
    for n in 0..3 {
        disk.finish(n, BlockStatus::Ok);
        assert_eq!(alice.poll(NOW), None);
    }
    assert_eq!(bells.take(2), 1);
    for n in 0..3 {
        assert_eq!(bob.poll(NOW), Some((Tag(n), BlockStatus::Ok)));
    }
    bob.submit(read(9, 9), NOW).unwrap();
    disk.finish(9, BlockStatus::Ok);
    alice.poll(NOW);
    assert_eq!(bells.take(2), 1);
}

#[test]
fn the_core_that_the_disk_interrupts_wakes_the_others_and_not_itself() {
    let (bells, disk) = (Bells::default(), Disk::new(8));
    let shared = SharedDisk::new(disk.clone());
    let [mut alice, mut bob] = [1, 2].map(|core| shared.client(Waker::new(&bells, core)).unwrap());
    assert!(!shared.collect(NOW, 1));
    alice.submit(read(0, 10), NOW).unwrap();
    bob.submit(read(0, 20), NOW).unwrap();
    disk.finish(10, BlockStatus::Ok);
    disk.finish(20, BlockStatus::Ok);
    assert!(shared.collect(NOW, 1));
    assert_eq!((bells.take(1), bells.take(2)), (0, 1));
    assert!(!shared.collect(NOW, 1));
    assert!(alice.poll(NOW).is_some() && bob.poll(NOW).is_some());
}

#[test]
fn who_asks_for_everything_leaves_the_others_their_share() {
    let (bells, disk) = (Bells::default(), Disk::new(8));
    let shared = SharedDisk::new(disk.clone());
    let mut clients = [1, 2, 3, 4].map(|core| shared.client(Waker::new(&bells, core)).unwrap());
    let [greedy, others @ ..] = &mut clients;
    let mut taken = 0;
    while greedy.submit(read(taken, taken.into()), NOW).is_ok() {
        taken += 1;
    }
    // Of 8, the shares of the three others are 2 each.
    assert_eq!(taken, 2);
    for (n, other) in others.iter_mut().enumerate() {
        for m in 0..2 {
            other.submit(read(m, 100 + 10 * n as u64 + u64::from(m)), NOW).unwrap();
        }
        assert_eq!(other.submit(read(3, 0), NOW), Err(SubmitError::Busy));
    }
}

#[test]
fn what_is_left_of_an_uneven_depth_is_for_whoever_wants_it() {
    let (bells, disk) = (Bells::default(), Disk::new(11));
    let shared = SharedDisk::new(disk.clone());
    let [mut alice, mut bob] = [1, 2].map(|core| shared.client(Waker::new(&bells, core)).unwrap());
    let fill = |client: &mut Client<'_, '_, Disk>, base: u64| {
        (0..64).take_while(|n| client.submit(read(*n, base + u64::from(*n)), NOW).is_ok()).count()
    };
    assert_eq!(fill(&mut alice, 0), 6);
    assert_eq!(fill(&mut bob, 100), 5);
    // What bob gets back is his, not alice's.
    disk.finish(100, BlockStatus::Ok);
    assert_eq!(alice.poll(NOW), None);
    assert_eq!(alice.submit(read(50, 50), NOW), Err(SubmitError::Busy));
    assert_eq!(bob.poll(NOW), Some((Tag(0), BlockStatus::Ok)));
    assert_eq!(bob.submit(read(0, 100), NOW), Ok(()));
}

#[test]
fn who_does_not_empty_its_mailbox_gets_no_more_than_fits() {
    let (bells, disk) = (Bells::default(), Disk::new(64));
    let shared = SharedDisk::new(disk.clone());
    let [mut alice, mut bob] = [1, 2].map(|core| shared.client(Waker::new(&bells, core)).unwrap());
    for n in 0..64u16 {
        bob.submit(read(n, n.into()), NOW).unwrap();
        disk.finish(n.into(), BlockStatus::Ok);
        assert_eq!(alice.poll(NOW), None);
    }
    assert_eq!(bob.submit(read(64, 64), NOW), Err(SubmitError::Busy));
    for n in 0..64 {
        assert_eq!(bob.poll(NOW), Some((Tag(n), BlockStatus::Ok)));
    }
    assert_eq!(bob.submit(read(64, 64), NOW), Ok(()));
}

#[test]
fn a_refusal_of_the_disk_is_the_client_s_and_takes_no_room() {
    let (bells, disk) = (Bells::default(), Disk::new(2));
    let shared = SharedDisk::new(disk.clone());
    let mut alice = shared.client(Waker::new(&bells, 1)).unwrap();
    for refusal in [SubmitError::Busy, SubmitError::Failed, SubmitError::Unsupported] {
        disk.0.borrow_mut().refuses = Some(refusal);
        for _ in 0..4 {
            assert_eq!(alice.submit(read(0, 0), NOW), Err(refusal));
        }
    }
    disk.0.borrow_mut().refuses = None;
    assert_eq!(alice.in_flight(), 0);
    assert!(alice.submit(read(0, 0), NOW).is_ok() && alice.submit(read(1, 1), NOW).is_ok());
}

#[test]
fn the_17th_client_is_too_many_and_more_clients_than_slots_still_get_theirs() {
    let (bells, disk) = (Bells::default(), Disk::new(4));
    let shared = SharedDisk::new(disk.clone());
    let mut clients: Vec<_> =
        (0..MAX_CLIENTS).map(|_| shared.client(Waker::new(&bells, 1)).unwrap()).collect();
    assert!(shared.client(Waker::new(&bells, 1)).is_none());
    for (n, client) in clients.iter_mut().enumerate() {
        client.submit(read(0, n as u64), NOW).unwrap();
        disk.finish(n as u64, BlockStatus::Ok);
        assert_eq!(client.poll(NOW), Some((Tag(0), BlockStatus::Ok)));
    }
}

/// What a step of the random test does, for the client with this number.
#[derive(Clone, Debug)]
enum Act {
    Submit(usize),
    Poll(usize),
    Finish(usize, BlockStatus),
    Collect,
    /// The disk is reset: all that is at work ends with an error.
    TimeOut,
}

fn act() -> impl Strategy<Value = Act> {
    let status = prop::sample::select(vec![BlockStatus::Ok, BlockStatus::IoError]);
    prop_oneof![
        4 => (0usize..4).prop_map(Act::Submit),
        3 => (0usize..4).prop_map(Act::Poll),
        4 => (0usize..64, status).prop_map(|(n, status)| Act::Finish(n, status)),
        1 => Just(Act::Collect),
        1 => Just(Act::TimeOut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Each client hears of each of its requests once, as it ended, under the name it gave it; it can
    /// always have its share; and whoever has something waiting was woken.
    #[test]
    fn every_request_ends_once_at_its_client(
        depth in 1u16..20, count in 1usize..5, acts in prop::collection::vec(act(), 0..300),
    ) {
        let (bells, disk) = (Bells::default(), Disk::new(depth));
        let shared = SharedDisk::new(disk.clone());
        let mut clients: Vec<_> =
            (0..count).map(|n| shared.client(Waker::new(&bells, n as u8)).unwrap()).collect();
        // By client: its name, its sector, how it ended.
        let mut model = vec![Vec::<(u16, u64, Option<BlockStatus>)>::new(); count];
        let mut woken = vec![false; count];
        let mut next = 0u16;
        let share = (depth as usize / count).max(1);
        for act in acts {
            match act {
                Act::Submit(n) if n < count => {
                    let mine = model[n].iter().filter(|it| it.2.is_none()).count();
                    // The same names for all.
                    let tag = (next / 4) % 1000;
                    next += 1;
                    let all = model.iter().flatten().filter(|it| it.2.is_none()).count();
                    if model[n].iter().any(|it| it.0 == tag) {
                        continue;
                    }
                    match clients[n].submit(read(tag, next.into()), NOW) {
                        Ok(()) => model[n].push((tag, next.into(), None)),
                        Err(error) => {
                            prop_assert_eq!(error, SubmitError::Busy);
                            let full = all == depth.into() || model[n].len() == SLOTS;
                            // While what has finished is not collected, its room is not free.
                            let uncollected = !disk.0.borrow().finished.is_empty();
                            prop_assert!(mine >= share || full || uncollected);
                        }
                    }
                }
                Act::Poll(n) if n < count => {
                    woken[n] = false;
                    while let Some((tag, status)) = clients[n].poll(NOW) {
                        let at = model[n].iter().position(|it| it.0 == tag.0);
                        prop_assert!(at.is_some());
                        let (.., expected) = model[n].remove(at.unwrap());
                        prop_assert_eq!(Some(status), expected);
                    }
                    prop_assert!(model[n].iter().all(|it| it.2.is_none()));
                }
                Act::Finish(n, status) => {
                    let sector = {
                        let script = disk.0.borrow();
                        let Some(at) = n.checked_rem(script.at_work.len()) else { continue };
                        script.at_work[at].2
                    };
                    disk.finish(sector, status);
                    for it in model.iter_mut().flatten().filter(|it| it.1 == sector) {
                        it.2 = Some(status);
                    }
                }
                Act::Collect => {
                    shared.collect(NOW, 0);
                    woken[0] = true;
                }
                Act::TimeOut => {
                    let sectors: Vec<_> =
                        disk.0.borrow().at_work.iter().map(|it| it.2).collect();
                    for sector in sectors {
                        disk.finish(sector, BlockStatus::IoError);
                        for it in model.iter_mut().flatten().filter(|it| it.1 == sector) {
                            it.2 = Some(BlockStatus::IoError);
                        }
                    }
                }
                _ => {}
            }
            for n in 0..count {
                woken[n] |= bells.take(n) != 0;
                let ended = model[n].iter().any(|it| it.2.is_some());
                let uncollected = !disk.0.borrow().finished.is_empty();
                prop_assert!(!ended || woken[n] || uncollected);
                prop_assert_eq!(clients[n].in_flight(), model[n].len());
            }
        }
    }
}

/// Four threads, each with its own quarter of one disk that reorders: what each has written it reads.
#[test]
fn threads_that_share_a_disk_read_what_they_have_written() {
    use crate::backend::ram::CompletionOrder;

    const SECTORS: u64 = 16;
    struct Flags([AtomicBool; 4]);
    impl Wake for Flags {
        fn wake(&self, core: u8) {
            self.0[usize::from(core)].store(true, Ordering::Release);
        }
    }
    let flags = Flags(core::array::from_fn(|_| AtomicBool::new(false)));
    let storage = HostRam::new(4 * SECTORS as usize * 512);
    let buffers = [(); 4].map(|()| HostRam::new(SECTORS as usize * 512 * 2));
    let disk =
        RamDisk::new(storage.slice(Pa::new(0)), [0; ID_SIZE]).with_order(CompletionOrder::Reversed);
    let shared = SharedDisk::new(disk);
    std::thread::scope(|scope| {
        for (n, buffer) in buffers.iter().enumerate() {
            let mut client = shared.client(Waker::new(&flags, n as u8)).unwrap();
            scope.spawn(move || {
                let memory = buffer.slice(Pa::new(0));
                let sector = |at: usize| memory.subslice(at * 512, 512).unwrap();
                let (first, count) = (n as u64 * SECTORS, SECTORS as usize);
                for round in 0..50u8 {
                    for (op, offset) in [(BlockOp::Write, 0), (BlockOp::Read, count)] {
                        for at in 0..count {
                            let value = round ^ (n * count + at) as u8;
                            sector(at).fill(0, 512, value).unwrap();
                        }
                        let mut ended = 0u32;
                        for at in 0..count {
                            let segments = [sector(offset + at)];
                            let (tag, sector) = (Tag(at as u16), first + at as u64);
                            let request = BlockRequest { tag, op, sector, segments: &segments };
                            while client.submit(request, NOW) == Err(SubmitError::Busy) {
                                client.kick();
                                while let Some((tag, status)) = client.poll(NOW) {
                                    assert_eq!(status, BlockStatus::Ok);
                                    ended |= 1 << tag.0;
                                }
                            }
                        }
                        client.kick();
                        while ended != (1 << count) - 1 {
                            match client.poll(NOW) {
                                Some((tag, status)) => {
                                    assert_eq!((status, ended >> tag.0 & 1), (BlockStatus::Ok, 0));
                                    ended |= 1 << tag.0;
                                }
                                None => std::thread::yield_now(),
                            }
                        }
                    }
                    for at in 0..count {
                        let value = round ^ (n * count + at) as u8;
                        assert_eq!(sector(count + at).load_u8(511), Some(value));
                    }
                }
            });
        }
    });
}
