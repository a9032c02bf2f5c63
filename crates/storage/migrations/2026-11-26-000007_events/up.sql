-- The ids of events already applied, written in the transaction of their effect: an event has one effect, however often it arrives.
--
-- An id lies in the partition of its event's own day, modulo 64: a repetition carries the same time, and so finds it. A day that has
-- passed out of what is remembered is emptied at once, before the day that has its partition next. Events that are old when they
-- first come are in partition 64, and are deleted one by one: they are few.
CREATE TABLE applied_events (
    shard smallint NOT NULL,
    slot smallint NOT NULL,
    community integer NOT NULL,
    event_id uuid NOT NULL,
    applied_at timestamptz,
    PRIMARY KEY (shard, slot, community, event_id)
) PARTITION BY LIST (slot);

DO $$
BEGIN
    FOR slot IN 0..64 LOOP
        EXECUTE format('CREATE TABLE applied_events_%s PARTITION OF applied_events FOR VALUES IN (%s)', slot, slot);
    END LOOP;
END $$;
CREATE INDEX applied_events_64_by_date ON applied_events_64 (shard, applied_at);

-- Empties the partition of one day. The worker's role may change rows and nothing else; this is the one exception, and it is to be
-- granted. Days of which events still come are refused whatever the caller's clock says. Who reads the partition, such as a dump, is
-- not waited for: others would wait behind.
CREATE FUNCTION applied_events_empty(slot integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '100ms' AS $$
DECLARE
    today integer := floor(date_part('epoch', now()) / 86400);
BEGIN
    IF slot NOT BETWEEN 0 AND 63 THEN
        RAISE 'there is no partition % of a day', slot;
    END IF;
    IF (today + 2 - slot + 64) % 64 <= 18 THEN
        RAISE 'the partition % is of a day of which events still come', slot;
    END IF;
    EXECUTE format('TRUNCATE applied_events_%s', slot);
END $$;
REVOKE EXECUTE ON FUNCTION applied_events_empty FROM PUBLIC;
