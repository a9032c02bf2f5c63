//! The questions: each with the best bare SQL for it, and with plain SQL that counts and sorts to the same answer.
//!
//! Both are written apart from the storage crate's SQL. The plain SQL answers one text a row: the fields that are compared,
//! joined by `|`, in the order of the list.

use anyhow::{Context, Result};
use muster_domain::{CommunityId, Cursor, CursorKey, CursorScope};
use muster_messaging::endpoint::Endpoint;
use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::community::Community;

/// What kind of question it is: its limits differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// A page of a list.
    List,
    /// A rank or a position of one member.
    LookUp,
    /// A search.
    Search,
    /// Kept counts.
    Counts,
}

/// A value of a bare statement.
pub(super) type Bound = Box<dyn ToSql + Sync + Send>;

fn bound(community: Bound, member: Bound) -> Vec<Bound> {
    vec![community, member]
}

/// A question with its values.
pub(super) struct Ask {
    /// The request's body.
    pub(super) body: Vec<u8>,
    /// The values of the bare statement.
    pub(super) values: Vec<Bound>,
    /// Plain SQL for the same answer; only some of many asks have one, for it reads everything.
    pub(super) plain: Option<String>,
}

/// One question to one community, at one depth.
pub(super) struct Question {
    /// The same in every community and at every depth.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) endpoint: Endpoint,
    /// Rows before the page.
    pub(super) depth: u64,
    pub(super) bare: String,
    /// The fields of the answer, or of each of its items, that the plain SQL tells.
    pub(super) fields: &'static [&'static str],
    pub(super) asks: Vec<Ask>,
}

/// The columns of a profile.
const PROFILE: &str = "p.profile_id, p.user_id, p.wallet, p.nym, s.conviction, s.activity, p.tier, p.badge_count, \
                       p.joined_at, s.last_active_at, p.visible";
/// Of each key in `k`, its profile.
const OF_EACH: &str = "FROM k CROSS JOIN LATERAL (SELECT * FROM profiles AS p WHERE p.community_id = $1 AND \
                       p.profile_id = k.profile_id LIMIT 1) AS p CROSS JOIN LATERAL (SELECT * FROM scores AS s WHERE \
                       s.community_id = $1 AND s.profile_id = k.profile_id LIMIT 1) AS s";
/// Of each row of scores in `k`, its profile.
const OF_EACH_SCORE: &str = "FROM k AS s CROSS JOIN LATERAL (SELECT * FROM profiles AS p WHERE p.community_id = $1 AND \
                             p.profile_id = s.profile_id LIMIT 1) AS p";
/// How members are told apart from those that no list shows.
const SEEN: &str = "NOT p.has_left AND NOT p.hidden AND p.erased_at IS NULL";
/// How many different members the questions about one member ask for, and how many of them plain counting confirms.
const MEMBERS: usize = 64;
const CONFIRMED: usize = 2;

/// One list, as data.
struct List {
    name: &'static str,
    endpoint: Endpoint,
    body: Value,
    limit: u32,
    /// Where its keys are read from, with the condition, and the sort columns.
    source: &'static str,
    columns: &'static str,
    order: &'static str,
    /// `<` or `>` behind a row, and the sort columns' values of it as SQL text.
    beyond: &'static str,
    literal: &'static str,
    /// What is told with each profile.
    told: &'static str,
    fields: &'static [&'static str],
    /// Plain SQL without order: the text of each row, and whatever it is sorted by.
    plain: &'static str,
    plain_order: &'static str,
    ordering: &'static str,
    cursor: fn(&Row) -> Result<Position>,
}

/// A position in a list, as its cursor holds it.
#[derive(Serialize)]
#[serde(untagged)]
enum Position {
    Score(i64, Uuid),
    Badges(i32, i64, Uuid),
    Change(i64, i64),
    Directory(Directory),
}

/// As the directory's cursors hold it.
#[derive(Serialize)]
enum Directory {
    Nym(String, i64, Uuid),
    Joined(i64, Uuid),
    Badges(i32, i64, Uuid),
}

const fn lists() -> [fn() -> List; 8] {
    [
        ranked,
        ranked_thousand,
        active,
        leaderboard,
        directory_nym,
        directory_tier,
        directory_tenure,
        directory_badges,
    ]
}

fn ranked() -> List {
    List {
        name: "profiles.ranked, 100",
        endpoint: Endpoint::ProfilesRanked,
        body: json!({"limit": 100}),
        limit: 100,
        source: "scores AS q WHERE q.community_id = $1 AND q.visible",
        columns: "q.conviction, q.profile_id",
        order: "q.conviction DESC, q.profile_id DESC",
        beyond: "<",
        literal: "format('(%s, %L::uuid)', q.conviction, q.profile_id), q.conviction, q.profile_id",
        told: ", (SELECT members_above($1, 1, max(conviction)) FROM k), (SELECT members_at($1, 1, max(conviction)) FROM k)",
        fields: &["profile_id", "rank"],
        plain: "p.profile_id || '|' || rank() OVER (ORDER BY s.conviction DESC)",
        plain_order: "s.conviction DESC, p.profile_id DESC",
        ordering: "",
        cursor: |row| Ok(Position::Score(row.try_get(1)?, row.try_get(2)?)),
    }
}

