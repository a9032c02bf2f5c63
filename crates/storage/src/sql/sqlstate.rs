//! The code of an error of the server, SQLSTATE, which tells what kind it is in whatever language the server speaks.
//!
//! The driver above tokio-postgres hands on an error's words but not its code. So the code is put in front of the words
//! where the server's messages come in: `55P03: canceling statement due to lock timeout`.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryFutureExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Socket;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};

const LENGTH: usize = 5;
const SEPARATOR: &str = ": ";
/// What is put between the code and the words of an error that says that a prepared statement's plan no longer fits its tables. Its
/// code is also that of what the server does not support at all; which it is, the name of the server's function tells.
const STALE_PLAN: &str = "stale plan: ";
const STALE_PLAN_CODE: &str = "0A000";
const STALE_PLAN_FUNCTION: &[u8] = b"RRevalidateCachedQuery";
/// The same for an error of a node of a cluster that the server coordinates: it is away, or ends its sessions. The server itself, and
/// the session with it, is well.
const OF_A_NODE: &str = "of a node: ";
/// What ends a session has a severity of its own.
const SEVERITY: &[u8] = b"VERROR";
/// The longest error that is taken apart; a longer one keeps its words and has no code.
const MAX_ERROR: usize = 256 * 1024;

/// The code that stands in front of an error's words.
pub(crate) fn of(message: &str) -> Option<&str> {
    let (code, _) = message.split_once(SEPARATOR)?;
    let is_code =
        code.len() == LENGTH && code.bytes().all(|it| it.is_ascii_digit() || it.is_ascii_uppercase());
    is_code.then_some(code)
}

/// Whether an error says that a prepared statement's plan no longer fits its tables, which were altered since.
pub(crate) fn is_stale_plan(message: &str) -> bool {
    of(message) == Some(STALE_PLAN_CODE)
        && message.split_once(SEPARATOR).is_some_and(|(_, words)| words.starts_with(STALE_PLAN))
}

/// Whether an error is of a node of a cluster, and not of the server.
pub(crate) fn is_of_a_node(message: &str) -> bool {
    of(message).is_some()
        && message.split_once(SEPARATOR).is_some_and(|(_, words)| words.starts_with(OF_A_NODE))
}

/// The server's process by what it, or a pooler in its place, has said when the session began.
pub(crate) type SaidProcess = Arc<OnceLock<i32>>;

/// Makes connections whose errors have their codes, over the TLS of `T`.
#[derive(Clone)]
pub(crate) struct CodedTls<T>(pub(crate) T, pub(crate) SaidProcess);

impl<T> MakeTlsConnect<Socket> for CodedTls<T>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send + 'static,
{
    type Stream = Coded<T::Stream>;
    type TlsConnect = CodedTls<T::TlsConnect>;
    type Error = T::Error;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Self::TlsConnect, Self::Error> {
        self.0.make_tls_connect(domain).map(|tls| CodedTls(tls, Arc::clone(&self.1)))
    }
}

impl<T> TlsConnect<Socket> for CodedTls<T>
where
    T: TlsConnect<Socket>,
    T::Stream: Send + 'static,
    T::Future: Send + 'static,
{
    type Stream = Coded<T::Stream>;
    type Error = T::Error;
    type Future = BoxFuture<'static, Result<Self::Stream, Self::Error>>;

    fn connect(self, socket: Socket) -> Self::Future {
        let Self(tls, process) = self;
        tls.connect(socket).map_ok(|stream| Coded::new(stream, T::Stream::channel_binding, process)).boxed()
    }
}

/// The same without TLS: it goes where the handshake would, and does none.
#[derive(Clone)]
pub(crate) struct CodedPlaintext(pub(crate) SaidProcess);

impl MakeTlsConnect<Socket> for CodedPlaintext {
    type Stream = Coded<Socket>;
    type TlsConnect = Self;
    type Error = io::Error;

    fn make_tls_connect(&mut self, _: &str) -> io::Result<Self> {
        Ok(self.clone())
    }
}

impl TlsConnect<Socket> for CodedPlaintext {
    type Stream = Coded<Socket>;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Coded<Socket>>>;

    fn connect(self, socket: Socket) -> Self::Future {
        std::future::ready(Ok(Coded::new(socket, |_| ChannelBinding::none(), self.0)))
    }
}

/// A stream from the server, with the codes put into its errors.
pub(crate) struct Coded<S> {
    stream: S,
    channel_binding: fn(&S) -> ChannelBinding,
    messages: Messages,
    ready: Vec<u8>,
    given: usize,
}

