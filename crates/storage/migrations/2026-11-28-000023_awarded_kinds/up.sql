-- The kinds that a list shows. One that was only ever revoked has a row, too, and anybody's text can be one. `isfinite` and not `IS NOT NULL`, of which
-- a planner believes before any statistics that it is true of no row.
CREATE INDEX CONCURRENTLY IF NOT EXISTS badge_kinds_awarded ON badge_kinds (shard, community, name) WHERE isfinite(first_awarded_at);