fn ranked_thousand() -> List {
    List { name: "profiles.ranked, 1000", body: json!({"limit": 1000}), limit: 1000, ..ranked() }
}

fn active() -> List {
    List {
        name: "profiles.active, 5",
        endpoint: Endpoint::ProfilesActive,
        body: json!({}),
        limit: 5,
        source: "scores AS q WHERE q.community_id = $1 AND q.visible AND q.activity > 0",
        columns: "q.activity, q.profile_id",
        order: "q.activity DESC, q.profile_id DESC",
        literal: "format('(%s, %L::uuid)', q.activity, q.profile_id), q.activity, q.profile_id",
        told: "",
        fields: &["profile_id", "activity"],
        plain: "CASE WHEN s.activity > 0 THEN p.profile_id || '|' || s.activity END",
        plain_order: "s.activity DESC, p.profile_id DESC",
        ..ranked()
    }
}

fn leaderboard() -> List {
    List {
        name: "badges.leaderboard, 10",
        endpoint: Endpoint::BadgesLeaderboard,
        body: json!({}),
        limit: 10,
        source: "profiles AS q WHERE q.community_id = $1 AND q.visible",
        columns: "(-q.badge_count), q.joined_at, q.profile_id",
        order: "(-q.badge_count), q.joined_at, q.profile_id",
        beyond: ">",
        literal: "format('(%s, %L::timestamptz, %L::uuid)', -q.badge_count, q.joined_at, q.profile_id), -q.badge_count, \
                  (extract(epoch FROM q.joined_at) * 1000000)::bigint, q.profile_id",
        told: ", (SELECT members_above($1, 2, max(badge_count)) FROM k), (SELECT members_at($1, 2, max(badge_count)) FROM k)",
        fields: &["profile_id", "badge_count", "badge_rank"],
        plain: "p.profile_id || '|' || h.held || '|' || rank() OVER (ORDER BY h.held DESC)",
        plain_order: "h.held DESC, p.joined_at, p.profile_id",
        cursor: |row| Ok(Position::Badges(row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)),
        ..ranked()
    }
}

fn directory_nym() -> List {
    List {
        name: "directory.list by nym, 10",
        endpoint: Endpoint::DirectoryList,
        body: json!({}),
        limit: 10,
        columns: "q.nym_key, q.joined_at, q.profile_id",
        order: "q.nym_key, q.joined_at, q.profile_id",
        literal: "format('(%L, %L::timestamptz, %L::uuid)', q.nym_key, q.joined_at, q.profile_id), q.nym_key, \
                  (extract(epoch FROM q.joined_at) * 1000000)::bigint, q.profile_id",
        told: "",
        fields: &["profile_id", "badge_count"],
        plain: "p.profile_id || '|' || h.held",
        plain_order: "p.nym_key, p.joined_at, p.profile_id",
        ordering: "nym:asc:",
        cursor: |row| {
            Ok(Position::Directory(Directory::Nym(row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)))
        },
        ..leaderboard()
    }
}

fn directory_tier() -> List {
    List {
        name: "directory.list of a tier, 10",
        body: json!({"tier": "stillsuit"}),
        source: "profiles AS q WHERE q.community_id = $1 AND q.visible AND q.tier = 'stillsuit'",
        plain: "CASE WHEN p.tier = 'stillsuit' THEN p.profile_id || '|' || h.held END",
        ordering: "nym:asc:stillsuit",
        ..directory_nym()
    }
}

fn directory_tenure() -> List {
    List {
        name: "directory.list by tenure, 10",
        body: json!({"sort": "tenure"}),
        columns: "q.joined_at, q.profile_id",
        order: "q.joined_at, q.profile_id",
        literal: "format('(%L::timestamptz, %L::uuid)', q.joined_at, q.profile_id), \
                  (extract(epoch FROM q.joined_at) * 1000000)::bigint, q.profile_id",
        plain_order: "p.joined_at, p.profile_id",
        ordering: "tenure:desc:",
        cursor: |row| Ok(Position::Directory(Directory::Joined(row.try_get(1)?, row.try_get(2)?))),
        ..directory_nym()
    }
}

