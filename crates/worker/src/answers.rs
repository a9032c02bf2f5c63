//! The answer to each question.

use std::sync::Arc;

use muster_domain::{CommunityId, Page};
use muster_messaging::api::{
    Caller, Endpoint, ErrorCode, Query, Question, Reply, ServiceError, admin, community, profiles,
};
use muster_messaging::connection::Connection;
use muster_messaging::log_budget::LogBudget;
use muster_messaging::replicas::{ReplicaError, clear_everywhere};
use muster_messaging::request::Request;
use muster_storage::{Community, Error, Store};
use tracing::{Instrument, Level};

use crate::chain::chain;
use crate::metrics::{self, Scope};
use crate::rate_limit::RateLimits;
use crate::traces;

/// Lines a minute about requests that the database did not answer. The rest are logged at level debug.
static UNAVAILABLE_LINES: LogBudget = LogBudget::new(10);

/// Lines a minute about counters whose limit is reached; the metrics have all.
static REFUSED_LINES: LogBudget = LogBudget::new(10);

/// Answers questions from the store, within the rate limits.
pub(crate) struct Answers {
    pub(crate) store: Store,
    pub(crate) limits: Arc<RateLimits>,
    pub(crate) connection: Connection,
}

impl Answers {
    /// Answers a request within its trace, and writes to the log what came of it.
    pub(crate) async fn answer(&self, request: Request) -> Result<Reply, ServiceError> {
        let span = traces::request(&request);
        let answer = self.found(&request).instrument(span.clone()).await;
        let error = answer.as_ref().err().map(ServiceError::code);
        if let Some(code) = error {
            span.record("error.type", code.as_str());
        }
        self.log(&request, error);
        answer
    }

    /// Logs administrative requests at level info, and all others at level debug.
    fn log(&self, request: &Request, error: Option<ErrorCode>) {
        // A pseudonym costs as much as a small question.
        let is_told = request.is_repeat && error.is_none();
        if is_told || (!request.endpoint.is_admin() && !tracing::enabled!(Level::DEBUG)) {
            return;
        }
        let code = error.map_or("ok", ErrorCode::as_str);
        let pseudonym = |id: &str| self.store.pseudonyms().of(id).to_string();
        let caller = request.caller.as_ref().map(|caller| pseudonym(caller.as_str()));
        let (community, profile) = match &request.question {
            Question::Find(_) => (None, None),
            Question::Within(id, query) => {
                (Some(id.to_string()), query.profile().map(|profile| pseudonym(&profile.to_string())))
            }
        };
        if request.endpoint.is_admin() {
            tracing::info!(
                request.id = %request.id,
                request.endpoint = %request.endpoint,
                request.code = code,
                community.id = community,
                profile.pseudonym = profile,
                caller.pseudonym = caller,
                "an administrator's request was answered"
            );
        } else {
            tracing::debug!(
                request.id = %request.id,
                request.endpoint = %request.endpoint,
                request.code = code,
                community.id = community,
                profile.pseudonym = profile,
                caller.pseudonym = caller,
                "a request was answered"
            );
        }
    }

    async fn found(&self, request: &Request) -> Result<Reply, ServiceError> {
        let failed = |error: AnswerError| service_error(request, error);
        match &request.question {
            Question::Find(ask) => self.community_find(ask).await.map_err(failed),
            Question::Within(id, query) => {
                let community = self.store.community(*id).await.map_err(|error| failed(error.into()))?;
                let community = community.in_trace(request.traceparent.clone());
                // Clearing is not counted: it is how an operator gets back in. Nor is what was counted when it came.
                if !request.is_repeat && !matches!(query, Query::AdminRatelimitClear(_)) {
                    self.count(*id, request.caller.as_ref())?;
                }
                if request.endpoint.may_lag && self.store.standby().is_some() {
                    return self.list(&community, query).await.map_err(failed);
                }
                self.reply(&community, query).await.map_err(failed)
            }
        }
    }

    fn count(&self, community: CommunityId, caller: Option<&Caller>) -> Result<(), ServiceError> {
        self.limits.check(community, caller).map_err(|refused| {
            if refused.first {
                self.log_refused(community, caller, refused.scope);
            }
            ServiceError::rate_limited(refused.wait)
        })
    }

    /// Logs each counter once, since one caller may ask very often, and few lines a minute, since there may be many callers.
    fn log_refused(&self, community: CommunityId, caller: Option<&Caller>, scope: Scope) {
        let Some(line) = REFUSED_LINES.line() else { return };
        let caller = caller.map(|caller| self.store.pseudonyms().of(caller.as_str()).to_string());
        tracing::warn!(
            ratelimit.scope = scope.as_str(),
            community.id = %community,
            caller.pseudonym = caller,
            left_out = line.left_out,
            "requests are refused: the rate limit is exceeded"
        );
    }

    async fn community_find(&self, ask: &community::Find) -> Result<Reply, AnswerError> {
        let found = self.store.community_find(&ask.guild_id).await?;
        Ok(ask.reply(community::Community {
            community_id: found.community_id,
            name: found.name,
            active: found.active,
            changes: found.changes,
        }))
    }

    /// The answer of an endpoint that may lag: the standby's while it is fit, and the primary's to all that it does not answer, be it
    /// that it cancels the query or does not know yet what is asked for.
    async fn list(&self, community: &Community, query: &Query) -> Result<Reply, AnswerError> {
        if let Some(standby) = community.on_standby() {
            match self.reply(&standby, query).await {
                Ok(reply) => {
                    metrics::list(true);
                    return Ok(reply);
                }
                // It asked nothing of the standby.
                Err(AnswerError::Store(error @ Error::Cursor(_))) => return Err(error.into()),
                Err(AnswerError::Store(Error::NotFound(_))) => {}
                Err(error) => {
                    metrics::standby_failure();
                    tracing::debug!(error = chain(&error), "the standby did not answer: the primary does");
                }
            }
        }
        metrics::list(false);
        self.reply(community, query).await
    }

