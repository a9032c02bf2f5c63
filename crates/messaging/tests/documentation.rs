//! `docs/api.md` says what the code does: its tables are read and held to it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use muster_domain::{
    Award, BadgeKind, BadgeStanding, CommunityId, CommunityName, DirectoryPage, KindCount, Limit,
    MaxClockSkew, Position, ProfileDetail, Progress, Rank, RankedProfile, Stats, Tenure, TenuredProfile,
    TierCount, TierThreshold, TimeBounds,
};
use muster_messaging::endpoint::Endpoint;
use muster_messaging::events::envelope::{self, DEFAULT_MAX_BYTES, Decoded, EventBounds};
use muster_messaging::events::stream::{DEAD_LETTERS, DEAD_SUBJECT, EVENTS, EVENTS_SUBJECTS};
use muster_messaging::events::{dead_letter, stream::StreamBounds};
use muster_messaging::request::{CALLER, TRACEPARENT};
use muster_messaging::wire::answer::{Answer, Export};
use muster_messaging::wire::error::{ErrorBody, ErrorCode, ErrorFields, MAX_REQUEST};
use muster_messaging::wire::query::{
    Caller, DirectoryPlace, DirectoryQuery, MAX_PAGED_ROWS, Query, Question,
};
use serde_json::Value;
use time::OffsetDateTime;
use time::macros::datetime;
use uuid::Uuid;

mod samples;

use samples::{badge, change, page, profile, profile_id, tier};

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

