//! An Ethernet switch between guests, with a way out through the board's network card.
//!
//! A frame goes from the sender's memory straight to buffers that the receiver has posted, by the
//! core that the sender runs on; what goes out is read by the card itself. Nobody waits, and nothing
//! is allocated.
//!
//! # Who locks what
//!
//! Cores share the switch. There is a lock for the uplink, and one in each port; with the uplink's
//! held a port's may be taken, with a port's nothing, so that two ports are never held together. The
//! forwarding table is read without a lock; who changes it takes its own, with nothing inside.
//!
//! # VLANs
//!
//! Inside, every frame is of a VLAN or of none. An access port has frames of its VLAN, without tags;
//! a trunk, and the uplink, frames of all with their tags, and those of none without.

mod backlog;
mod checksum;
mod counters;
mod egress;
mod filter;
mod flow;
mod forwarding;
mod frame;
mod gather;
mod handle;
mod port;
mod queue;
mod segment;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod uplink;

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use spin::Once;

use super::clock::{Frequency, Ticks};
use super::net::{
    Busy, Checksum, Frame, FrameInfo, MIN_FRAME, MacAddress, Offloads, SendTag, Sent,
};
use crate::sync::Mutex;
use checksum::Completed;
use counters::Counters;
use egress::{Egress, Job, needs};
use forwarding::{Forwarding, Learned, Place};
use frame::{Head, Shaped, TAG, Tagging, Vlan};
use gather::{Gather, Outgoing};
use port::{Control, PORT_FLIGHTS};
use segment::{Headers, Segments};

pub use counters::Counter;
pub use handle::Port;
pub use port::{MIN_MTU, PortCell, PortConfig};
pub use queue::PairQueue;
pub use uplink::{MAX_HEADER, Room, Uplink, UplinkFrame, UplinkInfo, UplinkTag};

/// Ports that a switch can have, the uplink not counted.
pub const MAX_PORTS: usize = 16;

/// How long a station is remembered that is not heard of (IEEE 802.1Q, table 8-6).
pub const AGEING: core::time::Duration = core::time::Duration::from_secs(300);

/// Frames taken from the uplink before its lock is given to others.
const BATCH: usize = 16;
/// Batches of one call of [`Switch::poll_uplink`].
const BATCHES: usize = 4;

/// What [`Switch::attach`] says if there are [`MAX_PORTS`] ports, or the address is another port's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAttached;

/// A set of ports, a bit each.
#[derive(Clone, Copy, Default)]
struct Ports(u32);

impl Ports {
    fn add(&mut self, index: usize) {
        self.0 |= 1 << (index & 31);
    }
}

/// Where a frame goes.
enum Target {
    One(Place),
    All,
}

/// A frame that is on its way through the switch.
struct Passage<'a, 'm> {
    frame: Frame<'a, 'm>,
    head: Head,
    vlan: Vlan,
    /// Where it comes from.
    from: Place,
    /// It comes from an isolated port.
    isolated: bool,
    /// Of its flow, if any port tells flows apart.
    hash: u32,
}

/// The switch. Shared by all cores.
pub struct Switch<'m> {
    ports: [Once<&'m PortCell<'m>>; MAX_PORTS],
    /// Ports that there are.
    count: AtomicU32,
    forwarding: Forwarding,
    egress: Mutex<Egress<'m>>,
    /// There is an uplink, and its link is up.
    uplink_up: AtomicBool,
    /// Some port has more than one pair of queues: flows are told apart.
    flows: AtomicBool,
    uplink_counters: Counters,
}

impl<'m> Switch<'m> {
    /// A switch with no ports. `seed` is what nobody can guess; the counter, for instance.
    #[inline]
    pub const fn new(frequency: Frequency, seed: u64) -> Self {
        Self {
            ports: [const { Once::new() }; MAX_PORTS],
            count: AtomicU32::new(0),
            forwarding: Forwarding::new(frequency.ticks(AGEING), seed),
            egress: Mutex::new(Egress::new()),
            uplink_up: AtomicBool::new(false),
            flows: AtomicBool::new(false),
            uplink_counters: Counters::new(),
        }
    }

