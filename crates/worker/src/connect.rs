//! From checked settings to connections' configurations: secrets and certificates are read here.

use std::sync::{Arc, Once};

use muster_domain::TlsPolicy;
use muster_messaging::connection::{Credentials, NatsConfig, Transport, TransportError};
use muster_messaging::tls::material::Material;
use muster_storage::StoreConfig;

use crate::chain::chain;
use crate::settings::{Database, Login, Nats, Secret, Settings, SettingsError};

/// One of the two servers that the worker connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Server {
    Nats,
    Postgres,
}

impl Server {
    /// Its name in the log and the metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::Postgres => "postgres",
        }
    }
}

/// The configurations of both connections, and the certificates for PostgreSQL.
pub(crate) struct Configured {
    pub(crate) nats: NatsConfig,
    pub(crate) database: StoreConfig,
    pub(crate) database_material: Option<Arc<Material>>,
}

impl Configured {
    /// The certificates that each connection was given.
    pub(crate) fn materials(&self) -> [(Server, Option<Arc<Material>>); 2] {
        [
            (Server::Nats, self.nats.transport.material().cloned()),
            (Server::Postgres, self.database_material.clone()),
        ]
    }
}

pub(crate) fn configure(settings: &Settings) -> Result<Configured, SettingsError> {
    let (database, database_material) = servers(&settings.database, settings.database.read_url.as_ref())?;
    Ok(Configured { nats: nats(&settings.nats)?, database, database_material })
}

pub(crate) fn nats(settings: &Nats) -> Result<NatsConfig, SettingsError> {
    let transport = Transport::new(&settings.urls, settings.policy, &settings.tls, settings.minimum_tls);
    let transport = transport.map_err(|error| match error {
        TransportError::Servers(error) => SettingsError::key("nats.urls", error),
        TransportError::Material(error) => SettingsError::new(format!("nats: {}", chain(&error))),
    })?;
    Ok(NatsConfig {
        credentials: settings.login.as_ref().map_or(Ok(Credentials::None), Login::credentials)?,
        tls_first: settings.tls_first,
        give_up_after: settings.give_up_after,
        ..NatsConfig::new(transport, concat!("muster-worker ", env!("CARGO_PKG_VERSION")))
    })
}

/// The primary alone, which is all that a command needs that does one thing and ends.
pub(crate) fn database(settings: &Database) -> Result<(StoreConfig, Option<Arc<Material>>), SettingsError> {
    servers(settings, None)
}

/// The primary, and the standby that lists are read from. Both are held to one policy, with the same certificates.
fn servers(
    settings: &Database,
    read_url: Option<&Secret>,
) -> Result<(StoreConfig, Option<Arc<Material>>), SettingsError> {
    let material = Material::load(&settings.tls, settings.minimum_tls)
        .map_err(|error| SettingsError::new(format!("database: {}", chain(&error))))?;
    let server = |url: &Secret| {
        let config = StoreConfig::new(&url.line()?, settings.policy, Some(material.client_config()));
        let config = config.map_err(|error| url.refused(error))?;
        if !config.is_encrypted() {
            warn_of_plaintext(settings.policy);
        }
        Ok::<_, SettingsError>(
            config
                .pool_size(settings.pool_size)
                .acquire_timeout(settings.acquire_timeout)
                .query_timeout(settings.query_timeout),
        )
    };
    let mut config = server(&settings.url)?;
    let mut encrypted = config.is_encrypted();
    if let Some(url) = read_url {
        let standby = server(url)?;
        encrypted |= standby.is_encrypted();
        config = config.read_from(standby, settings.read_max_lag).map_err(|error| url.refused(error))?;
    }
    Ok((config, encrypted.then(|| Arc::new(material))))
}

/// Once a process: the policy allows it.
fn warn_of_plaintext(policy: TlsPolicy) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        tracing::warn!(
            tls.policy = %policy,
            "PostgreSQL is spoken to in plaintext: anyone in the path can read and change what is sent"
        );
    });
}
