//! Every list and look-up, asked by turns: as the ideal, by the storage crate, over NATS through the worker, and as a bare
//! NATS echo of as many bytes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::StreamExt;
use muster_domain::{CommunityId, Page};
use muster_messaging::api::directory::{DirectoryPage, Start};
use muster_messaging::api::{
    Description, ENDPOINTS, Endpoint, Query, Question as Asked, Reply, community, profiles,
};
use muster_storage::{DirectoryStart, Store};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};
use xtask::worker::Worker;

use super::ideal;
use super::load::{Community, Pair};
use super::report::{Limit, Measured, number, table};

/// How often each way is asked at least, before the time is up.
const ROUNDS: usize = 30;
/// How many pages of 1000 are walked to a deep page, at most.
const DEEPEST: usize = 200;

/// One of `questions.toml`, which says what the fields are.
#[derive(Deserialize)]
struct Question {
    name: String,
    body: String,
    rows: u32,
}

/// A page of any list.
#[derive(Deserialize)]
struct Rows {
    items: Vec<Value>,
    next: Option<Value>,
}

/// One way of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Way {
    /// As many rows of one table by its index, on a bare connection.
    Ideal,
    /// The storage crate's call.
    Storage,
    /// A bare NATS echo that answers as many bytes.
    Echo,
    /// A request over NATS with TLS, through the worker.
    Whole,
    /// The same, through the other checkout's worker.
    Other,
}

/// How one question fared on one community.
#[derive(Debug, Serialize)]
struct Figures {
    question: String,
    members: i64,
    /// Far down the list, behind a cursor.
    deep: bool,
    /// Median and 99th percentile, in microseconds.
    times: BTreeMap<Way, [f64; 2]>,
}

/// Asks everything of every community, each question for so long.
pub(super) async fn measure(communities: &[Pair], time: Duration) -> Result<Measured> {
    let questions: BTreeMap<String, Vec<Question>> = toml::from_str(include_str!("questions.toml"))?;
    let questions: Vec<Question> = questions.into_values().flatten().collect();
    let mut askers = Vec::new();
    for (this, other) in communities {
        askers.push(Asker::new(this, other.as_ref()).await?);
    }
    let mut figures = Vec::new();
    for (place, question) in (1..).zip(&questions) {
        println!("  {place} of {}: {}", questions.len(), question.name);
        let mut asks = Vec::new();
        for asker in &askers {
            for deep in [false, true] {
                asks.extend(asker.prepare(question, deep).await?);
            }
        }
        figures.extend(by_turns(&asks, time).await?);
    }
    println!("{}", table(HEADER, figures.iter().map(Figures::row)));
    let members = figures.iter().map(|f| f.members).max().unwrap_or(0);
    let first = figures.iter().filter(|f| f.members == members && !f.deep);
    let multiples =
        |f: &Figures| [Way::Storage, Way::Whole].map(|way| f.median(way) / f.median(Way::Ideal)).into();
    let title = format!("Reads of {members} members, times the ideal: storage call blue, whole way red");
    let bars = first.map(|f| (f.question.clone(), multiples(f))).collect();
    Ok(Measured { limits: limits(&figures, members), figures: json!(figures), title, bars })
}

