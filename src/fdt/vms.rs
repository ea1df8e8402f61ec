//! VMs in the board's device tree: nodes of `/chosen` with `compatible = "sparkler,vm"`.
//!
//! What a node says is read here, as far as it has a form that is understood; whether the board can
//! do it is judged in [`vm::config`](crate::vm::config). The binding is in `docs/configuration.md`.

use super::board::Board;
use super::error::{BoardError, NodePath};
use super::modules::{self, Module, ModuleKind};
use super::node::{Cells, Place};
use crate::memory::PaRange;
use crate::virtio::limiter::{Limits, Rate};

/// virtio devices a VM can have.
pub const MAX_DEVICES: usize = 8;

/// Size of a null disk whose node does not say.
const NULL_DISK_KIB: u64 = 1 << 20;

/// The MTU of a network device whose node does not say.
const USUAL_MTU: u64 = 1500;

/// Properties of a VM's node whose names are ours alone: another name with this prefix is a mistake.
const PREFIX: &str = "sparkler,";
const OURS: [&str; 5] = ["cores", "weight", "autostart", "on-crash", "operator"];

/// What a device's node can have. There everything else is a mistake: a disk that is to be
/// `readonly` instead of `read-only` must not be written.
const OF_DEVICES: [&str; 4] = ["compatible", "status", "phandle", "reg"];
/// And what a disk's.
const OF_DISKS: [&str; 8] =
    ["backend", "disk", "partition", "range", "memory", "on-reset", "size", "read-only"];
/// And what a network device's.
const OF_NETS: [&str; 7] =
    ["backend", "mac-address", "mtu", "vlan", "isolated", "queue-pairs", "metadata"];

/// What those of both can have.
const LIMITS: [&str; 4] =
    ["limit-in-bytes", "limit-in-requests", "limit-out-bytes", "limit-out-requests"];
/// And, of disks, what only the front has, not a medium.
const OF_FRONTS: [&str; 3] = ["queues", "capacity", "removable"];
/// And what a socket device's.
const OF_SOCKETS: [&str; 5] =
    ["guest-cid", "peers", "operator", "limit-out-bytes", "limit-out-requests"];

/// What a VM's node says. Numbers are as they are in the tree.
#[derive(Clone, Debug)]
pub struct VmNode<'a> {
    /// Where it is.
    pub node: NodePath<'a>,
    /// `vm-name`, or the node's name without unit address.
    pub name: &'a str,
    /// `cpus`: how many vCPUs.
    pub cpus: u64,
    /// `memory`, in KiB.
    pub memory_kib: u64,
    /// `sparkler,cores`: the physical cores; `None` if it is left to us.
    pub cores: Option<CellList<'a>>,
    /// `sparkler,weight`, if it has one.
    pub weight: Option<u64>,
    /// `sparkler,autostart`: whether it is started with the board.
    pub autostart: bool,
    /// `sparkler,on-crash`: what becomes of it after a crash.
    pub on_crash: OnCrash,
    /// `sparkler,operator`: whether it may use the monitor's hypercalls.
    pub operator: bool,
    /// Its `multiboot,kernel` module.
    pub kernel: Option<Module<'a>>,
    /// Its `multiboot,ramdisk` module.
    pub ramdisk: Option<Module<'a>>,
    /// Its virtio devices, in the order of their slots.
    pub devices: heapless::Vec<DeviceNode<'a>, MAX_DEVICES>,
}

/// What becomes of a VM that has crashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCrash {
    /// It stays as it is, stopped.
    Stop,
    /// It is started again, after a while that grows with every crash.
    Restart,
}

/// A virtio device of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNode<'a> {
    /// Where it is.
    pub node: NodePath<'a>,
    /// What it is.
    pub kind: DeviceKind<'a>,
    /// `limit-...`: what it may do, to the guest and from it.
    pub limits: [Limits; 2],
}

