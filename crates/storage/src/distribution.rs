//! How the tables lie on several nodes, where the database is the coordinator of a cluster of Citus.
//!
//! Every table of shards is distributed by `shard`, and all of them alike: the rows of a shard, of whichever table, lie on one node.
//! Every statement binds one shard and every transaction of a batch is of one, so each goes to one node and stays there.
//!
//! `communities`, `signing_keys`, the sequences and the list of migrations stay on the coordinator, and no statement names them
//! together with a table of shards. As copies on every node they could be written only while every node is there: a node that is
//! away would keep every new community from being made.

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text};
use diesel_async::{AsyncConnection, AsyncPgConnection, TransactionManager};
use muster_domain::Limit;

use crate::connection::StoreConfig;
use crate::error::Error;
use crate::sql::statement::{self, Statement};

/// The tables that are distributed, each before those that refer to it. The others lie beside the first.
const TABLES: [&str; 20] = [
    "community_states",
    "community_stripes",
    "community_totals",
    "community_days",
    "members",
    "activity_adds",
    "board_entries",
    "board_counts",
    "directory",
    "nym_suffixes",
    "badge_kinds",
    "badge_ops",
    "tiers",
    "tier_counts",
    "tier_changes",
    "applied_events",
    "erasures",
    "changes",
    "changes_published",
    "shards",
];
/// What distributes them.
const COLUMN: &str = "shard";
/// Into how many parts: each is a table on a node, and moves as one. Of 8, seven have shards, one to three each, and they are even
/// on two, three and four nodes. A part is split, or a shard taken out of it, while the workers go on.
const PARTS: i32 = 8;
/// How often the locks on all tables are tried for, each time for a second at most.
const TRIES: u32 = 60;
/// The most nodes that are reported.
const MAX_NODES: Limit<1000> = Limit::MAX;

/// A cluster of Citus, and how far Muster's tables are distributed over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// The version of Citus.
    pub version: String,
    /// Its nodes, the coordinator among them if it is known to the others.
    pub nodes: Vec<Node>,
    /// Tables that are not distributed as they should be.
    pub undistributed: Vec<&'static str>,
    /// Whether some parts lack their table's planner option `n_distinct`, as after a move to another node. `migrate` sets it.
    pub needs_options: bool,
}

/// A node of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its host and port.
    pub name: String,
    /// How many of the parts it has.
    pub parts: u64,
    /// Whether commits there are on disk when they are answered, which Muster rests on; or why that is not known.
    pub commits_to_disk: Result<bool, String>,
}

/// What was distributed, and what was not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Distributed {
    /// Tables that are distributed now and were not before.
    pub tables: Vec<&'static str>,
    /// Whether parts that lacked their table's planner option `n_distinct` were given it.
    pub options: bool,
    /// Tables that hold rows and were left as they are.
    pub left: Vec<&'static str>,
}

/// Which tables may be distributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribute {
    /// Those of a database without communities, and those that are new beside distributed ones: next to nothing is moved.
    New,
    /// Those with rows, too. Who uses the database waits meanwhile.
    Filled,
}

/// The cluster that the database coordinates; `None` where it has no extension `citus`.
///
/// # Errors
/// [`Error::Unavailable`] when the database cannot be reached.
pub async fn distribution(config: &StoreConfig) -> Result<Option<Distribution>, Error> {
    let mut connection = config.connect().await?;
    let Some(version) = version(&mut connection).await? else { return Ok(None) };
    let undistributed = undistributed(&mut connection).await?;
    let needs_options = needs_options(&mut connection).await?;
    let nodes = Statement::shared(
        "SELECT n.nodename || ':' || n.nodeport AS name, (SELECT count(*) FROM pg_dist_placement AS p
                 JOIN pg_dist_shard AS s ON s.shardid = p.shardid
                 WHERE p.groupid = n.groupid AND s.logicalrelid = to_regclass('community_states')) AS parts,
             coalesce(r.success, false) AS answers, r.result
         FROM pg_dist_node AS n
         LEFT JOIN run_command_on_all_nodes('SELECT current_setting(''synchronous_commit'')', true, true) AS r
             ON r.nodeid = n.nodeid
         WHERE n.noderole = 'primary' ORDER BY n.nodeid LIMIT $limit",
    );
    let rows: Vec<NodeRow> = statement::rows(&mut connection, nodes, MAX_NODES).await?;
    let nodes = rows.into_iter().map(NodeRow::node).collect();
    Ok(Some(Distribution { version, nodes, undistributed, needs_options }))
}

