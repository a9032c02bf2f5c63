//! The fields of a JSON object, taken one by one by name, so that whatever is wrong with one is said with its name.

use std::borrow::Cow;
use std::fmt;

use muster_domain::{Cursor, Limit};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::error::ServiceError;
use super::limit::{read_integer, read_limit};

/// The most fields that an object of ours may have: above any request's, so that the list of them stays short.
const MAX_FIELDS: usize = 32;
/// The most characters of an unknown field's name that are told.
const MAX_NAME_TOLD: usize = 40;

/// The fields that nobody has taken yet.
pub(crate) struct Fields<'a> {
    fields: Vec<(Cow<'a, str>, &'a RawValue)>,
    clamped: bool,
}

impl<'a> Fields<'a> {
    /// Reads an object that has no fields but `known` ones; no bytes at all are an empty one.
    pub(crate) fn read(json: &'a [u8], known: &[&str]) -> Result<Self, ServiceError> {
        if json.is_empty() {
            return Ok(Self { fields: Vec::new(), clamped: false });
        }
        let Object(fields) = serde_json::from_slice(json).map_err(|error| {
            ServiceError::malformed(format!(
                "the request must be one JSON object with each field once, or empty (line {}, column {})",
                error.line(),
                error.column()
            ))
        })?;
        if let Some((unknown, _)) = fields.iter().find(|(field, _)| !known.contains(&field.as_ref())) {
            let told: String = unknown.chars().take(MAX_NAME_TOLD).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let message = format!("{told:?} is not a field of this request, which has: {known}");
            return Err(ServiceError::invalid_request(told, message));
        }
        Ok(Self { fields, clamped: false })
    }

    /// Whether a limit had to be changed.
    pub(crate) fn clamped(&self) -> bool {
        self.clamped
    }

    fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        let at = self.fields.iter().position(|(field, _)| field == name)?;
        Some(self.fields.swap_remove(at).1)
    }

    /// A text, if there is one; `null` is none.
    fn text(&mut self, name: &str) -> Result<Option<String>, ServiceError> {
        match self.take(name) {
            None => Ok(None),
            Some(raw) => serde_json::from_str::<Option<String>>(raw.get())
                .map_err(|_| ServiceError::invalid_request(name, format!("{name} must be a text"))),
        }
    }

    /// A text that parses into one of our types, if there is one.
    pub(crate) fn optional<T, E: fmt::Display>(
        &mut self,
        name: &str,
        parse: impl FnOnce(String) -> Result<T, E>,
    ) -> Result<Option<T>, ServiceError> {
        self.text(name)?
            .map(|text| {
                parse(text).map_err(|cause| ServiceError::invalid_request(name, format!("{name} {cause}")))
            })
            .transpose()
    }

    /// A text that parses into one of our types.
    pub(crate) fn required<T, E: fmt::Display>(
        &mut self,
        name: &str,
        parse: impl FnOnce(String) -> Result<T, E>,
    ) -> Result<T, ServiceError> {
        self.optional(name, parse)?
            .ok_or_else(|| ServiceError::invalid_request(name, format!("{name} is missing")))
    }

    /// The page size, `default` where none is asked for.
    pub(crate) fn limit<const MAX: u32>(&mut self, default: u32) -> Result<Limit<MAX>, ServiceError> {
        let Some(raw) = self.take("limit") else { return Ok(Limit::clamp(default)) };
        let (limit, clamped) = read_limit(raw.get()).ok_or_else(|| {
            ServiceError::invalid_request(
                "limit",
                format!(
                    "limit must be an integer without fraction or exponent; at most {MAX} are given at once"
                ),
            )
        })?;
        self.clamped |= clamped;
        Ok(limit)
    }

    /// The cursor, if there is one.
    pub(crate) fn cursor(&mut self) -> Result<Option<Cursor>, ServiceError> {
        self.text("cursor")?.map(Cursor::parse).transpose().map_err(ServiceError::invalid_cursor)
    }

    /// An integer literal, if there is one; `null` is none.
    pub(crate) fn integer(&mut self, name: &str) -> Result<Option<i128>, ServiceError> {
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
