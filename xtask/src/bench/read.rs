//! Questions, asked by turns in four ways: by a bare statement, by the storage crate, over NATS through the worker, and as
//! a bare NATS echo of as many bytes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_nats::Client as Nats;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use indicatif::{ProgressBar, ProgressStyle};
use muster_domain::{CommunityId, Page};
use muster_messaging::wire::answer::Answer;
use muster_messaging::wire::query::{DirectoryPlace, Query, Question as Asked};
use muster_storage::{DirectoryStart, Store};
use serde::Serialize;
use serde_json::Value;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};
use xtask::worker::Worker;

use super::community::Community;
use super::database::Planner;
use super::questions::{self, Ask, Kind, Question};

/// How many ask at once, beside one alone.
const CALLERS: usize = 16;
/// How often each way is asked at least, before the time is up.
const ROUNDS: usize = 30;
/// Where the echo listens.
const ECHO: &str = "bench.echo";

/// One way of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    /// A row of profiles and one of scores by primary key, on a bare connection.
    LookUp,
    /// The bare prepared statement on a raw connection.
    Bare,
    /// The storage crate's call.
    Storage,
    /// Over NATS with TLS, through the worker.
    Whole,
    /// A bare NATS echo that answers as many bytes.
    Echo,
}

impl Way {
    pub(super) const ALL: [Self; 5] = [Self::LookUp, Self::Bare, Self::Storage, Self::Whole, Self::Echo];
}

/// How one way of asking fared.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figure {
    pub(super) question: &'static str,
    pub(super) kind: Kind,
    pub(super) members: u64,
    pub(super) depth: u64,
    pub(super) way: Way,
    pub(super) callers: usize,
    pub(super) calls: usize,
    /// The tenth of the calls that the machine disturbed least was faster than this.
    pub(super) tenth_us: f64,
    pub(super) median_us: f64,
    pub(super) p99_us: f64,
    pub(super) a_second: f64,
}

/// Somebody who asks one community.
struct Asker<'a> {
    community: &'a Community,
    questions: Vec<Question>,
    bare: Vec<Client>,
    /// The look-up by primary key, and members to look up.
    look_up: Statement,
    members: Vec<uuid::Uuid>,
    store: Store,
    nats: Nats,
    _worker: Worker,
}

/// Answers echoes: as many bytes as each asks for by its first eight characters.
async fn echo(nats: Nats) -> Result<()> {
    let mut asked = nats.subscribe(ECHO).await?;
    let bytes = Bytes::from(vec![b' '; 1 << 20]);
    while let Some(message) = asked.next().await {
        let length: usize =
            std::str::from_utf8(message.payload.get(..8).unwrap_or_default())?.trim().parse().unwrap_or(0);
        if let Some(reply) = message.reply {
            nats.publish(reply, bytes.slice(..length.min(bytes.len()))).await?;
        }
    }
    Ok(())
}

impl<'a> Asker<'a> {
    async fn new(community: &'a Community) -> Result<Self> {
        let worker = community
            .configuration
            .with("MUSTER__DATABASE__POOL_SIZE", CALLERS.to_string())
            .serve(&community.services)?;
        let plain = community.database.connect(Planner::Free).await?;
        plain.batch_execute("SET work_mem = '256MB'; SET jit = off").await?;
        let questions = questions::of(community, &plain).await?;
        check(community, &questions, &plain).await?;
        let bare = try_join_all((0..CALLERS).map(|_| community.database.connect(Planner::AsWorker))).await?;
        let first = bare.first().context("no connection")?;
        let look_up = first
            .prepare(
                "SELECT p.profile_id, p.user_id, p.wallet, p.nym, s.conviction, s.activity, p.tier, p.badge_count, p.joined_at,
                     s.last_active_at, p.visible
                 FROM profiles AS p JOIN scores AS s USING (community_id, profile_id)
                 WHERE community_id = $1 AND profile_id = $2",
            )
            .await?;
        let members = plain
            .query(
                "SELECT profile_id FROM profiles WHERE community_id = $1 ORDER BY md5(user_id) LIMIT 64",
                &[&community.id.get()],
            )
            .await?;
        let members = members.iter().map(|row| row.get(0)).collect();
        tokio::spawn(echo(community.nats().await?));
        let (store, nats) = (community.store(CALLERS).await?, community.nats().await?);
        Ok(Self { community, questions, bare, look_up, members, store, nats, _worker: worker })
    }
}

