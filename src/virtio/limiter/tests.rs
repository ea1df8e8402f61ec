use core::time::Duration;

use proptest::prelude::*;

use super::*;

const FREQUENCY: Frequency = Frequency::new(62_500_000).unwrap();

fn limiter(bytes: Option<Rate>, requests: Option<Rate>) -> Limiter {
    let mut limiter = Limiter::UNLIMITED;
    limiter.set(Limits { bytes, requests }, FREQUENCY, Ticks(0));
    limiter
}

/// A device that always has a request: `sizes` in turn, each time woken `late` after it asked to be.
/// Requests and bytes served before `end`.
fn serve(limiter: &mut Limiter, sizes: &[u32], late: Ticks, end: Ticks) -> (u64, u64) {
    let (mut now, mut requests, mut bytes) = (Ticks(0), 0, 0);
    for size in sizes.iter().cycle() {
        while let Err(until) = limiter.admit(now) {
            assert!(until > now, "asks to be woken at once, without end");
            now = until.after(late);
            if now >= end {
                return (requests, bytes);
            }
        }
        limiter.charge(*size);
        requests += 1;
        bytes += u64::from(*size);
    }
    (requests, bytes)
}

proptest! {
    #[test]
    fn in_the_long_run_the_rate_is_kept_to_one_percent(
        rate in 10_000_u32..1_000_000_000,
        burst in prop_oneof![Just(1), 1_u32..0x10_0000, Just(u32::MAX / 64)],
        sizes in proptest::collection::vec(prop_oneof![Just(1), 1_u32..0x1000, Just(0x10_0000)], 1..20),
        late_us in 0_u64..90_000,
    ) {
        // Long enough for many requests, and for the burst to be small beside what is served.
        let mean = sizes.iter().map(|size| u64::from(*size)).sum::<u64>() / sizes.len() as u64;
        let most = u64::from(*sizes.iter().max().unwrap());
        let seconds = (200 * (most + mean) / u64::from(rate) + 200 * u64::from(burst) / u64::from(rate) + 20)
            .min(20_000_000 * mean.max(1) / u64::from(rate) + 1);
        let served = |seconds: u64| {
            let mut limiter = limiter(Some(Rate { per_second: rate, burst }), None);
            let late = FREQUENCY.ticks(Duration::from_micros(late_us));
            serve(&mut limiter, &sizes, late, FREQUENCY.ticks(Duration::from_secs(seconds))).1
        };
        prop_assume!(seconds * u64::from(rate) / mean.max(1) < 3_000_000);
        prop_assume!(seconds * u64::from(rate) >= 100 * (most + u64::from(burst)) + u64::from(rate) * late_us / 10_000);
        let expected = seconds * u64::from(rate);
        let error = served(seconds).abs_diff(expected) as f64 / expected as f64;
        prop_assert!(error <= 0.01, "{error}");
    }

    #[test]
    fn never_more_than_the_burst_the_rate_and_one_request(
        rate in 1_u32..1_000_000,
        burst in 1_u32..1_000_000,
        steps in proptest::collection::vec((0_u64..100_000_000, 1_u32..100_000), 1..200),
    ) {
        let mut limiter = limiter(Some(Rate { per_second: rate, burst }), None);
        let (mut now, mut served, mut last) = (Ticks(0), 0_u64, 0);
        for (pause, size) in steps {
            now = now.after(Ticks(pause));
            if limiter.admit(now).is_ok() {
                limiter.charge(size);
                served += u64::from(size);
                last = u64::from(size);
            }
            let earned = u128::from(now.0) * u128::from(rate) / u128::from(FREQUENCY.hertz());
            // The lateness that a waiter is forgiven is a part of what was earned.
            prop_assert!(u128::from(served) <= u128::from(burst) + earned + u128::from(last) + 1);
        }
    }
}

#[test]
fn requests_are_limited_whatever_their_size() {
    for sizes in [&[1][..], &[0x10_0000], &[0]] {
        let mut limiter = limiter(None, Some(Rate { per_second: 1000, burst: 10 }));
        let end = FREQUENCY.ticks(Duration::from_secs(10));
        let (requests, _) = serve(&mut limiter, sizes, Ticks(100), end);
        assert!((10_000..=10_010).contains(&requests), "{requests}");
    }
}

#[test]
fn the_tighter_of_two_limits_holds() {
    let bytes = Some(Rate { per_second: 1_000_000, burst: 1000 });
    let requests = Some(Rate { per_second: 100, burst: 1 });
    let end = FREQUENCY.ticks(Duration::from_secs(10));
    let (small, _) = serve(&mut limiter(bytes, requests), &[100], Ticks(0), end);
    assert!((1000..=1002).contains(&small), "{small}");
    let (_, large) = serve(&mut limiter(bytes, requests), &[100_000], Ticks(0), end);
    assert!((9_900_000..=10_200_000).contains(&large), "{large}");
}

#[test]
fn a_bucket_that_nobody_waits_for_holds_its_burst_and_no_more() {
    let mut limiter = limiter(None, Some(Rate { per_second: 10, burst: 3 }));
    let late = FREQUENCY.ticks(Duration::from_secs(3600));
    for _ in 0..3 {
        assert_eq!(limiter.admit(late), Ok(()));
        limiter.charge(0);
    }
    assert!(limiter.admit(late).is_err());
}

#[test]
fn who_waited_for_an_hour_is_given_a_second_of_it() {
    let mut limiter = limiter(None, Some(Rate { per_second: 10, burst: 3 }));
    for _ in 0..3 {
        limiter.charge(0);
    }
    assert!(limiter.admit(Ticks(0)).is_err());
    let late = FREQUENCY.ticks(Duration::from_secs(3600));
    let served =
        (0..100).take_while(|_| limiter.admit(late).map(|()| limiter.charge(0)).is_ok()).count();
    assert_eq!(served, 10);
}

#[test]
fn limits_can_be_set_and_taken_away_at_any_time() {
    let rate = Rate { per_second: 1, burst: 1 };
    let mut limiter = limiter(Some(rate), Some(rate));
    limiter.charge(1_000_000);
    assert!(limiter.admit(Ticks(5)).is_err());
    assert_eq!(limiter.limits(), Limits { bytes: Some(rate), requests: Some(rate) });
    limiter.set(Limits::default(), FREQUENCY, Ticks(5));
    assert_eq!(limiter.admit(Ticks(5)), Ok(()));
    limiter.charge(u32::MAX);
    assert_eq!(limiter.admit(Ticks(5)), Ok(()));
}

#[test]
fn the_largest_numbers_do_no_harm() {
    let rate = Rate { per_second: u32::MAX, burst: u32::MAX };
    let mut limiter = Limiter::UNLIMITED;
    let fastest = Frequency::new(u32::MAX).unwrap();
    limiter.set(Limits { bytes: Some(rate), requests: Some(rate) }, fastest, Ticks(0));
    for now in [0, 1, u64::MAX / 2, u64::MAX] {
        let _ = limiter.admit(Ticks(now));
        limiter.charge(u32::MAX);
        limiter.charge(u32::MAX);
    }
}
