-- A board ranks the visible members of a community by a score: 1 conviction, 2 activity (above zero only), 3 unrevoked badges.
-- Another board is another number.
--
-- An entry is a member's place. Its key is the order of the board: the score negated, so that the highest come first, then the
-- earliest joined. The board of badges also has each member's tier, for the directory of one tier.
CREATE TABLE board_entries (
    shard smallint NOT NULL,
    board smallint NOT NULL CHECK (board BETWEEN 1 AND 3),
    community integer NOT NULL,
    negated_score bigint NOT NULL CHECK (negated_score BETWEEN -9007199254740991 AND 9007199254740991),
    joined_at timestamptz NOT NULL,
    member bigint NOT NULL,
    tier smallint CHECK (tier IS NULL OR board = 3),
    PRIMARY KEY (shard, community, board, negated_score, joined_at, member)
);
CREATE INDEX board_entries_by_tier ON board_entries (shard, community, tier, negated_score, joined_at, member)
    WHERE board = 3 AND tier IS NOT NULL;

-- Counted scores, from which any member's rank is read without counting members.
--
-- Each board has a tree of fan-out 32: level 0 counts the visible members at each score, level n those whose score shares all but
-- its last 5 n bits. To count the members above a score, each level adds the siblings to the right: at most 31 rows a level,
-- whatever the community's size. A shift keeps the order of negative scores, and level 10 holds what is left of 54 bits, 16
-- buckets. A wider tree has fewer levels and reads more rows: of 256 a rank took half as long again.
CREATE TABLE board_counts (
    shard smallint NOT NULL,
    board smallint NOT NULL CHECK (board BETWEEN 1 AND 3),
    community integer NOT NULL,
    level smallint NOT NULL CHECK (level BETWEEN 0 AND 10),
    bucket bigint NOT NULL CHECK (bucket BETWEEN -9007199254740991 AND 9007199254740991),
    members bigint NOT NULL,
    PRIMARY KEY (shard, community, board, level, bucket)
) WITH (fillfactor = 70);
