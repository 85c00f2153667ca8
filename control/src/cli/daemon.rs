//! `mesh-control`'s command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config::Settings;

const EXAMPLES: &str = "Examples:
  mesh-control serve                                     with the defaults (/etc/mesh-control/control.toml when it is there)
  mesh-control serve --config ./control.toml             with a file
  MESH_CONTROL__LISTEN=0.0.0.0:15012 mesh-control serve  with a setting from the environment

Then, as root on the same machine: meshctl apply -f group.yaml; meshctl token create --group NAMESPACE/NAME";

const DEFAULT_FILE: &str = "/etc/mesh-control/control.toml";

/// The embedded control plane of mesh-agent: CA, join tokens, xDS.
#[derive(Parser)]
#[command(name = "mesh-control", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve agents and operators until SIGTERM.
    #[command(after_help = EXAMPLES)]
    Serve {
        /// TOML file with settings; MESH_CONTROL__KEY in the environment goes before it.
        #[arg(long, value_name = "FILE", env = "MESH_CONTROL_CONFIG")]
        config: Option<PathBuf>,
    },
}

/// Runs the daemon; exit code 0 after a clean stop, 1 after a failure.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("MESH_CONTROL_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    let Command::Serve { config } = arguments.command;
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: Option<PathBuf>) -> anyhow::Result<()> {
    let default = PathBuf::from(DEFAULT_FILE);
    let file = config.or_else(|| default.exists().then_some(default));
    let settings = Settings::load(file.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(crate::serve::run(settings))
}