fn directory_badges() -> List {
    List {
        name: "directory.list by badges, 10",
        endpoint: Endpoint::DirectoryList,
        body: json!({"sort": "badges"}),
        told: "",
        fields: &["profile_id", "badge_count"],
        plain: "p.profile_id || '|' || h.held",
        ordering: "badges:desc:",
        cursor: |row| {
            Ok(Position::Directory(Directory::Badges(row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)))
        },
        ..leaderboard()
    }
}

/// Every question to a community: lists from their beginning and, but for the longest pages, at nine tenths of their depth.
///
/// # Errors
/// When the database does not answer.
pub(super) async fn of(community: &Community, client: &Client) -> Result<Vec<Question>> {
    let secret: Vec<u8> =
        client.query_one("SELECT secret FROM signing_keys WHERE purpose = 'cursor'", &[]).await?.get(0);
    let key = CursorKey::new(secret.try_into().ok().context("a signing key of another length")?);
    let id = community.id;
    let mut questions = Vec::new();
    for list in lists() {
        let list = list();
        questions.push(page(&list, id, 0, None)?);
        let count = format!("SELECT count(*) FROM {}", list.source);
        let rows: i64 = client.query_one(&count, &[&id.get()]).await?.get(0);
        let depth = u64::try_from(rows)?.saturating_mul(9) / 10;
        let last = format!(
            "SELECT {} FROM {} ORDER BY {} OFFSET {} LIMIT 1",
            list.literal,
            list.source,
            list.order,
            depth.saturating_sub(1)
        );
        let row = client.query_one(&last, &[&id.get()]).await?;
        let scope = CursorScope { endpoint: list.endpoint.name(), community: id, ordering: list.ordering };
        let cursor = key.seal(&scope, &(list.cursor)(&row)?)?;
        questions.push(page(&list, id, depth, Some((cursor, row.try_get(0)?)))?);
    }
    questions.extend(progression(client, id, &key).await?);
    questions.extend(changes(client, id, &key).await?);
    questions.extend(of_members(client, id).await?);
    questions.extend(searches(id));
    questions.push(kinds(id));
    questions.push(stats(id));
    questions.push(threshold(id));
    questions.push(find(community)?);
    Ok(questions)
}

fn page(list: &List, id: CommunityId, depth: u64, behind: Option<(Cursor, String)>) -> Result<Question> {
    let mut body = list.body.clone();
    let mut condition = String::new();
    if let Some((cursor, literal)) = behind {
        if let Some(fields) = body.as_object_mut() {
            fields.insert("cursor".to_owned(), json!(cursor.as_str()));
        }
        condition = format!(" AND ({}) {} {literal}", list.columns, list.beyond);
    }
    // A list in the order of a score has read the scores already.
    let (keys, of_each, row) = if list.source.starts_with("scores") {
        ("q.*".to_owned(), OF_EACH_SCORE, "s.")
    } else {
        (list.columns.replace("(-q.badge_count)", "q.badge_count"), OF_EACH, "k.")
    };
    let outer = list.order.replace("q.", row);
    let bare = format!(
        "WITH k AS MATERIALIZED (SELECT {keys} FROM {}{condition} ORDER BY {} LIMIT {}) SELECT {PROFILE}{} {of_each} \
         ORDER BY {outer}",
        list.source,
        list.order,
        list.limit + 1,
        list.told
    );
    let held = if list.plain.contains("h.held") || list.plain_order.contains("h.held") {
        "LEFT JOIN (SELECT profile_id, count(*) AS held FROM badges WHERE community_id = $1 AND revoked_at IS NULL \
         GROUP BY 1) AS b USING (profile_id) CROSS JOIN LATERAL (SELECT coalesce(b.held, 0) AS held) AS h"
    } else {
        ""
    };
    let plain = format!(
        "SELECT told FROM (SELECT {} AS told, row_number() OVER (ORDER BY {}) AS place FROM profiles AS p JOIN scores AS s \
         USING (community_id, profile_id) {held} WHERE community_id = $1 AND {SEEN}) AS r WHERE told IS NOT NULL \
         ORDER BY place OFFSET {depth} LIMIT {}",
        list.plain, list.plain_order, list.limit
    );
    Ok(Question {
        name: list.name,
        kind: Kind::List,
        endpoint: list.endpoint,
        depth,
        bare,
        fields: list.fields,
        asks: vec![Ask {
            body: serde_json::to_vec(&body)?,
            values: vec![Box::new(id.get())],
            plain: Some(plain),
        }],
    })
}

/// The default policy's score tiers.
const TIERS: [i64; 4] = [0, 100, 500, 1000];

