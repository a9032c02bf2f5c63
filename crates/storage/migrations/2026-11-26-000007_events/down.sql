DROP FUNCTION applied_events_empty;
DROP TABLE applied_events;
