//! A cursor is good for the list, the community and the ordering that made it, and nothing sees another community.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use muster_domain::{
    BadgeKind, Cursor, CursorError, Direction, DirectorySort, Lookup, PageLimit, ProfileId, SearchLimit,
    SearchQuery, Tier,
};
use muster_storage::{Community, Error, Missing};

use crate::support::database::Database;
use crate::support::tied::{Tied, collector, profile};

type Next<'a> = BoxFuture<'a, Result<Option<Cursor>, Error>>;

/// Every list that takes a cursor, in each of its orderings. `who` is a profile of the community.
fn lists<'a>(
    community: &'a Community,
    who: [ProfileId; 2],
    cursor: Option<Cursor>,
) -> Vec<(String, Next<'a>)> {
    let one = PageLimit::clamp(1);
    let mut lists: Vec<(String, Next<'a>)> = Vec::new();
    macro_rules! list {
        ($name:expr, $cursor:ident, $page:expr) => {{
            let $cursor = cursor.clone();
            lists.push(($name.to_string(), async move { Ok($page.await?.next) }.boxed()));
        }};
    }
    list!("ranked", c, community.profile_list_ranked(one, c.as_ref()));
    list!("active", c, community.profile_list_active(one, c.as_ref()));
    list!("leaderboard", c, community.badge_leaderboard(one, c.as_ref()));
    list!("kinds", c, community.badge_kind_list(one, c.as_ref()));
    list!("progression", c, community.tier_list_progression(one, c.as_ref()));
    list!("changes", c, community.tier_change_list(one, c.as_ref()));
    for id in who {
        list!(format!("badges {id}"), c, community.badge_list_by_profile(id, one, c.as_ref()));
        list!(format!("export {id}"), c, community.profile_export(id, one, c.as_ref()));
    }
    for tier in [None, Some("fedaykin"), Some("naib")] {
        for sort in [DirectorySort::Nym, DirectorySort::Tenure, DirectorySort::Badges] {
            for direction in [Direction::Asc, Direction::Desc] {
                let tier = tier.map(|tier| Tier::parse(tier).unwrap());
                let cursor = cursor.clone();
                let name = format!("directory {tier:?} {sort} {direction}");
                let next = async move {
                    let (tier, cursor) = (tier.as_ref(), cursor.as_ref());
                    Ok(community.directory_list(tier, sort, direction, one, cursor, 0).await?.next)
                };
                lists.push((name, next.boxed()));
            }
        }
    }
    lists
}

#[tokio::test]
async fn a_foreign_or_changed_cursor_is_refused() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let tied = Tied::make(&store, &client).await;
    let mut members = Vec::new();
    for community in [&tied.here, &tied.there] {
        let page = community.badge_leaderboard(PageLimit::clamp(3), None).await.unwrap();
        members.push([page.items[0].profile.profile_id, page.items[1].profile.profile_id]);
    }
    let mut made = Vec::new();
    for (name, list) in lists(&tied.here, members[0], None) {
        let cursor = list.await.unwrap().unwrap_or_else(|| panic!("{name} has but one row"));
        made.push((name, cursor));
    }
    let is_refused = |result: &Result<_, Error>| matches!(result, Err(Error::Cursor(CursorError::Foreign)));
    for (maker, cursor) in &made {
        for (name, list) in lists(&tied.here, members[0], Some(cursor.clone())) {
            let result = list.await;
            assert_eq!(result.is_ok(), name == *maker, "a cursor of {maker} in {name}: {result:?}");
            assert!(result.is_ok() || is_refused(&result), "a cursor of {maker} in {name}: {result:?}");
        }
        let text = cursor.as_str();
        let (_, rest) = text.split_at(1);
        let flipped = if text.starts_with('A') { "B" } else { "A" };
        let changed = [format!("{flipped}{rest}"), rest.to_owned(), format!("{text}A"), String::new()];
        for changed in changed {
            let changed = Cursor::parse(changed).unwrap();
            let lists = lists(&tied.here, members[0], Some(changed));
            let (name, list) = lists.into_iter().find(|(name, _)| name == maker).unwrap();
            let result = list.await;
            assert!(is_refused(&result), "{name}: {result:?}");
        }
    }
    // The same lists of the other community.
    for (maker, cursor) in &made {
        for (name, list) in lists(&tied.there, members[1], Some(cursor.clone())) {
            let result = list.await;
            assert!(is_refused(&result), "a cursor of {maker} in the other's {name}: {result:?}");
        }
    }
}

#[tokio::test]
async fn another_communitys_profile_is_not_there() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let Tied { here, there } = Tied::make(&store, &client).await;
    let foreign = profile(&client, &there, &collector()).await;
    let own = profile(&client, &here, &collector()).await;
    let limit = PageLimit::clamp(10);
    let kind = || BadgeKind::parse("kind0").unwrap();
    let results = [
        ("get", here.profile_get(&Lookup::ProfileId(foreign)).await.map(drop)),
        ("position", here.profile_position(foreign).await.map(drop)),
        ("around", here.profile_list_around(foreign, limit).await.map(drop)),
        ("badges", here.badge_list_by_profile(foreign, limit, None).await.map(drop)),
        ("export", here.profile_export(foreign, limit, None).await.map(drop)),
        ("award", here.badge_award(foreign, kind(), None, None).await.map(drop)),
        ("revoke", here.badge_revoke(foreign, kind(), None, None).await.map(drop)),
        ("hide", here.profile_hide(foreign).await.map(drop)),
        ("show", here.profile_show(foreign).await.map(drop)),
        ("link", here.profile_link_wallet(foreign, None).await.map(drop)),
        ("erase", here.profile_erase(foreign).await),
    ];
    for (name, result) in results {
        assert!(matches!(result, Err(Error::NotFound(Missing::Profile))), "{name}: {result:?}");
    }
    // The same person and the same name lead to this community's profile.
    assert_eq!(here.profile_get(&Lookup::UserId(collector())).await.unwrap().profile.profile_id, own);
    let found = there.profile_get(&Lookup::UserId(collector())).await.unwrap();
    assert_eq!(found.profile.profile_id, foreign);
    let nym = found.profile.nym;
    assert_ne!(here.profile_get(&Lookup::Nym(nym.clone())).await.unwrap().profile.profile_id, foreign);
    let query = SearchQuery::parse(nym.as_str()).unwrap();
    let found = here.profile_search(&query, SearchLimit::MAX).await.unwrap();
    assert!(!found.is_empty() && found.iter().all(|profile| profile.profile_id != foreign));
}
