//! Puts a guest's kernel, ramdisk and device tree into its RAM.

use core::fmt;

use super::image::{ImageError, KernelImage};
use crate::fdt::WriteError;
use crate::memory::{GuestMemory, Ipa, SharedSlice};

/// What is loaded is aligned to this, as the boot protocols of Linux and of device trees want it.
const ALIGN: u64 = 0x20_0000;
/// Where the ramdisk goes at the latest, from the start of RAM: as QEMU has it.
const RAMDISK_OFFSET: u64 = 0x800_0000;
/// Bytes that [`copy`] copies at most: a bound on what a neighbour on the same core waits.
pub const COPY: usize = 0x10_0000;

/// What a VM starts from. The modules stay where the board's loader put them, so that a VM can be
/// started again.
#[derive(Clone, Copy)]
pub struct Modules<'m> {
    /// The kernel file.
    pub kernel: SharedSlice<'m>,
    /// The ramdisk, if any.
    pub ramdisk: Option<SharedSlice<'m>>,
    /// The kernel's command line.
    pub bootargs: &'m str,
}

/// Why a VM cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// The VM has no RAM, or not where it is needed.
    NoRam,
    /// The kernel file is not one.
    Kernel(ImageError),
    /// Kernel, ramdisk and device tree need `needed` bytes of RAM; there are `ram`.
    TooLarge {
        /// Bytes of RAM that it would take.
        needed: u64,
        /// Bytes of RAM there are.
        ram: u64,
    },
    /// The device tree cannot be written.
    DeviceTree(WriteError),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRam => write!(f, "the VM has no RAM"),
            Self::Kernel(ImageError::Empty) => write!(f, "the kernel module is empty"),
            Self::Kernel(ImageError::Truncated { expected }) => {
                write!(f, "the kernel module is truncated: its headers tell of {expected} bytes")
            }
            Self::Kernel(ImageError::Compressed) => {
                write!(f, "the kernel module is compressed; an arm64 Image is needed")
            }
            Self::Kernel(ImageError::Unsupported) => {
                write!(f, "the kernel module is a big-endian or malformed Image")
            }
            Self::TooLarge { needed, ram } => write!(
                f,
                "kernel, ramdisk and device tree need {} KiB of RAM, the VM has {} KiB",
                needed.div_ceil(1024),
                ram / 1024
            ),
            Self::DeviceTree(error) => error.fmt(f),
        }
    }
}

/// Where things go in a guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The kernel, and where it is entered.
    pub kernel: Ipa,
    /// The ramdisk: first byte, and the byte after the last.
    pub ramdisk: Option<(Ipa, Ipa)>,
    /// The device tree.
    pub fdt: Ipa,
}

impl Placement {
    /// Finds room in `ram_size` bytes of RAM at `ram`, a multiple of 2 MiB, for a kernel, a ramdisk
    /// of `ramdisk` bytes and a device tree of up to `fdt` bytes, in this order. What is behind the
    /// kernel begins at multiples of 2 MiB.
    ///
    /// # Errors
    /// [`LoadError::TooLarge`], with the least RAM that would do.
    pub fn plan(
        ram: Ipa,
        ram_size: u64,
        kernel: KernelImage,
        ramdisk: u64,
        fdt: u64,
    ) -> Result<Self, LoadError> {
        // Below 4 KiB of offset, QEMU leaves 2 MiB free; boot loaders of old images rely on it.
        let start = if kernel.offset < 4096 { kernel.offset + ALIGN } else { kernel.offset };
        let kernel_end = round_up(start.saturating_add(kernel.memory));
        let wish = (ram_size / 2).min(RAMDISK_OFFSET) & !(ALIGN - 1);
        let tail = round_up(ramdisk).saturating_add(fdt);
        let fits = |ramdisk_at: u64| ramdisk_at.saturating_add(tail) <= ram_size;
        let ramdisk_at = if wish >= kernel_end && fits(wish) { wish } else { kernel_end };
        if !fits(ramdisk_at) {
            let needed = ramdisk_at.saturating_add(tail);
            return Err(LoadError::TooLarge { needed, ram: ram_size });
        }
        // Nothing here overflows: it is all inside the RAM.
        let at = |offset: u64| Ipa::new(ram.raw() + offset);
        Ok(Self {
            kernel: at(start),
            ramdisk: (ramdisk > 0).then(|| (at(ramdisk_at), at(ramdisk_at + ramdisk))),
            fdt: at(ramdisk_at + round_up(ramdisk)),
        })
    }
}

