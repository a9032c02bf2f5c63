//! What a shown text is: what is dropped, what is blank, how length is counted, and what is equal without regard to case.

#![expect(clippy::unwrap_used, reason = "what a test stands on fails as the test does")]

use icu_properties::props::{EnumeratedProperty, GeneralCategory};
use muster_domain::{Awarder, BadgeKind, CommunityName, Nym, NymKey, Reason, SearchQuery, TextError, UserId};
use proptest::prelude::*;
use unicode_normalization::UnicodeNormalization;

fn nym(given: &str) -> Result<String, TextError> {
    Nym::parse(given).map(String::from)
}

fn key(given: &str) -> String {
    Nym::parse(given).unwrap().key().as_str().to_owned()
}

#[test]
fn case_variants_have_one_key() {
    for (one, other) in [
        (
            "\u{39f}\u{394}\u{3a5}\u{3a3}\u{3a3}\u{395}\u{3a5}\u{3a3}",
            "\u{39f}\u{3b4}\u{3c5}\u{3c3}\u{3c3}\u{3b5}\u{3c5}\u{3c2}",
        ),
        ("STRASSE", "Stra\u{df}e"),
        ("STRA\u{1e9e}E", "strasse"),
        ("\u{fb01}n", "FIN"),
        ("\u{17f}ea", "SEA"),
        ("\u{13a0}\u{13f0}", "\u{ab70}\u{13f8}"),
        ("\u{1c90}", "\u{10d0}"),
        ("\u{10400}", "\u{10428}"),
        ("\u{212b}ngstr\u{f6}m", "a\u{30a}ngstro\u{308}m"),
        ("\u{212a}elvin", "kelvin"),
        // U+0345 moves when it is folded: the reason for decomposing first.
        ("\u{1fc3}\u{301}", "\u{3b7}\u{301}\u{3b9}"),
        ("\u{1fb4}", "\u{391}\u{301}\u{399}"),
        ("\u{130}", "i\u{307}"),
        ("\u{1f0}", "J\u{30c}"),
        ("\u{149}", "\u{2bc}N"),
        // Compatibility forms, one of which hides capitals.
        ("\u{ff33}\u{ff34}il\u{ff27}ar", "stilgar"),
        ("\u{3392}", "mhz"),
        ("\u{2460}", "1"),
        // What joins and what selects a look is passed over.
        ("\u{2764}\u{fe0f}", "\u{2764}"),
        (
            "\u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645}",
            "\u{645}\u{6cc}\u{62e}\u{648}\u{627}\u{647}\u{645}",
        ),
    ] {
        assert_eq!(key(one), key(other), "{one} {other}");
        assert_eq!(SearchQuery::parse(one).unwrap().key().as_str(), key(other), "{one} {other}");
    }
    // No language is favoured, and accents count.
    for (one, other) in [("I", "\u{131}"), ("\u{130}", "i"), ("e", "\u{e9}"), ("\u{e5}", "a")] {
        assert_ne!(key(one), key(other), "{one} {other}");
    }
}

#[test]
fn invisible_marks_are_dropped() {
    // Marks of direction, overrides, isolates, zero-width and soft ones, fillers, controls, annotations, noncharacters.
    for mark in "\u{200e}\u{200f}\u{61c}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}\u{200b}\u{2060}\
        \u{2061}\u{2062}\u{2063}\u{2064}\u{2065}\u{206a}\u{206f}\u{feff}\u{ad}\u{34f}\u{3164}\u{115f}\u{1160}\u{ffa0}\u{17b4}\u{17b5}\
        \u{1bca0}\u{1d173}\u{1d17a}\u{fff9}\u{fffb}\u{fff0}\u{e0001}\u{e01f0}\0\u{1}\u{1b}\u{7f}\u{9b}\u{ffff}\u{fdd0}\u{10ffff}"
        .chars()
    {
        assert_eq!(nym(&format!("{mark}\u{5d0}{mark}b{mark}")), Ok("\u{5d0}b".to_owned()), "{mark:?}");
        assert_eq!(nym(&mark.to_string()), Err(TextError::Empty { max: 32 }), "{mark:?}");
    }
    // A line break is seen: as a space.
    for space in "\t\n\u{b}\u{c}\r\u{85}\u{2028}\u{2029}".chars() {
        assert_eq!(nym(&format!("{space}a{space}b{space}")), Ok("a b".to_owned()), "{space:?}");
    }
}

