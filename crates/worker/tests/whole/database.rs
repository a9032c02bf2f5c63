//! The database behind a URL of several hosts, and behind PgBouncer.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use muster_domain::{Environment, TlsPolicy};
use muster_messaging::api::community;
use muster_messaging::tls::material::{Material, MinimumVersion, TlsFiles};
use muster_storage::{Error, Store, StoreConfig};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use xtask::services::{Postgres, PostgresOptions};
use xtask::worker::Worker;

use crate::pgbouncer::PgBouncer;
use crate::setting::{Guild, Setting, community, eventually};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ready(worker: &Worker) -> bool {
    worker.get("/readyz").is_ok_and(|(status, _)| status == 200)
}

/// What somebody in the path to a server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Does {
    /// Passes everything on.
    Passes,
    /// Accepts and passes nothing on.
    Holds,
    /// Cuts off who is there and who comes.
    Cuts,
}

/// A way to a server that can be cut or fall silent.
pub(crate) struct Way {
    pub(crate) port: u16,
    pub(crate) does: watch::Sender<Does>,
}

impl Way {
    pub(crate) async fn to(server: u16, does: Does) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let does = watch::Sender::new(does);
        let state = does.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server, state.subscribe()));
            }
        });
        Ok(Self { port, does })
    }
}

async fn carry(mut client: TcpStream, server: u16, mut does: watch::Receiver<Does>) -> Result<()> {
    let now = *does.borrow_and_update();
    match now {
        Does::Cuts => return Ok(()),
        Does::Holds => {}
        Does::Passes => {
            let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await?;
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => return Ok(()),
                _ = does.wait_for(|does| *does != Does::Passes) => {}
            }
            // What was held once is not passed on later: it is kept open, with its connection to the server.
            does.wait_for(|does| *does == Does::Cuts).await?;
            return Ok(());
        }
    }
    does.wait_for(|does| *does == Does::Cuts).await?;
    Ok(())
}

/// Who drops packets: its queue of connections is full, so that the system does not answer those who knock.
struct BlackHole {
    port: u16,
    _queue: (tokio::net::TcpListener, Vec<TcpStream>),
}

impl BlackHole {
    async fn new() -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let listener = socket.listen(1)?;
        let port = listener.local_addr()?.port();
        let mut queue = Vec::new();
        loop {
            let connecting = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
            match timeout(Duration::from_millis(300), connecting).await {
                Ok(connected) => queue.push(connected?),
                Err(_) => return Ok(Self { port, _queue: (listener, queue) }),
            }
            ensure!(queue.len() < 100, "the queue is never full");
        }
    }
}

/// A host's port whom nobody listens on.
async fn refusing() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?.local_addr()?.port())
}

/// The servers' URL with other hosts: ports of this machine.
fn url(setting: &Setting, ports: &[u16], more: &str) -> String {
    let postgres = &setting.services.postgres;
    let hosts: Vec<String> = ports.iter().map(|port| format!("localhost:{port}")).collect();
    format!(
        "postgres://{}:{}@{}/postgres?sslmode=verify-full&hostaddr={}&{more}",
        Postgres::USER,
        postgres.options.password,
        hosts.join(","),
        vec!["127.0.0.1"; ports.len()].join(","),
    )
}

fn config(setting: &Setting, url: &str) -> Result<StoreConfig> {
    let ca = Some(setting.services.authority.certificate_file().to_owned());
    let material = Material::load(&TlsFiles { ca, ..TlsFiles::default() }, MinimumVersion::Tls13)?;
    let policy = TlsPolicy::new(Environment::Production, false);
    Ok(StoreConfig::new(&url.into(), policy, Some(material.client_config()))?)
}

/// Another cluster that the same URL fits; it has no schema.
fn cluster(setting: &Setting, name: &str, settings: &[(&str, &str)]) -> Result<Postgres> {
    let services = &setting.services;
    let mut options =
        PostgresOptions::new(services.postgres.options.server.clone(), services.authority.server(name)?);
    options.password.clone_from(&services.postgres.options.password);
    options.settings = [("shared_buffers", "16MB")]
        .iter()
        .chain(settings)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Postgres::start(&services.directory, name, options)
}

