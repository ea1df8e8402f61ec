//! Random bytes: from what the board has to as many as guests ask for.
//!
//! - [`EntropySource`]: what the hardware gives, slowly.
//! - [`SharedSource`]: the board's, for all machines. What repeats itself is a failure of it.
//! - [`Generator`]: one for each device. Its stream is ChaCha20's, under a key that nobody else has,
//!   mixed with fresh bytes of the source every [`RESEED_BYTES`] and after a while. What it gave
//!   cannot be found out from what it is later.
//!
//! Without the source there are no bytes: nobody gets weak ones.

use core::fmt;

use chacha20::rand_core::SeedableRng;
use chacha20::rand_core::block::Generator as Block;
use chacha20::variants::Legacy;
use chacha20::{ChaChaCore, R20};

use super::clock::Ticks;
use crate::sync::Mutex;

/// What a source gives at once: 256 bits of full entropy.
pub type Seed = [u8; 32];

/// Bytes that a generator gives between two seeds.
pub const RESEED_BYTES: u64 = 1 << 20;

/// What a generator makes at once, in bytes.
pub const BLOCK: usize = 256;

/// Why there is no entropy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEntropy {
    /// It is being gathered: ask again.
    NotYet,
    /// The source has failed. It may come back.
    Failed,
}

/// A source of entropy.
pub trait EntropySource: Send {
    /// Overwrites `seed` with bytes that were never given before. Does not wait.
    ///
    /// # Errors
    /// [`NoEntropy`]; what is in `seed` then is of no use.
    fn fill(&mut self, seed: &mut Seed, now: Ticks) -> Result<(), NoEntropy>;
}

/// The board's source, with a check of its health. Several cores may ask.
pub struct SharedSource<'s> {
    state: Mutex<State<'s>>,
}

struct State<'s> {
    source: &'s mut (dyn EntropySource + 's),
    /// The last word it gave. That it comes again does not happen to a source that works.
    last: u64,
    /// It has failed, and that was said.
    failed: bool,
}

impl<'s> SharedSource<'s> {
    /// A source to be shared.
    pub fn new(source: &'s mut (dyn EntropySource + 's)) -> Self {
        Self { state: Mutex::new(State { source, last: 0, failed: false }) }
    }

    /// A fresh seed. That the source fails, and that it works again, is logged once each time.
    ///
    /// # Errors
    /// [`NoEntropy`].
    pub fn seed(&self, now: Ticks) -> Result<Seed, NoEntropy> {
        let mut seed = Seed::default();
        let mut state = self.state.lock();
        let state = &mut *state;
        let mut result = state.source.fill(&mut seed, now);
        if result.is_ok() && repeats(&mut state.last, &seed) {
            result = Err(NoEntropy::Failed);
        }
        match result {
            Err(NoEntropy::Failed) if !state.failed => {
                log::error!(
                    "the board's source of entropy has failed: guests that ask for it wait"
                );
                state.failed = true;
            }
            Ok(()) if state.failed => {
                log::info!("the board's source of entropy works again");
                state.failed = false;
            }
            _ => {}
        }
        result.map(|()| seed)
    }
}

/// Whether a word of `seed` is the one before it, the first of which was `last`.
fn repeats(last: &mut u64, seed: &Seed) -> bool {
    let mut repeated = false;
    for word in seed.as_chunks().0 {
        let word = u64::from_le_bytes(*word);
        repeated |= core::mem::replace(last, word) == word;
    }
    repeated
}

/// A stream of random bytes.
#[derive(Default)]
pub struct Generator {
    /// `None` before its first seed.
    core: Option<ChaChaCore<R20, Legacy>>,
    /// Bytes until the next seed.
    left: u64,
    /// When it needs another one all the same.
    until: Ticks,
}

impl fmt::Debug for Generator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Generator")
    }
}

impl Generator {
    /// Takes a seed of `source`, if it needs one; that will do for `span`.
    ///
    /// # Errors
    /// [`NoEntropy`]: it needs one, and there is none.
    pub fn ensure(
        &mut self,
        source: &SharedSource<'_>,
        now: Ticks,
        span: Ticks,
    ) -> Result<(), NoEntropy> {
        if self.left != 0 && now < self.until {
            return Ok(());
        }
        let mut seed = source.seed(now)?;
        if let Some(core) = &mut self.core {
            // Whoever knows the source's bytes does not know the new stream.
            for (byte, old) in seed.iter_mut().zip(block(core)) {
                *byte ^= old;
            }
        }
        self.core = Some(ChaChaCore::from_seed(seed));
        self.left = RESEED_BYTES;
        self.until = now.after(span);
        Ok(())
    }

    /// The next bytes; after [`Self::ensure`]. `None` if it was never given a seed.
    pub fn next_block(&mut self) -> Option<[u8; BLOCK]> {
        self.left = self.left.saturating_sub(BLOCK as u64);
        self.core.as_mut().map(block)
    }

    /// Goes on under a key of its own making: what it has given so far cannot be found out any more.
    pub fn forget(&mut self) {
        if let Some(core) = &mut self.core
            && let Some(key) = block(core).first_chunk()
        {
            *core = ChaChaCore::from_seed(*key);
        }
    }
}

fn block(core: &mut ChaChaCore<R20, Legacy>) -> [u8; BLOCK] {
    let mut words = [0; BLOCK / 4];
    core.generate(&mut words);
    let mut bytes = [0; BLOCK];
    for (place, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *place = word.to_le_bytes();
    }
    bytes
}

