//! What a call costs does not grow with the community: no table is read whole, and the rows read are bounded by the page.
//!
//! It is the server's own counts of scans and rows that are compared, so that what is measured is the plan that ran,
//! with the session's settings, within functions too.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_domain::{
    Cursor, Direction, DirectorySort, ErasedPerson, Event, GuildId, Keys, Lookup, MemberEffect, PageLimit,
    ProfileId, SearchQuery, SuggestLimit, Tier,
};
use muster_storage::{Community, DirectoryStart, Store};
use tokio_postgres::Client;

use crate::support::consistency;
use crate::support::database::Database;
use crate::support::events::{
    START, added, apply, awarded, guild, joined, kind, member, nym, scored, user, view,
};
use crate::support::tied::{collector, profile};

const MEMBERS: i64 = 20_000;

async fn people(store: &Store, guild: &GuildId, count: i64) -> Community {
    let mut events = Vec::new();
    for number in 0..count {
        let who = user(number);
        let at = START + number * 7919 % 1_000_000;
        events.push(joined(guild, &who, at, &format!("Fremen {} of {number}", number % 13)));
        events.push(scored(guild, &who, at, number * 7907 % 30_000 - 500));
        events.extend((number % 2 == 0).then(|| added(guild, &who, at, number % 977)));
        events.extend((number % 4 == 0).then(|| awarded(guild, &who, at, &format!("kind{}", number % 29))));
    }
    for number in 0..200 {
        events.push(awarded(guild, &collector(), START + number, &format!("rare{number}")));
    }
    apply(store, guild, events).await;
    let moved = (0..count / 10)
        .map(|number| scored(guild, &user(number * 10), START + 2_000_000, number * 31 % 3000));
    apply(store, guild, moved.collect()).await
}

/// Scans of whole tables and rows read by indexes, of each table.
async fn reads(client: &Client) -> BTreeMap<String, (i64, i64)> {
    let sql = "SELECT t.relname::text, t.seq_scan, coalesce((SELECT sum(i.idx_tup_read)::bigint
                 FROM pg_stat_user_indexes AS i WHERE i.relid = t.relid), 0)
         FROM pg_stat_user_tables AS t";
    let rows = client.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect()
}

