//! The board's source of entropy, and a device for each machine that asks for one.

use sparkler::arch::entropy::{Firmware, Rndr};
use sparkler::arch::timer::Counter;
use sparkler::backend::clock::Clock;
use sparkler::backend::entropy::{EntropySource, SharedSource};
use sparkler::fdt::{Board, VirtioSlot};
use sparkler::memory::FramePool;
use sparkler::virtio::devices::rng::Rng;

use super::arena::place;
use super::devices;

/// Where entropy comes from: the best that the board has.
enum Origin {
    Core(Rndr),
    Firmware(Firmware),
    Virtio(&'static VirtioSlot),
    /// It is in use, or was found not to work.
    Opened(Option<&'static SharedSource<'static>>),
}

/// The source, opened for the first device.
pub(super) struct Randomness(Origin);

impl Randomness {
    /// What the board has, if it has anything.
    pub(super) fn new(board: &'static Board<'_>) -> Option<Self> {
        let core = Rndr::find().map(Origin::Core);
        let found = core
            .or_else(|| Firmware::find().map(Origin::Firmware))
            .or_else(|| devices::entropy(board).map(Origin::Virtio));
        found.map(Self)
    }

    /// A device for a machine.
    #[inline(never)]
    pub(super) fn device(
        &mut self,
        pool: &mut FramePool<'static>,
    ) -> Result<&'static mut Rng<'static, 'static>, &'static str> {
        let source = match core::mem::replace(&mut self.0, Origin::Opened(None)) {
            Origin::Core(core) => share("its cores", place(|| core)),
            Origin::Firmware(firmware) => share("its firmware", place(|| firmware)),
            Origin::Virtio(slot) => {
                let device = devices::open_entropy(slot, pool);
                share("a virtio device", device.and_then(|device| place(|| device)))
            }
            Origin::Opened(source) => source,
        };
        self.0 = Origin::Opened(source);
        let source = source.ok_or("the board's source of entropy cannot be used")?;
        front(source).ok_or("EL2 has too little memory")
    }
}

// What is large is built in a function of its own: see `machines`.

#[inline(never)]
fn front(source: &'static SharedSource<'static>) -> Option<&'static mut Rng<'static, 'static>> {
    place(|| Rng::new(source, Counter.frequency()))
}

/// Lets all machines use `source`.
fn share<S: EntropySource>(
    name: &str,
    source: Option<&'static mut S>,
) -> Option<&'static SharedSource<'static>> {
    let source: &'static mut dyn EntropySource = source?;
    log::info!("entropy is from {name}");
    place(|| SharedSource::new(source)).map(|source| &*source)
}
