//! Where a member stands: ranks, neighbours, distances, and the score that a rank tier takes.

use muster_domain::{Keys, Lookup, Page, PageLimit, ProfileDetail, ProfileId, Tenure, UserId, Wallet};
use muster_storage::{Community, Error, Missing, Store};
use time::{Duration, OffsetDateTime};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::support::consistency;
use crate::support::database::Database;
use crate::support::events::{START, apply, event_time, guild, joined, policy, scored, user, view};
use crate::support::tied::{Tied, profile};

/// The visible members from the highest: id, conviction, competition rank.
async fn standings(client: &Client, community: &Community) -> Vec<(Uuid, i64, u64)> {
    let rows = client
        .query(
            "SELECT profile_id, conviction FROM members JOIN communities USING (shard, community)
             WHERE community_id = $1 AND NOT hidden AND NOT has_left ORDER BY conviction DESC, joined_at, member",
            &[&community.id().get()],
        )
        .await
        .unwrap();
    let scores: Vec<i64> = rows.iter().map(|row| row.get(1)).collect();
    let rank = |score: i64| u64::try_from(scores.iter().filter(|other| **other > score).count()).unwrap() + 1;
    rows.iter().map(|row| (row.get(0), row.get(1), rank(row.get(1)))).collect()
}

#[tokio::test]
async fn ranks_and_positions_are_what_counting_says() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let community = Tied::make(&store, &client).await.here;
    let standings = standings(&client, &community).await;
    assert!(standings.len() > 100);
    let entry = standings[68].1;
    for (place, (id, score, rank)) in standings.iter().enumerate() {
        let id = (*id).into();
        let detail = community.profile_get(&Lookup::ProfileId(id)).await.unwrap();
        assert_eq!((detail.rank.get(), detail.profile.conviction.get()), (*rank, *score));
        let badge_rank = client
            .query_one(
                "SELECT count(*) + 1 FROM members AS m JOIN members AS o USING (shard, community)
                 WHERE m.profile_id = $1 AND NOT o.hidden AND NOT o.has_left AND o.badge_count > m.badge_count",
                &[&id.get()],
            )
            .await
            .unwrap();
        assert_eq!(detail.badge_rank.get(), u64::try_from(badge_rank.get::<_, i64>(0)).unwrap());

        let wallet = Wallet::parse(format!("0x{place:040x}")).unwrap();
        community.profile_link_wallet(id, Some(wallet.clone())).await.unwrap();
        let by_id = community.profile_get(&Lookup::ProfileId(id)).await.unwrap();
        for lookup in [Lookup::UserId(by_id.profile.user_id.clone()), Lookup::Wallet(wallet)] {
            assert_eq!(community.profile_get(&lookup).await.unwrap(), by_id, "{lookup:?}");
        }

        let position = community.profile_position(id).await.unwrap();
        assert_eq!((position.rank.get(), position.conviction.get()), (*rank, *score));
        let above = standings.iter().map(|s| s.1).filter(|other| other > score).min();
        let below = standings.iter().map(|s| s.1).filter(|other| other < score).max();
        assert_eq!(position.distance_above, above.map(|above| above - score));
        assert_eq!(position.distance_below, below.map(|below| score - below));
        let next = [("fremen", 0), ("stillsuit", 100), ("sietch", 500), ("sayyadina", 1000)];
        let next = next.into_iter().find(|(_, from)| from > score);
        assert_eq!(
            position.next_tier.map(|tier| tier.tier.to_string()).as_deref(),
            next.map(|(name, _)| name)
        );
        assert_eq!(position.distance_to_next_tier, next.map(|(_, from)| from - score));
        assert_eq!(position.distance_to_entry, Some((entry - score).max(0)));
        assert_eq!(position.at_risk, (63..=69).contains(rank));

        for size in [1, 2, 9, 10, 1000] {
            let page = community.profile_list_around(id, PageLimit::clamp(size)).await.unwrap();
            let found: Vec<(Uuid, i64, u64)> = page
                .items
                .iter()
                .map(|row| (row.profile.profile_id.get(), row.profile.conviction.get(), row.rank.get()))
                .collect();
            let size = usize::try_from(size).unwrap().min(standings.len());
            // As many above as below, one more above when it does not come out even; the rest from the other side.
            let above = (size / 2).min(place).max(size.saturating_sub(standings.len() - place));
            assert_eq!(found, standings[place - above..place - above + size], "around {place}, {size}");
        }
    }
    many_are_answered_as_each_is(&client, &community).await;
    let gone = profile(&client, &community, &user(3)).await;
    let hidden = profile(&client, &community, &user(5)).await;
    for id in [gone, hidden, Uuid::new_v4().into()] {
        let results = [
            community.profile_get(&Lookup::ProfileId(id)).await.map(drop),
            community.profile_position(id).await.map(drop),
            community.profile_list_around(id, PageLimit::MAX).await.map(drop),
            community.badge_list_by_profile(id, PageLimit::MAX, None).await.map(drop),
        ];
        for result in results {
            assert!(matches!(result, Err(Error::NotFound(Missing::Profile))), "{result:?}");
        }
    }
}

