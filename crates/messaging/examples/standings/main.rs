//! A page for the members of one community: the standings with ranks, tiers and badges, a search, and a page for each member.
//! It is current while it is open: one follower of the community's changes updates every open page.
//!
//! Nothing is kept here: every page is asked for at the service when it is wanted. Put it behind a proxy that ends TLS and
//! bounds connections by address. README.md says how to run it.
#![expect(clippy::print_stderr, reason = "the operator reads its address and its errors")]

#[path = "../environment/mod.rs"]
mod environment;
mod html;
mod live;
mod pages;
mod problem;

use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use muster_messaging::CommunityClient;
use muster_messaging::api::community::{CommunityStats, Stats};
use muster_messaging::api::profiles::{Around, Badges, Get, Many, Position, Ranked, RankedProfile, Search};
use muster_messaging::api::{Endpoint, Page, Rows};
use muster_messaging::domain::{Cursor, Keys, ProfileId, SearchQuery};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};

use live::Live;
use pages::Content;
use problem::Problem;

/// How many members a page of the standings has, a search finds, and a member's page shows around them.
const BOARD: i64 = 50;
const FOUND: i64 = 25;
const AROUND: i64 = 11;
const BADGES: i64 = 20;
/// The longest path with its query: every letter of the longest search takes twelve bytes, and each of them three to write.
const MAX_URI: usize = 4096;
/// How many questions to the service are open at once, and how long another one waits for its turn.
const MAX_ASKING: usize = 16;
const TURN: Duration = Duration::from_secs(2);
/// How long the front page's answer is shared when no update comes: many load it, and it is asked for once.
const FRESH: Duration = Duration::from_secs(1);

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; \
                      base-uri 'none'; frame-ancestors 'none'";
const HEADERS: [(HeaderName, &str); 6] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
];

struct App {
    community: CommunityClient,
    name: String,
    live: Live,
    asking: Semaphore,
    front: Mutex<Option<Front>>,
}

/// What the front page shows, and what other pages take the order of the tiers from.
#[derive(Clone)]
struct Front {
    asked: Instant,
    // How many updates were sent before it was asked for.
    sent: u64,
    // A failure is kept as long, so that not everybody waits for the same one.
    answer: Result<Arc<(CommunityStats, Page<RankedProfile>)>, Problem>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (client, found) = environment::connect("standings").await?;
    let durable = environment::variable("DURABLE").unwrap_or_else(|| "reader-changes".to_owned());
    let address: SocketAddr =
        environment::variable("MUSTER__HTTP__ADDRESS").as_deref().unwrap_or("127.0.0.1:8081").parse()?;
    let community = client.community(found.community_id);
    let app = Arc::new(App {
        community: community.clone(),
        name: found.name.map_or_else(|| "A community".to_owned(), |name| name.to_string()),
        live: Live::new(),
        asking: Semaphore::new(MAX_ASKING),
        front: Mutex::new(None),
    });
    let following = live::follow(community, durable, found.changes, app.live.clone());
    let listener = TcpListener::bind(address).await?;
    eprintln!("the standings are at http://{}/", listener.local_addr()?);
    let serving = axum::serve(listener, router(app)).into_future();
    // Without a link there is nothing to show: whoever runs this starts it again.
    tokio::select! {
        served = serving => Ok(served?),
        ended = following => Err(ended.into()),
    }
}

fn router(app: Arc<App>) -> Router {
    let css = || file("text/css; charset=utf-8", include_str!("standings.css"));
    let js = || file("text/javascript; charset=utf-8", include_str!("standings.js"));
    Router::new()
        .route("/", get(board))
        .route("/search", get(search))
        .route("/members/{profile}", get(member))
        .route("/live", get(watch))
        .route("/readyz", get("ready\n"))
        .route("/standings.css", get(async move || css()))
        .route("/standings.js", get(async move || js()))
        .fallback(async |State(app): State<Arc<App>>| app.page(Err(Problem::no_page())))
        .with_state(Arc::clone(&app))
        .layer(from_fn(move |request: Request, next: Next| bounded(Arc::clone(&app), request, next)))
        .layer(map_response(secured))
}

/// Refuses what is longer than anything that is asked here, and what is no question.
async fn bounded(app: Arc<App>, request: Request, next: Next) -> Response {
    let length = request.uri().path_and_query().map_or(0, |both| both.as_str().len());
    if length > MAX_URI {
        let text = "The address is longer than any that leads somewhere.";
        return app.page(Err(Problem::new(StatusCode::URI_TOO_LONG, "Too long", text)));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let text = "These pages can only be read.";
        return app.page(Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "Not here", text)));
    }
    next.run(request).await
}

