use super::*;
use crate::fdt::testing::{TestNode, block, board, module, vm};
use crate::memory::Pa;

/// What the reader says of each VM of a board.
fn outcomes(vms: &[TestNode]) -> Vec<Result<(String, u64, u64), String>> {
    let blob = board(2, vms).blob();
    let board = Board::read(&blob, Pa::new(0)).unwrap();
    let mut outcomes = Vec::new();
    board.for_each_vm(&mut |_, read| {
        let read = read.map(|vm| (vm.name.to_owned(), vm.cpus, vm.memory_kib));
        outcomes.push(read.map_err(|error| error.to_string()));
    });
    outcomes
}

#[track_caller]
fn refused(vm: TestNode) -> String {
    outcomes(&[vm]).remove(0).unwrap_err()
}

#[test]
fn everything_a_node_can_say_is_understood() {
    let disk = block("disk@0", "physical")
        .cells("disk", &[1])
        .flag("read-only")
        .cells("queues", &[2])
        .cells("capacity", &[5]);
    let ram = block("disk@1", "ram").cells("reg", &[0, 0x5000_0000, 0, 0x4000]);
    let null = block("disk@2", "null").cells("size", &[0, 4096]);
    let kernel = module("kernel", 0x4800_0000, 0x1000).text("bootargs", "console=ttyAMA0 quiet");
    let alice = TestNode::new("alice@7")
        .text("compatible", "sparkler,vm")
        .cells("cpus", &[3])
        .cells("memory", &[0, 0x4_0000])
        .cells("sparkler,cores", &[0, 1])
        .cells("sparkler,weight", &[250])
        .text("sparkler,autostart", "no")
        .text("sparkler,on-crash", "restart")
        .flag("sparkler,operator")
        .child(kernel)
        .child(module("ramdisk", 0x4900_0000, 0x2000))
        .child(disk)
        .child(ram)
        .child(null);
    let blob = board(2, &[alice]).blob();
    let board = Board::read(&blob, Pa::new(0)).unwrap();
    let mut seen = 0;
    board.for_each_vm(&mut |node, read| {
        seen += 1;
        let vm = read.unwrap();
        assert_eq!(node.to_string(), "/chosen/alice@7");
        assert_eq!((vm.node, vm.name, vm.cpus, vm.memory_kib), (node, "alice", 3, 0x4_0000));
        let cores = vm.cores.unwrap();
        assert_eq!(cores.iter().collect::<Vec<_>>(), [0, 1]);
        assert_eq!([0, 1, 2].map(|n| cores.cycled(n)), [Some(0), Some(1), Some(0)]);
        assert_eq!((vm.weight, vm.autostart, vm.on_crash), (Some(250), false, OnCrash::Restart));
        assert!(vm.operator);
        let kernel = vm.kernel.unwrap();
        assert_eq!(kernel.node.to_string(), "/chosen/alice@7/kernel@48000000");
        assert_eq!(kernel.range, PaRange::new(0x4800_0000, 0x1000));
        assert_eq!(kernel.bootargs, "console=ttyAMA0 quiet");
        assert_eq!(vm.ramdisk.unwrap().range, PaRange::new(0x4900_0000, 0x2000));
        let image = PaRange::new(0x5000_0000, 0x4000);
        let expected = [
            (BlockSource::Physical { disk: 1, part: DiskPart::Whole }, true, Some(2)),
            (BlockSource::Ram { image }, false, None),
            (BlockSource::Null { size_kib: 4096 }, false, None),
        ];
        let expected = expected.map(|(source, read_only, queues)| DeviceKind::Block {
            source,
            read_only,
            queues,
            capacity: queues.map(|_| 5),
            slot: DiskSlot::Fixed,
        });
        assert_eq!(vm.devices.iter().map(|device| device.kind).collect::<Vec<_>>(), expected);
        assert_eq!(vm.devices[2].node.to_string(), "/chosen/alice@7/disk@2");
    });
    assert_eq!(seen, 1);
}

