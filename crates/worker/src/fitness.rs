//! Whether the servers are fit for what Muster promises: their versions, and how large a message may be.

use muster_domain::{Environment, VersionFloor, VersionVerdict};
use muster_messaging::connection;
use muster_messaging::events::consumer::Unfit;
use muster_messaging::service::LEAST_PAYLOAD;
use muster_storage::Server;

use crate::failure::Failure;

/// The floor of the NATS servers' version.
pub(crate) const NATS: VersionFloor = connection::SERVER_FLOOR;
/// The floor of PostgreSQL's version.
pub(crate) const POSTGRES: VersionFloor = muster_storage::SERVER_FLOOR;

/// Production refuses a server that breaks a promise; other environments warn of it.
pub(crate) const fn unfit(environment: Environment) -> Unfit {
    match environment {
        Environment::Production => Unfit::Refuse,
        Environment::Development | Environment::Test => Unfit::Warn,
    }
}

/// Holds a server's version to its floor: refuses it, or says in the log what is wrong with it.
pub(crate) fn hold(floor: &VersionFloor, version: &str, unfit: Unfit) -> Result<(), Failure> {
    match (floor.judge(version), unfit) {
        (VersionVerdict::Supported, _) => Ok(()),
        (VersionVerdict::TooOld(why), Unfit::Refuse) => Err(Failure::TooOld(why)),
        (VersionVerdict::TooOld(why) | VersionVerdict::Unadvised(why), _) => {
            tracing::warn!(server = floor.server, version, "{why}");
            Ok(())
        }
    }
}

/// By what a server of PostgreSQL may lose events that were acknowledged.
pub(crate) fn losses(server: &Server) -> impl Iterator<Item = &'static str> {
    let fsync = "fsync=off: what is committed is lost when the power fails, and what is acknowledged with it; set fsync=on";
    let standby = "the URL names several hosts, and synchronous_standby_names is empty: a standby that takes over lacks the last commits, \
         of events that are acknowledged and of erasures that were answered; name a synchronous standby";
    [(!server.commits_to_disk, fsync), (!server.outlives_failover, standby)]
        .into_iter()
        .filter_map(|(loses, why)| loses.then_some(why))
}

/// The problem with a server whose largest message is this; `None` when it is large enough.
pub(crate) fn payload(max_payload: usize) -> Option<String> {
    (max_payload < LEAST_PAYLOAD).then(|| {
        format!(
            "max_payload={max_payload}: an answer of one row may need {LEAST_PAYLOAD} bytes, and a request whose answer does not \
             fit is answered payload_too_large; set max_payload: 1MB in the server's configuration"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_below_the_floor_is_refused_in_production_only() {
        let refused = unfit(Environment::Production);
        for (floor, version) in [(&NATS, "2.9.10"), (&NATS, "2.10.3"), (&POSTGRES, "14.19 (Debian 14.19-0)")]
        {
            let error = hold(floor, version, refused).unwrap_err().to_string();
            assert!(error.contains(version) && error.contains(floor.server), "{error}");
            for environment in [Environment::Development, Environment::Test] {
                hold(floor, version, unfit(environment)).unwrap();
            }
        }
        for (floor, version) in
            [(&NATS, "2.10.26"), (&NATS, "2.15.1"), (&POSTGRES, "15.14"), (&POSTGRES, "18.1")]
        {
            hold(floor, version, refused).unwrap();
        }
    }

    #[test]
    fn a_server_that_may_lose_what_it_committed_is_told_of() {
        let told = |commits_to_disk, outlives_failover| {
            let server = Server { version: "15.14".to_owned(), commits_to_disk, outlives_failover };
            losses(&server).map(|why| why.split([':', ',']).next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(told(true, true), [""; 0]);
        assert_eq!(told(false, true), ["fsync=off"]);
        assert_eq!(told(false, false), ["fsync=off", "the URL names several hosts"]);
    }

    #[test]
    fn a_message_that_is_too_small_for_an_answer_is_told() {
        assert!(payload(1024).is_some_and(|text| text.starts_with("max_payload=1024")));
        assert_eq!(payload(1024 * 1024), None);
    }
}
