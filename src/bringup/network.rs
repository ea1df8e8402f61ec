//! The network between the guests: a switch, the board's network card, and a port for each device.

use core::sync::atomic::AtomicBool;

use sparkler::arch::interrupts::Doorbell;
use sparkler::arch::timer::Counter;
use sparkler::arch::wake::Cores;
use sparkler::backend::clock::Clock;
use sparkler::backend::loopback::Loopback;
use sparkler::backend::net::{MAX_PAIRS, MacAddress, NetBackend};
use sparkler::backend::switch::{PairQueue, Port, PortCell, PortConfig, Switch, Uplink};
use sparkler::backend::wake::Waker;
use sparkler::fdt::{NetNode, NetTarget, VirtioSlot};
use sparkler::memory::{FramePool, PAGE_SIZE};
use sparkler::virtio::devices::net::Net;

use super::arena::{place, place_each};
use super::devices::{self, Card};
use super::metadata;

/// Memory for frames that find no buffer of their guest's, for each device.
const BACKLOG: usize = 128 * 1024;
/// What a guest is told of a port's speed, in Mbit/s, if there is no card whose speed is known.
const SPEED: u32 = 10_000;

static WAKE: Cores = Cores;

/// The network of the board.
#[derive(Default)]
pub(super) struct Network {
    switch: Option<&'static Switch<'static>>,
    /// Where the card is, until it is brought up.
    slot: Option<&'static VirtioSlot>,
    /// The end of the card's address, so that those of two boards' guests differ.
    card: Option<MacAddress>,
    speed: Option<u32>,
}

impl Network {
    /// One with the card in this slot.
    pub(super) fn new(slot: Option<&'static VirtioSlot>) -> Self {
        Self { slot, ..Self::default() }
    }

    /// The switch, if there is one.
    pub(super) fn switch(&self) -> Option<&'static Switch<'static>> {
        self.switch
    }

    /// A device as `node` wants it, in slot `slot` of machine `machine`, whose home is `core`; with the
    /// doorbell of the card, the first time; `content` is what it is served. `None` if EL2 has too
    /// little memory, or the switch no port.
    pub(super) fn device(
        &mut self,
        node: &NetNode,
        [machine, slot]: [u8; 2],
        core: u8,
        content: Option<metadata::Content>,
        pool: &mut FramePool<'static>,
    ) -> Option<(&'static mut Net<'static, 'static>, Option<Doorbell>)> {
        let doorbell = match node.to {
            NetTarget::Switch => self.open(pool)?,
            NetTarget::Loopback => None,
        };
        let mac = node.mac.map_or_else(|| self.address(machine, slot), MacAddress);
        let waker = Waker::new(&WAKE, core);
        let port: &'static mut dyn NetBackend<'static> = match node.to {
            NetTarget::Loopback => loopback(mac, node.mtu as u16)?,
            NetTarget::Switch => {
                let queues = queues(node)?;
                let frames = BACKLOG / PAGE_SIZE as usize;
                let config = PortConfig {
                    mac,
                    mtu: node.mtu as u16,
                    vlan: node.vlan.map(|vlan| vlan as u16),
                    isolated: node.isolated,
                    guard: true,
                    speed: self.speed.or(Some(SPEED)),
                    waker,
                    queues,
                    backlog: pool.alloc_run(frames, PAGE_SIZE).ok()?,
                };
                attach(self.switch?, config)?
            }
        };
        let port = match content {
            Some(content) => metadata::serve(content, port)?,
            None => port,
        };
        Some((front(port)?, doorbell))
    }

    /// Makes the switch and brings the card up, the first time; the card's doorbell.
    fn open(&mut self, pool: &mut FramePool<'static>) -> Option<Option<Doorbell>> {
        if self.switch.is_some() {
            return Some(None);
        }
        let switch = switch()?;
        self.switch = Some(switch);
        let Some(slot) = self.slot else { return Some(None) };
        let Some((card, doorbell)) = card(slot, pool, switch) else { return Some(None) };
        let info = card.info();
        (self.card, self.speed) = (Some(info.mac), info.speed);
        switch.connect(card);
        Some(doorbell)
    }

    /// The address of a device whose node does not say: a locally administered one.
    fn address(&self, machine: u8, slot: u8) -> MacAddress {
        let [.., a, b, c] = self.card.unwrap_or_default().0;
        MacAddress([0x02, a, b, c, machine, slot])
    }
}

// What is large is built in a function of its own: see `machines`.

#[inline(never)]
fn switch() -> Option<&'static Switch<'static>> {
    let seed = Counter.now().0;
    place(|| Switch::new(Counter.frequency(), seed)).map(|switch| &*switch)
}

#[inline(never)]
fn card(
    slot: &VirtioSlot,
    pool: &mut FramePool<'static>,
    switch: &'static Switch<'static>,
) -> Option<(&'static mut Card, Option<Doorbell>)> {
    let reconfigured = place(|| AtomicBool::new(false))?;
    let (card, doorbell) = devices::open_card(slot, pool, switch, reconfigured)?;
    Some((place(|| card)?, doorbell))
}

#[inline(never)]
fn loopback(mac: MacAddress, mtu: u16) -> Option<&'static mut Loopback<'static, 1>> {
    place(|| Loopback::single(mac, mtu))
}

#[inline(never)]
fn queues(node: &NetNode) -> Option<&'static mut [PairQueue<'static>]> {
    place_each((node.pairs as usize).clamp(1, MAX_PAIRS), PairQueue::new)
}

#[inline(never)]
fn attach(
    switch: &'static Switch<'static>,
    config: PortConfig<'static>,
) -> Option<&'static mut dyn NetBackend<'static>> {
    let cell = place(|| PortCell::new(config))?;
    let port = switch.attach(cell).ok()?;
    let port: &'static mut Port<'static, 'static> = place(|| port)?;
    Some(port)
}

#[inline(never)]
fn front(port: &'static mut dyn NetBackend<'static>) -> Option<&'static mut Net<'static, 'static>> {
    place(|| Net::new(port))
}
