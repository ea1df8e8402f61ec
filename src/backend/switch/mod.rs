//! An Ethernet switch between guests, with a way out through the board's network card.

pub mod uplink;

pub use uplink::{MAX_HEADER, Room, Uplink, UplinkFrame, UplinkInfo, UplinkTag};
