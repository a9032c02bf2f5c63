//! Every list shows each row once, in its order, with its rank, whatever the size of its pages.

use muster_domain::{Cursor, Direction, DirectorySort, Movement, Page, PageLimit, Tier};
use muster_storage::Community;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::support::consistency;
use crate::support::database::Database;
use crate::support::tied::{Tied, collector, profile};

const SIZES: [u32; 6] = [1, 2, 7, 33, 100, 1000];

async fn tied(test: impl AsyncFn(&Client, &Tied)) {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let tied = Tied::make(&store, &client).await;
    consistency::check(&client).await;
    test(&client, &tied).await;
}

/// Walks a list in pages of every size and compares each walk with `expected`, row by row.
async fn walk<T>(
    name: &str,
    expected: &[String],
    page: impl AsyncFn(PageLimit, Option<&Cursor>) -> Page<T>,
    row: impl Fn(&T) -> String,
) {
    assert!(expected.len() > 3, "{name} has hardly any rows");
    for size in SIZES {
        let (mut rows, mut cursor) = (Vec::new(), None);
        loop {
            let page = page(PageLimit::clamp(size), cursor.as_ref()).await;
            assert_eq!(page.limit, size, "{name}");
            let full = page.items.len() == usize::try_from(size).unwrap();
            assert!(full || page.next.is_none(), "{name}: a short page of {size} is not the last");
            assert!(!page.items.is_empty(), "{name}: an empty page of {size}");
            rows.extend(page.items.iter().map(&row));
            assert!(rows.len() <= expected.len(), "{name} in pages of {size} repeats itself: {rows:#?}");
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(rows, expected, "{name} in pages of {size}");
    }
}

/// One text a row of plain SQL.
async fn plain(client: &Client, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Vec<String> {
    client.query(sql, values).await.unwrap().iter().map(|row| row.get(0)).collect()
}

fn text(tier: Option<&Tier>) -> &str {
    tier.map_or("none", Tier::as_str)
}

#[tokio::test]
async fn ranked() {
    tied(async |client, tied| {
        for community in [&tied.here, &tied.there] {
            let sql = "SELECT concat_ws(' ', profile_id, conviction, rank() OVER (ORDER BY conviction DESC),
                     coalesce(nick, username, user_id))
                 FROM members JOIN communities USING (shard, community)
                 WHERE community_id = $1 AND NOT hidden AND NOT has_left
                 ORDER BY conviction DESC, joined_at, member";
            let expected = plain(client, sql, &[&community.id().get()]).await;
            let page = async |limit, cursor: Option<&Cursor>| {
                community.profile_list_ranked(limit, cursor).await.unwrap()
            };
            walk("ranked", &expected, page, |row| {
                format!(
                    "{} {} {} {}",
                    row.profile.profile_id, row.profile.conviction, row.rank, row.profile.nym
                )
            })
            .await;
        }
    })
    .await;
}

#[tokio::test]
async fn active() {
    tied(async |client, tied| {
        let sql = "SELECT concat_ws(' ', profile_id, activity)
             FROM members JOIN communities USING (shard, community)
             WHERE community_id = $1 AND NOT hidden AND NOT has_left AND activity > 0
             ORDER BY activity DESC, joined_at, member";
        let community = &tied.here;
        let expected = plain(client, sql, &[&community.id().get()]).await;
        let page = async |limit, cursor: Option<&Cursor>| {
            community.profile_list_active(limit, cursor).await.unwrap()
        };
        walk("active", &expected, page, |row| format!("{} {}", row.profile_id, row.activity.get())).await;
    })
    .await;
}

#[tokio::test]
async fn badge_leaderboard() {
    tied(async |client, tied| {
        let sql = "WITH held AS (
                 SELECT m.profile_id, m.joined_at, m.member, (SELECT count(*) FROM badge_ops AS o
                     WHERE o.shard = m.shard AND o.community = m.community AND o.member = m.member
                         AND o.is_badge AND o.revoked_at IS NULL) AS badges
                 FROM members AS m JOIN communities USING (shard, community)
                 WHERE community_id = $1 AND NOT m.hidden AND NOT m.has_left
             )
             SELECT concat_ws(' ', profile_id, badges, rank() OVER (ORDER BY badges DESC)) FROM held
             ORDER BY badges DESC, joined_at, member";
        for community in [&tied.here, &tied.there] {
            let expected = plain(client, sql, &[&community.id().get()]).await;
            let page = async |limit, cursor: Option<&Cursor>| {
                community.badge_leaderboard(limit, cursor).await.unwrap()
            };
            walk("leaderboard", &expected, page, |row| {
                format!("{} {} {}", row.profile.profile_id, row.profile.badge_count, row.badge_rank)
            })
            .await;
        }
    })
    .await;
}

