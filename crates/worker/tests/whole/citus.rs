//! The worker on a cluster of Citus: brought over, with a node away and back, and with its coordinator's sessions cut off.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_domain::{GuildId, Shard};
use muster_messaging::api::profiles;
use muster_messaging::client::Client;
use tokio::time::{Instant, sleep};
use uuid::Uuid;
use xtask::tool::output;
use xtask::worker::{Configuration, Worker};

use crate::setting::{Guild, Setting, community, eventually};

/// How long everything may take to be applied when a node is back.
const MENDED: Duration = Duration::from_secs(15);

/// A database on every node of the cluster that `MUSTER_CITUS_URL` names.
struct Cluster {
    url: String,
    ca: String,
    name: String,
    /// `host:port` of each node but the coordinator.
    nodes: Vec<String>,
}

impl Cluster {
    /// None, said aloud, where no cluster is named.
    fn make(test: &str) -> Result<Option<Self>> {
        let named = ["MUSTER_CITUS_URL", "MUSTER_CITUS_CA_FILE"].map(std::env::var);
        let [Ok(url), Ok(ca)] = named else {
            // Past what keeps the output of tests that pass.
            let stderr = &mut std::io::stderr();
            writeln!(stderr, "NOT RUN: {test}: MUSTER_CITUS_URL and MUSTER_CITUS_CA_FILE name no cluster")?;
            return Ok(None);
        };
        let mut made = Self { url, ca, name: "postgres".to_owned(), nodes: Vec::new() };
        let nodes = "SELECT nodename || ':' || nodeport FROM pg_dist_node WHERE groupid <> 0 ORDER BY nodeid";
        made.nodes = made.sql(None, nodes)?.lines().map(str::to_owned).collect();
        let name = format!("whole_{}", Uuid::new_v4().simple());
        let places: Vec<Option<String>> =
            std::iter::once(None).chain(made.nodes.iter().cloned().map(Some)).collect();
        for node in &places {
            made.sql(node.as_deref(), &format!("CREATE DATABASE {name}"))?;
        }
        made.name = name;
        for node in &places {
            made.sql(node.as_deref(), "CREATE EXTENSION citus")?;
        }
        let (_, address) = made.url.split_once('@').context("the URL has no user")?;
        let (host, port) =
            address.split_once('/').and_then(|(at, _)| at.split_once(':')).context("no port")?;
        made.sql(None, &format!("SELECT citus_set_coordinator_host('{host}', {port})"))?;
        for node in made.nodes.clone() {
            let (host, port) = node.split_once(':').context("no port")?;
            made.sql(None, &format!("SELECT citus_add_node('{host}', {port})"))?;
        }
        Ok(Some(made))
    }

    /// The URL of the database on a node, or on the coordinator.
    fn url(&self, node: Option<&str>) -> Result<String> {
        let (user, rest) = self.url.split_once('@').context("the URL has no user")?;
        let (at, rest) = rest.split_once('/').context("the URL has no database")?;
        let (_, options) = rest.split_once('?').unwrap_or((rest, "sslmode=verify-full"));
        Ok(format!("{user}@{}/{}?{options}", node.unwrap_or(at), self.name))
    }

    fn sql(&self, node: Option<&str>, sql: &str) -> Result<String> {
        let mut psql = Command::new("psql");
        psql.args([
            "--no-psqlrc",
            "--quiet",
            "--no-align",
            "--tuples-only",
            "--set",
            "ON_ERROR_STOP=1",
            "--command",
            sql,
        ]);
        output(psql.arg(self.url(node)?).env("PGSSLROOTCERT", &self.ca)).map(|text| text.trim().to_owned())
    }

    fn configuration(&self, setting: &Setting) -> Result<Configuration> {
        let file = setting.services.directory.secret_file("citus-url", &self.url(None)?)?;
        Ok(setting
            .configuration
            .with("MUSTER__DATABASE__URL_FILE", file.display().to_string())
            .with("MUSTER__DATABASE__CA_FILE", &self.ca))
    }

