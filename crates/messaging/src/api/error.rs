//! Errors as they are answered.

use std::fmt;
use std::time::Duration;

use muster_domain::CursorError;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The largest request, in bytes.
pub const MAX_REQUEST: usize = 64 * 1024;

/// What kind of error an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is not of the documented form.
    InvalidRequest,
    /// The cursor is not of this list.
    InvalidCursor,
    /// The caller may not. The contract of version 1 has this code, and clients and dashboards may rely on it; today the
    /// broker's permissions refuse such a request before it arrives, and the service answers it to nobody.
    Forbidden,
    /// No such community, profile or badge.
    NotFound,
    /// The request is over 64 KiB, or the answer is over what the NATS server carries, and cannot be truncated to fewer rows.
    PayloadTooLarge,
    /// Asked too often.
    RateLimited,
    /// The database is out of reach or too slow; safe to repeat.
    Unavailable,
    /// A defect.
    Internal,
    /// A code that this version does not know.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// Every code of the contract.
    pub const ALL: [Self; 8] = [
        Self::InvalidRequest,
        Self::InvalidCursor,
        Self::Forbidden,
        Self::NotFound,
        Self::PayloadTooLarge,
        Self::RateLimited,
        Self::Unavailable,
        Self::Internal,
    ];

    /// When it is answered, as Markdown: `muster-worker describe` prints it, and the documentation has it from there.
    #[must_use]
    pub const fn help(self) -> &'static str {
        match self {
            Self::InvalidRequest => {
                "the request is not of the form above; `field` names what is wrong, the message its bound"
            }
            Self::InvalidCursor => "the cursor is not of this list",
            Self::Forbidden => {
                "the caller may not; not answered so far, since the broker's permissions refuse such a request before it arrives"
            }
            Self::NotFound => "no such community, profile or badge",
            Self::PayloadTooLarge => {
                "the request is over 64 KiB, or the answer is over what the NATS server carries in one message and cannot be \
                 truncated to fewer rows (16 KiB are always enough for one row)"
            }
            Self::RateLimited => "ask again after `retry_after_ms`",
            Self::Unavailable => {
                "the database is out of reach or too slow, or the worker is full; safe to repeat"
            }
            Self::Internal | Self::Unknown => {
                "a defect; the log has a line with the same `request_id`, and of many in one minute the later ones at level \
                 debug only"
            }
        }
    }

    /// The code as it stands on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidCursor => "invalid_cursor",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::PayloadTooLarge => "payload_too_large",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
            Self::Unknown => "unknown",
        }
    }

    /// The number in the header `Nats-Service-Error-Code`.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::InvalidCursor => 400,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::PayloadTooLarge => 413,
            Self::RateLimited => 429,
            Self::Internal | Self::Unknown => 500,
            Self::Unavailable => 503,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error as a handler gives it, with a constructor for each code that is answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ServiceError {
    code: ErrorCode,
    message: String,
    field: Option<String>,
    retry_after: Option<Duration>,
    cause: Option<String>,
}

impl ServiceError {
    fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), field: None, retry_after: None, cause: None }
    }

    /// The request is not of the documented form; `message` says what the field must be.
    #[must_use]
    pub fn invalid_request(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..Self::new(ErrorCode::InvalidRequest, message) }
    }

    /// The request as a whole is not of the documented form.
    #[must_use]
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }

    /// The cursor is not of this list.
    #[must_use]
    pub fn invalid_cursor(cause: CursorError) -> Self {
        Self { field: Some("cursor".to_owned()), ..Self::new(ErrorCode::InvalidCursor, cause.to_string()) }
    }

    /// There is no such thing; `what` is `community`, `profile` or `badge`.
    #[must_use]
    pub fn not_found(what: &str) -> Self {
        Self::new(ErrorCode::NotFound, format!("there is no such {what}"))
    }

    /// The request is over [`MAX_REQUEST`].
    #[must_use]
    pub fn payload_too_large() -> Self {
        Self::new(ErrorCode::PayloadTooLarge, format!("a request has at most {MAX_REQUEST} bytes"))
    }

    /// The answer, which cannot be truncated to fewer rows, needs more bytes than the server carries in a message.
    #[must_use]
    pub fn answer_too_large(needed: usize, room: usize) -> Self {
        Self::new(
            ErrorCode::PayloadTooLarge,
            format!(
                "the answer needs {needed} bytes, and the NATS server carries {room}: ask for fewer at once, or have its \
                 operator raise max_payload"
            ),
        )
    }

    /// Asked too often; `retry_after` says when it may be asked again.
    #[must_use]
    pub fn rate_limited(retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(ErrorCode::RateLimited, "too many requests: wait for retry_after_ms and ask again")
        }
    }

    /// Out of reach or too slow for the moment.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unavailable, message)
    }

    /// A defect. The cause goes to the log and is never answered.
    #[must_use]
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self {
            cause: Some(cause.to_string()),
            ..Self::new(
                ErrorCode::Internal,
                "the service has a defect: give the request_id to those who operate it",
            )
        }
    }

    /// The kind of error.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        self.code
    }

    /// What went wrong, for the one who asked.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The field that is wrong.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// What went wrong inside, for the log.
    #[must_use]
    pub fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// The error as it is answered. Only a defect tells the request's id.
    #[must_use]
    pub fn body(&self, request_id: Uuid) -> ErrorBody {
        ErrorBody {
            error: ErrorFields {
                code: self.code,
                message: self.message.clone(),
                field: self.field.clone(),
                retry_after_ms: self
                    .retry_after
                    // Whoever waits that long is not too early.
                    .map(|wait| {
                        u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1)
                    }),
                request_id: (self.code == ErrorCode::Internal).then_some(request_id),
            },
        }
    }
}

/// The body of an answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorFields,
}

/// What an error says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorFields {
    /// Its kind.
    pub code: ErrorCode,
    /// What went wrong and what to do.
    pub message: String,
    /// The field that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// In how many milliseconds the request may be made again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The id under which the log tells more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Uuid>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(error: &ServiceError) -> String {
        serde_json::to_string(&error.body(Uuid::nil())).unwrap()
    }

    #[test]
    fn golden() {
        assert_eq!(
            json(&ServiceError::invalid_request("limit", "must be an integer")),
            r#"{"error":{"code":"invalid_request","message":"must be an integer","field":"limit"}}"#
        );
        assert_eq!(
            json(&ServiceError::rate_limited(Duration::from_millis(250))),
            r#"{"error":{"code":"rate_limited","message":"too many requests: wait for retry_after_ms and ask again","retry_after_ms":250}}"#
        );
        assert_eq!(
            json(&ServiceError::not_found("badge")),
            r#"{"error":{"code":"not_found","message":"there is no such badge"}}"#
        );
    }

    #[test]
    fn a_defect_tells_its_id_and_nothing_of_the_inside() {
        let text = json(&ServiceError::internal("relation \"profiles\" does not exist"));
        assert!(
            text.contains("00000000-0000-0000-0000-000000000000") && !text.contains("relation"),
            "{text}"
        );
    }

    #[test]
    fn a_code_of_a_later_version_is_read() {
        let body: ErrorBody =
            serde_json::from_str(r#"{"error":{"code":"teapot","message":"m","colour":"red"},"more":1}"#)
                .unwrap();
        assert_eq!(body.error.code, ErrorCode::Unknown);
    }
}
