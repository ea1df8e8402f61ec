//! The console device (5.3): ports, each with a stream of bytes to the guest and one from it.
//!
//! What is at the other end of a port is a [`PortBackend`]. A driver that accepts MULTIPORT is told of the ports by control
//! messages, of which each port has some due (`Due`) until there is a buffer for them: so there is no
//! queue of messages that a driver could have grow.
//!
//! Bytes that the other end has no room for wait in their ring. A buffer may be larger than all the room
//! there ever is: how much of it is through already is remembered (`Port::sent`).

#[cfg(test)]
mod tests;
mod wire;

use crate::backend::clock::{Frequency, Ticks};
use crate::backend::port::PortBackend;
use crate::virtio::device::ActivateError;
use crate::virtio::queue::{Chain, ChainBuffer};
use crate::virtio::{
    Adjustment, Context, DeviceType, Features, NextPoll, NotAdjusted, Progress, VirtioDevice,
};
use wire::{CONFIG_SIZE, EMERG_WR, MULTIPORT, event};

/// Ports that a device can have.
pub const MAX_PORTS: usize = 4;
/// Bytes that a call takes from a port, or gives to one.
const MOST_AT_ONCE: usize = 4096;
/// Bytes that are copied at once.
const PIECE: usize = 128;
/// The longest name of a port.
const NAME_LEN: usize = 15;

const QUEUE_MAX_SIZES: [u16; 2 * (MAX_PORTS + 1)] = [64; 2 * (MAX_PORTS + 1)];
const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;
/// What a terminal is taken to be until somebody knows.
const USUAL_SIZE: [u16; 2] = [80, 24];

bitflags::bitflags! {
    /// Control messages that the driver is to get of a port; the lowest comes first.
    #[derive(Clone, Copy, Default, PartialEq, Eq)]
    struct Due: u8 {
        const ADD = 1 << 0;
        const CONSOLE = 1 << 1;
        const NAME = 1 << 2;
        const OPEN = 1 << 3;
        const RESIZE = 1 << 4;
    }
}

/// A port as it is set up.
pub struct PortConfig<'d> {
    /// The other end.
    pub backend: &'d mut (dyn PortBackend + 'd),
    /// What the guest is to call it; the first 15 bytes count. Empty for none.
    pub name: &'d str,
    /// Whether it is for a person.
    pub console: bool,
}

struct Port<'d> {
    config: PortConfig<'d>,
    due: Due,
    /// The driver is told of it, once.
    added: bool,
    /// The driver is ready for it.
    ready: bool,
    /// The guest has it open.
    open: bool,
    /// What the driver was told of the other end.
    told_open: bool,
    /// Bytes of the first buffer of its transmitq that are through.
    sent: usize,
}

/// A console device.
pub struct Console<'d, 'm> {
    ports: heapless::Vec<Port<'d>, MAX_PORTS>,
    size: [u16; 2],
    multiport: bool,
    chain: ChainBuffer<'m>,
    /// Buffers that came back, and control messages that make no sense.
    requests: u64,
    errors: u64,
    bytes_in: u64,
    bytes_out: u64,
}

/// The queues of a port: receiveq, transmitq (5.3.2).
const fn queues(port: usize) -> [u16; 2] {
    let first = if port == 0 { 0 } else { 2 * (port as u16 + 1) };
    [first, first + 1]
}

