//! `mesh-agent drain`: out of rotation, back in, and the wait until that has come to pass.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;

use super::commands::{answer, print};
use super::{CONNECTIONS_LEFT, DONE, DrainArguments, NOT_RUNNING, client};
use crate::config::Config;

/// Runs the command. With a time to wait: 0 when others know and have gone, 6 when it is up before.
pub(super) fn run(config: &Config, arguments: &DrainArguments) -> anyhow::Result<u8> {
    let path = if arguments.undo { "/drain?undo=true" } else { "/drain" };
    let Some((status, text)) = client::request(config, "POST", path, String::new())? else {
        print("mesh-agent does not run: nothing comes in through it\n")?;
        return Ok(NOT_RUNNING);
    };
    let code = answer(status, &text)?;
    match arguments.wait {
        Some(seconds) if code == DONE => wait(config, Duration::from_secs(seconds.into())),
        _ => Ok(code),
    }
}

fn wait(config: &Config, most: Duration) -> anyhow::Result<u8> {
    let end = Instant::now() + most;
    loop {
        let Some((_, text)) = client::request(config, "GET", "/status", String::new())? else {
            print("mesh-agent was stopped meanwhile\n")?;
            return Ok(NOT_RUNNING);
        };
        let status: Value = serde_json::from_str(&text).context("reading the daemon's answer")?;
        let in_rotation = status["health"]["in_rotation"] == true;
        let inbound = status["flows"]["inbound"].as_u64().unwrap_or(0);
        if !in_rotation && inbound == 0 {
            print("drained: no connection of others is left\n")?;
            return Ok(DONE);
        }
        if Instant::now() >= end {
            let known = if in_rotation {
                "; the control plane has not taken it up yet"
            } else {
                ""
            };
            print(&format!(
                "still draining: {inbound} connections of others are left{known}\n"
            ))?;
            return Ok(CONNECTIONS_LEFT);
        }
        std::thread::sleep(LOOK);
    }
}

/// Between two looks at the daemon.
const LOOK: Duration = Duration::from_millis(200);
