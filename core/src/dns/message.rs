//! DNS messages: as much of a query as a decision needs, and answers within their size.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use super::Action;

/// Seconds that an answer may be kept.
const TTL: u32 = 30;
/// A stream's limit; anything less is a datagram's.
const STREAM_MAX: usize = 65_535;
/// What a client without EDNS takes, and the least that EDNS may announce.
const PLAIN_MAX: usize = 512;
/// What we announce in EDNS: fits the smallest IPv6 path.
const ANNOUNCED: u16 = 1232;
const HEADER: usize = 12;

/// What a message is.
pub(super) enum Read {
    /// One question.
    Query(Query),
    /// A query that cannot be right: here is its FORMERR.
    Malformed(Vec<u8>),
    /// A query of a kind that is not ours to judge.
    Other,
    /// No query at all.
    Nothing,
}

/// A query with its one question.
pub(super) struct Query {
    metadata: Metadata,
    question: Question,
    /// The size that its EDNS announces.
    edns: Option<usize>,
}

/// Reads header, question, and EDNS where it is the first additional record, as every client sends it.
pub(super) fn read(bytes: &[u8]) -> Read {
    let mut decoder = BinDecoder::new(bytes);
    let Ok(header) = Header::read(&mut decoder) else {
        return Read::Nothing;
    };
    if header.metadata.message_type == MessageType::Response {
        return Read::Nothing;
    }
    if header.metadata.op_code != OpCode::Query {
        return Read::Other;
    }
    let malformed = || bare(bytes, ResponseCode::FormErr).map_or(Read::Nothing, Read::Malformed);
    if header.counts.queries != 1 {
        return malformed();
    }
    let Ok(question) = Question::read(&mut decoder) else {
        return malformed();
    };
    if question.query_class != DNSClass::IN {
        return Read::Other;
    }
    let counts = header.counts;
    let edns = match bytes.get(decoder.index()..) {
        Some([0, 0, 41, high, low, ..]) if counts.answers == 0 && counts.authorities == 0 && counts.additionals > 0 => {
            Some(usize::from(u16::from_be_bytes([*high, *low])))
        }
        _ => None,
    };
    Read::Query(Query {
        metadata: header.metadata,
        question,
        edns,
    })
}

/// An answer of nothing but a header; `None` unless `query` has one and is a query.
pub(super) fn bare(query: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let header = query.get(..HEADER)?;
    let is_query = header[2] & 0x80 == 0;
    let (kept, recursion_available) = (header[2] & 0x79, 0x80); // The opcode and RD stay as asked.
    is_query.then(|| {
        let mut answer = vec![header[0], header[1], 0x80 | kept, recursion_available | code.low()];
        answer.resize(HEADER, 0);
        answer
    })
}

impl Query {
    pub(super) fn kind(&self) -> RecordType {
        self.question.query_type
    }

    /// The name in lower case without the last dot; `None` where a label holds what no host's name does.
    pub(super) fn plain_name(&self) -> Option<String> {
        let mut plain = String::with_capacity(64);
        for label in self.question.name.iter() {
            if !plain.is_empty() {
                plain.push('.');
            }
            for byte in label {
                if !byte.is_ascii_alphanumeric() && !b"-_*".contains(byte) {
                    return None;
                }
                plain.push(char::from(byte.to_ascii_lowercase()));
            }
        }
        Some(plain)
    }

    /// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
    pub(super) fn reversed(&self) -> Option<IpAddr> {
        let range = self.question.name.parse_arpa_name().ok()?;
        (range.prefix_len() == range.max_prefix_len()).then(|| range.addr())
    }

    /// The most bytes of an answer.
    pub(super) fn limit(&self, max: usize) -> usize {
        if max >= STREAM_MAX {
            return STREAM_MAX;
        }
        max.min(self.edns.unwrap_or(PLAIN_MAX).max(PLAIN_MAX))
    }

    /// An answer without records.
    pub(super) fn code(&self, code: ResponseCode) -> Vec<u8> {
        let mut message = self.reply();
        message.metadata.response_code = code;
        printed(&message)
    }

    /// Addresses, behind a CNAME to `stripped` where that is what was found.
    pub(super) fn addresses(&self, addresses: &[IpAddr], stripped: Option<&str>, max: usize) -> Vec<u8> {
        let mut message = self.reply();
        let mut owner = self.question.name.clone();
        if let Some(target) = stripped.and_then(absolute) {
            message.add_answer(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(target.clone()))));
            owner = target;
        }
        for address in addresses {
            let data = match address {
                IpAddr::V4(v4) => RData::A(A(*v4)),
                IpAddr::V6(v6) => RData::AAAA(AAAA(*v6)),
            };
            message.add_answer(Record::from_rdata(owner.clone(), TTL, data));
        }
        fitted(message, max)
    }

    /// The name of an address.
    pub(super) fn pointer(&self, hostname: &str, max: usize) -> Action {
        let Some(target) = absolute(hostname) else {
            return Action::Forward;
        };
        let mut message = self.reply();
        message.add_answer(Record::from_rdata(
            self.question.name.clone(),
            TTL,
            RData::PTR(PTR(target)),
        ));
        Action::Answer(fitted(message, max))
    }

    fn reply(&self) -> Message {
        let mut message = Message::response(self.metadata.id, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.authoritative = true;
        message.metadata.recursion_available = true;
        message.add_query(self.question.clone());
        if self.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(ANNOUNCED);
            message.set_edns(edns);
        }
        message
    }
}

fn absolute(name: &str) -> Option<Name> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// Leaves out as many answers as it must to fit, and says so by TC.
fn fitted(mut message: Message, max: usize) -> Vec<u8> {
    let whole = printed(&message);
    if whole.len() <= max {
        return whole;
    }
    message.metadata.truncation = true;
    let all = std::mem::take(&mut message.answers);
    let (mut fits, mut kept, mut too_many) = (printed(&message), 0, all.len());
    while kept + 1 < too_many {
        let tried = usize::midpoint(kept, too_many);
        message.answers = all[..tried].to_vec();
        let bytes = printed(&message);
        if bytes.len() <= max {
            (fits, kept) = (bytes, tried);
        } else {
            too_many = tried;
        }
    }
    fits
}

/// Fails only on names too long, and ours were read from a message or checked by [`absolute`].
fn printed(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap_or_default()
}
