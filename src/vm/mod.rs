//! Virtual machines: configuration, exit dispatch, MMIO bus, loader, lifecycle.

pub mod pl011;
pub mod pl031;
