//! `docs/api.md` says what the code does: its tables are read and held to it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use muster_domain::{CommunityId, Limit};
use muster_messaging::endpoint::Endpoint;
use muster_messaging::events::envelope::{self, Decoded};
use muster_messaging::events::stream::{DEAD_LETTERS, DEAD_SUBJECT, EVENTS, EVENTS_SUBJECTS};
use muster_messaging::events::{dead_letter, stream::StreamBounds};
use muster_messaging::request::{CALLER, TRACEPARENT};
use muster_messaging::wire::error::{ErrorCode, MAX_REQUEST};
use muster_messaging::wire::query::{
    Caller, DirectoryPlace, DirectoryQuery, MAX_PAGED_ROWS, Query, Question,
};
use uuid::Uuid;

const API: &str = include_str!("../../../docs/api.md");
const DEFAULTS: &str = include_str!("../../worker/src/defaults.toml");

/// The rows of the table below a heading, each as its cells without the backquotes around a first one.
fn table(heading: &str) -> Vec<Vec<String>> {
    let (_, below) = API.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = below.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        row.trim_matches('|')
            .split(" | ")
            .map(|cell| cell.trim().trim_matches('|').trim().to_owned())
            .collect()
    })
    .collect()
}

/// What stands between backquotes.
fn code(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn parse(endpoint: Endpoint, body: &str) -> Result<Question, String> {
    let community = Some(CommunityId::new(Uuid::from_u128(1)));
    Question::parse(endpoint, community, body.as_bytes())
        .map(|(question, _)| question)
        .map_err(|error| error.to_string())
}

fn numbers<const MAX: u32>(limit: Limit<MAX>) -> Option<(u32, u32)> {
    Some((limit.get(), Limit::<MAX>::MAX.get()))
}

/// The page size of a question and its cap, if it has one.
fn limit(question: &Question) -> Option<(u32, u32)> {
    let Question::Within(_, query) = question else { return None };
    match query {
        Query::ProfilesRanked(it)
        | Query::ProfilesActive(it)
        | Query::ProfilesBadges { page: it, .. }
        | Query::BadgesLeaderboard(it)
        | Query::BadgesKinds(it)
        | Query::TiersProgression(it)
        | Query::TiersChanges(it) => numbers(it.limit),
        Query::ProfilesAround { limit, .. } => numbers(*limit),
        Query::ProfilesSearch { limit, .. } => numbers(*limit),
        Query::DirectoryList(it) => numbers(it.limit),
        _ => None,
    }
}

/// A request that gives only what must be given.
fn least(fields: &BTreeSet<&str>) -> String {
    let id = "6f1c2a0e-8f1d-4f7e-9d55-1a2b3c4d5e6f";
    let needed: BTreeMap<&str, &str> =
        [("profile_id", id), ("query", "a"), ("kind", "k"), ("guild_id", "1")].into_iter().collect();
    let given = needed.iter().filter(|(field, _)| fields.contains(*field));
    let given: serde_json::Map<String, serde_json::Value> =
        given.map(|(field, value)| ((*field).to_owned(), (*value).into())).collect();
    serde_json::Value::Object(given).to_string()
}

#[test]
fn every_endpoint_has_its_fields_default_and_cap() {
    let rows: BTreeMap<String, (String, String)> = table("Endpoints")
        .into_iter()
        .map(|row| (row[0].trim_matches('`').to_owned(), (row[1].clone(), row[2].clone())))
        .collect();
    let named: BTreeSet<&str> = rows.keys().map(String::as_str).collect();
    assert_eq!(named, Endpoint::ALL.iter().map(|endpoint| endpoint.name()).collect());
    // What stands in parentheses explains a field and names none.
    let plain = |request: &str| -> String {
        let mut depth = 0;
        request
            .chars()
            .filter(|&letter| {
                depth += i32::from(letter == '(');
                let kept = depth == 0;
                depth -= i32::from(letter == ')');
                kept
            })
            .collect()
    };
    let requests: BTreeMap<&str, String> =
        rows.iter().map(|(name, (request, _))| (name.as_str(), plain(request))).collect();
    let all: BTreeSet<&str> = requests.values().flat_map(|request| code(request)).collect();
    for endpoint in Endpoint::ALL {
        let documented: BTreeSet<&str> = code(&requests[endpoint.name()]).into_iter().collect();
        for field in &all {
            let answer = parse(*endpoint, &format!("{{\"{field}\": null}}"));
            let unknown = answer.err().is_some_and(|error| error.contains("is not a field of this request"));
            assert_eq!(unknown, !documented.contains(field), "{endpoint}: {field}");
        }
        let question = parse(*endpoint, &least(&documented)).unwrap();
        let stated = rows[endpoint.name()].0.split_once("`limit` (").map(|(_, rest)| {
            let (numbers, _) = rest.split_once(')').unwrap();
            let (default, cap) = numbers.split_once("; ").unwrap();
            (default.parse::<u32>().unwrap(), cap.parse::<u32>().unwrap())
        });
        assert_eq!(stated, limit(&question), "{endpoint}");
    }
}

#[test]
fn the_directory_is_as_documented() {
    let Question::Within(_, Query::DirectoryList(DirectoryQuery { sort, .. })) =
        parse(Endpoint::DirectoryList, "{}").unwrap()
    else {
        panic!("a question for the directory")
    };
    assert_eq!(sort, muster_domain::DirectorySort::Nym);
    for sort in ["nym", "tenure", "badges"] {
        for direction in ["asc", "desc"] {
            parse(Endpoint::DirectoryList, &format!(r#"{{"sort": "{sort}", "direction": "{direction}"}}"#))
                .unwrap();
        }
    }
    let last = MAX_PAGED_ROWS / 1000;
    let page =
        |number: u32| parse(Endpoint::DirectoryList, &format!(r#"{{"limit": 1000, "page": {number}}}"#));
    assert!(matches!(
        page(last),
        Ok(Question::Within(
            _,
            Query::DirectoryList(DirectoryQuery { place: DirectoryPlace::Page { .. }, .. })
        ))
    ));
    assert!(page(last + 1).is_err());
    assert_eq!(MAX_PAGED_ROWS, 10_000);
    assert!(API.contains("`page` reaches the first 10,000 rows"));
}

#[test]
fn every_error_has_its_number() {
    let rows = table("Errors");
    let codes = [
        ErrorCode::InvalidRequest,
        ErrorCode::InvalidCursor,
        ErrorCode::Forbidden,
        ErrorCode::NotFound,
        ErrorCode::PayloadTooLarge,
        ErrorCode::RateLimited,
        ErrorCode::Unavailable,
        ErrorCode::Internal,
    ];
    let documented: Vec<(String, String)> =
        rows.iter().map(|row| (row[0].trim_matches('`').to_owned(), row[1].clone())).collect();
    let real: Vec<(String, String)> =
        codes.iter().map(|code| (code.as_str().to_owned(), code.number().to_string())).collect();
    assert_eq!(documented, real);
    assert!(rows[4][2].contains(&format!("{} KiB", MAX_REQUEST / 1024)));
}

#[test]
fn every_type_of_event_is_known_and_every_known_one_is_documented() {
    let documented: BTreeSet<String> =
        table("Events").iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    let known = |event_type: &str| {
        let body = format!(r#"{{"event_id": "x", "event_type": "{event_type}", "timestamp": 1}}"#);
        !matches!(
            envelope::decode(&format!("events.{event_type}"), body.as_bytes()),
            Ok(Decoded::Unknown { .. })
        )
    };
    for event_type in &documented {
        assert!(known(event_type), "{event_type}");
    }
    for part in ["guild", "member", "score", "activity", "badge", "role", "profile"] {
        for verb in ["join", "update", "leave", "set", "add", "award", "revoke", "create", "delete", "remove"]
        {
            let event_type = format!("{part}.{verb}");
            assert_eq!(known(&event_type), documented.contains(&event_type), "{event_type}");
        }
    }
}

/// The default of a configuration key.
fn default(key: &str) -> &str {
    let line = DEFAULTS.lines().find_map(|line| line.strip_prefix(&format!("{key} = ")));
    line.unwrap()
}

#[test]
fn names_and_bounds_are_as_documented() {
    for text in [
        format!("`{CALLER}` (1 to {} characters)", Caller::MAX),
        format!("`{TRACEPARENT}`"),
        format!("`{EVENTS}` (`{EVENTS_SUBJECTS}`)"),
        format!("`{DEAD_LETTERS}`"),
        format!("`{DEAD_SUBJECT}`"),
        format!("`{}`", dead_letter::REASON),
        format!("`{}`", dead_letter::SUBJECT),
        format!("`{}`", dead_letter::SEQUENCE),
        format!("`{}`", dead_letter::TIME),
        format!("`{}`", dead_letter::DELIVERIES),
        format!("at most {} bytes", muster_domain::Cursor::MAX),
        format!("may ask {} times a second", default("community_per_second")),
        format!("a caller in it {} times", default("caller_per_second")),
    ] {
        assert!(API.replace('\n', " ").contains(&text), "docs/api.md does not say {text}");
    }
    assert_eq!(StreamBounds::default().replicas, 1);
}
