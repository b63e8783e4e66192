//! The metadata store that all coordinators share: one `LocalStore` on a host of its own, whose clock it uses,
//! reached by a channel.
//!
//! It must not be called on the callers' hosts: each has a clock of its own, which starts anew with every restart,
//! and leases are counted on one.

use std::sync::Arc;
use std::time::Duration;

use flatbed_coordinator::store::{
    Entry, LeaseId, LocalStore, MetaStore, Outcome, Revision, StoreError, Transaction, Watch,
};
use futures::future::BoxFuture;
use tokio::sync::{Mutex, mpsc, oneshot};

type Work = Box<dyn FnOnce(LocalStore) -> BoxFuture<'static, ()> + Send>;

/// The store's end.
pub type Inbox = Arc<Mutex<mpsc::UnboundedReceiver<Work>>>;

/// The callers' end.
#[derive(Clone)]
pub struct StoreClient(mpsc::UnboundedSender<Work>);

/// The two ends of a store.
pub fn ends() -> (StoreClient, Inbox) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (StoreClient(sender), Arc::new(Mutex::new(receiver)))
}

/// The store's host.
pub async fn serve(inbox: Inbox) {
    let store = LocalStore::memory();
    let mut inbox = inbox.lock().await;
    while let Some(work) = inbox.recv().await {
        work(store.clone()).await;
    }
}

impl StoreClient {
    async fn ask<T, F, Fut>(&self, question: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(LocalStore) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let work: Work = Box::new(|store| {
            Box::pin(async move {
                let _ = answer.send(question(store).await);
            })
        });
        let gone = || StoreError::Unknown("the store is gone".to_owned());
        self.0.send(work).map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }
}

#[async_trait::async_trait]
impl MetaStore for StoreClient {
    async fn txn(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        self.ask(|store| async move { store.txn(transaction).await }).await
    }

    async fn range(&self, prefix: &[u8], at: Option<Revision>) -> Result<(Revision, Vec<Entry>), StoreError> {
        let prefix = prefix.to_vec();
        self.ask(move |store| async move { store.range(&prefix, at).await }).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.ask(move |store| async move { store.grant_lease(ttl).await }).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(move |store| async move { store.keep_alive(lease).await }).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(move |store| async move { store.revoke_lease(lease).await }).await
    }

    async fn watch(&self, prefixes: &[Vec<u8>], after: Revision) -> Result<Watch, StoreError> {
        let prefixes = prefixes.to_vec();
        self.ask(move |store| async move { store.watch(&prefixes, after).await }).await
    }
}
