//! The demonstration: the story of one community, told by a real worker on real servers.
#![expect(clippy::indexing_slicing, reason = "a field that JSON lacks is null, so it cannot panic")]

use std::collections::BTreeSet;
use std::fmt::{Debug, Display};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets};
use muster_messaging::client::{Client, EventPublisher};
use muster_messaging::connection::Connection;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;
use xtask::services::Services;
use xtask::worker::{self, Configuration, Worker};

use crate::cargo;
use crate::verdict::Verdict;

/// The headings of the chapters, each with its text.
const TEXT: &str = include_str!("demo/story.md");
const PATIENCE: Duration = Duration::from_secs(120);
pub(crate) const GUILD: &str = "881207955029110855";
const NAME: &str = "Sietch Tabr";

const NAMES: [&str; 8] = ["Alia", "Chani", "Duncan", "Gurney", "Irulan", "Jessica", "Leto", "Stilgar"];
/// The highest scores, some of them equal.
const LEADERS: [i64; 6] = [40_000, 30_000, 30_000, 30_000, 25_000, 25_000];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many members the community has.
    #[arg(long, default_value_t = 1_500, value_parser = clap::value_parser!(u32).range(100..=50_000))]
    members: u32,
    /// Leave everything running until Ctrl-C, and print how to ask it.
    #[arg(long)]
    keep: bool,
    /// Use this empty database in place of a private one, such as one on a cluster of Citus, and trust this authority.
    #[arg(long, num_args = 2, value_names = ["URL", "CA_FILE"])]
    database: Vec<String>,
}

/// Tells the story, and checks what it shows: the first check that fails ends it with an error.
pub(crate) async fn run(arguments: &Arguments) -> Result<Verdict> {
    println!("Building the worker");
    let program = cargo::build_worker().await?;
    let started = Instant::now();
    let mut demo = Demo::start(program, arguments).await?;
    demo.found().await?;
    demo.board().await?;
    demo.rise().await?;
    demo.badge().await?;
    demo.search().await?;
    demo.gateway().await?;
    demo.bound().await?;
    demo.plaintext().await?;
    let demo = demo.kill().await?.erase().await?;
    let (checks, seconds) = (demo.story.checks, started.elapsed().as_secs_f64());
    println!("\nAll {checks} checks passed, {seconds:.0} s after the build.\n");
    demo.story.section("What to do next")?;
    if arguments.keep {
        let _standings = demo.keep().await?;
        return std::future::pending().await;
    }
    Ok(Verdict::Passed)
}

struct Demo {
    story: Story,
    members: Vec<Member>,
    community: String,
    operator: Client,
    streams: Client,
    gateway: EventPublisher,
    configuration: Configuration,
    // In the order in which they are stopped.
    worker: Worker,
    services: Services,
}

impl Demo {
    async fn start(program: PathBuf, arguments: &Arguments) -> Result<Self> {
        let mut story = Story::default();
        story.chapter("A worker starts")?;
        let services = Services::start(1, true)?;
        let (postgres, nats) = (&services.postgres.options.server, &services.nats.options.server);
        show(format!("PostgreSQL {}, nats-server {}", postgres.version, nats.version));
        let mut configuration = Configuration::new(program, &services)?;
        if let [url, ca] = &*arguments.database {
            services.directory.secret_file("worker-database-url", url)?;
            configuration = configuration.with("MUSTER__DATABASE__CA_FILE", ca);
        }
        for command in ["migrate", "check"] {
            show(format!("$ muster-worker {command}"));
            let output = configuration.run(command).await?;
            let said = String::from_utf8_lossy(&output.stdout);
            let told = ["the schema is", "tls policy", "postgres       ok", "nats           ok"];
            said.lines().filter(|line| told.iter().any(|start| line.starts_with(start))).for_each(show);
            story.check(format!("muster-worker {command} succeeds"), output.status.code(), Some(0))?;
        }
        show("$ muster-worker serve");
        let worker = configuration.serve(&services)?;
        show(format!("ready at http://{}/readyz", worker.address));
        let connect = async |user| anyhow::Ok(Connection::open(services.nats_config(user, "demo")?).await?);
        Ok(Self {
            story,
            members: members(arguments.members),
            community: String::new(),
            operator: Client::new(connect(&services.clients.operator).await?),
            streams: Client::new(connect(&services.clients.streams).await?),
            gateway: EventPublisher::new(&connect(&services.clients.gateway).await?),
            configuration,
            worker,
            services,
        })
    }

