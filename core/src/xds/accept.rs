//! One resource of a response: decoded, checked against its name, and added to the delta; or the reason why not.

use mesh_proto::istio::security::{Authorization, Scope};
use mesh_proto::istio::workload::{Address, address};
use mesh_proto::{mesh, type_url, wkt};
use prost::Message;

use super::{MAX_NAME, shortened};
use crate::health::Fault;
use crate::world::convert::{self, Names};
use crate::world::{Delta, Revocation};

/// Adds to `delta`; gives back the encoded form, to be kept.
pub(super) fn resource(
    expected: &str,
    name: &str,
    any: Option<wkt::Any>,
    names: &mut Names,
    delta: &mut Delta,
) -> Result<Box<[u8]>, String> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(format!("a resource name has 1 to {MAX_NAME} bytes, not {}", name.len()));
    }
    let any = any.ok_or("the resource is empty")?;
    if any.type_url != expected {
        return Err(format!("it is of the type {:?}", shortened(&any.type_url, MAX_NAME)));
    }
    match expected {
        type_url::ADDRESS => one_address(name, decoded(&any.value)?, names, delta)?,
        type_url::AUTHORIZATION => one_policy(name, decoded(&any.value)?, delta)?,
        type_url::REVOCATION => one_revocation(name, decoded(&any.value)?, delta)?,
        type_url::PROBE => probe(decoded(&any.value)?, delta)?,
        type_url::TRUST_BUNDLE => trust_bundle(decoded(&any.value)?, delta)?,
        _ => return Err("this type has no meaning here".to_owned()),
    }
    Ok(any.value.into())
}

/// Whether an accepted policy holds for workloads that do not name it.
pub(super) fn is_unnamed_policy(value: &[u8]) -> bool {
    Authorization::decode(value).is_ok_and(|policy| policy.scope != Scope::WorkloadSelector as i32)
}

fn decoded<M: Message + Default>(value: &[u8]) -> Result<M, String> {
    M::decode(value).map_err(|error| format!("not readable: {error}"))
}

fn one_address(name: &str, from: Address, names: &mut Names, delta: &mut Delta) -> Result<(), String> {
    match from.r#type {
        Some(address::Type::Workload(workload)) => {
            let workload = convert::workload(workload, names).map_err(|invalid| invalid.to_string())?;
            same_name(name, &workload.uid)?;
            delta.workloads.push(workload);
        }
        Some(address::Type::Service(service)) => {
            let service = convert::service(service, names).map_err(|invalid| invalid.to_string())?;
            same_name(name, &format!("{}/{}", service.key.namespace, service.key.hostname))?;
            delta.services.push(service);
        }
        None => return Err("neither a workload nor a service".to_owned()),
    }
    Ok(())
}

fn one_policy(name: &str, from: Authorization, delta: &mut Delta) -> Result<(), String> {
    let policy = convert::authorization(from).map_err(|invalid| invalid.to_string())?;
    same_name(name, &policy.key)?;
    delta.removed_policies.retain(|removed| removed != name);
    delta.policies.push(policy);
    Ok(())
}

fn one_revocation(name: &str, from: mesh::Revocation, delta: &mut Delta) -> Result<(), String> {
    let hash = |bytes: &Vec<u8>| {
        <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| format!("spki_sha256 has {} bytes, not 32", bytes.len()))
    };
    let revocation = Revocation {
        spki_sha256: from.spki_sha256.iter().map(hash).collect::<Result<_, _>>()?,
        serials: from.serials,
    };
    delta.revocations.push((name.to_owned(), revocation));
    Ok(())
}

fn trust_bundle(from: mesh::TrustBundle, delta: &mut Delta) -> Result<(), String> {
    let is_pem = |anchor: &String| anchor.contains("-----BEGIN CERTIFICATE-----");
    if from.trust_domain.is_empty() || from.anchors.is_empty() || !from.anchors.iter().all(is_pem) {
        return Err("a trust bundle has a trust domain and at least one anchor in PEM".to_owned());
    }
    delta.trust_bundle = Some((from.trust_domain, from.anchors));
    Ok(())
}

fn probe(from: mesh::Probe, delta: &mut Delta) -> Result<(), String> {
    delta.probe = Some(from.try_into().map_err(|fault: Fault| fault.to_string())?);
    Ok(())
}

/// Removal goes by the resource's name, so that a resource under a wrong one could never be removed.
fn same_name(name: &str, key: &str) -> Result<(), String> {
    if name == key {
        return Ok(());
    }
    Err(format!("its content is that of {:?}", shortened(key, MAX_NAME)))
}
