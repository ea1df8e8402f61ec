//! What the hypervisor's arguments say: words in the board's `/chosen/bootargs` that begin with
//! `sparkler.`. All other words are somebody else's.

use sparkler::virtio::{Features, MmioTransport};

/// What the virtio devices are to offer: `sparkler.virtio=WORD[,WORD...]`.
///
/// - `split`, `packed`: without (the default), or with VIRTIO_F_RING_PACKED;
/// - `noindirect`: without VIRTIO_F_INDIRECT_DESC;
/// - `noevent`: without VIRTIO_F_EVENT_IDX;
/// - `size=N`: queues of at most N entries. A driver of split rings needs a power of two.
pub(super) struct VirtioOptions {
    features: Features,
    max_queue_size: u16,
}

impl VirtioOptions {
    /// The options in `bootargs`; the last of several counts.
    ///
    /// # Errors
    /// The first word that is none of the above.
    pub(super) fn parse(bootargs: &str) -> Result<Self, &str> {
        // Linux takes the packed ring wherever it is offered, and its driver side of it is the dearer.
        let features = Features::COMMON - Features::RING_PACKED;
        let mut options = Self { features, max_queue_size: u16::MAX };
        for word in bootargs.split(' ') {
            let Some(list) = word.strip_prefix("sparkler.virtio=") else { continue };
            for word in list.split(',') {
                options.take(word)?;
            }
        }
        Ok(options)
    }

    fn take<'a>(&mut self, word: &'a str) -> Result<(), &'a str> {
        match word {
            "packed" => self.features |= Features::RING_PACKED,
            "split" => self.features -= Features::RING_PACKED,
            "noindirect" => self.features -= Features::INDIRECT_DESC,
            "noevent" => self.features -= Features::EVENT_IDX,
            _ => {
                let size = word.strip_prefix("size=").and_then(|size| size.parse().ok());
                self.max_queue_size = size.filter(|size| *size != 0).ok_or(word)?;
            }
        }
        Ok(())
    }

    /// The data segments a request may have, so that it fits in a queue with its header and status,
    /// if it has to.
    pub(super) fn max_segments(&self) -> u16 {
        if self.features.contains(Features::INDIRECT_DESC) {
            return u16::MAX;
        }
        self.max_queue_size.saturating_sub(2)
    }

    /// `transport`, offering no more.
    pub(super) fn apply<'d, 'm>(&self, transport: MmioTransport<'d, 'm>) -> MmioTransport<'d, 'm> {
        transport.with_common_features(self.features).with_max_queue_size(self.max_queue_size)
    }
}

/// The log level of `sparkler.log=LEVEL`.
pub(super) fn log_level(bootargs: &str) -> Option<log::LevelFilter> {
    let level = bootargs.split(' ').find_map(|word| word.strip_prefix("sparkler.log="));
    level?.parse().ok()
}
