//! A person who was erased stays erased: late events, a restored backup, the stream from its beginning.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use muster_domain::{MemberEffect, Nym, UserId};
use muster_messaging::api::{ErrorCode, admin, community, profiles};
use muster_messaging::client::{ClientError, CommunityClient};
use tokio::time::sleep;
use xtask::worker::{Configuration, Worker};

use crate::setting::{Guild, Setting, community, eventually};
use crate::verify::psql;

/// Copies the worker's database, which nobody may be using, and configures a worker for the copy.
fn backup(setting: &Setting) -> Result<Configuration> {
    let postgres = &setting.services.postgres;
    let ca = setting.services.authority.certificate_file();
    let output = Command::new(postgres.options.server.bin().join("psql"))
        .arg(format!("{}&sslrootcert={}", postgres.url("template1"), ca.display()))
        .args(["-v", "ON_ERROR_STOP=1", "-c", "CREATE DATABASE backup TEMPLATE postgres"])
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let url = setting.services.directory.secret_file("backup-url", &postgres.url("backup"))?;
    Ok(setting.configuration.with("MUSTER__DATABASE__URL_FILE", url.display().to_string()))
}

/// What a command wrote to standard output; an error unless it succeeds.
async fn output(configuration: &Configuration, command: &str) -> Result<String> {
    let output = configuration.run(command).await?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command}: {:?}: {errors}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

async fn handled(worker: &Worker, count: u64) -> Result<()> {
    eventually("the events' effect", || async {
        worker.event_counts().is_ok_and(|counts| counts.applied + counts.duplicates == count)
    })
    .await
}

