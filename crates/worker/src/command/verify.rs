//! Compares the kept counts with plain counting, community by community, and reports the differences.

use clap::Args;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use muster_domain::CommunityId;
use muster_storage::{Compared, Drift, Store, Verification};

use super::communities::Communities;
use crate::connect;
use crate::failure::Failure;
use crate::settings::Database;

#[derive(Clone, Copy, Args)]
pub(crate) struct Arguments {
    /// The community to verify.
    #[arg(long, required_unless_present = "all", conflicts_with = "all")]
    community: Option<CommunityId>,
    /// Verifies every community, two at a time where the pool has connections for that.
    #[arg(long)]
    all: bool,
    /// Repairs the counts that drifted, while events go on.
    #[arg(long)]
    repair: bool,
    /// Prints a line of JSON for each community.
    #[arg(long)]
    json: bool,
}

/// Prints a report of each community; an error when something drifted that was not repaired.
pub(crate) async fn run(database: &Database, arguments: Arguments) -> Result<(), Failure> {
    // Counting keeps a processor of the database busy, and each community takes two connections for as long. Small communities
    // do not wait for a large one.
    let at_once = if database.pool_size < 4 { 1 } else { 2 };
    let (database, _) = connect::database(database)?;
    let store = Store::open(database).await?;
    let communities = match arguments.community {
        Some(community) => stream::once(async move { Ok(community) }).boxed(),
        None => every(&store).boxed(),
    };
    let store = &store;
    let verify = |community: CommunityId| async move {
        Ok::<_, Failure>(store.community(community).await?.verify(arguments.repair).await?)
    };
    let mut verified = communities.map_ok(verify).try_buffer_unordered(at_once);
    let mut drifted = 0_u64;
    while let Some(found) = verified.try_next().await? {
        print(&found, arguments.json)?;
        drifted = drifted.saturating_add(remaining(&found));
    }
    if drifted == 0 { Ok(()) } else { Err(Failure::Drifted(drifted)) }
}

fn every(store: &Store) -> impl Stream<Item = Result<CommunityId, Failure>> + Send + '_ {
    stream::try_unfold(Communities::default(), move |mut communities| async move {
        Ok(communities.next(store).await?.map(|community| (community, communities)))
    })
}

/// How many values still differ.
fn remaining(found: &Verification) -> u64 {
    found.compared.iter().map(|compared| compared.drifted.saturating_sub(compared.repaired)).sum()
}

#[expect(clippy::print_stdout, reason = "the report is this command's output")]
fn print(found: &Verification, json: bool) -> Result<(), Failure> {
    if json {
        println!("{}", serde_json::to_string(found).map_err(std::io::Error::from)?);
    } else {
        report(found);
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the report is this command's output")]
fn report(found: &Verification) {
    println!("community {}", found.community_id);
    for Compared { what, rows, drifted, repaired } in &found.compared {
        let verdict = match (drifted, repaired) {
            (0, _) => "ok".to_owned(),
            (drifted, 0) => format!("DRIFTED  {drifted}"),
            (_, repaired) => format!("repaired {repaired}"),
        };
        println!("  {what:<34} {rows:>10} compared  {verdict}");
    }
    for Drift { what, key, kept, counted } in &found.drifted {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        println!("  {what} [{key}]: kept {}, counted {}", shown(kept), shown(counted));
    }
    let named = u64::try_from(found.drifted.len()).unwrap_or(u64::MAX);
    if found.drifted() > named {
        println!("  and {} more", found.drifted().saturating_sub(named));
    }
}
