-- What earlier migrations left too wide.
DO $$
DECLARE
    of record;
BEGIN
    -- It empties the partitions that lie beside it, and the URL may have put them into another schema than `public`.
    EXECUTE format('ALTER FUNCTION applied_events_empty SET search_path = %I, pg_temp', current_schema());

    -- Whoever may change rows need not change these: keys that are made once, the shards, and the list of migrations. An erasure is
    -- never taken back.
    FOR of IN
        SELECT c.oid::regclass AS name, a.grantee::regrole AS role,
            CASE c.relname WHEN 'erasures' THEN 'DELETE' ELSE 'INSERT, UPDATE, DELETE' END AS rights
        FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
        WHERE c.relnamespace = current_schema()::regnamespace
            AND c.relname IN ('erasures', 'signing_keys', 'shards', '__diesel_schema_migrations')
            AND a.privilege_type = 'DELETE' AND a.grantee NOT IN (0, c.relowner)
    LOOP
        EXECUTE format('REVOKE %s ON %s FROM %s', of.rights, of.name, of.role);
    END LOOP;
END $$;
