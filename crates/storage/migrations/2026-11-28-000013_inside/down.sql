DO $$
BEGIN
    INSERT INTO nym_suffixes (shard, class, community, member, suffix)
    SELECT s.shard, 2, s.community, s.member, substr(s.suffix, 1 + next.letter)
    FROM nym_suffixes AS s CROSS JOIN LATERAL generate_series(1, s.inside) AS next (letter)
    ON CONFLICT DO NOTHING;
    ALTER TABLE nym_suffixes DROP COLUMN inside;
END $$;
