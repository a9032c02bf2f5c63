//! A bot that gives roles by tier. It follows the changes of one community and prints what it would ask of the chat platform.
//!
//! What it knows is in a file: it is written before a change is acknowledged, so a bot that is killed goes on where it was and
//! asks for nothing less, at most once more. Without the file, after a gap in the numbers, when they began anew, or when changes
//! were lost, it reads the community's lists and goes on from there. README.md says how to run it.
#![expect(
    clippy::print_stderr,
    reason = "what it asks of the platform is on standard output, all else is not"
)]

#[path = "../environment/mod.rs"]
mod environment;
mod memory;

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{Write, stdout};
use std::time::Duration;

use muster_messaging::api::{ErrorCode, Rows, directory};
use muster_messaging::changes::follower::FollowError;
use muster_messaging::changes::wire::DecodeError;
use muster_messaging::domain::{
    Change, ChangeData, Changed, DirectorySort, Disappearance, GuildId, Tier, UserId,
};
use muster_messaging::{Client, ClientError, CommunityClient};

use memory::{Last, Memory};
use tokio::time::sleep;

type Failure = Box<dyn Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let (client, found) = environment::connect("roles").await?;
    let guild = GuildId::parse(environment::variable("GUILD").unwrap_or_default())?;
    let durable = environment::variable("DURABLE").unwrap_or_else(|| "reader-changes".to_owned());
    let file = environment::variable("ROLES_FILE").unwrap_or_else(|| "roles.jsonl".to_owned());
    let community = client.community(found.community_id);
    let mut bot = Bot { client, community, guild, memory: Memory::open(file)? };
    loop {
        let mut changes = bot.community.changes(&durable).await?;
        if bot.memory.last().is_none() {
            bot.catch_up(None).await?;
        }
        let gone = loop {
            let acknowledged = match changes.next().await {
                Ok(delivered) => {
                    if delivered.deliveries > 1 {
                        eprintln!(
                            "change {} comes again, delivery {}",
                            delivered.change.number, delivered.deliveries
                        );
                    }
                    bot.take(&delivered.change).await?;
                    delivered.ack().await
                }
                Err(FollowError::Unreadable(unreadable)) => {
                    // A type of a later version says nothing of tiers. Anything else is seen as a gap by the next change.
                    if let DecodeError::Type { number, .. } = unreadable.cause()
                        && let Some(last) = bot.memory.last()
                        && bot.memory.is_next(*number)
                    {
                        bot.memory.passed(Last { number: *number, ..last })?;
                    }
                    unreadable.skip().await
                }
                Err(FollowError::Link(error)) => return Err(error.into()),
                Err(error) => break error,
            };
            // If this does not reach the broker, the change comes again and has no effect then.
            if let Err(error) = acknowledged {
                eprintln!("{error}");
            }
        };
        // Whoever deleted the consumer may have made another one, which begins elsewhere: the numbers say where.
        eprintln!("{gone}");
    }
}

struct Bot {
    client: Client,
    community: CommunityClient,
    guild: GuildId,
    memory: Memory,
}

impl Bot {
    /// Gives a change its effect.
    async fn take(&mut self, change: &Change) -> Result<(), Failure> {
        let this = Last { number: change.number, at: Some(change.at) };
        if let Some(last) = self.memory.last()
            && this.number <= last.number
        {
            if last.at.is_some() && this.at > last.at {
                eprintln!("change {} is later than {}: numbers began anew", this.number, last.number);
                return self.catch_up(Some(this)).await;
            }
            if this.number == last.number && last.at.is_none() {
                self.memory.passed(this)?;
            }
            return Ok(());
        }
        let Changed::Member { user, data, .. } = &change.what else {
            eprintln!("changes were lost before {}", change.number);
            return self.catch_up(Some(this)).await;
        };
        if !self.memory.is_next(change.number) {
            eprintln!("changes are missing before {}", change.number);
            return self.catch_up(Some(this)).await;
        }
        match data {
            ChangeData::TierPromoted { to: tier, .. }
            | ChangeData::TierDemoted { to: tier, .. }
            | ChangeData::Appeared { tier } => self.put(this, user, tier.as_ref())?,
            ChangeData::Disappeared(why) => {
                ask_platform(user, self.memory.role(user), None)?;
                // All is asked for before it is noted that it was.
                if *why == Disappearance::Erased {
                    writeln!(stdout(), "forget {user}")?;
                }
                self.memory.put(this, user, None)?;
                if *why == Disappearance::Erased {
                    self.memory.forget()?;
                }
            }
            ChangeData::BadgeAwarded(_) | ChangeData::BadgeRevoked(_) | ChangeData::Renamed { .. } => {
                self.memory.passed(this)?;
            }
        }
        Ok(())
    }

    /// Asks the platform for one member's role, and then notes that it has.
    fn put(&mut self, last: Last, user: &UserId, tier: Option<&Tier>) -> Result<(), Failure> {
        ask_platform(user, self.memory.role(user), tier)?;
        Ok(self.memory.put(last, user, tier)?)
    }

    /// Reads the tiers of all members and puts the roles in step with them, because of this change if it is any.
    async fn catch_up(&mut self, because: Option<Last>) -> Result<(), Failure> {
        // First the number: what changes while the list is read has a higher one, and comes behind it.
        let number = self.client.find_community(self.guild.clone()).await?.changes;
        eprintln!("reading the list of members as of change {number}");
        // In the order in which they joined, which does not change: by a name or a score, a member could move from a page that
        // is still to come to one that was read, and be missed.
        let mut list = directory::List {
            sort: Some(DirectorySort::Tenure),
            limit: Rows::of(1000),
            ..directory::List::default()
        };
        let mut roles = BTreeMap::new();
        loop {
            let page = match self.community.ask(&list).await {
                Ok(page) => page,
                // What was read is kept: a list that others are asking for as well is read more slowly, and not anew.
                Err(ClientError::Service {
                    code: ErrorCode::RateLimited | ErrorCode::Unavailable,
                    retry_after,
                    ..
                }) => {
                    sleep(retry_after.unwrap_or(Duration::from_secs(1))).await;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let members = page.items.into_iter().map(|member| member.profile);
            roles.extend(members.filter_map(|member| Some((member.user_id, member.tier?))));
            match page.next {
                Some(next) => list.start = Some(directory::Start::Cursor(next)),
                None => break,
            }
        }
        for user in self.memory.users().filter(|user| !roles.contains_key(user)) {
            ask_platform(user, self.memory.role(user), None)?;
        }
        for (user, role) in &roles {
            ask_platform(user, self.memory.role(user), Some(role))?;
        }
        let at = because.filter(|change| change.number == number).and_then(|change| change.at);
        Ok(self.memory.replace(Last { number, at }, roles)?)
    }
}

/// Asks the chat platform for what makes `old` into `new`. Asking twice is asking once.
fn ask_platform(user: &UserId, old: Option<&Tier>, new: Option<&Tier>) -> Result<(), std::io::Error> {
    if old == new {
        return Ok(());
    }
    let mut platform = stdout().lock();
    if let Some(old) = old {
        writeln!(platform, "take from {user} the role {old}")?;
    }
    if let Some(new) = new {
        writeln!(platform, "give {user} the role {new}")?;
    }
    Ok(())
}
