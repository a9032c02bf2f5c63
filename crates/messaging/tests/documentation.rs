//! `docs/api.md` and what endpoints say of themselves, held to what the code does.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use muster_domain::{
    Award, BadgeKind, BadgeStanding, CommunityId, CommunityName, DirectoryPage, EventType, KindCount,
    Position, ProfileDetail, Progress, Rank, RankedProfile, Stats, Tenure, TenuredProfile, TierCount,
    TierThreshold,
};
use muster_messaging::api::{
    Caller, ENDPOINTS, Endpoint, ErrorBody, ErrorCode, ErrorFields, MAX_REQUEST, Question, admin, badges,
    community, directory, profiles, tiers,
};
use muster_messaging::events::subjects::{DEAD_LETTERS, DEAD_SUBJECT, EVENTS, EVENTS_SUBJECTS};
use muster_messaging::events::{dead_letter, stream::StreamBounds};
use muster_messaging::request::{CALLER, TRACEPARENT};
use serde_json::{Map, Value, json};
use time::macros::datetime;
use uuid::Uuid;

mod samples;

use samples::{badge, change, export, page, profile, profile_id, tier};

const API: &str = include_str!("../../../docs/api.md");
const DEFAULTS: &str = include_str!("../../worker/src/defaults.toml");

/// A request that gives only what must be given.
fn least(endpoint: &str) -> Map<String, Value> {
    let id = "6f1c2a0e-8f1d-4f7e-9d55-1a2b3c4d5e6f";
    let given = match endpoint {
        "profiles.search" => json!({"query": "a"}),
        "admin.badges.award" | "admin.badges.revoke" => json!({"profile_id": id, "kind": "k"}),
        "communities.find" => json!({"guild_id": "1"}),
        name if name.starts_with("admin.profiles.") => json!({"profile_id": id}),
        "profiles.get" | "profiles.position" | "profiles.around" | "profiles.badges" => {
            json!({"profile_id": id})
        }
        "profiles.many" => json!({"profile_ids": [id]}),
        _ => json!({}),
    };
    given.as_object().unwrap().clone()
}

#[test]
fn every_endpoint_reads_each_field_that_it_lists_and_needs_those_that_are_required() {
    let community = Some(CommunityId::new(Uuid::from_u128(1)));
    for endpoint in ENDPOINTS {
        let parse = |body: &Map<String, Value>| {
            Question::parse(endpoint, community, &serde_json::to_vec(body).unwrap())
        };
        parse(&least(endpoint.name)).unwrap();
        for field in endpoint.fields {
            let mut body = least(endpoint.name);
            body.insert(field.name.to_owned(), json!({}));
            let refused = parse(&body).unwrap_err();
            assert_eq!(refused.field(), Some(field.name), "{endpoint}: {refused}");
            let mut body = least(endpoint.name);
            body.remove(field.name);
            assert!(!field.required || parse(&body).is_err(), "{endpoint}: {}", field.name);
        }
    }
}

#[test]
fn an_endpoint_as_json_says_all_of_itself() {
    let limit = json!({
        "name": "limit", "form": "integer", "required": false, "default": 10, "cap": 1000,
        "help": "How many at most, that one among them.",
    });
    let profile_id = json!({
        "name": "profile_id", "form": "UUID", "required": true, "default": null, "cap": null,
        "help": "Around whom.",
    });
    let around = json!({
        "name": "profiles.around", "pattern": "muster.v1.*.profiles.around", "admin": false, "repeatable": true,
        "may_lag": false, "help": "The members ranked around one.", "fields": [profile_id, limit],
        "answer": "page of the profiles ranked around that one, itself among them, then earliest joined, each with `rank`",
    });
    assert_eq!(serde_json::to_value(profiles::Around::DESCRIPTION).unwrap(), around);
    let all = serde_json::to_value(ENDPOINTS).unwrap();
    let of = |name: &str, key: &str| {
        let endpoint = all.as_array().unwrap().iter().find(|endpoint| endpoint["name"] == name).unwrap();
        endpoint[key].clone()
    };
    assert_eq!(of("directory.list", "fields")[1]["default"], "nym");
    assert_eq!(of("communities.find", "pattern"), "muster.v1.communities.find");
    for (name, admin, repeatable) in [
        ("admin.badges.award", true, false),
        ("admin.badges.revoke", true, false),
        ("admin.profiles.erase", true, false),
        ("admin.ratelimit.clear", true, false),
    ] {
        assert_eq!((of(name, "admin"), of(name, "repeatable")), (admin.into(), repeatable.into()), "{name}");
    }
}

