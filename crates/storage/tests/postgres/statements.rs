//! Every statement names its shard as a value, for each table it reads or writes, and a transaction is of one shard: so all of
//! it can be sent to the one node that has the shard's rows.
//!
//! It is the statements as the server saw them that are judged, by their text.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use muster_domain::{
    Awarder, ChangeType, Cursor, Direction, DirectoryPage, DirectorySort, Keys, Lookup, MemberEffect,
    PageLimit, Reason, SearchLimit, SearchQuery, Shard, Tier, TierPolicy, UserId, Wallet,
};
use muster_storage::{Community, Erasure, Store};
use time::OffsetDateTime;
use tokio_postgres::Client;

use crate::changes::{fill, take};
use crate::probe::batches;
use crate::support::database::Database;
use crate::support::events::{
    START, apply, awarded, guild, joined, kind, member, policy, scored, user, view,
};
use crate::support::tied::{Tied, collector, profile};
use crate::support::{cluster, consistency};
use crate::verify::DRIFTS;

/// Where a table may be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clause {
    /// In a list of tables, in which another may follow behind a comma.
    Tables,
    Other,
}

/// A query, with what it has in brackets that is none of its own.
#[derive(Debug)]
struct Scope {
    clause: Clause,
    /// The tables of shards, by the name they have here.
    tables: Vec<String>,
    /// By which name `shard = $n` is said of a table.
    restricted: Vec<Option<String>>,
}

impl Scope {
    const fn new() -> Self {
        Self { clause: Clause::Other, tables: Vec::new(), restricted: Vec::new() }
    }

    /// The tables of which no shard is said.
    fn unrestricted(self) -> impl Iterator<Item = String> {
        let alone = self.tables.len() == 1 && self.restricted.contains(&None);
        let restricted = self.restricted;
        let is_open = move |table: &String| !alone && !restricted.contains(&Some(table.clone()));
        self.tables.into_iter().filter(is_open)
    }
}

/// The words, numbers and signs of a statement, in small letters, without comments and what stands in quotes.
fn words(sql: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        let length = if rest.starts_with("--") {
            rest.find('\n').unwrap_or(rest.len())
        } else if first == '\'' || first == '"' {
            rest.char_indices().skip(1).find(|(_, c)| *c == first).map_or(rest.len(), |(end, _)| end + 1)
        } else if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (word, after) = rest.split_at(length);
        if !word.trim().is_empty() && !word.starts_with("--") {
            words.push(if first == '\'' { "''".to_owned() } else { word.trim_matches('"').to_lowercase() });
        }
        rest = after;
    }
    words
}

