//! Events have one effect each, and the end state is that of their order, however they arrive.

use std::sync::Arc;

use muster_domain::{Effect, Event, GuildId, ProfileId, TierPolicy, Wallet};
use muster_storage::{Community, Erasure, Error, Missing, Store};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::support::consistency;
use crate::support::database::Database;
use crate::support::events::{
    Drawn, GUILDS, START, USERS, drawn, event_time, guild, kind, policy, user, view,
};
use crate::support::reference::{Erasures, GuildState, end_state, stored_state};

/// Events and how they arrive: the index of an event for each arrival, at least once each, and the sizes of batches.
#[derive(Debug, Clone)]
struct Arrivals {
    events: Vec<Drawn>,
    order: Vec<usize>,
    sizes: Vec<usize>,
}

impl Arrivals {
    fn batches(&self, guilds: &[GuildId]) -> Vec<Vec<Event>> {
        let mut arriving = self.order.iter().map(|index| self.events[*index].event(guilds)).peekable();
        let mut sizes = self.sizes.iter().cycle();
        let mut batches = Vec::new();
        while arriving.peek().is_some() {
            batches.push(arriving.by_ref().take(*sizes.next().unwrap()).collect());
        }
        batches
    }
}

fn arrivals(events: std::ops::Range<usize>) -> impl Strategy<Value = Arrivals> {
    let events = proptest::collection::vec(drawn(), events);
    (events, proptest::collection::vec(1..60_usize, 1..8)).prop_flat_map(|(events, sizes)| {
        let again = proptest::collection::vec(0..events.len(), 0..=events.len() / 2);
        let all: Vec<usize> = (0..events.len()).collect();
        let order = again.prop_flat_map(move |again| Just([all.clone(), again].concat()).prop_shuffle());
        (Just(events), order, Just(sizes)).prop_map(|(events, order, sizes)| Arrivals {
            events,
            order,
            sizes,
        })
    })
}

/// The seed is printed; `PROPTEST_RNG_SEED` repeats it. `MUSTER_TEST_CASES` asks for more cases than every run tries.
fn runner(cases: u32) -> TestRunner {
    let given = Config::default();
    let rng_seed = match given.rng_seed {
        RngSeed::Random => RngSeed::Fixed(Uuid::new_v4().as_u64_pair().0),
        fixed => fixed,
    };
    let cases = std::env::var("MUSTER_TEST_CASES").map_or(cases, |cases| cases.parse().unwrap());
    println!("PROPTEST_RNG_SEED={rng_seed}, {cases} cases");
    TestRunner::new(Config { cases, rng_seed, max_shrink_iters: 300, failure_persistence: None, ..given })
}

/// Runs a property whose cases share a runtime and a database, which is emptied for each.
fn run<S: Strategy>(
    cases: u32,
    strategy: &S,
    case: impl Fn(&tokio::runtime::Runtime, &Setting, S::Value) -> Result<(), TestCaseError>,
) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let setting = runtime.block_on(Setting::new());
    let result = runner(cases).run(strategy, |value| {
        let empty = "TRUNCATE communities, community_states, community_stripes, community_totals, community_days, members,
             activity_adds, board_entries, board_counts, directory, nym_suffixes, badge_kinds, badge_ops, tiers,
             tier_counts, tier_changes, erasures, changes, changes_published; DELETE FROM applied_events";
        runtime.block_on(setting.client.batch_execute(empty)).unwrap();
        setting.stores.iter().for_each(Store::close_idle);
        // What a failed assertion says is lost when it is caught by the runner, so it is handed on.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&runtime, &setting, value)))
            .unwrap_or_else(|panic| {
                let said = panic.downcast_ref::<String>().cloned();
                Err(TestCaseError::fail(said.unwrap_or_else(|| "it panicked".to_owned())))
            })
    });
    drop(setting);
    match result {
        Ok(()) => {}
        Err(TestError::Fail(why, input)) => panic!("{why}\nof {input:#?}"),
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
}

struct Setting {
    stores: [Store; 2],
    client: Client,
    _database: Database,
}

