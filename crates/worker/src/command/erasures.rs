//! The list of erasures: exported from one database, applied to another that was restored from an older backup.

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use muster_domain::{ErasedPerson, GuildId, PageLimit};
use muster_storage::{Enforced, Erasure, Error, Store};
use serde::Serialize;
use time::OffsetDateTime;

use super::communities::Communities;
use super::erasure_list::{Entry, Heading, List};
use crate::connect;
use crate::failure::Failure;
use crate::settings::Database;

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Action {
    /// Prints the list of all erasures, for a restored backup.
    Export,
    /// Applies a list of erasures: erases every person on it whom the backup brought back, so that no older event restores them.
    /// For a database that was restored from a backup, before a worker is started on it; safe to repeat.
    Apply {
        /// The file with the list, or - for standard input.
        list: PathBuf,
    },
}

/// Exports or applies a list.
pub(crate) async fn run(database: &Database, action: &Action) -> Result<(), Failure> {
    let store = Store::open(connect::database(database)?.0).await?;
    match action {
        Action::Export => export(&store).await,
        Action::Apply { list } => apply(&store, list).await,
    }
}

async fn export(store: &Store) -> Result<(), Failure> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let key = store.erasure_key().fingerprint().to_string();
    write_line(&mut out, &Heading::new(key))?;
    let mut erasures = 0_u64;
    let mut communities = Communities::default();
    while let Some(id) = communities.next(store).await? {
        let community = store.community(id).await?;
        let mut after = None;
        loop {
            let page = community.erasure_list(PageLimit::MAX, after).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.person);
            for Erasure { guild, person, erased_at } in page {
                let (guild_id, person) = (guild.as_str().to_owned(), person.to_string());
                write_line(&mut out, &Entry::Erasure { guild_id, person, erased_at })?;
                erasures = erasures.saturating_add(1);
            }
        }
    }
    write_line(&mut out, &Entry::End { erasures })?;
    Ok(out.flush()?)
}

#[expect(clippy::print_stdout, reason = "the report is this command's output")]
async fn apply(store: &Store, path: &Path) -> Result<(), Failure> {
    let mut list = List::open(path)?;
    list.heading(&store.erasure_key().fingerprint().to_string())?;
    let (mut read, mut new) = (0_usize, 0_usize);
    loop {
        let some = list.some()?;
        if some.is_empty() {
            break;
        }
        read = read.saturating_add(some.len());
        new = new.saturating_add(store.erasures_remember(some).await?);
    }
    println!("{read} erasures on the list, {new} of them new");
    let mut sum = Enforced::default();
    let mut communities = Communities::default();
    while let Some(id) = communities.next(store).await? {
        let Enforced { profiles, awarders } = store.community(id).await?.erasures_enforce().await?;
        sum.profiles = sum.profiles.saturating_add(profiles);
        sum.awarders = sum.awarders.saturating_add(awarders);
    }
    println!("{} profiles erased, {} awarders forgotten", sum.profiles, sum.awarders);
    Ok(())
}

fn write_line(out: &mut impl Write, line: &impl Serialize) -> Result<(), Failure> {
    serde_json::to_writer(&mut *out, line).map_err(std::io::Error::from)?;
    Ok(out.write_all(b"\n")?)
}

/// The erased persons of a chat server, with the times; none of a server that is not known.
pub(crate) async fn of_guild(
    store: &Store,
    guild: &GuildId,
) -> Result<HashMap<ErasedPerson, OffsetDateTime>, Failure> {
    let community = match store.community_find(guild).await {
        Ok(found) => store.community(found.community_id).await?,
        Err(Error::NotFound(_)) => return Ok(HashMap::new()),
        Err(error) => return Err(error.into()),
    };
    let (mut erased, mut after) = (HashMap::new(), None);
    loop {
        let page = community.erasure_list(PageLimit::MAX, after).await?;
        let Some(last) = page.last() else { return Ok(erased) };
        after = Some(last.person);
        erased.extend(page.into_iter().map(|erasure| (erasure.person, erasure.erased_at)));
    }
}