/// What is wrong with a statement: tables of shards whose shard is not a value of the statement.
fn findings(sql: &str, tables: &BTreeSet<String>) -> Vec<String> {
    let words = words(sql);
    let word = |at: usize| words.get(at).map_or("", String::as_str);
    let is_value = |at: usize| word(at).starts_with('$');
    let mut found = Vec::new();
    let mut scopes = vec![Scope::new()];
    // For each open bracket, whether a query of its own stands in it.
    let mut brackets: Vec<bool> = Vec::new();
    for (at, this) in words.iter().enumerate() {
        let is_outermost = brackets.last().copied().unwrap_or(true);
        match this.as_str() {
            "(" => {
                let is_query =
                    ["select", "with", "insert", "update", "delete", "table"].contains(&word(at + 1));
                brackets.push(is_query);
                if is_query {
                    scopes.push(Scope::new());
                }
                continue;
            }
            ")" => {
                if brackets.pop() == Some(true) {
                    found.extend(scopes.pop().into_iter().flat_map(Scope::unrestricted));
                }
                continue;
            }
            "union" | "except" | "intersect" => {
                found.extend(scopes.pop().into_iter().flat_map(Scope::unrestricted));
                scopes.push(Scope::new());
                continue;
            }
            _ => {}
        }
        let Some(scope) = scopes.last_mut() else { return vec!["brackets do not match".to_owned()] };
        let before = at.checked_sub(1).map_or("", word);
        let names_table = match this.as_str() {
            "from" => before != "distinct",
            "join" | "using" | "update" | "into" | "table" => true,
            "," => is_outermost && scope.clause == Clause::Tables,
            "shard" if word(at + 1) == "=" && is_value(at + 2) => {
                let name = (before == ".").then(|| word(at - 2).to_owned());
                scope.restricted.push(name);
                false
            }
            "select" | "where" | "set" | "values" | "group" | "order" | "having" | "returning" | "limit"
            | "offset" | "window" | "conflict"
                if is_outermost =>
            {
                scope.clause = Clause::Other;
                false
            }
            _ => false,
        };
        if !names_table {
            continue;
        }
        if is_outermost && ["from", "using", "join"].contains(&this.as_str()) {
            scope.clause = Clause::Tables;
        }
        let mut name = at + 1;
        while ["(", "only", "lateral", "public", "."].contains(&word(name)) {
            name += 1;
        }
        if !tables.contains(word(name)) {
            continue;
        }
        let (table, has_alias) = (word(name), word(name + 1) == "as");
        let behind = if has_alias { name + 3 } else { name + 1 };
        if this == "into" {
            let is_first = word(behind) == "(" && word(behind + 1) == "shard";
            let end = (behind..words.len()).find(|at| word(*at) == ")").unwrap_or(words.len());
            let is_given = match word(end + 1) {
                // From a row of a shard, whose table has to name it.
                "select" => is_value(end + 2) || (word(end + 3) == "." && word(end + 4) == "shard"),
                "values" => word(end + 2) == "(" && is_value(end + 3),
                _ => false,
            };
            found.extend((!is_first || !is_given).then(|| format!("a new row of {table}")));
        } else {
            scope.tables.push(if has_alias { word(name + 2) } else { table }.to_owned());
        }
    }
    found.extend(scopes.into_iter().flat_map(Scope::unrestricted));
    found
}

fn judge(sql: &str) -> Vec<String> {
    let tables = ["members", "directory", "badge_ops"].map(str::to_owned).into();
    findings(sql, &tables)
}

#[test]
fn a_statement_that_leaves_a_shard_open_is_found() {
    for (planted, found) in [
        ("SELECT member FROM members WHERE community = $1", vec!["members"]),
        (
            "SELECT 1 FROM members AS m JOIN directory AS d USING (shard, community) WHERE m.shard = $1",
            vec!["d"],
        ),
        ("SELECT 1 FROM members AS m, directory AS d WHERE m.shard = $1 AND d.shard = m.shard", vec!["d"]),
        (
            "SELECT 1 FROM members AS m JOIN directory AS d ON true, badge_ops WHERE shard = $1 AND m.shard = $2",
            vec!["d", "badge_ops"],
        ),
        (
            "SELECT (SELECT count(*) FROM badge_ops AS o WHERE o.shard = m.shard) FROM members AS m WHERE m.shard = $1",
            vec!["o"],
        ),
        ("SELECT 1 FROM members WHERE shard = $1 UNION ALL SELECT 1 FROM directory", vec!["directory"]),
        ("WITH d AS (SELECT 1 FROM directory) SELECT 1 FROM members, d WHERE shard = $1", vec!["directory"]),
        ("UPDATE members AS m SET tier = r.t FROM unnest($1) AS r (t) WHERE m.ctid = r.t", vec!["m"]),
        ("DELETE FROM members USING directory AS d WHERE members.shard = $1", vec!["d"]),
        ("SELECT 1 FROM (members AS m JOIN directory AS d ON d.shard = $1) WHERE true", vec!["m"]),
        ("SELECT 1 FROM members WHERE shard = 3", vec!["members"]),
        ("SELECT 1 FROM members -- WHERE shard = $1", vec!["members"]),
        ("SELECT 1 FROM members WHERE nick = ' shard = $1 '", vec!["members"]),
        ("INSERT INTO members (community, shard) VALUES ($1, $2)", vec!["a new row of members"]),
        ("INSERT INTO members (shard) SELECT d.shard FROM directory AS d", vec!["d"]),
        (
            "INSERT INTO members (shard) SELECT shard FROM directory WHERE shard = $1",
            vec!["a new row of members"],
        ),
        ("INSERT INTO members SELECT $1", vec!["a new row of members"]),
        ("INSERT INTO members (shard) SELECT $1 FROM directory", vec!["directory"]),
    ] {
        assert_eq!(judge(planted), found, "{planted}");
    }
    for harmless in [
        "SELECT members FROM tier_counts WHERE a IS DISTINCT FROM members",
        "SELECT m.member, members FROM members AS m WHERE m.shard = $1::smallint AND (community, member) > ($2, $3)",
        "SELECT 1 FROM unnest($2, $3) AS rows (a, b) CROSS JOIN LATERAL (SELECT 1 FROM directory
             WHERE shard = $1 AND member = rows.a LIMIT $4) AS d",
        "INSERT INTO members AS m (shard, community) SELECT $1, rows.a FROM unnest($2) AS rows (a)
             ON CONFLICT (shard, community) DO UPDATE SET nick = excluded.nick WHERE m.nick IS NULL",
        "WITH d AS (DELETE FROM directory AS x WHERE x.shard = $1 RETURNING x.member)
             SELECT 1 FROM members AS m JOIN d USING (member) WHERE (m.shard = $2 AND m.community = $3)",
        "INSERT INTO members (shard) SELECT d.shard FROM directory AS d WHERE d.shard = $1",
        "SELECT 1 FROM communities WHERE community_id = $1",
        "UPDATE members SET tier = $2 WHERE shard = $1 AND member IN (SELECT member FROM directory WHERE shard = $1)",
        "SELECT member FROM members WHERE shard = $1 FOR NO KEY UPDATE",
    ] {
        assert_eq!(judge(harmless), Vec::<String>::new(), "{harmless}");
    }
}

