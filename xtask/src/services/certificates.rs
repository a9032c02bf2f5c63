use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use super::run_directory::write_secret;

/// The names that a server on this machine is reached by.
const LOCAL_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// A certificate authority of one run.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
    certificate_file: PathBuf,
}

/// A certificate and its key, as PEM files. Only the owner may read the key.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// A server's.
    Server,
    /// A client's.
    Client,
    /// A server's that is a client of others of its kind.
    Node,
}

/// A certificate to be issued.
#[derive(Debug, Clone)]
pub struct Issue<'a> {
    /// The common name, and the name of its files.
    pub name: &'a str,
    /// The host names and addresses that it is good for.
    pub hosts: &'a [&'a str],
    /// What it is for.
    pub usage: Usage,
    /// When it is valid.
    pub validity: Range<OffsetDateTime>,
}

impl Issue<'_> {
    /// From an hour ago, since clocks differ, for thirty days.
    #[must_use]
    pub fn current() -> Range<OffsetDateTime> {
        let now = OffsetDateTime::now_utc();
        now - Duration::HOUR..now + Duration::days(30)
    }
}

impl Authority {
    /// Makes a new authority whose files go to `directory`; its certificate is `<name>.pem` there.
    ///
    /// # Errors
    /// When a key cannot be made or a file not written.
    pub fn create(directory: &Path, name: &str) -> Result<Self> {
        let mut params = params(name, &[], &Issue::current())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let certificate_file = directory.join(format!("{name}.pem"));
        fs::write(&certificate_file, issuer.pem()).context("cannot write the authority's certificate")?;
        Ok(Self { issuer, directory: directory.to_owned(), certificate_file })
    }

    /// The PEM file of the certificate that clients and servers are to trust.
    #[must_use]
    pub fn certificate_file(&self) -> &Path {
        &self.certificate_file
    }

    /// Its private key in PEM, for whoever issues certificates with other tools.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Issues a certificate of a server on this machine.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn server(&self, name: &str) -> Result<Identity> {
        self.issue(&Issue { name, hosts: &LOCAL_NAMES, usage: Usage::Server, validity: Issue::current() })
    }

    /// Issues a client's certificate, which names the client as a DNS name as well: that is who it is to NATS.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn client(&self, name: &str) -> Result<Identity> {
        self.issue(&Issue { name, hosts: &[name], usage: Usage::Client, validity: Issue::current() })
    }

    /// Issues the certificate of a node of a cluster on this machine, which goes by `host` besides.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn node(&self, name: &str, host: &str) -> Result<Identity> {
        let hosts = [&LOCAL_NAMES[..], &[host]].concat();
        self.issue(&Issue { name, hosts: &hosts, usage: Usage::Node, validity: Issue::current() })
    }

    /// Issues any certificate, such as one that has expired or bears another's name. It replaces one of the same name.
    ///
    /// # Errors
    /// When a host is neither a name nor an address, a key cannot be made or a file not written.
    pub fn issue(&self, issue: &Issue<'_>) -> Result<Identity> {
        let mut params = params(issue.name, issue.hosts, &issue.validity)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match issue.usage {
            Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Usage::Node => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let identity = Identity {
            certificate_file: self.directory.join(format!("{}.pem", issue.name)),
            key_file: self.directory.join(format!("{}.key", issue.name)),
        };
        fs::write(&identity.certificate_file, certificate.pem()).context("cannot write a certificate")?;
        write_secret(&identity.key_file, &key.serialize_pem())?;
        Ok(identity)
    }
}

fn params(name: &str, hosts: &[&str], validity: &Range<OffsetDateTime>) -> Result<CertificateParams> {
    let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
    let mut params = CertificateParams::new(hosts).context("not a host name")?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = validity.start;
    params.not_after = validity.end;
    Ok(params)
}