/// Members by many keys, beside plain SQL for who is visible and for both ranks.
async fn many_are_answered_as_each_is(client: &Client, community: &Community) {
    let rows = client
        .query(
            "SELECT profile_id, user_id, NOT hidden AND NOT has_left,
                 (SELECT count(*) + 1 FROM members AS o
                     WHERE o.shard = m.shard AND o.community = m.community AND NOT o.hidden AND NOT o.has_left
                         AND o.conviction > m.conviction),
                 (SELECT count(*) + 1 FROM members AS o
                     WHERE o.shard = m.shard AND o.community = m.community AND NOT o.hidden AND NOT o.has_left
                         AND o.badge_count > m.badge_count)
             FROM members AS m JOIN communities USING (shard, community)
             WHERE community_id = $1 AND erased_at IS NULL ORDER BY md5(user_id)",
            &[&community.id().get()],
        )
        .await
        .unwrap();
    for rows in rows.chunks(100) {
        let expected: Vec<(Uuid, u64, u64)> = rows
            .iter()
            .filter(|row| row.get(2))
            .map(|row| {
                (row.get(0), row.get::<_, i64>(3).cast_unsigned(), row.get::<_, i64>(4).cast_unsigned())
            })
            .collect();
        assert!(!expected.is_empty() && expected.len() < rows.len(), "some are visible");
        let found = |page: Page<ProfileDetail>| -> Vec<(Uuid, u64, u64)> {
            assert_eq!((page.next, page.limit), (None, 100));
            let of = |item: &ProfileDetail| {
                (item.profile.profile_id.get(), item.rank.get(), item.badge_rank.get())
            };
            page.items.iter().map(of).collect()
        };
        let ids = Keys::parse(rows.iter().map(|row| ProfileId::new(row.get(0))).collect()).unwrap();
        assert_eq!(found(community.profile_list_by_ids(&ids).await.unwrap()), expected);
        let users = rows.iter().map(|row| UserId::parse(row.get::<_, String>(1)).unwrap()).collect();
        let users = Keys::parse(users).unwrap();
        assert_eq!(found(community.profile_list_by_users(&users).await.unwrap()), expected);
        let (id, _, _) = expected[0];
        let one = Keys::parse(vec![Uuid::new_v4().into(), ProfileId::new(id)]).unwrap();
        let one = community.profile_list_by_ids(&one).await.unwrap().items;
        assert_eq!(one, [community.profile_get(&Lookup::ProfileId(id.into())).await.unwrap()]);
    }
}

/// A community of members with these scores.
async fn scores(store: &Store, name: &str, scores: &[i64]) -> Community {
    let guild = guild(name);
    let mut events = Vec::new();
    for (number, score) in scores.iter().enumerate() {
        events.push(joined(&guild, &user(number), START, "x"));
        events.push(scored(&guild, &user(number), START, *score));
    }
    apply(store, &guild, events).await
}

#[tokio::test]
async fn the_threshold_follows_the_entry_rank() {
    let database = Database::migrated().await;
    let store = database.store().await;
    let threshold = async |community: &Community| {
        let threshold = community.tier_threshold().await.unwrap();
        let score = threshold.score.map(|score| score.get());
        (
            threshold.entry_rank.map(|rank| rank.get()),
            score,
            threshold.eligible,
            threshold.waiting,
            threshold.gap,
        )
    };
    let few: Vec<i64> = (0..68).collect();
    let community = scores(&store, "few", &few).await;
    assert_eq!(threshold(&community).await, (Some(69), None, 68, 0, None));
    let just: Vec<i64> = (0..69).collect();
    let community = scores(&store, "just", &just).await;
    assert_eq!(threshold(&community).await, (Some(69), Some(0), 69, 0, None));
    let many: Vec<i64> = (0..100).collect();
    let community = scores(&store, "many", &many).await;
    assert_eq!(threshold(&community).await, (Some(69), Some(31), 69, 31, Some(1)));
    // Sixty above, twenty tied across the edge, the rest far below.
    let tied: Vec<i64> = [vec![500; 60], vec![100; 20], vec![-5; 3]].concat();
    let community = scores(&store, "tied", &tied).await;
    assert_eq!(threshold(&community).await, (Some(69), Some(100), 80, 3, Some(105)));

    community.tier_policy_replace(&policy(&[0], &[])).await.unwrap();
    let community = view(&store, &guild("tied")).await;
    assert_eq!(threshold(&community).await, (None, None, 0, 83, None));
    let nobody = view_of_nobody(&store).await;
    assert_eq!(threshold(&nobody).await, (Some(69), None, 0, 0, None));
}

