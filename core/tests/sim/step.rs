//! What can happen in a run, from bytes: those of a seed, or of a fuzzer.

#[derive(Clone, Copy, Debug)]
pub(crate) enum Decision {
    Accept,
    Refused,
    Denied,
    Unreachable,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// An application connects; the far side decides after so many milliseconds.
    OpenTcp {
        v6: bool,
        decision: Decision,
        delay: u8,
    },
    /// A far side calls an application, which listens or does not.
    Call {
        v6: bool,
        listens: bool,
    },
    /// The application of a flow sends.
    Send {
        flow: u8,
        bytes: u32,
    },
    /// The application finishes its side.
    HalfClose {
        flow: u8,
    },
    /// The application resets.
    Abort {
        flow: u8,
    },
    /// The far side sends.
    PeerSend {
        flow: u8,
        bytes: u32,
    },
    PeerFinish {
        flow: u8,
    },
    PeerAbort {
        flow: u8,
    },
    /// The far side stops reading, or goes on.
    PeerRead {
        flow: u8,
        reading: bool,
    },
    /// An application stops reading, or goes on.
    Read {
        flow: u8,
        reading: bool,
    },
    /// An application sends a datagram; the far side echoes it, or says that nobody listens.
    SendUdp {
        v6: bool,
        bytes: u16,
        refused: bool,
    },
    /// A segment that fits nowhere, or noise.
    Noise {
        kind: u8,
        seed: u16,
    },
    Idle {
        millis: u8,
    },
}

/// Steps from bytes, four each.
pub(crate) fn from_bytes(bytes: &[u8]) -> Vec<Step> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| step(*bytes)).collect()
}

fn step([kind, a, b, c]: [u8; 4]) -> Step {
    let size = u32::from(b) * u32::from(c) * 4;
    match kind % 32 {
        0..6 => {
            let decision = match a >> 1 & 7 {
                0 => Decision::Refused,
                1 => Decision::Denied,
                2 => Decision::Unreachable,
                _ => Decision::Accept,
            };
            Step::OpenTcp {
                v6: a & 1 == 1,
                decision,
                delay: b % 64,
            }
        }
        6..11 => Step::Send { flow: a, bytes: size },
        11..13 => Step::HalfClose { flow: a },
        13 => Step::Abort { flow: a },
        14..19 => Step::PeerSend { flow: a, bytes: size },
        19..21 => Step::PeerFinish { flow: a },
        21 => Step::PeerAbort { flow: a },
        22 => Step::PeerRead {
            flow: a,
            reading: b & 1 == 1,
        },
        23 => Step::Read {
            flow: a,
            reading: b & 1 == 1,
        },
        24..26 => Step::SendUdp {
            v6: a & 1 == 1,
            bytes: u16::from_be_bytes([b, c]),
            refused: a & 2 == 2,
        },
        26 => Step::Noise {
            kind: a,
            seed: u16::from_be_bytes([b, c]),
        },
        27 | 28 => Step::Call {
            v6: a & 1 == 1,
            listens: a & 6 != 0,
        },
        _ => Step::Idle { millis: a },
    }
}
