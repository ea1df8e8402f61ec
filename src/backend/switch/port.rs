//! A port: what is set for it, what waits at it, and how a frame gets there.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};

use super::backlog::{self, Backlog};
use super::counters::{Counter, Counters};
use super::filter;
use super::frame::Vlan;
#[cfg(any(test, feature = "metadata"))]
use super::gather::Gather;
use super::gather::Outgoing;
use super::queue::{Header, NotWritten, PairQueue};
use crate::backend::net::{
    Busy, Checksum, Filter, FrameInfo, MAX_PAIRS, MacAddress, Offloads, Received, Reception,
    Segmentation, SendTag,
};
use crate::backend::wake::Waker;
use crate::memory::SharedSlice;
use crate::sync::{Mutex, MutexGuard};

use Ordering::Relaxed;

/// The smallest MTU a port can have: that of IPv4.
pub const MIN_MTU: u16 = 68;
/// Flows whose pair a port remembers; a power of two.
const FLOWS: usize = 128;
/// Frames of one port that the uplink may have at a time, so that no guest has all of it.
pub(super) const PORT_FLIGHTS: usize = 64;

/// What a port is set up as.
pub struct PortConfig<'m> {
    /// The address of the device, which belongs to it: nobody else may send with it.
    pub mac: MacAddress,
    /// The most bytes after the Ethernet header and a tag, from [`MIN_MTU`] on.
    pub mtu: u16,
    /// The VLAN of an access port, 1 to 4094. `None`: a trunk, where tags are as they are.
    pub vlan: Option<u16>,
    /// Talks to the uplink and to ports that are not isolated, only.
    pub isolated: bool,
    /// Frames with the source address of another port's device are dropped.
    pub guard: bool,
    /// In Mbit/s, as the guest is told.
    pub speed: Option<u32>,
    /// Whom to tell that something has come.
    pub waker: Waker<'m>,
    /// For each pair of queues that the device can have, at most [`MAX_PAIRS`].
    pub queues: &'m mut [PairQueue<'m>],
    /// For frames that find no buffer; shared out among the pairs.
    pub backlog: SharedSlice<'m>,
}

bitflags::bitflags! {
    /// What is set for a port, and its state.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(super) struct Flags: u8 {
        /// The driver is ready.
        const OPEN = 1 << 0;
        /// As the monitor has it.
        const LINK_UP = 1 << 1;
        const ISOLATED = 1 << 2;
        const GUARD = 1 << 3;
    }
}

/// What is set for a port, at one moment: one word, which senders read.
#[derive(Clone, Copy)]
pub(super) struct Control {
    pub(super) vlan: Vlan,
    pub(super) mtu: u16,
    pub(super) flags: Flags,
}

impl Control {
    fn to_word(self) -> u64 {
        u64::from(self.vlan.0) << 32 | u64::from(self.mtu) << 16 | u64::from(self.flags.bits())
    }

    #[inline]
    fn of_word(word: u64) -> Self {
        Self {
            vlan: Vlan((word >> 32) as u16),
            mtu: (word >> 16) as u16,
            flags: Flags::from_bits_truncate(word as u8),
        }
    }

    /// Frames can come.
    #[inline]
    pub(super) fn is_up(self) -> bool {
        self.flags.contains(Flags::OPEN.union(Flags::LINK_UP))
    }

    #[inline]
    pub(super) fn is_isolated(self) -> bool {
        self.flags.contains(Flags::ISOLATED)
    }

    /// Nobody may send with another's address.
    #[inline]
    pub(super) fn guards(self) -> bool {
        self.flags.contains(Flags::GUARD)
    }

    /// Whether frames of `vlan` are for the port, and if so, whether they have a tag there.
    #[inline]
    pub(super) fn membership(self, vlan: Vlan) -> Option<bool> {
        if self.vlan == Vlan::NONE { Some(true) } else { (self.vlan == vlan).then_some(false) }
    }
}

/// A port that is in use.
pub(super) struct PortState<'m> {
    queues: &'m mut [PairQueue<'m>],
    backlogs: [Backlog<'m>; MAX_PAIRS],
    filter: Filter,
    reception: Reception,
    open: bool,
    /// Frames that the uplink has sent.
    sent: heapless::Deque<SendTag, PORT_FLIGHTS>,
}

