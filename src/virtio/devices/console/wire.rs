//! The layouts of 5.3: configuration space and control messages.

use crate::virtio::Features;

/// VIRTIO_CONSOLE_F_SIZE.
pub(super) const SIZE: Features = Features::from_bits_retain(1 << 0);
/// VIRTIO_CONSOLE_F_MULTIPORT.
pub(super) const MULTIPORT: Features = Features::from_bits_retain(1 << 1);
/// VIRTIO_CONSOLE_F_EMERG_WRITE.
pub(super) const EMERG_WRITE: Features = Features::from_bits_retain(1 << 2);

/// Bytes of configuration space.
pub(super) const CONFIG_SIZE: usize = 12;
/// Offset of `emerg_wr`.
pub(super) const EMERG_WR: usize = 8;

/// Configuration space: columns and rows, and how many ports.
pub(super) fn config([columns, rows]: [u16; 2], ports: usize) -> [u8; CONFIG_SIZE] {
    let [a, b] = columns.to_le_bytes();
    let [c, d] = rows.to_le_bytes();
    let [e, f, g, h] = (ports as u32).to_le_bytes();
    [a, b, c, d, e, f, g, h, 0, 0, 0, 0]
}

/// Bytes of a control message, without what may follow it.
pub(super) const CONTROL_SIZE: usize = 8;

/// What a control message is about (5.3.6.2). To the device: the first, the fourth, the seventh.
pub(super) mod event {
    pub(in super::super) const DEVICE_READY: u16 = 0;
    pub(in super::super) const DEVICE_ADD: u16 = 1;
    pub(in super::super) const PORT_READY: u16 = 3;
    pub(in super::super) const CONSOLE_PORT: u16 = 4;
    pub(in super::super) const RESIZE: u16 = 5;
    pub(in super::super) const PORT_OPEN: u16 = 6;
    pub(in super::super) const PORT_NAME: u16 = 7;
}

/// A control message.
pub(super) fn control(id: u32, event: u16, value: u16) -> [u8; CONTROL_SIZE] {
    let [a, b, c, d] = id.to_le_bytes();
    let [e, f] = event.to_le_bytes();
    let [g, h] = value.to_le_bytes();
    [a, b, c, d, e, f, g, h]
}

/// The port, the event and the value of a control message.
pub(super) fn parse([a, b, c, d, e, f, g, h]: [u8; CONTROL_SIZE]) -> (u32, u16, u16) {
    let event = u16::from_le_bytes([e, f]);
    (u32::from_le_bytes([a, b, c, d]), event, u16::from_le_bytes([g, h]))
}
