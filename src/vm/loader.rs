//! Puts a guest's kernel, ramdisk and device tree into its RAM.

use core::fmt;

use super::image::{ImageError, KernelImage};
use crate::memory::{GuestMemory, Ipa, SharedSlice};

/// What is loaded is aligned to this.
const ALIGN: u64 = 0x20_0000;
/// Where the ramdisk goes at the latest, from the start of RAM: as QEMU has it.
const RAMDISK_OFFSET: u64 = 0x800_0000;

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
    /// The VM has no RAM.
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
                needed / 1024,
                ram / 1024
            ),
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
    /// Finds room in `ram_size` bytes of RAM at `ram` for a kernel, a ramdisk of `ramdisk` bytes and
    /// a device tree of `fdt` bytes.
    ///
    /// # Errors
    /// [`LoadError::TooLarge`].
    pub fn plan(
        ram: Ipa,
        ram_size: u64,
        kernel: KernelImage,
        ramdisk: u64,
        fdt: u64,
    ) -> Result<Self, LoadError> {
        // Below 4 KiB of offset, QEMU leaves 2 MiB free; boot loaders of old images rely on it.
        let start = if kernel.offset < 4096 { kernel.offset + ALIGN } else { kernel.offset };
        let kernel_end = (start + kernel.memory).next_multiple_of(ALIGN);
        let wish = (ram_size / 2).min(RAMDISK_OFFSET) & !(ALIGN - 1);
        let tail = ramdisk.next_multiple_of(ALIGN) + fdt;
        let ramdisk_at =
            if wish >= kernel_end && wish + tail <= ram_size { wish } else { kernel_end };
        let needed = ramdisk_at + tail;
        if needed > ram_size {
            return Err(LoadError::TooLarge { needed, ram: ram_size });
        }
        let at = |offset: u64| Ipa::new(ram.raw() + offset);
        Ok(Self {
            kernel: at(start),
            ramdisk: (ramdisk > 0).then(|| (at(ramdisk_at), at(ramdisk_at + ramdisk))),
            fdt: at(ramdisk_at + ramdisk.next_multiple_of(ALIGN)),
        })
    }
}

/// Copies the modules into the first region of `memory`, and has `write_fdt` make the device tree
/// for them in `scratch`. The RAM has been zeroed. `loaded` is called for each range that was
/// written, to make it visible to a guest whose caches are off.
///
/// # Errors
/// [`LoadError`]; the VM must not be started.
pub fn load(
    modules: &Modules<'_>,
    memory: &GuestMemory<'_>,
    scratch: &mut [u8],
    write_fdt: impl FnOnce(&Placement, &mut [u8]) -> Option<usize>,
    mut loaded: impl FnMut(SharedSlice<'_>),
) -> Result<Placement, LoadError> {
    let &(ram, region) = memory.regions().first().ok_or(LoadError::NoRam)?;
    let ram_size = region.len() as u64;
    let kernel = KernelImage::parse(modules.kernel).map_err(LoadError::Kernel)?;
    let ramdisk_len = modules.ramdisk.map_or(0, |ramdisk| ramdisk.len() as u64);
    let fdt_room = scratch.len() as u64;
    let placement = Placement::plan(ram, ram_size, kernel, ramdisk_len, fdt_room)?;
    let too_large = LoadError::TooLarge { needed: ram_size.saturating_add(1), ram: ram_size };

    let mut put = |at: Ipa, file: SharedSlice<'_>| {
        let to = memory.slice(at, file.len()).map_err(|_| too_large)?;
        to.copy_from(&file).ok_or(too_large)?;
        loaded(to);
        Ok(())
    };
    put(placement.kernel, modules.kernel)?;
    if let (Some((at, _)), Some(ramdisk)) = (placement.ramdisk, modules.ramdisk) {
        put(at, ramdisk)?;
    }
    let len = write_fdt(&placement, scratch).ok_or(too_large)?;
    let to = memory.slice(placement.fdt, len).map_err(|_| too_large)?;
    let tree = scratch.get(..len).ok_or(too_large)?;
    to.write_bytes(0, tree).ok_or(too_large)?;
    loaded(to);
    Ok(placement)
}