impl Setting {
    async fn new() -> Self {
        let database = Database::migrated().await;
        let stores = [database.store().await, database.store().await];
        Self { stores, client: database.client().await, _database: database }
    }

    async fn stored(&self, guilds: &[GuildId]) -> Vec<Option<GuildState>> {
        let mut states = Vec::new();
        for guild in guilds {
            states.push(stored_state(&self.client, guild).await);
        }
        states
    }
}

fn fresh_guilds() -> Vec<GuildId> {
    let run = Uuid::new_v4().simple().to_string();
    (0..GUILDS).map(|number| guild(&format!("{run}-{number}"))).collect()
}

/// Hands batches to both stores at once, each to whichever is free.
async fn deliver(stores: &[Store; 2], batches: Vec<Vec<Event>>) -> (usize, usize) {
    let queue = Arc::new(std::sync::Mutex::new(batches.into_iter()));
    let take = |store: Store| {
        let queue = Arc::clone(&queue);
        async move {
            let (mut fresh, mut duplicates) = (0, 0);
            loop {
                let Some(batch) = queue.lock().unwrap().next() else { return (fresh, duplicates) };
                let applied = store.events_apply(batch).await.unwrap();
                fresh += applied.fresh.values().sum::<usize>();
                duplicates += applied.duplicates.values().sum::<usize>();
            }
        }
    };
    let (one, other) = tokio::join!(take(stores[0].clone()), take(stores[1].clone()));
    (one.0 + other.0, one.1 + other.1)
}

#[test]
fn shuffled_duplicated_and_concurrent_events_come_to_what_the_contract_says() {
    run(32, &arrivals(1..300), |runtime, setting, arrivals| {
        runtime.block_on(async {
            let guilds = fresh_guilds();
            let events: Vec<Event> = arrivals.events.iter().map(|event| event.event(&guilds)).collect();
            let counted = deliver(&setting.stores, arrivals.batches(&guilds)).await;
            prop_assert_eq!(counted, (events.len(), arrivals.order.len() - events.len()));

            let expected = end_state(&events, &Erasures::new());
            let stored = setting.stored(&guilds).await;
            for (guild, stored) in guilds.iter().zip(&stored) {
                prop_assert_eq!(stored.as_ref(), expected.get(guild));
            }
            consistency::check(&setting.client).await;

            // The same, one after the other in their order.
            let in_order = fresh_guilds();
            let mut events: Vec<Event> = arrivals.events.iter().map(|event| event.event(&in_order)).collect();
            events.sort_by_key(|event| (event.at, event.id));
            for batch in events.chunks(17) {
                setting.stores[0].events_apply(batch.to_vec()).await.unwrap();
            }
            prop_assert_eq!(setting.stored(&in_order).await, stored);
            prop_assert_eq!(
                visible(&setting.client, &in_order).await,
                visible(&setting.client, &guilds).await
            );
            Ok(())
        })
    });
}

/// Whom of which guild is erased when, in milliseconds after the first event.
fn erasures() -> impl Strategy<Value = Vec<(usize, u8, i64)>> {
    proptest::collection::vec((0..GUILDS, 0..USERS, (0..40_i64).prop_map(|at| at * 4_000_000)), 1..20)
}

