//! What each command does, but for those that have a file of their own.

use std::io::Write as _;

use anyhow::Context as _;

use super::{Cli, Command, ConfigCommand, DONE, FAILED, NOT_JOINED, Output, client, drain, join, status, why};
use crate::config::Config;
use crate::config::source::{self, Loaded};
use crate::health::sandbox;
use crate::state::State;
use crate::{app, kernel};

/// Runs a command; the exit code.
pub(super) fn run(cli: Cli) -> anyhow::Result<u8> {
    if let Command::Sandbox(arguments) = cli.command {
        // Not even our own files are read any more.
        return sandbox::enter(&arguments.hide, &arguments.command).map(|()| DONE);
    }
    let loaded = source::load(cli.config.as_deref())?;
    match cli.command {
        Command::Run => app::run(loaded).map(|()| DONE),
        Command::Join(arguments) => join::run(&loaded.config, arguments),
        Command::Status { output } => status::run(&loaded.config, output),
        Command::Why {
            source,
            destination,
            output,
        } => why::run(&loaded.config, &source, &destination, output),
        Command::Drain(arguments) => drain::run(&loaded.config, &arguments),
        // See above.
        Command::Sandbox(_) => Ok(DONE),
        Command::Leave => leave(&loaded.config),
        Command::Cleanup => cleanup(&loaded.config),
        Command::Config(ConfigCommand::Check) => print(&format!("{} is valid\n", loaded.file.display())).map(|()| DONE),
        Command::Config(ConfigCommand::Show { output }) => show(&loaded, output),
    }
}

/// Through the daemon; without one what it would do is done here.
fn leave(config: &Config) -> anyhow::Result<u8> {
    if let Some((status, text)) = client::request(config, "POST", "/leave", String::new())? {
        return answer(status, &text);
    }
    let state = State::new(&config.paths.state);
    if state.membership().ok().flatten().is_none() {
        print("this machine has not joined\n")?;
        return Ok(NOT_JOINED);
    }
    state.forget()?;
    kernel::cleanup(config).context("cleaning up the kernel")?;
    print("left; no daemon runs, so the control plane was not told: revoke the machine there\n")?;
    Ok(DONE)
}

fn cleanup(config: &Config) -> anyhow::Result<u8> {
    if client::request(config, "GET", "/status", String::new())?.is_some() {
        anyhow::bail!("the daemon runs; stop it first (systemctl stop mesh-agent), then clean up");
    }
    kernel::cleanup(config)?;
    print("nothing of ours is left in the kernel\n")?;
    Ok(DONE)
}

fn show(loaded: &Loaded, output: Output) -> anyhow::Result<u8> {
    let settings = source::explain(loaded)?;
    match output {
        Output::Json => {
            let entries = settings
                .into_iter()
                .map(|(key, value, origin)| (key, serde_json::json!({ "value": value, "origin": origin })));
            let all: serde_json::Map<String, serde_json::Value> = entries.collect();
            print(&format!("{}\n", serde_json::to_string_pretty(&all)?))?;
        }
        Output::Text => {
            let wide = settings.iter().map(|one| one.0.len()).max().unwrap_or(0);
            for (key, value, origin) in settings {
                print(&format!("{key:wide$} = {value}  # {origin}\n"))?;
            }
        }
    }
    Ok(DONE)
}

/// Prints what the daemon answered.
pub(super) fn answer(status: u16, text: &str) -> anyhow::Result<u8> {
    if status == 200 {
        print(&format!("{text}\n"))?;
        return Ok(DONE);
    }
    writeln!(std::io::stderr(), "mesh-agent: {text}")?;
    Ok(FAILED)
}

pub(super) fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever read us had enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
