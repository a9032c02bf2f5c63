-- What the planner is to believe: that all rows are of one shard and one community, as those of the largest are. By itself it
-- takes a community for one row where there are many small ones, all indexes that begin with it for equally good, and reads the
-- whole of a large one by the wrong index.
--
-- A table has no statistics until it is analysed, some minutes after its first rows. So each is analysed here with a row in it. After
-- pg_restore and pg_upgrade the database is to be analysed by hand.
DO $$
DECLARE
    name text;
    leader text;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'community_states', 'community_stripes', 'community_totals', 'community_days', 'members', 'activity_adds', 'board_entries',
        'board_counts', 'directory', 'nym_suffixes', 'badge_kinds', 'badge_ops', 'tiers', 'tier_counts', 'tier_changes',
        'erasures'
    ] LOOP
        FOREACH leader IN ARRAY ARRAY['shard', 'community', 'board', 'class'] LOOP
            IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = name::regclass AND attname = leader) THEN
                EXECUTE format('ALTER TABLE %I ALTER COLUMN %I SET (n_distinct = 1)', name, leader);
            END IF;
        END LOOP;
    END LOOP;
END $$;

INSERT INTO community_states (shard, community, community_id) VALUES (0, 0, gen_random_uuid());
INSERT INTO community_stripes (shard, community, stripe) VALUES (0, 0, 0);
INSERT INTO community_totals (shard, community) VALUES (0, 0);
INSERT INTO community_days (shard, community, day) VALUES (0, 0, 'epoch');
INSERT INTO members (shard, community, member, joined_at, join_known, profile_id, user_id, nym_key)
    VALUES (0, 0, 1, 'epoch', false, gen_random_uuid(), '', '');
INSERT INTO activity_adds (shard, community, member, at, event_id, amount) VALUES (0, 0, 1, 'epoch', gen_random_uuid(), 0);
INSERT INTO board_entries (shard, board, community, negated_score, joined_at, member) VALUES (0, 1, 0, 0, 'epoch', 1);
INSERT INTO board_counts (shard, board, community, level, bucket, members) VALUES (0, 1, 0, 0, 0, 0);
INSERT INTO directory (shard, community, member, joined_at, nym_key) VALUES (0, 0, 1, 'epoch', '');
INSERT INTO nym_suffixes (shard, class, community, member, suffix) VALUES (0, 0, 0, 1, '');
INSERT INTO badge_kinds (shard, community, kind, name) VALUES (0, 0, 1, '');
INSERT INTO badge_ops (shard, community, kind, award, is_badge, member, at, op_id)
    VALUES (0, 0, 1, false, false, 1, 'epoch', gen_random_uuid());
INSERT INTO tiers (shard, community, tier, name) VALUES (0, 0, 1, '');
INSERT INTO tier_counts (shard, community, tier, members) VALUES (0, 0, 1, 0);
INSERT INTO tier_changes (shard, promotion, visible, community, change, member, at) VALUES (0, false, false, 0, 1, 1, 'epoch');
INSERT INTO erasures (shard, community, person, erased_at) VALUES (0, 0, sha256(''), 'epoch');
ANALYZE community_states, community_stripes, community_totals, community_days, members, activity_adds, board_entries, board_counts,
    directory, nym_suffixes, badge_kinds, badge_ops, tiers, tier_counts, tier_changes, erasures;
DELETE FROM community_stripes WHERE shard = 0 AND community = 0;
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'community_states', 'community_totals', 'community_days', 'members', 'activity_adds', 'board_entries', 'board_counts',
        'directory', 'nym_suffixes', 'badge_kinds', 'badge_ops', 'tiers', 'tier_counts', 'tier_changes', 'erasures'
    ] LOOP
        EXECUTE format('DELETE FROM %I WHERE shard = 0 AND community = 0', name);
    END LOOP;
END $$;