/// A port's memory: placed by whoever sets up the switch.
pub struct PortCell<'m> {
    pub(super) mac: MacAddress,
    pub(super) speed: Option<u32>,
    pub(super) pairs: u16,
    pub(super) waker: Waker<'m>,
    control: AtomicU64,
    changed: AtomicBool,
    /// Pairs for which something has been received: a bit each.
    ready: AtomicU8,
    /// Frames that the uplink has, or has sent and that were not told yet.
    pub(super) flights: AtomicU16,
    /// Pairs that are in use. More than one: flows are told apart.
    pub(super) active: AtomicU8,
    /// By a flow's hash, 1 + the pair that the driver sends it by; 0: it has not.
    steering: [AtomicU8; FLOWS],
    pub(super) counters: Counters,
    state: Mutex<PortState<'m>>,
}

impl<'m> PortCell<'m> {
    /// A port with its link up, which no driver uses yet. Values out of range are brought into it.
    #[inline]
    pub fn new(config: PortConfig<'m>) -> Self {
        let PortConfig { mac, mtu, vlan, isolated, guard, speed, waker, queues, backlog } = config;
        let pairs = queues.len().clamp(1, MAX_PAIRS);
        let mut flags = Flags::LINK_UP;
        flags.set(Flags::ISOLATED, isolated);
        flags.set(Flags::GUARD, guard);
        let vlan = vlan.and_then(Vlan::new).unwrap_or(Vlan::NONE);
        let control = Control { vlan, mtu: mtu.max(MIN_MTU), flags };
        let share = (backlog.len() / pairs) & !15;
        let part = |pair: usize| {
            Backlog::new(backlog.subslice(pair * share, share).unwrap_or(SharedSlice::empty()))
        };
        Self {
            mac,
            speed,
            pairs: pairs as u16,
            waker,
            control: AtomicU64::new(control.to_word()),
            changed: AtomicBool::new(false),
            ready: AtomicU8::new(0),
            flights: AtomicU16::new(0),
            active: AtomicU8::new(1),
            steering: [const { AtomicU8::new(0) }; FLOWS],
            counters: Counters::new(),
            state: Mutex::new(PortState {
                queues,
                backlogs: [part(0), part(1), part(2), part(3)],
                filter: filter::default(mac),
                reception: Reception { pairs: 1, ..Reception::default() },
                open: false,
                sent: heapless::Deque::new(),
            }),
        }
    }

    /// What is set.
    #[inline]
    pub(super) fn control(&self) -> Control {
        Control::of_word(self.control.load(Relaxed))
    }

    /// Changes what is set. Returns what it was and what it is.
    pub(super) fn set(&self, change: impl Fn(&mut Control)) -> (Control, Control) {
        let mut before = self.control.load(Relaxed);
        loop {
            let mut control = Control::of_word(before);
            change(&mut control);
            let after = control.to_word();
            match self.control.compare_exchange_weak(before, after, Relaxed, Relaxed) {
                Ok(_) => return (Control::of_word(before), control),
                Err(present) => before = present,
            }
        }
    }

    /// The guest is to be told of a change.
    pub(super) fn note_change(&self) {
        self.changed.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(super) fn take_change(&self) -> bool {
        self.changed.load(Relaxed) && self.changed.swap(false, Ordering::Acquire)
    }

    /// A driver is ready, or wants to receive in another way. What it has posted stays, and what it has
    /// been given; frames that wait for a buffer may be as it does not want them any more.
    pub(super) fn open(&self, reception: Reception) {
        let pairs = reception.pairs.min(self.pairs).max(1);
        let mut state = self.state.lock();
        if state.open {
            state.forget_waiting();
        } else {
            state.forget();
            self.ready.store(0, Relaxed);
        }
        state.filter = filter::default(self.mac);
        state.reception = Reception { pairs, ..reception };
        state.open = true;
        self.active.store(pairs as u8, Relaxed);
        for flow in &self.steering {
            flow.store(0, Relaxed);
        }
        self.set(|control| control.flags.insert(Flags::OPEN));
    }

    /// No driver uses the port any more.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        self.set(|control| control.flags.remove(Flags::OPEN));
        state.open = false;
        state.forget();
        while state.sent.pop_front().is_some() {
            self.flights.fetch_sub(1, Relaxed);
        }
        self.ready.store(0, Relaxed);
    }

    pub(super) fn set_filter(&self, filter: &Filter) {
        self.state.lock().filter.clone_from(filter);
    }

