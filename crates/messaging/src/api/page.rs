//! Lists: how many rows are asked for, and the page that is answered.

use muster_domain::{Cursor, Limit};
use serde::{Deserialize, Serialize, Serializer};

use super::error::ServiceError;
use super::field::{DefaultValue, Fields, Form, Value};
use crate::integer::read_integer;

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// The cursor of the next page; `None` on the last.
    pub next: Option<Cursor>,
    /// The page size that was applied.
    pub limit: u32,
}

impl<T, U: From<T>> From<muster_domain::Page<T>> for Page<U> {
    fn from(page: muster_domain::Page<T>) -> Self {
        let muster_domain::Page { items, next, limit } = page.map(U::from);
        Self { items, next, limit }
    }
}

/// How many rows are asked for. Any integer may be; it is clamped to 1 … `MAX`, and nothing asked for is `DEFAULT`.
///
/// ```
/// use muster_messaging::api::Rows;
///
/// assert_eq!(Rows::<10>::default().applied().get(), 10);
/// assert_eq!(Rows::<10>::of(50).applied().get(), 50);
/// assert_eq!(Rows::<10>::of(5_000_000).applied().get(), 1000);
/// assert_eq!(Rows::<25, 100>::of(5_000_000).applied().get(), 100);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rows<const DEFAULT: u32, const MAX: u32 = 1000> {
    asked: Option<i64>,
    /// How many of them fit into one message.
    fitting: Option<Limit<MAX>>,
}

impl<const DEFAULT: u32, const MAX: u32> Rows<DEFAULT, MAX> {
    /// At most this many.
    #[must_use]
    pub fn of(asked: impl Into<i64>) -> Self {
        Self { asked: Some(asked.into()), fitting: None }
    }

    /// How many at most are answered.
    #[must_use]
    pub fn applied(self) -> Limit<MAX> {
        self.fitting.unwrap_or_else(|| self.page_size())
    }

    /// How many a page has, whether they fit into one message or not.
    pub(super) fn page_size(self) -> Limit<MAX> {
        self.asked.map_or_else(|| Limit::clamp(DEFAULT), Limit::clamp)
    }

    /// Reads the text of a JSON value; `None` when it is not an integer literal.
    fn parse(json: &str) -> Option<Self> {
        let asked = read_integer(json)?;
        let nearest = if asked < 0 { i64::MIN } else { i64::MAX };
        Some(Self::of(i64::try_from(asked).unwrap_or(nearest)))
    }
}

impl<const DEFAULT: u32, const MAX: u32> Value for Rows<DEFAULT, MAX> {
    const FORM: Form = Form::Words("integer");
    const DEFAULT: Option<DefaultValue> = Some(DefaultValue::Number(DEFAULT));
    const CAP: Option<u32> = Some(MAX);

    fn read(fields: &mut Fields<'_>, name: &str) -> Result<Self, ServiceError> {
        let Some(raw) = fields.take(name) else { return Ok(Self::default()) };
        Self::parse(raw.get()).ok_or_else(|| {
            ServiceError::invalid_request(
                name,
                format!(
                    "{name} must be an integer without fraction or exponent; at most {MAX} are given at once"
                ),
            )
        })
    }

    fn is_absent(&self) -> bool {
        self.asked.is_none()
    }

    fn halve(&mut self) -> bool {
        let rows = self.applied().get();
        self.fitting = Some(Limit::clamp(rows / 2));
        rows > 1
    }

    fn is_clamped(&self) -> bool {
        self.asked.is_some_and(|asked| i64::from(self.page_size()) != asked)
    }
}

impl<const DEFAULT: u32, const MAX: u32> Serialize for Rows<DEFAULT, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.asked.serialize(serializer)
    }
}

/// Requests that have no fields but `limit` and `cursor`: how to ask for a page, and for the one after it.
macro_rules! pages {
    ($($request:ident),+) => {
        $(
            impl $request {
                /// Asks for the first page, of at most `limit`.
                #[must_use]
                pub fn first(limit: impl Into<i64>) -> Self {
                    Self { limit: Rows::of(limit), cursor: None }
                }

                /// Asks for the page that begins at `cursor`, the `next` of the page before.
                #[must_use]
                pub fn after(self, cursor: Cursor) -> Self {
                    Self { cursor: Some(cursor), ..self }
                }
            }
        )+
    };
}
pub(super) use pages;

#[cfg(test)]
mod tests {
    use muster_domain::PageLimit;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn any_integer_is_taken() {
        for (text, applied, clamped) in [
            ("1", 1, false),
            ("100", 100, false),
            ("101", 100, true),
            ("0", 1, true),
            ("-0", 1, true),
            ("-7", 1, true),
            ("5000000", 100, true),
            ("18446744073709551616", 100, true),
            (&"9".repeat(400), 100, true),
            (&format!("-{}", "9".repeat(400)), 1, true),
        ] {
            let rows = Rows::<25, 100>::parse(text).unwrap();
            assert_eq!((rows.applied().get(), rows.is_clamped()), (applied, clamped), "{text}");
        }
    }

    #[test]
    fn anything_else_is_not() {
        for text in [
            "\"5\"", "1.5", "1.0", "null", "true", "1e400", "1e3", "1E3", "[]", "{}", "", "-", "+1", "1 ",
            "0x10",
        ] {
            assert_eq!(Rows::<10>::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_limit_is_halved_down_to_one_row() {
        let mut rows = Rows::<10>::of(5);
        let halved: Vec<u32> = std::iter::from_fn(|| rows.halve().then(|| rows.applied().get())).collect();
        assert_eq!(halved, [2, 1]);
        assert_eq!((rows.applied().get(), rows.page_size().get()), (1, 5));
    }

    proptest! {
        #[test]
        fn every_integer_is_clamped_as_the_domain_does(asked: i128) {
            let rows = Rows::<10>::parse(&asked.to_string()).unwrap();
            prop_assert_eq!(rows.applied(), PageLimit::clamp(asked));
            prop_assert_eq!(rows.is_clamped(), !(1..=1000).contains(&asked));
        }

        #[test]
        fn any_text_is_answered_not_panicked_at(text: String) {
            let _ = Rows::<10>::parse(&text);
        }
    }
}
