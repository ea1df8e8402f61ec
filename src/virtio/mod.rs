//! The device side of virtio: transport, queues, the device trait, devices.