    async fn found(&mut self) -> Result<()> {
        self.story.chapter("A community is founded")?;
        let started = Instant::now();
        let events = founding(&self.members);
        let total = u64::try_from(events.len())?;
        self.publish(events).await?;
        let counts = self.worker.event_counts()?;
        let what = format!("after {:.1} s, each was applied once", started.elapsed().as_secs_f64());
        self.story.check(what, (counts.applied, counts.duplicates, counts.lost), (total, 0, 0))?;
        let request = json!({"guild_id": GUILD});
        show(format!("→ muster.v1.communities.find {request}"));
        let found = answer(&self.operator, "muster.v1.communities.find", &request).await?;
        show(&found);
        self.community = found["community_id"].as_str().unwrap_or_default().to_owned();
        self.story.check("the community has its name", found["name"].as_str(), Some(NAME))
    }

    async fn board(&mut self) -> Result<()> {
        self.story.chapter("The board")?;
        let board = self.ask("profiles.ranked", json!({"limit": 6})).await?;
        show_items(&board, &["rank", "nym", "conviction", "tier"]);
        let scores = column(&board, "conviction");
        self.story.check("the best, in order", scores.as_str(), "40000 30000 30000 30000 25000 25000")?;
        self.story.check("equal scores share a rank", column(&board, "rank").as_str(), "1 2 2 2 5 5")
    }

    async fn rise(&mut self) -> Result<()> {
        self.story.chapter("A member rises")?;
        let last = self.members.iter_mut().min_by_key(|member| member.conviction).context("no members")?;
        last.conviction = 27_000;
        let Member { user_id, nym, conviction, .. } = last.clone();
        self.publish(vec![event("score.set", Some(&user_id), json!({"conviction": conviction}))]).await?;
        let profile = self.ask("profiles.get", json!({"user_id": user_id})).await?;
        show_fields(&profile, &["nym", "conviction", "rank", "tier"]);
        let came = (profile["rank"].as_u64(), profile["tier"].as_str());
        self.story.check(format!("{nym} has rank 5 and the tier naib"), came, (Some(5), Some("naib")))?;
        let changes = self.ask("tiers.changes", json!({"limit": 3})).await?;
        show_items(&changes, &["nym", "from", "to", "movement"]);
        let own = items(&changes).iter().filter(|change| change["nym"] == nym && change["to"] == "naib");
        self.story.check("the promotion is recorded once", own.count(), 1)
    }

    async fn badge(&mut self) -> Result<()> {
        self.story.chapter("A badge")?;
        let id = self.profile_id(&self.members.get(1).context("no second member")?.user_id).await?;
        let award = json!({"profile_id": id, "kind": "water_bearer", "reason": "gave water"});
        for (created, what) in [(true, "the badge is awarded"), (false, "it is not awarded again")] {
            let badge = self.ask("admin.badges.award", award.clone()).await?;
            show_fields(&badge, &["kind", "reason", "created"]);
            self.story.check(what, badge["created"].as_bool(), Some(created))?;
        }
        let held = self.ask("profiles.badges", json!({"profile_id": id})).await?;
        self.story.check("the member has one badge", column(&held, "kind").as_str(), "water_bearer")
    }

    async fn search(&mut self) -> Result<()> {
        self.story.chapter("A search")?;
        let found = self.ask("profiles.search", json!({"query": "%"})).await?;
        show_items(&found, &["nym", "conviction", "tier"]);
        self.story.check("one name has a percent sign", column(&found, "nym").as_str(), "100% Fremen")
    }

    async fn gateway(&mut self) -> Result<()> {
        self.story.chapter("A gateway makes mistakes")?;
        let member = self.members.get_mut(1).context("no second member")?;
        member.activity += 1000;
        let Member { user_id, activity, .. } = member.clone();
        self.publish(vec![event("activity.add", Some(&user_id), json!({"amount": 1000})); 3]).await?;
        self.publish(vec![event("score.set", Some(&user_id), json!({"conviction": "a lot"}))]).await?;
        let profile = self.ask("profiles.get", json!({"user_id": user_id})).await?;
        show_fields(&profile, &["nym", "activity"]);
        let what = format!("the activity was {} and grew by 1000 once", activity - 1000);
        self.story.check(what, profile["activity"].as_i64(), Some(activity))?;
        let repair = self.configuration.as_client(&self.services.clients.repair);
        show("$ muster-worker deadletters list");
        let listed = String::from_utf8(repair.run("deadletters list").await?.stdout)?;
        show(&listed);
        let came = (listed.lines().count(), listed.matches("data.conviction must be an integer").count());
        self.story.check("the last one is a dead letter, with the reason", came, (2, 1))
    }

