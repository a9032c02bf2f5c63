//! The worker as its operators run it: the real binary against a real PostgreSQL and a real NATS server of its own, both
//! with TLS, seen from outside only.

#![expect(clippy::unwrap_used, reason = "what a test stands on fails as the test does")]

mod answers;
mod browser;
mod changes;
mod citus;
mod cluster;
mod command_line;
mod contract;
mod crowd;
mod database;
mod dead_letters;
mod erasures;
mod examples;
mod faults;
mod files;
mod fitness;
mod http;
mod log_queue;
mod logs;
mod metrics;
mod pgbouncer;
mod roles;
mod rotation;
mod setting;
mod signals;
mod standby;
mod standings;
mod start;
mod store_faults;
mod text;
mod times;
mod traces;
mod transport;
mod verify;
