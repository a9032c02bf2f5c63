//! The schema itself: the shard leads every key, every reference has an index, the code's idea of it is right, and migrations go
//! both ways.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use muster_storage::{Distribute, Error, Migrated, Store, migrate, migration_revert, migrations_check};
use tokio_postgres::Client;

use crate::support::cluster;
use crate::support::database::Database;

/// How many migrations there are.
pub(crate) const MIGRATIONS: usize = 24;
/// Which of them makes the table of shards.
const SHARDS: usize = 11;

/// Why the schema as a whole is not looked at on a cluster.
const ITS_OWN: &str = "beside the schema there is what Citus makes for itself";

async fn column(client: &Client, sql: &str) -> Vec<String> {
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

const NOTHING: [String; 0] = [];

#[tokio::test]
async fn the_shard_comes_first_in_every_key_and_index() {
    let database = Database::migrated().await;
    let client = database.client().await;
    let indexes = "SELECT i.indexrelid::regclass::text FROM pg_index AS i
         JOIN pg_class AS x ON x.oid = i.indexrelid
         LEFT JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
         WHERE x.relnamespace = 'public'::regnamespace
             AND i.indrelid::regclass::text NOT IN ('communities', 'signing_keys', '__diesel_schema_migrations')
             AND i.indexrelid <> 'members_by_number'::regclass
             AND a.attname IS DISTINCT FROM 'shard'";
    assert_eq!(column(&client, indexes).await, NOTHING);
    let keyless = "SELECT c.oid::regclass::text FROM pg_class AS c
         WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace
             AND NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary)";
    assert_eq!(column(&client, keyless).await, NOTHING);
    let tables = "SELECT c.oid::regclass::text FROM pg_class AS c
         WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace
             AND c.relname NOT IN ('shards', 'signing_keys', '__diesel_schema_migrations')
             AND 2 > (SELECT count(*) FROM pg_attribute AS a
                 WHERE a.attrelid = c.oid AND a.attname IN ('shard', 'community') AND a.attnotnull)";
    assert_eq!(column(&client, tables).await, NOTHING);
    // A key is of one type wherever it stands.
    let types = "SELECT DISTINCT a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
         FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
         WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace
             AND a.attname IN ('shard', 'community', 'member', 'board', 'tier', 'kind', 'change') ORDER BY 1";
    let keys = [
        "board smallint",
        "change bigint",
        "community integer",
        "kind integer",
        "member bigint",
        "shard smallint",
        "tier smallint",
    ];
    assert_eq!(column(&client, types).await, keys);
}

/// So an update of a member stays in its page and touches no index.
#[tokio::test]
async fn member_columns_that_events_change_are_in_no_index() {
    let database = Database::migrated().await;
    let client = database.client().await;
    let indexed = "SELECT DISTINCT a.attname::text FROM pg_index AS i
         JOIN pg_depend AS d ON d.objid = i.indexrelid AND d.refobjid = i.indrelid
         JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = d.refobjsubid
         WHERE i.indrelid = 'members'::regclass
         UNION SELECT a.attname::text FROM pg_index AS i
         JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
         WHERE i.indrelid = 'members'::regclass ORDER BY 1";
    let never_changed_by_events = ["community", "member", "profile_id", "shard", "user_id", "wallet"];
    assert_eq!(column(&client, indexed).await, never_changed_by_events);
}

#[tokio::test]
async fn every_foreign_key_has_an_index_and_begins_with_the_shard() {
    if cluster::is_one(ITS_OWN).await {
        return;
    }
    let database = Database::migrated().await;
    let client = database.client().await;
    let keys = "SELECT count(*)::text FROM pg_constraint WHERE contype = 'f'";
    assert_ne!(column(&client, keys).await, ["0"]);
    let unindexed = "SELECT k.conname::text FROM pg_constraint AS k
         WHERE k.contype = 'f' AND NOT EXISTS (
             SELECT FROM pg_index AS i WHERE i.indrelid = k.conrelid AND i.indpred IS NULL
                 AND (i.indkey::smallint[])[0:cardinality(k.conkey) - 1] @> k.conkey)";
    assert_eq!(column(&client, unindexed).await, NOTHING);
    let unscoped = "SELECT k.conname::text FROM pg_constraint AS k
         WHERE k.contype = 'f' AND NOT EXISTS (
             SELECT FROM pg_attribute AS a, pg_attribute AS b
             WHERE a.attrelid = k.conrelid AND a.attnum = k.conkey[1] AND a.attname = 'shard'
                 AND b.attrelid = k.confrelid AND b.attnum = k.confkey[1] AND b.attname = 'shard')";
    assert_eq!(column(&client, unscoped).await, NOTHING);
}

