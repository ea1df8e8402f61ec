//! The device's end of a port.

use super::forwarding::Place;
use super::frame::Vlan;
use super::port::{Control, Flags, PortCell};
use super::{Counter, MIN_MTU, Ports, Switch, own_vlan};
use crate::backend::clock::Ticks;
use crate::backend::net::{
    Busy, Filter, Frame, MAX_PAIRS, NetBackend, NetInfo, Offloads, Received, Reception, SendTag,
    Sent,
};
use crate::memory::SharedSlice;

/// Buffers taken from a port with its lock taken once: those of a large frame.
const TAKEN: usize = 16;

/// Filled buffers of a pair, taken from the port and not yet told of.
#[derive(Clone, Copy)]
struct Taken {
    buffers: [Received; TAKEN],
    next: usize,
    end: usize,
}

impl Taken {
    const NONE: Taken =
        Taken { buffers: [Received { written: 0, continues: false }; TAKEN], next: 0, end: 0 };
}

/// A port of a [`Switch`], as a network device has it.
pub struct Port<'s, 'm> {
    switch: &'s Switch<'m>,
    cell: &'m PortCell<'m>,
    index: usize,
    /// Who has been sent something since the last kick.
    woken: Ports,
    /// The uplink has been given something since.
    out: bool,
    /// By pair.
    taken: [Taken; MAX_PAIRS],
}

impl<'s, 'm> Port<'s, 'm> {
    pub(super) fn new(switch: &'s Switch<'m>, cell: &'m PortCell<'m>, index: usize) -> Self {
        let taken = [Taken::NONE; MAX_PAIRS];
        Self { switch, cell, index, woken: Ports::default(), out: false, taken }
    }

    /// Which one it is, for [`Switch::set_link`] and its like.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Takes in what the uplink has sent, unless somebody else is at it.
    fn collect(&mut self, now: Ticks) {
        if let Some(mut egress) = self.switch.egress.try_lock() {
            let mut woken = Ports::default();
            self.switch.collect(&mut egress, now, &mut woken);
            drop(egress);
            // This one is being polled.
            woken.0 &= !(1 << self.index);
            self.switch.wake(woken);
        }
    }
}

impl<'m> NetBackend<'m> for Port<'_, 'm> {
    fn info(&self) -> NetInfo {
        let control = self.cell.control();
        NetInfo {
            mac: self.cell.mac,
            mtu: control.mtu,
            link_up: control.flags.contains(Flags::LINK_UP),
            speed: self.cell.speed,
            takes: Offloads::all(),
            gives: Offloads::all(),
            pairs: self.cell.pairs,
        }
    }

    fn open(&mut self, reception: Reception) {
        self.cell.open(reception);
    }

    fn set_filter(&mut self, filter: &Filter) {
        self.cell.set_filter(filter);
    }

    fn send(
        &mut self,
        pair: u16,
        tag: SendTag,
        frame: Frame<'_, 'm>,
        now: Ticks,
    ) -> Result<Sent, Busy> {
        if self.cell.has_flows() {
            self.cell.steer(super::flow::hash(&frame), pair);
        }
        let sent = self.switch.forward(self.index, self.cell, tag, frame, now, &mut self.woken)?;
        self.out |= sent == Sent::InFlight;
        Ok(sent)
    }

    fn kick(&mut self) {
        if core::mem::take(&mut self.out) {
            let mut egress = self.switch.egress.lock();
            if let Some(card) = egress.card.as_deref_mut() {
                card.kick();
            }
        }
        self.switch.wake(core::mem::take(&mut self.woken));
    }

    fn poll_sent(&mut self, now: Ticks) -> Option<SendTag> {
        if self.in_flight() == 0 {
            return None;
        }
        self.cell.pop_sent().or_else(|| {
            self.collect(now);
            self.cell.pop_sent()
        })
    }

