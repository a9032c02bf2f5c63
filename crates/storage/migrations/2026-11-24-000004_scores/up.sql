-- A profile's scores, apart from the profile: they change most often, and a narrow row with few indexes makes that cheap.
-- Tables that every event writes have no foreign key to profiles: its check is a look-up a row, and whoever writes them has
-- found the profile under the lock of its stripe. A profile is never deleted.
CREATE TABLE scores (
    community_id uuid NOT NULL,
    profile_id uuid NOT NULL,
    conviction bigint NOT NULL DEFAULT 0 CHECK (conviction BETWEEN -9007199254740991 AND 9007199254740991),
    conviction_at timestamptz,
    conviction_event uuid,
    activity bigint NOT NULL DEFAULT 0 CHECK (activity BETWEEN 0 AND 9007199254740991),
    -- The last event that set the activity; what was added after it is in activity_adds.
    activity_at timestamptz,
    activity_event uuid,
    last_active_at timestamptz,
    -- The profile's, repeated so that the lists' indexes hold visible members only.
    visible boolean NOT NULL,
    PRIMARY KEY (community_id, profile_id)
) WITH (fillfactor = 80);

CREATE INDEX scores_by_conviction ON scores (community_id, conviction, profile_id) WHERE visible;
CREATE INDEX scores_by_activity ON scores (community_id, activity, profile_id) WHERE visible AND activity > 0;

-- Activity added since it was last set. Kept because the event that sets it may arrive after later additions.
CREATE TABLE activity_adds (
    community_id uuid NOT NULL,
    profile_id uuid NOT NULL,
    at timestamptz NOT NULL,
    event_id uuid NOT NULL,
    amount bigint NOT NULL CHECK (amount >= 0),
    PRIMARY KEY (community_id, profile_id, at, event_id)
);
