//! A search finds what comparing every nym would find, best first.

use std::collections::HashMap;

use muster_domain::{MemberEffect, Nym, ProfileId, SearchLimit, SearchQuery};
use muster_storage::{Community, Error};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::support::consistency;
use crate::support::database::Database;
use crate::support::events::{START, apply, guild, joined, member, nym, user};

fn ids(found: &[muster_domain::Profile]) -> Vec<ProfileId> {
    found.iter().map(|profile| profile.profile_id).collect()
}

async fn search(community: &Community, query: &str, limit: u32) -> Vec<ProfileId> {
    let query = SearchQuery::parse(query).unwrap();
    ids(&community.profile_search(&query, SearchLimit::clamp(limit)).await.unwrap())
}

/// The visible profiles, their nyms, and the numbers by which equal names are ordered.
async fn nyms(client: &Client, community: &Community) -> HashMap<ProfileId, (Nym, i64)> {
    let rows = client
        .query(
            "SELECT profile_id, coalesce(nick, username, user_id), member
             FROM members JOIN communities USING (shard, community)
             WHERE community_id = $1 AND NOT hidden AND NOT has_left",
            &[&community.id().get()],
        )
        .await
        .unwrap();
    rows.iter().map(|row| (ProfileId::new(row.get::<_, Uuid>(0)), (nym(row.get(1)), row.get(2)))).collect()
}

/// How well a member's nym matches: the class of the match, the text from it on, and the member's number.
type Match = (u8, String, i64, ProfileId);

/// Compares the query with every nym at every place.
fn expected(nyms: &HashMap<ProfileId, (Nym, i64)>, query: &str) -> Vec<Match> {
    let query = SearchQuery::parse(query).unwrap().key().as_str().to_owned();
    let mut matches: Vec<Match> = Vec::new();
    for (id, (nym, number)) in nyms {
        let key: Vec<char> = nym.key().as_str().chars().collect();
        let places = (0..key.len()).filter_map(|place| {
            let suffix: String = key[place..].iter().collect();
            let class = match place.checked_sub(1).map(|before| key[before]) {
                None => 0,
                Some(before) if before.is_ascii_whitespace() || before.is_ascii_punctuation() => 1,
                Some(_) => 2,
            };
            suffix.starts_with(&query).then_some((class, suffix, *number, *id))
        });
        matches.extend(places.min());
    }
    matches.sort();
    matches
}

async fn compare(nyms: &HashMap<ProfileId, (Nym, i64)>, community: &Community, query: &str) -> usize {
    let expected = expected(nyms, query);
    for limit in [1, 2, 10, 100] {
        let first = expected.len().min(usize::try_from(limit).unwrap());
        let found = search(community, query, limit).await;
        let of = |id| expected.iter().find(|(.., of)| of == id);
        let matches: Vec<Match> = found.iter().filter_map(of).cloned().collect();
        assert_eq!(matches.len(), found.len(), "{query:?}, limit {limit}: who does not match");
        assert!(matches.is_sorted_by(|a, b| a < b), "{query:?}, limit {limit}: {matches:?}");
        // Of those who match alike, and for not all of whom there is room, any will do.
        let alike = |matches: &[Match]| {
            matches.iter().map(|(class, text, ..)| (*class, text.clone())).collect::<Vec<_>>()
        };
        assert_eq!(alike(&matches), alike(&expected[..first]), "{query:?}, limit {limit}");
    }
    expected.len()
}

#[tokio::test]
async fn any_text_is_found_as_by_comparing_every_nym() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guild = guild("search");
    let mut runner = TestRunner::deterministic();
    let mut draw = |pattern: &str| {
        proptest::string::string_regex(pattern).unwrap().new_tree(&mut runner).unwrap().current()
    };
    let mut events = Vec::new();
    for number in 0..300 {
        // Short and long, repeating, of few letters; some of letters that case and width fold together.
        let pattern = match number % 4 {
            0 => "[ab][ab ]{0,8}[ab]",
            1 => "[a_%.\\\\-]{1,6}",
            2 => "[\u{e9}\u{c9}\u{df}aA\u{ff21}\u{1f600}]{1,5}",
            _ => "(a|aa|a a|b){1,8}",
        };
        let name: String = draw(pattern).chars().take(32).collect();
        events.push(joined(&guild, &user(number), START, &name));
        if number % 7 == 0 {
            events.push(member(&guild, &user(number), START + 1, MemberEffect::Leave));
        }
        if number % 5 == 0 {
            let nick = Some(nym(&draw("[ab]{1,4}( [ab]{1,3})?")));
            events.push(member(&guild, &user(number), START + 2, MemberEffect::Update { nick }));
        }
    }
    let community = apply(&store, &guild, events).await;
    for id in
        nyms(&client, &community).await.into_keys().filter(|id| id.get().as_bytes()[15].is_multiple_of(9))
    {
        community.profile_hide(id).await.unwrap();
    }
    consistency::check(&client).await;
    let nyms = nyms(&client, &community).await;
    let mut hits = 0;
    let mut queries: Vec<String> = [
        "a",
        "b",
        "%",
        "_",
        "\\",
        "%_",
        "\\%",
        ".",
        "\u{e9}",
        "\u{c9}",
        "\u{df}",
        "\u{ff21}",
        "\u{1f600}",
        "aa",
        "a a",
        "A A",
    ]
    .map(str::to_owned)
    .to_vec();
    queries.extend((0..60).map(|_| draw("[ab]([ab %_]{0,3}[ab_])?")));
    for query in queries {
        hits += compare(&nyms, &community, &query).await;
    }
    assert!(hits > 1000, "the queries find too little to prove anything: {hits}");
}