#[test]
fn a_network_device_s_node_is_understood() {
    let net = |name| TestNode::new(name).text("compatible", "sparkler,virtio-net");
    let all = net("net@0")
        .text("backend", "switch")
        .bytes("mac-address", &[2, 0, 0, 0, 0, 7])
        .cells("mtu", &[9000])
        .cells("vlan", &[42])
        .flag("isolated")
        .cells("queue-pairs", &[2])
        .flag("metadata")
        .cells("reg", &[0, 0x4900_0000, 0, 0x2800]);
    let least = net("net@1").text("backend", "loopback");
    let blob = board(1, &[vm("alice", 0x4800_0000).child(all).child(least)]).blob();
    let board = Board::read(&blob, Pa::new(0)).unwrap();
    board.for_each_vm(&mut |_, read| {
        let all = NetNode {
            to: NetTarget::Switch,
            mac: Some([2, 0, 0, 0, 0, 7]),
            mtu: 9000,
            vlan: Some(42),
            isolated: true,
            pairs: 2,
            metadata: Some(PaRange::new(0x4900_0000, 0x2800)),
        };
        let (to, mac, mtu, vlan) = (NetTarget::Loopback, None, 1500, None);
        let least = NetNode { to, mac, mtu, vlan, isolated: false, pairs: 1, metadata: None };
        let devices = read.unwrap().devices;
        let kinds: Vec<_> = devices.iter().map(|device| device.kind).collect();
        assert_eq!(kinds, [DeviceKind::Net(all), DeviceKind::Net(least)]);
    });

    let with = |child: TestNode| refused(vm("alice", 0x4800_0000).child(child));
    let good = || net("net").text("backend", "switch");
    let at = "/chosen/alice/net:";
    assert_eq!(with(net("net")), format!("{at} backend is missing"));
    let words = "is none of the words it can be";
    assert_eq!(with(net("net").text("backend", "tap")), format!("{at} backend {words}"));
    let mac = good().bytes("mac-address", &[2, 0, 0, 0, 0]);
    assert_eq!(with(mac), format!("{at} mac-address has not 6 bytes"));
    assert_eq!(with(good().cells("disk", &[0])), format!("{at} disk means nothing here"));
    let vlan = good().text("vlan", "green");
    assert_eq!(with(vlan), format!("{at} vlan is not a number of one or two cells"));
    assert_eq!(with(good().flag("metadata")), format!("{at} reg is not understood"));
    let unused = good().cells("reg", &[0, 0x4900_0000, 0, 0x2800]);
    assert_eq!(with(unused), format!("{at} reg means nothing without metadata"));
    let disk = block("net", "physical").cells("disk", &[0]).cells("vlan", &[1]);
    assert_eq!(with(disk), format!("{at} vlan means nothing here"));
}

#[test]
fn a_device_s_limits_are_rates_with_or_without_a_burst() {
    let disk = || block("disk", "null");
    let limited = disk()
        .cells("limit-in-bytes", &[1_000_000])
        .cells("limit-in-requests", &[200, 1000])
        .cells("limit-out-bytes", &[u32::MAX, 1]);
    let net = TestNode::new("net").text("compatible", "sparkler,virtio-net");
    let net = net.text("backend", "switch").cells("limit-out-requests", &[5]);
    let devices = vm("alice", 0x4800_0000).child(limited).child(net).child(block("c", "null"));
    let blob = board(1, &[devices]).blob();
    let board = Board::read(&blob, Pa::new(0)).unwrap();
    let at = |per_second, burst| Some(Rate { per_second, burst });
    board.for_each_vm(&mut |_, read| {
        let limits: Vec<_> = read.unwrap().devices.iter().map(|device| device.limits).collect();
        let disk = [
            Limits { bytes: at(1_000_000, 100_000), requests: at(200, 1000) },
            Limits { bytes: at(u32::MAX, 1), requests: None },
        ];
        let net = [Limits::default(), Limits { bytes: None, requests: at(5, 1) }];
        assert_eq!(limits, [disk, net, Default::default()]);
    });
    let what = "is not a rate, or a rate and a burst, each more than 0";
    for cells in [&[][..], &[0], &[1, 0], &[1, 2, 3]] {
        let wrong = refused(vm("alice", 0x4800_0000).child(disk().cells("limit-in-bytes", cells)));
        assert_eq!(wrong, format!("/chosen/alice/disk: limit-in-bytes {what}"));
    }
}

