//! A node together with the nodes it is inside, which say what its numbers mean.

use super::tree::{Node, Tree};
use crate::memory::PaRange;

/// Cells of an address and of a size where a parent does not say (Devicetree Specification 2.3.5).
const DEFAULT_CELLS: Cells = Cells { address: 2, size: 1 };

/// More cells than any number has; what says more than this is not understood either way.
const MAX_CELLS: u64 = 8;

/// How many 32-bit cells the addresses and sizes below a node have.
#[derive(Clone, Copy)]
pub(super) struct Cells {
    pub(super) address: usize,
    pub(super) size: usize,
}

/// What makes an interrupt pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A change of the line.
    Edge,
    /// The state of the line.
    Level,
}

/// An interrupt as the GIC numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// The interrupt's number: 16 to 31 private (PPI), 32 to 1019 shared (SPI).
    pub intid: u32,
    /// What makes it pending.
    pub trigger: Trigger,
}

/// Strings of a property such as `compatible`, most specific first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct StringList<'a>(&'a [u8]);

impl<'a> StringList<'a> {
    /// The strings, up to the first that is not text.
    pub fn iter(self) -> impl Iterator<Item = &'a str> {
        let list = self.0.strip_suffix(&[0]);
        let strings = list.into_iter().flat_map(|list| list.split(|byte| *byte == 0));
        strings.map_while(|bytes| core::str::from_utf8(bytes).ok())
    }

    /// Whether `wanted` is one of the strings.
    pub fn contains(self, wanted: &str) -> bool {
        self.iter().any(|string| string == wanted)
    }
}

/// A number of cells. `None` if it has more than 64 bits.
fn number(bytes: &[u8]) -> Option<u64> {
    let number = bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    (bytes.len() <= 8).then_some(number)
}

/// The entries of a property, each of three numbers of so many cells. `None` if it does not divide
/// into them.
fn entries(value: &[u8], cells: [usize; 3]) -> Option<impl Iterator<Item = [Option<u64>; 3]>> {
    let lens = cells.map(|cells| cells * 4);
    let len: usize = lens.iter().sum();
    if len == 0 || !value.len().is_multiple_of(len) {
        return None;
    }
    Some(value.chunks_exact(len).map(move |mut entry| {
        lens.map(|len| {
            let (bytes, rest) = entry.split_at_checked(len)?;
            entry = rest;
            number(bytes)
        })
    }))
}

/// A node and where it is. Lives on the stack of the walk that reached it.
#[derive(Clone, Copy)]
pub(super) struct Place<'p, 'a> {
    pub(super) node: Node<'a>,
    parent: Option<&'p Place<'p, 'a>>,
}

impl<'p, 'a> Place<'p, 'a> {
    pub(super) fn root(tree: Tree<'a>) -> Self {
        Self { node: tree.root(), parent: None }
    }

