//! Tries everything that serving needs, and reports it line by line.

use muster_messaging::connection::Connection;
use muster_messaging::tls::certificate::Certificate;
use muster_messaging::tls::material::Material;
use muster_storage::Store;

use crate::connect::configure;
use crate::failure::Failure;
use crate::settings::Settings;

/// Prints the report; an error unless all would work.
#[expect(clippy::print_stdout, reason = "the report is this command's output")]
pub(crate) async fn check(settings: &Settings) -> Result<(), Failure> {
    println!("configuration  ok      environment {}", settings.environment);
    println!("tls policy     {}", settings.policy);
    for server in settings.nats.servers.as_slice() {
        println!("nats server    {server} ({})", if server.is_tls() { "TLS" } else { "plaintext" });
    }
    let configured = configure(settings)?;
    let materials = [("nats", &configured.nats_material), ("postgres", &configured.database_material)];
    for (place, material) in materials {
        if let Some(material) = material {
            certificates(place, material);
        }
    }
    let database = async {
        let store = Store::open(configured.database.clone()).await?;
        store.ping().await
    };
    let database = database.await;
    match &database {
        Ok(()) => println!("postgres       ok      connected, schema up to date"),
        Err(error) => println!("postgres       FAILED  {error}"),
    }
    let nats = Connection::open(configured.nats).await;
    match &nats {
        Ok(connection) => {
            let (version, name) = connection.server();
            println!("nats           ok      connected to {name}, version {version}");
        }
        Err(error) => println!("nats           FAILED  {error}"),
    }
    if let Some(material) = &configured.nats_material {
        for (server, certificate) in material.peers() {
            println!("nats           {server} shows {}", facts(&certificate));
        }
    }
    if database.is_ok() && nats.is_ok() { Ok(()) } else { Err(Failure::Check) }
}

#[expect(clippy::print_stdout, reason = "the report is this command's output")]
fn certificates(place: &str, material: &Material) {
    for certificate in material.own() {
        println!("certificate    {place} own: {}", facts(&certificate));
    }
    let authorities = material.authorities();
    if authorities.is_empty() {
        println!("certificate    {place} trusts the system's authorities");
    }
    for certificate in authorities {
        println!("certificate    {place} trusts: {}", facts(&certificate));
    }
}

fn facts(certificate: &Certificate) -> String {
    let Certificate { subject, issuer, names, not_before, not_after, fingerprint, .. } = certificate;
    let names = names.join(", ");
    format!(
        "{subject} [{names}] by {issuer}, {} to {}, SHA-256 {fingerprint}",
        not_before.date(),
        not_after.date()
    )
}