#[test]
fn a_socket_device_s_node_is_understood() {
    let sockets = |name| TestNode::new(name).text("compatible", "sparkler,virtio-vsock");
    let all = sockets("sockets@0")
        .cells("guest-cid", &[3])
        .cells("peers", &[4, 5])
        .flag("operator")
        .cells("limit-out-bytes", &[1000]);
    let least = sockets("sockets@1").cells("guest-cid", &[4]);
    let blob = board(1, &[vm("alice", 0x4800_0000).child(all).child(least)]).blob();
    let board = Board::read(&blob, Pa::new(0)).unwrap();
    board.for_each_vm(&mut |_, read| {
        let kinds: Vec<_> = read.unwrap().devices.iter().map(|device| device.kind).collect();
        let [DeviceKind::Vsock(all), DeviceKind::Vsock(least)] = kinds[..] else { panic!() };
        assert_eq!((all.cid, all.operator), (3, true));
        assert_eq!(all.peers.unwrap().iter().collect::<Vec<_>>(), [4, 5]);
        assert_eq!(least, VsockNode { cid: 4, peers: None, operator: false });
    });

    let with = |child: TestNode| refused(vm("alice", 0x4800_0000).child(child));
    let good = || sockets("sockets").cells("guest-cid", &[3]);
    let at = "/chosen/alice/sockets:";
    assert_eq!(with(sockets("sockets")), format!("{at} guest-cid is missing"));
    let peers = good().bytes("peers", &[0, 0, 4]);
    assert_eq!(with(peers), format!("{at} peers is not a list of cells"));
    assert_eq!(with(good().cells("mtu", &[1500])), format!("{at} mtu means nothing here"));
}

#[test]
fn what_a_node_does_not_say_has_a_default() {
    let blob = board(1, &[vm("bob", 0x4800_0000)]).blob();
    let board = Board::read(&blob, Pa::new(0)).unwrap();
    board.for_each_vm(&mut |_, read| {
        let vm = read.unwrap();
        assert_eq!((vm.cores, vm.weight, vm.autostart), (None, None, true));
        assert_eq!((vm.on_crash, vm.operator), (OnCrash::Stop, false));
        assert!(vm.ramdisk.is_none() && vm.devices.is_empty());
    });
}

#[test]
fn vms_come_in_order_disabled_ones_and_other_nodes_do_not() {
    let renamed = vm("node", 0x4800_0000).text("vm-name", "carol");
    let disabled = vm("bob", 0x4800_0000).text("status", "disabled");
    let plain = module("kernel", 0x4800_0000, 0x1000);
    let foreign = TestNode::new("domU1").text("compatible", "xen,domain");
    let alice = vm("alice", 0x4800_0000);
    let names: Vec<_> = outcomes(&[renamed, disabled, plain, foreign, alice])
        .into_iter()
        .map(|read| read.unwrap().0)
        .collect();
    assert_eq!(names, ["carol", "alice"]);
}

#[test]
fn a_module_s_reg_is_in_the_cells_of_its_vm() {
    let kernel = TestNode::new("kernel")
        .bytes("compatible", b"multiboot,kernel\0multiboot,module\0")
        .cells("reg", &[0x4800_0000, 0x1000]);
    let vm = vm("alice", 0).without_children().child(kernel);
    assert_eq!(refused(vm.clone()), "/chosen/alice/kernel: reg is not understood");
    let vm = vm.cells("#address-cells", &[1]).cells("#size-cells", &[1]);
    let blob = board(1, &[vm]).blob();
    let board = Board::read(&blob, Pa::new(0)).unwrap();
    board.for_each_vm(&mut |_, read| {
        assert_eq!(read.unwrap().kernel.unwrap().range, PaRange::new(0x4800_0000, 0x1000));
    });
}

#[test]
fn a_property_of_the_wrong_form_is_refused_by_name() {
    let good = || vm("alice", 0x4800_0000);
    let number = "is not a number of one or two cells";
    let flag = "takes no value: that it is there is enough";
    let words = "is none of the words it can be";
    for (vm, problem) in [
        (good().without("cpus"), "cpus is missing".to_owned()),
        (good().without("memory"), "memory is missing".to_owned()),
        (good().flag("cpus"), format!("cpus {number}")),
        (good().bytes("cpus", &[0, 0, 1]), format!("cpus {number}")),
        (good().cells("memory", &[0, 0, 1]), format!("memory {number}")),
        (good().bytes("vm-name", b"alice"), "vm-name is not text".to_owned()),
        (good().bytes("vm-name", b"a\0b\0"), "vm-name is not text".to_owned()),
        (good().bytes("vm-name", b"\xff\0"), "vm-name is not text".to_owned()),
        (good().text("sparkler,weight", "x"), format!("sparkler,weight {number}")),
        (good().flag("sparkler,cores"), "sparkler,cores is not a list of cells".to_owned()),
        (
            good().bytes("sparkler,cores", &[0; 5]),
            "sparkler,cores is not a list of cells".to_owned(),
        ),
        (good().text("sparkler,autostart", "maybe"), format!("sparkler,autostart {words}")),
        (good().flag("sparkler,autostart"), "sparkler,autostart is not text".to_owned()),
        (good().text("sparkler,on-crash", "Restart"), format!("sparkler,on-crash {words}")),
        (good().cells("sparkler,operator", &[0]), format!("sparkler,operator {flag}")),
        (good().flag("sparkler,builtin"), "sparkler,builtin means nothing here".to_owned()),
        (good().flag("sparkler,weigth"), "sparkler,weigth means nothing here".to_owned()),
    ] {
        assert_eq!(refused(vm), format!("/chosen/alice: {problem}"));
    }
}

