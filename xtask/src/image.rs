//! Builds the worker's image, looks at what is in it, and runs it as the manifests would, by `image/engine.sh`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use muster_messaging::api::ErrorCode;
use muster_messaging::client::Client;
use serde_json::{Value, json};
use xtask::services::{free_address, get};
use xtask::tool::output;

use crate::cargo;
use crate::description::{list, text};
use crate::shipped::Shipped;
use crate::verdict::{self, Verdict};

const ENGINE: &str = "xtask/src/image/engine.sh";
/// Where the image is for the scanners, in docker's form.
const ARCHIVE: &str = "target/image/muster-worker.tar";
const IMAGE: &str = "localhost/muster-worker:xtask";

/// The section of the program into which cargo-auditable writes the crates.
const SECTION: &[u8] = b".dep-v0";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The image to build from, in place of the one that infra/docker/base names by digest.
    #[arg(long, default_value = "")]
    rust_image: String,
    /// Build it twice, without a cache, and compare the two.
    #[arg(long)]
    reproduce: bool,
    /// Load this archive in docker's form and look at that image, in place of building one.
    #[arg(long, conflicts_with_all = ["reproduce", "rust_image"])]
    archive: Option<PathBuf>,
}

/// What must hold, whether it does, and what was seen.
type Row = (&'static str, bool, String);

pub(crate) async fn run(arguments: &Arguments) -> Result<Verdict> {
    println!("== With {}", engine(&["name"])?);
    let (mut archive, mut image, mut rows) = (cargo::root().join(ARCHIVE), IMAGE.to_owned(), Vec::new());
    if let Some(given) = &arguments.archive {
        archive.clone_from(given);
        image = engine(&["load", &given.display().to_string()])?;
    } else {
        let first = build(arguments, &archive).await?;
        if arguments.reproduce {
            let second = build(arguments, &archive).await?;
            rows.push(("two builds give one image", first == second, format!("{first}\n{second}")));
        }
    }
    rows.extend(inspect(&archive)?);
    let runs = engine(&["runs_containers"]).is_ok();
    if runs {
        rows.extend(ask(&image).await?);
    }
    let rows = rows.into_iter().map(|(what, holds, seen)| (what, Verdict::of(holds), seen));
    let mut rows: Vec<_> = rows.collect();
    if !runs {
        rows.push(("running it, which takes docker or podman", Verdict::NotRun, String::new()));
    }
    println!("for the scanners: {}", archive.display());
    Ok(verdict::together(&rows, ["what must hold", "seen"]))
}

/// Builds the image into the archive, and answers its digest.
async fn build(arguments: &Arguments, archive: &Path) -> Result<String> {
    let options = ["build", IMAGE, env!("CARGO_PKG_VERSION"), &arguments.rust_image];
    let mut command = cargo::command(cargo::root().join(ENGINE), &options);
    command.args(arguments.reproduce.then_some("--no-cache"));
    ensure!(cargo::run(&mut command).await?.success(), "the image does not build");
    engine(&["save", IMAGE, &archive.display().to_string()])?;
    engine(&["digest", &archive.display().to_string()])
}

/// Runs a function of the engine; answers what it says.
fn engine(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(cargo::root().join(ENGINE));
    let output = command.args(arguments).current_dir(cargo::root()).output()?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
    let (said, complained) = (text(output.stdout), text(output.stderr));
    ensure!(output.status.success(), "{complained}\n{said}");
    Ok(if said.is_empty() { complained } else { said })
}

/// Looks at the layers and the configuration as they would be pushed.
fn inspect(archive: &Path) -> Result<Vec<Row>> {
    let scratch = tempfile::tempdir()?;
    let [inside, unpacked] = ["image", "layer"].map(|name| scratch.path().join(name));
    unpack(archive, &inside)?;
    let read = |name: &str| -> Result<Value> {
        let text = fs::read(inside.join(name)).with_context(|| format!("it has no {name}"))?;
        Ok(serde_json::from_slice(&text)?)
    };
    let manifest = read("manifest.json")?;
    let (config, layers) = (read(text(&manifest, "/0/Config"))?, list(&manifest, "/0/Layers"));
    let (mut size, mut files, mut audited) = (0, String::new(), false);
    for layer in layers.iter().filter_map(Value::as_str).map(|layer| inside.join(layer)) {
        size += fs::metadata(&layer)?.len();
        files.push_str(&output(Command::new("tar").arg("-tvf").arg(&layer))?);
        unpack(&layer, &unpacked)?;
        let program = fs::read(unpacked.join("muster-worker")).unwrap_or_default();
        audited |= program.windows(SECTION.len()).any(|bytes| bytes == SECTION);
    }
    let only = matches!(files.lines().collect::<Vec<_>>()[..], [file]
        if file.starts_with("-r-xr-xr-x") && file.ends_with(" muster-worker"));
    let mut rows = vec![
        ("at most 20 MB, unpacked", size <= 20_000_000, format!("{size} bytes")),
        ("at most 4 layers", layers.len() <= 4, layers.len().to_string()),
        ("nothing but the program, which nobody may write", only, files),
        ("its crates, listed in it by cargo-auditable", audited, audited.to_string()),
    ];
    for (what, key, right) in [
        ("a numeric user, not root", "User", json!("65532:65532")),
        ("the program itself, not a shell", "Entrypoint", json!(["/muster-worker"])),
        ("a health check without a shell", "Healthcheck/Test", json!(["CMD", "/muster-worker", "health"])),
    ] {
        let seen = config.pointer(&format!("/config/{key}")).unwrap_or(&Value::Null);
        rows.push((what, *seen == right, seen.to_string()));
    }
    let revision = text(&config, "/config/Labels/org.opencontainers.image.revision");
    rows.push(("labels of the OCI", !revision.is_empty(), format!("revision {revision}")));
    Ok(rows)
}

fn unpack(archive: &Path, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    output(Command::new("tar").arg("-C").arg(directory).arg("-xf").arg(archive)).map(drop)
}

/// Runs the image as the rendered overlay would, beside the servers that are shipped, and asks it what its users ask.
async fn ask(image: &str) -> Result<Vec<Row>> {
    let shipped = Shipped::start(&cargo::build_worker().await?).await?;
    let migrated = launch(&shipped, "Job", "muster-migrate", &["--rm", image]);
    let plaintext = ["--rm", "--env=MUSTER__NATS__URLS=nats://127.0.0.1:4222", image];
    let refused = launch(&shipped, "Deployment", "muster-worker", &plaintext);
    let mut rows = vec![
        ("it migrates", migrated.is_ok(), either(migrated)),
        ("NATS without TLS: it does not start", refused.is_err(), either(refused)),
    ];

    // Where it answers HTTP differs, since it shares this machine's network.
    let address = free_address()?;
    let options = ["--detach", &format!("--env=MUSTER__HTTP__ADDRESS={address}"), image];
    let container = Container(launch(&shipped, "Deployment", "muster-worker", &options)?);
    let started = Instant::now();
    while !matches!(get(address, "/readyz"), Ok((200, _))) {
        ensure!(started.elapsed().as_secs() < 60, "not ready:\n{}", engine(&["logs", &container.0])?);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    rows.push(("/readyz", true, format!("after {:.1} s", started.elapsed().as_secs_f64())));
    let (status, body) = get(address, "/livez")?;
    rows.push(("/livez", status == 200, body));
    let seen = engine(&["confinement", &container.0])?;
    let confined = matches!(seen.split_whitespace().collect::<Vec<_>>()[..],
        ["true", memory, user, "0000000000000000", "1", "2"] if memory != "0" && user != "0");
    let confinement = "read-only root, memory limit; no root, capability or new privilege; seccomp";
    rows.push((confinement, confined, seen));
    let health = engine(&["exec_inside", &container.0, "/muster-worker", "health"]);
    rows.push(("muster-worker health, inside", health.is_ok(), either(health)));
    let services = &shipped.setting.services;
    let sibling = services.nats_config(&services.clients.operator, "sibling")?;
    let client = Client::connect(sibling).await.context("cannot connect to NATS")?;
    let answer = client.find_community(muster_domain::GuildId::parse("1")?).await;
    let unknown = matches!(&answer, Err(error) if error.code() == Some(ErrorCode::NotFound));
    rows.push(("communities.find over NATS", unknown, format!("{:?}", answer.err())));
    let exit_code = engine(&["stop", &container.0])?;
    rows.push(("SIGTERM: exit code 0", exit_code == "0", exit_code));
    Ok(rows)
}

/// The last line that was said, or the error.
fn either(said: Result<String>) -> String {
    said.unwrap_or_else(|error| error.to_string()).lines().last().unwrap_or_default().to_owned()
}

/// A container, which is removed when this value is dropped.
struct Container(String);

impl Drop for Container {
    fn drop(&mut self) {
        engine(&["remove", &self.0]).ok();
    }
}

/// Runs a workload of the overlay with these options and the image; answers what it says.
fn launch(shipped: &Shipped, kind: &str, name: &str, options: &[&str]) -> Result<String> {
    let pod = shipped.pod(kind, name)?;
    let files = tempfile::tempdir_in(shipped.setting.services.directory.path())?.keep();
    pod.lay_out(&files)?;
    let secrets = files.join("etc/muster").display().to_string();
    let mut arguments = vec!["run".to_owned(), pod.user.to_string(), secrets];
    arguments.extend(pod.environment.iter().map(|(key, value)| format!("--env={key}={value}")));
    arguments.extend(options.iter().map(|option| (*option).to_owned()));
    arguments.extend(pod.arguments);
    engine(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn an_image_breaks_what_is_planted_in_it_and_nothing_else() {
        let planted = include_str!("image/planted.toml");
        for (plant, breaks) in toml::from_str::<BTreeMap<String, Vec<String>>>(planted).unwrap() {
            let directory = tempfile::tempdir().unwrap();
            let script = format!("{}{plant}", include_str!("image/plant.sh"));
            let status = Command::new("bash").args(["-c", &script]).current_dir(&directory).status();
            assert!(status.unwrap().success(), "{plant}");
            let rows = inspect(&directory.path().join(ARCHIVE)).unwrap();
            let broken: Vec<&str> = rows.iter().filter(|row| !row.1).map(|row| row.0).collect();
            assert_eq!(broken, breaks, "{plant}");
        }
    }
}
