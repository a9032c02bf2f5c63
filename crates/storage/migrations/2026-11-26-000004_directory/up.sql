-- Visible members by name and by joining, all of them and those of one tier.
CREATE TABLE directory (
    shard smallint NOT NULL,
    tier smallint,
    community integer NOT NULL,
    member bigint NOT NULL,
    joined_at timestamptz NOT NULL,
    nym_key text COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, community, member)
) WITH (fillfactor = 90);
CREATE INDEX directory_by_nym ON directory (shard, community, nym_key, joined_at, member);
CREATE INDEX directory_by_joined ON directory (shard, community, joined_at, member);
CREATE INDEX directory_by_tier_nym ON directory (shard, community, tier, nym_key, joined_at, member)
    WHERE tier IS NOT NULL;
CREATE INDEX directory_by_tier_joined ON directory (shard, community, tier, joined_at, member) WHERE tier IS NOT NULL;

-- Every suffix of every visible member's folded nym, so that a search for any text, of one letter or twenty, anywhere in a nym, is
-- one short range of one index. A trigram index finds nothing shorter than three letters and cannot return its matches in order.
--
-- class 0: the whole nym; 1: from the start of a later word, which is behind white space or ASCII punctuation; 2: from inside a
-- word. A folded nym has at most 64 characters; suffixes that begin behind the 32nd are left out, which bounds what one nym writes
-- and matches.
CREATE TABLE nym_suffixes (
    shard smallint NOT NULL,
    class smallint NOT NULL CHECK (class BETWEEN 0 AND 2),
    community integer NOT NULL,
    member bigint NOT NULL,
    suffix text COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, community, class, suffix, member)
);
