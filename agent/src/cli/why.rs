//! `mesh-agent why`: which rule decides about a connection.

use std::fmt::Write as _;

use serde_json::Value;

use super::commands::print;
use super::{DENIED, DONE, FAILED, NOT_JOINED, NOT_RUNNING, Output, client};
use crate::config::Config;

/// Runs the command. 0: allowed, 5: it would be refused.
pub(super) fn run(config: &Config, source: &str, destination: &str, output: Output) -> anyhow::Result<u8> {
    for text in [source, destination] {
        if !text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.:/[]*".contains(c))
        {
            anyhow::bail!("{text:?} is neither an address nor a name");
        }
    }
    let path = format!("/why?source={source}&destination={destination}");
    let Some((status, text)) = client::request(config, "GET", &path, String::new())? else {
        print("mesh-agent does not run; start it: sudo systemctl start mesh-agent\n")?;
        return Ok(NOT_RUNNING);
    };
    if status != 200 {
        let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("mesh-agent: {text}\n").as_bytes());
        return Ok(if status == 409 { NOT_JOINED } else { FAILED });
    }
    let answer: Value = serde_json::from_str(&text)?;
    match output {
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&answer)?))?,
        Output::Text => print(&screen(&answer))?,
    }
    Ok(if answer["allowed"] == true { DONE } else { DENIED })
}

fn screen(answer: &Value) -> String {
    let mut out = String::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let or = |value: &Value, otherwise: &str| value.as_str().unwrap_or(otherwise).to_owned();
    let verdict = |allowed: &Value| if *allowed == true { "allowed" } else { "refused" };
    let source = &answer["source"];
    let _ = writeln!(
        out,
        "source       {} ({}) at {}",
        or(&source["workload"], "no workload of the mesh"),
        or(&source["identity"], "no identity, in plain"),
        text(&source["address"])
    );
    let service = answer["service"].as_str().map(|service| format!(" of {service}"));
    let destination = text(&answer["destination"]);
    let _ = writeln!(out, "destination  {destination}{}", service.unwrap_or_default());
    for endpoint in answer["endpoints"].as_array().into_iter().flatten() {
        let workload = endpoint["workload"].as_str().map(|workload| format!(" of {workload}"));
        let via = endpoint["via"].as_str().map(|via| format!(" through {via}"));
        let _ = writeln!(
            out,
            "endpoint     {}{} by {}{}",
            text(&endpoint["target"]),
            workload.unwrap_or_default(),
            text(&endpoint["way"]),
            via.unwrap_or_default()
        );
        let _ = writeln!(
            out,
            "  {:<10} {}",
            verdict(&endpoint["allowed"]),
            text(&endpoint["reason"])
        );
        for dry_run in endpoint["dry_run"].as_array().into_iter().flatten() {
            let (policy, would) = (text(&dry_run["policy"]), text(&dry_run["would"]));
            let _ = writeln!(out, "  dry run    {policy} would {would} it");
        }
    }
    if let Some(reason) = answer["reason"].as_str() {
        let _ = writeln!(out, "  refused    {reason}");
    }
    let _ = writeln!(out, "=> {}", verdict(&answer["allowed"]));
    out
}
