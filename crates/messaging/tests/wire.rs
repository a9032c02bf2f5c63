//! Golden texts: what stands in each request and answer, byte for byte.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::num::NonZeroU32;

use muster_domain::{
    Award, Awarder, Badge, BadgeKind, BadgeStanding, CommunityId, CommunityName, Conviction, Cursor,
    Direction, DirectoryPage, DirectorySort, Export, GuildId, Keys, KindCount, Lookup, Nym, Page, Position,
    Profile, ProfileDetail, ProfileId, Progress, Rank, RankedProfile, Reason, ScoreTier, SearchQuery, Stats,
    Tenure, TenuredProfile, TierCount, TierThreshold, UserId, Wallet,
};
use muster_messaging::api::{
    Caller, Description, ENDPOINTS, Endpoint, ErrorCode, Query, Question, Rows, ServiceError, admin, badges,
    community, directory, profiles, tiers,
};
use muster_messaging::service::LEAST_PAYLOAD;
use proptest::prelude::*;
use time::macros::datetime;
use uuid::Uuid;

mod samples;

use samples::{badge, change, export, page, profile, profile_id, tier};

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
fn golden<E: Endpoint>(answer: impl Into<E::Answer>, golden: &str) {
    assert_eq!(serde_json::to_string(&answer.into()).unwrap(), golden);
    let later = golden.replacen('{', r#"{"of_a_later_version":[{"x":1}],"#, 1);
    let read: E::Answer = serde_json::from_str(&later).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), golden);
}

