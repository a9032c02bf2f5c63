use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use muster_messaging::tls::material::TlsFiles;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rcgen::{ExtendedKeyUsagePurpose as Purpose, KeyUsagePurpose};
use time::{Duration, OffsetDateTime};

use super::process::write_secret;

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

/// From an hour ago, since clocks differ, for thirty days.
pub fn current() -> Range<OffsetDateTime> {
    let now = OffsetDateTime::now_utc();
    now - Duration::HOUR..now + Duration::days(30)
}

impl Authority {
    /// Makes a new authority whose files go to `directory`; its own are `<name>.pem` and `<name>.key`.
    pub fn create(directory: &Path, name: &str) -> Result<Self> {
        let mut params = params(name, &[], current())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let certificate_file = directory.join(format!("{name}.pem"));
        fs::write(&certificate_file, issuer.pem()).context("cannot write the authority's certificate")?;
        write_secret(&directory.join(format!("{name}.key")), &issuer.key().serialize_pem())?;
        Ok(Self { issuer, directory: directory.to_owned(), certificate_file })
    }

    /// The PEM file of the certificate that clients and servers are to trust.
    pub fn certificate_file(&self) -> &Path {
        &self.certificate_file
    }

    /// What a connection of `identity` is configured with that trusts this authority.
    pub fn files(&self, identity: &Identity) -> TlsFiles {
        TlsFiles {
            ca: Some(self.certificate_file.clone()),
            certificate: Some(identity.certificate_file.clone()),
            key: Some(identity.key_file.clone()),
        }
    }

    /// Issues a certificate of a server on this machine.
    pub fn server(&self, name: &str) -> Result<Identity> {
        self.issue(name, &["localhost", "127.0.0.1", "::1"], current())
    }

    /// Issues a client's certificate, which names the client as a DNS name as well: that is who it is to NATS.
    pub fn client(&self, name: &str) -> Result<Identity> {
        self.issue(name, &[name], current())
    }

    /// Issues any certificate, such as one that has expired, to files of this name, and replaces those that were there.
    pub fn issue(&self, name: &str, hosts: &[&str], validity: Range<OffsetDateTime>) -> Result<Identity> {
        let mut params = params(name, hosts, validity)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![Purpose::ServerAuth, Purpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let file = |end: &str| self.directory.join(format!("{name}.{end}"));
        let identity = Identity { certificate_file: file("pem"), key_file: file("key") };
        fs::write(&identity.certificate_file, certificate.pem()).context("cannot write a certificate")?;
        write_secret(&identity.key_file, &key.serialize_pem())?;
        Ok(identity)
    }
}

fn params(name: &str, hosts: &[&str], validity: Range<OffsetDateTime>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(hosts.iter().copied().map(str::to_owned).collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (validity.start, validity.end);
    Ok(params)
}
