//! The store: connections, and how reads and writes are run on them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use diesel::QueryResult;
use diesel::prelude::{
    OptionalExtension, QueryDsl, Queryable, QueryableByName, Selectable, SelectableHelper,
};
use diesel::sql_types::{Array, BigInt, Bool, Text};
use diesel_async::pooled_connection::deadpool::{Object, Pool};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, TransactionManager};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use moka::future::Cache;
use muster_domain::{
    CommunityId, CommunityName, CursorKey, ErasureKey, GuildId, Limit, PseudonymKey, Shard, Version,
    VersionFloor,
};
use tracing::{Instrument, Span};
use uuid::Uuid;

use crate::connection::{Awaited, StoreConfig};
use crate::error::{Error, Missing, SilentNode};
use crate::observation::{QueryFailure, QueryObservation};
use crate::outbox_hints::OutboxHints;
use crate::policy::Policy;
use crate::schema::{communities, community_states, signing_keys};
use crate::silence::{self, Silence};
use crate::sql::statement::{self, Statement};
use crate::standby::Standby;
use crate::tenant::{Named, Tenant};

/// Which versions of PostgreSQL Muster works with.
pub const SERVER_FLOOR: VersionFloor = VersionFloor {
    server: "PostgreSQL",
    least: Version([15, 0, 0]),
    why_least: "the schema and its guarantees are tested from 15 on, and what is older gets no fixes any more",
    advised: Version([15, 0, 0]),
    why_advised: "it is not tested",
};
/// How long a community's policy is trusted before it is read again.
const POLICY_AGE: Duration = Duration::from_secs(10);
/// How many communities' policies are kept: a few kilobytes each.
const POLICIES: u64 = 10_000;
/// How long a community's keys are trusted, which never change but by a restore of another database.
const TENANT_AGE: Duration = Duration::from_secs(600);
/// How old a number of changes may be that is told again to others who catch up, so that they need not wait.
const CHANGES_SHOWN_AGE: Duration = Duration::from_secs(30);
/// How many communities' keys are kept: some hundred bytes each.
const TENANTS: u64 = 100_000;

/// Muster's record. Cheap to clone: the clones share one pool.
///
/// A community is asked through [`Store::community`] only, which answers a view of it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    reads: Reads,
    /// The shard of which rows are asked for, where that is known.
    shard: Option<Shard>,
}

/// Where a store reads. It writes to the primary in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    Primary,
    Standby,
}

struct Inner {
    pool: Pool<AsyncPgConnection>,
    config: StoreConfig,
    cursor_key: CursorKey,
    pseudonym_key: PseudonymKey,
    erasure_key: ErasureKey,
    policies: Cache<CommunityId, Arc<Policy>>,
    tenants: Cache<CommunityId, Tenant>,
    guilds: Cache<GuildId, Named>,
    changes_shown: Cache<CommunityId, u64>,
    outbox_hints: OutboxHints,
    standby: Option<Standby>,
    /// Where the database is a coordinator of Citus.
    cluster: Option<Cluster>,
    /// The shard in which a probe passed last, which is where the next one is tried first in a cluster.
    probed: AtomicU8,
    /// Whether old additions to activity are folded.
    folds: AtomicBool,
}

/// What there is to a database whose shards lie on several nodes.
struct Cluster {
    /// What each write sets for the node of its shard.
    on_node: String,
    silence: Silence,
    /// For signs of life of its nodes.
    pings: Pool<AsyncPgConnection>,
}

/// A community as its chat server's id finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundCommunity {
    /// Its id.
    pub community_id: CommunityId,
    /// Its name, if one is known.
    pub name: Option<CommunityName>,
    /// False once the chat server was left.
    pub active: bool,
    /// The number of its last change.
    pub changes: u64,
}

/// The pool at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStatus {
    /// Connections handed out.
    pub in_use: usize,
    /// Connections open.
    pub open: usize,
    /// The most connections.
    pub size: usize,
    /// Callers waiting for one.
    pub waiting: usize,
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its version; [`SERVER_FLOOR`] judges it.
    pub version: String,
    /// Whether what is committed is on its disk (`fsync`).
    pub commits_to_disk: bool,
    /// Whether what is committed is on a standby, too (`synchronous_standby_names`). Where the URL names one host it is not known whether
    /// another server may take its place behind that name, and this is true.
    pub outlives_failover: bool,
}

