//! Output: guests' bytes, the log's lines, the monitor's text.

use core::fmt;

use super::filter::Shown;
use super::{LINE_LEN, Mux, View, send};
use crate::backend::clock::Ticks;
use crate::backend::serial::Serial;

/// Bytes of a replay sent at each [`Mux::tick`]: 22 ms at 115,200 Bd. Nobody waits for all of it.
const REPLAY_CHUNK: u64 = 256;
/// Bytes sent for each byte a guest says during its replay: enough to catch up.
const CATCH_UP: u64 = 4;

/// Colours of guests' names (ECMA-48 SGR), by number: green, yellow, blue, magenta, cyan, and bright
/// ones. Red is left to what goes wrong.
const COLOURS: [&[u8]; super::MAX_GUESTS] =
    [b"32", b"33", b"36", b"35", b"34", b"92", b"93", b"96"];

impl Mux {
    /// A byte of a guest's output. `true` if [`Self::tick`] is to be called before long, where it
    /// had not to be before.
    #[inline]
    #[must_use]
    pub fn output(&mut self, guest: usize, byte: u8, sink: &mut impl Serial) -> bool {
        let Some(it) = self.guests.get_mut(guest) else { return false };
        it.ring.push(byte);
        match self.view {
            View::Raw(attached) if attached == guest => {
                if self.behind != 0 {
                    self.behind += 1;
                    self.catch_up(CATCH_UP, sink);
                } else {
                    self.mid_line = byte != b'\n';
                    sink.write_byte(byte);
                }
                false
            }
            View::All => {
                self.line_output(guest, byte, sink);
                self.wants_tick() && !core::mem::replace(&mut self.ticking, true)
            }
            _ => false,
        }
    }

    /// Does what only time can bring about: shows unfinished lines of guests that have gone silent,
    /// and goes on with a replay. When to call again; `None` if [`Self::output`] or
    /// [`Self::input`] will ask for it. Sends at most a few lines.
    pub fn tick(&mut self, now: Ticks, sink: &mut impl Serial) -> Option<Ticks> {
        let idle = self.settings.idle;
        match self.view {
            View::Raw(_) => self.catch_up(REPLAY_CHUNK, sink),
            View::All if now >= self.next_look => {
                self.next_look = now.after(idle);
                self.show_silent(sink);
            }
            _ => {}
        }
        self.ticking = self.wants_tick();
        let wait = if self.view == View::All { self.next_look.max(now) } else { now.after(idle) };
        self.ticking.then_some(wait)
    }

    pub(super) fn wants_tick(&self) -> bool {
        match self.view {
            View::Raw(_) => self.behind != 0,
            View::All => self.guests.iter().take(self.count).any(super::Guest::has_unseen),
            View::Monitor => false,
        }
    }

    /// Begins a line of the log, which is shown by itself, and kept. It ends when it is dropped.
    pub fn log<'a, S: Serial>(&'a mut self, sink: &'a mut S) -> LogLine<'a, S> {
        let interrupted = self.mid_line;
        self.fresh_line(sink);
        LogLine { mux: self, sink, interrupted }
    }

    /// Where the monitor writes. Nothing is shown if it does not have the terminal.
    pub fn terminal<'a, S: Serial>(&'a mut self, sink: &'a mut S) -> Terminal<'a, S> {
        Terminal { mux: self, sink }
    }

    /// Puts the cursor to the start of a line.
    pub(super) fn fresh_line(&mut self, sink: &mut impl Serial) {
        if core::mem::take(&mut self.mid_line) {
            send(sink, b"\r\n");
        }
        if let Some(open) = self.open.take()
            && self.focus == open
            && self.colours()
            && let Some(guest) = self.guests.get_mut(open)
        {
            // Whoever types there wants to see it again; a program that reads does not.
            guest.seen = 0;
        }
    }

    /// Shows again what a line of the log came into.
    pub(super) fn resume(&mut self, sink: &mut impl Serial) {
        match self.view {
            View::Raw(guest) if self.behind == 0 => {
                let Some(guest) = self.guests.get(guest) else { return };
                let Some(mut at) = guest.ring.line_start(LINE_LEN as u64) else { return };
                while let Some(byte) = guest.ring.at(at) {
                    self.mid_line = true;
                    sink.write_byte(byte);
                    at += 1;
                }
            }
            View::Monitor if !self.busy => self.show_prompt(sink),
            _ => {}
        }
    }

    /// Sends up to `limit` bytes of what the attached guest's terminal has missed.
    pub(super) fn catch_up(&mut self, limit: u64, sink: &mut impl Serial) {
        let View::Raw(guest) = self.view else { return };
        let Some(guest) = self.guests.get(guest) else { return };
        let mut at = guest.ring.written().saturating_sub(self.behind).max(guest.ring.oldest());
        for _ in 0..limit {
            let Some(byte) = guest.ring.at(at) else { break };
            self.mid_line = byte != b'\n';
            sink.write_byte(byte);
            at += 1;
        }
        self.behind = guest.ring.written() - at;
    }

