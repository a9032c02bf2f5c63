//! The directory's rows: written when a member's name, joining or tier changes.

use diesel::sql_types::{BigInt, Integer, Nullable, SmallInt, Text, Timestamptz};
use diesel_async::AsyncPgConnection;
use muster_domain::Shard;
use time::OffsetDateTime;

use crate::error::Error;
use crate::sql::columns::{columns, rows_in};
use crate::sql::statement::{self, Insertion, Statement};

columns! {
    /// A visible member, as listed.
    pub(crate) struct Listed {
        community: i32 => Integer,
        member: i64 => BigInt,
        tier: Option<i16> => Nullable<SmallInt>,
        joined_at: OffsetDateTime => Timestamptz,
        nym_key: String => Text,
    }
}

columns! {
    /// A member who is listed no longer.
    pub(crate) struct Unlisted {
        community: i32 => Integer,
        member: i64 => BigInt,
    }
}

/// The changes of one transaction to the directory.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) listed: Vec<Listed>,
    pub(crate) relisted: Vec<Listed>,
    pub(crate) unlisted: Vec<Unlisted>,
}

impl Changes {
    /// Writes them.
    pub(crate) async fn write(
        self,
        connection: &mut AsyncPgConnection,
        shard: Shard,
        insertion: Insertion,
    ) -> Result<(), Error> {
        let delete = concat!(
            "DELETE FROM directory AS d USING ",
            rows_in!("directory", "member"),
            " WHERE d.shard = $1 AND d.ctid = found.ctid"
        );
        statement::write(connection, Statement::in_shard(shard, delete), self.unlisted).await?;
        let update = concat!(
            "UPDATE directory AS d SET tier = rows.tier, joined_at = rows.joined_at, nym_key = rows.nym_key FROM ",
            rows_in!("directory", "member"),
            " WHERE d.shard = $1 AND d.ctid = found.ctid"
        );
        statement::write(connection, Statement::in_shard(shard, update), self.relisted).await?;
        // A row that has drifted into the table makes no event fail.
        let insert = Statement::in_shard(
            shard,
            "INSERT INTO directory (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1",
        )
        .guarded(
            insertion,
            " ON CONFLICT (shard, community, member) DO UPDATE SET tier = excluded.tier,
                 joined_at = excluded.joined_at, nym_key = excluded.nym_key",
        );
        statement::write(connection, insert, self.listed).await?;
        Ok(())
    }
}
