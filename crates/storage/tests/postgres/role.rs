//! The worker's role may be an ordinary one: no superuser, with no permission but what comes with owning its database.

use std::time::Duration;

use muster_domain::PageLimit;
use muster_storage::{Error, Store, migrate};
use uuid::Uuid;

use crate::support::database::{Database, ca_file, config, connect, trusting, url};
use crate::support::events::{START, apply, guild, joined, scored, user};

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
            "CREATE ROLE {role} LOGIN PASSWORD 'muad' NOSUPERUSER NOCREATEDB NOCREATEROLE;
             ALTER DATABASE {name} OWNER TO {role}"
        ))
        .await
        .unwrap();
    let url = url_of(&role, "muad", name);
    let ordinary = || config(&url, trusting(&ca_file())).query_timeout(Duration::from_millis(500));
    migrate(&ordinary()).await.unwrap();
    let store = Store::open(ordinary()).await.unwrap();
    let tabr = guild("tabr");
    let community = apply(&store, &tabr, vec![joined(&tabr, &user(1), START, "x")]).await;
    assert_eq!(community.profile_list_ranked(PageLimit::MAX, None).await.unwrap().items.len(), 1);

    // What the server refuses is told apart without asking it for a language.
    let blocking = database.client().await;
    blocking.batch_execute("BEGIN; SELECT FROM communities FOR UPDATE").await.unwrap();
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
