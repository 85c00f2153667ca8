//! Asking for the address of a name of our own (the control plane's): the query, and what an answer says.

use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};

/// Why an answer gives no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Not a name that can be asked for.
    #[error("{0} is not a host name")]
    Name(String),
    /// No message, or the answer to another question.
    #[error("the answer is malformed")]
    Malformed,
    /// The answer was cut short: ask again over TCP.
    #[error("the answer was cut short")]
    Truncated,
    /// The server's own word.
    #[error("the server says {0}")]
    Refused(String),
}

/// The query for one kind of address: A, or AAAA with `v6`. `id` should not be guessable.
pub fn query(id: u16, name: &str, v6: bool) -> Result<Vec<u8>, LookupError> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(question(name, v6)?);
    message.to_vec().map_err(|_| LookupError::Name(name.into()))
}

/// The addresses in the answer to that query; none when the name has none of this kind, or is not there. CNAMEs are followed
/// by the server that was asked, so every address in the answer section is the name's.
pub fn addresses(id: u16, name: &str, v6: bool, answer: &[u8]) -> Result<Vec<IpAddr>, LookupError> {
    let message = Message::from_vec(answer).map_err(|_| LookupError::Malformed)?;
    let metadata = &message.metadata;
    let ours = metadata.id == id
        && metadata.message_type == MessageType::Response
        && message.queries.first() == Some(&question(name, v6)?);
    if !ours {
        return Err(LookupError::Malformed);
    }
    if metadata.truncation {
        return Err(LookupError::Truncated);
    }
    match metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        other => return Err(LookupError::Refused(other.to_string())),
    }
    let found = message.answers.iter().filter_map(|record| match &record.data {
        RData::A(a) if !v6 => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) if v6 => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    });
    Ok(found.take(MAX_ADDRESSES).collect())
}

/// The addresses that a hosts(5) file gives to a name.
pub fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let line = |line: &str| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let address: IpAddr = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    };
    text.lines().filter_map(line).take(MAX_ADDRESSES).collect()
}

fn question(name: &str, v6: bool) -> Result<Query, LookupError> {
    let mut parsed = Name::from_ascii(name).map_err(|_| LookupError::Name(name.into()))?;
    parsed.set_fqdn(true);
    let kind = if v6 { RecordType::AAAA } else { RecordType::A };
    let mut question = Query::query(parsed, kind);
    question.set_query_class(DNSClass::IN);
    Ok(question)
}

/// More are not tried.
const MAX_ADDRESSES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, AAAA, CNAME};

    fn answer(id: u16, name: &str, v6: bool, change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Response, OpCode::Query);
        message.add_query(question(name, v6).unwrap());
        change(&mut message);
        message.to_vec().unwrap()
    }

    fn record(name: &str, data: RData) -> Record {
        Record::from_rdata(Name::from_ascii(name).unwrap(), 30, data)
    }

    #[test]
    fn addresses_behind_a_cname_are_found() {
        let bytes = answer(7, "control.example.com", false, |message| {
            let target = Name::from_ascii("host.example.com.").unwrap();
            message.add_answer(record("control.example.com.", RData::CNAME(CNAME(target))));
            message.add_answer(record("host.example.com.", RData::A(A([10, 0, 0, 1].into()))));
            message.add_answer(record(
                "host.example.com.",
                RData::AAAA(AAAA("fd00::1".parse().unwrap())),
            ));
        });
        let found = addresses(7, "control.example.com", false, &bytes).unwrap();
        assert_eq!(found, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_name_that_is_not_there_has_no_address() {
        let bytes = answer(7, "no.example", true, |message| {
            message.metadata.response_code = ResponseCode::NXDomain
        });
        assert_eq!(addresses(7, "no.example", true, &bytes), Ok(Vec::new()));
    }

    #[test]
    fn what_does_not_answer_the_question_is_refused() {
        let good = answer(7, "a.example", false, |_| {});
        assert_eq!(addresses(8, "a.example", false, &good), Err(LookupError::Malformed));
        assert_eq!(addresses(7, "b.example", false, &good), Err(LookupError::Malformed));
        assert_eq!(addresses(7, "a.example", true, &good), Err(LookupError::Malformed));
        assert_eq!(addresses(7, "a.example", false, b"\0\x07"), Err(LookupError::Malformed));
        let query = query(7, "a.example", false).unwrap();
        assert_eq!(addresses(7, "a.example", false, &query), Err(LookupError::Malformed));
        let cut = answer(7, "a.example", false, |message| message.metadata.truncation = true);
        assert_eq!(addresses(7, "a.example", false, &cut), Err(LookupError::Truncated));
        let failed = answer(7, "a.example", false, |message| {
            message.metadata.response_code = ResponseCode::ServFail
        });
        assert!(matches!(
            addresses(7, "a.example", false, &failed),
            Err(LookupError::Refused(_))
        ));
        assert!(super::query(7, &"a".repeat(64), false).is_err());
    }

    #[test]
    fn the_hosts_file_is_read_as_written() {
        let text = "# comment\n10.0.0.1 control Control.Example # the box\nfd00::1\tcontrol\nnonsense control\n";
        let found: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(in_hosts(text, "CONTROL"), found);
        assert_eq!(in_hosts(text, "control.example"), found[..1]);
        assert!(in_hosts(text, "comment").is_empty());
    }
}
