//! The one place that runs SQL: every statement passes here, and a list of rows is only to be had with a [`Limit`].

use std::sync::Arc;

use diesel::expression::{AsExpression, TypedExpressionType};
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::{Error as DieselError, OptionalExtension};
use diesel::sql_types::{BigInt, SqlType, Untyped};
use diesel::{IntoSql, QueryResult, QueryableByName};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use muster_domain::Limit;

type Bind = Arc<dyn QueryFragment<Pg> + Send + Sync>;

/// Fixed SQL and its values. `$1`, `$2` and so on name the values in the order they were bound, as often as needed; `$limit`
/// is where the list's bound goes.
///
/// The text is always a constant, so each statement is prepared once a connection; `diesel::sql_query` would prepare it
/// at every call.
#[derive(Clone)]
pub(crate) struct Statement {
    sql: &'static str,
    binds: Vec<Bind>,
    limit: Option<Bind>,
}

const LIMIT: &str = "$limit";

impl Statement {
    pub(crate) const fn new(sql: &'static str) -> Self {
        Self { sql, binds: Vec::new(), limit: None }
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

    fn limited(mut self, rows: i64) -> Self {
        self.limit = Some(Arc::new(rows.into_sql::<BigInt>()));
        self
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
