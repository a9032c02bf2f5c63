//! Every list and look-up, asked by turns: as the ideal, by the storage crate, through the worker, and as a bare NATS echo.

use std::array;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use muster_domain::CommunityId;
use muster_messaging::api::{Description, ENDPOINTS, Endpoint, Query as Ask, Question, profiles};
use muster_storage::Store;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};
use xtask::worker::Worker;

use super::load::{Community, IDEAL_DATABASE};
use super::report::{Limit, Measured, median};

/// How often each question is asked at least, before the time is up.
const ROUNDS: usize = 30;
/// The number of pages of 1000 rows that are walked to a deep page, at most.
const DEEPEST: usize = 200;

/// One of `questions.toml`, which explains the fields.
#[derive(Deserialize)]
struct Measure {
    #[serde(default)]
    body: Map<String, Value>,
    about: Option<String>,
    rows: u32,
    #[serde(default)]
    deep: bool,
}

#[derive(Deserialize)]
struct Rows {
    items: Vec<Value>,
    next: Option<Value>,
}

struct Target<'a> {
    community: &'a Community,
    id: CommunityId,
    /// The members of the first page: questions about one member are asked about each of them in turn.
    members: Vec<Value>,
    ideal: Client,
    /// None for another checkout, whose tables are not known here.
    store: Option<Store>,
    _worker: Worker,
}

struct Case<'a> {
    name: &'a str,
    target: &'a Target<'a>,
    deep: bool,
    endpoint: &'static Description,
    ideal: Statement,
    subject: String,
    echo: String,
    /// Request bodies, used in turn.
    bodies: Vec<String>,
    /// Of each round, in microseconds: ideal, storage, echo, whole.
    times: Vec<[f64; 4]>,
}

/// Asks everything of every community, each question for so long.
pub(super) async fn measure(communities: &[Community], time: Duration) -> Result<Measured> {
    let questions: BTreeMap<String, Measure> = toml::from_str(include_str!("questions.toml"))?;
    let mut targets = Vec::new();
    for community in communities {
        targets.push(Target::open(community).await?);
    }
    let mut cases = Vec::new();
    for (name, question) in &questions {
        println!("  {name}");
        let mut asked = Vec::new();
        for target in &targets {
            for deep in [false, true].into_iter().filter(|deep| !deep || question.deep) {
                asked.extend(Case::new(name, question, target, deep).await?);
            }
        }
        let (begun, mut round) = (Instant::now(), 0);
        while round < ROUNDS || begun.elapsed() < time {
            for case in &mut asked {
                case.ask(round).await?;
            }
            round += 1;
        }
        cases.append(&mut asked);
    }
    // The first pages of this checkout's largest community come first, and are charted.
    cases.sort_by_key(|case| (case.target.store.is_none(), case.deep, -case.target.community.members));
    Ok(report(&cases, questions.len()))
}

impl<'a> Target<'a> {
    async fn open(community: &'a Community) -> Result<Self> {
        let worker = community.configuration.serve(&community.services)?;
        let id = community.id().await?;
        let page = community.ask(&profiles::Ranked::DESCRIPTION.subject(id), "{}").await?;
        let members = serde_json::from_slice::<Rows>(&page)?.items;
        let ideal = community.connect(IDEAL_DATABASE).await?;
        let store = if community.name == "this" { Some(community.store().await?) } else { None };
        Ok(Self { community, id, members, ideal, store, _worker: worker })
    }

    /// The body that asks for a page at nine tenths of a list, or of its first 200,000 rows, if it has several pages.
    async fn deep_body(&self, mut body: Map<String, Value>, subject: &str) -> Result<Option<String>> {
        let (mut page, mut cursors) = (body.clone(), Vec::new());
        page.insert("limit".to_owned(), json!(1000));
        while cursors.len() < DEEPEST {
            let answer = self.community.ask(subject, &json!(page).to_string()).await?;
            let Some(next) = serde_json::from_slice::<Rows>(&answer)?.next else { break };
            page.insert("cursor".to_owned(), next.clone());
            cursors.push(next);
        }
        Ok(cursors.get(cursors.len() * 9 / 10).map(|cursor| {
            body.insert("cursor".to_owned(), cursor.clone());
            json!(body).to_string()
        }))
    }
}

impl<'a> Case<'a> {
    /// `None` if there is no deep page.
    async fn new(name: &'a str, ask: &Measure, target: &'a Target<'a>, deep: bool) -> Result<Option<Self>> {
        let endpoint = ENDPOINTS.iter().find(|endpoint| name.starts_with(endpoint.name));
        let endpoint = *endpoint.context("a question without an endpoint")?;
        let subject = endpoint.subject(target.id);
        let values = |field| target.members.iter().filter_map(move |member| member.get(field));
        let bodies: Vec<String> = match &ask.about {
            Some(field) => values(field).map(|value| json!({ field: value }).to_string()).collect(),
            None if deep => target.deep_body(ask.body.clone(), &subject).await?.into_iter().collect(),
            None => vec![json!(ask.body).to_string()],
        };
        let Some(body) = bodies.first() else { return Ok(None) };
        let echo = target.community.echo(target.community.ask(&subject, body).await?).await?;
        let ideal = match ask.rows {
            1 => "SELECT * FROM members WHERE id = $1".to_owned(),
            rows => format!("SELECT * FROM members ORDER BY score DESC, id DESC LIMIT {rows}"),
        };
        let ideal = target.ideal.prepare(&ideal).await?;
        Ok(Some(Self { name, target, deep, endpoint, ideal, subject, echo, bodies, times: Vec::new() }))
    }

