//! Answers DNS on captured flows to the resolver addresses: mesh names from the world, everything else from the machine's
//! own resolvers (never from ourselves). Nothing binds port 53.

mod forward;
mod lookup;
mod resolv;

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use mesh_core::dns::{Action, View, decide, servfail};
use mesh_core::packet::FlowKey;
use tokio::sync::Semaphore;

use crate::capture::{Flow, Replies};
use crate::config;
use crate::copy::{Sink, Source};
use crate::failure::Failure;
use crate::metrics::dns::Query;
use crate::shared::Shared;
pub use lookup::Lookup;
pub use resolv::{ResolvConf, ResolvFile};

/// The resolver of one shard. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Resolver {
    shared: Arc<Shared>,
    file: Rc<RefCell<ResolvFile>>,
    /// Queries that wait for an upstream.
    under_way: Arc<Semaphore>,
    seed: Rc<std::cell::Cell<u64>>,
}

impl Resolver {
    /// Reads `resolv_conf` (as a rule /etc/resolv.conf) for upstreams and the search list, whenever it changes.
    pub fn new(shared: Arc<Shared>, resolv_conf: impl Into<std::path::PathBuf>, seed: u64) -> Self {
        Self {
            shared,
            file: Rc::new(RefCell::new(ResolvFile::new(resolv_conf))),
            under_way: Arc::new(Semaphore::new(MAX_UNDER_WAY)),
            seed: Rc::new(std::cell::Cell::new(seed)),
        }
    }

    /// Whether this is where we answer DNS.
    pub fn serves(&self, destination: SocketAddr) -> bool {
        destination.port() == 53 && is_ours(&self.shared.config.dns, destination.ip())
    }

    /// One captured datagram.
    pub async fn datagram(self, key: FlowKey, query: Bytes, replies: Replies) {
        let counted = self.count(&query, "udp");
        let answer = match self.decide(&query, UDP) {
            Action::Answer(answer) => Some(answer),
            Action::Drop => None,
            // Over the bound the query is dropped; the application asks again.
            Action::Forward => match self.under_way.clone().try_acquire_owned() {
                Ok(_permit) => {
                    let mark = self.shared.config.capture.mark;
                    let started = Instant::now();
                    let answer = forward::udp(&query, &self.upstreams(), mark).await;
                    counted.forwarded(started.elapsed(), answer.is_some());
                    answer.or_else(|| servfail(&query))
                }
                Err(_) => None,
            },
        };
        if let Some(answer) = answer {
            replies.datagram(key, &answer);
        }
    }

    /// One captured TCP connection to port 53: queries one after the other, each with its length in front (RFC 7766).
    pub async fn stream(self, flow: Flow) {
        let served = tokio::time::timeout(STREAM_LIFE, self.serve_stream(flow)).await;
        if let Ok(Err(failure)) = served {
            tracing::debug!(target: "mesh_agent::dns", %failure, "DNS over TCP ended");
        }
    }

    async fn serve_stream(&self, flow: Flow) -> Result<(), Failure> {
        let mut end = flow.accept()?;
        let mut buffer = BytesMut::new();
        loop {
            while let Some(query) = next_message(&mut buffer) {
                let Some(answer) = self.answer_stream(&query).await else {
                    return Ok(());
                };
                let length = u16::try_from(answer.len()).unwrap_or(u16::MAX);
                let mut framed = BytesMut::with_capacity(2 + answer.len());
                framed.extend_from_slice(&length.to_be_bytes());
                framed.extend_from_slice(&answer);
                end.sink.send(framed.freeze()).await?;
            }
            match end.source.recv().await? {
                Some(bytes) => buffer.extend_from_slice(&bytes),
                None => return end.sink.finish().await,
            }
        }
    }

    async fn answer_stream(&self, query: &[u8]) -> Option<Vec<u8>> {
        let counted = self.count(query, "tcp");
        match self.decide(query, TCP) {
            Action::Answer(answer) => Some(answer),
            Action::Drop => None,
            Action::Forward => {
                let _permit = self.under_way.clone().try_acquire_owned().ok()?;
                let mark = self.shared.config.capture.mark;
                let started = Instant::now();
                let answer = forward::tcp(query, &self.upstreams(), mark).await;
                counted.forwarded(started.elapsed(), answer.is_some());
                answer.or_else(|| servfail(query))
            }
        }
    }

    fn count(&self, query: &[u8], protocol: &'static str) -> Query {
        let own = self.shared.own_workload(&self.shared.world());
        let query = Query::new(query, protocol, own.as_deref());
        query.received();
        query
    }

    fn decide(&self, query: &[u8], most: usize) -> Action {
        self.seed.set(self.seed.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        let world = self.shared.world();
        let machine = self.file.borrow_mut().current();
        let membership = &self.shared.membership;
        let view = View {
            network: &membership.network,
            namespace: &membership.namespace,
            cluster_domain: &self.shared.config.dns.cluster_domain,
            mesh_domain: &membership.dns_domain,
            search: &machine.search,
        };
        decide(query, &world, &view, self.seed.get(), most)
    }

    fn upstreams(&self) -> Vec<SocketAddr> {
        let machine = self.file.borrow_mut().current();
        upstreams(&self.shared.config.dns, &machine)
    }
}

/// Whom to ask what is not ours: the configured servers, else the machine's; never ourselves.
fn upstreams(dns: &config::Dns, machine: &ResolvConf) -> Vec<SocketAddr> {
    let servers = match dns.upstreams.as_slice() {
        [] => &machine.nameservers,
        configured => configured,
    };
    let is_other = |server: &&SocketAddr| !is_ours(dns, server.ip());
    servers.iter().filter(is_other).copied().collect()
}

fn is_ours(dns: &config::Dns, address: IpAddr) -> bool {
    address == IpAddr::V4(dns.resolver4) || address == IpAddr::V6(dns.resolver6)
}

/// Takes one length-prefixed message off the front, if it is whole.
fn next_message(buffer: &mut BytesMut) -> Option<Bytes> {
    let length = usize::from(u16::from_be_bytes([*buffer.first()?, *buffer.get(1)?]));
    if buffer.len() < 2 + length {
        return None;
    }
    buffer.advance(2);
    Some(buffer.split_to(length).freeze())
}

/// Bytes of an answer; over UDP what the query's EDNS allows bounds it, too.
const UDP: usize = 65_507;
const TCP: usize = 65_535;
/// Queries that wait for an upstream at a time.
const MAX_UNDER_WAY: usize = 1024;
/// A DNS connection is closed after this long, so that idle ones do not pile up.
const STREAM_LIFE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_whole() {
        let mut buffer = BytesMut::from(&[0, 3, b'a', b'b', b'c', 0, 2, b'd'][..]);
        assert_eq!(next_message(&mut buffer).as_deref(), Some(&b"abc"[..]));
        assert_eq!(next_message(&mut buffer), None);
        buffer.extend_from_slice(b"e");
        assert_eq!(next_message(&mut buffer).as_deref(), Some(&b"de"[..]));
        assert!(buffer.is_empty());
    }
}