/// Every order of some of the things, none and all included.
fn orders<T: Copy + PartialEq>(things: &[T]) -> Vec<Vec<T>> {
    let mut all = vec![Vec::new()];
    for thing in things {
        let rest: Vec<T> = things.iter().filter(|other| *other != thing).copied().collect();
        all.extend(orders(&rest).into_iter().map(|order| [&[*thing], order.as_slice()].concat()));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_hosts_stand_before_the_good_one_are_passed_over_in_every_order() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let read_only = cluster(&setting, "read-only", &[("default_transaction_read_only", "on")])?;
    let silent = Way::to(setting.services.postgres.port, Does::Holds).await?;
    let (hole, refusing, good) = (BlackHole::new().await?, refusing().await?, setting.services.postgres.port);
    let bad = [silent.port, hole.port, refusing, read_only.port];
    let more = "connect_timeout=3&target_session_attrs=read-write";
    // What stands behind the good one is never tried.
    let orders = orders(&bad);
    ensure!(orders.len() == 1 + 4 + 12 + 24 + 24);
    let tried = stream::iter(orders).map(|mut order| {
        order.push(good);
        let url = url(&setting, &order, more);
        let config = config(&setting, &url);
        async move {
            let start = Instant::now();
            // Only the good one has a schema.
            let store = Store::open(config?).await.with_context(|| format!("{order:?}"))?;
            store.close();
            let took = start.elapsed();
            ensure!(took < Duration::from_secs(20), "{order:?} took {took:?}");
            Ok(())
        }
    });
    tried.buffer_unordered(6).try_collect::<()>().await?;

    let error = Store::open(config(&setting, &url(&setting, &bad, more))?).await.map(drop);
    let Err(Error::Unavailable(error)) = error else { anyhow::bail!("{error:?}") };
    let said = error.to_string();
    for (port, cause) in [
        (silent.port, "no answer within 3 s"),
        (hole.port, "no answer within 3 s"),
        (refusing, "Connection refused"),
        (read_only.port, "passed over: it is read-only, and target_session_attrs is read-write"),
    ] {
        let host = said.split("; ").find(|part| part.starts_with(&format!("localhost:{port}: ")));
        ensure!(host.is_some_and(|host| host.contains(cause)), "{port} {cause}: {said}");
    }
    ensure!(!said.contains(&setting.services.postgres.options.password), "{said}");
    // Without the attribute the read-only one is as good as any.
    let any = Store::open(config(&setting, &url(&setting, &bad, "connect_timeout=3"))?).await.map(drop);
    ensure!(matches!(any, Err(Error::Outdated(_))), "{any:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn target_session_attrs_tells_a_primary_from_a_standby() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let mut standby = cluster(&setting, "standby", &[])?;
    standby.stop();
    // A standby that stays one: it takes no writes and waits for a primary that never comes.
    std::fs::write(standby.data().join("standby.signal"), "")?;
    standby.restart()?;
    let read_only = cluster(&setting, "read-only", &[("default_transaction_read_only", "on")])?;
    let primary = setting.services.postgres.port;
    // Each of the three hosts comes first, and the wanted one is found. Only the primary has a schema.
    for (attrs, found) in [
        ("any", [true, false, false]),
        ("read-write", [true, true, true]),
        ("primary", [true, true, false]),
        ("read-only", [false, false, false]),
        ("standby", [false, false, false]),
        ("prefer-standby", [false, false, false]),
    ] {
        let hosts = [primary, standby.port, read_only.port];
        let shifted = [[0, 1, 2], [1, 0, 2], [2, 0, 1]];
        for (order, found) in shifted.into_iter().zip(found) {
            let ports = order.map(|number| hosts[number]);
            let more = format!("target_session_attrs={attrs}");
            let opened = Store::open(config(&setting, &url(&setting, &ports, &more))?).await.map(drop);
            match opened {
                Ok(()) if found => {}
                Err(Error::Outdated(_)) if !found => {}
                other => anyhow::bail!("{attrs} {order:?}: {other:?}"),
            }
        }
    }
    // Where there is no standby, what is preferred is done without.
    let preferring = url(&setting, &[primary], "target_session_attrs=prefer-standby");
    Store::open(config(&setting, &preferring)?).await?;
    let nowhere = url(&setting, &[primary, read_only.port], "target_session_attrs=standby");
    let error = Store::open(config(&setting, &nowhere)?).await.map(drop).unwrap_err().to_string();
    ensure!(error.matches("it is no standby, and target_session_attrs is standby").count() == 2, "{error}");

    let check = async |ports: &[u16], more: &str| -> Result<(Option<i32>, String)> {
        let file = setting.services.directory.secret_file("hosts-url", &url(&setting, ports, more))?;
        let configuration =
            setting.configuration.with("MUSTER__DATABASE__URL_FILE", file.display().to_string());
        let output = configuration.run("check").await?;
        Ok((output.status.code(), text(&output.stdout)))
    };
    let (code, report) = check(&[standby.port, primary], "target_session_attrs=read-write").await?;
    ensure!(code == Some(0), "{report}");
    let passed = format!("postgres       ok      localhost:{}: is a standby, passed over", standby.port);
    ensure!(report.contains(&passed), "{report}");
    ensure!(
        report.contains(&format!("postgres       ok      localhost:{primary}: is a primary\n")),
        "{report}"
    );
    let (code, report) = check(&[read_only.port], "").await?;
    ensure!(
        code == Some(1) && report.contains("the worker must write: see default_transaction_read_only"),
        "{report}"
    );
    let refusing = refusing().await?;
    let (code, report) = check(&[primary, refusing], "").await?;
    let failed = report.lines().any(|line| {
        line.starts_with("postgres       FAILED") && line.contains(&format!("localhost:{refusing}: "))
    });
    ensure!(
        code == Some(1) && failed,
        "a host that cannot be reached is found before it is needed: {report}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_starts_past_a_silent_host_and_goes_over_when_its_host_dies() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let server = setting.services.postgres.port;
    let first = Way::to(server, Does::Holds).await?;
    let second = Way::to(server, Does::Passes).await?;
    let url = url(&setting, &[first.port, second.port], "target_session_attrs=read-write");
    let file = setting.services.directory.secret_file("hosts-url", &url)?;
    let started = Instant::now();
    let worker = setting
        .configuration
        .with("MUSTER__DATABASE__URL_FILE", file.display().to_string())
        .with("MUSTER__DATABASE__QUERY_TIMEOUT_MS", "1000")
        .serve(&setting.services)?;
    ensure!(started.elapsed() < Duration::from_secs(15), "it took {:?}", started.elapsed());
    let (client, publisher) = setting.client().await?;
    let mut guild = Guild::new("tabr");
    publisher.publish_all(vec![guild.join_guild(), guild.join("user0")], |_| {}).await?;
    let community = client.community(community(&client, "tabr").await?);
    let members = async |members: u64| {
        community.ask(&community::Stats {}).await.is_ok_and(|stats| stats.members == members)
    };
    eventually("the first member", || members(1)).await?;

    // The second dies as a cut cable does: nothing is refused, and nothing is answered. The first is well by now.
    first.does.send_replace(Does::Passes);
    second.does.send_replace(Does::Holds);
    eventually("readiness to go off", || async { !ready(&worker) }).await?;
    let began = Instant::now();
    publisher.publish(&guild.join("user1")).await?;
    eventually("readiness to come back", || async { ready(&worker) }).await?;
    eventually("the second member", || members(2)).await?;
    ensure!(began.elapsed() < Duration::from_secs(25), "it took {:?}", began.elapsed());

    // The first dies as a process does.
    second.does.send_replace(Does::Passes);
    first.does.send_replace(Does::Cuts);
    publisher.publish(&guild.join("user2")).await?;
    eventually("the third member", || members(3)).await?;
    eventually("readiness", || async { ready(&worker) }).await?;
    ensure!(worker.event_counts()?.lost == 0, "a host that dies makes no dead letters");
    ensure!(worker.stop()? == Some(0), "it stops cleanly");
    Ok(())
}

/// A PgBouncer before the test's PostgreSQL, and the configuration that leads through it.
fn pooled(setting: &Setting, mode: &str) -> Result<(PgBouncer, xtask::worker::Configuration)> {
    let services = &setting.services;
    let name = format!("pgbouncer-{mode}");
    let pooler = PgBouncer::start(services, &name, mode)?;
    let file = services.directory.secret_file(&format!("{name}-url"), pooler.url())?;
    let configuration = setting.configuration.with("MUSTER__DATABASE__URL_FILE", file.display().to_string());
    Ok((pooler, configuration))
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbouncer_in_session_mode_is_as_good_as_postgresql() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let (pooler, configuration) = pooled(&setting, "session")?;
    let report = configuration.run("check").await?;
    ensure!(report.status.success(), "{}", text(&report.stdout));
    let worker = configuration.serve(&setting.services)?;
    let (client, publisher) = setting.client().await?;
    let mut guild = Guild::new("tabr");
    let mut events = vec![guild.join_guild()];
    for number in 0..200 {
        let user = format!("user{number}");
        events.extend([guild.join(&user), guild.score(&user, number)]);
    }
    publisher.publish_all(events, |_| {}).await?;
    let community = client.community(community(&client, "tabr").await?);
    eventually("every event's effect", || async {
        community
            .ask(&community::Stats {})
            .await
            .is_ok_and(|it| it.members == 200 && it.conviction_total == 19_900)
    })
    .await?;
    ensure!(worker.event_counts()?.lost == 0);
    // The sessions of another client that went through the pooler do not change the worker's.
    let other = config(&setting, pooler.url())?;
    Store::open(other).await?.close();
    let verified = configuration.run("verify --all").await?;
    ensure!(verified.status.success(), "{}{}", text(&verified.stdout), text(&verified.stderr));
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbouncer_in_another_mode_is_refused_with_what_to_do() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    for mode in ["transaction", "statement"] {
        let (pooler, configuration) = pooled(&setting, mode)?;
        for command in ["check", "serve", "migrate", "verify --all"] {
            let output = timeout(Duration::from_secs(20), configuration.run(command)).await??;
            let said = text(&output.stdout) + &text(&output.stderr);
            ensure!(!output.status.success(), "{mode} {command}: {said}");
            ensure!(said.contains("give it pool_mode = session"), "{mode} {command}: {said}");
            ensure!(!said.contains(&setting.services.postgres.options.password), "{said}");
        }
        // However busy the pooler is, and whoever's connections it has at hand, a session is never taken for a good one.
        let asked = (0..4).map(async |_| {
            let config = config(&setting, pooler.url())?;
            let until = Instant::now() + Duration::from_secs(20);
            loop {
                match Store::open(config.clone()).await.map(drop) {
                    Err(Error::Configuration(_)) => return Ok(()),
                    // They end each other's server connections.
                    Err(Error::Unavailable(_)) if Instant::now() < until => {}
                    other => anyhow::bail!("{mode}: {other:?}"),
                }
            }
        });
        futures_util::future::try_join_all(asked).await?;
    }
    Ok(())
}
