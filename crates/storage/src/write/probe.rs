//! A probe: events of every kind and with every effect on a member's standing are applied, and rolled back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{Bool, Text};
use diesel_async::AsyncPgConnection;
use futures_util::FutureExt;
use muster_domain::{
    Activity, Awarder, BadgeKind, CommunityName, Conviction, Effect, ErasureKey, Event, EventId, EventTime,
    GuildEffect, GuildId, MaxClockSkew, MemberEffect, Nym, Reason, Shard, TimeBounds, UserId,
};
use time::OffsetDateTime;
use uuid::Uuid;

use super::apply::{self, Batch};
use super::{activity, communities, ids, tiers};
use crate::error::Error;
use crate::sql::statement::{self, Insertion, Statement};
use crate::store::Store;
use crate::tenant::{Named, Tenant};

/// The most characters of a nym.
const LONGEST: usize = 32;
/// One more than the highest rank tier of the default policy has room for.
const MEMBERS: i64 = 8;

/// For one transaction: above what a probe's statements take under load, and short enough for readiness to go off within five
/// seconds of a fault.
const BOUNDS: &str = "SET LOCAL lock_timeout = 1500; SET LOCAL statement_timeout = 2000";
/// How long the commit of next to nothing may take.
const COMMIT: Duration = Duration::from_millis(1500);

impl Store {
    /// Writes what events of every kind write, for new members of a community, and takes it all back: in a new community, or in
    /// that of `guild`. It fails where events of any such community would: for want of a table, a permission or room, or by
    /// a trigger.
    ///
    /// Without a `guild` it waits two seconds and no longer for a lock, which can be one of a whole table only, and for a
    /// statement. In the end something is committed that no table has, so that a server which no longer commits is found out.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is, [`Error::Defect`] when such writes fail.
    pub async fn events_probe(&self, guild: Option<GuildId>) -> Result<(), Error> {
        if let Some(guild) = guild {
            return self.probe(guild, None).await;
        }
        // A node of a cluster may be away: while one shard can be written, it is not all of them that cannot.
        let first = self.probed().load(Ordering::Relaxed);
        let mut passed = Ok(());
        for step in 0..Shard::COUNT {
            let shard = first.wrapping_add(step) % Shard::COUNT;
            passed = self.probe(guild_in(shard)?, Some(BOUNDS)).await;
            match &passed {
                Ok(()) => self.probed().store(shard, Ordering::Relaxed),
                Err(error) if self.is_cluster() && error.may_be_of_a_node() => continue,
                Err(_) => {}
            }
            break;
        }
        passed?;
        self.write_within("commit_probe", COMMIT, |connection| {
            async move {
                let emit = "SELECT pg_logical_emit_message(true, 'muster', '') IS NOT NULL AS emitted";
                statement::optional::<EmittedRow>(connection, Statement::shared(emit)).await?;
                Ok(())
            }
            .boxed()
        })
        .await
    }

    async fn probe(&self, guild: GuildId, bounds: Option<&'static str>) -> Result<(), Error> {
        let events = events(&guild)?;
        let known = self.communities_known(&BTreeSet::from([guild.clone()])).await?;
        let community = known.get(&guild).copied();
        let key = self.erasure_key().clone();
        self.in_shard(Shard::of(&guild))
            .write_and_roll_back("events_probe", move |connection| {
                async move {
                    if let Some(bounds) = bounds {
                        statement::set(connection, bounds).await?;
                    }
                    try_out(connection, &key, guild, community, events).await
                }
                .boxed()
            })
            .await
    }
}

/// The id of a chat server that there is not, whose community would be in this shard.
fn guild_in(shard: u8) -> Result<GuildId, Error> {
    loop {
        let guild = GuildId::parse(format!("probe-{}", Uuid::now_v7())).map_err(Error::defect)?;
        if Shard::of(&guild).number() == shard {
            return Ok(guild);
        }
    }
}

