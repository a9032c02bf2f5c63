//! Why a page cannot be shown, in words for the person who asked for it.

use std::time::Duration;

use axum::http::StatusCode;
use muster_messaging::ClientError;
use muster_messaging::api::ErrorCode;

/// What went wrong.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) title: &'static str,
    pub(crate) text: String,
    pub(crate) retry_after: Option<Duration>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, title: &'static str, text: impl Into<String>) -> Self {
        Self { status, title, text: text.into(), retry_after: None }
    }

    /// There is nothing at this address.
    pub(crate) fn no_page() -> Self {
        Self::new(StatusCode::NOT_FOUND, "No such page", "There is nothing at this address.")
    }

    /// There is no such member, or no more.
    pub(crate) fn no_member() -> Self {
        let text = "This member is not in the standings. They may have left, or the address may be wrong.";
        Self::new(StatusCode::NOT_FOUND, "No such member", text)
    }

    /// What was asked for is not of the right form.
    pub(crate) fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "That cannot be asked", text)
    }

    /// Too many ask at once.
    pub(crate) fn busy() -> Self {
        let text = "Many people look at this at the moment. Please try again shortly.";
        let wait = Some(Duration::from_secs(5));
        Self { retry_after: wait, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "Very busy", text) }
    }
}

impl From<ClientError> for Problem {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Service { code, message, retry_after, .. } => match code {
                ErrorCode::NotFound => Self::no_member(),
                ErrorCode::InvalidCursor => Self::bad_request(
                    "This page of the standings has an address that is not valid any more. Begin at the top.",
                ),
                ErrorCode::InvalidRequest | ErrorCode::PayloadTooLarge => Self::bad_request(message),
                ErrorCode::RateLimited => Self {
                    retry_after: retry_after.or(Some(Duration::from_secs(1))),
                    ..Self::new(
                        StatusCode::TOO_MANY_REQUESTS,
                        "Too many questions",
                        "Please try again shortly.",
                    )
                },
                ErrorCode::Unavailable => Self { retry_after, ..Self::away() },
                _ => Self::new(
                    StatusCode::BAD_GATEWAY,
                    "Something is broken",
                    format!("The service behind this page answered an error ({code})."),
                ),
            },
            ClientError::Answer(_) => Self::new(
                StatusCode::BAD_GATEWAY,
                "Something is broken",
                "The service behind this page is of another version than the page.",
            ),
            _ => Self::away(),
        }
    }
}

impl Problem {
    fn away() -> Self {
        let text = "The service behind this page does not answer. Please try again in a minute.";
        let wait = Some(Duration::from_secs(30));
        Self { retry_after: wait, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "Not there right now", text) }
    }
}