async fn progression(client: &Client, id: CommunityId, key: &CursorKey) -> Result<Vec<Question>> {
    const ENDPOINT: Endpoint = Endpoint::TiersProgression;
    let ordered = "SELECT n.tier - s.conviction AS distance, (n.step - 1)::smallint AS step, s.profile_id
         FROM scores AS s JOIN profiles AS p USING (community_id, profile_id)
         CROSS JOIN LATERAL (SELECT t.tier, t.step FROM unnest('{0,100,500,1000}'::bigint[]) WITH ORDINALITY AS t (tier, step)
             WHERE t.tier > s.conviction ORDER BY t.tier LIMIT 1) AS n
         WHERE community_id = $1 AND NOT p.has_left AND NOT p.hidden AND p.erased_at IS NULL";
    let count = format!("SELECT count(*) FROM ({ordered}) AS r");
    let rows: i64 = client.query_one(&count, &[&id.get()]).await?.get(0);
    let depth = u64::try_from(rows)?.saturating_mul(9) / 10;
    let mut questions = Vec::new();
    for depth in [0, depth] {
        let (mut distance, mut step, mut after) = (0_i64, i16::MAX, Uuid::nil());
        let mut body = json!({});
        if depth > 0 {
            let last = format!(
                "{ordered} ORDER BY distance, step, profile_id DESC OFFSET {} LIMIT 1",
                depth.saturating_sub(1)
            );
            let row = client.query_one(&last, &[&id.get()]).await?;
            (distance, step, after) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let scope = CursorScope { endpoint: ENDPOINT.name(), community: id, ordering: "" };
            body = json!({"cursor": key.seal(&scope, &(distance, step, after))?.as_str()});
        }
        let mut low = i64::MIN;
        let mut branches = Vec::new();
        for (number, until) in (0_i16..).zip(TIERS) {
            let behind = match number.cmp(&step) {
                std::cmp::Ordering::Less => Uuid::nil(),
                std::cmp::Ordering::Equal => after,
                std::cmp::Ordering::Greater => Uuid::max(),
            };
            branches.push(format!(
                "(SELECT {until} - q.conviction AS distance, {number} AS step, q.profile_id FROM scores AS q WHERE \
                 q.community_id = $1 AND q.visible AND q.conviction >= ({low})::numeric::bigint AND \
                 (q.conviction, q.profile_id) < ({until} - {distance}, '{behind}'::uuid) \
                 ORDER BY q.conviction DESC, q.profile_id DESC LIMIT 11)"
            ));
            low = until;
        }
        questions.push(Question {
            name: "tiers.progression, 10",
            kind: Kind::List,
            endpoint: ENDPOINT,
            depth,
            bare: format!(
                "WITH k AS MATERIALIZED (SELECT * FROM ({}) AS u ORDER BY distance, step, profile_id DESC LIMIT 11) SELECT \
                 {PROFILE}, k.distance, k.step {OF_EACH} ORDER BY k.distance, k.step, k.profile_id DESC",
                branches.join(" UNION ALL ")
            ),
            fields: &["profile_id", "distance"],
            asks: vec![Ask {
                body: serde_json::to_vec(&body)?,
                values: vec![Box::new(id.get())],
                plain: Some(format!(
                    "SELECT profile_id || '|' || distance FROM ({ordered}) AS r \
                     ORDER BY distance, step, profile_id DESC OFFSET {depth} LIMIT 10"
                )),
            }],
        });
    }
    Ok(questions)
}

async fn changes(client: &Client, id: CommunityId, key: &CursorKey) -> Result<Vec<Question>> {
    const ENDPOINT: Endpoint = Endpoint::TiersChanges;
    let rows: i64 = client
        .query_one("SELECT count(*) FROM tier_changes WHERE community_id = $1 AND visible", &[&id.get()])
        .await?
        .get(0);
    let depth = u64::try_from(rows)?.saturating_mul(9) / 10;
    let mut questions = Vec::new();
    for depth in [0, depth] {
        let mut body = json!({});
        let mut condition = String::new();
        if depth > 0 {
            let last = format!(
                "SELECT format('(%L::timestamptz, %s)', at, change_id), (extract(epoch FROM at) * 1000000)::bigint, change_id
                 FROM tier_changes WHERE community_id = $1 AND visible ORDER BY at DESC, change_id DESC OFFSET {} LIMIT 1",
                depth.saturating_sub(1)
            );
            let row = client.query_one(&last, &[&id.get()]).await?;
            let scope = CursorScope { endpoint: ENDPOINT.name(), community: id, ordering: "" };
            body = json!({"cursor": key.seal(&scope, &Position::Change(row.try_get(1)?, row.try_get(2)?))?.as_str()});
            condition = format!(" AND (q.at, q.change_id) < {}", row.try_get::<_, String>(0)?);
        }
        questions.push(Question {
            name: "tiers.changes, 5",
            kind: Kind::List,
            endpoint: ENDPOINT,
            depth,
            bare: format!(
                "SELECT k.*, p.nym FROM (SELECT q.change_id, q.profile_id, q.from_tier, q.to_tier, q.promotion, q.at FROM \
                 tier_changes AS q WHERE q.community_id = $1 AND q.visible{condition} ORDER BY q.at DESC, q.change_id DESC \
                 LIMIT 6) AS k CROSS JOIN LATERAL (SELECT nym FROM profiles AS p WHERE p.community_id = $1 AND \
                 p.profile_id = k.profile_id LIMIT 1) AS p ORDER BY k.at DESC, k.change_id DESC"
            ),
            fields: &["profile_id", "to"],
            asks: vec![Ask {
                body: serde_json::to_vec(&body)?,
                values: vec![Box::new(id.get())],
                plain: Some(format!(
                    "SELECT c.profile_id || '|' || c.to_tier FROM tier_changes AS c JOIN profiles AS p USING (community_id, \
                     profile_id) WHERE community_id = $1 AND {SEEN} ORDER BY c.at DESC, c.change_id DESC OFFSET {depth} \
                     LIMIT 5"
                )),
            }],
        });
    }
    Ok(questions)
}

