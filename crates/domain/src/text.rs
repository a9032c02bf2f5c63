//! What a shown text is: a nym, a badge kind, a reason, an awarder, a community's name, and what is searched for. All of
//! it is decided here: what is dropped, what is blank, how length is counted, and what is equal without regard to case.
//!
//! A shown text is on one line, in NFC, without blanks around it and without what shows nothing. It is cleaned rather than
//! refused: keyboards add invisible marks that the person who types never sees.
//!
//! 1. Control characters that are white space, such as a tab or a line break, become spaces. What shows nothing is
//!    dropped: other controls, noncharacters, and default ignorable code points (Unicode Standard, section 5.21), which
//!    includes every mark that steers the direction of text.
//! 2. Joiners, variation selectors and tags are ignorable too, but part of words and emoji: each is kept where it changes
//!    what its neighbours look like, and dropped elsewhere.
//! 3. White space and characters with an empty glyph are trimmed off both ends. A text of which nothing is left is blank.
//! 4. Length is counted as a reader does, in grapheme clusters (Unicode Standard Annex 29). One cluster may hold any
//!    number of marks, so the bytes are bounded, too.

use std::borrow::Cow;

use icu_casemap::{CaseMapper, CaseMapperBorrowed};
use icu_normalizer::properties::CanonicalCombiningClassMapBorrowed;
use icu_normalizer::{ComposingNormalizerBorrowed, DecomposingNormalizerBorrowed};
use icu_properties::props::{
    BinaryProperty, CanonicalCombiningClass, Cased, DefaultIgnorableCodePoint, Emoji, EnumeratedProperty,
    ExtendedPictographic, GraphemeExtend, Ideographic, JoiningType, NoncharacterCodePoint,
};
use unicode_segmentation::UnicodeSegmentation;

/// Why a piece of text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Nothing to be seen was left.
    #[error("must not be empty: give 1 to {max} characters")]
    Empty {
        /// The largest number of characters.
        max: usize,
    },
    /// More characters than the bound.
    #[error("has {length} characters: give 1 to {max}")]
    TooLong {
        /// The number of characters given.
        length: usize,
        /// The largest number of characters.
        max: usize,
    },
    /// Few enough characters, but of too many marks and joined parts.
    #[error("has more than {max} bytes in UTF-8: give fewer characters, or fewer marks on each")]
    TooManyBytes {
        /// The largest number of bytes.
        max: usize,
    },
    /// A character that the text may not hold.
    #[error("holds the character U+{0:04X}, which is not allowed here: remove it")]
    Character(u32),
}

/// Takes an id or a name of a fixed alphabet as it stands: 1 to `max` characters, each of them `allowed`.
pub(crate) fn spelled(
    given: String,
    max: usize,
    allowed: impl Fn(char) -> bool,
) -> Result<String, TextError> {
    if let Some(refused) = given.chars().find(|c| !allowed(*c)) {
        return Err(TextError::Character(u32::from(refused)));
    }
    measured(given.chars().count(), max)?;
    Ok(given)
}

/// Takes the id of a foreign system: visible ASCII.
pub(crate) fn visible_ascii(given: String, max: usize) -> Result<String, TextError> {
    spelled(given, max, |c| c.is_ascii_graphic())
}

/// Takes a text that is shown to people: cleaned, 1 to `max` characters and at most `max_bytes` bytes.
pub(crate) fn shown(given: String, max: usize, max_bytes: usize) -> Result<String, TextError> {
    let shown = if is_plain(&given) { given } else { cleaned(&given, max_bytes)? };
    // In ASCII without controls each byte is one character.
    let length = if shown.is_ascii() { shown.len() } else { shown.graphemes(true).count() };
    measured(length, max)?;
    if shown.len() > max_bytes { Err(TextError::TooManyBytes { max: max_bytes }) } else { Ok(shown) }
}

const fn measured(length: usize, max: usize) -> Result<(), TextError> {
    match length {
        0 => Err(TextError::Empty { max }),
        _ if length > max => Err(TextError::TooLong { length, max }),
        _ => Ok(()),
    }
}

