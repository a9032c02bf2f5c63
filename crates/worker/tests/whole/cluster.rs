//! A database of a test's own on every node of a cluster of Citus.

use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use muster_domain::{GuildId, Shard};
use uuid::Uuid;
use xtask::tool::output;

use crate::database::{Does, Way};
use crate::setting::Guild;

static JOINING: Mutex<()> = Mutex::new(());

/// It is dropped with this value.
pub(crate) struct Cluster {
    server: Server,
    name: String,
    /// Each but the coordinator.
    pub(crate) nodes: Vec<Node>,
}

/// A node, each time as `host:port`.
pub(crate) struct Node {
    /// Where it listens.
    at: String,
    /// By which its coordinator knows it.
    pub(crate) known_as: String,
}

/// The coordinator and its authority's file.
struct Server {
    url: String,
    ca: String,
}

impl Server {
    /// What `MUSTER_CITUS_URL` and `MUSTER_CITUS_CA_FILE` name, if they do.
    fn named() -> Option<Self> {
        let [Ok(url), Ok(ca)] = ["MUSTER_CITUS_URL", "MUSTER_CITUS_CA_FILE"].map(std::env::var) else {
            return None;
        };
        Some(Self { url, ca })
    }

    /// The `host:port` of the coordinator.
    fn at(&self) -> Result<&str> {
        let (_, address) = self.url.split_once('@').context("the URL has no user")?;
        address.split_once('/').map(|(at, _)| at).context("the URL has no database")
    }

    /// The URL of a database on the server at `host:port`.
    fn url(&self, at: &str, database: &str) -> Result<String> {
        let (user, rest) = self.url.split_once('@').context("the URL has no user")?;
        let options = rest.split_once('?').map_or("sslmode=verify-full", |(_, options)| options);
        Ok(format!("{user}@{at}/{database}?{options}"))
    }

    fn sql(&self, at: &str, database: &str, sql: &str) -> Result<String> {
        let mut psql = Command::new("psql");
        psql.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only"]);
        psql.args(["--set", "ON_ERROR_STOP=1", "--command", sql]);
        let said = output(psql.arg(self.url(at, database)?).env("PGSSLROOTCERT", &self.ca))?;
        Ok(said.trim().to_owned())
    }

    /// Those of the database that is named.
    fn nodes(&self) -> Result<Vec<String>> {
        let nodes = "SELECT nodename || ':' || nodeport FROM pg_dist_node WHERE groupid <> 0 ORDER BY nodeid";
        Ok(self.sql(self.at()?, "postgres", nodes)?.lines().map(str::to_owned).collect())
    }
}

impl Cluster {
    pub(crate) fn is_named() -> bool {
        Server::named().is_some()
    }

    /// Makes the databases and one cluster of them; none where no cluster is named.
    pub(crate) fn make() -> Result<Option<Self>> {
        Self::join(|at| Ok(at.to_owned()))
    }

    /// The same, whose coordinator reaches each node by a way of the test.
    pub(crate) async fn make_with_ways() -> Result<Option<(Self, Vec<Way>)>> {
        let mut ways = Vec::new();
        let Some(server) = Server::named() else { return Ok(None) };
        let mut ports = Vec::new();
        for at in server.nodes()? {
            let port = at.rsplit_once(':').context("no port")?.1.parse()?;
            let way = Way::to(port, Does::Passes).await?;
            ports.push((at, format!("localhost:{}", way.port)));
            ways.push(way);
        }
        let known_as = |at: &str| ports.iter().find(|(node, _)| node == at).map(|(_, way)| way.clone());
        let made = Self::join(|at| known_as(at).context("a node without a way"))?;
        Ok(made.map(|cluster| (cluster, ways)))
    }

    fn join(known_as: impl Fn(&str) -> Result<String>) -> Result<Option<Self>> {
        let Some(server) = Server::named() else { return Ok(None) };
        let nodes = server.nodes()?.into_iter().map(|at| Ok(Node { known_as: known_as(&at)?, at }));
        let nodes = nodes.collect::<Result<Vec<_>>>()?;
        // Each adds the cluster's roles to all nodes, which two cannot do at once.
        let _one = JOINING.lock().unwrap_or_else(PoisonError::into_inner);
        let made = Self { server, name: format!("whole_{}", Uuid::new_v4().simple()), nodes };
        let places = made.places()?;
        for at in &places {
            made.server.sql(at, "postgres", &format!("CREATE DATABASE {}", made.name))?;
            // Tests plant faults by triggers, which are each node's own.
            let allow = "SET citus.enable_unsafe_triggers = on";
            made.server.sql(at, "postgres", &format!("ALTER DATABASE {} {allow}", made.name))?;
            made.server.sql(at, &made.name, "CREATE EXTENSION citus")?;
        }
        let add = |function: &str, at: &str| -> Result<String> {
            let (host, port) = at.rsplit_once(':').context("no port")?;
            made.sql(&format!("SELECT {function}('{host}', {port})"))
        };
        add("citus_set_coordinator_host", made.server.at()?)?;
        for node in &made.nodes {
            add("citus_add_node", &node.known_as)?;
        }
        Ok(Some(made))
    }

    /// Where the coordinator and the nodes listen.
    fn places(&self) -> Result<Vec<String>> {
        let nodes = self.nodes.iter().map(|node| node.at.clone());
        Ok(std::iter::once(self.server.at()?.to_owned()).chain(nodes).collect())
    }

    pub(crate) fn url(&self) -> Result<String> {
        self.server.url(self.server.at()?, &self.name)
    }

    /// The file of the authority that issued its certificates.
    pub(crate) fn ca(&self) -> &str {
        &self.server.ca
    }

    /// The port of the coordinator.
    pub(crate) fn port(&self) -> Result<u16> {
        Ok(self.server.at()?.rsplit_once(':').context("no port")?.1.parse()?)
    }

    /// Runs SQL on the coordinator.
    pub(crate) fn sql(&self, sql: &str) -> Result<String> {
        self.server.sql(self.server.at()?, &self.name, sql)
    }

    /// Lets nobody into the database on a node, and cuts off who is there; or lets them in again.
    pub(crate) fn node_is(&self, node: &Node, there: bool) -> Result<()> {
        let name = &self.name;
        let elsewhere = |sql: &str| self.server.sql(&node.at, "postgres", sql);
        elsewhere(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {there}"))?;
        if !there {
            let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname";
            elsewhere(&format!("{cut} = '{name}'"))?;
        }
        Ok(())
    }

    /// Guilds whose communities lie on this node, or on another.
    pub(crate) fn guilds(&self, node: &Node, there: bool, count: usize) -> Result<Vec<Guild>> {
        let mut found = Vec::new();
        for number in 0..1000 {
            let name = format!("guild-{number}");
            let shard = Shard::of(&GuildId::parse(&*name)?).number();
            let of = self.sql(&format!(
                "SELECT nodename || ':' || nodeport FROM pg_dist_placement JOIN pg_dist_node USING (groupid)
                 WHERE shardid = get_shard_id_for_distribution_column('community_states', {shard}::smallint)"
            ))?;
            if (of == node.known_as) == there {
                found.push(Guild::new(&name));
            }
            if found.len() == count {
                return Ok(found);
            }
        }
        bail!("all communities are on one node")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for at in self.places().unwrap_or_default() {
            let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
            let _ = self.server.sql(&at, "postgres", &drop);
        }
    }
}
