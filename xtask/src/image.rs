//! Builds the worker's image, looks at what is in it, and runs it as the manifests would, by `image/engine.sh`.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use muster_messaging::api::ErrorCode;
use muster_messaging::client::Client;
use nix::unistd::{Gid, Uid, chown};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use xtask::services::{free_address, get};
use xtask::tool::output;

use crate::cargo;
use crate::description::{list, text};
use crate::manifests::{parse, render};
use crate::runbook::{Setting, section};
use crate::verdict::{self, Row, Verdict};

const ENGINE: &str = "xtask/src/image/engine.sh";
/// Where the image is for the scanners, in docker's form.
const ARCHIVE: &str = "target/image/muster-worker.tar";
const IMAGE: &str = "localhost/muster-worker:xtask";
/// Into this section of the program cargo-auditable writes the crates.
const SECTION: &[u8] = b".dep-v0";
const OVERLAY: &str = "infra/k8s/overlays/production";
/// The runbook, and those of its sections that come before the first start.
const RUNBOOK: &str = "docs/runbooks/operations.md";
const BEFORE_THE_START: [&str; 4] =
    ["Operations", "1.1 Prepare the database", "1.2 Make the streams", "1.3 Make the Secrets"];
const PATIENCE: Duration = Duration::from_secs(60);

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
            rows.push(row("two builds give one image", first == second, format!("{first}\n{second}")));
        }
    }
    rows.extend(inspect(&archive)?);
    if engine(&["runs_containers"]).is_ok() {
        rows.extend(ask(&image).await?);
    } else {
        rows.push(("running it, which takes docker or podman", Verdict::NotRun, String::new()));
    }
    println!("for the scanners: {}", archive.display());
    Ok(verdict::together(&rows, ["what must hold", "seen"]))
}

fn row(what: &'static str, holds: bool, seen: String) -> Row {
    (what, Verdict::of(holds), seen)
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
        row("at most 20 MB, unpacked", size <= 20_000_000, format!("{size} bytes")),
        row("at most 4 layers", layers.len() <= 4, layers.len().to_string()),
        row("nothing but the program, which nobody may write", only, files),
        row("its crates, listed in it by cargo-auditable", audited, audited.to_string()),
    ];
    for (what, key, right) in [
        ("a numeric user, not root", "User", json!("65532:65532")),
        ("the program itself, not a shell", "Entrypoint", json!(["/muster-worker"])),
        ("a health check without a shell", "Healthcheck/Test", json!(["CMD", "/muster-worker", "health"])),
    ] {
        let seen = config.pointer(&format!("/config/{key}")).unwrap_or(&Value::Null);
        rows.push(row(what, *seen == right, seen.to_string()));
    }
    let revision = text(&config, "/config/Labels/org.opencontainers.image.revision");
    rows.push(row("labels of the OCI", !revision.is_empty(), format!("revision {revision}")));
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
        row("it migrates", migrated.is_ok(), either(migrated)),
        row("NATS without TLS: it does not start", refused.is_err(), either(refused)),
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
    rows.push(row("/readyz", true, format!("after {:.1} s", started.elapsed().as_secs_f64())));
    let (status, body) = get(address, "/livez")?;
    rows.push(row("/livez", status == 200, body));
    let seen = engine(&["confinement", &container.0])?;
    let confined = matches!(seen.split_whitespace().collect::<Vec<_>>()[..],
        ["true", memory, user, "0", "0000000000000000", "1", "2"] if memory != "0" && user != "0");
    let confinement = "read-only root, memory limit; no root, huge page, capability, new privilege; seccomp";
    rows.push(row(confinement, confined, seen));
    let health = engine(&["exec_inside", &container.0, "/muster-worker", "health"]);
    rows.push(row("muster-worker health, inside", health.is_ok(), either(health)));
    let services = &shipped.setting.services;
    let sibling = services.nats_config(&services.clients.operator, "sibling")?;
    let client = Client::connect(sibling).await.context("cannot connect to NATS")?;
    let answer = client.find_community(muster_domain::GuildId::parse("1")?).await;
    let unknown = matches!(&answer, Err(error) if error.code() == Some(ErrorCode::NotFound));
    rows.push(row("communities.find over NATS", unknown, format!("{:?}", answer.err())));
    let exit_code = engine(&["stop", &container.0])?;
    rows.push(row("SIGTERM: exit code 0", exit_code == "0", exit_code));
    Ok(rows)
}