/// The storage crate's call for a request.
async fn call(store: &Store, id: CommunityId, asked: Asked) -> Result<Answer> {
    let query = match asked {
        Asked::Within(_, query) => query,
        Asked::Find(guild) => {
            let found = store.community_find(&guild).await?;
            return Ok(Answer::Community {
                community: found.community_id,
                name: found.name,
                active: found.active,
            });
        }
    };
    let community = store.community(id).await?;
    Ok(match query {
        Query::ProfilesRanked(page) => {
            Answer::Ranked(community.profile_list_ranked(page.limit, page.cursor.as_ref()).await?)
        }
        Query::ProfilesGet(lookup) => Answer::Detail(Box::new(community.profile_get(&lookup).await?)),
        Query::ProfilesPosition(profile) => Answer::Position(community.profile_position(profile).await?),
        Query::ProfilesAround { profile, limit } => {
            Answer::Ranked(community.profile_list_around(profile, limit).await?)
        }
        Query::ProfilesActive(page) => {
            Answer::Profiles(community.profile_list_active(page.limit, page.cursor.as_ref()).await?)
        }
        Query::ProfilesSearch { query, limit } => {
            let items = community.profile_search(&query, limit).await?;
            Answer::Profiles(Page { items, next: None, limit: limit.get() })
        }
        Query::ProfilesBadges { profile, page } => {
            Answer::Badges(community.badge_list_by_profile(profile, page.limit, page.cursor.as_ref()).await?)
        }
        Query::BadgesLeaderboard(page) => {
            Answer::Leaderboard(community.badge_leaderboard(page.limit, page.cursor.as_ref()).await?)
        }
        Query::BadgesKinds(page) => {
            Answer::Kinds(community.badge_kind_list(page.limit, page.cursor.as_ref()).await?)
        }
        Query::TiersProgression(page) => {
            Answer::Progression(community.tier_list_progression(page.limit, page.cursor.as_ref()).await?)
        }
        Query::TiersChanges(page) => {
            Answer::Changes(community.tier_change_list(page.limit, page.cursor.as_ref()).await?)
        }
        Query::TiersThreshold => Answer::Threshold(community.tier_threshold().await?),
        Query::DirectoryList(directory) => {
            let (start, number) = match directory.place {
                DirectoryPlace::Cursor(cursor) => (DirectoryStart::Cursor(cursor), None),
                DirectoryPlace::Page { number, skip } => (DirectoryStart::Offset(skip), Some(number)),
            };
            let (tier, sort, direction) = (directory.tier.as_ref(), directory.sort, directory.direction);
            let page = community.directory_list(tier, sort, direction, directory.limit, &start).await?;
            Answer::Directory { page, number }
        }
        Query::CommunityStats => Answer::Stats(community.stats().await?),
        _ => anyhow::bail!("a question that is not measured"),
    })
}

fn read(question: &Question, id: CommunityId, ask: &Ask) -> Result<Asked> {
    Ok(Asked::parse(question.endpoint, Some(id), &ask.body)?.0)
}

/// Holds the storage crate's answers against plain counting and sorting.
async fn check(community: &Community, questions: &[Question], plain: &Client) -> Result<()> {
    let store = community.store(1).await?;
    for question in questions {
        for ask in &question.asks {
            let Some(sql) = &ask.plain else { continue };
            let expected = plain.query(sql, &[&community.id.get()]).await;
            let expected: Vec<String> = expected
                .with_context(|| format!("the plain SQL of {} fails", question.name))?
                .iter()
                .map(|row| row.try_get(0))
                .collect::<Result<_, _>>()?;
            let answer = call(&store, community.id, read(question, community.id, ask)?).await;
            let answer = answer.with_context(|| question.name.to_owned())?.to_json()?;
            let answer: Value = serde_json::from_slice(&answer)?;
            let told = told(&answer, question.fields);
            ensure!(
                told == expected,
                "{} of {} members at depth {}: {} answers {told:?}, plain SQL {expected:?}",
                question.name,
                community.members,
                question.depth,
                String::from_utf8_lossy(&ask.body)
            );
        }
    }
    println!("  {} members: {} questions agree with plain SQL", community.members, questions.len());
    Ok(())
}

