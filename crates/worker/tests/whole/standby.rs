//! Lists are read from a hot standby while it is within its bound, and from the primary whatever happens to the standby.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_domain::{CommunityId, GuildId};
use muster_messaging::api::{Rows, admin, badges, directory, profiles, tiers};
use muster_messaging::client::{Client, CommunityClient, EventPublisher};
use tokio::time::{Instant, sleep};
use xtask::services::{Postgres, PostgresOptions, Services};
use xtask::worker::{Configuration, Worker};

use crate::database::{Does, Way};
use crate::setting::{Guild, Setting, community, eventually, metric};
use crate::verify::{psql, psql_command};

/// How far the standby may be behind in these tests.
const BOUND: Duration = Duration::from_secs(2);

/// A hot standby of the setting's PostgreSQL, made of a copy of its data.
fn standby(setting: &mut Setting, name: &str) -> Result<Postgres> {
    let Services { postgres, authority, directory, .. } = &mut setting.services;
    postgres.stop();
    let (signal, rules) = (postgres.data().join("standby.signal"), postgres.data().join("pg_hba.conf"));
    let may_replicate = "hostssl replication all 127.0.0.1/32 scram-sha-256\n";
    fs::write(&rules, [&fs::read_to_string(&rules)?, may_replicate].concat())?;
    fs::write(&signal, "")?;
    let (user, password) = (Postgres::USER, &postgres.options.password);
    // The defaults of the last ones lie in the home of who runs the test.
    let primary = format!(
        "host=localhost hostaddr=127.0.0.1 port={} user={user} password={password} sslmode=require \
         sslcert=none sslkey=none sslrootcert=none sslcrl=none",
        postgres.port
    );
    let mut options = PostgresOptions::new(postgres.options.server.clone(), authority.server(name)?);
    options.copy_of = Some(postgres.data());
    options.settings = [
        ("primary_conninfo", primary.as_str()),
        ("wal_retrieve_retry_interval", "100ms"),
        ("max_standby_streaming_delay", "0"),
        ("shared_buffers", "16MB"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec();
    let standby = Postgres::start(directory, name, options)?;
    fs::remove_file(signal)?;
    postgres.restart()?;
    Ok(standby)
}

/// Asks a server by plain SQL for one value.
fn value(setting: &Setting, server: &Postgres, sql: &str) -> Result<String> {
    let ca = setting.services.authority.certificate_file();
    let url = format!("{}&sslrootcert={}", server.url("postgres"), ca.display());
    let mut command = Command::new(server.options.server.bin().join("psql"));
    let output = command.args([&url, "-v", "ON_ERROR_STOP=1", "-At", "-c", sql]).output()?;
    ensure!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Lets replay go on. It may cancel the very query that asks for it.
fn resume(setting: &Setting, server: &Postgres) {
    let _ = value(setting, server, "SELECT pg_wal_replay_resume()");
}

/// The configuration with a standby at this URL.
fn reading(setting: &Setting, url: &str) -> Result<Configuration> {
    let file = setting.services.directory.secret_file("read-url", url)?;
    Ok(setting
        .configuration
        .with("MUSTER__DATABASE__READ_URL_FILE", file.display().to_string())
        .with("MUSTER__DATABASE__READ_MAX_LAG_MS", BOUND.as_millis().to_string()))
}

fn in_use(worker: &Worker) -> bool {
    metric(worker, "muster_standby_in_use") == Some(1.0)
}

async fn until_in_use(worker: &Worker) -> Result<()> {
    let used = eventually("the standby to be in use", || async { in_use(worker) }).await;
    used.with_context(|| worker.log_tail())
}

fn lists(worker: &Worker, server: &str) -> f64 {
    metric(worker, &format!("muster_lists_total{{server=\"{server}\"}}")).unwrap_or_default()
}

/// A community with members of one score each, and what goes on in it.
struct Sietch {
    guild: Guild,
    client: Client,
    publisher: EventPublisher,
    id: CommunityId,
}

impl Sietch {
    async fn new(setting: &Setting, members: i64) -> Result<Self> {
        let (client, publisher) = setting.client().await?;
        let mut guild = Guild::new("tabr");
        let mut events = vec![guild.join_guild()];
        for number in 0..members {
            let user = format!("user{number}");
            events.extend([guild.join(&user), guild.score(&user, 10 + number)]);
        }
        publisher.publish_all(events, |_| {}).await?;
        let id = community(&client, "tabr").await?;
        let sietch = Self { guild, client, publisher, id };
        eventually("every member", || async { sietch.ranked(50).await.is_ok_and(|names| names.len() == 50) })
            .await?;
        Ok(sietch)
    }

    fn ask(&self) -> CommunityClient {
        self.client.community(self.id)
    }

    /// The names of the first members by conviction.
    async fn ranked(&self, limit: u32) -> Result<Vec<String>> {
        let page = self.ask().ask(&profiles::Ranked::first(limit)).await?;
        Ok(page.items.into_iter().map(|ranked| ranked.profile.nym.to_string()).collect())
    }

    /// Asks for one of each, but for that of a profile's badges.
    async fn seven_lists(&self) -> Result<()> {
        self.ranked(20).await?;
        self.ask().ask(&profiles::Active::default()).await?;
        self.ask().ask(&badges::Leaderboard::default()).await?;
        self.ask().ask(&badges::Kinds::default()).await?;
        self.ask().ask(&tiers::Progression::default()).await?;
        self.ask().ask(&tiers::Changes::default()).await?;
        self.ask().ask(&directory::List::default()).await?;
        Ok(())
    }

    async fn joins(&mut self, user: &str, conviction: i64) -> Result<()> {
        let events = vec![self.guild.join(user), self.guild.score(user, conviction)];
        self.publisher.publish_all(events, |_| {}).await?;
        let get = profiles::Get::UserId(muster_domain::UserId::parse(user)?);
        let has = |detail: profiles::ProfileDetail| detail.profile.conviction.get() == conviction;
        eventually("the look-up of who joined", || async { self.ask().ask(&get).await.is_ok_and(has) }).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_read_from_the_standby_within_its_bound_and_nothing_else_is() -> Result<()> {
    let mut setting = Setting::of_one_server().await?;
    let server = standby(&mut setting, "standby")?;
    let configuration = reading(&setting, &server.url("postgres"))?;
    let worker = configuration.serve(&setting.services)?;
    let mut sietch = Sietch::new(&setting, 60).await?;
    until_in_use(&worker).await?;
    ensure!(fs::read_to_string(&worker.log)?.contains("lists are read from the standby"));
    let report = configuration.run("check").await?;
    let said = String::from_utf8_lossy(&report.stdout).into_owned();
    let line =
        format!("standby        ok      localhost:{}: is a standby of the same database, ", server.port);
    ensure!(report.status.success() && said.contains(&line), "{said}");

    // Nothing is written for longer than the bound, and it is as new as the primary.
    sleep(BOUND * 2).await;
    ensure!(in_use(&worker), "{}", worker.log_tail());
    let first = sietch.ask().ask(&profiles::Ranked::first(20)).await?;
    // On a machine that stood still for a moment, the primary may have answered.
    eventually("seven lists of the standby", async || {
        let before = lists(&worker, "standby");
        sietch.seven_lists().await.is_ok() && lists(&worker, "standby") - before == 7.0
    })
    .await?;

    // What it has not replayed is seen where a caller's own write must be, and not in lists: they are the standby's.
    value(&setting, &server, "SELECT pg_wal_replay_pause()")?;
    let paused = Instant::now();
    sietch.joins("chani", 5000).await?;
    let written = Instant::now();
    let behind = sietch.ranked(1).await?;
    let profile = sietch.ask().ask(&profiles::Get::UserId(muster_domain::UserId::parse("chani")?)).await?;
    let profile_id = profile.profile.profile_id;
    let hidden = sietch.ask().ask(&admin::HideProfile { profile_id }).await?;
    let shown = sietch.ask().ask(&admin::ShowProfile { profile_id }).await?;
    ensure!(!hidden.visible && shown.visible);
    // The standby does not know of this member, and the primary does.
    let held = profiles::Badges { profile_id, limit: Rows::default(), cursor: None };
    ensure!(sietch.ask().ask(&held).await?.items.is_empty());
    if paused.elapsed() < BOUND {
        ensure!(behind == ["user59"], "{behind:?}");
    }
    // Beyond the bound the primary answers, with a cursor of the standby too.
    loop {
        let asked = written.elapsed();
        if sietch.ranked(1).await? == ["chani"] {
            break;
        }
        ensure!(asked <= BOUND, "a list that was asked for after {asked:?} was the standby's");
        sleep(Duration::from_millis(50)).await;
    }
    eventually("the standby to be out of use", || async { !in_use(&worker) }).await?;
    let next = profiles::Ranked { limit: Rows::of(20), cursor: first.next.clone() };
    let of_primary = sietch.ask().ask(&next).await?;
    ensure!(metric(&worker, "muster_standby_lag_seconds") > Some(BOUND.as_secs_f64()));
    ensure!(worker.get("/readyz")?.0 == 200, "the worker is ready without it");
    let said = fs::read_to_string(&worker.log)?;
    ensure!(said.contains("lists are read from the primary: the standby is not fit"), "{said}");
    ensure!(said.contains("further behind than the 2 s"), "{said}");
    let report = configuration.run("check").await?;
    let said = String::from_utf8_lossy(&report.stdout).into_owned();
    ensure!(report.status.code() == Some(1) && said.contains("standby        FAILED"), "{said}");

    resume(&setting, &server);
    until_in_use(&worker).await?;
    let standby = lists(&worker, "standby");
    // Replay that catches up may cancel one.
    eventually("the standby's list", || async {
        let of_either = sietch.ask().ask(&next).await;
        assert!(of_either.is_ok_and(|page| page == of_primary), "a cursor is good on either");
        lists(&worker, "standby") > standby
    })
    .await?;
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_catches_up_is_told_a_number_up_to_which_every_list_shows_the_changes() -> Result<()> {
    let mut setting = Setting::of_one_server().await?;
    let server = standby(&mut setting, "standby")?;
    let worker = reading(&setting, &server.url("postgres"))?.serve(&setting.services)?;
    let sietch = Sietch::new(&setting, 60).await?;
    until_in_use(&worker).await?;
    // Nobody has asked for this one yet.
    let guild = GuildId::parse("caladan")?;
    let mut caladan = Guild::new("caladan");
    sietch.publisher.publish_all(vec![caladan.join_guild(), caladan.join("leto")], |_| {}).await?;
    let streams = setting.streams().await?;
    worker.until_acknowledged(&streams, BOUND * 10).await?;
    sleep(BOUND + BOUND / 4).await;
    let tabr = GuildId::parse("tabr")?;
    let began = Instant::now();
    ensure!(sietch.client.find_community(tabr).await?.changes >= 60);
    ensure!(began.elapsed() < BOUND / 4, "nothing has changed, and it took {:?}", began.elapsed());

    value(&setting, &server, "SELECT pg_wal_replay_pause()")?;
    let paused = Instant::now();
    sietch.publisher.publish_all(vec![caladan.join("jessica"), caladan.join("paul")], |_| {}).await?;
    worker.until_acknowledged(&streams, BOUND * 10).await?;
    let (applied, began) = (paused.elapsed(), Instant::now());
    let told = sietch.client.find_community(guild.clone()).await?;
    let shown = sietch.client.community(told.community_id).ask(&directory::List::default()).await?.total;
    ensure!(told.changes >= 3 && shown == 3, "told of {} changes, and a list shows {shown}", told.changes);
    println!("applied {applied:?} after replay was paused, told {:?} later", began.elapsed());

    // Whoever asks next is told at once what was told before.
    resume(&setting, &server);
    until_in_use(&worker).await?;
    sietch.publisher.publish(&caladan.join("duncan")).await?;
    worker.until_acknowledged(&streams, BOUND * 10).await?;
    let began = Instant::now();
    let again = sietch.client.find_community(guild).await?.changes;
    ensure!(
        again == told.changes && began.elapsed() < BOUND / 4,
        "told of {again} after {:?}",
        began.elapsed()
    );
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_cancels_hangs_or_dies_fails_no_request() -> Result<()> {
    let mut setting = Setting::of_one_server().await?;
    let mut server = standby(&mut setting, "standby")?;
    let way = Way::to(server.port, Does::Passes).await?;
    let url = server.url("postgres").replace(&format!(":{}/", server.port), &format!(":{}/", way.port));
    let worker = reading(&setting, &url)?.serve(&setting.services)?;
    let sietch = Sietch::new(&setting, 60).await?;
    until_in_use(&worker).await?;

    // The query waits for one table that is locked, and replay waits for another that the query holds.
    let failures = || metric(&worker, "muster_standby_failures_total").unwrap_or_default();
    let conflicts = || -> Result<u64> {
        let sql =
            "SELECT confl_lock + confl_deadlock FROM pg_stat_database_conflicts WHERE datname = 'postgres'";
        Ok(value(&setting, &server, sql)?.parse()?)
    };
    let lock = |table: &str, sleep: &str| {
        let sql =
            format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep({sleep}); COMMIT");
        psql_command(&setting, &sql)?.stdout(Stdio::null()).spawn().context("cannot run psql")
    };
    let mut cancelled = 0;
    for (first, second) in [("members", "board_entries"), ("board_entries", "members")].repeat(3) {
        let before = failures();
        let mut locking = lock(first, "2.5")?;
        let locked = format!(
            "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = '{first}'::regclass"
        );
        eventually("the lock on the standby", || async {
            // Its commit takes the lock's record along.
            psql(&setting, "SELECT pg_current_xact_id()").is_ok()
                && value(&setting, &server, &locked).is_ok_and(|count| count == "1")
        })
        .await?;
        let second = async {
            sleep(Duration::from_millis(100)).await;
            lock(second, "0")
        };
        let (asked, second) = tokio::join!(sietch.ranked(5), second);
        ensure!(asked?.len() == 5);
        ensure!(locking.wait()?.success() && second?.wait()?.success());
        until_in_use(&worker).await?;
        cancelled = conflicts()?;
        if failures() > before && cancelled > 0 {
            break;
        }
    }
    ensure!(cancelled > 0, "no query was canceled on the standby");

    // Readers go on while it falls silent, comes back, and is killed.
    let reading = async {
        let (mut asked, mut longest) = (0_u32, Duration::ZERO);
        let end = Instant::now() + Duration::from_secs(9);
        while Instant::now() < end {
            let began = Instant::now();
            let names = sietch.ranked(5).await.with_context(|| format!("request {asked}"))?;
            ensure!(names.len() == 5);
            (asked, longest) = (asked + 1, longest.max(began.elapsed()));
        }
        Ok((asked, longest))
    };
    let happening = async {
        sleep(Duration::from_secs(1)).await;
        way.does.send_replace(Does::Holds);
        sleep(Duration::from_secs(3)).await;
        let out = !in_use(&worker);
        way.does.send_replace(Does::Cuts);
        sleep(Duration::from_millis(100)).await;
        way.does.send_replace(Does::Passes);
        until_in_use(&worker).await?;
        sleep(Duration::from_secs(1)).await;
        server.kill()?;
        ensure!(out, "a silent standby is not in use");
        Ok(())
    };
    let (read, happened) = tokio::join!(reading, happening);
    happened?;
    let (asked, longest) = read?;
    println!("{asked} requests, the longest {longest:?}");
    ensure!(
        asked > 100 && longest < Duration::from_millis(2500),
        "{asked} requests, the longest {longest:?}"
    );
    eventually("the standby to be out of use", || async { !in_use(&worker) }).await?;
    server.restart()?;
    until_in_use(&worker).await?;
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_no_standby_of_the_database_is_not_read_and_is_told_nothing_in_plaintext()
-> Result<()> {
    let mut setting = Setting::of_one_server().await?;
    let server = standby(&mut setting, "standby")?;
    // What a primary is that was restored from a backup of before: of the same cluster, and behind the standby.
    setting.services.postgres.stop();
    let Services { postgres, authority, directory, .. } = &mut setting.services;
    let mut options = PostgresOptions::new(postgres.options.server.clone(), authority.server("restored")?);
    options.copy_of = Some(postgres.data());
    options.settings = vec![("shared_buffers".to_owned(), "16MB".to_owned())];
    let restored = Postgres::start(directory, "restored", options)?;
    let restored =
        directory.secret_file("restored-url", &restored.url("postgres")).map(|file| (restored, file))?;
    postgres.restart()?;
    psql(&setting, "SELECT pg_switch_wal()")?;
    // A standby of another cluster that the same URL fits.
    let Services { postgres, authority, directory, .. } = &setting.services;
    let mut options = PostgresOptions::new(postgres.options.server.clone(), authority.server("other")?);
    options.password.clone_from(&postgres.options.password);
    options.settings = vec![("shared_buffers".to_owned(), "16MB".to_owned())];
    let mut other = Postgres::start(directory, "other", options)?;
    other.stop();
    fs::write(other.data().join("standby.signal"), "")?;
    other.restart()?;
    // One that answers N to a request for TLS.
    let mut open = server.options.clone();
    (open.tls, open.copy_of) = (None, None);
    open.settings = vec![("shared_buffers".to_owned(), "16MB".to_owned())];
    let open = Postgres::start(directory, "open", open)?;

    let verified =
        |port: u16| server.url("postgres").replace(&format!(":{}/", server.port), &format!(":{port}/"));
    psql(&setting, "CREATE DATABASE elsewhere")?;
    let restored_file = restored.1.display().to_string();
    for (url, said) in [
        (server.url("postgres"), "it has replayed what the primary did not write"),
        (verified(other.port), "it is of another cluster, whose system identifier is "),
        (verified(postgres.port), "it is no standby, and target_session_attrs is standby"),
        (verified(open.port), "does not support TLS"),
        (server.url("elsewhere"), "it is another database of the same cluster"),
    ] {
        let mut configuration = reading(&setting, &url)?;
        if said.starts_with("it has replayed") {
            configuration = configuration.with("MUSTER__DATABASE__URL_FILE", restored_file.as_str());
        }
        let report = configuration.run("check").await?;
        let told = String::from_utf8_lossy(&report.stdout).into_owned();
        let failed = told.lines().find(|line| line.starts_with("standby        FAILED"));
        ensure!(report.status.code() == Some(1) && failed.is_some_and(|line| line.contains(said)), "{told}");
        let worker = configuration.serve(&setting.services)?;
        eventually("the line in the log", || async {
            fs::read_to_string(&worker.log).is_ok_and(|log| {
                log.contains("lists are read from the primary: the standby is not fit") && log.contains(said)
            })
        })
        .await?;
        let sietch = Sietch::new(&setting, 60).await?;
        ensure!(sietch.ranked(5).await?.len() == 5 && lists(&worker, "standby") == 0.0);
        ensure!(lists(&worker, "primary") > 0.0 && !in_use(&worker));
        ensure!(worker.stop()? == Some(0));
    }
    let password = &postgres.options.password;
    for (url, said) in [
        (
            verified(server.port).replace("verify-full", "disable"),
            "sslmode=disable is weaker than the TLS policy",
        ),
        (
            format!("{}&target_session_attrs=read-write", verified(server.port)),
            "lists are read from a standby",
        ),
    ] {
        let ended = reading(&setting, &url)?.run("serve").await?;
        let told = String::from_utf8_lossy(&ended.stderr).into_owned();
        ensure!(ended.status.code() == Some(64) && told.contains("database.read_url_file"), "{told}");
        ensure!(told.contains(said) && !told.contains(password.as_str()), "{told}");
    }
    // Of several hosts those are passed over that are no standby.
    let several =
        verified(server.port).replace("@localhost:", &format!("@localhost:{},localhost:", postgres.port));
    let worker = reading(&setting, &several)?.serve(&setting.services)?;
    until_in_use(&worker).await?;
    ensure!(worker.stop()? == Some(0));
    Ok(())
}
