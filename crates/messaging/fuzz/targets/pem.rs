//! Whatever stands in a PEM file: it is read whole or refused, success is never empty and never more than the file held, and
//! no error quotes it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use muster_messaging::tls::certificate::Certificate;
use muster_messaging::tls::pem::{MAX_PEM, PemError, Purpose, read};

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

    for purpose in [Purpose::Authorities, Purpose::Chain, Purpose::Key] {
        match read(&pem, purpose) {
            Ok(blocks) => {
                assert!(pem.len() <= MAX_PEM);
                let all = blocks.certificates.len() + blocks.keys.len() + blocks.parameters;
                assert_eq!(all, count("-----BEGIN "), "every block is read");
                match purpose {
                    Purpose::Authorities => {
                        assert!(!blocks.certificates.is_empty() && blocks.keys.is_empty())
                    }
                    Purpose::Chain => assert!(!blocks.certificates.is_empty()),
                    Purpose::Key => assert_eq!(blocks.keys.len(), 1),
                }
                let certificates = blocks.certificates.iter().map(|(_, der)| der.len());
                let keys = blocks.keys.iter().map(|(_, key)| key.secret_der().len());
                assert!(certificates.chain(keys).sum::<usize>() <= pem.len());
                for (_, der) in &blocks.certificates {
                    if let Ok(facts) = Certificate::parse(der) {
                        assert!(facts.names.len() <= 100 && facts.fingerprint.len() == 64);
                    }
                }
            }
            Err(error) => assert_quotes_nothing(&error, &pem),
        }
    }

    // A file over the bound is refused unread, whatever it begins with.
    if data.first() == Some(&b'#') {
        pem.resize(MAX_PEM + 1, b'\n');
        assert!(matches!(read(&pem, Purpose::Chain), Err(PemError::TooLarge)));
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
