//! Databases of earlier releases. The newest migrations bring each over, with what is in it.

use muster_domain::{Lookup, MemberEffect, PageLimit, SearchLimit, SearchQuery};
use muster_storage::{Distribute, migrate, migration_revert};

use crate::schema::MIGRATIONS;
use crate::support::consistency;
use crate::support::database::Database;
use crate::support::events::{self, START, apply, guild, nym, scored, user};

/// Each release's name, its migrations with their digests, and the rows of a community that it wrote.
///
/// A release is added before it is made: `sha256sum` of each `up.sql`, and `pg_dump --data-only --inserts --rows-per-insert=1000
/// --exclude-table=signing_keys --exclude-table=__diesel_schema_migrations` of a database that its worker wrote, without what is
/// for psql.
const RELEASES: [(&str, &str, &str); 1] =
    [("0.1.0", include_str!("released/0.1.0.txt"), include_str!("released/0.1.0.sql"))];

#[tokio::test]
async fn a_database_of_each_release_is_brought_over_with_all_that_is_in_it() {
    for (release, migrations, rows) in RELEASES {
        let database = Database::empty().await;
        let client = database.client().await;
        let made = "CREATE TABLE __diesel_schema_migrations (
             version varchar(50) PRIMARY KEY, run_on timestamp NOT NULL DEFAULT now())";
        client.batch_execute(made).await.unwrap();
        for line in migrations.lines() {
            let (digest, name) = line.split_once("  ").unwrap();
            let file = format!("{}/migrations/{name}", env!("CARGO_MANIFEST_DIR"));
            let sql = std::fs::read_to_string(file).unwrap();
            let found =
                client.query_one("SELECT encode(sha256($1), 'hex')", &[&sql.as_bytes()]).await.unwrap();
            assert_eq!(
                found.get::<_, String>(0),
                digest,
                "{name} is released with {release} and may not change"
            );
            let version: String =
                name.chars().take_while(|c| *c != '_').filter(char::is_ascii_digit).collect();
            let record = format!("INSERT INTO __diesel_schema_migrations VALUES ('{version}')");
            client.batch_execute(&format!("BEGIN; {sql} {record}; COMMIT")).await.unwrap();
        }
        client.batch_execute(rows).await.unwrap();

        // Version 0.1.0 counts buckets that no rank is read from. They stay, and are no drift.
        let check = async || {
            let left = "BEGIN; DELETE FROM board_counts WHERE level BETWEEN 1 AND 9 AND bucket & 31 = 0";
            client.batch_execute(left).await.unwrap();
            consistency::check(&client).await;
            client.batch_execute("ROLLBACK").await.unwrap();
        };
        migrate(&database.config(), Distribute::New).await.unwrap();
        check().await;
        let (store, guild) = (database.store().await, guild("released"));
        let event = scored(&guild, &user(1), START + 9_000_000, 777);
        let community = apply(&store, &guild, vec![event]).await;
        assert!(community.verify(false).await.unwrap().is_exact());
        let member = community.profile_get(&Lookup::UserId(user(1))).await.unwrap();
        assert_eq!((member.profile.conviction.get(), member.profile.badge_count), (777, 2));
        assert_eq!(community.profile_list_ranked(PageLimit::MAX, None).await.unwrap().items.len(), 6);
        check().await;

        // Of a nym that it wrote, nothing is found once it has changed, nor when it is written back.
        let search = async |text: &str| {
            let query = SearchQuery::parse(text).unwrap();
            community.profile_search(&query, SearchLimit::MAX).await.unwrap().len()
        };
        for (at, name, tils, uls) in [(1, "Usul", 5, 1), (2, "stil gar 1", 6, 0)] {
            let effect = MemberEffect::Update { nick: Some(nym(name)) };
            let event = events::member(&guild, &user(1), START + 9_000_000 + at, effect);
            apply(&store, &guild, vec![event]).await;
            assert_eq!((search("til").await, search("ul").await), (tils, uls), "{name}");
            check().await;
        }

        // And back: what was written since is as the release writes it.
        for _ in 0..MIGRATIONS - migrations.lines().count() {
            migration_revert(&database.config()).await.unwrap();
        }
        let rows = "SELECT (SELECT count(*) FROM nym_suffixes),
                 (SELECT sum(least(length(nym_key), 32)) FROM members WHERE visible)";
        let rows = client.query_one(rows, &[]).await.unwrap();
        assert_eq!((rows.get::<_, i64>(0), rows.get::<_, i64>(0)), (rows.get(1), 60));
    }
}