/// Distributes the tables that are not, all of them or none, where the database is a coordinator of Citus. Does nothing elsewhere.
pub(crate) async fn distribute(
    connection: &mut AsyncPgConnection,
    which: Distribute,
) -> Result<Distributed, Error> {
    let mut done = Distributed::default();
    if version(connection).await?.is_none() {
        return Ok(done);
    }
    let missing = undistributed(connection).await?;
    let is_begun = missing.len() < TABLES.len();
    if !missing.is_empty() {
        let some = Statement::shared("SELECT EXISTS (SELECT FROM communities) AS found");
        let some: Option<FoundRow> = statement::optional(connection, some).await?;
        if which == Distribute::New && !is_begun && some.is_some_and(|row| row.found) {
            done.left = missing;
            return Ok(done);
        }
        all_at_once(connection, &missing, is_begun).await?;
        done.tables = missing;
    }
    // What the coordinator still has of them is read by nobody.
    for table in &TABLES {
        let left = Statement::shared(
            "SELECT pg_relation_size($1::text::regclass) > 0 OR EXISTS (SELECT FROM pg_inherits
                 WHERE inhparent = $1::text::regclass AND pg_relation_size(inhrelid) > 0) AS found",
        )
        .bind::<Text, _>(*table);
        let left: Option<FoundRow> = statement::optional(connection, left).await?;
        if left.is_some_and(|row| row.found) {
            let truncate =
                Statement::shared("SELECT truncate_local_data_after_distributing_table($1::text::regclass)")
                    .bind::<Text, _>(*table);
            statement::execute(connection, truncate).await.map_err(failed)?;
        }
    }
    if needs_options(connection).await? {
        for table in &TABLES {
            let tell = Statement::shared(TELL).bind::<Text, _>(*table);
            let told: Option<FoundRow> = statement::optional(connection, tell).await.map_err(failed)?;
            if told.is_some_and(|row| !row.found) {
                return Err(Error::Distribution(format!("{table}: a part cannot be altered").into()));
            }
        }
        done.options = true;
    }
    if !done.tables.is_empty() || done.options {
        statement::execute(connection, Statement::shared(ANALYZE)).await.map_err(failed)?;
    }
    Ok(done)
}

/// What the planner is to believe of a column is not copied to the parts: it is repeated on each. Names of what is in `public` come
/// without it, and the role may have another path on a node.
const TELL: &str = "SELECT coalesce(bool_and(told.success), true) AS found
     FROM (SELECT 'ALTER TABLE ' || max(CASE n.nspname WHEN 'public' THEN 'public.%s ' ELSE '%s ' END) || string_agg(format('ALTER COLUMN %I SET (%s)', a.attname, o.option), ', ') AS command
           FROM pg_attribute AS a JOIN pg_class AS t ON t.oid = a.attrelid JOIN pg_namespace AS n ON n.oid = t.relnamespace
           CROSS JOIN unnest(a.attoptions) AS o (option)
           WHERE a.attrelid = $1::text::regclass AND o.option LIKE 'n_distinct=%') AS c
     CROSS JOIN LATERAL run_command_on_shards($1::text::regclass, c.command) AS told
     WHERE c.command IS NOT NULL";
const ANALYZE: &str = "ANALYZE community_states, community_stripes, community_totals, community_days, members, activity_adds,
     board_entries, board_counts, directory, nym_suffixes, badge_kinds, badge_ops, tiers, tier_counts, tier_changes,
     erasures, changes, changes_published, shards";

