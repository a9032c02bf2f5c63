//! The production overlay beside the servers that are shipped with it, prepared as the runbook says.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::unistd::{Gid, Uid, chown};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cargo;
use crate::description::{list, text};
use crate::manifests::{parse, render};
use crate::runbook::{Setting, section};

const OVERLAY: &str = "infra/k8s/overlays/production";
/// The runbook, and those of its sections that come before the first start.
const RUNBOOK: &str = "docs/runbooks/operations.md";
const BEFORE_THE_START: [&str; 4] =
    ["Operations", "1.1 Prepare the database", "1.2 Make the streams", "1.3 Make the Secrets"];
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that a pod of the overlay needs.
pub(crate) struct Shipped {
    objects: Vec<Value>,
    pub(crate) setting: Setting,
}

/// The container of a workload.
#[derive(Debug)]
pub(crate) struct Pod {
    /// What follows the image's entry point.
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: BTreeMap<String, String>,
    /// The user that it runs as, which is also the group of its secrets.
    pub(crate) user: u32,
    /// The files of its secrets: path, mode and content.
    files: Vec<(PathBuf, u32, Vec<u8>)>,
}

impl Shipped {
    /// Starts the servers, runs what the runbook has an operator do before the first start, and renders the overlay.
    pub(crate) async fn start(worker: &Path) -> Result<Self> {
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
    pub(crate) fn pod(&self, kind: &str, name: &str) -> Result<Pod> {
        let pod: Value = at(self.find(kind, name)?, "/spec/template/spec")?;
        let container: Value = at(&pod, "/containers/0")?;
        let mut environment: BTreeMap<String, String> = BTreeMap::new();
        for source in list(&container, "/envFrom") {
            let map = self.find("ConfigMap", text(source, "/configMapRef/name"))?;
            environment.append(&mut at(map, "/data")?);
        }
        for variable in list(&container, "/env") {
            environment.insert(text(variable, "/name").to_owned(), text(variable, "/value").to_owned());
        }
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
    /// Writes its files below `root` as the kubelet does: each a link through `..data`, owned by root and the pod's group,
    /// which may read what root may. Who is not root keeps them.
    pub(crate) fn lay_out(&self, root: &Path) -> Result<()> {
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
    use std::process::Command;

    use crate::verdict::Verdict;
    use nix::sys::signal::Signal;
    use xtask::services::{Process, free_address};

    use super::*;
    use crate::manifests::has_kubectl;

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
            assert_eq!(Verdict::NotRun.enforced(), Verdict::NotRun);
            return;
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
