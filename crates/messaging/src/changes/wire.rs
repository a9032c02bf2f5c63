//! Changes as JSON.

use muster_domain::{
    BadgeId, BadgeKind, Change, ChangeData, ChangeId, ChangeType, Changed, ChangedBadge, CommunityId,
    Disappearance, GuildId, Nym, ProfileId, Reason, Tier, UserId,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use time::{OffsetDateTime, UtcOffset};

/// Writes a change.
///
/// # Errors
/// A date that has no RFC 3339 form, which none of a four-digit year lacks.
pub fn encode(change: &Change) -> Result<Vec<u8>, serde_json::Error> {
    let (member, data) = match &change.what {
        Changed::Member { profile, user, data } => (Some((*profile, user.clone())), Data::of(data)),
        Changed::Lost { count } => (None, Data { count: Some(*count), ..Data::default() }),
    };
    let (profile_id, user_id) = member.unzip();
    serde_json::to_vec(&Envelope {
        change_id: change.id,
        number: change.number,
        change_type: change.change_type().as_str().to_owned(),
        at: change.at.to_offset(UtcOffset::UTC),
        community_id: change.community,
        guild_id: change.guild.clone(),
        profile_id,
        user_id,
        data: data.json(change.change_type())?,
    })
}

/// Reads a change. Fields that are not known are ignored.
///
/// # Errors
/// [`DecodeError`] says what is wrong with it.
pub fn decode(payload: &[u8]) -> Result<Change, DecodeError> {
    let envelope: Envelope = serde_json::from_slice(payload)?;
    let change_type = ChangeType::of(&envelope.change_type).ok_or_else(|| DecodeError::Type {
        number: envelope.number,
        change_type: envelope.change_type.clone(),
    })?;
    let data: Data = serde_json::from_str(envelope.data.get())?;
    let what = match change_type {
        ChangeType::Lost => Changed::Lost { count: data.count.ok_or(DecodeError::Missing("data.count"))? },
        _ => Changed::Member {
            profile: envelope.profile_id.ok_or(DecodeError::Missing("profile_id"))?,
            user: envelope.user_id.ok_or(DecodeError::Missing("user_id"))?,
            data: data.member(change_type)?,
        },
    };
    Ok(Change {
        id: envelope.change_id,
        number: envelope.number,
        at: envelope.at,
        community: envelope.community_id,
        guild: envelope.guild_id,
        what,
        traceparent: None,
    })
}

/// The fields of `data` in changes of this type, for documentation.
#[must_use]
pub const fn fields(change_type: ChangeType) -> &'static [&'static str] {
    match change_type {
        ChangeType::TierPromoted | ChangeType::TierDemoted | ChangeType::MemberRenamed => &["from", "to"],
        ChangeType::BadgeAwarded | ChangeType::BadgeRevoked => &["badge_id", "kind", "reason"],
        ChangeType::MemberAppeared => &["tier"],
        ChangeType::MemberDisappeared => &["why"],
        ChangeType::Lost => &["count"],
    }
}

/// Why a message is no change that is known here.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It is not JSON of the documented form.
    #[error(
        "the change is not of the documented form: check that worker and client are of one major version"
    )]
    Json(#[from] serde_json::Error),
    /// A field is not there, or is not of its form.
    #[error("the change has no valid {0}")]
    Missing(&'static str),
    /// A type of a later version.
    #[error(
        "the type {change_type:?} of change {number} is not known to this version: acknowledge it to go on, or upgrade"
    )]
    Type {
        /// The change's number.
        number: u64,
        /// Its type.
        change_type: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    change_id: ChangeId,
    number: u64,
    #[serde(rename = "type")]
    change_type: String,
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    community_id: CommunityId,
    guild_id: Option<GuildId>,
    profile_id: Option<ProfileId>,
    user_id: Option<UserId>,
    data: Box<RawValue>,
}