#[tokio::test]
async fn badges_of_a_profile() {
    tied(async |client, tied| {
        let community = &tied.here;
        let id = profile(client, community, &collector()).await;
        let sql = "SELECT concat_ws(' ', op_id, k.name)
             FROM badge_ops JOIN badge_kinds AS k USING (shard, community, kind)
             JOIN members USING (shard, community, member) JOIN communities USING (shard, community)
             WHERE community_id = $1 AND profile_id = $2 AND is_badge AND revoked_at IS NULL
             ORDER BY at DESC, op_id DESC";
        let expected = plain(client, sql, &[&community.id().get(), &id.get()]).await;
        let page = async |limit, cursor: Option<&Cursor>| {
            community.badge_list_by_profile(id, limit, cursor).await.unwrap()
        };
        walk("badges", &expected, page, |badge| format!("{} {}", badge.badge_id, badge.kind)).await;
    })
    .await;
}

#[tokio::test]
async fn badge_kinds() {
    tied(async |client, tied| {
        let community = &tied.here;
        let sql = "SELECT concat_ws(' ', k.name, count(*) FILTER (WHERE revoked_at IS NULL AND NOT hidden AND NOT has_left),
                 extract(epoch FROM min(at))::bigint)
             FROM badge_ops JOIN badge_kinds AS k USING (shard, community, kind)
             JOIN members USING (shard, community, member) JOIN communities USING (shard, community)
             WHERE community_id = $1 AND is_badge GROUP BY k.name ORDER BY k.name";
        let expected = plain(client, sql, &[&community.id().get()]).await;
        let page = async |limit, cursor: Option<&Cursor>| community.badge_kind_list(limit, cursor).await.unwrap();
        walk("kinds", &expected, page, |row| {
            format!("{} {} {}", row.kind, row.holders, row.first_awarded_at.unix_timestamp())
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn tier_progression() {
    tied(async |client, tied| {
        for community in [&tied.here, &tied.there] {
            let sql = "WITH tiers (tier, step, until) AS (
                     VALUES ('fremen', 0, 0), ('stillsuit', 1, 100), ('sietch', 2, 500), ('sayyadina', 3, 1000)
                 ), next AS (
                     SELECT profile_id, conviction, joined_at, member,
                         (SELECT min(t.until) FROM tiers AS t WHERE t.until > conviction) AS until
                     FROM members JOIN communities USING (shard, community)
                     WHERE community_id = $1 AND NOT hidden AND NOT has_left
                 )
                 SELECT concat_ws(' ', profile_id, until - conviction, tier) FROM next JOIN tiers USING (until)
                 ORDER BY until - conviction, step, joined_at, member";
            let expected = plain(client, sql, &[&community.id().get()]).await;
            assert!(expected.iter().any(|row| row.ends_with("fremen")), "some stand below every tier");
            let page = async |limit, cursor: Option<&Cursor>| community.tier_list_progression(limit, cursor).await.unwrap();
            walk("progression", &expected, page, |row| {
                format!("{} {} {}", row.profile.profile_id, row.distance, row.next_tier)
            })
            .await;
        }
    })
    .await;
}

#[tokio::test]
async fn tier_changes() {
    tied(async |client, tied| {
        let community = &tied.here;
        let sql =
            "SELECT concat_ws(' ', profile_id, coalesce(nick, username, user_id), coalesce(o.name, 'none'),
                 coalesce(n.name, 'none'), CASE WHEN promotion THEN 'Promotion' ELSE 'Demotion' END)
             FROM tier_changes AS c JOIN members AS m USING (shard, community, member)
             JOIN communities USING (shard, community)
             LEFT JOIN tiers AS o ON o.shard = c.shard AND o.community = c.community AND o.tier = c.from_tier
             LEFT JOIN tiers AS n ON n.shard = c.shard AND n.community = c.community AND n.tier = c.to_tier
             WHERE community_id = $1 AND NOT m.hidden AND NOT m.has_left ORDER BY at DESC, change DESC";
        let expected = plain(client, sql, &[&community.id().get()]).await;
        let page =
            async |limit, cursor: Option<&Cursor>| community.tier_change_list(limit, cursor).await.unwrap();
        walk("changes", &expected, page, |row| {
            let (from, to) = (text(row.from.as_ref()), text(row.to.as_ref()));
            format!("{} {} {from} {to} {:?}", row.profile_id, row.nym, row.movement)
        })
        .await;
        let all = community.tier_change_list(PageLimit::MAX, None).await.unwrap().items;
        let order: Vec<&Tier> = community.tier_policy().highest_first().collect();
        let place = |tier: Option<&Tier>| {
            tier.map_or(order.len(), |tier| order.iter().position(|t| *t == tier).unwrap())
        };
        for change in &all {
            let up = place(change.to.as_ref()) < place(change.from.as_ref());
            assert_eq!(change.movement == Movement::Promotion, up, "{change:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn export() {
    tied(async |client, tied| {
        let community = &tied.here;
        let id = profile(client, community, &collector()).await;
        let values: [&(dyn ToSql + Sync); 2] = [&community.id().get(), &id.get()];
        let badges = "SELECT op_id::text FROM badge_ops JOIN members USING (shard, community, member)
             JOIN communities USING (shard, community)
             WHERE community_id = $1 AND profile_id = $2 AND is_badge ORDER BY kind, at, op_id";
        let badges = plain(client, badges, &values).await;
        let changes = "SELECT coalesce(t.name, 'none')
             FROM tier_changes AS c JOIN members AS m USING (shard, community, member)
             JOIN communities USING (shard, community)
             LEFT JOIN tiers AS t ON t.shard = c.shard AND t.community = c.community AND t.tier = c.to_tier
             WHERE community_id = $1 AND profile_id = $2 ORDER BY change";
        let changes = plain(client, changes, &values).await;
        let additions = "SELECT a.amount::text FROM activity_adds AS a JOIN members USING (shard, community, member)
             JOIN communities USING (shard, community)
             WHERE community_id = $1 AND profile_id = $2 ORDER BY a.at, a.event_id";
        let additions = plain(client, additions, &values).await;
        let others = "SELECT n.name || ' ' || o.award FROM badge_ops AS o JOIN members USING (shard, community, member)
             JOIN communities USING (shard, community)
             JOIN badge_kinds AS n ON n.shard = o.shard AND n.community = o.community AND n.kind = o.kind
             WHERE community_id = $1 AND profile_id = $2 AND NOT is_badge ORDER BY o.kind, o.at, o.op_id";
        let others = plain(client, others, &values).await;
        assert!(badges.len() > 30 && !changes.is_empty());
        assert!(additions.len() > 1 && others.len() > 1, "{additions:?}, {others:?}");
        for size in SIZES {
            let (mut found_badges, mut found_changes, mut cursor) = (Vec::new(), Vec::new(), None);
            let (mut found_additions, mut found_others) = (Vec::new(), Vec::new());
            loop {
                let page =
                    community.profile_export(id, PageLimit::clamp(size), cursor.as_ref()).await.unwrap();
                assert_eq!(page.profile.user_id, collector());
                found_badges.extend(page.badges.iter().map(|badge| badge.badge_id.to_string()));
                found_changes
                    .extend(page.tier_changes.iter().map(|change| text(change.to.as_ref()).to_owned()));
                found_additions.extend(page.additions.iter().map(|added| added.amount.get().to_string()));
                found_others.extend(page.operations.iter().map(|of| format!("{} {}", of.kind, of.award)));
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
            assert_eq!(
                (found_badges, found_changes, found_additions, found_others),
                (badges.clone(), changes.clone(), additions.clone(), others.clone()),
                "in pages of {size}"
            );
        }
    })
    .await;
}

/// One page of the directory as text.
fn directory_rows(page: &muster_domain::DirectoryPage) -> Vec<String> {
    page.items.iter().map(|row| row.profile.profile_id.to_string()).collect()
}

async fn directory_expected(
    client: &Client,
    community: &Community,
    tier: Option<&Tier>,
    (sort, direction): (DirectorySort, Direction),
) -> Vec<String> {
    let order = match (sort, direction) {
        (DirectorySort::Nym, Direction::Asc) => "nym_key, joined_at, member",
        (DirectorySort::Nym, Direction::Desc) => "nym_key DESC, joined_at DESC, member DESC",
        (DirectorySort::Tenure, Direction::Desc) => "joined_at, member",
        (DirectorySort::Tenure, Direction::Asc) => "joined_at DESC, member DESC",
        (DirectorySort::Badges, Direction::Desc) => "badge_count DESC, joined_at, member",
        (DirectorySort::Badges, Direction::Asc) => "badge_count, joined_at DESC, member DESC",
    };
    let sql = format!(
        "SELECT profile_id::text FROM members JOIN communities USING (shard, community)
         LEFT JOIN tiers AS t USING (shard, community, tier)
         WHERE community_id = $1 AND NOT hidden AND NOT has_left AND ($2::text IS NULL OR t.name = $2)
         ORDER BY {order}"
    );
    let id: Uuid = community.id().get();
    plain(client, &sql, &[&id, &tier.map(Tier::as_str)]).await
}

#[tokio::test]
async fn directory() {
    tied(async |client, tied| {
        let community = &tied.here;
        let fedaykin = Tier::parse("fedaykin").unwrap();
        for tier in [None, Some(&fedaykin)] {
            for sort in [DirectorySort::Nym, DirectorySort::Tenure, DirectorySort::Badges] {
                for direction in [Direction::Asc, Direction::Desc] {
                    let expected = directory_expected(client, community, tier, (sort, direction)).await;
                    let total = u64::try_from(expected.len()).unwrap();
                    let list = async |limit, cursor: Option<&Cursor>, skipped| {
                        let page = community.directory_list(tier, sort, direction, limit, cursor, skipped);
                        let page = page.await.unwrap();
                        assert_eq!(page.total, total);
                        page
                    };
                    let by_cursor = async |limit, cursor: Option<&Cursor>| {
                        let page = list(limit, cursor, 0).await;
                        Page { items: directory_rows(&page), next: page.next, limit: page.limit }
                    };
                    let name = format!("directory {tier:?} {sort} {direction}");
                    walk(&name, &expected, by_cursor, String::clone).await;
                    for size in [1, 7, 100] {
                        for (number, rows) in expected.chunks(size).enumerate() {
                            let skipped = u32::try_from(number * size).unwrap();
                            let limit = PageLimit::clamp(u32::try_from(size).unwrap());
                            let page = list(limit, None, skipped).await;
                            assert_eq!(directory_rows(&page), rows, "{name}, page {number} of {size}");
                            let is_last = (number + 1) * size >= expected.len();
                            assert_eq!(page.next.is_none(), is_last, "{name}, page {number} of {size}");
                        }
                    }
                    // A cursor goes on where a page by number ended.
                    let page = list(PageLimit::clamp(10), None, 20).await;
                    let page = list(PageLimit::clamp(10), page.next.as_ref(), 0).await;
                    assert_eq!(directory_rows(&page), expected[30..40], "{name}");
                }
            }
        }
        let nobody = Tier::parse("nobody").unwrap();
        let ten = PageLimit::clamp(10);
        let page = community
            .directory_list(Some(&nobody), DirectorySort::Nym, Direction::Asc, ten, None, 0)
            .await
            .unwrap();
        assert_eq!((page.items.len(), page.next, page.total), (0, None, 0));
    })
    .await;
}