/// A function that reads a table keeps its statement from being sent to the node that has the rows.
#[tokio::test]
async fn no_function_or_trigger_or_view_reads_a_table() {
    if cluster::is_one(ITS_OWN).await {
        return;
    }
    let database = Database::migrated().await;
    let client = database.client().await;
    let functions = "SELECT p.proname || '(' || pg_get_function_arguments(p.oid) || ')' FROM pg_proc AS p
         WHERE p.pronamespace = 'public'::regnamespace";
    assert_eq!(column(&client, functions).await, ["applied_events_empty(slot integer)"]);
    let body = "SELECT prosrc FROM pg_proc WHERE proname = 'applied_events_empty'";
    let body = column(&client, body).await.concat();
    for reading in ["SELECT", "FROM ", "PERFORM", "DELETE", "INSERT"] {
        assert!(!body.to_uppercase().contains(reading), "{body}");
    }
    let triggers = "SELECT tgname::text FROM pg_trigger WHERE NOT tgisinternal";
    assert_eq!(column(&client, triggers).await, NOTHING);
    let views = "SELECT oid::regclass::text FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relkind NOT IN ('r', 'p', 'i', 'I', 'S')";
    assert_eq!(column(&client, views).await, NOTHING);
    // Numbers are taken from sequences by statements of their own, not by defaults.
    let defaults = "SELECT d.adrelid::regclass || ' ' || pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef AS d
         JOIN pg_class AS c ON c.oid = d.adrelid
         WHERE c.relnamespace = 'public'::regnamespace AND pg_get_expr(d.adbin, d.adrelid) LIKE '%nextval%'";
    assert_eq!(column(&client, defaults).await, NOTHING);
}

/// The tables of `src/schema.rs`, each with its key and its columns: their names, types and whether they may be null.
fn declared() -> BTreeMap<String, (Vec<String>, Vec<String>)> {
    let text = include_str!("../../src/schema.rs");
    let tables = text.split("diesel::table! {").skip(1).map(|table| {
        let (name, rest) = table.split_once('(').unwrap();
        let (key, rest) = rest.split_once(')').unwrap();
        let (_, rest) = rest.split_once('{').unwrap();
        let (columns, _) = rest.split_once('}').unwrap();
        let list = |text: &str| -> Vec<String> {
            text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
        };
        (name.trim().to_owned(), (list(key), list(columns)))
    });
    tables.collect()
}

#[tokio::test]
async fn the_codes_tables_are_those_of_the_database() {
    let database = Database::migrated().await;
    let client = database.client().await;
    // In Diesel's words. A partition is no table of its own.
    let sql = "SELECT c.relname::text,
             (SELECT array_agg(k.attname::text ORDER BY n) FROM pg_index AS i
                 CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS key (attnum, n)
                 JOIN pg_attribute AS k ON k.attrelid = c.oid AND k.attnum = key.attnum
                 WHERE i.indrelid = c.oid AND i.indisprimary AND n <= i.indnkeyatts),
             array_agg(concat(a.attname, ' -> ', CASE WHEN a.attnotnull THEN t.name ELSE concat('Nullable<', t.name, '>')
                 END) ORDER BY a.attnum)
         FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         CROSS JOIN LATERAL (SELECT initcap(typname::text) AS name FROM pg_type WHERE oid = a.atttypid) AS t
         WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace = 'public'::regnamespace
             AND c.relname <> '__diesel_schema_migrations'
         GROUP BY c.oid, c.relname";
    let rows = client.query(sql, &[]).await.unwrap();
    let found: BTreeMap<String, (Vec<String>, Vec<String>)> =
        rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
    let declared = declared();
    assert!(declared.len() > 15);
    let names = |tables: &BTreeMap<String, _>| tables.keys().cloned().collect::<BTreeSet<String>>();
    assert_eq!(names(&declared), names(&found));
    for (table, of) in &declared {
        assert_eq!(of, &found[table], "{table}");
    }
}

#[tokio::test]
async fn each_day_has_a_partition_and_what_is_old_has_one_more() {
    let database = Database::migrated().await;
    let client = database.client().await;
    let partitions = "SELECT c.relname || ' ' || pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits AS h
         JOIN pg_class AS c ON c.oid = h.inhrelid WHERE h.inhparent = 'applied_events'::regclass";
    let found: BTreeSet<String> = column(&client, partitions).await.into_iter().collect();
    let name = |slot: i32| format!("applied_events_{slot} FOR VALUES IN ('{slot}')");
    assert_eq!(found, (0..=64).map(name).collect());
}

/// Everything the schema consists of, as text.
async fn schema(client: &Client) -> Vec<String> {
    let sql = "SELECT 'column ' || concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default,
             generation_expression, collation_name)
         FROM information_schema.columns WHERE table_schema = 'public'
         UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
         UNION ALL SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
             WHERE connamespace = 'public'::regnamespace
         UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
         UNION ALL SELECT concat_ws(' ', 'sequence', sequencename, data_type, start_value, increment_by)
             FROM pg_sequences WHERE schemaname = 'public'
         UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
         UNION ALL SELECT relname || ' ' || array_to_string(reloptions, ',') FROM pg_class
             WHERE relnamespace = 'public'::regnamespace AND reloptions IS NOT NULL
         ORDER BY 1";
    column(client, sql).await
}

