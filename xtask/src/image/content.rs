//! What is in the image, as it would be pushed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use xtask::tool::output;

use super::Row;
use crate::description::{list, text};

/// The section into which cargo-auditable writes the crates.
const SECTION: &[u8] = b".dep-v0";

/// Looks at the layers and the configuration as they would be pushed.
pub(super) fn inspect(archive: &Path) -> Result<Vec<Row>> {
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
