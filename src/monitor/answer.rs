//! Commands are carried out. The format of the answers is in `docs/monitor.md`.

use core::fmt::{self, Write};

use super::command::Command;
use super::operator::{ActionError, DeviceInfo, Operator};
use crate::backend::clock::Ticks;
use crate::console::LOG_LEN;
use crate::virtio::limiter::{Limits, Rate};
use crate::vm::ExitCounts;

/// Upper bounds on what an operator can name, so that none can hold us here.
const MAX_VMS: usize = 8;
const MAX_PER_VM: usize = 32;
const MAX_CORES: usize = 8;

const HELP: &str = "\
help                          this list
vms                           all VMs
vm NAME start|stop|pause|resume|reset
attach NAME                   give the terminal to a VM
devices                       virtio devices
device NAME SLOT limit in|out BYTES[/BURST] REQUESTS[/BURST]
                              so many a second, and at once; - is without limit
device NAME SLOT link up|down
device NAME SLOT capacity SECTORS
device NAME SLOT eject
device NAME SLOT insert MEDIUM
device NAME SLOT size COLUMNS ROWS
stats [NAME]                  exits and requests
cores                         the board's cores
memory                        the board's memory, in KiB
log [LEVEL]                   the last lines logged, or what to log from now on:
                              off, error, warn, info, debug, trace
quit                          back to the guests
";

/// Carries out one command line and writes the answer to `out`, no more than `log_room` bytes of it
/// from the log. What goes wrong is in the answer, as a line that begins with `error: `.
///
/// # Errors
/// If `out` takes no more.
pub fn run(
    line: &[u8],
    operator: &mut dyn Operator,
    out: &mut dyn Write,
    log_room: usize,
) -> fmt::Result {
    let command = match Command::parse(line) {
        Ok(command) => command,
        Err(error) => return writeln!(out, "error: {error}"),
    };
    match command {
        Command::Nothing => Ok(()),
        Command::Help => out.write_str(HELP),
        Command::Vms => vms(operator, out),
        Command::Vm { name, action } => {
            with_vm(name, out, operator, |operator, vm| operator.act(vm, action))
        }
        Command::Device { name, slot, change } => {
            with_vm(name, out, operator, |operator, vm| operator.adjust(vm, slot, change))
        }
        Command::Attach { name } => {
            with_vm(name, out, operator, |operator, vm| operator.attach(vm))
        }
        Command::Devices => devices(operator, out),
        Command::Stats { name } => stats(name, operator, out),
        Command::Cores => cores(operator, out),
        Command::Memory => memory(operator, out),
        Command::Log => log(operator, out, log_room.min(LOG_LEN)),
        Command::LogLevel(level) => {
            operator.set_log_level(level);
            Ok(())
        }
        Command::Quit => match operator.quit() {
            Ok(()) => Ok(()),
            Err(error) => writeln!(out, "error: {error}"),
        },
    }
}

fn find(operator: &dyn Operator, name: &str) -> Option<usize> {
    for vm in 0..MAX_VMS {
        if operator.vm(vm)?.name == name {
            return Some(vm);
        }
    }
    None
}

fn unknown(out: &mut dyn Write, name: &str) -> fmt::Result {
    writeln!(out, "error: no VM \"{name}\"")
}

fn with_vm(
    name: &str,
    out: &mut dyn Write,
    operator: &mut dyn Operator,
    work: impl FnOnce(&mut dyn Operator, usize) -> Result<(), ActionError>,
) -> fmt::Result {
    let Some(vm) = find(operator, name) else { return unknown(out, name) };
    match work(operator, vm) {
        Ok(()) => Ok(()),
        Err(error) => writeln!(out, "error: {name}: {error}"),
    }
}

/// A list of cores, as `0,2`.
struct Cores(u8);

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for core in (0..8).filter(|core| self.0 >> core & 1 != 0) {
            if !core::mem::take(&mut first) {
                f.write_str(",")?;
            }
            write!(f, "{core}")?;
        }
        f.write_str(if first { "-" } else { "" })
    }
}

