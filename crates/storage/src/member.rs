//! The one way in which members change: what is stored is read, what it becomes is worked out, and each row and each count is
//! written once.
//!
//! It goes in two steps, each under one of the [locks](crate::lock): first what is the members' own, with their stripes; then,
//! with the community, what all of its members share.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use muster_domain::{Activity, CommunityId, Nym, ProfileId, UserId};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::badge::{self, Operation};
use crate::counts::{self, Standing};
use crate::fold::{Mark, MemberChange, Nick, newer};
use crate::lock::{self, Locked};
use crate::statement::{self, Statement};
use crate::tier::{self, TierMove};
use crate::{Error, search};

/// What is stored of each key: a community and, of the member, this column.
macro_rules! find_by {
    ($column:literal) => {
        concat!(
            "SELECT p.community_id, p.user_id, p.profile_id, p.username_at, p.username_event, p.nick_at, p.nick_event,
                 p.has_left, p.presence_at, p.presence_event, p.hidden, p.visible, p.joined_at, p.join_known, p.tier,
                 p.tier_given, p.badge_count, p.username_key, p.nick_key, p.nym_key,
                 s.conviction, s.conviction_at, s.conviction_event, s.activity, s.activity_at, s.activity_event,
                 s.last_active_at
             FROM unnest($1, $2) AS m (community_id, key)
             CROSS JOIN LATERAL (SELECT * FROM profiles AS p
                 WHERE p.community_id = m.community_id AND p.",
            $column,
            " = m.key LIMIT 1) AS p
             CROSS JOIN LATERAL (SELECT * FROM scores AS s
                 WHERE s.community_id = m.community_id AND s.profile_id = p.profile_id LIMIT 1) AS s"
        )
    };
}

/// Members whose own rows are written; what they share with others is still to be written.
#[must_use]
pub(crate) struct Changed {
    members: Vec<Member>,
    counts: counts::Changes,
}

/// Changes what is their own of members by the person's id; who is not known yet gets a profile. Their stripes are locked.
pub(crate) async fn change(
    connection: &mut AsyncPgConnection,
    changes: Vec<((CommunityId, UserId), MemberChange)>,
) -> Result<Changed, Error> {
    if changes.is_empty() {
        return Ok(Changed { members: Vec::new(), counts: counts::Changes::default() });
    }
    let find = Statement::new(find_by!("user_id"))
        .bind::<Array<SqlUuid>, _>(
            changes.iter().map(|((community, _), _)| community.get()).collect::<Vec<_>>(),
        )
        .bind::<Array<Text>, _>(
            changes.iter().map(|((_, user), _)| user.as_str().to_owned()).collect::<Vec<_>>(),
        );
    let rows: Vec<MemberRow> = statement::by_keys(connection, find, changes.len()).await?;
    let mut stored: HashMap<(Uuid, String), MemberRow> =
        rows.into_iter().filter_map(|row| Some(((row.community_id, row.user_id.clone()?), row))).collect();
    let members = changes
        .into_iter()
        .map(|((community, user), change)| {
            let stored = stored.remove(&(community.get(), user.as_str().to_owned()));
            let profile = stored.as_ref().map_or_else(Uuid::now_v7, |row| row.profile_id);
            Member::new(community, profile.into(), user, change, stored)
        })
        .collect();
    write_own(connection, members).await
}

/// Changes members of one community by their profile's id, wholly; who is not found, or was erased, is left out. Their
/// stripes are locked; the community is, too, when this is done.
pub(crate) async fn change_known(
    connection: &mut AsyncPgConnection,
    held: &lock::Members,
    community: CommunityId,
    changes: Vec<(ProfileId, MemberChange)>,
) -> Result<(), Error> {
    let members = find_known(connection, community, changes).await?;
    let changed = write_own(connection, members).await?;
    let locked = lock::communities(connection, &BTreeSet::from([community])).await?;
    changed.write_shared(connection, held, &locked).await
}

async fn find_known(
    connection: &mut AsyncPgConnection,
    community: CommunityId,
    changes: Vec<(ProfileId, MemberChange)>,
) -> Result<Vec<Member>, Error> {
    let find = Statement::new(find_by!("profile_id"))
        .bind::<Array<SqlUuid>, _>(vec![community.get(); changes.len()])
        .bind::<Array<SqlUuid>, _>(changes.iter().map(|(profile, _)| profile.get()).collect::<Vec<_>>());
    let rows: Vec<MemberRow> = statement::by_keys(connection, find, changes.len()).await?;
    let mut changes: HashMap<Uuid, MemberChange> =
        changes.into_iter().map(|(profile, change)| (profile.get(), change)).collect();
    let mut members = Vec::with_capacity(rows.len());
    for row in rows {
        // An erased person has no id any more.
        let Some(user) = row.user_id.clone() else { continue };
        let user = UserId::parse(user).map_err(Error::defect)?;
        let change = changes.remove(&row.profile_id).unwrap_or_default();
        members.push(Member::new(community, row.profile_id.into(), user, change, Some(row)));
    }
    Ok(members)
}

/// One member: what is stored, what is to change, and what comes of it.
struct Member {
    community: CommunityId,
    profile: ProfileId,
    user: UserId,
    change: MemberChange,
    stored: Option<MemberRow>,
    has_left: bool,
    hidden: bool,
    visible: bool,
    joined_at: OffsetDateTime,
    join_known: bool,
    badge_count: i32,
    score: Score,
    tier: Option<String>,
    tier_given: bool,
}

/// A member's scores with the events that set them.
#[derive(Clone, Default, PartialEq, Eq)]
struct Score {
    conviction: i64,
    conviction_mark: Option<Mark>,
    activity: i64,
    activity_mark: Option<Mark>,
    last_active_at: Option<OffsetDateTime>,
}

impl Member {
    fn new(
        community: CommunityId,
        profile: ProfileId,
        user: UserId,
        change: MemberChange,
        stored: Option<MemberRow>,
    ) -> Self {
        let row = stored.as_ref();
        let presence = newer(&change.has_left, row.and_then(|row| row.presence_at.zip(row.presence_event)));
        let stays_away = row.map_or(change.was_erased, |row| row.has_left);
        let has_left = presence.map_or(stays_away, |(_, has_left)| *has_left);
        let hidden = change.hidden.unwrap_or(row.is_some_and(|row| row.hidden));
        let earliest =
            |joined: OffsetDateTime, at: Option<OffsetDateTime>| at.map_or(joined, |at| joined.min(at));
        let (joined_at, join_known) = match (row, change.joined) {
            (None, None) => (change.seen.unwrap_or_else(OffsetDateTime::now_utc), false),
            (None, Some(joined)) => (joined, true),
            (Some(row), None) if row.join_known => (row.joined_at, true),
            (Some(row), None) => (earliest(row.joined_at, change.seen), false),
            (Some(row), Some(joined)) if row.join_known => (row.joined_at.min(joined), true),
            (Some(_), Some(joined)) => (joined, true),
        };
        Self {
            community,
            profile,
            has_left,
            hidden,
            visible: !has_left && !hidden,
            joined_at,
            join_known,
            badge_count: row.map_or(0, |row| row.badge_count),
            score: row.map(MemberRow::score).unwrap_or_default(),
            tier: row.and_then(|row| row.tier.clone()),
            tier_given: row.is_some_and(|row| row.tier_given),
            user,
            change,
            stored,
        }
    }

    fn mark(&self, of: impl Fn(&MemberRow) -> Option<Mark>) -> Option<Mark> {
        self.stored.as_ref().and_then(of)
    }

    fn new_username(&self) -> Option<&(Mark, Option<Nym>)> {
        newer(&self.change.username, self.mark(|row| row.username_at.zip(row.username_event)))
    }

    fn new_nick(&self) -> Option<&(Mark, Nick)> {
        newer(&self.change.nick, self.mark(|row| row.nick_at.zip(row.nick_event)))
    }

    /// The folded key of the nym, as the database makes it of what is written: see `profiles.nym_key`.
    fn nym_key(&self) -> String {
        let stored = self.stored.as_ref();
        let username = match self.new_username() {
            Some((_, username)) => username.as_ref().map(|username| username.key().as_str().to_owned()),
            None => stored.and_then(|row| row.username_key.clone()),
        };
        let nick = match self.new_nick() {
            Some((_, (nick, _))) => nick.as_ref().map(|nick| nick.key().as_str().to_owned()),
            None => stored.and_then(|row| row.nick_key.clone()),
        };
        nick.or(username).unwrap_or_else(|| Nym::of_user(&self.user).key().as_str().to_owned())
    }

    fn was_visible(&self) -> bool {
        self.stored.as_ref().is_some_and(|row| row.visible)
    }

    /// Whether a known member comes into sight or goes out of it.
    fn is_turned(&self) -> bool {
        self.stored.as_ref().is_some_and(|row| row.visible != self.visible)
    }

    /// What is counted for the member now.
    fn standing(&self) -> Option<Standing> {
        self.visible.then_some(Standing {
            conviction: self.score.conviction,
            badge_count: self.badge_count,
            joined_at: self.joined_at,
            last_active_at: self.score.last_active_at,
        })
    }

    /// What was counted for the member before.
    fn stood(&self) -> Option<Standing> {
        self.stored.as_ref().filter(|row| row.visible).map(|row| Standing {
            conviction: row.conviction,
            badge_count: row.badge_count,
            joined_at: row.joined_at,
            last_active_at: row.last_active_at,
        })
    }

    /// Whether the member's tier may be another now, or the rank tiers' cuts because of it.
    fn is_moved(&self) -> bool {
        self.change.recheck_tier
            || self.visible != self.was_visible()
            || self.stored.as_ref().is_none_or(|row| row.conviction != self.score.conviction)
    }
}

async fn write_own(connection: &mut AsyncPgConnection, mut members: Vec<Member>) -> Result<Changed, Error> {
    // Neighbours in the tables are written together.
    members.sort_unstable_by_key(|member| (member.community, member.profile));
    let mut counts = counts::Changes::default();
    change_badges(connection, &mut members, &mut counts).await?;
    change_scores(connection, &mut members).await?;
    change_tails(connection, &members).await?;
    for member in &members {
        counts.standing(member.community, member.stood(), member.standing());
    }
    Ok(Changed { members, counts })
}

impl Changed {
    /// Writes what all members share: profiles, tiers and counts. The communities are locked.
    pub(crate) async fn write_shared(
        self,
        connection: &mut AsyncPgConnection,
        held: &lock::Members,
        locked: &BTreeMap<CommunityId, Locked>,
    ) -> Result<(), Error> {
        let Self { mut members, mut counts } = self;
        if members.is_empty() {
            return Ok(());
        }
        counts.write_ranks(connection).await?;
        let moved = locked.iter().filter(|(id, locked)| held.cuts_moved.get(id) != Some(&locked.cuts_moved));
        let moved: BTreeSet<CommunityId> = moved.map(|(community, _)| *community).collect();
        read_tiers_again(connection, &mut members, &moved).await?;
        let moves = change_tiers(connection, &mut members).await?;
        for member in &members {
            if member.was_visible() {
                let before = member.stored.as_ref().and_then(|row| row.tier.as_deref());
                counts.tier(member.community, before, -1);
            }
            if member.visible {
                counts.tier(member.community, member.tier.as_deref(), 1);
            }
        }
        write_profiles(connection, &members).await?;
        let turned: Vec<(CommunityId, ProfileId, bool)> = members
            .iter()
            .filter(|member| member.is_turned())
            .map(|member| (member.community, member.profile, member.visible))
            .collect();
        if !turned.is_empty() {
            badge::turn(connection, &turned).await?;
            tier::turn(connection, &turned).await?;
        }
        for (community, at) in tier::record(connection, &moves).await? {
            counts.promotion(community, at);
        }
        counts.write(connection).await
    }
}

/// Records awards and revocations, and counts the badges that come of them.
async fn change_badges(
    connection: &mut AsyncPgConnection,
    members: &mut [Member],
    counts: &mut counts::Changes,
) -> Result<(), Error> {
    let mut operations = Vec::new();
    for member in members.iter_mut() {
        let (community, profile) = (member.community, member.profile);
        operations.extend(std::mem::take(&mut member.change.badges).into_iter().map(|badge| Operation {
            community,
            profile,
            kind: badge.kind,
            at: badge.mark.0,
            id: badge.mark.1,
            award: badge.award,
            reason: badge.reason,
            by: badge.by,
        }));
    }
    if operations.is_empty() {
        return Ok(());
    }
    let places: HashMap<(Uuid, Uuid), usize> = members
        .iter()
        .enumerate()
        .map(|(place, member)| ((member.community.get(), member.profile.get()), place))
        .collect();
    for held in badge::operate(connection, &operations).await? {
        let member = places
            .get(&(held.community_id, held.profile_id))
            .and_then(|place| members.get_mut(*place))
            .ok_or_else(|| Error::defect("a badge of nobody changed"))?;
        member.badge_count = member.badge_count.saturating_add(held.sign);
        // What a known member holds is counted as it was seen before; turning it counts all of it.
        let counted = if member.stored.is_some() { member.was_visible() } else { member.visible };
        let sign = if counted { i64::from(held.sign) } else { 0 };
        counts.badge(member.community, &held.kind, held.awarded_at, sign);
    }
    Ok(())
}

/// Works out the scores, and writes those that are new or changed.
async fn change_scores(connection: &mut AsyncPgConnection, members: &mut [Member]) -> Result<(), Error> {
    let earlier_adds = earlier_adds(connection, members).await?;
    let (mut made, mut changed) = (ScoreColumns::default(), ScoreColumns::default());
    let mut adds = AddColumns::default();
    for member in members {
        let change = &member.change;
        if let Some((mark, conviction)) = newer(&change.conviction, member.score.conviction_mark) {
            member.score.conviction = conviction.get();
            member.score.conviction_mark = Some(*mark);
        }
        let set = newer(&change.activity, member.score.activity_mark);
        let mark = set.map(|(mark, _)| *mark).or(member.score.activity_mark);
        let added = change.added_since(mark);
        let activity = match set {
            // Set anew: what was added after it counts, from this change and from before.
            Some((_, activity)) => {
                let earlier =
                    earlier_adds.get(&(member.community, member.profile)).copied().unwrap_or_default();
                activity.plus(earlier).plus(added)
            }
            None => Activity::clamp(member.score.activity).plus(added),
        };
        member.score.activity = activity.get();
        member.score.activity_mark = mark;
        for ((at, event), amount) in &change.adds {
            if mark.is_none_or(|set| set < (*at, *event)) {
                adds.communities.push(member.community.get());
                adds.profiles.push(member.profile.get());
                adds.dates.push(*at);
                adds.events.push(*event);
                adds.amounts.push(amount.get());
            }
        }
        member.score.last_active_at = member.score.last_active_at.max(change.last_active());
        match &member.stored {
            None => made.push(member),
            Some(row) if row.visible != member.visible || row.score() != member.score => changed.push(member),
            Some(_) => {}
        }
    }
    if !made.communities.is_empty() {
        statement::execute(connection, made.insert()).await?;
    }
    if !changed.communities.is_empty() {
        statement::execute(connection, changed.update()).await?;
    }
    if !adds.communities.is_empty() {
        statement::execute(connection, adds.insert()).await?;
    }
    Ok(())
}

/// Keeps the tails of the members' nyms.
async fn change_tails(connection: &mut AsyncPgConnection, members: &[Member]) -> Result<(), Error> {
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    for member in members {
        let is_named = member.new_username().is_some() || member.new_nick().is_some();
        if member.stored.is_some() && !is_named && !member.is_turned() {
            continue;
        }
        let before = member.stored.as_ref().filter(|row| row.visible).map(|row| row.nym_key.clone());
        let after = member.visible.then(|| member.nym_key());
        if before != after {
            gone.extend(before.map(|nym| (member.community, member.profile, nym)));
            come.extend(after.map(|nym| (member.community, member.profile, nym)));
        }
    }
    search::tails_remove(connection, gone).await?;
    search::tails_add(connection, come).await
}

/// Of the members whose activity is set anew: what had been added after that, before this change. Additions before it will
/// never count again, and are removed.
async fn earlier_adds(
    connection: &mut AsyncPgConnection,
    members: &[Member],
) -> Result<HashMap<(CommunityId, ProfileId), Activity>, Error> {
    let (mut communities, mut profiles, mut dates, mut events) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for member in members.iter().filter(|member| member.stored.is_some()) {
        if let Some(((at, event), _)) = newer(&member.change.activity, member.score.activity_mark) {
            communities.push(member.community.get());
            profiles.push(member.profile.get());
            dates.push(*at);
            events.push(*event);
        }
    }
    if communities.is_empty() {
        return Ok(HashMap::new());
    }
    let keys = communities.len();
    let sum = Statement::new(
        "SELECT k.community_id, k.profile_id, least(sum(a.amount), 9007199254740991)::bigint AS amount
         FROM unnest($1, $2, $3, $4) AS k (community_id, profile_id, at, event_id)
         CROSS JOIN LATERAL (SELECT a.amount FROM activity_adds AS a
             WHERE a.community_id = k.community_id AND a.profile_id = k.profile_id
                 AND (a.at, a.event_id) > (k.at, k.event_id) OFFSET 0) AS a
         GROUP BY 1, 2",
    );
    let prune = Statement::new(
        "DELETE FROM activity_adds AS a
         USING unnest($1, $2, $3, $4) AS k (community_id, profile_id, at, event_id)
         CROSS JOIN LATERAL (SELECT r.ctid FROM activity_adds AS r
             WHERE r.community_id = k.community_id AND r.profile_id = k.profile_id
                 AND (r.at, r.event_id) < (k.at, k.event_id) OFFSET 0) AS row
         WHERE a.ctid = row.ctid",
    );
    let keyed = |statement: Statement| {
        statement
            .bind::<Array<SqlUuid>, _>(communities.clone())
            .bind::<Array<SqlUuid>, _>(profiles.clone())
            .bind::<Array<Timestamptz>, _>(dates.clone())
            .bind::<Array<SqlUuid>, _>(events.clone())
    };
    let sums: Vec<SumRow> = statement::by_keys(connection, keyed(sum), keys).await?;
    statement::execute(connection, keyed(prune)).await?;
    Ok(sums
        .into_iter()
        .map(|row| ((row.community_id.into(), row.profile_id.into()), Activity::clamp(row.amount)))
        .collect())
}

/// Reads again which tier these communities' members hold: another writer has moved a cut since they were read, and whoever
/// stood where it passed.
async fn read_tiers_again(
    connection: &mut AsyncPgConnection,
    members: &mut [Member],
    communities: &BTreeSet<CommunityId>,
) -> Result<(), Error> {
    let mut known: BTreeMap<(Uuid, Uuid), &mut Member> = members
        .iter_mut()
        .filter(|member| member.stored.is_some() && communities.contains(&member.community))
        .map(|member| ((member.community.get(), member.profile.get()), member))
        .collect();
    if known.is_empty() {
        return Ok(());
    }
    let find = Statement::new(
        "SELECT p.community_id, p.profile_id, p.tier, p.tier_given
         FROM unnest($1, $2) AS k (community_id, profile_id)
         CROSS JOIN LATERAL (SELECT * FROM profiles AS p
             WHERE p.community_id = k.community_id AND p.profile_id = k.profile_id LIMIT 1) AS p",
    )
    .bind::<Array<SqlUuid>, _>(known.keys().map(|key| key.0).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(known.keys().map(|key| key.1).collect::<Vec<_>>());
    let rows: Vec<TierRow> = statement::by_keys(connection, find, known.len()).await?;
    for row in rows {
        let Some(member) = known.get_mut(&(row.community_id, row.profile_id)) else { continue };
        (member.tier, member.tier_given) = (row.tier.clone(), row.tier_given);
        if let Some(stored) = &mut member.stored {
            (stored.tier, stored.tier_given) = (row.tier, row.tier_given);
        }
    }
    Ok(())
}

/// Gives the members that moved the tier they now hold, and takes in those whose rank the change moved across a rank tier's
/// edge. Answers who changed from one tier to another.
async fn change_tiers(
    connection: &mut AsyncPgConnection,
    members: &mut Vec<Member>,
) -> Result<Vec<TierMove>, Error> {
    let communities: BTreeSet<CommunityId> =
        members.iter().filter(|member| member.is_moved()).map(|member| member.community).collect();
    if communities.is_empty() {
        return Ok(Vec::new());
    }
    let mut policies = tier::policies(connection, &communities).await?;
    let at_an_edge: BTreeSet<CommunityId> = members
        .iter()
        .filter(|member| member.is_moved())
        .filter(|member| {
            let reach =
                [member.stood(), member.standing()].into_iter().flatten().map(|at| at.conviction).max();
            let policy = policies.get(&member.community);
            policy.is_some_and(|policy| reach.is_some_and(|reach| policy.is_at_an_edge(reach)))
        })
        .map(|member| member.community)
        .collect();
    let mut crossed: HashSet<(CommunityId, ProfileId)> = HashSet::new();
    if !at_an_edge.is_empty() {
        let mut strangers: BTreeMap<CommunityId, Vec<(ProfileId, MemberChange)>> = BTreeMap::new();
        let known: HashSet<(CommunityId, ProfileId)> =
            members.iter().map(|member| (member.community, member.profile)).collect();
        for key in tier::cuts_settle(connection, &at_an_edge).await? {
            if crossed.insert(key) && !known.contains(&key) {
                strangers.entry(key.0).or_default().push((key.1, MemberChange::default()));
            }
        }
        for (community, changes) in strangers {
            members.extend(find_known(connection, community, changes).await?);
        }
        members.sort_unstable_by_key(|member| (member.community, member.profile));
        policies.extend(tier::policies(connection, &at_an_edge).await?);
    }
    let mut moves = Vec::new();
    for member in members {
        if !member.visible || !(member.is_moved() || crossed.contains(&(member.community, member.profile))) {
            continue;
        }
        let Some(policy) = policies.get(&member.community) else { continue };
        let tier = policy.tier(member.score.conviction);
        if member.tier_given && member.tier.as_deref() != tier {
            let promotion = policy.place(tier) < policy.place(member.tier.as_deref());
            moves.push(TierMove {
                community: member.community,
                profile: member.profile,
                from: member.tier.clone(),
                to: tier.map(str::to_owned),
                promotion,
            });
        }
        member.tier = tier.map(str::to_owned);
        member.tier_given = true;
    }
    Ok(moves)
}

/// Writes new profiles and what changed of known ones.
async fn write_profiles(connection: &mut AsyncPgConnection, members: &[Member]) -> Result<(), Error> {
    let mut rows = ProfileColumns::default();
    for member in members {
        let change = &member.change;
        let (username, nick) = (member.new_username(), member.new_nick());
        let presence = newer(&change.has_left, member.mark(|row| row.presence_at.zip(row.presence_event)));
        let stays = member.stored.as_ref().is_some_and(|row| {
            row.hidden == member.hidden
                && row.joined_at == member.joined_at
                && row.join_known == member.join_known
                && row.tier == member.tier
                && row.tier_given == member.tier_given
                && row.badge_count == member.badge_count
        });
        if username.is_none() && nick.is_none() && presence.is_none() && stays {
            continue;
        }
        rows.communities.push(member.community.get());
        rows.profiles.push(member.profile.get());
        rows.users.push(member.user.as_str().to_owned());
        let named = username.and_then(|(_, nym)| nym.as_ref());
        rows.usernames.push(named.map(|nym| nym.as_str().to_owned()));
        rows.username_keys.push(named.map(|nym| nym.key().as_str().to_owned()));
        rows.username_dates.push(username.map(|(mark, _)| mark.0));
        rows.username_events.push(username.map(|(mark, _)| mark.1));
        let nym = nick.and_then(|(_, (nym, _))| nym.as_ref());
        rows.nicks.push(nym.map(|nym| nym.as_str().to_owned()));
        rows.nick_keys.push(nym.map(|nym| nym.key().as_str().to_owned()));
        let roles =
            nick.map(|(_, (_, roles))| roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(" "));
        rows.roles.push(roles.unwrap_or_default());
        rows.nick_dates.push(nick.map(|(mark, _)| mark.0));
        rows.nick_events.push(nick.map(|(mark, _)| mark.1));
        rows.have_left.push(member.has_left);
        rows.presence_dates.push(presence.map(|(mark, _)| mark.0));
        rows.presence_events.push(presence.map(|(mark, _)| mark.1));
        rows.hidden.push(member.hidden);
        rows.joined.push(member.joined_at);
        rows.joins_known.push(member.join_known);
        rows.tiers.push(member.tier.clone());
        rows.tiers_given.push(member.tier_given);
        rows.badge_counts.push(member.badge_count);
    }
    if rows.communities.is_empty() {
        return Ok(());
    }
    statement::execute(connection, rows.upsert()).await?;
    Ok(())
}

/// The columns of the profiles to write. A register that is not newer has no date, and stays as it is stored.
#[derive(Default)]
struct ProfileColumns {
    communities: Vec<Uuid>,
    profiles: Vec<Uuid>,
    users: Vec<String>,
    usernames: Vec<Option<String>>,
    username_keys: Vec<Option<String>>,
    username_dates: Vec<Option<OffsetDateTime>>,
    username_events: Vec<Option<Uuid>>,
    nicks: Vec<Option<String>>,
    nick_keys: Vec<Option<String>>,
    /// Role ids hold no blank, so a blank parts them.
    roles: Vec<String>,
    nick_dates: Vec<Option<OffsetDateTime>>,
    nick_events: Vec<Option<Uuid>>,
    have_left: Vec<bool>,
    presence_dates: Vec<Option<OffsetDateTime>>,
    presence_events: Vec<Option<Uuid>>,
    hidden: Vec<bool>,
    joined: Vec<OffsetDateTime>,
    joins_known: Vec<bool>,
    tiers: Vec<Option<String>>,
    tiers_given: Vec<bool>,
    badge_counts: Vec<i32>,
}

impl ProfileColumns {
    fn upsert(self) -> Statement {
        Statement::new(
            "INSERT INTO profiles AS p (community_id, profile_id, user_id, username, username_key, username_at,
                 username_event, nick, nick_key, roles, nick_at, nick_event, has_left, presence_at, presence_event,
                 hidden, joined_at, join_known, tier, tier_given, badge_count)
             SELECT n.c1, n.c2, n.c3, n.c4, n.c5, n.c6, n.c7, n.c8, n.c9, string_to_array(n.c10, ' '), n.c11, n.c12,
                 n.c13, n.c14, n.c15, n.c16, n.c17, n.c18, n.c19, n.c20, n.c21
             FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)
                 AS n (c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15, c16, c17, c18, c19, c20, c21)
             ON CONFLICT (community_id, profile_id) DO UPDATE SET
                 username = CASE WHEN excluded.username_at IS NULL THEN p.username ELSE excluded.username END,
                 username_key =
                     CASE WHEN excluded.username_at IS NULL THEN p.username_key ELSE excluded.username_key END,
                 username_at = coalesce(excluded.username_at, p.username_at),
                 username_event = coalesce(excluded.username_event, p.username_event),
                 nick = CASE WHEN excluded.nick_at IS NULL THEN p.nick ELSE excluded.nick END,
                 nick_key = CASE WHEN excluded.nick_at IS NULL THEN p.nick_key ELSE excluded.nick_key END,
                 roles = CASE WHEN excluded.nick_at IS NULL THEN p.roles ELSE excluded.roles END,
                 nick_at = coalesce(excluded.nick_at, p.nick_at),
                 nick_event = coalesce(excluded.nick_event, p.nick_event),
                 has_left = excluded.has_left,
                 presence_at = coalesce(excluded.presence_at, p.presence_at),
                 presence_event = coalesce(excluded.presence_event, p.presence_event),
                 hidden = excluded.hidden,
                 joined_at = excluded.joined_at,
                 join_known = excluded.join_known,
                 tier = excluded.tier,
                 tier_given = excluded.tier_given,
                 badge_count = excluded.badge_count",
        )
        .bind::<Array<SqlUuid>, _>(self.communities)
        .bind::<Array<SqlUuid>, _>(self.profiles)
        .bind::<Array<Text>, _>(self.users)
        .bind::<Array<Nullable<Text>>, _>(self.usernames)
        .bind::<Array<Nullable<Text>>, _>(self.username_keys)
        .bind::<Array<Nullable<Timestamptz>>, _>(self.username_dates)
        .bind::<Array<Nullable<SqlUuid>>, _>(self.username_events)
        .bind::<Array<Nullable<Text>>, _>(self.nicks)
        .bind::<Array<Nullable<Text>>, _>(self.nick_keys)
        .bind::<Array<Text>, _>(self.roles)
        .bind::<Array<Nullable<Timestamptz>>, _>(self.nick_dates)
        .bind::<Array<Nullable<SqlUuid>>, _>(self.nick_events)
        .bind::<Array<Bool>, _>(self.have_left)
        .bind::<Array<Nullable<Timestamptz>>, _>(self.presence_dates)
        .bind::<Array<Nullable<SqlUuid>>, _>(self.presence_events)
        .bind::<Array<Bool>, _>(self.hidden)
        .bind::<Array<Timestamptz>, _>(self.joined)
        .bind::<Array<Bool>, _>(self.joins_known)
        .bind::<Array<Nullable<Text>>, _>(self.tiers)
        .bind::<Array<Bool>, _>(self.tiers_given)
        .bind::<Array<Integer>, _>(self.badge_counts)
    }
}

