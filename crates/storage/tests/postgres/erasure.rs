//! Nothing personal remains of one who is erased, and every count stays right.

use std::time::Duration;

use muster_domain::{Awarder, Event, GuildId, Lookup, MemberEffect, PageLimit, ProfileId, UserId, Wallet};
use muster_storage::{Community, Enforced, Erasure, Error, Missing};
use time::OffsetDateTime;
use tokio_postgres::Client;

use crate::support::consistency;
use crate::support::database::Database;
use crate::support::events::{
    START, added, apply, awarded, guild, joined, kind, member, nym, revoked, scored, user, view,
};
use crate::support::tied::profile;

/// All rows of all tables that mention a text, in whatever column.
async fn mentions(client: &Client, text: &str) -> Vec<String> {
    // A waiting change names the person until it is published.
    client.execute("DELETE FROM changes", &[]).await.unwrap();
    let tables = "SELECT format('%I', relname) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace";
    let mut found = Vec::new();
    for table in client.query(tables, &[]).await.unwrap() {
        let table: String = table.get(0);
        let sql = format!("SELECT t::text FROM {table} AS t WHERE strpos(lower(t::text), lower($1)) > 0");
        let rows = client.query(&sql, &[&text]).await.unwrap();
        found.extend(rows.iter().map(|row| format!("{table}: {}", row.get::<_, String>(0))));
    }
    found
}

#[tokio::test]
async fn nothing_personal_remains() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guild = guild("erasure");
    let person = UserId::parse("person-4711").unwrap();
    let awarder = Some(Awarder::parse("person-4711").unwrap());
    let update = MemberEffect::Update { nick: Some(nym("Secretnick")) };
    let award = MemberEffect::BadgeAward { kind: kind("k"), reason: None, by: awarder.clone() };
    let revoke = MemberEffect::BadgeRevoke { kind: kind("k"), reason: None, by: awarder.clone() };
    let events = vec![
        joined(&guild, &person, START, "Secretname"),
        member(&guild, &person, START + 1, update),
        scored(&guild, &person, START + 2, 424_242),
        added(&guild, &person, START + 3, 313_131),
        awarded(&guild, &person, START + 4, "k"),
        joined(&guild, &user(1), START, "Other"),
        member(&guild, &user(1), START + 5, award),
        member(&guild, &user(1), START + 6, revoke),
    ];
    let community = apply(&store, &guild, events.clone()).await;
    let id = profile(&client, &community, &person).await;
    let other = profile(&client, &community, &user(1)).await;
    community.badge_award(other, kind("by call"), None, awarder).await.unwrap();
    community.profile_link_wallet(id, Some(Wallet::parse("secretwallet").unwrap())).await.unwrap();
    let personal = ["person-4711", "secretn", "secretwallet", "424242", "313131"];
    for text in personal {
        assert!(!mentions(&client, text).await.is_empty(), "{text} is not where the test looks");
    }

    community.profile_erase(id).await.unwrap();
    for text in personal {
        assert_eq!(mentions(&client, text).await, Vec::<String>::new(), "{text}");
    }
    consistency::check(&client).await;
    let limit = PageLimit::MAX;
    let gone = [
        community.profile_erase(id).await,
        community.profile_show(id).await.map(drop),
        community.profile_export(id, limit, None).await.map(drop),
        community.profile_get(&Lookup::UserId(person.clone())).await.map(drop),
    ];
    for result in gone {
        assert!(matches!(result, Err(Error::NotFound(Missing::Profile))), "{result:?}");
    }
    assert_eq!(community.profile_list_ranked(limit, None).await.unwrap().items.len(), 1);
    assert_eq!(community.badge_list_by_profile(other, limit, None).await.unwrap().items.len(), 1);

    // The events again are duplicates; one dated after the erasure is of somebody new.
    apply(&store, &guild, events).await;
    assert_eq!(mentions(&client, "person-4711").await, Vec::<String>::new());
    apply(&store, &guild, vec![joined(&guild, &person, later(), "Back")]).await;
    let back = community.profile_get(&Lookup::UserId(person)).await.unwrap();
    assert_ne!(back.profile.profile_id, id);
    assert_eq!(back.profile.conviction.get(), 0);
    consistency::check(&client).await;
}

