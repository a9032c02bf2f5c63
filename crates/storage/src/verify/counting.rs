//! How statements of a verification are run: those that count for as long as counting takes, those that repair with
//! the locks.

use std::time::Duration;

use diesel::QueryableByName;
use diesel::pg::Pg;
use diesel_async::AsyncPgConnection;
use futures_util::FutureExt;
use muster_domain::Limit;

use crate::community::Community;
use crate::error::Error;
use crate::sql::statement::{self, Statement};
use crate::write::lock;

/// How long counting a whole community once may take.
pub(super) const COUNTING: Duration = Duration::from_secs(600);
/// How many rows are repaired with the community's locks taken once.
pub(super) const REPAIRED_AT_ONCE: usize = 1000;

impl Community {
    /// The rows of a statement that counts.
    pub(super) async fn counted<T, const MAX: u32>(
        &self,
        statement: Statement,
        limit: Limit<MAX>,
    ) -> Result<Vec<T>, Error>
    where
        T: QueryableByName<Pg> + Send + 'static,
    {
        self.store
            .write_within("verify", COUNTING, move |connection| {
                async move {
                    plan_for_counting(connection).await?;
                    Ok(statement::rows(connection, statement, limit).await?)
                }
                .boxed()
            })
            .await
    }

    /// Runs statements with every lock of the community.
    pub(super) async fn write_locked(&self, statements: Vec<Statement>) -> Result<(), Error> {
        let tenant = self.tenant;
        self.store
            .write("verify", move |connection| {
                async move {
                    lock::all_members(connection, tenant).await?;
                    lock::community(connection, tenant).await?;
                    for statement in statements {
                        statement::execute(connection, statement).await?;
                    }
                    Ok(())
                }
                .boxed()
            })
            .await
    }
}

/// Until the transaction ends. Counting everything takes time, memory, and a plan for the community at hand: one that reads each
/// table once. A planner that takes what few rows have in common for rare would else look up a row for each of another table.
/// A cluster's nodes plan by their own settings.
pub(super) async fn plan_for_counting(connection: &mut AsyncPgConnection) -> Result<(), Error> {
    let counting = Statement::shared(
        "SELECT set_config(name, value, true) FROM (VALUES ('statement_timeout', '10min'),
             ('plan_cache_mode', 'force_custom_plan'), ('enable_seqscan', 'on'), ('enable_nestloop', 'off'),
             ('work_mem', '64MB')) AS s (name, value)",
    );
    statement::execute(connection, counting).await?;
    Ok(())
}
