//! Rows that a statement takes all at once: an array for each column, which `unnest` makes rows of again.

use std::sync::Arc;

use diesel::pg::Pg;
use diesel::query_builder::QueryFragment;

/// A value that is bound to a statement.
pub(crate) type Bind = Arc<dyn QueryFragment<Pg> + Send + Sync>;

/// A row of a batch. [`columns!`] implements it, so that a column's name and type stand once.
pub(crate) trait Row: Sized {
    /// The names of the columns.
    const NAMES: &'static [&'static str];

    /// The columns of these rows, as arrays.
    fn columns(rows: Vec<Self>) -> Vec<Bind>;
}

/// Declares a row of a batch: each field with its type here and in SQL.
macro_rules! columns {
    ($(#[$meta:meta])* $visibility:vis struct $name:ident { $($field:ident: $type:ty => $sql:ty),+ $(,)? }) => {
        $(#[$meta])*
        $visibility struct $name { $(pub(crate) $field: $type),+ }

        impl $crate::sql::columns::Row for $name {
            const NAMES: &'static [&'static str] = &[$(stringify!($field)),+];

            fn columns(rows: Vec<Self>) -> Vec<$crate::sql::columns::Bind> {
                $(let mut $field: Vec<$type> = Vec::with_capacity(rows.len());)+
                for row in rows {
                    $($field.push(row.$field);)+
                }
                vec![$({
                    use diesel::IntoSql;
                    let column: $crate::sql::columns::Bind =
                        std::sync::Arc::new($field.into_sql::<diesel::sql_types::Array<$sql>>());
                    column
                }),+]
            }
        }
    };
}

/// A batch, each row beside `found`: where the row of this key lies in a table, in the community that the row names. For a statement
/// that changes or removes it by `ctid = found.ctid`.
///
/// Rows are found one by one by their keys, so whatever the planner believes of a table that it has no statistics of yet, it cannot
/// read all of it. The caller's locks keep the places from changing meanwhile.
macro_rules! rows_in {
    ($table:literal $(, $key:literal)*) => {
        concat!(
            "$rows CROSS JOIN LATERAL (SELECT r.ctid FROM ",
            $table,
            " AS r WHERE r.shard = $1 AND r.community = rows.community",
            $(" AND r.", $key, " = rows.", $key,)*
            " LIMIT 1) AS found"
        )
    };
}
pub(crate) use {columns, rows_in};
