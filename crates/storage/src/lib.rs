//! Muster's record in PostgreSQL.
//!
//! [`Store`] answers a view of one community, [`Community`], and every question about a community is a method of that
//! view: there is none that could forget its tenant. What works on a shard, such as applying events and publishing changes, is a
//! method of the store. A list takes a [`Limit`](muster_domain::Limit) and a cursor, and
//! costs the same at any depth. [`Community::on_standby`] is the same view, read from a standby. Events are applied by
//! [`Store::events_apply`], each once.

mod board;
mod community;
mod connection;
mod distribution;
mod error;
mod migration;
mod observation;
mod operate;
mod outbox_hints;
mod policy;
mod read;
mod schema;
mod silence;
mod sql;
mod standby;
mod store;
mod tenant;
mod verify;
mod write;

pub use community::Community;
pub use connection::{FoundHost, StoreConfig};
pub use distribution::{Distribute, Distributed, Distribution, Node, distribution};
pub use error::{Cause, Error, FaultOf, Missing};
pub use migration::{Migrated, check as migrations_check, migrate, revert as migration_revert};
pub use observation::{ObserveQuery, QueryFailure, QueryObservation};
pub use operate::changes::{MAX_PUBLISHED, Publication, UnreadableChange, WaitingChanges};
pub use operate::restored::{Enforced, Erasure, MAX_ERASURES};
pub use standby::{Standby, StandbyState};
pub use store::{FoundCommunity, PoolStatus, SERVER_FLOOR, Server, Store};
pub use verify::report::{Compared, Drift, MAX_NAMED, Verification};
pub use write::apply::Applied;
