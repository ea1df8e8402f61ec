//! The device models.

pub mod block;
pub mod console;
pub mod net;
pub mod rng;
pub mod vsock;
