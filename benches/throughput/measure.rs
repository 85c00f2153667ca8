//! What is measured, and the figures of one run of it.

use serde::{Deserialize, Serialize};

/// Bytes of a request and of its answer.
pub(crate) const MESSAGE: usize = 64;
/// Port of machine B that reads and drops.
pub(crate) const SINK: u16 = 9001;
/// Port that writes without end.
pub(crate) const SOURCE: u16 = 9002;
/// Port that answers each message with itself.
pub(crate) const ECHO: u16 = 9003;

/// What the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes from A to B.
    Up,
    /// Bytes from B to A.
    Down,
    /// Requests on connections that stay.
    Echo,
    /// Connect, one request, close.
    Connect,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// How many connections, or workers that connect, at once.
    pub(crate) at_once: usize,
}

/// Every row, in the table's order.
pub(crate) const MEASURES: [Measure; 7] = [
    Measure {
        name: "up-1",
        kind: Kind::Up,
        at_once: 1,
    },
    Measure {
        name: "up-8",
        kind: Kind::Up,
        at_once: 8,
    },
    Measure {
        name: "down-1",
        kind: Kind::Down,
        at_once: 1,
    },
    Measure {
        name: "down-8",
        kind: Kind::Down,
        at_once: 8,
    },
    Measure {
        name: "echo-1",
        kind: Kind::Echo,
        at_once: 1,
    },
    Measure {
        name: "echo-32",
        kind: Kind::Echo,
        at_once: 32,
    },
    Measure {
        name: "connect-32",
        kind: Kind::Connect,
        at_once: 32,
    },
];

impl Measure {
    /// The row of this name.
    pub(crate) fn by_name(name: &str) -> Option<&'static Self> {
        MEASURES.iter().find(|measure| measure.name == name)
    }

    /// The port of machine B that serves it.
    pub(crate) fn port(&self) -> u16 {
        match self.kind {
            Kind::Up => SINK,
            Kind::Down => SOURCE,
            Kind::Echo | Kind::Connect => ECHO,
        }
    }

    /// Whether it moves bytes rather than requests.
    pub(crate) fn is_bulk(&self) -> bool {
        matches!(self.kind, Kind::Up | Kind::Down)
    }

    /// Unit of [`Sample::rate`].
    pub(crate) fn rate_unit(&self) -> &'static str {
        if self.is_bulk() { "Gbit/s" } else { "/s" }
    }

    /// Unit of [`Sample::cpu`].
    pub(crate) fn cpu_unit(&self) -> &'static str {
        if self.is_bulk() { "CPU s/GiB" } else { "CPU us each" }
    }
}

/// The figures of one run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Gbit/s of payload, or requests (connections) per second.
    pub(crate) rate: f64,
    /// Busy time of the whole machine: seconds per GiB, or microseconds per request.
    pub(crate) cpu: f64,
    /// Median time of a request in microseconds; 0 for bulk.
    pub(crate) p50_us: f64,
    /// 99th percentile of the same.
    pub(crate) p99_us: f64,
}

/// Seconds that all processors of this machine were busy since it started (neither idle, waiting, nor stolen).
pub(crate) fn machine_busy() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let first = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = first
        .split_whitespace()
        .skip(1)
        .filter_map(|t| t.parse().ok())
        .collect();
    anyhow::ensure!(ticks.len() >= 7, "unexpected /proc/stat: {first}");
    // user nice system idle iowait irq softirq; USER_HZ is 100 on every Linux that we run on.
    Ok((ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]) / 100.0)
}