/// The last line that was said, or the error.
fn either(said: Result<String>) -> String {
    said.unwrap_or_else(|error| error.to_string()).lines().last().unwrap_or_default().to_owned()
}

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

/// The overlay, and the servers that are shipped with it.
struct Shipped {
    objects: Vec<Value>,
    setting: Setting,
}

#[derive(Debug)]
struct Pod {
    /// What follows the image's entry point.
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    /// The user that it runs as, which is also the group of its secrets.
    user: u32,
    /// The files of its secrets: path, mode and content.
    files: Vec<(PathBuf, u32, Vec<u8>)>,
}

impl Shipped {
    /// Starts the servers, runs what the runbook has an operator do before the first start, and renders the overlay.
    async fn start(worker: &Path) -> Result<Self> {
        let setting = Setting::new(worker, 3, None)?;
        let (runbook, mut shell) = (cargo::read(RUNBOOK)?, setting.shell()?);
        for title in BEFORE_THE_START {
            for script in section(&runbook, title)? {
                shell.run(&script, PATIENCE).await.with_context(|| format!("{RUNBOOK}, {title}"))?;
            }
        }
        let mut objects = parse(&render(&cargo::root().join(OVERLAY))?)?;
        let secrets = setting.services.directory.path().join("kubernetes-secrets");
        for file in fs::read_dir(secrets).context("the runbook made no Secrets")? {
            objects.extend(parse(&fs::read_to_string(file?.path())?)?);
        }
        Ok(Self { objects, setting })
    }

    fn find(&self, kind: &str, name: &str) -> Result<&Value> {
        let mut objects = self.objects.iter();
        let found = objects.find(|it| text(it, "/kind") == kind && text(it, "/metadata/name") == name);
        found.with_context(|| format!("there is no {kind} {name}"))
    }

    /// A workload of the overlay. Of its environment only the hosts' names differ, for which there is no name server here.
    fn pod(&self, kind: &str, name: &str) -> Result<Pod> {
        let pod: Value = at(self.find(kind, name)?, "/spec/template/spec")?;
        let container: Value = at(&pod, "/containers/0")?;
        let mut environment: BTreeMap<String, String> = BTreeMap::new();
        for source in list(&container, "/envFrom") {
            let map = self.find("ConfigMap", text(source, "/configMapRef/name"))?;
            environment.append(&mut at(map, "/data")?);
        }
        let given = list(&container, "/env").iter();
        environment.extend(given.map(|it| (text(it, "/name").to_owned(), text(it, "/value").to_owned())));
        if let Some(urls) = environment.get_mut("MUSTER__NATS__URLS") {
            let nodes = [0, 1, 2].map(|node| format!("tls://nats-{node}.nats.nats.svc:4222"));
            ensure!(*urls == nodes.join(","), "the overlay names {urls}, the nodes are {nodes:?}");
            urls.clone_from(&self.setting.nats_urls);
        }
        let mut files = Vec::new();
        for mount in list(&container, "/volumeMounts") {
            let volume = list(&pod, "/volumes").iter().find(|volume| volume["name"] == mount["name"]);
            let projected = &volume.context("a mount without a volume")?["projected"];
            for source in list(projected, "/sources") {
                let secret = self.find("Secret", text(source, "/secret/name"))?;
                for item in list(source, "/secret/items") {
                    let content: String = at(secret, &format!("/data/{}", text(item, "/key")))?;
                    let path = Path::new(text(mount, "/mountPath")).join(text(item, "/path"));
                    files.push((path, at(projected, "/defaultMode")?, STANDARD.decode(content)?));
                }
            }
        }
        let (arguments, user) = (at(&container, "/args")?, at(&pod, "/securityContext/runAsUser")?);
        Ok(Pod { arguments, environment, user, files })
    }
}

