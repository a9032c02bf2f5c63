//! The examples of muster-messaging, as processes of their own beside a real worker.
#![expect(clippy::indexing_slicing, reason = "a field that JSON lacks is null, so it cannot panic")]

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use muster_domain::CommunityId;
use muster_messaging::api::community::Stats;
use muster_messaging::client::Client;
use serde_json::Value;
use xtask::worker::Configuration;

use crate::setting::{Setting, eventually};

/// Builds an example, unless it is built, with the features that the workspace's tests have; answers its program.
fn program(name: &str) -> Result<PathBuf> {
    let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--locked", "--workspace", "--message-format", "json", "--example", name]);
    // What cargo sets for this test would look like a change to what is built.
    for (variable, _) in env::vars_os() {
        let starts = ["CARGO_PKG_", "CARGO_MANIFEST_"];
        if starts.iter().any(|start| variable.to_string_lossy().starts_with(start)) {
            build.env_remove(variable);
        }
    }
    let output = build.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{name} does not build");
    let messages = String::from_utf8(output.stdout)?;
    let mut messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let built =
        messages.find(|message| message["target"]["name"] == name && message["executable"].is_string());
    let program = built.and_then(|message| message["executable"].as_str().map(PathBuf::from));
    program.with_context(|| format!("cargo built no {name}"))
}

/// An example for one community, as its reader.
pub(crate) async fn example(
    setting: &Setting,
    name: &str,
    guild: &str,
    community: CommunityId,
) -> Result<Configuration> {
    let program = program(name)?;
    let Setting { services, .. } = setting;
    let made = setting.configuration.example(program, services, &community.to_string()).await?;
    // The server may still be reading its accounts.
    let reader = Client::new(setting.connect(&services.authority.client("muster-reader")?).await?);
    eventually("the reader's way in", || async { reader.community(community).ask(&Stats {}).await.is_ok() })
        .await?;
    Ok(made.with("GUILD", guild))
}