/// A kind of virtio device, with its back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind<'a> {
    /// `sparkler,virtio-net`.
    Net(NetNode),
    /// `sparkler,virtio-vsock`.
    Vsock(VsockNode<'a>),
    /// `sparkler,virtio-block`.
    Block {
        /// `backend` with its properties: where the data is.
        source: BlockSource<'a>,
        /// `read-only`: whether the guest is kept from writing.
        read_only: bool,
        /// `queues`: how many it has, if its node says.
        queues: Option<u64>,
        /// `capacity`: the most sectors that the guest sees of it at first.
        capacity: Option<u64>,
        /// Whether what is behind it can be changed, or is for another to be changed to.
        slot: DiskSlot,
    },
    /// `sparkler,virtio-rng`.
    Rng,
    /// `sparkler,virtio-console`.
    Console(PortList<'a>),
}

/// What a disk's node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskSlot {
    /// A disk that is always there.
    Fixed,
    /// `removable`: a drive, with its first medium.
    Drive,
    /// `sparkler,medium`: another medium of the drive before it.
    Medium,
}

/// What a network device's node says. Numbers are as they are in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetNode {
    /// `backend`: where the frames go.
    pub to: NetTarget,
    /// `mac-address`, if it has one.
    pub mac: Option<[u8; 6]>,
    /// `mtu`: bytes after the Ethernet header, 1500 without.
    pub mtu: u64,
    /// `vlan`: the only one it belongs to, if it has one.
    pub vlan: Option<u64>,
    /// `isolated`: whether it is kept from others that are.
    pub isolated: bool,
    /// `queue-pairs`: how many it can use, 1 without.
    pub pairs: u64,
    /// `metadata`, with `reg`: memory that a boot loader has put an archive in, which the guest is served.
    pub metadata: Option<PaRange>,
}

/// What a socket device's node says. Numbers are as they are in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VsockNode<'a> {
    /// `guest-cid`: the guest's context ID.
    pub cid: u64,
    /// `peers`: the context IDs of those it may talk with, if there are any.
    pub peers: Option<CellList<'a>>,
    /// `operator`: whether it may give the monitor commands, at CID 2.
    pub operator: bool,
}

/// Where the frames of a network device go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetTarget {
    /// `"switch"`: to the other guests, and out through the board's network card.
    Switch,
    /// `"loopback"`: back to the guest.
    Loopback,
}

/// What is behind a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockSource<'a> {
    /// `"physical"`: a disk of the board's, or a part of one.
    Physical {
        /// `disk`: which of them, from 0 on.
        disk: u64,
        /// `partition` or `range`: which part of it.
        part: DiskPart<'a>,
    },
    /// `"overlay"`: what the guest writes is in RAM, all else as below.
    Overlay {
        /// `disk` with `partition` or `range`, or `reg`: what is below.
        below: Below<'a>,
        /// `memory`, in KiB: how much RAM there is for what is written.
        memory_kib: u64,
        /// `on-reset`: whether what was written is there again after a reset of the VM.
        keep: bool,
        /// That RAM. [`Configuration::place`](crate::vm::config::Configuration::place) gives it.
        ram: Option<PaRange>,
    },
    /// `"ram"`: memory that a boot loader has put a disk image in.
    Ram {
        /// `reg`: where it is.
        image: PaRange,
    },
    /// `"null"`: nothing. It reads as zeros, and what is written is gone.
    Null {
        /// `size` in KiB: what it says it has. 1 GiB without.
        size_kib: u64,
    },
}

/// Which part of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskPart<'a> {
    /// All of it.
    Whole,
    /// `partition`: the one with this label.
    Label(&'a str),
    /// `partition`: the one with this number, of which the first is 1.
    Number(u32),
    /// `range`: sectors of 512 bytes.
    Sectors {
        /// The first.
        first: u64,
        /// How many.
        count: u64,
    },
}

/// What an overlay is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below<'a> {
    /// A disk of the board's, or a part of one.
    Physical {
        /// Which of them, from 0 on.
        disk: u64,
        /// Which part of it.
        part: DiskPart<'a>,
    },
    /// Memory that a boot loader has put a disk image in.
    Ram {
        /// Where it is.
        image: PaRange,
    },
}

