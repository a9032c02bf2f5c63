//! PEM files as certificates and keys. Nothing else in the workspace reads PEM.
//!
//! A file is read whole or refused: each of its blocks is given back, and where one cannot be, the error names its line.
//! Text outside of blocks is passed over, unless it may be what is left of one.
//!
//! 2026-11-24: rustls-pemfile is archived (RUSTSEC-2025-0134), a thin layer over `rustls_pki_types::pem::PemObject`,
//! which is its successor. It is named in this file alone, so that the change is made here alone. It passes over without a
//! word what does not begin a line, or has a label that it does not know; so it is handed one block at a time.

use std::fmt;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The largest PEM file that is read: 1 MiB, several times a system's whole certificate store.
pub const MAX_PEM: usize = 1024 * 1024;

/// What a file is read for, which decides what it may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Authorities to trust: certificates, at least one, and nothing else.
    Authorities,
    /// One's own chain: certificates, at least one. A key beside them is another setting's.
    Chain,
    /// One private key. Certificates beside it are another setting's.
    Key,
}

/// Every block of a file, each with the line that it begins in.
#[derive(Debug)]
pub struct Blocks {
    /// The certificates, in the file's order.
    pub certificates: Vec<(usize, CertificateDer<'static>)>,
    /// The private keys, in the file's order.
    pub keys: Vec<(usize, PrivateKeyDer<'static>)>,
    /// How many blocks hold parameters, which the key repeats.
    pub parameters: usize,
}

/// Reads every block of a PEM file.
///
/// # Errors
/// [`PemError`] when the file is too large, when anything that looks like a block of it is not read, or when it does not
/// hold what it is read for.
pub fn read(pem: &[u8], purpose: Purpose) -> Result<Blocks, PemError> {
    if pem.len() > MAX_PEM {
        return Err(PemError::TooLarge);
    }
    if let Some(form) = foreign(pem, purpose) {
        return Err(PemError::Foreign(form));
    }
    let mut blocks = Blocks { certificates: Vec::new(), keys: Vec::new(), parameters: 0 };
    let mut open: Option<Open> = None;
    for (line, text) in lines(pem) {
        let at = |fault| PemError::At { line, fault };
        match (marker(text).map_err(at)?, open.take()) {
            (Some(Marker::Begin(label)), None) => {
                open = Some(Open { line, label: wanted(label, purpose).map_err(at)?, body: Vec::new() });
            }
            (Some(Marker::Begin(_)), Some(begun)) => return Err(at(Fault::BeginsWithin(begun.line))),
            (Some(Marker::End(_)), None) => return Err(at(Fault::EndsNothing)),
            (Some(Marker::End(label)), Some(begun)) if label != begun.label.as_bytes() => {
                return Err(at(Fault::EndsAnother(begun.line)));
            }
            (Some(Marker::End(_)), Some(begun)) => blocks.add(&begun)?,
            (None, None) if is_body(text) && text.len() >= STRAY => return Err(at(Fault::Stray)),
            (None, None) => {}
            (None, Some(begun)) if text.starts_with(b"Proc-Type:") && text.ends_with(b"ENCRYPTED") => {
                return Err(PemError::At { line: begun.line, fault: Fault::Foreign(ENCRYPTED) });
            }
            (None, Some(mut begun)) if text.iter().all(|byte| is_base64(*byte)) => {
                begun.body.extend_from_slice(text);
                begun.body.push(b'\n');
                open = Some(begun);
            }
            (None, Some(begun)) => return Err(at(Fault::NotBase64(begun.line))),
        }
    }
    if let Some(begun) = open {
        return Err(PemError::At { line: begun.line, fault: Fault::Truncated });
    }
    match (purpose, blocks.certificates.is_empty(), &blocks.keys[..]) {
        (Purpose::Authorities | Purpose::Chain, true, _) => Err(PemError::NoCertificate),
        (Purpose::Key, _, []) => Err(PemError::NoKey),
        (Purpose::Key, _, [(first, _), (line, _), ..]) => {
            Err(PemError::At { line: *line, fault: Fault::SecondKey(*first) })
        }
        _ => Ok(blocks),
    }
}

/// A block that has begun.
struct Open {
    line: usize,
    label: &'static str,
    body: Vec<u8>,
}

impl Blocks {
    fn add(&mut self, block: &Open) -> Result<(), PemError> {
        // The cause is not kept: it may quote a line of the file.
        let damaged = || PemError::At { line: block.line, fault: Fault::Damaged };
        if PARAMETERS.contains(&block.label) {
            self.parameters = self.parameters.saturating_add(1);
            return Ok(());
        }
        let marker = |edge: &str| format!("-----{edge} {}-----\n", block.label).into_bytes();
        let pem = [marker("BEGIN"), block.body.clone(), marker("END")].concat();
        let (item, _) =
            rustls_pemfile::read_one_from_slice(&pem).map_err(|_| damaged())?.ok_or_else(damaged)?;
        let key = match item {
            rustls_pemfile::Item::X509Certificate(certificate) => {
                self.certificates.push((block.line, certificate));
                return Ok(());
            }
            rustls_pemfile::Item::Pkcs1Key(key) => PrivateKeyDer::Pkcs1(key),
            rustls_pemfile::Item::Pkcs8Key(key) => PrivateKeyDer::Pkcs8(key),
            rustls_pemfile::Item::Sec1Key(key) => PrivateKeyDer::Sec1(key),
            _ => return Err(damaged()),
        };
        self.keys.push((block.line, key));
        Ok(())
    }
}

/// From how many characters on a line of Base64 outside of a block is taken for a piece of one.
const STRAY: usize = 48;
const CERTIFICATE: &str = "CERTIFICATE";
const KEYS: [&str; 3] = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"];
const PARAMETERS: [&str; 2] = ["EC PARAMETERS", "DH PARAMETERS"];
const ENCRYPTED: &str = "a key that is encrypted, and nobody is there to give its passphrase: write it anew with \
     `openssl pkey -in FILE -out NEW`, and let only this user read it";
/// Blocks that others know, and what to do about each.
const OTHERS: [(&str, &str); 11] = [
    ("ENCRYPTED PRIVATE KEY", ENCRYPTED),
    (
        "OPENSSH PRIVATE KEY",
        "a key in OpenSSH's form: write a copy anew with `ssh-keygen -p -m PKCS8 -f FILE`",
    ),
    (
        "DSA PRIVATE KEY",
        "a DSA key, which TLS does not use any more: have a certificate issued for another kind",
    ),
    (
        "TRUSTED CERTIFICATE",
        "a certificate in OpenSSL's own form: write it anew with `openssl x509 -in FILE -out NEW`",
    ),
    (
        "X509 CERTIFICATE",
        "a certificate under an old label: write it anew with `openssl x509 -in FILE -out NEW`",
    ),
    ("X509 CRL", "a revocation list, which is not used here: take it out"),
    (
        "CERTIFICATE REQUEST",
        "a request for a certificate: put the certificate that was issued for it in its place",
    ),
    (
        "NEW CERTIFICATE REQUEST",
        "a request for a certificate: put the certificate that was issued for it in its place",
    ),
    (
        "PKCS7",
        "a PKCS #7 bundle: take its certificates out with `openssl pkcs7 -print_certs -in FILE -out NEW`",
    ),
    ("CMS", "a CMS bundle: take its certificates out with `openssl cms` or `openssl pkcs7 -print_certs`"),
    ("PUBLIC KEY", "a public key, which is not used here: take it out"),
];

/// The label of a block that a file of this purpose may hold.
fn wanted(label: &[u8], purpose: Purpose) -> Result<&'static str, Fault> {
    let same = |known: &&str| known.as_bytes() == label;
    if same(&CERTIFICATE) {
        return Ok(CERTIFICATE);
    }
    match (KEYS.into_iter().chain(PARAMETERS).find(same), purpose) {
        (Some(_), Purpose::Authorities) => Err(Fault::KeyAmongAuthorities),
        (Some(label), Purpose::Chain | Purpose::Key) => Ok(label),
        (None, _) => {
            let other = OTHERS.into_iter().find(|(known, _)| same(known));
            Err(other.map_or(Fault::UnknownLabel, |(_, what)| Fault::Foreign(what)))
        }
    }
}

/// The lines of a file with their numbers, without blanks and byte order marks at their edges. A boundary that lacks its
/// newline, as `cat` makes it of two files, is parted.
fn lines(pem: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    const JOINT: &[u8] = b"----------BEGIN ";
    let lines = pem.split(|byte| *byte == b'\n').flat_map(|line| {
        line.strip_suffix(b"\r")
            .unwrap_or(line)
            .split(|byte| *byte == b'\r')
            .map(|line| line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line).trim_ascii())
    });
    (1..).zip(lines).flat_map(|(number, line)| {
        let joint = line.starts_with(b"-----END ").then(|| {
            let joint = line.windows(JOINT.len()).position(|window| window == JOINT)?;
            line.split_at_checked(joint.saturating_add(5))
        });
        let (first, second) = joint.flatten().map_or((line, None), |(end, begin)| (end, Some(begin)));
        std::iter::once(first).chain(second).map(move |line| (number, line))
    })
}

