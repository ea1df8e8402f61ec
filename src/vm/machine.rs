//! A virtual machine and its vCPUs.
//!
//! Where a method takes `here`, that is the vCPU of this machine whose state is on this core, if one
//! is: what has become pending for it is listed at once. The cores of the others are nudged.
//!
//! Locks: each virtio slot, the UART, the clock and the watchdog have their own, and no two of these are held at
//! once, but for the terminal's, which may be taken under a slot's. Under any of them the interrupt
//! controller's may be taken, or that of the log's limit, or of the boot's milestones, and
//! under those none; a line for the log takes the board's console as well. A lock is never held
//! while a guest runs, nor while a disk is waited for.

#[cfg(test)]
pub(super) mod tests;

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::boot_timer::Milestones;
use super::host::Host;
use super::layout;
use super::lifecycle::{Event, Life, Request, State};
use super::pl011::Pl011;
use super::pl031::Pl031;
use super::stats::ExitCounts;
use super::vcpus::{CoreNumber, VcpuTable};
use super::watchdog::Watchdog;
use crate::backend::clock::{Clock, Frequency, Ticks};
use crate::backend::port::{PipeEnd, PortBackend};
use crate::backend::vsock::{ANSWER_LEN, Desk};
use crate::cpu::GuestRegisters;
use crate::cpu::sysreg::Limits;
use crate::gic::{GicVersion, IntId, MAX_VCPUS, VcpuIndex, VcpuSet, Vgic};
use crate::memory::GuestMemory;
use crate::monitor;
use crate::rate_limit::RateLimit;
use crate::sync::{Mutex, MutexGuard};
use crate::virtio::{Adjustment, MmioTransport, NextPoll, NotAdjusted, Status, WriteOutcome};

/// Virtio devices one VM can have.
pub const MAX_DEVICES: usize = 8;

/// Bits of slots to be polled at every poll point.
const SOON: u32 = (1 << MAX_DEVICES) - 1;
/// How far above them the bits of slots are that wait for an event or a time.
const WAITING: usize = MAX_DEVICES;

/// The wait of a vCPU for an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// One is pending, enabled and signalled: the wait is over, whatever the vCPU's PSTATE masks.
    pub over: bool,
    /// PPIs whose lines cannot end it, a bit each: they are pending or active already, and the guest has
    /// disabled them or not yet deactivated them.
    pub spent: u32,
}

/// A virtual machine: everything its vCPUs share.
pub struct Vm<'m> {
    /// Its name in the log.
    pub name: &'static str,
    /// Which of the board's machines it is: its place on the console.
    pub number: usize,
    /// Whether its guest may give the monitor's commands.
    pub operator: bool,
    /// Where its guest may give them by a socket, if it may.
    pub desk: Option<&'m Desk>,
    /// Its RAM.
    pub memory: GuestMemory<'m>,
    /// What its ID registers must say.
    pub limits: Limits,
    /// Its vCPUs.
    pub vcpus: VcpuTable,
    /// What it is doing, and what is asked of it.
    pub life: Life,
    /// Redistributors it has: one a vCPU, if its interrupt controller is a GICv3.
    pub(super) redistributors: usize,
    /// Its interrupt controller.
    gic: Mutex<Vgic>,
    /// Its console.
    uart: Mutex<Pl011>,
    /// Its clock.
    rtc: Mutex<Pl031>,
    /// Its watchdog.
    watchdog: Mutex<Watchdog>,
    /// How far its boot has come.
    boot: Mutex<Milestones>,
    /// Its guest has accessed no device since it was started.
    untouched: AtomicBool,
    /// The terminal's end of a console's port, and the slot of that.
    terminal: Option<(usize, Mutex<PipeEnd<'m>>)>,
    /// Its virtio devices, by slot.
    slots: heapless::Vec<Mutex<MmioTransport<'m, 'm>>, MAX_DEVICES>,
    /// Slots that are to be polled: a bit for each that wants it at every poll point ([`SOON`]), and
    /// above them one for each that wants it on events or at a time ([`WAITING`]).
    to_poll: AtomicU32,
    /// How much of what the guest causes is logged.
    log_limit: Mutex<RateLimit>,
    /// What the exits of vCPUs were for, up to when each last left its core.
    exits: Mutex<[ExitCounts; MAX_VCPUS]>,
}

