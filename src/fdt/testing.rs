//! Board trees for tests, made by our own writer.

use super::FdtWriter;

/// A node to be written.
#[derive(Clone, Debug, Default)]
pub(crate) struct TestNode {
    name: String,
    properties: Vec<(String, Vec<u8>)>,
    children: Vec<TestNode>,
}

impl TestNode {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Sets a property to any bytes.
    pub(crate) fn bytes(mut self, name: &str, value: &[u8]) -> Self {
        self = self.without(name);
        self.properties.push((name.to_owned(), value.to_vec()));
        self
    }

    pub(crate) fn cells(self, name: &str, cells: &[u32]) -> Self {
        let bytes: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.bytes(name, &bytes)
    }

    pub(crate) fn text(self, name: &str, text: &str) -> Self {
        self.bytes(name, format!("{text}\0").as_bytes())
    }

    pub(crate) fn flag(self, name: &str) -> Self {
        self.bytes(name, &[])
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.properties.retain(|(property, _)| property != name);
        self
    }

    pub(crate) fn child(mut self, child: TestNode) -> Self {
        self.children.push(child);
        self
    }

    pub(crate) fn without_children(mut self) -> Self {
        self.children.clear();
        self
    }

    fn write(&self, fdt: &mut FdtWriter<'_>) {
        fdt.begin_node(&self.name).unwrap();
        for (name, value) in &self.properties {
            fdt.bytes(name, value).unwrap();
        }
        for child in &self.children {
            child.write(fdt);
        }
        fdt.end_node().unwrap();
    }

    /// The tree with this root.
    pub(crate) fn blob(&self) -> Vec<u8> {
        let mut buffer = vec![0; 0x2_0000];
        let mut fdt = FdtWriter::new(&mut buffer, &[]).unwrap();
        self.write(&mut fdt);
        let len = fdt.finish().unwrap();
        buffer.truncate(len);
        buffer
    }
}

/// A board with `cores` cores, 2 GiB of RAM at 1 GiB, and these nodes in `/chosen`.
pub(crate) fn board(cores: u32, chosen: &[TestNode]) -> TestNode {
    let two = |node: TestNode| node.cells("#address-cells", &[2]).cells("#size-cells", &[2]);
    let cpu =
        |n: u32| TestNode::new(&format!("cpu@{n}")).text("device_type", "cpu").cells("reg", &[n]);
    let cpus = TestNode::new("cpus").cells("#address-cells", &[1]).cells("#size-cells", &[0]);
    let cpus = (0..cores).fold(cpus, |cpus, n| cpus.child(cpu(n)));
    let memory = TestNode::new("memory@40000000")
        .text("device_type", "memory")
        .cells("reg", &[0, 0x4000_0000, 0, 0x8000_0000]);
    let chosen = chosen.iter().fold(TestNode::new("chosen"), |all, node| all.child(node.clone()));
    two(TestNode::new("")).child(chosen).child(memory).child(cpus)
}

/// A module as it is in a VM's node, with two cells for the address and two for the size.
pub(crate) fn module(kind: &str, base: u64, len: u64) -> TestNode {
    let high_low = |value: u64| [(value >> 32) as u32, value as u32];
    let reg = [high_low(base), high_low(len)].concat();
    TestNode::new(&format!("{kind}@{base:x}"))
        .bytes("compatible", format!("multiboot,{kind}\0multiboot,module\0").as_bytes())
        .cells("reg", &reg)
}

/// A VM with one vCPU, 64 MiB of RAM and a kernel of 1 MiB at `kernel`.
pub(crate) fn vm(name: &str, kernel: u64) -> TestNode {
    TestNode::new(name)
        .text("compatible", "sparkler,vm")
        .cells("cpus", &[1])
        .cells("memory", &[0x1_0000])
        .child(module("kernel", kernel, 0x10_0000))
}

/// A block device with this back end.
pub(crate) fn block(name: &str, backend: &str) -> TestNode {
    TestNode::new(name).text("compatible", "sparkler,virtio-block").text("backend", backend)
}
