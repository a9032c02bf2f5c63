DROP TABLE applied_events;
