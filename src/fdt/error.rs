//! What can be wrong with a board's device tree, said so that a person can mend it.

use core::fmt;

use crate::memory::{Pa, PaRange};

/// The path of a node one or two levels below a known one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePath<'a> {
    /// Path of what it is in, as far as that is known beforehand; empty for the root.
    parent: &'static str,
    /// Name of the node in between, if there is one.
    between: Option<&'a str>,
    /// Name with unit address.
    name: &'a str,
}

impl<'a> NodePath<'a> {
    /// The node `name` (with unit address) in `parent`, a path; empty for the root.
    pub const fn new(parent: &'static str, name: &'a str) -> Self {
        Self { parent, between: None, name }
    }

    /// The node `name` in this one, which is itself right below its known parent.
    pub const fn child(self, name: &'a str) -> Self {
        Self { parent: self.parent, between: Some(self.name), name }
    }
}

impl fmt::Display for NodePath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.parent)?;
        if let Some(between) = self.between {
            write!(f, "/{between}")?;
        }
        write!(f, "/{}", self.name)
    }
}

/// Why a board's device tree cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoardError<'a> {
    /// There is no device tree at the address.
    NotAnFdt {
        /// Where it should be.
        address: Pa,
        /// What is there instead of 0xd00dfeed.
        magic: u32,
    },
    /// The tree says it is longer than the memory it is in, or shorter than its own header.
    Truncated {
        /// Its size by its header, in bytes.
        size: usize,
        /// Bytes there are.
        have: usize,
    },
    /// The tree says it is larger than [`MAX_BLOB`](super::MAX_BLOB).
    TooLarge {
        /// Its size by its header, in bytes.
        size: usize,
    },
    /// The tree is of a version that cannot be read as version 17.
    Version(u32),
    /// The tree breaks the format (Devicetree Specification v0.4, chapter 5).
    Malformed {
        /// Byte offset in the tree.
        offset: usize,
        /// What is wrong there.
        reason: &'static str,
    },
    /// No memory node has any memory.
    NoMemory,
    /// A node that matters cannot be understood.
    BadNode {
        /// The node.
        node: NodePath<'a>,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A property that matters cannot be understood.
    BadProperty {
        /// The node.
        node: NodePath<'a>,
        /// The property.
        property: &'a str,
        /// What is wrong with it: "is missing".
        problem: &'static str,
    },
    /// More of something than there is room for.
    TooMany {
        /// Of what.
        what: &'static str,
        /// The room there is.
        limit: usize,
    },
    /// A module has no bytes.
    ModuleEmpty {
        /// The module.
        node: NodePath<'a>,
    },
    /// A module is not, or not wholly, in the board's memory.
    ModuleOutsideMemory {
        /// The module.
        node: NodePath<'a>,
        /// Where it says it is.
        range: PaRange,
    },
    /// A module lies over something that is in use.
    ModuleOverlaps {
        /// The module.
        node: NodePath<'a>,
        /// Where it is.
        range: PaRange,
        /// What is there: "the FDT".
        what: &'static str,
    },
    /// Two modules lie over each other.
    ModulesOverlap {
        /// One module.
        first: NodePath<'a>,
        /// The other.
        second: NodePath<'a>,
    },
}

impl fmt::Display for BoardError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotAnFdt { address, magic } => {
                write!(f, "no FDT at {address}: it starts with {magic:#010x}, not 0xd00dfeed")
            }
            Self::Truncated { size, have } => {
                write!(f, "FDT truncated: its header says {size} bytes, there are {have}")
            }
            Self::TooLarge { size } => {
                write!(f, "FDT of {size} bytes; the boot protocol allows {}", super::MAX_BLOB)
            }
            Self::Version(version) => write!(f, "FDT of version {version}; 17 is wanted"),
            Self::Malformed { offset, reason } => {
                write!(f, "FDT malformed at offset {offset:#x}: {reason}")
            }
            Self::NoMemory => f.write_str("FDT has no /memory node with memory"),
            Self::BadNode { node, reason } => write!(f, "{node}: {reason}"),
            Self::BadProperty { node, property, problem } => {
                write!(f, "{node}: {property} {problem}")
            }
            Self::TooMany { what, limit } => write!(f, "FDT has more than {limit} {what}"),
            Self::ModuleEmpty { node } => write!(f, "{node}: module has no bytes"),
            Self::ModuleOutsideMemory { node, range } => {
                write!(f, "{node}: module at {range} is not in the board's memory")
            }
            Self::ModuleOverlaps { node, range, what } => {
                write!(f, "{node}: module at {range} overlaps {what}")
            }
            Self::ModulesOverlap { first, second } => {
                write!(f, "{first}: module overlaps {second}")
            }
        }
    }
}
