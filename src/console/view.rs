//! Input: the escape key, who gets the rest, and what switching looks like.

use super::editor::{CommandLine, Edit};
use super::filter::Shown;
use super::{Filter, LINE_LEN, Mux, View, send};
use crate::backend::clock::Ticks;
use crate::backend::serial::Serial;

const PROMPT: &[u8] = b"sparkler> ";

/// What the escape key's `?` says.
const HELP: [&str; 5] = [
    "escape key, then: 1-8  attach the guest of that number",
    "                  a    all guests, line by line",
    "                  m    monitor",
    "                  ?    this help",
    "                  the escape key again: send it to the guest",
];

/// What is to be done with a byte of input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// Nothing: it was for the console itself.
    Nothing,
    /// It is for a guest. [`Mux::delivered`] or [`Mux::hold`] is told whether the guest took it.
    Guest {
        /// The guest's number.
        guest: usize,
        /// The byte.
        byte: u8,
    },
    /// A command for the monitor. When it is done and its output written, [`Mux::prompt`] follows.
    Command(CommandLine),
}

impl Mux {
    /// A byte from the terminal.
    ///
    /// After the escape key, `1` to `8` attach a guest (raw), `a` is the view of all, `m` the
    /// monitor, `?` shows this; the escape key itself goes to the guest, everything else is
    /// forgotten. Other bytes go to the attached guest; in the view of all, to the one that was
    /// attached last, or the first one.
    pub fn input(&mut self, byte: u8, sink: &mut impl Serial) -> Input {
        let is_escape = self.settings.escape == Some(byte);
        if core::mem::take(&mut self.escaped) {
            if !is_escape {
                self.command_key(byte, sink);
                return Input::Nothing;
            }
        } else if is_escape {
            self.escaped = true;
            return Input::Nothing;
        }
        match self.view {
            View::Raw(guest) => Input::Guest { guest, byte },
            View::All if self.count == 0 => Input::Nothing,
            View::All => Input::Guest { guest: self.focus, byte },
            // One command at a time.
            View::Monitor if self.busy => Input::Nothing,
            View::Monitor => match self.editor.feed(byte, sink) {
                Edit::Going => {
                    self.mid_line = true;
                    Input::Nothing
                }
                Edit::Cancelled => {
                    self.show_prompt(sink);
                    Input::Nothing
                }
                Edit::Complete(line) => {
                    self.mid_line = false;
                    self.busy = true;
                    Input::Command(line)
                }
            },
        }
    }

    /// A guest had no room for a byte of its input. `true` if [`Self::take_held`] will give it again:
    /// take no more input until then. `false` if it is lost, because guests have had no room for a
    /// second: whoever types must be able to get away from a guest that is stuck.
    #[must_use]
    pub fn hold(&mut self, guest: usize, byte: u8, now: Ticks) -> bool {
        let since = *self.blocked.get_or_insert(now);
        if now >= since.after(self.settings.patience) {
            return false;
        }
        self.held = Some((guest, byte));
        true
    }

    /// The byte that was held, and its guest: to be tried before any other input.
    pub fn take_held(&mut self) -> Option<(usize, u8)> {
        self.held.take()
    }

    /// Whether a byte waits for [`Self::take_held`].
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// A guest took its input.
    #[inline]
    pub fn delivered(&mut self) {
        self.blocked = None;
    }

    /// The monitor's command is done.
    pub fn prompt(&mut self, sink: &mut impl Serial) {
        self.busy = false;
        if self.view == View::Monitor {
            self.fresh_line(sink);
            self.show_prompt(sink);
        }
    }

    /// Attaches a guest: what it said last is shown again, and it has the terminal. `false` if there
    /// is no such guest. [`Self::tick`] is wanted afterwards.
    pub fn attach(&mut self, guest: usize, sink: &mut impl Serial) -> bool {
        let Some(it) = self.guests.get(guest).filter(|_| guest < self.count) else { return false };
        let (name, kept) = (it.name.clone(), it.ring.written() - it.ring.oldest());
        self.leave(View::Raw(guest), sink);
        self.announce(sink, &[&name]);
        self.focus = guest;
        self.behind = kept;
        self.catch_up(LINE_LEN as u64, sink);
        true
    }

    /// Back from the monitor: to the only guest, or to all. [`Self::tick`] is wanted afterwards.
    pub fn quit(&mut self, sink: &mut impl Serial) {
        if self.count != 1 || !self.attach(0, sink) {
            self.show_all(sink);
        }
    }

    /// The view of all. [`Self::tick`] is wanted afterwards.
    pub fn show_all(&mut self, sink: &mut impl Serial) {
        self.leave(View::All, sink);
        self.announce(sink, &["all guests"]);
        // What guests have of a line is in their rings, if it is not too long.
        for guest in self.guests.iter_mut().take(self.count) {
            guest.begin_line();
            guest.filter = Filter::new();
            guest.fresh = false;
            let Some(mut at) = guest.ring.line_start(LINE_LEN as u64) else { continue };
            while let Some(byte) = guest.ring.at(at) {
                let (returned, shown) = guest.filter.feed(byte);
                if returned {
                    guest.begin_line();
                }
                match shown {
                    Shown::Nothing => {}
                    Shown::Byte(byte) => guest.push(byte),
                    Shown::Backspace => guest.len = guest.len.saturating_sub(1),
                    Shown::Newline => guest.begin_line(),
                }
                at += 1;
            }
        }
    }

    /// The monitor gets the terminal.
    pub fn enter_monitor(&mut self, sink: &mut impl Serial) {
        if self.view == View::Monitor {
            return;
        }
        self.leave(View::Monitor, sink);
        self.announce(sink, &["monitor, \"help\" lists its commands, \"quit\" leaves it"]);
        self.editor.clear();
        if !self.busy {
            self.show_prompt(sink);
        }
    }

    fn command_key(&mut self, key: u8, sink: &mut impl Serial) {
        match key {
            b'1'..=b'8' => {
                self.attach(usize::from(key - b'1'), sink);
            }
            b'a' => self.show_all(sink),
            b'm' => self.enter_monitor(sink),
            b'?' => {
                let interrupted = self.mid_line;
                self.fresh_line(sink);
                for line in HELP {
                    send(sink, line.as_bytes());
                    send(sink, b"\r\n");
                }
                if interrupted {
                    self.resume(sink);
                }
            }
            _ => {}
        }
    }

    /// The terminal goes to somebody else.
    fn leave(&mut self, next: View, sink: &mut impl Serial) {
        self.fresh_line(sink);
        if matches!(self.view, View::Raw(_)) && self.colours() {
            // Colours and a hidden cursor are not inherited.
            send(sink, b"\x1b[0m\x1b[?25h");
        }
        self.behind = 0;
        self.next_look = Ticks(0);
        self.view = next;
    }

    fn announce(&mut self, sink: &mut impl Serial, text: &[&str]) {
        send(sink, b"[sparkler] console: ");
        text.iter().for_each(|text| send(sink, text.as_bytes()));
        send(sink, b"\r\n");
    }

    pub(super) fn show_prompt(&mut self, sink: &mut impl Serial) {
        send(sink, PROMPT);
        send(sink, self.editor.line());
        self.mid_line = true;
    }
}