    /// The answer of each endpoint.
    async fn reply(&self, community: &Community, query: &Query) -> Result<Reply, AnswerError> {
        Ok(match query {
            Query::ProfilesRanked(ask) => {
                ask.reply(community.profile_list_ranked(ask.limit.applied(), ask.cursor.as_ref()).await?)
            }
            Query::ProfilesGet(ask) => ask.reply(community.profile_get(&ask.clone().into()).await?),
            Query::ProfilesPosition(ask) => ask.reply(community.profile_position(ask.profile_id).await?),
            Query::ProfilesAround(ask) => {
                ask.reply(community.profile_list_around(ask.profile_id, ask.limit.applied()).await?)
            }
            Query::ProfilesMany(ask) => ask.reply(match ask {
                profiles::Many::ProfileIds(ids) => community.profile_list_by_ids(ids).await?,
                profiles::Many::UserIds(ids) => community.profile_list_by_users(ids).await?,
            }),
            Query::ProfilesActive(ask) => {
                ask.reply(community.profile_list_active(ask.limit.applied(), ask.cursor.as_ref()).await?)
            }
            Query::ProfilesSearch(ask) => {
                let limit = ask.limit.applied();
                let items = community.profile_search(&ask.query, limit).await?;
                ask.reply(Page { items, next: None, limit: limit.get() })
            }
            Query::ProfilesBadges(ask) => {
                let (limit, cursor) = (ask.limit.applied(), ask.cursor.as_ref());
                ask.reply(community.badge_list_by_profile(ask.profile_id, limit, cursor).await?)
            }
            Query::BadgesLeaderboard(ask) => {
                ask.reply(community.badge_leaderboard(ask.limit.applied(), ask.cursor.as_ref()).await?)
            }
            Query::BadgesKinds(ask) => {
                ask.reply(community.badge_kind_list(ask.limit.applied(), ask.cursor.as_ref()).await?)
            }
            Query::TiersProgression(ask) => {
                ask.reply(community.tier_list_progression(ask.limit.applied(), ask.cursor.as_ref()).await?)
            }
            Query::TiersChanges(ask) => {
                ask.reply(community.tier_change_list(ask.limit.applied(), ask.cursor.as_ref()).await?)
            }
            Query::TiersThreshold(ask) => ask.reply(community.tier_threshold().await?),
            Query::DirectoryList(ask) => {
                let (sort, direction) = (ask.sort.unwrap_or_default(), ask.direction());
                let (limit, cursor, skipped) = (ask.limit.applied(), ask.cursor(), ask.rows_before());
                let page = community
                    .directory_list(ask.tier.as_ref(), sort, direction, limit, cursor, skipped)
                    .await?;
                ask.reply(ask.answer(page))
            }
            Query::CommunityStats(ask) => ask.reply(community.stats().await?),
            Query::AdminBadgesAward(ask) => {
                let (kind, reason, by) = (ask.kind.clone(), ask.reason.clone(), ask.awarded_by.clone());
                ask.reply(community.badge_award(ask.profile_id, kind, reason, by).await?)
            }
            Query::AdminBadgesRevoke(ask) => {
                let (kind, reason, by) = (ask.kind.clone(), ask.reason.clone(), ask.revoked_by.clone());
                ask.reply(community.badge_revoke(ask.profile_id, kind, reason, by).await?)
            }
            Query::AdminProfilesHide(ask) => ask.reply(community.profile_hide(ask.profile_id).await?),
            Query::AdminProfilesShow(ask) => ask.reply(community.profile_show(ask.profile_id).await?),
            Query::AdminProfilesExport(ask) => {
                ask.reply(community.profile_export(ask.profile_id, ask.limit(), ask.cursor.as_ref()).await?)
            }
            Query::AdminProfilesErase(ask) => {
                community.profile_erase(ask.profile_id).await?;
                ask.reply(admin::ErasedProfile { profile_id: ask.profile_id, erased: true })
            }
            Query::AdminRatelimitClear(ask) => {
                let cleared = clear_everywhere(&self.connection, community.id(), ask.caller.as_ref()).await?;
                ask.reply(admin::ClearedCounters { cleared })
            }
        })
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
enum AnswerError {
    Store(#[from] Error),
    Replicas(#[from] ReplicaError),
}

fn service_error(request: &Request, error: AnswerError) -> ServiceError {
    let error = match error {
        AnswerError::Store(error) => error,
        AnswerError::Replicas(error) => return ServiceError::unavailable(error.to_string()),
    };
    match error {
        Error::NotFound(missing) => ServiceError::not_found(&missing.to_string()),
        Error::Cursor(cause) => ServiceError::invalid_cursor(cause),
        error if error.is_transient() => {
            if let Some(line) = UNAVAILABLE_LINES.line() {
                tracing::warn!(
                    request.id = %request.id,
                    request.endpoint = %request.endpoint,
                    error = %error,
                    left_out = line.left_out,
                    "a request was answered unavailable"
                );
            } else {
                tracing::debug!(request.id = %request.id, error = %error, "a request was answered unavailable");
            }
            ServiceError::unavailable("the database is out of reach or too slow: ask again")
        }
        error => ServiceError::internal(error),
    }
}
