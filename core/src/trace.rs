//! The id by which the two log lines of one flow are found: the `traceparent` header of a CONNECT (W3C Trace Context).

use std::fmt;
use std::str::FromStr;

/// A `traceparent` of version 00 (W3C Trace Context section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// Not 0.
    trace_id: u128,
    /// Not 0.
    parent_id: u64,
    flags: u8,
}

/// The header is no `traceparent` of version 00; it is then as if there was none (section 3.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent of version 00")]
pub struct InvalidTraceParent;

/// `00-{32 hex}-{16 hex}-{2 hex}`.
const LENGTH: usize = 55;

impl TraceParent {
    /// The start of a trace, from 24 random bytes. Not sampled: what the application's own headers say is not seen here.
    pub fn fresh(random: [u8; 24]) -> Self {
        let [id @ .., p0, p1, p2, p3, p4, p5, p6, p7] = random;
        Self {
            // 0 is no id; it is as improbable as any other number.
            trace_id: u128::from_be_bytes(id).max(1),
            parent_id: u64::from_be_bytes([p0, p1, p2, p3, p4, p5, p6, p7]).max(1),
            flags: 0,
        }
    }

    /// What both sides of a flow log: 32 lower-case hexadecimal digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

impl FromStr for TraceParent {
    type Err = InvalidTraceParent;

    fn from_str(header: &str) -> Result<Self, InvalidTraceParent> {
        read(header.as_bytes()).ok_or(InvalidTraceParent)
    }
}

impl fmt::Display for TraceParent {
    /// The header.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id, self.parent_id, self.flags
        )
    }
}

fn read(header: &[u8]) -> Option<TraceParent> {
    let header: &[u8; LENGTH] = header.try_into().ok()?;
    let version = header.starts_with(b"00-");
    let dashes = header[35] == b'-' && header[52] == b'-';
    let found = TraceParent {
        trace_id: hex(&header[3..35])?,
        parent_id: u64::try_from(hex(&header[36..52])?).ok()?,
        flags: u8::try_from(hex(&header[53..])?).ok()?,
    };
    (version && dashes && found.trace_id != 0 && found.parent_id != 0).then_some(found)
}

/// At most 32 digits. Lower case only: the standard has no other, and `from_str_radix` would take a sign.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number: u128, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_the_standard_shows_is_read() {
        let read: TraceParent = GOOD.parse().unwrap();
        assert_eq!(read.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(read.to_string(), GOOD);
    }

    #[test]
    fn anything_else_is_not() {
        for wrong in [
            String::new(),
            "x".repeat(LENGTH),
            "-".repeat(LENGTH),
            "é".repeat(27) + "-",
            format!("{GOOD}-"),
            format!("{GOOD}-01"),
            format!("{GOOD}, {GOOD}"),
            GOOD[1..].to_owned(),
            GOOD.replace('-', "0"),
            GOOD.to_uppercase(),
            GOOD.replacen("00", "01", 1),
            GOOD.replacen("00", "ff", 1),
            GOOD.replace("-4b", "-+b"),
            GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01".to_owned(),
        ] {
            assert_eq!(wrong.parse::<TraceParent>(), Err(InvalidTraceParent), "{wrong}");
        }
    }

    #[test]
    fn a_fresh_one_is_valid_whatever_was_drawn() {
        for random in [[0; 24], [255; 24], std::array::from_fn(|at| at as u8)] {
            let fresh = TraceParent::fresh(random);
            let header = fresh.to_string();
            assert!(header.ends_with("-00"), "{header}");
            assert_eq!(header.parse(), Ok(fresh));
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_written_as_it_came(header in "([0-9a-fA-F]{2}-)?[0-9a-f]{30,33}-[0-9a-f+]{15,17}-[0-9a-f]{1,3}|00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}|.{0,60}") {
            if let Ok(read) = header.parse::<TraceParent>() {
                prop_assert_eq!(read.to_string(), header);
            }
        }
    }
}
