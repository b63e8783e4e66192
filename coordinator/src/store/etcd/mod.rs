//! The store of a cluster: etcd, version 3.4 or newer.
//!
//! One client for each endpoint, because a client that balances over several hides which of them answers; [`race`] says
//! who is asked, when another is asked too, and how the answers of both combine. Every request has a deadline.
//!
//! * **Transactions.** A guarded one ([`Transaction::moves_its_guard`]) may be proposed to two members. It is answered
//!   [`Outcome::NotApplied`] only if no copy of it can have applied, else [`StoreError::Unknown`], which its caller
//!   resolves by proposing it again. What moves no guard is sent once. A copy that was given up may still apply later,
//!   like any request of unknown outcome; guards that only rise (fences) make that harmless.
//! * **Reads** are linearizable, at a revision or now; large ones come in pages of one revision. etcd before 3.4.42,
//!   3.5.28 and 3.6.9 can answer stale reads after a pause: decide nothing from a plain read.
//! * **Leases** are hints. A new raft leader starts all their times anew; etcd before 3.4.31 and 3.5.13 may end all at once
//!   after a pause of the leader, and before 3.4.38, 3.5.23 and 3.6.5 may claim to renew one that was revoked.
//! * **Watches**: see [`watch`](self::watch).
//!
//! Does not know what keys and values mean. Never uses etcd's locks or elections.

mod address;
mod errors;
mod keys;
mod race;
mod watch;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Client, Compare as EtcdCompare, CompareOp, GetOptions, GetResponse, LeaseGrantOptions, Txn, TxnOp,
    TxnOpResponse, TxnResponse,
};
use futures::future::join_all;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use self::address::Address;
pub use self::address::EtcdOptions;
use self::errors::{Class, classify};
use self::keys::{Keyspace, Span, after};
use self::race::{Answer, DEADLINE, Health, Kind, race};
use super::{Compare, Entry, LeaseId, MetaStore, Outcome, Revision, StoreError, Transaction, Watch, Write};

/// A member that is there accepts a connection at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection with requests or watches on it that is silent for this long is pinged.
const PING_EVERY: Duration = Duration::from_secs(1);
/// And given up when the ping is not answered in this time.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// How often endpoints that do not answer are tried.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Keys of a page: at the usual 450 bytes, two megabytes. For each page etcd counts all keys that follow, so that small
/// pages of a long range cost more than what they hold.
const PAGE: i64 = 4_000;
/// The largest answer taken: etcd bounds requests (1.5 MiB), not answers, and a page or a watch's catching up holds many.
const MAX_ANSWER: usize = 256 * 1024 * 1024;
/// etcd's own limit (`--max-txn-ops`), on conditions, writes and reads each.
const MAX_OPERATIONS: usize = 128;
/// The oldest version that does what is needed.
const OLDEST: (u32, u32, u32) = (3, 4, 0);
/// The first versions without stale reads, wrongly revoked leases and the bypass of access rules.
const SOUND: [(u32, u32, u32); 3] = [(3, 4, 42), (3, 5, 30), (3, 6, 9)];

/// See the module.
pub struct EtcdStore {
    inner: Arc<Inner>,
    prober: tokio::task::JoinHandle<()>,
}

struct Inner {
    endpoints: Vec<Endpoint>,
    health: Health,
    keyspace: Keyspace,
}

/// A member, and the client for it once there is one: with a password, making one asks the member for a token.
struct Endpoint {
    url: String,
    options: etcd_client::ConnectOptions,
    client: OnceCell<Client>,
}

impl Endpoint {
    async fn client(&self) -> Result<Client, Class> {
        let connect = || Client::connect([self.url.as_str()], Some(self.options.clone()));
        match self.client.get_or_try_init(connect).await {
            Ok(client) => Ok(client.clone()),
            Err(error) => Err(match classify(&self.url, &error) {
                // Whatever became of the connection, the request was not on it.
                Class::Lost(why) => Class::NotSent(why),
                other => other,
            }),
        }
    }

