//! What is at the other end of a console's port: a stream of bytes each way, bounded.
//!
//! - [`Pipe`]: two ends, each the port of a guest, or the board's terminal.
//! - [`LogPort`]: what a guest says becomes lines of the log.

use core::fmt::Write;

use super::clock::Ticks;
use super::wake::Waker;
use crate::rate_limit::RateLimit;
use crate::sync::Mutex;

/// Bytes that wait in a pipe, each way.
pub const PIPE_LEN: usize = 4096;
/// Bytes of a line of the log.
const LINE_LEN: usize = 120;

/// The other end of a port. Nothing here waits.
pub trait PortBackend: Send {
    /// Bytes that [`Self::write`] takes now.
    fn room(&self) -> usize;
    /// Takes bytes from the guest, as many as there is room for. If nobody is there they are gone.
    fn write(&mut self, bytes: &[u8], now: Ticks);
    /// Bytes that wait for the guest.
    fn available(&self) -> usize;
    /// Takes bytes for the guest; how many.
    fn read(&mut self, out: &mut [u8]) -> usize;
    /// The guest's port is open, or is no more: then what waits for it is gone.
    fn set_open(&mut self, open: bool);
    /// Whether somebody is there.
    fn is_open(&self) -> bool;
}

/// What goes to one end.
struct Lane<'p> {
    bytes: [u8; PIPE_LEN],
    /// Where the first byte is.
    first: usize,
    len: usize,
    /// Somebody is at this end.
    open: bool,
    /// The other end had no room.
    full: bool,
    /// Whom to tell at this end.
    waker: Option<Waker<'p>>,
}

impl Lane<'_> {
    const EMPTY: Self =
        Self { bytes: [0; PIPE_LEN], first: 0, len: 0, open: false, full: false, waker: None };

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut((self.first + self.len) % PIPE_LEN) {
            *place = byte;
            self.len += 1;
        }
    }

    fn pop(&mut self) -> Option<u8> {
        self.len = self.len.checked_sub(1)?;
        let byte = self.bytes.get(self.first).copied();
        self.first = (self.first + 1) % PIPE_LEN;
        byte
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }
}

/// Two ends that hear each other.
pub struct Pipe<'p>(Mutex<[Lane<'p>; 2]>);

impl<'p> Pipe<'p> {
    /// A pipe with nobody at it.
    pub const fn new() -> Self {
        Self(Mutex::new([const { Lane::EMPTY }; 2]))
    }

    /// One end, the first or the `second`; there, `waker` is told of what comes.
    pub fn end(&'p self, second: bool, waker: Option<Waker<'p>>) -> PipeEnd<'p> {
        let end = PipeEnd { pipe: self, second };
        end.with(|own, _| own.waker = waker);
        end
    }
}

impl Default for Pipe<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// One end of a pipe.
pub struct PipeEnd<'p> {
    pipe: &'p Pipe<'p>,
    second: bool,
}

impl<'p> PipeEnd<'p> {
    /// Works on the lanes: that to this end, and that to the other.
    fn with<T>(&self, work: impl FnOnce(&mut Lane<'p>, &mut Lane<'p>) -> T) -> T {
        let [first, second] = &mut *self.pipe.0.lock();
        if self.second { work(second, first) } else { work(first, second) }
    }
}

impl PortBackend for PipeEnd<'_> {
    fn room(&self) -> usize {
        self.with(|_, other| {
            let room = if other.open { PIPE_LEN - other.len } else { PIPE_LEN };
            other.full |= room == 0;
            room
        })
    }

    fn write(&mut self, bytes: &[u8], _now: Ticks) {
        self.with(|_, other| {
            if other.open {
                let room = PIPE_LEN - other.len;
                bytes.iter().take(room).for_each(|byte| other.push(*byte));
                other.wake();
            }
        });
    }

    fn available(&self) -> usize {
        self.with(|own, _| own.len)
    }

    fn read(&mut self, out: &mut [u8]) -> usize {
        self.with(|own, other| {
            let mut count = 0;
            for (place, byte) in out.iter_mut().zip(core::iter::from_fn(|| own.pop())) {
                *place = byte;
                count += 1;
            }
            if count != 0 && core::mem::take(&mut own.full) {
                other.wake();
            }
            count
        })
    }

    fn set_open(&mut self, open: bool) {
        self.with(|own, other| {
            own.open = open;
            if !open {
                own.len = 0;
            }
            other.wake();
        });
    }

    fn is_open(&self) -> bool {
        self.with(|_, other| other.open)
    }
}

