//! Loads communities by bulk SQL, and keeps what was loaded for the next run.
//!
//! A loaded cluster is kept, stopped, in the cache (`bench-<members>-<digest>`); the digest is of the schema, of the
//! loader, of the seed and of the week, since what happened "this week" is part of it. Of one size one cluster is kept,
//! and of at most [`KEPT`] sizes.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use indicatif::{ProgressBar, ProgressStyle};
use muster_domain::Nym;
use sha2::{Digest, Sha256};
use time::format_description::well_known::Rfc3339;
use time::{Date, OffsetDateTime, Time};
use tokio::sync::Mutex;
use tokio_postgres::Client;
use xtask::services::{
    Authority, Postgres, PostgresOptions, PostgresServer, RunDirectory, cache, postgres_server,
};

use super::database::{Database, Planner};
use crate::cargo;

const STEPS: &str = include_str!("load.sql");
/// How many sizes of community are kept in the cache.
const KEPT: usize = 4;
/// How many steps of a stage run at once.
const AT_ONCE: usize = 2;

/// Names as people set them: accents, other scripts, forms that fold alike, marks that SQL gives a meaning.
const NAMES: [&str; 20] = [
    "Ürün",
    "Zoé",
    "Ярослав",
    "李小龍",
    "ＳＴＩＬＧＡＲ",
    "محمد",
    "Ñandú",
    "Sand_Rider",
    "back\\slash",
    "🏜 Desert",
    "İstanbul",
    "Θεός",
    "김철수",
    "100%",
    "Old Father",
    "Ghola",
    "ﬁremen",
    "Ελένη",
    "Łukasz",
    "Dr. Yueh",
];
const SYLLABLES: [&str; 48] = [
    "al", "ar", "ba", "cha", "da", "do", "dun", "el", "fa", "fre", "ga", "gur", "ha", "hel", "id", "il",
    "ir", "ja", "jes", "ka", "kyn", "la", "le", "li", "ma", "mo", "mu", "na", "ne", "oth", "pa", "qu", "ra",
    "rab", "sha", "sie", "sti", "ta", "thu", "tu", "ul", "ur", "va", "ve", "wel", "xa", "yu", "za",
];

/// While it is loaded, nothing of it needs to survive a crash.
const LOADING: [(&str, &str); 9] = [
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    ("max_wal_size", "32GB"),
    ("checkpoint_timeout", "1h"),
    ("autovacuum", "off"),
    ("maintenance_work_mem", "768MB"),
    ("work_mem", "256MB"),
    ("max_parallel_maintenance_workers", "1"),
    ("session_replication_role", "replica"),
];

/// A community to measure on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// How many members it has. Twenty small communities lie beside it.
    pub(super) members: u64,
    /// What makes it the same every time.
    pub(super) seed: u32,
    /// Whether each step of its loading is printed with its time.
    pub(super) times: bool,
}

impl Wanted {
    /// The data directory of a stopped cluster with this community: from the cache, or loaded now.
    ///
    /// # Errors
    /// When it can be neither found nor loaded.
    pub(super) async fn cluster(self) -> Result<PathBuf> {
        let server = postgres_server()?;
        let kept = cache()?.join(format!("bench-{}-{}", self.members, self.digest(&server)?));
        if !kept.is_dir() {
            self.load(server, &kept).await?;
        }
        Ok(kept)
    }

    async fn load(self, server: PostgresServer, kept: &Path) -> Result<()> {
        let started = Instant::now();
        let directory = RunDirectory::create()?;
        let authority = Authority::create(directory.path(), "ca")?;
        let mut options = PostgresOptions::new(server, authority.server("postgres")?);
        options.settings = LOADING.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        options.settings.push(("shared_buffers".to_owned(), "2GB".to_owned()));
        let mut postgres = Postgres::start(&directory, "loading", options)?;
        let database = Database::of(&postgres, &authority)?;
        muster_storage::migrate(&database.store()?).await?;
        Loader::new(&database, self).await?.run().await?;
        postgres.stop();
        keep(postgres.data(), kept)?;
        println!(
            "loaded {} members in {:.0} s; kept in {}",
            self.members,
            started.elapsed().as_secs_f64(),
            kept.display()
        );
        Ok(())
    }

