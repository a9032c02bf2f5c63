//! The clock that all workers share.

use diesel::QueryResult;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;

#[diesel::declare_sql_function]
extern "SQL" {
    /// The time at which it is asked, which may lie behind the beginning of the transaction.
    fn clock_timestamp() -> Timestamptz;
}

/// The database's time.
pub(crate) async fn now(connection: &mut AsyncPgConnection) -> QueryResult<OffsetDateTime> {
    diesel::select(clock_timestamp()).get_result(connection).await
}
