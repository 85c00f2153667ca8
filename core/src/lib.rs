//! The decisions of mesh-agent, and nothing else.
//!
//! This crate is pure: it opens no socket, reads no clock, draws no randomness from the system and spawns no task.
//! Time, seeds and ring memory are arguments; input is a method call, output is something the caller drains.
//!
//! | module | decides |
//! |---|---|
//! | [`packet`] | what a captured IP packet is, and how replies are built |
//! | [`engine`] | captured packets into flows, and back (smoltcp inside) |
//! | [`udp`] | UDP flows, and what waits on them |
//! | [`identity`] | what a SPIFFE ID is |
//! | [`world`] | what the control plane told us, as one immutable value with its indexes |
//! | [`policy`] | may this connection be, and which rule says so |
//! | [`balance`] | which endpoint of a service gets a connection |
//! | [`outbound`] | what is to be done with a connection that an application of ours opened |
//! | [`inbound`] | what is to be done with a CONNECT that a peer sent us |
//! | [`baggage`] | who a caller says that it is |
//! | [`trace`] | by which id the two log lines of a flow are found |
//! | [`proxy`] | the PROXY protocol header of an application tunnel |
//! | [`why`] | why a connection would or would not be, for those who ask |
//! | [`dns`] | what is answered, and what is forwarded |
//! | [`xds`] | the delta-xDS session: versions, nonces, ACK and NACK |
//! | [`connect`] | what a CONNECT says, and its answer |
//! | [`transport`] | QUIC or TCP to a peer |
//! | [`h3`] | HTTP/3 frames, QPACK, the CONNECT head, datagrams and capsules |
//! | [`health`] | whether this machine is to be sent anything: probes, their thresholds, draining |
//! | [`token`] | the bootstrap token |
//! | [`istio`] | what a bundle of istioctl says, and what istiod is told of us |
//! | [`own_record`] | whether the control plane lists this machine as it should |
//! | [`rotation`] | when a certificate is renewed |
#![forbid(unsafe_code)]

pub mod baggage;
pub mod balance;
pub mod connect;
pub mod dns;
pub mod engine;
pub mod h3;
pub mod health;
pub mod identity;
pub mod inbound;
pub mod istio;
mod mix;
pub mod outbound;
pub mod own_record;
pub mod packet;
pub mod policy;
pub mod proxy;
pub mod rotation;
pub mod token;
pub mod trace;
pub mod transport;
pub mod udp;
pub mod why;
pub mod world;
pub mod xds;
