//! A device model in a hundred lines: an echo device. What it is sent in a chain's readable part
//! comes back in the writable part, in upper case if that was agreed. `cargo run --example device`

use sparkler::backend::clock::Ticks;
use sparkler::virtio::device::ActivateError;
use sparkler::virtio::queue::ChainBuffer;
use sparkler::virtio::state::{StateError, StateReader, StateWriter};
use sparkler::virtio::{Context, DeviceType, Features, Progress, VirtioDevice};
use zerocopy::little_endian::U64;

/// A feature of this device type (bits 0 to 23): letters come back as capitals.
pub const UPPER_CASE: Features = Features::from_bits_retain(1 << 0);

/// The device: room for a chain, what was agreed, and its state.
#[derive(Default)]
pub struct Echo<'m> {
    chain: ChainBuffer<'m>,
    upper_case: bool,
    /// Bytes echoed since the last reset: its configuration space, 64 bits little-endian.
    echoed: u64,
    chains: u64,
}

impl<'m> VirtioDevice<'m> for Echo<'m> {
    fn device_type(&self) -> DeviceType {
        DeviceType(0x3F) // not taken by the specification (5)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[16] // one queue
    }

    fn offered_features(&self) -> Features {
        UPPER_CASE // what the rings can do is for the transport to offer
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        // A driver may read any part of it, in any width; what is not there stays zero.
        for (to, from) in data.iter_mut().zip(self.echoed.to_le_bytes().iter().skip(offset)) {
            *to = *from;
        }
    }

    fn activate(&mut self, accepted: Features) -> Result<(), ActivateError> {
        self.upper_case = accepted.contains(UPPER_CASE);
        Ok(())
    }

    fn queue_notified(&mut self, index: u16, context: &mut Context<'_, 'm>) {
        let before = self.echoed;
        let Some(mut queue) = context.queue(index) else { return };
        while let Some(mut chain) = queue.pop(&mut self.chain) {
            // Judge first: an echo that does not fit is none at all. How the driver has cut the
            // buffers does not matter, nor where they are: all of that has been checked.
            if chain.readable.remaining() <= chain.writable.remaining() {
                let mut byte = [0];
                while chain.readable.read_bytes(&mut byte).is_some() {
                    if self.upper_case {
                        byte.make_ascii_uppercase();
                    }
                    let _ = chain.writable.write_bytes(&byte); // it fits
                }
            }
            self.echoed += chain.writable.written() as u64;
            self.chains += 1;
            queue.complete(chain.head, chain.writable.written() as u32);
        }
        if self.echoed != before {
            context.config_changed();
        }
    }

    fn poll(&mut self, context: &mut Context<'_, 'm>) {
        // A batch ends after as many chains as the queue holds; here is the rest of it.
        self.queue_notified(0, context);
    }

    fn reset(&mut self, _now: Ticks) -> Progress {
        (self.upper_case, self.echoed) = (false, 0);
        Progress::Done // no back end has anything of the guest's
    }

    fn statistics(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        visit("chains", self.chains);
    }

    fn save(&self, state: &mut StateWriter<'_>) -> Result<(), StateError> {
        state.write_object(&U64::new(self.echoed))
    }

    fn restore(
        &mut self,
        accepted: Features,
        state: &mut StateReader<'_>,
    ) -> Result<(), StateError> {
        self.echoed = state.read_object::<U64>()?.get();
        self.upper_case = accepted.contains(UPPER_CASE);
        Ok(())
    }
}

// The device ends here; a transport, and a driver for it, follow.

mod guest;
use guest::{BUFFERS, Driver, RAM_SIZE, Registers};
use sparkler::memory::HostRam;
use sparkler::virtio::{MmioTransport, Width, WriteOutcome};

impl Registers for MmioTransport<'_, '_> {
    fn read(&mut self, offset: u16) -> u32 {
        MmioTransport::read(self, offset, Width::Word) as u32
    }

    fn write(&mut self, offset: u16, value: u32) {
        let outcome = MmioTransport::write(self, offset, Width::Word, value.into(), Ticks(0));
        assert_eq!(outcome, WriteOutcome::Done, "nothing here takes time");
    }
}

/// Sends "hello" to an echo device, and checks everything that can be seen of it.
fn main() {
    let ram = HostRam::new(RAM_SIZE);
    let mut echo = Echo::default();
    let mut transport = MmioTransport::new(&mut echo, guest::memory(&ram));
    let mut driver = Driver::new(guest::memory(&ram));

    driver.start(&mut transport, UPPER_CASE);
    driver.put(BUFFERS, b"hello");
    // The text in two parts, and an answer that may be longer than it is.
    driver.offer(3, &[(BUFFERS, 2, false), (BUFFERS + 2, 3, false), (BUFFERS + 0x1000, 64, true)]);
    driver.ring(&mut transport);
    assert_eq!(driver.used(), Some((3, 5)));
    let answer = driver.get(BUFFERS + 0x1000, 6);
    assert_eq!(answer, b"HELLO\0");
    // An interrupt for the used buffer, and for the configuration that has changed.
    assert!(transport.take_interrupt());
    assert_eq!(driver.acknowledge(&mut transport), 3);
    assert_eq!(transport.read(0x100, Width::Word), 5);
    transport.statistics(&mut |name, value| println!("{name}: {value}"));
    println!("answer: {}", String::from_utf8_lossy(&answer));

    // Another one takes over where this one is.
    let mut state = [0; 64];
    let mut writer = StateWriter::new(&mut state);
    assert_eq!(echo.save(&mut writer), Ok(()));
    let written = writer.written();
    let mut other = Echo::default();
    let saved = state.get(..written).unwrap_or_default();
    assert_eq!(other.restore(UPPER_CASE, &mut StateReader::new(saved)), Ok(()));
    let mut config = [0; 8];
    other.read_config(0, &mut config);
    assert_eq!(u64::from_le_bytes(config), 5);
}

#[test]
fn the_example_runs() {
    main();
}