impl<'d, 'm> Console<'d, 'm> {
    /// A console without ports; it is to get one at least.
    pub fn new() -> Self {
        Self {
            ports: heapless::Vec::new(),
            size: USUAL_SIZE,
            multiport: false,
            chain: ChainBuffer::new(),
            requests: 0,
            errors: 0,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// Adds a port. To be done before a transport is put in front of it. `false` if there are
    /// [`MAX_PORTS`].
    pub fn add_port(&mut self, config: PortConfig<'d>) -> bool {
        let port = Port {
            config,
            due: Due::empty(),
            added: false,
            ready: false,
            open: false,
            told_open: false,
            sent: 0,
        };
        self.ports.push(port).is_ok()
    }

    /// Takes what is in a port's transmitq, as far as there is room for it.
    fn transmit(&mut self, number: usize, context: &mut Context<'_, 'm>) {
        let now = context.now();
        let (Some(mut queue), Some(port)) =
            (context.queue(queues(number)[1]), self.ports.get_mut(number))
        else {
            return;
        };
        let mut room = port.config.backend.room().min(MOST_AT_ONCE);
        while let Some(Chain { head, mut readable, .. }) = queue.pop_rarely(&mut self.chain) {
            // A driver that makes the buffer shorter meanwhile has what is left of it sent.
            let _ = readable.skip(port.sent.min(readable.remaining()));
            while room != 0 && readable.remaining() != 0 {
                let mut piece = [0; PIECE];
                let len = readable.remaining().min(room).min(PIECE);
                let Some(piece) = piece.get_mut(..len) else { break };
                if readable.read_bytes(piece).is_none() {
                    break;
                }
                port.config.backend.write(piece, now);
                self.bytes_out += len as u64;
                port.sent += len;
                room -= len;
            }
            if readable.remaining() != 0 {
                // The other end tells when it has room; what was enough for one call goes on at once.
                if port.config.backend.room() == 0 {
                    queue.park(head)
                } else {
                    queue.put_back(head)
                }
                break;
            }
            port.sent = 0;
            self.requests += 1;
            queue.complete_rarely(head, 0);
        }
    }

    /// Fills buffers of a port's receiveq with what there is for it.
    fn receive(&mut self, number: usize, context: &mut Context<'_, 'm>) {
        let (Some(mut queue), Some(port)) =
            (context.queue(queues(number)[0]), self.ports.get_mut(number))
        else {
            return;
        };
        let mut left = port.config.backend.available().min(MOST_AT_ONCE);
        while left != 0
            && let Some(Chain { head, mut writable, .. }) = queue.pop_rarely(&mut self.chain)
        {
            while left != 0 && writable.remaining() != 0 {
                let mut piece = [0; PIECE];
                let len = writable.remaining().min(left).min(PIECE);
                let Some(piece) = piece.get_mut(..len) else { break };
                let count = port.config.backend.read(piece);
                let Some(piece) = piece.get(..count) else { break };
                if count == 0 || writable.write_bytes(piece).is_none() {
                    left = 0;
                    break;
                }
                left -= count;
            }
            self.requests += 1;
            self.bytes_in += writable.written() as u64;
            queue.complete_rarely(head, writable.written() as u32);
        }
    }

    /// Takes the driver's control messages.
    fn take_control(&mut self, context: &mut Context<'_, 'm>) {
        let Some(mut queue) = context.queue(CONTROL_TRANSMIT) else { return };
        while let Some(Chain { head, mut readable, .. }) = queue.pop_rarely(&mut self.chain) {
            self.requests += 1;
            let understood = match readable.read_object() {
                Some(message) if readable.remaining() == 0 => {
                    let (id, event, value) = wire::parse(message);
                    control(&mut self.ports, id, event, value)
                }
                _ => None,
            };
            self.errors += u64::from(understood.is_none());
            queue.complete_rarely(head, 0);
        }
    }

    /// Sends control messages that are due, as many as there are buffers for.
    fn send_control(&mut self, context: &mut Context<'_, 'm>) {
        let Some(mut queue) = context.queue(CONTROL_RECEIVE) else { return };
        for (number, port) in (0..).zip(&mut self.ports) {
            // Who has left has not for the driver until it has heard all.
            let open = port.config.backend.is_open() || port.config.backend.available() != 0;
            if port.ready && open != port.told_open {
                port.due |= Due::OPEN;
            }
            while let Some(due) = port.due.iter().next() {
                let Some(Chain { head, mut writable, .. }) = queue.pop_rarely(&mut self.chain)
                else {
                    return;
                };
                port.due.remove(due);
                let (event, value) = match due {
                    Due::ADD => (event::DEVICE_ADD, 0),
                    Due::CONSOLE => (event::CONSOLE_PORT, 1),
                    Due::NAME => (event::PORT_NAME, 1),
                    Due::OPEN => (event::PORT_OPEN, u16::from(open)),
                    _ => (event::RESIZE, 0),
                };
                let name = port.config.name.as_bytes();
                let size = wire::config(self.size, 0);
                let rest = match due {
                    Due::NAME => name.get(..NAME_LEN).unwrap_or(name),
                    Due::RESIZE => size.get(..4).unwrap_or_default(),
                    _ => &[],
                };
                if due == Due::OPEN {
                    port.told_open = open;
                }
                self.requests += 1;
                if writable.remaining() < wire::CONTROL_SIZE + rest.len() {
                    // There is no such thing as half a message.
                    self.errors += 1;
                } else {
                    let _ = writable.write_object(&wire::control(number, event, value));
                    let _ = writable.write_bytes(rest);
                }
                queue.complete_rarely(head, writable.written() as u32);
            }
        }
    }

    /// Back to what a driver finds at first; `open` is whether one that knows no control messages is there.
    fn begin(&mut self, open: bool) {
        for (number, port) in self.ports.iter_mut().enumerate() {
            let open = open && number == 0;
            if port.open != open {
                port.config.backend.set_open(open);
            }
            port.due = Due::empty();
            (port.added, port.ready, port.told_open) = (false, false, false);
            (port.open, port.sent) = (open, 0);
        }
    }
}

impl Default for Console<'_, '_> {
    fn default() -> Self {
        Self::new()
    }
}

/// Does what the driver's message asks for. `None` if it makes no sense, and nothing is done.
fn control(ports: &mut [Port<'_>], id: u32, event: u16, value: u16) -> Option<()> {
    if event == event::DEVICE_READY {
        if value == 1 {
            // A port that was added is not added again (5.3.6.2.1).
            for port in ports.iter_mut().filter(|port| !port.added) {
                port.due |= Due::ADD;
                port.added = true;
            }
        }
        return Some(());
    }
    let is_first = id == 0;
    let port = ports.get_mut(usize::try_from(id).ok()?).filter(|port| port.added)?;
    match event {
        event::PORT_READY if value == 1 => {
            port.ready = true;
            port.due |= Due::OPEN;
            port.due.set(Due::CONSOLE, port.config.console);
            port.due.set(Due::NAME, !port.config.name.is_empty());
            port.due.set(Due::RESIZE, is_first && port.config.console);
        }
        // The driver cannot use it.
        event::PORT_READY => {}
        event::PORT_OPEN => {
            port.open = value != 0;
            port.config.backend.set_open(port.open);
        }
        _ => return None,
    }
    Some(())
}

impl<'m> VirtioDevice<'m> for Console<'_, 'm> {
    fn device_type(&self) -> DeviceType {
        DeviceType::CONSOLE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_MAX_SIZES.get(..2 * (self.ports.len() + 1)).unwrap_or_default()
    }

    fn offered_features(&self) -> Features {
        wire::SIZE | MULTIPORT | wire::EMERG_WRITE
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let config: [u8; CONFIG_SIZE] = wire::config(self.size, self.ports.len());
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = config.get(offset + at).copied().unwrap_or(0);
        }
    }

    /// At whatever status: `emerg_wr` works before a driver is set up (5.3.5.1).
    fn write_config(&mut self, offset: usize, data: &[u8], context: &mut Context<'_, 'm>) {
        if offset == EMERG_WR
            && let ([byte, ..], Some(port)) = (data, self.ports.first_mut())
        {
            port.config.backend.write(&[*byte], context.now());
            self.bytes_out += 1;
        }
    }

    fn activate(&mut self, accepted: Features) -> Result<(), ActivateError> {
        self.multiport = accepted.contains(MULTIPORT);
        self.begin(!self.multiport);
        Ok(())
    }

    fn queue_notified(&mut self, index: u16, context: &mut Context<'_, 'm>) {
        match index {
            CONTROL_RECEIVE => {}
            CONTROL_TRANSMIT => self.take_control(context),
            _ => {
                let port = usize::from((index / 2).saturating_sub(u16::from(index > 1)));
                if index & 1 == 0 {
                    self.receive(port, context);
                } else {
                    self.transmit(port, context);
                }
                return;
            }
        }
        if self.multiport {
            self.send_control(context);
        }
    }

    fn poll(&mut self, context: &mut Context<'_, 'm>) {
        if self.multiport {
            self.take_control(context);
        }
        let ports = if self.multiport { self.ports.len() } else { 1 };
        for port in 0..ports {
            self.transmit(port, context);
            self.receive(port, context);
        }
        if self.multiport {
            self.send_control(context);
        }
    }

    fn next_poll(&self) -> NextPoll {
        NextPoll::OnEvent
    }

    fn adjust(
        &mut self,
        change: Adjustment,
        _frequency: Frequency,
        context: &mut Context<'_, 'm>,
    ) -> Result<(), NotAdjusted> {
        let Adjustment::Size(size) = change else { return Err(NotAdjusted::Unsupported) };
        self.size = size;
        context.config_changed();
        if let Some(port) = self.ports.first_mut().filter(|port| port.ready) {
            port.due |= Due::RESIZE;
            self.send_control(context);
        }
        Ok(())
    }

    fn reset(&mut self, _now: Ticks) -> Progress {
        self.begin(false);
        self.multiport = false;
        Progress::Done
    }

    fn reset_queue(&mut self, index: u16, _now: Ticks) -> Progress {
        for (number, port) in self.ports.iter_mut().enumerate() {
            if queues(number)[1] == index {
                port.sent = 0;
            }
        }
        Progress::Done
    }

    fn statistics(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        visit("requests", self.requests);
        visit("errors", self.errors);
        visit("bytes_read", self.bytes_in);
        visit("bytes_written", self.bytes_out);
    }
}
