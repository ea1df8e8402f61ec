//! A guest that does everything wrong, and a correct driver after it.

use super::*;

/// A small generator, so that runs are the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// One thing that a driver should not do, or should not do now.
fn misbehave(machine: &mut Machine<'_, '_>, driver: &mut Driver<'_>, random: &mut Random) {
    const WIDTHS: [Width; 4] = [Width::Byte, Width::Half, Width::Word, Width::Double];
    let width = WIDTHS[random.below(4) as usize];
    match random.below(16) {
        // Any offset, any width.
        0..2 => {
            let _ = machine.device.read(random.next() as u16, width);
        }
        2..4 => {
            let _ = machine.device.write(random.next() as u16, width, random.next(), NOW);
        }
        // Registers, with values that mean something somewhere.
        4..7 => {
            let offset = random.below(0x48) as u16 * 4;
            let value = random.next() >> random.below(64);
            let _ = machine.device.write(offset, Width::Word, value, NOW);
        }
        7 => {
            let _ = machine.device.write(0x70, Width::Word, random.below(256), NOW);
        }
        // Rings: of this queue, and of others.
        8..11 => {
            let _ = machine.device.write(0x50, Width::Word, 0, NOW);
        }
        11 => {
            let _ = machine.device.write(0x50, Width::Word, random.next() >> random.below(64), NOW);
        }
        // Nonsense in the rings.
        12..14 => driver.put(RAM + random.below(0x2FF8), &random.next().to_le_bytes()),
        14 => machine.poll(),
        _ if random.below(200) == 0 => {
            // Set up as it should be, for the rest to find something to break.
            machine.write(0x70, 0);
            let features = random.next() & driver.offered(machine).bits();
            let features = Features::from_bits_retain(features) | Features::VERSION_1;
            if driver.negotiate(machine, features) {
                driver.configure_queue(machine);
                machine.write(0x44, 1);
                machine.write(0x70, 15);
            }
        }
        _ => {
            let _ = driver.used();
        }
    }
}

/// A correct driver at work: everything it sees, the disk included.
fn correct_run(
    machine: &mut Machine<'_, '_>,
    driver: &mut Driver<'_>,
    storage: &HostRam,
) -> Vec<u64> {
    let contents = storage.slice(Pa::new(0));
    contents.fill(0, contents.len(), 0x42).unwrap();
    driver.put(RAM, &vec![0; RAM_SIZE]);
    machine.write(0x70, 0);
    machine.interrupts = 0;
    let mut seen = vec![driver.offered(machine).bits()];
    driver.start(machine, FLUSH | Features::EVENT_IDX);
    for round in 0..300_u64 {
        driver.put(DATA, &[round as u8; 512]);
        for what in [(WRITE, round % 64), (READ, (round * 7) % 64), (GET_ID, 0), (READ, 65)] {
            let data = [(DATA, 512, what.0 != WRITE)];
            let (status, used) = request(machine, driver, what, &data);
            seen.extend([u64::from(status), u64::from(used)]);
            seen.extend([machine.read(0x60), machine.read(0x70)].map(u64::from));
            seen.push(driver.acknowledge(machine).into());
        }
    }
    for offset in (0..0x200).step_by(4).filter(|offset| *offset != 0xFC) {
        seen.push(machine.read(offset).into());
    }
    let mut bytes = snapshot(driver);
    bytes.resize(RAM_SIZE + contents.len(), 0);
    contents.read_bytes(0, &mut bytes[RAM_SIZE..]).unwrap();
    seen.extend(bytes.iter().map(|byte| u64::from(*byte)));
    seen.push(machine.interrupts as u64);
    seen
}

#[test]
fn a_hostile_guest_changes_nothing_for_a_correct_driver_after_a_reset() {
    const OPERATIONS: usize = 20_000_000;
    let expected = {
        disk!(ram, storage, driver, machine);
        correct_run(&mut machine, &mut driver, &storage)
    };
    let seed = 0x5EED_0BAD_CAFE_F00D;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    disk!(ram, storage, driver, machine);
    let (mut live, mut broken) = (0, 0);
    for _ in 0..OPERATIONS {
        misbehave(&mut machine, &mut driver, &mut random);
        live += usize::from(machine.read(0x70) == 15);
        broken += usize::from(machine.read(0x70) & 64 != 0);
    }
    // It was at work often enough to be hurt, and noticed that it was.
    assert!(live > OPERATIONS / 100 && broken > OPERATIONS / 100, "live {live}, broken {broken}");
    assert!(correct_run(&mut machine, &mut driver, &storage) == expected);
    // Nor for a second one.
    assert!(correct_run(&mut machine, &mut driver, &storage) == expected);
}
