//! What of a guest's output may stand in a line beside other guests' lines: printable ASCII and TAB.
//!
//! Everything else could move the cursor or reprogram the terminal. Control sequences (ECMA-48) are
//! left out whole, so that a coloured `ls` stays readable; a byte that is not ASCII becomes `?`,
//! because some terminals take 0x80 to 0x9F, also as UTF-8, for control characters.

/// Where in a control sequence the stream is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Text,
    /// After ESC, and after the intermediate bytes that may follow.
    Escape,
    /// After ESC \[: up to a final byte.
    Control,
    /// After ESC \] and others: up to BEL or ESC \\.
    String,
    /// After ESC in a string.
    StringEscape,
}

/// What a byte is to the line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shown {
    /// Nothing.
    Nothing,
    /// This byte: 0x20 to 0x7E, or TAB.
    Byte(u8),
    /// The last byte is taken back.
    Backspace,
    /// The line ends.
    Newline,
}

/// Sorts a guest's output, byte by byte.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    state: State,
    /// A carriage return came last. What follows decides what it is.
    returned: bool,
}

const ESCAPE: u8 = 0x1B;
const BELL: u8 = 0x07;
const BACKSPACE: u8 = 0x08;

impl Filter {
    /// At the start of a line.
    pub const fn new() -> Self {
        Self { state: State::Text, returned: false }
    }

    /// The next byte. The first of the answer says whether the line ended before it: a carriage
    /// return with something else than a newline after it ends a line, because it could bring the
    /// cursor back over the name of the guest.
    pub fn feed(&mut self, byte: u8) -> (bool, Shown) {
        if byte == b'\r' {
            self.returned = true;
            self.state = State::Text;
            return (false, Shown::Nothing);
        }
        let returned = core::mem::take(&mut self.returned);
        if byte == b'\n' {
            // Ends whatever sequence there was: what a guest leaves open hides one line at most.
            self.state = State::Text;
            return (false, Shown::Newline);
        }
        (returned, self.shown(byte))
    }

    fn shown(&mut self, byte: u8) -> Shown {
        self.state = match (self.state, byte) {
            (State::Text, ESCAPE) => State::Escape,
            (State::Text, b'\t' | b' '..=b'~') => return Shown::Byte(byte),
            (State::Text, BACKSPACE) => return Shown::Backspace,
            (State::Text, 0x80..) => return Shown::Byte(b'?'),
            (State::Text, _) => State::Text,
            (State::Escape, b'[') => State::Control,
            (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => State::String,
            // Intermediate bytes of a longer sequence, and a second ESC.
            (State::Escape, b' '..=b'/' | ESCAPE) => State::Escape,
            (State::Escape, _) => State::Text,
            (State::Control, ESCAPE) => State::Escape,
            (State::Control, b'@'..=b'~') => State::Text,
            (State::Control, _) => State::Control,
            (State::String | State::StringEscape, BELL) => State::Text,
            (State::String | State::StringEscape, ESCAPE) => State::StringEscape,
            (State::StringEscape, b'\\') => State::Text,
            (State::String | State::StringEscape, _) => State::String,
        };
        Shown::Nothing
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(bytes: &[u8]) -> String {
        let mut filter = Filter::new();
        let mut text = String::new();
        for byte in bytes {
            let (before, shown) = filter.feed(*byte);
            if before {
                text.push('\n');
            }
            match shown {
                Shown::Nothing => {}
                Shown::Byte(byte) => text.push(byte.into()),
                Shown::Backspace => text.push('<'),
                Shown::Newline => text.push('\n'),
            }
        }
        text
    }

    #[test]
    fn control_sequences_are_left_out_whole() {
        assert_eq!(text(b"\x1b[1;32mgreen\x1b[0m."), "green.");
        assert_eq!(text(b"# \x1b[6n\x1b[J"), "# ");
        assert_eq!(text(b"a\x1b]0;title\x07b\x1b]2;other\x1b\\c"), "abc");
        assert_eq!(text(b"a\x1b(0b\x1bcc\x1b[\x1b[3~d"), "abcd");
        assert_eq!(text(b"a\x1b]never ended\nb"), "a\nb");
    }

    #[test]
    fn a_carriage_return_ends_a_line_once() {
        assert_eq!(text(b"a\r\nb\r\r\nc"), "a\nb\nc");
        assert_eq!(text(b"10%\r20%\r\n"), "10%\n20%\n");
        assert_eq!(text(b"abc\r\x1b[Kfake"), "abc\nfake");
    }

    #[test]
    fn what_is_no_ascii_and_no_text_is_replaced_or_left_out() {
        assert_eq!(text("a\u{e9}b".as_bytes()), "a??b");
        assert_eq!(text(b"\x9b31m\x00\x7f\x07\tx\x08"), "?31m\tx<");
    }

    proptest! {
        #[test]
        fn nothing_but_printable_bytes_comes_out(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let shown = text(&bytes);
            prop_assert!(shown.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t' | b'\n')));
        }
    }
}
