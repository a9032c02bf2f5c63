//! What stands in the headers of a NATS message.

use async_nats::HeaderMap;
use muster_domain::TraceParent;

/// The header that says which trace a message belongs to, as W3C Trace Context has it.
pub const TRACEPARENT: &str = "traceparent";

/// The most characters of a text that go into a header.
const MAX: usize = 256;

/// One bounded line of printable ASCII; what is not is replaced by `?`.
pub(crate) fn line(text: &str) -> String {
    text.chars().take(MAX).map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}

/// The trace that a message belongs to. A `traceparent` that is too long or not printable is none.
pub(crate) fn traceparent(headers: Option<&HeaderMap>) -> Option<TraceParent> {
    TraceParent::parse(headers?.get(TRACEPARENT)?.as_str()).ok()
}

/// Says which trace a message belongs to.
pub(crate) fn set_traceparent(headers: &mut HeaderMap, traceparent: Option<&TraceParent>) {
    if let Some(traceparent) = traceparent {
        headers.insert(TRACEPARENT, traceparent.as_str());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_that_is_not_one_bounded_line_is_none() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, text);
            traceparent(Some(&headers))
        };
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let mut headers = HeaderMap::new();
        set_traceparent(&mut headers, TraceParent::parse(trace).ok().as_ref());
        assert_eq!(traceparent(Some(&headers)).map(String::from).as_deref(), Some(trace));
        for refused in ["a b", "\u{e9}", &"x".repeat(TraceParent::MAX + 1)] {
            assert_eq!(read(refused), None);
        }
        assert!(TraceParent::parse("a\r\nMuster-Caller: b").is_err());
    }
}