    fn post(&mut self, pair: u16, segments: &[SharedSlice<'m>]) -> Result<(), Busy> {
        self.cell.post(pair, segments)
    }

    fn poll_received(&mut self, pair: u16) -> Option<Received> {
        let taken = self.taken.get_mut(usize::from(pair))?;
        if taken.next == taken.end {
            taken.next = 0;
            taken.end = self.cell.take_received(pair, &mut taken.buffers);
            if taken.end == 0 {
                return None;
            }
        }
        let received = *taken.buffers.get(taken.next)?;
        taken.next += 1;
        Some(received)
    }

    fn withdraw(&mut self, pair: u16) {
        self.cell.withdraw(pair);
        if let Some(taken) = self.taken.get_mut(usize::from(pair)) {
            *taken = Taken::NONE;
        }
    }

    fn close(&mut self, now: Ticks) -> bool {
        self.cell.close();
        self.taken = [Taken::NONE; MAX_PAIRS];
        self.switch.forwarding.forget(Place::port(self.index));
        self.kick();
        if self.in_flight() != 0 {
            self.collect(now);
        }
        self.in_flight() == 0
    }

    fn in_flight(&self) -> usize {
        self.cell.flights()
    }

    fn take_change(&mut self) -> bool {
        self.cell.take_change()
    }

    #[cfg(any(test, feature = "metadata"))]
    fn deliver(&mut self, frame: &[u8]) {
        self.cell.deliver(frame);
    }

    fn set_link(&mut self, up: bool) -> bool {
        self.switch.set_link(self.index, up).is_some()
    }

    fn statistics(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        self.cell.counters.visit(visit);
    }
}

/// What the monitor can do and see. Ports are numbered in order of attachment; a number that no port
/// has is answered with `None`.
impl Switch<'_> {
    /// Pulls the plug of a port, or puts it back in.
    pub fn set_link(&self, port: usize, up: bool) -> Option<()> {
        self.change(port, |control| control.flags.set(Flags::LINK_UP, up))
    }

    /// Changes the MTU; less than [`MIN_MTU`] becomes that.
    pub fn set_mtu(&self, port: usize, mtu: u16) -> Option<()> {
        self.change(port, |control| control.mtu = mtu.max(MIN_MTU))
    }

    /// Isolates a port from others that are isolated, or ends that.
    pub fn set_isolated(&self, port: usize, isolated: bool) -> Option<()> {
        self.change(port, |control| control.flags.set(Flags::ISOLATED, isolated))
    }

    /// Moves a port to another VLAN, 1 to 4094; `None`: it becomes a trunk. Answers `None` as well if
    /// there is no such VLAN, or another port has the same address there.
    pub fn set_vlan(&self, port: usize, vlan: Option<u16>) -> Option<()> {
        let vlan = match vlan {
            Some(0) => return None,
            Some(number) => Vlan::new(number)?,
            None => Vlan::NONE,
        };
        let cell = self.port(port)?;
        let place = Place::port(port);
        // One at a time, as ports come.
        let _turn = self.egress.lock();
        let (before, after) = cell.set(|control| control.vlan = vlan);
        self.forwarding.forget(place);
        self.forwarding.remove_own(place);
        if self.forwarding.set_own(cell.mac, own_vlan(after), place) {
            return Some(());
        }
        cell.set(|control| control.vlan = before.vlan);
        self.forwarding.set_own(cell.mac, own_vlan(before), place);
        None
    }

    /// Counters of a port; `None`: of the uplink.
    pub fn counter(&self, port: Option<usize>, counter: Counter) -> u64 {
        match port {
            Some(port) => self.port(port).map_or(0, |cell| cell.counters.get(counter)),
            None => self.uplink_counters.get(counter),
        }
    }

    /// Counters of the uplink, and the card's own.
    pub fn uplink_statistics(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        self.uplink_counters.visit(visit);
        if let Some(card) = self.egress.lock().card.as_deref() {
            card.statistics(visit);
        }
    }

    /// Changes what is set for a port, and has its guest told if it can see it.
    fn change(&self, port: usize, change: impl Fn(&mut Control)) -> Option<()> {
        let cell = self.port(port)?;
        let (before, after) = cell.set(change);
        let visible = |control: Control| (control.mtu, control.flags.contains(Flags::LINK_UP));
        if visible(before) != visible(after) {
            cell.note_change();
        }
        Some(())
    }
}
