//! What stands in the headers of a NATS message.

use async_nats::HeaderMap;

/// The header that says which trace a message belongs to, as W3C Trace Context has it.
pub const TRACEPARENT: &str = "traceparent";
/// The largest `traceparent`: version 00 has 55 characters, later ones may have more.
const MAX_TRACEPARENT: usize = 128;

/// The most characters of a text that go into a header.
const MAX: usize = 256;

/// One bounded line of printable ASCII; what is not is replaced by `?`.
pub(crate) fn line(text: &str) -> String {
    text.chars().take(MAX).map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}

/// The trace that a message belongs to. A `traceparent` that is too long or not printable is none.
pub(crate) fn traceparent(headers: Option<&HeaderMap>) -> Option<String> {
    let text = headers?.get(TRACEPARENT)?.as_str();
    is_traceparent(text).then(|| text.to_owned())
}

/// Says which trace a message belongs to, unless the text would not be read as one.
pub(crate) fn set_traceparent(headers: &mut HeaderMap, traceparent: Option<&str>) {
    if let Some(text) = traceparent.filter(|text| is_traceparent(text)) {
        headers.insert(TRACEPARENT, text);
    }
}

fn is_traceparent(text: &str) -> bool {
    text.len() <= MAX_TRACEPARENT && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_one_bounded_line_when_it_is_written_and_when_it_is_read() {
        let written = |text: &str| {
            let mut headers = HeaderMap::new();
            set_traceparent(&mut headers, Some(text));
            traceparent(Some(&headers))
        };
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(written(trace).as_deref(), Some(trace));
        for refused in ["a\r\nMuster-Caller: b", "a b", "\u{e9}", &"x".repeat(MAX_TRACEPARENT + 1)] {
            assert_eq!(written(refused), None);
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, refused.replace(['\r', '\n'], " ").as_str());
            assert_eq!(traceparent(Some(&headers)), None);
        }
    }
}
