DO $$
DECLARE
    of record;
BEGIN
    FOR of IN
        SELECT attrelid::regclass AS name, attname FROM pg_attribute
        WHERE attoptions IS NOT NULL AND NOT attisdropped AND attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)
    LOOP
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I RESET (n_distinct)', of.name, of.attname);
    END LOOP;
END $$;
