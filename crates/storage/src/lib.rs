//! Muster's record in PostgreSQL.
//!
//! [`Store`] answers a view of one community, [`Community`], and every query on a community's rows is a method of that
//! view: there is none that could forget its tenant. A list takes a [`Limit`](muster_domain::Limit) and a cursor, and
//! costs the same at any depth. Events are applied by [`Store::events_apply`], each once.

mod apply;
mod badge;
mod community;
mod connection;
mod counts;
mod directory;
mod erasure;
mod error;
mod fold;
mod hosts;
mod lock;
mod member;
mod migration;
mod probe;
mod profile;
mod ranking;
mod search;
mod session;
mod sqlstate;
mod statement;
mod stats;
mod store;
mod tier;
mod url;
mod verify;

pub use apply::{Applied, MAX_BATCH};
pub use community::Community;
pub use connection::{FoundHost, StoreConfig};
pub use directory::{DIRECTORY_ROWS_BY_NUMBER, DirectoryStart};
pub use erasure::{Enforced, Erasure, MAX_ERASURES};
pub use error::{Cause, Error, FaultOf, Missing};
pub use migration::{check as migrations_check, migrate, revert as migration_revert};
pub use store::{
    FoundCommunity, ObserveQuery, PoolStatus, QueryFailure, QueryObservation, SERVER_FLOOR, Store,
};
pub use verify::{Compared, Drift, MAX_NAMED, Verification};