#[test]
fn a_blank_text_is_refused_as_empty() {
    for blank in [
        "",
        "  ",
        "\u{200b}",
        "\u{3000}\u{a0}\u{2003}\u{1680}",
        "\u{3164}\u{3164}",
        "\u{2800} \u{2800}",
        "\u{1d159}",
        "\u{13441}",
        "\u{180e}",
        "\u{180b}",
        "\u{fe0f}\u{fe00}",
        "\u{200d}\u{200c}",
        "\u{e0020}\u{e0041}\u{e007f}",
        "\u{e0100}",
        "\u{202e} \u{202c}",
        "\u{2800}\u{fe0f}\u{200d}",
    ] {
        assert_eq!(nym(blank), Err(TextError::Empty { max: 32 }), "{blank:?}");
        assert_eq!(SearchQuery::parse(blank), Err(TextError::Empty { max: 100 }), "{blank:?}");
        assert_eq!(BadgeKind::parse(blank), Err(TextError::Empty { max: 64 }), "{blank:?}");
        assert_eq!(Nym::parse_optional(blank), Ok(None));
    }
    for seen in ["\u{301}", "-", "\u{e000}", "\u{1fffd}", "\u{fffc}"] {
        assert_eq!(nym(seen), Ok(seen.to_owned()));
    }
}

#[test]
fn joiners_and_variation_selectors_stay_where_they_are_visible() {
    for text in [
        "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}\u{200d}\u{1f466}",
        "\u{1f469}\u{1f3fd}\u{200d}\u{2764}\u{fe0f}\u{200d}\u{1f48b}\u{200d}\u{1f468}\u{1f3ff}",
        "\u{1f3f3}\u{fe0f}\u{200d}\u{1f308}",
        "\u{1f3f4}\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f}",
        "\u{1f1e9}\u{1f1ea}",
        "1\u{fe0f}\u{20e3}",
        "\u{2764}\u{fe0e}",
        "\u{845b}\u{e0100}",
        "\u{2229}\u{fe00}",
        // Persian: the non-joiner parts two letters. Arabic: the joiner lets the last letter reach out.
        "\u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645}",
        "\u{647}\u{64e}\u{200d}",
        // Conjuncts of Devanagari, Bengali, Malayalam and Sinhala.
        "\u{915}\u{94d}\u{200d}\u{937}",
        "\u{915}\u{94d}\u{200c}\u{937}",
        "\u{9b0}\u{200d}\u{9cd}\u{9af}",
        "\u{d28}\u{d4d}\u{200d}",
        "\u{dc1}\u{dca}\u{200d}\u{dbb}\u{dd3}",
        "\u{182d}\u{180e}\u{1820}",
        "\u{182d}\u{180b}\u{1820}",
    ] {
        assert_eq!(nym(text), Ok(text.to_owned()), "{text}");
    }
    for (given, left) in [
        ("a\u{200d}b", "ab"),
        ("a\u{200c}b", "ab"),
        ("\u{1f468}\u{200d}", "\u{1f468}"),
        ("\u{1f468}\u{200d}\u{200d}\u{1f469}", "\u{1f468}\u{200d}\u{1f469}"),
        ("\u{200d}\u{1f468}", "\u{1f468}"),
        ("a\u{fe0f}", "a"),
        ("1\u{fe0f}", "1"),
        ("\u{2764}\u{fe0f}\u{fe0f}\u{fe0e}", "\u{2764}\u{fe0f}"),
        ("\u{1f600}\u{e0061}\u{e007f}", "\u{1f600}"),
        ("\u{1f3f4}\u{e0067}\u{e0062}\u{e0065}", "\u{1f3f4}"),
        ("\u{1f3f4}\u{e0061}\u{e0061}\u{e0061}\u{e0061}\u{e0061}\u{e0061}\u{e0061}\u{e007f}", "\u{1f3f4}"),
        ("\u{645}\u{6cc}\u{200c}", "\u{645}\u{6cc}"),
        ("\u{62e}\u{648}\u{200c}\u{627}", "\u{62e}\u{648}\u{627}"),
        ("\u{628}\u{200d}\u{628}", "\u{628}\u{628}"),
        ("e\u{34f}\u{301}", "\u{e9}"),
        ("e\u{200d}\u{301}", "\u{e9}"),
    ] {
        assert_eq!(nym(given), Ok(left.to_owned()), "{given:?}");
    }
}