    /// Connects the board's network card. Before frames move, and once.
    pub fn connect(&self, card: &'m mut (dyn Uplink<'m> + 'm)) {
        let mut egress = self.egress.lock();
        egress.connect(card);
        self.uplink_up.store(egress.info.is_some_and(|info| info.link_up), Relaxed);
    }

    /// Adds a port, and gives the device's end of it.
    ///
    /// # Errors
    /// [`NotAttached`].
    pub fn attach(&self, cell: &'m PortCell<'m>) -> Result<Port<'_, 'm>, NotAttached> {
        let control = cell.control();
        // Who changes the table takes the uplink's lock, so that ports come one at a time.
        let _turn = self.egress.lock();
        let index = self.count.load(Relaxed) as usize;
        let place = self.ports.get(index).ok_or(NotAttached)?;
        if !self.forwarding.set_own(cell.mac, own_vlan(control), Place::port(index)) {
            return Err(NotAttached);
        }
        place.call_once(|| cell);
        self.count.store(index as u32 + 1, core::sync::atomic::Ordering::Release);
        if cell.pairs > 1 {
            self.flows.store(true, Relaxed);
        }
        Ok(Port::new(self, cell, index))
    }

    /// Port `index`, in order of attachment.
    #[inline]
    fn port(&self, index: usize) -> Option<&'m PortCell<'m>> {
        self.ports.get(index)?.get().copied()
    }

    /// Takes a frame from a port.
    fn forward(
        &self,
        index: usize,
        cell: &PortCell<'m>,
        tag: SendTag,
        frame: Frame<'_, 'm>,
        now: Ticks,
        woken: &mut Ports,
    ) -> Result<Sent, Busy> {
        let control = cell.control();
        let dropped = |cause| {
            cell.counters.add(cause, 1);
            Ok(Sent::Done)
        };
        if !control.is_up() {
            return dropped(Counter::DropLinkDown);
        }
        let Some(head) = Head::read(&Gather::of(&frame)) else {
            return dropped(Counter::DropMalformed);
        };
        let vlan = match head.vlan() {
            None => return dropped(Counter::DropMalformed),
            Some(vlan) if control.vlan == Vlan::NONE => vlan,
            Some(Vlan::NONE) => control.vlan,
            Some(_) => return dropped(Counter::DropVlan),
        };
        let from = Place::port(index);
        match self.learn(&head, vlan, from, now, &cell.counters) {
            Ok(()) => (),
            Err(()) if !control.guards() && !head.source.is_group() => (),
            Err(()) => return dropped(Counter::DropSpoofed),
        }
        let Some(target) = self.target(&head, vlan, from, now) else {
            return dropped(Counter::DropNowhere);
        };
        let mut cut = None;
        if headers(&frame, &mut cut).is_err() {
            return dropped(Counter::DropMalformed);
        }
        let passage = Passage {
            frame,
            head,
            vlan,
            from,
            isolated: control.is_isolated(),
            hash: self.flow(&frame),
        };
        let out = matches!(target, Target::All | Target::One(Place::UPLINK));
        let mut sent = Sent::Done;
        if out && self.uplink_up.load(Relaxed) {
            // First, because it may be that nothing can be done just now.
            sent = self.transmit(index, cell, tag, &passage, cut.as_ref(), now)?;
        }
        cell.counters.add(Counter::SentFrames, 1);
        cell.counters.add(Counter::SentBytes, frame.len as u64);
        self.spread(&passage, &target, cut.as_ref(), &cell.counters, woken);
        Ok(sent)
    }

    /// Takes in who has sent a frame. `Err`: nobody who may.
    #[inline]
    fn learn(
        &self,
        head: &Head,
        vlan: Vlan,
        from: Place,
        now: Ticks,
        counters: &Counters,
    ) -> Result<(), ()> {
        if head.source.is_group() {
            return Err(());
        }
        match self.forwarding.learn(head.source, vlan, from, now) {
            Learned::New => counters.add(Counter::Learned, 1),
            Learned::Forbidden => return Err(()),
            Learned::Known | Learned::Full => (),
        }
        Ok(())
    }

