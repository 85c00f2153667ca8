//! The sandbox of a probe's command: this program again, as a process that gives everything up and then becomes the command.
//!
//! No capability and none to be gained, no file of ours but the three standard ones, an empty environment, and no access to
//! the directories of the agent (Landlock). Run by root, the command is nobody's. Where the kernel cannot enforce all of
//! that the command is not run.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use caps::{CapSet, Capability};
use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreated, RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

use crate::config::Config;

/// What a probe's command must not see: state, the admin socket, and the credentials that systemd handed us.
pub fn hidden(config: &Config) -> Vec<PathBuf> {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let own = [config.paths.state.clone(), config.paths.run.clone()];
    own.into_iter().chain(credentials).collect()
}

/// Becomes the command; returns only with why not. To be called in a process of one thread.
pub fn enter(hidden: &[PathBuf], command: &[OsString]) -> anyhow::Result<()> {
    let (program, arguments) = command.split_first().context("there is no command")?;
    close_inherited().context("closing inherited files")?;
    std::env::set_current_dir("/")?;
    let hidden: Vec<PathBuf> = hidden.iter().map(|path| real(path)).collect::<Result<_, _>>()?;
    let ruleset = all_but(&hidden).context("Landlock, which keeps the command away from the agent's files")?;
    give_up_capabilities().context("giving up capabilities")?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    prctl::set_no_new_privs()?;
    let status = ruleset.restrict_self().context("Landlock")?;
    ensure!(
        status.ruleset != RulesetStatus::NotEnforced && status.no_new_privs,
        "this kernel does not enforce Landlock (Linux 5.13 and later do, unless it was left out of lsm=); exec probes need it"
    );
    for path in &hidden {
        ensure!(
            std::fs::read_dir(path).is_err(),
            "{} can be read in spite of the sandbox",
            path.display()
        );
    }
    let error = Command::new(program).args(arguments).env_clear().exec();
    Err(error).with_context(|| format!("running {}", program.display()))
}

fn real(path: &Path) -> anyhow::Result<PathBuf> {
    path.canonicalize()
        .with_context(|| format!("hiding {}", path.display()))
}

/// Files that a library opened without close-on-exec; ours have it.
fn close_inherited() -> io::Result<()> {
    let open = std::fs::read_dir("/proc/self/fd")?;
    let numbers: Vec<i32> = open
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in numbers {
        // The directory that was read is among them, and closed by now.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}

/// Everything is allowed but what lies beneath `hidden`. Landlock allows and never denies; so the ways to these are left out,
/// and all that lies beside them is named. Symbolic links are not followed: what they lead to is named where it is.
fn all_but(hidden: &[PathBuf]) -> anyhow::Result<RulesetCreated> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        // Not to signal the agent, which has the same user.
        .scope(Scope::Signal)?
        .create()?;
    let mut beside = vec![PathBuf::from("/")];
    while let Some(path) = beside.pop() {
        if hidden.contains(&path) {
            continue;
        }
        let Ok(meta) = path.symlink_metadata() else { continue };
        if meta.is_symlink() {
            continue;
        }
        if hidden.iter().any(|one| one.starts_with(&path)) {
            let entries = std::fs::read_dir(&path).with_context(|| format!("reading {}", path.display()))?;
            beside.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
            continue;
        }
        // What we may not open the command may not either.
        let Ok(opened) = PathFd::new(&path) else { continue };
        let access = if meta.is_dir() {
            AccessFs::from_all(ABI::V5)
        } else {
            AccessFs::from_file(ABI::V5)
        };
        ruleset = ruleset.add_rule(PathBeneath::new(opened, access))?;
    }
    Ok(ruleset)
}

/// No capability is left, and none can come back: no program that is executed from here on gains any.
fn give_up_capabilities() -> anyhow::Result<()> {
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        caps::clear(None, CapSet::Bounding)?;
    }
    caps::clear(None, CapSet::Ambient)?;
    if Uid::effective().is_root() {
        setgroups(&[])?;
        setgid(Gid::from_raw(NOBODY))?;
        setuid(Uid::from_raw(NOBODY))?;
    }
    // At once: the effective set is within the permitted one.
    caps::clear(None, CapSet::Effective)?;
    caps::clear(None, CapSet::Permitted)?;
    caps::clear(None, CapSet::Inheritable)?;
    for set in [
        CapSet::Effective,
        CapSet::Permitted,
        CapSet::Inheritable,
        CapSet::Ambient,
    ] {
        let left = caps::read(None, set)?;
        if !left.is_empty() {
            bail!("{left:?} could not be given up");
        }
    }
    Ok(())
}

/// Who root's commands are run as.
const NOBODY: u32 = 65_534;
