//! On a cluster of Citus: what goes where, and what becomes of the rest while a node is away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use muster_domain::{Event, GuildId, PageLimit, Shard};
use muster_storage::{Distribute, Error, FaultOf, Migrated, Store, distribution, migrate};
use tokio_postgres::Client;

use crate::statements::every_call;
use crate::support::cluster;
use crate::support::consistency;
use crate::support::database::Database;
use crate::support::events::{START, apply, guild, joined, scored, user, view};

/// Two guilds whose communities are on different nodes, the first on that of this number.
async fn apart(client: &Client, number: usize) -> (GuildId, GuildId) {
    let (mut here, mut there) = (None, None);
    for name in 0..1000 {
        let guild = guild(&format!("guild-{name}"));
        let shard = i16::from(Shard::of(&guild).number());
        let sql =
            "SELECT nodename || ':' || nodeport FROM pg_dist_placement JOIN pg_dist_node USING (groupid)
             WHERE shardid = get_shard_id_for_distribution_column('community_states', $1::smallint)";
        let node: String = client.query_one(sql, &[&shard]).await.unwrap().get(0);
        let place = if node == cluster::nodes().await[number] { &mut here } else { &mut there };
        place.get_or_insert(guild);
        if let (Some(here), Some(there)) = (&here, &there) {
            return (here.clone(), there.clone());
        }
    }
    panic!("all shards are on one node");
}

/// Makes a guild's community, of twenty members.
async fn found(store: &Store, guild: &GuildId) {
    apply(store, guild, (0..20).map(|n| joined(guild, &user(n), START, "x")).collect()).await;
}

/// A store with two such communities, the first on the first node, the other elsewhere.
async fn two_communities(database: &Database) -> (Store, Client, [GuildId; 2]) {
    let (store, client) = (database.store().await, database.client().await);
    let (here, there) = apart(&client, 0).await;
    for guild in [&here, &there] {
        found(&store, guild).await;
    }
    (store, client, [here, there])
}