    /// Where a frame goes. `None`: nowhere.
    #[inline]
    fn target(&self, head: &Head, vlan: Vlan, from: Place, now: Ticks) -> Option<Target> {
        if head.destination.is_group() {
            return (!is_reserved(head.destination)).then_some(Target::All);
        }
        match self.forwarding.look_up(head.destination, vlan, now) {
            Some(place) => (place != from).then_some(Target::One(place)),
            None => Some(Target::All),
        }
    }

    /// Gives a frame to the uplink.
    fn transmit(
        &self,
        index: usize,
        cell: &PortCell<'m>,
        tag: SendTag,
        passage: &Passage<'_, 'm>,
        headers: Option<&Headers>,
        now: Ticks,
    ) -> Result<Sent, Busy> {
        let counters = &self.uplink_counters;
        let tagging = Tagging::of(passage.head.tag, passage.vlan, true);
        let Some(shaped) = Shaped::new(&passage.frame, &passage.head, tagging) else {
            counters.add(Counter::DropMalformed, 1);
            return Ok(Sent::Done);
        };
        let outgoing = shaped.outgoing();
        let headers = match shaped_headers(headers, &shaped, tagging) {
            Ok(headers) => headers,
            Err(()) => return Ok(Sent::Done),
        };
        let mut egress = self.egress.lock();
        let mtu = egress.info.map_or(0, |info| info.mtu);
        if too_long(&shaped, headers.as_ref(), &passage.head, tagging, mtu) {
            counters.add(Counter::DropTooLong, 1);
            return Ok(Sent::Done);
        }
        if usize::from(cell.flights.load(Relaxed)) >= PORT_FLIGHTS {
            egress.waiting |= 1 << index;
            return Err(Busy);
        }
        let job = Job {
            port: index as u8,
            tag,
            info: shaped.info,
            frame: outgoing,
            headers: headers.as_ref(),
        };
        let sent = egress.transmit(&job, counters, now)?;
        if sent == Sent::InFlight {
            cell.flights.fetch_add(1, Relaxed);
        }
        Ok(sent)
    }

    /// Brings a frame to the ports that it is for.
    #[inline]
    fn spread(
        &self,
        passage: &Passage<'_, 'm>,
        target: &Target,
        headers: Option<&Headers>,
        counters: &Counters,
        woken: &mut Ports,
    ) {
        match *target {
            Target::One(place) => {
                if let Some(index) = place.index() {
                    let reached = self.deliver(index, passage, headers, woken);
                    if !reached {
                        counters.add(Counter::DropNowhere, 1);
                    }
                }
            }
            Target::All => {
                let group = passage.head.destination.is_group();
                counters.add(if group { Counter::Multicast } else { Counter::Flooded }, 1);
                for index in 0..self.count.load(Relaxed) as usize {
                    if Place::port(index) != passage.from {
                        self.deliver(index, passage, headers, woken);
                    }
                }
            }
        }
    }

    /// Brings a frame to a port. `false`: it must not go there.
    fn deliver(
        &self,
        index: usize,
        passage: &Passage<'_, 'm>,
        headers: Option<&Headers>,
        woken: &mut Ports,
    ) -> bool {
        let Some(cell) = self.port(index) else { return false };
        let control = cell.control();
        let Some(tagged) = control.membership(passage.vlan) else { return false };
        if passage.isolated && control.is_isolated() {
            return false;
        }
        if !control.is_up() {
            cell.counters.add(Counter::DropLinkDown, 1);
            return true;
        }
        let tagging = Tagging::of(passage.head.tag, passage.vlan, tagged);
        let Some(shaped) = Shaped::new(&passage.frame, &passage.head, tagging) else {
            cell.counters.add(Counter::DropMalformed, 1);
            return true;
        };
        if too_long(&shaped, headers, &passage.head, tagging, control.mtu) {
            cell.counters.add(Counter::DropTooLong, 1);
            return true;
        }
        let tag = (tagged && passage.vlan != Vlan::NONE).then_some(passage.vlan.0);
        let mut state = cell.lock();
        let Some(accepts) = cell.accepts(&state, passage.head.destination, tag) else {
            return true;
        };
        woken.add(index);
        if needs(&shaped.info).difference(accepts).is_empty() {
            let mut info = shaped.info;
            if info.checksum == Checksum::Valid && !accepts.contains(Offloads::CSUM) {
                info.checksum = Checksum::Unknown;
            }
            cell.put(&mut state, passage.hash, info, shaped.outgoing());
        } else {
            drop(state);
            if self.fix_up(cell, passage.hash, &shaped, headers, tagging, accepts).is_none() {
                cell.counters.add(Counter::DropMalformed, 1);
            }
        }
        true
    }

