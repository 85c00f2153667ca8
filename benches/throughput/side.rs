//! The ways from A to B that are compared.

use std::path::PathBuf;

use serde::Serialize;

/// Which way the client takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Side {
    /// From kernel to kernel.
    Plain,
    /// Through two agents of ours as they are by default: HBONE/3.
    Hbone3,
    /// The same with `tunnel.transport = "tcp"`: HBONE.
    Hbone,
    /// Through two ztunnels, which the same control plane serves.
    Ztunnel,
}

impl Side {
    /// All that can run here: ztunnel's only where `ZTUNNEL` names it.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::Plain, Self::Hbone3, Self::Hbone];
        all.extend(ztunnel().map(|_| Self::Ztunnel));
        all
    }

    /// As tables, namespaces and resources name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Hbone3 => "hbone3",
            Self::Hbone => "hbone",
            Self::Ztunnel => "ztunnel",
        }
    }

    /// The address of its service, whose only endpoint is its B.
    pub(crate) fn service(self) -> String {
        format!("240.240.77.{}", 1 + self as u8)
    }
}

/// The binary, where there is one.
pub(crate) fn ztunnel() -> Option<PathBuf> {
    std::env::var_os("ZTUNNEL").map(PathBuf::from)
}