#[derive(Default)]
struct ScoreColumns {
    communities: Vec<Uuid>,
    profiles: Vec<Uuid>,
    convictions: Vec<i64>,
    conviction_dates: Vec<Option<OffsetDateTime>>,
    conviction_events: Vec<Option<Uuid>>,
    activities: Vec<i64>,
    activity_dates: Vec<Option<OffsetDateTime>>,
    activity_events: Vec<Option<Uuid>>,
    last_active: Vec<Option<OffsetDateTime>>,
    visible: Vec<bool>,
}

impl ScoreColumns {
    fn push(&mut self, member: &Member) {
        let score = &member.score;
        self.communities.push(member.community.get());
        self.profiles.push(member.profile.get());
        self.convictions.push(score.conviction);
        self.conviction_dates.push(score.conviction_mark.map(|mark| mark.0));
        self.conviction_events.push(score.conviction_mark.map(|mark| mark.1));
        self.activities.push(score.activity);
        self.activity_dates.push(score.activity_mark.map(|mark| mark.0));
        self.activity_events.push(score.activity_mark.map(|mark| mark.1));
        self.last_active.push(score.last_active_at);
        self.visible.push(member.visible);
    }

    fn insert(self) -> Statement {
        self.bind(
            "INSERT INTO scores (community_id, profile_id, conviction, conviction_at, conviction_event, activity,
                 activity_at, activity_event, last_active_at, visible)
             SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
    }