    async fn bound(&mut self) -> Result<()> {
        self.story.chapter("No list without a bound")?;
        let page = self.ask("profiles.ranked", json!({"limit": 1_000_000})).await?;
        let (rows, limit, next) = (items(&page).len(), &page["limit"], &page["next"]);
        show(format!("{{\"limit\":{limit},\"next\":{next},\"items\":[… {rows} members]}}"));
        let size = self.members.len();
        self.story.check("at most 1000", (limit.as_i64(), rows), (Some(1000), size.min(1000)))?;
        let all = self.walk("profiles.ranked").await?;
        let ids: BTreeSet<Option<&str>> = all.iter().map(|member| member["user_id"].as_str()).collect();
        let what = format!("page by page, all {size} members come, each once");
        self.story.check(what, (all.len(), ids.len()), (size, size))
    }

    async fn plaintext(&mut self) -> Result<()> {
        self.story.chapter("No plaintext")?;
        let urls = format!("{},nats://gateway:hunter2@nats-2.example:4222", self.services.nats.url());
        show(format!("$ MUSTER__NATS__URLS={urls} muster-worker serve"));
        let output = self.configuration.with("MUSTER__NATS__URLS", urls).run("serve").await?;
        let said = String::from_utf8_lossy(&output.stderr);
        show(&said);
        self.story.check("it is refused with exit code 64", output.status.code(), Some(64))?;
        let came = (said.contains("nats-2.example:4222"), said.contains("hunter2"));
        self.story.check("the message names the server and hides the password", came, (true, false))
    }

