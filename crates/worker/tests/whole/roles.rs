//! The example `roles`: whenever it is killed, and from nothing, it comes to be in step with the lists.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Write, pipe};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_domain::UserId;
use muster_messaging::api::{Rows, admin, directory, profiles};
use muster_messaging::client::CommunityClient;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use xtask::services::Process;
use xtask::worker::Configuration;

use crate::examples::example;
use crate::setting::{Guild, Setting, community, eventually};

const GUILD: &str = "881207955029110855";
/// The broker delivers again after half a minute what was not acknowledged.
const PATIENCE: Duration = Duration::from_secs(90);

type Roles = BTreeMap<String, String>;

/// What the bot believes, by its file: the last that was noted of each member.
fn believed(file: &Path) -> Roles {
    let mut roles = Roles::new();
    for line in fs::read_to_string(file).unwrap_or_default().lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        let text = |field: &str| line.get(field).and_then(Value::as_str).map(str::to_owned);
        match (text("user"), text("role")) {
            (Some(user), Some(role)) => drop(roles.insert(user, role)),
            (Some(user), None) => drop(roles.remove(&user)),
            _ => {}
        }
    }
    roles
}

/// What the lists say.
async fn listed(tabr: &CommunityClient) -> Result<Roles> {
    let all = directory::List { limit: Rows::of(1000), ..directory::List::default() };
    let page = tabr.ask(&all).await?;
    ensure!(page.next.is_none(), "one page has all");
    let profiles = page.items.into_iter().map(|member| member.profile);
    Ok(profiles.filter_map(|it| Some((it.user_id.to_string(), it.tier?.to_string()))).collect())
}

async fn in_step(file: &Path, tabr: &CommunityClient) -> Result<Roles> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (told, due) = (believed(file), listed(tabr).await?);
        if told == due {
            return Ok(due);
        }
        ensure!(Instant::now() < deadline, "the bot believes {told:?}, the lists say {due:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// The bot at work, which says all in one log.
fn start(setting: &Setting, configuration: &Configuration) -> Result<Process> {
    let mut command = configuration.command("");
    Process::start(&setting.services.directory, "roles", &mut command, Signal::SIGTERM)
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_come_to_be_in_step_from_nothing_and_through_kills() -> Result<()> {
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let mut guild = Guild::new(GUILD);
    let mut events = vec![guild.join_guild()];
    for n in 0..40 {
        let user = format!("u{n}");
        events.extend([guild.join(&user), guild.score(&user, 30 * n)]);
    }
    let total = u64::try_from(events.len())?;
    publisher.publish_all(events, |_| {}).await?;
    eventually("the events' effect", || async { worker.event_counts().is_ok_and(|c| c.applied == total) })
        .await?;
    let tabr = client.community(community(&client, GUILD).await?);
    let file: PathBuf = setting.services.directory.path().join("roles.jsonl");
    let path = file.display().to_string();
    let configuration = example(&setting, "roles", GUILD, tabr.id()).await?.with("ROLES_FILE", path);
    let log = |bot: &Process| fs::read_to_string(&bot.log).unwrap_or_default();

    // From nothing, and then by changes.
    let mut bot = start(&setting, &configuration)?;
    let roles = in_step(&file, &tabr).await?;
    ensure!(roles.len() == 40 && roles.get("u39").is_some_and(|role| role == "naib"), "{roles:?}");
    publisher.publish(&guild.score("u0", 5000)).await?;
    eventually("u0's role", || async { believed(&file).get("u0").is_some_and(|role| role == "naib") })
        .await?;
    in_step(&file, &tabr).await?;
    let said = log(&bot);
    ensure!(said.contains("give u39 the role naib\n") && said.contains("give u0 the role naib\n"), "{said}");
    ensure!(said.matches("reading the list").count() == 1, "{said}");
    bot.kill()?;

    // Killed between receipt and acknowledgement: what it says goes into a full pipe, so it does not come further.
    let (full, mut writer) = pipe()?;
    let mut filling = writer.try_clone()?;
    let filled = tokio::task::spawn_blocking(move || filling.write_all(&[b'.'; 64 << 10]));
    timeout(Duration::from_secs(10), filled).await.context("the pipe holds less")???;
    writer.flush()?;
    let mut command = configuration.command("");
    command.stdin(Stdio::null()).stdout(writer).stderr(File::options().append(true).open(&bot.log)?);
    let mut stuck = command.spawn()?;
    drop(command);
    let streams = setting.streams().await?;
    let unacknowledged = async || -> Result<bool> {
        let subject = "$JS.API.CONSUMER.INFO.CHANGES.reader-changes";
        let info: Value = serde_json::from_slice(&streams.ask_by_hand(subject, Vec::new()).await?.body)?;
        Ok(info.get("num_ack_pending") == Some(&1.into()))
    };
    publisher.publish(&guild.score("u1", 6000)).await?;
    eventually("the receipt", async || unacknowledged().await.unwrap_or_default()).await?;
    sleep(Duration::from_secs(1)).await;
    ensure!(unacknowledged().await? && believed(&file) != listed(&tabr).await?);
    stuck.kill()?;
    stuck.wait()?;
    drop(full);
    let mut bot = start(&setting, &configuration)?;
    in_step(&file, &tabr).await?;
    let said = log(&bot);
    ensure!(said.contains("comes again, delivery 2") && said.contains("give u1 the role naib\n"), "{said}");
    ensure!(said.matches("reading the list").count() == 1, "it goes on where it was: {said}");

    // Who is erased is gone from what it knows.
    let u1 = tabr.ask(&profiles::Get::UserId(UserId::parse("u1")?)).await?.profile.profile_id;
    tabr.ask(&admin::EraseProfile { profile_id: u1 }).await?;
    eventually("the erasure", || async { log(&bot).contains("forget u1\n") }).await?;
    in_step(&file, &tabr).await?;
    ensure!(!fs::read_to_string(&file)?.contains("\"u1\""));

    // Killed under load, at any moment.
    let scores = (0..200_i64).map(|n| guild.score(&format!("u{}", n * 7 % 40), n * 7919 % 3000));
    let scores: Vec<_> = scores.filter(|event| !format!("{event:?}").contains("\"u1\"")).collect();
    publisher.publish_all(scores, |_| {}).await?;
    bot.kill()?;
    let mut bot = start(&setting, &configuration)?;
    sleep(Duration::from_secs(1)).await;
    let kept = in_step(&file, &tabr).await?;
    bot.kill()?;

    // From nothing again, to the same; from a place before a gap; and from one in numbers that began anew since.
    fs::remove_file(&file)?;
    let mut bot = start(&setting, &configuration)?;
    ensure!(in_step(&file, &tabr).await? == kept);
    bot.kill()?;
    let places = [
        ("\"number\":3", "changes are missing before"),
        ("\"number\":1000000,\"at\":\"2026-01-01T00:00:00Z\"", "numbers began anew"),
    ];
    for (round, (place, says)) in (1..).zip(places) {
        fs::write(&file, format!("{{{place},\"user\":\"u0\",\"role\":\"emperor\"}}\n"))?;
        let mut bot = start(&setting, &configuration)?;
        publisher.publish(&guild.join(&format!("later{round}"))).await?;
        eventually(says, || async { log(&bot).contains(says) }).await?;
        in_step(&file, &tabr).await?;
        ensure!(log(&bot).matches("take from u0 the role emperor\n").count() == round);
        bot.kill()?;
    }
    Ok(())
}