/// Tables that have rows of one shard or another, with their partitions.
async fn tables_of_shards(client: &Client) -> BTreeSet<String> {
    let sql = "SELECT c.relname::text FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
         WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace AND a.attname = 'shard'
             AND c.relname <> 'communities'";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// A database whose statements the server counts, but for those of the client.
async fn counting() -> (Database, Client) {
    let database = Database::migrated().await;
    let client = database.client().await;
    let name = database.name();
    let count = format!(
        "CREATE SCHEMA counted; CREATE EXTENSION pg_stat_statements SCHEMA counted;
         ALTER DATABASE {name} SET pg_stat_statements.track = 'top';
         SELECT FROM counted.pg_stat_statements LIMIT 1;
         SET pg_stat_statements.track = 'none'"
    );
    let counts = client.batch_execute(&count).await;
    assert!(
        counts.is_ok(),
        "PostgreSQL cannot count statements, which this test needs: install its contributed modules and have \
         shared_preload_libraries = 'pg_stat_statements', as `cargo xtask test` does: {counts:?}"
    );
    (database, client)
}

async fn statements(client: &Client) -> Vec<String> {
    let sql = "SELECT query FROM counted.pg_stat_statements
         WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_of_every_call_says_its_shard_of_every_table() {
    let (database, client) = counting().await;
    let store = database.store().await;
    every_call(&database, &store, &client).await;
    consistency::check(&client).await;

    let tables = tables_of_shards(&client).await;
    let statements = statements(&client).await;
    assert!(statements.len() > 60, "only {} statements were seen", statements.len());
    let mut wrong = Vec::new();
    for statement in &statements {
        let found = findings(statement, &tables);
        if !found.is_empty() {
            wrong.push(format!("{}\n    in: {statement}", found.join(", ")));
        }
        // A number is taken before the statement that has rows.
        let names_tables = words(statement).iter().any(|word| tables.contains(word));
        assert!(!statement.contains("nextval") || !names_tables, "{statement}");
    }
    assert!(wrong.is_empty(), "{} statements leave a shard open:\n{}", wrong.len(), wrong.join("\n"));
    let is_seen = |table: &&String| {
        let mut texts = statements.iter().map(|statement| words(statement));
        texts.any(|words| words.contains(table))
    };
    let unseen: Vec<&String> = tables.iter().filter(|table| !is_seen(table)).collect();
    let are_partitions = unseen.iter().all(|table| table.starts_with("applied_events_"));
    assert!(are_partitions, "nothing was seen of {unseen:?}");
}

/// Whatever can be asked of a store and a community, with rows enough that each statement of it is run.
pub(crate) async fn every_call(database: &Database, store: &Store, client: &Client) {
    let Tied { here, there } = Tied::make(store, client).await;
    events(store).await;
    reads(&here, client).await;
    changes(&there, client).await;
    // What drifted is found and repaired.
    for (_, sql) in DRIFTS {
        client.execute(sql, &[]).await.unwrap();
    }
    for id in store.community_ids(PageLimit::MAX, None).await.unwrap() {
        let community = store.community(id).await.unwrap();
        community.verify(false).await.unwrap();
        assert!(community.verify(true).await.unwrap().is_exact());
    }
    erasures(store, &there).await;
    outbox(store, client).await;
    store.events_probe(None).await.unwrap();
    store.events_probe(Some(guild("here"))).await.unwrap();
    store.events_probe(Some(guild("nowhere"))).await.unwrap();
    store.applied_events_prune(Duration::ZERO).await.unwrap();
    store.ping().await.unwrap();
    store.server().await.unwrap();
    Store::open(database.config()).await.unwrap().close();
    database.config().find().await.unwrap();
}

/// Events of each kind, of several communities at once, that are old and of today.
async fn events(store: &Store) {
    let guilds = [guild("one"), guild("other")];
    for batch in batches(&guilds) {
        store.events_apply(batch.clone()).await.unwrap();
        store.events_apply(batch).await.unwrap();
    }
    let now = i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap();
    let today = vec![joined(&guilds[0], &user("today"), now, "Today"), scored(&guilds[0], &user(1), now, 7)];
    apply(store, &guilds[0], today).await;
}

async fn reads(community: &Community, client: &Client) {
    let (one, ten) = (PageLimit::clamp(1), PageLimit::clamp(10));
    let who = profile(client, community, &collector()).await;
    // The first page of each list and the one behind it.
    macro_rules! pages {
        ($cursor:ident, $list:expr) => {{
            let $cursor: Option<&Cursor> = None;
            let next = $list.await.unwrap().next;
            assert!(next.is_some(), "{}", stringify!($list));
            let $cursor = next.as_ref();
            $list.await.unwrap();
        }};
    }
    pages!(cursor, community.profile_list_ranked(one, cursor));
    pages!(cursor, community.profile_list_active(one, cursor));
    pages!(cursor, community.badge_leaderboard(one, cursor));
    pages!(cursor, community.badge_list_by_profile(who, one, cursor));
    pages!(cursor, community.badge_kind_list(one, cursor));
    pages!(cursor, community.tier_list_progression(one, cursor));
    pages!(cursor, community.tier_change_list(one, cursor));
    pages!(cursor, community.profile_export(who, one, cursor));
    for tier in [None, Some("fedaykin")] {
        let tier = tier.map(|tier| Tier::parse(tier).unwrap());
        for sort in [DirectorySort::Nym, DirectorySort::Tenure, DirectorySort::Badges] {
            for direction in [Direction::Asc, Direction::Desc] {
                let list = async |cursor: Option<&Cursor>, skipped| {
                    let page = community.directory_list(tier.as_ref(), sort, direction, one, cursor, skipped);
                    page.await.unwrap().next
                };
                let next = list(None, 0).await;
                list(next.as_ref(), 0).await;
                list(None, 3).await;
                list(None, DirectoryPage::MAX_PAGED_ROWS).await;
            }
        }
    }
    let found = community.profile_get(&Lookup::ProfileId(who)).await.unwrap().profile;
    community.profile_get(&Lookup::UserId(collector())).await.unwrap();
    community.profile_get(&Lookup::Nym(found.nym)).await.unwrap();
    community.profile_list_by_ids(&Keys::parse(vec![who]).unwrap()).await.unwrap();
    community.profile_list_by_users(&Keys::parse(vec![collector(), user(1)]).unwrap()).await.unwrap();
    community.profile_list_around(who, ten).await.unwrap();
    community.profile_position(who).await.unwrap();
    for text in ["n", "nym 1", "ym", "7", "nobody at all"] {
        let query = SearchQuery::parse(text).unwrap();
        community.profile_search(&query, SearchLimit::MAX).await.unwrap();
    }
    community.stats().await.unwrap();
    community.tier_threshold().await.unwrap();
}

async fn changes(community: &Community, client: &Client) {
    let who = profile(client, community, &collector()).await;
    let by = || Some(Awarder::parse(collector().as_str()).unwrap());
    let reason = || Some(Reason::parse("won").unwrap());
    for name in ["kind0", "never seen"] {
        community.badge_award(who, kind(name), reason(), by()).await.unwrap();
        community.badge_award(who, kind(name), None, None).await.unwrap();
        community.badge_revoke(who, kind(name), reason(), by()).await.unwrap();
        community.badge_revoke(who, kind(name), None, None).await.unwrap_err();
    }
    community.badge_award(profile(client, community, &user(2)).await, kind("k"), None, by()).await.unwrap();
    let wallet = Wallet::parse("0xspice").unwrap();
    let linked = community.profile_link_wallet(who, Some(wallet.clone())).await.unwrap();
    assert_eq!(linked.wallet.as_ref(), Some(&wallet));
    community.profile_get(&Lookup::Wallet(wallet)).await.unwrap();
    community.profile_link_wallet(who, None).await.unwrap();
    community.profile_hide(who).await.unwrap();
    community.profile_show(who).await.unwrap();
    community.tier_policy_replace(&policy(&[0, 100], &[2, 9])).await.unwrap();
    community.tier_policy_replace(&TierPolicy::default()).await.unwrap();
    community.profile_erase(who).await.unwrap();
}

/// Changes that wait, are taken and skipped, and too many of them.
async fn outbox(store: &Store, client: &Client) {
    assert!(!store.changes_written().await.is_empty());
    assert!(!take(store, usize::MAX).await.is_empty());
    let (one, who) = (guild("one"), user("outbox"));
    let community =
        apply(store, &one, vec![joined(&one, &who, START, "Told"), awarded(&one, &who, START, "k")]).await;
    assert!(store.changes_waiting().await.unwrap().count > 0);
    let last = store.community_find(&one).await.unwrap().changes;
    assert!(store.change_waiting(community.id(), last).await.unwrap().is_some());
    store.changes_skip(community.id(), last + 10).await.unwrap();
    fill(client, &one).await;
    apply(store, &one, vec![awarded(&one, &who, START + 1, "l"), awarded(&one, &who, START + 1, "m")]).await;
    assert!(store.changes_waiting().await.unwrap().count < 10);
    community.change_types_replace(&BTreeSet::from([ChangeType::TierPromoted])).await.unwrap();
    take(store, usize::MAX).await;
}

async fn erasures(store: &Store, community: &Community) {
    let known = community.erasure_list(PageLimit::clamp(1), None).await.unwrap();
    assert_eq!(known.len(), 1);
    community.erasure_list(PageLimit::clamp(1), Some(known[0].person)).await.unwrap();
    let there = guild("there");
    let erased_at = OffsetDateTime::now_utc();
    let of = |guild: &muster_domain::GuildId, who: UserId| {
        let person = store.erasure_key().person(guild, who.as_str());
        Erasure { guild: guild.clone(), person, erased_at }
    };
    let list = vec![of(&there, user(1)), of(&there, collector()), of(&guild("unheard"), user(1))];
    assert!(store.erasures_remember(list).await.unwrap() > 0);
    assert_eq!(community.erasures_enforce().await.unwrap().profiles, 1);
    let late = vec![joined(&there, &user(1), START, "Late"), awarded(&there, &user(1), START, "k")];
    let found = apply(store, &there, late).await;
    assert_eq!(found.id(), community.id());
    assert_eq!(view(store, &there).await.id(), community.id());
}

/// The names of the calls of `Store` and `Community`, from the code.
fn calls(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            calls(&path, names);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let calls = text.split("    pub async fn ").skip(1).filter_map(|call| call.split_once('('));
        names.extend(calls.map(|(name, _)| name.split('<').next().unwrap_or(name).to_owned()));
    }
}

#[test]
fn no_call_is_left_out() {
    let mut names = BTreeSet::new();
    calls(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut names);
    assert!(names.len() > 30, "{names:?}");
    let made =
        concat!(include_str!("statements.rs"), include_str!("changes.rs"), include_str!("support/events.rs"));
    let is_made =
        |name: &String| made.contains(&format!(".{name}(")) || made.contains(&format!("Store::{name}("));
    // They ask servers how far their logs are, and name no table.
    let of_a_standby = ["look", "measure"];
    let left_out = names.iter().filter(|name| !is_made(name) && !of_a_standby.contains(&name.as_str()));
    let left_out: Vec<&String> = left_out.collect();
    assert!(left_out.is_empty(), "{left_out:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_of_one_shard() {
    if cluster::is_one("no_call_is_of_more_than_one_node says it of nodes").await {
        return;
    }
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let mut triggers = "CREATE TABLE touched (transaction bigint, shard smallint);
         CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO touched VALUES (txid_current(), coalesce(NEW.shard, OLD.shard)); RETURN NULL; END $$;"
        .to_owned();
    for table in tables_of_shards(&client).await {
        // A partition has the trigger of its table.
        if !table.starts_with("applied_events_") {
            triggers += &format!(
                "CREATE TRIGGER touch AFTER INSERT OR UPDATE OR DELETE ON {table}
                     FOR EACH ROW EXECUTE FUNCTION touch();"
            );
        }
    }
    client.batch_execute(&triggers).await.unwrap();
    let guilds: Vec<_> = (0..12).map(|number| guild(&format!("guild-{number}"))).collect();
    let shards: BTreeSet<u8> = guilds.iter().map(|guild| Shard::of(guild).number()).collect();
    assert!(shards.len() > 4, "{shards:?}");
    for round in 0..3_i64 {
        let of = |number: i64| {
            let guild = &guilds[usize::try_from(number).unwrap() % guilds.len()];
            let who = user(number);
            let leave = member(guild, &user(number - 12), START + round * 10, MemberEffect::Leave);
            [
                joined(guild, &who, START, "x"),
                scored(guild, &who, START + round, number),
                awarded(guild, &who, START + round, "k"),
                leave,
            ]
        };
        store.events_apply((0..60).flat_map(of).collect()).await.unwrap();
    }
    let person = |number: usize| {
        let guild = guilds[number % guilds.len()].clone();
        let person = store.erasure_key().person(&guild, user(number).as_str());
        Erasure { guild, person, erased_at: OffsetDateTime::now_utc() }
    };
    store.erasures_remember((0..24).map(person).collect()).await.unwrap();
    for guild in &guilds {
        let found =
            client.query_one("SELECT shard FROM communities WHERE guild_id = $1", &[&guild.as_str()]).await;
        assert_eq!(found.unwrap().get::<_, i16>(0), i16::from(Shard::of(guild).number()), "{guild:?}");
        view(&store, guild).await.erasures_enforce().await.unwrap();
    }
    let sql = "SELECT count(DISTINCT transaction), count(DISTINCT shard),
             count(DISTINCT (transaction, shard)) - count(DISTINCT transaction) FROM touched";
    let row = client.query_one(sql, &[]).await.unwrap();
    let (transactions, touched, more): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!(
        (more, usize::try_from(touched).unwrap()),
        (0, shards.len()),
        "of {transactions} transactions"
    );
    consistency::check(&client).await;
}
