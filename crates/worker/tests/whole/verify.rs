//! Drift in the kept counts, as an operator finds and repairs it while a worker applies events.

use std::process::Command;

use anyhow::{Result, ensure};
use muster_domain::{BadgeKind, MemberEffect};

use crate::setting::{Guild, Setting, community, eventually};

/// Statements are run one by one, each of which ends a line: some a cluster does not take together.
pub(crate) fn psql_command(setting: &Setting, sql: &str) -> Result<Command> {
    let mut command = Command::new(setting.services.postgres.options.server.bin().join("psql"));
    command.args([&setting.database()?, "-v", "ON_ERROR_STOP=1"]);
    for statement in sql.split(";\n") {
        command.args(["-c", statement]);
    }
    Ok(command)
}

pub(crate) fn psql(setting: &Setting, sql: &str) -> Result<()> {
    let output = psql_command(setting, sql)?.output()?;
    ensure!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Some of what storage's tests make drift, one of each kind of comparison, and how the report names it.
const DRIFTS: [(&str, &str); 11] = [
    ("members.badge_count", "UPDATE members SET badge_count = 7 WHERE user_id = 'u3'"),
    ("board_entries of conviction", "DELETE FROM board_entries WHERE board = 1 AND negated_score = -10"),
    ("directory", "UPDATE directory SET nym_key = 'lost'"),
    ("nym_suffixes", "DELETE FROM nym_suffixes WHERE class = 0"),
    ("tiers.threshold", "UPDATE tiers SET threshold = 5 WHERE last_rank IS NOT NULL"),
    ("members.tier", "UPDATE members SET tier = CASE tier WHEN 1 THEN 2 ELSE 1 END WHERE user_id = 'u1'"),
    ("board_counts of conviction", "UPDATE board_counts SET members = members + 1 WHERE board = 1"),
    ("tier_counts", "UPDATE tier_counts SET members = members + 1"),
    ("community_totals.members", "UPDATE community_totals SET members = members + 1"),
    ("community_days.joined", "UPDATE community_days SET joined = joined + 1"),
    ("badge_kinds.holders", "UPDATE badge_kinds SET holders = holders + 1"),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_finds_drift_and_repairs_it_while_events_go_on() -> Result<()> {
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let mut guild = Guild::new("verified");
    publisher.publish(&guild.join_guild()).await?;
    let mut sent = 1_u64;
    for number in 0..20_i64 {
        let user = format!("u{number}");
        let award =
            MemberEffect::BadgeAward { kind: BadgeKind::parse("sandwalker")?, reason: None, by: None };
        for event in [guild.join(&user), guild.score(&user, number * 10), guild.member(&user, award)] {
            publisher.publish(&event).await?;
            sent += 1;
        }
    }
    let applied = async |sent: u64| {
        eventually("applying", || async { worker.event_counts().is_ok_and(|counts| counts.applied >= sent) })
            .await
    };
    applied(sent).await?;
    let id = community(&client, "verified").await?;
    let run = async |arguments: String| -> Result<(Option<i32>, String)> {
        let output = setting.configuration.run(&arguments).await?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
    };
    let (code, said) = run("verify --all".to_owned()).await?;
    ensure!(code == Some(0), "{said}");
    let (code, _) = run("verify".to_owned()).await?;
    ensure!(code == Some(2), "which community must be said");

    for (what, sql) in DRIFTS {
        psql(&setting, sql)?;
        let (code, said) = run(format!("verify --community {id}")).await?;
        ensure!(code == Some(3) && said.contains("DRIFTED"), "{what}: {said}");
        let line = said.lines().find(|line| line.trim_start().starts_with(what));
        ensure!(line.is_some_and(|line| line.contains("DRIFTED")), "{what}: {said}");
        let going_on = async {
            for step in 0..40_i64 {
                let event = guild.score(&format!("u{}", 10 + step % 10), step * 7);
                publisher.publish(&event).await?;
            }
            anyhow::Ok(())
        };
        let (repaired, published) =
            tokio::join!(run(format!("verify --community {id} --repair --json")), going_on);
        published?;
        sent += 40;
        let (code, said) = repaired?;
        ensure!(code == Some(0), "{what}: {said}");
        let report: serde_json::Value = serde_json::from_str(said.lines().next().unwrap_or_default())?;
        let compared =
            report["compared"].as_array().into_iter().flatten().find(|compared| compared["what"] == what);
        let repaired = compared.and_then(|compared| compared["repaired"].as_u64());
        // Events move a threshold to its place by themselves.
        ensure!(repaired > Some(0) || what == "tiers.threshold" && repaired.is_some(), "{what}: {said}");
        applied(sent).await?;
        let (code, said) = run("verify --all".to_owned()).await?;
        ensure!(code == Some(0), "after the repair of {what}: {said}");
    }
    ensure!(worker.stop()? == Some(0), "the worker ends well");
    Ok(())
}
