//! The fields of a request: what each says of itself, and how the service reads it, so that whatever is wrong with one
//! is said with its name.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use muster_domain::{
    Awarder, BadgeKind, Cursor, Direction, DirectorySort, GuildId, Keys, Nym, ProfileId, Reason, SearchQuery,
    Tier, UserId, Wallet,
};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::caller::Caller;
use super::error::ServiceError;
use crate::integer::read_integer;

/// The most fields that an object of ours may have: above any request's, so that the list of them stays short.
const MAX_FIELDS: usize = 32;
/// The most characters of an unknown field's name that are told.
const MAX_NAME_TOLD: usize = 40;

/// What a field of a request says of itself. Texts are Markdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What its value is.
    pub form: Form,
    /// Whether a request without it is refused.
    pub required: bool,
    /// What stands for it where it is not given.
    pub default: Option<DefaultValue>,
    /// The largest number, or the largest number of elements, that it is taken for.
    pub cap: Option<u32>,
    /// What it is for.
    pub help: &'static str,
}

/// What stands for a field that is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum DefaultValue {
    /// A number.
    Number(u32),
    /// A word.
    Word(&'static str),
}

/// What a field's value is: for a person to read, with the bounds that the types have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As the words say, such as `integer`.
    Words(&'static str),
    /// At least one character, and at most so many.
    Characters(usize),
    /// At least one visible ASCII character, and at most so many.
    VisibleAscii(usize),
    /// At least one of what is named, and at most so many.
    List(u32, &'static str),
    /// The number of a page, within so many rows.
    Page(u32),
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Words(words) => f.write_str(words),
            Self::Characters(max) => write!(f, "1 to {max} characters"),
            Self::VisibleAscii(max) => write!(f, "1 to {max} visible ASCII characters"),
            Self::List(max, what) => write!(f, "list of 1 to {max} {what}"),
            Self::Page(rows) => write!(f, "integer from 1, within the first {rows} rows"),
        }
    }
}

impl Serialize for Form {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Field {
    pub(super) const fn of<T: Value>(name: &'static str, help: &'static str) -> Self {
        Self { name, form: T::FORM, required: T::REQUIRED, default: T::DEFAULT, cap: T::CAP, help }
    }
}

/// What a field can hold.
pub(super) trait Value: Sized {
    const FORM: Form;
    const REQUIRED: bool = false;
    const DEFAULT: Option<DefaultValue> = None;
    const CAP: Option<u32> = None;

    fn read(fields: &mut Fields<'_>, name: &str) -> Result<Self, ServiceError>;

    /// Whether it is left out of the JSON.
    fn is_absent(&self) -> bool {
        false
    }

    /// Halves the number of rows. False when it was one already, or this field is no number of rows.
    fn halve(&mut self) -> bool {
        false
    }

    /// Whether the requested limit is out of range, so that another is applied.
    fn is_clamped(&self) -> bool {
        false
    }

    /// The profile that it names.
    fn profile(&self) -> Option<ProfileId> {
        None
    }
}

/// What is a text in JSON.
pub(super) trait Text: Sized {
    const FORM: Form;
    const DEFAULT: Option<DefaultValue> = None;

    /// Checks a text. Some types take a blank one as none.
    fn parse(text: String) -> Result<Option<Self>, String>;

    fn profile(&self) -> Option<ProfileId> {
        None
    }
}

impl<T: Text> Value for T {
    const FORM: Form = T::FORM;
    const REQUIRED: bool = true;

    fn read(fields: &mut Fields<'_>, name: &str) -> Result<Self, ServiceError> {
        fields.text(name)?.ok_or_else(|| ServiceError::invalid_request(name, format!("{name} is missing")))
    }

    fn profile(&self) -> Option<ProfileId> {
        Text::profile(self)
    }
}

impl<T: Text> Value for Option<T> {
    const FORM: Form = T::FORM;
    const DEFAULT: Option<DefaultValue> = T::DEFAULT;

    fn read(fields: &mut Fields<'_>, name: &str) -> Result<Self, ServiceError> {
        fields.text(name)
    }

    fn is_absent(&self) -> bool {
        self.is_none()
    }

    fn profile(&self) -> Option<ProfileId> {
        self.as_ref().and_then(Text::profile)
    }
}

impl Value for Option<Cursor> {
    const FORM: Form = Form::Words("`next` of the page before");

    fn read(fields: &mut Fields<'_>, name: &str) -> Result<Self, ServiceError> {
        fields.string(name)?.map(Cursor::parse).transpose().map_err(ServiceError::invalid_cursor)
    }

    fn is_absent(&self) -> bool {
        self.is_none()
    }
}

impl Text for ProfileId {
    const FORM: Form = Form::Words("UUID");

    fn parse(text: String) -> Result<Option<Self>, String> {
        Self::from_str(&text).map(Some).map_err(|_| "must be a UUID".to_owned())
    }

    fn profile(&self) -> Option<ProfileId> {
        Some(*self)
    }
}

impl Text for DirectorySort {
    const FORM: Form = Form::Words("`nym`, `tenure` or `badges`");
    const DEFAULT: Option<DefaultValue> = Some(DefaultValue::Word("nym"));

    fn parse(text: String) -> Result<Option<Self>, String> {
        match text.as_str() {
            "nym" => Ok(Some(Self::Nym)),
            "tenure" => Ok(Some(Self::Tenure)),
            "badges" => Ok(Some(Self::Badges)),
            _ => Err("must be nym, tenure or badges".to_owned()),
        }
    }
}

impl Text for Direction {
    const FORM: Form = Form::Words("`asc` or `desc`");

