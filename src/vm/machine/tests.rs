//! What a machine's parts do to each other.

use super::*;
use crate::cpu::Width;
use crate::sync::testing::Shared;
use crate::virtio::testing::Driver;
use crate::virtio::{Context, DeviceType, VirtioDevice};
use crate::vm::testing::*;

const UART_INTID: u32 = layout::FIRST_SPI + layout::UART_SPI;

/// A register of the UART.
fn uart(offset: u64) -> u64 {
    layout::UART.raw() + offset
}

const DR: u64 = 0x00;
const IMSC: u64 = 0x38;
const RT: u32 = 1 << 6;

fn receive(machine: &mut Machine, byte: u8) -> bool {
    machine.vm.receive(byte, Some(machine.vcpu.index), &mut machine.host)
}

#[test]
fn input_interrupts_until_it_is_read() {
    let mut machine = Machine::new(vec![]);
    machine.set(uart(IMSC), RT);
    assert_eq!(machine.host.lrs.pending(), []);
    assert!(receive(&mut machine, b'a'));
    assert_eq!(machine.host.lrs.pending(), [UART_INTID]);
    assert_eq!(machine.get(uart(DR)), u32::from(b'a'));
    assert_eq!(machine.host.lrs.pending(), []);
}

#[test]
fn a_read_of_the_interrupt_controller_leaves_nothing_unlisted() {
    let mut machine = Machine::new(vec![]);
    machine.set(uart(IMSC), RT);
    assert!(receive(&mut machine, b'a'));
    // The line is still high when the guest ends the interrupt; the read takes note of the end.
    assert_eq!(machine.host.lrs.acknowledge(), Some(UART_INTID));
    machine.host.lrs.end(UART_INTID);
    let active = layout::GICD.raw() + 0x300 + 4;
    assert_eq!(machine.load(active, Width::Word), Some(0));
    assert_eq!(machine.host.lrs.pending(), [UART_INTID]);
}

const FR: u64 = 0x18;
const LCR_H: u64 = 0x2C;
const FEN: u32 = 1 << 4;

#[test]
fn input_without_room_is_refused_and_nothing_is_lost() {
    let mut machine = Machine::new(vec![]);
    machine.set(uart(LCR_H), FEN);
    let taken = (0..40).take_while(|byte| receive(&mut machine, *byte)).count();
    assert_eq!(taken, 32);
    assert!(!machine.vm.wants_input());
    let read = (0..32).map(|_| machine.get(uart(DR))).collect::<Vec<_>>();
    // Neither a byte is missing nor an overrun marked.
    assert_eq!(read, (0..32).collect::<Vec<_>>());
    assert!(machine.vm.wants_input());
}

#[test]
fn the_board_hears_once_when_there_is_room_again() {
    let mut machine = Machine::new(vec![]);
    assert!(receive(&mut machine, b'a'));
    for _ in 0..3 {
        machine.get(uart(FR));
    }
    assert_eq!(machine.host.input_wanted, 0, "it is full");
    machine.get(uart(DR));
    assert_eq!(machine.host.input_wanted, 1);
    machine.get(uart(FR));
    machine.get(uart(DR));
    assert_eq!(machine.host.input_wanted, 1, "there was room before");
    // A larger FIFO, emptied, has room too.
    assert!(receive(&mut machine, b'b'));
    machine.set(uart(LCR_H), FEN);
    assert_eq!(machine.host.input_wanted, 2);
}

#[test]
fn a_reset_takes_the_console_as_it_was_made() {
    let mut machine = Machine::new(vec![]);
    machine.set(uart(IMSC), RT);
    assert!(receive(&mut machine, b'a'));
    assert!(machine.reset());
    assert_eq!(machine.host.input_wanted, 1, "a console that was full has room again");
    assert_eq!(machine.host.lrs.pending(), []);
    // The next guest enables the interrupt: no line is left high.
    machine.enable_interrupts();
    assert_eq!(machine.host.lrs.pending(), []);
    machine.set(uart(IMSC), RT);
    assert_eq!(machine.host.lrs.pending(), []);
    assert!(receive(&mut machine, b'b'));
    assert_eq!(machine.host.lrs.pending(), [UART_INTID]);
}

