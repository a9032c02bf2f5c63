//! The yardstick that does not move with Muster's schema: one table in a database of its own on the same server (`ideal.sql`).

use std::collections::BTreeMap;

use anyhow::Result;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use super::seed::Event;

/// The database that holds it.
pub(super) const DATABASE: &str = "ideal";
/// Events in one transaction: as many as the worker applies in one.
const BATCH: usize = 1000;

/// Makes it in an empty database.
pub(super) async fn make(client: &Client, members: i64) -> Result<()> {
    Ok(client.batch_execute(&include_str!("ideal.sql").replace(":members", &members.to_string())).await?)
}

/// The statement of the first page of so many rows; of one row, that of a look-up by primary key.
pub(super) async fn statement(client: &Client, rows: u32) -> Result<Statement> {
    let page = format!("SELECT * FROM members ORDER BY score DESC, id DESC LIMIT {rows}");
    let look_up = "SELECT * FROM members WHERE id = $1";
    Ok(client.prepare(if rows == 1 { look_up } else { &page }).await?)
}

/// Applies events: of each its id is inserted and its member's score updated, in transactions of [`BATCH`].
pub(super) async fn apply(client: &Client, events: &[Event]) -> Result<()> {
    let record = client.prepare("INSERT INTO events SELECT unnest($1::uuid[])").await?;
    let update = "UPDATE members AS m SET score = n.score
         FROM unnest($1::bigint[], $2::bigint[]) AS n (id, score) WHERE m.id = n.id";
    let update = client.prepare(update).await?;
    for batch in events.chunks(BATCH) {
        let ids: Vec<Uuid> = batch.iter().map(|event| event.id).collect();
        let scores: BTreeMap<i64, i64> = batch.iter().map(|event| (event.member, event.score)).collect();
        let (members, scores): (Vec<i64>, Vec<i64>) = scores.into_iter().unzip();
        client.batch_execute("BEGIN").await?;
        client.execute(&record, &[&ids]).await?;
        client.execute(&update, &[&members, &scores]).await?;
        client.batch_execute("COMMIT").await?;
    }
    Ok(())
}