fn at<T: DeserializeOwned>(value: &Value, pointer: &str) -> Result<T> {
    let found = value.pointer(pointer).with_context(|| format!("there is no {pointer}"))?;
    Ok(serde_json::from_value(found.clone())?)
}

impl Pod {
    /// Writes its files below `root` as the kubelet does: each a link through `..data`, root's and readable by the pod's group.
    fn lay_out(&self, root: &Path) -> Result<()> {
        for (path, mode, content) in &self.files {
            let link = root.join(path.strip_prefix("/").unwrap_or(path));
            let (mounted, name) = link.parent().zip(link.file_name()).context("a file without a name")?;
            let version = mounted.join("..2026_11_26");
            if !version.is_dir() {
                fs::create_dir_all(&version)?;
                symlink("..2026_11_26", mounted.join("..data"))?;
            }
            let file = version.join(name);
            fs::write(&file, content)?;
            fs::set_permissions(&file, Permissions::from_mode(mode | ((mode & 0o400) >> 3)))?;
            if Uid::effective().is_root() {
                chown(&file, Some(Uid::from_raw(0)), Some(Gid::from_raw(self.user)))?;
            }
            symlink(Path::new("..data").join(name), &link)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use nix::sys::signal::Signal;
    use xtask::services::Process;

    use super::*;
    use crate::manifests::has_kubectl;

    #[test]
    fn an_image_breaks_what_is_planted_in_it_and_nothing_else() {
        let planted = include_str!("image/planted.toml");
        for (plant, breaks) in toml::from_str::<BTreeMap<String, Vec<String>>>(planted).unwrap() {
            let directory = tempfile::tempdir().unwrap();
            let script = format!("{}{plant}", include_str!("image/plant.sh"));
            let status = Command::new("bash").args(["-c", &script]).current_dir(&directory).status();
            assert!(status.unwrap().success(), "{plant}");
            let rows = inspect(&directory.path().join(ARCHIVE)).unwrap();
            let broken = rows.iter().filter(|row| row.1 == Verdict::Failed);
            let broken: Vec<&str> = broken.map(|row| row.0).collect();
            assert_eq!(broken, breaks, "{plant}");
        }
    }

    /// The pod as a process of the pod's user, its files below a root of its own.
    fn command(program: &Path, pod: &Pod, root: &Path) -> Command {
        fs::create_dir(root).unwrap();
        pod.lay_out(root).unwrap();
        let mut command = Command::new(program);
        command.args(&pod.arguments).env_clear();
        for (variable, value) in &pod.environment {
            let below = root.join(value.trim_start_matches('/'));
            command.env(variable, if value.starts_with('/') { below.into_os_string() } else { value.into() });
        }
        if Uid::effective().is_root() {
            command.uid(pod.user).gid(pod.user);
        }
        command
    }

    #[tokio::test]
    async fn the_production_overlay_gets_ready_beside_the_shipped_nats() {
        if !has_kubectl() {
            return assert_eq!(Verdict::NotRun.enforced(), Verdict::NotRun);
        }
        let worker = cargo::build_worker().await.unwrap();
        let shipped = Shipped::start(&worker).await.unwrap();
        let directory = &shipped.setting.services.directory;
        // Where the pod's user can run it, too.
        let program = directory.path().join("muster-worker");
        fs::copy(&worker, &program).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();

        let job = shipped.pod("Job", "muster-migrate").unwrap();
        assert!(job.environment.keys().all(|name| !name.starts_with("MUSTER__NATS__")), "{job:?}");
        let migrated = command(&program, &job, &directory.path().join("migrate")).output().unwrap();
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));

        let (deployment, address) =
            (shipped.pod("Deployment", "muster-worker").unwrap(), free_address().unwrap());
        let mut serve = command(&program, &deployment, &directory.path().join("worker"));
        serve.env("MUSTER__HTTP__ADDRESS", address.to_string());
        let mut process = Process::start(directory, "as-shipped", &mut serve, Signal::SIGTERM).unwrap();
        process.wait_until_ok(PATIENCE, address, "/readyz").unwrap();
    }
}