#[tokio::test]
async fn a_hidden_or_departed_member_can_be_erased_too() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guild = guild("erasure");
    let mut events: Vec<_> = (0..4).map(|number| joined(&guild, &user(number), START, "x")).collect();
    events.extend((0..4).map(|number| awarded(&guild, &user(number), START, "k")));
    events.push(member(&guild, &user(1), START + 1, MemberEffect::Leave));
    let community = apply(&store, &guild, events).await;
    for number in 0..2 {
        let id = profile(&client, &community, &user(number)).await;
        community.profile_hide(id).await.unwrap();
        community.profile_erase(id).await.unwrap();
        consistency::check(&client).await;
    }
    assert_eq!(community.stats().await.unwrap().members, 2);
}

fn millis(date: OffsetDateTime) -> i64 {
    i64::try_from(date.unix_timestamp_nanos() / 1_000_000).unwrap()
}

/// The moment, in milliseconds since 1970. The servers of the tests share their clock.
fn now() -> i64 {
    millis(OffsetDateTime::now_utc())
}

/// Well after any erasure that the test has made.
fn later() -> i64 {
    now() + 60_000
}

async fn is_known(client: &Client, community: &Community, who: &UserId) -> bool {
    let sql = "SELECT FROM members JOIN communities USING (shard, community)
         WHERE community_id = $1 AND user_id = $2";
    client.query_opt(sql, &[&community.id().get(), &who.as_str()]).await.unwrap().is_some()
}

async fn erase(client: &Client, community: &Community, who: &UserId) -> ProfileId {
    let id = profile(client, community, who).await;
    community.profile_erase(id).await.unwrap();
    id
}

/// An event of each kind about one member, a millisecond apart.
fn one_of_each(guild: &GuildId, who: &UserId, at: i64) -> Vec<Event> {
    let update = MemberEffect::Update { nick: Some(nym("Nick")) };
    vec![
        scored(guild, who, at, 900),
        added(guild, who, at + 1, 7),
        awarded(guild, who, at + 2, "k"),
        revoked(guild, who, at + 3, "k"),
        member(guild, who, at + 4, update),
        joined(guild, who, at + 5, "Name"),
        member(guild, who, at + 6, MemberEffect::Leave),
    ]
}

/// Every order of four.
fn orders() -> impl Iterator<Item = [usize; 4]> {
    (0..256).map(|n| [n & 3, n >> 2 & 3, n >> 4 & 3, n >> 6]).filter(|order| {
        let mut sorted = *order;
        sorted.sort_unstable();
        sorted == [0, 1, 2, 3]
    })
}

#[tokio::test]
async fn nothing_dated_before_the_erasure_brings_a_person_back() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guild = guild("late");
    let person = UserId::parse("person-4711").unwrap();
    let mut stream = vec![
        joined(&guild, &user(1), START, "Other"),
        joined(&guild, &person, START, "Name"),
        scored(&guild, &person, START + 1, 500),
        member(&guild, &person, START + 50, MemberEffect::Leave),
    ];
    let community = apply(&store, &guild, stream.clone()).await;
    erase(&client, &community, &person).await;
    for event in one_of_each(&guild, &person, START + 10) {
        stream.push(event.clone());
        let kind = event.effect.event_type();
        let applied = store.events_apply(vec![event.clone(), event.clone()]).await.unwrap();
        assert_eq!((applied.fresh[&kind], applied.duplicates[&kind]), (1, 1), "it is recorded as applied");
        assert!(!is_known(&client, &community, &person).await, "a late {} is kept", kind.as_str());
        let applied = store.events_apply(vec![event]).await.unwrap();
        assert_eq!(applied.duplicates[&kind], 1);
    }
    // The whole stream again, from its beginning, its ids forgotten; and all of it in one batch with the present.
    for _ in 0..2 {
        client.batch_execute("DELETE FROM applied_events").await.unwrap();
        apply(&store, &guild, stream.clone()).await;
        stream.reverse();
        community.verify(true).await.unwrap();
        assert_eq!(mentions(&client, "person-4711").await, Vec::<String>::new());
        assert_eq!(community.stats().await.unwrap().members, 1);
    }
    consistency::check(&client).await;
}