// Each core with one of its vCPUs works on it.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Vm<'static>>();
};

impl<'m> Vm<'m> {
    /// A machine without virtio devices, which is off. It has a vCPU for each of `cores`, on that
    /// core. No more of what the guest causes is logged than `log_limit` admits.
    pub fn new(
        name: &'static str,
        memory: GuestMemory<'m>,
        limits: Limits,
        cores: &[CoreNumber],
        gic: Vgic,
        rtc: Pl031,
        log_limit: RateLimit,
    ) -> Self {
        let vcpus = VcpuTable::new(cores);
        let redistributors = if gic.version() == GicVersion::V3 { vcpus.count() } else { 0 };
        Self {
            name,
            number: 0,
            operator: false,
            desk: None,
            memory,
            limits,
            vcpus,
            life: Life::new(),
            redistributors,
            gic: Mutex::new(gic),
            uart: Mutex::new(Pl011::new()),
            rtc: Mutex::new(rtc),
            watchdog: Mutex::new(Watchdog::new(Ticks(0))),
            boot: Mutex::new(Milestones::NONE),
            untouched: AtomicBool::new(true),
            terminal: None,
            slots: heapless::Vec::new(),
            to_poll: AtomicU32::new(0),
            log_limit: Mutex::new(log_limit),
            exits: Mutex::new([const { ExitCounts::NONE }; MAX_VCPUS]),
        }
    }

    /// Puts a device into the next slot; its number. `None`, and the device is gone, if all are
    /// taken.
    pub fn plug(&mut self, device: MmioTransport<'m, 'm>) -> Option<usize> {
        let slot = self.slots.len();
        self.slots.push(Mutex::new(device)).ok()?;
        Some(slot)
    }

    /// The other end of this is a port of the console in `slot`: instead of the PL011's, its guest's
    /// input goes there once its driver has it open, and its output is the guest's as well.
    pub fn set_terminal(&mut self, slot: usize, mut end: PipeEnd<'m>) {
        end.set_open(true);
        self.terminal = Some((slot, Mutex::new(end)));
    }

    /// Has the console have what the guest says to its terminal.
    #[inline(never)]
    fn drain_terminal<H: Host>(&self, host: &mut H) {
        let Some((_, end)) = &self.terminal else { return };
        let mut piece = [0; 64];
        loop {
            let count = end.lock().read(&mut piece);
            let Some(bytes) = piece.get(..count) else { return };
            if bytes.is_empty() {
                return;
            }
            for byte in bytes {
                host.transmit(self.number, *byte);
            }
        }
    }

    /// The device in a slot.
    #[inline(always)]
    pub fn slot(&self, slot: usize) -> Option<&Mutex<MmioTransport<'m, 'm>>> {
        self.slots.get(slot)
    }

    /// Number of slots with a device; they are the first ones.
    pub fn devices(&self) -> usize {
        self.slots.len()
    }

    /// Whether any device is to be polled at every poll point: it has requests in flight.
    #[inline(always)]
    pub fn has_work_in_flight(&self) -> bool {
        self.to_poll.load(Ordering::Relaxed) & SOON != 0
    }

    /// Whether any device is to be polled when something may have come for it - an interrupt of the
    /// board, EL2's timer - whether or not it has requests in flight.
    #[inline(always)]
    pub fn waits_for_events(&self) -> bool {
        self.to_poll.load(Ordering::Relaxed) != 0
    }

