//! Deterministic simulation of the engine: a second TCP stack plays the local kernel and its application, a seed chooses
//! what happens, time is virtual. Each seed runs twice, once jumping from deadline to deadline and once in millisecond
//! ticks: what can be seen must be the same.
//!
//! `MESH_SEEDS=N` runs N seeds; `MESH_SEED=S` runs one and prints its steps.

#[path = "sim/host.rs"]
mod host;
#[path = "sim/world.rs"]
mod world;

use world::{Outcome, Wake, World};

#[test]
fn seeds() {
    let (first, count) = match std::env::var("MESH_SEED") {
        Ok(seed) => (seed.parse().unwrap(), 1),
        Err(_) => (
            0,
            std::env::var("MESH_SEEDS").map_or(200, |count| count.parse().unwrap()),
        ),
    };
    let mut seen = Outcome::default();
    for seed in first..first + count {
        let result = std::panic::catch_unwind(|| {
            let jumping = World::new(seed, Wake::Deadlines).run();
            let ticking = World::new(seed, Wake::Ticks).run();
            assert_eq!(
                jumping, ticking,
                "what is seen depends on how often the engine is woken"
            );
            jumping
        });
        match result {
            Ok(outcome) => seen.add(&outcome),
            Err(panic) => {
                eprintln!("seed {seed} failed; run MESH_SEED={seed} cargo test -p mesh-core --test sim");
                std::panic::resume_unwind(panic);
            }
        }
    }
    if count >= 200 {
        seen.assert_everything_happened();
    }
}
