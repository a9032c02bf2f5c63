//! Nothing personal remains of one who is erased, and every count stays right.

use muster_domain::{Awarder, Lookup, MemberEffect, PageLimit, Role, UserId, Wallet};
use muster_storage::{Error, Missing};
use tokio_postgres::Client;

use crate::support::consistency;
use crate::support::database::Database;
use crate::support::events::{START, added, apply, awarded, guild, joined, kind, member, nym, scored, user};
use crate::support::tied::profile;

/// All rows of all tables that mention a text, in whatever column.
async fn mentions(client: &Client, text: &str) -> Vec<String> {
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
    let update = MemberEffect::Update {
        nick: Some(nym("Secretnick")),
        roles: vec![Role::parse("secretrole").unwrap()],
    };
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
    let personal = ["person-4711", "secretn", "secretrole", "secretwallet", "424242", "313131"];
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

    // The events again are duplicates; a new one is of somebody new.
    apply(&store, &guild, events).await;
    assert_eq!(mentions(&client, "person-4711").await, Vec::<String>::new());
    apply(&store, &guild, vec![joined(&guild, &person, START + 9, "Back")]).await;
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
