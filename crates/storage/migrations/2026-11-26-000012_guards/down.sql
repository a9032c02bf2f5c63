-- What was revoked is not granted again: no version needs it.
ALTER FUNCTION applied_events_empty SET search_path = public, pg_temp;