    /// Brings a frame to a port in a form that the driver accepts. The lock is given to others between
    /// segments. `None`: it is not what its header says.
    #[inline(never)]
    fn fix_up(
        &self,
        cell: &PortCell<'m>,
        hash: u32,
        shaped: &Shaped<'_, 'm>,
        headers: Option<&Headers>,
        tagging: Tagging,
        accepts: Offloads,
    ) -> Option<()> {
        let frame = shaped.outgoing();
        if let Some(headers) = shaped_headers(headers, shaped, tagging).ok()? {
            let complete = !accepts.contains(Offloads::CSUM);
            let mut segments = Segments::new(headers, &frame, complete)?;
            cell.counters.add(Counter::Segmented, 1);
            while let Some((info, segment)) = segments.next() {
                cell.put(&mut cell.lock(), hash, info, segment);
            }
            return Some(());
        }
        let Checksum::Partial { start, offset } = shaped.info.checksum else { return None };
        let completed = Completed::new(&frame, start, offset)?;
        cell.counters.add(Counter::Checksums, 1);
        cell.put(&mut cell.lock(), hash, FrameInfo::PLAIN, completed.outgoing(&frame)?);
        Some(())
    }

    /// The hash of a frame's flow, the same for both directions; 0 if nobody tells flows apart.
    #[inline]
    fn flow(&self, frame: &Frame<'_, 'm>) -> u32 {
        if self.flows.load(Relaxed) { flow::hash(frame) } else { 0 }
    }

    /// Works on the uplink: what it has received is delivered, and who has sent something is told what
    /// has gone. By the core that has the card's interrupt, and by whoever else likes. Returns whether
    /// there may be more, for the work of one call is bounded.
    pub fn poll_uplink(&self, now: Ticks) -> bool {
        let mut woken = Ports::default();
        let mut more = true;
        for _ in 0..BATCHES {
            more = self.poll_batch(&mut self.egress.lock(), now, &mut woken);
            if !more {
                break;
            }
        }
        self.wake(woken);
        more
    }

    /// A batch of frames from the uplink, and what it has sent. `false`: there is no more.
    fn poll_batch(&self, egress: &mut Egress<'m>, now: Ticks, woken: &mut Ports) -> bool {
        self.collect(egress, now, woken);
        let Some(card) = egress.card.as_deref_mut() else { return false };
        let mut more = true;
        for _ in 0..BATCH {
            let Some(frame) = card.poll_received(now) else {
                more = false;
                break;
            };
            self.receive(frame, now, woken);
            card.release_received();
        }
        if card.take_change() {
            let info = card.info();
            egress.info = Some(info);
            self.uplink_up.store(info.link_up, Relaxed);
        }
        if let Some(card) = egress.card.as_deref_mut() {
            card.kick();
        }
        more
    }

    /// Tells ports what the uplink has sent, and those that wait for room that there is some.
    fn collect(&self, egress: &mut Egress<'m>, now: Ticks, woken: &mut Ports) {
        let mut room = false;
        while let Some((index, tag)) = egress.poll_sent(now) {
            room = true;
            if let Some(cell) = self.port(index) {
                cell.push_sent(tag);
                woken.add(index);
            }
        }
        // Without frames that have gone there may be room again because the card has been reset.
        let reset = || egress.card.as_deref().is_some_and(|card| card.room().frames != 0);
        if egress.waiting != 0 && (room || reset()) {
            woken.0 |= core::mem::take(&mut egress.waiting);
        }
    }