enum Marker<'a> {
    Begin(&'a [u8]),
    End(&'a [u8]),
}

/// The marker that a line is, or none; a line that only resembles one is a fault.
fn marker(line: &[u8]) -> Result<Option<Marker<'_>>, Fault> {
    let label = |edge: &[u8]| {
        let label = line.strip_prefix(b"-----")?.strip_prefix(edge)?.strip_suffix(b"-----")?;
        (!label.is_empty() && !label.contains(&b'-')).then_some(label)
    };
    match (label(b"BEGIN "), label(b"END ")) {
        (Some(label), _) => Ok(Some(Marker::Begin(label))),
        (_, Some(label)) => Ok(Some(Marker::End(label))),
        _ if line.contains(&0) => Err(Fault::Nul),
        _ if resembles_a_marker(line) => Err(Fault::Marker),
        _ => Ok(None),
    }
}

/// Whether a line may have been meant as a marker: with dashes lost, or made into others by a word processor, in lower
/// case, or with something before or behind it.
fn resembles_a_marker(line: &[u8]) -> bool {
    const FIRST: [&str; 14] = [
        "ANY",
        "CERTIFICATE",
        "CMS",
        "DH",
        "DSA",
        "EC",
        "ENCRYPTED",
        "NEW",
        "OPENSSH",
        "PKCS",
        "PRIVATE",
        "PUBLIC",
        "RSA",
        "TRUSTED",
    ];
    let text = String::from_utf8_lossy(line).to_ascii_uppercase();
    // What is no UTF-8 may be a dash of another encoding.
    let dash = |c| {
        matches!(
            c,
            '-' | '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{fe58}' | '\u{fe63}' | '\u{ff0d}' | '\u{fffd}'
        )
    };
    if text.contains("-----BEGIN") || text.contains("-----END") {
        return true;
    }
    let mut words = text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty()).peekable();
    let mut edge = false;
    while let Some(word) = words.next() {
        edge |= matches!(word, "BEGIN" | "END")
            && words.peek().is_some_and(|next| FIRST.contains(next) || *next == "X");
    }
    edge && text.contains(dash)
}

