//! A kind is held once, however many award it at once.

use muster_domain::{
    Awarder, EventTime, Lookup, MaxClockSkew, MemberEffect, PageLimit, ProfileId, Reason, TimeBounds,
};
use muster_storage::{Community, Error, Missing};
use time::OffsetDateTime;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::support::consistency;
use crate::support::database::Database;
use crate::support::events::{START, apply, guild, joined, kind, member, revoked, user, view};
use crate::support::tied::profile;

struct Setting {
    community: Community,
    member: ProfileId,
    client: Client,
    database: Database,
}

impl Setting {
    async fn new() -> Self {
        let database = Database::migrated().await;
        let client = database.client().await;
        let guild = guild("awards");
        let store = database.store().await;
        let community = apply(&store, &guild, vec![joined(&guild, &user(1), START, "x")]).await;
        let member = profile(&client, &community, &user(1)).await;
        Self { community, member, client, database }
    }
}

#[tokio::test]
async fn of_twenty_awards_at_once_one_creates_the_badge() {
    let Setting { community, member, client, database } = Setting::new().await;
    let other = view(&database.store().await, &guild("awards")).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..20 {
        let community = if number % 2 == 0 { community.clone() } else { other.clone() };
        let by = Awarder::parse(format!("by{number}")).unwrap();
        tasks.spawn(async move { community.badge_award(member, kind("k"), None, Some(by)).await.unwrap() });
    }
    let awards = tasks.join_all().await;
    assert_eq!(awards.iter().filter(|award| award.created).count(), 1);
    assert!(awards.iter().all(|award| award.badge == awards[0].badge), "all answer the one badge");
    let detail = community.profile_get(&Lookup::ProfileId(member)).await.unwrap();
    assert_eq!(detail.profile.badge_count, 1);
    consistency::check(&client).await;
}

#[tokio::test]
async fn an_award_after_a_revocation_is_a_new_badge() {
    let Setting { community, member, client, database: _database } = Setting::new().await;
    let reason = |text: &str| Some(Reason::parse(text).unwrap());
    let by = |text: &str| Some(Awarder::parse(text).unwrap());
    let first = community.badge_award(member, kind("k"), reason("won"), by("op")).await.unwrap();
    assert!(first.created);
    assert_eq!((first.badge.reason.clone(), first.badge.awarded_by.clone()), (reason("won"), by("op")));
    let again = community.badge_award(member, kind("k"), reason("other"), None).await.unwrap();
    assert_eq!((again.created, &again.badge), (false, &first.badge));

    let revoked = community.badge_revoke(member, kind("k"), reason("lost"), by("op2")).await.unwrap();
    assert_eq!(revoked.badge_id, first.badge.badge_id);
    assert!(revoked.revoked_at >= Some(revoked.awarded_at));
    assert_eq!((revoked.revoke_reason, revoked.revoked_by), (reason("lost"), by("op2")));
    for name in ["k", "never"] {
        let missing = community.badge_revoke(member, kind(name), None, None).await;
        assert!(matches!(missing, Err(Error::NotFound(Missing::Badge))), "{missing:?}");
    }

    let second = community.badge_award(member, kind("k"), None, None).await.unwrap();
    assert!(second.created && second.badge.badge_id != first.badge.badge_id);
    let held = community.badge_list_by_profile(member, PageLimit::MAX, None).await.unwrap();
    assert_eq!(held.items, [second.badge]);
    let export = community.profile_export(member, PageLimit::MAX, None).await.unwrap();
    assert_eq!(export.badges.len(), 2, "history stays");
    let unknown = community.badge_award(Uuid::new_v4().into(), kind("k"), None, None).await;
    assert!(matches!(unknown, Err(Error::NotFound(Missing::Profile))), "{unknown:?}");
    consistency::check(&client).await;
}

#[tokio::test]
async fn a_thousand_calls_take_effect_behind_an_event_of_a_clock_as_far_ahead_as_may_be() {
    let Setting { community, member: id, client, database } = Setting::new().await;
    let store = database.store().await;
    let guild = guild("awards");
    let award = MemberEffect::BadgeAward { kind: kind("k"), reason: None, by: None };
    let now = OffsetDateTime::now_utc();
    let latest = now.saturating_add(MaxClockSkew::MAX.get().try_into().unwrap());
    let times = TimeBounds::at(now, MaxClockSkew::MAX);
    let latest = EventTime::parse(latest.unix_timestamp_nanos() / 1_000_000, times).unwrap();
    apply(&store, &guild, vec![member(&guild, &user(1), latest.millis(), award)]).await;
    for _ in 0..500 {
        let revoked = community.badge_revoke(id, kind("k"), None, None).await.unwrap();
        assert!(revoked.revoked_at > Some(revoked.awarded_at));
        assert!(community.badge_award(id, kind("k"), None, None).await.unwrap().created);
    }
    consistency::check(&client).await;
}

#[tokio::test]
async fn an_event_that_arrives_late_takes_its_place_among_calls() {
    let Setting { community, member: id, client, database } = Setting::new().await;
    let store = database.store().await;
    let guild = guild("awards");
    let award = community.badge_award(id, kind("k"), None, None).await.unwrap();
    // Revoked long before it was awarded: nothing changes.
    apply(&store, &guild, vec![revoked(&guild, &user(1), START, "k")]).await;
    let held = community.badge_list_by_profile(id, PageLimit::MAX, None).await.unwrap();
    assert_eq!(held.items, [award.badge]);
    consistency::check(&client).await;
}