    fn parse(text: String) -> Result<Option<Self>, String> {
        match text.as_str() {
            "asc" => Ok(Some(Self::Asc)),
            "desc" => Ok(Some(Self::Desc)),
            _ => Err("must be asc or desc".to_owned()),
        }
    }
}

macro_rules! texts {
    ($($type:ident: $form:expr, $parse:expr;)+) => {
        $(
            impl Text for $type {
                const FORM: Form = $form;

                fn parse(text: String) -> Result<Option<Self>, String> {
                    $parse(text).map_err(|refused| refused.to_string())
                }
            }
        )+
    };
}

texts! {
    GuildId: Form::VisibleAscii(Self::MAX), |text| Self::parse(text).map(Some);
    UserId: Form::VisibleAscii(Self::MAX), |text| Self::parse(text).map(Some);
    Wallet: Form::VisibleAscii(Self::MAX), |text| Self::parse(text).map(Some);
    Nym: Form::Characters(Self::MAX), |text| Self::parse(text).map(Some);
    Tier: Form::Words("a tier's name"), |text| Self::parse(text).map(Some);
    SearchQuery: Form::Characters(Self::MAX), |text| Self::parse(text).map(Some);
    BadgeKind: Form::Characters(Self::MAX), |text| Self::parse(text).map(Some);
    Caller: Form::Characters(Self::MAX), |text| Self::parse(text).map(Some);
    Reason: Form::Characters(Self::MAX), Self::parse_optional;
    Awarder: Form::Characters(Self::MAX), Self::parse_optional;
}

/// The fields of a request that nobody has taken yet.
#[derive(Debug)]
pub struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// Reads an object that has no fields but `known` ones; no bytes at all are an empty one.
    pub(super) fn read(json: &'a [u8], known: &[Field]) -> Result<Self, ServiceError> {
        if json.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let Object(fields) = serde_json::from_slice(json).map_err(|error| {
            ServiceError::malformed(format!(
                "the request must be one JSON object with each field once, or empty (line {}, column {})",
                error.line(),
                error.column()
            ))
        })?;
        let is_known = |name: &str| known.iter().any(|field| field.name == name);
        if let Some((unknown, _)) = fields.iter().find(|(name, _)| !is_known(name)) {
            let told: String = unknown.chars().take(MAX_NAME_TOLD).collect();
            let known = if known.is_empty() { "none".to_owned() } else { names(known) };
            let message = format!("{told:?} is not a field of this request, which has: {known}");
            return Err(ServiceError::invalid_request(told, message));
        }
        Ok(Self(fields))
    }

    pub(super) fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        let at = self.0.iter().position(|(field, _)| field == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// A text, if there is one; `null` is none.
    fn string(&mut self, name: &str) -> Result<Option<String>, ServiceError> {
        match self.take(name) {
            None => Ok(None),
            Some(raw) => serde_json::from_str::<Option<String>>(raw.get())
                .map_err(|_| ServiceError::invalid_request(name, format!("{name} must be a text"))),
        }
    }

    fn text<T: Text>(&mut self, name: &str) -> Result<Option<T>, ServiceError> {
        let Some(text) = self.string(name)? else { return Ok(None) };
        T::parse(text).map_err(|refused| ServiceError::invalid_request(name, format!("{name} {refused}")))
    }

    /// A list of texts as [`Keys`] has it, if there is one; `null` is none.
    pub(super) fn keys<T: Text + PartialEq>(&mut self, name: &str) -> Result<Option<Keys<T>>, ServiceError> {
        let Some(raw) = self.take(name) else { return Ok(None) };
        let refused =
            |cause: &dyn fmt::Display| ServiceError::invalid_request(name, format!("{name} {cause}"));
        let given: Option<Vec<String>> =
            serde_json::from_str(raw.get()).map_err(|_| refused(&"must be a list of texts"))?;
        let Some(given) = given else { return Ok(None) };
        let keys: Result<Vec<Option<T>>, String> = given.into_iter().map(T::parse).collect();
        let keys = keys.map_err(|cause| refused(&cause))?.into_iter().flatten().collect();
        Keys::parse(keys).map(Some).map_err(|cause| refused(&cause))
    }

    /// An integer literal, if there is one; `null` is none.
    pub(super) fn integer(&mut self, name: &str) -> Result<Option<i128>, ServiceError> {
        match self.take(name).map(RawValue::get) {
            None | Some("null") => Ok(None),
            Some(text) => read_integer(text).map(Some).ok_or_else(|| {
                ServiceError::invalid_request(
                    name,
                    format!("{name} must be an integer without fraction or exponent"),
                )
            }),
        }
    }
}

/// The one of several fields that is given.
pub(super) fn exactly_one<T>(
    of: &[Field],
    given: impl IntoIterator<Item = Option<T>>,
) -> Result<T, ServiceError> {
    let mut given = given.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(one), None) => Ok(one),
        _ => Err(ServiceError::invalid_request(
            names(of),
            format!("exactly one of {} must be given", names(of)),
        )),
    }
}

fn names(fields: &[Field]) -> String {
    fields.iter().map(|field| field.name).collect::<Vec<_>>().join(", ")
}

/// An object whose fields are not read yet. Each may stand once.
struct Object<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;

        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::new();
                while let Some(Name(name)) = map.next_key()? {
                    if fields.len() >= MAX_FIELDS || fields.iter().any(|(field, _)| *field == name) {
                        return Err(serde::de::Error::custom("too many fields, or one of them twice"));
                    }
                    fields.push((name, map.next_value()?));
                }
                Ok(Object(fields))
            }
        }

        deserializer.deserialize_map(ObjectVisitor)
    }
}

/// A field's name, borrowed unless it is escaped.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
