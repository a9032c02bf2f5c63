//! Dates as cursors hold them.

use time::OffsetDateTime;

/// A date as a cursor holds it: microseconds since 1970, which is PostgreSQL's own precision.
pub(crate) fn micros(date: OffsetDateTime) -> i64 {
    i64::try_from(date.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

/// The date back again; what lies outside the calendar becomes its nearest end.
pub(crate) fn date(micros: i64) -> OffsetDateTime {
    let end = if micros < 0 { EARLIEST } else { LATEST };
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros).saturating_mul(1000))
        .unwrap_or(end)
        .clamp(EARLIEST, LATEST)
}

const EARLIEST: OffsetDateTime = time::macros::datetime!(-4000-01-01 00:00 UTC);
const LATEST: OffsetDateTime = time::macros::datetime!(9999-12-31 23:59:59.999999 UTC);
