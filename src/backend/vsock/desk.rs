//! CID 2: where a guest that is allowed to gives the monitor commands, a line each.
//!
//! A connection is a stream of lines one way, and of their answers the other. Who sends no more lines
//! gets the last answer, and the end of the connection. There are [`CALLS`] at a time for each guest, and one answer:
//! it goes as far as the guest grants credit, and the next line is looked at when it is gone.
//!
//! # Who locks what
//! The calls' lock is taken with the port's held, and with that of the answer. That of the answer is held while
//! a command is carried out, which looks at devices: a device, which has its port's, only tries it.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use super::header::{HOST_CID, Header, Kinds, flags, op};
use super::port::State;
use crate::sync::Mutex;

/// The port that commands are taken at.
pub const MONITOR_PORT: u32 = 1024;

/// Longest answer in bytes. More is cut.
pub const ANSWER_LEN: usize = 4096;

/// Connections of a guest.
pub const CALLS: usize = 2;

/// Bytes that a connection takes before they are looked at. A line that is longer is cut there.
const INPUT: usize = 256;

/// What a connection owes, or is over.
#[derive(Clone, Copy, Default)]
struct Call {
    peer_port: u32,
    /// It is connected.
    open: bool,
    /// A packet that the guest is to get: an operation, or 0.
    owes: u16,
    /// What the guest has said with SHUTDOWN.
    shut: u32,
    /// The guest was told that there will be no more.
    ended: bool,
    /// The guest's `buf_alloc` and `fwd_cnt`, and what was sent to it: these wrap.
    buf_alloc: u32,
    peer_count: u32,
    sent: u32,
    /// Bytes of lines that were looked at.
    count: u32,
}

impl Call {
    /// Bytes that can be sent to the guest. One that takes back what it granted is granted nothing.
    fn credit(&self) -> u32 {
        self.buf_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_count))
    }

    fn packet(&self, cid: u32, op: u16) -> Header {
        Header {
            src_cid: u64::from(HOST_CID).into(),
            dst_cid: u64::from(cid).into(),
            src_port: MONITOR_PORT.into(),
            dst_port: self.peer_port.into(),
            kind: 1.into(),
            op: op.into(),
            buf_alloc: (INPUT as u32).into(),
            fwd_cnt: self.count.into(),
            ..Header::default()
        }
    }
}

struct Calls {
    calls: [Call; CALLS],
    lines: [heapless::Vec<u8, INPUT>; CALLS],
}

impl Calls {
    /// Length of the next line of a call, with its end.
    fn line(&self, index: usize) -> Option<usize> {
        let (call, line) = (self.calls.get(index)?, self.lines.get(index)?);
        if !call.open || line.is_empty() {
            return None;
        }
        let end = line.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let whole = line.is_full() || call.shut & flags::SEND != 0;
        end.or(whole.then_some(line.len()))
    }

    fn next_line(&self) -> Option<(usize, usize)> {
        (0..CALLS).find_map(|index| Some((index, self.line(index)?)))
    }

    fn close(&mut self, index: usize) {
        if let (Some(call), Some(line)) = (self.calls.get_mut(index), self.lines.get_mut(index)) {
            *call = Call::default();
            line.clear();
        }
    }
}

/// An answer on its way.
struct Answer {
    text: [u8; ANSWER_LEN],
    len: usize,
    sent: usize,
    /// Whose it is: which call, and the guest's port, so that a later one does not get it.
    call: (usize, u32),
}

impl fmt::Write for Answer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.text.get_mut(self.len..).unwrap_or_default();
        let (whole, len) = (text.len() <= room.len(), text.len().min(room.len()));
        for (place, byte) in room.iter_mut().zip(text.as_bytes()) {
            *place = *byte;
        }
        self.len += len;
        if whole { Ok(()) } else { Err(fmt::Error) }
    }
}

/// A guest's place at the monitor.
pub struct Desk {
    calls: Mutex<Calls>,
    answer: Mutex<Answer>,
    /// A line waits to be carried out.
    asked: AtomicBool,
}

impl Desk {
    /// One that nobody is at.
    #[inline]
    pub const fn new() -> Self {
        Self {
            calls: Mutex::new(Calls {
                calls: [Call {
                    peer_port: 0,
                    open: false,
                    owes: 0,
                    shut: 0,
                    ended: false,
                    buf_alloc: 0,
                    peer_count: 0,
                    sent: 0,
                    count: 0,
                }; CALLS],
                lines: [const { heapless::Vec::new() }; CALLS],
            }),
            answer: Mutex::new(Answer { text: [0; ANSWER_LEN], len: 0, sent: 0, call: (0, 0) }),
            asked: AtomicBool::new(false),
        }
    }

    /// Forgets all connections.
    pub(super) fn reset(&self) {
        let mut calls = self.calls.lock();
        for index in 0..CALLS {
            calls.close(index);
        }
        self.asked.store(false, Ordering::Relaxed);
    }