/// The fields of an answer or of its items, as the plain SQL tells them.
fn told(answer: &Value, fields: &[&str]) -> Vec<String> {
    let line = |item: &Value| {
        let values: Vec<String> = fields
            .iter()
            .map(|field| match item.get(field) {
                Some(Value::String(text)) => text.clone(),
                Some(value) => value.to_string(),
                None => "null".to_owned(),
            })
            .collect();
        values.join("|")
    };
    match answer.get("items").and_then(Value::as_array) {
        Some(items) => items.iter().map(line).collect(),
        None => vec![line(answer)],
    }
}

/// Times of one way.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn at(&self, sorted: &[Duration], hundredth: usize) -> f64 {
        let last = self.0.len().saturating_sub(1);
        sorted.get(last.saturating_mul(hundredth) / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    }

    fn figure(
        &self,
        question: &Question,
        members: u64,
        way: Way,
        callers: usize,
        a_second: Option<f64>,
    ) -> Figure {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let median_us = self.at(&sorted, 50);
        Figure {
            question: question.name,
            kind: question.kind,
            members,
            depth: question.depth,
            way,
            callers,
            calls: self.0.len(),
            tenth_us: self.at(&sorted, 10),
            median_us,
            p99_us: self.at(&sorted, 99),
            a_second: a_second.unwrap_or(1e6 / median_us),
        }
    }
}

/// One question to one community, with its statement prepared on every bare connection.
struct Prepared<'a> {
    asker: &'a Asker<'a>,
    question: &'a Question,
    statements: Vec<Statement>,
    subject: String,
    /// How many bytes the answer to the first ask has.
    length: usize,
}

impl Prepared<'_> {
    fn ask(&self, round: usize) -> Result<&Ask> {
        let asks = &self.question.asks;
        asks.get(round % asks.len().max(1)).context("a question without an ask")
    }

    /// Asks once; answers how long that took. Whatever is answered is checked after the time was taken.
    async fn time(&self, way: Way, round: usize, caller: usize, checked: bool) -> Result<Duration> {
        let asker = self.asker;
        let id = asker.community.id;
        let ask = self.ask(round)?;
        let bare = asker.bare.get(caller).context("no such caller")?;
        match way {
            Way::LookUp => {
                let member = asker.members.get(round % asker.members.len().max(1)).context("no member")?;
                let started = Instant::now();
                bare.query(&asker.look_up, &[&id.get(), member]).await?;
                Ok(started.elapsed())
            }
            Way::Bare => {
                let statement = self.statements.get(caller).context("no statement")?;
                let values: Vec<&(dyn ToSql + Sync)> =
                    ask.values.iter().map(|value| -> &(dyn ToSql + Sync) { &**value }).collect();
                let started = Instant::now();
                bare.query(statement, &values).await?;
                Ok(started.elapsed())
            }
            Way::Storage => {
                let asked = read(self.question, id, ask)?;
                let started = Instant::now();
                std::hint::black_box(call(&asker.store, id, asked).await?);
                Ok(started.elapsed())
            }
            Way::Whole => {
                let (subject, body) = (self.subject.clone(), Bytes::copy_from_slice(&ask.body));
                let started = Instant::now();
                let answer = asker.nats.request(subject, body).await?;
                let took = started.elapsed();
                if checked {
                    let expected = call(&asker.store, id, read(self.question, id, ask)?).await?.to_json()?;
                    ensure!(
                        answer.payload == expected,
                        "{}: the worker answers {}, storage {}",
                        self.question.name,
                        String::from_utf8_lossy(&answer.payload),
                        String::from_utf8_lossy(&expected)
                    );
                } else {
                    let failed =
                        answer.headers.is_some_and(|headers| headers.get("Nats-Service-Error").is_some());
                    ensure!(!failed, "{}: {}", self.question.name, String::from_utf8_lossy(&answer.payload));
                }
                Ok(took)
            }
            Way::Echo => {
                let length = format!("{:<8}", self.length);
                let mut body = length.into_bytes();
                body.resize(ask.body.len().max(8), b' ');
                let started = Instant::now();
                let answer = asker.nats.request(ECHO, body.into()).await?;
                let took = started.elapsed();
                ensure!(
                    answer.payload.len() == self.length,
                    "the echo answers {} bytes",
                    answer.payload.len()
                );
                Ok(took)
            }
        }
    }

    /// Asks by many callers at once for a while.
    async fn burst(&self, way: Way, time: Duration) -> Result<(Vec<Duration>, Duration)> {
        let begun = Instant::now();
        let callers = (0..CALLERS).map(|caller| async move {
            let mut times = Vec::new();
            let mut round = caller;
            while begun.elapsed() < time {
                times.push(self.time(way, round, caller, false).await?);
                round += CALLERS;
            }
            Ok::<_, anyhow::Error>(times)
        });
        let times = try_join_all(callers).await?;
        Ok((times.into_iter().flatten().collect(), begun.elapsed()))
    }
}