    async fn kill(mut self) -> Result<Self> {
        self.story.chapter("The worker is killed")?;
        let mut events = Vec::new();
        for member in &mut self.members {
            member.activity += 10;
            events.push(event("activity.add", Some(&member.user_id), json!({"amount": 10})));
        }
        let (total, before) = (events.len(), self.worker.event_counts()?.applied);
        let gateway = self.gateway.clone();
        let publishing = tokio::spawn(async move { publish(&gateway, events).await });
        while self.worker.event_counts()?.applied == before {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        show(format!("$ kill -KILL {}   # the first of {total} events are applied", self.worker.id()));
        self.worker.kill()?;
        show("$ muster-worker serve");
        self.worker = self.configuration.serve(&self.services)?;
        publishing.await??;
        self.worker.until_acknowledged(&self.streams, PATIENCE).await?;
        show(format!("the second worker applied {} events", self.worker.event_counts()?.applied));
        self.check_activity("nothing is lost or applied twice: the activity of all members is").await?;
        show("$ muster-worker verify --all");
        let verified = self.configuration.run("verify --all").await?;
        String::from_utf8_lossy(&verified.stdout).lines().take(4).chain(["  …"]).for_each(show);
        self.story.check("every kept count is what counting anew says", verified.status.code(), Some(0))?;
        Ok(self)
    }

    async fn erase(mut self) -> Result<Self> {
        self.story.chapter("A member is erased")?;
        let member = self.members.remove(self.members.len() / 2);
        let late = founding(std::slice::from_ref(&member)).split_off(1);
        let Member { user_id, nym, .. } = member;
        let id = self.profile_id(&user_id).await?;
        show(self.ask("admin.profiles.erase", json!({"profile_id": id})).await?);
        self.publish(late).await?;
        self.story.check("on SIGTERM the worker stops with exit code 0", self.worker.stop()?, Some(0))?;
        let forget = "$JS.API.CONSUMER.DELETE.EVENTS.muster-worker";
        show(format!("$ muster-worker ask '{forget}'"));
        answer(&self.streams, forget, &json!({})).await?;
        show("$ muster-worker serve");
        self.worker = self.configuration.serve(&self.services)?;
        self.worker.until_acknowledged(&self.streams, PATIENCE).await?;
        let counts = self.worker.event_counts()?;
        // All but the one that is a dead letter.
        let stream = answer(&self.streams, "$JS.API.STREAM.INFO.EVENTS", &json!({})).await?;
        let read = stream["state"]["messages"].as_u64().context("no number of events")? - 1;
        let what = format!("{read} events are read again, and none is applied again");
        self.story.check(what, (counts.applied, counts.duplicates), (0, read))?;
        let gone = self.ask("profiles.get", json!({"user_id": user_id})).await?;
        show(&gone);
        self.story.check(format!("{nym} stays erased"), gone["error"]["code"].as_str(), Some("not_found"))?;
        let stats = self.ask("community.stats", json!({})).await?;
        show_fields(&stats, &["members", "conviction_total"]);
        let came = (stats["members"].as_u64(), stats["conviction_total"].as_i64());
        let total = self.members.iter().map(|member| member.conviction).sum();
        let due = (self.members.len().try_into().ok(), Some(total));
        self.story.check("all others are there, with their scores", came, due)?;
        self.check_activity("and with their activity, in sum").await?;
        Ok(self)
    }

    /// Shows people the standings, writes what a shell needs to know, and prints a command that asks for the board.
    async fn keep(&self) -> Result<Worker> {
        let program = cargo::target().join("debug/examples/standings");
        let own = self.configuration.example(program, &self.services, &self.community).await?;
        let standings = own.with("GUILD", GUILD).serve(&self.services)?;
        self.story.section("Left running until Ctrl-C")?;
        show(format!("http://{}/\n\nOr in another terminal:", standings.address));
        let operator = self.configuration.as_client(&self.services.clients.operator);
        let (http, id, port) = (self.worker.address, self.worker.id(), self.services.nats.port);
        let own = format!("export WORKER=http://{http} WORKER_PID={id} NATS=localhost:{port}\n");
        let (programs, community) = (operator.program.with_file_name(""), &self.community);
        let own = format!("{own}export PATH='{}':\"$PATH\" COMMUNITY={community}\n", programs.display());
        let given = operator.variables.iter().map(|(name, value)| (name, value.replace('\'', r"'\''")));
        let given = given.map(|(name, value)| format!("export {name}='{value}'\n")).collect::<String>();
        let file = self.services.directory.secret_file("operator.env", &(own + &given))?;
        show(format!("source {}", file.display()));
        show("muster-worker ask muster.v1.$COMMUNITY.profiles.ranked '{\"limit\":3}'");
        show(format!("The worker's log: {}", self.worker.log.display()));
        Ok(standings)
    }

    /// Prints the first events, publishes all, and waits until the worker has handled them.
    async fn publish(&self, events: Vec<Value>) -> Result<()> {
        events.iter().take(3).for_each(|event| show(format!("→ {} {}", subject(event), event["data"])));
        if events.len() > 3 {
            show(format!("→ … {} events", events.len()));
        }
        publish(&self.gateway, events).await?;
        self.worker.until_acknowledged(&self.streams, PATIENCE).await
    }

    /// Prints a request to an endpoint of the community, and answers it.
    async fn ask(&self, endpoint: &str, request: Value) -> Result<Value> {
        show(format!("→ muster.v1.$community.{endpoint} {request}"));
        answer(&self.operator, &format!("muster.v1.{}.{endpoint}", self.community), &request).await
    }

    async fn profile_id(&self, user_id: &str) -> Result<Value> {
        let profile = self.ask("profiles.get", json!({"user_id": user_id})).await?;
        show_fields(&profile, &["nym", "profile_id"]);
        Ok(profile["profile_id"].clone())
    }

    async fn walk(&self, endpoint: &str) -> Result<Vec<Value>> {
        let subject = format!("muster.v1.{}.{endpoint}", self.community);
        let (mut all, mut request) = (Vec::new(), json!({"limit": 1000}));
        loop {
            let page = answer(&self.operator, &subject, &request).await?;
            all.extend_from_slice(items(&page));
            request["cursor"] = page["next"].clone();
            if request["cursor"].is_null() {
                return Ok(all);
            }
        }
    }

    /// Checks the sum of all members' activity: an event that is lost or applied twice would change it.
    async fn check_activity(&mut self, what: &str) -> Result<()> {
        let active = self.walk("profiles.active").await?;
        let came: i64 = active.iter().filter_map(|member| member["activity"].as_i64()).sum();
        let due: i64 = self.members.iter().map(|member| member.activity).sum();
        self.story.check(format!("{what} {due}"), came, due)
    }
}

async fn answer(client: &Client, subject: &str, request: &Value) -> Result<Value> {
    let answer = client.ask_by_hand(subject, request.to_string().into_bytes()).await?;
    serde_json::from_slice(&answer.body).with_context(|| format!("{subject} answers no JSON"))
}

/// A member as the events make them.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) user_id: String,
    pub(crate) nym: String,
    pub(crate) conviction: i64,
    pub(crate) activity: i64,
}

