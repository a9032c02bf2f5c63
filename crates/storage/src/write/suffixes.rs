//! Suffixes of nyms, by which a search finds a text anywhere in a nym.

use diesel::sql_types::{BigInt, Integer, SmallInt, Text};
use diesel_async::AsyncPgConnection;
use muster_domain::{Nym, Shard};

use crate::error::Error;
use crate::sql::columns::{columns, rows_in};
use crate::sql::statement::{self, Insertion, Statement};

columns! {
    /// A suffix of a visible member's folded nym.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(crate) struct Suffix {
        community: i32 => Integer,
        class: i16 => SmallInt,
        suffix: String => Text,
        member: i64 => BigInt,
    }
}

/// The suffixes of one folded nym, from each of its first 32 characters. See `nym_suffixes` for the classes.
pub(crate) fn of(community: i32, member: i64, nym_key: &str) -> impl Iterator<Item = Suffix> {
    let mut before = None;
    nym_key.char_indices().take(Nym::MAX).map(move |(at, character)| {
        let class = match before.replace(character) {
            None => 0,
            Some(before) if before.is_ascii_whitespace() || before.is_ascii_punctuation() => 1,
            Some(_) => 2,
        };
        Suffix { community, class, suffix: nym_key.get(at..).unwrap_or_default().to_owned(), member }
    })
}

/// Makes members found by these suffixes.
pub(crate) async fn add(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    mut suffixes: Vec<Suffix>,
    insertion: Insertion,
) -> Result<(), Error> {
    in_order(&mut suffixes);
    // A suffix that has drifted into the table makes no event fail.
    let insert = Statement::in_shard(
        shard,
        "INSERT INTO nym_suffixes (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1",
    )
    .guarded(insertion, " ON CONFLICT (shard, community, class, suffix, member) DO NOTHING");
    statement::write(connection, insert, suffixes).await?;
    Ok(())
}

/// Makes members no longer found by these suffixes.
pub(crate) async fn remove(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    mut suffixes: Vec<Suffix>,
) -> Result<(), Error> {
    in_order(&mut suffixes);
    let delete = concat!(
        "DELETE FROM nym_suffixes AS s USING ",
        rows_in!("nym_suffixes", "class", "suffix", "member"),
        " WHERE s.shard = $1 AND s.ctid = found.ctid"
    );
    statement::write(connection, Statement::in_shard(shard, delete), suffixes).await?;
    Ok(())
}

/// Neighbours in the index are written together: half of the work.
fn in_order(suffixes: &mut [Suffix]) {
    suffixes.sort_unstable_by(|a, b| {
        (a.community, a.class, &a.suffix, a.member).cmp(&(b.community, b.class, &b.suffix, b.member))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nym_has_a_suffix_from_each_of_its_first_characters() {
        let found: Vec<(i16, String)> =
            of(1, 2, "paul m-d").map(|suffix| (suffix.class, suffix.suffix)).collect();
        let expected = [
            (0, "paul m-d"),
            (2, "aul m-d"),
            (2, "ul m-d"),
            (2, "l m-d"),
            (2, " m-d"),
            (1, "m-d"),
            (2, "-d"),
            (1, "d"),
        ];
        assert_eq!(found, expected.map(|(class, suffix)| (class, suffix.to_owned())));
        assert_eq!(of(1, 2, "").count(), 0);
        assert_eq!(of(1, 2, &"é".repeat(64)).count(), 32);
    }
}