#[test]
fn length_is_counted_as_a_reader_does() {
    let family = "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f466}";
    for one in [
        "x",
        "\u{1f600}",
        "e\u{301}",
        "\u{1d160}",
        "\u{1f1e9}\u{1f1ea}",
        "\u{fb2c}",
        "\u{fdfa}",
        "\u{10fffd}",
    ] {
        assert!(nym(&one.repeat(32)).is_ok(), "{one}");
        assert_eq!(nym(&one.repeat(33)), Err(TextError::TooLong { length: 33, max: 32 }), "{one}");
    }
    assert!(nym(&"\u{1d160}".repeat(11)).is_ok());
    assert!(nym(&family.repeat(21)).is_ok());
    assert!(
        nym(&format!("{}{}", "x".repeat(32), "\u{200b}".repeat(100))).is_ok(),
        "what is dropped is not counted"
    );
    for heavy in [family.repeat(22), format!("e{}", "\u{301}".repeat(200)), "\u{1f600}".repeat(60_000)] {
        assert_eq!(nym(&heavy), Err(TextError::TooManyBytes { max: 384 }));
    }
    for nothing in ["\u{200b}", " ", "\u{200d}", "\u{2800}\u{fe0f}"] {
        assert_eq!(nym(&nothing.repeat(10_000)), Err(TextError::Empty { max: 32 }), "{nothing:?}");
    }
    assert_eq!(BadgeKind::parse("\u{1d160}".repeat(40)), Err(TextError::TooManyBytes { max: 256 }));
    assert!(BadgeKind::parse("\u{1f600}".repeat(64)).is_ok());
}

#[test]
fn every_shown_text_is_cleaned_alike() {
    let given = " \u{200f}Cafe\u{301}\u{200b}\n";
    assert_eq!(BadgeKind::parse(given).unwrap(), BadgeKind::parse("Caf\u{e9}").unwrap());
    assert_eq!(Reason::parse(given).unwrap().as_str(), "Caf\u{e9}");
    assert_eq!(Awarder::parse(given).unwrap().as_str(), "Caf\u{e9}");
    assert_eq!(CommunityName::parse(given).unwrap().as_str(), "Caf\u{e9}");
    assert_eq!(nym(given).unwrap(), "Caf\u{e9}");
    assert_ne!(BadgeKind::parse("a").unwrap(), BadgeKind::parse("A").unwrap(), "the case of a kind counts");
}

/// What must hold of a nym and of its key, whatever was given.
fn holds(given: &str) -> Result<(), TestCaseError> {
    let Ok(nym) = Nym::parse(given) else { return Ok(()) };
    let (text, key) = (nym.as_str(), nym.key());
    prop_assert!(
        unicode_normalization::is_nfc(text) && text.trim() == text && !text.contains(char::is_control),
        "{given:?}"
    );
    prop_assert!(text.len() <= Nym::MAX_BYTES);
    prop_assert!((1..=NymKey::MAX).contains(&key.as_str().chars().count()), "{given:?}");
    prop_assert_eq!(Nym::parse(text), Ok(nym.clone()), "{:?} is not stable", given);
    for equivalent in [given.nfd().collect::<String>(), given.nfc().collect()] {
        prop_assert_eq!(Nym::parse(equivalent), Ok(nym.clone()), "{:?}", given);
    }
    // Upper case is defined of decomposed text: elsewhere it moves U+0345 before other marks.
    let decomposed: String = text.nfd().collect();
    let spellings = [text.to_lowercase(), decomposed.to_uppercase(), decomposed, text.nfkc().collect()];
    for spelling in spellings {
        // Cut keys and those of texts that outgrow the bounds are compared no further.
        if let Ok(other) = Nym::parse(spelling)
            && key.as_str().chars().count() < NymKey::MAX
            && !text.contains(['\u{130}', '\u{131}'])
        {
            prop_assert_eq!(other.key(), key.clone(), "{:?}", given);
        }
    }
    Ok(())
}