    fn digest(self, server: &PostgresServer) -> Result<String> {
        let mut digest = Sha256::new();
        let migrations = cargo::root().join("crates/storage/migrations");
        let directories = fs::read_dir(&migrations)
            .with_context(|| format!("cannot read {}", migrations.display()))?
            .map(|entry| entry.map(|entry| entry.path().join("up.sql")));
        let mut files = directories.collect::<Result<Vec<_>, _>>()?;
        files.sort();
        for file in files.iter().filter(|file| file.is_file()) {
            digest.update(fs::read(file)?);
        }
        digest.update(STEPS);
        digest.update(NAMES.concat());
        digest.update(SYLLABLES.concat());
        digest.update(format!("{} {} {}", self.seed, anchor()?, server.version));
        Ok(digest.finalize().iter().take(6).fold(String::new(), |mut text, byte| {
            // Writing to a text does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        }))
    }

    /// The steps' SQL with this community's values.
    fn filled_in(self, sql: &str) -> Result<String> {
        let list = |texts: &mut dyn Iterator<Item = String>| {
            let quoted: Vec<String> =
                texts.map(|text| format!("E'{}'", text.replace('\\', "\\\\"))).collect();
            format!("(ARRAY[{}]::text[])", quoted.join(", "))
        };
        let nyms = NAMES.iter().map(|name| Nym::parse(*name)).collect::<Result<Vec<_>, _>>()?;
        let values = [
            (":members", self.members.to_string()),
            (":seed", self.seed.to_string()),
            (":anchor", format!("timestamptz '{}'", anchor()?.format(&Rfc3339)?)),
            (":names", list(&mut nyms.iter().map(|nym| nym.as_str().to_owned()))),
            (":keys", list(&mut nyms.iter().map(|nym| nym.key().as_str().to_owned()))),
            (":syllables", list(&mut SYLLABLES.iter().map(|&syllable| syllable.to_owned()))),
        ];
        Ok(values.iter().fold(sql.to_owned(), |sql, (name, value)| sql.replace(name, value)))
    }
}

/// Where the loaded history ends: Monday's midnight, UTC.
pub(super) fn anchor() -> Result<OffsetDateTime> {
    let today = OffsetDateTime::now_utc().date();
    let days = i32::from(today.weekday().number_days_from_monday());
    let monday = Date::from_julian_day(today.to_julian_day().saturating_sub(days))?;
    Ok(OffsetDateTime::new_utc(monday, Time::MIDNIGHT))
}

/// Moves a cluster into the cache, and what it replaces or leaves no room for out of it.
fn keep(data: &Path, kept: &Path) -> Result<()> {
    let cache = kept.parent().context("a cache without a directory")?;
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let of_size = |path: &Path| -> Option<String> {
        let rest = path.file_name()?.to_str()?.strip_prefix("bench-")?.to_owned();
        rest.split_once('-').map(|(members, _)| members.to_owned())
    };
    let mut others: Vec<PathBuf> = fs::read_dir(cache)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| of_size(path).is_some())
        .collect();
    others.sort_by_key(|path| fs::metadata(path).and_then(|data| data.modified()).ok());
    let (replaced, mut others): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|path| of_size(path) == of_size(kept));
    let surplus = others.len().saturating_sub(KEPT - 1);
    for path in replaced.into_iter().chain(others.drain(..surplus)) {
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    // Whole or not at all, even where the cache is on another file system.
    let arriving = kept.with_extension("arriving");
    if arriving.exists() {
        fs::remove_dir_all(&arriving)?;
    }
    let moved = Command::new("mv").arg(data).arg(&arriving).status().context("cannot run mv")?;
    ensure!(moved.success(), "{} cannot be moved to {}", data.display(), arriving.display());
    fs::rename(&arriving, kept).with_context(|| format!("cannot make {}", kept.display()))
}

/// One step of the loader's SQL.
struct Step {
    stage: u32,
    name: String,
    /// The tables that it fills.
    tables: Vec<String>,
    sql: String,
}

/// Reads `-- stage 2: name = table, table` and what follows each.
fn steps(sql: &str) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    for line in sql.lines() {
        if let Some(head) = line.strip_prefix("-- stage ") {
            let (stage, rest) = head.split_once(": ").context("a stage without a name")?;
            let (name, tables) = rest.split_once(" = ").unwrap_or((rest, ""));
            steps.push(Step {
                stage: stage.parse().context("a stage without a number")?,
                name: name.to_owned(),
                tables: tables.split(", ").filter(|table| !table.is_empty()).map(str::to_owned).collect(),
                sql: String::new(),
            });
        } else if let Some(step) = steps.last_mut() {
            step.sql.push_str(line);
            step.sql.push('\n');
        }
    }
    Ok(steps)
}

struct Loader {
    clients: Vec<Client>,
    steps: Vec<Step>,
    bar: ProgressBar,
    times: bool,
}

impl Loader {
    async fn new(database: &Database, wanted: Wanted) -> Result<Self> {
        let steps = steps(&wanted.filled_in(STEPS)?)?;
        let style = ProgressStyle::with_template("{prefix:>9} {wide_bar} {pos}/{len} {elapsed} {msg}")?;
        let length = u64::try_from(steps.len()).unwrap_or(u64::MAX).saturating_add(2);
        let bar = ProgressBar::new(length).with_style(style).with_prefix(wanted.members.to_string());
        bar.enable_steady_tick(std::time::Duration::from_millis(250));
        let connecting = (0..AT_ONCE).map(|_| database.connect(Planner::Free));
        Ok(Self { clients: try_join_all(connecting).await?, steps, bar, times: wanted.times })
    }

