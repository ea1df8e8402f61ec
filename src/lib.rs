//! sparkler is a type-1 hypervisor for bare-metal aarch64: it runs at EL2 with nothing below it,
//! and serves virtio devices to unmodified guests from there. This page is the map of the code;
//! what it is for, how to run it and what works is in `README.md`.
//!
//! ```text
//!   EL1   guest:  Linux and its drivers
//!         ------------ stage-2 faults, HVC, SMC, traps, interrupts ------------------
//!   EL2   boot/  arch   vectors, world switch, system registers, physical GIC
//!         vm     cpu    exits from syndrome to resumption; the MMIO bus
//!         virtio gic    transport, queues, devices; the virtual GIC
//!         memory fdt    stage 2, guest memory; device trees in and out
//!         backend       what a device asks of the hardware: a disk, a UART, time
//!         drivers       polled drivers for the board's own devices
//!         ------------ registers, DMA ------------------------------------------------
//!   board         disk on virtio-mmio, PL011, PL031, GICv3, generic timer
//! ```
//!
//! # Rooms
//!
//! | room | what is in it |
//! |---|---|
//! | `boot/` | assembly: Image header, entry, vectors and world switch, probes |
//! | `arch` | the bare core. Compiled for `target_os = "none"` only, so nothing portable can name it |
//! | [`cpu`] | what the architecture means: syndromes, MMIO accesses, PSCI, trapped registers |
//! | [`memory`] | addresses, frames, stage-2 tables, memory shared with guests and devices |
//! | [`gic`] | the virtual GIC: a state machine, its registers, list-register scheduling |
//! | [`virtio`] | the device side of virtio: transport, queues, devices |
//! | [`backend`] | the traits between devices and hardware, and back ends without hardware |
//! | [`console`] | one UART for many guests, the log and the monitor |
//! | [`monitor`] | the shell of whoever is in charge: commands, snapshots, hypercalls |
//! | [`drivers`] | polled drivers over two seams, registers and shared memory |
//! | [`fdt`] | the board's device tree is read, the guest's is written |
//! | [`vm`] | a machine: configuration, life, its vCPUs' turns, exits, bus, loader, emulated UART and clock |
//! | [`sync`], [`rate_limit`] | locks; a bound on what a guest can have logged |
//! | `bringup`, in the image | from the hand-over of the boot code to the guest |
//!
//! The image's `bringup` may use all rooms; `arch` uses the traits and types of the portable ones;
//! [`vm`] uses [`cpu`], [`memory`], [`gic`], [`virtio`], [`backend`] and [`fdt`]; [`virtio`] uses
//! [`memory`] and [`backend`], never [`drivers`].
//!
//! # Boot
//!
//! 1. `boot/header.S`: the boot loader finds an arm64 Image and enters it, x0 = device tree.
//! 2. `boot/entry.S`: drops from EL3, or at EL1 says so and stops; zeroes .bss, maps the image
//!    (text RX, constants R, data RW, guard pages under the stacks), turns the MMU on, jumps to the
//!    link address, leaves the identity map. The constants are in `arch::layout`. Other cores come in
//!    there too, when `arch::smp::start` has them started.
//! 3. `arch::boot::rust_entry`, then the function named by `entry!`: `bringup::run`.
//! 4. `bringup::board`: the tree is probed, mapped and read ([`fdt::Board::read`]); the console it
//!    names is opened (`arch::console`).
//! 5. `bringup::machines::run`: the VMs of the tree are read and judged
//!    ([`vm::config::Configuration::read`]); of the RAM that is left ([`fdt::Board::free_ram`]) first EL2's
//!    pool ([`memory::FramePool`]), then each VM's ([`vm::config::Configuration::place`]). `bringup::cores`
//!    brings up the physical GIC (`arch::gic::PhysicalGic::init`) and the other cores
//!    (`arch::smp::start`).
//! 6. Each VM: stage 2 ([`memory::stage2::Stage2::map`]), the machine ([`vm::Vm::new`]), its disks
//!    ([`drivers::virtio::VirtioBlk::new`] behind [`virtio::devices::block::Block`], plugged in by
//!    [`vm::Vm::plug`]), a `Resident` for each vCPU, added to the `Seat` of its core.
//! 7. All cores go to their seats: `arch::guest::Seat::run` sets the traps (`arch::el1::set_traps`) and looks
//!    for something to do. What there is at first is to start machines: the next section.
//!
//! # Life of a machine
//!
//! 1. [`vm::lifecycle::Life::ask`]: at boot, by an operator; [`vm::lifecycle::Life::happen`]: by a guest's PSCI
//!    call, its crash, its watchdog. The home core, that of vCPU 0, is nudged, and its seat calls [`vm::lifecycle::Manager::step`].
//! 2. Down: no vCPU may run any more, each leaves its core ([`vm::vcpus::VcpuTable::is_at_rest`]); the devices
//!    let go of the RAM and the interrupt controller is reset ([`vm::Vm::reset`]).
//! 3. Up: RAM zeroed piece by piece (`arch::cache::scrub`); kernel and ramdisk copied likewise
//!    ([`vm::loader::copy`]); the tree placed ([`vm::loader::finish`], [`vm::Vm::describe`]); vCPU 0 turned on
//!    ([`vm::vcpus::VcpuTable::turn_on`]), as PSCI's CPU_ON does for the others.
//! 4. The core of a vCPU that was turned on finds it (`Seat::wake`), gives it its reset state
//!    (`arch::context::El1Context::reset`) and, when it is its turn ([`vm::run_queue::RunQueue::pick`]), puts
//!    it on the core (`Seat::load`); `Seat::unload` is the way back. With nobody ready the core
//!    sleeps at EL2.
//!
//! # Exit
//!
//! 1. `boot/vectors.S`, `guest_exit`: x0-x30, ELR_EL2 and SPSR_EL2 go to the vCPU in the seat that
//!    TPIDR_EL2 points to. The rest of the EL1 state stays where it is.
//! 2. `arch::exception::on_sync` calls [`vm::exit::synchronous`], which decodes ESR_EL2 once
//!    ([`cpu::Syndrome::decode`]).
//! 3. By class:
//!    - data abort: [`cpu::MmioAccess::from_abort`] says what the instruction does; without a
//!      syndrome (ISV = 0) it is read from guest memory and decoded ([`cpu::decode::decode`], from
//!      `vm/trap.rs`). [`vm::bus`] finds who is at the IPA and calls it. Nobody there: an external
//!      abort for the guest
//!      ([`cpu::abort::ExceptionSource::inject`]).
//!    - HVC, SMC: [`cpu::psci::Call::handle`], or for the monitor [`monitor::hypercall`]; nothing
//!      reaches the firmware.
//!    - MSR, MRS and system instructions: [`cpu::sysreg::access`], one table.
//!    - WFI, trapped where vCPUs share a core: the vCPU waits, another has its turn.
//!    - instruction abort: an external abort for the guest. Anything else is an undefined instruction.
//! 4. With requests in flight, [`vm::Vm::poll`]: an exit is a poll point.
//! 5. [`vm::exit::Next`]: back through `resume_guest` in `boot/vectors.S`. Else the vCPU waits or is off,
//!    or its machine is to be reset, turned off or stopped (`arch::guest::Seat::leave`), and somebody
//!    else's turn is looked for (`arch::guest::Seat::look`).
//!
//! # I/O
//!
//! 1. A store to a virtio register: [`virtio::MmioTransport::write`]. QueueNotify becomes
//!    [`virtio::VirtioDevice::queue_notified`]; other registers move the status machine
//!    ([`virtio::status`]) or a queue's configuration ([`virtio::queue`]).
//! 2. [`virtio::device::ActiveQueue::pop`]: the chain is validated whole, and every buffer becomes
//!    a [`memory::SharedSlice`] of guest RAM ([`virtio::queue::ChainBuffer`],
//!    [`memory::GuestMemory::slice`]). A bad chain: DEVICE_NEEDS_RESET.
//! 3. [`virtio::devices::block`]: the request is judged, then
//!    [`submit`](backend::block::BlockBackend::submit)ted as a list of segments, and
//!    [`kick`](backend::block::BlockBackend::kick)ed once a batch. Nobody waits.
//! 4. [`drivers::virtio::VirtioBlk`] puts guest memory by its physical addresses into its own ring
//!    ([`drivers::virtio::queue`]), zero-copy, and rings the board's device.
//! 5. At a poll point - after an exit, on the device's interrupt, on EL2's tick - [`vm::Vm::poll`]
//!    collects what is finished ([`poll`](backend::block::BlockBackend::poll)),
//!    [`virtio::device::ActiveQueue::complete`]s it, and the transport publishes the used ring.
//!    What outlives its time-out ends as an error after the device was reset, which is given the rest
//!    again. Of a disk that several machines share, whichever core looks collects for all
//!    ([`backend::shared_disk`]), and wakes the cores of the others.
//! 6. If the driver wants to hear of it (EVENT_IDX, NO_INTERRUPT):
//!    [`virtio::MmioTransport::take_interrupt`], then [`gic::Vgic::pulse`].
//!
//! # Interrupts
//!
//! - *To the guest*: a device's event changes [`gic::Vgic`] ([`pulse`](gic::Vgic::pulse),
//!   [`set_level`](gic::Vgic::set_level)) through [`vm::Vm::interrupt`], and
//!   [`flush`](gic::Vgic::flush) lists the most urgent ones in list registers
//!   ([`gic::ListRegisters`], on hardware `arch::gic::list_registers`). What does not fit waits; the
//!   maintenance interrupt asks for more ([`gic::Vgic::on_maintenance`]). The guest acknowledges
//!   and ends interrupts at the virtual CPU interface, without an exit.
//! - *To a vCPU on another core*: every change of [`gic::Vgic`] says whom it concerns
//!   ([`gic::VcpuSet`]); their cores are nudged by SGI 0 ([`vm::Host::nudge`]), and list what they find.
//! - *Physical*: `arch::exception::on_irq`, `arch::interrupts::serve`. The guest's timers are
//!   dropped and handed on with HW = 1 ([`gic::Vgic::inject_hw`]), so the guest's deactivation is
//!   the physical one. Devices' interrupts are doorbells: they say that it is time to poll. The
//!   console's says that there is input ([`console::Mux::input`] says whose: a guest's, by
//!   [`vm::Vm::receive`], or a command for [`monitor::run`]). CNTHP is EL2's timer, set while
//!   requests are in flight, for the alarm of a guest's clock ([`vm::Vm::on_timer`]), for the console,
//!   at the end of a slice, and when the timer of a vCPU that waits is due.
//!
//! # Faults
//!
//! - The guest's: a register written wrongly has the specification's answer, a bad chain
//!   DEVICE_NEEDS_RESET, an address of nothing an external abort. None reaches a panic, and what is
//!   logged of them is bounded ([`vm::Vm::warn`]).
//! - The board's: a disk that does not answer a request fails it with IOERR; an SError while the
//!   guest runs stops it with a dump.
//! - EL2's own: `arch::fault::on_fatal` and the image's panic handler say where, and reset the
//!   board.
//!
//! # Where a register is written
//!
//! The guest's, trapped:
//!
//! | register | served by |
//! |---|---|
//! | virtio-MMIO | [`virtio::MmioTransport::read`], [`virtio::MmioTransport::write`] |
//! | configuration space of virtio-block | [`virtio::devices::block`] (`wire.rs`) |
//! | `GICD_*`, `GICR_*` | `gic/v3/distributor.rs`, `gic/v3/redistributor.rs`: [`gic::Vgic::gicd_write`], [`gic::Vgic::gicr_write`] |
//! | ICC_SGI1R_EL1 | [`gic::Vgic::send_sgi`]; other `ICC_*` registers are the hardware's `ICV_*` ones |
//! | `UART*`, `RTC*` | [`vm::pl011`], [`vm::pl031`] |
//! | WRR, WCS, WOR, WCV of the generic watchdog | [`vm::watchdog`] |
//! | the boot timer | [`vm::boot_timer`] |
//! | `ID_*`, debug, ACTLR_EL1, DC by set/way | [`cpu::sysreg::named`], [`cpu::sysreg::access`]; what is not there is undefined |
//!
//! The core's and the board's, by EL2:
//!
//! | register | written in |
//! |---|---|
//! | SCR_EL3, CPTR_EL3, ICC_SRE_EL3, SPSR_EL3, ELR_EL3 | `boot/entry.S`, when entered at EL3 |
//! | SCTLR_EL2, TCR_EL2, MAIR_EL2, TTBR0_EL2, VBAR_EL2 | `boot/entry.S`, from `arch::layout` |
//! | ELR_EL2, SPSR_EL2, TPIDR_EL2 | `boot/vectors.S`; `arch::guest::Seat::run` |
//! | HCR_EL2, CPTR_EL2, MDCR_EL2, HSTR_EL2, HCRX_EL2, CNTHCTL_EL2, VPIDR_EL2, MDSCR_EL1 | `arch::el1::set_traps`; HCR_EL2 and CPTR_EL2 first in `boot/entry.S` |
//! | VMPIDR_EL2, CNTVOFF_EL2, `*_EL1`, `*_EL0` | `arch::context` |
//! | ESR_EL1, ELR_EL1, SPSR_EL1, FAR_EL1 of an exception put into the guest; SP_EL0, SP_EL1 of a write-back | `arch::core` |
//! | VTCR_EL2, VTTBR_EL2 | `arch::stage2` |
//! | ICH_LR\<n\>_EL2, ICH_HCR_EL2 | `arch::gic::list_registers` |
//! | `ICC_*`, ICH_VMCR_EL2, ICH_AP\<n\>R0_EL2, ICH_HCR_EL2 at reset, the board's `GICD_*` and `GICR_*` | `arch::gic` |
//! | CNTHP_CTL_EL2, CNTHP_CVAL_EL2 | `arch::timer` |
//! | PMCR_EL0, PMEVTYPER\<n\>_EL0 | `arch::pmu` |
//! | the board's UART, the board's virtio-mmio | [`drivers::pl011`], [`drivers::virtio::mmio`] |
#![cfg_attr(not(test), no_std)]

#[cfg(target_os = "none")]
pub mod arch;
pub mod backend;
pub mod console;
pub mod cpu;
pub mod drivers;
pub mod fdt;
pub mod gic;
pub mod memory;
pub mod monitor;
pub mod rate_limit;
pub mod sync;
pub mod virtio;
pub mod vm;