    /// After a slot's device was worked: passes its interrupt on, and remembers when to poll it.
    /// To be called with the lock of the slot still held, so that the two agree.
    #[inline(always)]
    pub(super) fn after_work<H: Host>(
        &self,
        slot: usize,
        device: &mut MmioTransport<'m, 'm>,
        here: Option<VcpuIndex>,
        host: &mut H,
    ) {
        if self.terminal.as_ref().is_some_and(|terminal| terminal.0 == slot) {
            self.drain_terminal(host);
        }
        let soon = 1u32 << (slot % MAX_DEVICES);
        let waiting = soon << WAITING;
        let wanted = match device.next_poll() {
            NextPoll::Idle => 0,
            NextPoll::OnEvent => waiting,
            NextPoll::At(deadline) => {
                host.wake_at(deadline);
                waiting
            }
            NextPoll::Soon => soon,
        };
        // Nobody else changes the bits of this slot.
        let change = (self.to_poll.load(Ordering::Relaxed) & (soon | waiting)) ^ wanted;
        if change != 0 {
            let before = self.to_poll.fetch_xor(change, Ordering::Relaxed);
            if wanted == soon && before & SOON == 0 {
                host.keep_polling();
            }
        }
        if device.take_interrupt() {
            // Told by an interrupt, and thus once for each time it happens.
            if device.status().contains(Status::DEVICE_NEEDS_RESET) {
                self.report_fault(slot, device, host.now());
            }
            if let Some(intid) = IntId::spi(layout::VIRTIO_SPI + slot as u32) {
                self.signal(here, host, |gic| gic.pulse(intid));
            }
        }
    }

    /// Logs why a device needs a reset.
    #[cold]
    fn report_fault(&self, slot: usize, device: &MmioTransport<'m, 'm>, now: Ticks) {
        match device.fault() {
            Some(fault) => {
                self.warn(now, format_args!("virtio device {slot} needs a reset: {fault}"));
            }
            None => {
                self.warn(now, format_args!("virtio device {slot} cannot work as it is set up"))
            }
        }
    }

    /// Logs what the guest has caused, unless it causes too much.
    #[cold]
    pub fn warn(&self, now: Ticks, what: fmt::Arguments<'_>) {
        let admitted = self.log_limit.lock().admit(now);
        let Some(refused) = admitted else { return };
        if refused != 0 {
            log::warn!("{}: {refused} more warnings are not shown", self.name);
        }
        log::warn!("{}: {what}", self.name);
    }

    /// Collects what physical devices have finished, for all slots that are to be polled.
    pub fn poll<H: Host>(&self, here: Option<VcpuIndex>, host: &mut H) {
        self.poll_slots(here, host);
        if let Some(desk) = self.desk
            && desk.is_asked()
        {
            self.serve(desk, here, host);
        }
    }

    /// Carries out a command that the guest gives by a socket, and has the answer on its way.
    #[cold]
    #[inline(never)]
    fn serve<H: Host>(&self, desk: &Desk, here: Option<VcpuIndex>, host: &mut H) {
        host.with_operator(|operator| {
            desk.serve(&mut |line, out| {
                // An answer that is cut is an answer.
                let _ = monitor::run(line, operator, out, ANSWER_LEN);
            });
        });
        self.poll_slots(here, host);
    }

    fn poll_slots<H: Host>(&self, here: Option<VcpuIndex>, host: &mut H) {
        let now = host.now();
        let slots = self.to_poll.load(Ordering::Relaxed);
        let mut slots = (slots | slots >> WAITING) & SOON;
        while slots != 0 {
            let slot = slots.trailing_zeros() as usize;
            slots &= slots - 1;
            if let Some(device) = self.slot(slot) {
                let mut device = device.lock();
                device.poll(now);
                self.after_work(slot, &mut device, here, host);
            }
        }
    }

    /// Something of the board's is not what it was: the devices look whether they are concerned.
    #[cold]
    #[inline(never)]
    pub fn backend_changed<H: Host>(&self, here: Option<VcpuIndex>, host: &mut H) {
        let now = host.now();
        for (slot, device) in self.slots.iter().enumerate() {
            let mut device = device.lock();
            device.backend_changed(now);
            self.after_work(slot, &mut device, here, host);
        }
    }

    /// Changes the device in a slot, whichever core its machine's vCPUs are on.
    ///
    /// # Errors
    /// [`NotAdjusted`]: nothing has changed.
    pub fn adjust<H: Host>(
        &self,
        slot: usize,
        change: Adjustment,
        clock: &impl Clock,
        host: &mut H,
    ) -> Result<(), NotAdjusted> {
        let mut device = self.slot(slot).ok_or(NotAdjusted::Unsupported)?.lock();
        let result = device.adjust(change, clock);
        self.after_work(slot, &mut device, None, host);
        // What the change asks for later, it asks of its own core.
        drop(device);
        self.nudge_all(host);
        result
    }