#[tokio::test]
async fn exact_then_start_then_word_then_inside() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guild = guild("search");
    let names =
        ["Stilgar", "stilgarson", "Naib Stilgar", "neo-stilgar", "Bestilgard", "STILGAR", "Usul", "still"];
    let events = names.iter().enumerate().map(|(number, name)| joined(&guild, &user(number), START, name));
    let community = apply(&store, &guild, events.collect()).await;
    let query = SearchQuery::parse("stilgar").unwrap();
    let found = community.profile_search(&query, SearchLimit::MAX).await.unwrap();
    let mut found: Vec<&str> = found.iter().map(|profile| profile.nym.as_str()).collect();
    found[..2].sort_unstable();
    found[3..5].sort_unstable();
    assert_eq!(found, ["STILGAR", "Stilgar", "stilgarson", "Naib Stilgar", "neo-stilgar", "Bestilgard"]);
    assert!(search(&community, "stilgar.", 100).await.is_empty());
    assert!(search(&community, &"x".repeat(100), 100).await.is_empty());
    drop(client);
}

#[tokio::test]
async fn a_name_that_unfolds_or_ends_the_alphabet_harms_no_list() {
    use muster_domain::{Direction, DirectorySort, Lookup, PageLimit};

    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guild = guild("search");
    // Each of the first folds to eighteen characters; the last is the last character that may stand for something.
    let names = [
        "\u{fdfa}".repeat(32),
        format!("{}a", "\u{fdfa}".repeat(31)),
        "\u{10fffd}".repeat(32),
        "b\u{10fffd}".to_owned(),
    ];
    let events = names.iter().enumerate().map(|(number, name)| joined(&guild, &user(number), START, name));
    let community = apply(&store, &guild, events.collect()).await;
    consistency::check(&client).await;
    for direction in [Direction::Asc, Direction::Desc] {
        let (mut count, mut cursor) = (0, None);
        loop {
            let limit = PageLimit::clamp(1);
            let page =
                community.directory_list(None, DirectorySort::Nym, direction, limit, cursor.as_ref(), 0);
            let page = page.await.unwrap();
            count += page.items.len();
            if page.next.is_none() {
                break;
            }
            cursor = page.next;
        }
        assert_eq!(count, names.len(), "{direction}");
    }
    for name in &names {
        assert!(community.profile_get(&Lookup::Nym(nym(name))).await.is_ok());
        assert!(!search(&community, name, 100).await.is_empty());
    }
    assert_eq!(search(&community, "b", 100).await.len(), 1);
    assert_eq!(search(&community, "\u{10fffd}", 100).await.len(), 2);
}

#[tokio::test]
async fn of_equal_names_the_first_to_join_is_meant() {
    use muster_domain::Lookup;

    let database = Database::migrated().await;
    let store = database.store().await;
    let guild = guild("search");
    let events =
        vec![joined(&guild, &user(1), START + 5, "Usul"), joined(&guild, &user(2), START + 9, "usul")];
    apply(&store, &guild, events).await;
    // What happened first arrives last.
    let community = apply(&store, &guild, vec![joined(&guild, &user(3), START, "USUL")]).await;
    let found = community.profile_get(&Lookup::Nym(nym("uSuL"))).await.unwrap();
    assert_eq!(found.profile.user_id, user(3));
    // The keys of these are cut to the same.
    let unfolds = "\u{fdfa}".repeat(31);
    let long = |end: &str| format!("{unfolds}{end}");
    let events =
        vec![joined(&guild, &user(4), START, &long("A")), joined(&guild, &user(5), START, &long("B"))];
    let community = apply(&store, &guild, events).await;
    for (end, who) in [("a", 4), ("b", 5)] {
        let found = community.profile_get(&Lookup::Nym(nym(&long(end)))).await.unwrap();
        assert_eq!(found.profile.user_id, user(who));
    }
    let refused = community.profile_get(&Lookup::Nym(nym(&long("c")))).await;
    assert!(matches!(refused, Err(Error::NotFound(_))), "{refused:?}");
}

#[tokio::test]
async fn a_name_is_found_however_it_is_spelt() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guild = guild("search");
    let names = [
        "\u{39f}\u{3b4}\u{3c5}\u{3c3}\u{3c3}\u{3b5}\u{3c5}\u{3c2}",
        "Gro\u{df} Stra\u{df}e",
        "\u{1f3f3}\u{fe0f}\u{200d}\u{1f308} Pride",
        "\u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645}",
        "\u{1fb3}\u{301}\u{13a0}\u{10d0}",
        &"\u{fb2c}".repeat(32),
    ];
    let events = names.iter().enumerate().map(|(number, name)| joined(&guild, &user(number), START, name));
    let community = apply(&store, &guild, events.collect()).await;
    consistency::check(&client).await;
    for (query, name) in [
        ("\u{39f}\u{394}\u{3a5}\u{3a3}\u{3a3}\u{395}\u{3a5}\u{3a3}", 0),
        ("\u{3c3}\u{3b5}\u{3c5}\u{3c3}", 0),
        ("GROSS STRASSE", 1),
        ("stra\u{1e9e}e", 1),
        ("\u{1f3f3}\u{1f308}", 2),
        ("\u{645}\u{6cc}\u{62e}\u{648}\u{627}\u{647}\u{645}", 3),
        ("\u{391}\u{301}\u{399}\u{ab70}\u{1c90}", 4),
        ("\u{5e9}\u{5bc}\u{5c1}", 5),
        (names[5], 5),
    ] {
        let query = SearchQuery::parse(query).unwrap();
        let found = community.profile_search(&query, SearchLimit::MAX).await.unwrap();
        assert_eq!(
            found.iter().map(|p| p.nym.as_str()).collect::<Vec<_>>(),
            [nym(names[name]).as_str()],
            "{query:?}"
        );
    }
}
