//! Which certificates are believed no more although they have not expired: what the control plane says, and what CRLs say.
//! Handshakes, live tunnels and live flows all ask this one thing.

use std::future::pending;
use std::sync::Arc;

use mesh_core::world::World;
use tokio::sync::watch;
use tokio::sync::watch::error::RecvError;

use super::PeerCertificate;
use crate::crl::Crls;

/// Follows the world and the CRLs; cheap to clone.
#[derive(Clone, Debug)]
pub struct Revoked {
    world: watch::Receiver<Arc<World>>,
    crls: watch::Receiver<Arc<Crls>>,
}

/// Who revoked a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevokedBy {
    ControlPlane,
    Crl,
}

impl Revoked {
    /// What both say together. The CRLs stay as they are when nobody publishes others any more.
    pub fn new(world: watch::Receiver<Arc<World>>, crls: watch::Receiver<Arc<Crls>>) -> Self {
        Self { world, crls }
    }

    /// Who revoked this certificate or, by a CRL, one of its intermediates; `None` when nobody did.
    pub fn by(&self, peer: &PeerCertificate) -> Option<RevokedBy> {
        if self.world.borrow().is_revoked(&peer.serial, &peer.spki_sha256) {
            return Some(RevokedBy::ControlPlane);
        }
        let crls = self.crls.borrow();
        let listed = peer.chain.iter().any(|one| crls.contains(one));
        listed.then_some(RevokedBy::Crl)
    }

    /// The CRLs as they are now.
    pub fn crls(&self) -> Arc<Crls> {
        self.crls.borrow().clone()
    }

    /// Resolves when the world or the CRLs changed; an error when the world will not change any more.
    pub async fn changed(&mut self) -> Result<(), RecvError> {
        let crls = async {
            if self.crls.changed().await.is_err() {
                pending::<()>().await;
            }
        };
        tokio::select! {
            changed = self.world.changed() => changed,
            () = crls => Ok(()),
        }
    }
}
