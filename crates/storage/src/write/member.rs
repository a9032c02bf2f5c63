//! The one way in which members change: what is stored is read, what it becomes is worked out, and each row and each count is
//! written once.
//!
//! It goes in two steps, each under one of the [locks](super::lock): first what is the members' own, with their stripes; then,
//! with the community, what all of its members share.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use diesel_async::AsyncPgConnection;
use muster_domain::{Activity, Disappearance, Shard, UserId};

use super::badges::{self, Held};
use super::boards;
use super::change::{MemberChange, Watermark, newer};
use super::counts::{self, VisibilityChange};
use super::directory::{self, Listed, Unlisted};
use super::lock::{self, Locked};
use super::member_rows::{self, NumberKey, State, Stored, UserKey};
use super::numbers::{self, Sequence};
use super::outbox::{self, Detail, HeldBadge, PendingChange};
use super::tiers::{self, TierMove, Tiers};
use super::{activity, suffixes};
use crate::board::Board;
use crate::error::Error;
use crate::sql::statement::Insertion;
use crate::tenant::Tenant;

/// Members whose own rows are written; what they share with others is still to be written.
#[must_use]
pub(crate) struct Changed {
    members: Vec<Member>,
    counts: counts::Changes,
    /// Badges that are held now, or no longer held.
    badges: Vec<Held>,
    insertion: Insertion,
}

/// One member: what is stored, what is to change, and what comes of it.
struct Member {
    community: i32,
    number: i64,
    change: MemberChange,
    stored: Option<State>,
    state: State,
}

/// Changes what is their own of members by the person's id; who is not known yet gets a profile. Their stripes are locked.
///
/// `touched` are the communities that the transaction locks after this.
pub(crate) async fn change(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    touched: &BTreeSet<i32>,
    changes: Vec<((i32, UserId), MemberChange)>,
    insertion: Insertion,
) -> Result<Changed, Error> {
    let key =
        |(community, user): &(i32, UserId)| UserKey { community: *community, key: user.as_str().to_owned() };
    let keys = changes.iter().map(|(of, _)| key(of)).collect();
    let mut stored: HashMap<(i32, String), Stored> = HashMap::with_capacity(changes.len());
    for row in member_rows::find_by_user(connection, shard, keys).await? {
        stored.insert((row.community, row.state.user.as_str().to_owned()), row);
    }
    let unknown = changes.len().saturating_sub(stored.len());
    let mut numbers = numbers::next(connection, Sequence::Members, unknown).await?.into_iter();
    let mut members = Vec::with_capacity(changes.len());
    for ((community, user), change) in changes {
        members.push(match stored.remove(&(community, user.as_str().to_owned())) {
            Some(row) => Member::known(row, change)?,
            None => {
                let number = numbers.next().ok_or_else(|| Error::defect("a new member has no number"))?;
                Member::new(community, number, user, change)?
            }
        });
    }
    write_own(connection, shard, touched, members, insertion).await
}

/// Changes members of one community by their numbers, wholly; who is not found, or was erased, is left out. Their
/// stripes are locked; the community is, too, when this is done.
pub(crate) async fn change_known(
    connection: &mut AsyncPgConnection,
    held: &lock::Members,
    tenant: Tenant,
    changes: Vec<(i64, MemberChange)>,
) -> Result<(), Error> {
    let mut changes: HashMap<i64, MemberChange> = changes.into_iter().collect();
    let keys = changes.keys().map(|number| NumberKey { community: tenant.community, key: *number }).collect();
    let mut members = Vec::with_capacity(changes.len());
    for row in member_rows::find_by_number(connection, tenant.shard, keys).await? {
        let change = changes.remove(&row.number).unwrap_or_default();
        members.push(Member::known(row, change)?);
    }
    let touched = BTreeSet::from([tenant.community]);
    let changed = write_own(connection, tenant.shard, &touched, members, Insertion::Guarded).await?;
    let locked = lock::communities(connection, tenant.shard, &touched).await?;
    changed.write_shared(connection, tenant.shard, held, &locked).await
}

impl Member {
    fn new(community: i32, number: i64, user: UserId, change: MemberChange) -> Result<Self, Error> {
        let state = State::first(user, &change)?;
        Ok(Self { community, number, change, stored: None, state })
    }

