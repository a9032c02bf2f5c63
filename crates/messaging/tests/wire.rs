//! Golden texts: what stands in each request and answer, byte for byte.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use muster_domain::{
    Award, Awarder, BadgeKind, BadgeStanding, CommunityId, CommunityName, Conviction, Cursor, Direction,
    DirectoryPage, DirectorySort, GuildId, KindCount, Lookup, Nym, Page, PageLimit, Position, ProfileDetail,
    Progress, Rank, RankedProfile, Reason, ScoreTier, SearchQuery, Stats, SuggestLimit, Tenure,
    TenuredProfile, TierCount, TierThreshold, UserId, Wallet,
};
use muster_messaging::endpoint::Endpoint;
use muster_messaging::wire::answer::{self, Answer, Export};
use muster_messaging::wire::error::ErrorCode;
use muster_messaging::wire::query::{DirectoryPlace, DirectoryQuery, PageQuery, Query, Question};
use muster_messaging::wire::request::{
    AroundRequest, AwardRequest, BadgesRequest, ClearRequest, DirectoryRequest, EmptyRequest, ExportRequest,
    FindRequest, GetRequest, PageRequest, ProfileRequest, RevokeRequest, SearchRequest,
};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::num::NonZeroU32;
use time::macros::datetime;
use uuid::Uuid;

mod samples;

use samples::{badge, change, page, profile, profile_id, tier};

fn community() -> CommunityId {
    CommunityId::new(Uuid::from_u128(0xC0))
}

const PROFILE: &str = r#""profile_id":"00000000-0000-0000-0000-000000000001","user_id":"1001","wallet":"0xAB","nym":"Chani \"Sihaya\"","conviction":640,"activity":12,"tier":"sietch","badge_count":2,"joined_at":"2026-01-02T01:04:05.678Z","last_active_at":null"#;

const BADGE: &str = r#""badge_id":"00000000-0000-0000-0000-00000000000b","profile_id":"00000000-0000-0000-0000-000000000001","kind":"first_blood","reason":null,"awarded_by":"stilgar","awarded_at":"2026-02-03T04:05:06Z""#;
const REVOKED: &str = r#""revoked_at":"2026-03-04T05:06:07Z","revoked_by":null,"revoke_reason":"by mistake""#;
const CHANGE: &str = r#"{"profile_id":"00000000-0000-0000-0000-000000000001","nym":"Chani \"Sihaya\"","from":null,"to":"sietch","movement":"promotion","at":"2026-04-05T06:07:08Z"}"#;

fn paged(item: &str) -> String {
    format!(r#"{{"items":[{item}],"next":"AQI","limit":100}}"#)
}

/// The answer is written as the golden text, and the text, with a field of a later version, reads back to the same.
#[track_caller]
fn golden<T: DeserializeOwned + Serialize>(answer: &Answer, golden: &str) {
    assert_eq!(String::from_utf8(answer.to_json().unwrap()).unwrap(), golden);
    let later = golden.replacen('{', r#"{"of_a_later_version":[{"x":1}],"#, 1);
    let read: T = serde_json::from_str(&later).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), golden);
}