async fn of_members(client: &Client, id: CommunityId) -> Result<Vec<Question>> {
    let sample = format!(
        "SELECT p.profile_id, p.user_id, p.wallet, p.nym, p.nym_key, s.conviction FROM profiles AS p
         JOIN scores AS s USING (community_id, profile_id)
         WHERE community_id = $1 AND p.visible AND p.wallet IS NOT NULL ORDER BY md5(p.user_id) LIMIT {MEMBERS}"
    );
    let rows = client.query(&sample, &[&id.get()]).await?;
    let ranks = format!(
        "(SELECT 1 + count(*) FROM scores AS s JOIN profiles AS p USING (community_id, profile_id)
          WHERE community_id = $1 AND {SEEN} AND s.conviction > m.conviction)"
    );
    let badge_ranks = format!(
        "(SELECT 1 + count(*) FROM (SELECT count(b.badge_id) AS held FROM profiles AS p LEFT JOIN badges AS b ON
              b.community_id = p.community_id AND b.profile_id = p.profile_id AND b.revoked_at IS NULL
          WHERE p.community_id = $1 AND {SEEN} GROUP BY p.profile_id) AS h WHERE h.held >
              (SELECT count(*) FROM badges WHERE community_id = $1 AND profile_id = m.profile_id AND revoked_at IS NULL))"
    );
    let by = |name: &'static str, field: &'static str, condition: &str, value: fn(&Row) -> Result<Bound>| {
        let asks = rows.iter().enumerate().map(|(number, row)| {
            let profile: Uuid = row.try_get(0)?;
            let given = match field {
                "profile_id" => json!(profile),
                _ => json!(row.try_get::<_, String>(field)?),
            };
            // Of several of one nym, who joined first is meant.
            let who = match field {
                "nym" => format!(
                    "(SELECT profile_id FROM profiles AS p WHERE p.community_id = $1 AND p.nym_key = (SELECT nym_key FROM \
                     profiles WHERE community_id = $1 AND profile_id = '{profile}') AND {SEEN} \
                     ORDER BY p.joined_at, p.profile_id LIMIT 1)"
                ),
                _ => format!("'{profile}'::uuid"),
            };
            Ok(Ask {
                body: serde_json::to_vec(&json!({ field: given }))?,
                values: bound(Box::new(id.get()), value(row)?),
                plain: (number < CONFIRMED).then(|| {
                    format!(
                        "SELECT m.profile_id || '|' || {ranks} || '|' || {badge_ranks} FROM scores AS m \
                         WHERE m.community_id = $1 AND m.profile_id = {who}"
                    )
                }),
            })
        });
        Ok::<_, anyhow::Error>(Question {
            name,
            kind: Kind::LookUp,
            endpoint: Endpoint::ProfilesGet,
            depth: 0,
            bare: format!(
                "SELECT {PROFILE}, members_above($1, 1, s.conviction), members_above($1, 2, p.badge_count) FROM (SELECT * FROM \
                 profiles AS p WHERE p.community_id = $1 AND {condition} LIMIT 1) AS p CROSS JOIN LATERAL (SELECT * FROM \
                 scores AS s WHERE s.community_id = $1 AND s.profile_id = p.profile_id LIMIT 1) AS s WHERE p.visible"
            ),
            fields: &["profile_id", "rank", "badge_rank"],
            asks: asks.collect::<Result<_>>()?,
        })
    };
    let one = |name, endpoint, bare: String, fields, plain: &dyn Fn(Uuid) -> String, kind| {
        let asks = rows.iter().enumerate().map(|(number, row)| {
            let profile: Uuid = row.try_get(0)?;
            Ok(Ask {
                body: serde_json::to_vec(&json!({"profile_id": profile}))?,
                values: bound(Box::new(id.get()), Box::new(profile)),
                plain: (number < CONFIRMED).then(|| plain(profile)),
            })
        });
        let asks = asks.collect::<Result<_>>()?;
        Ok::<_, anyhow::Error>(Question { name, kind, endpoint, depth: 0, bare, fields, asks })
    };
    Ok(vec![
        by("profiles.get by id", "profile_id", "p.profile_id = $2", |row| Ok(Box::new(row.try_get::<_, Uuid>(0)?)))?,
        by("profiles.get by user", "user_id", "p.user_id = $2", |row| Ok(Box::new(row.try_get::<_, String>(1)?)))?,
        by("profiles.get by wallet", "wallet", "p.wallet = $2", |row| Ok(Box::new(row.try_get::<_, String>(2)?)))?,
        by(
            "profiles.get by nym",
            "nym",
            "p.visible AND p.nym_key = $2 ORDER BY p.community_id, p.nym_key, p.joined_at, p.profile_id",
            |row| Ok(Box::new(row.try_get::<_, String>(4)?)),
        )?,
        one(
            "profiles.position",
            Endpoint::ProfilesPosition,
            "SELECT s.conviction, members_above($1, 1, s.conviction), (SELECT n.conviction FROM scores AS n WHERE \
             n.community_id = $1 AND n.visible AND n.conviction > s.conviction ORDER BY n.conviction LIMIT 1), (SELECT \
             n.conviction FROM scores AS n WHERE n.community_id = $1 AND n.visible AND n.conviction < s.conviction ORDER BY \
             n.conviction DESC LIMIT 1), (SELECT t.cut FROM tier_policies AS t WHERE t.community_id = $1 AND t.last_rank \
             IS NOT NULL ORDER BY t.last_rank DESC LIMIT 1) FROM scores AS s WHERE s.community_id = $1 AND s.profile_id = $2 \
             AND s.visible"
                .to_owned(),
            &["profile_id", "rank", "distance_above", "distance_below"],
            &|profile| {
                format!(
                    "SELECT m.profile_id || '|' || {ranks} || '|' || coalesce((SELECT min(s.conviction) - m.conviction FROM \
                     scores AS s WHERE s.community_id = $1 AND s.visible AND s.conviction > m.conviction)::text, 'null') \
                     || '|' || coalesce((SELECT m.conviction - max(s.conviction) FROM scores AS s WHERE s.community_id = $1 \
                     AND s.visible AND s.conviction < m.conviction)::text, 'null') FROM scores AS m \
                     WHERE m.community_id = $1 AND m.profile_id = '{profile}'"
                )
            },
            Kind::LookUp,
        )?,
        one(
            "profiles.around, 10",
            Endpoint::ProfilesAround,
            format!(
                "WITH t AS MATERIALIZED (SELECT profile_id, conviction FROM scores WHERE community_id = $1 AND profile_id = \
                 $2 AND visible), k AS MATERIALIZED (SELECT profile_id, conviction FROM ((SELECT q.profile_id, q.conviction, \
                 row_number() OVER (ORDER BY q.conviction, q.profile_id) AS d, 1 AS side FROM scores AS q WHERE \
                 q.community_id = $1 AND q.visible AND (q.conviction, q.profile_id) > ((SELECT conviction FROM t), (SELECT \
                 profile_id FROM t)) ORDER BY q.conviction, q.profile_id LIMIT 10) UNION ALL (SELECT q.profile_id, \
                 q.conviction, row_number() OVER (ORDER BY q.conviction DESC, q.profile_id DESC), 2 FROM scores AS q WHERE \
                 q.community_id = $1 AND q.visible AND (q.conviction, q.profile_id) < ((SELECT conviction FROM t), (SELECT \
                 profile_id FROM t)) ORDER BY q.conviction DESC, q.profile_id DESC LIMIT 10) UNION ALL SELECT *, 0, 0 FROM t) \
                 AS n ORDER BY d, side LIMIT 10) SELECT {PROFILE}, (SELECT members_above($1, 1, max(conviction)) FROM k), \
                 (SELECT members_at($1, 1, max(conviction)) FROM k) {OF_EACH} ORDER BY k.conviction DESC, k.profile_id DESC"
            ),
            &["profile_id", "rank"],
            &|profile| {
                format!(
                    "WITH r AS MATERIALIZED (SELECT p.profile_id, rank() OVER (ORDER BY s.conviction DESC) AS rank, \
                     row_number() OVER (ORDER BY s.conviction DESC, p.profile_id DESC) AS place, count(*) OVER () AS members \
                     FROM profiles AS p JOIN scores AS s USING (community_id, profile_id) WHERE community_id = $1 AND {SEEN}), \
                     m AS (SELECT place FROM r WHERE profile_id = '{profile}') SELECT profile_id || '|' || rank FROM (SELECT \
                     r.* FROM r, m ORDER BY abs(r.place - m.place), r.place LIMIT 10) AS n ORDER BY place"
                )
            },
            Kind::List,
        )?,
        one(
            "profiles.badges, 100",
            Endpoint::ProfilesBadges,
            // Of a member whom lists show: a hidden one's are not answered.
            "SELECT b.badge_id, b.profile_id, b.kind, b.awarded_at, b.awarded_by, b.reason, b.revoked_at, b.revoked_by, \
             b.revoke_reason FROM profiles AS p JOIN badges AS b USING (community_id, profile_id) WHERE community_id = $1 AND \
             profile_id = $2 AND p.visible AND b.revoked_at IS NULL ORDER BY b.awarded_at DESC, b.badge_id DESC LIMIT 101"
                .to_owned(),
            &["badge_id", "kind"],
            &|profile| {
                format!(
                    "SELECT badge_id || '|' || kind FROM (SELECT * FROM badges WHERE community_id = $1 AND profile_id = \
                     '{profile}' AND revoked_at IS NULL) AS b ORDER BY awarded_at DESC, badge_id DESC LIMIT 100"
                )
            },
            Kind::List,
        )?,
    ])
}