    fn known(row: Stored, change: MemberChange) -> Result<Self, Error> {
        let state = row.state.changed_by(&change)?;
        Ok(Self { community: row.community, number: row.number, change, stored: Some(row.state), state })
    }

    const fn key(&self) -> (i32, i64) {
        (self.community, self.number)
    }

    /// As lists showed the member before.
    fn shown_before(&self) -> Option<&State> {
        self.stored.as_ref().filter(|stored| stored.visible())
    }

    /// As lists show the member now.
    fn shown_after(&self) -> Option<&State> {
        Some(&self.state).filter(|state| state.visible())
    }

    /// Whether a known member appears in lists or disappears from them.
    fn changes_visibility(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| stored.visible() != self.state.visible())
    }

    /// Whether the member's tier may be another now, or the rank tiers' thresholds because of it.
    fn is_moved(&self) -> bool {
        self.change.recheck_tier
            || self.state.visible() != self.shown_before().is_some()
            || self.stored.as_ref().is_none_or(|stored| stored.conviction != self.state.conviction)
    }

    /// Assigns the tier that the member holds by these tiers.
    fn assign_tier(&mut self, tiers: &Tiers) {
        if self.state.visible() {
            self.state.tier = tiers.tier(self.state.conviction);
            self.state.tier_assigned = true;
        }
    }
}

async fn write_own(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    touched: &BTreeSet<i32>,
    mut members: Vec<Member>,
    insertion: Insertion,
) -> Result<Changed, Error> {
    // Neighbours in the tables are written together.
    members.sort_unstable_by_key(Member::key);
    let mut counts = counts::Changes::default();
    let badges = change_badges(connection, shard, touched, &mut members, &mut counts).await?;
    change_activity(connection, shard, &mut members, insertion).await?;
    write_entries(connection, shard, &members, &[Board::Conviction, Board::Activity], insertion).await?;
    let (mut found, mut lost) = (Vec::new(), Vec::new());
    for member in &members {
        let (community, number) = member.key();
        let (before, after) = (member.shown_before(), member.shown_after());
        if before.map(|state| &state.nym_key) != after.map(|state| &state.nym_key) {
            lost.extend(before.into_iter().flat_map(|state| suffixes::of(community, number, &state.nym_key)));
            found.extend(after.into_iter().flat_map(|state| suffixes::of(community, number, &state.nym_key)));
        }
        counts.standing(community, member.stored.as_ref().and_then(State::standing), member.state.standing());
    }
    suffixes::remove(connection, shard, lost).await?;
    suffixes::add(connection, shard, found, insertion).await?;
    Ok(Changed { members, counts, badges, insertion })
}

/// Writes the members' places on these boards, where they change.
async fn write_entries(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    members: &[Member],
    boards: &[Board],
    insertion: Insertion,
) -> Result<(), Error> {
    let mut entries = boards::Changes::default();
    for member in members {
        for board in boards {
            let place = |state: &State| state.place(*board);
            let places = (member.shown_before().and_then(place), member.shown_after().and_then(place));
            entries.take(member.key(), *board, places);
        }
    }
    entries.write(connection, shard, insertion).await
}

/// Writes what holds a member's tier: the row, the place in the directory and that on the board of badges.
async fn write_rows(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    members: &[Member],
    insertion: Insertion,
) -> Result<(), Error> {
    let (mut made, mut updated) = (Vec::new(), Vec::new());
    let mut directory = directory::Changes::default();
    for member in members {
        let (community, number) = member.key();
        let row = || member.state.row(community, number);
        match &member.stored {
            None => made.push(row()),
            Some(stored) if *stored != member.state => updated.push(row()),
            Some(_) => {}
        }
        let listing = |state: &State| Listed {
            community,
            member: number,
            tier: state.tier,
            joined_at: state.joined_at,
            nym_key: state.nym_key.clone(),
        };
        let listed_as = |state: &State| (state.tier, state.joined_at, state.nym_key.clone());
        match (member.shown_before(), member.shown_after()) {
            (None, Some(after)) => directory.listed.push(listing(after)),
            (Some(_), None) => directory.unlisted.push(Unlisted { community, member: number }),
            (Some(before), Some(after)) if listed_as(before) != listed_as(after) => {
                directory.relisted.push(listing(after));
            }
            _ => {}
        }
    }
    member_rows::insert(connection, shard, made).await?;
    member_rows::update(connection, shard, updated).await?;
    directory.write(connection, shard, insertion).await?;
    write_entries(connection, shard, members, &[Board::Badges], insertion).await
}