#[cfg(test)]
pub(crate) mod testing {
    //! Sources for tests.

    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Gives what a test has put there, in turn, and counts; at the end it has nothing yet.
    pub(crate) struct Script {
        answers: Vec<Result<Seed, NoEntropy>>,
        pub(crate) asked: Arc<AtomicUsize>,
    }

    impl Script {
        pub(crate) fn new(answers: impl IntoIterator<Item = Result<Seed, NoEntropy>>) -> Self {
            Self { answers: answers.into_iter().collect(), asked: Arc::default() }
        }
    }

    impl EntropySource for Script {
        fn fill(&mut self, seed: &mut Seed, _now: Ticks) -> Result<(), NoEntropy> {
            let asked = self.asked.fetch_add(1, Ordering::Relaxed);
            *seed = self.answers.get(asked).copied().unwrap_or(Err(NoEntropy::NotYet))?;
            Ok(())
        }
    }

    /// A seed like no other of another `n`.
    pub(crate) fn seed(n: u8) -> Seed {
        core::array::from_fn(|at| n.wrapping_mul(37) ^ at as u8)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::testing::{Script, seed};
    use super::*;

    const SPAN: Ticks = Ticks(1000);

    fn next(generator: &mut Generator) -> [u8; BLOCK] {
        generator.next_block().unwrap()
    }

    #[test]
    fn without_a_seed_there_are_no_bytes() {
        let mut script = Script::new([Err(NoEntropy::NotYet), Err(NoEntropy::Failed)]);
        let source = SharedSource::new(&mut script);
        let mut generator = Generator::default();
        for expected in [NoEntropy::NotYet, NoEntropy::Failed] {
            assert_eq!(generator.ensure(&source, Ticks(0), SPAN), Err(expected));
            generator.forget();
            assert_eq!(generator.next_block(), None);
        }
    }

    #[test]
    fn the_stream_is_that_of_chacha20_under_the_seed() {
        // RFC 8439, A.1: the key of the first two test vectors is zero, and so is the nonce.
        let stream = block(&mut ChaChaCore::from_seed([0; 32]));
        assert_eq!(stream[..8], [0x76, 0xb8, 0xe0, 0xad, 0xa0, 0xf1, 0x3d, 0x90]);
        assert_eq!(stream[64..68], [0x9f, 0x07, 0xe7, 0xbe]);
        let mut script = Script::new([Ok(seed(1))]);
        let source = SharedSource::new(&mut script);
        let mut generator = Generator::default();
        generator.ensure(&source, Ticks(0), SPAN).unwrap();
        let mut same = ChaChaCore::from_seed(seed(1));
        assert_eq!(next(&mut generator), block(&mut same));
        assert_eq!(next(&mut generator), block(&mut same));
    }

    #[test]
    fn a_new_seed_is_taken_after_so_many_bytes_and_after_a_while() {
        let mut script = Script::new((0..4).map(|n| Ok(seed(n))));
        let asked = script.asked.clone();
        let asked = || asked.load(Ordering::Relaxed);
        let source = SharedSource::new(&mut script);
        let mut generator = Generator::default();
        for _ in 0..RESEED_BYTES / BLOCK as u64 {
            generator.ensure(&source, Ticks(0), SPAN).unwrap();
            next(&mut generator);
        }
        assert_eq!(asked(), 1);
        generator.ensure(&source, Ticks(999), SPAN).unwrap();
        assert_eq!(asked(), 2);
        generator.ensure(&source, Ticks(1998), SPAN).unwrap();
        assert_eq!(asked(), 2);
        generator.ensure(&source, Ticks(1999), SPAN).unwrap();
        assert_eq!(asked(), 3);
    }

    #[test]
    fn a_new_seed_is_mixed_with_the_old_stream() {
        let streams = [0, 1].map(|first| {
            let mut script = Script::new([Ok(seed(first)), Ok(seed(2))]);
            let source = SharedSource::new(&mut script);
            let mut generator = Generator::default();
            generator.ensure(&source, Ticks(0), SPAN).unwrap();
            generator.ensure(&source, Ticks(1000), SPAN).unwrap();
            next(&mut generator)
        });
        assert_ne!(streams[0], streams[1]);
        assert!(streams.iter().all(|it| *it != block(&mut ChaChaCore::from_seed(seed(2)))));
    }

    #[test]
    fn what_was_forgotten_is_not_given_again() {
        let mut script = Script::new([Ok(seed(1))]);
        let source = SharedSource::new(&mut script);
        let mut generator = Generator::default();
        generator.ensure(&source, Ticks(0), SPAN).unwrap();
        let mut same = ChaChaCore::<R20, Legacy>::from_seed(seed(1));
        generator.forget();
        let after = next(&mut generator);
        assert!((0..10).all(|_| block(&mut same) != after));
    }

    #[test]
    fn a_source_that_repeats_itself_has_failed_until_it_no_longer_does() {
        let mut stuck = seed(3);
        stuck.copy_within(8..16, 16);
        let mut again = seed(5);
        again[..8].copy_from_slice(&seed(4)[24..]);
        let answers = [[0; 32], seed(1), stuck, seed(4), again, seed(6)];
        let mut script = Script::new(answers.map(Ok));
        let source = SharedSource::new(&mut script);
        let good = [false, true, false, true, false, true];
        for (seed, good) in answers.iter().zip(good) {
            let expected = if good { Ok(*seed) } else { Err(NoEntropy::Failed) };
            assert_eq!(source.seed(Ticks(0)), expected);
        }
    }
}
