//! The sockets between the guests: a fabric, and a port for each device.

use sparkler::arch::timer::Counter;
use sparkler::arch::wake::Cores;
use sparkler::backend::clock::Clock;
use sparkler::backend::vsock::{Desk, Fabric, MAX_PEERS, PortCell, PortConfig};
use sparkler::backend::wake::Waker;
use sparkler::fdt::VsockNode;
use sparkler::virtio::devices::vsock::Vsock;

use super::arena::place;

static WAKE: Cores = Cores;

/// Where the guests' sockets meet.
#[derive(Default)]
pub(super) struct Sockets(Option<&'static Fabric<'static>>);

impl Sockets {
    /// A device as `node` wants it, of a machine whose home is `core`; with its guest's place at the monitor, if
    /// it is to have one. `None` if EL2 has too little memory.
    pub(super) fn device(
        &mut self,
        node: &VsockNode<'_>,
        core: u8,
    ) -> Option<(&'static mut Vsock<'static, 'static>, Option<&'static Desk>)> {
        if self.0.is_none() {
            self.0 = Some(fabric()?);
        }
        let desk = if node.operator { Some(desk()?) } else { None };
        Some((front(self.0?, node, desk, Waker::new(&WAKE, core))?, desk))
    }
}

// What is large is built in a function of its own: see `machines`.

#[inline(never)]
fn fabric() -> Option<&'static Fabric<'static>> {
    place(|| Fabric::new(Counter.frequency())).map(|fabric| &*fabric)
}

#[inline(never)]
fn desk() -> Option<&'static Desk> {
    place(Desk::new).map(|desk| &*desk)
}

#[inline(never)]
fn cell(
    node: &VsockNode<'_>,
    desk: Option<&'static Desk>,
    waker: Waker<'static>,
) -> Option<&'static PortCell<'static>> {
    let peers = node.peers.iter().flat_map(|peers| peers.iter()).take(MAX_PEERS);
    let config = PortConfig { cid: node.cid as u32, peers: peers.collect(), desk, waker };
    place(|| PortCell::new(config)).map(|cell| &*cell)
}

#[inline(never)]
fn front(
    fabric: &'static Fabric<'static>,
    node: &VsockNode<'_>,
    desk: Option<&'static Desk>,
    waker: Waker<'static>,
) -> Option<&'static mut Vsock<'static, 'static>> {
    let port = fabric.attach(cell(node, desk, waker)?).ok()?;
    place(|| Vsock::new(port))
}
