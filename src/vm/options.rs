//! What the hypervisor's arguments say: words in the board's `/chosen/bootargs` that begin with
//! `sparkler.`. All other words are somebody else's.

use crate::virtio::{Features, MmioTransport};

/// What the virtio devices are to offer: `sparkler.virtio=WORD[,WORD...]`.
///
/// - `split`, `packed`: without (the default), or with VIRTIO_F_RING_PACKED;
/// - `noindirect`: without VIRTIO_F_INDIRECT_DESC;
/// - `noevent`: without VIRTIO_F_EVENT_IDX;
/// - `size=N`: queues of at most N entries. A driver of split rings needs a power of two;
/// - `queues=N`: N queues for a device that can have several, instead of one for each vCPU.
pub struct VirtioOptions {
    features: Features,
    max_queue_size: u16,
    queues: Option<u16>,
}

impl VirtioOptions {
    /// The options in `bootargs`; the last of several counts.
    ///
    /// # Errors
    /// The first word that is none of the above.
    pub fn parse(bootargs: &str) -> Result<Self, &str> {
        // Linux takes the packed ring wherever it is offered, and its driver side of it is the dearer.
        let features = Features::COMMON - Features::RING_PACKED;
        let mut options = Self { features, max_queue_size: u16::MAX, queues: None };
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
                let (name, number) = word.split_once('=').ok_or(word)?;
                let number = number.parse().ok().filter(|number| *number != 0).ok_or(word)?;
                match name {
                    "size" => self.max_queue_size = number,
                    "queues" => self.queues = Some(number),
                    _ => return Err(word),
                }
            }
        }
        Ok(())
    }

    /// The data segments a request may have, so that it fits in a queue with its header and status,
    /// if it has to.
    pub fn max_segments(&self) -> u16 {
        if self.features.contains(Features::INDIRECT_DESC) {
            return u16::MAX;
        }
        self.max_queue_size.saturating_sub(2)
    }

    /// The queues for a device that can have several, in a machine with `vcpus` vCPUs.
    pub fn queues(&self, vcpus: usize) -> usize {
        self.queues.map_or(vcpus, usize::from)
    }

    /// `transport`, offering no more.
    pub fn apply<'d, 'm>(&self, transport: MmioTransport<'d, 'm>) -> MmioTransport<'d, 'm> {
        transport.with_common_features(self.features).with_max_queue_size(self.max_queue_size)
    }
}

/// The log level of `sparkler.log=LEVEL`.
pub fn log_level(bootargs: &str) -> Option<log::LevelFilter> {
    let level = bootargs.split(' ').find_map(|word| word.strip_prefix("sparkler.log="));
    level?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::HostRam;
    use crate::virtio::testing::{RAM_SIZE, Registers, guest_memory};
    use crate::virtio::{Context, DeviceType, VirtioDevice};

    const RINGS: Features = Features::COMMON;

    /// What the options make of a device: its features, and the size of its queue.
    fn applied(bootargs: &str) -> (Features, u32) {
        struct Idle;
        impl<'m> VirtioDevice<'m> for Idle {
            fn device_type(&self) -> DeviceType {
                DeviceType::ENTROPY
            }
            fn queue_max_sizes(&self) -> &[u16] {
                &[1024]
            }
            fn queue_notified(&mut self, _index: u16, _context: &mut Context<'_, 'm>) {}
        }
        let ram = HostRam::new(RAM_SIZE);
        let options = VirtioOptions::parse(bootargs).unwrap_or_else(|word| panic!("{word}"));
        let mut device = Idle;
        let mut transport = options.apply(MmioTransport::new(&mut device, guest_memory(&ram)));
        let features = [0, 1].map(|page| {
            transport.set(0x14, page);
            u64::from(transport.get(0x10))
        });
        let offered = Features::from_bits_retain(features[0] | features[1] << 32);
        (offered, transport.get(0x34))
    }

    #[test]
    fn without_options_everything_is_offered_but_the_packed_ring() {
        let default = (RINGS - Features::RING_PACKED, 1024);
        for bootargs in
            ["", "console=ttyAMA0 quiet", "sparkler.log=debug", "xsparkler.virtio=packed"]
        {
            assert_eq!(applied(bootargs), default, "{bootargs}");
        }
    }

    #[test]
    fn each_word_takes_its_feature_away_or_gives_it_and_the_last_counts() {
        let split = RINGS - Features::RING_PACKED;
        for (bootargs, expected) in [
            ("sparkler.virtio=packed", (RINGS, 1024)),
            ("sparkler.virtio=packed,split", (split, 1024)),
            ("a=b sparkler.virtio=split sparkler.virtio=packed c", (RINGS, 1024)),
            ("sparkler.virtio=noindirect", (split - Features::INDIRECT_DESC, 1024)),
            ("sparkler.virtio=packed,noevent", (RINGS - Features::EVENT_IDX, 1024)),
            ("sparkler.virtio=size=2", (split, 2)),
            ("sparkler.virtio=size=2,packed,size=300", (RINGS, 300)),
            ("sparkler.virtio=size=65535", (split, 1024)),
        ] {
            assert_eq!(applied(bootargs), expected, "{bootargs}");
        }
    }

    #[test]
    fn the_first_word_that_means_nothing_is_told() {
        for (bootargs, word) in [
            ("sparkler.virtio=", ""),
            ("sparkler.virtio=packed,", ""),
            ("sparkler.virtio=Packed", "Packed"),
            ("sparkler.virtio=noindirect,foo,bar", "foo"),
            ("sparkler.virtio=size=0", "size=0"),
            ("sparkler.virtio=size=-1", "size=-1"),
            ("sparkler.virtio=size=65536", "size=65536"),
            ("sparkler.virtio=size=", "size="),
            ("sparkler.virtio=queues=0", "queues=0"),
            ("sparkler.virtio=queues", "queues"),
            ("sparkler.virtio=sizes=4", "sizes=4"),
            ("sparkler.virtio=split sparkler.virtio=junk", "junk"),
        ] {
            assert_eq!(VirtioOptions::parse(bootargs).err(), Some(word), "{bootargs}");
        }
    }

    #[test]
    fn without_indirect_tables_a_request_fits_in_the_queue() {
        let segments = |bootargs| VirtioOptions::parse(bootargs).map(|it| it.max_segments());
        assert_eq!(segments(""), Ok(u16::MAX));
        assert_eq!(segments("sparkler.virtio=size=4"), Ok(u16::MAX));
        assert_eq!(segments("sparkler.virtio=noindirect,size=128"), Ok(126));
        assert_eq!(segments("sparkler.virtio=size=2,noindirect"), Ok(0));
    }

    #[test]
    fn a_vcpu_has_a_queue_of_its_own_unless_said_otherwise() {
        let queues = |bootargs, vcpus| VirtioOptions::parse(bootargs).map(|it| it.queues(vcpus));
        assert_eq!(queues("", 3), Ok(3));
        assert_eq!(queues("sparkler.virtio=queues=1", 3), Ok(1));
        assert_eq!(queues("sparkler.virtio=queues=1,packed,queues=8", 3), Ok(8));
    }

    #[test]
    fn a_log_level_is_the_first_word_of_that_name_if_it_is_one() {
        assert_eq!(log_level("a sparkler.log=debug"), Some(log::LevelFilter::Debug));
        assert_eq!(log_level("sparkler.log=off sparkler.log=info"), Some(log::LevelFilter::Off));
        assert_eq!(log_level("sparkler.log=loud"), None);
        assert_eq!(log_level("sparkler.logs=debug"), None);
    }
}
