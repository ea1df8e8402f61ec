//! One UART, many guests.
//!
//! [`Mux`] stands between the guests' UARTs, the hypervisor's log and its monitor on one side, and
//! the board's one serial line on the other. It decides who is seen and who gets the input:
//!
//! - *all*: guests' output line by line, `NAME| text`. A line is shown when it is complete; one that
//!   is not, a prompt, when its guest has said nothing for a while ([`Mux::tick`]). It then stays
//!   open, and is echoed to byte by byte, until somebody else has a line to show; it is shown again
//!   from its beginning when it goes on. What is shown of a guest is text only ([`filter`]), so that
//!   no guest can speak in another's name.
//! - *raw*: one guest has the terminal as if it were alone. With a single guest this is the default,
//!   and nothing is added to its output.
//! - *monitor*: the monitor's shell has the terminal.
//!
//! Each guest has a ring of its last output ([`RING_LEN`]), which is replayed when it is attached.
//! The log is never inside a guest's line, in any view; its last [`LOG_LEN`] bytes are kept.
//!
//! The escape key, Ctrl-\], and a letter switch; [`Mux::input`] says what the letters are.
//!
//! Portable and without a lock: the user has one around it and the UART together.

mod editor;
pub mod filter;
mod options;
mod output;
pub mod ring;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod view;

use core::time::Duration;

use crate::backend::clock::{Frequency, Ticks};
use crate::backend::serial::Serial;
use editor::Editor;
pub use editor::{COMMAND_LEN, CommandLine};
use filter::Filter;
pub use output::{LogLine, Terminal};
use ring::Ring;
pub use view::Input;

/// Guests one console can have.
pub const MAX_GUESTS: usize = 8;
/// Bytes of its last output that are kept for each guest.
pub const RING_LEN: usize = 4096;
/// Bytes of the log that are kept.
pub const LOG_LEN: usize = 8192;
/// Bytes of a line that are held back until it is complete.
pub const LINE_LEN: usize = 256;
/// Longest name of a guest, in bytes; what is longer is cut.
pub const NAME_LEN: usize = 15;

/// How long a guest is silent before what it has of a line is shown.
pub const IDLE: Duration = Duration::from_millis(50);
/// How long a guest may have no room for input before it loses what is typed.
const PATIENCE: Duration = Duration::from_secs(1);
/// Ctrl-\].
const ESCAPE_KEY: u8 = 0x1D;

/// What the console is to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether control sequences for colours are sent. Without, guests' names are plain text.
    pub colours: bool,
    /// The escape key, if there is one.
    pub escape: Option<u8>,
    /// After how long a guest counts as silent.
    idle: Ticks,
    /// How long input waits for its guest.
    patience: Ticks,
}

impl Settings {
    /// What holds before anything is settled.
    const PLAIN: Self = Self { colours: false, escape: None, idle: Ticks(0), patience: Ticks(0) };

    /// Colours, and Ctrl-\] for the escape key. `frequency` is that of the times the console is
    /// told.
    pub const fn new(frequency: Frequency) -> Self {
        Self {
            colours: true,
            escape: Some(ESCAPE_KEY),
            idle: frequency.ticks(IDLE),
            patience: frequency.ticks(PATIENCE),
        }
    }
}

/// Who has the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// All guests, by line.
    All,
    /// The guest of this number, raw.
    Raw(usize),
    /// The monitor.
    Monitor,
}

/// A guest's side of the console.
struct Guest {
    name: heapless::String<NAME_LEN>,
    ring: Ring<RING_LEN>,
    filter: Filter,
    /// What there is of its current line, in the view of all.
    line: [u8; LINE_LEN],
    len: usize,
    /// How much of that has been on the terminal.
    seen: usize,
    /// It has said something since the last look for silent guests.
    fresh: bool,
}

impl Guest {
    const fn new() -> Self {
        Self {
            name: heapless::String::new(),
            ring: Ring::new(),
            filter: Filter::new(),
            line: [0; LINE_LEN],
            len: 0,
            seen: 0,
            fresh: false,
        }
    }

    fn line(&self) -> &[u8] {
        self.line.get(..self.len).unwrap_or(&[])
    }

    /// Adds to the line; no effect if it is full.
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.line.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    fn begin_line(&mut self) {
        (self.len, self.seen) = (0, 0);
    }

    /// There is something of its line that nobody has seen.
    fn has_unseen(&self) -> bool {
        self.seen < self.len
    }
}

/// The console.
pub struct Mux {
    guests: [Guest; MAX_GUESTS],
    count: usize,
    view: View,
    settings: Settings,
    /// The guest that input goes to in the view of all.
    focus: usize,
    /// The cursor is not at the start of a line.
    mid_line: bool,
    /// The guest whose unfinished line the cursor is in, in the view of all.
    open: Option<usize>,
    /// Bytes at the end of the attached guest's ring that are still to be sent.
    behind: u64,
    /// [`Self::tick`] was asked for.
    ticking: bool,
    /// When to look for silent guests next.
    next_look: Ticks,
    log: Ring<LOG_LEN>,
    editor: Editor,
    /// A command is being carried out: there is no prompt.
    busy: bool,
    /// The escape key came last.
    escaped: bool,
    /// Input that its guest had no room for.
    held: Option<(usize, u8)>,
    /// Since when guests have had no room.
    blocked: Option<Ticks>,
}

impl Mux {
    /// A console without guests. All of it is zero, so that a static one takes no room in the image.
    pub const fn new() -> Self {
        Self {
            guests: [const { Guest::new() }; MAX_GUESTS],
            count: 0,
            view: View::All,
            settings: Settings::PLAIN,
            focus: 0,
            mid_line: false,
            open: None,
            behind: 0,
            ticking: false,
            next_look: Ticks(0),
            log: Ring::new(),
            editor: Editor::new(),
            busy: false,
            escaped: false,
            held: None,
            blocked: None,
        }
    }

    /// Settles what the console is like. Before that it has no colours and no escape key.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Adds a guest; its number. `None` if there are [`MAX_GUESTS`]. The first one has the terminal
    /// for itself, and shares it from the second one on.
    ///
    /// A name becomes graphic ASCII, without `|`.
    pub fn add_guest(&mut self, name: &str) -> Option<usize> {
        let number = self.count;
        let guest = self.guests.get_mut(number)?;
        guest.name.clear();
        for letter in name.chars().take(NAME_LEN) {
            let good = letter.is_ascii_graphic() && letter != '|';
            // Of NAME_LEN letters of one byte each, all fit.
            let _ = guest.name.push(if good { letter } else { '?' });
        }
        self.count += 1;
        self.view = if number == 0 { View::Raw(0) } else { View::All };
        self.behind = 0;
        Some(number)
    }

    /// Who has the terminal.
    pub fn view(&self) -> View {
        self.view
    }

    /// The log's text from `position` on, or from the oldest that is kept, into `out`: how many
    /// bytes, and the position after them. [`Self::log_written`] minus a length is where the last
    /// bytes of that length begin.
    pub fn read_log(&self, position: u64, out: &mut [u8]) -> (usize, u64) {
        self.log.read(position, out)
    }

    /// Bytes that were ever logged.
    pub fn log_written(&self) -> u64 {
        self.log.written()
    }

    fn colours(&self) -> bool {
        self.settings.colours
    }
}

impl Default for Mux {
    fn default() -> Self {
        Self::new()
    }
}

fn send(sink: &mut impl Serial, bytes: &[u8]) {
    bytes.iter().for_each(|byte| sink.write_byte(*byte));
}
