//! VMs in a board's device tree.

use sparkler::backend::partition::Sectors;
use sparkler::fdt::{BlockSource, Board, DeviceKind, DiskPart, FdtWriter, WriteError};
use sparkler::memory::{Pa, PaRange};
use sparkler::vm::config::{
    Configuration, CoreSet, DiskUse, Disks, MAX_VCPUS, MAX_VCPUS_PER_CORE, PartError, RAM_BLOCK,
    Refusal, Resources, VmConfig,
};

use crate::input::Input;

const IMAGE: PaRange = PaRange::new(0x4020_0000, 0x8_8000);
const TREE: PaRange = PaRange::new(0x4800_0000, 0x10_0000);
const MEMORY: PaRange = PaRange::new(0x4000_0000, 0x8000_0000);

/// What is written into the VMs' nodes: most of it has a meaning somewhere.
const PROPERTIES: [&str; 24] = [
    "cpus",
    "memory",
    "compatible",
    "vm-name",
    "status",
    "sparkler,cores",
    "sparkler,weight",
    "sparkler,autostart",
    "sparkler,on-crash",
    "sparkler,operator",
    "sparkler,builtin",
    "sparkler,other",
    "bootargs",
    "reg",
    "backend",
    "disk",
    "size",
    "read-only",
    "#address-cells",
    "#size-cells",
    "partition",
    "range",
    "on-reset",
    "sparkler,file",
];
const TEXTS: [&[u8]; 20] = [
    b"sparkler,vm\0",
    b"multiboot,kernel\0multiboot,module\0",
    b"multiboot,ramdisk\0multiboot,module\0",
    b"sparkler,virtio-block\0",
    b"physical\0",
    b"ram\0",
    b"null\0",
    b"yes\0",
    b"no\0",
    b"stop\0",
    b"restart\0",
    b"okay\0",
    b"disabled\0",
    b"alice\0",
    b"bob\0",
    b"no end",
    b"overlay\0",
    b"drop\0",
    b"low\0",
    b"high\0",
];

/// Any nodes in `/chosen`: configured, placed, and judged.
pub fn vms(data: &[u8]) {
    let mut input = Input::new(data);
    let cores = 1 + input.below(9);
    let disks = input.below(4);
    let mut buffer = vec![0; 0x1_0000];
    let Ok(len) = tree(&mut buffer, cores, &mut input) else { return };
    let board = match Board::read(&buffer[..len], Pa::new(0)) {
        Ok(board) => board,
        // A module right in /chosen that is not understood is the board's own matter.
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let mut nodes = 0;
    board.for_each_vm(&mut |_, _| nodes += 1);
    let mut refused = 0;
    let mut refuse = |refusal: Refusal<'_>| {
        assert!(refusal.to_string().starts_with("/chosen"), "{refusal}");
        refused += 1;
    };
    let taken = [("sparkler", IMAGE), ("the device tree", TREE)];
    let cores = CoreSet::first(cores);
    let mut config = Configuration::new();
    config.read(&board, &Resources { cores, taken: &taken }, &mut refuse);
    config.check_disks(&mut Thousands(disks), &mut refuse);
    let Ok(mut free) = board.free_ram(&[IMAGE, TREE]) else { return };
    if config.reserve_modules(&mut free).is_err() {
        return;
    }
    config.place(&mut free, &mut refuse);
    assert_eq!(config.vms().len() + refused, nodes.max(1));

    check_sectors(config.vms());
    let mut used = vec![IMAGE, TREE];
    for vm in config.vms() {
        used.extend([&vm.kernel].into_iter().chain(&vm.ramdisk).map(|module| module.range));
    }
    for (index, vm) in config.vms().iter().enumerate() {
        let ram = vm.ram.expect("those without are refused");
        assert!(ram.len > 0 && ram.len % RAM_BLOCK == 0 && ram.base.is_aligned(RAM_BLOCK));
        assert!(MEMORY.contains(ram));
        assert!(!used.iter().any(|used| used.overlaps(ram)), "{ram}");
        used.push(ram);
        assert!(!config.vms()[..index].iter().any(|other| other.name == vm.name));
        for device in &vm.devices {
            let DeviceKind::Block { source, .. } = device.kind else { continue };
            if let BlockSource::Overlay { ram, .. } = source {
                let ram = ram.expect("those without are refused");
                assert!(MEMORY.contains(ram) && !used.iter().any(|used| used.overlaps(ram)));
                used.push(ram);
            }
        }
        assert!((1..=MAX_VCPUS).contains(&vm.cores.len()));
        assert!(vm.cores.iter().all(|core| cores.contains(*core)));
    }
    assert!(cores.iter().all(|core| config.vcpus_on(core) <= MAX_VCPUS_PER_CORE));
}

