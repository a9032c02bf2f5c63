//! The worker on a cluster of Citus whose nodes and coordinator go away, fall silent and come back.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_domain::{CommunityId, Event};
use muster_messaging::api::community::Stats;
use muster_messaging::api::profiles;
use muster_messaging::client::{Client, EventPublisher};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use xtask::worker::Worker;

use crate::cluster::{Cluster, Node};
use crate::database::{Does, Way};
use crate::setting::{Guild, Setting, community, eventually};

/// How long everything may take to be applied when a node is back.
const MENDED: Duration = Duration::from_secs(15);
/// How long events and questions of one node's communities may take while another is away: far less than a write may.
const HELD_UP: Duration = Duration::from_secs(10);
/// How long a question to a node's communities may take once it was found to be away.
const REFUSED: Duration = Duration::from_secs(3);
/// How many communities are on the node of the test: more than the worker takes batches at once.
const COMMUNITIES: usize = 4;
/// How many callers ask for them again and again: more than the worker's pool has connections.
const CALLERS: usize = 32;

/// A worker with communities on the node of the test, and one on another.
struct Running {
    worker: Worker,
    client: Client,
    publisher: EventPublisher,
    here: Vec<Guild>,
    elsewhere: Guild,
    of_here: Vec<CommunityId>,
    of_elsewhere: CommunityId,
    /// How many members each has, when everything is applied.
    members: usize,
}

impl Running {
    async fn new(setting: &Setting, cluster: &Cluster, node: &Node) -> Result<Self> {
        let worker = setting.serve()?;
        let (client, publisher) = setting.client().await?;
        let mut here = cluster.guilds(node, true, COMMUNITIES)?;
        let mut elsewhere = cluster.guilds(node, false, 1)?.pop().context("no guild")?;
        let made: Vec<Event> = here.iter_mut().chain([&mut elsewhere]).map(Guild::join_guild).collect();
        publisher.publish_all(made.clone(), |_| {}).await?;
        let mut ids = Vec::new();
        for event in made {
            ids.push(community(&client, event.guild.as_str()).await?);
        }
        let of_elsewhere = ids.pop().context("no community")?;
        let mut made =
            Self { worker, client, publisher, here, elsewhere, of_here: ids, of_elsewhere, members: 0 };
        made.join().await?;
        eventually("both communities", || made.is_applied(made.published())).await?;
        Ok(made)
    }

    /// Publishes the joins of fifty more members of each community.
    async fn join(&mut self) -> Result<()> {
        let users = self.members..self.members + 50;
        self.members = users.end;
        for guild in self.here.iter_mut().chain([&mut self.elsewhere]) {
            let joins: Vec<Event> =
                users.clone().map(|number| guild.join(&format!("user{number}"))).collect();
            self.publisher.publish_all(joins, |_| {}).await?;
        }
        Ok(())
    }

    /// How many events were published.
    fn published(&self) -> usize {
        (COMMUNITIES + 1) * (1 + self.members)
    }

    /// Whether so many events had their effect, at least: of one whose commit was not heard of, its repetition counts.
    async fn is_applied(&self, number: usize) -> bool {
        let counts = self.worker.event_counts();
        counts.is_ok_and(|counts| counts.applied + counts.duplicates >= u64::try_from(number).unwrap())
    }

    /// Has events come to all communities, and questions be answered of the one elsewhere, while the node is not there.
    async fn goes_on_without_the_node(&mut self) -> Result<()> {
        let mut asking = JoinSet::new();
        for of in self.of_here.iter().cycle().take(CALLERS) {
            let (client, of) = (self.client.clone(), *of);
            asking.spawn(async move {
                loop {
                    let _ = board(&client, of).await;
                    sleep(Duration::from_millis(100)).await;
                }
            });
        }
        let (before, of_here) = (self.published(), *self.of_here.first().context("no community")?);
        for round in 1..=5 {
            let began = Instant::now();
            self.join().await?;
            eventually("the other's events", || self.is_applied(before + round * 50)).await?;
            ensure!(began.elapsed() < HELD_UP, "round {round}: they were held up: {:?}", began.elapsed());
            sleep(Duration::from_millis(500)).await;
            let asked = Instant::now();
            let refused = board(&self.client, of_here).await.unwrap_err().to_string();
            ensure!(refused.contains("unavailable"), "{refused}");
            ensure!(round == 1 || asked.elapsed() < REFUSED, "it was refused after {:?}", asked.elapsed());
            let asked = Instant::now();
            for _ in 0..20 {
                ensure!(board(&self.client, self.of_elsewhere).await? == self.members.min(100));
            }
            ensure!(asked.elapsed() < HELD_UP, "the other's questions were held up: {:?}", asked.elapsed());
            ensure!(self.worker.get("/readyz")?.0 == 200, "the worker is ready for the others");
        }
        Ok(())
    }

