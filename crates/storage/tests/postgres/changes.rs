//! Changes for siblings: each once, numbered without a gap in the order of commits, and enough to rebuild tiers and badges.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use muster_domain::{
    Change, ChangeData, ChangeType, Changed, CommunityId, Disappearance, Event, GuildId, Lookup,
    MemberEffect, Nym, PageLimit, ProfileId, Reason, Shard, TierPolicy, TraceParent, UserId,
};
use muster_storage::{Community, Store};
use tokio::sync::Notify;
use tokio_postgres::Client;

use crate::support::database::Database;
use crate::support::events::{
    START, apply, awarded, guild, joined, kind, member, policy, revoked, scored, user, view,
};

/// Takes up to so many changes of each shard out of the outbox, as if they were published.
pub(crate) async fn take(store: &Store, most: usize) -> Vec<Change> {
    let taken = Arc::new(Mutex::new(Vec::new()));
    for shard in Shard::all() {
        loop {
            let into = Arc::clone(&taken);
            let publish = move |changes: Vec<Change>| {
                let number = changes.len().min(most);
                into.lock().unwrap().extend(changes.into_iter().take(number));
                async move { (number, ()) }.boxed()
            };
            let (publication, _) =
                store.changes_publish(shard, Duration::from_secs(10), publish).await.unwrap();
            if !publication.more {
                break;
            }
        }
    }
    Arc::try_unwrap(taken).unwrap().into_inner().unwrap()
}

async fn take_all(store: &Store) -> Vec<Change> {
    take(store, usize::MAX).await
}

/// Changes in words: number, type and data.
fn described(changes: &[Change]) -> Vec<String> {
    let word = |change: &Change| {
        let data = match &change.what {
            Changed::Lost { count } => format!("{count}"),
            Changed::Member { user, data, .. } => {
                let of = match data {
                    ChangeData::TierPromoted { from, to } | ChangeData::TierDemoted { from, to } => {
                        let name =
                            |tier: &Option<_>| tier.as_ref().map_or("-".to_owned(), ToString::to_string);
                        format!("{} {}", name(from), name(to))
                    }
                    ChangeData::BadgeAwarded(badge) | ChangeData::BadgeRevoked(badge) => {
                        badge.kind.to_string()
                    }
                    ChangeData::Appeared { tier } => {
                        tier.as_ref().map_or("-".to_owned(), ToString::to_string)
                    }
                    ChangeData::Disappeared(why) => why.as_str().to_owned(),
                    ChangeData::Renamed { from, to } => format!("{from} {to}"),
                };
                format!("{user} {of}")
            }
        };
        format!("{} {} {data}", change.number, change.change_type().as_str())
    };
    changes.iter().map(word).collect()
}

#[tokio::test]
async fn a_badge_whose_place_an_earlier_award_takes_is_not_revoked_for_the_reason_of_its_award() {
    let database = Database::migrated().await;
    let (store, guild, who) = (database.store().await, guild("displaced"), user(1));
    let award = |at, reason| {
        let reason = Reason::parse_optional(reason).unwrap();
        member(&guild, &who, START + at, MemberEffect::BadgeAward { kind: kind("rider"), reason, by: None })
    };
    apply(&store, &guild, vec![joined(&guild, &who, START, "Usul"), award(2, "second")]).await;
    take_all(&store).await;
    apply(&store, &guild, vec![award(1, "first")]).await;
    let reasons: BTreeMap<&str, Option<String>> = BTreeMap::new();
    let reasons = take_all(&store).await.into_iter().fold(reasons, |mut reasons, change| {
        if let Changed::Member { data: ChangeData::BadgeAwarded(badge), .. } = &change.what {
            reasons.insert("awarded", badge.reason.clone().map(String::from));
        }
        if let Changed::Member { data: ChangeData::BadgeRevoked(badge), .. } = &change.what {
            reasons.insert("revoked", badge.reason.clone().map(String::from));
        }
        reasons
    });
    assert_eq!(reasons, BTreeMap::from([("awarded", Some("first".to_owned())), ("revoked", None)]));
}

