//! Databases of earlier releases. The newest migrations bring each over, with what is in it.

use muster_domain::{Lookup, MemberEffect, PageLimit};
use muster_storage::migrate;

use crate::support::consistency;
use crate::support::database::{Database, ca_file, url};
use crate::support::events::{START, added, apply, awarded, guild, joined, member, revoked, scored, user};

/// Each release's name, its migrations with their digests, and the rows of a community that it wrote.
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

        migrate(&database.config()).await.unwrap();
        consistency::check(&client).await;
        let (store, guild) = (database.store().await, guild("released"));
        let event = scored(&guild, &user(1), START + 9_000_000, 777);
        let community = apply(&store, &guild, vec![event]).await;
        assert!(community.verify(false).await.unwrap().is_exact());
        let member = community.profile_get(&Lookup::UserId(user(1))).await.unwrap();
        assert_eq!((member.profile.conviction.get(), member.profile.badge_count), (777, 2));
        assert_eq!(community.profile_list_ranked(PageLimit::MAX, None).await.unwrap().items.len(), 6);
        consistency::check(&client).await;
    }
}

/// To be run once before a release, with `cargo xtask test -- -p muster-storage --test postgres -- --ignored writes_the_rows`.
#[tokio::test]
#[ignore = "writes the files of a release"]
async fn writes_the_rows_of_this_release() {
    let database = Database::migrated().await;
    let store = database.store().await;
    let guild = guild("released");
    let mut events = Vec::new();
    for number in 0..8 {
        events.push(joined(&guild, &user(number), START + number, &format!("Stil Gar {number}")));
        events.push(scored(&guild, &user(number), START + 10 + number, number * 300 - 100));
        events.push(added(&guild, &user(number), START + 20 + number, number));
        events.push(awarded(&guild, &user(number), START + 30 + number, "rider"));
        events.push(awarded(&guild, &user(number), START + 40 + number, &format!("kind{}", number % 2)));
    }
    events.push(revoked(&guild, &user(2), START + 50, "rider"));
    events.push(member(&guild, &user(7), START + 60, MemberEffect::Leave));
    let community = apply(&store, &guild, events).await;
    let second = community.profile_get(&Lookup::UserId(user(2))).await.unwrap().profile.profile_id;
    community.profile_hide(second).await.unwrap();
    let gone = joined(&guild, &user(8), START + 70, "Erased");
    let community = apply(&store, &guild, vec![gone]).await;
    let gone = community.profile_get(&Lookup::UserId(user(8))).await.unwrap().profile.profile_id;
    community.profile_erase(gone).await.unwrap();
    let bin = std::env::var("MUSTER_POSTGRES_BIN").unwrap();
    let dumped = std::process::Command::new(format!("{bin}/pg_dump"))
        .args(["--data-only", "--inserts", "--rows-per-insert=1000", "--no-owner"])
        .args(["--exclude-table=signing_keys", "--exclude-table=__diesel_schema_migrations"])
        .args(["--dbname", &url(database.name())])
        .env("PGSSLROOTCERT", ca_file())
        .output()
        .unwrap();
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
    let rows = String::from_utf8(dumped.stdout).unwrap();
    // What begins with a backslash is for psql, and a comment or a setting for nobody.
    let is_row = |line: &&str| {
        !["\\", "--", "SET ", "SELECT pg_catalog.set_config"].iter().any(|start| line.starts_with(start))
    };
    let rows: Vec<&str> = rows.lines().filter(is_row).filter(|line| !line.is_empty()).collect();
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/postgres/released");
    std::fs::write(format!("{directory}/{}.sql", env!("CARGO_PKG_VERSION")), rows.join("\n") + "\n").unwrap();
}
