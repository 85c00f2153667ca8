//! `/etc/resolv.conf`: whom the machine asks, and its search list. Read again when the file changes.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// What the file says. Bounded: more than the resolver library itself would use is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    pub nameservers: Vec<SocketAddr>,
    pub search: Vec<String>,
}

impl ResolvConf {
    /// Reads the format of resolv.conf(5); lines that are not understood are passed over, as the resolver does.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address = words
                        .next()
                        .and_then(|word| word.split('%').next())
                        .and_then(|ip| ip.parse().ok());
                    conf.nameservers
                        .extend(address.map(|ip: IpAddr| SocketAddr::new(ip, 53)));
                }
                // The last of `domain` and `search` wins.
                Some("search" | "domain") => conf.search = words.map(normal).take(MAX_SEARCH).collect(),
                _ => {}
            }
        }
        conf.nameservers.truncate(MAX_NAMESERVERS);
        conf
    }
}

fn normal(domain: &str) -> String {
    domain.trim_matches('.').to_ascii_lowercase()
}

/// The file, cached until its time of change differs.
#[derive(Debug)]
pub struct ResolvFile {
    path: PathBuf,
    seen: Option<SystemTime>,
    conf: Arc<ResolvConf>,
}

impl ResolvFile {
    /// Nothing is read yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            seen: None,
            conf: Arc::default(),
        }
    }

    /// What the file says now. A file that cannot be read leaves what was known.
    pub fn current(&mut self) -> Arc<ResolvConf> {
        let changed = std::fs::metadata(&self.path).and_then(|meta| meta.modified()).ok();
        if changed.is_some() && changed != self.seen {
            if let Ok(text) = std::fs::read_to_string(&self.path) {
                self.conf = Arc::new(ResolvConf::parse(&text));
                self.seen = changed;
            }
        }
        self.conf.clone()
    }
}

const MAX_NAMESERVERS: usize = 8;
const MAX_SEARCH: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_servers_and_search_list() {
        let conf = ResolvConf::parse(
            "# made by hand\nnameserver 10.0.0.2\nnameserver fe80::1%eth0\nnameserver nonsense\ndomain old.example\nsearch Shop.Mesh.Internal. example\noptions ndots:2\n",
        );
        assert_eq!(
            conf.nameservers,
            ["10.0.0.2:53".parse().unwrap(), "[fe80::1]:53".parse().unwrap()]
        );
        assert_eq!(conf.search, ["shop.mesh.internal", "example"]);
    }

    #[test]
    fn many_servers_are_bounded() {
        let text = "nameserver 10.0.0.1\n".repeat(1000);
        assert_eq!(ResolvConf::parse(&text).nameservers.len(), MAX_NAMESERVERS);
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let mut file = ResolvFile::new(&path);
        assert!(file.current().nameservers.is_empty());
        std::fs::write(&path, "nameserver 10.0.0.2\n").unwrap();
        assert_eq!(file.current().nameservers.len(), 1);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.current().nameservers.len(), 1);
    }
}