/// Asks everything of every community, each question for this long.
///
/// # Errors
/// When an answer is wrong or does not come.
pub(super) async fn measure(communities: &[Community], seconds: u64) -> Result<Vec<Figure>> {
    let mut askers = Vec::new();
    for community in communities {
        askers.push(Asker::new(community).await?);
    }
    let names: Vec<&'static str> = {
        let mut names = Vec::new();
        for question in askers.iter().flat_map(|asker| &asker.questions) {
            if !names.contains(&question.name) {
                names.push(question.name);
            }
        }
        names
    };
    let style = ProgressStyle::with_template("{prefix:>9} {wide_bar} {pos}/{len} {elapsed} {msg}")?;
    let bar = ProgressBar::new(u64::try_from(names.len())?).with_style(style).with_prefix("questions");
    let mut figures = Vec::new();
    for name in names {
        bar.set_message(name);
        let mut prepared = Vec::new();
        for asker in &askers {
            for question in asker.questions.iter().filter(|question| question.name == name) {
                let statements =
                    try_join_all(asker.bare.iter().map(|client| client.prepare(&question.bare))).await;
                let statements = statements.with_context(|| format!("the bare SQL of {name} fails"))?;
                let id = asker.community.id;
                let first = question.asks.first().context("a question without an ask")?;
                let answer = call(&asker.store, id, read(question, id, first)?).await?.to_json()?;
                let subject = question.endpoint.subject(id);
                prepared.push(Prepared { asker, question, statements, subject, length: answer.len() });
            }
        }
        // Every connection of every pool prepares the statement before anything counts.
        for one in &prepared {
            for way in [Way::Storage, Way::Whole] {
                one.burst(way, Duration::from_millis(150)).await?;
            }
        }
        let mut times: BTreeMap<(usize, Way), Times> = BTreeMap::new();
        let begun = Instant::now();
        let mut round = 0;
        while round < ROUNDS || begun.elapsed() < Duration::from_secs(seconds) {
            for (number, one) in prepared.iter().enumerate() {
                for way in Way::ALL {
                    let took = one.time(way, round, 0, true).await?;
                    // The first rounds fill caches.
                    if round >= 3 {
                        times.entry((number, way)).or_default().0.push(took);
                    }
                }
            }
            round += 1;
        }
        for (number, one) in prepared.iter().enumerate() {
            for way in Way::ALL {
                let Some(times) = times.get(&(number, way)) else { continue };
                figures.push(times.figure(one.question, one.asker.community.members, way, 1, None));
            }
        }
        // Many callers at the first page of the largest community: by turns, twice.
        let largest = prepared.iter().filter(|one| one.question.depth == 0);
        if let Some(one) = largest.max_by_key(|one| one.asker.community.members) {
            let ways = [Way::Bare, Way::Storage, Way::Whole, Way::Echo];
            let mut sums: BTreeMap<Way, (Times, Duration)> = BTreeMap::new();
            for _ in 0..2 {
                for way in ways {
                    let (times, took) =
                        one.burst(way, Duration::from_millis(seconds.saturating_mul(100))).await?;
                    let sum = sums.entry(way).or_default();
                    sum.0.0.extend(times);
                    sum.1 += took;
                }
            }
            for (way, (times, took)) in sums {
                let calls = f64::from(u32::try_from(times.0.len()).unwrap_or(u32::MAX));
                let rate = calls / took.as_secs_f64().max(1e-6);
                let members = one.asker.community.members;
                figures.push(times.figure(one.question, members, way, CALLERS, Some(rate)));
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(figures)
}
