//! The schema: embedded, reversible migrations, applied by one process at a time.

use std::time::Duration;

use diesel::QueryableByName;
use diesel::connection::BoxableConnection;
use diesel::migration::{self, Migration, MigrationMetadata, MigrationName, MigrationSource};
use diesel::pg::Pg;
use diesel::sql_types::{Array, BigInt, Bool, Text};
use diesel_async::{AsyncMigrationHarness, AsyncPgConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use crate::connection::StoreConfig;
use crate::distribution::{self, Distribute, Distributed};
use crate::error::Error;
use crate::sql::statement::{self, Statement};

const EMBEDDED: EmbeddedMigrations = embed_migrations!("migrations");

/// The embedded migrations. Those outside a transaction make or drop one index `CONCURRENTLY` each: others read and write meanwhile, so
/// it may wait for their transactions as long as they take.
struct Migrations;

struct Patient(Box<dyn Migration<Pg>>);

/// What a build of an index left that was interrupted: no statement reads it and every write does. One that is being built anew by
/// somebody else has such an ending.
const REMOVE_UNFINISHED: &str = "DO $$
     DECLARE
         unfinished regclass;
     BEGIN
         FOR unfinished IN
             SELECT i.indexrelid FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
             WHERE NOT i.indisvalid AND c.relkind = 'i' AND c.relnamespace = current_schema()::regnamespace
                 AND c.relname !~ '_cc(new|old)[0-9]*$'
         LOOP
             EXECUTE format('DROP INDEX %s', unfinished);
         END LOOP;
     END $$";

impl MigrationSource<Pg> for Migrations {
    fn migrations(&self) -> migration::Result<Vec<Box<dyn Migration<Pg>>>> {
        let embedded: Vec<Box<dyn Migration<Pg>>> = EMBEDDED.migrations()?;
        Ok(embedded
            .into_iter()
            .map(|migration| -> Box<dyn Migration<Pg>> { Box::new(Patient(migration)) })
            .collect())
    }
}

impl Patient {
    fn patiently(
        &self,
        connection: &mut dyn BoxableConnection<Pg>,
        step: impl FnOnce(&mut dyn BoxableConnection<Pg>) -> migration::Result<()>,
    ) -> migration::Result<()> {
        if self.0.metadata().run_in_transaction() {
            return step(connection);
        }
        connection.batch_execute(REMOVE_UNFINISHED)?;
        connection.batch_execute("SET lock_timeout = 0")?;
        step(connection)?;
        Ok(connection.batch_execute(IMPATIENT)?)
    }
}

impl Migration<Pg> for Patient {
    fn run(&self, connection: &mut dyn BoxableConnection<Pg>) -> migration::Result<()> {
        self.patiently(connection, |connection| self.0.run(connection))
    }

    fn revert(&self, connection: &mut dyn BoxableConnection<Pg>) -> migration::Result<()> {
        self.patiently(connection, |connection| self.0.revert(connection))
    }

    fn metadata(&self) -> &dyn MigrationMetadata {
        self.0.metadata()
    }

    fn name(&self) -> &dyn MigrationName {
        self.0.name()
    }
}

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
/// rolled back, or begun anew the next time, and those before it stay. [`Error::Distribution`] when tables cannot be distributed.
pub async fn migrate(config: &StoreConfig, which: Distribute) -> Result<Migrated, Error> {
    let mut connection = config.connect().await?;
    lock(&mut connection).await?;
    let applied = blocking(connection, |harness| {
        let applied = harness.run_pending_migrations(Migrations).map_err(Error::Migration)?;
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
        harness.revert_last_migration(Migrations).map(|version| version.to_string()).map_err(Error::Migration)
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
    let known = Migrations.migrations().map_err(Error::Migration)?;
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

/// What waits for a lock on a table makes everybody wait behind it, so that is given up after a second, to be tried again.
const IMPATIENT: &str = "SET lock_timeout = '1s'";

/// Waits for the migrations of other processes. The lock is the session's: it is released with the connection, however
/// this ends. It is asked for again and again: a statement that waits for it would be one that the build of an index waits for.
/// Building an index on a large table takes longer than any statement of the worker may.
async fn lock(connection: &mut AsyncPgConnection) -> Result<(), Error> {
    for setting in ["SET statement_timeout = 0", IMPATIENT] {
        statement::execute(connection, Statement::shared(setting)).await?;
    }
    loop {
        let lock = Statement::shared(
            "SELECT pg_try_advisory_lock(hashtextextended('muster migrations', 0)) AS found",
        );
        let row: Option<FoundRow> = statement::optional(connection, lock).await?;
        if row.is_some_and(|row| row.found) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
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