    /// Works on the interrupt controller for the vCPU on this core, and lists what it must now see:
    /// also after reads, which may find out what the guest has done to its list registers.
    #[inline]
    pub(super) fn with_gic<H: Host, T>(
        &self,
        vcpu: VcpuIndex,
        host: &mut H,
        work: impl FnOnce(&mut Vgic, &mut H::ListRegisters) -> T,
    ) -> T {
        let mut gic = self.gic.lock();
        let result = work(&mut gic, host.list_registers());
        if gic.needs_flush(vcpu) {
            self.settle(gic, vcpu, VcpuSet::EMPTY, host);
        }
        result
    }

    /// Lists what the vCPU on this core must now see, and nudges the cores of the others that are
    /// `concerned`, or turn out to be.
    #[inline(never)]
    fn settle<H: Host>(
        &self,
        mut gic: MutexGuard<'_, Vgic>,
        vcpu: VcpuIndex,
        concerned: VcpuSet,
        host: &mut H,
    ) {
        let others = gic.flush(vcpu, host.list_registers());
        drop(gic);
        self.nudge(concerned.union(others).without(vcpu), host);
    }

    /// What its interrupt controller is.
    pub fn gic_version(&self) -> GicVersion {
        self.gic.lock().version()
    }

    /// Changes interrupt state by an access of the vCPU on this core, and has all vCPUs see it.
    #[inline]
    pub fn interrupt<H: Host>(
        &self,
        vcpu: VcpuIndex,
        host: &mut H,
        change: impl FnOnce(&mut Vgic, &mut H::ListRegisters) -> VcpuSet,
    ) {
        let mut gic = self.gic.lock();
        let concerned = change(&mut gic, host.list_registers());
        self.settle(gic, vcpu, concerned, host);
    }

    /// Changes interrupt state by a device, and has all vCPUs see it.
    #[inline]
    pub fn signal<H: Host>(
        &self,
        here: Option<VcpuIndex>,
        host: &mut H,
        change: impl FnOnce(&mut Vgic) -> VcpuSet,
    ) {
        if let Some(vcpu) = here {
            return self.interrupt(vcpu, host, |gic, _| change(gic));
        }
        let concerned = change(&mut self.gic.lock());
        self.nudge(concerned, host);
    }

    /// Has the cores of these vCPUs look at what is pending for them.
    #[inline(always)]
    fn nudge<H: Host>(&self, vcpus: VcpuSet, host: &mut H) {
        if !vcpus.is_empty() {
            self.nudge_each(vcpus, host);
        }
    }

    #[inline(never)]
    fn nudge_each<H: Host>(&self, vcpus: VcpuSet, host: &mut H) {
        for core in vcpus.iter().filter_map(|vcpu| self.vcpus.core_of(vcpu)) {
            host.nudge(core);
        }
    }

    /// Has every core that has a vCPU of this machine look at what it is to do.
    pub fn nudge_all<H: Host>(&self, host: &mut H) {
        let cores = self.vcpus.cores();
        for core in (0..8).filter(|core| cores >> core & 1 != 0) {
            host.nudge(core);
        }
    }

    /// Asks for something, and has the home core look.
    ///
    /// # Errors
    /// As [`Life::ask`].
    pub fn ask<H: Host>(&self, request: Request, host: &mut H) -> Result<(), State> {
        self.life.ask(request)?;
        host.nudge(self.vcpus.home());
        Ok(())
    }

    /// The machine does something that ends its life: has the home core look.
    pub fn happen<H: Host>(&self, event: Event, host: &mut H) {
        self.life.happen(event);
        host.nudge(self.vcpus.home());
    }

    /// The vCPU comes onto this core, whose list registers are empty: lists what is pending for it.
    pub fn load_interrupts<H: Host>(&self, vcpu: VcpuIndex, host: &mut H) {
        self.settle(self.gic.lock(), vcpu, VcpuSet::EMPTY, host);
    }

    /// The vCPU leaves this core: its list registers are emptied, and all their state kept.
    pub fn unload_interrupts<H: Host>(&self, vcpu: VcpuIndex, host: &mut H) {
        let mut gic = self.gic.lock();
        let others = gic.unload(vcpu, host.list_registers());
        drop(gic);
        self.nudge(others, host);
    }

