//! Tiers follow scores and ranks, and every move between them is recorded once.

use muster_domain::{
    CommunityName, Conviction, Effect, Event, EventId, GuildEffect, GuildId, MemberEffect, Movement,
    PageLimit, Rank, RankTier, ScoreTier, Tier, TierPolicy,
};
use muster_storage::{Community, Store};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::support::consistency;
use crate::support::database::Database;
use crate::support::events::{START, apply, event_time, guild, joined, member, policy, scored, user, view};
use crate::support::tied::profile;

struct Setting {
    store: Store,
    client: Client,
    guild: GuildId,
    database: Database,
}

impl Setting {
    /// A community of nobody, with a policy.
    async fn new(policy: &TierPolicy) -> Self {
        let database = Database::migrated().await;
        let setting = Self {
            store: database.store().await,
            client: database.client().await,
            guild: guild("tiers"),
            database,
        };
        let founded = Event {
            id: EventId::new(Uuid::new_v4()),
            at: event_time(START),
            guild: setting.guild.clone(),
            effect: Effect::Guild(GuildEffect::Join { name: CommunityName::parse("Tiers").ok() }),
            traceparent: None,
        };
        setting.apply(vec![founded]).await.tier_policy_replace(policy).await.unwrap();
        setting
    }

    async fn apply(&self, events: Vec<Event>) -> Community {
        apply(&self.store, &self.guild, events).await
    }

    async fn view(&self) -> Community {
        view(&self.store, &self.guild).await
    }

    /// Members 0, 1 … with these scores.
    async fn members(&self, scores: impl IntoIterator<Item = i64>) -> Community {
        let events = scores.into_iter().enumerate().flat_map(|(number, score)| {
            let who = user(number);
            [joined(&self.guild, &who, START, "x"), scored(&self.guild, &who, START + 1, score)]
        });
        self.apply(events.collect()).await
    }

    async fn score(&self, number: usize, at: i64, score: i64) {
        self.apply(vec![scored(&self.guild, &user(number), START + at, score)]).await;
    }

