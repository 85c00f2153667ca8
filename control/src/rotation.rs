//! Rotation of the CA's key: distribute a second anchor, wait until every agent with a live certificate acknowledged it, only
//! then sign with it, and drop the old anchor when nothing that it signed is in use any more.

use std::collections::BTreeSet;

use mesh_proto::mesh::{Anchor as AnchorInfo, CaStatusResponse};
use tonic::Code;

use crate::ca::{self, Anchor, Authority, CaError};
use crate::control::{Control, lifetime};
use crate::error::Refusal;
use crate::store::{Agent, AnchorRow, CertificateRow, Error, Role, now, timestamp};

/// Where a rotation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// One anchor (or a plugged CA).
    Steady,
    /// Two anchors; the old one's key signs.
    Distributing,
    /// Two anchors; the new one's key signs.
    Retiring,
}

impl Phase {
    fn of(authority: &Authority) -> Self {
        let has = |role| !authority.plugged && authority.anchors.iter().any(|a| a.row.role == role);
        if has(Role::Next) {
            Self::Distributing
        } else if has(Role::Retiring) {
            Self::Retiring
        } else {
            Self::Steady
        }
    }
}

impl Control {
    /// What an operator asks for: begins a rotation, or with `force` takes its next step without waiting.
    pub async fn rotate(&self, force: bool) -> Result<(), Refusal> {
        let changing = self.rotating.lock().await;
        let authority = self.authority();
        if authority.plugged {
            let message = "this CA is plugged in by files; put a second root into the root file, restart, and change the key once agents have both";
            return Err(Refusal::new(Code::FailedPrecondition, "ca-plugged", message));
        }
        match Phase::of(&authority) {
            Phase::Steady => self.distribute().await?,
            Phase::Distributing if force => self.switch(&authority).await?,
            Phase::Distributing => {}
            Phase::Retiring => {
                let held = self.still_held(&authority).await?;
                if held > 0 && !force {
                    let message = format!(
                        "the rotation before this one is not finished: {held} agent(s) still use a certificate of the old key; they renew by themselves, try again later (or --force to cut them off)"
                    );
                    return Err(Refusal::new(Code::FailedPrecondition, "rotation-unfinished", message));
                }
                self.retire(&authority).await?;
                self.distribute().await?;
            }
        }
        drop(changing);
        self.advance_rotation().await
    }

    /// Takes the step that is due: switch when all agents acknowledged, retire when nothing of the old key is in use.
    pub async fn advance_rotation(&self) -> Result<(), Refusal> {
        let _changing = self.rotating.lock().await;
        let authority = self.authority();
        match Phase::of(&authority) {
            Phase::Distributing => {
                let (agents, acknowledged) = self.counts(&authority).await?;
                if agents == acknowledged {
                    self.switch(&authority).await?;
                }
            }
            Phase::Retiring if self.still_held(&authority).await? == 0 => self.retire(&authority).await?,
            Phase::Retiring | Phase::Steady => {}
        }
        Ok(())
    }

    /// What `meshctl ca status` shows.
    pub async fn ca_status(&self) -> Result<CaStatusResponse, Refusal> {
        let authority = self.authority();
        let (agents, acknowledged) = self.counts(&authority).await?;
        let info = |anchor: &Anchor| AnchorInfo {
            fingerprint: anchor.row.fingerprint.clone(),
            subject: anchor.subject.clone(),
            not_after: Some(timestamp(anchor.not_after)),
            signing: anchor.row.fingerprint == authority.signing(),
            certificate: anchor.row.certificate.clone(),
        };
        let phase = match Phase::of(&authority) {
            Phase::Steady => "steady",
            Phase::Distributing => "distributing",
            Phase::Retiring => "retiring",
        };
        Ok(CaStatusResponse {
            anchors: authority.anchors.iter().map(info).collect(),
            agents,
            acknowledged,
            phase: phase.to_owned(),
        })
    }

    /// Agents with a live certificate, and those of them that acknowledged the newest anchor.
    async fn counts(&self, authority: &Authority) -> Result<(u32, u32), Refusal> {
        let newest = authority
            .anchors
            .last()
            .map(|a| a.row.fingerprint.clone())
            .unwrap_or_default();
        self.store
            .run(move |tx| {
                let live = CertificateRow::newest_live(tx, now())?;
                let mut acknowledged = 0u32;
                for certificate in &live {
                    let agent = Agent::get(tx, &certificate.agent)?;
                    acknowledged += u32::from(agent.is_some_and(|a| a.acked.contains(&newest)));
                }
                Ok::<_, Error>((u32::try_from(live.len()).unwrap_or(u32::MAX), acknowledged))
            })
            .await
    }