    /// Posts a buffer; a frame that waits gets it at once.
    pub(super) fn post(&self, pair: u16, segments: &[SharedSlice<'m>]) -> Result<(), Busy> {
        let mut state = self.state.lock();
        let queue = state.queues.get_mut(usize::from(pair)).ok_or(Busy)?;
        queue.post(segments)?;
        if state.backlogs.get(usize::from(pair)).is_some_and(|backlog| !backlog.is_empty()) {
            state.drain(usize::from(pair), &self.counters);
            self.show(&state, usize::from(pair));
        }
        Ok(())
    }

    /// The oldest buffers of a pair that frames have filled, as many as `out` has room for.
    pub(super) fn take_received(&self, pair: u16, out: &mut [Received]) -> usize {
        // Whoever fills a buffer after this wakes the port.
        if self.ready.load(Relaxed) >> (pair & 7) & 1 == 0 {
            return 0;
        }
        let mut state = self.state.lock();
        let Some(queue) = state.queues.get_mut(usize::from(pair)) else { return 0 };
        let count = queue.take_received(out);
        self.show(&state, usize::from(pair));
        count
    }

    /// Forgets the buffers of a pair.
    pub(super) fn withdraw(&self, pair: u16) {
        let mut state = self.state.lock();
        if let Some(queue) = state.queues.get_mut(usize::from(pair)) {
            queue.clear();
        }
        if let Some(backlog) = state.backlogs.get_mut(usize::from(pair)) {
            backlog.clear();
        }
        self.show(&state, usize::from(pair));
    }

    /// Says whether there is something for `pair`.
    #[inline]
    fn show(&self, state: &PortState<'m>, pair: usize) {
        let has = state.queues.get(pair).is_some_and(PairQueue::has_received);
        let bit = 1 << (pair & 7);
        let ready = self.ready.load(Relaxed);
        // Written with the lock held only.
        self.ready.store(if has { ready | bit } else { ready & !bit }, Relaxed);
    }

    /// The uplink has sent a frame of the port's. A driver that has gone is not told.
    pub(super) fn push_sent(&self, tag: SendTag) {
        let mut state = self.state.lock();
        if !state.open || state.sent.push_back(tag).is_err() {
            self.flights.fetch_sub(1, Relaxed);
        }
    }

    pub(super) fn pop_sent(&self) -> Option<SendTag> {
        let tag = self.state.lock().sent.pop_front()?;
        self.flights.fetch_sub(1, Relaxed);
        Some(tag)
    }

    /// Frames that the uplink has, or has sent and that were not told yet.
    pub(super) fn flights(&self) -> usize {
        self.flights.load(Relaxed).into()
    }

    /// Whether the driver uses more than one pair.
    pub(super) fn has_flows(&self) -> bool {
        self.active.load(Relaxed) > 1
    }

    /// Remembers which pair a flow is sent by (5.1.6.5.6).
    #[inline]
    pub(super) fn steer(&self, hash: u32, pair: u16) {
        if let Some(place) = self.steering.get(hash as usize & (FLOWS - 1)) {
            place.store(1 + pair as u8, Relaxed);
        }
    }

    /// The pair that frames of a flow go to.
    #[inline]
    fn pair_of(&self, hash: u32, pairs: u16) -> usize {
        if pairs < 2 {
            return 0;
        }
        let place = self.steering.get(hash as usize & (FLOWS - 1));
        match place.map_or(0, |place| place.load(Relaxed)) {
            steered if steered != 0 && u16::from(steered) <= pairs => usize::from(steered) - 1,
            // Spread, without a division.
            _ => ((u64::from(hash) * u64::from(pairs)) >> 32) as usize,
        }
    }

    /// What the driver has to be asked before a frame to `destination` is brought, with a tag of
    /// `vlan` or none. `None`: it does not want it.
    #[inline]
    pub(super) fn accepts(
        &self,
        state: &PortState<'m>,
        destination: MacAddress,
        vlan: Option<u16>,
    ) -> Option<Offloads> {
        if !state.open {
            self.counters.add(Counter::DropLinkDown, 1);
            return None;
        }
        if !filter::wants(&state.filter, destination, vlan) {
            self.counters.add(Counter::DropFiltered, 1);
            return None;
        }
        Some(state.reception.accepts)
    }

    /// Brings a frame to the driver that did not come from the switch.
    #[cfg(any(test, feature = "metadata"))]
    pub(super) fn deliver(&self, frame: &[u8]) {
        let Some(destination) = frame.first_chunk() else { return };
        let mut state = self.state.lock();
        if self.control().is_up() && self.accepts(&state, MacAddress(*destination), None).is_some()
        {
            let nothing = [SharedSlice::empty()];
            let frame = Outgoing { head: frame, body: Gather::all(&nothing) };
            self.put(&mut state, 0, FrameInfo::PLAIN, frame);
        }
    }

    /// The port's lock: a leaf, nothing else is taken while it is held.
    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, PortState<'m>> {
        self.state.lock()
    }

