//! Virtual machines: configuration, exit dispatch, MMIO bus, loader, lifecycle.