#[test]
fn a_child_that_is_not_understood_is_refused_by_path() {
    let with = |child: TestNode| refused(vm("alice", 0x4800_0000).child(child));
    let disk = || block("disk", "physical").cells("disk", &[0]);
    let missing = "/chosen/alice/disk: disk is missing";
    assert_eq!(with(disk().without("disk")), missing);
    let misspelt = disk().flag("readonly");
    assert_eq!(with(misspelt), "/chosen/alice/disk: readonly means nothing here");
    let backend =
        "/chosen/alice/disk: backend is none of \"physical\", \"overlay\", \"ram\" and \"null\"";
    assert_eq!(with(block("disk", "network")), backend);
    assert_eq!(with(disk().without("backend")), "/chosen/alice/disk: backend is missing");
    assert_eq!(with(block("disk", "ram")), "/chosen/alice/disk: reg is not understood");
    let unknown = "compatible is neither that of a module nor of a device";
    let future = disk().text("compatible", "sparkler,virtio-time-machine");
    assert_eq!(with(future), format!("/chosen/alice/disk: {unknown}"));
    assert_eq!(with(TestNode::new("x")), format!("/chosen/alice/x: {unknown}"));
    let second = module("kernel", 0x5000_0000, 4);
    let path = "/chosen/alice/kernel@50000000";
    assert_eq!(with(second), format!("{path}: the VM has two modules of this kind"));
    let other = module("device-tree", 0x5000_0000, 4);
    let path = "/chosen/alice/device-tree@50000000";
    assert_eq!(with(other), format!("{path}: the module is neither kernel nor ramdisk"));
    let bootargs = module("ramdisk", 0x5000_0000, 4).bytes("bootargs", b"x");
    let path = "/chosen/alice/ramdisk@50000000";
    assert_eq!(with(bootargs), format!("{path}: bootargs is not text"));
    // A disabled child is not there.
    let disabled = TestNode::new("x").text("status", "disabled");
    assert!(outcomes(&[vm("alice", 0x4800_0000).child(disabled)])[0].is_ok());
}

#[test]
fn the_ninth_device_is_refused() {
    let with = |count: u32| {
        (0..count).fold(vm("alice", 0x4800_0000), |vm, n| vm.child(block(&format!("d{n}"), "null")))
    };
    assert!(outcomes(&[with(8)])[0].is_ok());
    assert_eq!(refused(with(9)), "/chosen/alice/d8: the VM has more than 8 devices");
}

#[test]
fn a_vm_that_is_refused_leaves_the_others_as_they_are() {
    let bad = vm("bad", 0x4800_0000).without("cpus");
    let read = outcomes(&[vm("alice", 0x4800_0000), bad, vm("bob", 0x4800_0000)]);
    assert_eq!(read[0], Ok(("alice".to_owned(), 1, 0x1_0000)));
    assert!(read[1].is_err());
    assert_eq!(read[2], Ok(("bob".to_owned(), 1, 0x1_0000)));
}

/// What is behind the only device of a VM.
fn source(device: TestNode) -> Result<String, String> {
    let blob = board(1, &[vm("alice", 0x4800_0000).child(device)]).blob();
    let board = Board::read(&blob, Pa::new(0)).unwrap();
    let mut source = None;
    board.for_each_vm(&mut |_, read| {
        source = Some(read.map_err(|error| error.to_string()).map(|vm| {
            let DeviceKind::Block { source, .. } = vm.devices[0].kind else { panic!() };
            format!("{source:?}")
        }));
    });
    source.unwrap()
}

