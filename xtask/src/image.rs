mod content;
mod engine;
#[cfg(test)]
pub(crate) mod planted;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{Table, presets};
use muster_messaging::client::{Client, ClientError};
use muster_messaging::wire::error::ErrorCode;
use nix::unistd::Uid;
use xtask::worker::get;

use crate::cargo;
use crate::shipped::Shipped;
use engine::Engine;

/// Where the image lies for the scanners, in docker's form.
pub(crate) const ARCHIVE: &str = "target/image/muster-worker.tar";
/// What it is called on this machine.
const IMAGE: &str = "localhost/muster-worker:xtask";
/// The user of image and manifests.
const USER: u32 = 65532;
/// How long a start and a stop may take; the stop is the manifest's grace.
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(45);

/// What `cargo xtask image` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The image to build from, in place of the one that infra/docker/base names by digest.
    #[arg(long)]
    rust_image: Option<String>,
    /// Use the image that was built or loaded before.
    #[arg(long)]
    no_build: bool,
    /// Build it twice, without a cache, and compare the two.
    #[arg(long, conflicts_with = "no_build")]
    reproduce: bool,
    /// Load this archive in docker's form and look at that image, in place of building one.
    #[arg(long, conflicts_with_all = ["no_build", "reproduce", "rust_image"])]
    archive: Option<PathBuf>,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let root = cargo::root();
    let engine = Engine::find()?;
    let archive = root.join(ARCHIVE);
    fs::create_dir_all(archive.parent().context("no directory")?)?;
    let mut image = IMAGE.to_owned();
    let mut reproduced = None;
    if let Some(given) = &arguments.archive {
        image = engine.load(given)?;
        println!("== Loaded {} as {image} with {engine}", given.display());
    } else {
        println!("== Building with {engine}");
        if !arguments.no_build {
            let base = arguments.rust_image.clone().map_or_else(|| base(&root), Ok)?;
            build(&engine, &root, &base, arguments.reproduce).await?;
        }
        save(&engine, &archive)?;
        if arguments.reproduce {
            let first = content::digest(&archive)?;
            let base = arguments.rust_image.clone().map_or_else(|| base(&root), Ok)?;
            build(&engine, &root, &base, true).await?;
            save(&engine, &archive)?;
            reproduced = Some((first, content::digest(&archive)?));
        }
    }
    let inspected = arguments.archive.as_ref().unwrap_or(&archive);

    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["what must hold", "verdict", "seen"]);
    let mut failures = 0_usize;
    let mut say = |what: &str, holds: bool, seen: String| {
        failures += usize::from(!holds);
        table.add_row([what, if holds { "holds" } else { "FAILED" }, &seen]);
    };
    if let Some((first, second)) = reproduced {
        let seen = if first == second { first } else { format!("{first} and {second}") };
        say("two builds give one image", !seen.contains(" and "), seen);
    }
    content::inspect(inspected, &mut say)?;
    let ran = if engine.can_run() {
        ask(&engine, &image, &mut say).await?;
        true
    } else {
        false
    };
    println!("{table}");
    println!("for the scanners: {}", inspected.display());
    if failures > 0 {
        return Ok(ExitCode::FAILURE);
    }
    if !ran {
        println!("NOT RUN: running it, which takes docker or podman");
        return Ok(ExitCode::from(2));
    }
    Ok(ExitCode::SUCCESS)
}

/// The base that infra/docker/base names by digest.
fn base(root: &Path) -> Result<String> {
    let file = root.join("infra/docker/base/Dockerfile");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let base = text.lines().find_map(|line| line.strip_prefix("FROM "));
    let base = base.filter(|base| base.contains("@sha256:"));
    Ok(base.with_context(|| format!("{} names no base by digest", file.display()))?.trim().to_owned())
}