#[test]
fn lists_may_lag_and_nothing_else() {
    let (_, lag) = API.split_once("**Lag:**").unwrap();
    let (_, lists) = lag.split_once("The lists are").unwrap();
    let (lists, _) = lists.split_once(". ").unwrap();
    let told: BTreeSet<&str> = lists.split('`').skip(1).step_by(2).collect();
    let may: BTreeSet<&str> =
        ENDPOINTS.iter().filter(|endpoint| endpoint.may_lag).map(|endpoint| endpoint.name).collect();
    assert_eq!(may, told);
    for endpoint in ENDPOINTS.iter().filter(|endpoint| endpoint.may_lag) {
        let pages = endpoint.fields.iter().any(|field| field.name == "limit");
        assert!(
            pages && endpoint.is_of_community && !endpoint.is_admin() && endpoint.is_repeatable,
            "{endpoint}"
        );
    }
}

/// An answer with every field that it may have, by its endpoint's name.
fn sample<E: Endpoint>(answer: impl Into<E::Answer>) -> (&'static str, Value) {
    (E::NAME, serde_json::to_value(answer.into()).unwrap())
}

fn samples() -> BTreeMap<&'static str, Value> {
    let rank = Rank::FIRST;
    let ranked = || page(RankedProfile { profile: profile(), rank });
    let kind = KindCount {
        kind: BadgeKind::parse("first_blood").unwrap(),
        holders: 1,
        first_awarded_at: datetime!(2026-02-03 04:05:06 UTC),
    };
    let position = Position {
        profile_id: profile_id(),
        rank,
        conviction: profile().conviction,
        distance_above: None,
        distance_below: None,
        next_tier: None,
        distance_to_next_tier: None,
        distance_to_entry: None,
        at_risk: false,
    };
    let directory = DirectoryPage {
        items: vec![TenuredProfile { profile: profile(), tenure: Tenure::Og }],
        next: None,
        limit: 10,
        total: 1,
    };
    let first = directory::List {
        start: NonZeroU32::new(1).map(directory::Start::Page),
        ..directory::List::default()
    };
    let stats = Stats {
        members: 1,
        tiers: vec![TierCount { tier: None, members: 1 }],
        conviction_total: 0,
        badges: 0,
        active_this_week: 0,
        new_this_week: 0,
        promotions_this_week: 0,
        badges_this_week: 0,
    };
    let threshold = TierThreshold { entry_rank: None, score: None, eligible: 0, waiting: 0, gap: None };
    let detail = || ProfileDetail { profile: profile(), rank, badge_rank: rank, tenure: Tenure::Og };
    let found = community::Community {
        community_id: CommunityId::new(Uuid::from_u128(1)),
        name: CommunityName::parse("Arrakis").ok(),
        active: true,
        changes: 42,
    };
    BTreeMap::from([
        sample::<profiles::Ranked>(ranked()),
        sample::<profiles::Get>(detail()),
        sample::<profiles::Position>(position),
        sample::<profiles::Around>(ranked()),
        sample::<profiles::Many>(page(detail())),
        sample::<profiles::Active>(page(profile())),
        sample::<profiles::Search>(page(profile())),
        sample::<profiles::Badges>(page(badge())),
        sample::<badges::Leaderboard>(page(BadgeStanding { profile: profile(), badge_rank: rank })),
        sample::<badges::Kinds>(page(kind)),
        sample::<tiers::Progression>(page(Progress {
            profile: profile(),
            next_tier: tier("naib"),
            distance: 1,
        })),
        sample::<tiers::Changes>(page(change())),
        sample::<tiers::Threshold>(threshold),
        sample::<directory::List>(first.answer(directory)),
        sample::<community::Stats>(stats),
        sample::<admin::AwardBadge>(Award { badge: badge(), created: true }),
        sample::<admin::RevokeBadge>(badge()),
        sample::<admin::HideProfile>(profile()),
        sample::<admin::ShowProfile>(profile()),
        sample::<admin::ExportProfile>(export()),
        sample::<admin::EraseProfile>(admin::ErasedProfile { profile_id: profile_id(), erased: true }),
        sample::<admin::ClearRateLimit>(admin::ClearedCounters { cleared: 1 }),
        sample::<community::Find>(found),
    ])
}

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