/// The fields of every type's data. Each type writes its own, null ones too.
#[derive(Default, Serialize, Deserialize)]
struct Data {
    from: Option<String>,
    to: Option<String>,
    tier: Option<Tier>,
    why: Option<String>,
    badge_id: Option<BadgeId>,
    kind: Option<BadgeKind>,
    reason: Option<Reason>,
    count: Option<u64>,
}

impl Data {
    fn of(data: &ChangeData) -> Self {
        let nothing = Self::default();
        let tier = |tier: &Option<Tier>| tier.clone().map(String::from);
        match data {
            ChangeData::TierPromoted { from, to } | ChangeData::TierDemoted { from, to } => {
                Self { from: tier(from), to: tier(to), ..nothing }
            }
            ChangeData::BadgeAwarded(badge) | ChangeData::BadgeRevoked(badge) => Self {
                badge_id: Some(badge.badge_id),
                kind: Some(badge.kind.clone()),
                reason: badge.reason.clone(),
                ..nothing
            },
            ChangeData::Appeared { tier } => Self { tier: tier.clone(), ..nothing },
            ChangeData::Disappeared(why) => Self { why: Some(why.as_str().to_owned()), ..nothing },
            ChangeData::Renamed { from, to } => {
                Self { from: Some(from.clone().into()), to: Some(to.clone().into()), ..nothing }
            }
        }
    }

    /// The fields that changes of this type have.
    fn json(&self, change_type: ChangeType) -> Result<Box<RawValue>, serde_json::Error> {
        let mut all = serde_json::to_value(self)?;
        let fields = fields(change_type).iter();
        let own: Map<String, Value> = fields
            .map(|field| ((*field).to_owned(), all.get_mut(field).map_or(Value::Null, Value::take)))
            .collect();
        serde_json::value::to_raw_value(&own)
    }

    fn member(self, change_type: ChangeType) -> Result<ChangeData, DecodeError> {
        let tier = |name: Option<String>, field| {
            name.map(Tier::parse).transpose().map_err(|_| DecodeError::Missing(field))
        };
        let nym = |name: Option<String>, field| {
            let name = name.ok_or(DecodeError::Missing(field))?;
            Nym::parse(name).map_err(|_| DecodeError::Missing(field))
        };
        Ok(match change_type {
            ChangeType::TierPromoted => ChangeData::TierPromoted {
                from: tier(self.from, "data.from")?,
                to: tier(self.to, "data.to")?,
            },
            ChangeType::TierDemoted => {
                ChangeData::TierDemoted { from: tier(self.from, "data.from")?, to: tier(self.to, "data.to")? }
            }
            ChangeType::BadgeAwarded => ChangeData::BadgeAwarded(self.badge()?),
            ChangeType::BadgeRevoked => ChangeData::BadgeRevoked(self.badge()?),
            ChangeType::MemberRenamed => {
                ChangeData::Renamed { from: nym(self.from, "data.from")?, to: nym(self.to, "data.to")? }
            }
            ChangeType::MemberDisappeared => ChangeData::Disappeared(
                self.why.as_deref().and_then(Disappearance::of).ok_or(DecodeError::Missing("data.why"))?,
            ),
            ChangeType::MemberAppeared => ChangeData::Appeared { tier: self.tier },
            // It is of no member.
            ChangeType::Lost => return Err(DecodeError::Missing("profile_id")),
        })
    }

