use serde::Serialize;

/// Keys to look up at once: 1 to 100 of them, each once, in the order in which they were given.
///
/// ```
/// use muster_domain::Keys;
///
/// assert_eq!(Keys::parse(vec![7, 8, 7]).unwrap().as_slice(), [7, 8]);
/// assert!(Keys::<u8>::parse(Vec::new()).is_err());
/// assert!(Keys::parse(vec![7; 101]).is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Keys<T>(Vec<T>);

/// The largest number of keys that can be looked up at once.
pub const MAX_KEYS: u32 = 100;

impl<T: PartialEq> Keys<T> {
    /// Checks the number of keys, and drops repetitions.
    ///
    /// # Errors
    /// [`KeysError`] when there are none, or too many.
    pub fn parse(given: Vec<T>) -> Result<Self, KeysError> {
        let count = u32::try_from(given.len()).unwrap_or(u32::MAX);
        if !(1..=MAX_KEYS).contains(&count) {
            return Err(KeysError { count });
        }
        let mut keys = Vec::with_capacity(given.len());
        for key in given {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        Ok(Self(keys))
    }
}

impl<T> Keys<T> {
    /// The keys.
    #[must_use]
    pub fn as_slice(&self) -> &[T] {
        &self.0
    }
}

/// Not as many keys as can be looked up at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("has {count} elements: give 1 to {MAX_KEYS}")]
pub struct KeysError {
    count: u32,
}