    /// Waits until everything is applied, once, and ends.
    async fn ends_whole(self, setting: &Setting) -> Result<()> {
        let back = Instant::now();
        for id in self.of_here.iter().chain([&self.of_elsewhere]) {
            let asked = self.client.community(*id);
            eventually("every member", || async {
                let stats = asked.ask(&Stats {}).await;
                stats.is_ok_and(|stats| usize::try_from(stats.members) == Ok(self.members))
            })
            .await?;
        }
        ensure!(back.elapsed() < MENDED, "all was applied after {:?}", back.elapsed());
        ensure!(self.worker.event_counts()?.lost == 0, "there are dead letters");
        ensure!(self.worker.stop()? == Some(0));
        let verified = setting.configuration.run("verify --all").await?;
        ensure!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
        Ok(())
    }
}

async fn board(client: &Client, of: CommunityId) -> Result<usize> {
    Ok(client.community(of).ask(&profiles::Ranked::first(100)).await?.items.len())
}

/// Says aloud that a test is not run, past what keeps the output of tests that pass.
fn not_run(test: &str) -> Result<()> {
    let why = "MUSTER_CITUS_URL and MUSTER_CITUS_CA_FILE name no cluster";
    writeln!(std::io::stderr(), "NOT RUN: {test}: {why}").context("nobody reads it")
}

async fn check(setting: &Setting) -> Result<(bool, String)> {
    let checked = setting.configuration.run("check").await?;
    Ok((checked.status.success(), String::from_utf8_lossy(&checked.stdout).into_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_away_holds_up_its_own_communities_and_no_others() -> Result<()> {
    if !Cluster::is_named() {
        return not_run("a_node_that_is_away_holds_up_its_own_communities_and_no_others");
    }
    let setting = Setting::new().await?;
    let cluster = setting.cluster().context("no cluster")?;
    let (well, said) = check(&setting).await?;
    ensure!(well && said.contains("the tables are distributed by shard over 2 nodes"), "{said}");
    let node = cluster.nodes.first().context("no node")?;
    let mut running = Running::new(&setting, cluster, node).await?;

    cluster.node_is(node, false)?;
    running.goes_on_without_the_node().await?;
    let (well, said) = check(&setting).await?;
    ensure!(!well && said.contains(&format!("FAILED  node {}", node.known_as)), "{said}");
    cluster.node_is(node, true)?;
    running.ends_whole(&setting).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_falls_silent_holds_up_its_own_communities_and_no_others() -> Result<()> {
    let mut setting = Setting::of_one_server().await?;
    let Some((cluster, ways)) = Cluster::make_with_ways().await? else {
        return not_run("a_node_that_falls_silent_holds_up_its_own_communities_and_no_others");
    };
    setting.use_cluster(cluster).await?;
    let cluster = setting.cluster().context("no cluster")?;
    let (node, way) = cluster.nodes.first().zip(ways.first()).context("no node")?;
    let mut running = Running::new(&setting, cluster, node).await?;

    way.does.send_replace(Does::Holds);
    running.goes_on_without_the_node().await?;
    way.does.send_replace(Does::Cuts);
    // Nobody is held any longer.
    sleep(Duration::from_secs(1)).await;
    way.does.send_replace(Does::Passes);
    running.ends_whole(&setting).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_coordinator_is_away_and_comes_back() -> Result<()> {
    if !Cluster::is_named() {
        return not_run("the_coordinator_is_away_and_comes_back");
    }
    let mut setting = Setting::new().await?;
    let cluster = setting.cluster().context("no cluster")?;
    let port = cluster.port()?;
    let way = Way::to(port, Does::Passes).await?;
    let url = cluster.url()?.replace(&format!(":{port}/"), &format!(":{}/", way.port));
    let file = setting.services.directory.secret_file("by-the-way", &url)?;
    setting.configuration =
        setting.configuration.with("MUSTER__DATABASE__URL_FILE", file.display().to_string());
    let cluster = setting.cluster().context("no cluster")?;
    let node = cluster.nodes.first().context("no node")?;
    let mut running = Running::new(&setting, cluster, node).await?;

    // Its sessions end in the midst of what they do, as when it is killed.
    way.does.send_replace(Does::Cuts);
    running.join().await?;
    eventually("readiness to go off", || async {
        running.worker.get("/readyz").is_ok_and(|(code, _)| code != 200)
    })
    .await?;
    let refused = board(&running.client, *running.of_here.first().context("no community")?)
        .await
        .unwrap_err()
        .to_string();
    ensure!(refused.contains("unavailable"), "{refused}");
    way.does.send_replace(Does::Passes);
    running.ends_whole(&setting).await
}