const CASE: CaseMapperBorrowed<'static> = CaseMapper::new();
const NFC: ComposingNormalizerBorrowed<'static> = ComposingNormalizerBorrowed::new_nfc();
const NFD: DecomposingNormalizerBorrowed<'static> = DecomposingNormalizerBorrowed::new_nfd();
const NFKC: ComposingNormalizerBorrowed<'static> = ComposingNormalizerBorrowed::new_nfkc();
const NFKD: DecomposingNormalizerBorrowed<'static> = DecomposingNormalizerBorrowed::new_nfkd();

/// The text as it is compared, at most `max` code points of it: Unicode's compatibility caseless match (definition D146) less
/// ignorable code points, as in its NFKC_Casefold. `ΟΔΥΣΣΕΥΣ` is `Οδυσσευς`, `STRASSE` is `Straße`, `Ｕｓｕｌ` is `Usul`, and a
/// word is the same with a joiner and without. Nothing is tailored to a language: `I` is never `ı`.
pub(crate) fn key(shown: &str, max: usize) -> String {
    if shown.is_ascii() {
        return shown.chars().take(max).map(|c| c.to_ascii_lowercase()).collect();
    }
    let folded = CASE.fold_string(&NFD.normalize(shown)).into_owned();
    // Compatibility forms hide capitals, such as those of U+3392, so what they stand for is folded again.
    let folded = CASE.fold_string(&NFKD.normalize(&folded)).into_owned();
    let seen: String =
        NFKD.normalize(&folded).chars().filter(|c| !DefaultIgnorableCodePoint::for_char(*c)).collect();
    let composed = NFKC.normalize(&seen);
    // Some accents that stand alone are a space with a mark.
    composed.trim().chars().take(max).collect()
}

/// Whether a text is clean at a glance: ASCII without controls and without blanks around it.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) && !text.starts_with(' ') && !text.ends_with(' ')
}

/// Cleans a text. One that cannot come down to `max_bytes` is refused before it is worked on.
fn cleaned(given: &str, max_bytes: usize) -> Result<String, TextError> {
    let unseen = |c: char| is_blank(c) || c.is_control() || shows_nothing(c);
    let given = given.trim_start_matches(|c| unseen(c) || is_contextual(c)).trim_end_matches(unseen);
    // NFC makes a text shorter by less than four times; what is more than that are marks that might be dropped.
    let most = max_bytes.saturating_mul(8);
    let mut visible = String::new();
    for c in given.chars() {
        if c.is_control() {
            visible.extend(c.is_whitespace().then_some(' '));
        } else if matches!(c, '\u{2028}' | '\u{2029}') {
            visible.push(' ');
        } else if !shows_nothing(c) {
            visible.push(c);
        }
        if visible.len() > most {
            return Err(TextError::TooManyBytes { max: max_bytes });
        }
    }
    // What is dropped may have stood between a letter and its mark.
    let mut text = NFC.normalize(&visible).into_owned();
    // Without what is dropped marks change places, and something else stands beside others.
    for _ in 0..PASSES {
        let kept = NFC.normalize(&joined(&text)).into_owned();
        if kept == text {
            return Ok(kept.trim_matches(is_blank).to_owned());
        }
        text = kept;
    }
    text.retain(|c| !is_contextual(c));
    Ok(NFC.normalize(&text).trim_matches(is_blank).to_owned())
}

/// How often a text is looked through for joiners and selectors that show nothing. What people write is clean after two; in a made-up text
/// each can take a pass of its own, and then none is kept.
const PASSES: usize = 8;

/// White space, and the characters whose glyph is empty by their name and nature: BRAILLE PATTERN BLANK, EGYPTIAN HIEROGLYPH
/// FULL BLANK and HALF BLANK, MUSICAL SYMBOL NULL NOTEHEAD.
fn is_blank(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{2800}' | '\u{13441}' | '\u{13442}' | '\u{1D159}')
}

/// What shows nothing wherever it stands.
fn shows_nothing(c: char) -> bool {
    let ignorable = DefaultIgnorableCodePoint::for_char(c) && !is_contextual(c);
    // U+FFF9 to U+FFFB enclose an annotation; they were taken out of the ignorable ones, but plain text shows none.
    ignorable || NoncharacterCodePoint::for_char(c) || matches!(c, '\u{FFF9}'..='\u{FFFB}')
}