/// Makes lines of the log of what a guest says, but of no more than a limit admits.
pub struct LogPort {
    name: &'static str,
    limit: RateLimit,
    line: heapless::String<LINE_LEN>,
}

impl LogPort {
    /// One for the machine called `name`.
    pub fn new(name: &'static str, limit: RateLimit) -> Self {
        Self { name, limit, line: heapless::String::new() }
    }
}

impl PortBackend for LogPort {
    fn room(&self) -> usize {
        PIPE_LEN
    }

    fn write(&mut self, bytes: &[u8], now: Ticks) {
        for byte in bytes {
            let text = matches!(byte, b' '..=b'~');
            if text {
                // One that is too long goes on in the next.
                let _ = self.line.write_char(char::from(*byte));
            }
            if *byte == b'\n' || self.line.len() == LINE_LEN {
                if let Some(refused) = self.limit.admit(now) {
                    if refused != 0 {
                        log::info!("{}: {refused} more lines are not shown", self.name);
                    }
                    log::info!("{}: {}", self.name, self.line);
                }
                self.line.clear();
            }
        }
    }

    fn available(&self) -> usize {
        0
    }

    fn read(&mut self, _out: &mut [u8]) -> usize {
        0
    }

    fn set_open(&mut self, _open: bool) {
        self.line.clear();
    }

    fn is_open(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(end: &mut PipeEnd<'_>) -> Vec<u8> {
        let mut out = vec![0; PIPE_LEN + 1];
        let count = end.read(&mut out);
        out.truncate(count);
        out
    }

    #[test]
    fn what_one_end_says_the_other_hears_in_order() {
        let pipe = Pipe::new();
        let (mut left, mut right) = (pipe.end(false, None), pipe.end(true, None));
        left.set_open(true);
        assert!(right.is_open() && !left.is_open());
        right.set_open(true);
        for round in 0..100 {
            let sent: Vec<u8> = (0..99).map(|at| (at * round) as u8).collect();
            left.write(&sent, Ticks(0));
            right.write(&sent[..50], Ticks(0));
            assert_eq!((right.available(), left.available()), (99, 50));
            assert_eq!((read(&mut right), read(&mut left)), (sent.clone(), sent[..50].to_vec()));
        }
    }

    #[test]
    fn a_pipe_holds_so_many_bytes_and_no_more() {
        let pipe = Pipe::new();
        let (mut left, mut right) = (pipe.end(false, None), pipe.end(true, None));
        right.set_open(true);
        left.write(&[7; PIPE_LEN - 1], Ticks(0));
        assert_eq!(left.room(), 1);
        left.write(&[8; 5], Ticks(0));
        assert_eq!((left.room(), right.available()), (0, PIPE_LEN));
        assert_eq!(read(&mut right).last(), Some(&8));
        assert_eq!(left.room(), PIPE_LEN);
    }

    #[test]
    fn what_is_said_to_nobody_is_gone_and_who_leaves_hears_nothing_of_before() {
        let pipe = Pipe::new();
        let (mut left, mut right) = (pipe.end(false, None), pipe.end(true, None));
        left.write(b"lost", Ticks(0));
        assert_eq!((left.room(), right.available()), (PIPE_LEN, 0));
        right.set_open(true);
        left.write(b"gone", Ticks(0));
        right.set_open(false);
        right.set_open(true);
        left.write(b"heard", Ticks(0));
        assert_eq!(read(&mut right), b"heard");
    }
}
