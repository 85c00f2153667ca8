//! Who calls: the holder of the TLS client certificate, or else of a bearer token, which is a join token of ours or the JWT of a
//! configured issuer. Istio's data planes bring the latter: ztunnel has no host key, and never presents a certificate to its
//! control plane.
//!
//! A member by token is kept like an agent, so that its certificates count in a rotation and can be revoked. It is known by its
//! token (or issuer and subject) **and** the address that it comes from: a stolen join token is of no use elsewhere, and a
//! repeated call, a renewal with a fresh key, or a reconnect is not another use.

mod https;
mod issuers;
mod jwt;
mod keys;

use std::net::IpAddr;
use std::time::Instant;

use aws_lc_rs::digest::{SHA256, digest};
use mesh_core::identity::CONTROL_NAMESPACE;
use mesh_core::token::BootstrapToken;
use rusqlite::Transaction;
use tonic::Code;
use tonic::metadata::MetadataMap;

pub use issuers::Issuers;
use jwt::Subject;

use crate::ca::hex;
use crate::control::Control;
use crate::control::register::find_group;
use crate::control::revoke;
use crate::error::Refusal;
use crate::incoming::Peer;
use crate::store::{Agent, TokenRow, now};
use crate::token;

/// Longest bearer token that is looked at, in bytes.
const LONGEST: usize = 16 * 1024;
/// What a join token of ours begins with.
const OURS: &str = "mesh1.";

impl Control {
    /// The member behind a call. A client certificate goes before a token.
    pub async fn caller(&self, peer: &Peer, metadata: &MetadataMap) -> Result<Agent, Refusal> {
        let bearer = match peer.certificate {
            Some(_) => None,
            None => bearer(metadata)?,
        };
        let Some(bearer) = bearer else {
            return self.authenticate(peer).await;
        };
        let source = peer
            .address
            .ok_or_else(|| Refusal::internal("no peer address", &"not a TCP connection"))?
            .ip();
        self.limits.admit(source, Instant::now())?;
        if bearer.starts_with(OURS) {
            let token = mesh_core::token::decode(bearer)
                .map_err(|e| Refusal::new(Code::Unauthenticated, "token-invalid", e.to_string()))?;
            return self.store.run(move |tx| by_token(tx, &token, source)).await;
        }
        let subject = self.issuers.verify(bearer)?;
        self.store.run(move |tx| by_subject(tx, &subject, source)).await
    }
}

/// The token of `authorization: Bearer`; `None` when the call has no such header.
fn bearer(metadata: &MetadataMap) -> Result<Option<&str>, Refusal> {
    let Some(header) = metadata.get("authorization") else {
        return Ok(None);
    };
    let invalid = |message: &str| Refusal::new(Code::Unauthenticated, "token-invalid", message);
    let text = header
        .to_str()
        .map_err(|_| invalid("the authorization header is not plain text"))?;
    let (scheme, token) = text.split_once(' ').unwrap_or_default();
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(invalid("the authorization header is not `Bearer TOKEN`"));
    }
    if token.len() > LONGEST {
        return Err(invalid("the bearer token is longer than 16 KiB"));
    }
    Ok(Some(token))
}

/// The member that holds a join token of ours at this address; a first call from there is one use of the token.
fn by_token(tx: &Transaction<'_>, token: &BootstrapToken, source: IpAddr) -> Result<Agent, Refusal> {
    let id = member_id(&["token", &token.token_id, &source.to_string()]);
    let row = token::check(tx, &token.token_id, &token.secret, &id, source)?;
    let (namespace, name) = row.workload_group.split_once('/').unwrap_or_default();
    let group = find_group(tx, namespace, name)?;
    let known = Agent::get(tx, &id)?;
    let mut agent = known.unwrap_or_else(|| member(&id, source));
    if agent.revoked_at.is_some() {
        return Err(revoke::revoked(&agent));
    }
    namespace.clone_into(&mut agent.namespace);
    group.spec.template.account().clone_into(&mut agent.service_account);
    name.clone_into(&mut agent.workload_group);
    agent.last_seen = now();
    agent.put(tx)?;
    TokenRow::bind(tx, &row.id, &agent.id, now())?;
    Ok(agent)
}