    /// Takes a frame from the uplink.
    fn receive(&self, frame: Frame<'_, 'm>, now: Ticks, woken: &mut Ports) {
        let counters = &self.uplink_counters;
        let Some(head) = Head::read(&Gather::of(&frame)) else {
            return counters.add(Counter::DropMalformed, 1);
        };
        let Some(vlan) = head.vlan() else { return counters.add(Counter::DropMalformed, 1) };
        // What seems to come from a guest has gone in a circle.
        if self.learn(&head, vlan, Place::UPLINK, now, counters).is_err() {
            return counters.add(Counter::DropSpoofed, 1);
        }
        let Some(target) = self.target(&head, vlan, Place::UPLINK, now) else {
            return counters.add(Counter::DropNowhere, 1);
        };
        let mut cut = None;
        if headers(&frame, &mut cut).is_err() {
            return counters.add(Counter::DropMalformed, 1);
        }
        counters.add(Counter::SentFrames, 1);
        counters.add(Counter::SentBytes, frame.len as u64);
        let hash = self.flow(&frame);
        let from = Place::UPLINK;
        let passage = Passage { frame, head, vlan, from, isolated: false, hash };
        self.spread(&passage, &target, cut.as_ref(), counters, woken);
    }

    /// Wakes ports for which something has come.
    fn wake(&self, woken: Ports) {
        let mut left = woken.0;
        while left != 0 {
            let index = left.trailing_zeros() as usize;
            left &= left - 1;
            if let Some(cell) = self.port(index) {
                cell.waker.wake();
            }
        }
    }
}

/// In which VLAN the address of a port is its own; `None`: in all.
fn own_vlan(control: Control) -> Option<Vlan> {
    (control.vlan != Vlan::NONE).then_some(control.vlan)
}

/// Addresses of which a bridge forwards nothing (IEEE 802.1Q, table 8-1).
fn is_reserved(address: MacAddress) -> bool {
    matches!(address.0, [0x01, 0x80, 0xC2, 0x00, 0x00, 0x00..=0x0F])
}

/// Reads the headers of a frame that is to be cut; `None` if it is not. `Err`: it is not as it says.
/// Into a place of the caller's, for they are large.
#[inline]
fn headers(frame: &Frame<'_, '_>, into: &mut Option<Headers>) -> Result<(), ()> {
    let Some(gso) = &frame.info.gso else { return Ok(()) };
    let whole = Outgoing { head: &[], body: Gather::of(frame) };
    *into = Headers::read(&whole, &frame.info, gso);
    if into.is_some() { Ok(()) } else { Err(()) }
}

/// The same of the frame as it leaves.
fn shaped_headers(
    headers: Option<&Headers>,
    shaped: &Shaped<'_, '_>,
    tagging: Tagging,
) -> Result<Option<Headers>, ()> {
    match (headers, &shaped.info.gso) {
        (Some(headers), _) if tagging == Tagging::Keep => Ok(Some(*headers)),
        (Some(_), Some(gso)) => {
            Headers::read(&shaped.outgoing(), &shaped.info, gso).map(Some).ok_or(())
        }
        _ => Ok(None),
    }
}

/// Whether a frame, or a segment of it, has more than `mtu` bytes after its header and tag.
#[inline]
fn too_long(
    shaped: &Shaped<'_, '_>,
    headers: Option<&Headers>,
    head: &Head,
    tagging: Tagging,
    mtu: u16,
) -> bool {
    let len = match headers {
        Some(headers) => headers.datagram(),
        None => {
            let tagged = match tagging {
                Tagging::Keep => head.tag.is_some(),
                Tagging::Remove => false,
                Tagging::Insert(_) | Tagging::Name(_) => true,
            };
            let header = if tagged { MIN_FRAME + TAG } else { MIN_FRAME };
            shaped.outgoing().len().saturating_sub(header)
        }
    };
    len > usize::from(mtu)
}