#[tokio::test]
async fn each_cause_tells_what_it_changed() {
    let database = Database::migrated().await;
    let (store, guild, who) = (database.store().await, guild("published"), user(1));
    let community = apply(&store, &guild, vec![joined(&guild, &who, START, "Usul")]).await;
    community.tier_policy_replace(&policy(&[0, 100], &[])).await.unwrap();
    take_all(&store).await;
    let trace = TraceParent::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
    let mut named = member(&guild, &who, START + 3, MemberEffect::Join { username: None });
    named.traceparent = Some(trace.clone());
    let cases: [(Vec<Event>, &[&str]); 8] = [
        (vec![scored(&guild, &who, START + 1, 100)], &["tier.promoted u1 s0 s1"]),
        (vec![scored(&guild, &who, START + 2, 50)], &["tier.demoted u1 s1 s0"]),
        (vec![named], &["member.renamed u1 Usul u1"]),
        (
            vec![awarded(&guild, &who, START + 4, "rider"), awarded(&guild, &who, START + 5, "reader")],
            &["badge.awarded u1 reader", "badge.awarded u1 rider"],
        ),
        (vec![revoked(&guild, &who, START + 6, "reader")], &["badge.revoked u1 reader"]),
        // An award that is revoked at once changes nothing.
        (vec![awarded(&guild, &who, START + 7, "x"), revoked(&guild, &who, START + 8, "x")], &[]),
        (vec![member(&guild, &who, START + 9, MemberEffect::Leave)], &["member.disappeared u1 left"]),
        (vec![joined(&guild, &who, START + 10, "u1")], &["member.appeared u1 s0", "badge.awarded u1 rider"]),
    ];
    let mut number = take_last(&store, &guild).await;
    for (events, expected) in cases {
        apply(&store, &guild, events).await;
        let changes = take_all(&store).await;
        let mut found = described(&changes);
        found.sort_unstable();
        let mut numbered: Vec<String> = changes
            .iter()
            .map(|change| {
                number += 1;
                assert_eq!(change.number, number);
                assert_eq!((change.community, &change.guild), (community.id(), &Some(guild.clone())));
                described(std::slice::from_ref(change)).remove(0).split_once(' ').unwrap().1.to_owned()
            })
            .collect();
        if expected.iter().any(|described| described.starts_with("badge.awarded u1 rea")) {
            numbered.sort_unstable();
        }
        assert_eq!(numbered, expected);
        if expected.iter().any(|described| described.starts_with("member.renamed")) {
            assert_eq!(changes[0].traceparent, Some(trace.clone()));
        }
    }
    let community = view(&store, &guild).await;
    let profile =
        community.profile_list_ranked(PageLimit::MAX, None).await.unwrap().items[0].profile.profile_id;
    community.profile_hide(profile).await.unwrap();
    assert_eq!(described(&take_all(&store).await), [format!("{} member.disappeared u1 hidden", number + 1)]);
    // Of an invisible member only the erasure is published.
    apply(
        &store,
        &guild,
        vec![awarded(&guild, &who, START + 11, "late"), scored(&guild, &who, START + 11, 500)],
    )
    .await;
    assert_eq!(described(&take_all(&store).await), [""; 0]);
    community.profile_show(profile).await.unwrap();
    let shown = described(&take_all(&store).await);
    let expected =
        [(2, "member.appeared u1 s1"), (3, "badge.awarded u1 rider"), (4, "badge.awarded u1 late")];
    assert_eq!(shown, expected.map(|(step, change)| format!("{} {change}", number + step)));
    community.profile_hide(profile).await.unwrap();
    take_all(&store).await;
    community.in_trace(Some(trace.clone())).profile_erase(profile).await.unwrap();
    let erased = take_all(&store).await;
    assert_eq!(described(&erased), [format!("{} member.disappeared u1 erased", number + 6)]);
    assert_eq!(erased[0].traceparent, Some(trace));
    assert_eq!(take_last(&store, &guild).await, number + 6);
    assert_eq!(take_all(&store).await, []);
}