/// A limit, as it is typed.
struct Limit(Option<Rate>);

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(Rate { per_second, burst }) => write!(f, "{per_second}/{burst}"),
            None => f.write_str("-"),
        }
    }
}

fn vms(operator: &dyn Operator, out: &mut dyn Write) -> fmt::Result {
    writeln!(out, "name             state    vcpus online memory-KiB restarts cores")?;
    for vm in (0..MAX_VMS).map_while(|vm| operator.vm(vm)) {
        writeln!(
            out,
            "{:<16} {:<8} {:>5} {:>6} {:>10} {:>8} {}",
            vm.name,
            vm.state,
            vm.vcpus,
            vm.online,
            vm.memory >> 10,
            vm.restarts,
            Cores(vm.cores),
        )?;
    }
    Ok(())
}

fn each_device(
    operator: &dyn Operator,
    vm: usize,
    mut show: impl FnMut(usize, DeviceInfo) -> fmt::Result,
) -> fmt::Result {
    for slot in 0..MAX_PER_VM {
        let Some(device) = operator.device(vm, slot) else { break };
        show(slot, device)?;
    }
    Ok(())
}

fn devices(operator: &dyn Operator, out: &mut dyn Write) -> fmt::Result {
    writeln!(
        out,
        "vm               slot kind    state    requests   errors     in-KiB    out-KiB      \
         kicks interrupts"
    )?;
    for (number, vm) in (0..MAX_VMS).map_while(|vm| Some((vm, operator.vm(vm)?))) {
        each_device(operator, number, |slot, device| {
            writeln!(
                out,
                "{:<16} {slot:>4} {:<7} {:<6} {:>10} {:>8} {:>10} {:>10} {:>10} {:>10}",
                vm.name,
                device.kind_name(),
                device.state_name(),
                device.requests,
                device.errors,
                device.bytes_in >> 10,
                device.bytes_out >> 10,
                device.kicks,
                device.interrupts,
            )
        })?;
    }
    Ok(())
}

/// Statistics are for programs as much as for people: `KEY=VALUE` words.
fn stats(name: Option<&str>, operator: &dyn Operator, out: &mut dyn Write) -> fmt::Result {
    let only = match name {
        None => None,
        Some(name) => match find(operator, name) {
            None => return unknown(out, name),
            vm => vm,
        },
    };
    let frequency = operator.frequency();
    let microseconds = |ticks| frequency.microseconds(Ticks(ticks));
    for (number, vm) in (0..MAX_VMS).map_while(|vm| Some((vm, operator.vm(vm)?))) {
        if only.is_some_and(|only| only != number) {
            continue;
        }
        let boot = operator.boot(number).unwrap_or_default();
        write!(out, "{} boot:", vm.name)?;
        let mut time = |name: &str, number: Option<usize>, time: Option<Ticks>| {
            let Some(Ticks(ticks)) = time else { return Ok(()) };
            write!(out, " {name}")?;
            if let Some(number) = number {
                write!(out, "{number}")?;
            }
            write!(out, "={ticks},{}us", microseconds(ticks))
        };
        time("start", None, boot.start)?;
        time("first_mmio", None, boot.first_mmio)?;
        for (slot, ok) in boot.driver_ok.iter().enumerate() {
            time("driver_ok", Some(slot), *ok)?;
        }
        for (mark, at) in &boot.marks {
            time("mark", Some((*mark).into()), Some(*at))?;
        }
        writeln!(out, " lost_mark={}", boot.lost_marks)?;
        for vcpu in 0..vm.vcpus.min(MAX_PER_VM) {
            let exits: ExitCounts = operator.exits(number, vcpu).unwrap_or_default();
            writeln!(out, "{} vcpu{vcpu}: {exits}", vm.name)?;
        }
        each_device(operator, number, |slot, device| {
            let mean = device.latency.checked_div(device.requests).unwrap_or(0);
            write!(
                out,
                "{} {}{slot}: request={} error={} in={} out={} kick={} interrupt={} mean_us={} max_us={}",
                vm.name,
                device.kind_name(),
                device.requests,
                device.errors,
                device.bytes_in,
                device.bytes_out,
                device.kicks,
                device.interrupts,
                microseconds(mean),
                microseconds(device.latency_max),
            )?;
            for (at, (limit, count)) in device.latencies.buckets().enumerate() {
                out.write_str(if at == 0 { " latency_us=" } else { "," })?;
                match limit {
                    Some(ticks) => write!(out, "{}:{count}", microseconds(ticks))?,
                    None => write!(out, "more:{count}")?,
                }
            }
            for (name, limits) in ["in_limit", "out_limit"].into_iter().zip(device.limits) {
                if limits != Limits::default() {
                    write!(out, " {name}={},{}", Limit(limits.bytes), Limit(limits.requests))?;
                }
            }
            write!(out, " merge={}", device.merged)?;
            for (at, (reason, count)) in device.drops.iter().enumerate() {
                if *count != 0 {
                    out.write_str(if at == 0 { " drop=" } else { "," })?;
                    word(reason, *count, ':', out)?;
                }
            }
            out.write_char('\n')
        })?;
    }
    if only.is_some() {
        return Ok(());
    }
    let (mut result, mut any) = (Ok(()), false);
    operator.uplink(&mut |name, count| {
        if count != 0 && result.is_ok() {
            let first = !core::mem::replace(&mut any, true);
            result = out.write_str(if first { "uplink: " } else { " " });
            result = result.and_then(|()| word(name, count, '=', out));
        }
    });
    result?;
    out.write_str(if any { "\n" } else { "" })
}