/// Records awards and revocations, and counts the badges that come of them.
async fn change_badges(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    touched: &BTreeSet<i32>,
    members: &mut [Member],
    counts: &mut counts::Changes,
) -> Result<Vec<Held>, Error> {
    let mut operations = Vec::new();
    for member in members.iter_mut() {
        let (community, number) = member.key();
        operations.extend(std::mem::take(&mut member.change.badges).into_iter().map(|badge| {
            badges::Operation {
                community,
                member: number,
                kind: badge.kind,
                at: badge.set.0,
                id: badge.set.1,
                award: badge.award,
                reason: badge.reason,
                by: badge.by,
            }
        }));
    }
    if operations.is_empty() {
        return Ok(Vec::new());
    }
    let mut changed = badges::operate(connection, shard, touched, operations).await?;
    for held in &changed {
        let place = members.binary_search_by_key(&(held.community, held.member), Member::key);
        let member = place.ok().and_then(|place| members.get_mut(place));
        let member = member.ok_or_else(|| Error::defect("a badge of nobody changed"))?;
        member.state.badge_count = member.state.badge_count.saturating_add(held.sign);
        // What a known member holds is counted as it was seen before; a change of visibility counts all of it.
        let counted =
            if member.stored.is_some() { member.shown_before().is_some() } else { member.state.visible() };
        let sign = if counted { i64::from(held.sign) } else { 0 };
        counts.badge(member.community, held.kind, held.awarded_at, sign);
    }
    changed.retain(|held| held.sign != 0);
    Ok(changed)
}

/// Works out activities, from what was set and what was added after that.
async fn change_activity(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    members: &mut [Member],
    insertion: Insertion,
) -> Result<(), Error> {
    let newly_set = |member: &Member| -> Option<Watermark> {
        let stored = member.stored.as_ref().and_then(|stored| stored.activity_set);
        newer(&member.change.activity, stored).map(|(watermark, _)| *watermark)
    };
    let set = members.iter().filter(|member| member.stored.is_some());
    let set = set.filter_map(|member| Some((member.key(), newly_set(member)?))).collect();
    let earlier = activity::added_since(connection, shard, set).await?;
    let mut adds = Vec::new();
    for member in members.iter() {
        let was_set = member.stored.as_ref().and_then(|stored| stored.activity_set);
        let watermark = newly_set(member).or(was_set);
        let counted = member.change.adds.iter().filter(|(at, _)| watermark.is_none_or(|set| set < *at));
        adds.extend(counted.map(|((at, event_id), amount)| activity::Add {
            community: member.community,
            member: member.number,
            at: *at,
            event_id: *event_id,
            amount: amount.get(),
        }));
    }
    let fresh = activity::insert(connection, shard, adds, insertion).await?;
    for member in members {
        let key = member.key();
        member.change.adds.retain(|(watermark, _)| fresh.contains(&(key, *watermark)));
        let before = member.stored.as_ref().map(|stored| (stored.activity, stored.activity_set));
        let (activity, was_set) = before.unwrap_or_default();
        let newly_set = newer(&member.change.activity, was_set);
        let watermark = newly_set.map(|(watermark, _)| *watermark).or(was_set);
        let added = member.change.added_since(watermark);
        let activity = match newly_set {
            // Set anew: what was added after it counts, from this change and from before.
            Some((_, activity)) => activity.plus(earlier.get(&key).copied().unwrap_or_default()).plus(added),
            None => Activity::clamp(activity).plus(added),
        };
        member.state.activity = activity.get();
        member.state.activity_set = watermark;
    }
    Ok(())
}

impl Changed {
    /// Folds old additions to the activity of members who were just added to, now and then.
    pub(crate) async fn fold_additions(
        &self,
        connection: &mut AsyncPgConnection,
        shard: Shard,
    ) -> Result<(), Error> {
        let due = self
            .members
            .iter()
            .filter(|member| member.change.adds.iter().any(|(of, _)| activity::is_due(*of)));
        activity::fold(connection, shard, due.map(Member::key).collect()).await
    }