impl Store {
    /// Connects, and checks that the schema is the one this version needs.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database cannot be reached, [`Error::Outdated`] when migrations are pending,
    /// [`Error::Configuration`] when lists are to be read from a standby of one node of several.
    pub async fn open(config: StoreConfig) -> Result<Self, Error> {
        crate::migration::check(&config).await?;
        let pool = config.pool()?;
        let standby = Standby::of(&config)?;
        let (cursor_key, pseudonym_key, erasure_key, cluster) = {
            let mut connection = acquire(&pool).await?;
            let is_cluster = crate::distribution::is_cluster(&mut connection).await?;
            if is_cluster && standby.is_some() {
                return Err(Error::Configuration(
                    "database.read_url_file does not go with a cluster of Citus, of which each node has a log of its own: \
                     take it away"
                        .to_owned(),
                ));
            }
            let cluster = is_cluster.then(|| {
                let pings = config.clone().pool_size(silence::PINGS).pool()?;
                Ok::<_, Error>(Cluster {
                    on_node: config.node_settings(),
                    silence: Silence::default(),
                    pings,
                })
            });
            let cluster = cluster.transpose()?;
            let cursor = secret(&mut connection, "cursor").await?;
            let erasures = secret(&mut connection, "erasures").await?;
            (CursorKey::new(cursor), PseudonymKey::derive(cursor), ErasureKey::new(erasures), cluster)
        };
        let policies = Cache::builder().max_capacity(POLICIES).time_to_live(POLICY_AGE).build();
        let tenants = Cache::builder().max_capacity(TENANTS).time_to_live(TENANT_AGE).build();
        let guilds = Cache::builder().max_capacity(TENANTS).time_to_live(TENANT_AGE).build();
        let changes_shown = Cache::builder().max_capacity(POLICIES).time_to_live(CHANGES_SHOWN_AGE).build();
        let inner = Inner {
            pool,
            config,
            cursor_key,
            pseudonym_key,
            erasure_key,
            policies,
            tenants,
            guilds,
            changes_shown,
            outbox_hints: OutboxHints::new(),
            standby,
            cluster,
            probed: AtomicU8::new(0),
            folds: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner), reads: Reads::Primary, shard: None })
    }

    /// The standby that lists may be read from, where one is configured.
    #[must_use]
    pub fn standby(&self) -> Option<&Standby> {
        self.inner.standby.as_ref()
    }

    /// The same store, which reads from the standby. `None` while that is not fit for it.
    pub(crate) fn on_standby(&self) -> Option<Self> {
        let standby = self.standby().filter(|standby| standby.is_fit());
        standby.map(|_| Self { reads: Reads::Standby, ..self.clone() })
    }

    /// The same store, which reads from the primary.
    pub(crate) fn on_primary(&self) -> Self {
        Self { reads: Reads::Primary, ..self.clone() }
    }

    /// The same store, of which rows of one shard are asked for.
    pub(crate) fn in_shard(&self, shard: Shard) -> Self {
        Self { shard: Some(shard), ..self.clone() }
    }

    /// Where the rows of a community are, if there is one of this id.
    pub(crate) async fn tenant(&self, id: CommunityId) -> Result<Option<Tenant>, Error> {
        if let Some(tenant) = self.inner.tenants.get(&id).await {
            return Ok(Some(tenant));
        }
        let row = self.read("community_policy", move |connection| {
            let find = communities::table.find(id.get()).select(CommunityRow::as_select());
            async move { find.get_result(connection).await.optional() }.boxed()
        });
        let Some(row) = row.await? else { return Ok(None) };
        let named = row.named()?;
        self.inner.tenants.insert(id, named.tenant).await;
        Ok(Some(named.tenant))
    }

    /// A community's policy: the one that is kept, or what `load` reads.
    pub(crate) async fn policy(
        &self,
        id: CommunityId,
        load: impl Future<Output = Result<Arc<Policy>, Error>>,
    ) -> Result<Arc<Policy>, Error> {
        self.inner.policies.try_get_with(id, load).await.map_err(|error| match Arc::try_unwrap(error) {
            Ok(error) => error,
            // Several callers waited for one look-up: each gets an error of its own of the same kind.
            Err(shared) => match &*shared {
                Error::NotFound(missing) => Error::NotFound(*missing),
                transient if transient.is_transient() => Error::Unavailable(transient.to_string().into()),
                other => Error::defect(other.to_string()),
            },
        })
    }

    /// Keeps a policy in place of what was kept.
    pub(crate) async fn keep_policy(&self, id: CommunityId, policy: Arc<Policy>) {
        self.inner.policies.insert(id, policy).await;
    }

    /// Those among the communities of these chat servers whose keys are kept: they have all that a community has.
    pub(crate) async fn communities_cached(&self, guilds: &BTreeSet<GuildId>) -> HashMap<GuildId, Named> {
        let mut cached = HashMap::with_capacity(guilds.len());
        for guild in guilds {
            if let Some(named) = self.inner.guilds.get(guild).await {
                cached.insert(guild.clone(), named);
            }
        }
        cached
    }

    /// Keeps the keys of communities that have all that a community has.
    pub(crate) async fn keep_keys(&self, communities: &HashMap<GuildId, Named>) {
        for (guild, named) in communities {
            self.inner.guilds.insert(guild.clone(), *named).await;
        }
    }

    /// Has the keys of these communities looked up again.
    pub(crate) async fn forget_keys(&self, communities: &HashMap<GuildId, Named>) {
        for (guild, named) in communities {
            self.inner.guilds.invalidate(guild).await;
            self.forget_tenant(named.id).await;
        }
    }

    pub(crate) async fn forget_tenant(&self, id: CommunityId) {
        self.inner.tenants.invalidate(&id).await;
        self.inner.policies.invalidate(&id).await;
    }

    /// The communities of these chat servers, as far as there are any.
    pub(crate) async fn communities_known(
        &self,
        guilds: &BTreeSet<GuildId>,
    ) -> Result<HashMap<GuildId, Named>, Error> {
        let mut known = HashMap::with_capacity(guilds.len());
        let asked: Vec<String> = guilds.iter().map(|guild| guild.as_str().to_owned()).collect();
        let keys = asked.len();
        let find = Statement::shared(
            "SELECT c.community_id, c.guild_id, c.shard, c.community
             FROM unnest($1) AS g (guild_id)
             CROSS JOIN LATERAL (SELECT * FROM communities AS c WHERE c.guild_id = g.guild_id LIMIT 1) AS c",
        )
        .bind::<Array<Text>, _>(asked);
        let rows: Vec<CommunityRow> = self.by_keys("communities_ensure", find, keys).await?;
        for row in rows {
            let named = row.named()?;
            let guild = GuildId::parse(row.guild_id).map_err(Error::defect)?;
            known.insert(guild, named);
        }
        Ok(known)
    }

    /// The community of a chat server.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no event of that server has been seen.
    pub async fn community_find(&self, guild: &GuildId) -> Result<FoundCommunity, Error> {
        let guilds = BTreeSet::from([guild.clone()]);
        let mut found = self.communities_cached(&guilds).await;
        let was_kept = !found.is_empty();
        if !was_kept {
            found = self.communities_known(&guilds).await?;
        }
        let named = *found.get(guild).ok_or(Error::NotFound(Missing::Community))?;
        let key = (i16::from(named.tenant.shard.number()), named.tenant.community);
        let store = self.in_shard(named.tenant.shard);
        let row = store.read("community_find", move |connection| {
            let find = community_states::table.find(key).select(FoundRow::as_select());
            async move { find.get_result(connection).await.optional() }.boxed()
        });
        let row = match row.await? {
            Some(row) if row.community_id == named.id.get() => {
                self.keep_keys(&found).await;
                row
            }
            // One that was only just made is active and has no name; what is kept had a state.
            None if !was_kept => {
                FoundRow { community_id: named.id.get(), name: None, active: true, changes: 0 }
            }
            // The keys are of a primary that was lost with its last transactions.
            _ => {
                self.forget_keys(&found).await;
                return Err(Error::other_keys());
            }
        };
        let name = row.name.map(CommunityName::parse).transpose().map_err(Error::defect)?;
        let changes = u64::try_from(row.changes).map_err(Error::defect)?;
        let changes = match self.standby() {
            Some(standby) => self.changes_shown(standby, named, changes).await?,
            None => changes,
        };
        Ok(FoundCommunity { community_id: named.id, name, active: row.active, changes })
    }

    /// A number of a community's changes up to which every list shows them, read from whatever standby by whatever process: who
    /// catches up walks the lists and passes over the changes up to that number. `last` was read just now.
    async fn changes_shown(&self, standby: &Standby, named: Named, last: u64) -> Result<u64, Error> {
        let read_at = Instant::now();
        let written = Statement::in_community(
            named.tenant,
            "SELECT xmin::text::bigint AS transaction FROM community_states WHERE shard = $1 AND community = $2",
        );
        let written: Option<WrittenRow> = self.optional("community_find", written).await?;
        if written.is_some_and(|row| !standby.shows_transaction(row.transaction)) {
            // One that is older is as good: what is published again says what is.
            if let Some(shown) = self.inner.changes_shown.get(&named.id).await {
                return Ok(shown.min(last));
            }
            tokio::time::sleep_until((read_at + standby.max_lag()).into()).await;
        }
        self.inner.changes_shown.insert(named.id, last).await;
        Ok(last)
    }

    /// Asks the database for an answer, as a readiness check.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is none in time.
    pub async fn ping(&self) -> Result<(), Error> {
        self.optional::<OneRow>("ping", Statement::shared("SELECT true AS one")).await.map(|_| ())
    }

    /// What the server says of itself.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is no answer in time.
    pub async fn server(&self) -> Result<Server, Error> {
        let statement = Statement::shared(
            "SELECT current_setting('server_version') AS version, current_setting('fsync') = 'on' AS commits_to_disk,
                 current_setting('synchronous_standby_names') <> '' AS waits_for_standby",
        );
        let row: Option<ServerRow> = self.optional("server", statement).await?;
        let row = row.ok_or_else(|| Error::defect("the server says nothing of itself"))?;
        let several_hosts = self.inner.config.each_host().len() > 1;
        Ok(Server {
            version: row.version,
            commits_to_disk: row.commits_to_disk,
            outlives_failover: row.waits_for_standby || !several_hosts,
        })
    }

    /// The pool at this moment.
    #[must_use]
    pub fn pool_status(&self) -> PoolStatus {
        let status = self.inner.pool.status();
        PoolStatus {
            in_use: status.size.saturating_sub(status.available),
            open: status.size,
            size: status.max_size,
            waiting: status.waiting,
        }
    }

    /// Closes the connections that nobody uses, for a server that is believed to be gone: new ones go to whichever host answers.
    /// What is kept of its communities is forgotten, for that host may be behind.
    pub fn close_idle(&self) {
        self.inner.pool.retain(|_, _| false);
        self.inner.guilds.invalidate_all();
        self.inner.tenants.invalidate_all();
        self.inner.policies.invalidate_all();
        self.inner.changes_shown.invalidate_all();
    }

    /// Closes the pool; what is handed out is closed when it comes back.
    pub fn close(&self) {
        self.inner.pool.close();
        if let Some(cluster) = &self.inner.cluster {
            cluster.pings.close();
        }
        if let Some(standby) = self.standby() {
            standby.close();
        }
    }

    /// What makes the pseudonyms under which persons stand in logs; the same for all that use this database.
    #[must_use]
    pub fn pseudonyms(&self) -> &PseudonymKey {
        &self.inner.pseudonym_key
    }

    /// The key under which erased persons are remembered; the same for all that use this database or a backup of it.
    #[must_use]
    pub fn erasure_key(&self) -> &ErasureKey {
        &self.inner.erasure_key
    }

    /// Whether the shards may lie on several nodes, of which one may be away and the others well.
    pub(crate) fn is_cluster(&self) -> bool {
        self.inner.cluster.is_some()
    }

    /// The number of the shard in which a probe passed last.
    pub(crate) fn probed(&self) -> &AtomicU8 {
        &self.inner.probed
    }

    /// Where changes may wait to be published.
    pub(crate) fn outbox_hints(&self) -> &OutboxHints {
        &self.inner.outbox_hints
    }

    pub(crate) fn cursor_key(&self) -> &CursorKey {
        &self.inner.cursor_key
    }

    pub(crate) async fn forget_policy(&self, id: CommunityId) {
        self.inner.policies.invalidate(&id).await;
    }

    pub(crate) async fn optional<T>(
        &self,
        query: &'static str,
        statement: Statement,
    ) -> Result<Option<T>, Error>
    where
        T: QueryableByName<diesel::pg::Pg> + Send + 'static,
    {
        self.read(query, |connection| statement::optional(connection, statement.clone()).boxed()).await
    }

    pub(crate) async fn rows<T, const MAX: u32>(
        &self,
        query: &'static str,
        statement: Statement,
        limit: Limit<MAX>,
    ) -> Result<Vec<T>, Error>
    where
        T: QueryableByName<diesel::pg::Pg> + Send + 'static,
    {
        self.read(query, |connection| statement::rows(connection, statement.clone(), limit).boxed()).await
    }

    pub(crate) async fn page<T, const MAX: u32>(
        &self,
        query: &'static str,
        statement: Statement,
        limit: Limit<MAX>,
    ) -> Result<(Vec<T>, bool), Error>
    where
        T: QueryableByName<diesel::pg::Pg> + Send + 'static,
    {
        self.read(query, |connection| statement::page(connection, statement.clone(), limit).boxed()).await
    }

    pub(crate) async fn by_keys<T>(
        &self,
        query: &'static str,
        statement: Statement,
        keys: usize,
    ) -> Result<Vec<T>, Error>
    where
        T: QueryableByName<diesel::pg::Pg> + Send + 'static,
    {
        self.read(query, |connection| statement::by_keys(connection, statement.clone(), keys).boxed()).await
    }

    /// Runs a read within its deadline. One whose connection turns out to have been cut off, as an idle one may have been
    /// unnoticed, or to be out of date since a table was altered, is repeated once on another.
    ///
    /// What a standby does not answer is no failure of a query: its caller asks the primary.
    pub(crate) async fn read<T, F>(&self, query: &'static str, run: F) -> Result<T, Error>
    where
        F: for<'c> Fn(&'c mut AsyncPgConnection) -> BoxFuture<'c, QueryResult<T>>,
    {
        let reading = async {
            if let (Reads::Standby, Some(standby)) = (self.reads, self.standby()) {
                let (answer, took) = standby.read(run).await?;
                self.observe(QueryObservation { query, took: Some(took), failure: None });
                return Ok(answer);
            }
            self.admit()?;
            let mut connection = Awaited::new(self.acquire(query).await?);
            let started = Instant::now();
            let attempts = async {
                match run(connection.get()?).await {
                    Err(error) if crate::error::is_of_the_connection(&error) => {
                        self.close_out_of_date(&error.into());
                        connection = Awaited::new(acquire(&self.inner.pool).await?);
                        run(connection.get()?).await.map_err(Error::from)
                    }
                    result => result.map_err(Error::from),
                }
            };
            let result = match tokio::time::timeout(self.patience(), attempts).await {
                Ok(result) => result,
                Err(elapsed) => {
                    self.suspect();
                    Err(Error::Unavailable(elapsed.into()))
                }
            };
            self.answered(query, started, &result);
            match connection.take() {
                Some(connection) => self.recycle(connection, result),
                None => result,
            }
        };
        reading.instrument(span(query)).await
    }

    /// Runs a write in a transaction of its own task: a caller that stops waiting does not leave it half done.
    ///
    /// When the deadline passes, the connection breaks during the commit, or a cluster's node falls silent, whether it was
    /// committed is unknown; what is written carries an id by which a repetition finds out.
    pub(crate) async fn write<T, F>(&self, query: &'static str, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut AsyncPgConnection) -> BoxFuture<'c, Result<T, Error>> + Send + 'static,
    {
        self.write_within(query, self.inner.config.write_timeout(), work).await
    }

    /// The same with a deadline of its own.
    pub(crate) async fn write_within<T, F>(
        &self,
        query: &'static str,
        deadline: Duration,
        work: F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut AsyncPgConnection) -> BoxFuture<'c, Result<T, Error>> + Send + 'static,
    {
        self.write_ending(query, deadline, End::Commit, work).await
    }

    /// The same within the deadline of a write, and always rolled back.
    pub(crate) async fn write_and_roll_back<T, F>(&self, query: &'static str, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut AsyncPgConnection) -> BoxFuture<'c, Result<T, Error>> + Send + 'static,
    {
        self.write_ending(query, self.inner.config.write_timeout(), End::RollBack, work).await
    }

    async fn write_ending<T, F>(
        &self,
        query: &'static str,
        deadline: Duration,
        end: End,
        work: F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut AsyncPgConnection) -> BoxFuture<'c, Result<T, Error>> + Send + 'static,
    {
        let store = self.clone();
        let writing = async move {
            store.admit()?;
            let mut connection = store.acquire(query).await?;
            let started = Instant::now();
            let on_node = store.inner.cluster.as_ref().map(|cluster| &*cluster.on_node);
            let running = transaction(&mut connection, end, on_node, work);
            let result = tokio::select! {
                biased;
                ended = tokio::time::timeout(deadline, running) => match ended {
                    Ok(result) => result,
                    Err(elapsed) => Err(Error::Unavailable(elapsed.into())),
                },
                silent = store.falls_silent() => Err(silent.into()),
            };
            store.answered(query, started, &result);
            store.recycle(connection, result)
        };
        tokio::spawn(writing.instrument(span(query))).await.map_err(Error::defect)?
    }

    /// Turns the folding of old additions to activity, by month and by year, on or off, for all clones of this store. Off by default.
    /// Turn it on only while the stream keeps events for no longer than their ids are remembered: else an event that comes again counts
    /// twice.
    pub fn set_folding(&self, enabled: bool) {
        self.inner.folds.store(enabled, Ordering::Relaxed);
    }

    pub(crate) fn folds(&self) -> bool {
        AtomicBool::load(&self.inner.folds, Ordering::Relaxed)
    }

    /// Fails where the shard lies on a node that does not answer.
    fn admit(&self) -> Result<(), Error> {
        self.of_cluster().map_or(Ok(()), |(cluster, shard)| cluster.silence.admit(shard, Instant::now()))
    }

    fn of_cluster(&self) -> Option<(&Cluster, Shard)> {
        self.inner.cluster.as_ref().zip(self.shard)
    }

    /// How long a read may take.
    fn patience(&self) -> Duration {
        let patience = self.inner.config.query_timeout;
        if self.of_cluster().is_some() { patience.min(silence::PATIENCE) } else { patience }
    }

    /// Has the node of the shard asked for a sign of life, since a read of it took too long.
    fn suspect(&self) {
        if self.of_cluster().is_some_and(|(cluster, shard)| !cluster.silence.holds(shard)) {
            let store = self.clone();
            tokio::spawn(async move { store.is_silent().await });
        }
    }

    /// Returns when the node of the shard gives no sign of life beside a write that waits for long: that may wait for a lock.
    async fn falls_silent(&self) -> SilentNode {
        if self.of_cluster().is_none() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(silence::SLOW).await;
            if self.is_silent().await {
                return SilentNode;
            }
        }
    }

    /// Asks the node of the shard for a sign of life, and takes note of it. While others ask so much that there is no connection
    /// for it, what they found counts.
    async fn is_silent(&self) -> bool {
        let Some((cluster, shard)) = self.of_cluster() else { return false };
        let Ok(connection) = acquire(&cluster.pings).await else { return cluster.silence.holds(shard) };
        let (mut connection, begun) = (Awaited::new(connection), Instant::now());
        let ask = "SELECT true AS one FROM community_states WHERE shard = $1 LIMIT 1";
        let asking = async {
            let answer =
                statement::optional::<OneRow>(connection.get()?, Statement::in_shard(shard, ask)).await;
            answer.map_err(Error::from)
        };
        let answer = tokio::time::timeout(silence::PATIENCE, asking).await;
        let answer = answer.unwrap_or_else(|_| Err(SilentNode.into()));
        cluster.silence.note(shard, &answer, begun.elapsed());
        if answer.is_ok() {
            drop(connection.take());
        }
        answer.is_err_and(|error| error.is_of_a_node())
    }

    /// A connection for a query, which else has failed.
    async fn acquire(&self, query: &'static str) -> Result<Object<AsyncPgConnection>, Error> {
        let acquired = acquire(&self.inner.pool).await;
        if acquired.is_err() {
            self.observe(QueryObservation { query, took: None, failure: Some(QueryFailure::NoConnection) });
        }
        acquired
    }

    /// Gives a connection back, unless it failed or may still have an answer outstanding.
    fn recycle<T>(
        &self,
        connection: Object<AsyncPgConnection>,
        result: Result<T, Error>,
    ) -> Result<T, Error> {
        if let Err(error) = &result
            && error.is_transient()
            && !error.spares_the_session()
        {
            drop(Object::take(connection));
            self.close_out_of_date(error);
        }
        result
    }

    /// Closes the idle connections after an error by which they are out of date: each would fail once for its own.
    fn close_out_of_date(&self, error: &Error) {
        if error.is_out_of_date() {
            self.inner.pool.retain(|_, _| false);
        }
    }

    fn answered<T>(&self, query: &'static str, started: Instant, result: &Result<T, Error>) {
        if let Some((cluster, shard)) = self.of_cluster() {
            cluster.silence.note(shard, result, started.elapsed());
        }
        let failure = result.as_ref().err().and_then(QueryFailure::of);
        self.observe(QueryObservation { query, took: Some(started.elapsed()), failure });
    }

    fn observe(&self, observation: QueryObservation) {
        if let Some(failure) = observation.failure {
            Span::current().record("error.type", failure.as_str());
        }
        (self.inner.config.observe)(&observation);
    }
}

