//! What `status` and `/flows` say. The JSON is the interface; the text of `mesh-agent status` is made of it.

use std::sync::Arc;
use std::time::SystemTime;

use mesh_core::health::Verdict;
use mesh_core::own_record::Finding;
use mesh_core::packet::Protocol;
use mesh_core::policy::missing_policies;
use mesh_core::world::World;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::certs::unix;
use crate::channel::hex;
use crate::flows::{Direction, Transport};
use crate::shared::Shared;
use crate::xds::{self, register};

/// What there is to be seen.
#[derive(Debug)]
pub enum View {
    /// Not joined.
    Waiting { error: Option<String> },
    /// A member.
    Member(Member),
}

/// The parts of a running member.
#[derive(Debug)]
pub struct Member {
    pub shared: Arc<Shared>,
    pub xds: watch::Receiver<xds::Status>,
    /// Prefixes that are captured.
    pub captured: watch::Receiver<usize>,
    /// What is wrong with our own record.
    pub record: watch::Receiver<Vec<Finding>>,
    /// How we are registered at istiod.
    pub registration: watch::Receiver<register::Status>,
}

/// The whole status.
pub fn render(view: &View) -> Value {
    match view {
        View::Waiting { error } => json!({
            "state": "waiting",
            "version": env!("CARGO_PKG_VERSION"),
            "healthy": false,
            "message": "waiting to be joined",
            "error": error,
        }),
        View::Member(member) => member.render(),
    }
}

impl Member {
    fn render(&self) -> Value {
        let (world, xds) = (self.shared.world(), self.xds.borrow().clone());
        let membership = &self.shared.membership;
        let own = self.shared.own_workload(&world);
        let missing: Vec<_> = own
            .iter()
            .flat_map(|own| missing_policies(&world, own).map(ToString::to_string))
            .collect();
        let findings: Vec<_> = self.record.borrow().iter().map(ToString::to_string).collect();
        let needs_bundle = self
            .shared
            .credentials()
            .and_then(|credentials| membership.needs_bundle(credentials.not_after));
        let problems = self.problems(&xds, own.is_some(), &missing, &findings, needs_bundle.as_deref());
        let certificate = self.shared.credentials().map(|credentials| {
            json!({
                "identity": credentials.identity.to_string(),
                "serial": hex(&credentials.serial),
                "not_after": unix(credentials.not_after),
                "seconds_left": unix(credentials.not_after).saturating_sub(unix(SystemTime::now())),
            })
        });
        json!({
            "state": "member",
            "version": env!("CARGO_PKG_VERSION"),
            "healthy": problems.is_empty(),
            "problems": problems,
            "agent_id": membership.agent_id,
            "identity": membership.spiffe_id(),
            "workload": format!("{}/{}", membership.namespace, membership.workload_name),
            "address": membership.address,
            "needs_bundle": needs_bundle,
            "control": {
                "kind": if membership.istiod().is_some() { "istiod" } else { "mesh-control" },
                "connected": xds.connected,
                "addresses": membership.control_addresses,
                "error": xds.error,
                "reconnects": xds.reconnects,
                "registration": self.registration(),
            },
            "world": {
                "age_seconds": xds.heard.map(|heard| unix(SystemTime::now()).saturating_sub(heard)),
                "from_snapshot": xds.from_snapshot,
                "workloads": world.workloads().count(),
                "services": world.services().count(),
                "policies": world.policies().count(),
            },
            "own_record": { "present": own.is_some(), "findings": findings, "addresses": self.shared.own_addresses(&world) },
            "policies": {
                "missing": missing,
                "rejected": xds.rejected.iter().map(|(name, why)| json!({"name": name, "reason": why})).collect::<Vec<_>>(),
            },
            "certificate": certificate,
            "crl": self.crls(),
            "capture": { "prefixes": *self.captured.borrow() },
            "dns": { "resolver": [self.shared.config.dns.resolver4.to_string(), self.shared.config.dns.resolver6.to_string()], "domain": membership.dns_domain },
            "transport": { "preference": self.shared.config.tunnel.transport, "peers": self.shared.transports.shown() },
            "inbound": self.callers(),
            "flows": self.flows(),
            "health": self.health(&world),
        })
    }

    /// How many flows live: all, those that others opened to us, those of UDP, and of those the ones that are in plain.
    fn flows(&self) -> Value {
        let (mut inbound, mut udp, mut plain) = (0_usize, 0_usize, 0_usize);
        self.shared.flows.for_each(|live| {
            let is_udp = live.facts.protocol == Protocol::Udp;
            inbound += usize::from(live.facts.direction == Direction::Inbound);
            udp += usize::from(is_udp);
            plain += usize::from(is_udp && live.facts.transport == Transport::Plain);
        });
        json!({ "live": self.shared.flows.len(), "inbound": inbound, "udp": udp, "udp_plain": plain })
    }

