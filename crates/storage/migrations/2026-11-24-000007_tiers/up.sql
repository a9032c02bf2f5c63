-- A community's tier policy: a tier is reached by a score or by a rank. `place` counts from the highest.
CREATE TABLE tier_policies (
    community_id uuid NOT NULL REFERENCES communities,
    tier text COLLATE "C" NOT NULL,
    place smallint NOT NULL,
    from_conviction bigint,
    last_rank integer,
    -- Of a rank tier, the lowest conviction that holds it now.
    cut bigint,
    CHECK ((from_conviction IS NULL) <> (last_rank IS NULL)),
    CHECK ((last_rank IS NULL) = (cut IS NULL)),
    PRIMARY KEY (community_id, tier)
);

CREATE TABLE tier_changes (
    community_id uuid NOT NULL,
    change_id bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    profile_id uuid NOT NULL,
    from_tier text COLLATE "C",
    to_tier text COLLATE "C",
    promotion boolean NOT NULL,
    at timestamptz NOT NULL,
    -- The profile's, repeated so that the list's index holds visible members' changes only.
    visible boolean NOT NULL DEFAULT true,
    PRIMARY KEY (community_id, change_id)
);
CREATE INDEX tier_changes_by_date ON tier_changes (community_id, at, change_id) WHERE visible;
CREATE INDEX tier_changes_by_profile ON tier_changes (community_id, profile_id, change_id);

-- Moves the rank tiers' cuts to where they now are, and answers who stands between an old cut and its new one. To be called
-- with the community's lock, when the scores are written.
--
-- A rank tier is held from the conviction of its last rank's member up, so that equals share it. A tie of more than a
-- thousand members across the edge (a community in which hardly anyone has scored) shares no rank tier: without that
-- bound one event could move the tier of every member.
CREATE FUNCTION tier_cuts_settle(in_community uuid) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE
    rank_tier record;
    new_cut bigint;
    crossed uuid[] := '{}';
BEGIN
    FOR rank_tier IN
        SELECT p.tier, p.last_rank, p.cut FROM tier_policies AS p
        WHERE p.community_id = in_community AND p.last_rank IS NOT NULL
        ORDER BY p.last_rank
    LOOP
        SELECT s.conviction INTO new_cut FROM scores AS s
        WHERE s.community_id = in_community AND s.visible
        ORDER BY s.conviction DESC, s.profile_id DESC
        OFFSET rank_tier.last_rank - 1 LIMIT 1;
        IF NOT FOUND THEN
            new_cut := -9223372036854775808;
        ELSIF members_above(in_community, 1, new_cut - 1) > greatest(1000, rank_tier.last_rank) THEN
            new_cut := new_cut + 1;
        END IF;
        IF new_cut <> rank_tier.cut THEN
            UPDATE tier_policies AS p SET cut = new_cut WHERE p.community_id = in_community AND p.tier = rank_tier.tier;
            UPDATE communities AS c SET cuts_moved = c.cuts_moved + 1 WHERE c.community_id = in_community;
            crossed := crossed || ARRAY(
                SELECT s.profile_id FROM scores AS s
                WHERE s.community_id = in_community AND s.visible
                    AND s.conviction >= least(new_cut, rank_tier.cut)
                    AND s.conviction < greatest(new_cut, rank_tier.cut)
            );
        END IF;
    END LOOP;
    RETURN crossed;
END $$;
