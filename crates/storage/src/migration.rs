//! The schema: embedded, reversible migrations, applied by one process at a time.

use diesel::QueryableByName;
use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel::sql_types::{Array, BigInt, Bool, Text};
use diesel_async::{AsyncMigrationHarness, AsyncPgConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use crate::connection::StoreConfig;
use crate::distribution::{self, Distribute, Distributed};
use crate::error::Error;
use crate::sql::statement::{self, Statement};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// What was done to the schema.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Migrated {
    /// The names of the migrations that were applied now.
    pub applied: Vec<String>,
    /// What was distributed over the nodes of a cluster of Citus, which nothing is elsewhere.
    pub distributed: Distributed,
}

/// Applies every pending migration, and distributes the tables where the database is a coordinator of Citus. Several processes may
/// call it at once: they take turns.
///
/// # Errors
/// [`Error::Unavailable`] when the database cannot be reached, [`Error::Migration`] when a migration fails; it is then
/// rolled back, and those before it stay. [`Error::Distribution`] when tables cannot be distributed.
pub async fn migrate(config: &StoreConfig, which: Distribute) -> Result<Migrated, Error> {
    let mut connection = config.connect().await?;
    lock(&mut connection).await?;
    let applied = blocking(connection, |harness| {
        let applied = harness.run_pending_migrations(MIGRATIONS).map_err(Error::Migration)?;
        Ok(applied.iter().map(ToString::to_string).collect())
    })
    .await?;
    let mut connection = config.connect().await?;
    lock(&mut connection).await?;
    let distributed = distribution::distribute(&mut connection, which).await?;
    Ok(Migrated { applied, distributed })
}

/// Reverts the newest migration and answers its name.
///
/// # Errors
/// As [`migrate`].
pub async fn revert(config: &StoreConfig) -> Result<String, Error> {
    let mut connection = config.connect().await?;
    lock(&mut connection).await?;
    blocking(connection, |harness| {
        harness.revert_last_migration(MIGRATIONS).map(|version| version.to_string()).map_err(Error::Migration)
    })
    .await
}

/// Fails unless every migration has been applied.
///
/// # Errors
/// [`Error::Outdated`] with how many are pending; [`Error::Unavailable`] when the database cannot be reached.
pub async fn check(config: &StoreConfig) -> Result<(), Error> {
    let versions = versions()?;
    let mut connection = config.connect().await?;
    // Diesel's own check first makes the table that it reads, which a read-only database refuses.
    let made = Statement::shared("SELECT to_regclass('__diesel_schema_migrations') IS NOT NULL AS found");
    let made: Option<FoundRow> = statement::optional(&mut connection, made).await?;
    if !made.is_some_and(|row| row.found) {
        return Err(Error::Outdated(versions.len()));
    }
    let missing = Statement::shared(
        "SELECT count(*) AS missing FROM unnest($1) AS known (version)
         WHERE NOT EXISTS (SELECT FROM __diesel_schema_migrations AS m WHERE m.version = known.version)",
    )
    .bind::<Array<Text>, _>(versions);
    let missing: Option<MissingRow> = statement::optional(&mut connection, missing).await?;
    let missing = missing.ok_or_else(|| Error::defect("migrations cannot be counted"))?.missing;
    if missing == 0 { Ok(()) } else { Err(Error::Outdated(usize::try_from(missing).unwrap_or(usize::MAX))) }
}

/// The versions of all migrations, as the database knows them.
fn versions() -> Result<Vec<String>, Error> {
    let known: Vec<Box<dyn Migration<Pg>>> = MIGRATIONS.migrations().map_err(Error::Migration)?;
    Ok(known.iter().map(|migration| migration.name().version().to_string()).collect())
}

#[derive(QueryableByName)]
struct FoundRow {
    #[diesel(sql_type = Bool)]
    found: bool,
}

#[derive(QueryableByName)]
struct MissingRow {
    #[diesel(sql_type = BigInt)]
    missing: i64,
}

/// Waits for the migrations of other processes. The lock is the session's: it is released with the connection, however
/// this ends. Building an index on a large table takes longer than any statement of the worker may; but what waits for a lock
/// on a table makes everybody wait behind it, so that is given up after a second, to be tried again.
async fn lock(connection: &mut AsyncPgConnection) -> Result<(), Error> {
    const STATEMENTS: [&str; 4] = [
        "SET statement_timeout = 0",
        "SET lock_timeout = 0",
        "SELECT pg_advisory_lock(hashtextextended('muster migrations', 0))",
        "SET lock_timeout = '1s'",
    ];
    for sql in STATEMENTS {
        statement::execute(connection, Statement::shared(sql)).await?;
    }
    Ok(())
}

/// Diesel's migrations are blocking calls.
async fn blocking<T: Send + 'static>(
    connection: AsyncPgConnection,
    work: impl FnOnce(&mut AsyncMigrationHarness<AsyncPgConnection>) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(move || work(&mut AsyncMigrationHarness::new(connection)))
        .await
        .map_err(|error| Error::Migration(error.into()))?
}