/// Asks one question of every community at every depth, call by call in turns.
async fn by_turns(asks: &[Ask<'_>], time: Duration) -> Result<Vec<Figures>> {
    let mut times: Vec<BTreeMap<Way, Vec<f64>>> = asks.iter().map(|_| BTreeMap::new()).collect();
    let (begun, mut round) = (Instant::now(), 0);
    while round < ROUNDS || begun.elapsed() < time {
        for (ask, times) in asks.iter().zip(&mut times) {
            for way in ask.ways() {
                let took = ask.time(way, round).await?;
                times.entry(way).or_default().push(took.as_secs_f64() * 1e6);
            }
        }
        round += 1;
    }
    let mut figures = Vec::new();
    for (ask, times) in asks.iter().zip(times) {
        let times = times.into_iter().map(|(way, mut times)| {
            times.sort_by(f64::total_cmp);
            let at = |hundredth: usize| times.get(times.len() * hundredth / 100).copied().unwrap_or(f64::NAN);
            (way, [at(50), at(99)])
        });
        let (question, members) = (ask.question.name.clone(), ask.asker.members);
        figures.push(Figures { question, members, deep: ask.deep, times: times.collect() });
    }
    Ok(figures)
}

/// Somebody who asks one community, and the other checkout's of its size.
struct Asker<'a> {
    members: i64,
    store: Store,
    ideal: Client,
    /// Of this and of the other: the community, its id, and the hundred members that questions about one member are about.
    sides: Vec<(&'a Community, CommunityId, Vec<Value>)>,
    _workers: Vec<Worker>,
}

impl<'a> Asker<'a> {
    async fn new(this: &'a Community, other: Option<&'a Community>) -> Result<Self> {
        let store = this.store().await?;
        let ideal = this.connect(ideal::DATABASE).await?;
        let (mut sides, mut workers) = (Vec::new(), Vec::new());
        for side in [this].into_iter().chain(other) {
            workers.push(side.configuration.serve(&side.services)?);
            let id = side.id().await?;
            let page = side.ask(profiles::Ranked::DESCRIPTION.subject(id), "{}".into()).await?;
            sides.push((side, id, serde_json::from_slice::<Rows>(&page)?.items));
        }
        Ok(Self { members: this.members, store, ideal, sides, _workers: workers })
    }

    /// One question with all that it takes to ask it; `None` where there is no deep page.
    async fn prepare(&'a self, question: &'a Question, deep: bool) -> Result<Option<Ask<'a>>> {
        let endpoint = ENDPOINTS.iter().find(|endpoint| question.name.starts_with(endpoint.name));
        let endpoint = *endpoint.context("a question without an endpoint")?;
        let mut sides = Vec::new();
        for (side, id, members) in &self.sides {
            let subject = endpoint.subject(*id);
            let bodies = match deep {
                false => bodies(&question.body, members),
                true => deep_body(side, question, &subject).await?.into_iter().collect(),
            };
            if !bodies.is_empty() {
                sides.push((*side, subject, bodies));
            }
        }
        let Some((this, ..)) = sides.first() else { return Ok(None) };
        let (nats, echo) = (this.nats.clone(), this.nats.new_inbox());
        let ideal = ideal::statement(&self.ideal, question.rows).await?;
        let ask = Ask { asker: self, question, deep, endpoint, ideal, sides, echo: echo.clone() };
        let answer = call(&self.store, ask.asked(0)?).await?.into_json()?;
        ensure!(ask.whole(0, 0).await? == answer, "{}: worker and storage crate differ", question.name);
        let mut requests = nats.subscribe(echo).await?;
        tokio::spawn(async move {
            while let Some(reply) = requests.next().await.and_then(|request| request.reply) {
                nats.publish(reply, answer.clone().into()).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
        Ok(Some(ask))
    }
}

/// The request's bodies: one for each member where it is about a member.
fn bodies(body: &str, members: &[Value]) -> Vec<Bytes> {
    let Some((_, rest)) = body.split_once("\"$") else { return vec![Bytes::from(body.to_owned())] };
    let field = rest.split('"').next().unwrap_or_default();
    let values = members.iter().filter_map(|member| member.get(field));
    values.map(|value| body.replace(&format!("\"${field}\""), &value.to_string()).into()).collect()
}

/// The body that asks for a page at nine tenths of a list, or of its first 200,000 rows.
async fn deep_body(side: &Community, question: &Question, subject: &str) -> Result<Option<Bytes>> {
    if [1, 1000].contains(&question.rows) || question.body.contains('$') {
        return Ok(None);
    }
    let mut body: Map<String, Value> = serde_json::from_str(&question.body)?;
    let (mut page, mut cursors) = (body.clone(), Vec::new());
    page.insert("limit".to_owned(), json!(1000));
    while cursors.len() < DEEPEST {
        let answer = side.ask(subject.to_owned(), json!(page).to_string().into()).await?;
        let Some(next) = serde_json::from_slice::<Rows>(&answer)?.next else { break };
        page.insert("cursor".to_owned(), next.clone());
        cursors.push(next);
    }
    let Some(cursor) = cursors.get(cursors.len() * 9 / 10) else { return Ok(None) };
    body.insert("cursor".to_owned(), cursor.clone());
    Ok(Some(json!(body).to_string().into()))
}

/// One question to one community at one depth.
struct Ask<'a> {
    asker: &'a Asker<'a>,
    question: &'a Question,
    deep: bool,
    endpoint: &'static Description,
    ideal: Statement,
    /// Of each side that can be asked: subject and bodies, asked one after the other.
    sides: Vec<(&'a Community, String, Vec<Bytes>)>,
    /// The subject of the echo.
    echo: String,
}

impl Ask<'_> {
    fn ways(&self) -> impl Iterator<Item = Way> + use<> {
        let other = (self.sides.len() > 1).then_some(Way::Other);
        [Way::Ideal, Way::Storage, Way::Whole, Way::Echo].into_iter().chain(other)
    }

    /// A side with the subject and the body of a round.
    fn side(&self, side: usize, round: usize) -> Result<(&Community, &String, &Bytes)> {
        let (side, subject, bodies) = self.sides.get(side).context("no such side")?;
        Ok((side, subject, bodies.get(round % bodies.len().max(1)).context("nothing to ask")?))
    }

    async fn whole(&self, side: usize, round: usize) -> Result<Bytes> {
        let (side, subject, body) = self.side(side, round)?;
        side.ask(subject.clone(), body.clone()).await
    }

    fn asked(&self, round: usize) -> Result<Asked> {
        let id = self.asker.sides.first().map(|(_, id, _)| *id);
        Ok(Asked::parse(self.endpoint, id, self.side(0, round)?.2)?)
    }

    /// Asks once; answers how long that took.
    async fn time(&self, way: Way, round: usize) -> Result<Duration> {
        let member = 1 + i64::try_from(round)? * 7919 % self.asker.members;
        let values: &[&(dyn ToSql + Sync)] = if self.question.rows == 1 { &[&member] } else { &[] };
        let asked = self.asked(round)?;
        let (this, _, body) = self.side(0, round)?;
        let begun = Instant::now();
        match way {
            Way::Ideal => drop(self.asker.ideal.query(&self.ideal, values).await?),
            Way::Storage => drop(call(&self.asker.store, asked).await?),
            Way::Whole => drop(self.whole(0, round).await?),
            Way::Other => drop(self.whole(1, round).await?),
            Way::Echo => drop(this.ask(self.echo.clone(), body.clone()).await?),
        }
        Ok(begun.elapsed())
    }
}

/// The storage crate's call for a request, as the worker makes it.
async fn call(store: &Store, asked: Asked) -> Result<Reply> {
    let (id, query) = match asked {
        Asked::Within(id, query) => (id, query),
        Asked::Find(ask) => {
            let found = store.community_find(&ask.guild_id).await?;
            let (community_id, name, active) = (found.community_id, found.name, found.active);
            return Ok(ask.reply(community::Community { community_id, name, active }));
        }
    };
    let of = store.community(id).await?;
    Ok(match query {
        Query::ProfilesRanked(ask) => {
            ask.reply(of.profile_list_ranked(ask.limit.applied(), ask.cursor.as_ref()).await?)
        }
        Query::ProfilesGet(ask) => ask.reply(of.profile_get(&ask.clone().into()).await?),
        Query::ProfilesPosition(ask) => ask.reply(of.profile_position(ask.profile_id).await?),
        Query::ProfilesAround(ask) => {
            ask.reply(of.profile_list_around(ask.profile_id, ask.limit.applied()).await?)
        }
        Query::ProfilesActive(ask) => {
            ask.reply(of.profile_list_active(ask.limit.applied(), ask.cursor.as_ref()).await?)
        }
        Query::ProfilesSearch(ask) => {
            let limit = ask.limit.applied();
            let items = of.profile_search(&ask.query, limit).await?;
            ask.reply(Page { items, next: None, limit: limit.get() })
        }
        Query::ProfilesBadges(ask) => {
            let (limit, cursor) = (ask.limit.applied(), ask.cursor.as_ref());
            ask.reply(of.badge_list_by_profile(ask.profile_id, limit, cursor).await?)
        }
        Query::BadgesLeaderboard(ask) => {
            ask.reply(of.badge_leaderboard(ask.limit.applied(), ask.cursor.as_ref()).await?)
        }
        Query::BadgesKinds(ask) => {
            ask.reply(of.badge_kind_list(ask.limit.applied(), ask.cursor.as_ref()).await?)
        }
        Query::TiersProgression(ask) => {
            ask.reply(of.tier_list_progression(ask.limit.applied(), ask.cursor.as_ref()).await?)
        }
        Query::TiersChanges(ask) => {
            ask.reply(of.tier_change_list(ask.limit.applied(), ask.cursor.as_ref()).await?)
        }
        Query::TiersThreshold(ask) => ask.reply(of.tier_threshold().await?),
        Query::DirectoryList(ask) => {
            let start = DirectoryStart::Cursor(match &ask.start {
                Some(Start::Page(_)) => bail!("pages by number are not measured"),
                Some(Start::Cursor(cursor)) => Some(cursor.clone()),
                None => None,
            });
            let (tier, sort) = (ask.tier.as_ref(), ask.sort.unwrap_or_default());
            let page = of.directory_list(tier, sort, ask.direction(), ask.limit.applied(), &start).await?;
            ask.reply(DirectoryPage::new(page, None))
        }
        Query::CommunityStats(ask) => ask.reply(of.stats().await?),
        _ => bail!("a question that is not measured"),
    })
}

const HEADER: &str = "median µs|members|page|ideal|storage|echo|whole|whole, p99|other|storage/ideal|\
                      whole/(storage+echo)|whole/other";

impl Figures {
    /// The median, in microseconds.
    fn median(&self, way: Way) -> f64 {
        self.times.get(&way).map_or(f64::NAN, |[median, _]| *median)
    }

    /// Storage to ideal, the whole way to its parts, and to the other's.
    fn ratios(&self) -> [f64; 3] {
        let (storage, whole) = (self.median(Way::Storage), self.median(Way::Whole));
        let parts = storage + self.median(Way::Echo);
        [storage / self.median(Way::Ideal), whole / parts, whole / self.median(Way::Other)]
    }

    fn row(&self) -> Vec<String> {
        let page = if self.deep { "deep" } else { "first" };
        let words = [self.question.clone(), self.members.to_string(), page.to_owned()];
        let [ideal, storage, echo, whole, other] =
            [Way::Ideal, Way::Storage, Way::Echo, Way::Whole, Way::Other].map(|way| self.median(way));
        let p99 = self.times.get(&Way::Whole).map_or(f64::NAN, |[_, p99]| *p99);
        let times = [ideal, storage, echo, whole, p99, other].map(|time| number(time, 0));
        words.into_iter().chain(times).chain(self.ratios().map(|ratio| number(ratio, 2))).collect()
    }
}

/// The limits, on the largest community and between it and the smallest.
fn limits(figures: &[Figures], largest: i64) -> Vec<Limit> {
    let smallest = figures.iter().map(|f| f.members).min().unwrap_or(0);
    let mut limits = Vec::new();
    for first in figures.iter().filter(|f| f.members == largest && !f.deep) {
        let [of_ideal, of_parts, _] = first.ratios();
        let mut limit = |what: &str, measured, at_most| {
            limits.push(Limit::new(format!("{}: {what}", first.question), measured, at_most));
        };
        limit("storage / ideal", of_ideal, 3.0);
        limit("whole / (storage + echo)", of_parts, 1.3);
        for f in figures.iter().filter(|f| f.question == first.question) {
            let growth = first.median(Way::Storage) / f.median(Way::Storage);
            if f.members == smallest && smallest < largest && !f.deep {
                limit(&format!("{largest} / {smallest} members"), growth, 1.5);
            } else if f.members == largest && f.deep {
                limit("deep / first page", 1.0 / growth, 1.3);
            }
        }
    }
    limits
}
