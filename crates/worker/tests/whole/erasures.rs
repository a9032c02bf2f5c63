//! A person who was erased stays erased: late events, a restored backup, the stream from its beginning.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use muster_domain::{MemberEffect, Nym, UserId};
use muster_messaging::api::{ErrorCode, admin, community, profiles};
use muster_messaging::client::CommunityClient;
use xtask::worker::{Configuration, Worker};

use crate::setting::{Guild, Setting, community, eventually};

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
async fn who_is_erased_stays_erased_through_late_events_and_a_restored_backup() -> Result<()> {
    let setting = Setting::new().await?;
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
        "1 erasures on the list, 1 of them news\n1 profiles erased, 0 awarders forgotten\n",
        "1 erasures on the list, 0 of them news\n0 profiles erased, 0 awarders forgotten\n",
    ] {
        let said = output(&restored, &format!("erasures apply {}", file.display())).await?;
        ensure!(said == report, "{said}");
    }
    ensure!(output(&restored, "erasures export").await? == list, "it knows what the other knew");
    fs::write(&file, list.lines().take(2).collect::<Vec<_>>().join("\n"))?;
    let cut = restored.run(&format!("erasures apply {}", file.display())).await?;
    ensure!(cut.status.code() == Some(1) && String::from_utf8_lossy(&cut.stderr).contains("cut short"));

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
