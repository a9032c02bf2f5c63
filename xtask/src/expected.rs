//! What must be there, from `infra/expected`: gates compare with it, so that what is missing is found as what is wrong is.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// Reads a YAML file.
pub(crate) fn read(file: &Path) -> Result<Value> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_norway::from_str(&text).with_context(|| format!("{} is no YAML", file.display()))
}

/// In what `actual` differs from `expected`, a line each: where, what it is, what it must be.
pub(crate) fn differences(expected: &Value, actual: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", expected, actual, &mut found);
    found
}

fn compare(place: &str, expected: &Value, actual: &Value, found: &mut Vec<String>) {
    match (expected, actual) {
        (Value::Object(expected), Value::Object(actual)) => {
            let keys: BTreeSet<&String> = expected.keys().chain(actual.keys()).collect();
            for key in keys {
                let place = format!("{place}/{key}");
                match (expected.get(key), actual.get(key)) {
                    (Some(expected), Some(actual)) => compare(&place, expected, actual, found),
                    (Some(expected), None) => {
                        found.push(format!("{place} is missing: it must be {expected}"))
                    }
                    (_, Some(actual)) => found.push(format!("{place} must not be there: it is {actual}")),
                    (None, None) => {}
                }
            }
        }
        // An element more or less moves all behind it: then those that only one side has say more.
        (Value::Array(expected), Value::Array(actual)) if expected.len() != actual.len() => {
            let missing = expected.iter().filter(|it| !actual.contains(it));
            let beyond = actual.iter().filter(|it| !expected.contains(it));
            let before = found.len();
            found.extend(missing.map(|it| format!("{place}: {it} is missing")));
            found.extend(beyond.map(|it| format!("{place}: {it} must not be there")));
            if found.len() == before {
                found.push(format!("{place} has {} elements: it must have {}", actual.len(), expected.len()));
            }
        }
        (Value::Array(expected), Value::Array(actual)) => {
            for (index, (expected, actual)) in expected.iter().zip(actual).enumerate() {
                compare(&format!("{place}/{index}"), expected, actual, found);
            }
        }
        _ if expected == actual => {}
        _ => found.push(format!("{place} is {actual}: it must be {expected}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_difference_is_named_with_its_place() {
        let expected = json!({"a": {"b": 1, "c": [1, 2]}, "d": ["x", "y"]});
        assert_eq!(differences(&expected, &expected), [""; 0]);
        let cases = [
            (json!({"a": {"b": 2, "c": [1, 2]}, "d": ["x", "y"]}), "/a/b is 2: it must be 1"),
            (json!({"a": {"c": [1, 2]}, "d": ["x", "y"]}), "/a/b is missing: it must be 1"),
            (json!({"a": {"b": 1, "c": [2, 1]}, "d": ["x", "y"]}), "/a/c/0 is 2: it must be 1"),
            (json!({"a": {"b": 1, "c": [1, 2]}, "d": ["x"]}), "/d: \"y\" is missing"),
            (json!({"a": {"b": 1, "c": [1, 2]}, "d": ["x", "y", "y"]}), "/d has 3 elements: it must have 2"),
            (json!({"a": {"b": 1, "c": [1, 2]}, "d": ["x", "y"], "e": 0}), "/e must not be there: it is 0"),
        ];
        for (actual, first) in cases {
            assert_eq!(differences(&expected, &actual).first().map(String::as_str), Some(first));
        }
    }
}