    /// Rows are updated by their place, found one by one by their key: whatever the planner believes of a table that it has
    /// no statistics of yet, it cannot read all of it. Under the lock of its stripe a place does not change meanwhile.
    fn update(self) -> Statement {
        self.bind(
            "UPDATE scores AS s SET conviction = n.c3, conviction_at = n.c4, conviction_event = n.c5, activity = n.c6,
                 activity_at = n.c7, activity_event = n.c8, last_active_at = n.c9, visible = n.c10
             FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
                     AS n (c1, c2, c3, c4, c5, c6, c7, c8, c9, c10)
                 CROSS JOIN LATERAL (SELECT r.ctid FROM scores AS r
                     WHERE r.community_id = n.c1 AND r.profile_id = n.c2 LIMIT 1) AS row
             WHERE s.ctid = row.ctid",
        )
    }

    fn bind(self, sql: &'static str) -> Statement {
        Statement::new(sql)
            .bind::<Array<SqlUuid>, _>(self.communities)
            .bind::<Array<SqlUuid>, _>(self.profiles)
            .bind::<Array<BigInt>, _>(self.convictions)
            .bind::<Array<Nullable<Timestamptz>>, _>(self.conviction_dates)
            .bind::<Array<Nullable<SqlUuid>>, _>(self.conviction_events)
            .bind::<Array<BigInt>, _>(self.activities)
            .bind::<Array<Nullable<Timestamptz>>, _>(self.activity_dates)
            .bind::<Array<Nullable<SqlUuid>>, _>(self.activity_events)
            .bind::<Array<Nullable<Timestamptz>>, _>(self.last_active)
            .bind::<Array<Bool>, _>(self.visible)
    }
}

