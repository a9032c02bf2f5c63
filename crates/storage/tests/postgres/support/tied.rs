//! Communities in which many are equal in everything that lists are ordered by.

use muster_domain::{GuildId, MemberEffect, ProfileId, UserId};
use muster_storage::{Community, Store};
use tokio_postgres::Client;
use uuid::Uuid;

use super::events::{START, added, apply, awarded, guild, joined, member, revoked, scored, user, view};

const HOUR: i64 = 3_600_000;

/// Two communities of the same people under the same names, who differ in what they did.
pub(crate) struct Tied {
    pub(crate) here: Community,
    pub(crate) there: Community,
}

impl Tied {
    pub(crate) async fn make(store: &Store, client: &Client) -> Self {
        let here = people(store, client, &guild("here"), 131, 37).await;
        let there = people(store, client, &guild("there"), 95, 53).await;
        Self { here, there }
    }
}

async fn people(store: &Store, client: &Client, guild: &GuildId, count: i64, stride: i64) -> Community {
    let mut events = Vec::new();
    for number in 0..count {
        let who = user(number);
        let at = START + number % 9 * HOUR;
        events.push(joined(guild, &who, at, &format!("Nym {}", number % 40)));
        events.push(scored(guild, &who, at + 1, number * stride % 23 * 60 - 300));
        events.extend((number % 5 != 0).then(|| added(guild, &who, at + 2, number * 13 % 17)));
        for badge in 0..number * stride % 4 {
            events.push(awarded(guild, &who, at + 3 + badge % 2, &format!("kind{badge}")));
        }
        events.extend((number % 11 == 3).then(|| member(guild, &who, at + 9, MemberEffect::Leave)));
    }
    // One who holds many badges, some of them awarded in the same moment, and lost some.
    for badge in 0..40 {
        events.push(awarded(guild, &collector(), START + badge % 6, &format!("rare{badge:02}")));
    }
    events.extend((0..5).map(|badge| revoked(guild, &collector(), START + 10, &format!("rare{badge:02}"))));
    events.extend((0..3).map(|amount| added(guild, &collector(), START + 20, amount + 1)));
    apply(store, guild, events).await;
    // Scores move, so that tiers do.
    for round in 1..4 {
        let moved = (0..count).filter(|number| number % 3 == round % 3);
        let events = moved.map(|number| {
            let at = START + round * 100 * HOUR;
            scored(guild, &user(number), at, number * (stride + round * 10) % 29 * 50 - 250)
        });
        apply(store, guild, events.collect()).await;
    }
    let community = view(store, guild).await;
    for number in (0..count).filter(|number| number % 13 == 5) {
        community.profile_hide(profile(client, &community, &user(number)).await).await.unwrap();
    }
    community
}

pub(crate) fn collector() -> UserId {
    user(7)
}

/// The id of a person's profile in a community.
pub(crate) async fn profile(client: &Client, community: &Community, who: &UserId) -> ProfileId {
    let sql = "SELECT profile_id FROM members JOIN communities USING (shard, community)
         WHERE community_id = $1 AND user_id = $2";
    let row = client.query_one(sql, &[&community.id().get(), &who.as_str()]).await.unwrap();
    ProfileId::new(row.get::<_, Uuid>(0))
}