/// The member of this issuer and subject at this address.
fn by_subject(tx: &Transaction<'_>, subject: &Subject, source: IpAddr) -> Result<Agent, Refusal> {
    if subject.namespace == CONTROL_NAMESPACE {
        let message = "no workload may have an identity in namespace mesh-system";
        return Err(Refusal::new(Code::PermissionDenied, "namespace-reserved", message));
    }
    let mut id = member_id(&[
        "jwt",
        &subject.issuer,
        &subject.namespace,
        &subject.service_account,
        &source.to_string(),
    ]);
    let mut known = Agent::get(tx, &id)?;
    // Who was revoked comes back only with a token issued after that, and then as another member: what was refused stays refused.
    while let Some(at) = known.as_ref().and_then(|agent| agent.revoked_at)
        && subject.issued_at > at
    {
        id = member_id(&["jwt-again", &id]);
        known = Agent::get(tx, &id)?;
    }
    let mut agent = known.unwrap_or_else(|| member(&id, source));
    if agent.revoked_at.is_some() {
        return Err(revoke::revoked(&agent));
    }
    agent.namespace.clone_from(&subject.namespace);
    agent.service_account.clone_from(&subject.service_account);
    agent.last_seen = now();
    agent.put(tx)?;
    Ok(agent)
}

/// A member without a host key, seen for the first time.
fn member(id: &str, source: IpAddr) -> Agent {
    Agent {
        id: id.to_owned(),
        host_spki: Vec::new(),
        namespace: String::new(),
        service_account: String::new(),
        workload_group: String::new(),
        address: source.to_string(),
        hostname: String::new(),
        version: String::new(),
        joined_at: now(),
        last_seen: now(),
        recoveries: 0,
        revoked_at: None,
        acked: std::collections::BTreeSet::new(),
        control_addresses: Vec::new(),
    }
}

/// As long as the ids that host keys give; no part holds the separator.
fn member_id(parts: &[&str]) -> String {
    hex(&digest(&SHA256, parts.join("\n").as_bytes()).as_ref()[..8])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bearer_headers() {
        let read = |value: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", value.parse().unwrap());
            bearer(&metadata).map(|b| b.map(str::to_owned))
        };
        assert_eq!(bearer(&MetadataMap::new()), Ok(None));
        assert_eq!(read("Bearer abc").unwrap().unwrap(), "abc");
        assert_eq!(read("bearer  abc ").unwrap().unwrap(), "abc");
        for bad in ["abc", "Basic abc", "Bearer ", ""] {
            assert_eq!(read(bad).unwrap_err().word, "token-invalid", "{bad:?}");
        }
    }

    #[test]
    fn the_revoked_come_back_only_by_a_later_token() {
        let store = crate::store::Store::in_memory().unwrap();
        let source = "10.0.0.1".parse().unwrap();
        let subject = |issued_at| Subject {
            issuer: "a".into(),
            namespace: "shop".into(),
            service_account: "web".into(),
            issued_at,
        };
        let call = |issued_at| store.write(|tx| by_subject(tx, &subject(issued_at), source));
        let first = call(100).unwrap();
        assert_eq!(call(200).unwrap().id, first.id);
        let mut revoked = first.clone();
        revoked.revoked_at = Some(300);
        store.write(|tx| revoked.put(tx)).unwrap();
        assert_eq!(call(300).unwrap_err().word, "member-revoked");
        let back = call(301).unwrap();
        assert_ne!(back.id, first.id);
        assert_eq!(call(301).unwrap().id, back.id);
        let elsewhere = store.write(|tx| by_subject(tx, &subject(1), "10.0.0.2".parse().unwrap()));
        assert_ne!(elsewhere.unwrap().id, first.id);
    }
}