fn searches(id: CommunityId) -> Vec<Question> {
    let queries = [
        ("profiles.search of 1 letter", "a"),
        ("profiles.search of 3 letters", "sha"),
        ("profiles.search of nothing there", "qqzzq"),
        ("profiles.search of Cyrillic", "ярос"),
    ];
    let search = |(name, query): (&'static str, &'static str)| Question {
        name,
        kind: Kind::Search,
        endpoint: Endpoint::ProfilesSearch,
        depth: 0,
        bare: format!(
            "WITH a AS MATERIALIZED (SELECT t.profile_id, t.tail, t.class FROM nym_tails AS t WHERE t.community_id = $1 AND \
             t.class = 0 AND t.tail >= $2 AND t.tail < $3 ORDER BY t.tail, t.profile_id LIMIT 25), b AS MATERIALIZED (SELECT \
             t.profile_id, t.tail, t.class FROM nym_tails AS t WHERE t.community_id = $1 AND t.class = 1 AND t.tail >= $2 AND \
             t.tail < $3 AND (SELECT count(*) FROM a) < 25 ORDER BY t.tail, t.profile_id LIMIT 800), c AS MATERIALIZED \
             (SELECT t.profile_id, t.tail, t.class FROM nym_tails AS t WHERE t.community_id = $1 AND t.class = 2 AND t.tail >= \
             $2 AND t.tail < $3 AND (SELECT count(DISTINCT profile_id) FROM (TABLE a UNION ALL TABLE b) AS m) < 25 ORDER BY \
             t.tail, t.profile_id LIMIT 800), k AS MATERIALIZED (SELECT * FROM (SELECT DISTINCT ON (profile_id) * FROM (TABLE \
             a UNION ALL TABLE b UNION ALL TABLE c) AS m ORDER BY profile_id, class, tail) AS best ORDER BY class, tail, \
             profile_id LIMIT 25) SELECT {PROFILE} {OF_EACH} ORDER BY k.class, k.tail, k.profile_id"
        ),
        fields: &["profile_id"],
        asks: vec![Ask {
            body: json!({ "query": query }).to_string().into_bytes(),
            values: vec![
                Box::new(id.get()),
                Box::new(query.to_owned()),
                Box::new(format!("{query}{}", char::MAX)),
            ],
            plain: Some(format!(
                "SELECT profile_id::text FROM (SELECT DISTINCT ON (p.profile_id) p.profile_id, CASE WHEN at = 1 THEN 0 WHEN \
                 substr(p.nym_key, at - 1, 1) ~ '[[:space:][:punct:]]' COLLATE \"C\" THEN 1 ELSE 2 END AS class, \
                 substr(p.nym_key, at) AS tail FROM profiles AS p CROSS JOIN LATERAL generate_series(1, \
                 least(length(p.nym_key), 32)) AS at WHERE p.community_id = $1 AND {SEEN} AND strpos(p.nym_key, '{query}') > 0 \
                 AND starts_with(substr(p.nym_key, at), '{query}') ORDER BY p.profile_id, class, tail) AS b \
                 ORDER BY class, tail COLLATE \"C\", profile_id LIMIT 25"
            )),
        }],
    };
    queries.map(search).into()
}

