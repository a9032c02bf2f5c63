//! What a sibling service does with Muster. It names no other crate, which `dependencies.rs` checks.

use muster_messaging::{
    Client, ClientError, Connection, Credentials, MinimumVersion, NatsConfig, SecretString, TlsFiles,
    Transport,
    api::{Caller, ErrorCode, Rows, admin, directory, profiles},
    domain::{BadgeKind, DirectorySort, Environment, GuildId, ProfileId, Reason, Tier, TlsPolicy},
};

/// Connects as production does, by an NKey.
pub async fn connect(seed: &SecretString) -> Result<Client, Box<dyn std::error::Error>> {
    let files = TlsFiles { ca: Some("/etc/muster/ca.pem".into()), ..TlsFiles::default() };
    let config = NatsConfig::production(["tls://nats.example:4222"], &files, "my-service")?;
    Ok(Client::connect(NatsConfig { credentials: Credentials::nkey(seed)?, ..config }).await?)
}

/// Connects on a developer's machine, where plaintext is allowed.
pub async fn connect_in_development() -> Result<Connection, Box<dyn std::error::Error>> {
    let policy = TlsPolicy::new(Environment::Development, false);
    let transport = Transport::new(["localhost:4222"], policy, &TlsFiles::default(), MinimumVersion::Tls13)?;
    Ok(Connection::open(NatsConfig::new(transport, "my-service")).await?)
}

/// The best ten with their ranks, and who stands around a person, if they are a member.
pub async fn board(client: &Client, guild: GuildId, me: ProfileId) -> Result<Vec<String>, ClientError> {
    let community = client.community(client.find_community(guild).await?.community_id);
    let page = community.ask(&profiles::Ranked::first(10)).await?;
    let mut lines: Vec<String> =
        page.items.iter().map(|member| format!("{} {}", member.rank, member.profile.nym)).collect();
    match community.ask(&profiles::Around { profile_id: me, limit: Rows::default() }).await {
        Ok(around) => lines.extend(around.items.iter().map(|member| member.profile.nym.to_string())),
        Err(error) if error.code() == Some(ErrorCode::NotFound) => {}
        Err(error) => return Err(error),
    }
    Ok(lines)
}

/// How many members one tier has.
pub async fn members_of(client: &Client, guild: GuildId, tier: Tier) -> Result<u64, ClientError> {
    let community = client.community(client.find_community(guild).await?.community_id);
    let list =
        directory::List { tier: Some(tier), sort: Some(DirectorySort::Badges), ..directory::List::default() };
    Ok(community.ask(&list).await?.total)
}

/// Awards a badge on an operator's behalf.
pub async fn award(
    client: Client,
    guild: GuildId,
    to: ProfileId,
    operator: Caller,
) -> Result<(), Box<dyn std::error::Error>> {
    let community = client.find_community(guild).await?.community_id;
    let award = admin::AwardBadge {
        profile_id: to,
        kind: BadgeKind::parse("first_blood")?,
        reason: Some(Reason::parse("for the first duel")?),
        awarded_by: None,
    };
    client.on_behalf_of(operator).community(community).ask(&award).await?;
    Ok(())
}
