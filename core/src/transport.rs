//! QUIC or TCP: which of the two carries new streams to a peer, and what is remembered of it (docs/decisions/011-quic-or-tcp.md).
//!
//! The control plane says that a peer speaks HBONE; it does not say over what. TCP is what every Istio peer speaks. QUIC is tried
//! with peers that may have it, and only where trying costs a flow nothing that it would notice.
//!
//! Time is counted from any fixed moment, such as the start of the agent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::outbound::Quic;

/// What the operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preference {
    /// What works best with each peer.
    #[default]
    Auto,
    /// QUIC and nothing else.
    Quic,
    /// TCP and nothing else.
    Tcp,
}

/// What a new stream does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// TCP at once. With `probe`, QUIC is tried beside it, and nobody waits for that.
    Tcp { probe: bool },
    /// QUIC first, and TCP as well when that is not connected after [`HEAD_START`].
    Quic,
    /// QUIC, whatever happens.
    OnlyQuic,
}

/// Why a peer's streams go the way they go.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// Pods, ztunnels, waypoints and gateways are not known to have QUIC.
    NotExpected,
    /// QUIC was tried and works.
    Works,
    /// The peer offered HTTP/3 over TCP (`alt-svc`); it is being tried.
    Offered,
    /// UDP got no answer.
    NoAnswer,
    /// The peer, or something on the way, refuses QUIC.
    Refused,
    /// It worked, and stopped answering.
    Stopped,
    /// It works, and loses too much.
    Lossy,
}

impl Why {
    /// In words, for people.
    pub fn text(&self) -> &'static str {
        match self {
            Self::NotExpected => "Istio's own proxies speak TCP",
            Self::Works => "QUIC works",
            Self::Offered => "the peer offers QUIC, which is being tried",
            Self::NoAnswer => "UDP got no answer",
            Self::Refused => "QUIC is refused",
            Self::Stopped => "QUIC stopped answering",
            Self::Lossy => "QUIC loses too many packets",
        }
    }

    fn is_failure(&self) -> bool {
        matches!(self, Self::NoAnswer | Self::Refused | Self::Stopped | Self::Lossy)
    }
}

/// One peer, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    pub peer: SocketAddr,
    pub quic: bool,
    pub why: Why,
    pub since: Duration,
}

/// What is remembered of peers, by their HBONE address.
#[derive(Debug)]
pub struct Memory {
    preference: Preference,
    peers: BTreeMap<SocketAddr, Known>,
}

#[derive(Debug)]
struct Known {
    why: Why,
    since: Duration,
    last_used: Duration,
    /// In a row: an answer alone does not end the row, only working for [`PROVEN`].
    failures: u32,
    /// When QUIC is to be tried again, unless it works.
    probe_at: Duration,
    /// It worked once, or the peer itself said so over TCP.
    proved: bool,
}

impl Memory {
    /// Nothing is known yet.
    pub fn new(preference: Preference) -> Self {
        Self {
            preference,
            peers: BTreeMap::new(),
        }
    }

    /// What a new stream to `peer` does, `quic` being what the world says of it.
    ///
    /// A probe is handed out once: who gets it reports [`Memory::worked`] or [`Memory::failed`].
    pub fn plan(&mut self, peer: SocketAddr, quic: Quic, now: Duration) -> Plan {
        match self.preference {
            Preference::Quic => return Plan::OnlyQuic,
            Preference::Tcp => return Plan::Tcp { probe: false },
            Preference::Auto => {}
        }
        let known = self.peers.get_mut(&peer).filter(|known| known.why != Why::NotExpected);
        let Some(known) = known else {
            if quic != Quic::No {
                return Plan::Quic;
            }
            self.set(peer, Why::NotExpected, 0, now);
            return Plan::Tcp { probe: false };
        };
        known.last_used = now;
        if known.why == Why::Works {
            return Plan::Quic;
        }
        let probe = now >= known.probe_at;
        if probe {
            known.probe_at = now + pause(known.failures);
        }
        Plan::Tcp { probe }
    }

    /// Whether QUIC is still worth an attempt that was planned earlier: not when another one failed meanwhile.
    pub fn may_try_quic(&self, peer: SocketAddr, planned: Duration) -> bool {
        let failed_since = |known: &Known| known.why.is_failure() && known.since > planned;
        self.preference == Preference::Quic || !self.peers.get(&peer).is_some_and(failed_since)
    }

    /// Whether the peer has shown that it speaks QUIC, however that goes now.
    pub fn has_quic(&self, peer: SocketAddr) -> bool {
        self.peers.get(&peer).is_some_and(|known| known.proved)
    }

    /// QUIC to `peer` answered. Earlier failures are not forgotten for that: a handshake passes where a load does not.
    pub fn worked(&mut self, peer: SocketAddr, now: Duration) {
        let failures = self.peers.get(&peer).map_or(0, |known| known.failures);
        self.set(peer, Why::Works, failures, now);
    }