async fn view_of_nobody(store: &Store) -> Community {
    use muster_domain::{CommunityName, Effect, Event, EventId, GuildEffect};

    let name = CommunityName::parse("Nobody").unwrap();
    let event = Event {
        id: EventId::new(Uuid::new_v4()),
        at: event_time(START),
        guild: guild("nobody"),
        effect: Effect::Guild(GuildEffect::Join { name: Some(name) }),
        traceparent: None,
    };
    apply(store, &guild("nobody"), vec![event]).await
}

#[tokio::test]
async fn an_empty_community_has_empty_lists_and_zero_counts() {
    let database = Database::migrated().await;
    let store = database.store().await;
    let community = view_of_nobody(&store).await;
    assert!(community.profile_list_ranked(PageLimit::MAX, None).await.unwrap().items.is_empty());
    assert!(community.tier_list_progression(PageLimit::MAX, None).await.unwrap().items.is_empty());
    assert!(community.badge_leaderboard(PageLimit::MAX, None).await.unwrap().items.is_empty());
    let stats = community.stats().await.unwrap();
    assert_eq!((stats.members, stats.badges, stats.conviction_total), (0, 0, 0));
    assert_eq!(stats.tiers.len(), 7);
    let found = store.community_find(&guild("nobody")).await.unwrap();
    assert_eq!((found.community_id, found.active), (community.id(), true));
    assert_eq!(found.name.map(String::from).as_deref(), Some("Nobody"));
    let missing = store.community(Uuid::new_v4().into()).await.map(drop);
    assert!(matches!(missing, Err(Error::NotFound(Missing::Community))), "{missing:?}");
}

#[tokio::test]
async fn stats_count_the_visible_members_of_this_week() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guild = guild("numbers");
    let now = OffsetDateTime::now_utc();
    let ago =
        |days: i64| i64::try_from((now - Duration::days(days)).unix_timestamp_nanos() / 1_000_000).unwrap();
    let mut events = Vec::new();
    for (number, days) in [0, 0, 1, 6, 7, 40, 200].into_iter().enumerate() {
        let who = user(number);
        events.push(joined(&guild, &who, ago(days), "x"));
        events.push(scored(&guild, &who, ago(days), 10));
        events.push(crate::support::events::awarded(&guild, &who, ago(days), "k"));
        events.push(crate::support::events::added(&guild, &who, ago(days), 1));
    }
    let community = apply(&store, &guild, events).await;
    let numbers = async || {
        let stats = view(&store, &guild).await.stats().await.unwrap();
        assert_eq!(stats.tiers.iter().map(|tier| tier.members).sum::<u64>(), stats.members);
        let week =
            [stats.active_this_week, stats.new_this_week, stats.badges_this_week, stats.promotions_this_week];
        (stats.members, stats.conviction_total, stats.badges, week)
    };
    assert_eq!(numbers().await, (7, 70, 7, [4, 4, 4, 0]));
    let holders = async || community.badge_kind_list(PageLimit::MAX, None).await.unwrap().items[0].holders;
    assert_eq!(holders().await, 7);
    // Two may hold the rank tier: the first two keep it, and all others fall to none; then the third and fourth rise to it.
    community.tier_policy_replace(&policy(&[], &[2])).await.unwrap();
    for (numbers, at, conviction) in [([0, 1], 1, 15), ([2, 3], 2, 20)] {
        let events = numbers.map(|number| scored(&guild, &user(number), ago(0) + at, conviction)).to_vec();
        apply(&store, &guild, events).await;
    }
    let id = profile(&client, &community, &user(2)).await;
    let before = numbers().await;
    assert_eq!((before.0, before.1, before.2), (7, 100, 7));
    let sql = "SELECT count(*) FROM tier_changes JOIN members USING (shard, community, member)
         WHERE promotion AND profile_id = $1";
    let promotions: i64 = client.query_one(sql, &[&id.get()]).await.unwrap().get(0);
    assert!(promotions > 0);
    community.profile_hide(id).await.unwrap();
    let after = numbers().await;
    assert_eq!((after.0, after.1, after.2, holders().await), (6, 80, 6, 6));
    assert_eq!(after.3[..3], [3, 3, 3]);
    consistency::check(&client).await;
    let sql = "SELECT count(*) FROM tier_changes JOIN members USING (shard, community, member)
         WHERE promotion AND NOT hidden";
    let promotions: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(after.3[3], u64::try_from(promotions).unwrap());
    community.profile_show(id).await.unwrap();
    assert_eq!((numbers().await.0, numbers().await.2, holders().await), (7, 7, 7));

    let tenure =
        async |number: u64| community.profile_get(&Lookup::UserId(user(number))).await.unwrap().tenure;
    assert_eq!(
        [tenure(0).await, tenure(5).await, tenure(6).await],
        [Tenure::Og, Tenure::Member, Tenure::Elder]
    );
}
