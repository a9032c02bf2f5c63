//! No secret, no payload and no person's id stands in the log or the metrics, whatever the worker goes through.

use std::fs;

use anyhow::{Context, Result, ensure};
use muster_domain::{
    Activity, Awarder, BadgeKind, CommunityId, Conviction, Cursor, GuildId, Keys, MemberEffect, Nym,
    ProfileId, Reason, SearchQuery, UserId, Wallet,
};
use muster_messaging::api::{
    Caller, ENDPOINTS, Endpoint, Rows, admin, badges, community, directory, profiles, tiers,
};
use muster_messaging::client::{Client, CommunityClient, EventPublisher};
use xtask::worker::{Configuration, Worker};

use crate::setting::{Guild, Setting, community, eventually};

/// A person's id on the chat platform.
const USER: &str = "917151830571000001";
/// What whatever else must not be shown holds.
const MARK: &str = "xmarkx";
/// A subject that whoever publishes has made up.
const ODD_SUBJECT: &str = "events.xmarkx";

/// The texts of events and requests, each with the mark in it.
fn mark(text: &str) -> String {
    format!("{MARK} {text}")
}

fn kind() -> BadgeKind {
    BadgeKind::parse(format!("{MARK}-kind")).unwrap()
}

fn reason() -> Option<Reason> {
    Reason::parse(mark("reason")).ok()
}

fn awarder() -> Option<Awarder> {
    Awarder::parse(mark("awarder")).ok()
}

fn nym(text: &str) -> Nym {
    Nym::parse(mark(text)).unwrap()
}

fn cursors() -> [Option<Cursor>; 2] {
    [None, Some(Cursor::parse(mark("cursor")).unwrap())]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_and_the_metrics_show_no_person_and_no_secret() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let key = fs::read_to_string(&setting.services.clients.worker.key_file)?;
    let line = key.lines().nth(1).context("a key without lines")?.to_owned();
    let mut forbidden =
        vec![USER.to_owned(), MARK.to_owned(), line, setting.services.postgres.options.password.clone()];
    let loud = setting
        .configuration
        .with("MUSTER__LOG__FILTER", "trace")
        .with("MUSTER__EVENTS__MAX_DELIVERIES", "1")
        .with("MUSTER__LIMITS__CALLER_BURST", "3");
    let worker = loud.serve(&setting.services)?;
    let (client, publisher) = setting.client().await?;

    publish_every_type_of_event(&publisher).await?;
    publish_unreadable_and_unknown_events(&publisher).await?;
    eventually("the events' effect", || async {
        worker.event_counts().is_ok_and(|counts| counts.applied == 9 && counts.lost == 6)
    })
    .await?;

    let id = community(&client, "tabr").await?;
    let tabr = client.community(id);
    let caller = Caller::parse(mark("caller"))?;
    let named = client.clone().on_behalf_of(caller.clone()).community(id);
    let user = profiles::Get::UserId(UserId::parse(USER)?);
    let profile_id = named.ask(&user).await?.profile.profile_id;
    forbidden.push(profile_id.to_string());
    exceed_the_rate(&named).await;
    for profile_id in [profile_id, "0193a000-0000-7000-8000-0000000000ff".parse()?] {
        ask_about_a_profile(&tabr, profile_id).await;
        change_a_profile(&tabr, profile_id).await;
    }
    ask_about_the_community(&client, &tabr).await?;
    ask_malformed_requests(&client, id).await?;
    ensure!(tabr.ask(&admin::ClearRateLimit { caller: Some(caller) }).await?.cleared == 1);
    ensure!(tabr.ask(&admin::EraseProfile { profile_id }).await?.erased);
    let _ = tabr.ask(&admin::EraseProfile { profile_id }).await;

    let metrics = worker.get("/metrics")?.1;
    refuse_a_wrong_password_while_serving(&setting, &worker).await?;
    let mut said = refuse_wrong_secrets_at_a_start(&setting, &loud).await?;
    said += &list_dead_letters(&setting, &loud).await?;
    let mut services = setting.services;
    services.postgres.kill()?;
    ensure!(client.community(id).ask(&user).await.is_err(), "the database is away");
    let log_file = worker.log.clone();
    ensure!(worker.stop()? == Some(0));

    let log = fs::read_to_string(log_file)?;
    assert_all_of_it_was_logged(&log)?;
    for (whose, text) in [("log", &log), ("metrics", &metrics), ("other commands' output", &said)] {
        for (n, secret) in forbidden.iter().enumerate() {
            let shown = text.lines().find(|line| line.contains(secret.as_str()));
            ensure!(shown.is_none(), "the {whose} shows {n}: {shown:?}");
        }
    }
    Ok(())
}