/// Distributes these tables in one transaction: who waits for one of them finds all distributed.
async fn all_at_once(
    connection: &mut AsyncPgConnection,
    missing: &[&'static str],
    is_begun: bool,
) -> Result<(), Error> {
    type Transaction = <AsyncPgConnection as AsyncConnection>::TransactionManager;
    let mut tries: u32 = 1;
    loop {
        Transaction::begin_transaction(connection).await?;
        match in_transaction(connection, missing, is_begun).await {
            Ok(()) => return Transaction::commit_transaction(connection).await.map_err(failed),
            Err(error) => {
                Transaction::rollback_transaction(connection).await?;
                // Somebody else holds a lock: of a batch of events, a moment; of a dump, until it ends.
                let is_busy =
                    error.sqlstate().is_some_and(|code| ["55P03", "40P01"].contains(&code.as_str()));
                if !is_busy || tries >= TRIES {
                    return Err(error);
                }
                tries = tries.saturating_add(1);
            }
        }
    }
}

async fn in_transaction(
    connection: &mut AsyncPgConnection,
    missing: &[&'static str],
    is_begun: bool,
) -> Result<(), Error> {
    const SETTINGS: [&str; 2] = [
        "SET LOCAL citus.multi_shard_modify_mode = 'sequential'",
        // A notice for each table says that the coordinator still has its rows.
        "SET LOCAL client_min_messages = 'warning'",
    ];
    for sql in SETTINGS {
        statement::execute(connection, Statement::shared(sql)).await?;
    }
    // All locks first: nobody sees some of them distributed. What comes beside those that are, nobody uses yet.
    if !is_begun {
        const LOCKS: &str = "LOCK TABLE community_states, community_stripes, members, applied_events IN ACCESS EXCLUSIVE MODE";
        statement::execute(connection, Statement::shared(LOCKS)).await?;
    }
    for table in missing {
        let parts = TABLES.first().filter(|first| *first == table).map(|_| PARTS);
        let beside = TABLES.first().filter(|first| *first != table).copied().unwrap_or("none");
        let create = Statement::shared(
            "SELECT create_distributed_table($1::text::regclass, $2, colocate_with => $3, shard_count => $4)",
        )
        .bind::<Text, _>(*table)
        .bind::<Text, _>(COLUMN)
        .bind::<Text, _>(beside)
        .bind::<Nullable<Integer>, _>(parts);
        statement::execute(connection, create).await.map_err(failed)?;
    }
    Ok(())
}

/// Whether the database coordinates a cluster.
pub(crate) async fn is_cluster(connection: &mut AsyncPgConnection) -> Result<bool, Error> {
    Ok(version(connection).await?.is_some())
}

async fn version(connection: &mut AsyncPgConnection) -> Result<Option<String>, Error> {
    let find = Statement::shared("SELECT extversion AS version FROM pg_extension WHERE extname = 'citus'");
    let found: Option<VersionRow> = statement::optional(connection, find).await?;
    Ok(found.map(|row| row.version))
}

/// The tables that are not distributed by the shard, or not beside the first.
async fn undistributed(connection: &mut AsyncPgConnection) -> Result<Vec<&'static str>, Error> {
    let find = Statement::shared(
        "SELECT t.name FROM unnest($1) AS t (name) WHERE NOT EXISTS (
             SELECT FROM pg_dist_partition AS p JOIN pg_dist_partition AS first
                 ON first.logicalrelid = to_regclass($2) AND first.colocationid = p.colocationid
             WHERE p.logicalrelid = to_regclass(t.name) AND p.partmethod = 'h'
                 AND column_to_column_name(p.logicalrelid, p.partkey) = $3)",
    )
    .bind::<Array<Text>, _>(TABLES.to_vec())
    .bind::<Text, _>(TABLES.first().copied().unwrap_or_default())
    .bind::<Text, _>(COLUMN);
    let rows: Vec<NameRow> = statement::by_keys(connection, find, TABLES.len()).await?;
    Ok(TABLES.into_iter().filter(|table| rows.iter().any(|row| row.name == *table)).collect())
}

