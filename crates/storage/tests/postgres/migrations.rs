//! Migrations are safe on filled tables: none of them rewrites, scans or locks for long what an earlier one made.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// The statements of a migration, in small letters, without comments, texts and bodies of functions. What a `DO` does, the migration does.
fn statements(sql: &str) -> Vec<String> {
    let uncommented: Vec<&str> =
        sql.lines().map(|line| line.split_once("--").map_or(line, |(code, _)| code)).collect();
    let mut bodiless = String::new();
    for (number, part) in uncommented.join(" ").split("$$").enumerate() {
        if number % 2 == 0 {
            bodiless.push_str(part);
        } else if bodiless.trim_end().to_uppercase().ends_with("DO") {
            let body = part.replace("BEGIN", ";").replace(" LOOP", ";").replace(" THEN", ";");
            bodiless.push_str(&format!("; {body}; "));
        } else {
            bodiless.push_str("''");
        }
    }
    let textless: Vec<String> = bodiless.split('\'').step_by(2).map(str::to_lowercase).collect();
    let spaced = textless.join("''").replace('(', " ( ").replace(')', " ) ").replace(',', " , ");
    let words = |statement: &str| statement.split_whitespace().collect::<Vec<_>>().join(" ");
    spaced.split(';').map(words).filter(|statement| !statement.is_empty()).collect()
}

/// The table behind `prefix`, whatever small words stand between.
fn table_behind<'a>(statement: &'a str, prefix: &str) -> Option<(&'a str, &'a str)> {
    let mut rest = statement.strip_prefix(prefix)?.trim_start();
    for word in ["if not exists ", "if exists ", "only "] {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let name = name.trim_matches('"');
    Some((name.strip_prefix("public.").unwrap_or(name), rest))
}

/// The parts of an ALTER TABLE: at the commas that stand in no parentheses.
fn actions(rest: &str) -> Vec<String> {
    let mut depth = 0_i32;
    let mut actions = vec![String::new()];
    for word in rest.split(' ') {
        depth += i32::from(word == "(") - i32::from(word == ")");
        if word == "," && depth == 0 {
            actions.push(String::new());
        } else if let Some(action) = actions.last_mut() {
            action.push_str(word);
            action.push(' ');
        }
    }
    actions
}

/// Why an action would hold up a filled table, or break the version that still serves.
fn unsafe_action(action: &str) -> Option<&'static str> {
    let has = |words: &str| format!(" {action}").contains(&format!(" {words} "));
    let adds = action.starts_with("add ");
    let constraint = ["constraint", "primary key", "unique", "foreign key", "check", "exclude"];
    if adds && constraint.iter().any(|kind| action.starts_with(&format!("add {kind} "))) {
        return (!has("not valid") && !has("using index")).then_some("a constraint without NOT VALID");
    }
    if adds {
        let default = action.split_once(" default ").map(|(_, default)| default);
        let called = default.is_some_and(|default| {
            default.contains('(') && !default.starts_with("now ( )") && !default.starts_with("( ")
        });
        return if called {
            Some("a column with a default that is computed row by row")
        } else if has("generated") || has("serial") || has("bigserial") || has("smallserial") {
            Some("a column that is computed row by row")
        } else if has("not null") && default.is_none() {
            Some("a column that may not be null without a default")
        } else if has("references") || has("check") || has("unique") || has("primary key") {
            Some("a column with a constraint that is checked row by row")
        } else {
            None
        };
    }
    if has("set not null") {
        return Some("SET NOT NULL");
    }
    if action.starts_with("alter ") && (has("type") || has("set data type")) {
        return Some("another type");
    }
    if action.starts_with("rename ") {
        return Some("another name, which the version before does not know");
    }
    let drops_part = ["constraint", "default", "not null", "expression", "identity"];
    if action.starts_with("drop ")
        && !drops_part.iter().any(|part| action.starts_with(&format!("drop {part}")))
    {
        return Some("a column gone, which the version before reads");
    }
    None
}

/// What is unsafe in a migration, when `earlier` tables may be filled; the tables that it makes are added to them.
fn findings(sql: &str, earlier: &mut HashSet<String>) -> Vec<String> {
    let mut made = HashSet::new();
    let mut found = Vec::new();
    for statement in statements(sql) {
        for create in ["create table ", "create unlogged table "] {
            made.extend(table_behind(&statement, create).map(|(table, _)| table.to_owned()));
        }
        let filled = |table: &str, made: &HashSet<String>| earlier.contains(table) && !made.contains(table);
        if statement.starts_with("create index ") || statement.starts_with("create unique index ") {
            let (_, on) = statement.split_once(" on ").unwrap_or_default();
            if let Some((table, _)) = table_behind(on, "")
                && filled(table, &made)
                && !statement.contains(" index concurrently ")
            {
                found.push(format!("{table}: an index made without CONCURRENTLY"));
            }
        }
        for (prefix, why) in [
            ("drop table ", "it is gone, and the version before reads it"),
            ("update ", "all rows are written at once"),
            ("truncate ", "it is emptied"),
            ("lock table ", "it is locked"),
        ] {
            if let Some((table, _)) = table_behind(&statement, prefix)
                && filled(table, &made)
            {
                found.push(format!("{table}: {why}"));
            }
        }
        if let Some((table, rest)) = table_behind(&statement, "alter table ")
            && filled(table, &made)
        {
            let unsafe_actions = actions(rest).into_iter().filter_map(|action| unsafe_action(&action));
            found.extend(unsafe_actions.map(|why| format!("{table}: {why}")));
        }
    }
    earlier.extend(made);
    found
}

