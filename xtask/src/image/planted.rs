//! Images in docker's form, made for tests.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A file of a layer.
#[derive(Clone, Copy)]
pub(crate) struct File<'a> {
    pub(crate) name: &'a str,
    pub(crate) mode: u32,
    pub(crate) content: &'a [u8],
}

/// Makes the archive of an image of these layers and this configuration.
pub(crate) fn archive(directory: &Path, layers: &[&[File<'_>]], config: &Value) -> Result<PathBuf> {
    let tar = |arguments: &[&str], from: &Path| -> Result<()> {
        let status = Command::new("tar").args(arguments).current_dir(from).status().context("no tar")?;
        ensure!(status.success(), "tar ended with {status}");
        Ok(())
    };
    let (mut names, mut diffs) = (Vec::new(), Vec::new());
    for (number, files) in layers.iter().enumerate() {
        let (name, from) = (format!("{number}.tar"), directory.join(number.to_string()));
        fs::create_dir(&from)?;
        let mut arguments = vec!["-cf".to_owned(), format!("../{name}")];
        for file in *files {
            fs::write(from.join(file.name), file.content)?;
            fs::set_permissions(from.join(file.name), fs::Permissions::from_mode(file.mode))?;
            arguments.push(file.name.to_owned());
        }
        tar(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), &from)?;
        let digest: String = Sha256::digest(fs::read(directory.join(&name))?)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        diffs.push(format!("sha256:{digest}"));
        names.push(name);
    }
    let history: Vec<Value> = layers.iter().map(|_| json!({"created_by": "COPY"})).collect();
    let whole = json!({
        "architecture": "amd64", "os": "linux", "config": config, "history": history,
        "rootfs": {"type": "layers", "diff_ids": diffs},
    });
    fs::write(directory.join("config.json"), whole.to_string())?;
    let manifest = json!([{"Config": "config.json", "RepoTags": ["planted:1"], "Layers": names}]);
    fs::write(directory.join("manifest.json"), manifest.to_string())?;
    let mut arguments = vec!["-cf", "image.tar", "manifest.json", "config.json"];
    arguments.extend(names.iter().map(String::as_str));
    tar(&arguments, directory)?;
    Ok(directory.join("image.tar"))
}
