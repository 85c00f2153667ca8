//! Whether this machine's application is to be sent anything: what a probe is (Istio's ReadinessProbe, the `probe` of a
//! WorkloadGroup), when its results change the verdict, and what is reported of it.

mod probe;
mod wire;

use std::time::Duration;

pub use probe::{Exec, Fault, Grpc, Header, HttpGet, LOCALHOST, Method, Probe, TcpSocket};

use crate::rotation::UnixTime;

/// What the probe's results amount to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// The probe has not said enough yet.
    #[default]
    Unknown,
    /// It succeeds, or there is none.
    Healthy,
    /// It fails, for this reason.
    Unhealthy(String),
}

/// How the machine stands: its probe's verdict, and whether an operator takes it out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    pub verdict: Verdict,
    /// Since when an operator wants no new connections here.
    pub draining: Option<UnixTime>,
}

impl Health {
    /// Whether others shall open connections to us. Before the first verdict they may, as the control plane decides.
    pub fn in_rotation(&self) -> bool {
        self.draining.is_none() && !matches!(self.verdict, Verdict::Unhealthy(_))
    }

    /// What the control plane is told: healthy, or why not; nothing before the first verdict.
    pub fn report(&self) -> Option<Result<(), &str>> {
        match (&self.draining, &self.verdict) {
            (Some(_), _) => Some(Err(DRAINING)),
            (None, Verdict::Unhealthy(reason)) => Some(Err(reason)),
            (None, Verdict::Healthy) => Some(Ok(())),
            (None, Verdict::Unknown) => None,
        }
    }
}

/// The record by which we serve when the world has none of ours: the last one, from when we left rotation until we are back.
/// A control plane that forgets who is not in rotation (istiod) must not cut what is still coming in.
pub fn kept<T: Clone>(kept: Option<T>, record: Option<&T>, in_rotation: bool) -> Option<T> {
    match record {
        Some(record) => (!in_rotation).then(|| record.clone()),
        None => kept,
    }
}

/// Counts results, and says when they change the verdict (as Kubernetes does it).
#[derive(Debug)]
pub struct Tracker {
    success_threshold: u32,
    failure_threshold: u32,
    verdict: Option<bool>,
    last: bool,
    /// Results in a row that are like the last one.
    row: u32,
}

impl Tracker {
    /// Nothing is known yet.
    pub fn new(probe: &Probe) -> Self {
        Self {
            success_threshold: probe.success_threshold(),
            failure_threshold: probe.failure_threshold(),
            verdict: None,
            last: false,
            row: 0,
        }
    }

    /// Takes one result; the new verdict, when it is another one.
    pub fn result(&mut self, result: Result<(), String>) -> Option<Verdict> {
        let success = result.is_ok();
        self.row = if success == self.last {
            self.row.saturating_add(1)
        } else {
            1
        };
        self.last = success;
        let threshold = if success {
            self.success_threshold
        } else {
            self.failure_threshold
        };
        if self.verdict == Some(success) || self.row < threshold {
            return None;
        }
        self.verdict = Some(success);
        Some(match result {
            Ok(()) => Verdict::Healthy,
            Err(reason) => Verdict::Unhealthy(printable(&reason)),
        })
    }
}

/// A foreign text without line ends and the like, of a length that others may be told.
pub fn printable(text: &str) -> String {
    let text: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    text[..text.floor_char_boundary(REASON)].to_owned()
}

/// What is reported of a machine that an operator drains.
pub const DRAINING: &str = "draining";
/// Longest reason, in bytes.
pub const REASON: usize = 512;

fn seconds(given: u32, default: u32) -> Duration {
    Duration::from_secs(u64::from(if given == 0 { default } else { given }))
}

#[cfg(test)]
mod tests;