/// What stands between backquotes.
fn named(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
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

/// The fields that a sentence such as "A badge is `badge_id`, `kind`." gives to what it is about.
fn fields_of(what: &str) -> BTreeSet<String> {
    let (_, fields) = API.split_once(&format!("A {what} is `")).unwrap();
    let (fields, _) = fields.split_once('.').unwrap();
    named(&format!("`{fields}"))
}

/// The fields of an answer that its endpoint's documentation names.
fn documented(answer: &str) -> BTreeSet<String> {
    let answer = plain(answer);
    let mut fields = named(&answer);
    for word in answer.split([' ', ',', ';', ':']) {
        match word {
            "profile" | "profiles" => fields.append(&mut fields_of("profile")),
            "badge" | "badges" => fields.append(&mut fields_of("badge")),
            _ => {}
        }
    }
    fields
}

#[test]
fn every_answer_has_the_fields_that_its_documentation_names_and_no_other() {
    let samples = samples();
    let answers: BTreeMap<&str, &str> =
        ENDPOINTS.iter().map(|endpoint| (endpoint.name, endpoint.answer)).collect();
    assert!(samples.keys().eq(answers.keys()), "a sample of each endpoint");
    let of_a_page = BTreeSet::from(["items", "next", "limit"].map(str::to_owned));
    assert!(API.contains(r#"**Page:** `{"items": [...], "next": "<cursor>" | null, "limit":"#));
    for (&endpoint, answer) in &samples {
        let mut real = keys(answer);
        let is_page = answer.get("items").is_some();
        assert_eq!(is_page, answers[endpoint].starts_with("page of "), "{endpoint}");
        if let Some(items) = answer.get("items") {
            assert!(of_a_page.is_subset(&real), "{endpoint}: {real:?}");
            real = &(&real - &of_a_page) | &keys(&items[0]);
        }
        assert_eq!(documented(answers[endpoint]), real, "{endpoint}");
    }
    let export = &samples["admin.profiles.export"];
    for (field, of) in [
        (&export["profile"], "admin.profiles.show"),
        (&export["badges"][0], "admin.badges.revoke"),
        (&export["tier_changes"][0], "tiers.changes"),
    ] {
        assert_eq!(documented(answers[of]), keys(field), "{of}");
    }
    for (field, after) in [("operations", "no badges: "), ("additions", "summed: ")] {
        let (_, explained) = answers["admin.profiles.export"].split_once(after).unwrap();
        assert_eq!(named(explained.split(')').next().unwrap()), keys(&export[field][0]), "{field}");
    }
    let (_, of_a_tier) = answers["community.stats"].split_once("`tiers` (").unwrap();
    let tiers = &samples["community.stats"]["tiers"];
    assert_eq!(named(of_a_tier.split(')').next().unwrap()), keys(&tiers[0]));
}

#[test]
fn errors_are_as_documented() {
    for code in ErrorCode::ALL {
        let row = format!("| `{code}` | {} |", code.number());
        assert!(API.contains(&row), "docs/api.md has no row {row}");
    }
    assert!(API.contains(&format!("the request is over {} KiB", MAX_REQUEST / 1024)));
    let error = ErrorFields {
        code: ErrorCode::Internal,
        message: String::new(),
        field: Some(String::new()),
        retry_after_ms: Some(1),
        request_id: Some(Uuid::nil()),
    };
    let body = serde_json::to_value(ErrorBody { error }).unwrap();
    assert_eq!(keys(&body), BTreeSet::from(["error".to_owned()]));
    assert!(API.contains(r#"`{"error": {"code": "...", "message": "...", "field": "..."}}`"#));
    for field in keys(&body["error"]) {
        let is_named = [format!("`{field}`"), format!("\"{field}\"")].iter().any(|name| API.contains(name));
        assert!(is_named, "docs/api.md does not name {field}");
    }
}

#[test]
fn every_type_of_event_is_documented() {
    for event_type in EventType::ALL {
        let row = format!("| `{}` |", event_type.as_str());
        assert!(API.contains(&row), "docs/api.md has no row {row}");
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
