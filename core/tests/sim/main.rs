//! Deterministic simulation of the engine: seeds, both wake disciplines, invariants.
//!
//! A failing seed is printed with its options; `MESH_SIM_SEED=N cargo test -p mesh-core --test sim` repeats one,
//! `MESH_SIM_SEEDS=N` makes more of them.
#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};

mod active;
mod directed;
mod host;
mod link;
mod peer;
mod random;
mod raw;
mod run;
mod step;
mod wire;

use run::{Options, run};

const SEEDS: u64 = 200;

fn seeds() -> Vec<u64> {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse().ok());
    match number("MESH_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("MESH_SIM_SEEDS").unwrap_or(SEEDS)).collect(),
    }
}

/// Steps from a seed.
fn steps(seed: u64) -> Vec<step::Step> {
    let mut random = random::Random::new(seed);
    let count = 10 + random.below(30);
    let mut bytes = vec![0_u8; usize::try_from(count * 4 + 4).unwrap()];
    for byte in &mut bytes {
        *byte = u8::try_from(random.below(256)).unwrap();
    }
    // A run without a flow shows little.
    bytes[..4].copy_from_slice(&[0, 0, 5, 0]);
    step::from_bytes(&bytes)
}

fn options(seed: u64) -> Options {
    let mtu = [1500, 65_535, 1280, 9000][usize::try_from(seed / 4 % 4).unwrap()];
    Options {
        seed,
        lossy: seed % 2 == 1,
        offload: seed / 2 % 2 == 1,
        mtu,
        ticking: false,
    }
}

/// Found by the fuzzer: an old window that arrives last, and the last acknowledgement lost.
#[test]
fn a_window_that_was_overtaken_closes_nothing() {
    let steps = step::from_bytes(&[0x83, 7, 0, 0, 0, 7, 7, 9, 0xc7, 9, 0x98, 0xff]);
    for ticking in [true, false] {
        run(
            Options {
                seed: 0xb3,
                lossy: true,
                offload: false,
                mtu: 9000,
                ticking,
            },
            &steps,
        );
    }
}

#[test]
fn every_seed_keeps_the_invariants_under_both_wake_disciplines() {
    for seed in seeds() {
        let options = options(seed);
        let steps = steps(seed);
        let result = catch_unwind(AssertUnwindSafe(|| {
            let jumping = run(options, &steps);
            let ticking = run(
                Options {
                    ticking: true,
                    ..options
                },
                &steps,
            );
            assert_eq!(jumping, ticking, "the outcome depends on when the engine is woken");
        }));
        assert!(result.is_ok(), "seed {seed} fails: {options:?}\n{steps:?}");
    }
}