#[tokio::test]
async fn migrations_go_up_and_down_and_up_to_the_same_schema() {
    if cluster::is_one(ITS_OWN).await {
        return;
    }
    let database = Database::empty().await;
    let (config, client) = (database.config(), database.client().await);
    assert!(matches!(migrations_check(&config).await, Err(Error::Outdated(MIGRATIONS))));
    assert!(matches!(Store::open(config.clone()).await.map(drop), Err(Error::Outdated(MIGRATIONS))));
    assert!(schema(&client).await.is_empty(), "a check changes nothing");

    let applied = migrate(&config, Distribute::New).await.unwrap().applied;
    assert_eq!(applied.len(), MIGRATIONS);
    migrations_check(&config).await.unwrap();
    let after = schema(&client).await;
    assert!(after.len() > 150, "{}", after.len());
    assert_eq!(migrate(&config, Distribute::New).await.unwrap(), Migrated::default());
    for left in (0..MIGRATIONS).rev() {
        migration_revert(&config).await.unwrap();
        assert!(
            matches!(migrations_check(&config).await, Err(Error::Outdated(pending)) if pending == MIGRATIONS - left)
        );
    }
    let left = schema(&client).await;
    assert!(left.iter().all(|object| object.contains("__diesel_schema_migrations")), "{left:#?}");
    migrate(&config, Distribute::New).await.unwrap();
    assert_eq!(schema(&client).await, after);
    Store::open(config).await.unwrap();
}

#[tokio::test]
async fn a_migration_gives_up_a_lock_before_others_wait_behind_it_for_long() {
    let database = Database::migrated().await;
    let (config, reader) = (database.config(), database.client().await);
    // Those after that of the shards wait for no reader of them.
    for _ in SHARDS..MIGRATIONS {
        migration_revert(&config).await.unwrap();
    }
    reader.batch_execute("BEGIN; LOCK TABLE shards IN SHARE MODE").await.unwrap();
    let begun = Instant::now();
    let refused = migration_revert(&config).await;
    assert!(matches!(refused, Err(Error::Migration(_))), "{refused:?}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    reader.batch_execute("COMMIT").await.unwrap();
    migration_revert(&config).await.unwrap();
}

/// Readers and writers go on meanwhile, so nobody waits behind it.
#[tokio::test]
async fn an_index_waits_for_whoever_reads_and_one_left_unfinished_is_made_anew() {
    if cluster::is_one(ITS_OWN).await {
        return;
    }
    let database = Database::migrated().await;
    let (config, client, reader) = (database.config(), database.client().await, database.client().await);
    let again = "DELETE FROM __diesel_schema_migrations WHERE version = '20261128000020'";
    let unfinished =
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'nym_suffixes_inside_7'::regclass";
    client.batch_execute(&format!("{unfinished}; {again}")).await.unwrap();
    migrate(&config, Distribute::New).await.unwrap();
    let valid = "SELECT indexrelid::regclass::text FROM pg_index
         WHERE indexrelid = 'nym_suffixes_inside_7'::regclass AND indisvalid";
    assert_eq!(column(&client, valid).await, ["nym_suffixes_inside_7"]);

    client.batch_execute(&format!("DROP INDEX nym_suffixes_inside_7; {again}")).await.unwrap();
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM nym_suffixes").await.unwrap();
    let read = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        reader.batch_execute("COMMIT").await
    };
    let (migrated, read) = tokio::join!(migrate(&config, Distribute::New), read);
    read.unwrap();
    assert_eq!(migrated.unwrap().applied.len(), 1);
    assert_eq!(column(&client, valid).await, ["nym_suffixes_inside_7"]);
}

#[tokio::test]
async fn several_processes_may_migrate_at_once() {
    let database = Database::empty().await;
    let config = database.config();
    let migrations = [(); 4].map(|()| migrate(&config, Distribute::New));
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for names in futures_util::future::join_all(migrations).await {
        for name in names.unwrap().applied {
            *counts.entry(name).or_default() += 1;
        }
    }
    assert_eq!(counts.len(), MIGRATIONS);
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
}

#[tokio::test]
async fn every_database_has_a_signing_key_of_its_own() {
    let secret = async || {
        let database = Database::empty().await;
        migrate(&database.config(), Distribute::New).await.unwrap();
        let client = database.client().await;
        let rows = client.query("SELECT secret FROM signing_keys ORDER BY purpose", &[]).await.unwrap();
        rows.iter().map(|row| row.get::<_, Vec<u8>>(0)).collect::<Vec<_>>()
    };
    let keys = [secret().await, secret().await].concat();
    assert_eq!(keys.iter().map(Vec::len).collect::<Vec<_>>(), [32; 4]);
    assert_eq!(
        keys.iter().collect::<HashSet<_>>().len(),
        4,
        "one of each database for cursors and one for erasures"
    );
}
