//! A virtual machine and its vCPUs.
//!
//! Locks: each virtio slot, the UART and the clock have their own, and no two of these are held at
//! once. Under any of them the interrupt controller's may be taken, or that of the log's limit, and
//! under those none; a line for the log takes the board's console as well. A lock is never held
//! while a guest runs, nor while a disk is waited for.

#[cfg(test)]
mod tests;

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use super::host::Host;
use super::layout;
use super::pl011::Pl011;
use super::pl031::Pl031;
use super::stats::ExitCounts;
use crate::backend::clock::Ticks;
use crate::cpu::GuestRegisters;
use crate::cpu::sysreg::Limits;
use crate::gic::{GicVersion, IntId, VcpuIndex, VcpuSet, Vgic};
use crate::memory::GuestMemory;
use crate::rate_limit::RateLimit;
use crate::sync::Mutex;
use crate::virtio::{MmioTransport, NextPoll, Status, WriteOutcome};

/// Virtio devices one VM can have.
pub const MAX_DEVICES: usize = 8;

/// Bits of slots to be polled at every poll point.
const SOON: u32 = (1 << MAX_DEVICES) - 1;
/// How far above them the bits of slots are that wait for an event or a time.
const WAITING: usize = MAX_DEVICES;

/// A virtual machine: everything its vCPUs share.
pub struct Vm<'m> {
    /// Its name in the log.
    pub name: &'static str,
    /// Its RAM.
    pub memory: GuestMemory<'m>,
    /// What its ID registers must say.
    pub limits: Limits,
    /// Its interrupt controller.
    gic: Mutex<Vgic>,
    /// Its console.
    uart: Mutex<Pl011>,
    /// Its clock.
    rtc: Mutex<Pl031>,
    /// Its virtio devices, by slot.
    slots: heapless::Vec<Mutex<MmioTransport<'m, 'm>>, MAX_DEVICES>,
    /// Slots that are to be polled: a bit for each that wants it at every poll point ([`SOON`]), and
    /// above them one for each that wants it on events or at a time ([`WAITING`]).
    to_poll: AtomicU32,
    /// How much of what the guest causes is logged.
    log_limit: Mutex<RateLimit>,
}

// Each core with one of its vCPUs works on it.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Vm<'static>>();
};

impl<'m> Vm<'m> {
    /// A machine without virtio devices. No more of what the guest causes is logged than `log_limit`
    /// admits.
    pub fn new(
        name: &'static str,
        memory: GuestMemory<'m>,
        limits: Limits,
        gic: Vgic,
        rtc: Pl031,
        log_limit: RateLimit,
    ) -> Self {
        Self {
            name,
            memory,
            limits,
            gic: Mutex::new(gic),
            uart: Mutex::new(Pl011::new()),
            rtc: Mutex::new(rtc),
            slots: heapless::Vec::new(),
            to_poll: AtomicU32::new(0),
            log_limit: Mutex::new(log_limit),
        }
    }