    /// Whether applications see their callers' addresses, and where not, why.
    fn callers(&self) -> Value {
        let ways = self.shared.ways.shown();
        let preserved = match self.shared.config.inbound.preserve_source {
            false => "off",
            true if ways.iter().any(|(_, closed)| closed.is_none()) => "on",
            true => "unavailable",
        };
        let closed = ways.iter().filter_map(|(address, closed)| {
            let reason = closed.as_ref()?;
            Some(json!({ "address": address, "reason": reason }))
        });
        json!({ "preserve_source": preserved, "unavailable": closed.collect::<Vec<_>>() })
    }

    fn health(&self, world: &World) -> Value {
        let health = self.shared.standing.health();
        let (state, reason) = match (&health.draining, &health.verdict) {
            (Some(_), _) => ("draining", None),
            (None, Verdict::Unhealthy(reason)) => ("unhealthy", Some(reason)),
            (None, Verdict::Healthy) => ("healthy", None),
            (None, Verdict::Unknown) => ("unknown", None),
        };
        let probe = self.shared.standing.probe(world).flatten();
        json!({
            "state": state,
            "reason": reason,
            "draining_since": health.draining,
            "probe": probe.map(|probe| probe.describe()),
            // What the control plane tells others of us, as it tells us too.
            "in_rotation": self.shared.recorded(world).is_some_and(|own| own.healthy),
        })
    }

    /// Null where the stream of the world registers us, too.
    fn registration(&self) -> Value {
        if self.shared.membership.istiod().is_none() {
            return Value::Null;
        }
        let register::Status { open, error } = self.registration.borrow().clone();
        json!({ "open": open, "error": error })
    }

    /// Null without a CRL file.
    fn crls(&self) -> Value {
        let file = &self.shared.config.tunnel.crl_file;
        if file.as_os_str().is_empty() {
            return Value::Null;
        }
        let crls = self.shared.revoked.crls();
        let now = unix(SystemTime::now());
        let lists = crls.lists.iter().map(|list| {
            json!({
                "issuer": list.name,
                "revoked": list.len(),
                "next_update": list.next_update,
                "expired": list.next_update.is_some_and(|next| next < now),
            })
        });
        json!({ "file": file, "lists": lists.collect::<Vec<_>>(), "problems": crls.problems })
    }

    fn problems(
        &self,
        xds: &xds::Status,
        has_record: bool,
        missing: &[String],
        findings: &[String],
        needs_bundle: Option<&str>,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(command) = needs_bundle {
            problems.push(format!(
                "the certificate has expired, and istiod gives a new one only for a fresh bundle. Make it: {command}; then here: \
                 sudo mesh-agent join --istio-bundle DIR"
            ));
        }
        if let Some(error) = xds.error.as_ref().filter(|_| !xds.connected) {
            problems.push(format!("not connected to the control plane: {error}"));
        }
        if let Some(error) = self.registration.borrow().error.as_ref().filter(|_| xds.connected) {
            problems.push(format!(
                "not registered with istiod, so that peers will not find this machine: {error}"
            ));
        }
        problems.extend_from_slice(findings);
        if !has_record && findings.is_empty() {
            problems.push("our own record is not in the world yet: peers cannot reach this machine".into());
        }
        if !missing.is_empty() {
            problems.push(format!(
                "policies that hold for us have not arrived, so everything is denied: {}",
                missing.join(", ")
            ));
        }
        let crls = self.shared.revoked.crls();
        problems.extend(crls.problems.iter().map(|problem| format!("CRL: {problem}")));
        if let Verdict::Unhealthy(reason) = self.shared.standing.health().verdict {
            problems.push(format!(
                "the application's probe fails, so others do not connect: {reason}"
            ));
        }
        match self.shared.credentials() {
            None => problems.push("there is no usable certificate".into()),
            Some(credentials) if needs_bundle.is_none() && credentials.not_after <= SystemTime::now() => {
                problems.push("the certificate has expired; renewal goes on".into());
            }
            Some(_) => {}
        }
        problems
    }
}

/// All live flows.
pub fn flows(view: &View) -> Value {
    let View::Member(member) = view else { return json!([]) };
    let mut flows = Vec::new();
    member.shared.flows.for_each(|live| {
        let facts = &live.facts;
        flows.push(json!({
            "id": live.id,
            "protocol": facts.protocol.name(),
            "direction": facts.direction,
            "transport": facts.transport,
            "source": facts.source,
            "destination": facts.destination,
            "service": facts.service.as_ref().map(|key| key.hostname.to_string()),
            "source_identity": facts.source_identity.as_ref().map(ToString::to_string),
            "destination_identity": facts.destination_identity.as_ref().map(ToString::to_string),
            "seconds": live.since.elapsed().as_secs(),
            "bytes_forth": live.forth.get(),
            "bytes_back": live.back.get(),
        }));
    });
    json!(flows)
}