/// Whether a line has the form of a block's: Base64, and not a row of digits or of one sign.
fn is_body(line: &[u8]) -> bool {
    line.iter().all(|byte| is_base64(*byte))
        && !line.iter().all(u8::is_ascii_hexdigit)
        && line.iter().any(u8::is_ascii_alphabetic)
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
}

/// What a file is that is no PEM at all, and what to do about it.
fn foreign(bytes: &[u8], purpose: Purpose) -> Option<&'static str> {
    if bytes.trim_ascii().is_empty() {
        return Some("empty: check that whatever writes it has done so");
    }
    let [first, second, rest @ ..] = bytes else { return None };
    let der = match (*first, *second) {
        (0x30, long @ 0x81..=0x84) => rest.get(usize::from(long & 0x0f)..),
        (0x30, short @ 1..=0x7f) if rest.len() == usize::from(short) => Some(rest),
        _ => None,
    };
    match (der, purpose) {
        (Some([2, 1, 3, ..]), _) => Some(
            "a PKCS #12 store: take key and certificates out with `openssl pkcs12 -in FILE -noenc -out NEW`",
        ),
        (Some(_), Purpose::Key) => {
            Some("DER, where PEM is needed: write it anew with `openssl pkey -inform der -in FILE -out NEW`")
        }
        (Some(_), _) => {
            Some("DER, where PEM is needed: write it anew with `openssl x509 -inform der -in FILE -out NEW`")
        }
        (None, _) if bytes.starts_with(&[0xfe, 0xed, 0xfe, 0xed]) => {
            Some("a Java key store: take key and certificates out with keytool and openssl pkcs12")
        }
        (None, _) if matches!((*first, *second), (0xff, 0xfe) | (0xfe, 0xff) | (0, b'-') | (b'-', 0)) => {
            Some("UTF-16, where ASCII or UTF-8 is needed: save it so")
        }
        (None, _) => None,
    }
}