/// The number of the last change, as whoever begins to follow finds it.
async fn take_last(store: &Store, guild: &GuildId) -> u64 {
    store.community_find(guild).await.unwrap().changes
}

#[tokio::test]
async fn a_community_tells_of_the_types_that_it_chose() {
    let database = Database::migrated().await;
    let (store, guild) = (database.store().await, guild("choosy"));
    let community = apply(&store, &guild, vec![scored(&guild, &user(3), START, 0)]).await;
    take_all(&store).await;
    let only = BTreeSet::from([ChangeType::BadgeAwarded]);
    community.change_types_replace(&only).await.unwrap();
    let events = vec![joined(&guild, &user(1), START, "a"), awarded(&guild, &user(1), START + 1, "rider")];
    apply(&store, &guild, events).await;
    assert_eq!(described(&take_all(&store).await), ["2 badge.awarded u1 rider"]);
    // Whoever tells anything tells of an erasure.
    let erase = async |who| {
        let id = community.profile_get(&Lookup::UserId(who)).await.unwrap().profile.profile_id;
        community.profile_erase(id).await.unwrap();
    };
    erase(user(1)).await;
    assert_eq!(described(&take_all(&store).await), ["3 member.disappeared u1 erased"]);
    community.change_types_replace(&BTreeSet::new()).await.unwrap();
    apply(&store, &guild, vec![awarded(&guild, &user(3), START + 2, "reader")]).await;
    erase(user(3)).await;
    assert_eq!(take_all(&store).await, []);
    community.change_types_replace(&ChangeType::ALL.into()).await.unwrap();
    apply(&store, &guild, vec![joined(&guild, &user(2), START, "b")]).await;
    assert_eq!(described(&take_all(&store).await), ["4 member.appeared u2 naib"]);
}

