//! What the service can be asked, one file a resource. An endpoint is one type: a [`Client`](crate::client::Client) sends
//! it, the [`service`](crate::service) reads it, and [`ENDPOINTS`] lists it with its fields and its answer.
//!
//! A new endpoint is a type in the file of its resource, a line in the registry, a query in the storage crate, and the line
//! of the worker's `answers` that the compiler then asks for.
//!
//! On the wire it is JSON, snake_case, times in RFC 3339 UTC. Requests refuse unknown fields, answers ignore them when they
//! are read, so that an older client reads a newer service.

pub mod admin;
pub mod badges;
mod caller;
pub mod community;
pub mod directory;
mod endpoint;
mod error;
mod field;
mod page;
pub mod profiles;
mod registry;
mod row;
pub mod tiers;

pub use caller::{Caller, InvalidCaller};
pub use endpoint::{Description, Endpoint, PREFIX, Reply};
pub use error::{ErrorBody, ErrorCode, ErrorFields, MAX_REQUEST, ServiceError};
pub use field::{DefaultValue, Field, Fields, Form};
pub use page::{Page, Rows};
pub use registry::{ENDPOINTS, Query, Question};
pub use row::{Badge, Profile};
