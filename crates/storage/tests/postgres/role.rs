//! The worker's role may be an ordinary one: no superuser, with no permission but what comes with owning its database.

use std::time::Duration;

use muster_domain::{PageLimit, TierPolicy};
use muster_storage::{Distribute, Error, Store, migrate, migration_revert};
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use crate::support::cluster;
use crate::support::database::{Database, ca_file, config, connect, trusting, url};
use crate::support::events::{START, added, apply, awarded, guild, joined, scored, user};

/// The server's URL for another user of another database.
fn url_of(role: &str, password: &str, database: &str) -> String {
    let url = url(database);
    let (_, address) = url.split_once('@').unwrap();
    format!("postgres://{role}:{password}@{address}")
}

#[tokio::test]
async fn an_ordinary_role_that_owns_its_database_is_enough() {
    let database = Database::empty().await;
    let name = database.name();
    let role = format!("ordinary_{}", Uuid::new_v4().simple());
    let server = connect("postgres").await;
    server
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'muad' NOSUPERUSER NOCREATEDB NOCREATEROLE"
        ))
        .await
        .unwrap();
    cluster::on_each(&format!("ALTER DATABASE {name} OWNER TO {role}")).await;
    let url = url_of(&role, "muad", name);
    let ordinary = || config(&url, trusting(&ca_file())).query_timeout(Duration::from_millis(500));
    migrate(&ordinary(), Distribute::New).await.unwrap();
    let store = Store::open(ordinary()).await.unwrap();
    let tabr = guild("tabr");
    let community = apply(&store, &tabr, vec![joined(&tabr, &user(1), START, "x")]).await;
    assert_eq!(community.profile_list_ranked(PageLimit::MAX, None).await.unwrap().items.len(), 1);

    // What the server refuses is told apart without asking it for a language.
    let blocking = database.client().await;
    blocking.batch_execute("BEGIN; UPDATE community_states SET active = active").await.unwrap();
    let refused = store.events_apply(vec![scored(&tabr, &user(1), START + 1, 1)]).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    blocking.batch_execute("COMMIT").await.unwrap();

    // Only a superuser may choose the language.
    let asking = format!("{url}&options=-c%20lc_messages%3DC");
    let asking = Store::open(config(&asking, trusting(&ca_file()))).await.map(drop);
    assert!(format!("{asking:?}").contains("42501: permission denied to set parameter"), "{asking:?}");

    store.close();
    drop(database);
    server.batch_execute(&format!("DROP ROLE {role}")).await.unwrap();
}

/// Records an id as applied of an event of forty days ago, in the partition of its day.
const LONG_AGO: &str = "INSERT INTO applied_events (shard, slot, community, event_id)
    SELECT shard, floor(extract(epoch FROM now()) / 86400 - 40)::bigint % 64, community,
        '00000000-0000-4000-8000-000000000040'
    FROM communities";