#[tokio::test]
async fn the_waiting_changes_of_an_erased_person_hold_no_name_and_no_reason() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    // An id may be longer than a name.
    for who in [user(1), UserId::parse("7".repeat(UserId::MAX)).unwrap()] {
        let guild = guild(&format!("waiting-{}", who.as_str().len()));
        let community = apply(&store, &guild, vec![joined(&guild, &who, START, "Paul")]).await;
        let profile =
            community.profile_list_ranked(PageLimit::MAX, None).await.unwrap().items[0].profile.profile_id;
        apply(&store, &guild, vec![joined(&guild, &who, START + 1, "Usul")]).await;
        let reason = muster_domain::Reason::parse("for Paul").ok();
        community.badge_award(profile, kind("rider"), reason, None).await.unwrap();
        community.profile_erase(profile).await.unwrap();
        let rows = client
            .query_one("SELECT string_agg(to_jsonb(c)::text, ' ') FROM changes AS c", &[])
            .await
            .unwrap()
            .get::<_, String>(0);
        assert!(!rows.contains("Paul") && !rows.contains("Usul"), "{rows}");
        let changes = take_all(&store).await;
        let types: Vec<&str> = changes.iter().map(|change| change.change_type().as_str()).collect();
        assert_eq!(types, ["member.appeared", "member.renamed", "badge.awarded", "member.disappeared"]);
        let data = |change: &Change| match &change.what {
            Changed::Member { data: ChangeData::Renamed { from, to }, .. } => {
                Some((from.clone(), to.clone()))
            }
            _ => None,
        };
        assert_eq!(changes.iter().find_map(data), Some((Nym::of_user(&who), Nym::of_user(&who))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_waits_for_changes_that_are_on_their_way() {
    let database = Database::migrated().await;
    let (store, guild) = (database.store().await, guild("on-its-way"));
    let community = apply(&store, &guild, vec![joined(&guild, &user(1), START, "Paul")]).await;
    let profile =
        community.profile_list_ranked(PageLimit::MAX, None).await.unwrap().items[0].profile.profile_id;
    let (read, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (reading, going_on) = (Arc::clone(&read), Arc::clone(&go_on));
    let publish = move |changes: Vec<Change>| {
        async move {
            reading.notify_one();
            going_on.notified().await;
            (changes.len(), ())
        }
        .boxed()
    };
    let publisher = store.clone();
    let shard = Shard::of(&guild);
    let publishing = tokio::spawn(async move {
        publisher.changes_publish(shard, Duration::from_secs(10), publish).await.unwrap()
    });
    read.notified().await;
    let erasing = tokio::spawn(async move { community.profile_erase(profile).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!erasing.is_finished());
    go_on.notify_one();
    assert_eq!(publishing.await.unwrap().0.published, 1);
    erasing.await.unwrap().unwrap();
    assert_eq!(described(&take_all(&store).await), ["2 member.disappeared u1 erased"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_on_its_way_is_not_told_to_be_lost() {
    let database = Database::migrated().await;
    let (store, client, guild) = (database.store().await, database.client().await, guild("sending"));
    apply(&store, &guild, vec![joined(&guild, &user(1), START, "a")]).await;
    fill(&client, &guild).await;
    let (writer, of) = (store.clone(), guild.clone());
    let publish = move |changes: Vec<Change>| {
        async move {
            apply(&writer, &of, vec![awarded(&of, &user(1), START + 1, "one")]).await;
            (changes.len(), changes.len())
        }
        .boxed()
    };
    let (_, published) =
        store.changes_publish(Shard::of(&guild), Duration::from_secs(60), publish).await.unwrap();
    let published = published.unwrap();
    assert!(published > 0);
    assert_eq!(described(&take_all(&store).await), [format!("100002 changes.lost {}", 100_001 - published)]);
}

/// So many communities of one shard.
fn neighbours(number: usize) -> Vec<GuildId> {
    let guilds = (0..).map(|number| guild(&format!("neighbour-{number}")));
    guilds.filter(|guild| Shard::of(guild) == Shard::of(&self::guild("neighbour-0"))).take(number).collect()
}

#[tokio::test]
async fn a_change_that_cannot_be_read_keeps_no_other_community_waiting() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guilds = neighbours(2);
    for guild in &guilds {
        apply(&store, guild, vec![joined(guild, &user(1), START, "Paul")]).await;
        apply(&store, guild, vec![joined(guild, &user(1), START + 1, "Usul")]).await;
        apply(&store, guild, vec![joined(guild, &user(1), START + 2, "Muad'Dib")]).await;
    }
    let spoilt = view(&store, &guilds[0]).await.id();
    let spoil = "UPDATE changes AS c SET value_to = repeat('x', 33) FROM communities AS s
         WHERE s.community = c.community AND s.guild_id = $1 AND c.number = 2";
    assert_eq!(client.execute(spoil, &[&guilds[0].as_str()]).await.unwrap(), 1);
    let shard = Shard::of(&guilds[0]);
    // The second time there is nothing else.
    for expected in [(1, 3), (0, 0)] {
        let publish = |changes: Vec<Change>| async move { (changes.len(), changes) }.boxed();
        let (publication, changes) =
            store.changes_publish(shard, Duration::from_secs(10), publish).await.unwrap();
        let unreadable = publication.unreadable.unwrap();
        assert_eq!((unreadable.community, unreadable.number), (spoilt, 2));
        assert!(unreadable.error.contains("33 characters"), "{}", unreadable.error);
        let of = |wanted: &GuildId| {
            changes.iter().flatten().filter(|change| change.guild.as_ref() == Some(wanted)).count()
        };
        assert_eq!((of(&guilds[0]), of(&guilds[1])), expected);
        assert_eq!(store.changes_waiting().await.unwrap().count, 2, "it stays, and what is behind it");
    }
    let mend = "UPDATE changes SET value_to = 'Usul' WHERE number = 2";
    assert_eq!(client.execute(mend, &[]).await.unwrap(), 1);
    assert_eq!(described(&take_all(&store).await).len(), 2);
}

#[tokio::test]
async fn who_is_moved_by_anothers_event_has_its_trace() {
    let database = Database::migrated().await;
    let (store, guild) = (database.store().await, guild("traced"));
    let events = (1..=2).map(|number| scored(&guild, &user(number), START, 100 - number)).collect();
    let community = apply(&store, &guild, events).await;
    community.tier_policy_replace(&policy(&[0], &[1])).await.unwrap();
    take_all(&store).await;
    let mut event = scored(&guild, &user(2), START + 1, 500);
    event.traceparent = TraceParent::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").ok();
    apply(&store, &guild, vec![event.clone()]).await;
    let changes = take_all(&store).await;
    let types: BTreeSet<&str> = changes.iter().map(|change| change.change_type().as_str()).collect();
    assert_eq!(types, BTreeSet::from(["tier.demoted", "tier.promoted"]));
    assert!(changes.iter().all(|change| change.traceparent == event.traceparent), "{changes:?}");
}

#[tokio::test]
async fn badges_that_are_too_many_to_tell_of_are_told_to_be_lost() {
    are_told_to_be_lost(60_000, 0).await;
}

#[tokio::test]
async fn badges_with_too_long_reasons_to_tell_of_are_told_to_be_lost() {
    are_told_to_be_lost(6_000, 500).await;
}

/// Of two communities that together have too much: so many badges in each, each with a reason of so many characters of three bytes. A third one with
/// few is none the worse for it.
async fn are_told_to_be_lost(badges: i32, characters: i32) {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guilds = neighbours(3);
    for guild in &guilds {
        apply(
            &store,
            guild,
            vec![joined(guild, &user(1), START, "Paul"), awarded(guild, &user(1), START, "r")],
        )
        .await;
    }
    let award = "INSERT INTO badge_ops (shard, community, kind, award, is_badge, member, at, op_id, reason)
         SELECT o.shard, o.community, o.kind, true, true, o.member, o.at + n * interval '1 ms', gen_random_uuid(),
             nullif(repeat('\u{20ac}', $2), '')
         FROM badge_ops AS o JOIN communities AS c USING (shard, community) CROSS JOIN generate_series(1, $1) AS n
         WHERE c.guild_id <> $3";
    client.execute(award, &[&badges, &characters, &guilds[2].as_str()]).await.unwrap();
    let held = "UPDATE members AS m SET badge_count = (SELECT count(*) FROM badge_ops AS o
         WHERE o.shard = m.shard AND o.community = m.community AND o.member = m.member)";
    client.execute(held, &[]).await.unwrap();
    let leave = guilds.iter().map(|guild| member(guild, &user(1), START + 1000, MemberEffect::Leave));
    store.events_apply(leave.collect()).await.unwrap();
    take_all(&store).await;
    let back = guilds.iter().map(|guild| joined(guild, &user(1), START + 2000, "Paul"));
    store.events_apply(back.collect()).await.unwrap();
    let mut counts: HashMap<GuildId, Vec<ChangeType>> = HashMap::new();
    for change in take_all(&store).await {
        counts.entry(change.guild.clone().unwrap()).or_default().push(change.change_type());
    }
    assert_eq!(counts[&guilds[2]], [ChangeType::MemberAppeared, ChangeType::BadgeAwarded]);
    let mut of_others: Vec<usize> = guilds[..2].iter().map(|guild| counts[guild].len()).collect();
    of_others.sort_unstable();
    assert_eq!(of_others, [1, 2 + usize::try_from(badges).unwrap()]);
    assert!(guilds.iter().any(|guild| counts[guild] == [ChangeType::Lost]));
}

/// Lets as much wait of a community as may, but for one change.
pub(crate) async fn fill(client: &Client, guild: &GuildId) {
    let fill =
        "INSERT INTO changes (shard, change_type, community, number, at, change_id, profile_id, user_id)
         SELECT s.shard, 2, s.community, n, now(), gen_random_uuid(), gen_random_uuid(), 'u'
         FROM communities AS s JOIN community_states AS c USING (shard, community)
         CROSS JOIN generate_series(c.changes + 1, c.changes + 99999) AS n WHERE s.guild_id = $1";
    client.execute(fill, &[&guild.as_str()]).await.unwrap();
    let count = "UPDATE community_states AS c SET changes = c.changes + 99999 FROM communities AS s
         WHERE s.shard = c.shard AND s.community = c.community AND s.guild_id = $1";
    client.execute(count, &[&guild.as_str()]).await.unwrap();
}

#[tokio::test]
async fn a_community_in_which_too_much_waits_tells_that_changes_were_lost() {
    let database = Database::migrated().await;
    let (store, client, guild) = (database.store().await, database.client().await, guild("far-behind"));
    apply(&store, &guild, vec![joined(&guild, &user(1), START, "a")]).await;
    assert_eq!(take_all(&store).await.len(), 1);
    fill(&client, &guild).await;
    // There is room for one more.
    apply(&store, &guild, vec![awarded(&guild, &user(1), START + 1, "one")]).await;
    assert_eq!(store.changes_waiting().await.unwrap().count, 100_000);
    apply(&store, &guild, vec![awarded(&guild, &user(1), START + 2, "two")]).await;
    let waiting = store.changes_waiting().await.unwrap();
    assert!(waiting.count == 1 && waiting.oldest.is_some(), "{waiting:?}");
    // Number 100,002 is the one that made it too much.
    apply(&store, &guild, vec![awarded(&guild, &user(1), START + 3, "three")]).await;
    let changes = take_all(&store).await;
    let expected = ["100003 changes.lost 100001", "100004 badge.awarded u1 three"];
    assert_eq!(described(&changes), expected);
    assert_eq!(store.changes_waiting().await.unwrap().count, 0);
    apply(&store, &guild, vec![awarded(&guild, &user(1), START + 4, "four")]).await;
    assert_eq!(described(&take_all(&store).await), ["100005 badge.awarded u1 four"]);
}

#[tokio::test]
async fn numbers_go_on_behind_what_was_published_before_a_restore() {
    let database = Database::migrated().await;
    let (store, guild) = (database.store().await, guild("restored"));
    let events = (1..=5).map(|number| joined(&guild, &user(number), START, "a")).collect();
    let community = apply(&store, &guild, events).await;
    // The stream has 9 changes, of which the backup has none.
    let waiting = take(&store, 0).await;
    assert_eq!(waiting, []);
    store.changes_skip(community.id(), 9).await.unwrap();
    assert_eq!(take_last(&store, &guild).await, 15);
    let changes = take_all(&store).await;
    let numbers: Vec<u64> = changes.iter().map(|change| change.number).collect();
    assert_eq!(numbers, [11, 12, 13, 14, 15], "a follower of number 9 sees a gap");
    // It can be asked for again, and what is already behind stays.
    store.changes_skip(community.id(), 9).await.unwrap();
    apply(&store, &guild, vec![joined(&guild, &user(6), START, "a")]).await;
    assert_eq!(described(&take_all(&store).await), ["16 member.appeared u6 naib"]);
}

/// What a follower knows of members from changes alone.
#[derive(Default)]
struct Follower {
    last: BTreeMap<CommunityId, u64>,
    members: BTreeMap<(CommunityId, ProfileId), Followed>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Followed {
    user: String,
    tier: Option<String>,
    badges: BTreeMap<String, String>,
}

impl Follower {
    fn take(&mut self, changes: Vec<Change>) {
        for change in changes {
            let last = self.last.entry(change.community).or_default();
            assert_eq!(change.number, *last + 1, "of {:?}", change);
            *last = change.number;
            let Changed::Member { profile, user, data } = change.what else { panic!("nothing is lost here") };
            let key = (change.community, profile);
            let known = self.members.get_mut(&key);
            match (data, known) {
                (ChangeData::Appeared { tier }, None) => {
                    let tier = tier.map(String::from);
                    self.members.insert(key, Followed { user: user.into(), tier, badges: BTreeMap::new() });
                }
                (ChangeData::Disappeared(Disappearance::Erased), None) => {}
                (ChangeData::Disappeared(_), Some(_)) => drop(self.members.remove(&key)),
                (
                    ChangeData::TierPromoted { from, to } | ChangeData::TierDemoted { from, to },
                    Some(member),
                ) => {
                    assert_eq!(member.tier, from.map(String::from));
                    member.tier = to.map(String::from);
                }
                (ChangeData::BadgeAwarded(badge), Some(member)) => {
                    let other = member.badges.insert(badge.kind.into(), badge.badge_id.to_string());
                    assert_eq!(other, None);
                }
                (ChangeData::BadgeRevoked(badge), Some(member)) => {
                    assert_eq!(member.badges.remove(badge.kind.as_str()), Some(badge.badge_id.to_string()));
                }
                (ChangeData::Renamed { from, to }, Some(_)) => assert_ne!(from, to),
                (data, known) => panic!("{data:?} of {known:?}"),
            }
        }
    }

    /// Compares what it knows of a community with the lists.
    async fn check(&self, community: &Community) {
        let mut listed = BTreeMap::new();
        for ranked in community.profile_list_ranked(PageLimit::MAX, None).await.unwrap().items {
            let profile = ranked.profile;
            let badges = community
                .badge_list_by_profile(profile.profile_id, PageLimit::MAX, None)
                .await
                .unwrap()
                .items;
            let badges =
                badges.into_iter().map(|badge| (badge.kind.into(), badge.badge_id.to_string())).collect();
            let tier = profile.tier.map(String::from);
            let member = Followed { user: profile.user_id.into(), tier, badges };
            listed.insert((community.id(), profile.profile_id), member);
        }
        let known = self.members.iter().filter(|((of, _), _)| *of == community.id());
        let known: BTreeMap<_, _> = known.map(|(key, member)| (*key, member)).collect();
        assert_eq!(known, listed.iter().map(|(key, member)| (*key, member)).collect());
    }
}

/// Two writers and two publishers of which some attempts publish only a part.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_rebuilds_tiers_and_badges_from_nothing_but_changes() {
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::{Config, TestRunner};

    let database = Database::migrated().await;
    let stores = [database.store().await, database.store().await];
    let guilds: Vec<GuildId> =
        (0..crate::support::events::GUILDS).map(|n| guild(&format!("followed-{n}"))).collect();
    let mut runner = TestRunner::new(Config::default());
    let drawing = proptest::collection::vec(crate::support::events::drawn(), 400..401);
    let mut follower = Follower::default();
    for round in 0..6_i64 {
        let drawn = drawing.new_tree(&mut runner).unwrap().current();
        let events: Vec<Event> = drawn.iter().map(|event| event.event(&guilds)).collect();
        let halves: Vec<Vec<Event>> = events.chunks(events.len() / 2).map(<[Event]>::to_vec).collect();
        let write = async |store: &Store, events: Vec<Event>| {
            for batch in events.chunks(40) {
                store.events_apply(batch.to_vec()).await.unwrap();
            }
        };
        let publish = async || {
            let mut taken = Vec::new();
            for number in 0..6 {
                taken.extend(take(&stores[0], if number % 2 == 0 { 3 } else { usize::MAX }).await);
            }
            taken
        };
        let (_, _, taken) = tokio::join!(
            write(&stores[0], halves[0].clone()),
            write(&stores[1], halves[1].clone()),
            publish()
        );
        follower.take(taken);
        let community = view(&stores[0], &guilds[0]).await;
        let members = community.profile_list_ranked(PageLimit::MAX, None).await.unwrap().items;
        match (round, members.first()) {
            (1, Some(first)) => drop(community.profile_hide(first.profile.profile_id).await.unwrap()),
            (2, Some(first)) => community.profile_erase(first.profile.profile_id).await.unwrap(),
            (3, _) => community.tier_policy_replace(&policy(&[0, 100, 300], &[2, 5])).await.unwrap(),
            (4, _) => community.tier_policy_replace(&TierPolicy::default()).await.unwrap(),
            _ => {}
        }
        follower.take(take_all(&stores[1]).await);
        for guild in &guilds {
            follower.check(&view(&stores[0], guild).await).await;
        }
    }
    assert!(follower.last.values().all(|last| *last > 100), "{:?}", follower.last);
}
