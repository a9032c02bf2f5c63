//! The production overlay beside the servers that are shipped with it, made ready as the runbook says.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cargo;
use crate::manifests::pod::Pod;
use crate::manifests::render;
use crate::runbook::{Setting, Shell, section};

/// The kustomization that is applied to production.
const OVERLAY: &str = "infra/k8s/overlays/production";
/// The runbook, and those of its sections that come before the first start.
const RUNBOOK: &str = "docs/runbooks/operations.md";
const BEFORE_THE_START: [&str; 4] =
    ["Operations", "1.1 Prepare the database", "1.2 Make the streams", "1.3 Make the Secrets"];
/// Where the runbook leaves the Secrets, below `$STATE`.
const SECRETS: &str = "kubernetes-secrets";
/// How many nodes NATS has in production, and the worker is configured with.
const NODES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that a pod of the overlay needs.
pub(crate) struct Shipped {
    objects: Vec<Value>,
    pub(crate) setting: Setting,
}

impl Shipped {
    /// Starts the servers, runs what the runbook has an operator do before the first start, and renders the overlay.
    pub(crate) async fn start(worker: &Path) -> Result<Self> {
        let kubectl = render::kubectl().context("kubectl is not on this machine")?;
        let root = cargo::root();
        let setting = Setting::new(worker, NODES, None)?;
        let runbook = fs::read_to_string(root.join(RUNBOOK))?;
        let directory = setting.directory().path().to_owned();
        let mut shell = Shell::start(setting.variables(), &directory)?;
        for title in BEFORE_THE_START {
            for script in section(&runbook, title)? {
                let ran = shell.run(&script, PATIENCE).await?;
                ensure!(ran.succeeded, "{RUNBOOK}, {title}: it failed, having printed:\n{}", ran.printed);
            }
        }
        let mut objects = render::objects(&kubectl, &root.join(OVERLAY))?;
        for file in fs::read_dir(directory.join(SECRETS)).context("the runbook made no Secrets")? {
            objects.extend(render::parse(&fs::read_to_string(file?.path())?)?);
        }
        Ok(Self { objects, setting })
    }

    /// A workload of the overlay. Of its environment only the hosts' names differ, for which there is no name server here.
    pub(crate) fn pod(&self, kind: &str, name: &str) -> Result<Pod> {
        let mut pod = Pod::read(&self.objects, kind, name)?;
        if let Some(urls) = pod.environment.get_mut("MUSTER__NATS__URLS") {
            *urls = self.reach(urls)?;
        }
        Ok(pod)
    }

    /// The URLs of the nodes here in place of those of the cluster, each of which must be a node's.
    fn reach(&self, urls: &str) -> Result<String> {
        let here = self.setting.nats_urls();
        let named: Vec<&str> = urls.split(',').collect();
        let wanted: Vec<String> =
            (0..here.len()).map(|number| format!("tls://nats-{number}.nats.nats.svc:4222")).collect();
        ensure!(named == wanted, "the overlay names {urls}, the nodes are {}", wanted.join(","));
        Ok(here.join(","))
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::net::SocketAddr;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::path::PathBuf;
    use std::process::Command;

    use nix::sys::signal::Signal;
    use nix::unistd::Uid;
    use xtask::services::Process;
    use xtask::worker::{free_address, get};

    use super::*;

    async fn worker() -> PathBuf {
        match env::var_os("MUSTER_TEST_WORKER") {
            Some(program) => program.into(),
            None => cargo::build_worker().await.unwrap(),
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
        if render::kubectl().is_none() {
            println!("NOT RUN: no kubectl");
            assert!(env::var_os("GITHUB_ACTIONS").is_none(), "no kubectl");
            return;
        }
        let worker = worker().await;
        let shipped = Shipped::start(&worker).await.unwrap();
        let directory = shipped.setting.directory();
        // Where the pod's user can run it, too.
        let program = directory.path().join("muster-worker");
        fs::copy(&worker, &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();

        let job = shipped.pod("Job", "muster-migrate").unwrap();
        assert!(job.environment.keys().all(|name| !name.starts_with("MUSTER__NATS__")), "{job:?}");
        let migrated = command(&program, &job, &directory.path().join("migrate")).output().unwrap();
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));

        let deployment = shipped.pod("Deployment", "muster-worker").unwrap();
        let address: SocketAddr = free_address().unwrap();
        let mut serve = command(&program, &deployment, &directory.path().join("worker"));
        serve.env("MUSTER__HTTP__ADDRESS", address.to_string());
        let mut process = Process::start(directory, "as-shipped", &mut serve, Signal::SIGTERM).unwrap();
        let ready = process
            .wait_until(PATIENCE, || get(address, "/readyz").ok().filter(|(status, _)| *status == 200));
        ready.unwrap();
    }
}