    /// What a vCPU waits for that is not on its core. Its CPU interface signals what has a priority value
    /// below `threshold`.
    pub fn wait_of(&self, vcpu: VcpuIndex, threshold: u8) -> Wait {
        let gic = self.gic.lock();
        Wait {
            over: gic.has_deliverable(vcpu, threshold),
            spent: gic.private_pending_or_active(vcpu),
        }
    }

    /// Whether an interrupt is pending that ends the wait of the vCPU on this core. Its CPU interface
    /// signals what has a priority value below `threshold`.
    pub fn has_pending_here<H: Host>(&self, vcpu: VcpuIndex, threshold: u8, host: &mut H) -> bool {
        let mut gic = self.gic.lock();
        gic.sync(vcpu, host.list_registers());
        gic.has_deliverable(vcpu, threshold)
    }

    /// Works on what is known of the boot.
    #[inline(never)]
    pub(super) fn with_boot<T>(&self, work: impl FnOnce(&mut Milestones) -> T) -> T {
        work(&mut self.boot.lock())
    }

    /// The machine starts.
    pub(super) fn boot_begins(&self, now: Ticks) {
        self.with_boot(|boot| boot.begin(now));
        self.untouched.store(true, Ordering::Relaxed);
    }

    /// The guest accesses a device.
    #[inline(always)]
    pub(super) fn note_access<H: Host>(&self, host: &mut H) {
        if self.untouched.load(Ordering::Relaxed) {
            self.first_access(host.now());
        }
    }

    #[cold]
    #[inline(never)]
    fn first_access(&self, now: Ticks) {
        self.untouched.store(false, Ordering::Relaxed);
        self.with_boot(|boot| boot.access(now));
    }

    /// What is known of its last boot.
    pub fn milestones(&self) -> Milestones {
        self.with_boot(|boot| boot.clone())
    }

    /// The frequency of its clock, and of the board's.
    pub(super) fn frequency(&self) -> Frequency {
        self.rtc.lock().frequency()
    }

    /// Keeps what a vCPU's exits were for, for [`Self::exits`].
    pub fn publish_exits(&self, vcpu: VcpuIndex, counts: &ExitCounts) {
        if let Some(published) = self.exits.lock().get_mut(vcpu.get()) {
            *published = *counts;
        }
    }

    /// What the exits of a vCPU were for, up to when it last published them.
    pub fn exits_of(&self, vcpu: VcpuIndex) -> Option<ExitCounts> {
        (vcpu.get() < self.vcpus.count()).then(|| self.exits.lock().get(vcpu.get()).copied())?
    }

    /// What the exits of all vCPUs were for, up to when each was last published.
    pub fn exits(&self) -> ExitCounts {
        let exits = self.exits.lock();
        let mut sum = ExitCounts::NONE;
        for counts in exits.iter() {
            sum.add(counts);
        }
        sum
    }

    /// Whether the console has room for input.
    pub fn wants_input(&self) -> bool {
        self.uart.lock().wants_input()
    }

    /// Input for the console. `false`, and nothing is taken, if it has no room;
    /// [`Host::input_wanted`] tells when it has.
    pub fn receive<H: Host>(&self, byte: u8, here: Option<VcpuIndex>, host: &mut H) -> bool {
        if let Some((_, end)) = &self.terminal {
            let mut end = end.lock();
            if end.is_open() {
                let room = end.room() != 0;
                end.write(&[byte], host.now());
                return room;
            }
        }
        let mut taken = false;
        self.with_uart(here, host, &mut |uart| taken = uart.wants_input() && uart.push(byte));
        taken
    }

    /// Works on the UART, and passes on what that did to its interrupt line and to its room for
    /// input. The interrupt controller hears of the line before another vCPU can change it again.
    pub(super) fn with_uart<H: Host>(
        &self,
        here: Option<VcpuIndex>,
        host: &mut H,
        work: &mut dyn FnMut(&mut Pl011),
    ) {
        let mut uart = self.uart.lock();
        let (line, room) = (uart.interrupt_line(), uart.wants_input());
        work(&mut uart);
        if uart.interrupt_line() != line {
            self.set_line(layout::UART_SPI, !line, here, host);
        }
        if !room && uart.wants_input() {
            host.input_wanted();
        }
    }

