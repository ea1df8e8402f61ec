//! What an interrupt is called, and words of interrupts.

use super::bank::WORDS;

/// Number of INTIDs the virtual GIC implements: SGIs 0-15, PPIs 16-31, SPIs 32-255.
pub const INTID_COUNT: u32 = 256;
/// First SPI (shared peripheral interrupt).
pub const SPI_BASE: u32 = 32;
/// Priority bits that exist: five, as in the list registers of the cores we run on.
pub const PRIORITY_MASK: u8 = 0xf8;

const _: () = assert!(INTID_COUNT as usize == 32 * WORDS);

/// An interrupt number that the virtual GIC implements, always below [`INTID_COUNT`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct IntId(u16);

impl IntId {
    /// The interrupt numbered `raw`, or `None` if it is not implemented.
    pub const fn new(raw: u32) -> Option<Self> {
        if raw < INTID_COUNT { Some(Self(raw as u16)) } else { None }
    }

    /// SPI number `index`, which is INTID 32 + `index`; device trees count SPIs this way.
    pub const fn spi(index: u32) -> Option<Self> {
        match index.checked_add(SPI_BASE) {
            Some(raw) => Self::new(raw),
            None => None,
        }
    }

    /// The interrupt numbered 32 * `word` + `bit`, wrapped into the implemented range.
    #[inline]
    pub(super) const fn at(word: usize, bit: u32) -> Self {
        Self((((word % WORDS) as u16) << 5) | (bit & 31) as u16)
    }

    /// The number.
    #[inline]
    pub const fn raw(self) -> u32 {
        self.0 as u32
    }

    /// Whether each vCPU has its own instance: SGIs and PPIs.
    #[inline]
    pub const fn is_private(self) -> bool {
        self.raw() < SPI_BASE
    }

    /// Index of the 32-interrupt word that holds it.
    #[inline]
    pub(super) const fn word(self) -> usize {
        (self.0 >> 5) as usize
    }

    /// Its position in the word.
    #[inline]
    pub(super) const fn bit(self) -> u32 {
        (self.0 & 31) as u32
    }

    /// Its bit in the word.
    #[inline]
    pub(super) const fn mask(self) -> u32 {
        1 << self.bit()
    }
}

/// The set bits of a word, lowest first.
#[derive(Clone, Copy)]
pub(super) struct Bits(pub(super) u32);

impl Iterator for Bits {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        if self.0 == 0 {
            return None;
        }
        let bit = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        Some(bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_intids_above_255_are_refused_not_truncated() {
        assert_eq!(IntId::new(255).map(IntId::raw), Some(255));
        assert_eq!(IntId::new(256), None);
        assert_eq!(IntId::new(256 + 48), None);
        assert_eq!(IntId::spi(223).map(IntId::raw), Some(255));
        assert_eq!(IntId::spi(224), None);
        assert_eq!(IntId::spi(u32::MAX), None);
    }

    #[test]
    fn word_and_bit_name_the_interrupt_again() {
        for raw in 0..INTID_COUNT {
            let intid = IntId::new(raw).unwrap();
            assert_eq!(IntId::at(intid.word(), intid.bit()), intid);
            assert_eq!(intid.is_private(), raw < 32);
        }
    }

    #[test]
    fn bits_yields_every_set_bit_once() {
        assert_eq!(Bits(0x8000_0101).collect::<Vec<_>>(), [0, 8, 31]);
        assert_eq!(Bits(0).next(), None);
    }
}