/// The text without what stands in parentheses, which explains a field and names none.
fn plain(text: &str) -> String {
    let mut depth = 0;
    text.chars()
        .filter(|&letter| {
            depth += i32::from(letter == '(');
            let kept = depth == 0;
            depth -= i32::from(letter == ')');
            kept
        })
        .collect()
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

/// An answer with every field that it may have.
fn sample(endpoint: Endpoint) -> Answer {
    let rank = Rank::FIRST;
    let kind = || BadgeKind::parse("first_blood").unwrap();
    match endpoint {
        Endpoint::ProfilesRanked | Endpoint::ProfilesAround => {
            Answer::Ranked(page(RankedProfile { profile: profile(), rank }))
        }
        Endpoint::ProfilesGet => Answer::Detail(Box::new(ProfileDetail {
            profile: profile(),
            rank,
            badge_rank: rank,
            tenure: Tenure::Og,
        })),
        Endpoint::ProfilesPosition => Answer::Position(Position {
            profile_id: profile_id(),
            rank,
            conviction: profile().conviction,
            distance_above: None,
            distance_below: None,
            next_tier: None,
            distance_to_next_tier: None,
            distance_to_entry: None,
            at_risk: false,
        }),
        Endpoint::ProfilesActive | Endpoint::ProfilesSearch => Answer::Profiles(page(profile())),
        Endpoint::ProfilesBadges => Answer::Badges(page(badge())),
        Endpoint::BadgesLeaderboard => {
            Answer::Leaderboard(page(BadgeStanding { profile: profile(), badge_rank: rank }))
        }
        Endpoint::BadgesKinds => Answer::Kinds(page(KindCount {
            kind: kind(),
            holders: 1,
            first_awarded_at: datetime!(2026-02-03 04:05:06 UTC),
        })),
        Endpoint::TiersProgression => {
            Answer::Progression(page(Progress { profile: profile(), next_tier: tier("naib"), distance: 1 }))
        }
        Endpoint::TiersChanges => Answer::Changes(page(change())),
        Endpoint::TiersThreshold => Answer::Threshold(TierThreshold {
            entry_rank: None,
            score: None,
            eligible: 0,
            waiting: 0,
            gap: None,
        }),
        Endpoint::DirectoryList => Answer::Directory {
            page: DirectoryPage {
                items: vec![TenuredProfile { profile: profile(), tenure: Tenure::Og }],
                next: None,
                limit: 10,
                total: 1,
            },
            number: NonZeroU32::new(1),
        },
        Endpoint::CommunityStats => Answer::Stats(Stats {
            members: 1,
            tiers: vec![TierCount { tier: None, members: 1 }],
            conviction_total: 0,
            badges: 0,
            active_this_week: 0,
            new_this_week: 0,
            promotions_this_week: 0,
            badges_this_week: 0,
        }),
        Endpoint::AdminBadgesAward => Answer::Awarded(Award { badge: badge(), created: true }),
        Endpoint::AdminBadgesRevoke => Answer::Revoked(badge()),
        Endpoint::AdminProfilesHide | Endpoint::AdminProfilesShow => Answer::Visibility(Box::new(profile())),
        Endpoint::AdminProfilesExport => Answer::Export(Box::new(Export {
            profile: profile(),
            badges: vec![badge()],
            tier_changes: vec![change()],
            next: None,
        })),
        Endpoint::AdminProfilesErase => Answer::Erased(profile_id()),
        Endpoint::AdminRatelimitClear => Answer::Cleared(1),
        Endpoint::CommunitiesFind => Answer::Community {
            community: CommunityId::new(Uuid::from_u128(1)),
            name: CommunityName::parse("Arrakis").ok(),
            active: true,
        },
    }
}

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

fn named(text: &str) -> BTreeSet<String> {
    code(text).into_iter().map(str::to_owned).collect()
}

/// The fields that a sentence such as "A badge is `badge_id`, `kind`." gives to what it is about.
fn fields_of(what: &str) -> BTreeSet<String> {
    let (_, fields) = API.split_once(&format!("A {what} is `")).unwrap();
    let (fields, _) = fields.split_once('.').unwrap();
    named(&format!("`{fields}"))
}

#[test]
fn every_answer_has_the_fields_that_are_documented_and_no_other() {
    let rows: BTreeMap<String, String> = table("Endpoints")
        .into_iter()
        .map(|row| (row[0].trim_matches('`').to_owned(), row[2].clone()))
        .collect();
    let documented = |endpoint: Endpoint| {
        let answer = plain(&rows[endpoint.name()]);
        let mut fields = named(&answer);
        for word in answer.split([' ', ',', ';', ':']) {
            match word {
                "profile" | "profiles" => fields.append(&mut fields_of("profile")),
                "badge" | "badges" => fields.append(&mut fields_of("badge")),
                _ => {}
            }
        }
        fields
    };
    let (_, of_a_page) = API.split_once("**Page:** `").unwrap();
    let of_a_page: BTreeSet<String> = of_a_page
        .split('`')
        .next()
        .unwrap()
        .split("\":")
        .filter_map(|before| before.rsplit_once('"'))
        .map(|(_, field)| field.to_owned())
        .collect();
    for endpoint in Endpoint::ALL {
        let answer: Value = serde_json::from_slice(&sample(*endpoint).to_json().unwrap()).unwrap();
        let mut real = keys(&answer);
        let is_page = answer.get("items").is_some();
        assert_eq!(is_page, rows[endpoint.name()].starts_with("page of "), "{endpoint}");
        if let Some(items) = answer.get("items") {
            assert!(of_a_page.is_subset(&real), "{endpoint}: {real:?}");
            real = &(&real - &of_a_page) | &keys(&items[0]);
        }
        assert_eq!(documented(*endpoint), real, "{endpoint}");
        match endpoint {
            Endpoint::AdminProfilesExport => {
                for (field, of) in [
                    ("profile", Endpoint::AdminProfilesShow),
                    ("badges", Endpoint::AdminBadgesRevoke),
                    ("tier_changes", Endpoint::TiersChanges),
                ] {
                    let held = answer[field].get(0).unwrap_or(&answer[field]);
                    assert_eq!(documented(of), keys(held), "{endpoint}: {field}");
                }
            }
            Endpoint::CommunityStats => {
                let (_, held) = rows[endpoint.name()].split_once("`tiers` (").unwrap();
                assert_eq!(named(held.split(')').next().unwrap()), keys(&answer["tiers"][0]));
            }
            _ => {}
        }
    }
}

#[test]
fn an_error_has_the_fields_that_are_documented_and_no_other() {
    let error = ErrorFields {
        code: ErrorCode::Internal,
        message: String::new(),
        field: Some(String::new()),
        retry_after_ms: Some(1),
        request_id: Some(Uuid::nil()),
    };
    let body = serde_json::to_value(ErrorBody { error }).unwrap();
    let (_, section) = API.split_once("\n## Errors\n").unwrap();
    let (_, example) = section.split_once("a body\n`").unwrap();
    let example: Value = serde_json::from_str(example.split('`').next().unwrap()).unwrap();
    assert_eq!(keys(&example), keys(&body));
    // Some codes alone have the others, and the table says which.
    let named: BTreeSet<String> = table("Errors").iter().flat_map(|row| named(&row[2])).collect();
    let real = keys(&body["error"]);
    assert!(keys(&example["error"]).is_subset(&real));
    assert_eq!(&keys(&example["error"]) | &named, real);
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
        let times = TimeBounds::at(OffsetDateTime::now_utc(), MaxClockSkew::default());
        let bounds = EventBounds { max_bytes: DEFAULT_MAX_BYTES, times };
        let subject = format!("events.{event_type}");
        !matches!(envelope::decode(&subject, body.as_bytes(), bounds), Ok(Decoded::Unknown { .. }))
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