async fn is_gone(tabr: &CommunityClient) -> Result<bool> {
    let found = tabr.ask(&profiles::Get::UserId(UserId::parse("paul")?)).await;
    let members = tabr.ask(&community::Stats {}).await?.members;
    Ok(members == 1 && found.is_err_and(|error| error.code() == Some(ErrorCode::NotFound)))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_person_stays_erased_through_late_events_and_a_restored_backup() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let mut tabr = Guild::new("tabr");
    for event in [tabr.join_guild(), tabr.join("alia"), tabr.join("paul"), tabr.score("paul", 500)] {
        publisher.publish(&event).await?;
    }
    handled(&worker, 4).await?;
    ensure!(worker.stop()? == Some(0));
    let restored = backup(&setting)?;

    let worker = setting.serve()?;
    let view = client.community(community(&client, "tabr").await?);
    let paul = view.ask(&profiles::Get::UserId(UserId::parse("paul")?)).await?.profile.profile_id;
    let late = tabr.score("paul", 900);
    publisher.publish(&tabr.member("paul", MemberEffect::Leave)).await?;
    handled(&worker, 1).await?;
    ensure!(view.ask(&admin::EraseProfile { profile_id: paul }).await?.erased);
    publisher.publish(&late).await?;
    handled(&worker, 2).await?;
    ensure!(is_gone(&view).await?, "a late event brings paul back");

    // The list of erasures names nobody, and is applied to the backup before a worker is started on it.
    let list = output(&setting.configuration, "erasures export").await?;
    ensure!(list.lines().count() == 3 && !list.contains("paul") && list.contains("tabr"), "{list}");
    ensure!(worker.stop()? == Some(0));
    let file = setting.services.directory.path().join("erasures.jsonl");
    fs::write(&file, &list)?;
    for report in [
        "1 erasures on the list, 1 of them new\n1 profiles erased, 0 awarders forgotten\n",
        "1 erasures on the list, 0 of them new\n0 profiles erased, 0 awarders forgotten\n",
    ] {
        let said = output(&restored, &format!("erasures apply {}", file.display())).await?;
        ensure!(said == report, "{said}");
    }
    ensure!(output(&restored, "erasures export").await? == list, "it knows what the other knew");
    fs::write(&file, list.lines().take(2).collect::<Vec<_>>().join("\n"))?;
    let truncated = restored.run(&format!("erasures apply {}", file.display())).await?;
    ensure!(
        truncated.status.code() == Some(1)
            && String::from_utf8_lossy(&truncated.stderr).contains("truncated")
    );

    // The stream from its beginning: two of its events are not known to the backup.
    let streams = setting.configuration.as_client(&setting.services.clients.streams);
    output(&streams, "ask $JS.API.CONSUMER.DELETE.EVENTS.muster-worker").await?;
    let worker = restored.serve(&setting.services)?;
    handled(&worker, 6).await?;
    ensure!(is_gone(&view).await?, "the stream brings paul back");
    let usul = MemberEffect::Join { username: Some(Nym::parse("Usul")?) };
    publisher.publish(&tabr.is_now().member("paul", usul)).await?;
    handled(&worker, 7).await?;
    let back = view.ask(&profiles::Get::UserId(UserId::parse("paul")?)).await?.profile;
    ensure!(back.profile_id != paul && back.nym.as_str() == "Usul" && back.conviction.get() == 0, "{back:?}");
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

/// It may stand on the primary alone, which is lost with it.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_of_an_erasure_that_waits_for_its_standby() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let mut tabr = Guild::new("tabr");
    for event in [tabr.join_guild(), tabr.join("paul")] {
        publisher.publish(&event).await?;
    }
    handled(&worker, 2).await?;
    let view =
        client.clone().with_timeout(Duration::from_secs(2)).community(community(&client, "tabr").await?);
    let profile_id = view.ask(&profiles::Get::UserId(UserId::parse("paul")?)).await?.profile.profile_id;
    ensure!(view.ask(&admin::EraseProfile { profile_id }).await?.erased);
    psql(&setting, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")?;
    psql(&setting, "SELECT pg_reload_conf()")?;
    sleep(Duration::from_secs(1)).await;
    let again = view.ask(&admin::EraseProfile { profile_id }).await;
    ensure!(matches!(again, Err(ClientError::Timeout(_))), "{again:?}");
    psql(&setting, "ALTER SYSTEM RESET synchronous_standby_names")?;
    psql(&setting, "SELECT pg_reload_conf()")?;
    eventually("the answer", || async {
        let again = view.ask(&admin::EraseProfile { profile_id }).await;
        again.is_err_and(|error| error.code() == Some(ErrorCode::NotFound))
    })
    .await?;
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_of_before_an_erasure_has_no_effect_when_it_is_replayed() -> Result<()> {
    let setting = Setting::new().await?;
    let configuration = setting.configuration.with("MUSTER__EVENTS__MAX_CLOCK_SKEW_MS", "1000");
    let worker = configuration.serve(&setting.services)?;
    let (client, publisher) = setting.client().await?;
    let mut tabr = Guild::new("tabr");
    for event in [tabr.join_guild(), tabr.join("alia"), tabr.join("paul")] {
        publisher.publish(&event).await?;
    }
    handled(&worker, 3).await?;
    // Dead letters for being ahead, until their time has come.
    tabr.is_now();
    for number in 0..4 {
        tabr.score("nobody", number);
    }
    for event in [tabr.join("paul"), tabr.score("paul", 700), tabr.add("paul", 7)] {
        publisher.publish(&event).await?;
    }
    let lost = |number| worker.event_counts().is_ok_and(|counts| counts.lost == number);
    eventually("the dead letters", || async { lost(3) }).await?;
    sleep(Duration::from_secs(8)).await;
    let view = client.community(community(&client, "tabr").await?);
    let paul = view.ask(&profiles::Get::UserId(UserId::parse("paul")?)).await?.profile.profile_id;
    ensure!(view.ask(&admin::EraseProfile { profile_id: paul }).await?.erased);
    let repair = configuration.as_client(&setting.services.clients.repair);
    let replayed = output(&repair, "deadletters replay --oldest 3").await?;
    ensure!(replayed.matches("replayed as event").count() == 3, "{replayed}");
    handled(&worker, 6).await?;
    ensure!(lost(3) && is_gone(&view).await?, "a dead letter brings paul back");
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_of_the_erased_are_dropped_and_no_others() -> Result<()> {
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let mut tabr = Guild::new("tabr");
    const PAUL: &str = "81384788765712384";
    for event in [tabr.join_guild(), tabr.join("alia"), tabr.join(PAUL)] {
        publisher.publish(&event).await?;
    }
    handled(&worker, 3).await?;
    let view = client.community(community(&client, "tabr").await?);
    let mut letters = 0;
    let paul = format!("\"{PAUL}\"");
    // None has an id, so that each is a dead letter.
    let mut letter = async |guild: &str, user: &str, data: &str| -> Result<()> {
        let event = format!(
            r#"{{"event_type":"badge.award","timestamp":1700000000000,"guild_id":{guild},"user_id":{user},"data":{data}}}"#
        );
        publisher.publish_raw("events.badge.award".to_owned(), event.into_bytes()).await?;
        letters += 1;
        eventually("a dead letter", || async {
            worker.event_counts().is_ok_and(|counts| counts.lost == letters)
        })
        .await
    };
    for (guild, user, data) in [
        (r#""tabr""#, paul.as_str(), r#"{"kind":"k"}"#),
        (r#""tabr""#, r#""alia""#, r#"{"kind":"k"}"#),
        (r#""tabr""#, r#""alia""#, &format!(r#"{{"kind":"k","by":{paul}}}"#)),
        // The number is what is wrong with it.
        (r#""tabr""#, PAUL, r#"{"kind":"k"}"#),
        (r#""unheard""#, &paul, "null"),
        ("null", &paul, "null"),
        (r#""tabr""#, &paul, "{"),
    ] {
        letter(guild, user, data).await?;
    }
    let profile = view.ask(&profiles::Get::UserId(UserId::parse(PAUL)?)).await?.profile.profile_id;
    ensure!(view.ask(&admin::EraseProfile { profile_id: profile }).await?.erased);
    letter(r#""tabr""#, &paul, r#"{"kind":"k"}"#).await?;

    let repair = setting.configuration.as_client(&setting.services.clients.repair);
    let dropped = repair.run("deadletters drop --erased --json").await?;
    let (said, errors) = (String::from_utf8(dropped.stdout)?, String::from_utf8_lossy(&dropped.stderr));
    ensure!(dropped.status.success(), "{said}{errors}");
    let sequences: Vec<u64> = said
        .lines()
        .map(|line| Ok(serde_json::from_str::<serde_json::Value>(line)?["sequence"].as_u64().unwrap_or(0)))
        .collect::<Result<_>>()?;
    ensure!(sequences == [1, 3, 4], "{said}");
    let unread =
        errors.contains("look at each by `deadletters show`") && errors.contains("\"dead_letters\":2");
    ensure!(unread, "those that cannot be read: {errors}");
    let left = output(&repair, "deadletters list").await?;
    ensure!(left.lines().count() == 6, "{left}");
    // One way of saying which, and no more.
    for command in ["drop", "drop --json", "drop 2 --erased", "drop 2 --oldest 1", "replay --erased"] {
        let refused = repair.run(&format!("deadletters {command}")).await?;
        ensure!(refused.status.code() == Some(2), "{command}");
    }
    let json = output(&repair, "deadletters drop 2 --json").await?;
    ensure!(json.contains("\"dropped\""), "{json}");
    ensure!(worker.stop()? == Some(0));
    Ok(())
}
