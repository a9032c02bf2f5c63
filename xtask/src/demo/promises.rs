use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use comfy_table::Table;
use muster_domain::UserId;
use muster_messaging::client::{ClientError, CommunityClient, EventPublisher};
use muster_messaging::wire::answer::{Change, Page, Ranked};
use muster_messaging::wire::request::{GetRequest, PageRequest};
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::community::{Community, GUILD, Member, count, millis};
use super::gateway::until;
use super::questions::timed;
use super::report::{Report, or_dash, table};
use xtask::worker::{Configuration, Worker};

/// Shows what Muster promises, at work.
pub(super) struct Promises<'a> {
    pub(super) client: CommunityClient,
    pub(super) publisher: EventPublisher,
    pub(super) worker: &'a Worker,
    pub(super) model: &'a Community,
    pub(super) report: &'a mut Report,
}

impl Promises<'_> {
    /// However much is asked for, an answer holds at most 1000 rows; the rest comes page by page, each member once.
    pub(super) async fn bounded(&mut self) -> Result<()> {
        println!("\n== No answer without a bound");
        let asked = PageRequest::first(5_000_000);
        let started = Instant::now();
        let first =
            timed("profiles.ranked limit=5000000", self.client.profiles_ranked(asked.clone())).await?;
        println!("answered with {} rows; the limit applied was {}", first.items.len(), first.limit);
        self.report.equal("limit 5,000,000: what was applied", first.limit, 1000);
        let expected = self.model.size().min(1000);
        self.report.equal("limit 5,000,000: how many rows came", count(first.items.len()), expected);

        let mut seen: BTreeSet<String> = users(&first);
        let (mut rows, mut pages) = (first.items.len(), 1);
        let mut next = first.next;
        if let Some(cursor) = next.take() {
            let question = format!("profiles.ranked limit=5000000 cursor={}", abbreviated(&cursor));
            let second = timed(&question, self.client.profiles_ranked(asked.clone().after(cursor))).await?;
            let scores: Vec<_> = second.items.iter().map(|item| item.profile.conviction).collect();
            let model = self.model.scores().get(1000..).unwrap_or_default();
            let expected: Vec<_> = model.iter().take(1000).copied().collect();
            println!(
                "ranks {} to {}",
                or_dash(second.items.first().map(|item| item.rank)),
                or_dash(second.items.last().map(|item| item.rank)),
            );
            self.report.equal("second page by cursor: the next scores", scores, expected);
            (rows, pages) = (rows + second.items.len(), 2);
            seen.extend(users(&second));
            next = second.next;
        }
        while let Some(cursor) = next.take() {
            let page = self.page(asked.clone().after(cursor)).await?;
            (rows, pages) = (rows + page.items.len(), pages + 1);
            seen.extend(users(&page));
            next = page.next;
        }
        println!("\nall {rows} members in {pages} pages, {:.2} s", started.elapsed().as_secs_f64());
        let expected: BTreeSet<String> = self.model.visible().map(|member| member.user_id.clone()).collect();
        self.report.equal("walk by cursor: rows", count(rows), self.model.size());
        self.report.holds("walk by cursor: every member once", seen == expected, seen.len());
        Ok(())
    }

    /// Asks for a page, and waits as the service says where that is too often.
    async fn page(&self, request: PageRequest) -> Result<Page<Ranked>> {
        loop {
            match self.client.profiles_ranked(request.clone()).await {
                Err(ClientError::Service { retry_after: Some(pause), .. }) => tokio::time::sleep(pause).await,
                answer => return answer.context("a page was not answered"),
            }
        }
    }

    /// An event has one effect, however often it arrives. It is published three times without a message id, so that the
    /// broker does not hold the copies back.
    pub(super) async fn exactly_once(&mut self) -> Result<()> {
        println!("\n== One effect for each event");
        let member = self.model.visible().next().context("a community without members")?;
        let before = self.activity(member).await?;
        let counts = self.worker.event_counts()?;
        let id = Uuid::from_u128(0xd0_0b1e);
        for _ in 0..3 {
            self.publish(id, "activity.add", member, &json!({"amount": 1000})).await?;
        }
        let (base, base_repeated) = (counts.applied(), counts.duplicates());
        let done =
            until(self.worker, |counts| counts.applied() > base && counts.duplicates() >= base_repeated + 2)
                .await?;
        let after = self.activity(member).await?;
        let repeated = done.duplicates() - base_repeated;
        println!(
            "activity.add of 1000 with event_id {id} published 3 times: {} grew from {before} to {after}; the worker \
             counted {} applied and {repeated} repeated",
            member.nym,
            done.applied() - base,
        );
        self.report.equal("duplicate event: one effect", after - before, 1000);
        self.report.holds("duplicate event: the copies were recognised", repeated >= 2, repeated);
        Ok(())
    }

    /// A score above all others is seen at once, in rank, tier and the list of changes.
    pub(super) async fn promoted(&mut self) -> Result<()> {
        println!("\n== What an event changes is answered at once");
        let (best, lowest) =
            self.model.scores().first().zip(self.model.scores().last()).context("no members")?;
        let member =
            self.model.visible().find(|member| member.conviction == *lowest).context("no members")?;
        let counts = self.worker.event_counts()?;
        let started = Instant::now();
        let score = best.get() + 1;
        let id = Uuid::from_u128(0xbe57);
        self.publish(id, "score.set", member, &json!({"conviction": score})).await?;
        let detail = self.until_conviction(member, score).await?;
        println!(
            "score.set {score} for {}, who was last: rank {} and tier {} after {:.1} ms",
            member.nym,
            detail.rank,
            or_dash(detail.profile.tier.as_ref()),
            started.elapsed().as_secs_f64() * 1000.0
        );
        self.report.equal("promotion: rank", detail.rank.get(), 1);
        let tier = or_dash(detail.profile.tier.as_ref());
        self.report.equal("promotion: tier", tier, "naib".to_owned());
        let base = counts.applied();
        until(self.worker, |counts| counts.applied() > base).await?;
        let page = timed("tiers.changes limit=5", self.client.tiers_changes(PageRequest::first(5))).await?;
        println!("{}", changes(&page.items));
        // In a community so small that everybody held a rank tier, the last was naib already.
        let was_naib = or_dash(self.model.tier(*lowest)) == "naib";
        let recorded = page.items.iter().any(|change| {
            change.profile_id == detail.profile.profile_id && or_dash(change.to.as_ref()) == "naib"
        });
        self.report.holds("promotion: recorded among the changes", recorded || was_naib, &page.items);
        Ok(())
    }

    async fn until_conviction(
        &self,
        member: &Member,
        score: i64,
    ) -> Result<muster_messaging::wire::answer::Detail> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let detail =
                self.client.profiles_get(GetRequest::UserId(UserId::parse(&member.user_id)?)).await?;
            if detail.profile.conviction.get() == score {
                return Ok(detail);
            }
            ensure!(Instant::now() < end, "the new score of {} was not seen within 10 s", member.nym);
            // Below the community's limit of 100 a second.
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    }

    async fn activity(&self, member: &Member) -> Result<i64> {
        let request = GetRequest::UserId(UserId::parse(&member.user_id)?);
        Ok(self.client.profiles_get(request).await?.profile.activity.get())
    }

    async fn publish(&self, id: Uuid, event_type: &str, member: &Member, data: &Value) -> Result<()> {
        let envelope = json!({
            "event_id": id,
            "event_type": event_type,
            "shard_id": 0,
            "timestamp": millis(OffsetDateTime::now_utc()),
            "guild_id": GUILD,
            "channel_id": null,
            "user_id": member.user_id,
            "data": data,
        });
        let sent =
            self.publisher.publish_raw(format!("events.{event_type}"), envelope.to_string().into_bytes());
        sent.await.context("the stream did not take an event")?;
        Ok(())
    }
}