/// No sector that somebody writes is another's.
fn check_sectors(vms: &[VmConfig<'_>]) {
    let all: Vec<_> = vms.iter().flat_map(|vm| &vm.devices).filter_map(DiskUse::of).collect();
    for (index, own) in all.iter().enumerate() {
        let sectors = own.sectors().expect("known since the disks were checked");
        assert!(sectors.end() <= 1000);
        for other in all[..index].iter().filter(|other| other.disk == own.disk) {
            let apart = !other.sectors().is_some_and(|other| other.overlaps(sectors));
            assert!(apart || own.read_only && other.read_only);
        }
    }
}

/// Disks of 1000 sectors, each with two partitions.
struct Thousands(usize);

impl Disks for Thousands {
    fn count(&self) -> usize {
        self.0
    }

    fn find(&mut self, disk: usize, part: DiskPart<'_>) -> Result<Sectors, PartError> {
        assert!(disk < self.0);
        let (first, count) = match part {
            DiskPart::Whole => (0, 1000),
            DiskPart::Label("low") | DiskPart::Number(1) => (100, 400),
            DiskPart::Label("high") | DiskPart::Number(2) => (500, 500),
            DiskPart::Label(_) | DiskPart::Number(_) => return Err(PartError::Unusable),
            DiskPart::Sectors { first, count } => (first, count),
        };
        let sectors = Sectors::new(first, count).ok_or(PartError::Empty)?;
        if sectors.end() > 1000 { Err(PartError::Empty) } else { Ok(sectors) }
    }
}

/// A board whose `/chosen` has what the input says.
fn tree(buffer: &mut [u8], cores: usize, input: &mut Input<'_>) -> Result<usize, WriteError> {
    let mut fdt = FdtWriter::new(buffer, &[])?;
    fdt.begin_node("")?;
    fdt.u32("#address-cells", 2)?;
    fdt.u32("#size-cells", 2)?;
    fdt.begin_node("memory@40000000")?;
    fdt.str("device_type", "memory")?;
    fdt.u64s("reg", &[MEMORY.base.raw(), MEMORY.len])?;
    fdt.end_node()?;
    fdt.begin_node("cpus")?;
    fdt.u32("#address-cells", 1)?;
    fdt.u32("#size-cells", 0)?;
    for core in 0..cores {
        fdt.begin_node(format_args!("cpu@{core}"))?;
        fdt.str("device_type", "cpu")?;
        fdt.u32("reg", core as u32)?;
        fdt.end_node()?;
    }
    fdt.end_node()?;
    fdt.begin_node("chosen")?;
    while input.more() {
        // A node that is nearly right, of which the input changes what it likes.
        let number = input.u8();
        fdt.begin_node(format_args!("vm{}", number % 16))?;
        if number & 0x10 == 0 {
            fdt.bytes("compatible", TEXTS[0])?;
            fdt.u32("cpus", u32::from(1 + input.u8() % 9))?;
            fdt.u32("memory", (1 + u32::from(input.u8())) * 2048)?;
        }
        properties(&mut fdt, input)?;
        for child in 0..input.below(5) {
            fdt.begin_node(format_args!("child{child}"))?;
            let kind = input.below(5);
            if kind < 3 {
                fdt.bytes("compatible", TEXTS[1 + kind])?;
            }
            if kind < 4 {
                let at = 0x4000_0000 + u64::from(input.u16()) * 0x8000;
                fdt.u64s("reg", &[at, u64::from(input.u8()) * 0x8000])?;
            }
            properties(&mut fdt, input)?;
            fdt.end_node()?;
        }
        fdt.end_node()?;
    }
    fdt.end_node()?;
    fdt.end_node()?;
    fdt.finish()
}

fn properties(fdt: &mut FdtWriter<'_>, input: &mut Input<'_>) -> Result<(), WriteError> {
    for _ in 0..input.below(8) {
        let name = PROPERTIES[input.below(PROPERTIES.len())];
        match input.below(5) {
            0 => fdt.empty(name)?,
            1 => fdt.bytes(name, TEXTS[input.below(TEXTS.len())])?,
            2 => fdt.u32(name, u32::from(input.u8()))?,
            3 => fdt.u64(name, input.u64())?,
            _ => {
                let len = input.below(16);
                fdt.bytes(name, input.bytes(len))?;
            }
        }
    }
    Ok(())
}
