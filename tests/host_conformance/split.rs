//! The split virtqueue (2.7).

use super::*;

#[test]
fn only_the_used_ring_and_writable_buffers_change() {
    disk!(ram, storage, driver, machine);
    for features in [FLUSH, Features::EVENT_IDX | Features::INDIRECT_DESC] {
        driver.start(&mut machine, features);
        for (what, data) in [
            ((WRITE, 3), &[(DATA, 512, false), (DATA + 0x800, 512, false)][..]),
            ((READ, 3), &[(DATA, 100, true), (DATA + 0x800, 412, true)]),
            ((GET_ID, 0), &[(DATA, 20, true)]),
            ((FLUSH_CACHE, 0), &[]),
            ((READ, 1 << 40), &[(DATA, 512, true)]),
            ((WRITE, 0), &[(DATA, 511, false)]),
            ((99, 0), &[(DATA, 512, false), (DATA + 0x800, 512, true)]),
        ] {
            driver.put(DATA, &[0x3C; 0x1000]);
            offer(&mut driver, what, data);
            let before = snapshot(&driver);
            driver.ring(&mut machine);
            machine.run_to_idle();
            assert!(driver.used().is_some());
            let mut may_change = vec![USED_RING, STATUS..STATUS + 1];
            for (address, len, writable) in data {
                if *writable {
                    may_change.push(*address..address + u64::from(*len));
                }
            }
            for (at, (before, after)) in before.iter().zip(snapshot(&driver)).enumerate() {
                let address = RAM + at as u64;
                let allowed = may_change.iter().any(|range| range.contains(&address));
                assert!(*before == after || allowed, "{what:?} changed {address:#x}");
            }
        }
    }
}

#[test]
fn what_writable_buffers_held_before_makes_no_difference() {
    let run = |fill: u8| {
        disk!(ram, storage, driver, machine);
        storage.slice(Pa::new(0)).fill(0, 4096, 0x77).unwrap();
        driver.start(&mut machine, FLUSH);
        let mut answers = vec![];
        for what in [(READ, 2), (GET_ID, 0), (READ, 999), (77, 0)] {
            driver.put(DATA, &[fill; 512]);
            answers.push(request(&mut machine, &mut driver, what, &[(DATA, 512, true)]));
            let (status, used) = answers[answers.len() - 1];
            let written = if status == 0 { used.min(512) as usize } else { 0 };
            let data = driver.get(DATA, 512);
            // What is not reported as written is as it was.
            assert!(data[written..].iter().all(|byte| *byte == fill));
            answers.extend(data[..written].iter().map(|byte| (*byte, 0)));
        }
        (answers, machine.interrupts)
    };
    assert_eq!(run(0), run(0xFF));
    assert_eq!(run(0x10), run(0x01));
}

#[test]
fn without_event_idx_the_event_field_means_nothing() {
    for event in [0, 1, 2, 5, 0x8000, 0xFFFF] {
        disk!(ram, storage, driver, machine);
        driver.start(&mut machine, FLUSH);
        for round in 1..=4 {
            driver.set_used_event(event);
            request(&mut machine, &mut driver, (READ, 0), &[(DATA, 512, true)]);
            assert_eq!(machine.interrupts, round, "used_event {event}");
        }
    }
}

#[test]
fn with_event_idx_the_used_flags_stay_zero() {
    disk!(ram, storage, driver, machine);
    driver.start(&mut machine, FLUSH | Features::EVENT_IDX);
    for sector in 0..40 {
        request(&mut machine, &mut driver, (READ, sector), &[(DATA, 512, true)]);
        driver.ring(&mut machine);
        assert_eq!(driver.used_flags(), 0);
    }
}

#[test]
fn spurious_notifications_do_nothing() {
    disk!(ram, storage, driver, machine);
    for features in [FLUSH, FLUSH | Features::EVENT_IDX] {
        driver.start(&mut machine, features);
        request(&mut machine, &mut driver, (READ, 0), &[(DATA, 512, true)]);
        machine.interrupts = 0;
        let before = snapshot(&driver);
        for _ in 0..1000 {
            driver.ring(&mut machine);
            machine.poll();
        }
        assert!(snapshot(&driver) == before);
        assert_eq!((machine.interrupts, machine.read(0x70)), (0, 15));
        let again = request(&mut machine, &mut driver, (READ, 0), &[(DATA, 512, true)]);
        assert_eq!(again, (0, 513));
    }
}