/// Whether parts lack the planner option `n_distinct`. What a move leaves behind for a while, where the part was, is none of them.
async fn needs_options(connection: &mut AsyncPgConnection) -> Result<bool, Error> {
    let count = Statement::shared(
        "SELECT coalesce((SELECT count(*) FROM pg_attribute AS a
                 JOIN pg_dist_shard AS s ON s.logicalrelid = a.attrelid
                 JOIN pg_dist_placement AS p ON p.shardid = s.shardid
                 CROSS JOIN unnest(a.attoptions) AS o (option)
                 WHERE a.attrelid = ANY(ARRAY(SELECT to_regclass(t.name)::oid FROM unnest($1) AS t (name)))
                     AND o.option LIKE 'n_distinct=%'), 0)::bigint AS wanted,
             coalesce((SELECT sum(r.result::bigint) FROM run_command_on_all_nodes(
                 'SELECT count(*) FROM pg_dist_shard AS s
                  JOIN pg_dist_placement AS p ON p.shardid = s.shardid
                  JOIN pg_dist_local_group AS here ON here.groupid = p.groupid
                  JOIN pg_class AS t ON t.oid = s.logicalrelid JOIN pg_namespace AS n ON n.oid = t.relnamespace
                  JOIN pg_attribute AS a ON a.attrelid = to_regclass(
                      CASE n.nspname WHEN ''public'' THEN ''public.'' ELSE '''' END || shard_name(s.logicalrelid, s.shardid))
                  CROSS JOIN unnest(a.attoptions) AS o (option) WHERE o.option LIKE ''n_distinct=%''',
                 true, true) AS r WHERE r.success), 0)::bigint AS found",
    )
    .bind::<Array<Text>, _>(TABLES.to_vec());
    let counts: Option<OptionsRow> = statement::optional(connection, count).await?;
    Ok(counts.is_some_and(|row| row.found < row.wanted))
}

fn failed(error: impl Into<crate::error::Cause>) -> Error {
    Error::Distribution(error.into())
}

#[derive(QueryableByName)]
struct VersionRow {
    #[diesel(sql_type = Text)]
    version: String,
}

#[derive(QueryableByName)]
struct NameRow {
    #[diesel(sql_type = Text)]
    name: String,
}

#[derive(QueryableByName)]
struct FoundRow {
    #[diesel(sql_type = Bool)]
    found: bool,
}

#[derive(QueryableByName)]
struct OptionsRow {
    #[diesel(sql_type = BigInt)]
    wanted: i64,
    #[diesel(sql_type = BigInt)]
    found: i64,
}

#[derive(QueryableByName)]
struct NodeRow {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    parts: i64,
    #[diesel(sql_type = Bool)]
    answers: bool,
    #[diesel(sql_type = Nullable<Text>)]
    result: Option<String>,
}

impl NodeRow {
    fn node(self) -> Node {
        let said = self.result.unwrap_or_default();
        let commits_to_disk = if self.answers { Ok(said != "off") } else { Err(said) };
        Node { name: self.name, parts: u64::try_from(self.parts).unwrap_or_default(), commits_to_disk }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_of_shards_is_distributed_and_analyzed() {
        // As diesel writes it: each table that a shard is the first column of, but `communities`, which says where each is.
        let of_shards = include_str!("schema.rs").split("diesel::table! {").skip(1).filter_map(|table| {
            let (name, columns) = table.split_once(" (")?;
            columns.contains("shard -> Int2").then_some(name.trim()).filter(|name| *name != "communities")
        });
        let mut of_shards: Vec<&str> = of_shards.collect();
        let mut distributed = TABLES.to_vec();
        of_shards.sort_unstable();
        distributed.sort_unstable();
        assert_eq!(of_shards, distributed);
        // Partitions of ids, of which no statistics are used, are not.
        for table in TABLES.iter().filter(|table| **table != "applied_events") {
            let words = ANALYZE.split([' ', ',', '\n']);
            assert_eq!(words.filter(|word| word == table).count(), 1, "{table}");
        }
    }
}
