use std::collections::BTreeSet;
use std::future::Future;
use std::time::Instant;

use anyhow::{Context, Result};
use comfy_table::Table;
use muster_domain::{
    Conviction, Direction, DirectorySort, GuildId, ProfileId, Rank, TenurePolicy, Tier, UserId,
};
use muster_messaging::client::{Client, ClientError, CommunityClient};
use muster_messaging::wire::answer::{Detail, Profile};
use muster_messaging::wire::request::{
    AroundRequest, BadgesRequest, DirectoryRequest, GetRequest, PageRequest, SearchRequest,
};
use time::{Duration, OffsetDateTime};

use super::community::{Community, GUILD, Member, NAME, count};
use super::report::{Report, or_dash, table};

/// Asks every read endpoint, prints what it answers and holds it against the model.
pub(super) struct Questions<'a> {
    pub(super) client: CommunityClient,
    pub(super) model: &'a Community,
    pub(super) report: &'a mut Report,
}

/// Asks, and prints the question with the time that its answer took.
pub(super) async fn timed<T>(
    question: &str,
    answer: impl Future<Output = Result<T, ClientError>>,
) -> Result<T> {
    let started = Instant::now();
    let answer = answer.await.with_context(|| format!("{question} was not answered"))?;
    println!("\n{question}   [{:.1} ms]", started.elapsed().as_secs_f64() * 1000.0);
    Ok(answer)
}

/// Finds the community by its chat server's id.
pub(super) async fn find(client: &Client, report: &mut Report) -> Result<CommunityClient> {
    let question = format!("communities.find guild_id={GUILD}");
    let found = timed(&question, client.find_community(GuildId::parse(GUILD)?)).await?;
    println!(
        "{}",
        table(
            ["community_id", "name", "active"],
            [[found.community_id.to_string(), or_dash(found.name.as_ref()), found.active.to_string()]]
        )
    );
    report.equal("communities.find: the name", or_dash(found.name.as_ref()), NAME.to_owned());
    report.equal("communities.find: it is active", found.active, true);
    Ok(client.community(found.community_id))
}