/// Batches to be applied one after the other. Members come, rise, fall and go; what a member has is set and set anew.
fn events(guild: &GuildId) -> Result<Vec<Vec<Event>>, Error> {
    let times = TimeBounds::at(OffsetDateTime::now_utc(), MaxClockSkew::default());
    let mut at = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
    let mut event = |effect| {
        at += 1;
        let at = EventTime::parse(at, times).map_err(Error::defect)?;
        Ok::<_, Error>(Event {
            id: EventId::new(Uuid::now_v7()),
            at,
            guild: guild.clone(),
            effect,
            traceparent: None,
        })
    };
    let name = CommunityName::parse_optional("probe").map_err(Error::defect)?;
    let (username, nick) = (
        Nym::parse_optional("probe").map_err(Error::defect)?,
        // Each of these becomes two in the key that is sorted and searched by, which is then as long as one can be.
        Nym::parse_optional("\u{df}".repeat(LONGEST)).map_err(Error::defect)?,
    );
    let kind = BadgeKind::parse("probe").map_err(Error::defect)?;
    let (reason, by) = (
        Reason::parse_optional("probe").map_err(Error::defect)?,
        Awarder::parse_optional("probe").map_err(Error::defect)?,
    );
    let score = |conviction: i64| MemberEffect::ScoreSet {
        conviction: Some(Conviction::clamp(conviction)),
        activity: Some(Activity::clamp(1_i64)),
    };
    let award = MemberEffect::BadgeAward { kind: kind.clone(), reason: reason.clone(), by: by.clone() };
    // The first member rises above the others and falls behind them, so that tiers change, and goes and comes back. What it is
    // given is as large as it can be: a fault may be one of large values only.
    let rounds = [
        vec![award.clone()],
        vec![
            MemberEffect::Update { nick },
            score(i64::MAX),
            MemberEffect::ActivityAdd { amount: Activity::clamp(i64::MAX) },
            MemberEffect::BadgeRevoke { kind, reason, by },
        ],
        vec![score(-MEMBERS - 1), award],
        vec![MemberEffect::Leave],
        vec![MemberEffect::Join { username: username.clone() }],
    ];
    let mut users = Vec::new();
    for _ in 0..MEMBERS {
        users.push(UserId::parse(format!("probe-{}", Uuid::now_v7())).map_err(Error::defect)?);
    }
    let mut first = vec![event(Effect::Guild(GuildEffect::Join { name }))?];
    for (user, conviction) in users.iter().zip(-MEMBERS..) {
        for effect in [MemberEffect::Join { username: username.clone() }, score(conviction)] {
            first.push(event(Effect::Member { user: user.clone(), effect })?);
        }
    }
    let mut batches = vec![first];
    // A batch for each, since a batch is brought down to what it comes to.
    for round in rounds {
        let mut batch = Vec::new();
        for effect in round {
            let Some(user) = users.first().cloned() else { continue };
            batch.push(event(Effect::Member { user, effect })?);
        }
        batches.push(batch);
    }
    Ok(batches)
}

/// Applies the events of a probe, in a community that is made where it is not there, and checks what a commit would.
async fn try_out(
    connection: &mut AsyncPgConnection,
    key: &ErasureKey,
    guild: GuildId,
    community: Option<Named>,
    batches: Vec<Vec<Event>>,
) -> Result<(), Error> {
    let (id, shard, number) = match community {
        Some(named) => (named.id, named.tenant.shard, named.tenant.community),
        None => {
            communities::make(connection, BTreeSet::from([guild.clone()])).await?;
            let find = Statement::shared(
                "SELECT community_id, shard, community FROM communities WHERE guild_id = $1",
            )
            .bind::<Text, _>(guild.as_str().to_owned());
            let made: Option<MadeRow> = statement::optional(connection, find).await?;
            // Made by another meanwhile, so it can be made.
            let Some(made) = made else { return Ok(()) };
            let shard = Shard::parse(made.shard).ok_or_else(|| Error::defect("there is no such shard"))?;
            (made.community_id.into(), shard, made.community)
        }
    };
    communities::complete(connection, shard, &[Named { id, tenant: Tenant { shard, community: number } }])
        .await?;
    for events in batches {
        let events = events.into_iter().map(|event| (number, event)).collect();
        let batch = Batch {
            key: key.clone(),
            known: BTreeMap::new(),
            shard,
            insertion: Insertion::Plain,
            folds: false,
        };
        apply::apply(connection, &batch, events).await?;
    }
    ids::try_out(connection, shard, number).await?;
    // No member has a number that is drawn from all of them.
    let nobody = i64::try_from(Uuid::new_v4().as_u128() >> 65).map_err(Error::defect)?;
    activity::try_out(connection, shard, (number, nobody)).await?;
    tiers::try_out(connection, shard, (number, nobody)).await?;
    statement::execute(connection, Statement::shared("SET CONSTRAINTS ALL IMMEDIATE")).await?;
    Ok(())
}

#[derive(QueryableByName)]
struct EmittedRow {
    #[diesel(sql_type = Bool)]
    #[expect(dead_code, reason = "that there is an answer is the answer")]
    emitted: bool,
}

#[derive(QueryableByName)]
#[diesel(table_name = crate::schema::communities)]
struct MadeRow {
    community_id: Uuid,
    shard: i16,
    community: i32,
}
