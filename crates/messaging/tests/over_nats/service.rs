//! Requests and answers as they are on the wire.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::HeaderMap;
use muster_domain::{
    Activity, CommunityId, Conviction, Cursor, GuildId, Nym, Page, Profile, ProfileId, Rank, RankedProfile,
    SearchQuery, TraceParent, UserId,
};
use muster_messaging::api::{
    Caller, Endpoint, ErrorCode, Query, Question, Reply, Rows, ServiceError, admin, community, profiles,
};
use muster_messaging::client::{Client, ClientError};
use muster_messaging::request::Request;
use muster_messaging::service::{Observation, Service, ServiceConfig, serve};
use serde_json::Value;
use time::macros::datetime;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::broker::{Broker, Setup, until};

const MEMBERS: u32 = 2500;

fn community() -> CommunityId {
    CommunityId::new(Uuid::from_u128(0xC0))
}

fn member(n: u32) -> RankedProfile {
    let profile = Profile {
        profile_id: ProfileId::new(Uuid::from_u128(u128::from(n))),
        user_id: UserId::parse(n.to_string()).unwrap(),
        wallet: None,
        nym: Nym::parse(format!("member {n}")).unwrap(),
        conviction: Conviction::clamp(MEMBERS - n),
        activity: Activity::default(),
        tier: None,
        badge_count: 0,
        joined_at: datetime!(2026-01-01 00:00 UTC),
        last_active_at: None,
        visible: true,
    };
    RankedProfile { profile, rank: Rank::below(u64::from(n)) }
}

/// A list that is paged by the number that its cursor holds.
fn ranked(ask: &profiles::Ranked) -> Page<RankedProfile> {
    let from: u32 = ask.cursor.as_ref().map_or(0, |cursor| cursor.as_str().parse().unwrap());
    let limit = ask.limit.applied().get();
    let to = from.saturating_add(limit).min(MEMBERS);
    let next = (to < MEMBERS).then(|| Cursor::parse(to.to_string()).unwrap());
    Page { items: (from..to).map(member).collect(), next, limit }
}

async fn handle(request: Request) -> Result<Reply, ServiceError> {
    match request.question {
        Question::Find(ask) if ask.guild_id.as_str() == "42" => Ok(ask.reply(community::Community {
            community_id: community(),
            name: None,
            active: true,
            changes: 0,
        })),
        Question::Find(_) => Err(ServiceError::not_found("community")),
        Question::Within(_, Query::ProfilesRanked(ask)) => Ok(ask.reply(ranked(&ask))),
        Question::Within(_, Query::TiersThreshold(_)) => panic!("a defect of this handler"),
        Question::Within(_, Query::CommunityStats(_)) => {
            Err(ServiceError::internal("relation does not exist"))
        }
        Question::Within(_, Query::ProfilesSearch(_)) => {
            let caller = request.caller.map(|caller| caller.as_str().to_owned());
            Err(ServiceError::malformed(format!("{caller:?} {:?}", request.traceparent)))
        }
        // Told as 1501 ms: whoever waits less is too early.
        Question::Within(..) => Err(ServiceError::rate_limited(Duration::from_micros(1_500_200))),
    }
}

type Observations = Arc<Mutex<Vec<Observation>>>;

async fn start(broker: &Broker) -> (Service, Observations) {
    let seen = Observations::default();
    let keep = Arc::clone(&seen);
    let observe = Arc::new(move |observation: &Observation| keep.lock().unwrap().push(*observation));
    let config = ServiceConfig { observe, ..ServiceConfig::default() };
    (serve(&broker.connect().await, config, handle).await.unwrap(), seen)
}

fn subject(endpoint: &str) -> String {
    format!("muster.v1.{}.{endpoint}", community())
}

/// An answer as it is on the wire: the headers of an error, and the body.
async fn ask(
    client: &async_nats::Client,
    subject: String,
    body: impl Into<Vec<u8>>,
) -> (Option<(String, String)>, Value) {
    let answer = client.request(subject, body.into().into()).await.unwrap();
    let header = |name: &str| Some(answer.headers.as_ref()?.get(name)?.as_str().to_owned());
    let error = header("Nats-Service-Error-Code").zip(header("Nats-Service-Error"));
    (error, serde_json::from_slice(&answer.payload).unwrap())
}

