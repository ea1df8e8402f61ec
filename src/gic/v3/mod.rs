//! The GICv3 register front end, for a distributor with one Security state (DS = 1) and affinity
//! routing only (ARE = 1). Arm IHI 0069, "Distributor register map" and "Redistributor register
//! map".
//!
//! Whatever is unknown, of the wrong width or misaligned reads as zero and ignores writes.

mod distributor;
mod redistributor;

/// Size of the GICD frame in bytes.
pub const GICD_SIZE: u64 = 0x1_0000;
/// Bytes of GICR frames each vCPU has: RD_base and SGI_base.
pub const GICR_STRIDE: u64 = 0x2_0000;

/// GICD_IIDR and GICR_IIDR: Arm's JEP106 code, a product number of our own. Zero and Arm's product
/// numbers would make Linux apply errata.
const IIDR: u32 = 0x5300_043b;

/// Identification registers, 0xffd0 to 0xffff of GICD and RD_base: PIDR4-7, PIDR0-3, CIDR0-3.
/// PIDR2\[7:4\] = 3 says GICv3.
const ID_REGISTERS: [u8; 12] = [0x44, 0, 0, 0, 0x92, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1];

fn id_register(offset: u64) -> u32 {
    let index = (offset.wrapping_sub(0xffd0) >> 2) as usize;
    ID_REGISTERS.get(index).copied().map_or(0, u32::from)
}

/// The 32-bit half of a 64-bit register at `offset`.
const fn half(register: u64, offset: u64) -> u32 {
    (register >> ((offset & 4) * 8)) as u32
}

#[cfg(test)]
mod tests;
