use anyhow::{Result, bail};

/// Stands for any text within a line, and alone on a line for any number of lines.
const ANY: &str = "…";

/// Whether what was printed is what was stated.
pub(super) fn compare(stated: &str, printed: &str) -> Result<()> {
    let lines =
        |text: &str| text.trim_end().lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
    let (stated_lines, printed_lines) = (lines(stated), lines(printed));
    if all(&stated_lines, &printed_lines) {
        return Ok(());
    }
    bail!("stated:\n{}\nprinted:\n{}", stated.trim_end(), printed.trim_end())
}

fn all(stated: &[String], printed: &[String]) -> bool {
    match stated.split_first() {
        None => printed.is_empty(),
        Some((first, rest)) if first.trim() == ANY => {
            (0..=printed.len()).any(|skipped| printed.get(skipped..).is_some_and(|left| all(rest, left)))
        }
        Some((first, rest)) => {
            printed.split_first().is_some_and(|(line, left)| one(first, line) && all(rest, left))
        }
    }
}

/// Whether a line is as stated: the pieces between the wildcards follow each other in it.
fn one(stated: &str, printed: &str) -> bool {
    let mut pieces = stated.split(ANY);
    let Some(mut left) = printed.strip_prefix(pieces.next().unwrap_or_default()) else { return false };
    let mut pieces = pieces.peekable();
    if pieces.peek().is_none() {
        return left.is_empty();
    }
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return left.ends_with(piece);
        }
        match left.split_once(piece) {
            Some((_, after)) => left = after,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_what_they_say_and_no_more() {
        for (stated, printed, same) in [
            ("a\nb\n", "a\nb", true),
            ("a\nb", "a\nc", false),
            ("a", "a\nb", false),
            ("", "", true),
            ("", "a", false),
            ("took … ms", "took 12 ms", true),
            ("took … ms", "took 12 s", false),
            ("a … b … c", "a 1 b 2 c", true),
            ("a … b … c", "a 1 c 2 b", false),
            ("…\nlast", "one\ntwo\nlast", true),
            ("…\nlast", "last", true),
            ("…\nlast", "last\nmore", false),
            ("first\n…", "first", true),
            ("…a…", "bab", true),
            ("…a", "ab", false),
        ] {
            assert_eq!(compare(stated, printed).is_ok(), same, "{stated:?} and {printed:?}");
        }
    }
}
