//! Publishing: the store's content is derived anew, shortly after it changed, and put in front of every stream.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{Control, Refused};
use crate::derive;
use crate::resources::{Kind, Resource};
use crate::store::{CertificateRow, Error, ResourceRow, now, vips};
use crate::xds::Snapshot;

/// Changes that come within this time are published together.
const DEBOUNCE: Duration = Duration::from_millis(20);

impl Control {
    /// Follows the store for ever.
    pub async fn publish(self: Arc<Self>) {
        loop {
            self.dirty.notified().await;
            tokio::time::sleep(DEBOUNCE).await;
            let control = self.clone();
            let derived = tokio::task::spawn_blocking(move || control.derive()).await;
            match derived {
                Ok(Ok(fresh)) => {
                    self.snapshot.send_if_modified(|current| {
                        let differs = !fresh.same(current);
                        if differs {
                            *current = Arc::new(fresh);
                        }
                        differs
                    });
                }
                Ok(Err(error)) => tracing::error!(%error, "cannot read the store; agents keep what they have"),
                Err(error) => tracing::error!(%error, "deriving the world failed; agents keep what they have"),
            }
        }
    }

    /// The state to publish, from what the store holds now.
    pub(super) fn derive(&self) -> Result<Snapshot, Error> {
        let authority = self.authority();
        let (resources, held, revoked) = self.store.write(|tx| {
            let rows = ResourceRow::list(tx, "", "", "")?;
            let resources: Vec<Resource> = rows.iter().filter_map(read).collect();
            let held = vips::reconcile(tx, &derive::vip_owners(&resources))?;
            let revoked = CertificateRow::revoked(tx, now())?;
            Ok::<_, Error>((resources, held, revoked))
        })?;
        let world = derive::world(&derive::Input {
            trust_domain: &self.settings.trust_domain,
            dns_domain: &self.settings.dns_domain,
            cluster_id: &self.settings.cluster_id,
            resources: &resources,
            vips: &held,
        });
        // The one that signs first: so agents see when the signer of their certificates is on its way out.
        let (first, rest): (Vec<_>, Vec<_>) = authority
            .anchors
            .iter()
            .partition(|anchor| anchor.row.fingerprint == authority.signing());
        let anchors = first.into_iter().chain(rest);
        let anchors: Vec<_> = anchors
            .map(|a| (a.row.fingerprint.clone(), a.row.certificate.clone()))
            .collect();
        let before = self.snapshot.borrow().clone();
        Ok(Snapshot::new(
            &before,
            &world,
            &revoked,
            &self.settings.trust_domain,
            &anchors,
        ))
    }

    /// Reads anew which certificates are refused.
    pub(super) fn refresh_refused(&self) -> Result<(), Error> {
        let revoked = self.store.write(|tx| CertificateRow::revoked(tx, now()))?;
        let mut refused = Refused {
            serials: HashSet::new(),
            spki_sha256: HashSet::new(),
        };
        for one in revoked {
            refused.serials.extend(one.serials);
            refused.spki_sha256.extend(one.spki_sha256);
        }
        *self.refused.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(refused);
        Ok(())
    }
}

/// A stored resource; one that cannot be read (a newer version wrote it) is left out and logged.
fn read(row: &ResourceRow) -> Option<Resource> {
    let kind = Kind::find(&row.key.kind)?;
    Resource::from_json(kind, &row.json)
        .inspect_err(|error| tracing::error!(?row.key, %error, "a stored resource cannot be read; it is left out"))
        .ok()
}
