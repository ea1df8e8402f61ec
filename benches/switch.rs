//! What a frame costs in the switch, in instructions of the host.
//!
//! ```text
//! cargo bench --bench switch
//! ```
//! needs valgrind, runs itself under it for two numbers of rounds, and prints the difference for each
//! frame: sent by one guest, delivered to the buffer of another, collected by it, and the buffer posted
//! again. The copy of the bytes is in it; on a host that is a loop of words, at EL2 10 instructions for
//! 64 bytes.
#![cfg(not(target_os = "none"))]
#![allow(missing_docs, clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use std::hint::black_box;
use std::process::Command;

use sparkler::backend::clock::{Frequency, Ticks};
use sparkler::backend::net::{
    Frame, FrameInfo, MacAddress, NetBackend, Offloads, Reception, SendTag,
};
use sparkler::backend::switch::{PairQueue, Port, PortCell, PortConfig, Switch};
use sparkler::backend::wake::{Wake, Waker};
use sparkler::memory::{HostRam, Pa, SharedSlice};

/// Kinds of traffic: the length of the frame, and how many frames a kick has.
const KINDS: [(&str, usize, usize); 4] =
    [("64", 64, 1), ("64-batch", 64, 32), ("1514", 1514, 32), ("65226", 65_226, 1)];
/// Bytes of a buffer, as Linux posts them for large frames.
const BUFFER: usize = 4096;

struct Nobody;

impl Wake for Nobody {
    fn wake(&self, core: u8) {
        black_box(core);
    }
}

/// What is counted: everything that happens in `work`.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    work();
}

fn leak<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

fn station(switch: &'static Switch<'static>, number: u8) -> Port<'static, 'static> {
    let cell = leak(PortCell::new(PortConfig {
        mac: MacAddress([2, 0, 0, 0, 0, number]),
        mtu: 65_535,
        vlan: None,
        isolated: false,
        guard: true,
        speed: None,
        waker: Waker::new(&Nobody, number),
        queues: vec![PairQueue::new()].leak(),
        backlog: SharedSlice::empty(),
    }));
    let mut port = switch.attach(cell).unwrap();
    port.open(Reception { accepts: Offloads::all(), mergeable: true, pairs: 1 });
    port
}

fn run(kind: &str, rounds: usize) {
    let (_, len, batch) = *KINDS.iter().find(|(name, ..)| *name == kind).unwrap();
    let switch = leak(Switch::new(Frequency::new(1_000_000).unwrap(), 1));
    let (mut a, mut b) = (station(switch, 1), station(switch, 2));
    let ram = leak(HostRam::new(0x10_0000)).slice(Pa::new(0));
    let frame = ram.subslice(0x100, len).unwrap();
    frame.write_bytes(0, &[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xB5]).unwrap();
    let segments = [frame];
    let buffers: Vec<_> =
        (0..64).map(|index| ram.subslice(0x2_0000 + index * BUFFER, BUFFER).unwrap()).collect();
    for buffer in &buffers {
        b.post(0, &[*buffer]).unwrap();
    }
    let mut next = 0;
    let mut work = || {
        for _ in 0..batch {
            let frame = Frame { info: FrameInfo::PLAIN, segments: &segments, len };
            black_box(a.send(0, SendTag(0), frame, Ticks(5)).unwrap());
        }
        a.kick();
        while b.poll_received(0).is_some() {
            b.post(0, &[buffers[next % 64]]).unwrap();
            next += 1;
        }
    };
    for _ in 0..rounds {
        measured(&mut work);
    }
}

/// Instructions of so many rounds.
fn collected(kind: &str, rounds: usize) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg("--toggle-collect=*measured*")
        .arg(std::env::current_exe().ok()?)
        .args(["--run", kind, &rounds.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let (_, after) = text.split_once("Collected : ")?;
    after.split_whitespace().next()?.parse().ok()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [option, kind, rounds] = &arguments[..]
        && option == "--run"
    {
        return run(kind, rounds.parse().unwrap());
    }
    println!("instructions a frame; bytes of the frame");
    for (kind, _, batch) in KINDS {
        let figure = collected(kind, 10).zip(collected(kind, 110));
        let figure = figure.map(|(few, more)| (more - few) as f64 / (100 * batch) as f64);
        println!("{kind:<16} {:>12}", figure.map_or("no valgrind".into(), |it| format!("{it:.1}")));
    }
}