/// A list of servers with one plaintext URL in it does not start the worker.
pub(super) async fn plaintext_refused(
    configuration: &Configuration,
    tls_url: &str,
    report: &mut Report,
) -> Result<()> {
    println!("\n== No plaintext server, not even one among many");
    let plaintext = "nats://gateway:hunter2@nats-2.example:4222";
    let output =
        configuration.with("MUSTER__NATS__URLS", format!("{tls_url},{plaintext}")).run("serve").await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    println!(
        "MUSTER__NATS__URLS={tls_url},{plaintext} muster-worker serve\n{}exit code {}",
        said,
        or_dash(code)
    );
    report.equal("one plaintext URL: refused at start, exit code", code, Some(64));
    report.holds("one plaintext URL: the error names it", said.contains("nats-2.example:4222"), &said);
    report.holds("one plaintext URL: the error hides its password", !said.contains("hunter2"), &said);
    Ok(())
}

/// Tier changes as a table.
pub(super) fn changes(changes: &[Change]) -> Table {
    table(
        ["nym", "from", "to", "movement", "at"],
        changes.iter().map(|change| {
            [
                change.nym.to_string(),
                or_dash(change.from.as_ref()),
                or_dash(change.to.as_ref()),
                format!("{:?}", change.movement).to_lowercase(),
                change.at.time().to_string(),
            ]
        }),
    )
}

fn users(page: &Page<Ranked>) -> BTreeSet<String> {
    page.items.iter().map(|item| item.profile.user_id.to_string()).collect()
}

fn abbreviated(cursor: &str) -> String {
    cursor.chars().take(16).chain(['…']).collect()
}
