use proptest::prelude::*;

use super::*;
use crate::backend::block::BlockInfo;
use crate::backend::partition::gpt::GptError;
use crate::backend::partition::{self, Sectors};
use crate::fdt::testing::{TestNode, block, board, module, vm};
use crate::memory::Pa;

const IMAGE: PaRange = PaRange::new(0x4020_0000, 0x8_8000);
const TREE: PaRange = PaRange::new(0x4800_0000, 0x10_0000);
const TAKEN: [(&str, PaRange); 2] = [("sparkler", IMAGE), ("the device tree", TREE)];
/// Where the tests' modules are; each has 1 MiB.
const MODULES: u64 = 0xb000_0000;
const MIB: u64 = 0x10_0000;

/// What became of a board's VMs: name, cores, RAM. With it, why the others were refused.
type Outcome = (Vec<(String, Vec<usize>, Option<PaRange>)>, Vec<String>);

fn configure(cores: u32, chosen: &[TestNode], disks: usize) -> Outcome {
    let blob = board(cores, chosen).blob();
    let board = Board::read(&blob, Pa::new(0)).unwrap();
    let mut refused = Vec::new();
    let mut refuse = |refusal: Refusal<'_>| refused.push(refusal.to_string());
    let mut config = Configuration::new();
    let resources = Resources { cores: CoreSet::first(cores as usize), taken: &TAKEN };
    config.read(&board, &resources, &mut refuse);
    config.check_disks(&mut Board1000(disks), &mut refuse);
    let mut free = board.free_ram(&[IMAGE, TREE]).unwrap();
    config.reserve_modules(&mut free).unwrap();
    config.place(&mut free, &mut refuse);
    let vms = config.vms().iter().map(|vm| {
        let cores = vm.cores.iter().map(|core| core.get()).collect();
        (vm.name.to_owned(), cores, vm.ram)
    });
    (vms.collect(), refused)
}

fn modules(vm: &VmConfig<'_>) -> Vec<PaRange> {
    let mut modules = Vec::new();
    vm.for_each_module(&mut |module| modules.push(module.range));
    modules
}

fn disks(vm: &VmConfig<'_>) -> Vec<u64> {
    vm.devices.iter().filter_map(DiskUse::of).map(|it| it.disk).collect()
}

/// Disks of 1000 sectors, the first two of which have two partitions, each with two names.
struct Board1000(usize);

impl Disks for Board1000 {
    fn count(&self) -> usize {
        self.0
    }

    fn find(&mut self, disk: usize, part: DiskPart<'_>) -> Result<Sectors, PartError> {
        assert!(disk < self.0);
        let (first, count) = match part {
            DiskPart::Whole => (0, 1000),
            DiskPart::Label("low" | "alice") | DiskPart::Number(1) if disk < 2 => (100, 400),
            DiskPart::Label("high" | "bob") | DiskPart::Number(2) if disk < 2 => (500, 500),
            DiskPart::Label(_) | DiskPart::Number(_) => {
                return Err(PartError::Gpt(GptError::NotFound));
            }
            DiskPart::Sectors { first, count } => (first, count),
        };
        let sectors = Sectors::new(first, count).ok_or(PartError::Empty)?;
        let disk = BlockInfo::new(1000);
        partition::check(&disk, sectors).map_err(PartError::Range).map(|()| sectors)
    }
}

fn names(outcome: &Outcome) -> Vec<&str> {
    outcome.0.iter().map(|(name, ..)| name.as_str()).collect()
}

/// `vm`, between two others that are right, is the only one refused, for this reason.
#[track_caller]
fn alone_is_refused(vm: TestNode, reason: &str) {
    let (before, after) = (good("before", 0), good("after", 1));
    let outcome = configure(2, &[before, vm, after], 2);
    assert_eq!(names(&outcome), ["before", "after"]);
    assert_eq!(outcome.1, [reason]);
}

fn good(name: &str, n: u64) -> TestNode {
    vm(name, MODULES + n * MIB)
}

fn bad() -> TestNode {
    good("bad", 2)
}

#[test]
fn a_vm_gets_what_it_asks_for() {
    let alice = good("alice", 0).cells("cpus", &[3]).cells("sparkler,cores", &[1, 0]);
    let outcome = configure(2, &[alice], 0);
    let ram = PaRange::new(0x4040_0000, 64 * MIB);
    assert_eq!(outcome.0, [("alice".to_owned(), vec![1, 0, 1], Some(ram))]);
    assert_eq!(outcome.1, Vec::<String>::new());
}