    fn classify(&self, error: &etcd_client::Error) -> Class {
        classify(&self.url, error)
    }
}

impl EtcdStore {
    /// Opens `etcd://HOST:PORT[,HOST:PORT...][/PREFIX]`, or `etcds://` over TLS. With a prefix, all keys are below
    /// `/PREFIX/`.
    ///
    /// # Errors
    /// `NotApplied` when the address is malformed, no endpoint answers, or one is too old or of another cluster.
    pub async fn open(uri: &str, options: EtcdOptions) -> Result<EtcdStore, StoreError> {
        let address = Address::parse(uri)?;
        let connection = options.connection(address.tls)?;
        let endpoint = |url| Endpoint { url, options: connection.clone(), client: OnceCell::new() };
        let endpoints: Vec<_> = address.endpoints.into_iter().map(endpoint).collect();
        let health = Health::new(endpoints.len());
        let inner = Arc::new(Inner { endpoints, health, keyspace: Keyspace::new(&address.prefix) });
        inner.greet().await?;
        let prober = tokio::spawn(probe(inner.clone()));
        Ok(EtcdStore { inner, prober })
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.prober.abort();
    }
}

/// Tries endpoints that do not answer, so that no request has to.
async fn probe(inner: Arc<Inner>) {
    let mut known = BTreeSet::new();
    loop {
        tokio::time::sleep(PROBE_EVERY).await;
        let silent: BTreeSet<usize> = inner.health.silent().into_iter().collect();
        for server in silent.difference(&known) {
            tracing::warn!(endpoint = %inner.endpoints[*server].url, "etcd endpoint fails or is slow; asked last");
        }
        for server in known.difference(&silent) {
            tracing::info!(endpoint = %inner.endpoints[*server].url, "etcd endpoint answers again");
        }
        join_all(silent.iter().map(|server| inner.probe(*server))).await;
        known = silent;
    }
}

impl Inner {
    /// Asks every endpoint who it is; one that does not answer now may later.
    async fn greet(&self) -> Result<(), StoreError> {
        let answers = join_all(self.endpoints.iter().map(|endpoint| async move {
            let status = async {
                let mut client = endpoint.client().await?;
                client.status().await.map_err(|error| endpoint.classify(&error))
            };
            timeout(DEADLINE, status).await.unwrap_or_else(|_| Err(Class::Lost("no answer".to_owned())))
        }));
        let (mut cluster, mut failures) = (None, Vec::new());
        for (server, answer) in answers.await.into_iter().enumerate() {
            let url = &self.endpoints[server].url;
            let status = match answer {
                Ok(status) => status,
                Err(class) => {
                    self.health.failed(server);
                    tracing::warn!(endpoint = %url, ?class, "etcd endpoint does not answer");
                    failures.push(format!("{url} ({})", described(class)));
                    continue;
                }
            };
            check_version(url, status.version())?;
            let id = status.header().map(|header| header.cluster_id());
            if cluster.is_some_and(|cluster| cluster != id) {
                return Err(StoreError::NotApplied(format!(
                    "etcd {url} is of another cluster than the rest"
                )));
            }
            cluster = Some(id);
            self.health.answered(server);
        }
        if cluster.is_some() {
            return Ok(());
        }
        Err(StoreError::NotApplied(format!("etcd: no endpoint can be used: {}", failures.join(", "))))
    }

    /// Asks something that needs the leader: a member that only knows about itself is of no use.
    async fn probe(&self, server: usize) {
        let key = self.keyspace.prefix(b"").key();
        let read = self.get(server, key, GetOptions::new().with_keys_only());
        if matches!(timeout(DEADLINE, read).await, Ok(Ok(_) | Err(Class::Refused(_)))) {
            self.health.answered(server);
        }
    }

    async fn get(&self, server: usize, key: Vec<u8>, options: GetOptions) -> Result<GetResponse, Class> {
        let endpoint = &self.endpoints[server];
        let mut client = endpoint.client().await?.kv_client().max_decoding_message_size(MAX_ANSWER);
        client.get(key, Some(options)).await.map_err(|error| endpoint.classify(&error))
    }