/// Why a PEM file was refused. None of it quotes the file.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// Over [`MAX_PEM`] bytes.
    #[error("is over {MAX_PEM} bytes: give only the certificates or the key that are needed")]
    TooLarge,
    /// It is empty, or of another form, which is told together with what to do.
    #[error("is {0}")]
    Foreign(&'static str),
    /// A block was not read.
    #[error("is not read, for line {line} {fault}")]
    At {
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        fault: Fault,
    },
    /// There is no certificate.
    #[error("holds no certificate: it needs a block -----BEGIN CERTIFICATE-----")]
    NoCertificate,
    /// There is no private key.
    #[error("holds no private key: it needs one unencrypted block -----BEGIN PRIVATE KEY-----")]
    NoKey,
}

/// What is wrong with a line of a PEM file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A block begins within the one of that line.
    BeginsWithin(usize),
    /// A block ends that did not begin.
    EndsNothing,
    /// A block ends with another label than that of the line that it begins in.
    EndsAnother(usize),
    /// A block does not end.
    Truncated,
    /// It resembles a marker and is none.
    Marker,
    /// It belongs to the block of that line, and is not Base64.
    NotBase64(usize),
    /// It looks like a piece of a block, outside of any.
    Stray,
    /// It holds a NUL byte.
    Nul,
    /// The Base64 of the block that begins there cannot be decoded.
    Damaged,
    /// A block begins that is not used here; told together with what to do.
    Foreign(&'static str),
    /// A block begins whose label is not known.
    UnknownLabel,
    /// A key begins in a file of authorities.
    KeyAmongAuthorities,
    /// A key begins beside the one of that line.
    SecondKey(usize),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeginsWithin(begun) => write!(f, "begins a block before that of line {begun} has ended"),
            Self::EndsNothing => f.write_str("ends a block that has not begun"),
            Self::EndsAnother(begun) => write!(f, "has another label than line {begun}, whose block it ends"),
            Self::Truncated => f.write_str("begins a block that does not end: the file is truncated"),
            Self::Marker => f.write_str(
                "is not quite a marker: write -----BEGIN or -----END, the label and ----- on a line of their own",
            ),
            Self::NotBase64(begun) => write!(f, "is not Base64, in the block that begins in line {begun}"),
            Self::Stray => f.write_str("looks like a piece of a block whose -----BEGIN is lost"),
            Self::Nul => f.write_str("holds a NUL byte: save the file as ASCII or UTF-8"),
            Self::Damaged => f.write_str("begins a block whose Base64 is truncated or damaged"),
            Self::Foreign(what) => write!(f, "begins {what}"),
            Self::UnknownLabel => f.write_str("begins a block of a kind that is not known: take it out"),
            Self::KeyAmongAuthorities => f.write_str(
                "begins a key: a file of trusted authorities holds certificates only, so take it out, and see \
                 whether the authority's own key was given away",
            ),
            Self::SecondKey(first) => {
                write!(f, "begins a second key after that of line {first}: leave the one of the certificate")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A certificate and its key; no seven lines of it are the same in another one.
    fn signed() -> (String, String) {
        let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (signed.cert.pem().replace('\r', ""), signed.signing_key.serialize_pem().replace('\r', ""))
    }

    fn chain(pem: impl AsRef<[u8]>) -> Result<usize, PemError> {
        read(pem.as_ref(), Purpose::Chain).map(|blocks| blocks.certificates.len())
    }

    fn count(pem: &[u8], wanted: &str) -> usize {
        pem.windows(wanted.len()).filter(|part| *part == wanted.as_bytes()).count()
    }

    /// Pieces that are put together at random.
    const PIECES: [&str; 14] = [
        "-----BEGIN CERTIFICATE-----",
        "-----END CERTIFICATE-----",
        "-----BEGIN PRIVATE KEY-----",
        "-----END PRIVATE KEY-----",
        "-----BEGIN X509 CRL-----",
        "-----BEGIN EC PARAMETERS-----",
        "-----",
        "MAMCAQA=",
        "\n",
        "\n",
        "\r",
        " ",
        "\u{feff}",
        "a comment",
    ];

    proptest! {
        #[test]
        fn any_bytes_are_answered_not_panicked_at(pem: Vec<u8>) {
            for purpose in [Purpose::Authorities, Purpose::Chain, Purpose::Key] {
                let _ = read(&pem, purpose);
            }
        }

        #[test]
        fn every_pem_block_that_begins_is_read(pieces in prop::collection::vec(prop::sample::select(&PIECES[..]), 0..40)) {
            let pem = pieces.concat();
            for purpose in [Purpose::Authorities, Purpose::Chain, Purpose::Key] {
                if let Ok(blocks) = read(pem.as_bytes(), purpose) {
                    let read = blocks.certificates.len() + blocks.keys.len() + blocks.parameters;
                    prop_assert_eq!(read, count(pem.as_bytes(), "BEGIN "));
                    prop_assert_eq!(read, count(pem.as_bytes(), "END "));
                }
            }
        }
    }

    #[test]
    fn a_chain_file_holds_certificates_and_a_key_file_one_key() {
        let (certificate, key) = signed();
        assert_eq!(chain(format!("{certificate}{key}{certificate}")).unwrap(), 2);
        let one = |pem: String| read(pem.as_bytes(), Purpose::Key).map(|blocks| blocks.keys.len());
        assert_eq!(one(format!("{certificate}{key}")).unwrap(), 1);
        let parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
        assert_eq!(one(format!("{parameters}{key}")).unwrap(), 1);
        assert!(matches!(chain(&key), Err(PemError::NoCertificate)));
        assert!(matches!(one(certificate.clone()), Err(PemError::NoKey)));
        let second = one(format!("{key}{key}")).unwrap_err();
        let line = key.lines().count() + 1;
        assert!(
            matches!(second, PemError::At { line: at, fault: Fault::SecondKey(1) } if at == line),
            "{second}"
        );
        let among = read(format!("{certificate}{key}").as_bytes(), Purpose::Authorities).unwrap_err();
        assert!(matches!(among, PemError::At { fault: Fault::KeyAmongAuthorities, .. }), "{among}");
        assert!(matches!(chain(vec![b'x'; MAX_PEM + 1]), Err(PemError::TooLarge)));
    }

    #[test]
    fn every_block_is_read_however_the_file_was_put_together() {
        let (a, b) = (signed().0, signed().0);
        let both = format!("{a}{b}");
        let readable = [
            ("without a newline between", format!("{}{b}", a.trim_end())),
            ("without any at the end", both.trim_end().to_owned()),
            ("CRLF", both.replace('\n', "\r\n")),
            ("CR", both.replace('\n', "\r")),
            ("a byte order mark before each", format!("\u{feff}{a}\u{feff}{b}")),
            ("indented", both.lines().map(|line| format!("    {line}\n")).collect()),
            ("blanks behind", both.lines().map(|line| format!("{line} \t\n")).collect()),
            (
                "text around",
                format!(
                    "# ours\nsubject=CN = a\n{a}\nBag Attributes\n    localKeyID: 01\n{b}# end of the list\n"
                ),
            ),
        ];
        for (how, pem) in readable {
            assert_eq!(chain(&pem).unwrap(), 2, "{how}");
        }
        let thrice = [a.trim_end(), b.trim_end(), a.trim_end()].concat();
        assert_eq!(chain(thrice).unwrap(), 3);
        let latin1 = [b"# autorit\xe9\n", a.as_bytes()].concat();
        assert_eq!(chain(latin1).unwrap(), 1);
    }

    #[test]
    fn a_block_that_is_not_read_is_refused_by_its_line() {
        let (pem, key) = signed();
        let lines = pem.lines().count();
        let body: String =
            pem.lines().filter(|line| !line.starts_with('-')).map(|line| format!("{line}\n")).collect();
        let within = |from: &str, to: &str| format!("{pem}{}", pem.replacen(from, to, 1));
        let (begin, end) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
        let refused = [
            (within(begin, "-----BEGIN CERTIFICATE----"), 1, Fault::Marker),
            (within(begin, "----BEGIN CERTIFICATE-----"), 1, Fault::Marker),
            (within(begin, "-----BEGIN CERTIFICATE------"), 1, Fault::Marker),
            (within(begin, "-----begin certificate-----"), 1, Fault::Marker),
            (within(begin, "-----BEGIN\nCERTIFICATE-----"), 1, Fault::Marker),
            (within(begin, "–––––BEGIN CERTIFICATE–––––"), 1, Fault::Marker),
            (within(begin, "# -----BEGIN CERTIFICATE-----"), 1, Fault::Marker),
            (within(begin, "-----BEGIN CERTIFICATE----- # ours"), 1, Fault::Marker),
            (within(begin, "-----BE\nGIN CERTIFICATE-----"), 3, Fault::Stray),
            (within(begin, ""), 2, Fault::Stray),
            (format!("{pem}{end}\n"), 1, Fault::EndsNothing),
            (format!("{pem}{begin}\n"), 1, Fault::Truncated),
            (format!("{pem}{begin}\n{pem}"), 2, Fault::BeginsWithin(lines + 1)),
            (within(end, "-----END TRUSTED CERTIFICATE-----"), lines, Fault::EndsAnother(lines + 1)),
            (format!("{pem}{begin}\nM\0I\n{end}\n"), 2, Fault::Nul),
            (format!("{pem}{begin}\n# old\n{body}{end}\n"), 2, Fault::NotBase64(lines + 1)),
            (format!("{pem}{begin}\nMIIB=MIIB\n{end}\n"), 1, Fault::Damaged),
            (
                format!("{pem}-----BEGIN CERTIFCATE-----\n{body}-----END CERTIFCATE-----\n"),
                1,
                Fault::UnknownLabel,
            ),
            (format!("{pem}{}", key.replace("PRIVATE KEY", "SECRET")), 1, Fault::UnknownLabel),
        ];
        for (pem, line, fault) in refused {
            let error = chain(&pem).unwrap_err();
            let (at, found) = match error {
                PemError::At { line, fault } => (line, fault),
                other => panic!("{other}: {pem}"),
            };
            assert_eq!((at, found), (lines + line, fault), "{pem}");
        }
    }

    #[test]
    fn a_block_of_another_kind_is_refused_with_what_to_do() {
        let (pem, key) = signed();
        let legacy = key.replace("PRIVATE KEY", "RSA PRIVATE KEY").replacen(
            "-----\n",
            "-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00112233445566778899AABBCCDDEEFF\n\n",
            1,
        );
        for purpose in [Purpose::Chain, Purpose::Key] {
            let say = |pem: String| read(pem.as_bytes(), purpose).unwrap_err().to_string();
            for (label, told) in [
                ("ENCRYPTED PRIVATE KEY", "openssl pkey"),
                ("OPENSSH PRIVATE KEY", "ssh-keygen"),
                ("TRUSTED CERTIFICATE", "openssl x509"),
                ("X509 CRL", "revocation"),
                ("CERTIFICATE REQUEST", "request"),
                ("PKCS7", "openssl pkcs7"),
            ] {
                let said = say(format!("{pem}{}", key.replace("PRIVATE KEY", label)));
                assert!(said.contains(told), "{label}: {said}");
                assert!(said.contains(&format!("line {} ", pem.lines().count() + 1)), "{said}");
            }
            let said = say(legacy.clone());
            assert!(
                said.contains("line 1 begins a key that is encrypted") && said.contains("openssl pkey"),
                "{said}"
            );
        }
    }

    #[test]
    fn a_file_that_is_not_pem_is_called_by_its_format() {
        let (pem, _) = signed();
        let utf16: Vec<u8> = pem.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let marked = [&[0xff, 0xfe], &utf16[..]].concat();
        let der = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert.der().to_vec();
        let cases: [(&[u8], &str); 7] = [
            (b"", "empty"),
            (b" \r\n\n", "empty"),
            (&utf16, "UTF-16"),
            (&marked, "UTF-16"),
            (&der, "openssl x509 -inform der"),
            (&[0x30, 0x82, 1, 0, 2, 1, 3, 0x30], "openssl pkcs12"),
            (&[0xfe, 0xed, 0xfe, 0xed, 0, 0], "keytool"),
        ];
        for (bytes, named) in cases {
            let said = chain(bytes).unwrap_err().to_string();
            assert!(said.contains(named), "{said}");
        }
        let key = rcgen::KeyPair::generate().unwrap().serialize_der();
        let said = read(&key, Purpose::Key).unwrap_err().to_string();
        assert!(said.contains("openssl pkey -inform der"), "{said}");
    }

    #[test]
    fn a_key_on_one_line_is_not_repeated() {
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem().replace(['\r', '\n'], "");
        for purpose in [Purpose::Key, Purpose::Chain] {
            let error = read(key.as_bytes(), purpose).unwrap_err();
            let source = std::error::Error::source(&error).map(ToString::to_string);
            let shown = format!("{error} {error:?} {source:?}");
            assert!(!shown.contains(key.get(40..60).unwrap()), "{shown}");
        }
    }
}
