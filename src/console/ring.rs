//! The last bytes of a stream.

/// The last `N` bytes of a stream. `N` is a power of two.
pub struct Ring<const N: usize> {
    bytes: [u8; N],
    /// Bytes there have ever been.
    written: u64,
}

impl<const N: usize> Ring<N> {
    const MASK: u64 = {
        assert!(N.is_power_of_two());
        N as u64 - 1
    };

    /// No bytes. All of it is zero, so that a static one takes no room in the image.
    pub const fn new() -> Self {
        Self { bytes: [0; N], written: 0 }
    }

    /// Adds a byte; the oldest one makes room.
    #[inline]
    pub fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut((self.written & Self::MASK) as usize) {
            *place = byte;
        }
        self.written += 1;
    }

    /// Bytes there have ever been.
    #[inline]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Position of the oldest byte that is still there.
    pub fn oldest(&self) -> u64 {
        self.written.saturating_sub(N as u64)
    }

    /// The byte at `position`, counted from the first there has ever been. `None` if it is no
    /// longer there, or not yet.
    pub fn at(&self, position: u64) -> Option<u8> {
        if position >= self.written || position < self.oldest() {
            return None;
        }
        self.bytes.get((position & Self::MASK) as usize).copied()
    }

    /// Copies what there is from `position` on, or from the oldest byte if that is later, into
    /// `out`: how many bytes were copied, and the position after them.
    pub fn read(&self, position: u64, out: &mut [u8]) -> (usize, u64) {
        let mut position = position.max(self.oldest());
        let mut count = 0;
        for place in out {
            let Some(byte) = self.at(position) else { break };
            *place = byte;
            position += 1;
            count += 1;
        }
        (count, position)
    }

    /// Where the line begins that is not over yet: the position after the last newline. `None` if
    /// it is more than `reach` bytes back, or no longer there.
    pub fn line_start(&self, reach: u64) -> Option<u64> {
        let mut position = self.written;
        for _ in 0..=reach {
            if position == 0 {
                return Some(0);
            }
            if self.at(position - 1)? == b'\n' {
                return Some(position);
            }
            position -= 1;
        }
        None
    }
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled(bytes: &[u8]) -> Ring<16> {
        let mut ring = Ring::new();
        bytes.iter().for_each(|byte| ring.push(*byte));
        ring
    }

    proptest! {
        #[test]
        fn it_holds_the_last_bytes(
            bytes in prop::collection::vec(any::<u8>(), 0..60),
            from in 0..70u64,
            room in 0..20usize,
        ) {
            let ring = filled(&bytes);
            let oldest = bytes.len().saturating_sub(16);
            prop_assert_eq!(ring.oldest(), oldest as u64);
            let mut out = vec![0; room];
            let (count, next) = ring.read(from, &mut out);
            let start = oldest.max(from as usize);
            let expected = bytes.get(start..).unwrap_or(&[]);
            let expected = &expected[..expected.len().min(room)];
            prop_assert_eq!(&out[..count], expected);
            prop_assert_eq!(next, (start + count) as u64);
        }
    }

    #[test]
    fn the_unfinished_line_begins_after_the_last_newline_if_that_is_near() {
        assert_eq!(filled(b"").line_start(4), Some(0));
        assert_eq!(filled(b"abc").line_start(4), Some(0));
        assert_eq!(filled(b"abc\n").line_start(4), Some(4));
        assert_eq!(filled(b"abc\nde").line_start(4), Some(4));
        assert_eq!(filled(b"a\nbcdef").line_start(4), None);
        assert_eq!(filled(b"a\nbcde").line_start(4), Some(2));
        // The newline is no longer there.
        assert_eq!(filled(b"\n0123456789abcdef").line_start(100), None);
    }
}