    /// Writes what all members share: tiers with all that holds them, and counts. The communities are locked.
    pub(crate) async fn write_shared(
        self,
        connection: &mut AsyncPgConnection,
        shard: Shard,
        held: &lock::Members,
        locked: &BTreeMap<i32, Locked>,
    ) -> Result<(), Error> {
        let Self { mut members, mut counts, badges, insertion } = self;
        if members.is_empty() {
            return Ok(());
        }
        counts.write_scores(connection, shard).await?;
        let moved_since: BTreeSet<i32> = locked
            .iter()
            .filter(|(community, locked)| {
                held.thresholds_moved.get(community) != Some(&locked.thresholds_moved)
            })
            .map(|(community, _)| *community)
            .collect();
        read_tiers_again(connection, shard, &mut members, &moved_since).await?;
        let moves = assign_tiers(connection, shard, &mut members).await?;
        for member in &members {
            if let Some(stored) = member.shown_before() {
                counts.tier(member.community, stored.tier, -1);
            }
            if let Some(state) = member.shown_after() {
                counts.tier(member.community, state.tier, 1);
            }
        }
        write_rows(connection, shard, &members, insertion).await?;
        let changed: Vec<VisibilityChange> = members
            .iter()
            .filter(|member| member.changes_visibility())
            .map(|member| VisibilityChange {
                community: member.community,
                member: member.number,
                visible: member.state.visible(),
            })
            .collect();
        counts::apply_visibility(connection, shard, &changed).await?;
        let recorded = tiers::record(connection, shard, &moves).await?;
        for (promotions, sign) in [(recorded.promoted, 1), (recorded.forgotten, -1)] {
            for (community, at) in promotions {
                counts.promotion(community, at, sign);
            }
        }
        counts.write(connection, shard).await?;
        let (changes, cut) = pending_changes(connection, shard, &members, &moves, badges).await?;
        outbox::write(connection, shard, locked, changes, &cut).await
    }
}

/// Reads again which tier these communities' members hold: another writer has moved a threshold since they were read, and
/// whoever stood where it passed.
async fn read_tiers_again(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    members: &mut [Member],
    communities: &BTreeSet<i32>,
) -> Result<(), Error> {
    let known = members
        .iter()
        .filter(|member| member.stored.is_some() && communities.contains(&member.community))
        .map(|member| NumberKey { community: member.community, key: member.number })
        .collect();
    for row in member_rows::tiers(connection, shard, known).await? {
        let place = members.binary_search_by_key(&(row.community, row.member), Member::key);
        let Some(member) = place.ok().and_then(|place| members.get_mut(place)) else { continue };
        for state in member.stored.iter_mut().chain([&mut member.state]) {
            (state.tier, state.tier_assigned) = (row.tier, row.tier_assigned);
        }
    }
    Ok(())
}

/// Assigns the members that moved the tier they now hold, and takes in those whose rank the change moved across a rank tier's
/// threshold. Returns who changed from one tier to another.
async fn assign_tiers(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    members: &mut Vec<Member>,
) -> Result<Vec<TierMove>, Error> {
    let moved = members.iter().filter(|member| member.is_moved()).map(|member| member.community).collect();
    let mut policies = tiers::policies(connection, shard, &moved).await?;
    let (mut at_an_edge, mut traces) = (BTreeSet::new(), HashMap::new());
    for member in members.iter().filter(|member| member.is_moved()) {
        let of = |state: &State| state.standing().map(|standing| standing.conviction);
        let reach = member.stored.as_ref().and_then(of).max(of(&member.state));
        let tiers = policies.get(&member.community);
        if tiers.is_some_and(|tiers| reach.is_some_and(|reach| tiers.is_at_an_edge(reach))) {
            at_an_edge.insert(member.community);
            if let Some(trace) = &member.change.traceparent {
                traces.insert(member.community, trace.clone());
            }
        }
    }
    let moved_now = tiers::move_thresholds(connection, shard, &at_an_edge).await?;
    policies.extend(tiers::policies(connection, shard, &moved_now.communities).await?);
    let known: HashSet<(i32, i64)> = members.iter().map(Member::key).collect();
    let strangers = moved_now.crossed.iter().filter(|key| !known.contains(key));
    let strangers =
        strangers.map(|(community, number)| NumberKey { community: *community, key: *number }).collect();
    for row in member_rows::find_by_number(connection, shard, strangers).await? {
        members.push(Member::known(row, MemberChange::default())?);
    }
    members.sort_unstable_by_key(Member::key);
    let crossed: HashSet<(i32, i64)> = moved_now.crossed.into_iter().collect();
    // Whom a threshold passed, what moved it caused.
    for member in members.iter_mut().filter(|member| crossed.contains(&member.key())) {
        let cause = traces.get(&member.community);
        member.change.traceparent = member.change.traceparent.take().or_else(|| cause.cloned());
    }
    for member in members.iter_mut().filter(|member| member.is_moved() || crossed.contains(&member.key())) {
        if let Some(tiers) = policies.get(&member.community) {
            member.assign_tier(tiers);
        }
    }
    Ok(moves(members, &policies))
}

