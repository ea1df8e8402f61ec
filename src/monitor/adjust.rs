//! Changes of a device that is at work, as typed.

use crate::virtio::limiter::{Limits, Rate};
use crate::virtio::{Adjustment, Direction};

/// How it is used.
pub(super) const USAGE: &str = "device NAME SLOT limit in|out BYTES[/BURST] REQUESTS[/BURST], \
                                link up|down, capacity SECTORS, size COLUMNS ROWS, eject, or \
                                insert MEDIUM";

/// What the words after a device's slot ask for; `None` if they mean nothing.
pub(super) fn parse(words: &[&str]) -> Option<Adjustment> {
    match words {
        ["limit", direction, bytes, requests] => {
            let direction = match *direction {
                "in" => Direction::In,
                "out" => Direction::Out,
                _ => return None,
            };
            let limits = Limits { bytes: rate(bytes)?, requests: rate(requests)? };
            Some(Adjustment::Limit(direction, limits))
        }
        ["link", "up"] => Some(Adjustment::Link(true)),
        ["link", "down"] => Some(Adjustment::Link(false)),
        ["size", columns, rows] => {
            Some(Adjustment::Size([columns.parse().ok()?, rows.parse().ok()?]))
        }
        ["capacity", sectors] => Some(Adjustment::Capacity(sectors.parse().ok()?)),
        ["eject"] => Some(Adjustment::Medium(None)),
        ["insert", medium] => Some(Adjustment::Medium(Some(medium.parse().ok()?))),
        _ => None,
    }
}

/// So many a second, at once a tenth of that if nothing else is said; `-` is without limit.
fn rate(word: &str) -> Option<Option<Rate>> {
    if word == "-" {
        return Some(None);
    }
    let (rate, burst) = match word.bytes().position(|byte| byte == b'/') {
        Some(at) => (word.get(..at)?, Some(word.get(at + 1..)?.parse().ok()?)),
        None => (word, None),
    };
    Rate::new(rate.parse().ok()?, burst).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(line: &str) -> Option<Limits> {
        let words: Vec<&str> = line.split(' ').collect();
        match parse(&words)? {
            Adjustment::Limit(Direction::In, limits) => Some(limits),
            other => panic!("{other:?}"),
        }
    }

    fn at(per_second: u32, burst: u32) -> Option<Rate> {
        Some(Rate { per_second, burst })
    }

    #[test]
    fn a_limit_has_bytes_and_requests_and_their_bursts() {
        let limits = |bytes, requests| Some(Limits { bytes, requests });
        assert_eq!(limit("limit in 1000 -"), limits(at(1000, 100), None));
        assert_eq!(limit("limit in 5/1000000 7"), limits(at(5, 1_000_000), at(7, 1)));
        assert_eq!(limit("limit in - 4000000000/1"), limits(None, at(4_000_000_000, 1)));
        assert_eq!(limit("limit in - -"), limits(None, None));
    }

    #[test]
    fn links_capacities_and_media_are_changed() {
        assert_eq!(parse(&["link", "up"]), Some(Adjustment::Link(true)));
        assert_eq!(parse(&["link", "down"]), Some(Adjustment::Link(false)));
        assert_eq!(parse(&["size", "132", "43"]), Some(Adjustment::Size([132, 43])));
        assert_eq!(parse(&["capacity", "2048"]), Some(Adjustment::Capacity(2048)));
        assert_eq!(parse(&["eject"]), Some(Adjustment::Medium(None)));
        assert_eq!(parse(&["insert", "3"]), Some(Adjustment::Medium(Some(3))));
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for line in [
            "",
            "limit",
            "limit in 1000",
            "limit up 1000 -",
            "limit in 0 -",
            "limit in 1/0 -",
            "limit in -1 -",
            "limit in 4294967296 -",
            "limit in 1/ -",
            "limit in /1 -",
            "limit in 1 2 3",
            "link",
            "link on",
            "capacity",
            "capacity -1",
            "capacity 1 2",
            "size 80",
            "size 80 65536",
            "media 3",
            "eject 0",
            "insert",
            "insert 256",
        ] {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            assert_eq!(parse(&words), None, "{line}");
        }
    }
}