fn kinds(id: CommunityId) -> Question {
    Question {
        name: "badges.kinds, 100",
        kind: Kind::Counts,
        endpoint: Endpoint::BadgesKinds,
        depth: 0,
        bare: "SELECT kind, holders, first_awarded_at FROM badge_kinds WHERE community_id = $1 ORDER BY kind LIMIT 101"
            .to_owned(),
        fields: &["kind", "holders"],
        asks: vec![Ask {
            body: b"{}".to_vec(),
            values: vec![Box::new(id.get())],
            plain: Some(format!(
                "SELECT kind || '|' || count(*) FILTER (WHERE {SEEN} AND revoked_at IS NULL) FROM badges JOIN profiles AS p \
                 USING (community_id, profile_id) WHERE community_id = $1 GROUP BY kind ORDER BY kind LIMIT 100"
            )),
        }],
    }
}

fn stats(id: CommunityId) -> Question {
    Question {
        name: "community.stats",
        kind: Kind::Counts,
        endpoint: Endpoint::CommunityStats,
        depth: 0,
        bare: "SELECT c.members, c.badges, c.conviction_total::bigint, t.tiers, t.held, d.* FROM community_counts AS c CROSS \
               JOIN LATERAL (SELECT array_agg(tier) AS tiers, array_agg(members) AS held FROM tier_counts WHERE community_id \
               = $1) AS t CROSS JOIN LATERAL (SELECT sum(active)::bigint, sum(joined)::bigint, sum(promoted)::bigint, \
               sum(awarded)::bigint FROM community_days WHERE community_id = $1 AND day > utc_day(now()) - 7 AND day <= \
               utc_day(now())) AS d WHERE c.community_id = $1"
            .to_owned(),
        fields: &["members", "conviction_total", "badges", "new_this_week", "active_this_week"],
        asks: vec![Ask {
            body: b"{}".to_vec(),
            values: vec![Box::new(id.get())],
            plain: Some(format!(
                "WITH w AS (SELECT ((now() AT TIME ZONE 'UTC')::date - 6)::timestamp AT TIME ZONE 'UTC' AS since) \
                 SELECT count(*) || '|' || sum(s.conviction) || '|' || (SELECT count(*) FROM badges AS b JOIN profiles AS p \
                 USING (community_id, profile_id) WHERE community_id = $1 AND {SEEN} AND b.revoked_at IS NULL) || '|' || \
                 count(*) FILTER (WHERE p.joined_at >= w.since) || '|' || count(*) FILTER (WHERE s.last_active_at >= w.since) \
                 FROM profiles AS p JOIN scores AS s USING (community_id, profile_id) CROSS JOIN w \
                 WHERE community_id = $1 AND {SEEN}"
            )),
        }],
    }
}

