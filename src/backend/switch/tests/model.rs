//! Any traffic over any ports, against the most naive of switches.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const PORTS: usize = 5;
/// The place of the uplink, in the model.
const OUT: usize = PORTS;
const AGE: u64 = 300 * HERTZ as u64;

#[derive(Clone, Debug)]
enum Step {
    /// From a place (the last is the uplink), to and from a station, with a tag or none.
    Frame {
        from: usize,
        to: u8,
        source: u8,
        tag: Option<u16>,
    },
    Later(u64),
    Link(usize, bool),
    Isolate(usize, bool),
    Vlan(usize, Option<u16>),
    /// Closes a port and opens it again.
    Reopen(usize),
}

fn vlan() -> impl Strategy<Value = Option<u16>> {
    prop_oneof![3 => Just(None), 3 => Just(Some(10)), 1 => Just(Some(20))]
}

fn step() -> impl Strategy<Value = Step> {
    let tag =
        prop_oneof![3 => vlan(), 1 => proptest::option::of(prop_oneof![Just(0), Just(0xFFF)])];
    // 0 to 4 are the ports' own addresses, 5 to 8 others, 9 all stations, 10 a group.
    prop_oneof![
        20 => (0..=PORTS, 0u8..11, 0u8..9, tag, any::<bool>()).prop_map(
            |(from, to, source, tag, honest)| {
                let source = if honest && from < PORTS { from as u8 } else { source };
                Step::Frame { from, to, source, tag }
            }
        ),
        // Never within the precision of ageing.
        2 => prop_oneof![Just(AGE * 2 / 5), Just(2 * AGE), Just(1)].prop_map(Step::Later),
        1 => (0..PORTS, any::<bool>()).prop_map(|(port, up)| Step::Link(port, up)),
        1 => (0..PORTS, any::<bool>()).prop_map(|(port, on)| Step::Isolate(port, on)),
        1 => (0..PORTS, vlan()).prop_map(|(port, vlan)| Step::Vlan(port, vlan)),
        1 => (0..PORTS).prop_map(Step::Reopen),
    ]
}

fn address(number: u8) -> MacAddress {
    match number {
        9 => MacAddress::BROADCAST,
        10 => MacAddress([0x33, 0x33, 0, 0, 0, 1]),
        number => mac(number),
    }
}

#[derive(Clone, Copy)]
struct ModelPort {
    vlan: Option<u16>,
    isolated: bool,
    up: bool,
}

struct Model {
    ports: [ModelPort; PORTS],
    learned: HashMap<(u8, u16), (usize, u64)>,
}

impl Model {
    /// Who gets a frame, and with which tag.
    fn forward(
        &mut self,
        from: usize,
        to: u8,
        source: u8,
        tag: Option<u16>,
        now: u64,
    ) -> Vec<(usize, Option<u16>)> {
        let access = self.ports.get(from).and_then(|port| port.vlan);
        let vlan = match (access, tag) {
            (_, Some(0xFFF)) => return vec![],
            (Some(vlan), None | Some(0)) => vlan,
            (Some(_), Some(_)) => return vec![],
            (None, tag) => tag.unwrap_or(0),
        };
        if from < PORTS && !self.ports[from].up {
            return vec![];
        }
        let owner = |station: u8, ports: &[ModelPort; PORTS]| {
            let port = ports.get(usize::from(station))?;
            (port.vlan.is_none_or(|own| own == vlan)).then_some(usize::from(station))
        };
        match owner(source, &self.ports) {
            Some(owner) if owner != from => return vec![],
            Some(_) => (),
            None => {
                self.learned.insert((source, vlan), (from, now));
            }
        }
        let known = owner(to, &self.ports).or_else(|| {
            let (place, seen) = *self.learned.get(&(to, vlan))?;
            (now - seen <= AGE).then_some(place)
        });
        (0..=OUT)
            .filter(|place| *place != from && known.is_none_or(|known| known == *place))
            .filter_map(|place| {
                let Some(port) = self.ports.get(place) else {
                    return Some((place, if vlan == 0 { tag } else { Some(vlan) }));
                };
                let isolated = from < PORTS && self.ports[from].isolated && port.isolated;
                if isolated || !port.up {
                    return None;
                }
                match port.vlan {
                    None => Some((place, if vlan == 0 { tag } else { Some(vlan) })),
                    Some(own) => (own == vlan).then_some((place, None)),
                }
            })
            .collect()
    }
}

