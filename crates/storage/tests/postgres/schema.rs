//! The schema itself: the tenant leads every key, every reference has an index, and migrations go both ways.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use muster_storage::{Error, Store, migrate, migration_revert, migrations_check};
use tokio_postgres::Client;

use crate::support::database::Database;

/// How many migrations there are.
const MIGRATIONS: usize = 9;

async fn column(client: &Client, sql: &str) -> Vec<String> {
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

const NOTHING: [String; 0] = [];

#[tokio::test]
async fn the_community_comes_first_in_every_key_and_index() {
    let database = Database::migrated().await;
    let client = database.client().await;
    let indexes = "SELECT i.indexrelid::regclass::text FROM pg_index AS i
         JOIN pg_class AS x ON x.oid = i.indexrelid JOIN pg_am AS am ON am.oid = x.relam
         LEFT JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
         WHERE x.relnamespace = 'public'::regnamespace AND am.amname <> 'brin'
             AND i.indrelid::regclass::text NOT IN ('communities', 'signing_keys', '__diesel_schema_migrations')
             AND a.attname IS DISTINCT FROM 'community_id'";
    assert_eq!(column(&client, indexes).await, NOTHING);
    let tables = "SELECT c.relname::text FROM pg_class AS c
         WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
             AND c.relname NOT IN ('signing_keys', '__diesel_schema_migrations')
             AND NOT EXISTS (SELECT FROM pg_attribute AS a
                 WHERE a.attrelid = c.oid AND a.attname = 'community_id' AND a.attnotnull)";
    assert_eq!(column(&client, tables).await, NOTHING);
}

#[tokio::test]
async fn every_foreign_key_has_an_index_and_holds_the_community() {
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
             SELECT FROM pg_attribute AS a
             WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey) AND a.attname = 'community_id')";
    assert_eq!(column(&client, unscoped).await, NOTHING);
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
         UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
         UNION ALL SELECT relname || ' ' || array_to_string(reloptions, ',') FROM pg_class
             WHERE relnamespace = 'public'::regnamespace AND reloptions IS NOT NULL
         ORDER BY 1";
    column(client, sql).await
}

#[tokio::test]
async fn migrations_go_up_and_down_and_up_to_the_same_schema() {
    let database = Database::empty().await;
    let (config, client) = (database.config(), database.client().await);
    assert!(matches!(migrations_check(&config).await, Err(Error::Outdated(MIGRATIONS))));
    assert!(matches!(Store::open(config.clone()).await.map(drop), Err(Error::Outdated(MIGRATIONS))));
    assert!(schema(&client).await.is_empty(), "a check changes nothing");

    let applied = migrate(&config).await.unwrap();
    assert_eq!(applied.len(), MIGRATIONS);
    migrations_check(&config).await.unwrap();
    let after = schema(&client).await;
    assert!(after.len() > 150, "{}", after.len());
    assert_eq!(migrate(&config).await.unwrap(), Vec::<String>::new());
    for left in (0..MIGRATIONS).rev() {
        migration_revert(&config).await.unwrap();
        assert!(
            matches!(migrations_check(&config).await, Err(Error::Outdated(pending)) if pending == MIGRATIONS - left)
        );
    }
    let left = schema(&client).await;
    assert!(left.iter().all(|object| object.contains("__diesel_schema_migrations")), "{left:#?}");
    migrate(&config).await.unwrap();
    assert_eq!(schema(&client).await, after);
    Store::open(config).await.unwrap();
}

#[tokio::test]
async fn a_migration_gives_up_a_lock_before_others_wait_behind_it_for_long() {
    let database = Database::migrated().await;
    let (config, reader) = (database.config(), database.client().await);
    reader.batch_execute("BEGIN; SELECT count(*) FROM erasures").await.unwrap();
    let begun = Instant::now();
    let refused = migration_revert(&config).await;
    assert!(matches!(refused, Err(Error::Migration(_))), "{refused:?}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    reader.batch_execute("COMMIT").await.unwrap();
    migration_revert(&config).await.unwrap();
}

#[tokio::test]
async fn several_processes_may_migrate_at_once() {
    let database = Database::empty().await;
    let config = database.config();
    let migrations = [migrate(&config), migrate(&config), migrate(&config), migrate(&config)];
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for names in futures_util::future::join_all(migrations).await {
        for name in names.unwrap() {
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
        migrate(&database.config()).await.unwrap();
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
