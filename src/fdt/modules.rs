//! Boot modules: what a boot loader put into memory for the guests.
//!
//! Nodes in `/chosen` with the `multiboot,module` binding, as QEMU's guest-loader and U-Boot
//! scripts write them.

use super::board::Board;
use super::error::{BoardError, NodePath};
use super::node::{Cells, Place};
use crate::memory::PaRange;

/// Modules a board can have.
pub const MAX_MODULES: usize = 16;

/// What a module is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// A kernel (`multiboot,kernel`).
    Kernel,
    /// A ramdisk (`multiboot,ramdisk`).
    Ramdisk,
    /// Something else: there, and not to be overwritten.
    Other,
}

/// A boot module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module<'a> {
    /// Its node.
    pub node: NodePath<'a>,
    /// What it is for.
    pub kind: ModuleKind,
    /// Where it is. The length is that of the file.
    pub range: PaRange,
    /// Arguments for the kernel; empty if there are none.
    pub bootargs: &'a str,
}

/// What one guest boots from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestImages<'a> {
    /// The kernel.
    pub kernel: Module<'a>,
    /// The ramdisk, if it has one.
    pub ramdisk: Option<Module<'a>>,
}

/// The modules of `/chosen`, in ascending order of address.
///
/// Their `reg` is in `/chosen`'s cells if it says any, or else in the root's: QEMU does not say.
pub(super) fn read<'a>(
    root: &Place<'_, 'a>,
    chosen: &Place<'_, 'a>,
) -> Result<heapless::Vec<Module<'a>, MAX_MODULES>, BoardError<'a>> {
    let mut modules = heapless::Vec::new();
    let mut result = Ok(());
    let cells = chosen.cells_below_or(root.cells_below());
    chosen.for_each_child(|place| {
        let compatible = place.compatible();
        if !compatible.contains("multiboot,module") || !place.is_enabled() {
            return;
        }
        let node = NodePath::new("/chosen", place.name());
        match read_one(place, node, cells) {
            Ok(module) if modules.push(module).is_ok() => {}
            Ok(_) => result = Err(BoardError::TooMany { what: "modules", limit: MAX_MODULES }),
            Err(error) => result = Err(error),
        }
    });
    result?;
    super::sort_by_address(&mut modules, |module| module.range.base);
    Ok(modules)
}

/// One module, whose node is `place` at the path `node`, its `reg` in `cells`.
pub(super) fn read_one<'a>(
    place: &Place<'_, 'a>,
    node: NodePath<'a>,
    cells: Cells,
) -> Result<Module<'a>, BoardError<'a>> {
    let compatible = place.compatible();
    let kind = if compatible.contains("multiboot,kernel") {
        ModuleKind::Kernel
    } else if compatible.contains("multiboot,ramdisk") {
        ModuleKind::Ramdisk
    } else {
        ModuleKind::Other
    };
    let Some(range) = place.reg_in(cells).and_then(|mut reg| reg.next()) else {
        return Err(BoardError::BadNode { node, reason: "reg is not understood" });
    };
    Ok(Module { node, kind, range, bootargs: place.text("bootargs").unwrap_or("") })
}

impl<'a> Board<'a> {
    /// Checks that every module has bytes, all in the board's memory, and that none overlaps
    /// another or `taken`: what is in use already, each with what to call it ("the FDT").
    ///
    /// # Errors
    /// The first module that does not; see [`BoardError`].
    pub fn check_modules(&self, taken: &[(&'static str, PaRange)]) -> Result<(), BoardError<'a>> {
        for (index, module) in self.modules.iter().enumerate() {
            self.check_module(module.node, module.range, taken)?;
            let mut others = self.modules.iter().skip(index + 1);
            if let Some(other) = others.find(|other| other.range.overlaps(module.range)) {
                return Err(BoardError::ModulesOverlap { first: module.node, second: other.node });
            }
        }
        Ok(())
    }

    /// Checks that a module has bytes, all in the board's memory, none of them in `taken`.
    ///
    /// # Errors
    /// What is wrong with it; see [`BoardError`].
    pub fn check_module<'n>(
        &self,
        node: NodePath<'n>,
        range: PaRange,
        taken: &[(&'static str, PaRange)],
    ) -> Result<(), BoardError<'n>> {
        if range.is_empty() {
            return Err(BoardError::ModuleEmpty { node });
        }
        if !self.memory.iter().any(|memory| memory.contains(range)) {
            return Err(BoardError::ModuleOutsideMemory { node, range });
        }
        if let Some((what, _)) = taken.iter().find(|(_, taken)| taken.overlaps(range)) {
            return Err(BoardError::ModuleOverlaps { node, range, what });
        }
        Ok(())
    }

    /// Kernels, in ascending order of address.
    pub fn kernels(&self) -> impl Iterator<Item = &Module<'a>> {
        self.modules.iter().filter(|module| module.kind == ModuleKind::Kernel)
    }

    /// The first guest: the kernel at the lowest address, and the ramdisk if there is only one;
    /// else the first behind that kernel and before the next. `None` without a kernel.
    pub fn first_guest(&self) -> Option<GuestImages<'a>> {
        let mut kernels = self.kernels();
        let kernel = *kernels.next()?;
        let end = kernels.next().map_or(u64::MAX, |next| next.range.base.raw());
        let is_ramdisk = |module: &&Module<'a>| module.kind == ModuleKind::Ramdisk;
        let mut ramdisks = self.modules.iter().filter(is_ramdisk);
        let ramdisk =
            match (ramdisks.next(), ramdisks.next()) {
                (only, None) => only,
                _ => self.modules.iter().filter(is_ramdisk).find(|ramdisk| {
                    (kernel.range.base.raw()..end).contains(&ramdisk.range.base.raw())
                }),
            };
        Some(GuestImages { kernel, ramdisk: ramdisk.copied() })
    }
}
