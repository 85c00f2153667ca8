//! Join tokens: making them, and the order in which a used one is checked.

use std::net::IpAddr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use mesh_core::token::BootstrapToken;
use mesh_proto::mesh::{CreateTokenRequest, TokenInfo};
use rusqlite::Transaction;
use tonic::Code;

use crate::ca::{Authority, hex, random};
use crate::control::register::find_group;
use crate::error::Refusal;
use crate::resources::check::parse_range;
use crate::store::{TokenRow, TokenState, now, timestamp};

const DEFAULT_LIFETIME: u32 = 3600;
const LONGEST_LIFETIME: u32 = 30 * 86_400;
const MOST_USES: u32 = 100_000;

/// Makes and keeps a token; returns its text. The secret is in the text and nowhere else.
pub fn create(
    tx: &Transaction<'_>,
    authority: &Authority,
    addresses: &[String],
    request: &CreateTokenRequest,
) -> Result<(String, TokenRow), Refusal> {
    let invalid = |message: String| Refusal::new(Code::InvalidArgument, "invalid", message);
    let group = &request.workload_group;
    let (namespace, name) = group
        .split_once('/')
        .ok_or_else(|| invalid(format!("{group:?} is not NAMESPACE/NAME of a WorkloadGroup")))?;
    let found = find_group(tx, namespace, name).map_err(|refusal| Refusal {
        code: Code::NotFound,
        message: format!("there is no WorkloadGroup {group}; apply it first: `meshctl apply -f FILE`"),
        ..refusal
    })?;
    debug_assert_eq!(found.metadata.name, name);
    let lifetime = if request.lifetime_seconds == 0 {
        DEFAULT_LIFETIME
    } else {
        request.lifetime_seconds
    };
    if lifetime > LONGEST_LIFETIME {
        return Err(invalid("a token may live for at most 30 days (720h)".into()));
    }
    let max_uses = request.max_uses.max(1);
    if max_uses > MOST_USES {
        return Err(invalid(format!("a token may have at most {MOST_USES} uses")));
    }
    if let Some(bad) = request.cidrs.iter().find(|c| parse_range(c).is_none()) {
        return Err(invalid(format!("{bad:?} is neither an IP address nor a CIDR range")));
    }
    if let Some(bad) = request.addresses.iter().find(|a| !crate::config::is_host_port(a)) {
        return Err(invalid(format!("address {bad:?} is not HOST:PORT")));
    }
    let advertised = if request.addresses.is_empty() {
        addresses
    } else {
        &request.addresses
    };
    let secret: [u8; 32] = random();
    let row = TokenRow {
        id: hex(&random::<8>()),
        secret_sha256: digest(&SHA256, &secret).as_ref().to_vec(),
        workload_group: group.clone(),
        created_at: now(),
        expires_at: now() + i64::from(lifetime),
        max_uses,
        cidrs: request.cidrs.clone(),
        addresses: advertised.to_vec(),
        revoked: false,
        uses: 0,
    };
    row.insert(tx)?;
    let text = mesh_core::token::encode(&BootstrapToken {
        addresses: row.addresses.clone(),
        ca_pins: authority.pins(),
        token_id: row.id.clone(),
        secret: secret.to_vec(),
        trust_domain: authority.trust_domain.clone(),
        istio: None,
    });
    Ok((text, row))
}

/// Checks a use of a token by a host key from an address. Nothing is told of a token to those who lack its secret.
pub fn check(tx: &Transaction<'_>, id: &str, secret: &[u8], agent: &str, source: IpAddr) -> Result<TokenRow, Refusal> {
    let Some(token) = TokenRow::get(tx, id)? else {
        let id: String = id.chars().take(64).collect();
        let message = format!(
            "this control plane does not know the token {id:?}; it may be of another mesh, or was forgotten after it expired: make a new one with `meshctl token create`"
        );
        return Err(Refusal::new(Code::NotFound, "token-unknown", message));
    };
    let denied = |word, message: String| Err(Refusal::new(Code::PermissionDenied, word, message));
    if verify_slices_are_equal(digest(&SHA256, secret).as_ref(), &token.secret_sha256).is_err() {
        let message = format!("the secret of token {id} is wrong; paste the whole token again");
        return denied("token-secret", message);
    }
    match token.state(now()) {
        TokenState::Revoked => {
            return denied(
                "token-revoked",
                format!("token {id} was revoked; ask an operator for a new one"),
            );
        }
        TokenState::Expired => {
            let message = format!("token {id} has expired; make a new one with `meshctl token create`");
            return denied("token-expired", message);
        }
        TokenState::Spent | TokenState::Valid => {}
    }
    let mut ranges = token.cidrs.iter().filter_map(|c| parse_range(c));
    if !token.cidrs.is_empty() && !ranges.any(|range| range.contains(&source)) {
        let message = format!(
            "token {id} may not be used from {source}; it is for {}",
            token.cidrs.join(", ")
        );
        return denied("token-cidr", message);
    }
    if token.uses >= token.max_uses && !TokenRow::used_by(tx, id, agent)? {
        let message = format!(
            "token {id} is spent: all of its {} use(s) are bound to other machines; make a new one with `meshctl token create`",
            token.max_uses
        );
        return denied("token-spent", message);
    }
    Ok(token)
}

/// A token as operators see it.
pub fn info(row: &TokenRow) -> TokenInfo {
    TokenInfo {
        id: row.id.clone(),
        workload_group: row.workload_group.clone(),
        created_at: Some(timestamp(row.created_at)),
        expires_at: Some(timestamp(row.expires_at)),
        max_uses: row.max_uses,
        uses: row.uses,
        cidrs: row.cidrs.clone(),
        state: row.state(now()).as_str().to_owned(),
    }
}