    /// Lets nobody into the database on a node, and cuts off who is there; or lets them in again.
    fn node_is(&self, node: &str, there: bool) -> Result<()> {
        let name = &self.name;
        let elsewhere = Self {
            url: self.url.clone(),
            ca: self.ca.clone(),
            name: "postgres".to_owned(),
            nodes: Vec::new(),
        };
        elsewhere.sql(Some(node), &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {there}"))?;
        if !there {
            let cut = format!(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{name}'"
            );
            elsewhere.sql(Some(node), &cut)?;
        }
        Ok(())
    }

    /// A guild whose community lies on this node, or on another.
    fn guild(&self, node: &str, there: bool) -> Result<Guild> {
        for number in 0..1000 {
            let name = format!("guild-{number}");
            let shard = Shard::of(&GuildId::parse(&*name)?).number();
            let of = self.sql(
                None,
                &format!(
                    "SELECT nodename || ':' || nodeport FROM pg_dist_placement JOIN pg_dist_node USING (groupid)
                     WHERE shardid = get_shard_id_for_distribution_column('community_states', {shard}::smallint)"
                ),
            )?;
            if (of == node) == there {
                return Ok(Guild::new(&name));
            }
        }
        anyhow::bail!("all communities are on one node")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let name = std::mem::replace(&mut self.name, "postgres".to_owned());
        let places = std::iter::once(None).chain(self.nodes.iter().cloned().map(Some));
        for node in places {
            let _ = self.sql(node.as_deref(), &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        }
    }
}

fn reads(worker: &Worker) -> bool {
    worker.get("/readyz").is_ok_and(|(status, _)| status == 200)
}

async fn board(client: &Client, of: muster_domain::CommunityId) -> Result<usize> {
    Ok(client.community(of).ask(&profiles::Ranked::first(100)).await?.items.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_away_holds_up_its_own_communities_and_no_others() -> Result<()> {
    let Some(cluster) = Cluster::make("a_node_that_is_away_holds_up_its_own_communities_and_no_others")?
    else {
        return Ok(());
    };
    let setting = Setting::new().await?;
    let configuration = cluster.configuration(&setting)?;
    let migrated = configuration.run("migrate").await?;
    let said = String::from_utf8_lossy(&migrated.stdout).into_owned();
    ensure!(migrated.status.success() && said.contains("distributed members by its shard"), "{said}");
    let checked = configuration.run("check").await?;
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    ensure!(
        checked.status.success() && said.contains("the tables are distributed by shard over 2 nodes"),
        "{said}"
    );

    let worker = configuration.serve(&setting.services)?;
    let (client, publisher) = setting.client().await?;
    let node = cluster.nodes.first().context("no node")?.clone();
    let (mut gone, mut well) = (cluster.guild(&node, true)?, cluster.guild(&node, false)?);
    let applied = |number| worker.event_counts().is_ok_and(|counts| counts.applied == number);
    let joins = |guild: &mut Guild, from: usize| -> Vec<_> {
        (from..from + 50).map(|number| guild.join(&format!("user{number}"))).collect()
    };
    publisher.publish_all([vec![gone.join_guild()], joins(&mut gone, 0)].concat(), |_| {}).await?;
    publisher.publish_all([vec![well.join_guild()], joins(&mut well, 0)].concat(), |_| {}).await?;
    eventually("both communities", || async { applied(102) }).await?;
    let names = [&mut gone, &mut well].map(|guild| guild.join_guild().guild.as_str().to_owned());
    let (of_gone, of_well) = (community(&client, &names[0]).await?, community(&client, &names[1]).await?);

    cluster.node_is(&node, false)?;
    for round in 1..=5 {
        let began = Instant::now();
        publisher.publish_all(joins(&mut gone, round * 50), |_| {}).await?;
        publisher.publish_all(joins(&mut well, round * 50), |_| {}).await?;
        let wanted = 102 + 50 * u64::try_from(round)?;
        eventually("the other's events", || async { applied(wanted) }).await?;
        ensure!(began.elapsed() < Duration::from_secs(5), "they were held up: {:?}", began.elapsed());
        let refused = board(&client, of_gone).await.unwrap_err().to_string();
        ensure!(refused.contains("unavailable"), "{refused}");
        ensure!(board(&client, of_well).await? == 50 * (round + 1).min(2), "the other is served");
        ensure!(reads(&worker), "the worker is ready for the others");
        sleep(Duration::from_millis(500)).await;
    }
    let checked = configuration.run("check").await?;
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    ensure!(!checked.status.success() && said.contains(&format!("FAILED  node {node}")), "{said}");

    cluster.node_is(&node, true)?;
    let back = Instant::now();
    eventually("what waited", || async { applied(102 + 500) }).await?;
    ensure!(back.elapsed() < MENDED, "all was applied after {:?}", back.elapsed());
    ensure!(worker.event_counts()?.lost == 0, "there are dead letters");
    ensure!(board(&client, of_gone).await? == 100);

    // The coordinator's sessions end, as when it is restarted.
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
    cluster.sql(None, cut)?;
    publisher.publish_all(joins(&mut gone, 500), |_| {}).await?;
    eventually("what came then", || async { applied(102 + 550) }).await?;
    ensure!(worker.event_counts()?.lost == 0, "there are dead letters");
    ensure!(worker.stop()? == Some(0));
    let verified = configuration.run("verify --all").await?;
    ensure!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    Ok(())
}