/// A counter, its name as one word.
fn word(name: &str, count: u64, between: char, out: &mut dyn Write) -> fmt::Result {
    for letter in name.chars().filter(|letter| *letter != ':') {
        out.write_char(if letter == ' ' { '_' } else { letter })?;
    }
    write!(out, "{between}{count}")
}

fn cores(operator: &dyn Operator, out: &mut dyn Write) -> fmt::Result {
    writeln!(out, "core affinity   state   vcpus   switches runs")?;
    for (number, core) in (0..MAX_CORES).map_while(|core| Some((core, operator.core(core)?))) {
        let state = if core.online { "online" } else { "offline" };
        let (affinity, switches) = (core.affinity, core.switches);
        write!(out, "{number:>4} {affinity:#010x} {state:<7} {:>5} {switches:>10} ", core.vcpus)?;
        match core.running.and_then(|(vm, vcpu)| Some((operator.vm(vm)?.name, vcpu))) {
            Some((name, vcpu)) => writeln!(out, "{name}.{vcpu}")?,
            None => writeln!(out, "-")?,
        }
    }
    Ok(())
}

fn memory(operator: &dyn Operator, out: &mut dyn Write) -> fmt::Result {
    let memory = operator.memory();
    for (name, bytes) in [
        ("total", memory.total),
        ("guests", memory.guests),
        ("pool", memory.pool),
        ("pool-free", memory.pool_free),
        ("free", memory.free),
    ] {
        writeln!(out, "{name:<10} {:>10}", bytes >> 10)?;
    }
    Ok(())
}

/// The last `room` bytes of the log, in whole lines.
fn log(operator: &dyn Operator, out: &mut dyn Write, room: usize) -> fmt::Result {
    let end = operator.log_written();
    let mut position = end.saturating_sub(room as u64);
    // The rest of a line whose beginning is not there is left out.
    let mut skipping = position != 0;
    let mut chunk = [0u8; 128];
    while position < end {
        let (count, next) = operator.read_log(position, &mut chunk);
        let (Some(bytes), true) = (chunk.get(..count), next > position) else { break };
        let left = usize::try_from(end.saturating_sub(position)).unwrap_or(usize::MAX);
        // Bytes that were overwritten meanwhile are missing: again a line begins in its middle.
        skipping |= next - count as u64 > position;
        position = next;
        for byte in bytes.iter().take(left) {
            if skipping {
                skipping = *byte != b'\n';
            } else if matches!(byte, b' '..=b'~' | b'\n') {
                out.write_char(char::from(*byte))?;
            }
        }
    }
    Ok(())
}