#[test]
fn a_part_of_a_disk_is_named_by_label_number_or_sectors() {
    let disk = || block("disk", "physical").cells("disk", &[1]);
    let part = |device, part: DiskPart<'_>| {
        let expected = BlockSource::Physical { disk: 1, part };
        assert_eq!(source(device), Ok(format!("{expected:?}")));
    };
    part(disk().text("partition", "data"), DiskPart::Label("data"));
    // As long as a number, but a text.
    part(disk().text("partition", "abc"), DiskPart::Label("abc"));
    part(disk().text("partition", "7"), DiskPart::Label("7"));
    part(disk().cells("partition", &[7]), DiskPart::Number(7));
    part(disk().cells("range", &[2048, 100]), DiskPart::Sectors { first: 2048, count: 100 });
    let (first, count) = (1 << 32 | 2, 3 << 32 | 4);
    part(disk().cells("range", &[1, 2, 3, 4]), DiskPart::Sectors { first, count });
    let refused = |device, reason: &str| {
        assert_eq!(source(device), Err(format!("/chosen/alice/disk: {reason}")));
    };
    for cells in [&[][..], &[1], &[1, 2, 3], &[1; 6]] {
        refused(disk().cells("range", cells), "range is not two numbers of one cell or of two");
    }
    refused(disk().bytes("partition", b"abcd"), "partition is not text");
    refused(disk().flag("partition"), "partition is not text");
    let both = disk().cells("partition", &[1]).cells("range", &[1, 1]);
    refused(both, "range is not for a device that has partition");
}

#[test]
fn media_follow_the_removable_disk_that_they_are_for() {
    let drive = || block("drive", "null").flag("removable");
    let medium = |name| block(name, "physical").text("compatible", "sparkler,medium");
    let medium = |name| medium(name).cells("disk", &[1]);
    let other = block("other", "null");
    let all = vm("alice", 0x4800_0000).child(drive().flag("read-only").cells("queues", &[3]));
    let all = all.child(medium("first")).child(medium("second")).child(other.clone());
    let blob = board(1, &[all]).blob();
    let board = Board::read(&blob, Pa::new(0)).unwrap();
    board.for_each_vm(&mut |_, read| {
        let devices = read.unwrap().devices;
        let kinds = devices.iter().map(|device| match device.kind {
            DeviceKind::Block { read_only, queues, slot, .. } => (read_only, queues, slot),
            _ => panic!(),
        });
        // Whether it may be written is the drive's to say.
        let media = (true, None, DiskSlot::Medium);
        let expected =
            [(true, Some(3), DiskSlot::Drive), media, media, (false, None, DiskSlot::Fixed)];
        assert_eq!(kinds.collect::<Vec<_>>(), expected);
    });
    let after = "a medium comes after a disk that is removable";
    let vm = || vm("alice", 0x4800_0000);
    assert_eq!(refused(vm().child(medium("m"))), format!("/chosen/alice/m: {after}"));
    let behind = vm().child(drive()).child(other).child(medium("m"));
    assert_eq!(refused(behind), format!("/chosen/alice/m: {after}"));
    let with = |medium: TestNode| refused(vm().child(drive()).child(medium));
    let said = "read-only is said of the disk, for all its media";
    assert_eq!(with(medium("m").flag("read-only")), format!("/chosen/alice/m: {said}"));
    for name in ["removable", "queues", "capacity", "limit-in-bytes"] {
        let nothing = format!("/chosen/alice/m: {name} means nothing here");
        assert_eq!(with(medium("m").cells(name, &[1])), nothing);
    }
}

#[test]
fn an_overlay_is_over_a_disk_or_an_image() {
    let overlay = || block("disk", "overlay").cells("memory", &[2048]);
    let is = |device, below, keep| {
        let expected = BlockSource::Overlay { below, memory_kib: 2048, keep, ram: None };
        assert_eq!(source(device), Ok(format!("{expected:?}")));
    };
    let part = DiskPart::Label("system");
    let disk = || overlay().cells("disk", &[3]).text("partition", "system");
    is(disk(), Below::Physical { disk: 3, part }, true);
    is(disk().text("on-reset", "keep"), Below::Physical { disk: 3, part }, true);
    is(disk().text("on-reset", "drop"), Below::Physical { disk: 3, part }, false);
    let image = PaRange::new(0x5000_0000, 0x4000);
    let over_image = || overlay().cells("reg", &[0, 0x5000_0000, 0, 0x4000]);
    is(over_image(), Below::Ram { image }, true);
    let refused = |device, reason: &str| {
        assert_eq!(source(device), Err(format!("/chosen/alice/disk: {reason}")));
    };
    refused(overlay(), "reg is not understood");
    refused(disk().without("memory"), "memory is missing");
    refused(disk().text("on-reset", "maybe"), "on-reset is none of the words it can be");
    let both = over_image().cells("disk", &[0]);
    refused(both, "an overlay is over a disk or an image, not over both");
}
