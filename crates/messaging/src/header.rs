//! Text as a NATS header can hold it.

/// The most characters of a text that go into a header.
const MAX: usize = 256;

/// One bounded line of printable ASCII; what is not is replaced by `?`.
pub(crate) fn line(text: &str) -> String {
    text.chars().take(MAX).map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}
