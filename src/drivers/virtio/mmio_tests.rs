use super::*;
use crate::drivers::testing::{CountedDelay, FakeRam};
use crate::drivers::virtio::fake::{F_VERSION_1, FakeDisk, USUAL};

fn probe_with(magic: u32, version: u32, id: u32) -> Result<DeviceKind, ProbeError> {
    let ram = FakeRam::new(4096);
    let device = FakeDisk::new(&ram, USUAL);
    (device.set().magic, device.set().version, device.set().id) = (magic, version, id);
    probe(&device)
}

#[test]
fn modern_devices_are_told_apart() {
    assert_eq!(probe_with(MAGIC, 2, 1), Ok(DeviceKind::Network));
    assert_eq!(probe_with(MAGIC, 2, 2), Ok(DeviceKind::Block));
    assert_eq!(probe_with(MAGIC, 2, 3), Ok(DeviceKind::Console));
    assert_eq!(probe_with(MAGIC, 2, 4), Ok(DeviceKind::Entropy));
    assert_eq!(probe_with(MAGIC, 2, 19), Ok(DeviceKind::Socket));
    assert_eq!(probe_with(MAGIC, 2, 26), Ok(DeviceKind::Other(26)));
}

#[test]
fn what_cannot_be_driven_is_refused_with_the_reason() {
    assert_eq!(probe_with(0xffff_ffff, 2, 2), Err(ProbeError::NotVirtio(0xffff_ffff)));
    assert_eq!(probe_with(MAGIC, 1, 2), Err(ProbeError::Legacy));
    assert_eq!(probe_with(MAGIC, 3, 2), Err(ProbeError::Version(3)));
}

#[test]
fn an_empty_slot_is_empty_in_either_layout() {
    assert_eq!(probe_with(MAGIC, 1, 0), Err(ProbeError::Empty));
    assert_eq!(probe_with(MAGIC, 2, 0), Err(ProbeError::Empty));
}

#[test]
#[cfg_attr(miri, ignore = "10,000 looks")]
fn a_reset_is_waited_for_within_bounds() {
    let ram = FakeRam::new(4096);
    let device = FakeDisk::new(&ram, USUAL);
    let transport = Transport::new(&device);
    let mut delay = CountedDelay::default();
    device.set().slow_reset = 5;
    assert_eq!(transport.reset(&mut delay), Ok(()));
    assert_eq!(delay.0, 50_000);

    device.set().status = 15;
    device.set().slow_reset = u32::MAX;
    let mut delay = CountedDelay::default();
    assert_eq!(transport.reset(&mut delay), Err(InitError::ResetTimeout));
    assert_eq!(delay.0, 100_000_000, "100 ms");
}

#[test]
fn features_agreed_on_were_offered_and_wanted() {
    let ram = FakeRam::new(4096);
    let device = FakeDisk::new(&ram, F_VERSION_1 | 0b0110);
    device.set().status = 0;
    assert_eq!(Transport::new(&device).negotiate(0b0011), Ok(F_VERSION_1 | 0b0010));
    assert_eq!(device.get().driver_features, F_VERSION_1 | 0b0010);
    assert_eq!(device.get().status, 11);
}

#[test]
fn a_device_older_than_virtio_1_is_refused() {
    let ram = FakeRam::new(4096);
    let device = FakeDisk::new(&ram, 0b0110);
    device.set().status = 0;
    assert_eq!(Transport::new(&device).negotiate(0b0011), Err(InitError::NoVersion1));
}

#[test]
fn refused_features_are_noticed() {
    let ram = FakeRam::new(4096);
    let device = FakeDisk::new(&ram, F_VERSION_1);
    device.set().status = 0;
    device.set().refuses_features = true;
    assert_eq!(Transport::new(&device).negotiate(0), Err(InitError::FeaturesRefused));
}

#[test]
fn a_missing_queue_and_one_in_use_are_refused() {
    let ram = FakeRam::new(4096);
    let device = FakeDisk::new(&ram, F_VERSION_1);
    let transport = Transport::new(&device);
    assert_eq!(transport.queue_num_max(0), Ok(1024));
    assert_eq!(transport.queue_num_max(1), Err(InitError::NoQueue));
    device.set().status = 11;
    device.write32(0x044, 1);
    assert_eq!(transport.queue_num_max(0), Err(InitError::QueueInUse));
}

#[test]
fn a_wide_field_is_of_one_generation_or_none() {
    let ram = FakeRam::new(4096);
    let device = FakeDisk::new(&ram, F_VERSION_1);
    device.set().status = 3;
    device.set().config[1] = 0xabcd;
    let transport = Transport::new(&device);
    assert_eq!(transport.config64(0), Ok(0xabcd_0000_0100));
    device.set().restless_config = true;
    assert_eq!(transport.config64(0), Err(InitError::BadConfiguration));
}

#[test]
fn an_interrupt_is_named_and_taken_back() {
    let ram = FakeRam::new(4096);
    let device = FakeDisk::new(&ram, F_VERSION_1);
    let transport = Transport::new(&device);
    device.set().interrupt_status = 3;
    transport.acknowledge_used_buffer();
    assert_eq!(device.get().interrupt_status, 2);
    assert_eq!(transport.acknowledge_interrupt(), InterruptCauses::CONFIGURATION);
    assert_eq!(device.get().interrupt_status, 0);
}