const NON_JOINER: char = '\u{200C}';
const JOINER: char = '\u{200D}';
const BLACK_FLAG: char = '\u{1F3F4}';
const CANCEL_TAG: char = '\u{E007F}';

/// What shows something or nothing depending on what stands beside it.
const fn is_contextual(c: char) -> bool {
    matches!(c,
        NON_JOINER | JOINER
        // Mongolian free variation selectors and vowel separator
        | '\u{180B}'..='\u{180F}'
        // Variation selectors
        | '\u{FE00}'..='\u{FE0F}' | '\u{E0100}'..='\u{E01EF}'
        // Tags
        | '\u{E0020}'..=CANCEL_TAG)
}

/// What stands before the place that is looked at.
#[derive(Default)]
struct Before {
    /// The very character before, if it was kept.
    last: Option<char>,
    /// The last that joins or does not: marks are passed over.
    letter: Option<char>,
    /// Whether the last that is no extension, such as a skin tone, is a pictograph.
    pictograph: bool,
}

/// What stands behind it; contextual characters are passed over, for they may not stay.
#[derive(Clone, Copy, Default)]
struct Behind {
    next: Option<char>,
    letter: Option<char>,
}

/// Drops joiners, selectors and tags where they show nothing.
fn joined(text: &str) -> Cow<'_, str> {
    if !text.contains(is_contextual) {
        return Cow::Borrowed(text);
    }
    let mut behind: Vec<(char, Behind)> = Vec::new();
    let mut coming = Behind::default();
    for c in text.chars().rev() {
        behind.push((c, coming));
        if !is_contextual(c) {
            coming.next = Some(c);
            if !is_transparent(c) {
                coming.letter = Some(c);
            }
        }
    }
    let (mut kept, mut before, mut tags) = (String::new(), Before::default(), 0_usize);
    while let Some((c, coming)) = behind.pop() {
        if c == BLACK_FLAG {
            tags = subdivision(behind.iter().rev().map(|(c, _)| *c));
        }
        let is_kept = match c {
            '\u{E0020}'..=CANCEL_TAG => tags.checked_sub(1).map(|left| tags = left).is_some(),
            _ if is_contextual(c) => is_seen(c, &before, coming),
            _ => true,
        };
        if is_kept {
            kept.push(c);
            before.pass(c);
        }
    }
    Cow::Owned(kept)
}

impl Before {
    fn pass(&mut self, c: char) {
        self.last = Some(c);
        if is_contextual(c) {
            return;
        }
        if !is_transparent(c) {
            self.letter = Some(c);
        }
        if !GraphemeExtend::for_char(c) && !matches!(c, '\u{1F3FB}'..='\u{1F3FF}') {
            self.pictograph = ExtendedPictographic::for_char(c);
        }
    }
}

/// How many tags behind a black flag make it that of a subdivision, such as England: 3 to 6 letters and digits, and their
/// end. Any other tags are hidden text.
fn subdivision(behind: impl Iterator<Item = char>) -> usize {
    let mut letters = 0_usize;
    for c in behind.take(7) {
        match c {
            '\u{E0030}'..='\u{E0039}' | '\u{E0061}'..='\u{E007A}' => letters = letters.saturating_add(1),
            CANCEL_TAG if (3..=6).contains(&letters) => return letters.saturating_add(1),
            _ => return 0,
        }
    }
    0
}