    async fn run(mut self) -> Result<()> {
        let client = self.clients.first().context("no connection")?;
        // Keys of other tables go first and come last: until then they would hold each other's fast.
        let foreign = definitions(client, "contype = 'f'", &[]).await?;
        for definition in &foreign {
            client.batch_execute(&definition.drop).await?;
        }
        let mut waiting: VecDeque<Step> = std::mem::take(&mut self.steps).into();
        while let Some(stage) = waiting.front().map(|step| step.stage) {
            let of_stage: VecDeque<Step> =
                std::iter::from_fn(|| waiting.pop_front_if(|step| step.stage == stage)).collect();
            let queue = Mutex::new(of_stage);
            let lanes = self.clients.iter().map(|client| async {
                loop {
                    let Some(step) = queue.lock().await.pop_front() else {
                        return Ok::<_, anyhow::Error>(());
                    };
                    self.bar.set_message(step.name.clone());
                    let started = Instant::now();
                    run_step(client, &step).await.with_context(|| format!("loading {}", step.name))?;
                    self.bar.inc(1);
                    if self.times {
                        println!("{:>8.1} s {}", started.elapsed().as_secs_f64(), step.name);
                    }
                }
            });
            try_join_all(lanes).await?;
        }
        let client = self.clients.first().context("no connection")?;
        self.bar.set_message("foreign keys");
        for definition in &foreign {
            client.batch_execute(&definition.make).await?;
        }
        self.bar.inc(1);
        self.bar.set_message("vacuum and statistics");
        client.batch_execute("VACUUM (FREEZE, ANALYZE)").await?;
        client.batch_execute("CHECKPOINT").await?;
        self.bar.finish_and_clear();
        Ok(())
    }
}

/// Fills a step's tables, without their keys and indexes; these are made after, each by one sort.
async fn run_step(client: &Client, step: &Step) -> Result<()> {
    let tables: Vec<&str> = step.tables.iter().map(String::as_str).collect();
    client.batch_execute("BEGIN").await?;
    let mut made_again = Vec::new();
    if !tables.is_empty() {
        made_again = definitions(client, "contype IN ('p', 'u')", &tables).await?;
        made_again.extend(indexes(client, &tables).await?);
        for definition in &made_again {
            client.batch_execute(&definition.drop).await?;
        }
        // A table that is emptied in the transaction that fills it needs no log.
        client.batch_execute(&format!("TRUNCATE {} RESTART IDENTITY", tables.join(", "))).await?;
    }
    client.batch_execute(&step.sql).await?;
    for definition in &made_again {
        client.batch_execute(&definition.make).await?;
    }
    client.batch_execute("COMMIT").await?;
    Ok(())
}

/// How something of the schema is taken away and made again.
struct Definition {
    drop: String,
    make: String,
}

/// Constraints of these tables; with none named, of all.
async fn definitions(client: &Client, kind: &str, tables: &[&str]) -> Result<Vec<Definition>> {
    let sql = format!(
        "SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname),
             format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
         FROM pg_constraint
         WHERE {kind} AND connamespace = 'public'::regnamespace AND conparentid = 0
             AND (cardinality($1::text[]) = 0 OR conrelid::regclass::text = ANY ($1))
         ORDER BY conname"
    );
    let rows = client.query(&sql, &[&tables]).await?;
    Ok(rows.iter().map(|row| Definition { drop: row.get(0), make: row.get(1) }).collect())
}

/// Indexes of these tables that no constraint made.
async fn indexes(client: &Client, tables: &[&str]) -> Result<Vec<Definition>> {
    let sql = "SELECT format('DROP INDEX %s', indexrelid::regclass), pg_get_indexdef(indexrelid)
         FROM pg_index
         WHERE indrelid::regclass::text = ANY ($1) AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
         ORDER BY indexrelid::regclass::text";
    let rows = client.query(sql, &[&tables]).await?;
    Ok(rows.iter().map(|row| Definition { drop: row.get(0), make: row.get(1) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_a_stage_and_stages_ascend() {
        let steps = steps(STEPS).unwrap();
        assert!(steps.len() > 5);
        assert!(steps.is_sorted_by_key(|step| step.stage));
        assert!(steps.iter().all(|step| !step.sql.trim().is_empty()));
    }

    #[test]
    fn every_value_is_filled_in() {
        let sql = Wanted { members: 7, seed: 1, times: false }.filled_in(STEPS).unwrap();
        let left = regex::Regex::new(r"[^:\[]:[a-z]").unwrap();
        let lines = sql.lines().filter(|line| !line.trim_start().starts_with("--"));
        assert_eq!(lines.filter(|line| left.is_match(line)).collect::<Vec<_>>(), Vec::<&str>::new());
    }
}