async fn build(engine: &Engine, root: &Path, base: &str, anew: bool) -> Result<()> {
    let started = Instant::now();
    let [revision, epoch] = ["%H", "%ct"].map(|form| of_commit(root, form));
    let mut command = engine.build(IMAGE, base, &revision, &epoch, anew);
    ensure!(cargo::run(&mut command).await?.success(), "the image does not build");
    println!("built in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn save(engine: &Engine, archive: &Path) -> Result<()> {
    if archive.exists() {
        fs::remove_file(archive)?;
    }
    engine.save(IMAGE, archive)
}

/// A fact of the commit in git's form for `--format`; 0 where there is no repository.
fn of_commit(root: &Path, form: &str) -> String {
    let output =
        Command::new("git").args(["log", "-1", &format!("--format={form}")]).current_dir(root).output();
    let fact = output.ok().filter(|output| output.status.success());
    fact.map_or_else(|| "0".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs it as the rendered overlay would, beside the servers that are shipped, and asks it what its users ask.
async fn ask(engine: &Engine, image: &str, say: &mut impl FnMut(&str, bool, String)) -> Result<()> {
    let shipped = Shipped::start(&cargo::build_worker().await?).await?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let job = prepared(&shipped, "Job", "muster-migrate", address)?;
    let migrated = engine.run_to_end(image, &job)?;
    say("migrate", migrated.0, migrated.1);
    let pod = prepared(&shipped, "Deployment", "muster-worker", address)?;
    let container = engine.start(image, &pod)?;
    let deadline = Instant::now() + START;
    let ready = loop {
        let answer = get(address, "/readyz");
        match answer {
            Ok((200, body)) => break body,
            _ if Instant::now() > deadline => {
                bail!("it was not ready within {START:?}:\n{}", container.log())
            }
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    say("/readyz", true, ready.trim().to_owned());
    let (status, body) = get(address, "/livez")?;
    say("/livez", status == 200, format!("{status} {}", body.trim()));
    let held = container.confinement()?;
    say("a read-only root", held.read_only_root, held.read_only_root.to_string());
    say("a memory limit", held.memory > 0, format!("{} MiB", held.memory / 1024 / 1024));
    if let Some([user, capabilities, no_new_privileges, seccomp]) = held.process {
        let none = !capabilities.is_empty() && capabilities.bytes().all(|digit| digit == b'0');
        let holds = user != "0" && !user.is_empty() && none && no_new_privileges == "1" && seccomp == "2";
        say(
            "as the kernel sees it: not root, no capability, no new privilege, seccomp",
            holds,
            format!("user {user}, CapEff {capabilities}, NoNewPrivs {no_new_privileges}, Seccomp {seccomp}"),
        );
    }
    let (healthy, text) = container.exec(&["/muster-worker", "health"])?;
    say("muster-worker health, inside", healthy, text);
    let [sibling, _] = shipped.setting.sibling_and_gateway()?;
    let client = Client::connect(sibling).await.context("cannot connect to NATS")?;
    let answer = client.find_community(muster_domain::GuildId::parse("1")?).await;
    let holds = matches!(&answer, Err(error) if error.code() == Some(ErrorCode::NotFound));
    say(
        "communities.find over NATS",
        holds,
        answer.map_or_else(|error: ClientError| error.to_string(), |_| "found".to_owned()),
    );
    let started = Instant::now();
    let code = container.stop(STOP)?;
    let seen = format!("exit code {code} after {:.1} s", started.elapsed().as_secs_f64());
    say("SIGTERM: a clean exit", code == 0, seen);
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// What a container of the overlay is started with.
pub(crate) struct Prepared {
    /// What follows the image's entry point.
    pub(crate) arguments: Vec<String>,
    pub(crate) variables: Vec<(String, String)>,
    /// The user, by number.
    pub(crate) user: u32,
    /// Its root's directory `engine::MOUNTED`, which goes with this value.
    pub(crate) mounted: tempfile::TempDir,
}

/// Lays a pod's files out. Only where it answers HTTP differs, since it shares this machine's network.
fn prepared(shipped: &Shipped, kind: &str, name: &str, address: SocketAddr) -> Result<Prepared> {
    let pod = shipped.pod(kind, name)?;
    let mounted = tempfile::tempdir()?;
    // A user of the engine's goes through it, and lists nothing.
    fs::set_permissions(mounted.path(), fs::Permissions::from_mode(0o711))?;
    pod.lay_out(mounted.path())?;
    if !Uid::effective().is_root() {
        // Without root the files belong to whom the engine maps to another user, so that all may read them.
        let status = Command::new("chmod").args(["-R", "a+rX"]).arg(mounted.path()).status()?;
        ensure!(status.success(), "chmod failed");
    }
    let mut variables: Vec<(String, String)> = pod.environment.into_iter().collect();
    if kind == "Deployment" {
        variables.push(("MUSTER__HTTP__ADDRESS".to_owned(), address.to_string()));
    }
    Ok(Prepared { arguments: pod.arguments, variables, user: pod.user, mounted })
}
