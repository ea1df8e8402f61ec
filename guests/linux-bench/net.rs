//! Traffic between guests: round trips of UDP, and a stream of TCP.

use core::ffi::CStr;

use crate::linux::{self, Address, Kind};
use crate::{number, per_tick};

/// Bytes of a datagram.
const DATAGRAM: usize = 64;
/// Round trips before those that are measured.
const WARM_UP: usize = 200;
/// Bytes of a write or a read of the stream.
const CHUNK: usize = 256 << 10;

/// A dotted address.
pub(crate) fn address(text: &CStr, port: &CStr) -> Option<Address> {
    let mut host = [0; 4];
    let mut parts = text.to_str().ok()?.split('.');
    for byte in &mut host {
        *byte = parts.next()?.parse().ok()?;
    }
    Some(Address::new(host, u16::try_from(number(port)?).ok()?))
}

/// Sends back every datagram, up to an empty one.
pub(crate) fn serve_udp(port: &Address) -> Result<(), isize> {
    let socket = linux::socket(port, Kind::Datagram)?;
    linux::bind(socket, port)?;
    let mut bytes = [0; 2048];
    loop {
        let (length, from) = linux::receive_from(socket, &mut bytes)?;
        linux::send_to(socket, &bytes[..length], &from)?;
        if length == 0 {
            return Ok(());
        }
    }
}

/// Measures round trips, and ends the one that answers.
pub(crate) fn measure_udp(to: &Address, count: usize) -> Result<(), isize> {
    let socket = linux::socket(to, Kind::Datagram)?;
    let mut bytes = [0; 2048];
    let mut from = 0;
    for turn in 0..WARM_UP + count {
        if turn == WARM_UP {
            from = linux::counter();
        }
        linux::send_to(socket, &[turn as u8; DATAGRAM], to)?;
        let (length, _) = linux::receive_from(socket, &mut bytes)?;
        if bytes[..length] != [turn as u8; DATAGRAM] {
            return Err(-5);
        }
    }
    let taken = linux::counter() - from;
    linux::send_to(socket, &[], to)?;
    say!("bench udp_rtt {}", taken * per_tick() / count as u64);
    Ok(())
}

/// Takes one stream to its end, and says how much it was.
pub(crate) fn serve_stream(port: &Address, memory: &mut [u8]) -> Result<(), isize> {
    let socket = linux::socket(port, Kind::Stream)?;
    linux::bind(socket, port)?;
    let stream = linux::accept(socket)?;
    let mut total = 0u64;
    // The first 8 bytes say how many there will be.
    let mut expected = [0; 8];
    let mut got = 0;
    while got < expected.len() {
        got += at_least_one(linux::read(stream, &mut expected[got..])?)?;
    }
    let expected = u64::from_le_bytes(expected);
    while total < expected {
        let length = memory.len().min(CHUNK);
        total += at_least_one(linux::read(stream, &mut memory[..length])?)? as u64;
    }
    linux::write(stream, &total.to_le_bytes());
    Ok(())
}

/// Measures a stream of so many MiB, until the other side says that it has all.
pub(crate) fn measure_stream(
    name: &str,
    to: &Address,
    mib: usize,
    memory: &mut [u8],
) -> Result<(), isize> {
    let stream = linux::socket(to, Kind::Stream)?;
    linux::connect(stream, to)?;
    let total = (mib as u64) << 20;
    let from = linux::counter();
    write_all(stream, &total.to_le_bytes())?;
    let mut left = total;
    while left > 0 {
        let length = memory.len().min(CHUNK).min(left as usize);
        write_all(stream, &memory[..length])?;
        left -= length as u64;
    }
    let mut answer = [0; 8];
    let mut got = 0;
    while got < answer.len() {
        got += at_least_one(linux::read(stream, &mut answer[got..])?)?;
    }
    let taken = linux::counter() - from;
    if u64::from_le_bytes(answer) != total {
        return Err(-5);
    }
    say!("bench {name}_per_kib {}", taken * per_tick() / (total >> 10));
    Ok(())
}

pub(crate) fn at_least_one(length: usize) -> Result<usize, isize> {
    if length == 0 { Err(-104) } else { Ok(length) }
}

pub(crate) fn write_all(file: usize, mut bytes: &[u8]) -> Result<(), isize> {
    while !bytes.is_empty() {
        let done = linux::write(file, bytes);
        let done = usize::try_from(done).map_err(|_| done)?;
        bytes = &bytes[at_least_one(done)?..];
    }
    Ok(())
}
