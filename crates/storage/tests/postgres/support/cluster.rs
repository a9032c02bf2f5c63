//! The server of the tests may be the coordinator of a cluster of Citus: then each database is one on every node.

use std::io::Write;

use tokio::sync::OnceCell;
use tokio_postgres::Client;

use super::database::{connect, connect_to, url};

/// The nodes beside the coordinator, each as `host:port`; none where the server is one PostgreSQL.
static NODES: OnceCell<Vec<String>> = OnceCell::const_new();

pub(crate) async fn nodes() -> &'static [String] {
    NODES.get_or_init(find).await
}

/// Whether the server is a cluster, where a test says aloud that it is not run there.
pub(crate) async fn is_one(why: &str) -> bool {
    let is_one = !nodes().await.is_empty();
    if is_one {
        say(why);
    }
    is_one
}

/// Whether the server is none, where a test of clusters says aloud that it is not run.
pub(crate) async fn is_none() -> bool {
    let is_none = nodes().await.is_empty();
    if is_none {
        assert!(std::env::var_os("MUSTER_CITUS_URL").is_none(), "the cluster that it names has no nodes");
        say(
            "it needs a cluster of Citus: MUSTER_CITUS_URL and MUSTER_CITUS_CA_FILE are to name its coordinator",
        );
    }
    is_none
}

/// Past what keeps the output of tests that pass.
fn say(why: &str) {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    writeln!(std::io::stderr(), "NOT RUN: {name}: {why}").unwrap();
}

/// They are those of the server's own database `postgres`.
async fn find() -> Vec<String> {
    let server = connect("postgres").await;
    let known = "SELECT to_regclass('pg_dist_node') IS NOT NULL";
    if !server.query_one(known, &[]).await.unwrap().get::<_, bool>(0) {
        return Vec::new();
    }
    let nodes = "SELECT nodename || ':' || nodeport FROM pg_dist_node WHERE groupid <> 0 ORDER BY nodeid";
    server.query(nodes, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// The URL of a database on a node.
fn url_on(node: &str, database: &str) -> String {
    let url = url(database);
    let (user, address) = url.split_once('@').unwrap();
    let (_, database) = address.split_once('/').unwrap();
    format!("{user}@{node}/{database}")
}

/// A connection to a database on a node.
pub(crate) async fn on(node: &str, database: &str) -> Client {
    connect_to(&url_on(node, database)).await
}

/// Runs SQL in the database `postgres` of the server, and of each node.
pub(crate) async fn on_each(sql: &str) {
    for node in nodes().await {
        on(node, "postgres").await.batch_execute(sql).await.unwrap();
    }
    connect("postgres").await.batch_execute(sql).await.unwrap();
}

/// Makes the databases of this name on all nodes one cluster.
pub(crate) async fn join(database: &str) {
    let nodes = nodes().await;
    if nodes.is_empty() {
        return;
    }
    for node in nodes {
        on(node, database).await.batch_execute("CREATE EXTENSION citus").await.unwrap();
    }
    let coordinator = connect(database).await;
    let own = url(database);
    let (_, address) = own.split_once('@').unwrap();
    let mut sql = "CREATE EXTENSION citus;".to_owned();
    let (host, port) = address.split_once('/').unwrap().0.split_once(':').unwrap();
    sql += &format!("SELECT citus_set_coordinator_host('{host}', {port});");
    for node in nodes {
        let (host, port) = node.split_once(':').unwrap();
        sql += &format!("SELECT citus_add_node('{host}', {port});");
    }
    coordinator.batch_execute(&sql).await.unwrap();
}

/// Lets tests plant faults by triggers, which are the tables' own on each node.
pub(crate) async fn allow_triggers(database: &str) {
    if !nodes().await.is_empty() {
        on_each(&format!("ALTER DATABASE {database} SET citus.enable_unsafe_triggers = on")).await;
    }
}

/// Has nobody connected to a database, so that it can be a template.
pub(crate) async fn close(database: &str) {
    if !nodes().await.is_empty() {
        on_each(&format!("ALTER DATABASE {database} ALLOW_CONNECTIONS false")).await;
        let end = format!(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{database}'"
        );
        on_each(&end).await;
    }
}
