//! Random operations against a plain list of ranges.

use proptest::prelude::*;

use super::*;

/// One piece of the plain model: guest range, distance to the physical one, attributes.
type Piece = (u64, u64, u64, Attributes);

fn model_lookup(model: &[Piece], ipa: u64) -> Option<(u64, Attributes)> {
    let piece = model.iter().find(|piece| (piece.0..piece.1).contains(&ipa))?;
    Some((ipa + piece.2, piece.3))
}

fn model_remove(model: &mut Vec<Piece>, from: u64, end: u64) -> Vec<Piece> {
    let mut removed = Vec::new();
    let mut rest = Vec::new();
    for (start, stop, delta, attributes) in model.drain(..) {
        for (low, high, inside) in [
            (start, stop.min(from), false),
            (start.max(from), stop.min(end), true),
            (start.max(end), stop, false),
        ] {
            let into = if inside { &mut removed } else { &mut rest };
            if low < high {
                into.push((low, high, delta, attributes));
            }
        }
    }
    *model = rest;
    removed
}

#[derive(Clone, Debug)]
enum Step {
    Map(u64, u64, u64, Attributes),
    Unmap(u64, u64),
    Protect(u64, u64, Attributes),
}

/// Addresses around the boundaries of every level and of the two root tables.
const BASES: [u64; 5] = [0, GIB - 2 * MIB, GIB, 512 * GIB - 2 * MIB, 512 * GIB];

fn steps() -> impl Strategy<Value = Step> {
    let ipa = (0..BASES.len(), 0u64..4, prop_oneof![3 => Just(0u64), 1 => Just(2 * MIB)])
        .prop_map(|(base, page, more)| BASES[base] + page * 4096 + more);
    let len = prop_oneof![
        4 => (1u64..5).prop_map(|pages| pages * 4096),
        4 => (1u64..4).prop_map(|blocks| blocks * 2 * MIB),
        2 => Just(2 * MIB - 4096),
        2 => Just(GIB),
        1 => Just(GIB + 2 * MIB),
    ];
    let delta = prop_oneof![
        4 => Just(4 * GIB),
        2 => Just(2 * MIB),
        1 => Just(4096u64),
    ];
    let attributes = prop_oneof![
        3 => Just(Attributes::RAM),
        1 => Just(Attributes::READ_ONLY),
        1 => Just(Attributes::DEVICE),
        1 => Just(Attributes { access: Access::None, ..Attributes::RAM }),
    ];
    prop_oneof![
        (ipa.clone(), len.clone(), delta, attributes.clone())
            .prop_map(|(ipa, len, delta, attributes)| Step::Map(ipa, len, delta, attributes)),
        (ipa.clone(), len.clone()).prop_map(|(ipa, len)| Step::Unmap(ipa, len)),
        (ipa, len, attributes)
            .prop_map(|(ipa, len, attributes)| Step::Protect(ipa, len, attributes)),
    ]
}

fn probes() -> Vec<u64> {
    let mut probes = Vec::new();
    for base in BASES {
        for block in [0, 2 * MIB, 4 * MIB, 8 * MIB, GIB - 4 * MIB, GIB, GIB + 2 * MIB] {
            probes.extend((0..9).map(|page| base + block + page * 4096));
            probes.push(base + block + 2 * MIB - 4096);
        }
    }
    probes.sort_unstable();
    probes.dedup();
    probes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 96 }))]

    #[test]
    fn the_tables_agree_with_a_plain_map_and_no_core_sees_a_stale_entry(
        steps in prop::collection::vec(steps(), 1..16), frames in 8usize..48,
    ) {
        let (mut pool, memory) = pool(frames);
        let all_free = pool.free_frames();
        let mut stage2 = tree(&mut pool, 40);
        let probes = probes();
        let walker = Walker::of(&stage2, memory);
        let tlb = CachingTlb::new(walker, &probes);
        let mut model: Vec<Piece> = Vec::new();
        for step in steps {
            let outcome = match step.clone() {
                Step::Map(ipa, len, delta, attributes) => {
                    let taken = !model_remove(&mut model.clone(), ipa, ipa + len).is_empty();
                    let pa = Pa::new(ipa + delta);
                    let result = stage2.map(&mut pool, &tlb, Ipa::new(ipa), pa, len, attributes);
                    prop_assert_eq!(taken, result == Err(Stage2Error::AlreadyMapped));
                    if result.is_ok() {
                        model.push((ipa, ipa + len, delta, attributes));
                    }
                    result
                }
                Step::Unmap(ipa, len) => {
                    let result = stage2.unmap(&mut pool, &tlb, Ipa::new(ipa), len);
                    if result.is_ok() {
                        model_remove(&mut model, ipa, ipa + len);
                    }
                    result
                }
                Step::Protect(ipa, len, attributes) => {
                    let there = model_remove(&mut model.clone(), ipa, ipa + len);
                    let whole = there.iter().map(|piece| piece.1 - piece.0).sum::<u64>() == len;
                    let result = stage2.protect(&mut pool, &tlb, Ipa::new(ipa), len, attributes);
                    prop_assert_eq!(!whole, result == Err(Stage2Error::NotMapped));
                    if result.is_ok() {
                        for piece in model_remove(&mut model, ipa, ipa + len) {
                            model.push((piece.0, piece.1, piece.2, attributes));
                        }
                    }
                    result
                }
            };
            prop_assert!(!matches!(
                outcome,
                Err(Stage2Error::Corrupt | Stage2Error::Misaligned | Stage2Error::OutOfRange)
            ), "{:?}: {:?}", step, outcome);
            tlb.assert_nothing_is_stale();
            for at in &probes {
                let expected = model_lookup(&model, *at);
                prop_assert_eq!(walker.translate(*at), expected, "{:#x} after {:?}", at, &step);
                let found = stage2.lookup(&pool, Ipa::new(*at)).map(|mapping| {
                    (mapping.translate(Ipa::new(*at)).unwrap().raw(), mapping.attributes)
                });
                prop_assert_eq!(found, expected);
            }
            tlb.observe();
        }
        stage2.unmap(&mut pool, &tlb, Ipa::new(0), 1 << 40).unwrap();
        prop_assert_eq!(pool.free_frames(), all_free - 2, "tables left after unmapping all");
        stage2.destroy(&mut pool, &tlb).unwrap();
        prop_assert_eq!(pool.free_frames(), all_free);
    }

    #[test]
    fn destroying_a_tree_gives_every_frame_back(
        steps in prop::collection::vec(steps(), 1..12),
    ) {
        let (mut pool, _) = pool(64);
        let all_free = pool.free_frames();
        let mut stage2 = tree(&mut pool, 41);
        for step in steps {
            if let Step::Map(ipa, len, delta, attributes) = step {
                let pa = Pa::new(ipa + delta);
                let _ = stage2.map(&mut pool, &NoTlb, Ipa::new(ipa), pa, len, attributes);
            }
        }
        stage2.destroy(&mut pool, &NoTlb).unwrap();
        prop_assert_eq!(pool.free_frames(), all_free);
    }
}
