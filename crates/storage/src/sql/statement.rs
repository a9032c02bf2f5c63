//! The one place that runs SQL as text, and that reads more than one row: a list of rows takes a [`Limit`]. What reads one row may
//! be said in diesel's own language instead.

use std::sync::Arc;

use diesel::expression::{AsExpression, TypedExpressionType};
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::{Error as DieselError, OptionalExtension};
use diesel::sql_types::{BigInt, Integer, SmallInt, SqlType, Untyped};
use diesel::{IntoSql, QueryResult, QueryableByName};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use muster_domain::{Limit, Shard};

use super::columns::{Bind, Row};
use crate::tenant::Tenant;

/// Fixed SQL and its values.
///
/// `$1`, `$2` and so on name the values in the order they were bound, as often as needed; in a shard `$1` is the shard, in a
/// community `$2` is its number. `$rows` is a batch as a table named `rows`, `$names` are the names of its columns. `$limit` is where
/// the list's bound goes.
///
/// An `INSERT` takes the shard of its rows from the table `shards`, `WHERE here.shard = $1`, and not from `$1` itself: so it goes whole to the
/// node of the shard where the tables are distributed.
///
/// The text is always a constant, so each statement is prepared once a connection; `diesel::sql_query` would prepare it
/// at every call.
#[derive(Clone)]
pub(crate) struct Statement {
    sql: &'static str,
    /// What follows it.
    ending: &'static str,
    binds: Vec<Bind>,
    batch: Option<Batch>,
    limit: Option<Bind>,
}

/// How rows are inserted that are hardly ever there already.
///
/// `ON CONFLICT` looks for each row in the index before it is inserted, and so takes twice the pages. So rows are inserted without it at
/// first; where one of them is there, the whole transaction fails by [`Error::is_there_already`](crate::error::Error::is_there_already)
/// and is run again, guarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Insertion {
    /// A row that is there fails the statement.
    Plain,
    /// A row that is there is dealt with by an `ON CONFLICT`.
    Guarded,
}

#[derive(Clone)]
struct Batch {
    names: &'static [&'static str],
    columns: Vec<Bind>,
}

const LIMIT: &str = "$limit";
const ROWS: &str = "$rows";
const NAMES: &str = "$names";

impl Statement {
    /// Of tables that every shard shares: communities and keys.
    pub(crate) const fn shared(sql: &'static str) -> Self {
        Self { sql, ending: "", binds: Vec::new(), batch: None, limit: None }
    }

    /// Of one shard, which is `$1`.
    pub(crate) fn in_shard(shard: Shard, sql: &'static str) -> Self {
        Self::shared(sql).bind::<SmallInt, _>(i16::from(shard.number()))
    }

    /// Of one community, which is `$1` and `$2`.
    pub(crate) fn in_community(tenant: Tenant, sql: &'static str) -> Self {
        Self::in_shard(tenant.shard, sql).bind::<Integer, _>(tenant.community)
    }

    pub(crate) fn bind<ST, V>(mut self, value: V) -> Self
    where
        ST: SqlType + TypedExpressionType,
        V: AsExpression<ST>,
        V::Expression: QueryFragment<Pg> + Send + Sync + 'static,
    {
        self.binds.push(Arc::new(value.into_sql::<ST>()));
        self
    }

    /// The batch that is `$rows`.
    pub(crate) fn rows<R: Row>(mut self, rows: Vec<R>) -> Self {
        self.batch = Some(Batch { names: R::NAMES, columns: R::columns(rows) });
        self
    }

    /// With this `ON CONFLICT` behind it where the insertion is guarded.
    pub(crate) const fn guarded(mut self, insertion: Insertion, on_conflict: &'static str) -> Self {
        if matches!(insertion, Insertion::Guarded) {
            self.ending = on_conflict;
        }
        self
    }

    fn limited(mut self, rows: i64) -> Self {
        self.limit = Some(Arc::new(rows.into_sql::<BigInt>()));
        self
    }

    fn batch(&self) -> QueryResult<&Batch> {
        self.batch.as_ref().ok_or_else(|| misuse("a statement was run without its rows"))
    }
}

impl Batch {
    fn walk_names(&self, out: &mut AstPass<'_, '_, Pg>) {
        for (place, name) in self.names.iter().enumerate() {
            out.push_sql(if place == 0 { "" } else { ", " });
            out.push_sql(name);
        }
    }

    fn walk_rows<'b>(&'b self, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        for (place, column) in self.columns.iter().enumerate() {
            out.push_sql(if place == 0 { "unnest(" } else { ", " });
            column.walk_ast(out.reborrow())?;
        }
        out.push_sql(") AS rows (");
        self.walk_names(out);
        out.push_sql(")");
        Ok(())
    }
}

