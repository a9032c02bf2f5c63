//! Page sizes as they are asked for: any integer, however large, is taken to the nearest that is allowed.

use muster_domain::Limit;

/// Reads the text of a JSON value as a page size, and whether what was asked had to be changed. `None` when it is not an
/// integer literal: an optional minus and digits, as JSON writes them.
///
/// ```
/// use muster_domain::PageLimit;
/// use muster_messaging::wire::limit::read_limit;
///
/// assert_eq!(read_limit("50"), Some((PageLimit::clamp(50), false)));
/// assert_eq!(read_limit("5000000"), Some((PageLimit::MAX, true)));
/// assert_eq!(read_limit::<1000>("1e3"), None);
/// ```
#[must_use]
pub fn read_limit<const MAX: u32>(json: &str) -> Option<(Limit<MAX>, bool)> {
    let asked = read_integer(json)?;
    let limit = Limit::clamp(asked);
    Some((limit, i128::from(limit.get()) != asked))
}

/// Reads the text of a JSON integer literal; one that has no room in an `i128` becomes the nearest that has.
pub(crate) fn read_integer(json: &str) -> Option<i128> {
    let (negative, digits) = match json.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, json),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(json.parse().unwrap_or(if negative { i128::MIN } else { i128::MAX }))
}

#[cfg(test)]
mod tests {
    use muster_domain::{PageLimit, SuggestLimit};
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
            assert_eq!(read_limit(text), Some((SuggestLimit::clamp(applied), clamped)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_not() {
        for text in [
            "\"5\"", "1.5", "1.0", "null", "true", "1e400", "1e3", "1E3", "[]", "{}", "", "-", "+1", "1 ",
            "0x10",
        ] {
            assert_eq!(read_limit::<1000>(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_integer_is_clamped_as_the_domain_does(asked: i128) {
            let (limit, clamped) = read_limit::<1000>(&asked.to_string()).unwrap();
            prop_assert_eq!(limit, PageLimit::clamp(asked));
            prop_assert_eq!(clamped, !(1..=1000).contains(&asked));
        }

        #[test]
        fn any_text_is_answered_not_panicked_at(text: String) {
            let _ = read_limit::<1000>(&text);
        }
    }
}
