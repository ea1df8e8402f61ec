//! The line that is being typed to the monitor.

use super::filter::{Filter, Shown};
use super::send;
use crate::backend::serial::Serial;

/// Longest command, in bytes.
pub const COMMAND_LEN: usize = 128;

/// A command as typed, without its end of line.
pub type CommandLine = heapless::Vec<u8, COMMAND_LEN>;

/// Ctrl-C: the line is forgotten.
const CANCEL: u8 = 0x03;
/// Ctrl-U: the line is erased.
const ERASE: u8 = 0x15;
const DELETE: u8 = 0x7F;
const BACKSPACE: u8 = 0x08;

/// What a key did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Edit {
    /// The line goes on.
    Going,
    /// There is to be a fresh prompt.
    Cancelled,
    /// The line is complete.
    Complete(CommandLine),
}

/// A line editor with echo: BACKSPACE and DEL, Ctrl-U, Ctrl-C. What does not fit is not taken.
pub(super) struct Editor {
    line: CommandLine,
    /// Arrow keys and the like send control sequences.
    filter: Filter,
    /// The last line ended with a carriage return: a newline that follows belongs to it.
    returned: bool,
}

impl Editor {
    /// An empty line.
    pub(super) const fn new() -> Self {
        Self { line: CommandLine::new(), filter: Filter::new(), returned: false }
    }

    /// What there is of the line.
    pub(super) fn line(&self) -> &[u8] {
        &self.line
    }

    /// Forgets the line.
    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }

    /// The next byte typed; its echo goes to `sink`.
    pub(super) fn feed(&mut self, byte: u8, sink: &mut impl Serial) -> Edit {
        let returned = core::mem::replace(&mut self.returned, byte == b'\r');
        match byte {
            b'\n' if returned => {}
            b'\r' | b'\n' => {
                send(sink, b"\r\n");
                self.filter = Filter::new();
                return Edit::Complete(core::mem::take(&mut self.line));
            }
            CANCEL => {
                send(sink, b"^C\r\n");
                self.clear();
                return Edit::Cancelled;
            }
            ERASE => {
                while self.line.pop().is_some() {
                    send(sink, b"\x08 \x08");
                }
            }
            BACKSPACE | DELETE => {
                if self.line.pop().is_some() {
                    send(sink, b"\x08 \x08");
                }
            }
            _ => {
                if let (_, Shown::Byte(byte)) = self.filter.feed(byte) {
                    let byte = if byte == b'\t' { b' ' } else { byte };
                    if self.line.push(byte).is_ok() {
                        sink.write_byte(byte);
                    }
                }
            }
        }
        Edit::Going
    }
}

impl Default for Editor {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Terminal;
    use super::*;

    /// The commands that come out of what is typed, and what is echoed.
    fn typed(bytes: &[u8]) -> (Vec<String>, String) {
        let (mut editor, mut terminal) = (Editor::new(), Terminal::default());
        let mut commands = Vec::new();
        for byte in bytes {
            if let Edit::Complete(line) = editor.feed(*byte, &mut terminal) {
                commands.push(String::from_utf8(line.to_vec()).unwrap());
            }
        }
        (commands, terminal.text())
    }

    #[test]
    fn a_line_ends_with_any_end_of_line_once() {
        assert_eq!(typed(b"a\rb\nc\r\nd\r").0, ["a", "b", "c", "d"]);
        assert_eq!(typed(b"\n\r\r\n").0, ["", "", ""]);
    }

    #[test]
    fn it_can_be_corrected_erased_and_cancelled() {
        let (commands, echo) = typed(b"vmx\x7fs\x08s\r");
        assert_eq!(commands, ["vms"]);
        assert_eq!(echo, "vmx\x08 \x08s\x08 \x08s\r\n");
        assert_eq!(typed(b"stop\x15vms\r").0, ["vms"]);
        assert_eq!(typed(b"stop\x03vms\r").0, ["vms"]);
        assert_eq!(typed(b"\x7f\x15vms\r").0, ["vms"]);
    }

    #[test]
    fn arrow_keys_and_control_characters_do_nothing() {
        assert_eq!(typed(b"v\x1b[Am\x00\x01s\x1b[3~\r").0, ["vms"]);
    }

    #[test]
    fn a_line_takes_no_more_than_it_has_room_for() {
        let (commands, echo) = typed(&[&[b'x'; 300][..], b"\r"].concat());
        assert_eq!(commands, ["x".repeat(COMMAND_LEN)]);
        assert_eq!(echo.len(), COMMAND_LEN + 2);
    }
}
