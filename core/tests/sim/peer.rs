//! The far side of every flow: what the agent's shell would do with the engine, with a model of what must happen.

use std::time::Duration;

use mesh_core::engine::{CloseReason, Engine, Event, FlowId, Read, Refusal};
use mesh_core::packet::FlowKey;

use crate::host::{Client, pattern};
use crate::random::Random;
use crate::step::Decision;

/// Datagrams to this port are echoed; to any other, nobody listens.
pub(crate) const ECHO_PORT: u16 = 7;

/// The far side of one flow.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) flow: FlowId,
    pub(crate) key: FlowKey,
    pub(crate) client: usize,
    pub(crate) decision: Decision,
    pub(crate) decide_at: Duration,
    pub(crate) decided: bool,
    pub(crate) reading: bool,
    readable: bool,
    pub(crate) read: u64,
    pub(crate) end: bool,
    pub(crate) to_write: u64,
    pub(crate) written: u64,
    blocked: bool,
    pub(crate) finish: bool,
    pub(crate) finished: bool,
    pub(crate) aborted: bool,
    pub(crate) closed: Option<CloseReason>,
    /// It opened the flow.
    pub(crate) called: bool,
    pub(crate) answered: bool,
}

impl Peer {
    pub(crate) fn new(flow: FlowId, key: FlowKey, client: usize, decision: Decision, decide_at: Duration) -> Self {
        Self {
            flow,
            key,
            client,
            decision,
            decide_at,
            decided: false,
            reading: true,
            readable: false,
            read: 0,
            end: false,
            to_write: 0,
            written: 0,
            blocked: false,
            finish: false,
            finished: false,
            aborted: false,
            closed: None,
            called: false,
            answered: false,
        }
    }

    /// The far side of a flow that the engine opens.
    pub(crate) fn calling(flow: FlowId, key: FlowKey, client: usize, listens: bool) -> Self {
        let decision = if listens { Decision::Accept } else { Decision::Refused };
        Self {
            decided: true,
            called: true,
            ..Self::new(flow, key, client, decision, Duration::ZERO)
        }
    }

    /// Whether the flow was accepted and still lives.
    pub(crate) fn is_live(&self) -> bool {
        self.decided && self.closed.is_none()
    }

    /// An event of this flow.
    pub(crate) fn handle(&mut self, event: &Event) {
        assert!(self.closed.is_none(), "an event after the last one: {event:?}");
        match event {
            Event::Readable { .. } => self.readable = true,
            Event::Writable { .. } => {
                assert!(self.blocked, "room for nobody");
                self.blocked = false;
            }
            Event::Connected { .. } => {
                assert!(
                    self.called && !self.answered && !self.readable,
                    "answered late, or twice"
                );
                self.answered = true;
            }
            Event::Closed { reason, .. } => self.closed = Some(*reason),
            Event::Opened { .. } | Event::Datagram { .. } => panic!("not an event of a flow: {event:?}"),
        }
    }

    /// Does what can be done now; says whether something was.
    pub(crate) fn work(&mut self, now: Duration, engine: &mut Engine, client: &Client, random: &mut Random) -> bool {
        if self.closed.is_some() {
            return false;
        }
        if !self.decided {
            return self.decide(now, engine);
        }
        let reads = self.reading && self.readable && self.read_some(now, engine, client, random);
        let writes = self.written < self.to_write && !self.blocked && self.write_some(now, engine, random);
        let finishes = self.finish && !self.finished && self.written == self.to_write;
        if finishes {
            self.finished = true;
            engine.finish(now, self.flow).expect("finishing a live flow");
        }
        reads || writes || finishes
    }

    fn decide(&mut self, now: Duration, engine: &mut Engine) -> bool {
        if now < self.decide_at {
            return false;
        }
        self.decided = true;
        match self.decision {
            Decision::Accept => engine.accept(now, self.flow).expect("accepting a held flow"),
            Decision::Refused => engine.refuse(now, self.flow, Refusal::Refused),
            Decision::Denied => engine.refuse(now, self.flow, Refusal::Denied),
            Decision::Unreachable => engine.refuse(now, self.flow, Refusal::Unreachable),
        }
        true
    }

    fn read_some(&mut self, now: Duration, engine: &mut Engine, client: &Client, random: &mut Random) -> bool {
        let seed = u64::from(client.local.port());
        let mut at = self.read;
        let max = usize::try_from(1 + random.below(80_000)).unwrap();
        let mut seen = 0;
        let read = engine.read_with(now, self.flow, max, &mut |bytes| {
            seen += bytes.len();
            for byte in bytes {
                assert_eq!(*byte, pattern(seed, at), "a wrong byte was read");
                at += 1;
            }
        });
        match read.expect("reading a live flow") {
            Read::Bytes(count) => {
                assert_eq!(count, seen);
                assert!(count > 0 && count <= max);
                self.read = at;
                assert!(self.read <= client.sent, "bytes that nobody sent");
            }
            Read::Blocked => self.readable = false,
            Read::End => {
                assert!(client.finish, "an end that nobody made");
                assert_eq!(self.read, client.sent, "the end came early");
                assert!(!self.end, "the end came twice");
                self.end = true;
                self.readable = false;
            }
        }
        true
    }

    fn write_some(&mut self, now: Duration, engine: &mut Engine, random: &mut Random) -> bool {
        let len = (self.to_write - self.written).min(1 + random.below(100_000));
        let seed = u64::from(self.key.source.port()) ^ 1;
        let bytes: Vec<u8> = (self.written..self.written + len).map(|at| pattern(seed, at)).collect();
        let written = engine.write(now, self.flow, &bytes).expect("writing a live flow");
        self.written += u64::try_from(written).unwrap();
        self.blocked = written < bytes.len();
        true
    }
}