    fn badge(self) -> Result<ChangedBadge, DecodeError> {
        Ok(ChangedBadge {
            badge_id: self.badge_id.ok_or(DecodeError::Missing("data.badge_id"))?,
            kind: self.kind.ok_or(DecodeError::Missing("data.kind"))?,
            reason: self.reason,
        })
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;

    fn change(what: Changed) -> Change {
        Change {
            id: ChangeId::new(Uuid::from_u128(1)),
            number: 42,
            at: datetime!(2026-11-25 12:00:00.123456 UTC),
            community: CommunityId::new(Uuid::from_u128(2)),
            guild: GuildId::parse("810").ok(),
            what,
            traceparent: None,
        }
    }

    fn of(data: ChangeData) -> Change {
        let (profile, user) = (ProfileId::new(Uuid::from_u128(3)), UserId::parse("7").unwrap());
        change(Changed::Member { profile, user, data })
    }

    #[test]
    fn changes_are_written_as_documented() {
        let (tier, nym) = (|name: &str| Tier::parse(name).ok(), |name: &str| Nym::parse(name).unwrap());
        let badge = |reason: Option<&str>| ChangedBadge {
            badge_id: BadgeId::new(Uuid::from_u128(4)),
            kind: BadgeKind::parse("rider").unwrap(),
            reason: reason.map(|reason| Reason::parse(reason).unwrap()),
        };
        let id = "00000000-0000-0000-0000-00000000000";
        let cases = [
            (
                of(ChangeData::TierPromoted { from: None, to: tier("naib") }),
                "tier.promoted",
                r#"{"from":null,"to":"naib"}"#.to_owned(),
            ),
            (
                of(ChangeData::TierDemoted { from: tier("naib"), to: None }),
                "tier.demoted",
                r#"{"from":"naib","to":null}"#.to_owned(),
            ),
            (
                of(ChangeData::BadgeAwarded(badge(Some("sand")))),
                "badge.awarded",
                format!(r#"{{"badge_id":"{id}4","kind":"rider","reason":"sand"}}"#),
            ),
            (
                of(ChangeData::BadgeRevoked(badge(None))),
                "badge.revoked",
                format!(r#"{{"badge_id":"{id}4","kind":"rider","reason":null}}"#),
            ),
            (of(ChangeData::Appeared { tier: None }), "member.appeared", r#"{"tier":null}"#.to_owned()),
            (
                of(ChangeData::Disappeared(Disappearance::Erased)),
                "member.disappeared",
                r#"{"why":"erased"}"#.to_owned(),
            ),
            (
                of(ChangeData::Renamed { from: nym("Usul"), to: nym("Muad'Dib") }),
                "member.renamed",
                r#"{"from":"Usul","to":"Muad'Dib"}"#.to_owned(),
            ),
            (change(Changed::Lost { count: 100_001 }), "changes.lost", r#"{"count":100001}"#.to_owned()),
        ];
        for (change, name, data) in cases {
            let member = match change.what {
                Changed::Member { .. } => format!(r#""profile_id":"{id}3","user_id":"7""#),
                Changed::Lost { .. } => r#""profile_id":null,"user_id":null"#.to_owned(),
            };
            let wanted = format!(
                r#"{{"change_id":"{id}1","number":42,"type":"{name}","at":"2026-11-25T12:00:00.123456Z","community_id":"{id}2","guild_id":"810",{member},"data":{data}}}"#
            );
            let json = String::from_utf8(encode(&change).unwrap()).unwrap();
            let value = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
            assert_eq!(value(&json), value(&wanted));
            let fields = value(&json)["data"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            assert_eq!(super::fields(change.change_type()), fields);
            assert_eq!(decode(json.as_bytes()).unwrap(), change);
        }
    }

    #[test]
    fn a_type_of_a_later_version_is_called_by_its_name() {
        let json = String::from_utf8(encode(&change(Changed::Lost { count: 1 })).unwrap()).unwrap();
        let later = json.replace("changes.lost", "season.ended");
        let error = decode(later.as_bytes()).unwrap_err();
        assert!(
            matches!(error, DecodeError::Type { number: 42, .. })
                && error.to_string().contains("season.ended")
        );
        assert!(matches!(decode(b"{}"), Err(DecodeError::Json(_))));
        let nobody = json.replace("changes.lost", "member.appeared");
        assert!(matches!(decode(nobody.as_bytes()), Err(DecodeError::Missing("profile_id"))));
    }
}
