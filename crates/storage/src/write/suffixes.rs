//! Suffixes of nyms, by which a search finds a text anywhere in a nym.

use diesel::sql_types::{BigInt, Integer, SmallInt, Text};
use diesel_async::AsyncPgConnection;
use muster_domain::{Nym, Shard};

use crate::error::Error;
use crate::sql::columns::{columns, rows_in};
use crate::sql::statement::{self, Insertion, Statement};

columns! {
    /// Suffixes of a visible member's folded nym: this one, and those from its next `inside` letters on.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(crate) struct Suffixes {
        community: i32 => Integer,
        class: i16 => SmallInt,
        suffix: String => Text,
        inside: i16 => SmallInt,
        member: i64 => BigInt,
    }
}

/// The class of a whole nym, of a suffix from the start of a later word, and of one from inside a word. See `nym_suffixes`.
const WHOLE: i16 = 0;
const WORD: i16 = 1;
const INSIDE: i16 = 2;
/// The most suffixes from inside a word that stand in a row behind its own: each place within a row has an index.
const MAX_INSIDE: i16 = 7;

/// The suffixes of one folded nym, from each of its first 32 characters.
pub(crate) fn of(community: i32, member: i64, nym_key: &str) -> Vec<Suffixes> {
    let mut rows: Vec<Suffixes> = Vec::new();
    for (class, suffix) in classed(nym_key) {
        match rows.last_mut() {
            Some(row) if class == INSIDE && row.inside < MAX_INSIDE => row.inside += 1,
            _ => rows.push(Suffixes { community, class, suffix: suffix.to_owned(), inside: 0, member }),
        }
    }
    rows
}

fn classed(nym_key: &str) -> impl Iterator<Item = (i16, &str)> {
    let mut before = None;
    nym_key.char_indices().take(Nym::MAX).map(move |(at, character)| {
        let class = match before.replace(character) {
            None => WHOLE,
            Some(before) if before.is_ascii_whitespace() || before.is_ascii_punctuation() => WORD,
            Some(_) => INSIDE,
        };
        (class, nym_key.get(at..).unwrap_or_default())
    })
}

/// Makes members found by these suffixes.
pub(crate) async fn add(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    mut suffixes: Vec<Suffixes>,
    insertion: Insertion,
) -> Result<(), Error> {
    in_order(&mut suffixes);
    // A suffix that has drifted into the table makes no event fail.
    let insert = Statement::in_shard(
        shard,
        "INSERT INTO nym_suffixes (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1",
    )
    .guarded(
        insertion,
        " ON CONFLICT (shard, community, class, suffix, member) DO UPDATE SET inside = excluded.inside",
    );
    statement::write(connection, insert, suffixes).await?;
    Ok(())
}

/// Makes members no longer found by these suffixes. Each may have a row of its own: version 0.1.0 writes them so, and makes them anew
/// where it is gone back to and finds them missing.
pub(crate) async fn remove(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    suffixes: Vec<Suffixes>,
) -> Result<(), Error> {
    let mut single: Vec<Suffixes> = suffixes.iter().flat_map(Suffixes::single).collect();
    in_order(&mut single);
    let delete = concat!(
        "DELETE FROM nym_suffixes AS s USING ",
        rows_in!("nym_suffixes", "class", "suffix", "member"),
        " WHERE s.shard = $1 AND s.ctid = found.ctid"
    );
    statement::write(connection, Statement::in_shard(shard, delete), single).await?;
    Ok(())
}

impl Suffixes {
    /// Each of these suffixes by itself.
    fn single(&self) -> impl Iterator<Item = Self> {
        let ends = self.suffix.char_indices().map(|(at, _)| self.suffix.get(at..).unwrap_or_default());
        (0..=self.inside).zip(ends).map(|(place, suffix)| Self {
            class: if place == 0 { self.class } else { INSIDE },
            suffix: suffix.to_owned(),
            inside: 0,
            ..*self
        })
    }
}

/// Neighbours in the index are written together: half of the work.
fn in_order(suffixes: &mut [Suffixes]) {
    suffixes.sort_unstable_by(|a, b| {
        (a.community, a.class, &a.suffix, a.member).cmp(&(b.community, b.class, &b.suffix, b.member))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(nym_key: &str) -> Vec<(i16, String, i16)> {
        of(1, 2, nym_key).into_iter().map(|row| (row.class, row.suffix, row.inside)).collect()
    }

    #[test]
    fn a_nym_has_a_suffix_from_each_of_its_first_characters() {
        let expected = [(0, "paul m-d", 4), (1, "m-d", 1), (1, "d", 0)];
        assert_eq!(
            rows("paul m-d"),
            expected.map(|(class, suffix, inside)| (class, suffix.to_owned(), inside))
        );
        let expected = [(0, "muad'dibusul", 4), (1, "dibusul", 6)];
        assert_eq!(
            rows("muad'dibusul"),
            expected.map(|(class, suffix, inside)| (class, suffix.to_owned(), inside))
        );
        let single: Vec<(i16, String)> = of(1, 2, "paul m-d")
            .iter()
            .flat_map(Suffixes::single)
            .map(|row| (row.class, row.suffix))
            .collect();
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
        assert_eq!(single, expected.map(|(class, suffix)| (class, suffix.to_owned())));
    }

    #[test]
    fn a_row_holds_eight_suffixes_and_a_nym_32() {
        assert_eq!(of(1, 2, ""), []);
        let long = rows(&"é".repeat(64));
        let lengths: Vec<_> =
            long.iter().map(|(class, suffix, inside)| (*class, suffix.chars().count(), *inside)).collect();
        assert_eq!(lengths, [(0, 64, 7), (2, 56, 7), (2, 48, 7), (2, 40, 7)]);
        assert_eq!(of(1, 2, &"é".repeat(64)).iter().flat_map(Suffixes::single).count(), 32);
    }
}
