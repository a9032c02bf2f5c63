//! Numbers from the database's sequences, which name rows within it.

use diesel::QueryableByName;
use diesel::sql_types::BigInt;
use diesel_async::AsyncPgConnection;

use crate::error::Error;
use crate::sql::statement::{self, Statement};

/// What is numbered.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sequence {
    Communities,
    Members,
    TierChanges,
}

impl Sequence {
    const fn next(self) -> &'static str {
        match self {
            Self::Communities => "SELECT nextval('community_numbers') AS number FROM generate_series(1, $1)",
            Self::Members => "SELECT nextval('member_numbers') AS number FROM generate_series(1, $1)",
            Self::TierChanges => {
                "SELECT nextval('tier_change_numbers') AS number FROM generate_series(1, $1)"
            }
        }
    }
}

/// So many new numbers, in ascending order. They are apart from the rows that get them, so that a row can be sent whole to the node
/// where it lies.
pub(crate) async fn next(
    connection: &mut AsyncPgConnection,
    sequence: Sequence,
    count: usize,
) -> Result<Vec<i64>, Error> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let wanted = i64::try_from(count).map_err(Error::defect)?;
    let next = Statement::shared(sequence.next()).bind::<BigInt, _>(wanted);
    let rows: Vec<NumberRow> = statement::by_keys(connection, next, count).await?;
    if rows.len() < count {
        return Err(Error::defect("a sequence gave fewer numbers than were asked for"));
    }
    Ok(rows.into_iter().map(|row| row.number).collect())
}

#[derive(QueryableByName)]
struct NumberRow {
    #[diesel(sql_type = BigInt)]
    number: i64,
}
