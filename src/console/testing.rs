//! A terminal that is not there.

use crate::backend::serial::Serial;

/// What was written to it.
#[derive(Default)]
pub(super) struct Terminal(pub(super) Vec<u8>);

impl Terminal {
    /// All of it as text.
    pub(super) fn text(&self) -> String {
        self.0.iter().map(|byte| char::from(*byte)).collect()
    }

    /// What was written since the last time.
    pub(super) fn take(&mut self) -> String {
        let text = self.text();
        self.0.clear();
        text
    }
}

impl Serial for Terminal {
    fn write_byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
    fn read_byte(&mut self) -> Option<u8> {
        None
    }
}
