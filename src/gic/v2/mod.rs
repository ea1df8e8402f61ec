//! GICv2: the GICD frame as the guest sees it, and the format of GICH's registers.
//!
//! Arm IHI 0048, "Distributor register map" and "GIC virtualization extensions". The guest has a
//! distributor without the Security Extensions and with interrupt grouping; its CPU interface is not
//! here but in hardware, GICV.
//!
//! Two things are unlike GICv3, and both are kept in the one state machine:
//!
//! - An SGI is pending once for each sender, and GICC_IAR says whose it is. Each sender's SGI is
//!   delivered; while one is in a list register or active, the others wait for its end.
//! - An SPI may target several CPU interfaces, of which one takes it (1-of-N). Here that is always
//!   the lowest-numbered of them, which IHI 0048 leaves to the implementation. With one vCPU, SPIs
//!   go to it and GICD_ITARGETSR is RAZ/WI.
//!
//! Whatever is unknown, of the wrong width or misaligned reads as zero and ignores writes.

mod distributor;
mod list_register;

#[cfg(test)]
mod tests;

pub use list_register::GichLr;

/// Bytes of the GICD frame that have registers; the rest of the frame is RAZ/WI.
pub const GICD_SIZE: u64 = 0x1000;
/// Size of the GICC frame, and of the GICV frame that is mapped in its place: GICV_DIR is at 0x1000.
pub const GICC_SIZE: u64 = 0x2000;
