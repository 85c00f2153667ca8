//! Samples into medians, ratios and their spread; the table, and the same as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};

use crate::measure::{Measure, Sample};
use crate::side::Side;

/// A figure of a sample: its unit, and how it is read.
type Figure = (&'static str, fn(&Sample) -> f64);

/// A side, and what it is compared with.
type Ratio = (Side, Side);

const OURS: [Side; 2] = [Side::Hbone3, Side::Hbone];

/// All runs of one measure; the nth of each side belong to one round.
pub(crate) struct Row {
    pub(crate) measure: &'static Measure,
    samples: BTreeMap<Side, Vec<Sample>>,
}

/// Where and how it was measured.
pub(crate) struct Facts {
    rounds: usize,
    seconds: f64,
    kernel: String,
    cpus: usize,
}

/// A median with the least and the greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Row {
    pub(crate) fn new(measure: &'static Measure) -> Self {
        Self {
            measure,
            samples: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, side: Side, sample: Sample) {
        self.samples.entry(side).or_default().push(sample);
    }

    fn of(&self, side: Side, figure: fn(&Sample) -> f64) -> Spread {
        Spread::of(self.samples[&side].iter().map(figure))
    }

    /// One side over another, round by round.
    fn ratio(&self, (side, base): Ratio, figure: fn(&Sample) -> f64) -> Spread {
        let rounds = self.samples[&side].iter().zip(&self.samples[&base]);
        Spread::of(rounds.map(|(one, other)| figure(one) / figure(other)))
    }

    fn sides(&self) -> Vec<Side> {
        self.samples.keys().copied().collect()
    }

    /// Ours over plain, and over each of the others.
    fn ratios(&self) -> Vec<Ratio> {
        let sides = self.sides();
        let bases = sides.iter().filter(|side| !OURS.contains(side));
        bases.flat_map(|base| OURS.map(|side| (side, *base))).collect()
    }

    fn figures(&self) -> Vec<Figure> {
        let mut figures: Vec<Figure> = vec![
            (self.measure.rate_unit(), |s| s.rate),
            (self.measure.cpu_unit(), |s| s.cpu),
        ];
        if !self.measure.is_bulk() {
            figures.push(("p50 us", |s| s.p50_us));
            figures.push(("p99 us", |s| s.p99_us));
        }
        figures
    }
}

impl Facts {
    pub(crate) fn collect(rounds: usize, seconds: f64) -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        Self {
            rounds,
            seconds,
            kernel: kernel.trim().to_owned(),
            cpus,
        }
    }
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else {
            return Self {
                median: f64::NAN,
                min: f64::NAN,
                max: f64::NAN,
            };
        };
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Self { median, min, max }
    }

    fn text(self) -> String {
        format!("{} ({}-{})", short(self.median), short(self.min), short(self.max))
    }

    fn json(self) -> Value {
        json!({"median": self.median, "min": self.min, "max": self.max})
    }
}

/// The table, in Markdown.
pub(crate) fn print(facts: &Facts, rows: &[Row]) -> String {
    let mut text = format!(
        "\nPlain TCP, the mesh and others, one switch: {} rounds of {} s, alternating; median (min-max); cubic; kernel {}, {} CPUs \
         shared by both ends, server and client.\nRatios are taken round by round.\n\n",
        facts.rounds, facts.seconds, facts.kernel, facts.cpus
    );
    let Some(first) = rows.first() else { return text };
    let (sides, ratios) = (first.sides(), first.ratios());
    let titles = sides.iter().map(|side| side.name().to_owned());
    let titles: Vec<_> = titles.chain(ratios.iter().map(title)).collect();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "| measure | figure | {} |", titles.join(" | "));
    let _ = writeln!(text, "|---|---|{}", "---|".repeat(titles.len()));
    for row in rows {
        for (unit, figure) in row.figures() {
            let plain = sides.iter().map(|side| row.of(*side, figure));
            let cells = plain.chain(ratios.iter().map(|ratio| row.ratio(*ratio, figure)));
            let cells: Vec<_> = cells.map(Spread::text).collect();
            let _ = writeln!(text, "| {} | {unit} | {} |", row.measure.name, cells.join(" | "));
        }
    }
    text
}

fn title((side, base): &Ratio) -> String {
    format!("{} / {}", side.name(), base.name())
}

/// Writes everything, single samples included, below the target directory; gives the file.
pub(crate) fn write_json(facts: &Facts, rows: &[Row]) -> Result<PathBuf> {
    let of = |row: &Row, ratio: &Ratio| -> Value {
        let figures = row.figures();
        let spreads = figures
            .iter()
            .map(|(unit, figure)| ((*unit).to_owned(), row.ratio(*ratio, *figure).json()));
        Value::Object(spreads.collect())
    };
    let measures: Vec<Value> = rows
        .iter()
        .map(|row| {
            let ratios = row.ratios();
            let ratios: BTreeMap<_, _> = ratios.iter().map(|ratio| (title(ratio), of(row, ratio))).collect();
            json!({"name": row.measure.name, "samples": row.samples, "ratios": ratios})
        })
        .collect();
    let value = json!({
        "facts": {"rounds": facts.rounds, "seconds": facts.seconds, "kernel": facts.kernel, "cpus": facts.cpus,
                  "congestion_control": "cubic"},
        "measures": measures,
    });
    let mut directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    directory.set_file_name("bench");
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("throughput.json");
    std::fs::write(&file, serde_json::to_string_pretty(&value)?)?;
    Ok(file)
}

/// Three significant digits.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}