/// The next multiple of [`ALIGN`]; more than any RAM if there is none.
const fn round_up(bytes: u64) -> u64 {
    match bytes.checked_next_multiple_of(ALIGN) {
        Some(rounded) => rounded,
        None => u64::MAX,
    }
}

/// Where `modules` and a device tree of up to `fdt_room` bytes go in `memory`. Nothing is written: to
/// be asked before the RAM is zeroed, which takes its time.
///
/// # Errors
/// [`LoadError`]; the VM must not be started.
pub fn plan(
    modules: &Modules<'_>,
    memory: &GuestMemory<'_>,
    fdt_room: usize,
) -> Result<Placement, LoadError> {
    let &(ram, region) = memory.regions().first().ok_or(LoadError::NoRam)?;
    let kernel = KernelImage::parse(modules.kernel).map_err(LoadError::Kernel)?;
    let ramdisk_len = modules.ramdisk.map_or(0, |ramdisk| ramdisk.len() as u64);
    Placement::plan(ram, region.len() as u64, kernel, ramdisk_len, fdt_room as u64)
}

/// Copies what comes next of the modules into the first region of `memory`, when `done` bytes of the
/// kernel and the ramdisk, in this order, are there: at most [`COPY`] bytes, so that who shares the
/// core need not wait for all. How many it was; 0 if all are there. The RAM has been zeroed. `loaded`
/// is called for the range that was written, to make it visible to a guest whose caches are off.
///
/// # Errors
/// [`LoadError`]; the VM must not be started.
pub fn copy(
    modules: &Modules<'_>,
    memory: &GuestMemory<'_>,
    fdt_room: usize,
    done: usize,
    loaded: impl FnOnce(SharedSlice<'_>),
) -> Result<usize, LoadError> {
    let placement = plan(modules, memory, fdt_room)?;
    let behind_kernel = done.checked_sub(modules.kernel.len());
    let (file, at, offset) = match (behind_kernel, placement.ramdisk, modules.ramdisk) {
        (None, ..) => (modules.kernel, placement.kernel, done),
        (Some(offset), Some((at, _)), Some(ramdisk)) => (ramdisk, at, offset),
        _ => return Ok(0),
    };
    let len = file.len().saturating_sub(offset).min(COPY);
    if len != 0 {
        // There is RAM for all of it, by the plan.
        let from = file.subslice(offset, len).ok_or(LoadError::NoRam)?;
        let to = memory.slice(at, file.len()).ok().and_then(|to| to.subslice(offset, len));
        let to = to.ok_or(LoadError::NoRam)?;
        to.copy_from(&from).ok_or(LoadError::NoRam)?;
        loaded(to);
    }
    Ok(len)
}

/// Has `write_fdt` make the device tree in `scratch` when all of the modules are [there](copy), and puts
/// it behind them. `loaded` is called for the range that was written, as by [`copy`].
///
/// # Errors
/// [`LoadError`]; the VM must not be started.
pub fn finish(
    modules: &Modules<'_>,
    memory: &GuestMemory<'_>,
    scratch: &mut [u8],
    write_fdt: impl FnOnce(&Placement, &mut [u8]) -> Result<usize, WriteError>,
    loaded: impl FnOnce(SharedSlice<'_>),
) -> Result<Placement, LoadError> {
    let placement = plan(modules, memory, scratch.len())?;
    let len = write_fdt(&placement, scratch).map_err(LoadError::DeviceTree)?;
    let tree = scratch.get(..len).ok_or(LoadError::DeviceTree(WriteError::Full))?;
    let to = memory.slice(placement.fdt, len).map_err(|_| LoadError::NoRam)?;
    to.write_bytes(0, tree).ok_or(LoadError::NoRam)?;
    loaded(to);
    Ok(placement)
}

#[cfg(test)]
mod tests;
