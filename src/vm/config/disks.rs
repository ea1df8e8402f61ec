//! Which sectors of the board's disks are whose.

use super::{ConfigError, Configuration, Refusal, VmConfig};
use crate::backend::block::SECTOR_SIZE;
use crate::backend::overlay;
use crate::backend::partition::gpt::GptError;
use crate::backend::partition::{RangeError, Sectors};
use crate::fdt::{Below, BlockSource, DeviceKind, DeviceNode, DiskPart};

/// The board's disks.
pub trait Disks {
    /// How many there are; they have the numbers below.
    fn count(&self) -> usize;

    /// The sectors of a part of a disk. They are on the disk, in whole blocks.
    ///
    /// # Errors
    /// [`PartError`] if there is no such part.
    fn find(&mut self, disk: usize, part: DiskPart<'_>) -> Result<Sectors, PartError>;
}

/// Why a disk, or a part of it, cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartError {
    /// The disk does not work.
    Unusable,
    /// It has no sectors, or more than can be numbered.
    Empty,
    /// There is no such range.
    Range(RangeError),
    /// There is no such partition.
    Gpt(GptError),
}

impl core::fmt::Display for PartError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Unusable => f.write_str("the disk cannot be used"),
            Self::Empty => f.write_str("the range has no sectors, or more than can be numbered"),
            Self::Range(error) => error.fmt(f),
            Self::Gpt(error) => error.fmt(f),
        }
    }
}

/// What a device has of the board's disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskUse<'a> {
    /// Which disk.
    pub disk: u64,
    /// Which part of it. [`Configuration::check_disks`] makes it [`DiskPart::Sectors`].
    pub part: DiskPart<'a>,
    /// It is only read.
    pub read_only: bool,
}

impl<'a> DiskUse<'a> {
    /// What `device` has, if it has anything.
    pub fn of(device: &DeviceNode<'a>) -> Option<Self> {
        let DeviceKind::Block { source, read_only, .. } = device.kind else { return None };
        match source {
            BlockSource::Physical { disk, part } => Some(Self { disk, part, read_only }),
            BlockSource::Overlay { below: Below::Physical { disk, part }, .. } => {
                Some(Self { disk, part, read_only: true })
            }
            _ => None,
        }
    }

    /// Its sectors, once they are known.
    pub fn sectors(&self) -> Option<Sectors> {
        match self.part {
            DiskPart::Sectors { first, count } => Sectors::new(first, count),
            _ => None,
        }
    }

    fn conflicts(&self, other: &DiskUse<'_>) -> bool {
        let (Some(own), Some(others)) = (self.sectors(), other.sectors()) else { return false };
        self.disk == other.disk && !(self.read_only && other.read_only) && own.overlaps(others)
    }
}

impl<'a> Configuration<'a> {
    /// Finds out which sectors each device has, and refuses the VMs that name disks or parts that are
    /// not there, or sectors that belong to others: a sector has one device that writes it, or any
    /// number that read it. The VM of a board without configuration does without a disk.
    pub fn check_disks(&mut self, disks: &mut dyn Disks, refuse: &mut dyn FnMut(Refusal<'a>)) {
        self.retain(refuse, |vms, index| {
            let Some((vm, others)) = vms.get_mut(..=index).and_then(<[_]>::split_last_mut) else {
                return Ok(());
            };
            if vm.is_default {
                let missing = |disk: u64| disk >= disks.count() as u64;
                vm.devices.retain(|device| !DiskUse::of(device).is_some_and(|it| missing(it.disk)));
            }
            for device in 0..vm.devices.len() {
                let Some((device, own)) =
                    vm.devices.get_mut(..=device).and_then(<[_]>::split_last_mut)
                else {
                    continue;
                };
                check(device, own, others, disks)?;
            }
            Ok(())
        });
    }
}

/// Finds the sectors of a device, and compares them with those of all before it.
fn check<'a>(
    device: &mut DeviceNode<'a>,
    own: &[DeviceNode<'a>],
    others: &[VmConfig<'a>],
    disks: &mut dyn Disks,
) -> Result<(), ConfigError<'a>> {
    let node = device.node;
    if let Some(it) = DiskUse::of(device) {
        let (disk, asked) = (it.disk, it.part);
        let number = usize::try_from(disk).ok().filter(|disk| *disk < disks.count());
        let number = number.ok_or(ConfigError::NoSuchDisk { disk })?;
        let sectors = disks.find(number, it.part);
        let sectors = sectors.map_err(|error| ConfigError::Part { node, disk, error })?;
        let resolved = DiskPart::Sectors { first: sectors.first(), count: sectors.count() };
        if let DeviceKind::Block { source, .. } = &mut device.kind
            && let BlockSource::Physical { part, .. }
            | BlockSource::Overlay { below: Below::Physical { part, .. }, .. } = source
        {
            *part = resolved;
        }
        let it = DiskUse { part: resolved, ..it };
        let all = own.iter().chain(others.iter().flat_map(|vm| &vm.devices));
        for other in all {
            if DiskUse::of(other).is_some_and(|other| it.conflicts(&other)) {
                let by = other.node;
                return Err(match asked {
                    DiskPart::Whole => ConfigError::DiskTaken { disk, by },
                    _ => ConfigError::SectorsTaken { node, disk, by },
                });
            }
        }
    }
    let DeviceKind::Block { source, .. } = device.kind else { return Ok(()) };
    if let BlockSource::Overlay { below, memory_kib, .. } = source {
        let sectors = match below {
            Below::Ram { image } => image.len / SECTOR_SIZE,
            Below::Physical { .. } => {
                DiskUse::of(device).and_then(|it| it.sectors()).map_or(0, Sectors::count)
            }
        };
        let least = overlay::least(sectors);
        if memory_kib.saturating_mul(1024) < least {
            return Err(ConfigError::OverlayMemory { node, kib: memory_kib, least: least / 1024 });
        }
    }
    Ok(())
}
