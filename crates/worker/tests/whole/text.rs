//! What people call themselves, as keyboards and chat platforms send it: cleaned, counted and found as a reader expects.

use anyhow::Result;
use muster_domain::{MemberEffect, SearchQuery, UserId};
use muster_messaging::api::{Endpoint, Rows, admin, badges, profiles};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::setting::{Guild, Setting, community, eventually};

/// An event as a gateway writes it, which cleans nothing.
fn event(event_type: &str, user: &str, at: i64, data: &Value) -> (String, Vec<u8>) {
    let event = json!({
        "event_id": Uuid::new_v4(), "event_type": event_type, "shard_id": 0, "timestamp": 1_700_000_000_000_i64 + at,
        "guild_id": "tabr", "channel_id": null, "user_id": user, "data": data,
    });
    (format!("events.{event_type}"), event.to_string().into_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn nyms_are_cleaned_counted_and_found_as_a_reader_sees_them() -> Result<()> {
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let notes = "\u{1d160}".repeat(11);
    let emoji = "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f466}".repeat(20);
    let members = [
        ("1", "\u{39f}\u{3b4}\u{3c5}\u{3c3}\u{3c3}\u{3b5}\u{3c5}\u{3c2}", None),
        ("2", "dani", Some("\u{200f}\u{5d3}\u{5e0}\u{5d9}\u{200f}")),
        ("3", "usul", Some("\u{200b}")),
        ("4", "\u{3164}", None),
        ("5", "notes", Some(notes.as_str())),
        ("6", "emoji", Some(emoji.as_str())),
        ("7", "\u{202e}abc", Some("\u{2800}")),
        ("8", "Stra\u{df}e\n", None),
    ];
    let (mut events, mut at) = (vec![event("guild.join", "0", 0, &json!({"name": "\u{200b}"}))], 0);
    for (user, username, nick) in members {
        at += 1000;
        events.push(event("member.join", user, at, &json!({"username": username, "discriminator": "0"})));
        if let Some(nick) = nick {
            events.push(event("member.update", user, at + 1, &json!({"nick": nick, "roles": []})));
        }
    }
    events.push(event("member.update", "8", at + 2, &json!({"nick": "x".repeat(33), "roles": []})));
    let total = u64::try_from(events.len())?;
    for (subject, payload) in events {
        publisher.publish_raw(subject, payload).await?;
    }
    eventually("all but a nick that is too long", || async {
        worker.event_counts().is_ok_and(|counts| counts.applied == total - 1 && counts.lost == 1)
    })
    .await?;
    let tabr = client.community(community(&client, "tabr").await?);
    for (user, nym) in [
        ("1", members[0].1),
        ("2", "\u{5d3}\u{5e0}\u{5d9}"),
        ("3", "usul"),
        ("4", "4"),
        ("6", emoji.as_str()),
        ("7", "abc"),
        ("8", "Stra\u{df}e"),
    ] {
        let found = tabr.ask(&profiles::Get::UserId(UserId::parse(user)?)).await?;
        assert_eq!(found.profile.nym.as_str(), nym, "{user}");
    }
    for (query, user) in [
        ("\u{39f}\u{394}\u{3a5}\u{3a3}\u{3a3}\u{395}\u{3a5}\u{3a3}", "1"),
        ("\u{5d3}\u{5e0}", "2"),
        (notes.as_str(), "5"),
        (emoji.as_str(), "6"),
        ("STRASSE", "8"),
    ] {
        let found =
            tabr.ask(&profiles::Search { query: SearchQuery::parse(query)?, limit: Rows::default() }).await?;
        let users: Vec<String> = found.items.iter().map(|p| p.user_id.to_string()).collect();
        assert_eq!(users, [user], "{query}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_badge_kind_is_one_however_it_is_composed_and_never_blank() -> Result<()> {
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    publisher.publish(&Guild::new("tabr").member("1", MemberEffect::Leave)).await?;
    let at = 10_000;
    let (composed, decomposed) = ("Caf\u{e9}", " Cafe\u{301}\u{200b} ");
    for (event_type, at, data) in [
        ("member.join", at, json!({"username": "paul"})),
        ("badge.award", at + 1, json!({"kind": composed})),
        ("badge.award", at + 2, json!({"kind": decomposed})),
        ("badge.award", at + 3, json!({"kind": " \u{200b}"})),
    ] {
        let (subject, payload) = event(event_type, "1", at, &data);
        publisher.publish_raw(subject, payload).await?;
    }
    eventually("all but the blank kind", || async {
        worker.event_counts().is_ok_and(|counts| counts.applied == 4 && counts.lost == 1)
    })
    .await?;
    let id = community(&client, "tabr").await?;
    let tabr = client.community(id);
    let profile = tabr.ask(&profiles::Get::UserId(UserId::parse("1")?)).await?.profile;
    assert_eq!(profile.badge_count, 1);
    let award = async |kind: &str| -> Result<Value> {
        let body = json!({"profile_id": profile.profile_id, "kind": kind});
        let answer = client
            .ask_by_hand(&admin::AwardBadge::DESCRIPTION.subject(id), body.to_string().into_bytes())
            .await?;
        Ok(serde_json::from_slice(&answer.body)?)
    };
    assert_eq!(award(decomposed).await?["created"], false);
    let blank = award("\u{3164}\t").await?;
    assert_eq!(
        (&blank["error"]["code"], &blank["error"]["field"]),
        (&json!("invalid_request"), &json!("kind")),
        "{blank}"
    );
    let kinds = tabr.ask(&badges::Kinds::default()).await?.items;
    assert_eq!(
        kinds.iter().map(|kind| (kind.kind.as_str(), kind.holders)).collect::<Vec<_>>(),
        [(composed, 1)]
    );
    // The case of a kind counts.
    assert_eq!(award("CAF\u{c9}").await?["created"], true);
    Ok(())
}
