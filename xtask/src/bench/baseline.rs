//! What bare batched upserts do: the same events, each as one row of the table that its effect lies in, with its indexes
//! and nothing else: no ids of events, no counts, no ranks, no tiers.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;
use time::OffsetDateTime;
use tokio_postgres::Client;
use uuid::Uuid;

use super::community::Community;
use super::database::Planner;
use super::events::{Rate, now};
use super::mix::{Draw, Mix};
use super::processes;

/// Events of one transaction: as many as the worker applies in one.
const BATCH: usize = 1000;

const SCORES: &str = "
    INSERT INTO scores AS s (community_id, profile_id, conviction, activity, last_active_at, visible)
    SELECT $1, p.profile_id, n.conviction, n.activity, $5::timestamptz, true
    FROM unnest($2::text[], $3::bigint[], $4::bigint[]) AS n (user_id, conviction, activity)
    CROSS JOIN LATERAL (SELECT profile_id FROM profiles WHERE community_id = $1 AND user_id = n.user_id LIMIT 1) AS p
    ON CONFLICT (community_id, profile_id) DO UPDATE SET
        conviction = CASE WHEN excluded.activity = 0 THEN excluded.conviction ELSE s.conviction END,
        activity = s.activity + excluded.activity, last_active_at = excluded.last_active_at";
const PROFILES: &str = "
    INSERT INTO profiles AS o (community_id, profile_id, user_id, nick, nick_key, has_left, joined_at, join_known)
    SELECT $1, coalesce(p.profile_id, gen_random_uuid()), n.user_id, n.nick, lower(n.nick), n.has_left, $5::timestamptz, true
    FROM unnest($2::text[], $3::text[], $4::boolean[]) AS n (user_id, nick, has_left)
    LEFT JOIN LATERAL (
        SELECT profile_id FROM profiles WHERE community_id = $1 AND user_id = n.user_id LIMIT 1
    ) AS p ON true
    ON CONFLICT (community_id, profile_id) DO UPDATE SET
        nick = coalesce(excluded.nick, o.nick), nick_key = coalesce(excluded.nick_key, o.nick_key),
        has_left = excluded.has_left";
const BADGES: &str = "
    INSERT INTO badges AS b (community_id, badge_id, profile_id, kind, awarded_at, revoked_at)
    SELECT $1, gen_random_uuid(), p.profile_id, n.kind, $5::timestamptz, CASE WHEN n.revoked THEN $5::timestamptz END
    FROM unnest($2::text[], $3::text[], $4::boolean[]) AS n (user_id, kind, revoked)
    CROSS JOIN LATERAL (SELECT profile_id FROM profiles WHERE community_id = $1 AND user_id = n.user_id LIMIT 1) AS p
    ON CONFLICT (community_id, profile_id, kind) WHERE revoked_at IS NULL DO UPDATE SET awarded_at = excluded.awarded_at";

/// Upserts as many events of the same mix, by one connection, and answers how fast.
///
/// # Errors
/// When the database refuses.
pub(super) async fn measure(community: &Community, draw: Draw, events: u64) -> Result<Rate> {
    let client = community.database.connect(Planner::AsWorker).await?;
    // Neither triggers nor foreign keys.
    client.batch_execute("SET session_replication_role = replica").await?;
    let statements =
        [client.prepare(SCORES).await?, client.prepare(PROFILES).await?, client.prepare(BADGES).await?];
    let take = usize::try_from(events).unwrap_or(usize::MAX);
    let mix = Mix::new(9, draw, community.guild.as_str(), community.members, now());
    let batches: Vec<Batch> = {
        let ready: Vec<_> = mix.take(take).collect();
        ready
            .chunks(BATCH)
            .map(|chunk| {
                let mut batch = Batch::default();
                for ready in chunk {
                    batch.take(&serde_json::from_slice(&ready.payload)?);
                }
                Ok::<_, anyhow::Error>(batch)
            })
            .collect::<Result<_>>()?
    };
    let postgres = community.services.postgres.id().context("PostgreSQL is stopped")?;
    let before = processes::time_with_children(postgres);
    let begun = Instant::now();
    let mut rows = 0;
    for batch in batches {
        client.batch_execute("BEGIN").await?;
        rows += batch.write(&client, &statements, community.id.get()).await?;
        client.batch_execute("COMMIT").await?;
    }
    let (took, used) = (begun.elapsed(), processes::time_with_children(postgres).saturating_sub(before));
    let what = format!("bare batched upserts, {} draw", draw.name());
    Ok(Rate::new(what, rows, took, std::time::Duration::ZERO, used))
}

/// The rows of a batch, one of each key: what a statement may not write twice.
#[derive(Default)]
struct Batch {
    scores: BTreeMap<String, (i64, i64)>,
    profiles: BTreeMap<String, (Option<String>, bool)>,
    badges: BTreeMap<(String, String), bool>,
    /// How many events they stand for.
    events: u64,
}

impl Batch {
    fn take(&mut self, event: &Value) {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let user = text(event.get("user_id"));
        let data = event.get("data");
        let number = |name: &str| data.and_then(|data| data.get(name)).and_then(Value::as_i64).unwrap_or(0);
        let kind = text(data.and_then(|data| data.get("kind")));
        self.events += 1;
        match text(event.get("event_type")).as_str() {
            "activity.add" => self.scores.entry(user).or_default().1 += number("amount"),
            "score.set" => self.scores.entry(user).or_default().0 = number("conviction"),
            "member.update" => {
                let nick = text(data.and_then(|data| data.get("nick")));
                self.profiles.entry(user).or_default().0 = Some(nick);
            }
            "member.leave" => self.profiles.entry(user).or_default().1 = true,
            "badge.award" => drop(self.badges.insert((user, kind), false)),
            "badge.revoke" => drop(self.badges.insert((user, kind), true)),
            _ => self.profiles.entry(user).or_default().1 = false,
        }
    }

    async fn write(
        self,
        client: &Client,
        [scores, profiles, badges]: &[tokio_postgres::Statement; 3],
        community: Uuid,
    ) -> Result<u64> {
        let now = OffsetDateTime::now_utc();
        let mut columns = (Vec::new(), Vec::new(), Vec::new());
        for (user, (conviction, activity)) in self.scores {
            columns.0.push(user);
            columns.1.push(conviction);
            columns.2.push(activity);
        }
        client.execute(scores, &[&community, &columns.0, &columns.1, &columns.2, &now]).await?;
        let mut columns = (Vec::new(), Vec::new(), Vec::new());
        for (user, (nick, has_left)) in self.profiles {
            columns.0.push(user);
            columns.1.push(nick);
            columns.2.push(has_left);
        }
        client.execute(profiles, &[&community, &columns.0, &columns.1, &columns.2, &now]).await?;
        let mut columns = (Vec::new(), Vec::new(), Vec::new());
        for ((user, kind), revoked) in self.badges {
            columns.0.push(user);
            columns.1.push(kind);
            columns.2.push(revoked);
        }
        client.execute(badges, &[&community, &columns.0, &columns.1, &columns.2, &now]).await?;
        Ok(self.events)
    }
}
