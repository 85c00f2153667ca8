//! Plain TCP, the mesh over each of its transports, and other people's, alternating in one run; prints one table of medians and
//! ratios with their spread.
//!
//! The same program is the harness, the server on machine B and the client on machine A (`serve`, `load`), so that each
//! runs in its own process, where it belongs. `benches/README.md` says what the numbers mean.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod client;
mod control;
mod measure;
mod proxies;
mod server;
mod side;
mod table;
mod topology;

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::measure::{MEASURES, Measure, Sample};
use crate::table::Row;
use crate::topology::Topology;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", address] => server::run(address.parse()?),
        ["load", name, address, seconds] => {
            let measure = Measure::by_name(name).context("no such measure")?;
            let sample = client::run(measure, address.parse()?, seconds.parse()?)?;
            println!("{}", serde_json::to_string(&sample)?);
            Ok(())
        }
        // `cargo test --benches` runs benches with --test: this one is no test.
        _ if words.contains(&"--test") => Ok(()),
        _ => harness(),
    }
}

fn harness() -> Result<()> {
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
        println!("SKIPPED bench throughput: needs root and /dev/net/tun");
        return Ok(());
    }
    let rounds: usize = setting("BENCH_ROUNDS", 5)?;
    let seconds: f64 = setting("BENCH_SECONDS", 2.0)?;
    if rounds == 0 || seconds <= 0.0 {
        bail!("BENCH_ROUNDS and BENCH_SECONDS must be more than 0");
    }
    let topology = Topology::start()?;
    let sides = topology.sides();
    let mut rows: Vec<Row> = MEASURES.iter().map(Row::new).collect();
    for round in 0..rounds {
        for row in &mut rows {
            // Whoever goes first may find the machine in another state; so they take turns at that as well.
            for turn in 0..sides.len() {
                let side = sides[(round + turn) % sides.len()];
                let sample: Sample = topology.load(row.measure, side, seconds)?;
                eprintln!(
                    "round {}/{rounds} {:10} {side:?}: {sample:?}",
                    round + 1,
                    row.measure.name
                );
                row.add(side, sample);
            }
        }
    }
    let facts = table::Facts::collect(rounds, seconds);
    print!("{}", table::print(&facts, &rows));
    let file = table::write_json(&facts, &rows)?;
    println!("\nas JSON: {}", file.display());
    Ok(())
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> Result<T> {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .ok()
            .with_context(|| format!("{name}={text} is not a number")),
        Err(_) => Ok(default),
    }
}