#[tokio::test]
async fn limits_in_every_form() {
    let broker = Broker::plain();
    let (_service, seen) = start(&broker).await;
    let client = broker.raw().await;
    for (body, applied) in [
        ("", 100),
        ("{}", 100),
        (r#"{"limit":10}"#, 10),
        (r#"{"limit":5000000}"#, 1000),
        (r#"{"limit":0}"#, 1),
        (r#"{"limit":-5}"#, 1),
        (r#"{"limit":123456789012345678901234567890123456789012345678901234567890}"#, 1000),
    ] {
        let (error, page) = ask(&client, subject("profiles.ranked"), body).await;
        assert_eq!(error, None, "{body}");
        assert_eq!(page["limit"], applied, "{body}");
        assert_eq!(page["items"].as_array().unwrap().len(), applied, "{body}");
        assert_eq!(page["next"], applied.to_string(), "{body}");
        assert_eq!(page["items"][0]["rank"], 1, "{body}");
    }
    let clamped: Vec<bool> = seen.lock().unwrap().iter().map(|seen| seen.clamped).collect();
    assert_eq!(clamped, [false, false, false, true, true, true, true]);
    for body in [r#"{"limit":"5"}"#, r#"{"limit":1.5}"#, r#"{"limit":null}"#, r#"{"limit":1e400}"#] {
        let (error, answer) = ask(&client, subject("profiles.ranked"), body).await;
        assert_eq!(error.unwrap().0, "400", "{body}");
        assert_eq!(answer["error"]["code"], "invalid_request", "{body}");
        assert_eq!(answer["error"]["field"], "limit", "{body}");
    }
}

#[tokio::test]
async fn errors_in_every_form() {
    let broker = Broker::plain();
    let (_service, seen) = start(&broker).await;
    let client = broker.raw().await;
    let large = format!(r#"{{"cursor":"{}"}}"#, "x".repeat(64 * 1024));
    for (subject, body, number, code) in [
        (subject("profiles.ranked"), "{", "400", "invalid_request"),
        (subject("profiles.ranked"), r#"{"limt":1}"#, "400", "invalid_request"),
        (subject("profiles.ranked"), &large, "413", "payload_too_large"),
        ("muster.v1.naib.profiles.ranked".to_owned(), "{}", "404", "not_found"),
        ("muster.v1.naib.profiles.ranked".to_owned(), "{", "404", "not_found"),
        ("muster.v1.communities.find".to_owned(), r#"{"guild_id":"7"}"#, "404", "not_found"),
        (subject("profiles.active"), "", "429", "rate_limited"),
        (subject("community.stats"), "", "500", "internal"),
        (subject("tiers.threshold"), "", "500", "internal"),
    ] {
        let shown: String = body.chars().take(40).collect();
        let (error, answer) = ask(&client, subject.clone(), body).await;
        let (header_code, header_message) = error.unwrap();
        assert_eq!(header_code, number, "{subject} {shown}");
        assert_eq!(answer["error"]["code"], code, "{subject} {shown}");
        assert_eq!(answer["error"]["message"], header_message, "{subject} {shown}");
        assert_eq!(answer["error"]["request_id"].is_string(), code == "internal", "{subject} {shown}");
        assert!(!answer.to_string().contains("relation"), "{answer}");
    }
    assert_eq!(seen.lock().unwrap().len(), 9);
    let (error, found) = ask(&client, "muster.v1.communities.find".to_owned(), r#"{"guild_id":"42"}"#).await;
    assert_eq!(error, None);
    assert_eq!(found["community_id"], community().to_string());

    let mut headers = HeaderMap::new();
    headers.insert("Muster-Caller", "x".repeat(129).as_str());
    let refused = client.request_with_headers(subject("profiles.ranked"), headers, "".into()).await.unwrap();
    let refused: Value = serde_json::from_slice(&refused.payload).unwrap();
    assert_eq!(refused["error"]["field"], "Muster-Caller");
}

#[tokio::test]
async fn the_service_protocol_is_spoken() {
    let broker = Broker::plain();
    let (service, _) = start(&broker).await;
    let client = broker.raw().await;
    ask(&client, subject("profiles.ranked"), "").await;
    ask(&client, subject("profiles.ranked"), "{").await;
    let (_, ping) = ask(&client, "$SRV.PING.muster".to_owned(), "").await;
    assert_eq!((&ping["name"], &ping["version"]), (&"muster".into(), &env!("CARGO_PKG_VERSION").into()));
    let (_, info) = ask(&client, "$SRV.INFO.muster".to_owned(), "").await;
    let subjects: Vec<&str> =
        info["endpoints"].as_array().unwrap().iter().map(|e| e["subject"].as_str().unwrap()).collect();
    assert_eq!(subjects.len(), 23);
    assert!(subjects.contains(&"muster.v1.*.profiles.ranked"));
    assert!(subjects.contains(&"muster.v1.communities.find"));
    let (_, stats) = ask(&client, "$SRV.STATS.muster".to_owned(), "").await;
    let endpoints = stats["endpoints"].as_array().unwrap();
    let ranked = endpoints.iter().find(|e| e["name"] == "profiles-ranked").unwrap();
    assert_eq!((&ranked["num_requests"], &ranked["data"]["errors"]), (&2.into(), &1.into()));

    service.stop(Duration::from_secs(5)).await.unwrap();
    let gone = client.request(subject("profiles.ranked"), "".into()).await.unwrap_err();
    assert_eq!(gone.kind(), async_nats::client::RequestErrorKind::NoResponders);
}

#[tokio::test]
async fn a_page_over_the_brokers_bound_is_cut_at_a_row() {
    let broker = Broker::start(&Setup { tls: false, max_payload: 24 * 1024, ..Setup::default() });
    let (_service, seen) = start(&broker).await;
    let client = Client::new(broker.connect().await).community(community());
    let mut request = profiles::Ranked::first(1000);
    let mut ranks = Vec::new();
    loop {
        let page = client.ask(&request).await.unwrap();
        if page.next.is_some() {
            assert_eq!(page.limit, 62, "1000 halved until it fits");
        }
        ranks.extend(page.items.iter().map(|item| item.rank.get()));
        match page.next {
            Some(next) => request = request.after(next),
            None => break,
        }
    }
    assert_eq!(ranks, (1..=u64::from(MEMBERS)).collect::<Vec<_>>(), "every member once");
    let truncated: Vec<bool> = seen.lock().unwrap().iter().map(|seen| seen.truncated).collect();
    assert!(truncated.iter().rev().skip(1).all(|truncated| *truncated), "all but the last");
    assert_eq!(client.ask(&profiles::Ranked::first(5)).await.unwrap().limit, 5);
}

#[tokio::test]
async fn the_client_reads_answers_and_errors() {
    let broker = Broker::plain();
    let (_service, _) = start(&broker).await;
    let client = Client::new(broker.connect().await);
    let found = client.find_community(GuildId::parse("42").unwrap()).await.unwrap();
    assert_eq!(found.community_id, community());
    let missing = client.find_community(GuildId::parse("7").unwrap()).await.unwrap_err();
    assert_eq!(missing.code(), Some(ErrorCode::NotFound));

    let client = client
        .on_behalf_of(Caller::parse("stilgar").unwrap())
        .in_trace(TraceParent::parse("00-ab-cd-01").unwrap())
        .community(community());
    let first = client.ask(&profiles::Ranked::first(5_000_000)).await.unwrap();
    assert_eq!((first.limit, first.items.len()), (1000, 1000));
    let second = client.ask(&profiles::Ranked::first(5).after(first.next.unwrap())).await.unwrap();
    assert_eq!(second.items[0].rank.get(), 1001);
    let search = profiles::Search { query: SearchQuery::parse("a").unwrap(), limit: Rows::default() };
    match client.ask(&search).await.unwrap_err() {
        ClientError::Service { code: ErrorCode::InvalidRequest, message, .. } => {
            assert_eq!(message, r#"Some("stilgar") Some(TraceParent("00-ab-cd-01"))"#);
        }
        other => panic!("{other:?}"),
    }
    match client.ask(&profiles::Active::default()).await.unwrap_err() {
        ClientError::Service { code: ErrorCode::RateLimited, retry_after, .. } => {
            assert_eq!(retry_after, Some(Duration::from_millis(1501)));
        }
        other => panic!("{other:?}"),
    }
    match client.ask(&community::Stats {}).await.unwrap_err() {
        ClientError::Service { code: ErrorCode::Internal, request_id, .. } => assert!(request_id.is_some()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn beyond_the_bound_requests_are_refused_at_once_and_stopping_finishes_the_rest() {
    let broker = Broker::plain();
    let gate = Arc::new(Semaphore::new(0));
    let running = Arc::new(AtomicUsize::new(0));
    let (wait, count) = (Arc::clone(&gate), Arc::clone(&running));
    // One is kept from whoever has the others.
    let config = ServiceConfig { max_in_flight: 4, ..ServiceConfig::default() };
    let service = serve(&broker.connect().await, config, move |_| {
        let (wait, count) = (Arc::clone(&wait), Arc::clone(&count));
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            wait.acquire().await.unwrap().forget();
            Ok(admin::ClearRateLimit::default().reply(admin::ClearedCounters { cleared: 1 }))
        }
    })
    .await
    .unwrap();
    let client = broker.raw().await;
    let held: Vec<_> = (0..3)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { ask(&client, subject("admin.ratelimit.clear"), "").await })
        })
        .collect();
    until("three are held", async || running.load(Ordering::SeqCst) == 3).await;
    let (error, answer) = ask(&client, subject("admin.ratelimit.clear"), "").await;
    assert_eq!((error.unwrap().0.as_str(), &answer["error"]["code"]), ("503", &"unavailable".into()));
    // What is too large takes no place and waits for none.
    let large = format!(r#"{{"caller":"{}"}}"#, "x".repeat(64 * 1024));
    let (error, _) = ask(&client, subject("admin.ratelimit.clear"), large).await;
    assert_eq!(error.unwrap().0, "413");

    let stopping = tokio::spawn(service.stop(Duration::from_secs(10)));
    gate.add_permits(3);
    stopping.await.unwrap().unwrap();
    for held in held {
        assert_eq!(held.await.unwrap(), (None, serde_json::json!({ "cleared": 1 })));
    }
}

#[tokio::test]
async fn an_answer_that_takes_more_than_half_of_the_time_is_heard() {
    let broker = Broker::plain();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let connection = broker.connect().await;
    let _service = serve(&connection, ServiceConfig::default(), move |request| {
        let is_first = count.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            // That the repetition is refused at once says nothing of the first.
            if !is_first {
                return Err(ServiceError::unavailable("too many requests are in flight"));
            }
            tokio::time::sleep(Duration::from_millis(700)).await;
            handle(request).await
        }
    })
    .await
    .unwrap();
    let client = Client::new(connection).with_timeout(Duration::from_secs(1));
    let found = client.find_community(GuildId::parse("42").unwrap()).await.unwrap();
    assert_eq!((found.community_id, asked.load(Ordering::SeqCst)), (community(), 2));
}

#[tokio::test]
async fn a_handler_past_its_deadline_is_answered_for_and_not_torn() {
    let broker = Broker::plain();
    let gate = Arc::new(Semaphore::new(0));
    let finished = Arc::new(AtomicUsize::new(0));
    let (wait, count) = (Arc::clone(&gate), Arc::clone(&finished));
    let config = ServiceConfig { deadline: Duration::from_millis(50), ..ServiceConfig::default() };
    let service = serve(&broker.connect().await, config, move |_| {
        let (wait, count) = (Arc::clone(&wait), Arc::clone(&count));
        async move {
            wait.acquire().await.unwrap().forget();
            count.fetch_add(1, Ordering::SeqCst);
            Ok(admin::ClearRateLimit::default().reply(admin::ClearedCounters { cleared: 1 }))
        }
    })
    .await
    .unwrap();
    let (error, _) = ask(&broker.raw().await, subject("admin.ratelimit.clear"), "").await;
    assert_eq!(error.unwrap().0, "503");
    assert_eq!(service.in_flight(), 1, "it goes on");
    gate.add_permits(1);
    service.stop(Duration::from_secs(10)).await.unwrap();
    assert_eq!(finished.load(Ordering::SeqCst), 1, "stopping waits for it");
}

#[tokio::test]
async fn an_answer_that_the_broker_cannot_carry_is_told_as_that() {
    let ask = async |max_payload: usize| {
        let broker = Broker::start(&Setup { tls: false, max_payload, ..Setup::default() });
        let (_service, _) = start(&broker).await;
        let client = broker.raw().await;
        client.request(subject("profiles.ranked"), r#"{"limit":1}"#.into()).await.unwrap()
    };
    let fits = ask(16 * 1024).await.payload.len();
    assert!(ask(fits).await.headers.is_none(), "it just fits");
    // There is no room for the error's body either, and the headers say it alone.
    let answer = ask(fits - 1).await;
    let headers = answer.headers.unwrap();
    assert_eq!(headers.get("Nats-Service-Error-Code").unwrap().as_str(), "413");
    let said = headers.get("Nats-Service-Error").unwrap().as_str();
    assert!(said.contains(&format!("carries {}", fits - 1)) && said.contains("max_payload"), "{said}");
    assert!(answer.payload.is_empty());
}