    pub(super) fn name(&self) -> &'a str {
        self.node.name()
    }

    pub(super) fn value(&self, property: &str) -> Option<&'a [u8]> {
        self.node.property(property)
    }

    pub(super) fn text(&self, property: &str) -> Option<&'a str> {
        core::str::from_utf8(self.value(property)?.strip_suffix(&[0])?).ok()
    }

    /// A number of one or two cells, as long as the property is.
    pub(super) fn number(&self, property: &str) -> Option<u64> {
        let value = self.value(property)?;
        if value.is_empty() || !value.len().is_multiple_of(4) {
            return None;
        }
        number(value)
    }

    pub(super) fn compatible(&self) -> StringList<'a> {
        StringList(self.value("compatible").unwrap_or_default())
    }

    /// Whether the node is in use: it has no `status`, or one that says so.
    pub(super) fn is_enabled(&self) -> bool {
        self.value("status").is_none() || matches!(self.text("status"), Some("okay" | "ok"))
    }

    /// The cells of numbers in the nodes directly below this one.
    pub(super) fn cells_below(&self) -> Cells {
        self.cells_below_or(DEFAULT_CELLS)
    }

    pub(super) fn cells_below_or(&self, default: Cells) -> Cells {
        let cells = |property, default| {
            self.number(property).map_or(default, |cells| cells.min(MAX_CELLS) as usize)
        };
        Cells {
            address: cells("#address-cells", default.address),
            size: cells("#size-cells", default.size),
        }
    }

    /// The ranges in `reg`, as the parent numbers them. `None` if the property is missing, does
    /// not divide into ranges, or has numbers of more than 64 bits.
    pub(super) fn reg_in(&self, cells: Cells) -> Option<impl Iterator<Item = PaRange> + 'a> {
        let entries = entries(self.value("reg")?, [cells.address, cells.size, 0])?;
        if cells.address > 2 || cells.size > 2 {
            return None;
        }
        Some(entries.filter_map(|[address, size, _]| Some(PaRange::new(address?, size?))))
    }

    /// The `index`th range in `reg`, as the cores see it: translated by the `ranges` of every bus
    /// above. `None` if a bus does not pass it on.
    pub(super) fn reg(&self, index: usize) -> Option<PaRange> {
        let bus = self.parent?;
        let mut range = self.reg_in(bus.cells_below())?.nth(index)?;
        let mut place = bus;
        while let Some(above) = place.parent {
            range = place.translate(range, above.cells_below())?;
            place = above;
        }
        Some(range)
    }

    /// Translates a range below this bus to one above it (Devicetree Specification 2.3.8).
    fn translate(&self, range: PaRange, above: Cells) -> Option<PaRange> {
        let ranges = self.value("ranges")?;
        if ranges.is_empty() {
            return Some(range);
        }
        let below = self.cells_below();
        for [child, parent, len] in entries(ranges, [below.address, above.address, below.size])? {
            let Some(child) = child else {
                continue;
            };
            let window = PaRange::new(child, len?);
            if window.contains(range) {
                let offset = range.base.raw() - child;
                let base = parent?.checked_add(offset)?;
                return Some(PaRange::new(base, range.len));
            }
        }
        None
    }

    /// The `index`th interrupt, if it goes to the GIC, whose `phandle` is given. A tree that names
    /// no interrupt parent at all can only mean the GIC.
    pub(super) fn interrupt(&self, index: usize, gic: Option<u64>) -> Option<Interrupt> {
        if self.interrupt_parent().is_some_and(|parent| Some(parent) != gic) {
            return None;
        }
        let [kind, number, flags] = entries(self.value("interrupts")?, [1, 1, 1])?.nth(index)?;
        let number = number? as u32;
        // Kinds and flags of the GIC's binding, arm,gic-v3.
        let (first, count) = match kind? {
            0 => (32, 988),
            1 => (16, 16),
            _ => return None,
        };
        let edge = flags? & 0b11 != 0;
        let trigger = if edge { Trigger::Edge } else { Trigger::Level };
        (number < count).then(|| Interrupt { intid: first + number, trigger })
    }

    /// The nearest `interrupt-parent`, in the node itself or above.
    fn interrupt_parent(&self) -> Option<u64> {
        let mut place = Some(self);
        while let Some(here) = place {
            if let Some(phandle) = here.number("interrupt-parent") {
                return Some(phandle);
            }
            place = here.parent;
        }
        None
    }

    /// Calls `visit` for every node below that is enabled, as are all above it. As deep as the
    /// tree is, which was checked.
    pub(super) fn for_each_below(&self, visit: &mut impl FnMut(&Place<'_, 'a>)) {
        self.for_each_child(|child| {
            if child.is_enabled() {
                visit(child);
                child.for_each_below(visit);
            }
        });
    }

    /// Calls `visit` for every child.
    pub(super) fn for_each_child(&self, mut visit: impl FnMut(&Place<'_, 'a>)) {
        for node in self.node.children() {
            visit(&Place { node, parent: Some(self) });
        }
    }

    /// Calls `visit` for the node at `path` (from this one, without the first slash), if it is
    /// there. A name without unit address fits any.
    pub(super) fn at<R>(
        &self,
        path: &str,
        visit: &mut dyn FnMut(&Place<'_, 'a>) -> R,
    ) -> Option<R> {
        let (name, rest) = match path.split_once('/') {
            Some((name, rest)) => (name, Some(rest)),
            None => (path, None),
        };
        let child = Place { node: self.node.child(name)?, parent: Some(self) };
        match rest {
            Some(rest) => child.at(rest, visit),
            None => Some(visit(&child)),
        }
    }
}
