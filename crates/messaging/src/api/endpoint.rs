//! What an endpoint is: one type, which a client sends, the service reads, and the registry lists.

use std::fmt;

use muster_domain::{CommunityId, ProfileId};
use serde::de::DeserializeOwned;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::error::ServiceError;
use super::field::{Field, Fields};

/// What every subject of the service begins with.
pub const PREFIX: &str = "muster.v1";

/// A request to one endpoint. The type says all there is to say of it.
pub trait Endpoint: fmt::Debug + Clone + PartialEq + Serialize + Send + Sync + 'static {
    /// Its name, such as `profiles.ranked`.
    const NAME: &'static str;
    /// What it is for, in Markdown.
    const HELP: &'static str;
    /// The fields of its request.
    const FIELDS: &'static [Field];
    /// What it answers, in Markdown.
    const ANSWER: &'static str;
    /// Whether it asks within one community, whose id then stands in the subject.
    const IS_OF_COMMUNITY: bool = true;
    /// Whether the request may be sent again when its answer is lost: it has no other effect then, and answers the same.
    const IS_REPEATABLE: bool = true;
    /// Whether the answer may be some seconds behind what was written, so that a standby may give it. That is for lists that many
    /// read, and not for what a caller asks to see its own write.
    const MAY_LAG: bool = false;

    /// All of this as data.
    const DESCRIPTION: &'static Description = &Description {
        name: Self::NAME,
        is_of_community: Self::IS_OF_COMMUNITY,
        is_repeatable: Self::IS_REPEATABLE,
        may_lag: Self::MAY_LAG,
        help: Self::HELP,
        fields: Self::FIELDS,
        answer: Self::ANSWER,
    };

    /// What it answers.
    type Answer: Serialize + DeserializeOwned;

    /// Reads the fields of a request.
    ///
    /// # Errors
    /// [`ServiceError`] of code `invalid_request` or `invalid_cursor`, naming the field.
    fn read(fields: &mut Fields<'_>) -> Result<Self, ServiceError>;

    /// Halves the number of rows to answer. False when it is one already, or the request takes no limit.
    fn halve(&mut self) -> bool {
        false
    }

    /// Whether the requested limit is out of range, so that another is applied.
    fn is_clamped(&self) -> bool {
        false
    }

    /// The profile that it names by its id, if it does.
    fn profile(&self) -> Option<ProfileId> {
        None
    }

    /// Answers this request.
    fn reply(&self, answer: impl Into<Self::Answer>) -> Reply {
        Reply(serde_json::to_vec(&answer.into()))
    }
}

/// An endpoint as data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// Its name, such as `profiles.ranked`.
    pub name: &'static str,
    /// Whether it asks within one community, whose id then stands in the subject.
    pub is_of_community: bool,
    /// Whether the request may be sent again when its answer is lost: it has no other effect then, and answers the same.
    pub is_repeatable: bool,
    /// Whether the answer may be some seconds behind what was written.
    pub may_lag: bool,
    /// What it is for, in Markdown.
    pub help: &'static str,
    /// The fields of its request.
    pub fields: &'static [Field],
    /// What it answers, in Markdown.
    pub answer: &'static str,
}

impl Description {
    /// Whether it is for operators. Their subjects are `muster.v1.<community>.admin.>`.
    #[must_use]
    pub fn is_admin(&self) -> bool {
        self.name.starts_with("admin.")
    }

    /// The subject that the service listens on; the community is a wildcard.
    #[must_use]
    pub fn pattern(&self) -> String {
        if self.is_of_community {
            format!("{PREFIX}.*.{}", self.name)
        } else {
            format!("{PREFIX}.{}", self.name)
        }
    }

    /// The subject to ask on. The community is left out where the endpoint is not of one.
    #[must_use]
    pub fn subject(&self, community: CommunityId) -> String {
        if self.is_of_community { format!("{PREFIX}.{community}.{}", self.name) } else { self.pattern() }
    }

    /// The name as the service protocol wants it, which allows no dots.
    #[must_use]
    pub fn service_name(&self) -> String {
        self.name.replace('.', "-")
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Serialize for Description {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Description", 8)?;
        fields.serialize_field("name", self.name)?;
        fields.serialize_field("pattern", &self.pattern())?;
        fields.serialize_field("admin", &self.is_admin())?;
        fields.serialize_field("repeatable", &self.is_repeatable)?;
        fields.serialize_field("may_lag", &self.may_lag)?;
        fields.serialize_field("help", self.help)?;
        fields.serialize_field("fields", self.fields)?;
        fields.serialize_field("answer", self.answer)?;
        fields.end()
    }
}

/// An answer as JSON. It is made by the request that it answers: [`Endpoint::reply`].
#[derive(Debug)]
pub struct Reply(Result<Vec<u8>, serde_json::Error>);

impl Reply {
    /// The JSON.
    ///
    /// # Errors
    /// A date that has no RFC 3339 form, which none of a four-digit year lacks.
    pub fn into_json(self) -> Result<Vec<u8>, serde_json::Error> {
        self.0
    }
}

/// Makes an [`Endpoint`] of a struct: its documentation and its fields' is what the registry tells. The name and the type
/// and documentation of the answer stand before it.
macro_rules! endpoint {
    (
        $name:tt -> $answer_type:ty, $answer:literal;

        $(#[doc = $help:literal])+
        $(#[derive($($derive:ident),+)])?
        pub struct $request:ident {
            $($(#[doc = $field_help:literal])+ pub $field:ident: $type:ty,)*
        }

        $(const $const:ident: $const_type:ty = $value:expr;)*
    ) => {
        $(#[doc = $help])+
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
        $(#[derive($($derive),+)])?
        pub struct $request {
            $(
                $(#[doc = $field_help])+
                #[serde(skip_serializing_if = "crate::api::field::Value::is_absent")]
                pub $field: $type,
            )*
        }

        impl crate::api::Endpoint for $request {
            const NAME: &'static str = $name;
            const HELP: &'static str = concat!($($help),+).trim_ascii();
            const FIELDS: &'static [crate::api::Field] = &[$(
                crate::api::Field::of::<$type>(stringify!($field), concat!($($field_help),+).trim_ascii()),
            )*];
            const ANSWER: &'static str = $answer;
            $(const $const: $const_type = $value;)*

            type Answer = $answer_type;

            fn read(fields: &mut crate::api::field::Fields<'_>) -> Result<Self, crate::api::ServiceError> {
                let _ = &fields;
                Ok(Self {
                    $($field: crate::api::field::Value::read(fields, stringify!($field))?,)*
                })
            }

            fn halve(&mut self) -> bool {
                false $(|| crate::api::field::Value::halve(&mut self.$field))*
            }

            fn is_clamped(&self) -> bool {
                false $(|| crate::api::field::Value::is_clamped(&self.$field))*
            }

            fn profile(&self) -> Option<muster_domain::ProfileId> {
                None $(.or_else(|| crate::api::field::Value::profile(&self.$field)))*
            }
        }
    };
}
pub(super) use endpoint;