impl Questions<'_> {
    /// Asks all of them. `members` is not empty.
    pub(super) async fn ask(&mut self) -> Result<()> {
        self.stats().await?;
        self.ranked().await?;
        // Somebody in the middle: above most, below many.
        let middle = self.model.scores().get(self.model.scores().len() / 20).copied();
        let middle = middle.context("a community without members")?;
        let subject = self.by_user(|member| member.conviction == middle).await?;
        self.get(&subject).await?;
        self.position(&subject).await?;
        self.around(&subject).await?;
        self.active().await?;
        self.search("the", 10).await?;
        self.search("%", 10).await?;
        self.badges().await?;
        self.leaderboard().await?;
        self.kinds().await?;
        self.progression().await?;
        self.changes().await?;
        self.threshold().await?;
        self.directory(DirectorySort::Nym, Some("sietch")).await?;
        self.directory(DirectorySort::Tenure, None).await?;
        self.directory(DirectorySort::Badges, None).await
    }

    async fn stats(&mut self) -> Result<()> {
        let stats = timed("community.stats", self.client.stats()).await?;
        let rows = [
            ("members", stats.members.to_string()),
            ("conviction_total", stats.conviction_total.to_string()),
            ("badges", stats.badges.to_string()),
            ("active_this_week", stats.active_this_week.to_string()),
            ("new_this_week", stats.new_this_week.to_string()),
            ("promotions_this_week", stats.promotions_this_week.to_string()),
            ("badges_this_week", stats.badges_this_week.to_string()),
        ];
        let tiers = stats.tiers.iter().map(|held| (or_dash(held.tier.as_ref()), held.members.to_string()));
        let rows = rows.map(|(name, value)| (name.to_owned(), value)).into_iter();
        let tiers_named = tiers.map(|(tier, members)| (format!("tier {tier}"), members));
        println!("{}", table(["", "now"], rows.chain(tiers_named).map(|(name, value)| [name, value])));

        let model = self.model;
        let today = OffsetDateTime::now_utc().date();
        let this_week = |at: OffsetDateTime| at.date() > today - Duration::days(7);
        let report = &mut *self.report;
        report.equal("community.stats: members", stats.members, model.size());
        let total: i64 = model.scores().iter().map(|score| score.get()).sum();
        report.equal(
            "community.stats: conviction_total",
            stats.conviction_total,
            Conviction::clamp(total).get(),
        );
        let badges = count(model.badge_counts().iter().sum());
        report.equal("community.stats: badges", stats.badges, badges);
        let active = model.count(|member| member.last_active_at.is_some_and(this_week));
        report.equal("community.stats: active_this_week", stats.active_this_week, active);
        let new = model.count(|member| this_week(member.joined_at));
        report.equal("community.stats: new_this_week", stats.new_this_week, new);
        let awarded: usize =
            model.visible().map(|member| member.badges.values().filter(|at| this_week(**at)).count()).sum();
        report.equal("community.stats: badges_this_week", stats.badges_this_week, count(awarded));
        let tiers: Vec<(Option<Tier>, u64)> =
            stats.tiers.into_iter().map(|held| (held.tier, held.members)).collect();
        let expected: Vec<(Option<Tier>, u64)> = model
            .policy
            .highest_first()
            .map(Some)
            .chain([None])
            .map(|tier| (tier.cloned(), model.count(|member| model.tier(member.conviction) == tier)))
            .collect();
        report.equal("community.stats: members of each tier", tiers, expected);
        Ok(())
    }

    async fn ranked(&mut self) -> Result<()> {
        let page =
            timed("profiles.ranked limit=10", self.client.profiles_ranked(PageRequest::first(10))).await?;
        println!("{}", profiles(page.items.iter().map(|item| (item.rank.to_string(), &item.profile))));
        let convictions: Vec<Conviction> = page.items.iter().map(|item| item.profile.conviction).collect();
        let expected = self.model.scores().iter().take(10).copied().collect();
        self.report.equal("profiles.ranked: the highest scores", convictions, expected);
        let ranks: Vec<Rank> = page.items.iter().map(|item| item.rank).collect();
        let expected = self.model.scores().iter().take(10).map(|score| self.model.rank(*score)).collect();
        self.report.equal("profiles.ranked: ranks, shared by equals", ranks, expected);
        self.rows("profiles.ranked", page.items.iter().map(|item| &item.profile));
        Ok(())
    }

    /// The profile of one whom the model names.
    async fn by_user(&self, is: impl Fn(&Member) -> bool) -> Result<Detail> {
        let member = self.model.visible().find(|member| is(member)).context("nobody is such a member")?;
        let request = GetRequest::UserId(UserId::parse(&member.user_id)?);
        timed(&format!("profiles.get user_id={}", member.user_id), self.client.profiles_get(request)).await
    }

    async fn get(&mut self, detail: &Detail) -> Result<()> {
        println!(
            "{}",
            table(
                ["nym", "rank", "conviction", "tier", "badges", "badge_rank", "tenure", "joined"],
                [[
                    detail.profile.nym.to_string(),
                    detail.rank.to_string(),
                    detail.profile.conviction.to_string(),
                    or_dash(detail.profile.tier.as_ref()),
                    detail.profile.badge_count.to_string(),
                    detail.badge_rank.to_string(),
                    detail.tenure.as_str().to_owned(),
                    detail.profile.joined_at.date().to_string(),
                ]]
            )
        );
        self.rows("profiles.get", [&detail.profile]);
        let member = self.member(&detail.profile)?;
        let (rank, badge_rank) =
            (self.model.rank(member.conviction), self.model.badge_rank(member.badges.len()));
        let tenure = TenurePolicy::default().tenure(member.joined_at, OffsetDateTime::now_utc());
        self.report.equal("profiles.get: rank", detail.rank, rank);
        self.report.equal("profiles.get: badge_rank", detail.badge_rank, badge_rank);
        self.report.equal("profiles.get: tenure", detail.tenure, tenure);
        for (how, request) in [
            ("profile_id", GetRequest::ProfileId(detail.profile.profile_id)),
            ("nym", GetRequest::Nym(detail.profile.nym.clone())),
        ] {
            let found = self.client.profiles_get(request).await?;
            let same = found.profile.nym.key() == detail.profile.nym.key();
            self.report.holds(format!("profiles.get by {how}: the same name"), same, found.profile.nym);
        }
        Ok(())
    }

    async fn position(&mut self, subject: &Detail) -> Result<()> {
        let id = subject.profile.profile_id;
        let question = format!("profiles.position profile_id={id}");
        let position = timed(&question, self.client.profiles_position(id)).await?;
        println!(
            "{}",
            table(
                [
                    "rank",
                    "conviction",
                    "above",
                    "below",
                    "next tier",
                    "to next tier",
                    "to entry rank",
                    "at_risk"
                ],
                [[
                    position.rank.to_string(),
                    position.conviction.to_string(),
                    or_dash(position.distance_above),
                    or_dash(position.distance_below),
                    or_dash(position.next_tier.as_ref()),
                    or_dash(position.distance_to_next_tier),
                    or_dash(position.distance_to_entry),
                    position.at_risk.to_string(),
                ]]
            )
        );
        let own = self.member(&subject.profile)?.conviction;
        let model = self.model;
        let above = model.scores().iter().rfind(|score| **score > own).map(|score| score.above(own));
        let below = model.scores().iter().find(|score| **score < own).map(|score| own.above(*score));
        let next = model.policy.next_score_tier(own);
        let entry = self.entry_score().map_or(0, |score| score.above(own).max(0));
        let report = &mut *self.report;
        report.equal("profiles.position: rank", position.rank, model.rank(own));
        report.equal("profiles.position: distance to the member above", position.distance_above, above);
        report.equal("profiles.position: distance to the member below", position.distance_below, below);
        let distance = next.map(|tier| tier.from.above(own));
        report.equal("profiles.position: next tier", position.next_tier, next.map(|tier| tier.tier.clone()));
        report.equal("profiles.position: distance to it", position.distance_to_next_tier, distance);
        report.equal(
            "profiles.position: distance to the entry rank",
            position.distance_to_entry,
            Some(entry),
        );
        let at_risk = model.policy.is_at_risk(model.rank(own));
        report.equal("profiles.position: at_risk", position.at_risk, at_risk);
        Ok(())
    }

    async fn around(&mut self, subject: &Detail) -> Result<()> {
        let profile_id = subject.profile.profile_id;
        let request = AroundRequest { profile_id, limit: Some(7) };
        let question = format!("profiles.around profile_id={profile_id} limit=7");
        let page = timed(&question, self.client.profiles_around(request)).await?;
        println!("{}", profiles(page.items.iter().map(|item| (item.rank.to_string(), &item.profile))));
        let ids: Vec<ProfileId> = page.items.iter().map(|item| item.profile.profile_id).collect();
        self.report.holds("profiles.around: the member is among them", ids.contains(&profile_id), &ids);
        let expected = count(7).min(self.model.size());
        self.report.equal("profiles.around: as many as asked for", count(ids.len()), expected);
        let convictions: Vec<Conviction> = page.items.iter().map(|item| item.profile.conviction).collect();
        let contiguous =
            self.model.scores().windows(convictions.len().max(1)).any(|window| window == convictions);
        self.report.holds("profiles.around: neighbours, in order of rank", contiguous, &convictions);
        let ranks_right = page.items.iter().all(|item| item.rank == self.model.rank(item.profile.conviction));
        self.report.holds("profiles.around: ranks", ranks_right, &convictions);
        self.rows("profiles.around", page.items.iter().map(|item| &item.profile));
        Ok(())
    }

    async fn active(&mut self) -> Result<()> {
        let page =
            timed("profiles.active limit=5", self.client.profiles_active(PageRequest::first(5))).await?;
        println!("{}", profiles(page.items.iter().map(|item| (String::new(), item))));
        let mut expected: Vec<i64> =
            self.model.visible().map(|member| member.activity).filter(|activity| *activity > 0).collect();
        expected.sort_unstable_by(|a, b| b.cmp(a));
        expected.truncate(5);
        let activities: Vec<i64> = page.items.iter().map(|item| item.activity.get()).collect();
        self.report.equal("profiles.active: the highest activities", activities, expected);
        self.rows("profiles.active", &page.items);
        Ok(())
    }

    async fn search(&mut self, query: &str, limit: u32) -> Result<()> {
        let request = SearchRequest { query: query.to_owned(), limit: Some(limit.into()) };
        let question = format!("profiles.search query={query:?} limit={limit}");
        let page = timed(&question, self.client.profiles_search(request)).await?;
        println!("{}", profiles(page.items.iter().map(|item| (String::new(), item))));
        let mut expected: Vec<Match> =
            self.model.visible().filter_map(|member| Match::find(query, member.nym.key().as_str())).collect();
        expected.sort_unstable();
        expected.truncate(usize::try_from(limit)?);
        let found: Vec<Match> =
            page.items.iter().filter_map(|item| Match::find(query, item.nym.key().as_str())).collect();
        let ids: BTreeSet<ProfileId> = page.items.iter().map(|item| item.profile_id).collect();
        self.report.equal(format!("profiles.search {query:?}: the best matches first"), found, expected);
        self.report.equal(format!("profiles.search {query:?}: nobody twice"), ids.len(), page.items.len());
        self.rows(&format!("profiles.search {query:?}"), &page.items);
        Ok(())
    }

    async fn badges(&mut self) -> Result<()> {
        let most = self.model.badge_counts().first().copied().unwrap_or(0);
        let holder = self.by_user(|member| member.badges.len() == most).await?;
        let profile_id = holder.profile.profile_id;
        let request = BadgesRequest { profile_id, page: PageRequest::first(10) };
        let question = format!("profiles.badges profile_id={profile_id} limit=10");
        let page = timed(&question, self.client.profiles_badges(request)).await?;
        println!(
            "{}",
            table(
                ["kind", "awarded", "by", "reason"],
                page.items.iter().map(|badge| [
                    badge.kind.to_string(),
                    badge.awarded_at.date().to_string(),
                    or_dash(badge.awarded_by.as_ref()),
                    or_dash(badge.reason.as_ref()),
                ])
            )
        );
        let member = self.member(&holder.profile)?;
        let mut expected: Vec<(OffsetDateTime, String)> =
            member.badges.iter().map(|(kind, at)| (*at, (*kind).to_owned())).collect();
        expected.sort_unstable_by(|a, b| b.cmp(a));
        let held: Vec<(OffsetDateTime, String)> =
            page.items.iter().map(|badge| (badge.awarded_at, badge.kind.to_string())).collect();
        self.report.equal("profiles.badges: what is held, newest first", held, expected);
        Ok(())
    }

    async fn leaderboard(&mut self) -> Result<()> {
        let request = PageRequest::first(10);
        let page = timed("badges.leaderboard limit=10", self.client.badges_leaderboard(request)).await?;
        println!("{}", profiles(page.items.iter().map(|item| (item.badge_rank.to_string(), &item.profile))));
        let mut expected: Vec<(usize, OffsetDateTime)> =
            self.model.visible().map(|member| (member.badges.len(), member.joined_at)).collect();
        expected.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        expected.truncate(10);
        let ranks: Vec<Rank> = expected.iter().map(|(badges, _)| self.model.badge_rank(*badges)).collect();
        let got: Vec<(usize, OffsetDateTime)> = page
            .items
            .iter()
            .map(|item| (usize::try_from(item.profile.badge_count).unwrap_or(0), item.profile.joined_at))
            .collect();
        self.report.equal("badges.leaderboard: most badges, then earliest joined", got, expected);
        let got: Vec<Rank> = page.items.iter().map(|item| item.badge_rank).collect();
        self.report.equal("badges.leaderboard: ranks by badges", got, ranks);
        self.rows("badges.leaderboard", page.items.iter().map(|item| &item.profile));
        Ok(())
    }

    async fn kinds(&mut self) -> Result<()> {
        let page = timed("badges.kinds", self.client.badges_kinds(PageRequest::default())).await?;
        println!(
            "{}",
            table(
                ["kind", "holders", "first awarded"],
                page.items.iter().map(|kind| [
                    kind.kind.to_string(),
                    kind.holders.to_string(),
                    kind.first_awarded_at.date().to_string(),
                ])
            )
        );
        let wrong: Vec<String> = page
            .items
            .iter()
            .filter(|kind| {
                self.model.count(|member| member.badges.contains_key(kind.kind.as_str())) != kind.holders
            })
            .map(|kind| format!("{} has {} holders", kind.kind, kind.holders))
            .collect();
        self.report.note("badges.kinds: holders of each", (!wrong.is_empty()).then(|| wrong.join(", ")));
        let named: BTreeSet<&str> = page.items.iter().map(|kind| kind.kind.as_str()).collect();
        let held: BTreeSet<&str> =
            self.model.visible().flat_map(|member| member.badges.keys().copied()).collect();
        self.report.holds("badges.kinds: every kind that is held", held.is_subset(&named), &named);
        Ok(())
    }

    async fn progression(&mut self) -> Result<()> {
        let request = PageRequest::first(10);
        let page = timed("tiers.progression limit=10", self.client.tiers_progression(request)).await?;
        println!(
            "{}",
            table(
                ["nym", "conviction", "tier", "next tier", "distance"],
                page.items.iter().map(|item| [
                    item.profile.nym.to_string(),
                    item.profile.conviction.to_string(),
                    or_dash(item.profile.tier.as_ref()),
                    item.next_tier.to_string(),
                    item.distance.to_string(),
                ])
            )
        );
        let next = |score: Conviction| {
            self.model.policy.next_score_tier(score).map(|tier| (tier.from.above(score), tier.tier.clone()))
        };
        let mut expected: Vec<i64> = self
            .model
            .scores()
            .iter()
            .filter_map(|score| next(*score).map(|(distance, _)| distance))
            .collect();
        expected.sort_unstable();
        expected.truncate(10);
        let got: Vec<i64> = page.items.iter().map(|item| item.distance).collect();
        let right = page
            .items
            .iter()
            .all(|item| next(item.profile.conviction) == Some((item.distance, item.next_tier.clone())));
        self.report.equal("tiers.progression: the closest of the whole community", got, expected);
        self.report.holds("tiers.progression: next tiers and distances", right, &page.items);
        self.rows("tiers.progression", page.items.iter().map(|item| &item.profile));
        Ok(())
    }

    async fn changes(&mut self) -> Result<()> {
        let page = timed("tiers.changes limit=5", self.client.tiers_changes(PageRequest::first(5))).await?;
        println!("{}", super::promises::changes(&page.items));
        let newest_first = page.items.is_sorted_by(|a, b| a.at >= b.at);
        self.report.holds("tiers.changes: newest first", newest_first, &page.items);
        let real = page.items.iter().all(|change| change.from != change.to);
        self.report.holds("tiers.changes: each is a change", real, &page.items);
        // A few members may all have come in one batch, which gives them their first tier and changes none.
        let some = !page.items.is_empty() || self.model.size() < 1000;
        self.report.holds("tiers.changes: members moved while the community grew", some, &page.items);
        Ok(())
    }

    async fn threshold(&mut self) -> Result<()> {
        let threshold = timed("tiers.threshold", self.client.tiers_threshold()).await?;
        println!(
            "{}",
            table(
                ["entry rank", "score", "eligible", "waiting", "gap"],
                [[
                    or_dash(threshold.entry_rank),
                    or_dash(threshold.score),
                    threshold.eligible.to_string(),
                    threshold.waiting.to_string(),
                    or_dash(threshold.gap),
                ]]
            )
        );
        let model = self.model;
        let entry_rank = model.policy.entry_rank();
        let holds = |score: &Conviction| entry_rank.is_some_and(|entry| model.rank(*score) <= entry);
        let eligible = count(model.scores().iter().filter(|score| holds(score)).count());
        let score = self.entry_score();
        let best_waiting = model.scores().iter().find(|score| !holds(score));
        let gap = score.zip(best_waiting).map(|(score, best)| score.above(*best));
        let report = &mut *self.report;
        report.equal("tiers.threshold: entry rank", threshold.entry_rank, entry_rank);
        report.equal("tiers.threshold: score", threshold.score, score);
        report.equal("tiers.threshold: eligible", threshold.eligible, eligible);
        report.equal("tiers.threshold: waiting", threshold.waiting, model.size() - eligible);
        report.equal("tiers.threshold: gap", threshold.gap, gap);
        Ok(())
    }

    async fn directory(&mut self, sort: DirectorySort, tier: Option<&str>) -> Result<()> {
        let tier = tier.map(Tier::parse).transpose()?;
        let mut members: Vec<&Member> = self
            .model
            .visible()
            .filter(|member| tier.is_none() || self.model.tier(member.conviction) == tier.as_ref())
            .collect();
        let total = count(members.len());
        // The second page by its number, where there is one.
        let number: u32 = if total > 10 { 2 } else { 1 };
        let request = DirectoryRequest {
            tier: tier.clone(),
            sort: Some(sort),
            limit: Some(10),
            page: Some(number),
            ..DirectoryRequest::default()
        };
        let name = format!("directory.list sort={sort}");
        let question = format!("{name} tier={} limit=10 page={number}", or_dash(tier.as_ref()));
        let page = timed(&question, self.client.directory_list(request)).await?;
        let rows = page.items.iter().map(|item| (item.tenure.as_str().to_owned(), &item.profile));
        println!("page {number} of {}, {} members\n{}", page.total_pages, page.total, profiles(rows));
        self.report.equal(format!("{name}: total"), page.total, total);
        self.report.equal(format!("{name}: total_pages"), page.total_pages, total.div_ceil(10));
        let key = |member: &Member| match sort.default_direction() {
            Direction::Asc => member.nym.key().as_str().to_owned(),
            Direction::Desc if sort == DirectorySort::Tenure => member.joined_at.to_string(),
            Direction::Desc => member.badges.len().to_string(),
        };
        match sort {
            DirectorySort::Nym => members.sort_by_cached_key(|member| member.nym.key()),
            DirectorySort::Tenure => members.sort_by_key(|member| member.joined_at),
            DirectorySort::Badges => members.sort_by_key(|member| std::cmp::Reverse(member.badges.len())),
        }
        let skipped = usize::try_from((number - 1) * 10)?;
        let expected: Vec<String> = members.iter().skip(skipped).take(10).map(|member| key(member)).collect();
        let got = page.items.iter().filter_map(|item| self.model.members.get(item.profile.user_id.as_str()));
        let got: Vec<String> = got.map(key).collect();
        self.report.equal(format!("{name}: the right members in order"), got, expected);
        let now = OffsetDateTime::now_utc();
        let tenures = TenurePolicy::default();
        let right = page.items.iter().all(|item| item.tenure == tenures.tenure(item.profile.joined_at, now));
        self.report.holds(format!("{name}: tenures"), right, &page.items);
        self.rows(&name, page.items.iter().map(|item| &item.profile));
        Ok(())
    }

    /// The lowest score that has the entry rank, when there are enough members.
    fn entry_score(&self) -> Option<Conviction> {
        let entry = usize::try_from(self.model.policy.entry_rank()?.get()).ok()?;
        self.model.scores().get(entry.checked_sub(1)?).copied()
    }

    fn member(&self, profile: &Profile) -> Result<&Member> {
        let member = self.model.members.get(profile.user_id.as_str());
        member.with_context(|| format!("{} was never published", profile.user_id))
    }

    /// Notes whether each of an answer's profiles is as it was published.
    fn rows<'p>(&mut self, endpoint: &str, profiles: impl IntoIterator<Item = &'p Profile>) {
        let wrong = profiles.into_iter().find_map(|profile| self.difference(profile));
        self.report.note(format!("{endpoint}: each profile as published"), wrong);
    }

    fn difference(&self, profile: &Profile) -> Option<String> {
        let Some(member) = self.model.members.get(profile.user_id.as_str()) else {
            return Some(format!("{} was never published", profile.user_id));
        };
        let same = profile.nym == member.nym
            && profile.conviction == member.conviction
            && profile.activity.get() == member.activity
            && profile.tier.as_ref() == self.model.tier(member.conviction)
            && usize::try_from(profile.badge_count) == Ok(member.badges.len())
            && profile.joined_at == member.joined_at
            && profile.last_active_at == member.last_active_at
            && member.visible;
        (!same).then(|| format!("{profile:?} was published as {member:?}"))
    }
}

/// How well a nym matches, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    Exact,
    Prefix,
    WordStart,
    Inside,
}

impl Match {
    fn find(query: &str, nym: &str) -> Option<Self> {
        if nym == query {
            return Some(Self::Exact);
        }
        let starts_word = |before: &str| !before.ends_with(char::is_alphanumeric);
        nym.match_indices(query)
            .map(|(at, _)| match nym.get(..at).unwrap_or_default() {
                "" => Self::Prefix,
                before if starts_word(before) => Self::WordStart,
                _ => Self::Inside,
            })
            .min()
    }
}

fn profiles<'p>(rows: impl Iterator<Item = (String, &'p Profile)>) -> Table {
    table(
        ["", "nym", "conviction", "tier", "activity", "badges", "joined"],
        rows.map(|(first, profile)| {
            [
                first,
                profile.nym.to_string(),
                profile.conviction.to_string(),
                or_dash(profile.tier.as_ref()),
                profile.activity.get().to_string(),
                profile.badge_count.to_string(),
                profile.joined_at.date().to_string(),
            ]
        }),
    )
}
