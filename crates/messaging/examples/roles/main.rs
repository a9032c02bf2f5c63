//! A bot that gives roles by tier. It follows the changes of one community and prints what it would ask of the chat platform.
//!
//! What it knows is in a file: it is written before a change is acknowledged, so a bot that is killed goes on where it was and
//! asks for nothing less, at most once more. Without the file, after a gap in the numbers, or when changes were lost, it reads
//! the community's lists and goes on from there. README.md says how to run it.
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

use muster_messaging::api::{Rows, directory};
use muster_messaging::changes::follower::FollowError;
use muster_messaging::changes::wire::DecodeError;
use muster_messaging::domain::{
    Change, ChangeData, Changed, DirectorySort, Disappearance, GuildId, Tier, UserId,
};
use muster_messaging::{Client, CommunityClient};

use memory::Memory;

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
            bot.catch_up().await?;
        }
        let gone = loop {
            match changes.next().await {
                Ok(delivered) => {
                    if delivered.deliveries > 1 {
                        eprintln!(
                            "change {} comes again, delivery {}",
                            delivered.change.number, delivered.deliveries
                        );
                    }
                    bot.take(&delivered.change).await?;
                    // If this does not reach the broker, the change comes again and has no effect then.
                    if let Err(error) = delivered.ack().await {
                        eprintln!("{error}");
                    }
                }
                Err(FollowError::Unreadable(unreadable)) => {
                    // A type of a later version says nothing of tiers. Anything else is seen as a gap by the next change.
                    if let DecodeError::Type { number, .. } = unreadable.cause()
                        && bot.memory.is_next(*number)
                    {
                        bot.memory.passed(*number)?;
                    }
                    unreadable.skip().await?;
                }
                Err(FollowError::NotAcknowledged(_)) => {}
                Err(error) => break error,
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
        if self.memory.last().is_some_and(|last| change.number <= last) {
            return Ok(());
        }
        let Changed::Member { user, data, .. } = &change.what else {
            eprintln!("changes were lost before {}", change.number);
            return self.catch_up().await;
        };
        if !self.memory.is_next(change.number) {
            eprintln!("changes are missing before {}", change.number);
            return self.catch_up().await;
        }
        match data {
            ChangeData::TierPromoted { to: tier, .. }
            | ChangeData::TierDemoted { to: tier, .. }
            | ChangeData::Appeared { tier } => self.put(change.number, user, tier.as_ref())?,
            ChangeData::Disappeared(why) => {
                self.put(change.number, user, None)?;
                if *why == Disappearance::Erased {
                    self.memory.forget()?;
                    writeln!(stdout(), "forget {user}")?;
                }
            }
            ChangeData::BadgeAwarded(_) | ChangeData::BadgeRevoked(_) | ChangeData::Renamed { .. } => {
                self.memory.passed(change.number)?;
            }
        }
        Ok(())
    }

    /// Asks the platform for one member's role, and then notes that it has.
    fn put(&mut self, number: u64, user: &UserId, tier: Option<&Tier>) -> Result<(), Failure> {
        ask_platform(user, self.memory.role(user), tier)?;
        Ok(self.memory.put(number, user, tier)?)
    }

    /// Reads the tiers of all members and puts the roles in step with them.
    async fn catch_up(&mut self) -> Result<(), Failure> {
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
            let page = self.community.ask(&list).await?;
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
        Ok(self.memory.replace(number, roles)?)
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