const RTC_INTID: u32 = layout::FIRST_SPI + layout::RTC_SPI;

/// A register of the clock.
fn rtc(offset: u64) -> u64 {
    layout::RTC.raw() + offset
}

const MATCH: u64 = 0x04;
const RTC_IMSC: u64 = 0x10;
const RTC_RIS: u64 = 0x14;
const RTC_ICR: u64 = 0x1C;

/// `seconds` after the machine was made.
fn at(seconds: u64) -> Ticks {
    Ticks(seconds * HERTZ)
}

/// A machine with an alarm `seconds` after it was made.
fn with_alarm(seconds: u64) -> Machine {
    let mut machine = Machine::new(vec![]);
    machine.set(rtc(MATCH), EPOCH as u32 + seconds as u32);
    assert_eq!(machine.host.wake, None, "it is masked");
    machine.set(rtc(RTC_IMSC), 1);
    assert_eq!(machine.host.wake, Some(at(seconds)));
    machine
}

#[test]
fn an_alarm_interrupts_when_it_is_due_though_the_guest_does_nothing() {
    let mut machine = with_alarm(5);
    assert!(!machine.run_timer(Ticks(5 * HERTZ - 1)));
    assert_eq!(machine.host.lrs.pending(), []);
    assert!(machine.run_timer(at(5)));
    assert_eq!(machine.host.lrs.pending(), [RTC_INTID]);
    // It is over when the guest says so, and not asked for again.
    machine.set(rtc(RTC_ICR), 1);
    assert_eq!(machine.host.lrs.pending(), []);
    machine.set(rtc(RTC_IMSC), 0);
    machine.host.wake = None;
    assert!(!machine.run_timer(at(6)));
}

#[test]
fn a_wake_that_is_early_asks_for_the_alarm_again() {
    let mut machine = with_alarm(5);
    machine.host.wake_at(at(1));
    assert!(machine.run_timer(at(1)));
    assert_eq!(machine.host.lrs.pending(), []);
    assert_eq!(machine.host.wake, Some(at(5)));
}

#[test]
fn an_alarm_that_is_over_when_it_is_unmasked_interrupts_at_once() {
    let mut machine = Machine::new(vec![]);
    machine.set(rtc(MATCH), EPOCH as u32 + 1);
    machine.host.now = at(3);
    assert_eq!(machine.get(rtc(RTC_RIS)), 1);
    assert_eq!(machine.host.lrs.pending(), []);
    machine.set(rtc(RTC_IMSC), 1);
    assert_eq!(machine.host.lrs.pending(), [RTC_INTID]);
}

#[test]
fn a_reset_ends_an_alarm() {
    let mut machine = with_alarm(5);
    assert!(machine.run_timer(at(5)));
    assert!(machine.reset());
    machine.enable_interrupts();
    assert_eq!(machine.host.lrs.pending(), []);
    assert_eq!((machine.get(rtc(RTC_IMSC)), machine.get(rtc(RTC_RIS))), (0, 0));
    assert_eq!(machine.get(rtc(0)), EPOCH as u32 + 5);
}

const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
const NEEDS_RESET: u32 = 0x40;
const VIRTIO_INTID: u32 = layout::FIRST_SPI + layout::VIRTIO_SPI;

/// The guest brings its disk up and breaks it: the head it offers is none.
fn break_disk(machine: &mut Machine) {
    let mut driver = Driver::new(machine.vm.memory.clone(), 8);
    machine.bring_up(0, &driver);
    driver.offer(8);
    machine.set(Machine::virtio(0, QUEUE_NOTIFY), 0);
    assert_eq!(machine.get(Machine::virtio(0, STATUS)), 15 | NEEDS_RESET);
}

#[test]
fn a_broken_device_is_logged_once_with_the_reason() {
    let (mut machine, _) = Machine::with_held_disk();
    let logged = logged(|| {
        break_disk(&mut machine);
        for _ in 0..3 {
            machine.set(Machine::virtio(0, QUEUE_NOTIFY), 0);
        }
        machine.vm.poll(Some(machine.vcpu.index), &mut machine.host);
    });
    assert_eq!(
        logged,
        ["WARN test: virtio device 0 needs a reset: a descriptor outside the table"]
    );
    assert_eq!(machine.host.lrs.pending(), [VIRTIO_INTID]);
}

