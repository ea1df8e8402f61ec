//! Several cores at once.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use super::*;

const FRAMES: usize = 3000;
const STATIONS: usize = 4;

/// Every station sends to every other and to all, as fast as it can, and receives at the same time. A
/// fifth thread works on the uplink, and on a port that nobody uses.
#[test]
fn cores_that_send_and_receive_at_once_lose_nothing_and_get_nothing_twice() {
    let net = Net::new();
    let card = net.uplink(CARD);
    let options = Options { backlog: 0x20_0000, ..Options::default() };
    let stations: Vec<_> = (1..=STATIONS as u8).map(|number| net.open(number, options)).collect();
    let spare = net.open(9, Options::default());
    let senders = AtomicUsize::new(STATIONS);
    let over = AtomicBool::new(false);
    let received: Vec<Vec<(u8, usize)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = stations
            .into_iter()
            .map(|mut station| {
                let (senders, over) = (&senders, &over);
                scope.spawn(move || {
                    let own = station.index as u8 + 1;
                    let mut got = Vec::new();
                    let mut take = |station: &mut Station| {
                        for frame in station.all() {
                            let text = String::from_utf8(frame[14..22].to_vec()).unwrap();
                            got.push((frame[11], text.parse().unwrap()));
                        }
                        while station.port.poll_sent(Ticks(1)).is_some() {}
                    };
                    for number in 0..FRAMES {
                        let to = match number % STATIONS {
                            0 => MacAddress::BROADCAST,
                            step => mac((own as usize - 1 + step) as u8 % STATIONS as u8 + 1),
                        };
                        let frame = ethernet(to, mac(own), None, &format!("{number:08}"));
                        while station.send_as(0, &frame, FrameInfo::PLAIN, 1).is_err() {
                            take(&mut station);
                            std::thread::yield_now();
                        }
                        if number % 8 == 0 {
                            station.port.kick();
                            take(&mut station);
                        }
                    }
                    senders.fetch_sub(1, Ordering::SeqCst);
                    while !over.load(Ordering::SeqCst) || station.port.in_flight() != 0 {
                        take(&mut station);
                        std::thread::yield_now();
                    }
                    take(&mut station);
                    got
                })
            })
            .collect();
        let mut up = false;
        loop {
            let last = senders.load(Ordering::SeqCst) == 0;
            card.transmit();
            while net.switch.poll_uplink(Ticks(1)) {}
            net.switch.set_link(spare.index, up).unwrap();
            net.switch.set_vlan(spare.index, up.then_some(7)).unwrap();
            up = !up;
            if last && card.with(|card| card.submitted.is_empty()) {
                break;
            }
        }
        over.store(true, Ordering::SeqCst);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (receiver, frames) in received.iter().enumerate() {
        for sender in (0..STATIONS).filter(|sender| *sender != receiver) {
            let numbers: Vec<_> = frames
                .iter()
                .filter(|(from, _)| usize::from(*from) == sender + 1)
                .map(|(_, number)| *number)
                .collect();
            let step = (receiver + STATIONS - sender) % STATIONS;
            let expected: Vec<_> = (0..FRAMES)
                .filter(|number| matches!(number % STATIONS, at if at == 0 || at == step))
                .collect();
            assert_eq!(numbers, expected, "from {sender} to {receiver}");
        }
    }
}