/// Applies an event as the consumer does: again until it is applied. It fails after a minute.
async fn apply_at_last(store: &Store, event: Event) {
    let end = Instant::now() + Duration::from_secs(60);
    while let Err(error) = store.events_apply(vec![event.clone()]).await {
        assert!(error.is_transient() && Instant::now() < end, "{error:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Takes a node away for this database, or brings it back: nobody is let in, and who is there is cut off.
async fn node_is(database: &Database, number: usize, there: bool) {
    let client = cluster::on(&cluster::nodes().await[number], "postgres").await;
    let name = database.name();
    client.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {there}")).await.unwrap();
    if !there {
        let cut =
            format!("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'");
        client.batch_execute(&cut).await.unwrap();
    }
}

async fn count(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn tables_are_distributed_by_shard_and_what_is_shared_is_not() {
    if cluster::is_none().await {
        return;
    }
    let database = Database::empty().await;
    let config = database.config();
    let Migrated { applied, distributed } = migrate(&config, Distribute::New).await.unwrap();
    assert!(!applied.is_empty() && distributed.left.is_empty() && distributed.options, "{distributed:?}");
    assert_eq!(
        migrate(&config, Distribute::New).await.unwrap(),
        Migrated::default(),
        "nothing is left to do"
    );
    let client = database.client().await;
    // Whatever has a shard, and nothing else; the migrations are at hand for that.
    let wrong = "SELECT count(*) FROM pg_class AS c
         WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace
             AND (EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'shard')
                 AND c.relname <> 'communities') <> EXISTS (SELECT FROM pg_dist_partition AS p WHERE p.logicalrelid = c.oid)";
    assert_eq!(count(&client, wrong).await, 0);
    let places = "SELECT count(DISTINCT colocationid) FROM pg_dist_partition";
    assert_eq!(count(&client, places).await, 1, "all are beside each other");
    let found = distribution(&config).await.unwrap().unwrap();
    assert!(found.undistributed.is_empty() && !found.needs_options, "{found:?}");
    assert_eq!(found.nodes.iter().map(|node| node.parts).sum::<u64>(), 8);
    assert!(found.nodes.iter().all(|node| node.commits_to_disk == Ok(true)), "{found:?}");
    // As after a move of a part, which does not bring it along.
    let forget =
        "SELECT run_command_on_shards('members', 'ALTER TABLE %s ALTER COLUMN community RESET (n_distinct)')";
    client.batch_execute(forget).await.unwrap();
    assert!(distribution(&config).await.unwrap().unwrap().needs_options);
    assert!(migrate(&config, Distribute::New).await.unwrap().distributed.options);
    assert!(!distribution(&config).await.unwrap().unwrap().needs_options);
}

#[tokio::test]
async fn a_standby_of_one_node_is_not_read() {
    if cluster::is_none().await {
        return;
    }
    let database = Database::migrated().await;
    let reading = database.config().read_from(database.config(), Duration::from_secs(2)).unwrap();
    let refused = Store::open(reading).await.map(drop).unwrap_err();
    assert!(
        matches!(&refused, Error::Configuration(why) if why.contains("database.read_url_file")),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_with_rows_is_brought_over_while_events_come_in() {
    if cluster::is_none().await {
        return;
    }
    // One that was filled before the extension was made.
    let database = Database::apart().await;
    let config = database.config();
    migrate(&config, Distribute::New).await.unwrap();
    assert_eq!(distribution(&config).await.unwrap(), None);
    let store = database.store().await;
    let guilds: Vec<_> = (0..12).map(|number| guild(&format!("guild-{number}"))).collect();
    for guild in &guilds {
        found(&store, guild).await;
    }
    store.close();
    cluster::join(database.name()).await;

    let kept = migrate(&config, Distribute::New).await.unwrap().distributed;
    assert!(
        kept.tables.is_empty() && kept.left.len() == 20,
        "rows are moved only if that is asked for: {kept:?}"
    );
    let store = database.store().await;
    let coming = {
        let (store, guilds) = (store.clone(), guilds.clone());
        tokio::spawn(async move {
            for round in 0..40 {
                for guild in &guilds {
                    apply_at_last(&store, scored(guild, &user(round % 20), START + 1 + round, round)).await;
                }
            }
        })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    let moved = migrate(&config, Distribute::Filled).await.unwrap().distributed;
    assert_eq!(moved.tables.len(), 20);
    coming.await.unwrap();
    let client = database.client().await;
    assert_eq!(count(&client, "SELECT count(*) FROM applied_events").await, 12 * (20 + 40));
    let left = "SELECT sum(pg_relation_size(c.oid))::bigint FROM pg_class AS c JOIN pg_dist_partition ON logicalrelid = c.oid";
    assert_eq!(count(&client, left).await, 0, "the coordinator has no rows of them any more");
    consistency::check(&client).await;
    for guild in &guilds {
        assert!(view(&store, guild).await.verify(false).await.unwrap().is_exact());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_is_of_more_than_one_node() {
    if cluster::is_none().await {
        return;
    }
    let database = Database::migrated().await;
    let name = database.name();
    let count_utilities = format!("ALTER DATABASE {name} SET pg_stat_statements.track_utility = on");
    for node in cluster::nodes().await {
        let node = cluster::on(node, name).await;
        let sql = format!(
            "CREATE SCHEMA counted; CREATE EXTENSION pg_stat_statements SCHEMA counted;
             ALTER DATABASE {name} SET pg_stat_statements.track = 'all'; {count_utilities}"
        );
        node.batch_execute(&format!("SET citus.enable_ddl_propagation = off; {sql}")).await.unwrap();
    }
    let client = database.client().await;
    let of_a_store = format!("ALTER DATABASE {name} SET citus.enable_stat_counters = on");
    client.batch_execute(&of_a_store).await.unwrap();
    let store = database.store().await;
    every_call(&database, &store, &client).await;
    store.close();

    let counters = "SELECT query_execution_single_shard, query_execution_multi_shard FROM citus_stat_counters
         WHERE name = current_database()";
    let row = client.query_one(counters, &[]).await.unwrap();
    let (single, several): (i64, i64) = (row.get(0), row.get(1));
    assert!(single > 500 && several == 0, "{single} went to one node, {several} to several");
    let (mut seen, mut wrong) = (0, Vec::new());
    for node in cluster::nodes().await {
        let node = cluster::on(node, name).await;
        let sql = "SELECT query, calls FROM counted.pg_stat_statements
             WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())";
        let mut prepared = 0;
        for row in node.query(sql, &[]).await.unwrap() {
            let (query, calls): (String, i64) = (row.get(0), row.get(1));
            seen += calls;
            // A transaction of several nodes is prepared before it is committed.
            prepared += if query.starts_with("PREPARE TRANSACTION") { calls } else { 0 };
            // A part's name has a number: who names a table itself has the node plan it anew, in sessions of its own.
            let whole = ["INTO", "FROM", "JOIN", "UPDATE"].map(|verb| format!("{verb} community_days "));
            let whole = whole.into_iter().chain([" badge_kinds AS ", " tier_changes AS "].map(str::to_owned));
            wrong.extend(whole.filter(|whole| query.contains(whole)).map(|_| format!("{calls} x {query}")));
        }
        assert!(prepared <= EMPTIED, "{prepared} transactions were of several nodes");
    }
    assert!(seen > 500 && wrong.is_empty(), "{seen} statements were seen on nodes:\n{}", wrong.join("\n"));
}

/// The most partitions of days that are emptied, which alone is of all nodes.
const EMPTIED: i64 = 64;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_away_is_missed_by_its_own_communities_only() {
    if cluster::is_none().await {
        return;
    }
    let database = Database::migrated().await;
    let (store, client, [gone, well]) = two_communities(&database).await;
    let (of_gone, of_well) = (view(&store, &gone).await, view(&store, &well).await);
    let board = async |community: &muster_storage::Community| {
        community.profile_list_ranked(PageLimit::MAX, None).await
    };
    node_is(&database, 0, false).await;
    for round in 0..20 {
        let began = Instant::now();
        let (failed, found) = (board(&of_gone).await, board(&of_well).await);
        assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
        assert_eq!(found.unwrap().items.len(), 20);
        let failed =
            store.events_apply(vec![scored(&gone, &user(1), START + 1 + round, round)]).await.unwrap_err();
        assert!(failed.is_transient() && failed.fault_of() == FaultOf::Unknown, "{failed:?}");
        apply(&store, &well, vec![scored(&well, &user(1), START + 1 + round, round)]).await;
        // It is not the store's fault, but that of what is on the node.
        store.events_probe(None).await.unwrap();
        let probed = store.events_probe(Some(gone.clone())).await.unwrap_err();
        assert!(probed.is_transient(), "{probed:?}");
        store.events_probe(Some(well.clone())).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
    // A new community is made wherever its node is there.
    let (_, new) = apart(&client, 0).await;
    let new = guild_like(&new);
    apply(&store, &new, vec![joined(&new, &user(1), START, "x")]).await;
    let found = muster_storage::distribution(&database.config()).await.unwrap().unwrap();
    assert_eq!(found.nodes.iter().filter(|node| node.commits_to_disk.is_err()).count(), 1, "{found:?}");

    node_is(&database, 0, true).await;
    let end = Instant::now() + Duration::from_secs(10);
    while let Err(error) = store.events_apply(vec![scored(&gone, &user(1), START + 100, 100)]).await {
        assert!(error.is_transient() && Instant::now() < end, "{error:?}");
    }
    assert_eq!(board(&of_gone).await.unwrap().items[0].profile.conviction.get(), 100);
    consistency::check(&client).await;
}

/// Another guild of the same shard.
fn guild_like(like: &GuildId) -> GuildId {
    let mut names = (0..).map(|name| guild(&format!("new-{name}")));
    names.find(|guild| Shard::of(guild) == Shard::of(like)).unwrap()
}

/// Applies events of a guild until it is told to stop, each until it is applied; answers how many, and the longest that one took.
async fn flow(store: Store, guild: GuildId, stop: Arc<AtomicBool>) -> (i64, Duration) {
    let (mut number, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let began = Instant::now();
        apply_at_last(&store, scored(&guild, &user(number % 20), START + number, number)).await;
        longest = longest.max(began.elapsed());
    }
    (number, longest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_moves_under_load_loses_no_event() {
    if cluster::is_none().await {
        return;
    }
    let database = Database::migrated().await;
    let (store, client, [moved, other]) = two_communities(&database).await;
    let stop = Arc::new(AtomicBool::new(false));
    let flows = [&moved, &other].map(|guild| tokio::spawn(flow(store.clone(), guild.clone(), stop.clone())));
    let shard = i16::from(Shard::of(&moved).number());
    let sql = "SELECT citus_move_shard_placement(get_shard_id_for_distribution_column('community_states', $1::smallint),
             here.nodename, here.nodeport, there.nodename, there.nodeport, shard_transfer_mode => 'force_logical')
         FROM pg_dist_node AS here, pg_dist_node AS there
         WHERE here.nodename || ':' || here.nodeport = $2 AND there.nodename || ':' || there.nodeport = $3";
    let nodes = cluster::nodes().await;
    client.execute(sql, &[&shard, &nodes[0], &nodes[1]]).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    for (guild, flow) in [&moved, &other].into_iter().zip(flows) {
        let (events, longest) = flow.await.unwrap();
        let community = view(&store, guild).await;
        let first =
            community.profile_list_ranked(PageLimit::MAX, None).await.unwrap().items[0].profile.clone();
        assert_eq!(first.conviction.get(), events, "every event of {guild:?} has had its effect");
        assert!(longest < Duration::from_secs(10), "one took {longest:?}");
        assert!(community.verify(false).await.unwrap().is_exact());
    }
    assert!(distribution(&database.config()).await.unwrap().unwrap().needs_options);
    migrate(&database.config(), Distribute::New).await.unwrap();
    consistency::check(&client).await;
}
