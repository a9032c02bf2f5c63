//! Writing: what events and operators change, under the locks, each row and each count once.

pub(crate) mod activity;
pub(crate) mod apply;
pub(crate) mod badges;
pub(crate) mod boards;
pub(crate) mod change;
pub(crate) mod communities;
pub(crate) mod counts;
pub(crate) mod directory;
pub(crate) mod erased;
pub(crate) mod ids;
pub(crate) mod lock;
pub(crate) mod member;
pub(crate) mod member_rows;
pub(crate) mod numbers;
pub(crate) mod outbox;
pub(crate) mod probe;
pub(crate) mod repair;
pub(crate) mod suffixes;
pub(crate) mod tiers;