    /// Takes a packet of the guest's whose payload `read` copies. `false`: it is to be reset.
    pub(super) fn receive(&self, header: &Header, read: &mut dyn FnMut(&mut [u8])) -> bool {
        let mut calls = self.calls.lock();
        let peer_port = header.src_port.get();
        let of_peer = |call: &Call| call.open && call.peer_port == peer_port;
        let found = calls.calls.iter().position(of_peer);
        if header.dst_port.get() != MONITOR_PORT || Kinds::of(header) != Kinds::STREAM {
            return false;
        }
        let credit = (header.buf_alloc.get(), header.fwd_cnt.get());
        let Some(index) = found else {
            let free = calls.calls.iter_mut().find(|call| !call.open);
            let Some(call) = free.filter(|_| header.op.get() == op::REQUEST) else { return false };
            *call = Call { peer_port, open: true, owes: op::RESPONSE, ..Call::default() };
            (call.buf_alloc, call.peer_count) = credit;
            return true;
        };
        let Calls { calls: all, lines } = &mut *calls;
        let (Some(call), Some(line)) = (all.get_mut(index), lines.get_mut(index)) else {
            return false;
        };
        (call.buf_alloc, call.peer_count) = credit;
        let good = match header.op.get() {
            op::RW => {
                let (from, len) = (line.len(), header.len.get() as usize);
                let fits = call.shut & flags::SEND == 0 && line.resize(from + len, 0).is_ok();
                if fits && let Some(place) = line.get_mut(from..) {
                    read(place);
                }
                fits
            }
            op::CREDIT_REQUEST => {
                if call.owes == 0 {
                    call.owes = op::CREDIT_UPDATE;
                }
                true
            }
            op::CREDIT_UPDATE => true,
            op::SHUTDOWN => {
                call.shut |= header.flags.get();
                let all = flags::SEND | flags::RECEIVE;
                // The answer to this is the reset that ends it.
                call.shut & all != all
            }
            op::RST => {
                calls.close(index);
                return true;
            }
            _ => false,
        };
        if !good {
            calls.close(index);
        }
        good
    }

    /// Sends the guest `cid` at `port` what it is owed, as far as it has buffers and grants credit. Whether
    /// something was put there.
    pub(super) fn send(&self, cid: u32, port: &mut State<'_>) -> bool {
        let mut calls = self.calls.lock();
        let mut some = false;
        for call in calls.calls.iter_mut().filter(|call| call.owes != 0) {
            if port.buffers.is_empty() {
                break;
            }
            let owed = core::mem::take(&mut call.owes);
            port.buffers.put(call.packet(cid, owed), 0, &mut |_| ());
            some = true;
        }
        // Whoever has it carries a command out, and has this looked at afterwards.
        let Some(mut answer) = self.answer.try_lock() else { return some };
        let Answer { text, len, sent, call: (index, peer_port) } = &mut *answer;
        let owner = calls.calls.get_mut(*index);
        match owner.filter(|call| call.open && call.peer_port == *peer_port) {
            None => *sent = *len,
            Some(call) => {
                while *sent < *len && call.credit() != 0 && !port.buffers.is_empty() {
                    let left = ((*len - *sent) as u32).min(call.credit());
                    let mut at = *sent;
                    let taken = port.buffers.put(call.packet(cid, op::RW), left, &mut |place| {
                        // As much as is there.
                        if let Some(piece) = text.get(at..at + place.len()) {
                            let _ = place.write_bytes(0, piece);
                            at += piece.len();
                        }
                    });
                    let taken = taken.unwrap_or(0);
                    *sent += taken as usize;
                    call.sent = call.sent.wrapping_add(taken);
                    some = true;
                }
            }
        }
        let idle = *sent >= *len;
        self.asked.store(idle && calls.next_line().is_some(), Ordering::Relaxed);
        for index in 0..CALLS {
            if !idle || port.buffers.is_empty() || calls.line(index).is_some() {
                continue;
            }
            let done = |call: &&mut Call| call.open && call.shut & flags::SEND != 0 && !call.ended;
            if let Some(call) = calls.calls.get_mut(index).filter(done) {
                call.ended = true;
                let mut end = call.packet(cid, op::SHUTDOWN);
                end.flags = (flags::SEND | flags::RECEIVE).into();
                port.buffers.put(end, 0, &mut |_| ());
                some = true;
            }
        }
        some
    }

    /// Whether [`Self::serve`] has something to do.
    #[inline]
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Has `work` carry out a line, and write the answer. To be called with no lock held; the device is to be polled
    /// afterwards.
    pub fn serve(&self, work: &mut dyn FnMut(&[u8], &mut dyn fmt::Write)) {
        self.asked.store(false, Ordering::Relaxed);
        // Another core may be at it.
        let Some(mut answer) = self.answer.try_lock() else { return };
        if answer.sent < answer.len {
            return;
        }
        let mut text = [0; INPUT];
        let mut calls = self.calls.lock();
        let Some((index, len)) = calls.next_line() else { return };
        let Calls { calls: all, lines } = &mut *calls;
        let (Some(call), Some(line)) = (all.get_mut(index), lines.get_mut(index)) else { return };
        let kept = line.len().saturating_sub(len);
        for (place, byte) in text.iter_mut().zip(line.iter()) {
            *place = *byte;
        }
        for at in 0..kept {
            let byte = line.get(at + len).copied().unwrap_or(0);
            if let Some(place) = line.get_mut(at) {
                *place = byte;
            }
        }
        line.truncate(kept);
        call.count = call.count.wrapping_add(len as u32);
        if call.owes == 0 {
            call.owes = op::CREDIT_UPDATE;
        }
        answer.call = (index, call.peer_port);
        drop(calls);
        (answer.len, answer.sent) = (0, 0);
        work(text.get(..len).unwrap_or_default().trim_ascii_end(), &mut *answer);
    }
}

#[cfg(test)]
impl Desk {
    /// As if so many bytes had gone to whoever is connected.
    pub(crate) fn pretend_sent(&self, bytes: u32) {
        for call in &mut self.calls.lock().calls {
            call.sent = bytes;
        }
    }
}

impl Default for Desk {
    fn default() -> Self {
        Self::new()
    }
}