/// Waits until this is the database's only session: what a session read is in the sums only once it has ended.
async fn others_have_ended(client: &Client) {
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
             AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    while client.query_one(others, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    client.batch_execute("SELECT pg_stat_clear_snapshot()").await.unwrap();
}

struct Measured {
    database: Database,
    client: Client,
    guild: GuildId,
}

impl Measured {
    /// Makes a call several times through a connection of its own, and checks what one call read on the average.
    async fn call<T>(&self, name: &str, most: i64, call: impl AsyncFn(&Community) -> T) -> T {
        const TIMES: i64 = 3;
        let before = reads(&self.client).await;
        let store = Store::open(self.database.config().pool_size(1)).await.unwrap();
        let community = view(&store, &self.guild).await;
        let mut last = None;
        for _ in 0..TIMES {
            last = Some(call(&community).await);
        }
        drop(community);
        store.close();
        drop(store);
        others_have_ended(&self.client).await;
        let after = reads(&self.client).await;
        let mut rows = BTreeMap::new();
        for (table, (scans, read)) in after {
            let (scans_before, read_before) = before.get(&table).copied().unwrap_or_default();
            let small = ["communities", "signing_keys", "__diesel_schema_migrations"];
            assert!(scans == scans_before || small.contains(&table.as_str()), "{name} reads all of {table}");
            rows.insert(table, (read - read_before) / TIMES);
        }
        rows.retain(|_, read| *read > 0);
        let sum: i64 = rows.values().sum();
        assert!(sum <= most, "{name} reads {sum} rows, more than {most}: {rows:?}");
        last.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_reads_more_than_its_page_asks_for() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    // A vacuum that comes by itself summarises the table's BRIN index, which counts as a scan of the table.
    client.batch_execute("ALTER TABLE applied_events SET (autovacuum_enabled = false)").await.unwrap();
    let guild = guild("large");
    people(&store, &crate::support::events::guild("neighbour"), 2000).await;
    let community = people(&store, &guild, MEMBERS).await;
    // Cursors deep in each list.
    let deep = Deep::find(&community).await;
    let who = profile(&client, &community, &collector()).await;
    let some_nym = nym("Fremen 5 of 5");
    drop((community, store));
    let erasures = "INSERT INTO erasures SELECT community_id, sha256(n::text::bytea), now()
         FROM communities CROSS JOIN generate_series(1, 20000) AS n";
    client.batch_execute(erasures).await.unwrap();
    client.batch_execute("ANALYZE").await.unwrap();
    // What this session read is not counted into the first call.
    drop(client);
    let client = database.client().await;
    others_have_ended(&client).await;

    let measured = Measured { database, client, guild: guild.clone() };
    let limit = PageLimit::clamp(10);
    // A rank is read from at most 31 buckets on each of 11 levels; a row of a page from three indexes.
    let (rank, page, fixed) = (11 * 31, 11 * 4, 60);
    for depth in [None, Some(&deep)] {
        let cursor = |of: fn(&Deep) -> &Cursor| depth.map(of);
        let at = if depth.is_some() { "deep" } else { "first" };
        let ranked = async |c: &Community| c.profile_list_ranked(limit, cursor(|d| &d.ranked)).await.unwrap();
        measured.call(&format!("ranked, {at}"), rank + page + fixed, ranked).await;
        let active = async |c: &Community| c.profile_list_active(limit, cursor(|d| &d.active)).await.unwrap();
        measured.call(&format!("active, {at}"), page + fixed, active).await;
        let leaderboard =
            async |c: &Community| c.badge_leaderboard(limit, cursor(|d| &d.leaderboard)).await.unwrap();
        measured.call(&format!("leaderboard, {at}"), rank + page + fixed, leaderboard).await;
        let changes = async |c: &Community| c.tier_change_list(limit, cursor(|d| &d.changes)).await.unwrap();
        measured.call(&format!("changes, {at}"), page + fixed, changes).await;
        let progression =
            async |c: &Community| c.tier_list_progression(limit, cursor(|d| &d.progression)).await.unwrap();
        measured.call(&format!("progression, {at}"), page + 4 * 11 + fixed, progression).await;
        let badges = async |c: &Community| c.badge_list_by_profile(who, limit, cursor(|d| &d.badges)).await;
        measured
            .call(&format!("badges, {at}"), page + fixed, async |c| {
                badges(c).await.unwrap_or_else(|e| panic!("{e}"))
            })
            .await;
        let kinds = async |c: &Community| c.badge_kind_list(limit, cursor(|d| &d.kinds)).await.unwrap();
        measured.call(&format!("kinds, {at}"), page + fixed, kinds).await;
        for (tier, sort, direction, found) in &deep.directories {
            let start = DirectoryStart::Cursor(depth.map(|_| found.clone()));
            let list = async |c: &Community| {
                c.directory_list(tier.as_ref(), *sort, *direction, limit, &start).await.unwrap()
            };
            measured.call(&format!("directory {tier:?} {sort} {direction}, {at}"), page + fixed, list).await;
        }
    }
    let start = DirectoryStart::Offset(9000);
    let offset = async |c: &Community| {
        c.directory_list(None, DirectorySort::Badges, Direction::Desc, limit, &start).await.unwrap()
    };
    // An index also counts rows that were since replaced and not yet cleared away.
    measured.call("directory by page number", 2 * 9000 + page + fixed, offset).await;
    let around = async |c: &Community| c.profile_list_around(who, limit).await.unwrap();
    measured.call("around", rank + 2 * page + fixed, around).await;
    measured
        .call("position", rank + fixed, async |c: &Community| c.profile_position(who).await.unwrap())
        .await;
    measured.call("threshold", rank + fixed, async |c: &Community| c.tier_threshold().await.unwrap()).await;
    measured.call("stats", 2 * fixed, async |c: &Community| c.stats().await.unwrap()).await;
    for by in [Lookup::ProfileId(who), Lookup::UserId(user(9)), Lookup::Nym(some_nym)] {
        let get = async |c: &Community| c.profile_get(&by).await.unwrap();
        measured.call(&format!("{by:?}"), 2 * rank + fixed, get).await;
    }
    let ids = Keys::parse(deep.ids.clone()).unwrap();
    let many = async |c: &Community| c.profile_list_by_ids(&ids).await.unwrap();
    assert_eq!(measured.call("many by id", 10 * 2 * rank + page + fixed, many).await.items.len(), 10);
    let users = Keys::parse((0..10).map(user).collect()).unwrap();
    let many = async |c: &Community| c.profile_list_by_users(&users).await.unwrap();
    assert_eq!(measured.call("many by user", 10 * 2 * rank + page + fixed, many).await.items.len(), 10);
    for text in ["f", "fremen", "fremen 5 of 5", "of", "m", "remen 1", "1", "zzz", "%"] {
        let query = SearchQuery::parse(text).unwrap();
        let search = async |c: &Community| c.profile_search(&query, SuggestLimit::clamp(10)).await.unwrap();
        // Every match of the kinds that are looked for: as many as ten nyms can have.
        measured.call(&format!("search {text}"), 10 + 2 * 320 + page + fixed, search).await;
    }
    let export = async |c: &Community| c.profile_export(who, limit, None).await.unwrap();
    measured.call("export", page + fixed, export).await;

    let person = ErasedPerson::from([0x80; 32]);
    let erasures = async |c: &Community| c.erasure_list(limit, Some(person)).await.unwrap();
    assert_eq!(measured.call("erasures", page + fixed, erasures).await.len(), 10);

    // A write reads what it changes, the edges of the rank tiers and the ranks there.
    let write = 4 * rank + 4 * 69 + 500;
    let mut at = START + 3_000_000;
    let mut event = |effect: MemberEffect| {
        at += 1;
        member(&guild, &user(500), at, effect)
    };
    let writes: Vec<(&str, Event)> = vec![
        ("update", event(MemberEffect::Update { nick: Some(nym("Someone else")), roles: Vec::new() })),
        ("leave", event(MemberEffect::Leave)),
        ("join", event(MemberEffect::Join { username: Some(nym("Someone new")) })),
        ("award", event(MemberEffect::BadgeAward { kind: kind("k"), reason: None, by: None })),
        ("revoke", event(MemberEffect::BadgeRevoke { kind: kind("k"), reason: None, by: None })),
        ("score", scored(&guild, &user(500), START + 4_000_000, 29_000)),
        ("activity", added(&guild, &user(500), START + 4_000_000, 5)),
    ];
    for (name, event) in writes {
        let database = &measured.database;
        let apply = async |_: &Community| {
            // The measured session is not this one's, but it ends before the count.
            let store = Store::open(database.config().pool_size(1)).await.unwrap();
            store.events_apply(vec![event.clone()]).await.unwrap();
            store.close();
        };
        measured.call(name, write, apply).await;
    }
    let hide = async |c: &Community| c.profile_hide(who).await.unwrap();
    measured.call("hide", write + 2000, hide).await;
    let erase = async |c: &Community| c.profile_erase(who).await.map(drop).unwrap_or(());
    measured.call("erase", write + 4000, erase).await;
    consistency::check_large(&measured.client).await;
}

/// A cursor far into each list.
struct Deep {
    ranked: Cursor,
    active: Cursor,
    leaderboard: Cursor,
    changes: Cursor,
    progression: Cursor,
    badges: Cursor,
    kinds: Cursor,
    directories: Vec<(Option<Tier>, DirectorySort, Direction, Cursor)>,
    /// Ten of the thousand highest members.
    ids: Vec<ProfileId>,
}

impl Deep {
    async fn find(c: &Community) -> Self {
        async fn far(pages: u32, next: impl AsyncFn(Option<Cursor>) -> Option<Cursor>) -> Cursor {
            let mut cursor = None;
            for _ in 0..pages {
                cursor = Some(next(cursor).await.expect("the list ends early"));
            }
            cursor.unwrap()
        }
        let (thousand, hundred, ten) = (PageLimit::MAX, PageLimit::clamp(100), PageLimit::clamp(10));
        let who = c.profile_get(&Lookup::UserId(collector())).await.unwrap().profile.profile_id;
        let mut directories = Vec::new();
        for tier in [None, Some("sayyadina")] {
            let tier = tier.map(|tier| Tier::parse(tier).unwrap());
            for sort in [DirectorySort::Nym, DirectorySort::Tenure, DirectorySort::Badges] {
                for direction in [Direction::Asc, Direction::Desc] {
                    let cursor = far(4, async |from| {
                        let start = DirectoryStart::Cursor(from);
                        c.directory_list(tier.as_ref(), sort, direction, thousand, &start).await.unwrap().next
                    });
                    directories.push((tier.clone(), sort, direction, cursor.await));
                }
            }
        }
        let page = c.profile_list_ranked(thousand, None).await.unwrap();
        let ids = page.items.iter().step_by(100).map(|row| row.profile.profile_id).collect();
        Self {
            ids,
            ranked: far(10, async |from| c.profile_list_ranked(thousand, from.as_ref()).await.unwrap().next)
                .await,
            active: far(8, async |from| c.profile_list_active(thousand, from.as_ref()).await.unwrap().next)
                .await,
            leaderboard: far(10, async |from| {
                c.badge_leaderboard(thousand, from.as_ref()).await.unwrap().next
            })
            .await,
            changes: far(10, async |from| c.tier_change_list(hundred, from.as_ref()).await.unwrap().next)
                .await,
            progression: far(15, async |from| {
                c.tier_list_progression(hundred, from.as_ref()).await.unwrap().next
            })
            .await,
            badges: far(10, async |from| {
                c.badge_list_by_profile(who, ten, from.as_ref()).await.unwrap().next
            })
            .await,
            kinds: far(10, async |from| c.badge_kind_list(ten, from.as_ref()).await.unwrap().next).await,
            directories,
        }
    }
}

#[tokio::test]
async fn each_statement_is_prepared_once_a_connection() {
    let database = Database::migrated().await;
    let client = database.client().await;
    let store = Store::open(database.config().pool_size(1)).await.unwrap();
    let guild = guild("prepared");
    let community = apply(&store, &guild, vec![joined(&guild, &user(1), START, "Usul")]).await;
    // The ranked list asks for this; here it tells what the session has prepared.
    client
        .batch_execute(
            "CREATE TABLE seen (statement text);
             CREATE OR REPLACE FUNCTION members_at(in_community uuid, in_ladder integer, score bigint) RETURNS bigint
             LANGUAGE plpgsql VOLATILE AS $$
             BEGIN
                 DELETE FROM seen;
                 INSERT INTO seen SELECT statement FROM pg_prepared_statements;
                 RETURN 1;
             END $$",
        )
        .await
        .unwrap();
    let mut counts = Vec::new();
    for round in 0..4_u32 {
        for number in 1..20 {
            community.profile_list_ranked(PageLimit::clamp(number), None).await.unwrap();
            community.profile_list_active(PageLimit::clamp(number + round), None).await.unwrap();
            let query = SearchQuery::parse(format!("u{number}")).unwrap();
            community.profile_search(&query, SuggestLimit::clamp(number)).await.unwrap();
            let events = (0..number).map(|n| added(&guild, &user(n), START + i64::from(round), 1));
            store.events_apply(events.collect()).await.unwrap();
        }
        community.profile_list_ranked(PageLimit::clamp(1), None).await.unwrap();
        let sql = "SELECT count(*), count(DISTINCT statement) FROM seen";
        let row = client.query_one(sql, &[]).await.unwrap();
        let (all, distinct): (i64, i64) = (row.get(0), row.get(1));
        assert_eq!(all, distinct, "a statement was prepared twice");
        counts.push(all);
    }
    assert!(counts[0] > 5, "{counts:?}");
    assert!(counts.iter().all(|count| *count == counts[0]), "statements grow with calls: {counts:?}");
}