fn threshold(id: CommunityId) -> Question {
    Question {
        name: "tiers.threshold",
        kind: Kind::Counts,
        endpoint: Endpoint::TiersThreshold,
        depth: 0,
        bare: "SELECT e.cut, c.members, members_above($1, 1, e.cut - 1), (SELECT s.conviction FROM scores AS s WHERE \
               s.community_id = $1 AND s.visible AND s.conviction < e.cut ORDER BY s.conviction DESC LIMIT 1) FROM \
               community_counts AS c CROSS JOIN LATERAL (SELECT cut FROM tier_policies AS t WHERE t.community_id = $1 AND \
               t.last_rank IS NOT NULL ORDER BY t.last_rank DESC LIMIT 1) AS e WHERE c.community_id = $1"
            .to_owned(),
        fields: &["score", "eligible", "waiting", "gap"],
        asks: vec![Ask {
            body: b"{}".to_vec(),
            values: vec![Box::new(id.get())],
            plain: Some(format!(
                "WITH v AS MATERIALIZED (SELECT s.conviction FROM scores AS s JOIN profiles AS p USING (community_id, \
                 profile_id) WHERE community_id = $1 AND {SEEN}), cut AS (SELECT conviction AS at FROM v ORDER BY 1 DESC \
                 OFFSET 68 LIMIT 1) SELECT cut.at || '|' || count(*) FILTER (WHERE conviction >= cut.at) || '|' || count(*) \
                 FILTER (WHERE conviction < cut.at) || '|' || cut.at - max(conviction) FILTER (WHERE conviction < cut.at) \
                 FROM v, cut GROUP BY cut.at"
            )),
        }],
    }
}

fn find(community: &Community) -> Result<Question> {
    Ok(Question {
        name: "communities.find",
        kind: Kind::LookUp,
        endpoint: Endpoint::CommunitiesFind,
        depth: 0,
        bare: "SELECT community_id, name, active FROM communities WHERE guild_id = $1".to_owned(),
        fields: &["community_id", "name", "active"],
        asks: vec![Ask {
            body: serde_json::to_vec(&json!({"guild_id": community.guild.as_str()}))?,
            values: vec![Box::new(community.guild.as_str().to_owned())],
            plain: Some(
                "SELECT concat_ws('|', community_id, coalesce(name, 'null'), active::text) FROM communities
                 WHERE community_id = $1"
                    .to_owned(),
            ),
        }],
    })
}