/// The strings of `ports`. At least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortList<'a>(&'a str);

/// What is at the other end of a console's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortTarget<'a> {
    /// `"terminal"`: where the guest's UART is, too.
    Terminal,
    /// `"log"`.
    Log,
    /// `"pipe:NAME"`: the other port with that.
    Pipe(&'a str),
}

impl<'a> PortList<'a> {
    /// What is at each port; `None` for what means nothing.
    pub fn iter(self) -> impl Iterator<Item = Option<PortTarget<'a>>> {
        self.0.split('\0').map(|text| match text {
            "terminal" => Some(PortTarget::Terminal),
            "log" => Some(PortTarget::Log),
            text => text.strip_prefix("pipe:").map(PortTarget::Pipe),
        })
    }
}

/// The cells of a property. At least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellList<'a>(&'a [[u8; 4]]);

impl CellList<'_> {
    /// The numbers in it.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|cell| u32::from_be_bytes(*cell))
    }

    /// The `n`th number, starting over where the list ends.
    pub fn cycled(&self, n: usize) -> Option<u32> {
        self.0.get(n.checked_rem(self.0.len())?).map(|cell| u32::from_be_bytes(*cell))
    }
}

impl<'a> Board<'a> {
    /// Calls `visit` with every VM of the tree that is not disabled, in the tree's order: its
    /// path, and what its node says.
    ///
    /// The error is [`BoardError::BadProperty`], [`BadNode`](BoardError::BadNode) or
    /// [`TooMany`](BoardError::TooMany), and concerns that VM alone.
    pub fn for_each_vm(
        &self,
        visit: &mut dyn FnMut(NodePath<'a>, Result<VmNode<'a>, BoardError<'a>>),
    ) {
        let root = Place::root(self.tree);
        root.at("chosen", &mut |chosen| {
            let cells = chosen.cells_below_or(root.cells_below());
            chosen.for_each_child(|vm| {
                if vm.compatible().contains("sparkler,vm") && vm.is_enabled() {
                    let node = NodePath::new("/chosen", vm.name());
                    visit(node, read(vm, node, vm.cells_below_or(cells)));
                }
            });
        });
    }
}

fn read<'a>(
    place: &Place<'_, 'a>,
    node: NodePath<'a>,
    cells: Cells,
) -> Result<VmNode<'a>, BoardError<'a>> {
    let mut at = Reader { place, node, error: None };
    at.check_names(&|name| name.strip_prefix(PREFIX).is_none_or(|ours| OURS.contains(&ours)));
    let own_name = || place.name().split('@').next().unwrap_or_default();
    let mut vm = VmNode {
        node,
        name: at.text("vm-name").unwrap_or_else(own_name),
        cpus: at.required("cpus"),
        memory_kib: at.required("memory"),
        cores: at.cells("sparkler,cores"),
        weight: at.number("sparkler,weight"),
        autostart: at.is_second("sparkler,autostart", ["no", "yes"]).unwrap_or(true),
        on_crash: match at.is_second("sparkler,on-crash", ["stop", "restart"]) {
            Some(true) => OnCrash::Restart,
            _ => OnCrash::Stop,
        },
        operator: at.flag("sparkler,operator"),
        kernel: None,
        ramdisk: None,
        devices: heapless::Vec::new(),
    };
    let mut error = at.error;
    place.for_each_child(|child| {
        if error.is_none() && child.is_enabled() {
            let node = node.child(child.name());
            let mut at = Reader { place: child, node, error: None };
            read_child(&mut vm, &mut at, cells);
            error = at.error;
        }
    });
    error.map_or(Ok(vm), Err)
}