#[test]
fn without_a_vm_node_there_is_one_vm_with_everything() {
    let kernel = module("kernel", MODULES, MIB).text("bootargs", "quiet");
    let blob = board(3, &[kernel, module("ramdisk", MODULES + MIB, MIB)]).blob();
    let board = Board::read(&blob, Pa::new(0)).unwrap();
    let mut refuse = |refusal: Refusal<'_>| panic!("{refusal}");
    let resources = Resources { cores: CoreSet::first(3), taken: &TAKEN };
    let mut config = Configuration::new();
    config.read(&board, &resources, &mut refuse);
    let vm = &config.vms()[0];
    assert_eq!((vm.name, vm.bootargs, vm.memory), ("vm0", "quiet", Memory::Rest));
    assert_eq!(vm.kernel, board.first_guest().unwrap().kernel);
    assert_eq!(vm.ramdisk, board.first_guest().unwrap().ramdisk);
    assert_eq!(vm.cores.iter().map(|core| core.get()).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(vm.devices.len(), 3);
    assert!(vm.autostart && !vm.operator);
    let mut free = board.free_ram(&[IMAGE, TREE]).unwrap();
    let largest = free.largest(RAM_BLOCK);
    config.place(&mut free, &mut refuse);
    assert_eq!(config.vms()[0].ram, largest);
    // It does without a network card, without a source of entropy, and without a disk.
    config.check_disks(&mut Board1000(1), &mut refuse);
    config.check_board(true, true);
    assert_eq!(config.vms()[0].devices.len(), 3);
    config.check_board(false, false);
    assert_eq!(config.vms()[0].devices.len(), 1);
    config.check_disks(&mut Board1000(0), &mut refuse);
    assert!(config.vms()[0].devices.is_empty());
}

#[test]
fn the_only_vm_has_no_more_vcpus_than_there_can_be() {
    let outcome = configure(12, &[module("kernel", MODULES, MIB)], 0);
    assert_eq!(outcome.0[0].1.len(), MAX_VCPUS);
}

#[test]
fn without_a_module_and_a_vm_there_is_no_guest_and_it_says_how_to_give_one() {
    for chosen in [&[][..], &[module("ramdisk", MODULES, MIB)]] {
        let outcome = configure(1, chosen, 1);
        assert!(outcome.0.is_empty());
        let [reason] = &outcome.1[..] else { panic!("{outcome:?}") };
        assert!(reason.starts_with("/chosen: there is no guest: "), "{reason}");
        assert!(reason.contains("multiboot,kernel") && reason.contains("sparkler,vm"), "{reason}");
    }
}

#[test]
fn if_every_vm_is_refused_there_is_none() {
    let outcome = configure(1, &[bad().cells("cpus", &[0])], 0);
    assert!(outcome.0.is_empty());
    assert_eq!(outcome.1, ["/chosen/bad: cpus is 0: 1 to 8 are possible"]);
}

#[test]
fn numbers_out_of_range_are_refused() {
    alone_is_refused(bad().cells("cpus", &[0]), "/chosen/bad: cpus is 0: 1 to 8 are possible");
    alone_is_refused(bad().cells("cpus", &[9]), "/chosen/bad: cpus is 9: 1 to 8 are possible");
    let expected = "/chosen/bad: cpus is 4294967297: 1 to 8 are possible";
    alone_is_refused(bad().cells("cpus", &[1, 1]), expected);
    for weight in [0, 1001] {
        let expected = format!("/chosen/bad: sparkler,weight is {weight}: 1 to 1000 are possible");
        alone_is_refused(bad().cells("sparkler,weight", &[weight]), &expected);
    }
    let disk = block("disk", "null").cells("size", &[0]);
    let expected = "/chosen/bad: size is 0: 1 to 8796093022208 are possible";
    alone_is_refused(bad().child(disk), expected);
    for queues in [0, 9] {
        let disk = block("disk", "null").cells("queues", &[queues]);
        let expected = format!("/chosen/bad: queues is {queues}: 1 to 8 are possible");
        alone_is_refused(bad().child(disk), &expected);
    }
}

#[test]
fn memory_is_a_multiple_of_2_mib_that_exists_in_one_piece() {
    let memory = |cells: &[u32]| bad().cells("memory", cells);
    let most = (1_u64 << 30) - (1 << 20);
    for (cells, kib) in [(&[0_u32][..], 0), (&[u32::MAX, u32::MAX], u64::MAX)] {
        let expected = format!("/chosen/bad: memory is {kib}: 2048 to {most} are possible");
        alone_is_refused(memory(cells), &expected);
    }
    let expected = "/chosen/bad: memory is 2049 KiB: it must be a multiple of 2048";
    alone_is_refused(memory(&[2049]), expected);
    // Of the board's 2 GiB, the piece between the tree and the modules; what is before the tree is
    // given to the one before.
    let largest = (MODULES - 0x4820_0000) / 1024;
    let expected = format!(
        "/chosen/bad: memory is {} KiB: the largest free piece of the board's has {largest}",
        largest + 2048
    );
    alone_is_refused(memory(&[largest as u32 + 2048]), &expected);
    let outcome = configure(1, &[memory(&[largest as u32])], 0);
    let ram = PaRange::new(0x4820_0000, largest * 1024);
    assert_eq!(outcome.0[0].2, Some(ram));
}

#[test]
fn a_vm_of_1_gib_is_where_stage_2_can_map_it_whole() {
    let large = good("large", 0).cells("memory", &[1 << 20]);
    // At a multiple of 1 GiB the modules are in its way.
    let outcome = configure(1, std::slice::from_ref(&large), 0);
    assert_eq!(outcome.0[0].2, Some(PaRange::new(0x4820_0000, 1 << 30)));
    let low = large.without_children().child(module("kernel", 0x4040_0000, MIB));
    let outcome = configure(1, &[low], 0);
    assert_eq!(outcome.0[0].2, Some(PaRange::new(0x8000_0000, 1 << 30)));
}

#[test]
fn names_are_short_plain_and_unique() {
    let taken = "/chosen/bad: another VM has this name";
    alone_is_refused(bad().text("vm-name", "before"), taken);
    let long = "x".repeat(16);
    for name in ["", "a b", "a|b", "\u{1b}[2J", "\u{e4}", &long] {
        let expected =
            "/chosen/bad: its name must be 1 to 15 of A-Z, a-z, 0-9, \".\", \"_\", \"-\"";
        alone_is_refused(bad().text("vm-name", name), expected);
    }
    let longest = "x".repeat(15);
    let outcome = configure(1, &[bad().text("vm-name", &longest)], 0);
    assert_eq!(names(&outcome), [longest]);
}

#[test]
fn a_name_is_free_again_if_who_had_it_is_refused() {
    let first = bad().cells("cpus", &[0]).text("vm-name", "alice");
    let outcome = configure(1, &[first, good("alice", 0)], 0);
    assert_eq!(names(&outcome), ["alice"]);
    assert_eq!(outcome.1.len(), 1);
}

#[test]
fn a_vm_boots_a_kernel_module_with_a_command_line_that_fits() {
    let none = bad().without_children();
    let expected = "/chosen/bad: it has no kernel module";
    alone_is_refused(none.clone(), expected);
    let ramdisk = none.clone().child(module("ramdisk", MODULES + 2 * MIB, MIB));
    alone_is_refused(ramdisk, expected);
    let kernel = |len| module("kernel", MODULES + 2 * MIB, MIB).text("bootargs", &"x".repeat(len));
    let longest = none.clone().child(kernel(2048));
    assert_eq!(names(&configure(1, &[longest], 0)), ["bad"]);
    let long = none.child(kernel(2049));
    alone_is_refused(long, "/chosen/bad: bootargs are longer than 2048 bytes");
}

#[test]
fn modules_are_in_ram_and_over_nothing_else() {
    let with = |base, len| bad().without_children().child(module("kernel", base, len));
    let refused = |base: u64, len, expected: &str| {
        let path = format!("/chosen/bad/kernel@{base:x}: module");
        alone_is_refused(with(base, len), &format!("{path} {expected}"));
    };
    refused(MODULES + 2 * MIB, 0, "has no bytes");
    let beyond = "at 0xbffff000..0xc0001000 is not in the board's memory";
    refused(0xbfff_f000, 0x2000, beyond);
    refused(0x900_0000, 4, "at 0x9000000..0x9000004 is not in the board's memory");
    refused(u64::MAX, 4, "at 0xffffffffffffffff..0xffffffffffffffff is not in the board's memory");
    refused(0x4020_0000, 4, "at 0x40200000..0x40200004 overlaps sparkler");
    refused(TREE.end() - 1, 4, "at 0x480fffff..0x48100003 overlaps the device tree");
    refused(MODULES + 1, 4, "overlaps /chosen/before/kernel@b0000000");
    let twice = bad().child(module("ramdisk", MODULES + 3 * MIB - 4, 8));
    let path = "/chosen/bad/ramdisk@b02ffffc";
    let other = "/chosen/bad/kernel@b0200000";
    alone_is_refused(twice, &format!("{path}: module overlaps {other}"));
    // A module right below /chosen is nobody's, but it is there.
    let plain = module("ramdisk", MODULES + 2 * MIB, 8);
    let outcome = configure(1, &[plain, bad()], 0);
    let other = "/chosen/ramdisk@b0200000";
    assert_eq!(outcome.1, [format!("/chosen/bad/kernel@b0200000: module overlaps {other}")]);
}

#[test]
fn several_vms_may_boot_from_the_same_modules() {
    let ramdisk = module("ramdisk", MODULES + MIB, MIB);
    let vm = |name| good(name, 0).child(ramdisk.clone());
    let outcome = configure(1, &[vm("one"), vm("two"), vm("three")], 0);
    assert_eq!(names(&outcome), ["one", "two", "three"]);
    assert_eq!(outcome.1, Vec::<String>::new());
}

#[test]
fn a_ram_disk_that_is_written_is_one_vm_s_alone() {
    let disk = |len| block("disk", "ram").cells("reg", &[0, (MODULES + 4 * MIB) as u32, 0, len]);
    let vm = |name, n, disk: &TestNode| good(name, n).child(disk.clone());
    let writable = disk(0x4000);
    let outcome = configure(1, &[vm("one", 0, &writable), vm("two", 1, &writable)], 0);
    assert_eq!(names(&outcome), ["one"]);
    assert_eq!(outcome.1, ["/chosen/two/disk: module overlaps /chosen/one/disk"]);
    let read_only = writable.clone().flag("read-only");
    let outcome = configure(1, &[vm("one", 0, &read_only), vm("two", 1, &read_only)], 0);
    assert_eq!(names(&outcome), ["one", "two"]);
    let outcome = configure(1, &[vm("one", 0, &read_only), vm("two", 1, &writable)], 0);
    assert_eq!(names(&outcome), ["one"]);
    let odd = "/chosen/bad: the RAM disk at 0xb0400000..0xb04001ff is not a multiple of 512 bytes";
    alone_is_refused(vm("bad", 2, &disk(0x1ff)), odd);
    let empty = "/chosen/bad/disk: module has no bytes";
    alone_is_refused(vm("bad", 2, &disk(0)), empty);
}

#[test]
fn a_console_s_ports_lead_somewhere_and_a_pipe_has_two_ends() {
    let console = |ports: &str| {
        let node = TestNode::new("console").text("compatible", "sparkler,virtio-console");
        node.text("ports", ports)
    };
    let pipe = || console("terminal\0pipe:a\0log\0pipe:b");
    let plain = TestNode::new("tty").text("compatible", "sparkler,virtio-console");
    let rng = TestNode::new("rng").text("compatible", "sparkler,virtio-rng");
    let both = [good("one", 0).child(pipe()).child(rng), good("two", 1).child(pipe())];
    let outcome = configure(3, &[&both[..], &[good("three", 2).child(plain.clone())]].concat(), 0);
    assert_eq!(names(&outcome), ["one", "two", "three"]);
    let why = "ports of /chosen/bad/console are not 1 to 4 of \"terminal\", \"log\" and \
               \"pipe:NAME\", or one too many has that";
    for ports in ["", "tty", "pipe:", "pipe:a b", "log\0", "log\0log\0log\0log\0log"] {
        alone_is_refused(bad().child(console(ports)), &format!("/chosen/bad: {why}"));
    }
    let second = bad().child(plain).child(console("terminal"));
    alone_is_refused(second, &format!("/chosen/bad: {why}"));
    let outcome = configure(2, &[&both[..], &[bad().child(console("pipe:b"))]].concat(), 0);
    assert_eq!((names(&outcome), outcome.1.len()), (vec!["one", "two"], 1));
    let flag = bad().child(console("log").flag("read-only"));
    alone_is_refused(flag, "/chosen/bad/console: read-only means nothing here");
}

#[test]
fn a_network_device_s_numbers_and_address_are_possible() {
    let net =
        || TestNode::new("net").text("compatible", "sparkler,virtio-net").text("backend", "switch");
    let mac = |last: u8| net().bytes("mac-address", &[2, 0, 0, 0, 0, last]);
    let whole = mac(1).cells("mtu", &[65_535]).cells("vlan", &[4094]).cells("queue-pairs", &[4]);
    let outcome = configure(2, &[good("one", 0).child(whole), good("two", 1).child(net())], 0);
    assert_eq!(names(&outcome), ["one", "two"]);

    let refused = |net: TestNode, why: &str| {
        alone_is_refused(bad().child(net), &format!("/chosen/bad: {why}"));
    };
    refused(net().cells("mtu", &[67]), "mtu is 67: 68 to 65535 are possible");
    refused(net().cells("mtu", &[65_536]), "mtu is 65536: 68 to 65535 are possible");
    refused(net().cells("vlan", &[0]), "vlan is 0: 1 to 4094 are possible");
    refused(net().cells("vlan", &[4095]), "vlan is 4095: 1 to 4094 are possible");
    refused(net().cells("queue-pairs", &[0]), "queue-pairs is 0: 1 to 4 are possible");
    refused(net().cells("queue-pairs", &[5]), "queue-pairs is 5: 1 to 4 are possible");
    let nobody = "mac-address of /chosen/bad/net is not that of a single station";
    refused(net().bytes("mac-address", &[0; 6]), nobody);
    refused(net().bytes("mac-address", &[1, 0, 0, 0, 0, 1]), nobody);

    let outcome = configure(2, &[good("one", 0).child(mac(7)), good("two", 1).child(mac(7))], 0);
    let taken = "/chosen/two: mac-address of /chosen/two/net is that of /chosen/one/net";
    assert_eq!((names(&outcome), outcome.1.as_slice()), (vec!["one"], &[taken.to_owned()][..]));
}

#[test]
fn a_metadata_archive_may_be_several_vms_and_nothing_else_is_there() {
    let net = |to, at| {
        let net = TestNode::new("net").text("compatible", "sparkler,virtio-net");
        net.text("backend", to).flag("metadata").cells("reg", &[0, at as u32, 0, 0x2800])
    };
    let at = MODULES + 8 * MIB;
    let vms = [good("one", 0).child(net("switch", at)), good("two", 1).child(net("switch", at))];
    assert_eq!(names(&configure(2, &vms, 0)), ["one", "two"]);
    // Nobody gets it as RAM.
    let blob = board(2, &vms).blob();
    let board = Board::read(&blob, Pa::new(0)).unwrap();
    let mut config = Configuration::new();
    let mut refused = Vec::new();
    let mut refuse = |refusal: Refusal<'_>| refused.push(refusal.to_string());
    let resources = Resources { cores: CoreSet::first(2), taken: &TAKEN };
    config.read(&board, &resources, &mut refuse);
    let mut free = board.free_ram(&[IMAGE, TREE]).unwrap();
    config.reserve_modules(&mut free).unwrap();
    assert!(free.free().iter().all(|free| !free.overlaps(PaRange::new(at, 0x2800))));
    // An image without the service refuses who wants it.
    config.refuse_metadata(&mut refuse);
    let reason = "metadata: this image was built without it (cargo's feature \"metadata\")";
    let expected = ["one", "two"].map(|name| format!("/chosen/{name}/net: {reason}"));
    assert_eq!((refused, config.vms().len()), (expected.to_vec(), 0));

    let reason = "/chosen/bad/net: metadata: its backend is not \"switch\"";
    alone_is_refused(bad().child(net("loopback", at)), reason);
    let outcome = configure(2, &[good("one", 0), good("two", 1).child(net("switch", MODULES))], 0);
    assert_eq!(names(&outcome), ["one"]);
}

#[test]
fn a_context_id_is_possible_and_one_device_s_alone() {
    let sockets = |cid: u32| {
        TestNode::new("sockets")
            .text("compatible", "sparkler,virtio-vsock")
            .cells("guest-cid", &[cid])
    };
    let last = sockets(0xFFFF_FFFE).cells("peers", &[1, 2, 3, 4, 5, 6, 7, 8]);
    let outcome = configure(2, &[good("one", 0).child(last), good("two", 1).child(sockets(3))], 0);
    assert_eq!(names(&outcome), ["one", "two"]);
    for cid in [0, 1, 2, u32::MAX] {
        let why = format!("/chosen/bad: guest-cid is {cid}: 3 to 4294967294 are possible");
        alone_is_refused(bad().child(sockets(cid)), &why);
    }
    let many = sockets(3).cells("peers", &[4; 9]);
    let why = "/chosen/bad: number of peers is 9: 0 to 8 are possible";
    alone_is_refused(bad().child(many), why);

    let outcome =
        configure(2, &[good("one", 0).child(sockets(7)), good("two", 1).child(sockets(7))], 0);
    let taken = "/chosen/two: guest-cid of /chosen/two/sockets is that of /chosen/one/sockets";
    assert_eq!((names(&outcome), outcome.1.as_slice()), (vec!["one"], &[taken.to_owned()][..]));
}

#[test]
fn a_physical_disk_exists_and_is_one_vm_s_alone() {
    let disk = |name: &str, n: u32| block(name, "physical").cells("disk", &[n]);
    let alice = good("alice", 0).child(disk("d0", 1)).child(disk("d1", 0));
    let bob = good("bob", 1).child(disk("d", 1).flag("read-only"));
    let outcome = configure(1, &[alice, bob], 2);
    assert_eq!(names(&outcome), ["alice"]);
    assert_eq!(outcome.1, ["/chosen/bob: disk 1 is that of /chosen/alice/d0"]);
    let twice = bad().child(disk("d0", 1)).child(disk("d1", 1));
    alone_is_refused(twice, "/chosen/bad: disk 1 is that of /chosen/bad/d0");
    alone_is_refused(bad().child(disk("d", 2)), "/chosen/bad: the board has no disk 2");
    let far = disk("d", 0).cells("disk", &[1, 0]);
    alone_is_refused(bad().child(far), "/chosen/bad: the board has no disk 4294967296");
}

#[test]
fn sectors_have_one_writer_or_many_readers() {
    let part = |name: &str, label: &str| {
        block(name, "physical").cells("disk", &[0]).text("partition", label)
    };
    let range = |name: &str, first, count| {
        block(name, "physical").cells("disk", &[0]).cells("range", &[first, count])
    };
    let taken = |device: TestNode| {
        let mut vms = vec![good("low", 0).child(part("disk", "low"))];
        vms.push(good("reader", 0).child(range("disk", 510, 10).flag("read-only")));
        vms.push(good("late", 0).child(device));
        let outcome = configure(4, &vms, 2);
        assert_eq!(names(&outcome)[..2], ["low", "reader"]);
        outcome.1.first().cloned()
    };
    let refusal = |by: &str| {
        let path = "/chosen/late/d: sectors of disk 0 that it wants are those of";
        Some(format!("{path} /chosen/{by}/disk"))
    };
    assert_eq!(taken(range("d", 0, 100)), None);
    assert_eq!(taken(range("d", 0, 101)), refusal("low"));
    assert_eq!(taken(range("d", 0, 101).flag("read-only")), refusal("low"));
    assert_eq!(taken(range("d", 499, 1)), refusal("low"));
    assert_eq!(taken(range("d", 500, 10)), None);
    assert_eq!(taken(part("d", "high")), refusal("reader"));
    assert_eq!(taken(part("d", "high").flag("read-only")), None);
    assert_eq!(taken(part("d", "high").cells("partition", &[2]).flag("read-only")), None);
    // An overlay only reads.
    let overlay = |label: &str| {
        let device = block("d", "overlay").cells("disk", &[0]).text("partition", label);
        device.cells("memory", &[4096])
    };
    assert_eq!(taken(overlay("high")), None);
    assert_eq!(taken(overlay("low")), refusal("low"));
    let whole = Some("/chosen/late: disk 0 is that of /chosen/low/disk".to_owned());
    assert_eq!(taken(block("d", "physical").cells("disk", &[0])), whole);
    // So do the media of a drive, each with its sectors.
    let medium = |name| range(name, 499, 2).text("compatible", "sparkler,medium");
    let drive = |name| block(name, "null").flag("removable");
    let thief = bad().child(part("d0", "low")).child(drive("d1")).child(medium("m"));
    let reason = "/chosen/bad/m: sectors of disk 0 that it wants are those of /chosen/bad/d0";
    alone_is_refused(thief, reason);
    let reader = good("reader", 0).child(drive("a").flag("read-only")).child(medium("m"));
    let other = good("other", 0).child(drive("b").flag("read-only")).child(medium("m"));
    let writer = bad().child(drive("c")).child(medium("m"));
    let outcome = configure(4, &[reader, other, writer], 1);
    assert_eq!(names(&outcome), ["reader", "other"]);
    // Of one VM's own devices as well.
    let twice = bad().child(part("d0", "low")).child(range("d1", 499, 2));
    let reason = "/chosen/bad/d1: sectors of disk 0 that it wants are those of /chosen/bad/d0";
    alone_is_refused(twice, reason);
    // The same sectors of another disk are others.
    assert_eq!(taken(part("d", "low").cells("disk", &[1])), None);
}

#[test]
fn a_part_that_is_not_there_is_refused_by_its_node() {
    let disk = |disk: u32| block("d", "physical").cells("disk", &[disk]);
    let refused = |device: TestNode, reason: &str| {
        alone_is_refused(bad().child(device), &format!("/chosen/bad/d: {reason}"));
    };
    let missing = "disk 0: there is no such partition";
    refused(disk(0).text("partition", "middle"), missing);
    refused(disk(0).cells("partition", &[3]), missing);
    let empty = "disk 1: the range has no sectors, or more than can be numbered";
    refused(disk(1).cells("range", &[5, 0]), empty);
    refused(disk(1).cells("range", &[0, 5, !0, !0]), empty);
    let beyond = "disk 0: the range ends behind the disk's end: it has 1000 sectors";
    refused(disk(0).cells("range", &[999, 2]), beyond);
    refused(disk(0).cells("range", &[0, 0, 0x1000, 0]), beyond);
}

#[test]
fn an_overlay_has_ram_of_its_own() {
    let overlay = |kib: u32| {
        let device = block("d", "overlay").cells("disk", &[0]).text("partition", "high");
        device.cells("memory", &[kib])
    };
    let blob = board(2, &[good("a", 0).child(overlay(2048)), good("b", 0).child(overlay(4096))]);
    let blob = blob.blob();
    let board = Board::read(&blob, Pa::new(0)).unwrap();
    let mut refuse = |refusal: Refusal<'_>| panic!("{refusal}");
    let mut config = Configuration::new();
    config.read(&board, &Resources { cores: CoreSet::first(2), taken: &TAKEN }, &mut refuse);
    config.check_disks(&mut Board1000(1), &mut refuse);
    let mut free = board.free_ram(&[IMAGE, TREE]).unwrap();
    config.reserve_modules(&mut free).unwrap();
    config.place(&mut free, &mut refuse);
    let mut taken = vec![IMAGE, TREE];
    for (vm, len) in config.vms().iter().zip([2 * MIB, 4 * MIB]) {
        let DeviceKind::Block { source: BlockSource::Overlay { ram, below, .. }, .. } =
            vm.devices[0].kind
        else {
            panic!()
        };
        let part = DiskPart::Sectors { first: 500, count: 500 };
        assert_eq!((below, ram.unwrap().len), (Below::Physical { disk: 0, part }, len));
        for range in [ram.unwrap(), vm.ram.unwrap()] {
            assert!(!taken.iter().any(|other| other.overlaps(range)));
            taken.push(range);
        }
    }
    let memory = "/chosen/bad: memory is 2049 KiB: it must be a multiple of 2048";
    alone_is_refused(bad().child(overlay(2049)), memory);
    // Over a larger disk the table of the overlay alone needs more.
    let image = |len: u64| {
        let reg = [0, (MODULES + 4 * MIB) as u32, 0, len as u32];
        block("d", "overlay").cells("reg", &reg).cells("memory", &[2048])
    };
    let vms = [good("a", 0).child(image(MIB)), good("b", 0).child(image(MIB))];
    assert_eq!(names(&configure(2, &vms, 0)), ["a", "b"]);
    let written = block("d", "ram").cells("reg", &[0, (MODULES + 4 * MIB) as u32, 0, MIB as u32]);
    let outcome = configure(2, &[good("a", 0).child(image(MIB)), good("b", 0).child(written)], 0);
    assert_eq!(outcome.1, ["/chosen/b/d: module overlaps /chosen/a/d"]);
    alone_is_refused(
        bad().child(image(513)),
        "/chosen/bad: the RAM disk at 0xb0400000..0xb0400201 is not a multiple of 512 bytes",
    );
}

#[test]
fn what_a_refused_vm_would_have_had_is_free_for_the_next() {
    let overlay = block("d", "overlay").cells("disk", &[0]).cells("memory", &[0x10_0000]);
    let large = vm("large", MODULES).cells("memory", &[0x10_0000]).child(overlay);
    let other = good("other", 1).cells("memory", &[0x10_0000]);
    let outcome = configure(2, &[large, other], 1);
    assert_eq!(names(&outcome), ["other"]);
}

#[test]
fn only_cores_that_run_are_assigned() {
    for (cores, missing) in [(&[2_u32][..], 2), (&[0, 7], 7), (&[0, u32::MAX], u32::MAX)] {
        let expected =
            format!("/chosen/bad: sparkler,cores has {missing}: the board has no such core");
        alone_is_refused(bad().cells("sparkler,cores", cores), &expected);
    }
    let mut resources = Resources { cores: CoreSet::new(), taken: &TAKEN };
    for n in [1, 3] {
        resources.cores.insert(CoreIndex::new(n).unwrap());
    }
    let blob = board(4, &[good("alice", 0).cells("cpus", &[3])]).blob();
    let board = Board::read(&blob, Pa::new(0)).unwrap();
    let mut config = Configuration::new();
    config.read(&board, &resources, &mut |refusal| panic!("{refusal}"));
    let cores: Vec<_> = config.vms()[0].cores.iter().map(|core| core.get()).collect();
    assert_eq!(cores, [1, 3, 1]);
}

#[test]
fn vcpus_are_spread_over_what_the_others_leave() {
    let pinned = good("pinned", 0).cells("cpus", &[2]).cells("sparkler,cores", &[2, 0]);
    let vms = [good("one", 1), pinned, good("two", 2), good("four", 3).cells("cpus", &[4])];
    let outcome = configure(4, &vms, 0);
    let cores: Vec<_> = outcome.0.iter().map(|(_, cores, _)| cores.as_slice()).collect();
    assert_eq!(cores, [&[1][..], &[2, 0], &[3], &[0, 1, 2, 3]]);
}

#[test]
fn a_core_has_at_most_8_vcpus() {
    let eight = good("eight", 0).cells("cpus", &[8]).cells("sparkler,cores", &[1]);
    let ninth = good("ninth", 1).cells("sparkler,cores", &[1]);
    let full = "a core of its vCPUs would have more than 8";
    let outcome = configure(2, &[eight.clone(), ninth], 0);
    assert_eq!(names(&outcome), ["eight"]);
    assert_eq!(outcome.1, [format!("/chosen/ninth: {full}")]);
    let eight = |name, n| good(name, n).cells("cpus", &[8]);
    let outcome = configure(1, &[eight("one", 0), eight("two", 1)], 0);
    assert_eq!(names(&outcome), ["one"]);
    assert_eq!(outcome.1, [format!("/chosen/two: {full}")]);
}

#[test]
fn the_ninth_vm_is_refused() {
    let vms: Vec<_> = (0..10).map(|n| good(&format!("vm{n}"), n)).collect();
    let outcome = configure(2, &vms, 0);
    assert_eq!(outcome.0.len(), 8);
    let expected =
        ["/chosen/vm8: there are 8 VMs before it", "/chosen/vm9: there are 8 VMs before it"];
    assert_eq!(outcome.1, expected);
}

#[test]
fn what_runs_on_a_core_is_counted() {
    let blob = board(2, &[good("a", 0), good("b", 1).cells("cpus", &[2])]).blob();
    let board = Board::read(&blob, Pa::new(0)).unwrap();
    let resources = Resources { cores: CoreSet::first(2), taken: &TAKEN };
    let mut config = Configuration::new();
    config.read(&board, &resources, &mut |refusal| panic!("{refusal}"));
    let loads: Vec<_> = resources.cores.iter().map(|core| config.vcpus_on(core)).collect();
    assert_eq!(loads, [2, 1]);
}

fn some_vm() -> impl Strategy<Value = TestNode> {
    let memory = prop_oneof![
        4 => (1u32..600).prop_map(|blocks| vec![blocks * 2048]),
        1 => any::<u32>().prop_map(|kib| vec![kib]),
        1 => any::<[u32; 2]>().prop_map(|cells| cells.to_vec()),
    ];
    let name = prop::sample::select(vec!["a", "b", "c", "d", "e", "f"]);
    let cores = prop::collection::vec(0u32..5, 0..4);
    let kernel = (0u64..12, 1u64..3).prop_map(|(n, len)| (MODULES + n * MIB, len * MIB));
    let disk = prop::option::of((0u32..4, any::<bool>()));
    (name, 0u32..10, memory, cores, kernel, disk).prop_map(
        |(name, cpus, memory, cores, (base, len), disk)| {
            let mut vm = vm(name, 0).without_children().child(module("kernel", base, len));
            vm = vm.cells("cpus", &[cpus]).cells("memory", &memory);
            if !cores.is_empty() {
                vm = vm.cells("sparkler,cores", &cores);
            }
            match disk {
                Some((n, true)) => vm.child(block("d", "physical").cells("disk", &[n])),
                Some((n, false)) => {
                    let at = (MODULES + (20 + u64::from(n)) * MIB) as u32;
                    vm.child(block("d", "ram").cells("reg", &[0, at, 0, 0x18_0000]))
                }
                None => vm,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is asked for: every VM runs or is refused, and those that run have memory, cores,
    /// names and disks that nobody else has.
    #[test]
    fn vms_share_nothing_but_modules_that_are_read(
        vms in prop::collection::vec(some_vm(), 1..12),
        cores in 1u32..5,
        disks in 0usize..4,
    ) {
        let blob = board(cores, &vms).blob();
        let board = Board::read(&blob, Pa::new(0)).unwrap();
        let mut refused = 0;
        let mut refuse = |refusal: Refusal<'_>| {
            assert!(refusal.to_string().starts_with("/chosen/"));
            refused += 1;
        };
        let resources = Resources { cores: CoreSet::first(cores as usize), taken: &TAKEN };
        let mut config = Configuration::new();
        config.read(&board, &resources, &mut refuse);
        config.check_disks(&mut Board1000(disks), &mut refuse);
        let mut free = board.free_ram(&[IMAGE, TREE]).unwrap();
        config.reserve_modules(&mut free).unwrap();
        let pool = free.find(RAM_BLOCK, RAM_BLOCK, 0).unwrap();
        free.reserve(pool).unwrap();
        config.place(&mut free, &mut refuse);
        prop_assert_eq!(config.vms().len() + refused, vms.len());

        let mut taken = vec![IMAGE, TREE, pool];
        for vm in config.vms() {
            taken.extend(modules(vm));
        }
        let (mut seen_names, mut seen_disks) = (Vec::new(), Vec::new());
        for vm in config.vms() {
            let ram = vm.ram.unwrap();
            prop_assert_eq!(vm.memory, Memory::Bytes(ram.len));
            prop_assert!(ram.base.is_aligned(RAM_BLOCK) && ram.len % RAM_BLOCK == 0);
            prop_assert!(board.memory.iter().any(|memory| memory.contains(ram)));
            prop_assert!(!taken.iter().any(|other| other.overlaps(ram)));
            prop_assert!(!free.free().iter().any(|free| free.overlaps(ram)));
            taken.push(ram);
            prop_assert!(!seen_names.contains(&vm.name));
            seen_names.push(vm.name);
            for disk in self::disks(vm) {
                prop_assert!(disk < disks as u64 && !seen_disks.contains(&disk));
                seen_disks.push(disk);
            }
            prop_assert!((1..=MAX_VCPUS).contains(&vm.cores.len()));
            prop_assert!(vm.cores.iter().all(|core| resources.cores.contains(*core)));
        }
        for core in resources.cores.iter() {
            prop_assert!(config.vcpus_on(core) <= MAX_VCPUS_PER_CORE);
        }
    }

    /// Whatever is in the tree: no panic, and every VM node is accounted for.
    #[test]
    fn a_damaged_tree_is_configured_or_refused(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..10),
    ) {
        let disk = block("d0", "physical").cells("disk", &[0]);
        let ram = block("d1", "ram").cells("reg", &[0, 0xb100_0000, 0, 0x4000]);
        let alice = good("alice", 0).cells("sparkler,cores", &[0, 1]).child(disk).child(ram);
        let bob = good("bob", 1).flag("sparkler,operator").child(module("ramdisk", MODULES, 4));
        let mut blob = board(2, &[alice, bob]).blob();
        for (at, byte) in damage {
            let at = at.index(blob.len());
            blob[at] = byte;
        }
        let Ok(board) = Board::read(&blob, Pa::new(0)) else { return Ok(()) };
        let (mut nodes, mut refused) = (0, 0);
        board.for_each_vm(&mut |_, _| nodes += 1);
        let mut config = Configuration::new();
        let resources = Resources { cores: CoreSet::first(board.cpus.len()), taken: &TAKEN };
        config.read(&board, &resources, &mut |refusal| {
            assert!(!refusal.to_string().is_empty());
            refused += 1;
        });
        prop_assert_eq!(config.vms().len() + refused, nodes.max(1));
    }
}

/// What `qemu/run --vms` made of its examples, with the tree of QEMU's board.
fn example(blob: &[u8], judge: impl FnOnce(&[VmConfig<'_>])) {
    let board = Board::read(blob, Pa::new(0)).unwrap();
    let resources = Resources { cores: CoreSet::first(board.cpus.len()), taken: &TAKEN };
    let mut refuse = |refusal: Refusal<'_>| panic!("{refusal}");
    let mut config = Configuration::new();
    config.read(&board, &resources, &mut refuse);
    config.check_disks(&mut Board1000(2), &mut refuse);
    let mut free = board.free_ram(&[IMAGE, TREE]).unwrap();
    config.reserve_modules(&mut free).unwrap();
    free.reserve(free.find(RAM_BLOCK, RAM_BLOCK, 0).unwrap()).unwrap();
    config.place(&mut free, &mut refuse);
    judge(config.vms());
}

#[test]
fn the_script_s_two_linux_share_their_files_and_nothing_else() {
    example(include_bytes!("../../../tests/data/vms-two-linux.dtb"), |vms| {
        let [alice, bob] = vms else { panic!("{vms:?}") };
        assert_eq!((alice.name, bob.name), ("alice", "bob"));
        assert_eq!((alice.operator, bob.operator), (true, false));
        assert_eq!([alice, bob].map(|vm| vm.cores[0].get()), [0, 1]);
        assert_eq!([alice, bob].map(|vm| vm.memory), [Memory::Bytes(256 * MIB); 2]);
        assert_eq!(alice.bootargs, "console=ttyAMA0 VM_NAME=alice");
        assert_eq!(bob.bootargs, "console=ttyAMA0 VM_NAME=bob");
        assert_eq!(modules(alice), modules(bob));
        assert_eq!(modules(alice).len(), 2);
        // Of one disk, a partition each.
        let parts = [alice, bob].map(|vm| DiskUse::of(&vm.devices[0]).unwrap());
        assert_eq!(parts.map(|part| part.disk), [0, 0]);
        let [first, second] = parts.map(|part| part.sectors().unwrap());
        assert!(!first.overlaps(second));
    });
}

#[test]
fn the_script_s_linux_runs_beside_the_builtin_guest() {
    example(include_bytes!("../../../tests/data/vms-linux-and-builtin.dtb"), |vms| {
        let [linux, checks] = vms else { panic!("{vms:?}") };
        assert_eq!((linux.name, checks.name), ("linux", "checks"));
        assert!(linux.ramdisk.is_some() && checks.ramdisk.is_none());
        assert!(!linux.kernel.range.overlaps(checks.kernel.range));
        assert_eq!(checks.memory, Memory::Bytes(64 * MIB));
    });
}