    /// QUIC to `peer` did not work, or works no more: streams take TCP, and QUIC is tried again after a pause that doubles.
    pub fn failed(&mut self, peer: SocketAddr, why: Why, now: Duration) {
        let proven = |known: &&Known| known.why == Why::Works && now.saturating_sub(known.since) >= PROVEN;
        let known = self.peers.get(&peer).filter(|known| !proven(known));
        let failures = known.map_or(0, |known| known.failures);
        self.set(peer, why, failures.saturating_add(1), now);
    }

    /// The peer says over TCP that it has QUIC. Tried beside the next stream; what is known already counts more.
    pub fn offered(&mut self, peer: SocketAddr, now: Duration) {
        let is_news = self.peers.get(&peer).is_none_or(|known| known.why == Why::NotExpected);
        if self.preference == Preference::Auto && is_news {
            self.set(peer, Why::Offered, 0, now);
            if let Some(known) = self.peers.get_mut(&peer) {
                known.probe_at = now;
            }
        }
    }

    /// What is known, by address.
    pub fn all(&self) -> impl Iterator<Item = Remembered> {
        self.peers.iter().map(|(peer, known)| Remembered {
            peer: *peer,
            quic: known.why == Why::Works,
            why: known.why.clone(),
            since: known.since,
        })
    }

    fn set(&mut self, peer: SocketAddr, why: Why, failures: u32, now: Duration) {
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&peer) {
            let oldest = self.peers.iter().min_by_key(|(_, known)| known.last_used);
            if let Some(oldest) = oldest.map(|(peer, _)| *peer) {
                self.peers.remove(&oldest);
            }
        }
        let since = match self.peers.get(&peer) {
            Some(known) if known.why == why && !why.is_failure() => known.since,
            _ => now,
        };
        let proved = matches!(why, Why::Works | Why::Offered) || self.has_quic(peer);
        let known = Known {
            why,
            since,
            last_used: now,
            failures,
            probe_at: now + pause(failures),
            proved,
        };
        self.peers.insert(peer, known);
    }
}

/// From 15 s to 10 minutes.
fn pause(failures: u32) -> Duration {
    PROBE
        .saturating_mul(1 << failures.saturating_sub(1).min(6))
        .min(MAX_PROBE)
}

/// Judges a QUIC connection that is in use by what it sends and loses, second by second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Losses {
    sent: u64,
    lost: u64,
    bad: u32,
}

impl Losses {
    /// Takes the totals once a second; true when too much was lost for some seconds in a row.
    ///
    /// Congestion loses a few of a hundred packets. One in eight and more, second after second, is a path that throttles UDP
    /// or drops it at random, where TCP has better chances.
    pub fn sample(&mut self, sent: u64, lost: u64) -> bool {
        let (sent_now, lost_now) = (sent.saturating_sub(self.sent), lost.saturating_sub(self.lost));
        (self.sent, self.lost) = (sent, lost);
        if sent_now < MIN_SAMPLE {
            return false;
        }
        self.bad = if lost_now.saturating_mul(8) >= sent_now {
            self.bad + 1
        } else {
            0
        };
        self.bad >= BAD_SECONDS
    }
}

