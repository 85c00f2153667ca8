//! Where settings come from: defaults, files, the environment; what each one was set by, and whether together they make sense.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use config::{Environment, File, FileFormat};
use serde_json::Value;

use super::Config;

/// A configuration, and who said what.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// The main file, whether or not it exists.
    pub file: PathBuf,
    /// By dotted key: what set it. Keys that are not here have their default.
    pub origins: BTreeMap<String, String>,
}

/// Reads all layers. `file` stands for `/etc/mesh-agent/agent.toml`; `conf.d` is looked for beside it.
pub fn load(file: Option<&Path>) -> anyhow::Result<Loaded> {
    let main = file.map_or_else(|| PathBuf::from(DEFAULT_FILE), Path::to_owned);
    if file.is_some() && !main.exists() {
        bail!(
            "there is no file {}; check the path given with --config",
            main.display()
        );
    }
    let mut builder = config::Config::builder();
    let mut origins = BTreeMap::new();
    for path in files(&main)? {
        let source = File::from(path.clone()).format(FileFormat::Toml);
        let layer = config::Config::builder().add_source(source.clone()).build();
        let layer = layer.with_context(|| format!("reading {}", path.display()))?;
        note(&layer, &path.display().to_string(), &mut origins)?;
        builder = builder.add_source(source);
    }
    let environment = Environment::with_prefix("MESH_AGENT")
        .prefix_separator("__")
        .separator("__")
        .try_parsing(true)
        .list_separator(",")
        .with_list_parse_key("dns.upstreams")
        .with_list_parse_key("capture.prefixes")
        .with_list_parse_key("capture.forward_interfaces")
        .with_list_parse_key("tunnel.trust_domain_aliases")
        .with_list_parse_key("inbound.loopback_ports");
    let layer = config::Config::builder()
        .add_source(environment.clone())
        .build()
        .context("reading the environment")?;
    note(&layer, "environment MESH_AGENT__...", &mut origins)?;
    let merged = builder
        .add_source(environment)
        .build()
        .context("reading the configuration")?;
    let config: Config = merged.try_deserialize().context("the configuration is not valid")?;
    check(&config)?;
    Ok(Loaded {
        config,
        file: main,
        origins,
    })
}

fn files(main: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = main.exists().then(|| main.to_owned()).into_iter().collect();
    let directory = main.with_file_name("conf.d");
    if directory.is_dir() {
        let entries = std::fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
        let mut more: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        more.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
        more.sort();
        files.extend(more);
    }
    Ok(files)
}

fn note(layer: &config::Config, origin: &str, origins: &mut BTreeMap<String, String>) -> anyhow::Result<()> {
    let value: Value = layer.clone().try_deserialize()?;
    let mut keys = Vec::new();
    flatten("", &value, &mut keys);
    origins.extend(keys.into_iter().map(|(key, _)| (key, origin.to_owned())));
    Ok(())
}

fn flatten(prefix: &str, value: &Value, out: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let key = if prefix.is_empty() {
                    name.clone()
                } else {
                    format!("{prefix}.{name}")
                };
                flatten(&key, value, out);
            }
        }
        _ => out.push((prefix.to_owned(), value.clone())),
    }
}

/// What the types cannot say.
fn check(config: &Config) -> anyhow::Result<()> {
    let capture = &config.capture;
    if capture.tun.is_empty() || capture.tun.len() > 15 || capture.tun.contains('/') {
        bail!(
            "capture.tun: {:?} is not a device name (1 to 15 characters)",
            capture.tun
        );
    }
    if capture.mtu < 1280 {
        bail!("capture.mtu: {} is below 1280, the least that IPv6 allows", capture.mtu);
    }
    if !capture.ring_bytes.is_power_of_two() || !(65_536..=1 << 24).contains(&capture.ring_bytes) {
        bail!(
            "capture.ring_bytes: {} is not a power of two between 65536 and 16777216",
            capture.ring_bytes
        );
    }
    if let Err(error) = config.log.level.parse::<tracing_subscriber::EnvFilter>() {
        bail!(
            "log.level: {:?} is not a filter such as info,mesh_agent::tunnel=debug: {error}",
            config.log.level
        );
    }
    if capture.mark == 0 || capture.caller_mark() == 0 {
        bail!(
            "capture.mark: {} or one more would be 0, which marks nothing",
            capture.mark
        );
    }
    for table in [capture.table, capture.caller_table()] {
        if [0, 253, 254, 255].contains(&table) {
            bail!(
                "capture.table: {} needs itself and one more, and {table} is one of the system's own tables",
                capture.table
            );
        }
    }
    if capture.max_flows == 0 || capture.max_flows > 1 << 23 {
        bail!("capture.max_flows: {} is not between 1 and 8388608", capture.max_flows);
    }
    if config.dns.resolver4 == capture.address4 || config.dns.resolver6 == capture.address6 {
        bail!("dns.resolver4 and dns.resolver6 must differ from capture.address4 and capture.address6");
    }
    for command in &config.health.exec {
        if !command.first().is_some_and(|program| program.starts_with('/')) {
            bail!("health.exec: {command:?} does not begin with the absolute path of a program");
        }
    }
    if config.admin.metrics == config.admin.ready {
        bail!(
            "admin.metrics and admin.ready are the same address: {}",
            config.admin.ready
        );
    }
    Ok(())
}

/// Every setting: (dotted key, value, where it came from).
pub fn explain(loaded: &Loaded) -> anyhow::Result<Vec<(String, Value, String)>> {
    let mut keys = Vec::new();
    flatten("", &serde_json::to_value(&loaded.config)?, &mut keys);
    let origin = |key: &String| loaded.origins.get(key).cloned().unwrap_or_else(|| "default".into());
    Ok(keys
        .into_iter()
        .map(|(key, value)| (key.clone(), value, origin(&key)))
        .collect())
}

/// The main file, when none is named.
pub const DEFAULT_FILE: &str = "/etc/mesh-agent/agent.toml";

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> anyhow::Result<Loaded> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("agent.toml");
        std::fs::write(&file, text)?;
        load(Some(&file))
    }

    #[test]
    fn files_say_what_they_say_and_the_rest_is_default() {
        let loaded = load_text("[capture]\ntun = \"mesh7\"\n").unwrap();
        assert_eq!(loaded.config.capture.tun, "mesh7");
        assert_eq!(loaded.config.capture.mtu, 65_535);
        let shown = explain(&loaded).unwrap();
        let origin = |key: &str| shown.iter().find(|one| one.0 == key).unwrap().2.clone();
        assert!(origin("capture.tun").ends_with("agent.toml"));
        assert_eq!(origin("capture.mtu"), "default");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("[capture]\ntunn = \"x\"\n", "tunn"),
            ("[capture]\nring_bytes = 1000\n", "power of two"),
            ("[health]\nexec = [[\"sh\", \"-c\", \"true\"]]\n", "absolute path"),
            ("[admin]\nmetrics = \"127.0.0.1:15021\"\n", "same address"),
            ("[capture\n", "agent.toml"),
        ] {
            let error = format!("{:#}", load_text(text).unwrap_err());
            assert!(error.contains(word), "{word:?} in {error}");
        }
    }

    #[test]
    fn the_defaults_make_sense() {
        check(&Config::default()).unwrap();
    }
}