/// What a trace holds of a query: its name, and nothing of its values.
fn span(query: &'static str) -> Span {
    tracing::debug_span!(
        "query",
        otel.name = query,
        otel.kind = "client",
        db.system.name = "postgresql",
        db.query.summary = query,
        "error.type" = tracing::field::Empty,
    )
}

/// How a transaction ends that has not failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Commit,
    RollBack,
}

async fn transaction<T, F>(
    connection: &mut AsyncPgConnection,
    end: End,
    settings: Option<&str>,
    work: F,
) -> Result<T, Error>
where
    F: for<'c> FnOnce(&'c mut AsyncPgConnection) -> BoxFuture<'c, Result<T, Error>>,
{
    type Transaction = <AsyncPgConnection as AsyncConnection>::TransactionManager;
    Transaction::begin_transaction(connection).await?;
    let set = match settings {
        Some(settings) => statement::set(connection, settings).await.map_err(Error::from),
        None => Ok(()),
    };
    let worked = match set {
        Ok(()) => work(connection).await,
        Err(error) => Err(error),
    };
    match worked {
        Ok(done) => {
            match end {
                End::Commit => Transaction::commit_transaction(connection).await?,
                End::RollBack => Transaction::rollback_transaction(connection).await?,
            }
            Ok(done)
        }
        Err(error) => match Transaction::rollback_transaction(connection).await {
            Ok(()) => Err(error),
            // A connection that cannot roll back must not be used again.
            Err(_) => Err(Error::Unavailable(error.into())),
        },
    }
}