#[test]
fn marks_that_change_places_leave_no_selector_behind() {
    // Without the joiner U+0301 goes before U+0345, so the selector stands behind another mark.
    holds("\u{345}\u{200c}\u{301}\u{fe00}").unwrap();
    // A letter of title case has case, too: in lower case it keeps no selector, behind which marks stay in their places.
    holds("\u{391}\u{345}\u{fe00}\u{f73}").unwrap();
}

/// Each pass finds one selector more that shows nothing: as many passes would be the square of the text. So the heart loses its
/// selector, too.
#[test]
fn a_text_whose_every_mark_takes_a_pass_is_cleaned_in_a_few() {
    let made_up =
        |marks: usize| format!("\u{2764}\u{fe0f}a\u{345}\u{fe00}{}", "\u{301}\u{fe00}".repeat(marks));
    for (marks, heart) in [(3, "\u{2764}\u{fe0f}"), (30, "\u{2764}\u{e1}")] {
        holds(&made_up(marks)).unwrap();
        let cleaned = Reason::parse(made_up(marks)).unwrap();
        assert!(cleaned.as_str().starts_with(heart) && !cleaned.as_str().contains('\u{fe00}'), "{cleaned:?}");
    }
    let refused = Reason::parse(made_up(9_000));
    assert!(matches!(refused, Err(TextError::TooManyBytes { .. })), "{refused:?}");
}

#[test]
fn every_character_is_cleaned_and_folded_once() {
    // Letters without case or decomposition are alike, and most of all characters.
    let is_special = |c: char| {
        let is_changed =
            c.to_lowercase().ne([c]) || c.to_uppercase().ne([c]) || [c].into_iter().nfkd().ne([c]);
        let is_assigned = GeneralCategory::for_char(c) != GeneralCategory::Unassigned;
        let is_syllable = matches!(c, '\u{ac00}'..='\u{d7a3}' | '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..);
        (is_changed || (is_assigned && !c.is_alphanumeric())) && !is_syllable
    };
    for c in ('\0'..=char::MAX).filter(|c| is_special(*c) && !matches!(c, '\u{130}' | '\u{131}')) {
        holds(&format!("{c}\u{1f468}{c}\u{301}{c}\u{628}")).unwrap();
    }
}

/// Pieces of which texts go wrong: letters, marks, joiners, selectors, tags, fillers, blanks.
fn awkward() -> impl Strategy<Value = String> {
    let piece = proptest::sample::select(
        "aS\u{df}\u{130}\u{3a3}\u{345}\u{391}\u{301}\u{323}\u{34f} \u{a0}\u{2800}\u{200b}\u{200c}\u{200d}\u{200f}\u{fe0f}\u{fe00}\u{e0100}\
         \u{e0067}\u{e007f}\u{1f3f4}\u{1f468}\u{2764}1\u{20e3}\u{645}\u{64e}\u{627}\u{915}\u{94d}\u{93c}\u{1160}\u{1100}\u{1161}\u{11a8}\
         \u{182d}\u{180b}\u{180e}\u{1d160}\u{fdfa}\u{fb2c}\u{13a0}\u{1fc3}\u{f73}\u{f71}\u{f72}\u{845b}\u{f900}\u{ff21}\u{13441}\u{13442}\n\0"
            .chars()
            .collect::<Vec<_>>(),
    );
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn awkward_texts_are_stable_and_have_one_key(given in awkward()) {
        holds(&given)?;
    }

    #[test]
    fn any_text_is_answered_not_panicked_at(given: String) {
        holds(&given)?;
        let _ = (SearchQuery::parse(given.as_str()), BadgeKind::parse(given.as_str()), Reason::parse(given.as_str()));
    }

    #[test]
    fn a_nameless_member_is_called_by_an_id_that_is_a_nym(id in "[!-~]{1,64}") {
        let named = Nym::of_user(&UserId::parse(id.as_str()).unwrap());
        prop_assert_eq!(Nym::parse(named.as_str()), Ok(named.clone()));
        // The database makes the key of this in ASCII.
        prop_assert_eq!(named.key().as_str().to_owned(), named.as_str().to_ascii_lowercase());
    }
}
