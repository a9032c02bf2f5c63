//! What of the dependencies must be there once.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use muster_messaging::tls::material::{Material, MinimumVersion, TlsFiles};
use xtask::services::{Authority, RunDirectory};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every Rust source below a directory, without what is built.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn one_file_names_the_archived_pem_reader() {
    let mut all = Vec::new();
    sources(&workspace().join("crates"), &mut all);
    sources(&workspace().join("xtask"), &mut all);
    assert!(all.len() > 50, "the workspace's sources are found");
    // In two parts, or this file would be a second one.
    let name = concat!("rustls", "_pemfile");
    let users: Vec<_> =
        all.iter().filter(|path| std::fs::read_to_string(path).unwrap().contains(name)).collect();
    assert!(matches!(&users[..], [one] if one.ends_with("messaging/src/tls/pem.rs")), "{users:?}");
}

/// The lock holds what any feature of any member could bring in, so what is not in it is in no build.
#[test]
fn one_crypto_provider_can_be_built_and_it_is_ring() {
    let lock = std::fs::read_to_string(workspace().join("Cargo.lock")).unwrap();
    let packages = |name: &str| lock.lines().filter(|line| *line == format!("name = \"{name}\"")).count();
    assert_eq!(packages("rustls"), 1);
    assert_eq!(packages("ring"), 1);
    for other in [
        "aws-lc-rs",
        "aws-lc-sys",
        "aws-lc-fips-sys",
        "boring",
        "boring-sys",
        "graviola",
        "native-tls",
        "openssl",
        "openssl-sys",
        "rustls-graviola",
        "rustls-mbedcrypto-provider",
        "rustls-openssl",
        "rustls-rustcrypto",
        "rustls-symcrypt",
        "rustls-wolfcrypt-provider",
        "schannel-sys",
    ] {
        assert_eq!(packages(other), 0, "{other}");
    }
}

/// That it compiles is seen whenever the workspace is built.
#[test]
fn a_sibling_needs_one_dependency_on_muster_and_one_use_line() {
    let sibling = workspace().join("crates/messaging/tests/sibling");
    let manifest = std::fs::read_to_string(sibling.join("Cargo.toml")).unwrap();
    let (_, dependencies) = manifest.split_once("[dependencies]").unwrap();
    assert_eq!(dependencies.trim(), "muster-messaging.workspace = true");
    let source = std::fs::read_to_string(sibling.join("src/lib.rs")).unwrap();
    assert_eq!(source.lines().filter(|line| line.trim_start().starts_with("use ")).count(), 1);
    assert!(!source.contains("muster_messaging::api::") && !source.contains("muster_domain"));
}

#[test]
fn the_provider_that_is_used_is_ring() {
    let directory = RunDirectory::create().unwrap();
    let authority = Authority::create(directory.path(), "ca").unwrap();
    let files = TlsFiles { ca: Some(authority.certificate_file().to_owned()), ..TlsFiles::default() };
    let material = Material::load(&files, MinimumVersion::Tls13).unwrap();
    let config = material.client_config();
    assert_eq!(format!("{:?}", config.crypto_provider().secure_random), "Ring");
    assert!(config.crypto_provider().cipher_suites.len() > 2);
}
