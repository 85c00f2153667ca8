//! Steps of the simulation from bytes: the harness of `core/tests/sim`, with its model and invariants.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../core/tests/sim/host.rs"]
mod host;
#[path = "../../core/tests/sim/link.rs"]
mod link;
#[path = "../../core/tests/sim/peer.rs"]
mod peer;
#[path = "../../core/tests/sim/random.rs"]
mod random;
#[path = "../../core/tests/sim/run.rs"]
mod run;
#[path = "../../core/tests/sim/step.rs"]
mod step;
#[path = "../../core/tests/sim/wire.rs"]
mod wire;

fuzz_target!(|bytes: &[u8]| {
    let [seed, flags, steps @ ..] = bytes else { return };
    let options = run::Options {
        seed: u64::from(*seed),
        lossy: flags & 1 == 1,
        offload: flags & 2 == 2,
        mtu: [1280, 1500, 9000, 65_535][usize::from(flags >> 2 & 3)],
        ticking: flags & 16 == 16,
    };
    // Longer runs find nothing that 64 steps do not.
    let steps = step::from_bytes(&steps[..steps.len().min(256)]);
    run::run(options, &steps);
});