#[tokio::test]
async fn an_event_that_was_dated_ahead_is_of_before_the_erasure_all_the_same() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    // As far ahead as clocks may be apart.
    let ahead = now() + 300_000;
    let by = Some(Awarder::parse("person-4711").unwrap());
    for number in 0..8 {
        let guild = guild(&format!("ahead {number}").replace(' ', "-"));
        let person = UserId::parse("person-4711").unwrap();
        let award = MemberEffect::BadgeAward { kind: kind("k"), reason: None, by: by.clone() };
        let start = vec![joined(&guild, &person, START, "Name"), joined(&guild, &user(1), START, "Other")];
        let last = match one_of_each(&guild, &person, ahead).into_iter().nth(number) {
            Some(event) => event,
            None => member(&guild, &user(1), ahead, award),
        };
        let community = apply(&store, &guild, [start.clone(), vec![last.clone()]].concat()).await;
        erase(&client, &community, &person).await;
        // The stream again, from its beginning; the same event comes in another form, too.
        client.batch_execute("DELETE FROM applied_events").await.unwrap();
        let again = joined(&guild, &person, ahead, "Name");
        apply(&store, &guild, [start, vec![last.clone(), again]].concat()).await;
        let kind = last.effect.event_type();
        assert_eq!(mentions(&client, "person-4711").await, Vec::<String>::new(), "{}", kind.as_str());
        apply(&store, &guild, vec![joined(&guild, &person, ahead + 300_000, "Back")]).await;
        assert!(is_known(&client, &community, &person).await, "a return after all that was known");
        // An operator's award now is of who is back, though the erasure is dated ahead.
        let back = profile(&client, &community, &person).await;
        community
            .badge_award(back, muster_domain::BadgeKind::parse("k2").unwrap(), None, None)
            .await
            .unwrap();
        assert_eq!(community.erasures_enforce().await.unwrap(), Enforced::default());
        community.profile_erase(back).await.unwrap();
    }
    consistency::check(&client).await;
}

#[tokio::test]
async fn a_return_after_the_erasure_starts_from_nothing_in_whatever_order_its_events_come() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let person = UserId::parse("person-4711").unwrap();
    for order in orders() {
        let guild = guild(&format!("return {order:?}").replace(' ', ""));
        let before = vec![
            joined(&guild, &person, START, "Before"),
            added(&guild, &person, START + 1, 70),
            awarded(&guild, &person, START + 2, "old"),
        ];
        let community = apply(&store, &guild, before).await;
        let erased = erase(&client, &community, &person).await;
        let at = later();
        let events = [
            scored(&guild, &person, at, 42),
            joined(&guild, &person, at + 1, "After"),
            awarded(&guild, &person, at + 2, "new"),
            // Late, and of before.
            added(&guild, &person, START + 3, 70),
        ];
        let mut is_back = false;
        for index in &order {
            store.events_apply(vec![events[*index].clone()]).await.unwrap();
            is_back |= *index == 1;
            let found = community.profile_get(&Lookup::UserId(person.clone())).await;
            assert_eq!(found.is_ok(), is_back, "{order:?}: only joining brings a person back");
        }
        let back = community.profile_get(&Lookup::UserId(person.clone())).await.unwrap().profile;
        assert_ne!(back.profile_id, erased);
        assert_eq!(
            (back.nym.as_str(), back.conviction.get(), back.activity.get(), back.badge_count),
            ("After", 42, 0, 1)
        );
        assert_eq!((back.last_active_at, millis(back.joined_at)), (None, at + 1));
        let export = community.profile_export(back.profile_id, PageLimit::MAX, None).await.unwrap();
        assert_eq!(export.badges.iter().map(|badge| badge.kind.as_str()).collect::<Vec<_>>(), ["new"]);
        assert_eq!(export.tier_changes, Vec::new());
        assert!(matches!(
            community.badge_award(erased, kind("k"), None, None).await,
            Err(Error::NotFound(Missing::Profile))
        ));
    }
    consistency::check(&client).await;
}