fn read_child<'a>(vm: &mut VmNode<'a>, at: &mut Reader<'_, '_, 'a>, cells: Cells) {
    let compatible = at.place.compatible();
    if compatible.contains("multiboot,module") {
        at.text("bootargs");
        let module = match modules::read_one(at.place, at.node, cells) {
            Ok(module) => module,
            Err(error) => return at.refuse(error),
        };
        let slot = match module.kind {
            ModuleKind::Kernel => &mut vm.kernel,
            ModuleKind::Ramdisk => &mut vm.ramdisk,
            ModuleKind::Other => return at.bad_node("the module is neither kernel nor ramdisk"),
        };
        if slot.replace(module).is_some() {
            at.bad_node("the VM has two modules of this kind");
        }
        return;
    }
    let kind = if compatible.contains("sparkler,virtio-block") {
        at.check_device_names(&[&OF_DISKS, &LIMITS, &OF_FRONTS]);
        read_disk(at, cells)
    } else if compatible.contains("sparkler,medium") {
        at.check_device_names(&[&OF_DISKS]);
        read_medium(at, cells, vm.devices.last())
    } else if compatible.contains("sparkler,virtio-net") {
        at.check_device_names(&[&OF_NETS, &LIMITS]);
        read_net(at, cells)
    } else if compatible.contains("sparkler,virtio-rng") {
        at.check_device_names(&[]);
        Some(DeviceKind::Rng)
    } else if compatible.contains("sparkler,virtio-vsock") {
        at.check_device_names(&[&OF_SOCKETS]);
        Some(DeviceKind::Vsock(VsockNode {
            cid: at.required("guest-cid"),
            peers: at.cells("peers"),
            operator: at.flag("operator"),
        }))
    } else if compatible.contains("sparkler,virtio-console") {
        at.check_device_names(&[&["ports"]]);
        at.ports().map(DeviceKind::Console)
    } else {
        return at.bad_node("compatible is neither that of a module nor of a device");
    };
    let Some(kind) = kind else { return };
    let limits = at.limits();
    if vm.devices.push(DeviceNode { node: at.node, kind, limits }).is_err() {
        at.bad_node("the VM has more than 8 devices");
    }
}

fn read_disk<'a>(at: &mut Reader<'_, '_, 'a>, cells: Cells) -> Option<DeviceKind<'a>> {
    let source = match at.text("backend") {
        Some("physical") => {
            BlockSource::Physical { disk: at.required("disk"), part: at.disk_part() }
        }
        Some("ram") => BlockSource::Ram { image: at.image(cells)? },
        Some("overlay") => at.overlay(cells)?,
        Some("null") => BlockSource::Null { size_kib: at.number("size").unwrap_or(NULL_DISK_KIB) },
        Some(_) => {
            at.bad("backend", "is none of \"physical\", \"overlay\", \"ram\" and \"null\"");
            return None;
        }
        None => {
            at.bad("backend", "is missing");
            return None;
        }
    };
    let slot = if at.flag("removable") { DiskSlot::Drive } else { DiskSlot::Fixed };
    let (queues, capacity) = (at.number("queues"), at.number("capacity"));
    let read_only = at.flag("read-only");
    Some(DeviceKind::Block { source, read_only, queues, capacity, slot })
}

/// A medium of the drive that is, or has its last medium, in `before`.
fn read_medium<'a>(
    at: &mut Reader<'_, '_, 'a>,
    cells: Cells,
    before: Option<&DeviceNode<'a>>,
) -> Option<DeviceKind<'a>> {
    let Some(DeviceKind::Block { read_only, slot: DiskSlot::Drive | DiskSlot::Medium, .. }) =
        before.map(|device| device.kind)
    else {
        at.bad_node("a medium comes after a disk that is removable");
        return None;
    };
    if at.flag("read-only") {
        at.bad("read-only", "is said of the disk, for all its media");
    }
    let DeviceKind::Block { source, .. } = read_disk(at, cells)? else { return None };
    let slot = DiskSlot::Medium;
    Some(DeviceKind::Block { source, read_only, queues: None, capacity: None, slot })
}