#[test]
fn a_backup_that_is_told_of_erasures_and_reads_the_stream_again_holds_nothing_of_before_them() {
    run(32, &(arrivals(1..300), erasures()), |runtime, setting, (arrivals, erased)| {
        runtime.block_on(async {
            let guilds = fresh_guilds();
            let [store, _] = &setting.stores;
            let date = |at: i64| event_time(START + at);
            let (mut latest, mut list) = (Erasures::new(), Vec::new());
            for (guild, number, at) in &erased {
                let (guild, user, erased_at) = (guilds[*guild].clone(), user(*number), date(*at).date());
                let last = latest.entry((guild.clone(), user.as_str().to_owned())).or_insert(erased_at);
                *last = erased_at.max(*last);
                let person = store.erasure_key().person(&guild, user.as_str());
                list.push(Erasure { guild, person, erased_at });
            }
            // The backup holds what was before the first erasure, in whatever order it came.
            let first = date(erased.iter().map(|(_, _, at)| *at).min().unwrap());
            let mut backup = arrivals.batches(&guilds);
            backup.iter_mut().for_each(|batch| batch.retain(|event| event.at <= first));
            deliver(&setting.stores, backup).await;
            for one in list.chunks(7) {
                store.erasures_remember(one.to_vec()).await.unwrap();
            }
            for (guild, _) in latest.keys() {
                view(store, guild).await.erasures_enforce().await.unwrap();
            }
            setting.client.batch_execute("DELETE FROM applied_events").await.unwrap();
            // What the backup's ids would have kept from a second effect is left out here.
            let mut stream = arrivals.batches(&guilds);
            let is_new = |event: &Event| event.at > first || is_erased(&latest, event);
            stream.iter_mut().for_each(|batch| batch.retain(is_new));
            deliver(&setting.stores, stream).await;

            let events: Vec<Event> = arrivals.events.iter().map(|event| event.event(&guilds)).collect();
            let expected = end_state(&events, &latest);
            for (guild, stored) in guilds.iter().zip(setting.stored(&guilds).await) {
                prop_assert_eq!(stored.as_ref(), expected.get(guild));
            }
            consistency::check(&setting.client).await;
            Ok(())
        })
    });
}

/// Whether an event is of one who was erased, at its time or later.
fn is_erased(erasures: &Erasures, event: &Event) -> bool {
    let Effect::Member { user, .. } = &event.effect else { return false };
    let key = (event.guild.clone(), user.as_str().to_owned());
    erasures.get(&key).is_some_and(|erased_at| event.at.date() <= *erased_at)
}

/// Tiers and counts of what is visible, as text.
async fn visible(client: &Client, guilds: &[GuildId]) -> Vec<String> {
    let mut all = Vec::new();
    for guild in guilds {
        let find = "SELECT shard, community FROM communities WHERE guild_id = $1";
        let Some(of) = client.query_opt(find, &[&guild.as_str()]).await.unwrap() else { continue };
        let (shard, community): (i16, i32) = (of.get(0), of.get(1));
        let mut here = Vec::new();
        for sql in [
            "SELECT ROW(user_id, t.name, badge_count)::text
             FROM members AS m LEFT JOIN tiers AS t USING (shard, community, tier)
             WHERE m.shard = $1 AND m.community = $2 AND visible",
            "SELECT ROW(t.name, members)::text FROM tier_counts AS c JOIN tiers AS t USING (shard, community, tier)
             WHERE c.shard = $1 AND c.community = $2 AND members <> 0",
            "SELECT ROW(name, holders, first_awarded_at)::text FROM badge_kinds WHERE shard = $1 AND community = $2",
            "SELECT ROW(members, conviction, badges)::text FROM community_totals WHERE shard = $1 AND community = $2",
        ] {
            let rows = client.query(sql, &[&shard, &community]).await.unwrap();
            here.extend(rows.iter().map(|row| row.get::<_, String>(0)));
        }
        here.sort_unstable();
        all.extend(here);
    }
    all
}