/// As the runbook makes the roles: one owns the schema and migrates, the other has its rows and nothing else.
#[tokio::test]
async fn a_role_with_the_rows_alone_does_all_that_a_worker_does_and_cannot_change_the_schema() {
    let database = Database::empty().await;
    let name = database.name();
    let unique = Uuid::new_v4().simple();
    let (owner, worker) = (format!("owner_{unique}"), format!("worker_{unique}"));
    let administrator = database.client().await;
    administrator
        .batch_execute(&format!(
            "CREATE ROLE {owner} LOGIN PASSWORD 'muad'; CREATE ROLE {worker} LOGIN PASSWORD 'dib'"
        ))
        .await
        .unwrap();
    cluster::on_each(&format!("ALTER DATABASE {name} OWNER TO {owner}")).await;
    administrator
        .batch_execute(&format!(
            "REVOKE ALL ON DATABASE {name} FROM PUBLIC;
             GRANT CONNECT ON DATABASE {name} TO {owner}, {worker};
             ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {worker};
             ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT USAGE ON SEQUENCES TO {worker};
             ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT EXECUTE ON FUNCTIONS TO {worker}"
        ))
        .await
        .unwrap();
    let of = |role: &str, password: &str| config(&url_of(role, password, name), trusting(&ca_file()));
    migrate(&of(&owner, "muad"), Distribute::New).await.unwrap();

    let store = Store::open(of(&worker, "dib")).await.unwrap();
    let tabr = guild("tabr");
    let mut events = Vec::new();
    for number in 0..20 {
        events.push(joined(&tabr, &user(number), START, &format!("Fremen {number}")));
        events.push(scored(&tabr, &user(number), START + 1, number * 100));
        events.push(added(&tabr, &user(number), START + 2, 5));
        events.push(awarded(&tabr, &user(number), START + 3, "crysknife"));
    }
    let community = apply(&store, &tabr, events).await;
    let board = community.profile_list_ranked(PageLimit::MAX, None).await.unwrap().items;
    assert_eq!(board.len(), 20);
    let (first, second) = (board[0].profile.profile_id, board[1].profile.profile_id);
    community.profile_hide(first).await.unwrap();
    community.profile_show(first).await.unwrap();
    community.profile_erase(second).await.unwrap();
    community.tier_policy_replace(&TierPolicy::default()).await.unwrap();
    assert!(community.verify(true).await.unwrap().compared.iter().all(|compared| compared.drifted == 0));
    community.erasures_enforce().await.unwrap();
    // A day that is long past has its partition emptied, which only the schema's owner may.
    assert_eq!(administrator.execute(LONG_AGO, &[]).await.unwrap(), 1);
    store.applied_events_prune(Duration::from_secs(10 * 86400)).await.unwrap();
    let left = "SELECT count(*) FROM applied_events WHERE event_id = '00000000-0000-4000-8000-000000000040'";
    assert_eq!(administrator.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
    store.events_probe(Some(tabr)).await.unwrap();
    store.close();

    let session = format!("SET ROLE {worker}");
    administrator.batch_execute(&session).await.unwrap();
    for change in [
        "CREATE TABLE public.more ()",
        "CREATE TEMPORARY TABLE more ()",
        "ALTER TABLE communities ADD more integer",
        "CREATE INDEX ON members (shard, nick)",
        "TRUNCATE members CASCADE",
        "TRUNCATE applied_events_64",
        "DROP TABLE applied_events",
        "CREATE FUNCTION public.more() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE OR REPLACE FUNCTION applied_events_empty(slot integer) RETURNS void LANGUAGE sql AS 'SELECT'",
        "ALTER TABLE members DISABLE TRIGGER ALL",
        "ALTER SEQUENCE member_numbers RESTART",
        "SELECT setval('member_numbers', 1)",
        "DELETE FROM erasures",
        "UPDATE signing_keys SET secret = sha256('')",
        "INSERT INTO signing_keys VALUES ('more', sha256(''))",
        "DELETE FROM shards",
        "DELETE FROM __diesel_schema_migrations",
    ] {
        let refused = administrator.batch_execute(change).await.unwrap_err();
        assert_eq!(refused.code().map(SqlState::code), Some("42501"), "{change}: {refused}");
    }
    for no_day in [-1, 64, 65] {
        let refused = administrator.batch_execute(&format!("SELECT applied_events_empty({no_day})")).await;
        assert_eq!(refused.unwrap_err().code().map(SqlState::code), Some("P0001"), "{no_day}");
    }
    let refused = migration_revert(&of(&worker, "dib")).await;
    assert!(format!("{refused:?}").contains("42501"), "{refused:?}");

    drop((administrator, database));
    let server = connect("postgres").await;
    server.batch_execute(&format!("DROP ROLE {owner}; DROP ROLE {worker}")).await.unwrap();
}

/// What the administrator may have set for the role, and what a session of Muster has all the same, in the units of
/// `pg_settings`.
const ODD: [(&str, &str, &str); 17] = [
    ("synchronous_commit", "off", "on"),
    ("default_transaction_isolation", "serializable", "read committed"),
    ("default_transaction_deferrable", "on", "off"),
    ("client_encoding", "LATIN1", "UTF8"),
    ("TimeZone", "Pacific/Apia", "UTC"),
    ("DateStyle", "SQL, DMY", "ISO, MDY"),
    ("IntervalStyle", "iso_8601", "postgres"),
    ("standard_conforming_strings", "off", "on"),
    ("bytea_output", "escape", "hex"),
    ("search_path", "elsewhere", "public"),
    ("statement_timeout", "20s", "3000"),
    ("lock_timeout", "20s", "1500"),
    ("idle_in_transaction_session_timeout", "20s", "3000"),
    ("idle_session_timeout", "20s", "0"),
    ("plan_cache_mode", "force_custom_plan", "force_generic_plan"),
    ("jit", "on", "off"),
    ("enable_seqscan", "on", "off"),
];

#[tokio::test]
async fn sessions_are_what_they_must_be_whatever_the_role_has() {
    let database = Database::empty().await;
    let name = database.name();
    let role = format!("odd_{}", Uuid::new_v4().simple());
    let server = connect("postgres").await;
    let altered: String =
        ODD.map(|(setting, odd, _)| format!("ALTER ROLE {role} SET {setting} = '{odd}';")).concat();
    server.batch_execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'muad'; {altered}")).await.unwrap();
    cluster::on_each(&format!("ALTER DATABASE {name} OWNER TO {role}")).await;
    let administrator = database.client().await;
    // A table of the same name where the role's own path leads.
    let elsewhere =
        format!("CREATE SCHEMA elsewhere AUTHORIZATION {role}; CREATE TABLE elsewhere.communities ()");
    administrator.batch_execute(&elsewhere).await.unwrap();
    let url = url_of(&role, "muad", name);
    let odd = || config(&url, trusting(&ca_file())).query_timeout(Duration::from_millis(500));
    migrate(&odd(), Distribute::New).await.unwrap();
    administrator
        .batch_execute(
            "CREATE TABLE public.seen (name text, setting text);
             GRANT INSERT ON public.seen TO PUBLIC;
             CREATE FUNCTION public.see() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN INSERT INTO public.seen SELECT name, setting FROM pg_settings; RETURN NULL; END';
             CREATE TRIGGER see AFTER INSERT ON public.communities EXECUTE FUNCTION public.see()",
        )
        .await
        .unwrap();
    let store = Store::open(odd()).await.unwrap();
    let tabr = guild("tabr");
    let community = apply(&store, &tabr, vec![joined(&tabr, &user(1), START, "x")]).await;
    assert_eq!(community.profile_list_ranked(PageLimit::MAX, None).await.unwrap().items.len(), 1);
    let of_a_cluster = !cluster::nodes().await.is_empty();
    for (setting, _, expected) in ODD {
        // An `INSERT` of a batch is planned by its values there.
        let expected = if of_a_cluster && setting == "plan_cache_mode" { "auto" } else { expected };
        let seen = "SELECT setting FROM public.seen WHERE name = $1 LIMIT 1";
        let seen: String = administrator.query_one(seen, &[&setting]).await.unwrap().get(0);
        assert_eq!(seen, expected, "{setting}");
    }
    store.close();
    drop(database);
    server.batch_execute(&format!("DROP ROLE {role}")).await.unwrap();
}

/// Two deployments in one database, each in a schema of its own.
#[tokio::test]
async fn another_schema_is_served_as_public_is() {
    let database = Database::migrated().await;
    let administrator = database.client().await;
    administrator.batch_execute("CREATE SCHEMA other").await.unwrap();
    let of_other = format!("{}&options=-c%20search_path%3Dother", url(database.name()));
    let other = || config(&of_other, trusting(&ca_file()));
    migrate(&other(), Distribute::New).await.unwrap();
    let store = Store::open(other()).await.unwrap();
    let tabr = guild("tabr");
    let community = apply(&store, &tabr, vec![joined(&tabr, &user(1), START, "x")]).await;
    assert_eq!(community.profile_list_ranked(PageLimit::MAX, None).await.unwrap().items.len(), 1);
    let public = apply(&database.store().await, &tabr, vec![joined(&tabr, &user(1), START, "x")]).await;
    assert_eq!(public.profile_list_ranked(PageLimit::MAX, None).await.unwrap().items.len(), 1);
    // What one of them forgets, the other does not.
    administrator.batch_execute(LONG_AGO).await.unwrap();
    administrator
        .batch_execute(&format!("SET search_path = other; {LONG_AGO}; RESET search_path"))
        .await
        .unwrap();
    store.applied_events_prune(Duration::from_secs(10 * 86400)).await.unwrap();
    let left = "SELECT (SELECT count(*) FROM other.applied_events WHERE event_id = '00000000-0000-4000-8000-000000000040'),
        (SELECT count(*) FROM public.applied_events WHERE event_id = '00000000-0000-4000-8000-000000000040')";
    let left = administrator.query_one(left, &[]).await.unwrap();
    assert_eq!((left.get::<_, i64>(0), left.get::<_, i64>(1)), (0, 1));
    store.close();
}

#[tokio::test]
async fn a_session_that_cannot_be_what_it_must_be_is_refused_with_what_to_do() {
    let database = Database::migrated().await;
    let refused = async |more: &str| {
        let url = url(database.name()) + more;
        match Store::open(config(&url, trusting(&ca_file()))).await.map(drop) {
            Err(Error::Configuration(why)) => why,
            other => panic!("{more}: {other:?}"),
        }
    };
    let said = refused("&options=-c%20no_such_setting%3D1").await;
    assert!(said.contains("settings could not be applied") && said.contains("no_such_setting"), "{said}");
    let said = refused("&options=-c%20enable_sort%3Dperhaps").await;
    assert!(said.contains("enable_sort"), "{said}");
    // A session of Citus' own in such a database does not end when it is dropped.
    if !cluster::nodes().await.is_empty() {
        return;
    }
    // Only a superuser can have set it, and an ordinary role cannot set it back.
    let alter = format!("ALTER DATABASE {} SET session_replication_role = replica", database.name());
    database.client().await.batch_execute(&alter).await.unwrap();
    let said = refused("").await;
    assert!(said.contains("session_replication_role is replica") && said.contains("reset it"), "{said}");
}