fn read_net<'a>(at: &mut Reader<'_, '_, 'a>, cells: Cells) -> Option<DeviceKind<'a>> {
    let Some(loopback) = at.is_second("backend", ["switch", "loopback"]) else {
        at.bad("backend", "is missing");
        return None;
    };
    let mac = at.place.value("mac-address").map(<[u8; 6]>::try_from);
    if let Some(Err(_)) = mac {
        at.bad("mac-address", "has not 6 bytes");
    }
    let metadata = if at.flag("metadata") { Some(at.image(cells)?) } else { None };
    if metadata.is_none() && at.place.value("reg").is_some() {
        at.bad("reg", "means nothing without metadata");
    }
    Some(DeviceKind::Net(NetNode {
        to: if loopback { NetTarget::Loopback } else { NetTarget::Switch },
        mac: mac.and_then(Result::ok),
        mtu: at.number("mtu").unwrap_or(USUAL_MTU),
        vlan: at.number("vlan"),
        isolated: at.flag("isolated"),
        pairs: at.number("queue-pairs").unwrap_or(1),
        metadata,
    }))
}

/// A node whose properties must have their form if they are there. The first mistake is kept, and
/// is looked at when all is read: what was read until then does not matter.
struct Reader<'r, 'p, 'a> {
    place: &'r Place<'p, 'a>,
    node: NodePath<'a>,
    error: Option<BoardError<'a>>,
}

impl<'a> Reader<'_, '_, 'a> {
    #[inline(never)]
    fn refuse(&mut self, error: BoardError<'a>) {
        self.error.get_or_insert(error);
    }

    fn bad_node(&mut self, reason: &'static str) {
        self.refuse(BoardError::BadNode { node: self.node, reason });
    }

    fn bad(&mut self, property: &'a str, problem: &'static str) {
        self.refuse(BoardError::BadProperty { node: self.node, property, problem });
    }

    fn check_names(&mut self, known: &dyn Fn(&str) -> bool) {
        let mut properties = self.place.node.properties();
        if let Some((name, _)) = properties.find(|(name, _)| !known(name)) {
            self.bad(name, "means nothing here");
        }
    }

    /// Those of a device, which `own` adds to what all have.
    fn check_device_names(&mut self, own: &[&[&str]]) {
        self.check_names(&|name| {
            OF_DEVICES.contains(&name) || own.iter().any(|names| names.contains(&name))
        });
    }

    /// One string, with its end and no other zero byte in it.
    #[inline(never)]
    fn text(&mut self, property: &'static str) -> Option<&'a str> {
        let value = self.place.value(property)?;
        let text = value.strip_suffix(&[0]).filter(|text| !text.contains(&0));
        let text = text.and_then(|text| core::str::from_utf8(text).ok());
        if text.is_none() {
            self.bad(property, "is not text");
        }
        text
    }

    /// The strings of a console's `ports`; the terminal alone, if it has none.
    fn ports(&mut self) -> Option<PortList<'a>> {
        let Some(value) = self.place.value("ports") else { return Some(PortList("terminal")) };
        let text = value.strip_suffix(&[0]).and_then(|text| core::str::from_utf8(text).ok());
        if text.is_none() {
            self.bad("ports", "is no list of strings");
        }
        text.map(PortList)
    }

    #[inline(never)]
    fn number(&mut self, property: &'static str) -> Option<u64> {
        let value = self.place.value(property)?;
        match (value.first_chunk(), value.first_chunk()) {
            (Some(cell), _) if value.len() == 4 => Some(u32::from_be_bytes(*cell).into()),
            (_, Some(cells)) if value.len() == 8 => Some(u64::from_be_bytes(*cells)),
            _ => {
                self.bad(property, "is not a number of one or two cells");
                None
            }
        }
    }

    fn required(&mut self, property: &'static str) -> u64 {
        self.number(property).unwrap_or_else(|| {
            // Unless it is there, and bad: that was said first.
            self.bad(property, "is missing");
            0
        })
    }