#[test]
fn a_queue_that_cannot_work_is_logged_too() {
    let (mut machine, _) = Machine::with_held_disk();
    let logged = logged(|| {
        for (offset, value) in
            [(0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x30, 0), (0x38, 3), (0x44, 1)]
        {
            machine.set(Machine::virtio(0, offset), value);
        }
        machine.set(Machine::virtio(0, STATUS), 15);
    });
    assert_eq!(logged, ["WARN test: virtio device 0 needs a reset: a queue size that cannot be"]);
}

#[test]
fn a_guest_that_breaks_its_device_for_ever_does_not_flood_the_log() {
    let (mut machine, _) = Machine::with_held_disk();
    let first = logged(|| (0..100).for_each(|_| break_disk(&mut machine)));
    assert_eq!(first.len(), WARNINGS as usize);
    machine.host.now = at(10);
    let later = logged(|| break_disk(&mut machine));
    assert_eq!(
        later,
        [
            "WARN test: 97 more warnings are not shown",
            "WARN test: virtio device 0 needs a reset: a descriptor outside the table"
        ]
    );
}

/// Offers one read of a sector on the disk in `slot`, whose driver is in `part` of RAM.
pub(in crate::vm) fn request(machine: &mut Machine, driver: &mut Driver<'_>, slot: u64) {
    let ram = layout::RAM.raw();
    driver.put(ram + 0x4000, &[0; 16]);
    let head = 3 * driver.available % driver.size;
    let data = ram + 0x5000 + 0x200 * slot;
    driver.chain(head, &[(ram + 0x4000, 16, false), (data, 512, true), (ram + 0x6000, 1, true)]);
    driver.offer(head);
    machine.set(Machine::virtio(slot, QUEUE_NOTIFY), 0);
}

fn poll(machine: &mut Machine) {
    machine.vm.poll(Some(machine.vcpu.index), &mut machine.host);
}

