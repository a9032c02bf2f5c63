-- One table of as many members as the measured community has, one row each, with all that a profile shows; a primary key and one
-- index by score, and no more. Beside it, the ids of events: four earlier ones a member, about as many as made the community.
SELECT setseed(0.5);

CREATE TABLE members (
    id bigint PRIMARY KEY, profile_id uuid NOT NULL, user_id text NOT NULL, wallet text, nym text NOT NULL,
    score bigint NOT NULL, activity bigint NOT NULL, tier text, badge_count integer NOT NULL,
    joined_at timestamptz NOT NULL, last_active_at timestamptz
);

INSERT INTO members
SELECT n, gen_random_uuid(), 100000000000000000 + n * 7919, NULL, substr(md5(n::text), 1, 10),
    40000000 / floor(1 + 1000000 * random())::bigint - 40, 100 * random(), 'stillsuit', 3 * random(),
    now() - random() * interval '27 days', now()
FROM generate_series(1::bigint, :members) AS n;

CREATE INDEX members_by_score ON members (score, id);

CREATE TABLE events (id uuid PRIMARY KEY);

INSERT INTO events SELECT gen_random_uuid() FROM generate_series(1::bigint, 4 * :members);
