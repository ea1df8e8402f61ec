//! Why a VM is refused, said so that a person can mend its node.

use core::fmt;

use super::PartError;
use crate::fdt::{BoardError, NodePath};
use crate::memory::PaRange;

/// A VM that will not run. The others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal<'a> {
    /// The VM's node.
    pub vm: NodePath<'a>,
    /// Why.
    pub error: ConfigError<'a>,
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.error {
            // It says itself where.
            ConfigError::Tree(error) => error.fmt(f),
            error => match error.device() {
                Some(device) => write!(f, "{device}: {error}"),
                None => write!(f, "{}: {error}", self.vm),
            },
        }
    }
}

/// What is wrong with a VM's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError<'a> {
    /// A node or property is not understood, or a module is not where it can be.
    Tree(BoardError<'a>),
    /// A number is not among those that are possible.
    Range {
        /// The property.
        property: &'static str,
        /// What it says.
        value: u64,
        /// The least possible.
        least: u64,
        /// The most possible.
        most: u64,
    },
    /// `memory` is not a multiple of 2 MiB. It is not rounded: nobody should get other than what
    /// they asked for.
    MemoryUnaligned {
        /// What it says, in KiB.
        kib: u64,
    },
    /// There is not that much free RAM in one piece.
    NoMemory {
        /// What it asks for, in bytes.
        wanted: u64,
        /// The largest piece, in bytes.
        largest: u64,
    },
    /// The name is empty, too long or has other characters than letters, digits, `.`, `_` and `-`.
    Name,
    /// Another VM has the same name.
    NameTaken,
    /// It has no kernel module.
    NoKernel,
    /// The board has neither a kernel module nor VMs.
    NoGuest,
    /// Its command line is longer than [`MAX_BOOTARGS`](super::MAX_BOOTARGS).
    BootargsTooLong,
    /// There are [`MAX_VMS`](super::MAX_VMS) already.
    TooManyVms,
    /// The board has no such core, or it does not run.
    NoSuchCore {
        /// The number.
        core: u32,
    },
    /// A core has [`MAX_VCPUS_PER_CORE`](super::MAX_VCPUS_PER_CORE) vCPUs already.
    CoresFull,
    /// The board has no such disk.
    NoSuchDisk {
        /// The number.
        disk: u64,
    },
    /// The disk belongs to another device.
    DiskTaken {
        /// The number.
        disk: u64,
        /// Whose it is.
        by: NodePath<'a>,
    },
    /// A device's part of a disk cannot be had.
    Part {
        /// The device.
        node: NodePath<'a>,
        /// The disk's number.
        disk: u64,
        /// Why.
        error: PartError,
    },
    /// Sectors of a device belong to another, and one of the two writes.
    SectorsTaken {
        /// The device.
        node: NodePath<'a>,
        /// The disk's number.
        disk: u64,
        /// Whose they are.
        by: NodePath<'a>,
    },
    /// An overlay's memory is too small for anything to be written.
    OverlayMemory {
        /// The device.
        node: NodePath<'a>,
        /// What it says, in KiB.
        kib: u64,
        /// The least possible for its disk, in KiB.
        least: u64,
    },
    /// The address is nobody's, or a group's.
    Address {
        /// The network device.
        node: NodePath<'a>,
    },
    /// The address is that of another device.
    AddressTaken {
        /// The network device.
        node: NodePath<'a>,
        /// Whose it is.
        by: NodePath<'a>,
    },
    /// A network device cannot have the metadata service.
    Metadata {
        /// The network device.
        node: NodePath<'a>,
        /// Why.
        reason: &'static str,
    },
    /// The context ID is that of another device.
    CidTaken {
        /// The socket device.
        node: NodePath<'a>,
        /// Whose it is.
        by: NodePath<'a>,
    },
    /// A console's ports are not 1 to 4 of those there are, or two of the VM's are its terminal, or
    /// a pipe has a third end.
    Ports {
        /// The console.
        node: NodePath<'a>,
    },
    /// A RAM disk's image is no number of sectors.
    ImageLength {
        /// The image.
        image: PaRange,
    },
}

impl<'a> ConfigError<'a> {
    /// The device's node, if it is about one.
    fn device(&self) -> Option<NodePath<'a>> {
        match *self {
            Self::Part { node, .. }
            | Self::SectorsTaken { node, .. }
            | Self::OverlayMemory { node, .. }
            | Self::Metadata { node, .. } => Some(node),
            _ => None,
        }
    }
}

impl<'a> From<BoardError<'a>> for ConfigError<'a> {
    fn from(error: BoardError<'a>) -> Self {
        Self::Tree(error)
    }
}

impl fmt::Display for ConfigError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Tree(error) => error.fmt(f),
            Self::Range { property, value, least, most } => {
                write!(f, "{property} is {value}: {least} to {most} are possible")
            }
            Self::MemoryUnaligned { kib } => {
                write!(f, "memory is {kib} KiB: it must be a multiple of 2048")
            }
            Self::NoMemory { wanted, largest } => write!(
                f,
                "memory is {} KiB: the largest free piece of the board's has {}",
                wanted / 1024,
                largest / 1024
            ),
            Self::Name => {
                f.write_str("its name must be 1 to 15 of A-Z, a-z, 0-9, \".\", \"_\", \"-\"")
            }
            Self::NameTaken => f.write_str("another VM has this name"),
            Self::NoKernel => f.write_str("it has no kernel module"),
            Self::NoGuest => f.write_str(
                "there is no guest: give one as a multiboot,kernel module, as QEMU's guest-loader does, or a sparkler,vm node",
            ),
            Self::BootargsTooLong => {
                write!(f, "bootargs are longer than {} bytes", super::MAX_BOOTARGS)
            }
            Self::TooManyVms => write!(f, "there are {} VMs before it", super::MAX_VMS),
            Self::NoSuchCore { core } => {
                write!(f, "sparkler,cores has {core}: the board has no such core")
            }
            Self::CoresFull => {
                write!(f, "a core of its vCPUs would have more than {}", super::MAX_VCPUS_PER_CORE)
            }
            Self::NoSuchDisk { disk } => write!(f, "the board has no disk {disk}"),
            Self::DiskTaken { disk, by } => write!(f, "disk {disk} is that of {by}"),
            Self::Part { disk, error, .. } => write!(f, "disk {disk}: {error}"),
            Self::SectorsTaken { disk, by, .. } => {
                write!(f, "sectors of disk {disk} that it wants are those of {by}")
            }
            Self::OverlayMemory { kib, least, .. } => {
                write!(
                    f,
                    "memory is {kib} KiB: at least {least} are needed over a disk of this size"
                )
            }
            Self::Address { node } => {
                write!(f, "mac-address of {node} is not that of a single station")
            }
            Self::AddressTaken { node, by } => {
                write!(f, "mac-address of {node} is that of {by}")
            }
            Self::Metadata { reason, .. } => write!(f, "metadata: {reason}"),
            Self::CidTaken { node, by } => write!(f, "guest-cid of {node} is that of {by}"),
            Self::Ports { node } => {
                write!(f, "ports of {node} are not 1 to 4 of \"terminal\", \"log\" and \"pipe:NAME\", or one too many has that")
            }
            Self::ImageLength { image } => {
                write!(f, "the RAM disk at {image} is not a multiple of 512 bytes")
            }
        }
    }
}
