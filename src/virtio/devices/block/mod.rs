//! Block device.
