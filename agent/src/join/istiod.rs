//! Joining istiod: one certificate for the JWT of the bundle. From then on the certificate stands for us.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use mesh_core::istio::{self, IstioBundle};
use mesh_core::token::BootstrapToken;
use mesh_proto::istio::ca::IstioCertificateRequest;
use mesh_proto::istio::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tonic::Code;

use super::control_plane::name_cluster;
use super::{CALL, ControlPlane, Istiod, Membership, Refused};
use crate::certs::{LIFETIME, Pem, key_and_request, root_store, unix};
use crate::channel::{self, Server};
use crate::dns::Lookup;

/// One attempt.
pub(super) async fn join(
    token: &BootstrapToken,
    bundle: &IstioBundle,
    address: Option<IpAddr>,
    lookup: &Lookup,
) -> Result<(Membership, Pem), Refused> {
    let identity = istio::check(bundle, unix(SystemTime::now()))?;
    let anchors: Vec<_> = bundle.anchors.iter().map(|der| istio::pem(der)).collect();
    let server = Server::Istiod {
        name: bundle.server_name.clone(),
        roots: root_store(&anchors).context("root-cert.pem")?.into(),
    };
    let connection = channel::connect(&token.addresses, &server, None, lookup).await?;
    let local = connection.local.ip().to_canonical();
    let (key, csr) = key_and_request(Some(&identity))?;
    let mut client = IstioCertificateServiceClient::new(connection.channel().await?);
    let response = match tokio::time::timeout(CALL, client.create_certificate(request(bundle, csr)?)).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Err(refused(&status, bundle)),
        Err(_) => {
            return Err(Refused {
                error: anyhow::anyhow!("istiod did not answer in {} s", Duration::as_secs(&CALL)),
                retry: true,
            });
        }
    };
    let pem = Pem::from_response(key, response.cert_chain).context("istiod's answer")?;
    let issued = pem.credentials().context("istiod's answer")?.identity;
    if issued != identity {
        let error =
            anyhow::anyhow!("istiod signed for {issued}, but the bundle is for {identity}: its files are mixed");
        return Err(error.into());
    }
    let address = match address {
        Some(address) => address,
        None => bundle.address.parse().unwrap_or(local),
    };
    Ok((membership(token, bundle, anchors, address), pem))
}

fn request(bundle: &IstioBundle, csr: String) -> anyhow::Result<tonic::Request<IstioCertificateRequest>> {
    let mut request = tonic::Request::new(IstioCertificateRequest {
        csr,
        validity_duration: LIFETIME,
        metadata: None,
    });
    let bearer = format!("Bearer {}", bundle.jwt);
    let mut bearer: tonic::metadata::AsciiMetadataValue = bearer.parse().context("istio-token cannot be sent")?;
    bearer.set_sensitive(true);
    request.metadata_mut().insert("authorization", bearer);
    name_cluster(&mut request, &bundle.cluster_id)?;
    Ok(request)
}

fn refused(status: &tonic::Status, bundle: &IstioBundle) -> Refused {
    let message = status.message();
    let error = match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => anyhow::anyhow!(
            "istiod does not accept istio-token ({message}). Is it of this cluster ({:?}), does the service account {}/{} still \
             exist, and is it not older than its lifetime? A fresh bundle: {}",
            bundle.cluster_id,
            bundle.namespace,
            bundle.service_account,
            istio::fresh_bundle(&bundle.namespace, &bundle.group, &bundle.cluster_id)
        ),
        code => anyhow::anyhow!("istiod gave no certificate ({code}: {message})"),
    };
    Refused {
        error,
        retry: matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::ResourceExhausted
        ),
    }
}

fn membership(token: &BootstrapToken, bundle: &IstioBundle, anchors: Vec<String>, address: IpAddr) -> Membership {
    let IstioBundle {
        trust_domain,
        namespace,
        service_account,
        group,
        cluster_id,
        network,
        ..
    } = bundle.clone();
    let workload_name = istio::entry_name(&group, address, &network);
    Membership {
        agent_id: format!("{cluster_id}/networking.istio.io/WorkloadEntry/{namespace}/{workload_name}"),
        trust_domain,
        namespace,
        service_account,
        workload_name,
        workload_group: group,
        network,
        cluster_id,
        dns_domain: DNS_DOMAIN.into(),
        address,
        control_addresses: token.addresses.clone(),
        ca_pins: Vec::new(),
        control_plane: ControlPlane::Istiod(Istiod {
            server_name: bundle.server_name.clone(),
            anchors,
            proxy_metadata: bundle.proxy_metadata.clone(),
            readiness_probe: bundle.readiness_probe.clone(),
        }),
    }
}

/// Whether a member may join again with this: into the same mesh as the same, and only when nothing else gives a certificate.
pub(super) fn may_rejoin(member: &Membership, pem: Option<Pem>, token: &BootstrapToken) -> anyhow::Result<()> {
    let name = format!("{}/{}", member.namespace, member.workload_name);
    let same = token.istio.as_ref().is_some_and(|bundle| {
        member.istiod().is_some()
            && (&bundle.trust_domain, &bundle.namespace) == (&member.trust_domain, &member.namespace)
            && (&bundle.service_account, &bundle.group) == (&member.service_account, &member.workload_group)
    });
    if !same {
        bail!("already joined as {name}; run `mesh-agent leave` first");
    }
    let expires = pem.and_then(|pem| pem.credentials().ok()).map(|one| one.not_after);
    if expires.is_some_and(|at| at > SystemTime::now()) {
        bail!("already joined as {name}, and its certificate is good: a fresh bundle is not needed");
    }
    Ok(())
}

/// The names of the cluster's services are below it.
const DNS_DOMAIN: &str = "svc.cluster.local";