/// How long QUIC is waited for before TCP is tried as well.
pub const HEAD_START: Duration = Duration::from_millis(200);
const PROBE: Duration = Duration::from_secs(15);
const MAX_PROBE: Duration = Duration::from_secs(600);
/// QUIC that worked for so long has a clean record.
const PROVEN: Duration = Duration::from_secs(600);
/// The one that was not used for longest is forgotten.
const MAX_PEERS: usize = 4096;
const MIN_SAMPLE: u64 = 50;
const BAD_SECONDS: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    fn peer(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 15008))
    }

    #[test]
    fn pods_get_tcp_at_once_and_unknown_entries_are_raced_once() {
        let (mut memory, now) = (Memory::new(Preference::Auto), NOW);
        assert_eq!(memory.plan(peer(1), Quic::No, now), Plan::Tcp { probe: false });
        assert_eq!(memory.plan(peer(1), Quic::Marked, now), Plan::Quic);
        assert_eq!(memory.plan(peer(2), Quic::Unknown, now), Plan::Quic);
        memory.worked(peer(1), now);
        memory.failed(peer(2), Why::NoAnswer, now);
        assert_eq!(memory.plan(peer(1), Quic::Marked, now), Plan::Quic);
        assert_eq!(memory.plan(peer(2), Quic::Unknown, now), Plan::Tcp { probe: false });
    }

    #[test]
    fn quic_is_tried_again_and_by_one_at_a_time() {
        let (mut memory, now) = (Memory::new(Preference::Auto), NOW);
        memory.failed(peer(1), Why::NoAnswer, now);
        let later = now + PROBE;
        assert_eq!(memory.plan(peer(1), Quic::Marked, later), Plan::Tcp { probe: true });
        assert_eq!(memory.plan(peer(1), Quic::Marked, later), Plan::Tcp { probe: false });
        memory.failed(peer(1), Why::NoAnswer, later);
        assert_eq!(
            memory.plan(peer(1), Quic::Marked, later + PROBE),
            Plan::Tcp { probe: false },
            "the pause doubles"
        );
        assert_eq!(
            memory.plan(peer(1), Quic::Marked, later + 2 * PROBE),
            Plan::Tcp { probe: true }
        );
        memory.worked(peer(1), later);
        assert_eq!(memory.plan(peer(1), Quic::No, later), Plan::Quic, "what is known wins");
    }

    #[test]
    fn an_answer_to_a_probe_does_not_shorten_the_pauses() {
        let (mut memory, mut now) = (Memory::new(Preference::Auto), NOW);
        for pause in [PROBE, 2 * PROBE, 4 * PROBE] {
            memory.failed(peer(1), Why::Lossy, now);
            let early = now + pause - Duration::from_secs(1);
            assert_eq!(memory.plan(peer(1), Quic::Marked, early), Plan::Tcp { probe: false });
            now += pause;
            assert_eq!(memory.plan(peer(1), Quic::Marked, now), Plan::Tcp { probe: true });
            memory.worked(peer(1), now);
            assert_eq!(memory.plan(peer(1), Quic::Marked, now), Plan::Quic);
            assert!(memory.may_try_quic(peer(1), now - Duration::from_millis(1)));
            now += Duration::from_secs(2);
        }
        memory.worked(peer(1), now + PROVEN);
        now += PROVEN;
        memory.failed(peer(1), Why::Lossy, now);
        assert_eq!(
            memory.plan(peer(1), Quic::Marked, now + PROBE),
            Plan::Tcp { probe: true },
            "a clean record"
        );
    }

    #[test]
    fn an_offer_is_tried_beside_the_next_stream_and_forgets_no_failure() {
        let (mut memory, now) = (Memory::new(Preference::Auto), NOW);
        memory.offered(peer(1), now);
        assert_eq!(memory.plan(peer(1), Quic::No, now), Plan::Tcp { probe: true });
        memory.failed(peer(2), Why::Lossy, now);
        memory.offered(peer(2), now);
        assert_eq!(memory.plan(peer(2), Quic::No, now), Plan::Tcp { probe: false });
    }

    #[test]
    fn who_has_quic_is_remembered_when_it_fails() {
        let (mut memory, now) = (Memory::new(Preference::Auto), NOW);
        memory.failed(peer(1), Why::NoAnswer, now);
        assert!(!memory.has_quic(peer(1)), "a guess that failed");
        memory.worked(peer(1), now);
        memory.failed(peer(1), Why::Stopped, now);
        assert!(memory.has_quic(peer(1)));
        memory.offered(peer(2), now);
        memory.failed(peer(2), Why::NoAnswer, now);
        assert!(memory.has_quic(peer(2)) && !memory.has_quic(peer(3)));
    }

    #[test]
    fn an_attempt_that_queued_behind_a_failure_is_given_up() {
        let (mut memory, now) = (Memory::new(Preference::Auto), NOW);
        assert!(memory.may_try_quic(peer(1), now));
        memory.failed(peer(1), Why::NoAnswer, now + Duration::from_secs(1));
        assert!(!memory.may_try_quic(peer(1), now));
        assert!(
            memory.may_try_quic(peer(1), now + Duration::from_secs(2)),
            "a later probe"
        );
    }

    #[test]
    fn the_operator_decides() {
        let now = NOW;
        for (preference, plan) in [
            (Preference::Tcp, Plan::Tcp { probe: false }),
            (Preference::Quic, Plan::OnlyQuic),
        ] {
            let mut memory = Memory::new(preference);
            assert_eq!(memory.plan(peer(1), Quic::Marked, now), plan);
            memory.failed(peer(1), Why::NoAnswer, now);
            memory.offered(peer(1), now);
            assert_eq!(memory.plan(peer(1), Quic::Marked, now + MAX_PROBE), plan);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let (mut memory, now) = (Memory::new(Preference::Auto), NOW);
        for at in 0..=u32::try_from(MAX_PEERS).unwrap() {
            let peer = SocketAddr::new(std::net::Ipv4Addr::from_bits(at).into(), 15008);
            memory.worked(peer, now + Duration::from_millis(at.into()));
        }
        assert_eq!(memory.all().count(), MAX_PEERS);
        let first = SocketAddr::from(([0, 0, 0, 0], 15008));
        assert_eq!(
            memory.plan(first, Quic::No, now),
            Plan::Tcp { probe: false },
            "the oldest is gone"
        );
    }

    #[test]
    fn heavy_loss_is_noticed_and_congestion_is_not() {
        let mut losses = Losses::default();
        assert!(!losses.sample(1000, 500));
        assert!(losses.sample(2000, 700));
        let mut losses = Losses::default();
        for second in 1..100 {
            assert!(!losses.sample(second * 1000, second * 50), "5 %");
        }
        let mut losses = Losses::default();
        for second in 1..100 {
            assert!(!losses.sample(second * 10, second * 10), "too few to tell");
        }
    }
}
