//! What a call costs does not grow with the community, nor with how many communities there are: the rows read are bounded by the
//! page. And what is written of a member is written in place.
//!
//! It is the server's own counts of rows that are compared, so that what is measured is the plan that ran. A statement has its plan
//! from its shape: it is the same with the settings that a server comes with, and where most communities are small.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_domain::{
    Cursor, Direction, DirectorySort, ErasedPerson, Event, GuildId, Keys, Lookup, MemberEffect, PageLimit,
    ProfileId, SearchLimit, SearchQuery, Tier,
};
use muster_storage::{Community, Store, StoreConfig};
use tokio_postgres::Client;

use crate::support::database::{Database, ca_file, config, trusting, url};
use crate::support::events::{
    START, added, apply, awarded, guild, joined, kind, member, nym, revoked, scored, user, view,
};
use crate::support::tied::{collector, profile};
use crate::support::{cluster, consistency};

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
    // Kinds that nobody was awarded, before all others.
    for number in 0..2_000 {
        events.push(revoked(guild, &collector(), START + number, &format!("a typo {number}")));
    }
    apply(store, guild, events).await;
    let moved = (0..count / 10)
        .map(|number| scored(guild, &user(number * 10), START + 2_000_000, number * 31 % 3000));
    apply(store, guild, moved.collect()).await
}

