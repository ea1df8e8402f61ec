//! Sockets between guests that need no network, and the hypervisor's own at CID 2.

use core::ffi::CStr;

use crate::linux::{self, Address, Kind};
use crate::net::{at_least_one, write_all};
use crate::{Random, number, per_tick};

/// This guest, whatever its CID is.
const ANY: u32 = u32::MAX;
/// The hypervisor, and the port of its monitor.
const MONITOR: [u32; 2] = [2, 1024];

/// Bytes there and back.
const MESSAGE: usize = 64;
/// Round trips before those that are measured.
const WARM_UP: usize = 200;
/// The most of a message.
const MOST: u64 = 100_000;

/// A port of this guest.
pub(crate) fn here(port: &CStr) -> Option<Address> {
    Some(Address::vsock(ANY, number(port)? as u32))
}

/// A port of another.
pub(crate) fn there(cid: &CStr, port: &CStr) -> Option<Address> {
    Some(Address::vsock(number(cid)? as u32, number(port)? as u32))
}

fn accept(port: &Address, kind: Kind) -> Result<usize, isize> {
    let socket = linux::socket(port, kind)?;
    linux::bind(socket, port)?;
    linux::accept(socket)
}

fn connect(to: &Address, kind: Kind) -> Result<usize, isize> {
    let socket = linux::socket(to, kind)?;
    linux::connect(socket, to)?;
    Ok(socket)
}

/// Sends everything back, until the other side has no more.
pub(crate) fn echo(port: &Address, memory: &mut [u8]) -> Result<(), isize> {
    let stream = accept(port, Kind::Stream)?;
    loop {
        match linux::read(stream, memory)? {
            0 => return Ok(()),
            length => write_all(stream, &memory[..length])?,
        }
    }
}

/// Measures round trips.
pub(crate) fn measure_echo(to: &Address, count: usize) -> Result<(), isize> {
    let stream = connect(to, Kind::Stream)?;
    let mut from = 0;
    for turn in 0..WARM_UP + count {
        if turn == WARM_UP {
            from = linux::counter();
        }
        write_all(stream, &[turn as u8; MESSAGE])?;
        let (mut bytes, mut got) = ([0; MESSAGE], 0);
        while got < MESSAGE {
            got += at_least_one(linux::read(stream, &mut bytes[got..])?)?;
        }
        if bytes != [turn as u8; MESSAGE] {
            return Err(-5);
        }
    }
    say!("bench vsock_rtt {}", (linux::counter() - from) * per_tick() / count as u64);
    Ok(())
}

/// What went by: how much, in how many messages, and a sum that depends on each byte and its place,
/// and for messages on their lengths.
#[derive(Default)]
struct Sum {
    bytes: u64,
    messages: u64,
    sum: u64,
}

impl Sum {
    fn add(&mut self, bytes: &[u8], kind: Kind) {
        for byte in bytes {
            self.sum = (self.sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3);
        }
        self.bytes += bytes.len() as u64;
        if matches!(kind, Kind::Messages) {
            self.messages += 1;
            self.sum ^= bytes.len() as u64;
        }
    }

    fn say(&self) {
        say!("vsock: {} bytes, {} messages, sum {:016x}", self.bytes, self.messages, self.sum);
    }
}

/// Takes all that one other sends, and says what it was.
pub(crate) fn take(port: &Address, kind: Kind, memory: &mut [u8]) -> Result<(), isize> {
    let socket = accept(port, kind)?;
    let mut sum = Sum::default();
    loop {
        match linux::read(socket, memory)? {
            0 => break,
            length => sum.add(&memory[..length], kind),
        }
    }
    sum.say();
    Ok(())
}

/// Sends so many MiB in pieces of all lengths, and says what it was when the other side has it.
pub(crate) fn send(to: &Address, kind: Kind, mib: usize, memory: &mut [u8]) -> Result<(), isize> {
    let socket = connect(to, kind)?;
    let mut random = Random(mib as u64);
    for byte in memory[..2 * MOST as usize].iter_mut() {
        *byte = random.next() as u8;
    }
    let (mut sum, mut left) = (Sum::default(), (mib as u64) << 20);
    while left > 0 {
        let length = (1 + random.below(MOST)).min(left);
        let from = random.below(MOST) as usize;
        let piece = &memory[from..from + length as usize];
        write_all(socket, piece)?;
        sum.add(piece, kind);
        left -= length;
    }
    linux::end(socket)?;
    // The other side has read all when it ends as well.
    while linux::read(socket, memory)? != 0 {}
    sum.say();
    Ok(())
}

/// Opens a connection, says so, and waits for its end: which is to be a reset.
pub(crate) fn wait(to: &Address, memory: &mut [u8]) -> Result<(), isize> {
    let stream = connect(to, Kind::Stream)?;
    say!("vsock: connected");
    match linux::read(stream, memory) {
        Err(error) => say!("vsock: ended with error {}", -error),
        Ok(length) => say!("vsock: ended with {length} bytes"),
    }
    Ok(())
}

/// Gives the monitor a command, and shows the answer.
pub(crate) fn monitor<'a>(
    words: impl Iterator<Item = &'a CStr>,
    memory: &mut [u8],
) -> Result<(), isize> {
    let [cid, port] = MONITOR;
    let stream = connect(&Address::vsock(cid, port), Kind::Stream)?;
    for word in words {
        write_all(stream, word.to_bytes())?;
        write_all(stream, b" ")?;
    }
    write_all(stream, b"\n")?;
    linux::end(stream)?;
    loop {
        match linux::read(stream, memory)? {
            0 => return Ok(()),
            length => write_all(1, &memory[..length])?,
        }
    }
}
