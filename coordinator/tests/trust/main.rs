//! Clients, used assertions, revoked tokens and signing keys, as gateways see them: over gRPC, at several coordinators over
//! one store. `etcd` needs servers: `apt-get install etcd-server etcd-client`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod clients;
mod keys;
mod registration;
#[path = "../etcd/servers.rs"]
#[allow(dead_code, reason = "the store's own suite needs more of them")]
mod servers;
mod tokens;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use flatbed_coordinator::store::{LocalStore, MetaStore};
use flatbed_coordinator::{Coordinator, CoordinatorOptions};
use flatbed_proto::reach::NoDial;
use flatbed_proto::wire::trust::trust_client::TrustClient;
use flatbed_types::Instant;
use object_store::memory::InMemory;
use tonic::service::Routes;

/// When the clocks of these tests begin.
const BEGIN: i64 = 1_800_000_000_000;

/// A coordinator, and its clock in milliseconds.
struct Bench {
    coordinator: Coordinator,
    clock: Arc<AtomicI64>,
}

impl Bench {
    async fn over(store: Arc<dyn MetaStore>, now: i64) -> Bench {
        let clock = Arc::new(AtomicI64::new(now));
        let shown = clock.clone();
        let time = Arc::new(move || Instant::from_millis(shown.load(Ordering::SeqCst)));
        let objects = Arc::new(InMemory::new());
        let options = CoordinatorOptions::default();
        let coordinator = Coordinator::start(store, objects, options, Arc::new(NoDial), time).await.unwrap();
        Bench { coordinator, clock }
    }

    fn client(&self) -> TrustClient<Routes> {
        TrustClient::new(self.coordinator.routes())
    }

    fn set(&self, now: i64) {
        self.clock.store(now, Ordering::SeqCst);
    }
}

/// What every store that is no server is.
fn local_stores() -> Vec<(Arc<dyn MetaStore>, Option<tempfile::TempDir>)> {
    let room = tempfile::tempdir().unwrap();
    let redb = LocalStore::redb(&room.path().join("state.redb")).unwrap();
    vec![(Arc::new(LocalStore::memory()), None), (Arc::new(redb), Some(room))]
}
