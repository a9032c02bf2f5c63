//! SQL as this crate sends it: statements with their values, batches of rows, and the codes of errors.

pub(crate) mod clock;
pub(crate) mod columns;
pub(crate) mod sqlstate;
pub(crate) mod statement;
