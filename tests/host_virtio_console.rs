//! The console device against a driver that knows nothing of us: the `virtio-drivers` crate.
#![cfg(not(target_os = "none"))]
#![allow(unsafe_code)]
// Lints for code that serves guests; a test may fail loudly.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unimplemented, clippy::unwrap_used)]

mod host_support;

use host_support::{GuestHal, Machine};
use sparkler::backend::clock::Ticks;
use sparkler::backend::port::{Pipe, PipeEnd, PortBackend};
use sparkler::virtio::Features;
use sparkler::virtio::devices::console::{Console, PortConfig};
use virtio_drivers::device::console::{Size, VirtIOConsole};

fn leak<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

fn machine(features: Features) -> (Machine, PipeEnd<'static>) {
    let pipe: &'static Pipe<'static> = leak(Pipe::new());
    let mut far = pipe.end(true, None);
    far.set_open(true);
    let backend = leak(pipe.end(false, None));
    let mut device = Console::new();
    assert!(device.add_port(PortConfig { backend, name: "", console: true }));
    (Machine::new(device, features), far)
}

fn read(far: &mut PipeEnd<'_>) -> Vec<u8> {
    let mut out = vec![0; 8192];
    let count = far.read(&mut out);
    out.truncate(count);
    out
}

#[test]
fn what_is_typed_and_said_arrives_with_every_combination_of_ring_features() {
    let (event, indirect) = (Features::EVENT_IDX, Features::INDIRECT_DESC);
    for features in [Features::empty(), event, indirect, event | indirect] {
        let (machine, mut far) = machine(features);
        let mut driver = VirtIOConsole::<GuestHal, Machine>::new(machine.clone()).unwrap();
        assert_eq!(driver.size(), Ok(Some(Size { columns: 80, rows: 24 })));
        // Past the wrap of the rings' indices.
        for round in 0..70_000_u32 {
            let text = round.to_le_bytes();
            driver.send_bytes(&text).unwrap();
            assert_eq!(read(&mut far), text);
            far.write(&text[..1], Ticks(0));
            machine.poll();
            assert_eq!(driver.recv(true), Ok(Some(text[0])));
        }
        assert_eq!(driver.recv(true), Ok(None));
        assert_eq!(machine.get(0x70), 15);
    }
}