#[tokio::test]
async fn an_erased_awarder_does_not_come_back_with_a_late_award() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let (guild, person) = (guild("awarder"), UserId::parse("person-4711").unwrap());
    let by = Some(Awarder::parse("person-4711").unwrap());
    let award =
        |kind_of: &str| MemberEffect::BadgeAward { kind: kind(kind_of), reason: None, by: by.clone() };
    let revoke = MemberEffect::BadgeRevoke { kind: kind("k"), reason: None, by: by.clone() };
    let start = vec![joined(&guild, &person, START, "Name"), joined(&guild, &user(1), START, "Other")];
    let community = apply(&store, &guild, start).await;
    erase(&client, &community, &person).await;
    let late =
        vec![member(&guild, &user(1), START + 1, award("k")), member(&guild, &user(1), START + 2, revoke)];
    apply(&store, &guild, late).await;
    apply(&store, &guild, vec![member(&guild, &user(1), START + 3, award("l"))]).await;
    assert_eq!(mentions(&client, "person-4711").await, Vec::<String>::new());
    let other = profile(&client, &community, &user(1)).await;
    let badges = community.badge_list_by_profile(other, PageLimit::MAX, None).await.unwrap().items;
    assert_eq!(badges.len(), 1, "the badge itself stays");
    // Dated after the erasure it is said of somebody who is there again.
    apply(&store, &guild, vec![member(&guild, &user(1), later(), award("m"))]).await;
    let badges = community.badge_list_by_profile(other, PageLimit::MAX, None).await.unwrap().items;
    assert_eq!(badges.iter().filter(|badge| badge.awarded_by == by).count(), 1);
    consistency::check(&client).await;
}

#[tokio::test]
async fn an_erasure_is_of_one_community_and_the_last_one_counts() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let (here, there) = (guild("here"), guild("there"));
    let person = user(1);
    let mut views = Vec::new();
    for guild in [&here, &there] {
        views.push(apply(&store, guild, vec![joined(guild, &person, START, "Name")]).await);
    }
    erase(&client, &views[0], &person).await;
    for guild in [&here, &there] {
        apply(&store, guild, vec![scored(guild, &person, START + 1, 500)]).await;
    }
    assert!(!is_known(&client, &views[0], &person).await);
    let elsewhere = views[1].profile_get(&Lookup::UserId(person.clone())).await.unwrap().profile;
    assert_eq!(elsewhere.conviction.get(), 500);

    // Back, and erased again: now nothing of the return counts either.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let back = now();
    apply(&store, &here, vec![joined(&here, &person, back, "Back")]).await;
    assert!(is_known(&client, &views[0], &person).await);
    tokio::time::sleep(Duration::from_millis(5)).await;
    erase(&client, &views[0], &person).await;
    apply(&store, &here, vec![joined(&here, &person, back + 1, "Back again")]).await;
    assert!(!is_known(&client, &views[0], &person).await);
    apply(&store, &here, vec![joined(&here, &person, later(), "Back for good")]).await;
    assert!(is_known(&client, &views[0], &person).await);
    consistency::check(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_erased_while_their_events_are_applied_stays_erased() {
    let database = Database::migrated().await;
    let (stores, client) = ([database.store().await, database.store().await], database.client().await);
    let guild = guild("race");
    let people: Vec<UserId> = (0..40).map(user).collect();
    let joins = people.iter().map(|who| joined(&guild, who, START, "x")).collect();
    let community = apply(&stores[0], &guild, joins).await;
    for (round, who) in (1_i64..).zip(&people) {
        let id = profile(&client, &community, who).await;
        let events = || {
            let of = |n| one_of_each(&guild, &people[n], START + round * 100);
            (0..people.len()).step_by(7).flat_map(of).chain(one_of_each(&guild, who, START + 10)).collect()
        };
        let (erased, one, other) = tokio::join!(
            community.profile_erase(id),
            stores[0].events_apply(events()),
            stores[1].events_apply(events())
        );
        erased.unwrap();
        one.and(other).unwrap();
    }
    for who in &people {
        assert!(!is_known(&client, &community, who).await, "{who:?}");
    }
    assert_eq!(community.stats().await.unwrap().members, 0);
    consistency::check(&client).await;
}

/// Another database of the same deployment, as one that was restored from a backup of it.
async fn restored(client: &Client) -> (Database, Client) {
    let database = Database::migrated().await;
    let other = database.client().await;
    let secret =
        client.query_one("SELECT secret FROM signing_keys WHERE purpose = 'erasures'", &[]).await.unwrap();
    let secret: Vec<u8> = secret.get(0);
    let take = "UPDATE signing_keys SET secret = $1 WHERE purpose = 'erasures'";
    other.execute(take, &[&secret]).await.unwrap();
    (database, other)
}

/// Every erasure that a database knows, read in pages of one.
async fn erasures(communities: &[&Community]) -> Vec<Erasure> {
    let mut all = Vec::new();
    for community in communities {
        let mut after = None;
        loop {
            let page = community.erasure_list(PageLimit::clamp(1), after).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.person);
            all.extend(page);
        }
    }
    all
}

