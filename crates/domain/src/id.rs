use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::text::{text_type, visible_ascii};

macro_rules! uuid_type {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps an id that is already known.
            #[must_use]
            pub const fn new(id: Uuid) -> Self {
                Self(id)
            }

            /// The bare UUID.
            #[must_use]
            pub const fn get(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

uuid_type!(
    /// A community's id: the tenant of every row.
    CommunityId
);
uuid_type!(
    /// A profile's id, unique within its community.
    ProfileId
);
uuid_type!(
    /// One award's id: that of the event or request that made it.
    BadgeId
);
uuid_type!(
    /// A change's id, under which it is published however often.
    ChangeId
);
uuid_type!(
    /// An event's id: an event has one effect, however often its id arrives.
    EventId
);

text_type!(
    /// A chat server's id on its platform: 1 to 64 visible ASCII characters.
    GuildId, 64, visible_ascii
);
text_type!(
    /// A person's id on the chat platform: 1 to 64 visible ASCII characters.
    UserId, 64, visible_ascii
);
text_type!(
    /// A wallet's address: 1 to 128 visible ASCII characters, compared as they stand.
    Wallet, 128, visible_ascii
);
