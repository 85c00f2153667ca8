//! `mesh-agent join`: where the token comes from, and who does the joining.

use std::io::{ErrorKind, IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use mesh_core::istio::{Files, MAX_FILE, pack};
use mesh_core::token;
use nix::unistd::{Uid, User, setgid, setgroups, setuid};

use super::commands::{answer, print};
use super::{DONE, JoinArguments, client};
use crate::certs::unix;
use crate::config::Config;
use crate::dns::Lookup;
use crate::join::credential;
use crate::state::State;

/// Runs the command.
pub(super) fn run(config: &Config, arguments: JoinArguments) -> anyhow::Result<u8> {
    let address = arguments.address;
    let text = read_token(arguments)?;
    // A mistake is told before anything is asked of anybody.
    token::decode(&text)?;
    let query = address.map(|address| format!("?address={address}")).unwrap_or_default();
    if let Some((status, text)) = client::request(config, "POST", &format!("/join{query}"), text.clone())? {
        return answer(status, &text);
    }
    let state = State::new(&config.paths.state);
    become_service_user(&config.paths.state)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Without the daemon nothing is captured, so that no mark is needed (setting one needs a capability).
    let lookup = Lookup {
        mark: 0,
        ..config.lookup()
    };
    let member = runtime.block_on(crate::join::join(&state, &text, address, &lookup))?;
    print(&format!(
        "joined as {}/{} ({})\n",
        member.namespace, member.workload_name, member.address
    ))?;
    Ok(DONE)
}

fn read_token(arguments: JoinArguments) -> anyhow::Result<String> {
    if let Some(directory) = arguments.istio_bundle {
        // The daemon could not read it; it is told what is in it, as a token.
        let files = read_bundle(&directory)?;
        return Ok(pack(
            &files,
            arguments.istiod_address.as_deref(),
            unix(SystemTime::now()),
        )?);
    }
    if let Some(path) = arguments.token_file {
        return std::fs::read_to_string(&path).with_context(|| format!("reading the token from {}", path.display()));
    }
    match arguments.token.as_deref() {
        Some("-") | None => {}
        Some(token) => {
            writeln!(
                std::io::stderr(),
                "warning: other users can see a token on the command line; use standard input"
            )?;
            return Ok(token.to_owned());
        }
    }
    if let Ok(token) = std::env::var("MESH_AGENT_TOKEN") {
        return Ok(token);
    }
    if let Some(token) = credential() {
        return Ok(token);
    }
    if std::io::stdin().is_terminal() {
        writeln!(std::io::stderr(), "paste the token, then press Enter:")?;
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        if line.len() >= MAX_LINE {
            bail!("a terminal passes on no more than {MAX_LINE} characters of a line; use `mesh-agent join < FILE`");
        }
        return Ok(line);
    }
    let mut text = String::new();
    std::io::stdin()
        .take(MAX_TOKEN)
        .read_to_string(&mut text)
        .context("reading the token from standard input")?;
    if text.trim().is_empty() {
        bail!("there is no token on standard input; make one with `meshctl token create --group NAMESPACE/NAME`");
    }
    Ok(text)
}

fn read_bundle(directory: &Path) -> anyhow::Result<Files> {
    let file = |name| {
        let path = directory.join(name);
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound && directory.is_dir() => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let mut text = String::new();
        // One byte more than may be, so that too long a file is seen to be so.
        file.take(MAX_FILE as u64 + 1)
            .read_to_string(&mut text)
            .with_context(|| format!("reading {}", path.display()))?;
        Ok(Some(text))
    };
    Files::gather(file)
}

/// As root: what is written must be the daemon's own, so the user is changed before the first byte.
fn become_service_user(state: &Path) -> anyhow::Result<()> {
    let Some(user) = User::from_name(SERVICE_USER)?.filter(|_| Uid::effective().is_root()) else {
        return Ok(());
    };
    std::fs::create_dir_all(state).with_context(|| format!("making {}", state.display()))?;
    nix::unistd::chown(state, Some(user.uid), Some(user.gid))?;
    setgroups(&[])?;
    setgid(user.gid)?;
    setuid(user.uid).with_context(|| format!("becoming the user {SERVICE_USER}"))?;
    Ok(())
}

/// As whom the unit runs the daemon.
const SERVICE_USER: &str = "mesh-agent";
/// A token, and white space around it.
const MAX_TOKEN: u64 = token::MAX_LENGTH as u64 + 1024;
/// Of a line in the terminal's own editing (termios(3), canonical mode).
const MAX_LINE: usize = 4095;