#[tokio::test]
async fn a_backup_of_before_an_erasure_is_told_of_it() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let (backup, backup_client) = restored(&client).await;
    let backup_store = backup.store().await;
    let (old, new) = (guild("old"), guild("new"));
    let (person, awarder) = (UserId::parse("person-4711").unwrap(), UserId::parse("person-0815").unwrap());
    let by = Some(Awarder::parse(awarder.as_str()).unwrap());
    let award = MemberEffect::BadgeAward { kind: kind("k"), reason: None, by: by.clone() };
    let mut before = one_of_each(&old, &person, START);
    before.extend([joined(&old, &user(1), START, "Other"), member(&old, &user(1), START + 1, award)]);
    before.push(scored(&old, &user(1), START, 11));
    let community = apply(&store, &old, before.clone()).await;
    apply(&backup_store, &old, before.clone()).await;

    // After the backup: the awarder joins, another community appears, and people are erased.
    let after = vec![joined(&old, &awarder, START + 9, "Awarder"), scored(&old, &person, START + 10, 12)];
    let elsewhere = vec![joined(&new, &person, START, "Elsewhere"), joined(&new, &user(1), START, "Other")];
    apply(&store, &old, after.clone()).await;
    let second = apply(&store, &new, elsewhere.clone()).await;
    for (community, who) in [(&community, &person), (&community, &awarder), (&second, &person)] {
        erase(&client, community, who).await;
    }
    let list = erasures(&[&community, &second]).await;
    assert_eq!(list.len(), 3);

    let told = view(&backup_store, &old).await;
    for (news, profiles, awarders) in [(3, 1, 1), (0, 0, 0)] {
        assert_eq!(backup_store.erasures_remember(list.clone()).await.unwrap(), news);
        let enforced = told.erasures_enforce().await.unwrap();
        assert_eq!((enforced.profiles, enforced.awarders), (profiles, awarders));
        assert_eq!(mentions(&backup_client, "person-").await, Vec::<String>::new());
        consistency::check(&backup_client).await;
    }
    // The stream from its beginning, with what the backup has not seen.
    apply(&backup_store, &old, [before, after].concat()).await;
    let there = apply(&backup_store, &new, elsewhere).await;
    assert_eq!(mentions(&backup_client, "person-").await, Vec::<String>::new());
    for view in [&told, &there] {
        assert_eq!(view.stats().await.unwrap().members, 1);
    }
    assert_eq!(erasures(&[&told, &there]).await, list);
    // An earlier time does not take the place of a later one.
    let early = list
        .iter()
        .map(|erasure| Erasure { erased_at: erasure.erased_at - Duration::from_secs(9), ..erasure.clone() });
    assert_eq!(backup_store.erasures_remember(early.collect()).await.unwrap(), 0);
    apply(&backup_store, &old, vec![joined(&old, &person, later(), "Back")]).await;
    assert_eq!(told.erasures_enforce().await.unwrap(), Enforced::default(), "who is back stays");
    let back = told.profile_get(&Lookup::UserId(person)).await.unwrap().profile;
    assert_eq!((back.nym.as_str(), back.conviction.get(), back.badge_count), ("Back", 0, 0));
    consistency::check(&backup_client).await;
}
