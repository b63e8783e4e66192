//! One session for each coordinator that is known, from the start of the worker to the end of its drain.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flatbed_types::caps;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::hub::Hub;
use crate::session;

/// How long a drain may take before the process ends all the same.
const DRAIN_LIMIT: Duration = Duration::from_secs(25);
/// How long attempts have for their last commit: one that waits for a slow source longer is handed back without it.
const COMMIT_LIMIT: Duration = Duration::from_secs(20);
/// How often coordinators with work take turns for slots that are fewer than they are: one that cannot use its slot
/// must not keep it.
const TURN: Duration = Duration::from_millis(caps::HEARTBEAT_MILLIS);

/// Works until the drain is over.
pub(crate) async fn run(hub: Arc<Hub>) {
    let preparing = hub.clone();
    tokio::spawn(async move {
        preparing.readiness.prepare(&preparing.context, &preparing.drain).await;
        preparing.wake_all();
    });
    let late = async {
        hub.drain.cancelled().await;
        hub.wake_all();
        tokio::time::sleep(COMMIT_LIMIT).await;
        hub.give_up();
        tokio::time::sleep(DRAIN_LIMIT - COMMIT_LIMIT).await;
    };
    tokio::select! {
        () = keep_sessions(&hub) => {}
        () = late => tracing::warn!("drain took too long; what could not be handed back is left to its leases"),
    }
}

async fn keep_sessions(hub: &Arc<Hub>) {
    // Dropped with this future, which ends them.
    let mut tasks = JoinSet::new();
    let mut sessions: BTreeMap<String, CancellationToken> = BTreeMap::new();
    let mut turns = tokio::time::interval(TURN);
    loop {
        let addresses = hub.context.coordinators.addresses();
        sessions.retain(|address, given_up| {
            let stays = addresses.contains(address);
            if !stays {
                given_up.cancel();
            }
            stays
        });
        for address in addresses {
            let given_up = CancellationToken::new();
            if let std::collections::btree_map::Entry::Vacant(place) = sessions.entry(address.clone()) {
                place.insert(given_up.clone());
                tasks.spawn(session::keep(hub.clone(), address, given_up));
            }
        }
        tokio::select! {
            () = hub.addresses_changed.notified() => {}
            // Nobody is left to hand anything back to.
            Some(_) = tasks.join_next() => if hub.is_idle() && tasks.is_empty() { return },
            _ = turns.tick() => hub.next_turn(),
            () = hub.settled() => break,
        }
    }
    // Each says goodbye.
    while tasks.join_next().await.is_some() {}
}
