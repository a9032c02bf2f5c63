//! What is in the image, as it would be pushed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use xtask::tool::output_bytes;

use super::Row;

/// The section into which cargo-auditable writes the crates.
const SECTION: &[u8] = b".dep-v0";

/// Looks at the layers and the configuration as they would be pushed.
pub(super) fn inspect(archive: &Path) -> Result<Vec<Row>> {
    let scratch = tempfile::tempdir()?;
    let directory = scratch.path().display().to_string();
    tar(&["-C", &directory, "-xf"], archive, &[])?;
    let read = |name: &str| fs::read(scratch.path().join(name)).with_context(|| format!("it has no {name}"));
    let manifest: Value = serde_json::from_slice(&read("manifest.json")?)?;
    let config = manifest.pointer("/0/Config").and_then(Value::as_str).context("it has no configuration")?;
    let config: Value = serde_json::from_slice(&read(config)?)?;
    let layers = manifest.pointer("/0/Layers").and_then(Value::as_array).context("it has no layers")?;
    let (mut size, mut files, mut audited) = (0, String::new(), false);
    for layer in layers.iter().filter_map(Value::as_str).map(|layer| scratch.path().join(layer)) {
        size += fs::metadata(&layer)?.len();
        files.push_str(&String::from_utf8_lossy(&tar(&["-tvf"], &layer, &[])?));
        let program = tar(&["-xOf"], &layer, &["muster-worker"]).unwrap_or_default();
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
    let revision = config.pointer("/config/Labels/org.opencontainers.image.revision").unwrap_or(&Value::Null);
    rows.push(("labels of the OCI", revision.is_string(), format!("revision {revision}")));
    Ok(rows)
}

fn tar(options: &[&str], archive: &Path, members: &[&str]) -> Result<Vec<u8>> {
    output_bytes(Command::new("tar").args(options).arg(archive).args(members))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn an_image_breaks_what_is_planted_in_it_and_nothing_else() {
        let images: BTreeMap<String, Vec<String>> = toml::from_str(include_str!("planted.toml")).unwrap();
        for (plant, breaks) in images {
            let directory = tempfile::tempdir().unwrap();
            let script = format!("{}{plant}", include_str!("plant.sh"));
            let status = Command::new("bash").args(["-c", &script]).current_dir(&directory).status();
            assert!(status.unwrap().success(), "{plant}");
            let rows = inspect(&directory.path().join(crate::image::ARCHIVE)).unwrap();
            let broken: Vec<&str> = rows.iter().filter(|row| !row.1).map(|row| row.0).collect();
            assert_eq!(broken, breaks, "{plant}");
        }
    }
}