    /// Puts a device into the next slot; its number. `None`, and the device is gone, if all are
    /// taken.
    pub fn plug(&mut self, device: MmioTransport<'m, 'm>) -> Option<usize> {
        let slot = self.slots.len();
        self.slots.push(Mutex::new(device)).ok()?;
        Some(slot)
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
    #[inline]
    pub(super) fn after_work<H: Host>(
        &self,
        slot: usize,
        device: &mut MmioTransport<'m, 'm>,
        vcpu: VcpuIndex,
        host: &mut H,
    ) {
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
                self.interrupt(vcpu, host, |gic, _| gic.pulse(intid));
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
    pub fn poll<H: Host>(&self, vcpu: VcpuIndex, host: &mut H) {
        let now = host.now();
        let slots = self.to_poll.load(Ordering::Relaxed);
        let mut slots = (slots | slots >> WAITING) & SOON;
        while slots != 0 {
            let slot = slots.trailing_zeros() as usize;
            slots &= slots - 1;
            if let Some(device) = self.slot(slot) {
                let mut device = device.lock();
                device.poll(now);
                self.after_work(slot, &mut device, vcpu, host);
            }
        }
    }

    /// Works on the interrupt controller, and lists what the vCPU on this core must now see: also
    /// after reads, which may find out what the guest has done to its list registers. With one vCPU
    /// a machine, there is never another to be told.
    #[inline]
    pub(super) fn with_gic<H: Host, T>(
        &self,
        vcpu: VcpuIndex,
        host: &mut H,
        work: impl FnOnce(&mut Vgic, &mut H::ListRegisters) -> T,
    ) -> T {
        let mut gic = self.gic.lock();
        let lrs = host.list_registers();
        let result = work(&mut gic, lrs);
        if gic.needs_flush(vcpu) {
            let _ = gic.flush(vcpu, lrs);
        }
        result
    }

    /// What its interrupt controller is.
    pub fn gic_version(&self) -> GicVersion {
        self.gic.lock().version()
    }

    /// Changes interrupt state, and lists what the vCPU on this core must now see.
    #[inline]
    pub fn interrupt<H: Host>(
        &self,
        vcpu: VcpuIndex,
        host: &mut H,
        change: impl FnOnce(&mut Vgic, &mut H::ListRegisters) -> VcpuSet,
    ) {
        let _ = self.with_gic(vcpu, host, change);
    }

    /// Whether the console has room for input.
    pub fn wants_input(&self) -> bool {
        self.uart.lock().wants_input()
    }

    /// Input for the console. `false`, and nothing is taken, if it has no room;
    /// [`Host::input_wanted`] tells when it has.
    pub fn receive<H: Host>(&self, byte: u8, vcpu: VcpuIndex, host: &mut H) -> bool {
        self.with_uart(vcpu, host, |uart| uart.wants_input() && uart.push(byte))
    }

    /// Works on the UART, and passes on what that did to its interrupt line and to its room for
    /// input. The interrupt controller hears of the line before another vCPU can change it again.
    #[inline]
    pub(super) fn with_uart<H: Host, T>(
        &self,
        vcpu: VcpuIndex,
        host: &mut H,
        work: impl FnOnce(&mut Pl011) -> T,
    ) -> T {
        let mut uart = self.uart.lock();
        let (line, room) = (uart.interrupt_line(), uart.wants_input());
        let result = work(&mut uart);
        if uart.interrupt_line() != line {
            self.set_line(layout::UART_SPI, !line, vcpu, host);
        }
        if !room && uart.wants_input() {
            host.input_wanted();
        }
        result
    }

    /// Works on the clock, passes on what its interrupt line now is, and has the core come back when
    /// its alarm is due.
    pub(super) fn with_rtc<H: Host, T>(
        &self,
        vcpu: VcpuIndex,
        host: &mut H,
        work: impl FnOnce(&mut Pl031, Ticks) -> T,
    ) -> T {
        let now = host.now();
        let mut rtc = self.rtc.lock();
        let result = work(&mut rtc, now);
        self.set_line(layout::RTC_SPI, rtc.interrupt_line(now), vcpu, host);
        if let Some(deadline) = rtc.deadline(now) {
            host.wake_at(deadline);
        }
        result
    }

    /// A time that was asked for by [`Host::wake_at`] or [`Host::keep_polling`] has come, or
    /// another one. To be followed by [`Self::poll`].
    pub fn on_timer<H: Host>(&self, vcpu: VcpuIndex, host: &mut H) {
        self.with_rtc(vcpu, host, |_, _| ());
        if self.has_work_in_flight() {
            host.keep_polling();
        }
    }

    /// The line of a level-triggered device is `high` or low.
    fn set_line<H: Host>(&self, spi: u32, high: bool, vcpu: VcpuIndex, host: &mut H) {
        if let Some(intid) = IntId::spi(spi) {
            self.interrupt(vcpu, host, |gic, _| gic.set_level(intid, high));
        }
    }

    /// Resets the machine's devices and its interrupt controller. `false` while a physical device
    /// may still reach the guest's memory: poll, and ask again.
    pub fn reset<H: Host>(&self, vcpu: VcpuIndex, host: &mut H) -> bool {
        let now = host.now();
        let mut quiet = true;
        for (slot, device) in self.slots.iter().enumerate() {
            let mut device = device.lock();
            quiet &= device.reset_by_machine(now) == WriteOutcome::Done;
            self.after_work(slot, &mut device, vcpu, host);
        }
        if quiet {
            self.with_uart(vcpu, host, |uart| *uart = Pl011::new());
            self.with_rtc(vcpu, host, Pl031::reset);
            self.gic.lock().reset(vcpu, host.list_registers());
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