    /// Works on the clock, passes on what its interrupt line now is, and has the core come back when
    /// its alarm is due.
    pub(super) fn with_rtc<H: Host>(
        &self,
        here: Option<VcpuIndex>,
        host: &mut H,
        work: &mut dyn FnMut(&mut Pl031, Ticks),
    ) {
        let now = host.now();
        let mut rtc = self.rtc.lock();
        work(&mut rtc, now);
        self.set_line(layout::RTC_SPI, rtc.interrupt_line(now), here, host);
        if let Some(deadline) = rtc.deadline(now) {
            host.wake_at(deadline);
        }
    }

    /// Works on the watchdog, passes on what it then signals, and has the core come back when it would
    /// expire. The second expiry resets this machine.
    pub(super) fn with_watchdog<H: Host>(
        &self,
        here: Option<VcpuIndex>,
        host: &mut H,
        work: &mut dyn FnMut(&mut Watchdog, Ticks),
    ) {
        let now = host.now();
        let mut watchdog = self.watchdog.lock();
        let (line, over) = watchdog.signals();
        work(&mut watchdog, now);
        let new_line = watchdog.interrupt_line(now);
        if new_line != line {
            self.set_line(layout::WATCHDOG_SPI, new_line, here, host);
        }
        if !over && watchdog.has_expired(now) {
            log::warn!("{}: its watchdog has expired", self.name);
            self.happen(Event::Reset, host);
        }
        if let Some(deadline) = watchdog.deadline(now) {
            host.wake_at(deadline);
        }
    }

    /// A time that was asked for by [`Host::wake_at`] or [`Host::keep_polling`] has come, or
    /// another one. To be followed by [`Self::poll`].
    pub fn on_timer<H: Host>(&self, here: Option<VcpuIndex>, host: &mut H) {
        self.with_rtc(here, host, &mut |_, _| ());
        // That of a machine that stands still waits until it goes on: see the manager of its life.
        if self.life.may_run() {
            self.with_watchdog(here, host, &mut |_, _| ());
        }
        if self.has_work_in_flight() {
            host.keep_polling();
        }
    }

    /// The line of a level-triggered device is `high` or low.
    #[inline(never)]
    fn set_line<H: Host>(&self, spi: u32, high: bool, here: Option<VcpuIndex>, host: &mut H) {
        if let Some(intid) = IntId::spi(spi) {
            self.signal(here, host, |gic| gic.set_level(intid, high));
        }
    }

    /// Resets the machine's devices and its interrupt controller, but for the watchdog, whose reset comes
    /// with the next start: it counts from then. None of its vCPUs is on a core,
    /// and no other machine's is on this one. `false` while a physical device may still reach the
    /// guest's memory: then call again.
    pub fn reset<H: Host>(&self, host: &mut H) -> bool {
        let now = host.now();
        self.poll(None, host);
        let mut quiet = true;
        for (slot, device) in self.slots.iter().enumerate() {
            let mut device = device.lock();
            quiet &= device.reset_by_machine(now) == WriteOutcome::Done;
            self.after_work(slot, &mut device, None, host);
        }
        if quiet {
            self.with_uart(None, host, &mut |uart| *uart = Pl011::new());
            self.with_rtc(None, host, &mut Pl031::reset);
            self.gic.lock().reset_unloaded();
        }
        quiet
    }
}

/// A virtual CPU. Its registers come first: the vectors save to its address.
#[repr(C)]
pub struct Vcpu<'m> {
    /// Its registers while it is not running.
    pub registers: GuestRegisters,
    /// Which of its VM's it is.
    pub index: VcpuIndex,
    /// The machine it belongs to.
    pub vm: &'m Vm<'m>,
    /// What its exits were for.
    pub exits: ExitCounts,
}

impl<'m> Vcpu<'m> {
    /// A vCPU that has not run.
    pub const fn new(index: VcpuIndex, vm: &'m Vm<'m>, exits: ExitCounts) -> Self {
        Self { registers: GuestRegisters::new(), index, vm, exits }
    }
}