    /// One page of a span; at a revision, or now.
    async fn page(&self, span: &Span, at: Option<i64>) -> Result<GetResponse, StoreError> {
        race(&self.health, Kind::Read, |server| async move {
            let options = span.get_options().with_limit(PAGE).with_revision(at.unwrap_or(0));
            match self.get(server, span.key(), options).await {
                Ok(page) => Answer::Done(Ok(page)),
                Err(Class::Compacted) => Answer::Done(Err(no_revision(at))),
                // A member may lag; one that does not may have reached it.
                Err(Class::Ahead) => Answer::Elsewhere(no_revision(at)),
                Err(class) => class.answer(),
            }
        })
        .await
    }

    async fn txn(&self, kind: Kind, txn: &Txn) -> Result<TxnResponse, StoreError> {
        race(&self.health, kind, |server| async move {
            let endpoint = &self.endpoints[server];
            let client = match endpoint.client().await {
                Ok(client) => client,
                Err(class) => return class.answer(),
            };
            let mut client = client.kv_client().max_decoding_message_size(MAX_ANSWER);
            match client.txn(txn.clone()).await {
                Ok(response) if response.succeeded() => Answer::Done(Ok(response)),
                Ok(response) => Answer::Without(Ok(response)),
                Err(error) => endpoint.classify(&error).answer(),
            }
        })
        .await
    }

    /// A call about a lease: all of them may be repeated.
    async fn lease<F, T>(&self, call: impl Fn(Client) -> F) -> Result<(), StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let call = &call;
        race(&self.health, Kind::Repeatable, |server| async move {
            let endpoint = &self.endpoints[server];
            let called = match endpoint.client().await {
                Ok(client) => call(client).await.map_err(|error| endpoint.classify(&error)),
                Err(class) => Err(class),
            };
            match called {
                // Under an id that nobody else draws, "it exists" is the work of another copy.
                Ok(_) | Err(Class::LeaseExists) => Answer::Done(Ok(())),
                Err(Class::NoLease) => Answer::Done(Err(StoreError::LeaseEnded)),
                Err(class) => class.answer(),
            }
        })
        .await
    }
}

fn described(class: Class) -> String {
    match class {
        Class::Refused(why) | Class::NotSent(why) | Class::Lost(why) => why,
        other => format!("{other:?}"),
    }
}

fn check_version(url: &str, version: &str) -> Result<(), StoreError> {
    let numbers: Vec<u32> = version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect();
    let [major, minor, patch] = numbers[..] else {
        return Err(StoreError::NotApplied(format!("etcd {url} says its version is '{version}'")));
    };
    if (major, minor, patch) < OLDEST {
        return Err(StoreError::NotApplied(format!(
            "etcd {url} is version {version}; 3.4.0 is the oldest usable"
        )));
    }
    let sound = SOUND.iter().find(|sound| (sound.0, sound.1) == (major, minor));
    if let Some((_, _, first)) = sound.filter(|sound| patch < sound.2) {
        tracing::warn!(endpoint = %url, version, "this etcd has known faults (stale reads, leases lost or revived, \
            access rules bypassed); use {major}.{minor}.{first} or newer in production");
    }
    Ok(())
}

fn no_revision(at: Option<i64>) -> StoreError {
    StoreError::NoSuchRevision(at.and_then(|at| Revision::try_from(at).ok()).unwrap_or(0))
}

/// etcd's revisions are positive, and zero means now.
fn signed(revision: Revision) -> Result<i64, StoreError> {
    i64::try_from(revision).ok().filter(|at| *at > 0).ok_or(StoreError::NoSuchRevision(revision))
}

fn unsigned(revision: Option<i64>) -> Result<Revision, StoreError> {
    let revision = revision.and_then(|revision| Revision::try_from(revision).ok());
    revision.ok_or_else(|| StoreError::Unknown("etcd: an answer without a revision".to_owned()))
}