/// Rows read of each table, by indexes or by reading all of it.
async fn reads(client: &Client) -> BTreeMap<String, i64> {
    let sql = "SELECT t.relname::text, t.seq_tup_read + coalesce((SELECT sum(i.idx_tup_read)::bigint
                 FROM pg_stat_user_indexes AS i WHERE i.relid = t.relid), 0)
         FROM pg_stat_user_tables AS t";
    client.query(sql, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Waits until this is the database's only session: what a session read is in the sums only once it has ended.
async fn others_have_ended(client: &Client) {
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
             AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while client.query_one(others, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        assert!(std::time::Instant::now() < deadline, "a session does not end");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    client.batch_execute("SELECT pg_stat_clear_snapshot()").await.unwrap();
}

/// How the session's planner is set.
#[derive(Debug, Clone, Copy)]
enum Planner {
    /// As the store sets it.
    OfTheStore,
    /// As a server has it that nobody configured.
    OfTheServer,
}

/// What a server has of whatever a store might set.
const OF_THE_SERVER: [(&str, &str); 9] = [
    ("plan_cache_mode", "auto"),
    ("jit", "on"),
    ("enable_seqscan", "on"),
    ("enable_bitmapscan", "on"),
    ("enable_hashjoin", "on"),
    ("enable_mergejoin", "on"),
    ("enable_nestloop", "on"),
    ("enable_indexscan", "on"),
    ("enable_indexonlyscan", "on"),
];

struct Measured {
    database: Database,
    client: Client,
    guild: GuildId,
    planner: Planner,
}

impl Measured {
    /// A configuration of one connection.
    fn config(&self) -> StoreConfig {
        let options = match self.planner {
            Planner::OfTheStore => String::new(),
            Planner::OfTheServer => {
                let option = |(name, value): (&str, &str)| format!("-c%20{name}%3D{value}");
                format!("&options={}", OF_THE_SERVER.map(option).join("%20"))
            }
        };
        config(&(url(self.database.name()) + &options), trusting(&ca_file())).pool_size(1)
    }

    /// Makes a call several times through a connection of its own, and checks what one call read on the average.
    async fn call<T>(&self, name: &str, most: i64, call: impl AsyncFn(&Community) -> T) -> T {
        self.calls(3, name, most, call).await
    }

    /// Makes a call that does something only once.
    async fn once<T>(&self, name: &str, most: i64, call: impl AsyncFn(&Community) -> T) -> T {
        self.calls(1, name, most, call).await
    }

    async fn calls<T>(&self, times: i64, name: &str, most: i64, call: impl AsyncFn(&Community) -> T) -> T {
        let before = reads(&self.client).await;
        let store = Store::open(self.config()).await.unwrap();
        let community = view(&store, &self.guild).await;
        let mut last = None;
        for _ in 0..times {
            last = Some(call(&community).await);
        }
        drop(community);
        store.close();
        drop(store);
        others_have_ended(&self.client).await;
        let mut rows = reads(&self.client).await;
        for (table, read) in &mut rows {
            *read = (*read - before.get(table).copied().unwrap_or_default()) / times;
        }
        rows.retain(|_, read| *read > 0);
        let sum: i64 = rows.values().sum();
        assert!(sum <= most, "{name} reads {sum} rows, more than {most}: {rows:?}, {:?}", self.planner);
        last.unwrap()
    }
}

/// Many other communities of one member each, in every shard, so that a community seems to be small on the average.
async fn others(store: &Store) {
    let joins = (0..2000).map(|number| {
        let guild = guild(&format!("other-{number}"));
        joined(&guild, &user(number), START + number, &format!("Other {number}"))
    });
    store.events_apply(joins.collect()).await.unwrap();
}

/// Nobody vacuums or analyses in between.
const QUIET: &str = "DO $$ DECLARE of record; BEGIN
        FOR of IN SELECT oid::regclass AS name FROM pg_class
            WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
        LOOP EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = false)', of.name); END LOOP;
    END $$";

#[tokio::test(flavor = "multi_thread")]
async fn no_call_reads_more_than_its_page_asks_for() {
    if cluster::is_one("what is read on nodes is not counted here").await {
        return;
    }
    let database = Database::migrated().await;
    let store = Store::open(database.config().query_timeout(Duration::from_secs(60))).await.unwrap();
    let client = database.client().await;
    client.batch_execute(QUIET).await.unwrap();
    let guild = guild("large");
    people(&store, &crate::support::events::guild("neighbour"), 2000).await;
    let community = people(&store, &guild, MEMBERS).await;
    // Cursors deep in each list.
    let deep = Deep::find(&community).await;
    let who = profile(&client, &community, &collector()).await;
    others(&store).await;
    drop((community, store));
    let erasures = "INSERT INTO erasures SELECT shard, community, sha256(n::text::bytea), now()
         FROM communities CROSS JOIN generate_series(1, 20000) AS n WHERE guild_id = 'large'";
    client.batch_execute(erasures).await.unwrap();
    client.batch_execute("VACUUM ANALYZE").await.unwrap();
    // What this session read is not counted into the first call.
    drop(client);
    let client = database.client().await;
    others_have_ended(&client).await;

    let mut measured = Measured { database, client, guild, planner: Planner::OfTheStore };
    for planner in [Planner::OfTheStore, Planner::OfTheServer] {
        measured.planner = planner;
        read(&measured, &deep, who).await;
    }
    verify(&measured).await;
    write(&measured, who).await;
    consistency::check(&measured.client).await;
}

/// A rank is read from at most 31 buckets on each of 11 levels.
const RANK: i64 = 11 * 31;
/// A row of a page is an entry of a list and its member; the first that is asked for again is one more.
const PAGE: i64 = 11 * 3;
/// What any call reads besides: keys, the community and its tiers.
const FIXED: i64 = 60;

async fn read(measured: &Measured, deep: &Deep, who: ProfileId) {
    let limit = PageLimit::clamp(10);
    for depth in [None, Some(deep)] {
        let cursor = |of: fn(&Deep) -> &Cursor| depth.map(of);
        let at = if depth.is_some() { "deep" } else { "first" };
        let ranked = async |c: &Community| c.profile_list_ranked(limit, cursor(|d| &d.ranked)).await.unwrap();
        measured.call(&format!("ranked, {at}"), RANK + PAGE + FIXED, ranked).await;
        let active = async |c: &Community| c.profile_list_active(limit, cursor(|d| &d.active)).await.unwrap();
        measured.call(&format!("active, {at}"), PAGE + FIXED, active).await;
        let leaderboard =
            async |c: &Community| c.badge_leaderboard(limit, cursor(|d| &d.leaderboard)).await.unwrap();
        measured.call(&format!("leaderboard, {at}"), RANK + PAGE + FIXED, leaderboard).await;
        let changes = async |c: &Community| c.tier_change_list(limit, cursor(|d| &d.changes)).await.unwrap();
        measured.call(&format!("changes, {at}"), PAGE + FIXED, changes).await;
        let progression =
            async |c: &Community| c.tier_list_progression(limit, cursor(|d| &d.progression)).await.unwrap();
        measured.call(&format!("progression, {at}"), PAGE + 4 * 11 + FIXED, progression).await;
        let badges = async |c: &Community| c.badge_list_by_profile(who, limit, cursor(|d| &d.badges)).await;
        measured
            .call(&format!("badges, {at}"), PAGE + FIXED, async |c| {
                badges(c).await.unwrap_or_else(|e| panic!("{e}"))
            })
            .await;
        let kinds = async |c: &Community| c.badge_kind_list(limit, cursor(|d| &d.kinds)).await.unwrap();
        measured.call(&format!("kinds, {at}"), PAGE + FIXED, kinds).await;
        for (tier, sort, direction, found) in &deep.directories {
            let cursor = depth.map(|_| found);
            let list = async |c: &Community| {
                c.directory_list(tier.as_ref(), *sort, *direction, limit, cursor, 0).await.unwrap()
            };
            measured.call(&format!("directory {tier:?} {sort} {direction}, {at}"), PAGE + FIXED, list).await;
        }
    }
    let offset = async |c: &Community| {
        c.directory_list(None, DirectorySort::Badges, Direction::Desc, limit, None, 9000).await.unwrap()
    };
    measured.call("directory by page number", 9000 + PAGE + FIXED, offset).await;
    let around = async |c: &Community| c.profile_list_around(who, limit).await.unwrap();
    measured.call("around", RANK + 2 * PAGE + FIXED, around).await;
    let position = async |c: &Community| c.profile_position(who).await.unwrap();
    measured.call("position", RANK + FIXED, position).await;
    measured.call("threshold", RANK + FIXED, async |c: &Community| c.tier_threshold().await.unwrap()).await;
    measured.call("stats", 2 * FIXED, async |c: &Community| c.stats().await.unwrap()).await;
    for by in [Lookup::ProfileId(who), Lookup::UserId(user(9)), Lookup::Nym(nym("Fremen 5 of 5"))] {
        let get = async |c: &Community| c.profile_get(&by).await.unwrap();
        measured.call(&format!("{by:?}"), 2 * RANK + FIXED, get).await;
    }
    let ids = Keys::parse(deep.ids.clone()).unwrap();
    let many = async |c: &Community| c.profile_list_by_ids(&ids).await.unwrap();
    assert_eq!(measured.call("many by id", 10 * 2 * RANK + PAGE + FIXED, many).await.items.len(), 10);
    let users = Keys::parse((0..10).map(user).collect()).unwrap();
    let many = async |c: &Community| c.profile_list_by_users(&users).await.unwrap();
    assert_eq!(measured.call("many by user", 10 * 2 * RANK + PAGE + FIXED, many).await.items.len(), 10);
    for text in ["f", "fremen", "fremen 5 of 5", "of", "m", "remen 1", "1", "zzz", "%"] {
        let query = SearchQuery::parse(text).unwrap();
        let search = async |c: &Community| c.profile_search(&query, SearchLimit::clamp(10)).await.unwrap();
        // Every match of the kinds that are looked for: as many as ten nyms can have.
        measured.call(&format!("search {text}"), 10 + 2 * 320 + PAGE + FIXED, search).await;
    }
    let export = async |c: &Community| c.profile_export(who, limit, None).await.unwrap();
    measured.call("export", PAGE + FIXED, export).await;

    let person = ErasedPerson::from([0x80; 32]);
    let erasures = async |c: &Community| c.erasure_list(limit, Some(person)).await.unwrap();
    assert_eq!(measured.call("erasures", PAGE + FIXED, erasures).await.len(), 10);
}

/// A write reads what it changes, the edges of the rank tiers and the ranks there.
async fn write(measured: &Measured, who: ProfileId) {
    let most = 4 * RANK + 4 * 69 + 500;
    let guild = &measured.guild;
    let mut at = START + 3_000_000;
    let mut event = |effect: MemberEffect| {
        at += 1;
        member(guild, &user(500), at, effect)
    };
    let writes: Vec<(&str, Event)> = vec![
        ("update", event(MemberEffect::Update { nick: Some(nym("Someone else")) })),
        ("leave", event(MemberEffect::Leave)),
        ("join", event(MemberEffect::Join { username: Some(nym("Someone new")) })),
        ("award", event(MemberEffect::BadgeAward { kind: kind("k"), reason: None, by: None })),
        ("revoke", event(MemberEffect::BadgeRevoke { kind: kind("k"), reason: None, by: None })),
        ("score", scored(guild, &user(500), START + 4_000_000, 29_000)),
        ("activity", added(guild, &user(500), START + 4_000_000, 5)),
    ];
    for (name, event) in writes {
        let apply = async |_: &Community| {
            // The measured session is not this one's, but it ends before the count.
            let store = Store::open(measured.config()).await.unwrap();
            store.events_apply(vec![event.clone()]).await.unwrap();
            store.close();
        };
        measured.once(name, most, apply).await;
    }
    let hide = async |c: &Community| c.profile_hide(who).await.unwrap();
    measured.once("hide", most + 2000, hide).await;
    let erase = async |c: &Community| c.profile_erase(who).await.map(drop).unwrap_or(());
    measured.once("erase", most + 4000, erase).await;
}

/// Comparing a community reads ranges of its tables, and looks up no row by itself: of a million that takes most of the time.
async fn verify(measured: &Measured) {
    let scans = async || {
        let sql = "SELECT sum(idx_scan)::bigint FROM pg_stat_user_indexes";
        measured.client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    let before = scans().await;
    let compare = async |c: &Community| assert!(c.verify(false).await.unwrap().drifted.is_empty());
    measured.once("verify", 100 * MEMBERS, compare).await;
    let scans = scans().await - before;
    assert!(scans < MEMBERS / 10, "comparing {MEMBERS} members reads indexes {scans} times");
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
                        let (tier, from) = (tier.as_ref(), from.as_ref());
                        c.directory_list(tier, sort, direction, thousand, from, 0).await.unwrap().next
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
    if cluster::is_one("a trigger on a node does not see what the coordinator's session has prepared").await {
        return;
    }
    let database = Database::migrated().await;
    let client = database.client().await;
    let store = Store::open(database.config().pool_size(1)).await.unwrap();
    let guild = guild("prepared");
    let community = apply(&store, &guild, vec![joined(&guild, &user(1), START, "Usul")]).await;
    // Each batch of events tells what its session has prepared.
    client
        .batch_execute(
            "CREATE TABLE seen (statement text);
             CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 DELETE FROM seen;
                 INSERT INTO seen SELECT statement FROM pg_prepared_statements;
                 RETURN NULL;
             END $$;
             CREATE TRIGGER see AFTER INSERT ON applied_events FOR EACH STATEMENT EXECUTE FUNCTION see()",
        )
        .await
        .unwrap();
    let mut counts = Vec::new();
    for round in 0..4_u32 {
        for number in 1..20 {
            community.profile_list_ranked(PageLimit::clamp(number), None).await.unwrap();
            community.profile_list_active(PageLimit::clamp(number + round), None).await.unwrap();
            let query = SearchQuery::parse(format!("u{number}")).unwrap();
            community.profile_search(&query, SearchLimit::clamp(number)).await.unwrap();
            let events = (0..number).map(|n| added(&guild, &user(n), START + i64::from(round), 1));
            store.events_apply(events.collect()).await.unwrap();
        }
        let sql = "SELECT count(*), count(DISTINCT statement) FROM seen";
        let row = client.query_one(sql, &[]).await.unwrap();
        let (all, distinct): (i64, i64) = (row.get(0), row.get(1));
        assert_eq!(all, distinct, "a statement was prepared twice");
        counts.push(all);
    }
    // What a batch does last in the first round is seen in the next.
    let [first, second, ..] = counts[..] else { panic!("{counts:?}") };
    assert!(first > 5 && second <= first + 3, "{counts:?}");
    assert!(counts[1..].iter().all(|count| *count == second), "statements grow with calls: {counts:?}");
}
