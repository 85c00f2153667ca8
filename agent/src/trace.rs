//! Logs: to standard error, as text or JSON, with a level that can be changed while running.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::{Log, LogFormat};

/// Changes the level while running.
#[derive(Clone, Debug)]
pub struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    /// Takes a filter such as `info,mesh_agent::tunnel=debug`.
    pub fn set(&self, filter: &str) -> anyhow::Result<()> {
        self.0.reload(parse(filter)?).context("changing the log level")
    }
}

/// Installs the subscriber. `RUST_LOG` wins over the configuration.
pub fn install(config: &Log) -> anyhow::Result<Level> {
    let wanted = std::env::var("RUST_LOG").unwrap_or_else(|_| config.level.clone());
    let (filter, handle) = reload::Layer::new(parse(&wanted)?);
    let registry = tracing_subscriber::registry().with(filter);
    match config.format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            registry.with(fmt::layer().with_writer(std::io::stderr).with_ansi(colours)).try_init()
        }
        LogFormat::Json => registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init(),
    }
    .context("installing the logger")?;
    Ok(Level(handle))
}

fn parse(filter: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(filter).with_context(|| format!("{filter:?} is not a log filter; try info, or info,mesh_agent=debug"))
}