#[async_trait]
impl MetaStore for EtcdStore {
    async fn txn(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        let kind = if transaction.moves_its_guard() { Kind::Repeatable } else { Kind::Once };
        let keyspace = &self.inner.keyspace;
        let compare = |compare: &Compare| match compare {
            Compare::Absent(key) => EtcdCompare::create_revision(keyspace.key(key), CompareOp::Equal, 0),
            Compare::Equals(key, value) => {
                EtcdCompare::value(keyspace.key(key), CompareOp::Equal, value.as_slice())
            }
        };
        let compares: Vec<_> = transaction.compares.iter().map(compare).collect();
        // To etcd, a lease of zero is none.
        let never_granted = |write: &Write| matches!(write, Write::PutLeased(_, _, lease) if lease.0 <= 0);
        if transaction.writes.iter().any(never_granted) {
            return Err(StoreError::LeaseEnded);
        }
        let writes = keyspace.operations(transaction.writes);
        let reads: Vec<_> = transaction.reads.iter().map(|key| TxnOp::get(keyspace.key(key), None)).collect();
        let operations = compares.len().max(writes.len()).max(reads.len());
        if operations > MAX_OPERATIONS {
            let text =
                format!("a transaction of {operations} operations; etcd takes at most {MAX_OPERATIONS}");
            return Err(StoreError::NotApplied(text));
        }
        let txn = Txn::new().when(compares).and_then(writes).or_else(reads);
        let response = self.inner.txn(kind, &txn).await?;
        if response.succeeded() {
            return unsigned(response.header().map(|header| header.revision())).map(Outcome::Applied);
        }
        let value = |response: TxnOpResponse| match response {
            TxnOpResponse::Get(get) => get.kvs().first().map(|entry| entry.value().to_vec()),
            _ => None,
        };
        Ok(Outcome::NotApplied(response.op_responses().into_iter().map(value).collect()))
    }

    async fn range(&self, prefix: &[u8], at: Option<Revision>) -> Result<(Revision, Vec<Entry>), StoreError> {
        let mut span = self.inner.keyspace.prefix(prefix);
        let mut at = at.map(signed).transpose()?;
        let mut entries = Vec::new();
        loop {
            let mut page = self.inner.page(&span, at).await?;
            at = at.or(page.header().map(|header| header.revision()));
            let (more, keys) = (page.more(), page.take_kvs());
            if let Some(last) = keys.last() {
                span.from = after(last.key());
            }
            for entry in keys {
                let (key, value) = entry.into_key_value();
                if let Some(key) = self.inner.keyspace.strip(&key) {
                    entries.push((key.to_vec(), value));
                }
            }
            if !more {
                return Ok((unsigned(at)?, entries));
            }
        }
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let random = getrandom::u64().map_err(|error| StoreError::NotApplied(error.to_string()))?;
        let id = i64::try_from(random >> 1).unwrap_or(1).max(1);
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1_000)).unwrap_or(i64::MAX).max(1);
        let options = LeaseGrantOptions::new().with_id(id);
        let options = &options;
        let grant =
            |client: Client| async move { client.lease_client().grant(seconds, Some(options.clone())).await };
        self.inner.lease(grant).await.map(|()| LeaseId(id))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        // etcd answers for a lease that has ended with a time of zero, which the client makes an error.
        self.inner.lease(|client| async move { client.lease_client().keep_alive(lease.0).await }).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        let revoke = |client: Client| async move { client.lease_client().revoke(lease.0).await };
        match self.inner.lease(revoke).await {
            Err(StoreError::LeaseEnded) => Ok(()),
            other => other,
        }
    }

    async fn watch(&self, prefixes: &[Vec<u8>], after: Revision) -> Result<Watch, StoreError> {
        watch::open(&self.inner, prefixes, after).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert!(check_version("u", "3.3.27").is_err());
        assert!(check_version("u", "2.3.8").is_err());
        assert!(check_version("u", "unknown").is_err());
        for usable in ["3.4.0", "3.4.42", "3.5.0-rc.1", "3.6.9", "3.7.0", "4.0.0"] {
            assert_eq!(check_version("u", usable), Ok(()), "{usable}");
        }
    }
}
