//! What is answered, and what is forwarded (istio-wire section 4).
//!
//! Names of services are answered with their VIPs, headless ones with their endpoints; everything else is left to the
//! machine's own resolvers. A known name without an address of the asked family is NOERROR and empty, never NXDOMAIN.

mod names;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::world::{Service, World};

/// Where the asking machine stands.
#[derive(Clone, Debug)]
pub struct View<'a> {
    pub network: &'a str,
    pub namespace: &'a str,
    /// Kubernetes' cluster domain, such as `cluster.local`.
    pub cluster_domain: &'a str,
    /// The mesh's own domain, such as `mesh.internal`.
    pub mesh_domain: &'a str,
    /// The machine's search list, lower case.
    pub search: &'a [String],
}

/// What to do with a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this message.
    Answer(Vec<u8>),
    /// Ask the machine's resolvers, unchanged.
    Forward,
    /// Not a query that can be answered at all: drop it.
    Drop,
}

/// How the query came, which bounds the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// 512 bytes, or what EDNS allows; longer answers are cut (TC).
    Udp,
    /// 65,535 bytes.
    Tcp,
}

/// Decides on one DNS message. `seed` shuffles addresses.
pub fn decide(query: &[u8], world: &World, view: &View<'_>, seed: u64, carrier: Carrier) -> Action {
    let message = match Message::from_vec(query) {
        Ok(message) => message,
        Err(_) => return header_only(query, ResponseCode::FormErr).map_or(Action::Drop, Action::Answer),
    };
    if message.metadata.message_type != MessageType::Query {
        return Action::Drop;
    }
    let ([asked], OpCode::Query) = (message.queries.as_slice(), message.metadata.op_code) else {
        return Action::Forward;
    };
    if asked.query_class() != DNSClass::IN {
        return Action::Forward;
    }
    let name = asked.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let found = names::candidates(&name, view)
        .into_iter()
        .find_map(|candidate| Some((find(world, &candidate.hostname, view)?, candidate)));
    let Some((service, candidate)) = found else {
        return match (names::is_ours(&name, view), world.addresses_synced()) {
            (false, _) => Action::Forward,
            (true, true) => answer(&message, ResponseCode::NXDomain, Vec::new(), carrier),
            // The world is not here yet: the application shall ask again.
            (true, false) => answer(&message, ResponseCode::ServFail, Vec::new(), carrier),
        };
    };
    let stripped = candidate.stripped.then_some(candidate.hostname.as_str());
    let records = records(world, &service, asked, stripped, view, seed);
    answer(&message, ResponseCode::NoError, records, carrier)
}

/// SERVFAIL for a query whose forwarding failed; `None` when the query has no readable header.
pub fn servfail(query: &[u8]) -> Option<Vec<u8>> {
    let Ok(message) = Message::from_vec(query) else {
        return header_only(query, ResponseCode::ServFail);
    };
    match answer(&message, ResponseCode::ServFail, Vec::new(), Carrier::Udp) {
        Action::Answer(answer) => Some(answer),
        Action::Forward | Action::Drop => None,
    }
}

fn find(world: &World, hostname: &str, view: &View<'_>) -> Option<Service> {
    world
        .service_named(hostname, view.namespace)
        .map(|service| (**service).clone())
}

fn records(
    world: &World,
    service: &Service,
    asked: &Query,
    stripped: Option<&str>,
    view: &View<'_>,
    seed: u64,
) -> Vec<Record> {
    let wanted = |address: &IpAddr| match asked.query_type() {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        _ => false,
    };
    let mut addresses: Vec<IpAddr> = addresses(world, service, view).into_iter().filter(wanted).collect();
    shuffle(&mut addresses, seed);
    addresses.truncate(MAX_ADDRESSES);

    let mut owner = asked.name().clone();
    let mut records = Vec::new();
    let target = stripped.and_then(|name| Name::from_ascii(format!("{name}.")).ok());
    if let (Some(target), false) = (target, addresses.is_empty()) {
        records.push(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(target.clone()))));
        owner = target;
    }
    records.extend(addresses.into_iter().map(|address| {
        let data = match address {
            IpAddr::V4(v4) => RData::A(A(v4)),
            IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
        };
        Record::from_rdata(owner.clone(), TTL, data)
    }));
    records
}

/// VIPs in our network; of a service without any, its endpoints.
fn addresses(world: &World, service: &Service, view: &View<'_>) -> Vec<IpAddr> {
    if !service.vips.is_empty() {
        let single = |net: &ipnet::IpNet| net.prefix_len() == net.max_prefix_len();
        let ours = service
            .vips
            .iter()
            .filter(|(network, vip)| **network == *view.network && single(vip));
        return ours.map(|(_, vip)| vip.addr()).collect();
    }
    let usable = world
        .endpoints(&service.key)
        .filter(|one| one.healthy || service.allow_unhealthy);
    usable
        .filter(|one| *one.network == *view.network)
        .flat_map(|one| one.addresses.iter().copied())
        .collect()
}

fn shuffle(addresses: &mut [IpAddr], seed: u64) {
    let mut random = seed;
    for at in (1..addresses.len()).rev() {
        random = random
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        let to = usize::try_from(random >> 33).unwrap_or(0) % (at + 1);
        addresses.swap(at, to);
    }
}

fn answer(query: &Message, code: ResponseCode, records: Vec<Record>, carrier: Carrier) -> Action {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.authoritative = code != ResponseCode::ServFail;
    message.metadata.response_code = code;
    message.add_queries(query.queries.iter().cloned());
    message.add_answers(records);
    let mut most = match carrier {
        Carrier::Udp => 512,
        Carrier::Tcp => usize::from(u16::MAX),
    };
    if let Some(edns) = &query.edns {
        let mut ours = Edns::new();
        ours.set_max_payload(EDNS_PAYLOAD);
        message.set_edns(ours);
        most = most.max(usize::from(edns.max_payload()));
    }
    match message.to_vec() {
        Ok(bytes) if bytes.len() <= most => Action::Answer(bytes),
        Ok(_) => message.truncate().to_vec().map_or(Action::Drop, Action::Answer),
        Err(_) => Action::Drop,
    }
}

/// A header with a code, for what cannot be read any further (RFC 1035 4.1.1).
fn header_only(query: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let header = query.get(..12)?;
    // An answer, whoever sent it, is never answered.
    if header[2] & 0x80 != 0 {
        return None;
    }
    Some(vec![
        header[0],
        header[1],
        0x80 | (header[2] & 0x79),
        0x80 | code.low(),
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ])
}

/// Seconds.
const TTL: u32 = 30;
/// What we say that we take over UDP.
const EDNS_PAYLOAD: u16 = 1232;
/// Addresses in one answer.
const MAX_ADDRESSES: usize = 64;
