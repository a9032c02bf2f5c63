//! From checked settings to connections' configurations: secrets and certificates are read here.

use std::io::Read;
use std::sync::Arc;

use muster_domain::TlsPolicy;
use muster_messaging::connection::{Auth, NatsConfig, Transport};
use muster_messaging::tls::material::{Material, TlsFiles};
use muster_messaging::tls::server::Servers;
use muster_storage::StoreConfig;
use secrecy::SecretString;

use crate::settings::{AuthFrom, Database, Nats, Secret, Settings, SettingsError};

/// The most bytes of a secret's file: NATS credentials are a few kilobytes.
const MAX_SECRET: u64 = 64 * 1024;

/// What both connections need, and the certificates that each was given.
pub(crate) struct Configured {
    pub(crate) nats: NatsConfig,
    pub(crate) nats_material: Option<Arc<Material>>,
    pub(crate) database: StoreConfig,
    pub(crate) database_material: Option<Arc<Material>>,
}

pub(crate) fn configure(settings: &Settings) -> Result<Configured, SettingsError> {
    let (nats, nats_material) = nats(&settings.nats)?;
    let (database, database_material) = database(&settings.database, settings.policy)?;
    Ok(Configured { nats, nats_material, database, database_material })
}

pub(crate) fn nats(settings: &Nats) -> Result<(NatsConfig, Option<Arc<Material>>), SettingsError> {
    let load = || {
        Material::load(&settings.tls, settings.minimum_tls)
            .map(Arc::new)
            .map_err(|error| SettingsError::new(format!("nats: {error}")))
    };
    let (transport, material) = match settings.servers.clone() {
        Servers::Tls(servers) => {
            let material = load()?;
            (Transport::Tls { servers, material: Arc::clone(&material) }, Some(material))
        }
        Servers::Plaintext(servers) => {
            let material = if settings.tls == TlsFiles::default() { None } else { Some(load()?) };
            (Transport::Plaintext { servers, material: material.clone() }, material)
        }
    };
    let mut config = NatsConfig::new(transport, concat!("muster-worker ", env!("CARGO_PKG_VERSION")));
    config.tls_first = settings.tls_first;
    config.give_up_after = settings.give_up_after;
    config.auth = match &settings.auth {
        AuthFrom::Nothing => Auth::None,
        AuthFrom::UserPassword(user, secret) => {
            Auth::UserPassword { user: user.clone(), password: read(secret)? }
        }
        AuthFrom::Token(secret) => Auth::Token(read(secret)?),
        AuthFrom::NKey(secret) => Auth::NKey(read(secret)?),
        AuthFrom::Credentials(secret) => Auth::Credentials(read(secret)?),
    };
    Ok((config, material))
}

fn database(
    settings: &Database,
    policy: TlsPolicy,
) -> Result<(StoreConfig, Option<Arc<Material>>), SettingsError> {
    let material = Material::load(&settings.tls, settings.minimum_tls)
        .map_err(|error| SettingsError::new(format!("database: {error}")))?;
    let config = StoreConfig::new(&read(&settings.url)?, policy, Some(material.client_config()))
        .map_err(|error| SettingsError::new(format!("database.url: {error}")))?
        .pool_size(settings.pool_size)
        .acquire_timeout(settings.acquire_timeout)
        .query_timeout(settings.query_timeout);
    let material = config.is_encrypted().then(|| Arc::new(material));
    Ok((config, material))
}

fn read(secret: &Secret) -> Result<SecretString, SettingsError> {
    match secret {
        Secret::Value(value) => Ok(value.clone()),
        Secret::File { key, path } => {
            let mut text = String::new();
            let read = std::fs::File::open(path)
                .and_then(|file| file.take(MAX_SECRET.saturating_add(1)).read_to_string(&mut text));
            match read {
                Ok(length) if u64::try_from(length).is_ok_and(|length| length > MAX_SECRET) => Err(
                    SettingsError::new(format!("{key}: {} has more than {MAX_SECRET} bytes", path.display())),
                ),
                // An editor's newline at the end is not part of the secret.
                Ok(_) => Ok(SecretString::from(text.trim_end_matches(['\r', '\n']))),
                Err(error) => {
                    Err(SettingsError::new(format!("{key}: {} cannot be read: {error}", path.display())))
                }
            }
        }
    }
}
