//! Samples into medians, ratios and their spread; the table, and the same as JSON.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};

use crate::measure::{Measure, Sample};
use crate::topology::Side;

/// A figure of a sample: its unit, and how it is read.
type Figure = (&'static str, fn(&Sample) -> f64);

/// All runs of one measure; the nth of each side belong to one round.
pub(crate) struct Row {
    pub(crate) measure: &'static Measure,
    plain: Vec<Sample>,
    mesh: Vec<Sample>,
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
            plain: Vec::new(),
            mesh: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, side: Side, sample: Sample) {
        match side {
            Side::Plain => self.plain.push(sample),
            Side::Mesh => self.mesh.push(sample),
        }
    }

    /// Mesh over plain, round by round.
    fn ratio(&self, figure: fn(&Sample) -> f64) -> Spread {
        Spread::of(
            self.plain
                .iter()
                .zip(&self.mesh)
                .map(|(plain, mesh)| figure(mesh) / figure(plain)),
        )
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
        "\nPlain TCP against the mesh, one veth: {} rounds of {} s, alternating; median (min-max); cubic; kernel {}, {} CPUs \
         shared by both ends, server and client.\nThe ratio is mesh / plain, taken round by round.\n\n",
        facts.rounds, facts.seconds, facts.kernel, facts.cpus
    );
    text.push_str("| measure | figure | plain | mesh | ratio |\n|---|---|---|---|---|\n");
    for row in rows {
        for (unit, figure) in row.figures() {
            let plain = Spread::of(row.plain.iter().map(figure)).text();
            let mesh = Spread::of(row.mesh.iter().map(figure)).text();
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "| {} | {unit} | {plain} | {mesh} | {} |",
                row.measure.name,
                row.ratio(figure).text()
            );
        }
    }
    text
}

/// Writes everything, single samples included, below the target directory; gives the file.
pub(crate) fn write_json(facts: &Facts, rows: &[Row]) -> Result<PathBuf> {
    let measures: Vec<Value> = rows
        .iter()
        .map(|row| {
            let ratios: serde_json::Map<String, Value> = row
                .figures()
                .iter()
                .map(|(unit, figure)| ((*unit).to_owned(), row.ratio(*figure).json()))
                .collect();
            json!({"name": row.measure.name, "plain": row.plain, "mesh": row.mesh, "ratio": ratios})
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