impl<S> Coded<S> {
    fn new(stream: S, channel_binding: fn(&S) -> ChannelBinding, process: SaidProcess) -> Self {
        let messages = Messages { process, ..Messages::default() };
        Self { stream, channel_binding, messages, ready: Vec::new(), given: 0 }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Coded<S> {
    fn channel_binding(&self) -> ChannelBinding {
        (self.channel_binding)(&self.stream)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Coded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let Some(rest) = this.ready.get(this.given..).filter(|rest| !rest.is_empty()) {
                let now = rest.get(..buffer.remaining()).unwrap_or(rest);
                buffer.put_slice(now);
                this.given = this.given.saturating_add(now.len());
                return Poll::Ready(Ok(()));
            }
            this.ready.clear();
            this.given = 0;
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
            let come = buffer.filled().get(before..).unwrap_or_default();
            let ended = come.is_empty();
            this.messages.take(come, &mut this.ready);
            buffer.set_filled(before);
            if ended {
                // What was begun and has no end is left to the reader.
                this.ready.append(&mut this.messages.held);
                if this.ready.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Coded<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// Follows the server's messages: a letter for the kind, the length with its own four bytes, the content.
#[derive(Default)]
struct Messages {
    /// The beginning of a message, up to the whole of one that is an error, or names the process.
    held: Vec<u8>,
    process: SaidProcess,
    /// How much of a message that is none is still to come.
    passing: usize,
}

impl Messages {
    /// Takes what has come and adds to `out` what may be read of it.
    fn take(&mut self, mut come: &[u8], out: &mut Vec<u8>) {
        while !come.is_empty() {
            let wanted = match (self.passing, self.length()) {
                (0, None) => HEADER.saturating_sub(self.held.len()),
                (0, Some(length)) => length.saturating_sub(self.held.len()),
                (passing, _) => passing,
            };
            let (now, rest) = come.split_at(wanted.min(come.len()));
            come = rest;
            if self.passing > 0 {
                self.passing = self.passing.saturating_sub(now.len());
                out.extend_from_slice(now);
                continue;
            }
            self.held.extend_from_slice(now);
            let Some(length) = self.length() else { continue };
            let is_error = self.held.first() == Some(&b'E') && length <= MAX_ERROR;
            let is_process = self.held.first() == Some(&b'K') && length == PROCESS;
            if is_error && self.held.len() >= length {
                out.append(&mut coded(&self.held));
                self.held.clear();
            } else if is_process && self.held.len() >= length {
                if let Some((_, said)) = self.held.split_first_chunk::<HEADER>()
                    && let Some(said) = said.first_chunk()
                {
                    self.process.get_or_init(|| i32::from_be_bytes(*said));
                }
                out.append(&mut self.held);
            } else if !is_error && !is_process {
                self.passing = length.saturating_sub(self.held.len());
                out.append(&mut self.held);
            }
        }
    }

    /// How long the message is that is held, once that is known.
    fn length(&self) -> Option<usize> {
        let (_, length) = self.held.split_first()?;
        let length = u32::from_be_bytes(*length.first_chunk()?);
        Some(usize::try_from(length).unwrap_or(usize::MAX).saturating_add(1))
    }
}

const HEADER: usize = 5;
/// The length of the message that names the process, with its kind: header, number, and a key to cancel with.
const PROCESS: usize = 13;

/// An error with its code in front of its words; as it is when it is not one that has both.
fn coded(error: &[u8]) -> Vec<u8> {
    let Some((header, content)) = error.split_first_chunk::<HEADER>() else { return error.to_vec() };
    // Fields, each a letter and a text that ends with a zero, until there is a zero for a letter.
    let fields = || content.split(|byte| *byte == 0);
    let Some(code) = fields().find_map(|field| field.strip_prefix(b"C")) else { return error.to_vec() };
    let is_stale_plan =
        code == STALE_PLAN_CODE.as_bytes() && fields().any(|field| field == STALE_PLAN_FUNCTION);
    // A session does not go on after such an error of the server's own, but for one of the protocol.
    let is_of_a_node = (code.starts_with(b"08") && code != b"08P01" || code.starts_with(b"57P"))
        && fields().any(|field| field == SEVERITY);
    let cause = match (is_stale_plan, is_of_a_node) {
        (true, _) => STALE_PLAN,
        (_, true) => OF_A_NODE,
        _ => "",
    };
    let content = fields().map(|field| match field.split_first() {
        Some((b'M', words)) => [b"M", code, SEPARATOR.as_bytes(), cause.as_bytes(), words].concat(),
        _ => field.to_vec(),
    });
    let content = content.collect::<Vec<_>>().join(&0);
    let Ok(length) = u32::try_from(content.len().saturating_add(4)) else { return error.to_vec() };
    let [kind, ..] = header;
    [&[*kind], length.to_be_bytes().as_slice(), &content].concat()
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn message(kind: u8, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len() + 4).unwrap();
        [&[kind], length.to_be_bytes().as_slice(), content].concat()
    }

    fn error(words: &str) -> Vec<u8> {
        message(b'E', format!("SFEHLER\0VERROR\0C55P03\0M{words}\0Fproc.c\0\0").as_bytes())
    }

    fn told(words: &str) -> Vec<u8> {
        error(&format!("55P03: {words}"))
    }

    /// What comes out when it comes in pieces of a size.
    fn read(come: &[u8], piece: usize) -> Vec<u8> {
        let mut messages = Messages::default();
        let mut out = Vec::new();
        for piece in come.chunks(piece) {
            messages.take(piece, &mut out);
        }
        out
    }

    const GERMAN: &str = "storniere Anfrage wegen Zeitüberschreitung einer Sperre";

    #[test]
    fn an_error_has_its_code_wherever_the_pieces_end() {
        let row = message(b'D', b"E\0\0\0\x08C12345\0M\0\0");
        let nothing = message(b'1', b"");
        let come = [&row, &error(GERMAN), &nothing, &error(""), &row].map(Vec::as_slice).concat();
        let expected = [&row, &told(GERMAN), &nothing, &told(""), &row].map(Vec::as_slice).concat();
        for piece in 1..=come.len() {
            assert_eq!(read(&come, piece), expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_message_without_a_code_is_passed_on_unchanged() {
        let long = message(b'E', &vec![b'M'; MAX_ERROR]);
        for come in [
            message(b'E', b""),
            message(b'E', b"\0"),
            message(b'E', b"Mwords\0\0"),
            message(b'E', b"C55P03\0\0"),
            message(b'E', b"C55P03"),
            message(b'N', b"C00000\0Mnotice\0\0"),
            vec![b'E', 0, 0, 0, 0, b'E', 0, 0, 0, 4],
            long,
        ] {
            assert_eq!(read(&come, 7), come);
        }
    }

    #[tokio::test]
    async fn a_stream_that_ends_in_the_middle_is_handed_on_to_its_end() {
        let come = [told(GERMAN), error(GERMAN)].concat();
        let (truncated, _) = come.split_at(come.len() - 3);
        let mut stream = Coded::new(truncated, |_| ChannelBinding::none(), SaidProcess::default());
        let mut out = Vec::new();
        stream.read_to_end(&mut out).await.unwrap();
        assert!(out.ends_with(&error(GERMAN)[..error(GERMAN).len() - 3]));
    }

    #[test]
    fn the_process_is_heard_and_passed_on() {
        let said = message(b'K', &[0, 0, 1, 2, 9, 9, 9, 9]);
        let come = [&message(b'S', b"K\0\0"), &said, &message(b'Z', b"I")].map(Vec::as_slice).concat();
        for piece in 1..=come.len() {
            let mut messages = Messages::default();
            let mut out = Vec::new();
            come.chunks(piece).for_each(|piece| messages.take(piece, &mut out));
            assert_eq!((out, messages.process.get()), (come.clone(), Some(&258)), "in pieces of {piece}");
        }
    }

    #[test]
    fn a_stale_plan_is_told_from_what_is_not_supported() {
        for (code, function, expected) in [
            ("0A000", "RevalidateCachedQuery", true),
            ("0A000", "transformSelectStmt", false),
            ("42P01", "RevalidateCachedQuery", false),
        ] {
            let come = message(b'E', format!("C{code}\0MWorte\0R{function}\0\0").as_bytes());
            let told = String::from_utf8(read(&come, 7)).unwrap();
            let words = told.split('\0').find_map(|field| field.strip_prefix('M')).unwrap();
            assert_eq!(is_stale_plan(words), expected, "{words}");
            assert_eq!(of(words), Some(code));
        }
    }

    #[test]
    fn a_code_is_told_from_words() {
        assert_eq!(of("57P01: Verbindung wird abgebrochen"), Some("57P01"));
        for words in ["57P01", "", "error: 57P01: x", "57p01: x", "words: x"] {
            assert_eq!(of(words), None, "{words}");
        }
    }
}