#[derive(Default)]
struct AddColumns {
    communities: Vec<Uuid>,
    profiles: Vec<Uuid>,
    dates: Vec<OffsetDateTime>,
    events: Vec<Uuid>,
    amounts: Vec<i64>,
}

impl AddColumns {
    fn insert(self) -> Statement {
        Statement::new(
            "INSERT INTO activity_adds (community_id, profile_id, at, event_id, amount)
             SELECT * FROM unnest($1, $2, $3, $4, $5)",
        )
        .bind::<Array<SqlUuid>, _>(self.communities)
        .bind::<Array<SqlUuid>, _>(self.profiles)
        .bind::<Array<Timestamptz>, _>(self.dates)
        .bind::<Array<SqlUuid>, _>(self.events)
        .bind::<Array<BigInt>, _>(self.amounts)
    }
}

#[derive(QueryableByName)]
struct SumRow {
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    profile_id: Uuid,
    #[diesel(sql_type = BigInt)]
    amount: i64,
}

#[derive(QueryableByName)]
struct MemberRow {
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
    #[diesel(sql_type = Nullable<Text>)]
    user_id: Option<String>,
    #[diesel(sql_type = SqlUuid)]
    profile_id: Uuid,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    username_at: Option<OffsetDateTime>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    username_event: Option<Uuid>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    nick_at: Option<OffsetDateTime>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    nick_event: Option<Uuid>,
    #[diesel(sql_type = Bool)]
    has_left: bool,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    presence_at: Option<OffsetDateTime>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    presence_event: Option<Uuid>,
    #[diesel(sql_type = Bool)]
    hidden: bool,
    #[diesel(sql_type = Bool)]
    visible: bool,
    #[diesel(sql_type = Timestamptz)]
    joined_at: OffsetDateTime,
    #[diesel(sql_type = Bool)]
    join_known: bool,
    #[diesel(sql_type = Nullable<Text>)]
    tier: Option<String>,
    #[diesel(sql_type = Bool)]
    tier_given: bool,
    #[diesel(sql_type = Integer)]
    badge_count: i32,
    #[diesel(sql_type = Nullable<Text>)]
    username_key: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    nick_key: Option<String>,
    #[diesel(sql_type = Text)]
    nym_key: String,
    #[diesel(sql_type = BigInt)]
    conviction: i64,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    conviction_at: Option<OffsetDateTime>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    conviction_event: Option<Uuid>,
    #[diesel(sql_type = BigInt)]
    activity: i64,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    activity_at: Option<OffsetDateTime>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    activity_event: Option<Uuid>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    last_active_at: Option<OffsetDateTime>,
}

impl MemberRow {
    fn score(&self) -> Score {
        Score {
            conviction: self.conviction,
            conviction_mark: self.conviction_at.zip(self.conviction_event),
            activity: self.activity,
            activity_mark: self.activity_at.zip(self.activity_event),
            last_active_at: self.last_active_at,
        }
    }
}

#[derive(QueryableByName)]
struct TierRow {
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    profile_id: Uuid,
    #[diesel(sql_type = Nullable<Text>)]
    tier: Option<String>,
    #[diesel(sql_type = Bool)]
    tier_given: bool,
}