    /// The changes since the first `seen`, oldest first: who, from, to, up or down.
    async fn changes(&self, seen: usize) -> Vec<String> {
        consistency::check(&self.client).await;
        let rows = self
            .client
            .query(
                "SELECT concat_ws(' ', user_id, coalesce(o.name, '-'), coalesce(n.name, '-'),
                     CASE WHEN promotion THEN 'up' ELSE 'down' END)
                 FROM tier_changes AS c JOIN members AS m USING (shard, community, member)
                 LEFT JOIN tiers AS o ON o.shard = c.shard AND o.community = c.community AND o.tier = c.from_tier
                 LEFT JOIN tiers AS n ON n.shard = c.shard AND n.community = c.community AND n.tier = c.to_tier
                 ORDER BY change",
                &[],
            )
            .await
            .unwrap();
        rows.iter().skip(seen).map(|row| row.get(0)).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_tier_is_named_however_lately_the_policy_was_read() {
    let setting = Setting::new(&policy(&[0], &[])).await;
    setting.members([50]).await;
    let other = setting.database.store().await;
    let there = view(&other, &setting.guild).await;
    setting.view().await.tier_policy_replace(&policy(&[0, 40], &[])).await.unwrap();
    let page = there.profile_list_ranked(PageLimit::MAX, None).await.unwrap();
    assert_eq!(page.items[0].profile.tier.clone().map(String::from).as_deref(), Some("s1"));
}

#[tokio::test]
async fn every_move_is_recorded_once_and_the_first_tier_is_none() {
    let setting = Setting::new(&policy(&[0, 100], &[1, 3])).await;
    // r0: 500; r1: 400, 300; s1: 200, 100; s0: 50; none: -1.
    let community = setting.members([500, 400, 300, 200, 100, 50, -1]).await;
    assert!(setting.changes(0).await.is_empty(), "the first tier is not a promotion");

    setting.score(5, 10, 150).await;
    assert_eq!(setting.changes(0).await, ["u5 s0 s1 up"]);
    setting.score(6, 11, 0).await;
    assert_eq!(setting.changes(1).await, ["u6 - s0 up"]);
    // Rising into the rank tier pushes another out of it, and the same event again changes nothing.
    let rise = scored(&setting.guild, &user(3), START + 12, 350);
    setting.apply(vec![rise.clone()]).await;
    setting.apply(vec![rise]).await;
    let mut moved = setting.changes(2).await;
    moved.sort();
    assert_eq!(moved, ["u2 r1 s1 down", "u3 s1 r1 up"]);
    // An earlier event that arrives late changes neither score nor tier.
    setting.score(3, 2, 9000).await;
    assert_eq!(setting.changes(4).await.len(), 0);

    setting.apply(vec![member(&setting.guild, &user(0), START + 13, MemberEffect::Leave)]).await;
    let mut moved = setting.changes(4).await;
    moved.sort();
    assert_eq!(moved, ["u1 r1 r0 up", "u2 s1 r1 up"]);
    let second = profile(&setting.client, &community, &user(1)).await;
    community.profile_hide(second).await.unwrap();
    let mut moved = setting.changes(6).await;
    moved.sort();
    assert_eq!(moved, ["u3 r1 r0 up", "u5 s1 r1 up"]);
    community.profile_show(second).await.unwrap();
    let mut moved = setting.changes(8).await;
    moved.sort();
    assert_eq!(moved, ["u3 r0 r1 down", "u5 r1 s1 down"]);
    // Back from leaving, below where they left.
    let back = joined(&setting.guild, &user(0), START + 14, "x");
    setting.apply(vec![back, scored(&setting.guild, &user(0), START + 14, -50)]).await;
    assert_eq!(setting.changes(10).await, ["u0 r0 - down"]);

    // The list shows what is recorded of visible members.
    let page = setting.view().await.tier_change_list(PageLimit::MAX, None).await.unwrap();
    assert_eq!(page.items.len(), 11);
    assert_eq!(page.items[0].movement, Movement::Demotion);
    assert_eq!((page.items[0].from.as_ref().unwrap().as_str(), page.items[0].to.as_ref()), ("r0", None));
    community.profile_hide(second).await.unwrap();
    let page = setting.view().await.tier_change_list(PageLimit::MAX, None).await.unwrap();
    assert!(page.items.iter().all(|change| change.profile_id != second));
}

#[tokio::test]
async fn one_batch_that_moves_a_member_up_and_down_records_the_outcome() {
    let setting = Setting::new(&policy(&[0, 100], &[])).await;
    setting.members([50]).await;
    let up_and_down = vec![
        scored(&setting.guild, &user(0), START + 5, 500),
        scored(&setting.guild, &user(0), START + 6, 60),
    ];
    setting.apply(up_and_down).await;
    assert!(setting.changes(0).await.is_empty());
}

#[tokio::test]
async fn a_tie_of_more_than_a_thousand_shares_no_rank_tier() {
    let setting = Setting::new(&policy(&[0], &[7, 69])).await;
    let tiers = async || {
        let rows = setting
            .client
            .query(
                "SELECT DISTINCT name FROM members LEFT JOIN tiers USING (shard, community, tier)
                 WHERE visible ORDER BY 1",
                &[],
            )
            .await
            .unwrap();
        rows.iter().map(|row| row.get(0)).collect::<Vec<String>>()
    };
    setting.members(vec![10; 1001]).await;
    assert_eq!(tiers().await, ["s0"]);
    // Those who came with the first batch shared it for as long as they were alone.
    let seen = setting.changes(0).await.len();
    // One fewer, and the tie is one that shares it; one more, and it is not.
    setting.apply(vec![member(&setting.guild, &user(0), START + 2, MemberEffect::Leave)]).await;
    assert_eq!(tiers().await, ["r0"]);
    assert_eq!(setting.changes(seen).await.len(), 1000);
    setting.apply(vec![joined(&setting.guild, &user(0), START + 3, "x")]).await;
    assert_eq!(tiers().await, ["s0"]);
    assert_eq!(setting.changes(seen + 1000).await.len(), 1000);
    // Who rises above the tie holds a rank tier alone.
    setting.score(5, 9, 11).await;
    assert_eq!(tiers().await, ["r0", "s0"]);
    assert_eq!(setting.changes(seen + 2000).await, ["u5 s0 r0 up"]);
}

#[tokio::test]
async fn a_replaced_policy_gives_everyone_their_tier_of_it() {
    let setting = Setting::new(&TierPolicy::default()).await;
    // More members than one batch of the settling holds.
    let community = setting.members((0..2300).map(|number| number % 700 - 20)).await;
    let before = setting.changes(0).await.len();
    community.tier_policy_replace(&policy(&[10, 600], &[5, 1000])).await.unwrap();
    let recorded = setting.changes(0).await.len();
    assert!(recorded - before > 2000, "{before} and {recorded}");
    let stats = setting.view().await.stats().await.unwrap();
    assert_eq!(stats.tiers.iter().map(|tier| tier.members).sum::<u64>(), 2300);
    assert_eq!(stats.tiers.len(), 5);
    setting.view().await.tier_policy_replace(&policy(&[10, 600], &[5, 1000])).await.unwrap();
    assert_eq!(setting.changes(recorded).await.len(), 0, "the same policy again moves nobody");
}

#[tokio::test]
async fn who_falls_out_of_a_withdrawn_tier_is_not_promoted() {
    let tier = |name: &str| Tier::parse(name).unwrap();
    let named = |ranks: &[(&str, u64)], scores: &[(&str, i64)]| {
        let ranks =
            ranks.iter().map(|(name, last)| RankTier { tier: tier(name), last: Rank::below(last - 1) });
        let scores =
            scores.iter().map(|(name, from)| ScoreTier { tier: tier(name), from: Conviction::clamp(*from) });
        TierPolicy::new(scores.collect(), ranks.collect()).unwrap()
    };
    let setting = Setting::new(&named(&[("top", 1), ("second", 2)], &[("low", 0), ("mid", 50)])).await;
    setting.members([90, 80, 60, 10]).await;
    let seen = setting.changes(0).await.len();
    setting.view().await.tier_policy_replace(&named(&[("second", 2)], &[("mid", 5)])).await.unwrap();
    let mut moved = setting.changes(seen).await;
    moved.sort();
    assert_eq!(moved, ["u0 top second down", "u3 low mid up"]);

    // A tier that both policies have stands elsewhere in them: by the one before, both moves are down.
    let setting = Setting::new(&named(&[("first", 1)], &[("a", 0), ("b", 10), ("c", 20), ("d", 30)])).await;
    setting.members([99, 35, 12]).await;
    let seen = setting.changes(0).await.len();
    let policy = named(&[("first", 1)], &[("a", 0), ("c", 15), ("new", 90)]);
    for _ in 0..2 {
        // Again, as after an answer that was lost.
        setting.view().await.tier_policy_replace(&policy).await.unwrap();
    }
    let mut moved = setting.changes(seen).await;
    moved.sort();
    assert_eq!(moved, ["u1 d c down", "u2 b a down"]);
}

#[tokio::test]
async fn equals_share_the_edge_and_one_who_is_erased_makes_room() {
    let setting = Setting::new(&policy(&[0], &[2, 4])).await;
    // r0: 90, 80, 80, for the second place is shared; r1 reaches to the fourth, 70, also shared.
    let community = setting.members([90, 80, 80, 70, 70, 60, 60]).await;
    let seen = setting.changes(0).await.len();
    let erased = profile(&setting.client, &community, &user(1)).await;
    community.profile_erase(erased).await.unwrap();
    assert!(setting.changes(seen).await.is_empty(), "the tie still holds the edges");
    community.profile_erase(profile(&setting.client, &community, &user(2)).await).await.unwrap();
    let mut moved = setting.changes(seen).await;
    moved.sort();
    // The second place is now that of 70, and the fourth that of 60.
    assert_eq!(moved, ["u3 r1 r0 up", "u4 r1 r0 up", "u5 s0 r1 up", "u6 s0 r1 up"]);
    // One more of 70 has the fourth place, so that those of 60 lose theirs.
    setting.apply(vec![scored(&setting.guild, &user(9), START + 5, 70)]).await;
    let mut moved = setting.changes(seen + 4).await;
    moved.sort();
    assert_eq!(moved, ["u5 r1 s0 down", "u6 r1 s0 down"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_ranks_tiers_and_moves_agree_while_two_workers_write() {
    let setting = Setting::new(&policy(&[0, 50], &[3, 7])).await;
    setting.members((0..40).map(|number| number * 3)).await;
    let other = setting.database.store().await;
    let write = |store: Store, first: i64| {
        let guild = setting.guild.clone();
        async move {
            for step in 0..60_i64 {
                let number = (step * 7 + first) % 40;
                let who = user(number);
                let at = START + 100 + step * 2 + first;
                let event = match step % 6 {
                    4 => member(&guild, &who, at, MemberEffect::Leave),
                    5 => joined(&guild, &user((number + 33) % 40), at, "x"),
                    _ => scored(&guild, &who, at, (step * 37 + first * 11) % 120),
                };
                apply(&store, &guild, vec![event]).await;
            }
        }
    };
    let reader = setting.database.client().await;
    let written = std::sync::atomic::AtomicBool::new(false);
    let writing = async {
        tokio::join!(write(setting.store.clone(), 0), write(other, 1));
        written.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let looking = async {
        let mut looks = 0;
        while !written.load(std::sync::atomic::Ordering::Relaxed) {
            reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.unwrap();
            consistency::check(&reader).await;
            reader.batch_execute("COMMIT").await.unwrap();
            looks += 1;
        }
        looks
    };
    let ((), looks) = tokio::join!(writing, looking);
    assert!(looks > 1, "nobody looked in between");
    // A move that was recorded twice, or not, would break the chain of that member's changes.
    assert!(!setting.changes(0).await.is_empty());
}

#[tokio::test]
async fn a_members_old_changes_are_forgotten_beyond_the_newest_hundred() {
    let setting = Setting::new(&policy(&[10], &[])).await;
    setting.members([0, 0, 0, 0]).await;
    // Until now: of the first one change every twenty minutes, 2160 in thirty days; of the last one every five, 8640 in thirty
    // days; of the others one a day.
    let long = "INSERT INTO tier_changes
                 (shard, community, member, change, at, promotion, visible, from_tier, to_tier)
             SELECT m.shard, m.community, m.member, -n,
                 now() - n * CASE WHEN m.user_id = 'u0' THEN interval '20 minutes'
                     WHEN m.user_id = 'u3' THEN interval '5 minutes' ELSE interval '1 day' END, n % 2 = 0, true,
                 CASE WHEN n % 2 = 1 THEN t.tier END, CASE WHEN n % 2 = 0 THEN t.tier END
             FROM members AS m JOIN tiers AS t USING (shard, community) CROSS JOIN generate_series(1, 7000) AS n
             WHERE t.place IS NOT NULL AND n <= CASE WHEN m.user_id = 'u0' THEN 3000
                 WHEN m.user_id = 'u3' THEN 7000 ELSE 300 END";
    let days = "INSERT INTO community_days AS d (shard, community, day, promoted)
             SELECT shard, community, (at AT TIME ZONE 'UTC')::date, count(*) FROM tier_changes WHERE promotion GROUP BY 1, 2, 3
             ON CONFLICT (shard, community, day) DO UPDATE SET promoted = excluded.promoted";
    for sql in [long, days] {
        setting.client.execute(sql, &[]).await.unwrap();
    }
    consistency::check(&setting.client).await;
    // One of so many changes has its member's looked at; two members take numbers by turns.
    for round in 0..64 {
        let score = if round % 2 == 0 { 10 } else { 0 };
        let both = [0, 1].map(|who| scored(&setting.guild, &user(who), START + 10 + round, score));
        setting.apply(both.into()).await;
    }
    for round in 0..64 {
        let score = if round % 2 == 0 { 10 } else { 0 };
        setting.apply(vec![scored(&setting.guild, &user(3), START + 10 + round, score)]).await;
    }
    let kept = async |who: usize| -> (i64, i64) {
        let sql = "SELECT count(*), extract(day FROM now() - min(at))::bigint
             FROM tier_changes JOIN members USING (shard, community, member) WHERE user_id = $1";
        let row = setting.client.query_one(sql, &[&user(who).as_str()]).await.unwrap();
        (row.get(0), row.get(1))
    };
    let (often, seldom) = (kept(0).await, kept(1).await);
    assert!((2160..=2160 + 64).contains(&often.0) && often.1 <= 30, "all of thirty days: {often:?}");
    // The newest hundred when it was looked at, and those made since.
    assert!((100..164).contains(&seldom.0) && (36..100).contains(&seldom.1), "{seldom:?}");
    assert_eq!(kept(2).await, (300, 300), "nothing of who does not move");
    let too_often = kept(3).await.0;
    assert!((5000..5064).contains(&too_often), "no more than so many: {too_often}");
    consistency::check(&setting.client).await;
}