/// Two disks, brought up, and the drivers of both.
fn two_disks() -> (Machine, [HeldDisk; 2], [Driver<'static>; 2]) {
    let disks = [HeldDisk::default(), HeldDisk::default()];
    let mut machine = Machine::new(vec![Box::new(disks[0].clone()), Box::new(disks[1].clone())]);
    let memory = &machine.vm.memory;
    let mut drivers = [Driver::new(memory.clone(), 8), Driver::new(memory.clone(), 8)];
    let areas = &mut drivers[1].areas;
    for area in [&mut areas.descriptor, &mut areas.driver, &mut areas.device] {
        *area += 0x800;
    }
    machine.bring_up(0, &drivers[0]);
    machine.bring_up(1, &drivers[1]);
    (machine, disks, drivers)
}

#[test]
fn a_device_is_polled_until_its_last_request_is_back_and_no_longer() {
    let (mut machine, disks, mut drivers) = two_disks();
    assert!(!machine.vm.has_work_in_flight());
    for _ in 0..2 {
        request(&mut machine, &mut drivers[0], 0);
    }
    request(&mut machine, &mut drivers[1], 1);
    assert!(machine.vm.has_work_in_flight());
    assert_eq!(machine.host.keep_polling, 1, "once, when the first one began");

    disks[0].finish();
    poll(&mut machine);
    assert!(machine.vm.has_work_in_flight());
    assert_eq!((drivers[0].used_idx(), drivers[1].used_idx()), (1, 0));
    disks[0].finish();
    poll(&mut machine);
    let polls = disks[0].get().polls;
    poll(&mut machine);
    assert_eq!(disks[0].get().polls, polls, "it has nothing to give");
    assert!(machine.vm.has_work_in_flight(), "the other disk has");

    disks[1].finish();
    poll(&mut machine);
    assert!(!machine.vm.has_work_in_flight());
    assert_eq!((drivers[0].used_idx(), drivers[1].used_idx()), (2, 1));
    assert_eq!(machine.host.lrs.pending(), [VIRTIO_INTID, VIRTIO_INTID + 1]);

    request(&mut machine, &mut drivers[1], 1);
    assert_eq!(machine.host.keep_polling, 2);
}

#[test]
fn a_disk_that_grows_interrupts_the_guest_when_the_board_says_that_something_has_changed() {
    let (mut machine, disks, _drivers) = two_disks();
    let look = |machine: &mut Machine| {
        machine.vm.backend_changed(Some(machine.vcpu.index), &mut machine.host);
    };
    look(&mut machine);
    assert_eq!(machine.host.lrs.pending(), []);
    disks[1].get().grown = 36;
    assert_eq!(machine.get(Machine::virtio(1, 0x100)), 64);
    look(&mut machine);
    assert_eq!(machine.host.lrs.pending(), [VIRTIO_INTID + 1]);
    assert_eq!(machine.get(Machine::virtio(1, 0x100)), 100);
    assert_eq!(machine.get(Machine::virtio(0, 0x100)), 64);
}

#[test]
fn the_timer_asks_for_itself_again_while_requests_are_in_flight() {
    let (mut machine, disks, mut drivers) = two_disks();
    request(&mut machine, &mut drivers[1], 1);
    machine.host.wake_at(at(1));
    assert!(machine.run_timer(at(1)));
    assert_eq!(machine.host.keep_polling, 2);
    disks[1].finish();
    machine.host.wake_at(at(2));
    assert!(machine.run_timer(at(2)));
    assert_eq!((machine.host.keep_polling, drivers[1].used_idx()), (3, 1));
    machine.host.wake_at(at(3));
    assert!(machine.run_timer(at(3)));
    assert_eq!(machine.host.keep_polling, 3);
}

#[test]
fn a_machine_is_not_reset_before_the_last_disk_has_let_go() {
    let (mut machine, disks, mut drivers) = two_disks();
    machine.set(uart(IMSC), RT);
    for _ in 0..2 {
        request(&mut machine, &mut drivers[0], 0);
    }
    request(&mut machine, &mut drivers[1], 1);
    let index = machine.vcpu.index;
    let mut reset = |disk: Option<usize>| {
        if let Some(disk) = disk {
            disks[disk].finish();
        }
        let done = machine.reset();
        machine.vm.poll(Some(index), &mut machine.host);
        done
    };
    assert_eq!([None, Some(0), Some(1), None].map(&mut reset), [false; 4]);
    assert!(reset(Some(0)));
    assert!(!machine.vm.has_work_in_flight());
    // Nothing of the old guest is left: no completion, no interrupt, no status, no mask.
    assert_eq!((drivers[0].used_idx(), drivers[1].used_idx()), (0, 0));
    machine.enable_interrupts();
    assert_eq!(machine.host.lrs.pending(), []);
    assert_eq!([0, 1].map(|slot| machine.get(Machine::virtio(slot, STATUS))), [0, 0]);
    assert_eq!(machine.get(uart(IMSC)), 0);
}

#[test]
fn a_completion_interrupts_once() {
    let (mut machine, disks, mut drivers) = two_disks();
    request(&mut machine, &mut drivers[0], 0);
    disks[0].finish();
    poll(&mut machine);
    assert_eq!(machine.host.lrs.acknowledge(), Some(VIRTIO_INTID));
    machine.host.lrs.end(VIRTIO_INTID);
    poll(&mut machine);
    let _ = machine.call(HVC, [0; 4]);
    assert_eq!(machine.host.lrs.pending(), []);
}

#[test]
fn devices_take_the_first_slots_until_all_are_taken() {
    let mut full = vm();
    for slot in 0..MAX_DEVICES {
        assert_eq!(plug(&mut full, Box::new(HeldDisk::default())), Some(slot));
    }
    assert_eq!(plug(&mut full, Box::new(HeldDisk::default())), None);
    assert_eq!(full.devices(), MAX_DEVICES);
    assert!(full.slot(MAX_DEVICES - 1).is_some() && full.slot(MAX_DEVICES).is_none());
}

/// A device that wants to be polled when the test says.
#[derive(Clone)]
struct Patient(Shared<(NextPoll, usize)>);

impl<'m> VirtioDevice<'m> for Patient {
    fn device_type(&self) -> DeviceType {
        DeviceType::ENTROPY
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[8]
    }

    fn queue_notified(&mut self, _index: u16, _context: &mut Context<'_, 'm>) {}

    fn poll(&mut self, _context: &mut Context<'_, 'm>) {
        let (next, polls) = self.0.get();
        self.0.set((next, polls + 1));
    }

    fn next_poll(&self) -> NextPoll {
        self.0.get().0
    }
}

/// A machine with such a device, at work, that wants to be polled as `next` says.
fn patient(next: NextPoll) -> (Machine, Patient) {
    let device = Patient(Shared::new((next, 0)));
    let mut vm = vm();
    let transport = MmioTransport::new(Box::leak(Box::new(device.clone())), vm.memory.clone());
    vm.plug(transport).unwrap();
    let mut machine = Machine::of(vm);
    let driver = Driver::new(machine.vm.memory.clone(), 8);
    machine.bring_up(0, &driver);
    (machine, device)
}

#[test]
fn a_device_that_waits_for_a_time_is_polled_then_and_not_at_every_exit() {
    let (mut machine, device) = patient(NextPoll::At(at(5)));
    assert_eq!((machine.host.wake, machine.host.keep_polling), (Some(at(5)), 0));
    assert!(!machine.vm.has_work_in_flight() && machine.vm.waits_for_events());
    machine.get(Machine::virtio(0, 0));
    assert_eq!(device.0.get().1, 0, "an exit is nothing to it");
    // Something else comes first: the time is asked for again.
    machine.host.wake_at(at(1));
    assert!(machine.run_timer(at(1)));
    assert_eq!((machine.host.wake, device.0.get().1), (Some(at(5)), 1));
    device.0.set((NextPoll::At(at(9)), 0));
    assert!(machine.run_timer(at(5)));
    assert_eq!((machine.host.wake, device.0.get().1), (Some(at(9)), 1));
    device.0.set((NextPoll::Idle, 0));
    assert!(machine.run_timer(at(9)));
    assert!(!machine.vm.waits_for_events());
    assert_eq!((machine.host.wake, machine.host.keep_polling), (None, 0));
}

#[test]
fn a_device_that_waits_for_an_event_is_polled_on_events_without_a_tick() {
    let (mut machine, device) = patient(NextPoll::OnEvent);
    assert_eq!((machine.host.wake, machine.host.keep_polling), (None, 0));
    machine.get(Machine::virtio(0, 0));
    assert_eq!(device.0.get().1, 0);
    assert!(machine.vm.waits_for_events() && !machine.vm.has_work_in_flight());
    device.0.set((NextPoll::Soon, 0));
    poll(&mut machine);
    assert_eq!((machine.host.keep_polling, device.0.get().1), (1, 1));
    assert!(machine.vm.has_work_in_flight());
    machine.get(Machine::virtio(0, 0));
    assert_eq!(device.0.get().1, 2, "an exit is a poll point");
    device.0.set((NextPoll::OnEvent, 0));
    poll(&mut machine);
    assert!(machine.vm.waits_for_events() && !machine.vm.has_work_in_flight());
    // A reset leaves nothing to wait for.
    machine.set(Machine::virtio(0, 0x70), 0);
    assert!(!machine.vm.waits_for_events());
}

#[test]
fn the_boot_of_a_machine_is_followed_from_outside() {
    let (mut machine, _) = Machine::with_held_disk();
    let boot = layout::BOOT_TIMER.raw();
    machine.vm.boot_begins(Ticks(1000));
    machine.host.now = Ticks(1010);
    machine.get(layout::UART.raw() + 0x18);
    machine.host.now = Ticks(1020);
    let driver = Driver::new(machine.vm.memory.clone(), 4);
    machine.bring_up(0, &driver);
    machine.host.now = Ticks(1030);
    assert_eq!(machine.load(boot + 8, Width::Double), Some(30));
    assert_eq!(machine.store(boot, Width::Byte, 123), Seen::Done);
    let seen = machine.vm.milestones();
    assert_eq!((seen.start, seen.first_mmio), (Some(Ticks(1000)), Some(Ticks(10))));
    assert_eq!((seen.driver_ok[0], seen.driver_ok[1]), (Some(Ticks(20)), None));
    assert_eq!(seen.marks, [(123, Ticks(30))]);
    machine.vm.boot_begins(Ticks(2000));
    assert_eq!(machine.vm.milestones().first_mmio, None);
}