#[test]
fn pages_of_profiles() {
    let ranked = || page(RankedProfile { profile: profile(), rank: Rank::below(1) });
    let text = paged(&format!(r#"{{{PROFILE},"rank":2}}"#));
    golden::<profiles::Ranked>(ranked(), &text);
    golden::<profiles::Around>(ranked(), &text);
    let text = paged(&format!("{{{PROFILE}}}"));
    golden::<profiles::Active>(page(profile()), &text);
    golden::<profiles::Search>(page(profile()), &text);
    let standing = BadgeStanding { profile: profile(), badge_rank: Rank::FIRST };
    golden::<badges::Leaderboard>(page(standing), &paged(&format!(r#"{{{PROFILE},"badge_rank":1}}"#)));
    let progress = Progress { profile: profile(), next_tier: tier("sayyadina"), distance: 360 };
    golden::<tiers::Progression>(
        page(progress),
        &paged(&format!(r#"{{{PROFILE},"next_tier":"sayyadina","distance":360}}"#)),
    );
    let nobody: Page<muster_domain::Profile> = Page { items: Vec::new(), next: None, limit: 5 };
    golden::<profiles::Active>(nobody, r#"{"items":[],"next":null,"limit":5}"#);
}

#[test]
fn one_profile() {
    let detail = || ProfileDetail {
        profile: profile(),
        rank: Rank::below(1),
        badge_rank: Rank::FIRST,
        tenure: Tenure::Veteran,
    };
    let text = format!(r#"{{{PROFILE},"rank":2,"badge_rank":1,"tenure":"veteran"}}"#);
    golden::<profiles::Get>(detail(), &text);
    golden::<profiles::Many>(page(detail()), &paged(&text));
    let visible = format!(r#"{{{PROFILE},"visible":true}}"#);
    golden::<admin::HideProfile>(profile(), &visible);
    golden::<admin::ShowProfile>(profile(), &visible);
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
    golden::<profiles::Position>(
        position,
        r#"{"profile_id":"00000000-0000-0000-0000-000000000001","rank":2,"conviction":640,"distance_above":10,"distance_below":null,"next_tier":"sayyadina","next_tier_at":1000,"distance_to_next_tier":360,"distance_to_entry":0,"at_risk":false}"#,
    );
}

#[test]
fn badges() {
    golden::<profiles::Badges>(page(badge()), &paged(&format!("{{{BADGE}}}")));
    golden::<admin::AwardBadge>(
        Award { badge: badge(), created: false },
        &format!(r#"{{{BADGE},"created":false}}"#),
    );
    golden::<admin::RevokeBadge>(badge(), &format!("{{{BADGE},{REVOKED}}}"));
    let kind = KindCount {
        kind: BadgeKind::parse("first_blood").unwrap(),
        holders: 3,
        first_awarded_at: datetime!(2026-02-03 04:05:06 UTC),
    };
    golden::<badges::Kinds>(
        page(kind),
        &paged(r#"{"kind":"first_blood","holders":3,"first_awarded_at":"2026-02-03T04:05:06Z"}"#),
    );
}

#[test]
fn tiers() {
    golden::<tiers::Changes>(page(change()), &paged(CHANGE));
    let threshold =
        TierThreshold { entry_rank: Some(Rank::below(68)), score: None, eligible: 3, waiting: 0, gap: None };
    golden::<tiers::Threshold>(
        threshold,
        r#"{"entry_rank":69,"score":null,"eligible":3,"waiting":0,"gap":null}"#,
    );
}

#[test]
fn the_directory_and_the_community() {
    let directory = || DirectoryPage {
        items: vec![TenuredProfile { profile: profile(), tenure: Tenure::Og }],
        next: None,
        limit: 10,
        total: 21,
    };
    let items =
        format!(r#""items":[{{{PROFILE},"tenure":"og"}}],"next":null,"limit":10,"total":21,"total_pages":3"#);
    let third = directory::List {
        start: NonZeroU32::new(3).map(directory::Start::Page),
        ..directory::List::default()
    };
    golden::<directory::List>(directory::List::default().answer(directory()), &format!("{{{items}}}"));
    golden::<directory::List>(third.answer(directory()), &format!(r#"{{{items},"page":3}}"#));
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
    golden::<community::Stats>(
        stats,
        r#"{"members":5,"tiers":[{"tier":"naib","members":4},{"tier":null,"members":1}],"conviction_total":-7,"badges":1,"active_this_week":2,"new_this_week":3,"promotions_this_week":4,"badges_this_week":5}"#,
    );
    golden::<community::Find>(
        community::Community {
            community_id: community(),
            name: Some(CommunityName::parse("Arrakis").unwrap()),
            active: true,
            changes: 42,
        },
        r#"{"community_id":"00000000-0000-0000-0000-0000000000c0","name":"Arrakis","active":true,"changes":42}"#,
    );
}

/// The largest text of a type: few characters, of as many bytes as it may have.
fn largest(max_bytes: usize) -> String {
    format!("x{}", "\u{300}".repeat((max_bytes - 1) / 2))
}

#[test]
fn the_largest_answer_of_one_row_fits_into_the_least_payload() {
    let nym = Nym::parse(largest(Nym::MAX_BYTES)).unwrap();
    let by = || Some(Awarder::parse(largest(Awarder::MAX_BYTES)).unwrap());
    let reason = || Some(Reason::parse(largest(Reason::MAX_BYTES)).unwrap());
    let kind = BadgeKind::parse(largest(BadgeKind::MAX_BYTES)).unwrap();
    let wallet = Some(Wallet::parse("\"".repeat(Wallet::MAX)).unwrap());
    let user_id = UserId::parse("\"".repeat(UserId::MAX)).unwrap();
    let cursor = Some(Cursor::parse("A".repeat(Cursor::MAX)).unwrap());
    let badge = Badge {
        kind,
        awarded_by: by(),
        reason: reason(),
        revoked_by: by(),
        revoke_reason: reason(),
        ..badge()
    };
    let export = Export {
        profile: Profile { user_id, wallet, nym: nym.clone(), ..profile() },
        username: Some(nym),
        badges: vec![badge],
        // Any other row is smaller.
        operations: Vec::new(),
        additions: Vec::new(),
        tier_changes: Vec::new(),
        next: cursor,
    };
    let answer = serde_json::to_string(&admin::PersonalData::from(export)).unwrap();
    assert!(answer.len() < LEAST_PAYLOAD, "{} bytes", answer.len());
}

#[test]
fn answers_to_operators() {
    golden::<admin::ExportProfile>(
        export(),
        &format!(
            r#"{{"profile":{{{PROFILE},"visible":true}},"username":"Chani \"Sihaya\"","badges":[{{{BADGE},{REVOKED}}}],"operations":[{{"kind":"first_blood","award":false,"at":"2026-02-03T04:05:06Z","by":"stilgar","reason":null}}],"additions":[{{"at":"2026-02-03T04:05:06Z","amount":3}}],"tier_changes":[{CHANGE}],"next":null}}"#
        ),
    );
    golden::<admin::EraseProfile>(
        admin::ErasedProfile { profile_id: profile_id(), erased: true },
        r#"{"profile_id":"00000000-0000-0000-0000-000000000001","erased":true}"#,
    );
    golden::<admin::ClearRateLimit>(admin::ClearedCounters { cleared: 9 }, r#"{"cleared":9}"#);
}

fn read(endpoint: &Description, body: &str) -> Result<Question, ServiceError> {
    Question::parse(endpoint, Some(community()), body.as_bytes())
}

/// A client writes the golden text, and the service reads it as what the client asked.
#[track_caller]
fn asks<E: Endpoint>(query: fn(E) -> Query, request: E, golden: &str) {
    assert_eq!(serde_json::to_string(&request).unwrap(), golden);
    assert_eq!(read(E::DESCRIPTION, golden), Ok(Question::Within(community(), query(request))));
}

const BY_ID: &str = r#"{"profile_id":"00000000-0000-0000-0000-000000000001"}"#;

#[test]
fn requests_for_pages() {
    macro_rules! asks_for_pages {
        ($($query:ident: $request:ty, $default:literal;)+) => {$(
            let first = <$request>::default();
            assert_eq!(first.limit.applied().get(), $default);
            asks(Query::$query, first.clone(), "{}");
            let empty = read(<$request>::DESCRIPTION, "").unwrap();
            assert!(!empty.is_clamped());
            assert_eq!(
                empty,
                Question::Within(community(), Query::$query(first)),
                "an empty body is all defaults"
            );
            let next = <$request>::first(5_000_000).after(Cursor::parse("AQI").unwrap());
            assert_eq!(next.limit.applied().get(), 1000);
            asks(Query::$query, next, r#"{"limit":5000000,"cursor":"AQI"}"#);
        )+};
    }
    asks_for_pages! {
        ProfilesRanked: profiles::Ranked, 100;
        ProfilesActive: profiles::Active, 5;
        BadgesLeaderboard: badges::Leaderboard, 10;
        BadgesKinds: badges::Kinds, 100;
        TiersProgression: tiers::Progression, 10;
        TiersChanges: tiers::Changes, 5;
    }
}

#[test]
fn requests_about_profiles() {
    let profile_id = profile_id();
    asks(Query::ProfilesPosition, profiles::Position { profile_id }, BY_ID);
    asks(Query::AdminProfilesHide, admin::HideProfile { profile_id }, BY_ID);
    asks(Query::AdminProfilesShow, admin::ShowProfile { profile_id }, BY_ID);
    asks(Query::AdminProfilesErase, admin::EraseProfile { profile_id }, BY_ID);
    let (user_id, wallet) = (UserId::parse("1001").unwrap(), Wallet::parse("0xAB").unwrap());
    let nym = Nym::parse("Chani").unwrap();
    for (get, lookup, golden) in [
        (profiles::Get::ProfileId(profile_id), Lookup::ProfileId(profile_id), BY_ID),
        (profiles::Get::UserId(user_id.clone()), Lookup::UserId(user_id), r#"{"user_id":"1001"}"#),
        (profiles::Get::Wallet(wallet.clone()), Lookup::Wallet(wallet), r#"{"wallet":"0xAB"}"#),
        (profiles::Get::Nym(nym.clone()), Lookup::Nym(nym), r#"{"nym":"Chani"}"#),
    ] {
        assert_eq!(Lookup::from(get.clone()), lookup);
        asks(Query::ProfilesGet, get, golden);
    }
    let ids = Keys::parse(vec![profile_id, ProfileId::new(Uuid::from_u128(2)), profile_id]).unwrap();
    asks(
        Query::ProfilesMany,
        profiles::Many::ProfileIds(ids),
        r#"{"profile_ids":["00000000-0000-0000-0000-000000000001","00000000-0000-0000-0000-000000000002"]}"#,
    );
    let ids = Keys::parse(vec![UserId::parse("1001").unwrap()]).unwrap();
    asks(Query::ProfilesMany, profiles::Many::UserIds(ids), r#"{"user_ids":["1001"]}"#);
    asks(
        Query::ProfilesAround,
        profiles::Around { profile_id, limit: Rows::of(3) },
        r#"{"profile_id":"00000000-0000-0000-0000-000000000001","limit":3}"#,
    );
    let search = profiles::Search { query: SearchQuery::parse("100%_\\").unwrap(), limit: Rows::of(1000) };
    assert_eq!(search.limit.applied().get(), 100);
    asks(Query::ProfilesSearch, search, r#"{"query":"100%_\\","limit":1000}"#);
    let badges = profiles::Badges { profile_id, limit: Rows::default(), cursor: None };
    assert_eq!(badges.limit.applied().get(), 100);
    asks(Query::ProfilesBadges, badges, BY_ID);
}

#[test]
fn requests_of_the_directory_and_the_community() {
    let all = directory::List::default();
    assert_eq!((all.sort.unwrap_or_default(), all.direction()), (DirectorySort::Nym, Direction::Asc));
    assert_eq!((all.limit.applied().get(), all.page()), (10, None));
    asks(Query::DirectoryList, all, "{}");
    let third = NonZeroU32::new(3).unwrap();
    let mut numbered = directory::List {
        sort: Some(DirectorySort::Badges),
        start: Some(directory::Start::Page(third)),
        ..directory::List::default()
    };
    assert_eq!(numbered.direction(), Direction::Desc);
    assert_eq!((numbered.page(), numbered.rows_before()), (Some(third), 20));
    asks(Query::DirectoryList, numbered.clone(), r#"{"sort":"badges","page":3}"#);
    assert!(numbered.halve());
    assert_eq!((numbered.limit.applied().get(), numbered.rows_before()), (5, 20));
    // The pages are counted as `page` counts them.
    let half = DirectoryPage { items: Vec::new(), next: None, limit: 5, total: 21 };
    assert_eq!(numbered.answer(half).total_pages, 3);
    let by_cursor = directory::List {
        tier: Some(tier("sietch")),
        sort: Some(DirectorySort::Tenure),
        direction: Some(Direction::Asc),
        limit: Rows::of(-1),
        start: Some(directory::Start::Cursor(Cursor::parse("AQI").unwrap())),
    };
    assert_eq!((by_cursor.limit.applied().get(), by_cursor.direction()), (1, Direction::Asc));
    asks(
        Query::DirectoryList,
        by_cursor,
        r#"{"tier":"sietch","sort":"tenure","direction":"asc","limit":-1,"cursor":"AQI"}"#,
    );
    asks(Query::CommunityStats, community::Stats {}, "{}");
    asks(Query::TiersThreshold, tiers::Threshold {}, "{}");
    let find = community::Find { guild_id: GuildId::parse("42").unwrap() };
    assert_eq!(serde_json::to_string(&find).unwrap(), r#"{"guild_id":"42"}"#);
    let read = Question::parse(community::Find::DESCRIPTION, None, br#"{"guild_id":"42"}"#);
    assert_eq!(read, Ok(Question::Find(find)));
}

#[test]
fn requests_of_operators() {
    let profile_id = profile_id();
    let kind = BadgeKind::parse("first_blood").unwrap();
    asks(
        Query::AdminBadgesAward,
        admin::AwardBadge {
            profile_id,
            kind: kind.clone(),
            reason: Some(Reason::parse("spice").unwrap()),
            awarded_by: Some(Awarder::parse("stilgar").unwrap()),
        },
        r#"{"profile_id":"00000000-0000-0000-0000-000000000001","kind":"first_blood","reason":"spice","awarded_by":"stilgar"}"#,
    );
    let revoke = admin::RevokeBadge { profile_id, kind, reason: None, revoked_by: None };
    asks(
        Query::AdminBadgesRevoke,
        revoke.clone(),
        r#"{"profile_id":"00000000-0000-0000-0000-000000000001","kind":"first_blood"}"#,
    );
    // Events go by the same rule: what is blank is none.
    let award = admin::AwardBadge { profile_id, kind: revoke.kind.clone(), reason: None, awarded_by: None };
    for (endpoint, by, query) in [
        (admin::AwardBadge::DESCRIPTION, "awarded_by", Query::AdminBadgesAward(award)),
        (admin::RevokeBadge::DESCRIPTION, "revoked_by", Query::AdminBadgesRevoke(revoke)),
    ] {
        for blank in ["", " \u{3000}"] {
            let body = format!(
                r#"{{"profile_id":"{profile_id}","kind":"first_blood","reason":"{blank}","{by}":"{blank}"}}"#
            );
            assert_eq!(read(endpoint, &body), Ok(Question::Within(community(), query.clone())), "{body}");
        }
    }
    let export = admin::ExportProfile::new(profile_id, None);
    assert_eq!(export.limit().get(), 1000);
    asks(Query::AdminProfilesExport, export, BY_ID);
    asks(Query::AdminRatelimitClear, admin::ClearRateLimit::default(), "{}");
    let caller = Some(Caller::parse("stilgar").unwrap());
    asks(Query::AdminRatelimitClear, admin::ClearRateLimit { caller }, r#"{"caller":"stilgar"}"#);
}

const RANKED: &Description = profiles::Ranked::DESCRIPTION;
const SEARCH: &Description = profiles::Search::DESCRIPTION;
const STATS: &Description = community::Stats::DESCRIPTION;
const POSITION: &Description = profiles::Position::DESCRIPTION;
const GET: &Description = profiles::Get::DESCRIPTION;
const MANY: &Description = profiles::Many::DESCRIPTION;
const LIST: &Description = directory::List::DESCRIPTION;
const AWARD: &Description = admin::AwardBadge::DESCRIPTION;
const FIND: &Description = community::Find::DESCRIPTION;

/// An endpoint, a body that it refuses, the field that the refusal names, and a part of its message.
type Refusal<'a> = (&'a Description, &'a str, Option<&'a str>, &'a str);

#[track_caller]
fn assert_refused(code: ErrorCode, refusals: &[Refusal<'_>]) {
    for &(endpoint, body, field, says) in refusals {
        let refused = read(endpoint, body).unwrap_err();
        let shown: String = body.chars().take(60).collect();
        assert_eq!((refused.code(), refused.field()), (code, field), "{endpoint} {shown}: {refused}");
        assert!(refused.message().contains(says), "{endpoint} {shown}: {refused}");
        assert!(!refused.message().contains("  "), "{endpoint} {shown}: {refused}");
    }
}

#[test]
fn a_refused_limit_names_the_field_and_the_greatest() {
    let deep = format!(r#"{{"limit":{}{}}}"#, "[".repeat(20_000), "]".repeat(20_000));
    assert_refused(
        ErrorCode::InvalidRequest,
        &[
            (RANKED, r#"{"limit":"5"}"#, Some("limit"), "1000"),
            (RANKED, r#"{"limit":1.5}"#, Some("limit"), "1000"),
            (RANKED, r#"{"limit":null}"#, Some("limit"), "1000"),
            (RANKED, r#"{"limit":1e400}"#, Some("limit"), "1000"),
            (RANKED, r#"{"limit":1e3}"#, Some("limit"), "1000"),
            (SEARCH, r#"{"query":"a","limit":true}"#, Some("limit"), "100"),
            (RANKED, &deep, Some("limit"), "integer"),
        ],
    );
}

#[test]
fn a_body_that_is_no_object_is_refused_whole() {
    let many: String =
        format!("{{{}}}", (0..40).map(|n| format!(r#""f{n}":1"#)).collect::<Vec<_>>().join(","));
    assert_refused(
        ErrorCode::InvalidRequest,
        &[
            (RANKED, r#"{"limit":1,"limit":2}"#, None, "once"),
            (RANKED, r#"{"limit":1"#, None, "JSON object"),
            (RANKED, r#"[1]"#, None, "JSON object"),
            (RANKED, "null", None, "JSON object"),
            (RANKED, "{} {}", None, "JSON object"),
            (RANKED, " ", None, "JSON object"),
            (RANKED, &many, None, "JSON object"),
        ],
    );
    let nowhere = Question::parse(RANKED, None, b"{").unwrap_err();
    assert_eq!(nowhere.code(), ErrorCode::NotFound, "the community goes before the body");
}

#[test]
fn an_unknown_field_is_named_with_those_that_are_known() {
    const ID: &str = r#""profile_id":"00000000-0000-0000-0000-000000000001""#;
    assert_refused(
        ErrorCode::InvalidRequest,
        &[
            (RANKED, r#"{"limt":5}"#, Some("limt"), "limit, cursor"),
            (STATS, r#"{"limit":5}"#, Some("limit"), "none"),
            (AWARD, &format!(r#"{{{ID},"kind":"a","revoked_by":"b"}}"#), Some("revoked_by"), "awarded_by"),
        ],
    );
}

#[test]
fn a_refused_cursor_names_the_field() {
    let long = format!(r#"{{"cursor":"{}"}}"#, "x".repeat(513));
    assert_refused(ErrorCode::InvalidCursor, &[(RANKED, &long, Some("cursor"), "512")]);
    assert_refused(ErrorCode::InvalidRequest, &[(RANKED, r#"{"cursor":7}"#, Some("cursor"), "text")]);
}

#[test]
fn a_refused_page_names_the_field_and_the_greatest() {
    assert_refused(
        ErrorCode::InvalidRequest,
        &[
            (LIST, r#"{"page":0}"#, Some("page"), "1 to 1000"),
            (LIST, r#"{"page":1001}"#, Some("page"), "cursor"),
            (LIST, r#"{"page":11,"limit":5000}"#, Some("page"), "1 to 10 "),
            (LIST, r#"{"page":99999999999999999999999999999999999999999}"#, Some("page"), "cursor"),
            (LIST, r#"{"page":1,"cursor":"AQI"}"#, Some("page"), "together"),
        ],
    );
    let page = read(LIST, r#"{"page":10,"limit":5000}"#);
    assert!(page.unwrap().is_clamped(), "10 pages of 1000 are allowed, and the limit was clamped");
}

#[test]
fn refused_keys_name_their_fields() {
    const BOTH: &str = r#"{"profile_ids":["00000000-0000-0000-0000-000000000001"],"user_ids":["1"]}"#;
    let crowd = format!(r#"{{"user_ids":["u"{}]}}"#, r#","u""#.repeat(100));
    assert_refused(
        ErrorCode::InvalidRequest,
        &[
            (
                GET,
                "{}",
                Some("profile_id, user_id, wallet, nym"),
                "exactly one of profile_id, user_id, wallet, nym",
            ),
            (GET, r#"{"nym":"a","user_id":"1"}"#, Some("profile_id, user_id, wallet, nym"), "exactly one"),
            (GET, r#"{"nym":"  "}"#, Some("nym"), "1 to 32"),
            (MANY, "{}", Some("profile_ids, user_ids"), "exactly one"),
            (MANY, BOTH, Some("profile_ids, user_ids"), "exactly one"),
            (MANY, r#"{"profile_ids":"x"}"#, Some("profile_ids"), "list"),
            (MANY, r#"{"profile_ids":["x"]}"#, Some("profile_ids"), "UUID"),
            (MANY, r#"{"profile_ids":[null]}"#, Some("profile_ids"), "texts"),
            (MANY, r#"{"user_ids":[]}"#, Some("user_ids"), "1 to 100"),
            (MANY, &crowd, Some("user_ids"), "101 elements: give 1 to 100"),
        ],
    );
}

#[test]
fn a_missing_or_malformed_value_names_its_field() {
    const ID: &str = r#""profile_id":"00000000-0000-0000-0000-000000000001""#;
    assert_refused(
        ErrorCode::InvalidRequest,
        &[
            (POSITION, "", Some("profile_id"), "missing"),
            (POSITION, r#"{"profile_id":"x"}"#, Some("profile_id"), "UUID"),
            (SEARCH, r#"{"query":""}"#, Some("query"), "1 to 100"),
            (LIST, r#"{"sort":"rank"}"#, Some("sort"), "tenure"),
            (LIST, r#"{"direction":"up"}"#, Some("direction"), "asc"),
            (AWARD, &format!("{{{ID}}}"), Some("kind"), "missing"),
            (FIND, r#"{"guild_id":"a b"}"#, Some("guild_id"), "U+0020"),
        ],
    );
}

#[test]
fn a_question_is_halved_down_to_one_row() {
    for endpoint in ENDPOINTS {
        let body = match endpoint.name {
            "profiles.around" | "profiles.badges" | "admin.profiles.export" => BY_ID,
            "profiles.search" => r#"{"query":"a"}"#,
            "profiles.many" => r#"{"user_ids":["1","2"]}"#,
            _ => "{}",
        };
        let Ok(mut question) = read(endpoint, body) else { continue };
        let mut rounds = 0;
        while question.halve() {
            rounds += 1;
        }
        assert!(rounds <= 10, "{endpoint}");
        let has_limit = !matches!(
            endpoint.name,
            "community.stats" | "tiers.threshold" | "admin.ratelimit.clear" | "profiles.many"
        );
        assert_eq!(rounds > 0, has_limit, "{endpoint}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_answered_not_panicked_at(body: Vec<u8>, at in 0..ENDPOINTS.len()) {
        let _ = Question::parse(ENDPOINTS[at], Some(community()), &body);
    }

    #[test]
    fn any_object_is_answered_not_panicked_at(
        key in "(limit|cursor|profile_id|nym|page|query|.{0,8})",
        value in "(null|true|-?[0-9]{1,50}|\"[^\"\\\\]{0,8}\"|\\[\\]|\\{\\}|[0-9]+e[0-9]+)",
        at in 0..ENDPOINTS.len(),
    ) {
        let body = format!("{{{}:{value}}}", serde_json::to_string(&key).unwrap());
        let _ = Question::parse(ENDPOINTS[at], Some(community()), body.as_bytes());
    }
}