    /// Brings a frame that the driver accepts as it is: to a buffer, or to where it waits for one.
    #[inline]
    pub(super) fn put(
        &self,
        state: &mut PortState<'m>,
        hash: u32,
        info: FrameInfo,
        frame: Outgoing<'_, '_>,
    ) {
        if !state.open {
            return self.counters.add(Counter::DropLinkDown, 1);
        }
        let len = frame.len();
        let pair = self.pair_of(hash, state.reception.pairs);
        let mergeable = state.reception.mergeable;
        let header = header(&info);
        let Some(queue) = state.queues.get_mut(pair) else { return };
        let Some(backlog) = state.backlogs.get_mut(pair) else { return };
        let written = if backlog.is_empty() {
            queue.write(header, frame, mergeable)
        } else {
            Err(NotWritten::NoBuffer)
        };
        let dropped = match written {
            Ok(()) => {
                self.show(state, pair);
                None
            }
            Err(NotWritten::SmallBuffer) => Some(Counter::DropSmallBuffer),
            Err(NotWritten::NoBuffer) if backlog.push(&header, frame).is_some() => {
                self.counters.add(Counter::Waited, 1);
                None
            }
            Err(NotWritten::NoBuffer) => Some(Counter::DropNoBuffer),
        };
        match dropped {
            Some(cause) => self.counters.add(cause, 1),
            None => {
                self.counters.add(Counter::ReceivedFrames, 1);
                self.counters.add(Counter::ReceivedBytes, len as u64);
            }
        }
    }
}

impl PortState<'_> {
    /// Forgets all buffers and the frames that wait.
    fn forget(&mut self) {
        for queue in self.queues.iter_mut() {
            queue.clear();
        }
        self.forget_waiting();
    }

    fn forget_waiting(&mut self) {
        for backlog in &mut self.backlogs {
            backlog.clear();
        }
    }

    /// Writes frames that wait to the buffers that are there.
    #[inline(never)]
    fn drain(&mut self, pair: usize, counters: &Counters) {
        let mergeable = self.reception.mergeable;
        let Some(queue) = self.queues.get_mut(pair) else { return };
        let Some(backlog) = self.backlogs.get_mut(pair) else { return };
        while let Some((header, frame)) = backlog.front() {
            match queue.write(header, backlog::whole(&[frame]), mergeable) {
                Ok(()) => (),
                Err(NotWritten::NoBuffer) => return,
                Err(NotWritten::SmallBuffer) => counters.add(Counter::DropSmallBuffer, 1),
            }
            backlog.pop(frame.len());
        }
    }
}

/// virtio_net_hdr (5.1.6), but for num_buffers.
#[inline]
fn header(info: &FrameInfo) -> Header {
    const NEEDS_CSUM: u8 = 1;
    const DATA_VALID: u8 = 2;
    const GSO_TCPV4: u8 = 1;
    const GSO_TCPV6: u8 = 4;
    const GSO_UDP_L4: u8 = 5;
    const GSO_ECN: u8 = 0x80;
    let (flags, start, offset) = match info.checksum {
        Checksum::Unknown => (0, 0, 0),
        Checksum::Valid => (DATA_VALID, 0, 0),
        Checksum::Partial { start, offset } => (NEEDS_CSUM, start, offset),
    };
    let (kind, header_len, size) = info.gso.map_or((0, 0, 0), |gso| {
        let kind = match gso.kind {
            Segmentation::TcpV4 => GSO_TCPV4,
            Segmentation::TcpV6 => GSO_TCPV6,
            Segmentation::Udp => GSO_UDP_L4,
        };
        (kind | if gso.ecn { GSO_ECN } else { 0 }, gso.header_len, gso.size)
    });
    let ([h0, h1], [s0, s1]) = (header_len.to_le_bytes(), size.to_le_bytes());
    let ([c0, c1], [o0, o1]) = (start.to_le_bytes(), offset.to_le_bytes());
    [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1, 0, 0]
}
