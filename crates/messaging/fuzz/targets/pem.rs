//! Whatever stands in a PEM file: success is never empty and never more than the file held, and no error quotes it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use muster_messaging::tls::certificate::Certificate;
use muster_messaging::tls::pem::{MAX_PEM, PemError, read_certificates, read_private_key};

/// What the bytes 0 to 7 stand for, so that no corpus needs to hold anything that looks like a key.
const LABELS: [(&str, &str); 8] = [
    ("BEGIN", "CERTIFICATE"),
    ("END", "CERTIFICATE"),
    ("BEGIN", "PRIVATE KEY"),
    ("END", "PRIVATE KEY"),
    ("BEGIN", "EC PRIVATE KEY"),
    ("END", "EC PRIVATE KEY"),
    ("BEGIN", "RSA PRIVATE KEY"),
    ("END", "RSA PRIVATE KEY"),
];

fuzz_target!(|data: &[u8]| {
    let mut pem = Vec::new();
    for &byte in data {
        match LABELS.get(usize::from(byte)) {
            Some((edge, label)) => pem.extend_from_slice(format!("\n-----{edge} {label}-----\n").as_bytes()),
            None => pem.push(byte),
        }
    }
    let count = |wanted: &str| pem.windows(wanted.len()).filter(|part| *part == wanted.as_bytes()).count();

    match read_certificates(&pem) {
        Ok(chain) => {
            assert!(pem.len() <= MAX_PEM);
            assert!(!chain.is_empty());
            assert!(chain.len() <= count("BEGIN CERTIFICATE"));
            assert!(chain.iter().map(|der| der.len()).sum::<usize>() <= pem.len());
            for der in &chain {
                if let Ok(facts) = Certificate::parse(der) {
                    assert!(facts.names.len() <= 100 && facts.fingerprint.len() == 64);
                }
            }
        }
        Err(error) => assert_quotes_nothing(&error, &pem),
    }
    match read_private_key(&pem) {
        Ok(key) => {
            assert!(pem.len() <= MAX_PEM);
            assert!(key.secret_der().len() <= pem.len());
            assert!(count("PRIVATE KEY") >= 1);
        }
        Err(error) => assert_quotes_nothing(&error, &pem),
    }

    // A file over the bound is refused unread, whatever it begins with.
    if data.first() == Some(&b'#') {
        pem.resize(MAX_PEM + 1, b'\n');
        assert!(matches!(read_certificates(&pem), Err(PemError::TooLarge)));
        assert!(matches!(read_private_key(&pem), Err(PemError::TooLarge)));
    }
});

/// No word of the file of 16 bytes or more stands in the error or its causes: the file may hold a key.
fn assert_quotes_nothing(error: &PemError, pem: &[u8]) {
    let mut text = format!("{error} {error:?}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&error.to_string());
        cause = error.source();
    }
    for word in pem.split(|byte| !byte.is_ascii_alphanumeric()).filter(|word| word.len() >= 16) {
        let word = String::from_utf8_lossy(word);
        assert!(!text.contains(word.as_ref()), "{text} quotes {word}");
    }
}
