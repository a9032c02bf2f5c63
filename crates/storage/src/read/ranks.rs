//! Ranks: how many stand above, from the counted scores.

use muster_domain::Rank;

use crate::error::Error;

/// How many visible members stand above a score on a board; none where the score is null. Each level of the tree adds the
/// siblings to the right.
macro_rules! members_above {
    ($board:literal, $score:literal) => {
        concat!(
            "(SELECT coalesce(sum(c.members), 0)::bigint
              FROM (SELECT ",
            $score,
            " AS score OFFSET 0) AS s CROSS JOIN generate_series(0, 10) AS step
              CROSS JOIN LATERAL (SELECT c.members FROM board_counts AS c
                  WHERE c.shard = $1 AND c.community = $2 AND c.board = ",
            $board,
            " AND c.level = step AND c.bucket > (s.score >> (5 * step))
                      AND c.bucket <= CASE step WHEN 10 THEN 7 ELSE (s.score >> (5 * step)) | 31 END
                  OFFSET 0) AS c)"
        )
    };
}

/// How many visible members stand exactly at a score on a board.
macro_rules! members_at {
    ($board:literal, $score:literal) => {
        concat!(
            "coalesce((SELECT c.members FROM board_counts AS c
                 WHERE c.shard = $1 AND c.community = $2 AND c.board = ",
            $board,
            " AND c.level = 0 AND c.bucket = ",
            $score,
            " LIMIT 1), 0)"
        )
    };
}
pub(crate) use {members_above, members_at};

/// The rank of who stands below this many.
pub(crate) fn rank_below(above: i64) -> Result<Rank, Error> {
    Ok(Rank::below(u64::try_from(above).map_err(Error::defect)?))
}

/// The competition rank of each row of a page that is in the order of these scores, highest first. Of the first row it is known
/// how many stand above it and at its score: whoever comes next stands below both. On a board's first page both may be zero,
/// since all who stand at its first score are on it, or nobody else is.
pub(crate) fn ranks(above_first: i64, at_first: i64, scores: &[i64]) -> Result<Vec<Rank>, Error> {
    let top = scores.first().copied();
    let mut ranks = Vec::with_capacity(scores.len());
    let mut rank = rank_below(above_first)?;
    let mut previous = top;
    let (mut seen_at_first, mut seen_below) = (0_i64, 0_i64);
    for score in scores.iter().copied().map(Some) {
        if score != previous {
            let not_below = above_first.saturating_add(at_first.max(seen_at_first));
            rank = rank_below(not_below.saturating_add(seen_below))?;
            previous = score;
        }
        let seen = if score == top { &mut seen_at_first } else { &mut seen_below };
        *seen = seen.saturating_add(1);
        ranks.push(rank);
    }
    Ok(ranks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(above_first: i64, at_first: i64, scores: &[i64]) -> Vec<u64> {
        ranks(above_first, at_first, scores).unwrap().iter().map(|rank| rank.get()).collect()
    }

    #[test]
    fn equals_share_a_rank_and_the_next_one_comes_behind_them_all() {
        assert_eq!(numbers(0, 2, &[9, 9, 7, 5, 5, 5, -1]), [1, 1, 3, 4, 4, 4, 7]);
    }

    #[test]
    fn a_first_page_tells_its_ranks_itself() {
        assert_eq!(numbers(0, 0, &[9, 9, 7, 7, 2]), [1, 1, 3, 3, 5]);
        assert_eq!(numbers(0, 0, &[4, 4]), [1, 1]);
    }

    #[test]
    fn equals_of_the_first_row_on_pages_before_count() {
        assert_eq!(numbers(10, 5, &[3, 3, 2, 1]), [11, 11, 16, 17]);
    }

    #[test]
    fn an_empty_page_has_no_ranks() {
        assert!(numbers(0, 0, &[]).is_empty());
    }

    #[test]
    fn a_count_below_zero_is_a_defect() {
        assert!(ranks(-1, 0, &[1]).is_err());
    }
}