    /// Live certificates of a retiring key that agents use: their newest, or the one before when the newest is so fresh that it
    /// may not be installed yet.
    async fn still_held(&self, authority: &Authority) -> Result<usize, Refusal> {
        let signing = authority.signing().to_owned();
        let settled = now() - i64::try_from(self.settings.grace_seconds).unwrap_or(i64::MAX);
        self.store
            .run(move |tx| {
                let mut held: BTreeSet<String> = BTreeSet::new();
                for until in [i64::MAX, settled] {
                    let used = CertificateRow::newest_issued_until(tx, now(), until)?;
                    held.extend(used.into_iter().filter(|c| c.anchor != signing).map(|c| c.agent));
                }
                Ok::<_, Error>(held.len())
            })
            .await
    }

    async fn distribute(&self) -> Result<(), Refusal> {
        let settings = self.settings.clone();
        let authority = self.authority();
        let made = tokio::task::spawn_blocking(move || {
            let mut row = ca::new_root(&settings, Role::Next)?;
            let signing = authority
                .anchors
                .iter()
                .find(|a| a.row.fingerprint == authority.signing());
            if let Some(signing) = signing {
                row.cross_signed = Some(ca::cross_sign(&settings, &row, signing)?);
            }
            Ok::<_, CaError>(row)
        });
        let row = made
            .await
            .map_err(|e| Refusal::internal("making a CA key failed", &e))?
            .map_err(|e| Refusal::internal("making a CA key failed", &e))?;
        tracing::info!(fingerprint = row.fingerprint, "rotation: distributing a new anchor");
        self.change_anchors(move |tx| row.put(tx)).await
    }

    async fn switch(&self, authority: &Authority) -> Result<(), Refusal> {
        let roles: Vec<_> = authority
            .anchors
            .iter()
            .map(|a| match a.row.role {
                Role::Next => (a.row.fingerprint.clone(), Role::Signing),
                Role::Signing | Role::Retiring => (a.row.fingerprint.clone(), Role::Retiring),
            })
            .collect();
        tracing::info!("rotation: the new key signs");
        let change = move |tx: &rusqlite::Transaction<'_>| {
            let mut roles = roles.iter();
            roles.try_for_each(|(fingerprint, role)| AnchorRow::set_role(tx, fingerprint, *role))
        };
        self.change_anchors(change).await
    }

    async fn retire(&self, authority: &Authority) -> Result<(), Refusal> {
        let retiring = authority.anchors.iter().filter(|a| a.row.role == Role::Retiring);
        let gone: Vec<String> = retiring.map(|a| a.row.fingerprint.clone()).collect();
        tracing::info!(?gone, "rotation: the old anchor is dropped");
        let rows = gone.clone();
        self.change_anchors(move |tx| rows.iter().try_for_each(|f| AnchorRow::delete(tx, f)))
            .await?;
        for fingerprint in &gone {
            ca::forget_key(&self.settings, fingerprint);
        }
        Ok(())
    }

    /// Changes the anchors in the store, and then what signs and is served.
    async fn change_anchors(
        &self,
        change: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Refusal> {
        let rows = self
            .store
            .run(move |tx| {
                change(tx)?;
                AnchorRow::list(tx)
            })
            .await?;
        let failed = |e: CaError| Refusal::internal("the CA's keys cannot be used", &e);
        let authority = Authority::from_rows(&self.settings, rows).map_err(failed)?;
        self.replace_authority(authority).map_err(failed)
    }
}

/// Keeps the CA going for ever: renews the control plane's own certificate at half life, takes due steps of a rotation,
/// forgets what expired.
pub async fn upkeep(control: std::sync::Arc<Control>) {
    let half = lifetime(&control.settings) / 2;
    let mut renewed = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(half.min(std::time::Duration::from_secs(5))).await;
        if renewed.elapsed() >= half {
            match control.renew_own_certificate() {
                Ok(()) => renewed = tokio::time::Instant::now(),
                Err(error) => tracing::error!(%error, "cannot renew the control plane's own certificate"),
            }
        }
        if let Err(error) = control.advance_rotation().await {
            tracing::error!(%error, "the rotation cannot go on");
        }
        if let Err(error) = control.forget_expired().await {
            tracing::error!(%error, "cannot forget what expired");
        }
    }
}

impl Control {
    /// Forgets certificates a day, and tokens a week, after they expired; revocations whose certificates expired go from the world.
    async fn forget_expired(&self) -> Result<(), Refusal> {
        let purged = self
            .store
            .run(|tx| {
                crate::store::TokenRow::purge(tx, now() - 7 * 86_400)?;
                CertificateRow::purge(tx, now() - 86_400)
            })
            .await?;
        if purged > 0 {
            tracing::debug!(purged, "forgot expired certificates");
        }
        if !self
            .snapshots()
            .borrow()
            .of(crate::xds::XdsType::Revocation)
            .resources
            .is_empty()
        {
            self.touch();
        }
        Ok(())
    }
}