/// Who changed from one tier to another.
fn moves(members: &[Member], policies: &HashMap<i32, Tiers>) -> Vec<TierMove> {
    let mut moves = Vec::new();
    for member in members {
        let (Some(stored), Some(tiers)) = (&member.stored, policies.get(&member.community)) else { continue };
        let (from, to) = (stored.tier, member.state.tier);
        if !stored.tier_assigned || !member.state.visible() || from == to {
            continue;
        }
        moves.push(TierMove {
            community: member.community,
            member: member.number,
            from,
            to,
            promotion: tiers.is_promotion(from, to),
        });
    }
    moves
}

/// The changes that are published of these members, and the communities of whose badges not all are among them.
async fn pending_changes(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    members: &[Member],
    moves: &[TierMove],
    badges: Vec<Held>,
) -> Result<(Vec<PendingChange>, BTreeSet<i32>), Error> {
    let mut changes: Vec<(&Member, Detail)> = Vec::new();
    let mut appeared: BTreeMap<i32, outbox::Appeared> = BTreeMap::new();
    for member in members {
        match (member.shown_before(), member.shown_after()) {
            (None, Some(after)) => {
                changes.push((member, Detail::Appeared { tier: after.tier }));
                if member.stored.is_some() && after.badge_count > 0 {
                    appeared.entry(member.community).or_default().push(member.number, after.badge_count);
                }
            }
            (Some(before), Some(after))
                if (&before.nick, &before.username) != (&after.nick, &after.username) =>
            {
                let (from, to) = (before.nym()?, after.nym()?);
                if from != to {
                    changes.push((member, Detail::Renamed { from, to }));
                }
            }
            // An erasure is published even where the member was not visible.
            (_, None) if member.change.erased => {
                changes.push((member, Detail::Disappeared(Disappearance::Erased)));
            }
            (Some(_), None) => {
                let why = if member.state.has_left { Disappearance::Left } else { Disappearance::Hidden };
                changes.push((member, Detail::Disappeared(why)));
            }
            _ => {}
        }
    }
    let of = |key: (i32, i64)| {
        let place = members.binary_search_by_key(&key, Member::key).ok();
        let member = place.and_then(|place| members.get(place));
        member.ok_or_else(|| Error::defect("a change of a member that was not written"))
    };
    for change in moves {
        let member = of((change.community, change.member))?;
        if member.shown_before().is_some() {
            let (promotion, from, to) = (change.promotion, change.from, change.to);
            changes.push((member, Detail::Tier { promotion, from, to }));
        }
    }
    for Held { community, member, kind, sign, id, reason, .. } in badges {
        let member = of((community, member))?;
        // A member who appears is followed by all badges held.
        let is_published = match &member.stored {
            None => member.state.visible(),
            Some(_) => member.shown_before().is_some() && member.shown_after().is_some(),
        };
        if is_published {
            changes.push((member, Detail::Badge { held: sign > 0, badge: id, kind, reason }));
        }
    }
    let (held, cut) = outbox::held_badges(connection, shard, appeared).await?;
    for HeldBadge { community, member, kind, op_id, reason, .. } in held {
        changes.push((of((community, member))?, Detail::Badge { held: true, badge: op_id, kind, reason }));
    }
    let changes = changes.into_iter().map(|(member, what)| PendingChange {
        community: member.community,
        member: member.number,
        profile: member.state.profile_id,
        user: member.state.user.as_str().to_owned(),
        what,
        traceparent: member.change.traceparent.clone().map(String::from),
    });
    Ok((changes.collect(), cut))
}
