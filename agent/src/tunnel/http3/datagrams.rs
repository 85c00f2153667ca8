//! The UDP payloads of one CONNECT-UDP (RFC 9298): HTTP datagrams as far as they fit the path, capsules in the stream else.
//!
//! One whose payload does not fit makes all of the next second take capsules: so that those that belong together stay in order.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use mesh_core::h3::H3Error;
use mesh_core::h3::datagram::{self, Capsules};
use mesh_core::udp::Queue;
use quinn::SendDatagramError;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::stream::{Sink, Source};
use super::{Connection, lost};
use crate::copy::{self, Source as _};
use crate::failure::Failure;
use crate::metrics;
use crate::tunnel::stream::Abort;

/// What came in datagrams for one request, and was not read yet.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    queue: RefCell<Queue>,
    filled: Notify,
}

impl Inbox {
    /// The oldest give way when nobody reads.
    fn push(&self, payload: Bytes) {
        let mut queue = self.queue.borrow_mut();
        metrics::udp_dropped(queue.push(payload, WAITING_DATAGRAMS, WAITING_BYTES));
        self.filled.notify_one();
    }

    async fn pop(&self) -> Bytes {
        loop {
            if let Some(payload) = self.queue.borrow_mut().pop() {
                return payload;
            }
            self.filled.notified().await;
        }
    }
}

impl Connection {
    /// Gives each datagram to its request, until the connection ends. One of no request is dropped (RFC 9297 2.1).
    pub(super) async fn receive_datagrams(self: Rc<Self>) {
        while let Ok(received) = self.quic.read_datagram().await {
            match datagram::decode(received) {
                Ok((stream, Some(payload))) => {
                    if let Some(inbox) = self.inboxes.borrow().get(&stream) {
                        inbox.push(payload);
                    }
                }
                Ok((_, None)) => {}
                Err(error) => return self.fail(error),
            }
        }
    }

    /// The two directions of a request that is or will be a CONNECT-UDP.
    pub(super) fn datagrams(self: &Rc<Self>, source: Source, sink: Sink) -> (DatagramSource, DatagramSink) {
        let stream = sink.id();
        let inbox = Rc::<Inbox>::default();
        self.inboxes.borrow_mut().insert(stream, inbox.clone());
        let source = DatagramSource {
            inbox,
            stream: source,
            capsules: Capsules::default(),
            chunk: Bytes::new(),
            _registered: Registered {
                connection: self.clone(),
                stream,
            },
        };
        let sink = DatagramSink {
            connection: self.clone(),
            id: stream,
            stream: sink,
            capsules_until: None,
            partial: false,
        };
        (source, sink)
    }
}

/// Ends the delivery of datagrams when the request ends.
#[derive(Debug)]
struct Registered {
    connection: Rc<Connection>,
    stream: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.connection.inboxes.borrow_mut().remove(&self.stream);
    }
}

/// The receiving side: each piece is one UDP payload.
#[derive(Debug)]
pub struct DatagramSource {
    inbox: Rc<Inbox>,
    stream: Source,
    capsules: Capsules,
    chunk: Bytes,
    _registered: Registered,
}

impl DatagramSource {
    /// The stream itself, before any capsule.
    pub(super) fn stream(&mut self) -> &mut Source {
        &mut self.stream
    }

    fn malformed(&mut self, error: H3Error) -> Failure {
        self.stream.abort_code().set(Abort::Protocol(error));
        self.stop();
        Failure::Protocol(error.to_string())
    }
}

impl copy::Source for DatagramSource {
    async fn recv(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            match self.capsules.next(&mut self.chunk) {
                Ok(Some(payload)) => return Ok(Some(payload)),
                Ok(None) => {}
                Err(error) => return Err(self.malformed(error)),
            }
            tokio::select! {
                payload = self.inbox.pop() => return Ok(Some(payload)),
                received = self.stream.recv() => match received? {
                    Some(chunk) => self.chunk = chunk,
                    None if self.capsules.at_boundary() => return Ok(None),
                    None => return Err(self.malformed(H3Error::Message)),
                },
            }
        }
    }

    fn stop(&mut self) {
        self.stream.stop();
    }
}

/// The sending side: each piece is one UDP payload.
#[derive(Debug)]
pub struct DatagramSink {
    connection: Rc<Connection>,
    id: u64,
    stream: Sink,
    capsules_until: Option<Instant>,
    /// A capsule went out in part, so that the stream cannot end as if it were whole.
    partial: bool,
}

impl DatagramSink {
    /// The stream itself, before any capsule.
    pub(super) fn stream(&mut self) -> &mut Sink {
        &mut self.stream
    }

    /// Whether it went in a datagram; where many wait for the path, the connection drops the oldest of them.
    fn send_datagram(&mut self, payload: &Bytes) -> Result<bool, Failure> {
        // RFC 9297 2.1.1: not before the peer said that it takes them.
        let settings = *self.connection.settings.borrow();
        if !settings.is_some_and(|settings| settings.h3_datagram) {
            return Ok(false);
        }
        let fits = |most: usize| datagram::overhead(self.id) + payload.len() <= most;
        if !self.connection.quic.max_datagram_size().is_some_and(fits) {
            self.capsules_until = Some(Instant::now() + IN_CAPSULES);
            return Ok(false);
        }
        if self.capsules_until.is_some_and(|until| Instant::now() < until) {
            return Ok(false);
        }
        self.capsules_until = None;
        match self.connection.quic.send_datagram(datagram::encode(self.id, payload)) {
            Ok(()) => Ok(true),
            Err(SendDatagramError::ConnectionLost(error)) => Err(lost(&error)),
            Err(_) => Ok(false),
        }
    }
}

impl copy::Sink for DatagramSink {
    async fn send(&mut self, payload: Bytes) -> Result<(), Failure> {
        if self.send_datagram(&payload)? {
            return Ok(());
        }
        let head = datagram::capsule_head(payload.len());
        self.partial = true;
        self.stream.send_with_head(head, payload).await?;
        self.partial = false;
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        if self.partial {
            self.reset();
            return Ok(());
        }
        copy::Sink::finish(&mut self.stream).await
    }

    fn reset(&mut self) {
        copy::Sink::reset(&mut self.stream);
    }
}

/// For so long after a datagram that was too large for the path.
const IN_CAPSULES: Duration = Duration::from_secs(1);
/// Received datagrams that wait for their application, and their bytes.
const WAITING_DATAGRAMS: usize = 1024;
const WAITING_BYTES: usize = 1 << 20;