async fn publish_every_type_of_event(publisher: &EventPublisher) -> Result<()> {
    let mut tabr = Guild::new("tabr");
    let (kind, reason, by) = (kind(), reason(), awarder());
    let effects = [
        MemberEffect::Join { username: Some(nym("user name")) },
        MemberEffect::Update { nick: Some(nym("nick")) },
        MemberEffect::ScoreSet {
            conviction: Some(Conviction::clamp(7_i64)),
            activity: Some(Activity::clamp(3_i64)),
        },
        MemberEffect::ActivityAdd { amount: Activity::clamp(3_i64) },
        MemberEffect::BadgeAward { kind: kind.clone(), reason: reason.clone(), by: by.clone() },
        MemberEffect::BadgeRevoke { kind, reason, by },
        MemberEffect::Leave,
        MemberEffect::Join { username: Some(nym("user name")) },
    ];
    publisher.publish(&tabr.join_guild()).await?;
    for effect in effects {
        let event = tabr.member(USER, effect);
        publisher.publish(&event).await?;
        publisher.publish(&event).await?;
    }
    Ok(())
}

async fn publish_unreadable_and_unknown_events(publisher: &EventPublisher) -> Result<()> {
    let base = format!(
        r#""event_id":"6f1c2a0e-8f1d-4f7e-9d55-1a2b3c4d5e6f","timestamp":1700000000000,"guild_id":"tabr","user_id":"{USER}""#
    );
    for (subject, payload) in [
        ("events.member.join", MARK.to_owned()),
        (
            "events.member.join",
            format!(r#"{{{base},"event_type":"member.join","data":{{"username":"{}"}}}}"#, MARK.repeat(9)),
        ),
        ("events.member.join", format!(r#"{{{base},"event_type":"member.join","data":"{MARK}"}}"#)),
        (
            "events.activity.add",
            format!(r#"{{{base},"event_type":"activity.add","data":{{"amount":"{MARK}"}}}}"#),
        ),
        (ODD_SUBJECT, "{".to_owned()),
        (
            "events.message.create",
            format!(r#"{{{base},"event_type":"message.create","data":{{"content":"{MARK}"}}}}"#),
        ),
    ] {
        publisher.publish_raw(subject.to_owned(), payload.into_bytes()).await?;
    }
    Ok(())
}

async fn exceed_the_rate(named: &CommunityClient) {
    for _ in 0..20 {
        let _ = named.ask(&community::Stats {}).await;
    }
}

async fn ask_about_a_profile(tabr: &CommunityClient, profile_id: ProfileId) {
    let _ = tabr.ask(&profiles::Get::ProfileId(profile_id)).await;
    let _ = tabr.ask(&profiles::Many::ProfileIds(Keys::parse(vec![profile_id]).unwrap())).await;
    let users = Keys::parse(vec![UserId::parse(USER).unwrap()]).unwrap();
    let _ = tabr.ask(&profiles::Many::UserIds(users)).await;
    let _ = tabr.ask(&profiles::Position { profile_id }).await;
    let _ = tabr.ask(&profiles::Around { profile_id, limit: Rows::default() }).await;
    for cursor in cursors() {
        let _ = tabr.ask(&profiles::Badges { profile_id, limit: Rows::of(1), cursor }).await;
    }
}

async fn change_a_profile(tabr: &CommunityClient, profile_id: ProfileId) {
    let award = admin::AwardBadge { profile_id, kind: kind(), reason: reason(), awarded_by: awarder() };
    let revoke = admin::RevokeBadge { profile_id, kind: kind(), reason: reason(), revoked_by: awarder() };
    let _ = tabr.ask(&award).await;
    let _ = tabr.ask(&revoke).await;
    let _ = tabr.ask(&revoke).await;
    let _ = tabr.ask(&admin::HideProfile { profile_id }).await;
    let _ = tabr.ask(&admin::ShowProfile { profile_id }).await;
    for cursor in cursors() {
        let _ = tabr.ask(&admin::ExportProfile::new(profile_id, cursor)).await;
    }
}

async fn ask_about_the_community(client: &Client, tabr: &CommunityClient) -> Result<()> {
    for get in [profiles::Get::Nym(nym("nick")), profiles::Get::Wallet(Wallet::parse(format!("0x{MARK}"))?)] {
        let _ = tabr.ask(&get).await;
    }
    for cursor in cursors() {
        let _ = tabr.ask(&profiles::Ranked { limit: Rows::of(1), cursor: cursor.clone() }).await;
        let _ = tabr.ask(&profiles::Active { limit: Rows::of(1), cursor: cursor.clone() }).await;
        let _ = tabr.ask(&badges::Leaderboard { limit: Rows::of(1), cursor: cursor.clone() }).await;
        let _ = tabr.ask(&badges::Kinds { limit: Rows::of(1), cursor: cursor.clone() }).await;
        let _ = tabr.ask(&tiers::Progression { limit: Rows::of(1), cursor: cursor.clone() }).await;
        let _ = tabr.ask(&tiers::Changes { limit: Rows::of(1), cursor: cursor.clone() }).await;
        let start = cursor.map(directory::Start::Cursor);
        let _ = tabr.ask(&directory::List { start, ..directory::List::default() }).await;
    }
    let query = SearchQuery::parse(MARK)?;
    let _ = tabr.ask(&profiles::Search { query, limit: Rows::default() }).await;
    let _ = tabr.ask(&tiers::Threshold {}).await;
    let _ = tabr.ask(&community::Stats {}).await;
    let _ = client.find_community(GuildId::parse(format!("{MARK}-guild"))?).await;
    Ok(())
}

async fn ask_malformed_requests(client: &Client, id: CommunityId) -> Result<()> {
    let long = format!(r#"{{"query": "{}"}}"#, MARK.repeat(40)).into_bytes();
    let _ = client.ask_by_hand(&profiles::Search::DESCRIPTION.subject(id), long).await;
    for endpoint in ENDPOINTS {
        for body in [
            MARK.to_owned(),
            format!(r#"{{"profile_id": "{MARK}"#),
            format!(r#"{{"limit": {MARK}}}"#),
            format!(r#"{{"{MARK}": "{MARK}"}}"#),
        ] {
            let answer = client.ask_by_hand(&endpoint.subject(id), body.clone().into_bytes()).await?;
            ensure!(answer.is_error, "{endpoint}: {body} is answered");
        }
    }
    let foreign = format!("muster.v1.{MARK}.profiles.ranked");
    ensure!(client.ask_by_hand(&foreign, Vec::new()).await?.is_error, "there is no such community");
    Ok(())
}

/// The database's URL with a wrong password.
fn wrong_url(setting: &Setting) -> String {
    let postgres = &setting.services.postgres;
    postgres.url("postgres").replace(&postgres.options.password, MARK)
}

async fn refuse_a_wrong_password_while_serving(setting: &Setting, worker: &Worker) -> Result<()> {
    let secret = setting.services.directory.path().join("worker-database-url");
    let right = fs::read(&secret)?;
    fs::write(&secret, wrong_url(setting))?;
    let log = || fs::read_to_string(&worker.log).unwrap_or_default();
    eventually("the refusal", async || log().contains("are refused: what was in use stays")).await?;
    fs::write(&secret, right)?;
    Ok(())
}

/// What the commands print.
async fn refuse_wrong_secrets_at_a_start(setting: &Setting, loud: &Configuration) -> Result<String> {
    let url = wrong_url(setting);
    let mut said = String::new();
    for (variable, text) in [
        ("MUSTER__NATS__PASSWORD_FILE", mark("password")),
        ("MUSTER__DATABASE__URL_FILE", url.clone()),
        ("MUSTER__DATABASE__URL_FILE", format!("{url}&port={MARK}")),
        ("MUSTER__DATABASE__URL_FILE", url.replace(":", MARK)),
    ] {
        let file = setting.services.directory.secret_file("wrong", &text)?;
        let other = loud.with(variable, file.display().to_string()).with("MUSTER__STARTUP__WAIT_MS", "0");
        for command in ["serve", "check"] {
            let output = other.run(command).await?;
            ensure!(!output.status.success(), "{variable}: {command}");
            said += &String::from_utf8_lossy(&output.stdout);
            said += &String::from_utf8_lossy(&output.stderr);
        }
        fs::remove_file(file)?;
    }
    Ok(said)
}

/// The list, but for the subject that it shows an operator, which tells who published a dead letter.
async fn list_dead_letters(setting: &Setting, loud: &Configuration) -> Result<String> {
    let listed = loud.as_client(&setting.services.clients.repair).run("deadletters list").await?;
    Ok(String::from_utf8_lossy(&listed.stdout).replace(ODD_SUBJECT, "")
        + &String::from_utf8_lossy(&listed.stderr))
}

fn assert_all_of_it_was_logged(log: &str) -> Result<()> {
    for expected in [
        "an administrator's request was answered",
        "a request was answered",
        "became a dead letter",
        "the rate limit is exceeded",
        "caller.pseudonym",
        "profile.pseudonym",
    ] {
        ensure!(log.contains(expected), "the log does not say {expected:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_is_readable_alone_and_a_person_is_found_by_the_pseudonym() -> Result<()> {
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let mut tabr = Guild::new("tabr");
    publisher.publish(&tabr.join_guild()).await?;
    publisher.publish(&tabr.join(USER)).await?;
    let id = community(&client, "tabr").await?;
    let get = || client.community(id);
    eventually("the member", async || {
        get().ask(&profiles::Get::UserId(UserId::parse(USER).unwrap())).await.is_ok()
    })
    .await?;
    let profile = get().ask(&profiles::Get::UserId(UserId::parse(USER)?)).await?.profile.profile_id;
    get().ask(&admin::HideProfile { profile_id: profile }).await?;
    let output = setting.configuration.run(&format!("pseudonym {profile}")).await?;
    let pseudonym = String::from_utf8(output.stdout)?;
    let pseudonym = pseudonym.split(' ').next().unwrap_or_default();
    ensure!(pseudonym.len() == 16, "{pseudonym}");
    let log = fs::read_to_string(&worker.log)?;
    let line = log.lines().find(|line| line.contains(pseudonym));
    let line: serde_json::Value = serde_json::from_str(line.unwrap_or_default())?;
    ensure!(line["message"] == "an administrator's request was answered", "{line}");
    ensure!(line["profile.pseudonym"] == pseudonym && line["request.code"] == "ok", "{line}");
    ensure!(
        line["request.endpoint"] == "admin.profiles.hide" && line["community.id"] == id.to_string(),
        "{line}"
    );
    Ok(())
}
