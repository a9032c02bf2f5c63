// @generated automatically by Diesel CLI.

diesel::table! {
    activity_adds (shard, community, member, at, event_id) {
        shard -> Int2,
        community -> Int4,
        member -> Int8,
        at -> Timestamptz,
        event_id -> Uuid,
        amount -> Int8,
    }
}

diesel::table! {
    applied_events (shard, slot, community, event_id) {
        shard -> Int2,
        slot -> Int2,
        community -> Int4,
        event_id -> Uuid,
        applied_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    badge_kinds (shard, community, kind) {
        shard -> Int2,
        community -> Int4,
        kind -> Int4,
        holders -> Int8,
        first_awarded_at -> Nullable<Timestamptz>,
        name -> Text,
    }
}

diesel::table! {
    badge_ops (shard, community, member, kind, at, op_id) {
        shard -> Int2,
        community -> Int4,
        kind -> Int4,
        award -> Bool,
        is_badge -> Bool,
        member -> Int8,
        at -> Timestamptz,
        revoked_at -> Nullable<Timestamptz>,
        op_id -> Uuid,
        by -> Nullable<Text>,
        reason -> Nullable<Text>,
        revoked_by -> Nullable<Text>,
        revoke_reason -> Nullable<Text>,
    }
}

diesel::table! {
    board_counts (shard, community, board, level, bucket) {
        shard -> Int2,
        board -> Int2,
        community -> Int4,
        level -> Int2,
        bucket -> Int8,
        members -> Int8,
    }
}

diesel::table! {
    board_entries (shard, community, board, negated_score, joined_at, member) {
        shard -> Int2,
        board -> Int2,
        community -> Int4,
        negated_score -> Int8,
        joined_at -> Timestamptz,
        member -> Int8,
        tier -> Nullable<Int2>,
    }
}

diesel::table! {
    changes (shard, community, number) {
        shard -> Int2,
        change_type -> Int2,
        community -> Int4,
        number -> Int8,
        lost -> Nullable<Int8>,
        at -> Timestamptz,
        change_id -> Uuid,
        profile_id -> Nullable<Uuid>,
        badge_id -> Nullable<Uuid>,
        user_id -> Nullable<Text>,
        value_from -> Nullable<Text>,
        value_to -> Nullable<Text>,
        reason -> Nullable<Text>,
        traceparent -> Nullable<Text>,
    }
}

diesel::table! {
    changes_published (shard, community) {
        shard -> Int2,
        community -> Int4,
        number -> Int8,
    }
}

diesel::table! {
    communities (community_id) {
        community_id -> Uuid,
        guild_id -> Text,
        shard -> Int2,
        community -> Int4,
    }
}

diesel::table! {
    community_days (shard, community, day) {
        shard -> Int2,
        community -> Int4,
        day -> Date,
        active -> Int8,
        joined -> Int8,
        awarded -> Int8,
        promoted -> Int8,
    }
}

diesel::table! {
    community_states (shard, community) {
        shard -> Int2,
        community -> Int4,
        community_id -> Uuid,
        thresholds_moved -> Int8,
        name_set_at -> Nullable<Timestamptz>,
        active_set_at -> Nullable<Timestamptz>,
        name_set_by -> Nullable<Uuid>,
        active_set_by -> Nullable<Uuid>,
        tenure_member_from -> Int4,
        tenure_veteran_from -> Int4,
        tenure_elder_from -> Int4,
        active -> Bool,
        name -> Nullable<Text>,
        changes -> Int8,
        changes_lost -> Int8,
        change_types -> Int2,
    }
}

diesel::table! {
    community_stripes (shard, community, stripe) {
        shard -> Int2,
        community -> Int4,
        stripe -> Int2,
    }
}

diesel::table! {
    community_totals (shard, community) {
        shard -> Int2,
        community -> Int4,
        members -> Int8,
        badges -> Int8,
        conviction -> Numeric,
    }
}

diesel::table! {
    directory (shard, community, member) {
        shard -> Int2,
        tier -> Nullable<Int2>,
        community -> Int4,
        member -> Int8,
        joined_at -> Timestamptz,
        nym_key -> Text,
    }
}

diesel::table! {
    erasures (shard, community, person) {
        shard -> Int2,
        community -> Int4,
        person -> Bytea,
        erased_at -> Timestamptz,
    }
}

diesel::table! {
    members (shard, community, member) {
        shard -> Int2,
        tier -> Nullable<Int2>,
        community -> Int4,
        member -> Int8,
        conviction -> Int8,
        activity -> Int8,
        joined_at -> Timestamptz,
        last_active_at -> Nullable<Timestamptz>,
        conviction_set_at -> Nullable<Timestamptz>,
        activity_set_at -> Nullable<Timestamptz>,
        username_set_at -> Nullable<Timestamptz>,
        nick_set_at -> Nullable<Timestamptz>,
        presence_set_at -> Nullable<Timestamptz>,
        erased_at -> Nullable<Timestamptz>,
        badge_count -> Int4,
        join_known -> Bool,
        has_left -> Bool,
        hidden -> Bool,
        tier_assigned -> Bool,
        visible -> Bool,
        profile_id -> Uuid,
        conviction_set_by -> Nullable<Uuid>,
        activity_set_by -> Nullable<Uuid>,
        username_set_by -> Nullable<Uuid>,
        nick_set_by -> Nullable<Uuid>,
        presence_set_by -> Nullable<Uuid>,
        user_id -> Nullable<Text>,
        wallet -> Nullable<Text>,
        username -> Nullable<Text>,
        nick -> Nullable<Text>,
        nym_key -> Text,
    }
}

diesel::table! {
    nym_suffixes (shard, community, class, suffix, member) {
        shard -> Int2,
        class -> Int2,
        community -> Int4,
        member -> Int8,
        suffix -> Text,
        inside -> Int2,
    }
}

diesel::table! {
    shards (shard) {
        shard -> Int2,
    }
}

diesel::table! {
    signing_keys (purpose) {
        purpose -> Text,
        secret -> Bytea,
    }
}

diesel::table! {
    tier_changes (shard, community, member, change) {
        shard -> Int2,
        from_tier -> Nullable<Int2>,
        to_tier -> Nullable<Int2>,
        promotion -> Bool,
        visible -> Bool,
        community -> Int4,
        change -> Int8,
        member -> Int8,
        at -> Timestamptz,
    }
}

diesel::table! {
    tier_counts (shard, community, tier) {
        shard -> Int2,
        community -> Int4,
        tier -> Int2,
        members -> Int8,
    }
}

diesel::table! {
    tiers (shard, community, tier) {
        shard -> Int2,
        community -> Int4,
        tier -> Int2,
        place -> Nullable<Int2>,
        last_rank -> Nullable<Int4>,
        from_conviction -> Nullable<Int8>,
        threshold -> Nullable<Int8>,
        name -> Text,
        former_place -> Nullable<Int2>,
    }
}

diesel::allow_tables_to_appear_in_same_query!(
    activity_adds,
    applied_events,
    badge_kinds,
    badge_ops,
    board_counts,
    board_entries,
    changes,
    changes_published,
    communities,
    community_days,
    community_states,
    community_stripes,
    community_totals,
    directory,
    erasures,
    members,
    nym_suffixes,
    shards,
    signing_keys,
    tier_changes,
    tier_counts,
    tiers,
);