    async fn ask(&mut self, round: usize) -> Result<()> {
        let Target { community, id, ideal, store, .. } = self.target;
        let member = 1 + i64::try_from(round)? * 7919 % community.members;
        let values: &[&(dyn ToSql + Sync)] = if self.ideal.params().is_empty() { &[] } else { &[&member] };
        let body = self.bodies.get(round % self.bodies.len()).context("no body")?;
        let asked = Question::parse(self.endpoint, Some(*id), body.as_bytes())?;
        self.times.push([
            timed(async { Ok(ideal.query(&self.ideal, values).await?) }).await?,
            if let Some(store) = store { timed(storage(store, asked)).await? } else { f64::NAN },
            timed(community.ask(&self.echo, body)).await?,
            timed(community.ask(&self.subject, body)).await?,
        ]);
        Ok(())
    }

    fn medians(&self) -> [f64; 4] {
        array::from_fn(|way| median(self.times.iter().filter_map(|times| times.get(way).copied()).collect()))
    }
}

async fn timed<T>(work: impl Future<Output = Result<T>>) -> Result<f64> {
    let begun = Instant::now();
    work.await?;
    Ok(begun.elapsed().as_secs_f64() * 1e6)
}

/// The storage crate's call for a request, as the worker makes it.
async fn storage(store: &Store, asked: Question) -> Result<()> {
    let (of, query) = match asked {
        Question::Within(id, query) => (store.community(id).await?, query),
        Question::Find(ask) => return Ok(store.community_find(&ask.guild_id).await.map(drop)?),
    };
    macro_rules! page {
        ($q:ident, $call:ident) => {
            of.$call($q.limit.applied(), $q.cursor.as_ref()).await.map(drop)
        };
    }
    let answered = match query {
        Ask::ProfilesRanked(q) => page!(q, profile_list_ranked),
        Ask::ProfilesGet(q) => of.profile_get(&q.into()).await.map(drop),
        Ask::ProfilesPosition(q) => of.profile_position(q.profile_id).await.map(drop),
        Ask::ProfilesAround(q) => of.profile_list_around(q.profile_id, q.limit.applied()).await.map(drop),
        Ask::ProfilesActive(q) => page!(q, profile_list_active),
        Ask::ProfilesSearch(q) => of.profile_search(&q.query, q.limit.applied()).await.map(drop),
        Ask::ProfilesBadges(q) => {
            of.badge_list_by_profile(q.profile_id, q.limit.applied(), q.cursor.as_ref()).await.map(drop)
        }
        Ask::BadgesLeaderboard(q) => page!(q, badge_leaderboard),
        Ask::BadgesKinds(q) => page!(q, badge_kind_list),
        Ask::TiersProgression(q) => page!(q, tier_list_progression),
        Ask::TiersChanges(q) => page!(q, tier_change_list),
        Ask::TiersThreshold(_) => of.tier_threshold().await.map(drop),
        Ask::DirectoryList(q) => {
            let (sort, limit) = (q.sort.unwrap_or_default(), q.limit.applied());
            of.directory_list(q.tier.as_ref(), sort, q.direction(), limit, q.cursor(), 0).await.map(drop)
        }
        Ask::CommunityStats(_) => of.stats().await.map(drop),
        _ => bail!("a question that is not measured"),
    };
    Ok(answered?)
}

/// The figures of this checkout's cases. Limits are on its largest community, and between it and the smallest.
fn report(cases: &[Case<'_>], charted: usize) -> Measured {
    let members = |case: &Case<'_>| case.target.community.members;
    let smallest = cases.iter().map(members).min().unwrap_or(0);
    let largest = cases.iter().map(members).max().unwrap_or(0);
    let (mut rows, mut limits) = (Vec::new(), Vec::new());
    let is_own = |case: &&Case<'_>| case.target.store.is_some();
    let (own, others): (Vec<_>, Vec<_>) = cases.iter().partition(is_own);
    for case in own {
        let key = |of: &Case<'_>| (of.name.to_owned(), of.deep, members(of));
        let other = others.iter().find(|other| key(other) == key(case)).copied();
        let [.., other] = other.map_or([f64::NAN; 4], Case::medians);
        // The first page of the largest community.
        let first = cases.iter().find(|first| first.name == case.name);
        let [_, first, ..] = first.map_or([f64::NAN; 4], Case::medians);
        let [ideal, storage, echo, whole] = case.medians();
        let [of_ideal, of_parts] = [storage / ideal, whole / (storage + echo)];
        let name = format!("{}{}", case.name, if case.deep { ", deep" } else { "" });
        let figures = vec![of_ideal, of_parts, whole / other, ideal, storage, echo, whole, other];
        rows.push((format!("{name}, {} members", members(case)), figures));
        let mut limit = |what: &str, measured, at_most| {
            limits.push(Limit::new(format!("{name}: {what}"), measured, at_most));
        };
        match members(case) {
            of if of == largest && case.deep => limit("storage / first page", storage / first, 1.3),
            of if of == largest => {
                limit("storage / ideal", of_ideal, 3.0);
                limit("whole / (storage + echo)", of_parts, 1.3);
            }
            of if of == smallest && !case.deep => limit("largest / smallest", first / storage, 1.5),
            _ => {}
        }
    }
    let columns = "storage/ideal whole/(storage+echo) whole/other ideal,µs storage echo whole other";
    let title = format!("Reads, {largest} members");
    Measured { title, columns: columns.split(' ').collect(), rows, charted, limits }
}
