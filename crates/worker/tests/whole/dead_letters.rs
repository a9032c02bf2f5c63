//! An operator looks at dead letters, has them tried again and drops them, with the worker's own program.

use anyhow::{Context, Result, ensure};
use muster_messaging::client::EventPublisher;
use serde_json::Value;
use xtask::worker::Configuration;

use crate::setting::{Setting, eventually};

/// How whoever may repair is configured.
fn repair(setting: &Setting) -> Configuration {
    setting.configuration.as_client(&setting.services.clients.repair)
}

/// What a command wrote to standard output; an error unless it exits with `code`.
async fn output(setting: &Setting, command: &str, code: i32) -> Result<String> {
    let output = repair(setting).run(&format!("deadletters {command}")).await?;
    let said = String::from_utf8(output.stdout)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "{command}: {:?}: {said}{errors}", output.status);
    Ok(said)
}

async fn json(setting: &Setting, command: &str) -> Result<Value> {
    serde_json::from_str(&output(setting, &format!("{command} --json"), 0).await?).context("not JSON")
}

async fn sequences(setting: &Setting, command: &str) -> Result<Vec<u64>> {
    let page = json(setting, command).await?;
    let items = page.get("items").and_then(Value::as_array).context("a page has items")?;
    Ok(items.iter().filter_map(|item| item["sequence"].as_u64()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_shown_replayed_and_dropped() -> Result<()> {
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    let (_, publisher) = setting.client().await?;
    ensure!(output(&setting, "list", 0).await?.lines().count() == 1, "only the heading");
    for n in 0..5_u64 {
        let nym = "x".repeat(33);
        let event = format!(
            r#"{{"event_id":"6f1c2a0e-8f1d-4f7e-9d55-1a2b3c4d5e6{n}","event_type":"member.join","timestamp":1700000000000,
                "guild_id":"tabr","user_id":"user{n}","data":{{"username":"{nym}"}}}}"#
        );
        publisher.publish_raw("events.member.join".to_owned(), event.into_bytes()).await?;
        // One after the other, since batches at once may make theirs in any order.
        let is_there = || async { worker.event_counts().is_ok_and(|counts| counts.lost == n + 1) };
        eventually("a dead letter", is_there).await?;
    }

    // A list has a bound, and says where it goes on.
    let page = json(&setting, "list --limit 2").await?;
    ensure!(page["limit"] == 2 && page["next"] == 3, "{page}");
    ensure!(page["items"][0]["reason"].as_str().is_some_and(|reason| reason.contains("username")), "{page}");
    ensure!(
        page["items"][0]["subject"] == "events.member.join" && page["items"][0]["deliveries"] == 1,
        "{page}"
    );
    ensure!(page["items"][0]["at"].is_string() && page["items"][0]["event_sequence"] == 1, "{page}");
    ensure!(!page.to_string().contains("user0"), "a list shows no payload");
    ensure!(sequences(&setting, "list --from 3").await? == [3, 4, 5]);
    let page = json(&setting, "list --limit 99999999").await?;
    ensure!(page["limit"] == 1000 && page["next"].is_null(), "{page}");
    ensure!(output(&setting, "list --limit 4", 0).await?.contains("--from 5"));

    let shown = json(&setting, "show 2").await?;
    ensure!(shown["payload"].as_str().is_some_and(|payload| payload.contains("user1")), "{shown}");
    let shown = output(&setting, "show 2", 0).await?;
    ensure!(shown.contains("user1") && shown.contains("username"), "{shown}");
    output(&setting, "show 77", 1).await?;
    output(&setting, "drop", 2).await?;

    // The log of such a command tells what went wrong and nothing else, unless it is asked for more.
    let quiet = repair(&setting).run("deadletters list").await?;
    ensure!(quiet.stderr.is_empty(), "{}", String::from_utf8_lossy(&quiet.stderr));
    let loud = repair(&setting).with("MUSTER__LOG__FILTER", "info").run("deadletters list").await?;
    ensure!(
        String::from_utf8_lossy(&loud.stderr).contains("INFO"),
        "{}",
        String::from_utf8_lossy(&loud.stderr)
    );

    // What is wrong with it still is, so it comes back as another dead letter; the old one is gone.
    let replayed = output(&setting, "replay 1", 0).await?;
    ensure!(replayed.starts_with("1 replayed as event 6"), "{replayed}");
    eventually("it is back", || async {
        sequences(&setting, "list").await.is_ok_and(|kept| kept == [2, 3, 4, 5, 6])
    })
    .await?;
    let dropped = output(&setting, "drop 77 3", 1).await?;
    ensure!(dropped.contains("77 failed") && dropped.contains("3 dropped"), "{dropped}");
    output(&setting, "drop --oldest 2", 0).await?;
    ensure!(sequences(&setting, "list").await? == [5, 6]);

    // What is no event is not published anywhere, and stays.
    let worker_user = EventPublisher::new(&setting.connect(&setting.services.clients.worker).await?);
    let strange = worker_user.publish_raw("dead.events".to_owned(), b"?".to_vec()).await?;
    let refused = output(&setting, &format!("replay {strange}"), 1).await?;
    ensure!(refused.contains("is not one of events"), "{refused}");
    ensure!(sequences(&setting, "list").await? == [5, 6, strange]);
    ensure!(worker.stop()? == Some(0));
    Ok(())
}
