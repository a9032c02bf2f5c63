//! What clients may rely on, over the real wire.

use std::num::NonZeroU32;
use std::str::FromStr;

use anyhow::{Context, Result};
use muster_domain::{CommunityId, Cursor, Keys, MemberEffect, UserId};
use muster_messaging::api::{
    Caller, ENDPOINTS, Endpoint, ErrorCode, Rows, admin, community, directory, profiles,
};
use muster_messaging::client::{Client, ClientError, CommunityClient};

use crate::setting::{Guild, Setting, community, eventually};

fn code<T>(result: Result<T, ClientError>) -> Option<ErrorCode> {
    result.err().and_then(|error| error.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_two_communities_may_rely_on_the_contract() -> Result<()> {
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let (mut tabr, mut makab) = (Guild::new("tabr"), Guild::new("makab"));
    let mut events = vec![tabr.join_guild(), makab.join_guild()];
    for n in 0..30 {
        let user = format!("user{n}");
        events.extend([
            tabr.join(&user),
            tabr.score(&user, n),
            makab.join(&user),
            makab.score(&user, 1000 + n),
        ]);
    }
    let total = u64::try_from(events.len())?;
    publisher.publish_all(events, |_| {}).await?;
    eventually("the events' effect", || async { worker.event_counts().is_ok_and(|c| c.applied == total) })
        .await?;
    let (tabr, makab) = (
        client.community(community(&client, "tabr").await?),
        client.community(community(&client, "makab").await?),
    );

    a_cursor_is_refused_by_another_list_community_or_ordering(&client, &tabr, &makab).await?;
    profiles_many_answers_those_who_exist_in_the_order_asked(&tabr).await?;
    a_profile_of_another_community_is_not_found(&client, &tabr, &makab).await?;
    any_whole_number_is_a_limit_and_a_page_is_bounded(&tabr).await?;
    assert_eq!(worker.stop()?, Some(0));
    Ok(())
}

async fn a_cursor_is_refused_by_another_list_community_or_ordering(
    client: &Client,
    tabr: &CommunityClient,
    makab: &CommunityClient,
) -> Result<()> {
    let first = tabr.ask(&profiles::Ranked::first(10)).await?;
    let next = first.next.context("20 more members")?;
    let second = tabr.ask(&profiles::Ranked::first(10).after(next.clone())).await?;
    assert_eq!(second.items.first().map(|item| item.rank.get()), Some(11));
    let mut tampered = next.as_str().as_bytes().to_vec();
    let byte = tampered.get_mut(5).context("a cursor is longer")?;
    *byte = if *byte == b'A' { b'B' } else { b'A' };
    let tampered = Cursor::parse(String::from_utf8(tampered)?)?;
    let ranked = |cursor: &Cursor| profiles::Ranked::first(10).after(cursor.clone());
    let active = profiles::Active::first(10).after(next.clone());
    assert_eq!(code(makab.ask(&ranked(&next)).await), Some(ErrorCode::InvalidCursor));
    assert_eq!(code(tabr.ask(&active).await), Some(ErrorCode::InvalidCursor));
    assert_eq!(code(tabr.ask(&ranked(&tampered)).await), Some(ErrorCode::InvalidCursor));
    let long = format!(r#"{{"cursor": "{}"}}"#, "A".repeat(513)).into_bytes();
    let refused = client.ask_by_hand(&profiles::Ranked::DESCRIPTION.subject(tabr.id()), long).await?;
    assert!(refused.is_error && String::from_utf8(refused.body)?.contains("invalid_cursor"));
    let by_nym = tabr.ask(&directory::List { limit: Rows::of(3), ..directory::List::default() }).await?;
    let descending = directory::List {
        limit: Rows::of(3),
        direction: Some(muster_domain::Direction::Desc),
        start: by_nym.next.map(directory::Start::Cursor),
        ..directory::List::default()
    };
    assert_eq!(code(tabr.ask(&descending).await), Some(ErrorCode::InvalidCursor));
    Ok(())
}

async fn profiles_many_answers_those_who_exist_in_the_order_asked(tabr: &CommunityClient) -> Result<()> {
    let users =
        ["user7", "nobody", "user3", "user7"].map(UserId::parse).into_iter().collect::<Result<_, _>>()?;
    let many = tabr.ask(&profiles::Many::UserIds(Keys::parse(users)?)).await?;
    let ranks: Vec<_> =
        many.items.iter().map(|item| (item.profile.user_id.as_str(), item.rank.get())).collect();
    assert_eq!(ranks, [("user7", 23), ("user3", 27)]);
    assert_eq!((many.next, many.limit), (None, 100));
    let ids = Keys::parse(many.items.iter().map(|item| item.profile.profile_id).collect())?;
    let by_id = profiles::Many::ProfileIds(ids);
    assert_eq!(tabr.ask(&by_id).await?.items, many.items);
    Ok(())
}

async fn a_profile_of_another_community_is_not_found(
    client: &Client,
    tabr: &CommunityClient,
    makab: &CommunityClient,
) -> Result<()> {
    let user3 = profiles::Get::UserId(UserId::parse("user3")?);
    let ours = tabr.ask(&user3).await?.profile.profile_id;
    let by_id = profiles::Many::ProfileIds(Keys::parse(vec![ours])?);
    assert_eq!(tabr.ask(&by_id).await?.items.len(), 1);
    assert!(makab.ask(&by_id).await?.items.is_empty());
    let theirs = makab.ask(&user3).await?.profile.profile_id;
    assert_eq!(code(tabr.ask(&profiles::Get::ProfileId(theirs)).await), Some(ErrorCode::NotFound));
    assert_eq!(code(tabr.ask(&profiles::Position { profile_id: theirs }).await), Some(ErrorCode::NotFound));
    let around = profiles::Around { profile_id: theirs, limit: Rows::default() };
    assert_eq!(code(tabr.ask(&around).await), Some(ErrorCode::NotFound));
    assert_eq!(code(tabr.ask(&admin::HideProfile { profile_id: theirs }).await), Some(ErrorCode::NotFound));
    assert_eq!(code(tabr.ask(&admin::EraseProfile { profile_id: theirs }).await), Some(ErrorCode::NotFound));
    let nowhere = CommunityId::from_str("00000000-0000-4000-8000-000000000000")?;
    assert_eq!(code(client.community(nowhere).ask(&community::Stats {}).await), Some(ErrorCode::NotFound));
    assert_eq!(makab.ask(&community::Stats {}).await?.members, 30);
    Ok(())
}

async fn any_whole_number_is_a_limit_and_a_page_is_bounded(tabr: &CommunityClient) -> Result<()> {
    for (asked, applied) in [(i64::MAX, 1000), (-1, 1), (0, 1)] {
        assert_eq!(tabr.ask(&profiles::Ranked::first(asked)).await?.limit, applied);
    }
    let beyond = directory::List {
        limit: Rows::of(10),
        start: NonZeroU32::new(1001).map(directory::Start::Page),
        ..directory::List::default()
    };
    assert_eq!(code(tabr.ask(&beyond).await), Some(ErrorCode::InvalidRequest));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_made_shorter_to_fit_is_one_request_of_its_caller() -> Result<()> {
    let mut setting = Setting::new().await?;
    setting.services.nats.stop();
    setting.services.nats.options.change("max_payload: 1MB", "max_payload: 16384")?;
    setting.services.nats.restart()?;
    let slow = setting.configuration.with("MUSTER__LIMITS__CALLER_BURST", "1");
    let worker = slow.with("MUSTER__LIMITS__CALLER_PER_SECOND", "1").serve(&setting.services)?;
    let (client, publisher) = setting.client().await?;
    let mut tabr = Guild::new("tabr");
    for number in 0..200 {
        publisher.publish(&tabr.join(&format!("u{number}"))).await?;
    }
    eventually("the events' effect", || async {
        worker.event_counts().is_ok_and(|counts| counts.applied == 200)
    })
    .await?;
    let paul = client.on_behalf_of(Caller::parse("paul")?);
    let id = community(&paul, "tabr").await?;
    let page = paul.community(id).ask(&profiles::Ranked::first(1000)).await?;
    assert!(page.limit < 200 && page.next.is_some(), "it was halved: {}", page.limit);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_is_held_to_its_rate_until_it_is_cleared_on_every_replica() -> Result<()> {
    let setting = Setting::new().await?;
    let slow = setting
        .configuration
        .with("MUSTER__LIMITS__CALLER_PER_SECOND", "1")
        .with("MUSTER__LIMITS__CALLER_BURST", "200");
    let first = slow.serve(&setting.services)?;
    let second = slow.elsewhere()?.serve(&setting.services)?;
    let (client, publisher) = setting.client().await?;
    publisher.publish(&Guild::new("tabr").join_guild()).await?;
    let id = community(&client, "tabr").await?;
    let paul = client.clone().on_behalf_of(Caller::parse("paul")?).community(id);
    let leto = client.clone().on_behalf_of(Caller::parse("leto")?).community(id);

    // Each replica counts for itself, so both together allow up to twice a burst.
    let started = std::time::Instant::now();
    let (mut allowed, mut in_a_row) = (0_u64, 0);
    while in_a_row < 30 {
        match paul.ask(&community::Stats {}).await {
            Ok(_) => (allowed, in_a_row) = (allowed + 1, 0),
            Err(error) => {
                in_a_row += 1;
                assert_eq!(error.code(), Some(ErrorCode::RateLimited));
                let ClientError::Service { retry_after, .. } = error else { panic!("{error}") };
                let retry = retry_after.expect("the answer says when to ask again");
                assert!(!retry.is_zero() && retry <= std::time::Duration::from_secs(1), "{retry:?}");
            }
        }
    }
    let replenished = 2 * (started.elapsed().as_secs() + 1);
    assert!(
        (400..=400 + replenished).contains(&allowed),
        "{allowed} were allowed, {replenished} more at most"
    );
    leto.ask(&community::Stats {}).await?;

    let cleared =
        client.community(id).ask(&admin::ClearRateLimit { caller: Some(Caller::parse("paul")?) }).await?;
    assert_eq!(cleared.cleared, 2, "each replica had a counter");
    for _ in 0..200 {
        paul.ask(&community::Stats {}).await?;
    }
    // Without a caller named, the community's own counters and all its callers' go.
    let cleared = client.community(id).ask(&admin::ClearRateLimit::default()).await?;
    assert!((4..=6).contains(&cleared.cleared), "{cleared:?}");
    for worker in [first, second] {
        let (_, metrics) = worker.get("/metrics")?;
        let refused = "muster_rate_limit_decisions_total{scope=\"caller\",decision=\"refused\"} ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(refused)).expect("it is shown");
        assert!(line.parse::<u64>()? > 0, "{line}");
        assert_eq!(worker.stop()?, Some(0));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_applied_is_a_dead_letter_and_delays_nobody() -> Result<()> {
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let mut tabr = Guild::new("tabr");
    let malformed = [
        ("events.member.join", "not json"),
        ("events.member.join", "{}"),
        ("events.score.set", "[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]"),
    ];
    for (subject, payload) in malformed {
        publisher.publish_raw(subject.to_owned(), payload.as_bytes().to_vec()).await?;
    }
    publisher.publish_raw("events.channel.create".to_owned(), b"{\"event_id\":\"6f1c2a0e-8f1d-4f7e-9d55-1a2b3c4d5e6f\",\"event_type\":\"channel.create\",\"timestamp\":1}".to_vec()).await?;
    let twice = tabr.add("paul", 40);
    for event in [tabr.join("paul"), twice.clone(), twice.clone(), twice] {
        publisher.publish(&event).await?;
    }
    eventually("the neighbours' effect", || async {
        worker.event_counts().is_ok_and(|counts| counts.applied == 2 && counts.duplicates == 2)
    })
    .await?;
    eventually("three dead letters", || async { worker.event_counts().is_ok_and(|counts| counts.lost == 4) })
        .await?;
    let id = community(&client, "tabr").await?;
    let paul = client.community(id).ask(&profiles::Get::UserId(UserId::parse("paul")?)).await?;
    assert_eq!(paul.profile.activity.get(), 40);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_who_leaves_hides_or_is_erased_is_in_no_list() -> Result<()> {
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let mut tabr = Guild::new("tabr");
    let mut events = vec![tabr.join_guild()];
    for (user, conviction) in [("paul", 30), ("leto", 20), ("alia", 10)] {
        events.extend([tabr.join(user), tabr.score(user, conviction)]);
    }
    events.push(tabr.member("paul", MemberEffect::Leave));
    let total = u64::try_from(events.len())?;
    publisher.publish_all(events, |_| {}).await?;
    eventually("the events' effect", || async { worker.event_counts().is_ok_and(|c| c.applied == total) })
        .await?;
    let tabr_view = client.community(community(&client, "tabr").await?);
    let ranks = || async {
        let page = tabr_view.ask(&profiles::Ranked::default()).await?;
        Ok::<_, ClientError>(
            page.items.into_iter().map(|i| (i.profile.nym.to_string(), i.rank.get())).collect::<Vec<_>>(),
        )
    };
    assert_eq!(ranks().await?, [("leto".to_owned(), 1), ("alia".to_owned(), 2)]);
    let leto = tabr_view.ask(&profiles::Get::UserId(UserId::parse("leto")?)).await?.profile.profile_id;
    tabr_view.ask(&admin::HideProfile { profile_id: leto }).await?;
    assert_eq!(ranks().await?, [("alia".to_owned(), 1)]);
    tabr_view.ask(&admin::ShowProfile { profile_id: leto }).await?;
    publisher.publish(&tabr.join("paul")).await?;
    eventually("paul's return", || async { ranks().await.is_ok_and(|ranks| ranks.len() == 3) }).await?;
    assert_eq!(
        ranks().await?.first().map(|(nym, _)| nym.as_str()),
        Some("paul"),
        "a return keeps its history"
    );
    assert!(tabr_view.ask(&admin::EraseProfile { profile_id: leto }).await?.erased);
    assert_eq!(ranks().await?.len(), 2);
    assert_eq!(tabr_view.ask(&community::Stats {}).await?.members, 2);
    Ok(())
}

#[test]
fn the_documentation_names_every_endpoint() {
    let api = include_str!("../../../../docs/api.md");
    for endpoint in ENDPOINTS {
        assert!(api.contains(&format!("| `{}` |", endpoint.name)), "{endpoint} is not in docs/api.md");
    }
    for code in [
        "invalid_request",
        "invalid_cursor",
        "forbidden",
        "not_found",
        "rate_limited",
        "unavailable",
        "internal",
    ] {
        assert!(api.contains(&format!("| `{code}` |")), "{code} is not in docs/api.md");
    }
}