/// What an operator does to one of the members.
#[derive(Debug, Clone)]
enum Call {
    Hide,
    Show,
    Award(&'static str),
    Revoke(&'static str),
    Link(Option<u8>),
    Erase,
    Replace(TierPolicy),
}

fn calls() -> impl Strategy<Value = Vec<(usize, u8, Call)>> {
    let kinds = || prop_oneof![Just("k"), Just("l")];
    let policies = prop_oneof![
        Just(policy(&[-100, 0, 300], &[2, 5])),
        Just(policy(&[], &[1, 20])),
        Just(policy(&[200], &[])),
        Just(TierPolicy::default()),
    ];
    let call = prop_oneof![
        6 => Just(Call::Hide),
        4 => Just(Call::Show),
        4 => kinds().prop_map(Call::Award),
        4 => kinds().prop_map(Call::Revoke),
        2 => proptest::option::of(0..4_u8).prop_map(Call::Link),
        2 => Just(Call::Erase),
        1 => policies.prop_map(Call::Replace),
    ];
    proptest::collection::vec((0..GUILDS, 0..USERS, call), 1..60)
}

/// Makes a call if there is such a member.
async fn call(client: &Client, community: &Community, number: u8, call: Call) {
    let row = client
        .query_opt(
            "SELECT profile_id FROM members JOIN communities USING (shard, community)
             WHERE community_id = $1 AND user_id = $2",
            &[&community.id().get(), &user(number).as_str()],
        )
        .await
        .unwrap();
    let Some(row) = row else { return };
    let id = ProfileId::new(row.get(0));
    let gone = |error: Error| {
        // Another may have erased them since.
        assert!(matches!(error, Error::NotFound(Missing::Profile)), "{error:?}");
    };
    match call {
        Call::Hide => {
            community.profile_hide(id).await.map_or_else(gone, |hidden| assert_eq!(hidden.profile_id, id))
        }
        Call::Show => {
            community.profile_show(id).await.map_or_else(gone, |shown| assert_eq!(shown.profile_id, id))
        }
        Call::Award(name) => {
            community.badge_award(id, kind(name), None, None).await.map_or_else(gone, |award| {
                assert!(award.badge.revoked_at.is_none() && award.badge.kind == kind(name));
            });
        }
        Call::Revoke(name) => match community.badge_revoke(id, kind(name), None, None).await {
            Ok(badge) => assert!(badge.revoked_at.is_some()),
            Err(Error::NotFound(Missing::Badge)) => {}
            Err(error) => gone(error),
        },
        Call::Link(wallet) => {
            let wallet = wallet.map(|number| Wallet::parse(format!("w{number}")).unwrap());
            match community.profile_link_wallet(id, wallet.clone()).await {
                Ok(profile) => assert_eq!(profile.wallet, wallet),
                Err(Error::WalletTaken) => {}
                Err(error) => gone(error),
            }
        }
        Call::Erase => community.profile_erase(id).await.unwrap_or_else(gone),
        Call::Replace(policy) => community.tier_policy_replace(&policy).await.unwrap(),
    }
}

/// What one connection does in one go.
enum Step {
    Apply(Vec<Event>),
    Call(usize, u8, Call),
}

/// Batches and calls in one queue, from which as many callers as `CALLERS` take at once, through two pools of connections.
#[test]
fn every_count_stays_right_while_operators_interfere() {
    const CALLERS: usize = 4;
    run(16, &(arrivals(1..250), calls()), |runtime, setting, (arrivals, calls)| {
        runtime.block_on(async {
            let guilds = fresh_guilds();
            let batches = arrivals.batches(&guilds);
            // The calls are spread over the batches evenly.
            let (every, mut calls) = (calls.len().div_ceil(batches.len()), calls.into_iter());
            let mut steps = Vec::new();
            for batch in batches {
                steps.push(Step::Apply(batch));
                steps.extend(
                    calls.by_ref().take(every).map(|(guild, member, call)| Step::Call(guild, member, call)),
                );
            }
            let queue = std::sync::Mutex::new(steps.into_iter());
            let take = |store: &Store| {
                let (store, queue, guilds) = (store.clone(), &queue, &guilds);
                async move {
                    loop {
                        let Some(step) = queue.lock().unwrap().next() else { return };
                        match step {
                            Step::Apply(batch) => {
                                store.events_apply(batch).await.unwrap();
                            }
                            Step::Call(number, member, what) => {
                                if store.community_find(&guilds[number]).await.is_ok() {
                                    let community = view(&store, &guilds[number]).await;
                                    call(&setting.client, &community, member, what).await;
                                }
                            }
                        }
                    }
                }
            };
            futures_util::future::join_all((0..CALLERS).map(|caller| take(&setting.stores[caller % 2])))
                .await;
            consistency::check(&setting.client).await;
            crate::verify::all_exact(&setting.stores[0]).await;
            Ok(())
        })
    });
}