    fn limits(&mut self) -> [Limits; 2] {
        let [in_bytes, in_requests, out_bytes, out_requests] = LIMITS.map(|name| self.rate(name));
        [
            Limits { bytes: in_bytes, requests: in_requests },
            Limits { bytes: out_bytes, requests: out_requests },
        ]
    }

    #[inline(never)]
    fn rate(&mut self, property: &'static str) -> Option<Rate> {
        let cell = |cell: &[u8; 4]| u32::from_be_bytes(*cell);
        let rate = match self.place.value(property)?.as_chunks() {
            ([rate], []) => Rate::new(cell(rate), None),
            ([rate, burst], []) => Rate::new(cell(rate), Some(cell(burst))),
            _ => None,
        };
        if rate.is_none() {
            self.bad(property, "is not a rate, or a rate and a burst, each more than 0");
        }
        rate
    }

    /// Where a disk image or an archive is.
    fn image(&mut self, cells: Cells) -> Option<PaRange> {
        let image = self.place.reg_in(cells).and_then(|mut reg| reg.next());
        if image.is_none() {
            self.bad_node("reg is not understood");
        }
        image
    }

    fn overlay(&mut self, cells: Cells) -> Option<BlockSource<'a>> {
        let below = match (self.place.value("disk"), self.place.value("reg")) {
            (Some(_), Some(_)) => {
                self.bad_node("an overlay is over a disk or an image, not over both");
                return None;
            }
            (Some(_), None) => {
                Below::Physical { disk: self.required("disk"), part: self.disk_part() }
            }
            (None, _) => Below::Ram { image: self.image(cells)? },
        };
        let memory_kib = self.required("memory");
        let keep = self.is_second("on-reset", ["drop", "keep"]).unwrap_or(true);
        Some(BlockSource::Overlay { below, memory_kib, keep, ram: None })
    }

    fn disk_part(&mut self) -> DiskPart<'a> {
        let range = self.place.value("range");
        let Some(partition) = self.place.value("partition") else {
            return range.map_or(DiskPart::Whole, |range| self.sectors(range));
        };
        if range.is_some() {
            self.bad("range", "is not for a device that has partition");
        }
        // No text begins with a zero byte, and no table has that many partitions that a number did not.
        if let (Some(cell), [0, ..]) = (partition.as_array(), partition) {
            return DiskPart::Number(u32::from_be_bytes(*cell));
        }
        DiskPart::Label(self.text("partition").unwrap_or_default())
    }

    fn sectors(&mut self, range: &[u8]) -> DiskPart<'a> {
        let half = |half: &[u8]| match (half.as_array(), half.as_array()) {
            (Some(cell), _) => Some(u64::from(u32::from_be_bytes(*cell))),
            (_, Some(cells)) => Some(u64::from_be_bytes(*cells)),
            _ => None,
        };
        let halves = range.split_at_checked(range.len() / 2);
        let numbers = halves.and_then(|(first, count)| half(first).zip(half(count)));
        let Some((first, count)) = numbers else {
            self.bad("range", "is not two numbers of one cell or of two");
            return DiskPart::Whole;
        };
        DiskPart::Sectors { first, count }
    }

    fn flag(&mut self, property: &'static str) -> bool {
        let value = self.place.value(property);
        if value.is_some_and(|value| !value.is_empty()) {
            self.bad(property, "takes no value: that it is there is enough");
        }
        value.is_some()
    }

    /// Whether it is the second of two words, not the first.
    fn is_second(&mut self, property: &'static str, [first, second]: [&str; 2]) -> Option<bool> {
        let text = self.text(property)?;
        if text != first && text != second {
            self.bad(property, "is none of the words it can be");
        }
        Some(text == second)
    }

    fn cells(&mut self, property: &'static str) -> Option<CellList<'a>> {
        let (cells, rest) = self.place.value(property)?.as_chunks();
        if cells.is_empty() || !rest.is_empty() {
            self.bad(property, "is not a list of cells");
        }
        Some(CellList(cells))
    }
}

#[cfg(test)]
mod tests;