fn open(station: &mut Station) {
    station.port.open(Reception { accepts: Offloads::all(), mergeable: true, pairs: 1 });
    let mut filter = filter::default(MacAddress([0; 6]));
    filter.promiscuous = true;
    station.port.set_filter(&filter);
    station.forget_posted();
    station.post(0, 4, 256);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_traffic_goes_where_a_naive_switch_sends_it(
        vlans in proptest::collection::vec(vlan(), PORTS),
        isolated in proptest::collection::vec(any::<bool>(), PORTS),
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let net = Net::new();
        let card = net.uplink(CARD);
        let mut stations: Vec<_> = (0..PORTS)
            .map(|port| {
                let options = Options { vlan: vlans[port], isolated: isolated[port], ..Options::default() };
                let mut station = net.station(port as u8, options);
                open(&mut station);
                station
            })
            .collect();
        let port = |index: usize| ModelPort { vlan: vlans[index], isolated: isolated[index], up: true };
        let mut model = Model { ports: core::array::from_fn(port), learned: HashMap::new() };
        let mut now = 1;
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Later(ticks) => now += ticks,
                Step::Link(port, up) => {
                    net.switch.set_link(port, up).unwrap();
                    model.ports[port].up = up;
                }
                Step::Isolate(port, on) => {
                    net.switch.set_isolated(port, on).unwrap();
                    model.ports[port].isolated = on;
                }
                Step::Vlan(port, vlan) => {
                    net.switch.set_vlan(port, vlan).unwrap();
                    model.ports[port].vlan = vlan;
                    model.learned.retain(|_, (place, _)| *place != port);
                    // The port's own address shadows what was learned of it.
                }
                Step::Reopen(port) => {
                    prop_assert!(stations[port].port.close(Ticks(now)));
                    open(&mut stations[port]);
                    model.learned.retain(|_, (place, _)| *place != port);
                }
                Step::Frame { from, to, source, tag } => {
                    let text = number.to_string();
                    let frame = ethernet(address(to), mac(source), tag, &text);
                    if from < PORTS {
                        let sent = stations[from].send_as(number as u16, &frame, FrameInfo::PLAIN, now);
                        prop_assert!(sent.is_ok());
                    } else {
                        card.receive(&frame, FrameInfo::PLAIN);
                        net.switch.poll_uplink(Ticks(now));
                    }
                    let mut expected: [Option<Option<u16>>; PORTS + 1] = [None; PORTS + 1];
                    for (place, tag) in model.forward(from, to, source, tag, now) {
                        expected[place] = Some(tag);
                    }
                    for (place, expected) in expected.into_iter().enumerate() {
                        let got = if place == OUT {
                            let frames = card.transmit();
                            prop_assert!(frames.len() <= 1);
                            frames.into_iter().next()
                        } else {
                            let got = stations[place].receive().map(|got| got.bytes);
                            if got.is_some() {
                                stations[place].post(0, 1, 256);
                            }
                            got
                        };
                        let expected = expected.map(|tag| ethernet(address(to), mac(source), tag, &text));
                        // Padded as it was sent.
                        let cut = |bytes: Vec<u8>| bytes[..18 + text.len()].to_vec();
                        prop_assert_eq!(got.map(cut), expected.map(cut), "{} at {}", number, place);
                    }
                    if from < PORTS {
                        while stations[from].port.poll_sent(Ticks(now)).is_some() {}
                        prop_assert_eq!(stations[from].port.in_flight(), 0);
                    }
                }
            }
        }
    }
}
