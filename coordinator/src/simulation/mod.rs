//! Deterministic simulation: the real coordinator, several of it, with simulated workers, store, objects, network and
//! clock on one thread, where time jumps from timer to timer (`coordination.md` 13, L1).
//!
//! ```text
//! scenario: jobs, trouble, healing, verdict
//!   cluster: crate::Coordinator x 1..3 --- StoreClient --> store (every change -> check, facts)
//!      |                               `-- ObjectClient -> objects (every deletion -> check)
//!   network: streams, reports
//!      |
//!   worker, attempt x 1..4 --- source
//! ```
//!
//! A seed says everything: which faults there are, when what breaks, what each message costs. Every one is run in a
//! world of its own, and ends with the verdict of a judge that knows the records but not the rules that made them.
//!
//! Not simulated: gRPC (streams break and reports get lost as a whole), the bytes of real sources, the real worker's
//! threads, clocks that run at different rates, a store restored from a backup.

mod attempt;
mod check;
mod client;
mod cluster;
mod facts;
mod network;
mod objects;
mod pages;
mod running;
mod scenario;
mod source;
mod store;
mod tests;
mod worker;
mod world;

/// A mistake in the design that somebody could make; the judge must find each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sabotage {
    /// Transactions do not compare the fence.
    NoFence,
    /// The fence is compared by its epoch only.
    FenceByEpoch,
    /// A job completes without a look at the stop request.
    NoStop,
    /// After a claim, whatever a member of the store has is read.
    UnpinnedLoad,
    /// A worker deletes what it wrote when it is told that it does not count.
    DeleteRefused,
    /// A worker reports what it wrote whether or not it was written.
    CommitBeforeSeal,
    /// The random part of an object's name follows from its task.
    NonceOfTask,
    /// A collector deletes what no commit names, by age.
    CollectByAge,
    /// The store has lost the first page of a job; nobody says so.
    ForgottenPage,
}
