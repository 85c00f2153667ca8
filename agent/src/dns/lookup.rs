//! The addresses of our own names (the control plane's): from the hosts file, else from the machine's servers over marked
//! sockets. Never by getaddrinfo, whose sockets we do not own and whose queries could come back to us.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, anyhow, bail};
use mesh_core::dns::lookup::{LookupError, addresses, in_hosts, query};

use super::{ResolvConf, forward};
use crate::config::Dns;

/// Whom to ask, and from where.
#[derive(Clone, Debug)]
pub struct Lookup {
    pub dns: Dns,
    pub mark: u32,
}

impl Lookup {
    /// The addresses of `HOST:PORT`; HOST may be an address, `[IPv6]`, or a name. IPv4 and IPv6 take turns.
    pub async fn resolve(&self, address: &str) -> anyhow::Result<Vec<SocketAddr>> {
        if let Ok(peer) = address.parse() {
            return Ok(vec![peer]);
        }
        let (host, port) = address
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host, port.parse().ok()?)))
            .with_context(|| format!("{address} is not HOST:PORT"))?;
        let found = self.host(host).await?;
        Ok(found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
    }

    async fn host(&self, host: &str) -> anyhow::Result<Vec<IpAddr>> {
        // Small files; read as often as a connection is made.
        let hosts = in_hosts(&std::fs::read_to_string("/etc/hosts").unwrap_or_default(), host);
        if !hosts.is_empty() {
            return Ok(hosts);
        }
        let conf = ResolvConf::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        let servers = super::upstreams(&self.dns, &conf);
        if servers.is_empty() {
            bail!(
                "{host} cannot be resolved: no DNS server but our own is known; set dns.upstreams, or add the name to /etc/hosts"
            );
        }
        let mut last = anyhow!("{host} has no address in DNS");
        for name in candidates(host, &conf.search) {
            let (v4, v6) = tokio::join!(self.ask(&name, false, &servers), self.ask(&name, true, &servers));
            match (v4, v6) {
                (Err(error), Err(_)) => last = error.context(format!("resolving {name}")),
                (v4, v6) => {
                    let (v4, v6) = (v4.unwrap_or_default(), v6.unwrap_or_default());
                    if !v4.is_empty() || !v6.is_empty() {
                        return Ok(alternate(v4, v6));
                    }
                }
            }
        }
        Err(last)
    }

    async fn ask(&self, name: &str, v6: bool, servers: &[SocketAddr]) -> anyhow::Result<Vec<IpAddr>> {
        let mut id = [0; 2];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| anyhow!("no randomness"))?;
        let id = u16::from_be_bytes(id);
        let message = query(id, name, v6)?;
        let silent = || anyhow!("no DNS server answers ({})", list(servers));
        let answer = forward::udp(&message, servers, self.mark).await.with_context(silent)?;
        match addresses(id, name, v6, &answer) {
            Err(LookupError::Truncated) => {
                let answer = forward::tcp(&message, servers, self.mark).await.with_context(silent)?;
                Ok(addresses(id, name, v6, &answer)?)
            }
            other => Ok(other?),
        }
    }
}

/// A name with a dot as it is; one without also under the machine's search list.
fn candidates(host: &str, search: &[String]) -> Vec<String> {
    let host = host.trim_end_matches('.');
    let mut names = vec![host.to_owned()];
    if !host.contains('.') {
        names.splice(0..0, search.iter().map(|domain| format!("{host}.{domain}")));
    }
    names
}

fn alternate(v4: Vec<IpAddr>, v6: Vec<IpAddr>) -> Vec<IpAddr> {
    let (mut v4, mut v6) = (v4.into_iter(), v6.into_iter());
    std::iter::from_fn(|| match (v4.next(), v6.next()) {
        (None, None) => None,
        pair => Some([pair.0, pair.1]),
    })
    .flatten()
    .flatten()
    .collect()
}

fn list(servers: &[SocketAddr]) -> String {
    servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(upstreams: Vec<SocketAddr>) -> Lookup {
        let dns = Dns {
            upstreams,
            ..Dns::default()
        };
        Lookup { dns, mark: 0 }
    }

    #[tokio::test]
    async fn addresses_need_no_server() {
        let none = lookup(vec!["127.0.0.1:9".parse().unwrap()]);
        for address in ["10.0.0.1:15012", "[fd00::1]:15012"] {
            assert_eq!(none.resolve(address).await.unwrap(), [address.parse().unwrap()]);
        }
        assert!(
            none.resolve("control")
                .await
                .unwrap_err()
                .to_string()
                .contains("HOST:PORT")
        );
        assert_eq!(
            none.resolve("localhost:1").await.unwrap()[0],
            "127.0.0.1:1".parse().unwrap()
        );
    }

    /// Answers each query with what `answer` makes of it.
    async fn server(answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> SocketAddr {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let _ = socket.send_to(&answer(&buffer[..length]), from).await;
            }
        });
        address
    }

    /// The query turned into a response, with one A record for A queries.
    fn with_address(query: &[u8]) -> Vec<u8> {
        let mut answer = query.to_vec();
        answer[2] |= 0x80;
        if query[query.len() - 3] == 1 {
            answer[7] = 1;
            answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 1, 2, 3]);
        }
        answer
    }

    #[tokio::test]
    async fn a_name_is_asked_for() {
        let up = lookup(vec![server(with_address).await]);
        let found = up.resolve("control.example.test:15012").await.unwrap();
        assert_eq!(found, ["10.1.2.3:15012".parse().unwrap()]);
    }

    #[tokio::test]
    async fn garbage_is_an_error_that_names_the_name() {
        let up = lookup(vec![server(|query| [&query[..2], &[0xff; 40]].concat()).await]);
        let error = up.resolve("control.example.test:15012").await.unwrap_err();
        assert!(format!("{error:#}").contains("control.example.test"), "{error:#}");
    }

    #[test]
    fn the_search_list_is_for_short_names() {
        let search = ["corp.example".to_owned()];
        assert_eq!(candidates("control", &search), ["control.corp.example", "control"]);
        assert_eq!(candidates("control.example.", &search), ["control.example"]);
    }

    #[test]
    fn families_take_turns() {
        let of = |text: &[&str]| text.iter().map(|one| one.parse().unwrap()).collect::<Vec<IpAddr>>();
        let mixed = alternate(of(&["10.0.0.1", "10.0.0.2"]), of(&["fd00::1"]));
        assert_eq!(mixed, of(&["10.0.0.1", "fd00::1", "10.0.0.2"]));
    }
}
