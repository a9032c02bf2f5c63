//! From checked settings to connections' configurations: secrets and certificates are read here.

use std::sync::Arc;

use muster_messaging::connection::{Auth, NatsConfig, Transport};
use muster_messaging::tls::material::{Material, TlsFiles};
use muster_messaging::tls::server::Servers;
use muster_storage::StoreConfig;

use crate::failure::chain;
use crate::settings::{AuthFrom, Database, Nats, Settings, SettingsError};

/// What both connections need, and the certificates that each was given.
pub(crate) struct Configured {
    pub(crate) nats: NatsConfig,
    pub(crate) nats_material: Option<Arc<Material>>,
    pub(crate) database: StoreConfig,
    pub(crate) database_material: Option<Arc<Material>>,
}

pub(crate) fn configure(settings: &Settings) -> Result<Configured, SettingsError> {
    let (nats, nats_material) = nats(&settings.nats)?;
    let (database, database_material) = database(&settings.database)?;
    Ok(Configured { nats, nats_material, database, database_material })
}

pub(crate) fn nats(settings: &Nats) -> Result<(NatsConfig, Option<Arc<Material>>), SettingsError> {
    let load = || {
        Material::load(&settings.tls, settings.minimum_tls)
            .map(Arc::new)
            .map_err(|error| SettingsError::new(format!("nats: {}", chain(&error))))
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
    config.auth = auth(&settings.auth)?;
    Ok((config, material))
}

fn auth(from: &AuthFrom) -> Result<Auth, SettingsError> {
    let (auth, secret) = match from {
        AuthFrom::Nothing => return Ok(Auth::None),
        AuthFrom::UserPassword(user, secret) => {
            (Auth::UserPassword { user: user.clone(), password: secret.line()? }, secret)
        }
        AuthFrom::Token(secret) => (Auth::Token(secret.line()?), secret),
        AuthFrom::NKey(secret) => (Auth::NKey(secret.line()?), secret),
        AuthFrom::Credentials(secret) => (Auth::Credentials(secret.document()?), secret),
    };
    auth.check().map_err(|error| secret.refused(format!("is refused: {error}")))?;
    Ok(auth)
}

pub(crate) fn database(settings: &Database) -> Result<(StoreConfig, Option<Arc<Material>>), SettingsError> {
    let material = Material::load(&settings.tls, settings.minimum_tls)
        .map_err(|error| SettingsError::new(format!("database: {}", chain(&error))))?;
    let config = StoreConfig::new(&settings.url.line()?, settings.policy, Some(material.client_config()))
        .map_err(|error| settings.url.refused(error))?
        .pool_size(settings.pool_size)
        .acquire_timeout(settings.acquire_timeout)
        .query_timeout(settings.query_timeout);
    let material = config.is_encrypted().then(|| Arc::new(material));
    Ok((config, material))
}
