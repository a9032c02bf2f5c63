-- The ids of events already applied, written in the transaction of their effect: an event has one effect, however often
-- it arrives. There is no foreign key to the community: it was locked in the same transaction, and looking it up again for
-- every id nearly doubles the cost of recording it.
CREATE TABLE applied_events (
    community_id uuid NOT NULL,
    event_id uuid NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (community_id, event_id)
);
-- For the pruning of what is older than any redelivery.
CREATE INDEX applied_events_by_date ON applied_events USING brin (applied_at);