/// The same members every time. One has a name that a search could take for a pattern.
pub(crate) fn members(number: u32) -> Vec<Member> {
    let scores = LEADERS.into_iter().chain((6..).map(|n| n * 7919 % 3000 - 100));
    let members = (0..i64::from(number)).zip(scores).zip(NAMES.into_iter().cycle());
    let members = members.map(|((n, conviction), name)| {
        let nym = if n == 0 { "100% Fremen".to_owned() } else { format!("{name} {n}") };
        Member { user_id: (200_000_000_000_000_000 + n).to_string(), nym, conviction, activity: n % 50 }
    });
    members.collect()
}

pub(crate) fn founding(members: &[Member]) -> Vec<Value> {
    let mut events = vec![event("guild.join", None, json!({"name": NAME}))];
    for Member { user_id, nym, conviction, activity } in members {
        events.push(event("member.join", Some(user_id), json!({"username": nym})));
        let scores = json!({"conviction": conviction, "activity": activity});
        events.push(event("score.set", Some(user_id), scores));
    }
    events
}

pub(crate) fn event(event_type: &str, user: Option<&str>, data: Value) -> Value {
    let timestamp = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
    json!({
        "event_id": Uuid::new_v4(), "event_type": event_type, "shard_id": 0, "timestamp": timestamp,
        "guild_id": GUILD, "channel_id": null, "user_id": user, "data": data,
    })
}

fn subject(event: &Value) -> String {
    format!("events.{}", event["event_type"].as_str().unwrap_or_default())
}

/// Publishes events, and waits until the broker has stored all of them.
pub(crate) async fn publish(publisher: &EventPublisher, events: Vec<Value>) -> Result<()> {
    worker::publish(publisher, events.into_iter().map(|event| (subject(&event), event.to_string()))).await
}

#[derive(Default)]
struct Story {
    chapters: u32,
    checks: u32,
}

impl Story {
    fn chapter(&mut self, title: &str) -> Result<()> {
        self.chapters += 1;
        print!("\n{}. ", self.chapters);
        self.section(title)
    }

    fn section(&self, title: &str) -> Result<()> {
        let mut sections = TEXT.split("\n## ").filter_map(|section| section.split_once("\n\n"));
        let (_, text) = sections.find(|(heading, _)| *heading == title).context("a chapter has no text")?;
        println!("{title}");
        show(text.trim_end());
        println!();
        Ok(())
    }

    /// Prints a check mark, or ends the story with what was expected and what came instead.
    fn check<T: PartialEq + Debug>(&mut self, what: impl Display, came: T, due: T) -> Result<()> {
        ensure!(came == due, "✗ {what}\n  expected: {due:?}\n  came:     {came:?}");
        self.checks += 1;
        show(format!("✓ {what}"));
        Ok(())
    }
}

fn show(text: impl Display) {
    text.to_string().lines().for_each(|line| println!("   {line}"));
}

/// Prints some fields of an answer's items as a table.
fn show_items(answer: &Value, fields: &[&str]) {
    let rows = items(answer).iter().map(|item| fields.iter().map(|field| plain(&item[*field])));
    show(Table::new().load_style(presets::UTF8_FULL_CONDENSED).set_header(fields).add_rows(rows));
}

/// Prints some fields of an answer as JSON, and dots for the others.
fn show_fields(answer: &Value, fields: &[&str]) {
    let shown: Vec<String> = fields.iter().map(|field| format!("\"{field}\":{}", answer[*field])).collect();
    show(format!("{{{},…}}", shown.join(",")));
}

fn items(page: &Value) -> &[Value] {
    page["items"].as_array().map_or(&[], Vec::as_slice)
}

/// One field of each item of a page, separated by spaces.
fn column(page: &Value, field: &str) -> String {
    items(page).iter().map(|item| plain(&item[field])).collect::<Vec<_>>().join(" ")
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