impl QueryFragment<Pg> for Statement {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        let mut rest = self.sql;
        while let Some(at) = rest.find('$') {
            let (text, marker) = rest.split_at_checked(at).ok_or(DieselError::NotFound)?;
            out.push_sql(text);
            rest = if let Some(after) = marker.strip_prefix(LIMIT) {
                let limit = self.limit.as_ref().ok_or_else(|| misuse("a list was run without its limit"))?;
                limit.walk_ast(out.reborrow())?;
                after
            } else if let Some(after) = marker.strip_prefix(ROWS) {
                self.batch()?.walk_rows(&mut out)?;
                after
            } else if let Some(after) = marker.strip_prefix(NAMES) {
                self.batch()?.walk_names(&mut out);
                after
            } else {
                let number = marker.strip_prefix('$').unwrap_or(marker);
                let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
                let (index, after) = number.split_at_checked(digits).ok_or(DieselError::NotFound)?;
                let bind = index.parse::<usize>().ok().and_then(|n| self.binds.get(n.checked_sub(1)?));
                bind.ok_or_else(|| misuse("a statement names a value it was not given"))?
                    .walk_ast(out.reborrow())?;
                after
            };
        }
        out.push_sql(rest);
        out.push_sql(self.ending);
        Ok(())
    }
}

fn misuse(what: &'static str) -> DieselError {
    DieselError::QueryBuilderError(what.into())
}

impl QueryId for Statement {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for Statement {
    type SqlType = Untyped;
}

/// At most `limit` rows, and whether there are more: one row further than asked for is read to know.
pub(crate) async fn page<T, const MAX: u32>(
    connection: &mut AsyncPgConnection,
    statement: Statement,
    limit: Limit<MAX>,
) -> QueryResult<(Vec<T>, bool)>
where
    T: QueryableByName<Pg> + Send + 'static,
{
    let mut rows = bounded(connection, statement, i64::from(limit).saturating_add(1)).await?;
    let size = usize::try_from(limit.get()).unwrap_or(usize::MAX);
    let more = rows.len() > size;
    rows.truncate(size);
    Ok((rows, more))
}

/// At most `limit` rows.
pub(crate) async fn rows<T, const MAX: u32>(
    connection: &mut AsyncPgConnection,
    statement: Statement,
    limit: Limit<MAX>,
) -> QueryResult<Vec<T>>
where
    T: QueryableByName<Pg> + Send + 'static,
{
    bounded(connection, statement, i64::from(limit)).await
}

#[expect(
    clippy::disallowed_methods,
    reason = "the list is bounded here, by the limit of the statement and of the rows"
)]
async fn bounded<T>(
    connection: &mut AsyncPgConnection,
    statement: Statement,
    rows: i64,
) -> QueryResult<Vec<T>>
where
    T: QueryableByName<Pg> + Send + 'static,
{
    if !statement.sql.contains(LIMIT) {
        return Err(misuse("a list's SQL has no $limit"));
    }
    statement.limited(rows).load(connection).await
}

/// As many rows as keys were given: for statements that answer each element of an array bound to them at most once.
#[expect(
    clippy::disallowed_methods,
    reason = "the number of rows is that of the keys, checked by the caller's batch"
)]
pub(crate) async fn by_keys<T>(
    connection: &mut AsyncPgConnection,
    statement: Statement,
    keys: usize,
) -> QueryResult<Vec<T>>
where
    T: QueryableByName<Pg> + Send + 'static,
{
    let rows = statement.load(connection).await?;
    if rows.len() > keys { Err(misuse("a look-up by keys answered more rows than keys")) } else { Ok(rows) }
}

/// At most one row of each row of a batch; nothing is asked for an empty one.
pub(crate) async fn of_each<R: Row, T>(
    connection: &mut AsyncPgConnection,
    statement: Statement,
    rows: Vec<R>,
) -> QueryResult<Vec<T>>
where
    T: QueryableByName<Pg> + Send + 'static,
{
    let keys = rows.len();
    if keys == 0 { Ok(Vec::new()) } else { by_keys(connection, statement.rows(rows), keys).await }
}

/// The one row, or none.
pub(crate) async fn optional<T>(
    connection: &mut AsyncPgConnection,
    statement: Statement,
) -> QueryResult<Option<T>>
where
    T: QueryableByName<Pg> + Send + 'static,
{
    statement.get_result(connection).await.optional()
}

/// Runs a statement for its effect; answers how many rows it touched.
pub(crate) async fn execute(connection: &mut AsyncPgConnection, statement: Statement) -> QueryResult<usize> {
    statement.execute(connection).await
}

/// Makes settings of a transaction, each `SET LOCAL …;`, in one round trip. Said so, and not by `set_config`, they hold on the node of a
/// cluster as well.
pub(crate) async fn set(connection: &mut AsyncPgConnection, settings: &str) -> QueryResult<()> {
    connection.batch_execute(settings).await
}

/// Runs a statement on a batch for its effect; an empty one has none. Returns how many rows it touched.
pub(crate) async fn write<R: Row>(
    connection: &mut AsyncPgConnection,
    statement: Statement,
    rows: Vec<R>,
) -> QueryResult<usize> {
    if rows.is_empty() { Ok(0) } else { execute(connection, statement.rows(rows)).await }
}
