//! The traits between device models and hardware, and the back ends that need no hardware.
//!
//! Nothing here blocks. A back end takes requests in [`block::BlockBackend::submit`], and gives
//! results back when it is polled.

pub mod block;
pub mod clock;
pub mod entropy;
pub mod loopback;
#[cfg(any(test, feature = "metadata"))]
pub mod metadata;
pub mod net;
pub mod null;
pub mod overlay;
pub mod partition;
pub mod port;
pub mod ram;
pub mod removable;
pub mod serial;
pub mod shared_disk;
pub mod switch;
pub mod vsock;
pub mod wake;
