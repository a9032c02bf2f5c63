DROP TABLE changes_published, changes;
ALTER TABLE community_states DROP CONSTRAINT community_states_changes_check, DROP COLUMN change_types, DROP COLUMN changes_lost,
    DROP COLUMN changes;
