//! What a container of the rendered manifests would find: its arguments, its environment, and its files with their modes.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::unistd::{Gid, Uid, chown};
use serde_json::Value;

use super::rules::{list, number, text};

/// The first container of a workload.
#[derive(Debug)]
pub(crate) struct Pod {
    /// What follows the image's entry point.
    pub(crate) arguments: Vec<String>,
    /// Every variable.
    pub(crate) environment: BTreeMap<String, String>,
    /// The user that it runs as.
    pub(crate) user: u32,
    /// Whom its secrets are given to.
    group: u32,
    volumes: Vec<Volume>,
}

/// What is mounted from secrets at one place.
#[derive(Debug)]
struct Volume {
    path: String,
    mode: u32,
    files: Vec<(String, Vec<u8>)>,
}

impl Pod {
    /// The workload of this kind and name among rendered objects and secrets.
    ///
    /// # Errors
    /// When it is not there, names a map or secret that is not, or has what is not understood here.
    pub(crate) fn read(objects: &[Value], kind: &str, name: &str) -> Result<Self> {
        let workload = find(objects, kind, name)?;
        let pod = workload.pointer("/spec/template/spec").context("a workload without a pod")?;
        let container = list(pod, "/containers").first().context("a pod without a container")?;
        let mut volumes = Vec::new();
        for mount in list(container, "/volumeMounts") {
            let named = text(mount, "/name");
            let volume = list(pod, "/volumes").iter().find(|volume| text(volume, "/name") == named);
            let volume = volume.with_context(|| format!("no volume {named}"))?;
            if volume.pointer("/emptyDir").is_none() {
                volumes.push(read_volume(objects, volume, text(mount, "/mountPath"))?);
            }
        }
        let arguments =
            list(container, "/args").iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let id = |pointer: &str| -> Result<u32> {
            let number = number(pod, pointer).with_context(|| format!("a pod without {pointer}"))?;
            u32::try_from(number).context("a user's id beyond what the system knows")
        };
        Ok(Self {
            arguments,
            environment: environment(objects, container)?,
            user: id("/securityContext/runAsUser")?,
            group: id("/securityContext/fsGroup")?,
            volumes,
        })
    }

    /// Writes its files below `root` as the kubelet does: each a link through `..data`, of root's and its group's, with the
    /// mode of the volume, which the group is given too. Who is not root keeps them for itself.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn lay_out(&self, root: &Path) -> Result<()> {
        for Volume { path, mode, files } in &self.volumes {
            let mounted = root.join(path.trim_start_matches('/'));
            let version = mounted.join("..2026_11_26");
            fs::create_dir_all(&version)?;
            symlink("..2026_11_26", mounted.join("..data"))?;
            for (name, content) in files {
                let file = version.join(name);
                fs::write(&file, content)?;
                fs::set_permissions(&file, Permissions::from_mode(mode | ((mode & 0o400) >> 3)))?;
                if Uid::effective().is_root() {
                    chown(&file, Some(Uid::from_raw(0)), Some(Gid::from_raw(self.group)))?;
                }
                symlink(Path::new("..data").join(name), mounted.join(name))?;
            }
        }
        Ok(())
    }
}

fn find<'v>(objects: &'v [Value], kind: &str, name: &str) -> Result<&'v Value> {
    let mut all = objects.iter();
    let found = all.find(|it| text(it, "/kind") == kind && text(it, "/metadata/name") == name);
    found.with_context(|| format!("there is no {kind} {name}"))
}

fn environment(objects: &[Value], container: &Value) -> Result<BTreeMap<String, String>> {
    let mut environment = BTreeMap::new();
    for source in list(container, "/envFrom") {
        let name = source.pointer("/configMapRef/name").and_then(Value::as_str);
        let map = find(objects, "ConfigMap", name.context("a source of variables that is no ConfigMap")?)?;
        for (key, value) in map.pointer("/data").and_then(Value::as_object).into_iter().flatten() {
            environment.insert(key.clone(), value.as_str().context("a value that is no text")?.to_owned());
        }
    }
    for variable in list(container, "/env") {
        let value =
            variable.pointer("/value").and_then(Value::as_str).context("a variable without a value")?;
        environment.insert(text(variable, "/name").to_owned(), value.to_owned());
    }
    Ok(environment)
}

fn read_volume(objects: &[Value], volume: &Value, path: &str) -> Result<Volume> {
    let Some(projected) = volume.pointer("/projected") else {
        bail!("the volume at {path} is neither projected nor an emptyDir");
    };
    let mode = number(projected, "/defaultMode").and_then(|mode| u32::try_from(mode).ok());
    let mut files = Vec::new();
    for source in list(projected, "/sources") {
        let name = text(source, "/secret/name");
        let secret = find(objects, "Secret", name)?;
        for item in list(source, "/secret/items") {
            ensure!(item.pointer("/mode").is_none(), "a mode of its own is not understood here");
            let key = text(item, "/key");
            let content = secret.pointer("/data").and_then(|data| data.get(key)).and_then(Value::as_str);
            let content = content.with_context(|| format!("the secret {name} has no {key}"))?;
            files.push((text(item, "/path").to_owned(), STANDARD.decode(content)?));
        }
    }
    Ok(Volume { path: path.to_owned(), mode: mode.context("a volume without a mode")?, files })
}