#[test]
fn no_migration_holds_up_a_filled_table() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path().join("up.sql"));
    let mut files: Vec<_> = entries.filter(|file| file.is_file()).collect();
    files.sort();
    assert!(files.len() >= 8, "{files:?}");
    let mut earlier = HashSet::new();
    for file in files {
        let found = findings(&fs::read_to_string(&file).unwrap(), &mut earlier);
        assert!(found.is_empty(), "{}: {found:#?}", file.display());
    }
    for table in ["communities", "members", "board_entries", "nym_suffixes", "badge_ops", "applied_events"] {
        assert!(earlier.contains(table), "{table} is made by no migration: {earlier:?}");
    }
}

#[test]
fn a_migration_that_holds_up_a_filled_table_is_found() {
    let first =
        "CREATE TABLE filled (id bigint PRIMARY KEY, n text); CREATE INDEX filled_by_n ON filled (n);";
    let judge = |sql: &str| {
        let mut earlier = HashSet::new();
        assert_eq!(findings(first, &mut earlier), Vec::<String>::new());
        findings(sql, &mut earlier)
    };
    for planted in [
        "CREATE INDEX late ON filled (n);",
        "CREATE UNIQUE INDEX late ON ONLY public.filled USING btree (n);",
        "-- A comment; with a semicolon.\nALTER TABLE filled ADD COLUMN token uuid DEFAULT gen_random_uuid();",
        "ALTER TABLE filled ADD at timestamptz NOT NULL DEFAULT clock_timestamp();",
        "ALTER TABLE filled ADD COLUMN twice bigint GENERATED ALWAYS AS (id * 2) STORED;",
        "ALTER TABLE filled ADD COLUMN number bigserial;",
        "ALTER TABLE filled ADD COLUMN must text NOT NULL;",
        "ALTER TABLE filled ADD COLUMN other bigint REFERENCES filled;",
        "ALTER TABLE IF EXISTS filled ALTER COLUMN n SET NOT NULL;",
        "ALTER TABLE filled ADD COLUMN plain text,\n ALTER n TYPE varchar(9);",
        "ALTER TABLE filled ALTER COLUMN n SET DATA TYPE bytea USING convert_to(n, 'UTF8');",
        "ALTER TABLE filled ADD CONSTRAINT short CHECK (length(n) < 9);",
        "ALTER TABLE filled ADD FOREIGN KEY (id) REFERENCES filled (id);",
        "ALTER TABLE filled RENAME COLUMN n TO m;",
        "ALTER TABLE filled DROP COLUMN n;",
        "ALTER TABLE filled DROP n;",
        "DROP TABLE filled;",
        "UPDATE filled SET n = '';",
        "LOCK TABLE filled IN EXCLUSIVE MODE;",
        "DO $$ BEGIN ALTER TABLE filled ALTER n SET NOT NULL; END $$;",
        "DO $$ BEGIN FOR n IN 1..2 LOOP UPDATE filled SET n = ''; END LOOP; END $$;",
    ] {
        assert_eq!(judge(planted).len(), 1, "{planted}");
    }
    for harmless in [
        "CREATE INDEX CONCURRENTLY late ON filled (n);",
        "CREATE TABLE fresh (n text); CREATE INDEX fresh_by_n ON fresh (n); ALTER TABLE fresh ALTER n SET NOT NULL;",
        "ALTER TABLE filled ADD COLUMN plain text, ADD COLUMN count bigint NOT NULL DEFAULT 0;",
        "ALTER TABLE filled ADD COLUMN since timestamptz NOT NULL DEFAULT now();",
        "ALTER TABLE filled ADD CONSTRAINT short CHECK (length(n) < 9) NOT VALID;",
        "ALTER TABLE filled ADD CONSTRAINT late UNIQUE USING INDEX late;",
        "ALTER TABLE filled DROP CONSTRAINT short, ALTER n DROP DEFAULT;",
        "DROP INDEX filled_by_n;",
        "ALTER TABLE filled VALIDATE CONSTRAINT short, ALTER n SET DEFAULT 'type', SET (fillfactor = 70);",
        "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN ALTER TABLE filled ALTER n SET NOT NULL; END $$;",
    ] {
        assert_eq!(judge(harmless), Vec::<String>::new(), "{harmless}");
    }
}