async fn secured(mut response: Response) -> Response {
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn file(kind: &'static str, content: &'static str) -> Response {
    ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "max-age=60")], content).into_response()
}

/// What an address may ask for. Anything else in it is passed over, as links from elsewhere add their own.
#[derive(Deserialize)]
struct Asked {
    cursor: Option<String>,
    query: Option<String>,
}

type Given = Result<Query<Asked>, QueryRejection>;

fn asked(given: Given) -> Result<Asked, Problem> {
    given.map(|Query(asked)| asked).map_err(|_| Problem::bad_request("The address is not written correctly."))
}

async fn board(State(app): State<Arc<App>>, given: Given) -> Response {
    let content = async {
        let Some(cursor) = asked(given)?.cursor else {
            let front = app.front().await?;
            return Ok(pages::board(&front.0, &front.1, true));
        };
        let cursor = Cursor::parse(cursor).map_err(|error| Problem::bad_request(error.to_string()))?;
        let ranked = app.ask(&Ranked::first(BOARD).after(cursor)).await?;
        Ok(pages::board(&app.front().await?.0, &ranked, false))
    };
    app.answer(content).await
}

async fn search(State(app): State<Arc<App>>, given: Given) -> Response {
    let content = async {
        let query = asked(given)?.query.unwrap_or_default();
        if query.trim().is_empty() {
            return Ok(pages::nothing_searched());
        }
        let parsed = SearchQuery::parse(query);
        let query = parsed.map_err(|error| Problem::bad_request(format!("What you look for {error}.")))?;
        let found = app.ask(&Search { query: query.clone(), limit: Rows::of(FOUND) }).await?;
        let ids = Keys::parse(found.items.iter().map(|profile| profile.profile_id).collect());
        let standings = match ids {
            Ok(ids) => app.ask(&Many::ProfileIds(ids)).await?.items,
            Err(_) => Vec::new(),
        };
        Ok(pages::found(&query, &found, &standings, &app.front().await?.0))
    };
    app.answer(content).await
}

async fn member(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    let content = async {
        let profile_id = ProfileId::from_str(&id).map_err(|_| Problem::no_member())?;
        let detail = app.ask(&Get::ProfileId(profile_id)).await?;
        let position = app.ask(&Position { profile_id }).await?;
        let badges = app.ask(&Badges { profile_id, limit: Rows::of(BADGES), cursor: None }).await?;
        let around = app.ask(&Around { profile_id, limit: Rows::of(AROUND) }).await?;
        Ok(pages::member(&detail, &position, &badges, &around, &app.front().await?.0))
    };
    app.answer(content).await
}

async fn watch(State(app): State<Arc<App>>) -> Response {
    match app.live.watch() {
        Some(events) => events.into_response(),
        None => app.page(Err(Problem::busy())),
    }
}

impl App {
    /// Asks the service, when it is this question's turn.
    async fn ask<E: Endpoint>(&self, question: &E) -> Result<E::Answer, Problem> {
        let turn = timeout(TURN, self.asking.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(Problem::busy()) };
        Ok(self.community.ask(question).await?)
    }

    /// What the front page shows. Whoever comes while it is asked for waits for the same answer.
    async fn front(&self) -> Result<Arc<(CommunityStats, Page<RankedProfile>)>, Problem> {
        // What is asked for after this is new enough, whatever is sent while it waits.
        let sent = self.live.sent();
        let Ok(mut front) = timeout(TURN, self.front.lock()).await else { return Err(Problem::busy()) };
        if let Some(known) = &*front
            && known.sent >= sent
            && known.asked.elapsed() < FRESH
        {
            return known.answer.clone();
        }
        let sent = self.live.sent();
        let answer = async {
            let stats = self.ask(&Stats {}).await?;
            Ok(Arc::new((stats, self.ask(&Ranked::first(BOARD)).await?)))
        };
        let answer = answer.await;
        *front = Some(Front { asked: Instant::now(), sent, answer: answer.clone() });
        answer
    }

    async fn answer(&self, content: impl Future<Output = Result<Content, Problem>>) -> Response {
        self.page(content.await)
    }

    fn page(&self, content: Result<Content, Problem>) -> Response {
        let (status, retry_after, content) = match content {
            Ok(content) => (StatusCode::OK, None, content),
            Err(problem) => (problem.status, problem.retry_after, pages::problem(&problem)),
        };
        let page = pages::page(&self.name, content);
        let mut response = (status, [(CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response();
        if let Some(wait) = retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        response
    }
}
