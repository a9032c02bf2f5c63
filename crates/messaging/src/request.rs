//! One request, read.

use std::str::FromStr;

use async_nats::HeaderMap;
use muster_domain::{CommunityId, TraceParent};
use tokio::time::Instant;
use uuid::Uuid;

use crate::api::{Caller, Description, PREFIX, Question, ServiceError};
pub use crate::header::TRACEPARENT;
use crate::header::traceparent;

/// The header with the person on whose behalf a client asks.
pub const CALLER: &str = "Muster-Caller";

/// One request as a handler gets it: everything in it has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its id, which stands in the log and in the answer when there was a defect.
    pub id: Uuid,
    /// Where it was asked.
    pub endpoint: &'static Description,
    /// The question.
    pub question: Question,
    /// The person on whose behalf the client asks.
    pub caller: Option<Caller>,
    /// The trace that it belongs to.
    pub traceparent: Option<TraceParent>,
    /// The deadline: without an answer by then the client is answered `unavailable`.
    pub deadline: Instant,
    /// Whether the handler has answered it before, with more than one message carries: it is one request, handled again for a page of
    /// fewer rows.
    pub is_repeat: bool,
}

impl Request {
    /// Reads a message.
    pub(crate) fn read(
        id: Uuid,
        endpoint: &'static Description,
        deadline: Instant,
        subject: &str,
        headers: Option<&HeaderMap>,
        payload: &[u8],
    ) -> Result<Self, ServiceError> {
        let question = Question::parse(endpoint, community(subject), payload)?;
        let caller = headers
            .and_then(|headers| headers.get(CALLER))
            .map(|value| Caller::parse(value.as_str()))
            .transpose()
            .map_err(|cause| ServiceError::invalid_request(CALLER, format!("{CALLER} {cause}")))?;
        let traceparent = traceparent(headers);
        Ok(Self { id, endpoint, question, caller, traceparent, deadline, is_repeat: false })
    }
}

/// The community of a subject `muster.v1.<community>.…`. Only a UUID's usual form counts, so that one community has one
/// subject and the broker's permissions hold for it.
pub(crate) fn community(subject: &str) -> Option<CommunityId> {
    let text = subject.strip_prefix(PREFIX)?.strip_prefix('.')?.split('.').next()?;
    let community = CommunityId::from_str(text).ok()?;
    (community.to_string() == text).then_some(community)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Endpoint, community::Find};

    #[test]
    fn one_community_has_one_subject() {
        let id = "6f1c2a0e-8f1d-4f7e-9d55-1a2b3c4d5e6f";
        assert_eq!(community(&format!("{PREFIX}.{id}.profiles.ranked")).unwrap().to_string(), id);
        for other in
            [id.to_uppercase(), id.replace('-', ""), format!("{{{id}}}"), "naib".to_owned(), String::new()]
        {
            assert_eq!(community(&format!("{PREFIX}.{other}.profiles.ranked")), None, "{other}");
        }
    }

    #[test]
    fn a_caller_has_bounds() {
        let read = |caller: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CALLER, caller);
            let subject = format!("{PREFIX}.communities.find");
            let (endpoint, body) = (Find::DESCRIPTION, br#"{"guild_id":"1"}"#);
            Request::read(Uuid::nil(), endpoint, Instant::now(), &subject, Some(&headers), body)
        };
        assert_eq!(read("stilgar").unwrap().caller.unwrap().as_str(), "stilgar");
        assert_eq!(read(&"x".repeat(129)).unwrap_err().field(), Some(CALLER));
        assert_eq!(read("").unwrap_err().field(), Some(CALLER));
    }
}
