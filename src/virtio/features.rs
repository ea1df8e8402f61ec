//! Feature bits (2.2, 6): what a device offers and a driver accepts.

bitflags::bitflags! {
    /// A set of features of one device.
    ///
    /// The names here are those every device type shares. Bits of a device type (0 to 23,
    /// 50 and up) are defined beside the device, and live in the same set.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Features: u64 {
        /// VIRTIO_F_INDIRECT_DESC: a descriptor may refer to a table of descriptors.
        const INDIRECT_DESC = 1 << 28;
        /// VIRTIO_F_EVENT_IDX: notifications are suppressed by ring position.
        const EVENT_IDX = 1 << 29;
        /// VIRTIO_F_VERSION_1: not a legacy device.
        const VERSION_1 = 1 << 32;
        /// VIRTIO_F_ACCESS_PLATFORM: the device's view of memory is limited or translated.
        const ACCESS_PLATFORM = 1 << 33;
        /// VIRTIO_F_RING_PACKED: the packed virtqueue layout.
        const RING_PACKED = 1 << 34;
        /// VIRTIO_F_IN_ORDER: buffers are used in the order they were made available.
        const IN_ORDER = 1 << 35;
        /// VIRTIO_F_ORDER_PLATFORM: memory ordering as for a hardware device.
        const ORDER_PLATFORM = 1 << 36;
        /// VIRTIO_F_NOTIFICATION_DATA: a notification carries the ring position.
        const NOTIFICATION_DATA = 1 << 38;
        /// VIRTIO_F_RING_RESET: a queue can be reset alone.
        const RING_RESET = 1 << 40;

        // Bits of device types are known bits too.
        const _ = !0;
    }
}

impl Features {
    /// The features the transport and the queues implement for every device; a device model adds
    /// those of its own type.
    ///
    /// Two that may be missed are not offered because they would not be true:
    /// - ACCESS_PLATFORM: a driver's addresses are the guest's physical ones, as its cores see them
    ///   (stage 2 translates both alike), and all of the guest's RAM can be reached. Without it a
    ///   driver must pass physical addresses (6.1), which is what is expected here.
    /// - ORDER_PLATFORM: the rings are accessed by cores like the guest's, in one inner-shareable
    ///   domain, so the weaker barriers that a driver uses without it are enough (6). What a
    ///   physical disk did to buffers before that is ordered by the disk's driver.
    pub const COMMON: Features = Features::VERSION_1
        .union(Features::INDIRECT_DESC)
        .union(Features::EVENT_IDX)
        .union(Features::RING_PACKED)
        .union(Features::NOTIFICATION_DATA)
        .union(Features::RING_RESET);

    /// The bits a device model may offer: those of device types (2.2), and IN_ORDER, if it
    /// completes every chain of a queue in the order in which it popped them.
    pub const OF_DEVICE: Features =
        Features::from_bits_retain(0x00FF_FFFF | !0 << 50).union(Features::IN_ORDER);

    /// The 32 bits of register page `page` (DeviceFeaturesSel): zero beyond bit 63.
    #[inline]
    pub const fn page(self, page: u32) -> u32 {
        match page {
            0 => self.bits() as u32,
            1 => (self.bits() >> 32) as u32,
            _ => 0,
        }
    }

    /// The set with the bits of page 0 or 1 replaced by `bits`; `None` for any other page.
    pub const fn with_page(self, page: u32, bits: u32) -> Option<Self> {
        let (kept, shift) = match page {
            0 => (self.bits() & !0xFFFF_FFFF, 0),
            1 => (self.bits() & 0xFFFF_FFFF, 32),
            _ => return None,
        };
        Some(Self::from_bits_retain(kept | (bits as u64) << shift))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_split_and_join_the_set() {
        let set = Features::from_bits_retain(0x0123_4567_89AB_CDEF);
        assert_eq!(set.page(0), 0x89AB_CDEF);
        assert_eq!(set.page(1), 0x0123_4567);
        assert_eq!(set.page(2), 0);
        assert_eq!(set.page(u32::MAX), 0);
        let replaced = set.with_page(0, 1).and_then(|set| set.with_page(1, 2));
        assert_eq!(replaced, Some(Features::from_bits_retain(0x2_0000_0001)));
        assert_eq!(set.with_page(2, 1), None);
    }

    #[test]
    fn common_features_and_those_of_devices_do_not_mix() {
        assert!(!Features::COMMON.intersects(Features::OF_DEVICE));
        let of_transport = (24..50).filter(|bit| *bit != 35);
        let of_transport = of_transport.fold(0, |set, bit| set | 1_u64 << bit);
        assert_eq!(Features::OF_DEVICE.bits(), !of_transport);
    }
}
