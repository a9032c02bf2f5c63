//! What each question is answered with.

use std::sync::Arc;

use muster_domain::{CommunityId, Page};
use muster_messaging::connection::Connection;
use muster_messaging::log_budget::LogBudget;
use muster_messaging::replicas::clear_everywhere;
use muster_messaging::request::Request;
use muster_messaging::wire::answer::{Answer, Export};
use muster_messaging::wire::error::{ErrorCode, ServiceError};
use muster_messaging::wire::query::{Caller, DirectoryPlace, Query, Question};
use muster_storage::{Community, DirectoryStart, Error, Store};
use tracing::{Instrument, Level};

use crate::limits::{RateLimits, Scope};
use crate::traces;

/// Lines a minute about requests that the database did not answer; the others are for who looks for a fault.
static UNAVAILABLE_LINES: LogBudget = LogBudget::new(10);

/// Answers questions from the store, within the rate limits.
pub(crate) struct Answers {
    pub(crate) store: Store,
    pub(crate) limits: Arc<RateLimits>,
    pub(crate) connection: Connection,
}

impl Answers {
    /// Answers a request within its trace, and writes to the log what came of it.
    pub(crate) async fn answer(&self, request: Request) -> Result<Answer, ServiceError> {
        let span = traces::request(&request);
        let answer = self.found(&request).instrument(span.clone()).await;
        let error = answer.as_ref().err().map(ServiceError::code);
        if let Some(code) = error {
            span.record("error.type", code.as_str());
        }
        self.log(&request, error);
        answer
    }

    /// Administrative acts are for the log's usual reader, all others for who looks for a fault.
    fn log(&self, request: &Request, error: Option<ErrorCode>) {
        // A pseudonym costs as much as a small question.
        if !request.endpoint.is_admin() && !tracing::enabled!(Level::DEBUG) {
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

    async fn found(&self, request: &Request) -> Result<Answer, ServiceError> {
        let failed = |error| service_error(request, error);
        match &request.question {
            Question::Find(guild) => {
                let found = self.store.community_find(guild).await.map_err(failed)?;
                Ok(Answer::Community {
                    community: found.community_id,
                    name: found.name,
                    active: found.active,
                })
            }
            // Not counted itself: it is how an operator gets back in.
            Question::Within(id, Query::AdminRatelimitClear { caller }) => {
                self.store.community(*id).await.map_err(failed)?;
                let cleared = clear_everywhere(&self.connection, *id, caller.as_ref()).await;
                cleared.map(Answer::Cleared).map_err(|error| ServiceError::unavailable(error.to_string()))
            }
            Question::Within(id, query) => {
                let community = self.store.community(*id).await.map_err(failed)?;
                if let Err(refused) = self.limits.check(*id, request.caller.as_ref()) {
                    if refused.first {
                        self.log_refused(*id, request.caller.as_ref(), refused.scope);
                    }
                    return Err(ServiceError::rate_limited(refused.wait));
                }
                answer(&community, query.clone()).await.map_err(failed)
            }
        }
    }

    /// Once for each counter, since whoever asks too often may ask very often.
    fn log_refused(&self, community: CommunityId, caller: Option<&Caller>, scope: Scope) {
        let caller = caller.map(|caller| self.store.pseudonyms().of(caller.as_str()).to_string());
        tracing::warn!(
            ratelimit.scope = scope.as_str(),
            community.id = %community,
            caller.pseudonym = caller,
            "requests are refused for their rate"
        );
    }
}

async fn answer(community: &Community, query: Query) -> Result<Answer, Error> {
    Ok(match query {
        Query::ProfilesRanked(page) => {
            Answer::Ranked(community.profile_list_ranked(page.limit, page.cursor.as_ref()).await?)
        }
        Query::ProfilesGet(lookup) => Answer::Detail(Box::new(community.profile_get(&lookup).await?)),
        Query::ProfilesPosition(profile) => Answer::Position(community.profile_position(profile).await?),
        Query::ProfilesAround { profile, limit } => {
            Answer::Ranked(community.profile_list_around(profile, limit).await?)
        }
        Query::ProfilesActive(page) => {
            Answer::Profiles(community.profile_list_active(page.limit, page.cursor.as_ref()).await?)
        }
        Query::ProfilesSearch { query, limit } => {
            let items = community.profile_search(&query, limit).await?;
            Answer::Profiles(Page { items, next: None, limit: limit.get() })
        }
        Query::ProfilesBadges { profile, page } => {
            Answer::Badges(community.badge_list_by_profile(profile, page.limit, page.cursor.as_ref()).await?)
        }
        Query::BadgesLeaderboard(page) => {
            Answer::Leaderboard(community.badge_leaderboard(page.limit, page.cursor.as_ref()).await?)
        }
        Query::BadgesKinds(page) => {
            Answer::Kinds(community.badge_kind_list(page.limit, page.cursor.as_ref()).await?)
        }
        Query::TiersProgression(page) => {
            Answer::Progression(community.tier_list_progression(page.limit, page.cursor.as_ref()).await?)
        }
        Query::TiersChanges(page) => {
            Answer::Changes(community.tier_change_list(page.limit, page.cursor.as_ref()).await?)
        }
        Query::TiersThreshold => Answer::Threshold(community.tier_threshold().await?),
        Query::DirectoryList(directory) => {
            let (start, number) = match directory.place {
                DirectoryPlace::Cursor(cursor) => (DirectoryStart::Cursor(cursor), None),
                DirectoryPlace::Page { number, skip } => (DirectoryStart::Offset(skip), Some(number)),
            };
            let (tier, sort, direction) = (directory.tier.as_ref(), directory.sort, directory.direction);
            let page = community.directory_list(tier, sort, direction, directory.limit, &start).await?;
            Answer::Directory { page, number }
        }
        Query::CommunityStats => Answer::Stats(community.stats().await?),
        Query::AdminBadgesAward { profile, kind, reason, by } => {
            Answer::Awarded(community.badge_award(profile, kind, reason, by).await?)
        }
        Query::AdminBadgesRevoke { profile, kind, reason, by } => {
            Answer::Revoked(community.badge_revoke(profile, kind, reason, by).await?)
        }
        Query::AdminProfilesHide(profile) => {
            Answer::Visibility(Box::new(community.profile_hide(profile).await?))
        }
        Query::AdminProfilesShow(profile) => {
            Answer::Visibility(Box::new(community.profile_show(profile).await?))
        }
        Query::AdminProfilesExport { profile, cursor, limit } => {
            let export = community.profile_export(profile, limit, cursor.as_ref()).await?;
            Answer::Export(Box::new(Export {
                profile: export.profile,
                badges: export.badges,
                tier_changes: export.tier_changes,
                next: export.next,
            }))
        }
        Query::AdminProfilesErase(profile) => {
            community.profile_erase(profile).await?;
            Answer::Erased(profile)
        }
        Query::AdminRatelimitClear { .. } => Answer::Cleared(0),
    })
}

fn service_error(request: &Request, error: Error) -> ServiceError {
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
