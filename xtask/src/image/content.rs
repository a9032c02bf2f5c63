//! What is in the image, as it would be pushed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::USER;

/// What it may weigh, in bytes.
const LARGEST: u64 = 20 * 1000 * 1000;
const MOST_LAYERS: usize = 4;
/// The one file in it.
const PROGRAM: &str = "muster-worker";
/// The name of the section into which cargo-auditable writes the crates.
const SECTION: &[u8] = b".dep-v0";

/// The digest of the image's configuration, which holds those of its layers.
pub(super) fn digest(archive: &Path) -> Result<String> {
    let mut command = Command::new("tar");
    let output = command.arg("-xOf").arg(archive).arg("manifest.json").output()?;
    ensure!(output.status.success(), "tar cannot read {}", archive.display());
    let manifest: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let config = manifest.pointer("/0/Config").and_then(serde_json::Value::as_str);
    let config = config.context("the image has no configuration")?;
    let digest = config.rsplit('/').next().unwrap_or(config).trim_end_matches(".json");
    Ok(digest.to_owned())
}

/// Looks at the layers and the configuration as they would be pushed.
pub(super) fn inspect(archive: &Path, say: &mut impl FnMut(&str, bool, String)) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let tar = |arguments: &[&str], file: &Path, member: &[&str]| -> Result<Vec<u8>> {
        let mut command = Command::new("tar");
        let output = command.args(arguments).arg(file).args(member).current_dir(scratch.path()).output()?;
        ensure!(output.status.success(), "tar cannot read {}", file.display());
        Ok(output.stdout)
    };
    tar(&["-xf"], archive, &[])?;
    let json = |name: &str| -> Result<serde_json::Value> {
        Ok(serde_json::from_slice(&fs::read(scratch.path().join(name))?)?)
    };
    let manifest = json("manifest.json")?;
    let text = |pointer: &str| manifest.pointer(pointer).and_then(serde_json::Value::as_str);
    let config = json(text("/0/Config").context("the image has no configuration")?)?;
    let layers = manifest.pointer("/0/Layers").and_then(serde_json::Value::as_array);
    let layers: Vec<&str> =
        layers.context("the image has no layers")?.iter().filter_map(serde_json::Value::as_str).collect();
    let (mut size, mut content, mut audited) = (0, String::new(), false);
    for layer in &layers {
        let file = scratch.path().join(layer);
        size += fs::metadata(&file)?.len();
        let listed = String::from_utf8_lossy(&tar(&["-tvf"], &file, &[])?).into_owned();
        if listed.lines().any(|line| line.ends_with(&format!(" {PROGRAM}"))) {
            let program = tar(&["-xOf"], &file, &[PROGRAM])?;
            audited = program.windows(SECTION.len()).any(|bytes| bytes == SECTION);
        }
        content.push_str(&listed);
    }
    let megabytes = format!("{}.{} MB", size / 1_000_000, size / 100_000 % 10);
    say("at most 20 MB, unpacked", size <= LARGEST, megabytes);
    say("at most 4 layers", layers.len() <= MOST_LAYERS, layers.len().to_string());
    let files: Vec<&str> = content.lines().collect();
    let only = matches!(files.as_slice(), [one] if one.starts_with("-r-xr-xr-x") && one.ends_with(&format!(" {PROGRAM}")));
    say("nothing but the program, which nobody may write", only, files.join("\n"));
    let seen = if audited { "listed" } else { "not listed: scanners would find nothing" };
    say("its crates, listed in it by cargo-auditable", audited, seen.to_owned());
    let of_config =
        |key: &str| config.pointer(&format!("/config/{key}")).map(ToString::to_string).unwrap_or_default();
    let user = of_config("User");
    say("a numeric user, not root", user == format!("\"{USER}:{USER}\""), user);
    let entry = of_config("Entrypoint");
    say("the program itself, not a shell", entry == format!("[\"/{PROGRAM}\"]"), entry);
    let health = of_config("Healthcheck/Test");
    say("a health check without a shell", health.contains("\"CMD\",\"/muster-worker\",\"health\""), health);
    let labels = of_config("Labels");
    say("labels of the OCI", labels.contains("org.opencontainers.image.revision"), revision_of(&config));
    Ok(())
}

fn revision_of(config: &serde_json::Value) -> String {
    let label = config.pointer("/config/Labels/org.opencontainers.image.revision");
    format!("revision {}", label.and_then(serde_json::Value::as_str).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::super::planted::{File, archive};
    use super::*;

    const RIGHT: File<'static> = File { name: PROGRAM, mode: 0o555, content: b"\x7fELF .dep-v0 " };

    fn right() -> Value {
        json!({
            "User": "65532:65532",
            "Entrypoint": ["/muster-worker"],
            "Healthcheck": {"Test": ["CMD", "/muster-worker", "health"]},
            "Labels": {"org.opencontainers.image.revision": "0"},
        })
    }

    fn broken(layers: &[&[File<'_>]], config: &Value) -> BTreeSet<String> {
        let directory = tempfile::tempdir().unwrap();
        let image = archive(directory.path(), layers, config).unwrap();
        let mut broken = BTreeSet::new();
        inspect(&image, &mut |what, holds, _| {
            if !holds {
                broken.insert(what.to_owned());
            }
        })
        .unwrap();
        broken
    }

    #[test]
    fn every_planted_fault_is_found() {
        assert_eq!(broken(&[&[RIGHT]], &right()), BTreeSet::new());
        let nothing_else = "nothing but the program, which nobody may write";
        let large = vec![1; 21_000_000];
        let layers: [(&[&[File<'_>]], &str); 6] = [
            (&[&[RIGHT, File { name: "sh", mode: 0o555, content: b"" }]], nothing_else),
            (&[&[File { mode: 0o755, ..RIGHT }]], nothing_else),
            (&[&[File { name: "tmp", ..RIGHT }]], nothing_else),
            (&[&[File { content: &large, ..RIGHT }]], "at most 20 MB, unpacked"),
            (&[&[RIGHT], &[RIGHT], &[RIGHT], &[RIGHT], &[RIGHT]], "at most 4 layers"),
            (&[&[File { content: b"\x7fELF", ..RIGHT }]], "its crates, listed in it by cargo-auditable"),
        ];
        for (layers, rule) in layers {
            let found = broken(layers, &right());
            assert!(found.contains(rule), "found {found:?}, not {rule}");
        }
        let configurations = [
            ("User", json!("0:0"), "a numeric user, not root"),
            ("User", json!("nonroot"), "a numeric user, not root"),
            ("User", Value::Null, "a numeric user, not root"),
            ("Entrypoint", json!(["/bin/sh", "-c", "/muster-worker"]), "the program itself, not a shell"),
            ("Healthcheck", Value::Null, "a health check without a shell"),
            ("Labels", Value::Null, "labels of the OCI"),
        ];
        for (key, value, rule) in configurations {
            let mut config = right();
            config[key] = value;
            let found = broken(&[&[RIGHT]], &config);
            assert_eq!(found, BTreeSet::from([rule.to_owned()]));
        }
    }
}