/// The deployment's secret for a purpose.
async fn secret(connection: &mut AsyncPgConnection, purpose: &'static str) -> Result<[u8; 32], Error> {
    let find = signing_keys::table.find(purpose).select(signing_keys::secret);
    let found: Option<Vec<u8>> = find.get_result(connection).await.optional()?;
    let found =
        found.ok_or_else(|| Error::defect(format!("there is no signing key for the purpose {purpose}")))?;
    let wrong = |_| Error::defect(format!("the signing key for the purpose {purpose} is not 32 bytes"));
    found.try_into().map_err(wrong)
}

async fn acquire(pool: &Pool<AsyncPgConnection>) -> Result<Object<AsyncPgConnection>, Error> {
    pool.get().await.map_err(|error| Error::Unavailable(error.into()))
}

#[derive(Queryable, QueryableByName, Selectable)]
#[diesel(table_name = communities)]
struct CommunityRow {
    community_id: Uuid,
    guild_id: String,
    shard: i16,
    community: i32,
}

impl CommunityRow {
    fn named(&self) -> Result<Named, Error> {
        let shard = Shard::parse(self.shard).ok_or_else(|| Error::defect("there is no such shard"))?;
        Ok(Named { id: self.community_id.into(), tenant: Tenant { shard, community: self.community } })
    }
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = community_states)]
struct FoundRow {
    community_id: Uuid,
    name: Option<String>,
    active: bool,
    changes: i64,
}

#[derive(QueryableByName)]
struct WrittenRow {
    #[diesel(sql_type = BigInt)]
    transaction: i64,
}

#[derive(QueryableByName)]
struct ServerRow {
    #[diesel(sql_type = Text)]
    version: String,
    #[diesel(sql_type = Bool)]
    commits_to_disk: bool,
    #[diesel(sql_type = Bool)]
    waits_for_standby: bool,
}

#[derive(QueryableByName)]
struct OneRow {
    #[diesel(sql_type = Bool)]
    #[expect(dead_code, reason = "that there is an answer is the answer")]
    one: bool,
}
