//! The border between the pure engine and the IO around it: one TUN queue, one engine, one thread.

use bytes::Bytes;
use mesh_core::engine::Refusal;
use mesh_core::packet::FlowKey;

use crate::copy::{End, Sink, Source};
use crate::failure::Failure;

/// What was captured.
#[derive(Debug)]
pub enum Captured {
    /// A TCP connection whose SYN is not answered yet.
    Tcp(Flow),
    /// One UDP datagram; answer by [`Replies::datagram`].
    Datagram { key: FlowKey, payload: Bytes },
}

/// One captured TCP connection. Dropping it aborts it.
#[derive(Debug)]
pub struct Flow {}

/// What the application sent.
#[derive(Debug)]
pub struct FlowSource {}

/// What the application receives. Dropping it unfinished resets the flow.
#[derive(Debug)]
pub struct FlowSink {}

#[allow(unused_variables)]
impl Flow {
    /// Source is the application, destination what it connected to.
    pub fn key(&self) -> FlowKey {
        todo!()
    }
    /// Lets the SYN-ACK go, and gives the two directions.
    pub fn accept(self) -> Result<End<FlowSource, FlowSink>, Failure> {
        todo!()
    }
    /// The application sees this instead of a connection.
    pub fn refuse(self, why: Refusal) {
        todo!()
    }
    /// Resolves when the application gave up before the SYN was answered.
    pub async fn abandoned(&self) {
        todo!()
    }
}

impl Source for FlowSource {
    async fn recv(&mut self) -> Result<Option<Bytes>, Failure> {
        todo!()
    }
    fn stop(&mut self) {
        todo!()
    }
}

#[allow(unused_variables)]
impl Sink for FlowSink {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Failure> {
        todo!()
    }
    async fn finish(&mut self) -> Result<(), Failure> {
        todo!()
    }
    fn reset(&mut self) {
        todo!()
    }
}

/// Sends datagrams back into the TUN.
#[derive(Clone, Debug)]
pub struct Replies {}

#[allow(unused_variables)]
impl Replies {
    /// Answers a captured datagram: from its destination to its source.
    pub fn datagram(&self, original: FlowKey, payload: &[u8]) {
        todo!()
    }
}
