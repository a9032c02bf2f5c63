//! The process's file descriptors: every connection and every open file takes one. When they are used up, errors say so,
//! instead of blaming a file or a server.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The most HTTP connections, and the fewest with which probes and a scrape are answered beside each other.
const HTTP: usize = 64;
const LEAST_HTTP: usize = 4;
/// Descriptors for all but the database and HTTP: NATS, the runtime and files that are being read, for the current session
/// and for one that a rotation opens.
const OTHERS: usize = 48;
/// With fewer left than this they count as used up: a connection needs one for itself and one to look up a name.
const MARGIN: usize = 4;

/// The message of a failure that comes from it.
pub(crate) const USED_UP: &str = "the file descriptors are used up, of the process or of the system: raise the limit (ulimit -n, LimitNOFILE)";

/// The room within this process's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptors {
    /// The most HTTP connections.
    pub(crate) http: usize,
    /// The limit and what is needed, where it is too low.
    pub(crate) too_few: Option<(usize, usize)>,
}

/// Raises the process's limit, as far as it may, to what its database connections, twice (a rotation opens its own), and all else
/// need, and returns the number of HTTP connections that there may be.
pub(crate) fn provide(database: usize) -> Descriptors {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let needed = database.saturating_mul(2).saturating_add(OTHERS);
    let wanted = u64::try_from(needed.saturating_add(HTTP)).unwrap_or(u64::MAX);
    let mut limit = current;
    if current.is_some_and(|current| current < wanted) {
        let raised = maximum.map_or(wanted, |maximum| maximum.min(wanted));
        if setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }).is_ok() {
            limit = Some(raised);
        }
    }
    share(limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)), needed)
}

fn share(limit: usize, needed: usize) -> Descriptors {
    let http = limit.saturating_sub(needed).clamp(LEAST_HTTP, HTTP);
    let needed = needed.saturating_add(LEAST_HTTP);
    Descriptors { http, too_few: (limit < needed).then_some((limit, needed)) }
}

/// Whether hardly another file or connection can be opened.
pub(crate) fn are_used_up() -> bool {
    let taken: Result<Vec<OwnedFd>, io::Error> = (0..MARGIN).map(|_| another()).collect();
    taken.is_err_and(|error| is_shortage(&error))
}

/// Whether this is the system's error when no descriptor is left, for the process or for the whole system.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Whether an error comes from a shortage. Some errors hold their cause in their words only.
pub(crate) fn is_behind(error: &(dyn Error + 'static)) -> bool {
    let says_so = |error: &(dyn Error + 'static)| {
        let words = error.to_string();
        [Errno::MFILE, Errno::NFILE]
            .iter()
            .any(|errno| words.contains(&format!("(os error {})", errno.raw_os_error())))
    };
    let mut error = error;
    loop {
        match error.source() {
            _ if says_so(error) => return true,
            Some(source) => error = source,
            None => return false,
        }
    }
}

fn another() -> io::Result<OwnedFd> {
    io::stderr().as_fd().try_clone_to_owned()
}

/// One descriptor, kept in reserve.
#[derive(Debug)]
pub(crate) struct Spare(Option<OwnedFd>);

impl Default for Spare {
    fn default() -> Self {
        Self(another().ok())
    }
}

impl Spare {
    /// Frees it. True when there was one.
    pub(crate) fn spend(&mut self) -> bool {
        self.0.take().is_some()
    }

    /// Takes one again, where it was spent and another is free.
    pub(crate) fn restore(&mut self) {
        if self.0.is_none() {
            self.0 = another().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_gets_what_others_do_not_need() {
        assert_eq!(share(1024, 68), Descriptors { http: HTTP, too_few: None });
        assert_eq!(share(100, 68), Descriptors { http: 32, too_few: None });
        assert_eq!(share(64, 68), Descriptors { http: LEAST_HTTP, too_few: Some((64, 72)) });
        assert_eq!(share(usize::MAX, 68).http, HTTP);
    }

    #[test]
    fn a_shortage_is_seen_behind_whatever_says_so() {
        let shortage = io::Error::from_raw_os_error(Errno::MFILE.raw_os_error());
        assert!(is_shortage(&shortage) && is_behind(&shortage));
        assert!(is_behind(&io::Error::other(format!("ca.pem cannot be read: {shortage}"))));
        let absent = io::Error::from_raw_os_error(Errno::NOENT.raw_os_error());
        assert!(!is_shortage(&absent) && !is_behind(&absent));
        assert!(!are_used_up());
    }
}
