//! Whole numbers as JSON writes them, of any size.

/// Reads the text of a JSON integer literal, an optional minus and digits; one that has no room in an `i128` becomes the
/// nearest that has.
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
