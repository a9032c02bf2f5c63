//! Tries everything that serving needs, and reports it line by line.

use muster_domain::VersionVerdict;
use muster_messaging::changes::publisher;
use muster_messaging::connection::{Connection, NatsConfig};
use muster_messaging::events::consumer::{ConsumerConfig, Unfit};
use muster_messaging::events::fitness::{Place, Verdict};
use muster_messaging::events::stream;
use muster_messaging::tls::certificate::Certificate;
use muster_messaging::tls::material::{KeyExchange, Material, Peer};
use muster_storage::{Distribution, FoundHost, Node, Standby, StandbyState, Store, StoreConfig};

use crate::chain::chain;
use crate::connect::{self, configure};
use crate::failure::Failure;
use crate::fitness;
use crate::settings::{Configuration, Database, Settings};
use crate::traces;

/// Whether the database can be connected to, whatever its schema.
pub(crate) async fn database(settings: &Database) -> Result<(), Failure> {
    match Store::open(connect::database(settings)?.0).await {
        Ok(_) | Err(muster_storage::Error::Outdated(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the database is ready to be used, and every NATS server can be connected to.
pub(crate) async fn everything(settings: &Settings) -> Result<(), Failure> {
    let configured = configure(settings)?;
    let mut missing: Vec<Failure> = Vec::new();
    missing.extend(Store::open(configured.database).await.err().map(Failure::from));
    for (_, transport) in configured.nats.transport.each() {
        let connection = Connection::open(NatsConfig { transport, ..configured.nats.clone() }).await;
        missing.extend(connection.err().map(Failure::from));
    }
    if missing.is_empty() { Ok(()) } else { Err(Failure::Missing(missing)) }
}

/// Prints the report; an error unless all would work.
#[expect(clippy::print_stdout, reason = "the report is this command's output")]
pub(crate) async fn check(configuration: &Configuration) -> Result<(), Failure> {
    let policy = configuration.policy;
    println!("tls policy     {policy}");
    // Before the configuration as a whole, which one bad server is enough to refuse.
    for verdict in configuration.verdicts() {
        match verdict {
            Ok(server) if server.is_tls() => println!("nats server    ok      {server} (TLS)"),
            Ok(server) => println!("nats server    ok      {server} (plaintext, which {policy} allows)"),
            Err(error) => println!("nats server    REFUSED {error}"),
        }
    }
    let settings = configuration.serving()?;
    println!("configuration  ok      environment {}", settings.environment);
    let configured = configure(&settings)?;
    let materials = configured.materials();
    for (server, material) in &materials {
        if let Some(material) = material {
            certificates(server.as_str(), material);
        }
    }
    if let Some(traces) = &settings.traces {
        certificates("traces", &traces::material(traces)?);
    }
    if let Some(material) = materials.iter().find_map(|(_, material)| material.as_ref()) {
        println!("key exchange   {}", key_exchange(&material.key_exchange()));
    }
    let unfit = fitness::unfit(settings.environment);
    let database = async {
        let store = Store::open(configured.database.clone()).await?;
        store.ping().await?;
        store.server().await
    };
    let mut all_work = true;
    match database.await {
        Ok(server) => {
            println!("postgres       ok      connected, schema up to date");
            all_work &= stands("postgres", fitness::POSTGRES.judge(&server.version), unfit);
            for why in fitness::losses(&server) {
                println!("postgres       warning {why}");
            }
            all_work &= distribution(&configured.database).await;
        }
        Err(error) => {
            all_work = false;
            println!("postgres       FAILED  {}", Failure::from(error).chain());
        }
    }
    all_work &= hosts(&configured.database).await;
    all_work &= standbys(&configured.database).await;
    if let Some(material) = &configured.database_material {
        shown("postgres", material, |_| true);
    }
    // Every one by itself: the worker must be able to go to any of them. The streams are the same behind all.
    let mut streams = false;
    for (server, transport) in configured.nats.transport.each() {
        match Connection::open(NatsConfig { transport, ..configured.nats.clone() }).await {
            Ok(connection) => {
                let (version, name) = connection.server();
                println!("nats           ok      {server}: connected to {name}, version {version}");
                all_work &= stands("nats", fitness::NATS.judge(&version), unfit);
                if let Some(why) = fitness::payload(connection.max_payload()) {
                    println!("nats           warning {server}: {why}");
                }
                if !std::mem::replace(&mut streams, true) {
                    all_work &= settings_of_streams(&connection, &settings, unfit).await;
                }
            }
            Err(error) => {
                all_work = false;
                println!("nats           REFUSED {server}: {}", Failure::from(error).chain());
            }
        }
        if let Some(material) = configured.nats.transport.material() {
            let host = server.host().trim_matches(['[', ']']);
            shown("nats", material, |name| name == host);
        }
    }
    if all_work { Ok(()) } else { Err(Failure::Check) }
}

/// Reports whether the tables lie on several nodes, and how. True when all of them can be used.
#[expect(clippy::print_stdout, reason = "the report is this command's output")]
async fn distribution(database: &StoreConfig) -> bool {
    let cluster = match muster_storage::distribution(database).await {
        Ok(Some(cluster)) => cluster,
        Ok(None) => {
            println!("postgres       ok      one PostgreSQL: the tables are not distributed");
            return true;
        }
        Err(error) => {
            println!("postgres       FAILED  {}", Failure::from(error).chain());
            return false;
        }
    };
    let mut all_work = true;
    let Distribution { version, nodes, undistributed, needs_options } = cluster;
    let all: u64 = nodes.iter().map(|node| node.parts).sum();
    let with_parts = nodes.iter().filter(|node| node.parts > 0).count();
    if undistributed.is_empty() {
        println!(
            "postgres       ok      Citus {version}: the tables are distributed by shard over {with_parts} nodes"
        );
    } else {
        all_work = false;
        println!(
            "postgres       FAILED  Citus {version}: these are not distributed by shard: {}: run `muster-worker migrate --distribute`",
            undistributed.join(", ")
        );
    }
    if needs_options {
        println!(
            "postgres       warning Citus {version}: parts of some tables lack the planner option n_distinct, as after a move: run \
             `muster-worker migrate`"
        );
    }
    for Node { name, parts, commits_to_disk } in nodes {
        match commits_to_disk {
            Ok(true) => {
                println!("postgres       ok      node {name}: {parts} of {all} parts")
            }
            Ok(false) => {
                all_work = false;
                println!("postgres       FAILED  node {name}: synchronous_commit is off, and must not be");
            }
            Err(why) => {
                all_work = false;
                println!("postgres       FAILED  node {name}: {parts} of {all} parts: {why}");
            }
        }
    }
    all_work
}

/// Reports a server's version unless it is in order; false where it is refused.
#[expect(clippy::print_stdout, reason = "the report is this command's output")]
fn stands(place: &str, standing: VersionVerdict, unfit: Unfit) -> bool {
    match (standing, unfit) {
        (VersionVerdict::Supported, _) => true,
        (VersionVerdict::TooOld(why), Unfit::Refuse) => {
            println!("{place:<14} REFUSED {why}");
            false
        }
        (VersionVerdict::TooOld(why) | VersionVerdict::Unadvised(why), _) => {
            println!("{place:<14} warning {why}");
            true
        }
    }
}

/// Reports each setting of the streams and the consumer; false where one is refused.
#[expect(clippy::print_stdout, reason = "the report is this command's output")]
async fn settings_of_streams(connection: &Connection, settings: &Settings, unfit: Unfit) -> bool {
    let (durable, remember) = (ConsumerConfig::default().durable, settings.events.remember);
    let findings = match stream::inspect(connection, &durable, remember).await {
        Ok(findings) => findings,
        Err(error) => {
            println!("events         FAILED  {}", chain(&error));
            return false;
        }
    };
    let mut fit = true;
    // Changes that the stream does not store wait, and keep nothing from being served.
    let (changes, is_known) = match publisher::inspect(connection).await {
        Ok(changes) => (changes, true),
        Err(error) => {
            println!("changes        warning {}", chain(&error));
            (Vec::new(), false)
        }
    };
    for finding in findings.iter().chain(&changes) {
        let refused = finding.is_unfit() && unfit == Unfit::Refuse && finding.place != Place::Changes;
        fit &= !refused;
        let word = match &finding.verdict {
            Verdict::Fine => "ok     ",
            _ if refused => "REFUSED",
            _ => "warning",
        };
        println!("{:<14} {word} {finding}", finding.place.as_str());
    }
    let is_there = |place: Place| match place {
        Place::Changes => !is_known || !changes.is_empty(),
        _ => findings.iter().any(|finding| finding.place == place),
    };
    for place in [Place::Events, Place::DeadLetters, Place::Consumer, Place::Changes] {
        if !is_there(place) {
            println!("{:<14} ok      {place} does not exist yet: the worker creates it", place.as_str());
        }
    }
    fit
}

/// Reports the state of each host of the database's URL. True when the worker could use one of them.
#[expect(clippy::print_stdout, reason = "the report is this command's output")]
async fn hosts(database: &StoreConfig) -> bool {
    let hosts = database.each_host();
    let (several, mut all_work) = (hosts.len() > 1, true);
    for (host, config) in hosts {
        match config.find().await {
            Ok(FoundHost { standby, read_only, wanted }) => {
                let is = if standby { "a standby" } else { "a primary" };
                if read_only && wanted {
                    all_work = false;
                    println!(
                        "postgres       FAILED  {host}: is {is} whose transactions are read-only, and the worker must write: \
                         see default_transaction_read_only, or write target_session_attrs=read-write to pass it over"
                    );
                } else if several {
                    let used = if wanted { "" } else { ", passed over by target_session_attrs" };
                    println!("postgres       ok      {host}: is {is}{used}");
                }
            }
            // Of the only host it is told already.
            Err(error) if several => {
                all_work = false;
                println!("postgres       FAILED  {}", Failure::from(error).chain());
            }
            Err(_) => {}
        }
    }
    all_work
}

/// Reports each standby that lists may be read from; false where one is not fit for it.
#[expect(clippy::print_stdout, reason = "the report is this command's output")]
async fn standbys(database: &StoreConfig) -> bool {
    let mut all_work = true;
    for (host, config) in database.each_standby() {
        let measured = match Standby::of(&config) {
            Ok(Some(standby)) => standby.measure().await,
            Ok(None) => continue,
            Err(error) => StandbyState::NotInUse { lag: None, why: Failure::from(error).chain() },
        };
        match measured {
            StandbyState::InUse(lag) => println!(
                "standby        ok      {host}: is a standby of the same database, {} ms behind",
                lag.as_millis()
            ),
            StandbyState::NotInUse { why, .. } => {
                all_work = false;
                println!("standby        FAILED  {host}: {why}");
            }
        }
    }
    all_work
}

/// The groups that are offered, and whether one of them is post-quantum.
fn key_exchange(offered: &[KeyExchange]) -> String {
    let names: Vec<String> = offered.iter().map(ToString::to_string).collect();
    let what = if offered.iter().any(|group| group.is_post_quantum()) {
        "post-quantum where the server has it"
    } else {
        "not post-quantum, for the cryptography provider has no such group"
    };
    format!("{}: {what}", names.join(", "))
}

/// The certificates that the servers of some names showed so far, and the server that was refused last.
#[expect(clippy::print_stdout, reason = "the report is this command's output")]
fn shown(place: &str, material: &Material, named: impl Fn(&str) -> bool) {
    for Peer { name, certificate, issuers, version } in material.peers() {
        if !named(&name) {
            continue;
        }
        let version = version.map_or_else(|| "no handshake".to_owned(), |version| version.to_string());
        println!("{place:<14} {name} by {version} shows {}", facts(&certificate));
        for issuer in issuers {
            println!("{place:<14} {name} shows with it {}", facts(&issuer));
        }
    }
    if let Some(refusal) = material.last_refusal() {
        println!("{place:<14} REFUSED {refusal}");
    }
}

#[expect(clippy::print_stdout, reason = "the report is this command's output")]
fn certificates(place: &str, material: &Material) {
    for file in material.contents() {
        println!("file           {place} {}: {file}", file.path.display());
    }
    for unused in material.unused() {
        let word = if unused.is_for_later() { "NOT YET" } else { "NOT USED" };
        println!("certificate    {place} {word} {unused}");
    }
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
    let Certificate { subject, issuer, names, not_before, not_after, key, fingerprint, .. } = certificate;
    let names = names.join(", ");
    format!(
        "{subject} [{names}] by {issuer}, {key}, {} to {}, SHA-256 {fingerprint}",
        not_before.date(),
        not_after.date()
    )
}
