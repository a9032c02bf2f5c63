//! A probe fails where events fail, and leaves nothing.

use muster_domain::Event;
use muster_storage::{Error, FaultOf};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use tokio_postgres::Client;

use crate::support::cluster;
use crate::support::database::Database;
use crate::support::events::{GUILDS, START, apply, drawn, guild, joined, user};

const TABLES: &str = "SELECT relname::text FROM pg_class
    WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace = 'public'::regnamespace
        AND relname NOT LIKE '\\_\\_%' ORDER BY 1";

async fn tables(client: &Client) -> Vec<String> {
    client.query(TABLES, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn rows(client: &Client) -> Vec<i64> {
    let mut counts = Vec::new();
    for table in tables(client).await {
        let count = client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap();
        counts.push(count.get(0));
    }
    counts
}

/// Events as they come, in batches; always the same ones.
pub(crate) fn batches(guilds: &[muster_domain::GuildId]) -> Vec<Vec<Event>> {
    let mut runner = TestRunner::deterministic();
    let drawn: Vec<Event> =
        (0..200).map(|_| drawn().new_tree(&mut runner).unwrap().current().event(guilds)).collect();
    drawn.chunks(40).map(<[Event]>::to_vec).collect()
}

#[tokio::test]
async fn a_probe_fails_on_every_table_and_kind_of_write_that_events_fail_on() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    client
        .batch_execute(
            "CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'it fails'; END $$",
        )
        .await
        .unwrap();
    let mut met = 0;
    for (number, table) in tables(&client).await.into_iter().enumerate() {
        for kind in ["INSERT", "UPDATE", "DELETE"] {
            let guilds: Vec<_> = (0..GUILDS).map(|n| guild(&format!("g{number}{kind}{n}"))).collect();
            apply(&store, &guilds[0], vec![joined(&guilds[0], &user(1), START, "x")]).await;
            let trigger = format!(
                "CREATE TRIGGER fails BEFORE {kind} ON {table} FOR EACH STATEMENT EXECUTE FUNCTION fails()"
            );
            client.batch_execute(&trigger).await.unwrap();
            let mut events_fail = false;
            for batch in batches(&guilds) {
                events_fail |= store.events_apply(batch).await.is_err();
            }
            for of in [None, Some(guilds[0].clone())] {
                let in_new = of.is_none();
                let probed = store.events_probe(of).await;
                match probed {
                    Err(error) => {
                        assert_eq!(
                            (error.fault_of(), error.sqlstate().as_deref()),
                            (FaultOf::Unknown, Some("P0001"))
                        );
                    }
                    // A community that is there is not made.
                    Ok(()) => assert!(
                        !events_fail || !in_new && table.starts_with("commun") || table == "tiers",
                        "{kind} on {table} is not probed"
                    ),
                }
            }
            client.batch_execute(&format!("DROP TRIGGER fails ON {table}")).await.unwrap();
            met += usize::from(events_fail);
        }
    }
    assert!(met > 20, "events fail on {met} only");
}

#[tokio::test]
async fn a_probe_leaves_nothing_and_tells_one_communitys_fault() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let (one, other) = (guild("one"), guild("other"));
    for guild in [&one, &other] {
        apply(&store, guild, vec![joined(guild, &user(1), START, "x")]).await;
    }
    let before = rows(&client).await;
    for of in [None, Some(one.clone()), Some(guild("unheard"))] {
        store.events_probe(of).await.unwrap();
    }
    assert_eq!(rows(&client).await, before);
    let number = "SELECT community FROM communities WHERE guild_id = 'one'";
    let number: i32 = client.query_one(number, &[]).await.unwrap().get(0);
    // Of what is deferred on a node, the coordinator does not know.
    let when = if cluster::nodes().await.is_empty() { "DEFERRED" } else { "IMMEDIATE" };
    for sql in [
        format!(
            "CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN IF NEW.community = {number} THEN RAISE EXCEPTION 'it fails'; END IF; RETURN NEW; END $$"
        ),
        format!(
            "CREATE CONSTRAINT TRIGGER fails AFTER INSERT ON members DEFERRABLE INITIALLY {when}
                 FOR EACH ROW EXECUTE FUNCTION fails()"
        ),
    ] {
        client.batch_execute(&sql).await.unwrap();
    }
    assert!(store.events_probe(None).await.is_ok() && store.events_probe(Some(other)).await.is_ok());
    let failed = store.events_probe(Some(one)).await.unwrap_err();
    assert!(matches!(failed, Error::Defect(_)) && failed.to_string().contains("it fails"), "{failed}");
    assert_eq!(rows(&client).await, before);
}

#[tokio::test]
async fn a_probe_fails_on_what_only_large_values_meet() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    for (table, is_large) in [
        ("members", "conviction > 1000000"),
        ("members", "char_length(nick) > 30"),
        ("members", "char_length(nym_key) > 60"),
        ("activity_adds", "amount > 1000000"),
    ] {
        let add = format!("ALTER TABLE {table} ADD CONSTRAINT small CHECK (({is_large}) IS NOT TRUE)");
        client.batch_execute(&add).await.unwrap();
        let failed = store.events_probe(None).await.unwrap_err();
        assert_eq!(failed.sqlstate().as_deref(), Some("23514"), "{is_large}: {failed}");
        client.batch_execute(&format!("ALTER TABLE {table} DROP CONSTRAINT small")).await.unwrap();
        store.events_probe(None).await.unwrap();
    }
}

#[tokio::test]
async fn a_probe_does_not_wait_long_for_a_lock() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    store.events_probe(None).await.unwrap();
    client.batch_execute("BEGIN; LOCK TABLE members IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let began = std::time::Instant::now();
    let failed = store.events_probe(None).await.unwrap_err();
    assert_eq!(failed.sqlstate().as_deref(), Some("55P03"), "{failed}");
    assert!(began.elapsed() < std::time::Duration::from_secs(3), "{:?}", began.elapsed());
    client.batch_execute("COMMIT").await.unwrap();
    store.events_probe(None).await.unwrap();
}
