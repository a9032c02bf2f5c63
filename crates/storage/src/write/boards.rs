//! Entries of boards: written when a member's place in the order of a board changes.

use diesel::sql_types::{BigInt, Integer, Nullable, SmallInt, Timestamptz};
use diesel_async::AsyncPgConnection;
use muster_domain::Shard;
use time::OffsetDateTime;

use crate::board::Board;
use crate::error::Error;
use crate::sql::columns::{columns, rows_in};
use crate::sql::statement::{self, Insertion, Statement};

/// What places a member on a board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) score: i64,
    pub(crate) joined_at: OffsetDateTime,
    /// On the board of badges, the member's tier.
    pub(crate) tier: Option<i16>,
}

/// The changes of one transaction to the entries of boards.
#[derive(Default)]
pub(crate) struct Changes {
    made: Vec<Made>,
    moved: Vec<Moved>,
    gone: Vec<Gone>,
}

impl Changes {
    /// Takes a member's place before and after.
    pub(crate) fn take(
        &mut self,
        (community, member): (i32, i64),
        board: Board,
        (before, after): (Option<Place>, Option<Place>),
    ) {
        let number = board.number();
        match (before, after) {
            (None, Some(after)) => self.made.push(Made {
                community,
                board: number,
                negated_score: after.score.saturating_neg(),
                joined_at: after.joined_at,
                member,
                tier: after.tier,
            }),
            (Some(before), Some(after)) if before != after => self.moved.push(Moved {
                community,
                board: number,
                negated_score: before.score.saturating_neg(),
                joined_at: before.joined_at,
                member,
                new_negated_score: after.score.saturating_neg(),
                new_joined_at: after.joined_at,
                tier: after.tier,
            }),
            (Some(before), None) => self.gone.push(Gone {
                community,
                board: number,
                negated_score: before.score.saturating_neg(),
                joined_at: before.joined_at,
                member,
            }),
            _ => {}
        }
    }

    /// Writes them, each sort in the order of its keys.
    pub(crate) async fn write(
        self,
        connection: &mut AsyncPgConnection,
        shard: Shard,
        insertion: Insertion,
    ) -> Result<(), Error> {
        let Self { mut made, mut moved, mut gone } = self;
        // An entry that has drifted into the place of another makes no event fail: only an insertion can pass it over.
        if insertion == Insertion::Guarded {
            for Moved {
                community,
                board,
                negated_score,
                joined_at,
                member,
                new_negated_score,
                new_joined_at,
                tier,
            } in std::mem::take(&mut moved)
            {
                gone.push(Gone { community, board, negated_score, joined_at, member });
                let (negated_score, joined_at) = (new_negated_score, new_joined_at);
                made.push(Made { community, board, negated_score, joined_at, member, tier });
            }
        }
        made.sort_unstable_by_key(|row| {
            (row.community, row.board, row.negated_score, row.joined_at, row.member)
        });
        moved.sort_unstable_by_key(|row| {
            (row.community, row.board, row.negated_score, row.joined_at, row.member)
        });
        gone.sort_unstable_by_key(|row| {
            (row.community, row.board, row.negated_score, row.joined_at, row.member)
        });
        let delete = concat!(
            "DELETE FROM board_entries AS e USING ",
            rows_in!("board_entries", "board", "negated_score", "joined_at", "member"),
            " WHERE e.shard = $1 AND e.ctid = found.ctid"
        );
        statement::write(connection, Statement::in_shard(shard, delete), gone).await?;
        let update = concat!(
            "UPDATE board_entries AS e SET negated_score = rows.new_negated_score, joined_at = rows.new_joined_at,
                 tier = rows.tier FROM ",
            rows_in!("board_entries", "board", "negated_score", "joined_at", "member"),
            " WHERE e.shard = $1 AND e.ctid = found.ctid"
        );
        statement::write(connection, Statement::in_shard(shard, update), moved).await?;
        let insert = Statement::in_shard(
            shard,
            "INSERT INTO board_entries (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1",
        )
        .guarded(
            insertion,
            " ON CONFLICT (shard, community, board, negated_score, joined_at, member)
                 DO UPDATE SET tier = excluded.tier",
        );
        statement::write(connection, insert, made).await?;
        Ok(())
    }
}

columns! {
    struct Made {
        community: i32 => Integer,
        board: i16 => SmallInt,
        negated_score: i64 => BigInt,
        joined_at: OffsetDateTime => Timestamptz,
        member: i64 => BigInt,
        tier: Option<i16> => Nullable<SmallInt>,
    }
}

columns! {
    struct Moved {
        community: i32 => Integer,
        board: i16 => SmallInt,
        negated_score: i64 => BigInt,
        joined_at: OffsetDateTime => Timestamptz,
        member: i64 => BigInt,
        new_negated_score: i64 => BigInt,
        new_joined_at: OffsetDateTime => Timestamptz,
        tier: Option<i16> => Nullable<SmallInt>,
    }
}

columns! {
    struct Gone {
        community: i32 => Integer,
        board: i16 => SmallInt,
        negated_score: i64 => BigInt,
        joined_at: OffsetDateTime => Timestamptz,
        member: i64 => BigInt,
    }
}