    /// A byte of a guest's output in the view of all.
    fn line_output(&mut self, guest: usize, byte: u8, sink: &mut impl Serial) {
        let Some(it) = self.guests.get_mut(guest) else { return };
        let (returned, shown) = it.filter.feed(byte);
        it.fresh = true;
        if returned && it.len != 0 {
            self.end_line(guest, sink);
        }
        let open = self.open == Some(guest);
        match shown {
            Shown::Nothing => {}
            Shown::Newline => self.end_line(guest, sink),
            Shown::Backspace => {
                if let Some(it) = self.guests.get_mut(guest)
                    && it.len != 0
                {
                    it.len -= 1;
                    it.seen = it.seen.min(it.len);
                    if open {
                        send(sink, b"\x08 \x08");
                    }
                }
            }
            Shown::Byte(byte) => {
                if self.guests.get(guest).is_some_and(|it| it.len == LINE_LEN) {
                    // It goes on where it is shown, if nobody else has a line meanwhile.
                    self.open_line(guest, sink);
                    self.guests.get_mut(guest).into_iter().for_each(super::Guest::begin_line);
                }
                let open = self.open == Some(guest);
                let Some(it) = self.guests.get_mut(guest) else { return };
                it.push(byte);
                if open {
                    it.seen = it.len;
                    self.mid_line = true;
                    sink.write_byte(byte);
                }
            }
        }
    }

    /// A guest's line is complete.
    fn end_line(&mut self, guest: usize, sink: &mut impl Serial) {
        let Some(it) = self.guests.get(guest) else { return };
        let all_seen = it.len != 0 && !it.has_unseen();
        if self.open == Some(guest) || !all_seen {
            self.open_line(guest, sink);
            send(sink, b"\r\n");
            self.mid_line = false;
            self.open = None;
        }
        if let Some(it) = self.guests.get_mut(guest) {
            it.begin_line();
        }
    }

    /// Puts the cursor to the end of a guest's line.
    fn open_line(&mut self, guest: usize, sink: &mut impl Serial) {
        if self.open == Some(guest) {
            return;
        }
        self.fresh_line(sink);
        let colour = COLOURS.get(guest).filter(|_| self.colours());
        let Some(it) = self.guests.get_mut(guest) else { return };
        if let Some(colour) = colour {
            send(sink, b"\x1b[");
            send(sink, colour);
            send(sink, b"m");
        }
        send(sink, it.name.as_bytes());
        send(sink, b"|");
        if colour.is_some() {
            send(sink, b"\x1b[0m");
        }
        send(sink, b" ");
        send(sink, it.line());
        it.seen = it.len;
        self.open = Some(guest);
        self.mid_line = true;
    }

    /// Shows what guests that are silent have of a line; the one that input goes to comes last, and
    /// keeps the place.
    fn show_silent(&mut self, sink: &mut impl Serial) {
        let last = self.focus;
        for guest in (0..self.count).filter(|guest| *guest != last).chain([last]) {
            let Some(it) = self.guests.get_mut(guest) else { continue };
            let silent = !core::mem::take(&mut it.fresh);
            if silent && it.has_unseen() {
                let displaced = self.open;
                let seen = displaced.and_then(|open| self.guests.get(open)).map(|it| it.seen);
                self.open_line(guest, sink);
                // Two prompts do not fight for the place: each is seen once.
                if let (Some(open), Some(seen)) = (displaced, seen)
                    && let Some(it) = self.guests.get_mut(open)
                {
                    it.seen = seen;
                }
            }
        }
    }
}

/// A line of the log.
pub struct LogLine<'a, S: Serial> {
    mux: &'a mut Mux,
    sink: &'a mut S,
    interrupted: bool,
}

impl<S: Serial> fmt::Write for LogLine<'_, S> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.mux.log.push(byte);
            if byte == b'\n' {
                self.sink.write_byte(b'\r');
            }
            self.sink.write_byte(byte);
        }
        Ok(())
    }
}

impl<S: Serial> Drop for LogLine<'_, S> {
    fn drop(&mut self) {
        self.mux.log.push(b'\n');
        send(self.sink, b"\r\n");
        if self.interrupted {
            self.mux.resume(self.sink);
        }
    }
}

/// The terminal of the monitor.
pub struct Terminal<'a, S: Serial> {
    mux: &'a mut Mux,
    sink: &'a mut S,
}

impl<S: Serial> fmt::Write for Terminal<'_, S> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.mux.view == View::Monitor {
            for byte in text.bytes() {
                if byte == b'\n' {
                    self.sink.write_byte(b'\r');
                }
                self.sink.write_byte(byte);
                self.mux.mid_line = byte != b'\n';
            }
        }
        Ok(())
    }
}