/// Whether a joiner or selector changes what its neighbours look like.
fn is_seen(c: char, before: &Before, behind: Behind) -> bool {
    let Some(last) = before.last.filter(|last| !is_blank(*last)) else { return false };
    match c {
        JOINER => is_joining(last, before, behind),
        NON_JOINER => is_parting(last, before, behind),
        // One selector for each character, and none for a selector.
        _ if is_contextual(last) => false,
        '\u{180E}' => is_mongolian(last) && behind.next.is_some_and(is_mongolian),
        '\u{180B}'..='\u{180F}' => is_mongolian(last),
        // A digit is an emoji only in a keycap.
        '\u{FE0E}' | '\u{FE0F}' if last.is_ascii() => {
            Emoji::for_char(last) && behind.next == Some('\u{20E3}')
        }
        '\u{FE0E}' | '\u{FE0F}' => Emoji::for_char(last),
        '\u{E0100}'..='\u{E01EF}' => Ideographic::for_char(last),
        // Symbols and letters of many scripts have variants, but none of those with case.
        _ => !last.is_ascii() && !Cased::for_char(last),
    }
}

/// Whether a joiner joins: pictographs into one, a conjunct (by a virama on either side), or a letter that its neighbour
/// does not join anyway.
fn is_joining(last: char, before: &Before, behind: Behind) -> bool {
    let pictographs = before.pictograph && behind.next.is_some_and(ExtendedPictographic::for_char);
    let conjunct = is_virama(last) || behind.next.is_some_and(is_virama);
    let letter = joins_onward(before.letter) != joins_back(behind.letter);
    !matches!(last, JOINER | NON_JOINER) && (pictographs || conjunct || letter)
}

/// Whether a non-joiner parts what would join: two letters, or a conjunct.
fn is_parting(last: char, before: &Before, behind: Behind) -> bool {
    // A blank that counts as a letter is trimmed where it is the last.
    let conjunct =
        is_virama(last) && behind.letter.is_some_and(|letter| letter.is_alphabetic() && !is_blank(letter));
    let letters = joins_onward(before.letter) && joins_back(behind.letter);
    !matches!(last, JOINER | NON_JOINER) && (conjunct || letters)
}

fn is_mongolian(c: char) -> bool {
    matches!(c, '\u{1820}'..='\u{18AA}')
}

fn is_virama(c: char) -> bool {
    CanonicalCombiningClassMapBorrowed::new().get(c) == CanonicalCombiningClass::Virama
}

fn is_transparent(c: char) -> bool {
    JoiningType::for_char(c) == JoiningType::Transparent
}

fn joins_onward(c: Option<char>) -> bool {
    let of = c.map(JoiningType::for_char);
    matches!(of, Some(JoiningType::DualJoining | JoiningType::LeftJoining | JoiningType::JoinCausing))
}

fn joins_back(c: Option<char>) -> bool {
    let of = c.map(JoiningType::for_char);
    matches!(of, Some(JoiningType::DualJoining | JoiningType::RightJoining | JoiningType::JoinCausing))
}

/// Makes a newtype over text: `parse` reads it, serde goes through it. `$read` takes the text and the largest number of
/// characters.
macro_rules! text_type {
    ($(#[$meta:meta])* $name:ident, $max:literal, $read:expr) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The largest number of characters.
            pub const MAX: usize = $max;

            /// Reads `text` and checks it against the type's bounds.
            ///
            /// # Errors
            /// [`TextError`](crate::TextError) names the bound that was broken.
            pub fn parse(text: impl Into<String>) -> Result<Self, crate::TextError> {
                Ok(Self($read(text.into(), Self::MAX)?))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = crate::TextError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::parse(text)
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
pub(crate) use text_type;

/// Makes a [`text_type!`] of a text that is shown to people.
macro_rules! shown_type {
    ($(#[$meta:meta])* $name:ident, $max:literal, $max_bytes:literal) => {
        $crate::text::text_type!(
            $(#[$meta])*
            $name, $max, |text, max| crate::text::shown(text, max, $name::MAX_BYTES)
        );

        impl $name {
            /// The largest number of bytes.
            pub const MAX_BYTES: usize = $max_bytes;

            /// Reads a text that need not be given: a blank one is none.
            ///
            /// # Errors
            /// [`TextError`](crate::TextError) names the bound that was broken.
            pub fn parse_optional(text: impl Into<String>) -> Result<Option<Self>, crate::TextError> {
                match Self::parse(text) {
                    Err(crate::TextError::Empty { .. }) => Ok(None),
                    parsed => parsed.map(Some),
                }
            }
        }
    };
}
pub(crate) use shown_type;
