//! A seeded mix of events on a loaded community, as the gateway publishes them.

use serde_json::{Value, json};
use uuid::Uuid;

/// What is published, in hundredths.
pub(super) const MIX: [(&str, u64); 7] = [
    ("activity.add", 50),
    ("score.set", 20),
    ("member.update", 10),
    ("badge.award", 8),
    ("badge.revoke", 4),
    ("member.join", 4),
    ("member.leave", 4),
];

/// The mix in words.
pub(super) fn description() -> String {
    MIX.map(|(event_type, share)| format!("{event_type} {share} %")).join(", ")
}

/// How members are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Draw {
    /// By the cube of a uniform number: a fifth of the members get three fifths of the events, as in a real community.
    Skewed,
    /// Each as likely as any other: the worst for every cache.
    Uniform,
}

impl Draw {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Skewed => "skewed",
            Self::Uniform => "uniform",
        }
    }
}

/// A small generator of numbers that look random (splitmix64).
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// From 0 up to 1.
    pub(super) fn share(&mut self) -> f64 {
        f64::from(u32::try_from(self.next() >> 32).unwrap_or(0)) / f64::from(u32::MAX)
    }
}

/// One event, ready to be published.
pub(super) struct Ready {
    pub(super) subject: String,
    pub(super) payload: Vec<u8>,
}

/// Makes events without end.
pub(super) struct Mix {
    numbers: Numbers,
    draw: Draw,
    guild: String,
    members: u64,
    /// When the next event happens, in milliseconds since 1970; there are ten events a millisecond.
    tenths: i64,
    joined: u64,
}

/// The chat platform's id of the loaded member of this number, from 1.
pub(super) fn user(number: u64) -> String {
    (100_000_000_000_000_000 + number * 7919).to_string()
}

impl Mix {
    /// Events of this community from `since` on, in milliseconds since 1970.
    pub(super) fn new(seed: u64, draw: Draw, guild: &str, members: u64, since: i64) -> Self {
        Self {
            numbers: Numbers(seed),
            draw,
            guild: guild.to_owned(),
            members,
            tenths: since.saturating_mul(10),
            joined: seed << 32,
        }
    }

    fn member(&mut self) -> u64 {
        let number = match self.draw {
            Draw::Uniform => self.numbers.below(self.members),
            Draw::Skewed => {
                let share = self.numbers.share();
                let parts = std::time::Duration::from_secs(self.members).mul_f64(share * share * share);
                parts.as_secs().min(self.members.saturating_sub(1))
            }
        };
        number + 1
    }
}

impl Iterator for Mix {
    type Item = Ready;

    fn next(&mut self) -> Option<Ready> {
        let mut drawn = self.numbers.below(100);
        let (event_type, _) = MIX.iter().find(|(_, share)| {
            let is = drawn < *share;
            drawn = drawn.saturating_sub(*share);
            is
        })?;
        let mut user_id = user(self.member());
        let numbers = &mut self.numbers;
        let data = match *event_type {
            "activity.add" => json!({"amount": 1 + numbers.below(20)}),
            "score.set" => {
                let share = numbers.share().mul_add(0.9999, 0.0001);
                let score = std::time::Duration::from_secs(40).mul_f64(share.powf(-0.8));
                json!({"conviction": score.as_secs().saturating_sub(40)})
            }
            "member.update" => {
                json!({"roles": ["3001"], "nick": format!("Sand Rider {}", numbers.below(1_000_000))})
            }
            "badge.award" | "badge.revoke" => {
                json!({"kind": format!("kind_{:02}", numbers.below(64)), "reason": "measured", "by": "naib"})
            }
            "member.join" => {
                // Every second is new; the others come back.
                if numbers.below(2) == 0 {
                    self.joined += 1;
                    user_id = format!("2{:018}", self.joined);
                }
                json!({"username": format!("newcomer{}", numbers.below(1_000_000)), "discriminator": "0"})
            }
            _ => Value::Null,
        };
        self.tenths += 1;
        let event_id = Uuid::from_u64_pair(numbers.next(), numbers.next());
        let envelope = json!({
            "event_id": event_id, "event_type": event_type, "shard_id": 0, "timestamp": self.tenths / 10,
            "guild_id": self.guild, "channel_id": null, "user_id": user_id, "data": data,
        });
        Some(Ready { subject: format!("events.{event_type}"), payload: envelope.to_string().into_bytes() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_is_the_same_every_time_and_as_it_says() {
        assert_eq!(MIX.iter().map(|(_, share)| share).sum::<u64>(), 100);
        let make = || Mix::new(7, Draw::Skewed, "1", 1000, 0).take(20_000).collect::<Vec<_>>();
        let (events, again) = (make(), make());
        assert!(events.iter().zip(&again).all(|(a, b)| a.payload == b.payload));
        for (event_type, share) in MIX {
            let subject = format!("events.{event_type}");
            let count = events.iter().filter(|event| event.subject == subject).count();
            assert!((count / 200).abs_diff(usize::try_from(share).unwrap()) <= 1, "{event_type}: {count}");
        }
    }
}