#[test]
fn pages_of_profiles() {
    let ranked = RankedProfile { profile: profile(), rank: Rank::below(1) };
    golden::<answer::Page<answer::Ranked>>(
        &Answer::Ranked(page(ranked)),
        &paged(&format!(r#"{{{PROFILE},"rank":2}}"#)),
    );
    golden::<answer::Page<answer::Profile>>(
        &Answer::Profiles(page(profile())),
        &paged(&format!("{{{PROFILE}}}")),
    );
    let standing = BadgeStanding { profile: profile(), badge_rank: Rank::FIRST };
    golden::<answer::Page<answer::Standing>>(
        &Answer::Leaderboard(page(standing)),
        &paged(&format!(r#"{{{PROFILE},"badge_rank":1}}"#)),
    );
    let progress = Progress { profile: profile(), next_tier: tier("sayyadina"), distance: 360 };
    golden::<answer::Page<answer::Progress>>(
        &Answer::Progression(page(progress)),
        &paged(&format!(r#"{{{PROFILE},"next_tier":"sayyadina","distance":360}}"#)),
    );
    golden::<answer::Page<answer::Profile>>(
        &Answer::Profiles(Page { items: Vec::new(), next: None, limit: 5 }),
        r#"{"items":[],"next":null,"limit":5}"#,
    );
}

#[test]
fn one_profile() {
    let detail = ProfileDetail {
        profile: profile(),
        rank: Rank::below(1),
        badge_rank: Rank::FIRST,
        tenure: Tenure::Veteran,
    };
    golden::<answer::Detail>(
        &Answer::Detail(Box::new(detail)),
        &format!(r#"{{{PROFILE},"rank":2,"badge_rank":1,"tenure":"veteran"}}"#),
    );
    golden::<answer::VisibleProfile>(
        &Answer::Visibility(Box::new(profile())),
        &format!(r#"{{{PROFILE},"visible":true}}"#),
    );
    let position = Position {
        profile_id: profile_id(),
        rank: Rank::below(1),
        conviction: Conviction::clamp(640),
        distance_above: Some(10),
        distance_below: None,
        next_tier: Some(ScoreTier { tier: tier("sayyadina"), from: Conviction::clamp(1000) }),
        distance_to_next_tier: Some(360),
        distance_to_entry: Some(0),
        at_risk: false,
    };
    golden::<answer::Position>(
        &Answer::Position(position),
        r#"{"profile_id":"00000000-0000-0000-0000-000000000001","rank":2,"conviction":640,"distance_above":10,"distance_below":null,"next_tier":"sayyadina","next_tier_at":1000,"distance_to_next_tier":360,"distance_to_entry":0,"at_risk":false}"#,
    );
}

#[test]
fn badges() {
    golden::<answer::Page<answer::Badge>>(&Answer::Badges(page(badge())), &paged(&format!("{{{BADGE}}}")));
    golden::<answer::Award>(
        &Answer::Awarded(Award { badge: badge(), created: false }),
        &format!(r#"{{{BADGE},"created":false}}"#),
    );
    golden::<answer::Revocable>(&Answer::Revoked(badge()), &format!("{{{BADGE},{REVOKED}}}"));
    let kind = KindCount {
        kind: BadgeKind::parse("first_blood").unwrap(),
        holders: 3,
        first_awarded_at: datetime!(2026-02-03 04:05:06 UTC),
    };
    golden::<answer::Page<answer::Kind>>(
        &Answer::Kinds(page(kind)),
        &paged(r#"{"kind":"first_blood","holders":3,"first_awarded_at":"2026-02-03T04:05:06Z"}"#),
    );
}

#[test]
fn tiers() {
    golden::<answer::Page<answer::Change>>(&Answer::Changes(page(change())), &paged(CHANGE));
    let threshold =
        TierThreshold { entry_rank: Some(Rank::below(68)), score: None, eligible: 3, waiting: 0, gap: None };
    golden::<answer::Threshold>(
        &Answer::Threshold(threshold),
        r#"{"entry_rank":69,"score":null,"eligible":3,"waiting":0,"gap":null}"#,
    );
}

#[test]
fn the_directory_and_the_community() {
    let directory = DirectoryPage {
        items: vec![TenuredProfile { profile: profile(), tenure: Tenure::Og }],
        next: None,
        limit: 10,
        total: 21,
    };
    let items =
        format!(r#""items":[{{{PROFILE},"tenure":"og"}}],"next":null,"limit":10,"total":21,"total_pages":3"#);
    golden::<answer::Directory>(
        &Answer::Directory { page: directory.clone(), number: None },
        &format!("{{{items}}}"),
    );
    golden::<answer::Directory>(
        &Answer::Directory { page: directory, number: NonZeroU32::new(3) },
        &format!(r#"{{{items},"page":3}}"#),
    );
    let stats = Stats {
        members: 5,
        tiers: vec![TierCount { tier: Some(tier("naib")), members: 4 }, TierCount { tier: None, members: 1 }],
        conviction_total: -7,
        badges: 1,
        active_this_week: 2,
        new_this_week: 3,
        promotions_this_week: 4,
        badges_this_week: 5,
    };
    golden::<answer::Stats>(
        &Answer::Stats(stats),
        r#"{"members":5,"tiers":[{"tier":"naib","members":4},{"tier":null,"members":1}],"conviction_total":-7,"badges":1,"active_this_week":2,"new_this_week":3,"promotions_this_week":4,"badges_this_week":5}"#,
    );
    golden::<answer::Community>(
        &Answer::Community {
            community: community(),
            name: Some(CommunityName::parse("Arrakis").unwrap()),
            active: true,
        },
        r#"{"community_id":"00000000-0000-0000-0000-0000000000c0","name":"Arrakis","active":true}"#,
    );
}

#[test]
fn what_operators_get() {
    let export =
        Export { profile: profile(), badges: vec![badge()], tier_changes: vec![change()], next: None };
    golden::<answer::PersonalData>(
        &Answer::Export(Box::new(export)),
        &format!(
            r#"{{"profile":{{{PROFILE},"visible":true}},"badges":[{{{BADGE},{REVOKED}}}],"tier_changes":[{CHANGE}],"next":null}}"#
        ),
    );
    golden::<answer::Erased>(
        &Answer::Erased(profile_id()),
        r#"{"profile_id":"00000000-0000-0000-0000-000000000001","erased":true}"#,
    );
    golden::<answer::Cleared>(&Answer::Cleared(9), r#"{"cleared":9}"#);
}

/// A client writes the golden text, and the service reads it as the question.
#[track_caller]
fn asks(endpoint: Endpoint, request: &impl Serialize, golden: &str, query: Query) {
    assert_eq!(serde_json::to_string(request).unwrap(), golden);
    let (question, _) = Question::parse(endpoint, Some(community()), golden.as_bytes()).unwrap();
    assert_eq!(question, Question::Within(community(), query));
}

fn limit(limit: i64) -> PageLimit {
    PageLimit::clamp(limit)
}

const BY_ID: &str = r#"{"profile_id":"00000000-0000-0000-0000-000000000001"}"#;

#[test]
fn requests_for_pages() {
    type OfPage = fn(PageQuery) -> Query;
    let endpoints: [(Endpoint, OfPage, i64); 6] = [
        (Endpoint::ProfilesRanked, Query::ProfilesRanked, 100),
        (Endpoint::ProfilesActive, Query::ProfilesActive, 5),
        (Endpoint::BadgesLeaderboard, Query::BadgesLeaderboard, 10),
        (Endpoint::BadgesKinds, Query::BadgesKinds, 100),
        (Endpoint::TiersProgression, Query::TiersProgression, 10),
        (Endpoint::TiersChanges, Query::TiersChanges, 5),
    ];
    for (endpoint, query, default) in endpoints {
        let first = query(PageQuery { limit: limit(default), cursor: None });
        asks(endpoint, &PageRequest::default(), "{}", first.clone());
        let (empty, clamped) = Question::parse(endpoint, Some(community()), b"").unwrap();
        assert_eq!(
            (empty, clamped),
            (Question::Within(community(), first), false),
            "an empty body is all defaults"
        );
        asks(
            endpoint,
            &PageRequest::first(5_000_000).after("AQI"),
            r#"{"limit":5000000,"cursor":"AQI"}"#,
            query(PageQuery { limit: limit(1000), cursor: Some(Cursor::parse("AQI").unwrap()) }),
        );
    }
}

#[test]
fn requests_about_profiles() {
    let id = ProfileRequest { profile_id: profile_id() };
    asks(Endpoint::ProfilesPosition, &id, BY_ID, Query::ProfilesPosition(profile_id()));
    asks(Endpoint::AdminProfilesHide, &id, BY_ID, Query::AdminProfilesHide(profile_id()));
    asks(Endpoint::AdminProfilesShow, &id, BY_ID, Query::AdminProfilesShow(profile_id()));
    asks(Endpoint::AdminProfilesErase, &id, BY_ID, Query::AdminProfilesErase(profile_id()));
    for (lookup, golden) in [
        (Lookup::ProfileId(profile_id()), BY_ID),
        (Lookup::UserId(UserId::parse("1001").unwrap()), r#"{"user_id":"1001"}"#),
        (Lookup::Wallet(Wallet::parse("0xAB").unwrap()), r#"{"wallet":"0xAB"}"#),
        (Lookup::Nym(Nym::parse("Chani").unwrap()), r#"{"nym":"Chani"}"#),
    ] {
        let request = GetRequest::from(lookup.clone());
        asks(Endpoint::ProfilesGet, &request, golden, Query::ProfilesGet(lookup));
    }
    asks(
        Endpoint::ProfilesAround,
        &AroundRequest { profile_id: profile_id(), limit: Some(3) },
        r#"{"profile_id":"00000000-0000-0000-0000-000000000001","limit":3}"#,
        Query::ProfilesAround { profile: profile_id(), limit: limit(3) },
    );
    asks(
        Endpoint::ProfilesSearch,
        &SearchRequest { query: "100%_\\".to_owned(), limit: Some(1000) },
        r#"{"query":"100%_\\","limit":1000}"#,
        Query::ProfilesSearch { query: SearchQuery::parse("100%_\\").unwrap(), limit: SuggestLimit::MAX },
    );
    asks(
        Endpoint::ProfilesBadges,
        &BadgesRequest { profile_id: profile_id(), page: PageRequest::default() },
        BY_ID,
        Query::ProfilesBadges { profile: profile_id(), page: PageQuery { limit: limit(100), cursor: None } },
    );
}

#[test]
fn requests_of_the_directory_and_the_community() {
    let directory =
        |sort, direction, place| DirectoryQuery { tier: None, sort, direction, limit: limit(10), place };
    asks(
        Endpoint::DirectoryList,
        &DirectoryRequest::default(),
        "{}",
        Query::DirectoryList(directory(DirectorySort::Nym, Direction::Asc, DirectoryPlace::Cursor(None))),
    );
    asks(
        Endpoint::DirectoryList,
        &DirectoryRequest { sort: Some(DirectorySort::Badges), page: Some(3), ..DirectoryRequest::default() },
        r#"{"sort":"badges","page":3}"#,
        Query::DirectoryList(directory(
            DirectorySort::Badges,
            Direction::Desc,
            DirectoryPlace::Page { number: NonZeroU32::new(3).unwrap(), skip: 20 },
        )),
    );
    let request = DirectoryRequest {
        tier: Some(tier("sietch")),
        sort: Some(DirectorySort::Tenure),
        direction: Some(Direction::Asc),
        limit: Some(-1),
        cursor: Some("AQI".to_owned()),
        page: None,
    };
    let query = DirectoryQuery {
        tier: Some(tier("sietch")),
        limit: limit(1),
        ..directory(
            DirectorySort::Tenure,
            Direction::Asc,
            DirectoryPlace::Cursor(Some(Cursor::parse("AQI").unwrap())),
        )
    };
    asks(
        Endpoint::DirectoryList,
        &request,
        r#"{"tier":"sietch","sort":"tenure","direction":"asc","limit":-1,"cursor":"AQI"}"#,
        Query::DirectoryList(query),
    );
    asks(Endpoint::CommunityStats, &EmptyRequest {}, "{}", Query::CommunityStats);
    asks(Endpoint::TiersThreshold, &EmptyRequest {}, "{}", Query::TiersThreshold);
    let find = FindRequest { guild_id: GuildId::parse("42").unwrap() };
    assert_eq!(serde_json::to_string(&find).unwrap(), r#"{"guild_id":"42"}"#);
    let (question, _) = Question::parse(Endpoint::CommunitiesFind, None, br#"{"guild_id":"42"}"#).unwrap();
    assert_eq!(question, Question::Find(GuildId::parse("42").unwrap()));
}

#[test]
fn requests_of_operators() {
    let kind = BadgeKind::parse("first_blood").unwrap();
    let reason = Reason::parse("spice").unwrap();
    asks(
        Endpoint::AdminBadgesAward,
        &AwardRequest {
            profile_id: profile_id(),
            kind: kind.clone(),
            reason: Some(reason.clone()),
            awarded_by: Some(Awarder::parse("stilgar").unwrap()),
        },
        r#"{"profile_id":"00000000-0000-0000-0000-000000000001","kind":"first_blood","reason":"spice","awarded_by":"stilgar"}"#,
        Query::AdminBadgesAward {
            profile: profile_id(),
            kind: kind.clone(),
            reason: Some(reason),
            by: Some(Awarder::parse("stilgar").unwrap()),
        },
    );
    asks(
        Endpoint::AdminBadgesRevoke,
        &RevokeRequest { profile_id: profile_id(), kind: kind.clone(), reason: None, revoked_by: None },
        r#"{"profile_id":"00000000-0000-0000-0000-000000000001","kind":"first_blood"}"#,
        Query::AdminBadgesRevoke { profile: profile_id(), kind, reason: None, by: None },
    );
    // Events go by the same rule: what is blank is none.
    for endpoint in [Endpoint::AdminBadgesAward, Endpoint::AdminBadgesRevoke] {
        let by = if endpoint == Endpoint::AdminBadgesAward { "awarded_by" } else { "revoked_by" };
        for blank in ["", " \u{3000}"] {
            let body = format!(
                r#"{{"profile_id":"{}","kind":"k","reason":"{blank}","{by}":"{blank}"}}"#,
                profile_id()
            );
            let (question, _) = Question::parse(endpoint, Some(community()), body.as_bytes()).unwrap();
            let (profile, kind) = (profile_id(), BadgeKind::parse("k").unwrap());
            let expected = match endpoint {
                Endpoint::AdminBadgesAward => {
                    Query::AdminBadgesAward { profile, kind, reason: None, by: None }
                }
                _ => Query::AdminBadgesRevoke { profile, kind, reason: None, by: None },
            };
            assert_eq!(question, Question::Within(community(), expected), "{body}");
        }
    }
    asks(
        Endpoint::AdminProfilesExport,
        &ExportRequest { profile_id: profile_id(), cursor: None },
        BY_ID,
        Query::AdminProfilesExport { profile: profile_id(), cursor: None, limit: PageLimit::MAX },
    );
    asks(
        Endpoint::AdminRatelimitClear,
        &ClearRequest { caller: None },
        "{}",
        Query::AdminRatelimitClear { caller: None },
    );
}

#[test]
fn what_is_refused_names_its_field() {
    const ID: &str = r#""profile_id":"00000000-0000-0000-0000-000000000001""#;
    let long = format!(r#"{{"cursor":"{}"}}"#, "x".repeat(513));
    let many: String =
        format!("{{{}}}", (0..40).map(|n| format!(r#""f{n}":1"#)).collect::<Vec<_>>().join(","));
    let deep = format!(r#"{{"limit":{}{}}}"#, "[".repeat(20_000), "]".repeat(20_000));
    use Endpoint as E;
    for (endpoint, body, code, field, says) in [
        (E::ProfilesRanked, r#"{"limt":5}"#, ErrorCode::InvalidRequest, Some("limt"), "limit, cursor"),
        (E::ProfilesRanked, r#"{"limit":"5"}"#, ErrorCode::InvalidRequest, Some("limit"), "1000"),
        (E::ProfilesRanked, r#"{"limit":1.5}"#, ErrorCode::InvalidRequest, Some("limit"), "1000"),
        (E::ProfilesRanked, r#"{"limit":null}"#, ErrorCode::InvalidRequest, Some("limit"), "1000"),
        (E::ProfilesRanked, r#"{"limit":1e400}"#, ErrorCode::InvalidRequest, Some("limit"), "1000"),
        (E::ProfilesRanked, r#"{"limit":1e3}"#, ErrorCode::InvalidRequest, Some("limit"), "1000"),
        (E::ProfilesSearch, r#"{"query":"a","limit":true}"#, ErrorCode::InvalidRequest, Some("limit"), "100"),
        (E::ProfilesRanked, &deep, ErrorCode::InvalidRequest, Some("limit"), "integer"),
        (E::ProfilesRanked, r#"{"limit":1,"limit":2}"#, ErrorCode::InvalidRequest, None, "once"),
        (E::ProfilesRanked, r#"{"limit":1"#, ErrorCode::InvalidRequest, None, "JSON object"),
        (E::ProfilesRanked, r#"[1]"#, ErrorCode::InvalidRequest, None, "JSON object"),
        (E::ProfilesRanked, "null", ErrorCode::InvalidRequest, None, "JSON object"),
        (E::ProfilesRanked, "{} {}", ErrorCode::InvalidRequest, None, "JSON object"),
        (E::ProfilesRanked, " ", ErrorCode::InvalidRequest, None, "JSON object"),
        (E::ProfilesRanked, &many, ErrorCode::InvalidRequest, None, "JSON object"),
        (E::ProfilesRanked, &long, ErrorCode::InvalidCursor, Some("cursor"), "512"),
        (E::ProfilesRanked, r#"{"cursor":7}"#, ErrorCode::InvalidRequest, Some("cursor"), "text"),
        (E::CommunityStats, r#"{"limit":5}"#, ErrorCode::InvalidRequest, Some("limit"), "none"),
        (E::ProfilesPosition, "", ErrorCode::InvalidRequest, Some("profile_id"), "missing"),
        (E::ProfilesPosition, r#"{"profile_id":"x"}"#, ErrorCode::InvalidRequest, Some("profile_id"), "UUID"),
        (
            E::ProfilesGet,
            "{}",
            ErrorCode::InvalidRequest,
            Some("profile_id, user_id, wallet, nym"),
            "exactly one of profile_id, user_id, wallet, nym",
        ),
        (
            E::ProfilesGet,
            r#"{"nym":"a","user_id":"1"}"#,
            ErrorCode::InvalidRequest,
            Some("profile_id, user_id, wallet, nym"),
            "exactly one",
        ),
        (E::ProfilesGet, r#"{"nym":"  "}"#, ErrorCode::InvalidRequest, Some("nym"), "1 to 32"),
        (E::ProfilesSearch, r#"{"query":""}"#, ErrorCode::InvalidRequest, Some("query"), "1 to 100"),
        (E::DirectoryList, r#"{"sort":"rank"}"#, ErrorCode::InvalidRequest, Some("sort"), "tenure"),
        (E::DirectoryList, r#"{"direction":"up"}"#, ErrorCode::InvalidRequest, Some("direction"), "asc"),
        (E::DirectoryList, r#"{"page":0}"#, ErrorCode::InvalidRequest, Some("page"), "1 to 1000"),
        (E::DirectoryList, r#"{"page":1001}"#, ErrorCode::InvalidRequest, Some("page"), "cursor"),
        (
            E::DirectoryList,
            r#"{"page":11,"limit":5000}"#,
            ErrorCode::InvalidRequest,
            Some("page"),
            "1 to 10 ",
        ),
        (
            E::DirectoryList,
            r#"{"page":99999999999999999999999999999999999999999}"#,
            ErrorCode::InvalidRequest,
            Some("page"),
            "cursor",
        ),
        (
            E::DirectoryList,
            r#"{"page":1,"cursor":"AQI"}"#,
            ErrorCode::InvalidRequest,
            Some("page"),
            "together",
        ),
        (E::AdminBadgesAward, &format!("{{{ID}}}"), ErrorCode::InvalidRequest, Some("kind"), "missing"),
        (
            E::AdminBadgesAward,
            &format!(r#"{{{ID},"kind":"a","revoked_by":"b"}}"#),
            ErrorCode::InvalidRequest,
            Some("revoked_by"),
            "awarded_by",
        ),
        (E::CommunitiesFind, r#"{"guild_id":"a b"}"#, ErrorCode::InvalidRequest, Some("guild_id"), "U+0020"),
    ] {
        let refused = Question::parse(endpoint, Some(community()), body.as_bytes()).unwrap_err();
        let shown: String = body.chars().take(60).collect();
        assert_eq!((refused.code(), refused.field()), (code, field), "{endpoint} {shown}: {refused}");
        assert!(refused.message().contains(says), "{endpoint} {shown}: {refused}");
        assert!(!refused.message().contains("  "), "{endpoint} {shown}: {refused}");
    }
    let page = Question::parse(Endpoint::DirectoryList, Some(community()), br#"{"page":10,"limit":5000}"#);
    assert!(page.unwrap().1, "10 pages of 1000 are allowed, and the limit was clamped");
    let nowhere = Question::parse(Endpoint::ProfilesRanked, None, b"{").unwrap_err();
    assert_eq!(nowhere.code(), ErrorCode::NotFound, "the community goes before the body");
}

#[test]
fn a_question_is_halved_down_to_one_row() {
    for endpoint in Endpoint::ALL {
        let body = match endpoint {
            Endpoint::ProfilesAround | Endpoint::ProfilesBadges | Endpoint::AdminProfilesExport => BY_ID,
            Endpoint::ProfilesSearch => r#"{"query":"a"}"#,
            _ => "{}",
        };
        let Ok((mut question, _)) = Question::parse(*endpoint, Some(community()), body.as_bytes()) else {
            continue;
        };
        let mut rounds = 0;
        while let Some(halved) = question.halved() {
            question = halved;
            rounds += 1;
        }
        assert!(rounds <= 10, "{endpoint}");
        let has_limit = !matches!(
            endpoint,
            Endpoint::CommunityStats | Endpoint::TiersThreshold | Endpoint::AdminRatelimitClear
        );
        assert_eq!(rounds > 0, has_limit, "{endpoint}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_answered_not_panicked_at(body: Vec<u8>, at in 0..Endpoint::ALL.len()) {
        let _ = Question::parse(Endpoint::ALL[at], Some(community()), &body);
    }

    #[test]
    fn any_object_is_answered_not_panicked_at(
        key in "(limit|cursor|profile_id|nym|page|query|.{0,8})",
        value in "(null|true|-?[0-9]{1,50}|\"[^\"\\\\]{0,8}\"|\\[\\]|\\{\\}|[0-9]+e[0-9]+)",
        at in 0..Endpoint::ALL.len(),
    ) {
        let body = format!("{{{}:{value}}}", serde_json::to_string(&key).unwrap());
        let _ = Question::parse(Endpoint::ALL[at], Some(community()), body.as_bytes());
    }
}
