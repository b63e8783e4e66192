//! Reaching coordinators: several addresses, any of which may be dead, none of which is special.
//!
//! A gateway may call any coordinator; a worker keeps a session with each. Which addresses there are is given at
//! the start (seeds) and learned from coordinators afterwards. Knows nothing of what is called.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::status::is_ours;

/// One try against one coordinator; the next is asked after it.
const TRY: Duration = Duration::from_secs(2);

/// Opens connections. Lazy: an address that nobody serves yet is no error.
pub trait Dial: Send + Sync {
    /// A connection to this gRPC URL that is made when it is used, and made again when it breaks.
    ///
    /// # Errors
    /// When the text is no URL that can be dialled.
    fn dial(&self, address: &str) -> Result<Channel, InvalidAddress>;
}

/// Opens nothing: for a coordinator that is alone and serves its own process.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoDial;

impl Dial for NoDial {
    fn dial(&self, address: &str) -> Result<Channel, InvalidAddress> {
        Err(InvalidAddress(address.to_owned()))
    }
}

/// Text that is no gRPC URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no gRPC address: expected a URL like http://127.0.0.1:7070")]
pub struct InvalidAddress(pub String);

/// The coordinators of a cluster.
#[derive(Clone)]
pub struct Coordinators {
    inner: Arc<Inner>,
}

struct Inner {
    /// Absent where the one connection is fixed.
    dial: Option<Arc<dyn Dial>>,
    seeds: Vec<String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    channels: BTreeMap<String, Channel>,
    learned: BTreeSet<String>,
    /// The one that answered last.
    preferred: Option<String>,
}

impl Coordinators {
    /// The one coordinator behind this connection; its address is empty.
    pub fn fixed(channel: Channel) -> Coordinators {
        let channels = BTreeMap::from([(String::new(), channel)]);
        let state = Mutex::new(State { channels, ..State::default() });
        Coordinators { inner: Arc::new(Inner { dial: None, seeds: vec![String::new()], state }) }
    }

    /// The coordinators at these gRPC URLs, and those that they name.
    ///
    /// # Errors
    /// When one of them is no URL.
    pub fn new(seeds: Vec<String>, dial: Arc<dyn Dial>) -> Result<Coordinators, InvalidAddress> {
        let mut state = State::default();
        for seed in &seeds {
            state.channels.insert(seed.clone(), dial.dial(seed)?);
        }
        Ok(Coordinators { inner: Arc::new(Inner { dial: Some(dial), seeds, state: Mutex::new(state) }) })
    }

    /// No coordinator yet; all are learned.
    pub fn unknown(dial: Arc<dyn Dial>) -> Coordinators {
        Coordinators {
            inner: Arc::new(Inner { dial: Some(dial), seeds: Vec::new(), state: Mutex::default() }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses given at the start.
    pub fn seeds(&self) -> &[String] {
        &self.inner.seeds
    }

    /// Every address known, the seeds first.
    pub fn addresses(&self) -> Vec<String> {
        let state = self.state();
        let learned = state.learned.iter().filter(|address| !self.inner.seeds.contains(address));
        self.inner.seeds.iter().chain(learned).cloned().collect()
    }

    /// Replaces what was learned: a coordinator has said which ones are alive. Connections to others than these and
    /// the seeds are let go.
    pub fn learn(&self, live: &[String]) {
        let Some(dial) = &self.inner.dial else { return };
        let mut state = self.state();
        for address in live.iter().filter(|address| !address.is_empty()) {
            if !state.channels.contains_key(address) {
                match dial.dial(address) {
                    Ok(channel) => drop(state.channels.insert(address.clone(), channel)),
                    Err(_) => continue,
                }
            }
        }
        state.learned = live.iter().filter(|address| !address.is_empty()).cloned().collect();
        let State { channels, learned, .. } = &mut *state;
        channels.retain(|address, _| learned.contains(address) || self.inner.seeds.contains(address));
    }

    /// The connection to one of [`Coordinators::addresses`].
    pub fn channel(&self, address: &str) -> Option<Channel> {
        self.state().channels.get(address).cloned()
    }

    /// The connection to a coordinator that another has named: kept like one that was learned, until [`learn`] replaces
    /// what is known. `None` when the address cannot be dialled.
    ///
    /// [`learn`]: Coordinators::learn
    pub fn named(&self, address: &str) -> Option<Channel> {
        let mut state = self.state();
        if let Some(channel) = state.channels.get(address) {
            return Some(channel.clone());
        }
        let channel = self.inner.dial.as_ref()?.dial(address).ok()?;
        state.channels.insert(address.to_owned(), channel.clone());
        state.learned.insert(address.to_owned());
        Some(channel)
    }

    /// Calls one coordinator after the other until one answers, the one that answered last first. A call may reach
    /// several of them, and one of them twice, so it must be safe to repeat.
    ///
    /// # Errors
    /// The last answer of those that could not be reached or did not answer in time; any other error at once. A
    /// connection that broke counts as `Unavailable`.
    pub async fn call<T, F, Fut>(&self, limit: Duration, call: F) -> Result<T, Status>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        self.call_for(limit, TRY, call).await
    }

    /// The same for calls that rightly take long: each coordinator has this much time to answer.
    ///
    /// # Errors
    /// As [`Coordinators::call`].
    pub async fn call_for<T, F, Fut>(&self, limit: Duration, patience: Duration, call: F) -> Result<T, Status>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        // Where there is one only, it has all the time there is.
        let patience = if self.inner.dial.is_some() { patience } else { limit };
        let all = async {
            let mut last = Status::unavailable("no coordinator is known");
            let mut broken = Vec::new();
            for address in self.in_order() {
                match self.one_try(&address, patience, &call).await {
                    Tried::Answered(answer) => return answer,
                    Tried::Elsewhere(status) => last = status,
                    Tried::Broken(status) => {
                        last = status;
                        broken.push(address);
                    }
                }
            }
            // A connection whose other end is long gone looks alive until it is used; the next call makes a new one.
            for address in broken {
                match self.one_try(&address, patience, &call).await {
                    Tried::Answered(answer) => return answer,
                    Tried::Elsewhere(status) | Tried::Broken(status) => last = status,
                }
            }
            Err(last)
        };
        let late = |_| Err(Status::deadline_exceeded("no coordinator answered in time"));
        tokio::time::timeout(limit, all).await.unwrap_or_else(late)
    }

    async fn one_try<T, F, Fut>(&self, address: &str, patience: Duration, call: &F) -> Tried<T>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        let Some(channel) = self.channel(address) else {
            return Tried::Elsewhere(Status::unavailable("a coordinator is not known any more"));
        };
        match tokio::time::timeout(patience, call(channel)).await {
            Ok(Err(status)) if is_broken(&status) => Tried::Broken(match status.code() {
                Code::Unknown | Code::Cancelled => Status::unavailable(status.message()),
                _ => status,
            }),
            Ok(Err(status)) if is_elsewhere(&status) => Tried::Elsewhere(status),
            Ok(answer) => {
                self.state().preferred = Some(address.to_owned());
                Tried::Answered(answer)
            }
            Err(_) => Tried::Elsewhere(Status::deadline_exceeded("a coordinator did not answer in time")),
        }
    }

    fn in_order(&self) -> Vec<String> {
        let mut addresses = self.addresses();
        let preferred = self.state().preferred.clone();
        if let Some(at) = addresses.iter().position(|address| Some(address) == preferred.as_ref()) {
            addresses.swap(0, at);
        }
        addresses
    }
}

/// What one try at a coordinator led to.
enum Tried<T> {
    Answered(Result<T, Status>),
    /// Another coordinator may well give a better answer.
    Elsewhere(Status),
    /// Likewise; the connection broke, or there is none.
    Broken(Status),
}

/// Whether the connection made this status, no coordinator. One that dies while it answers shows as `Unknown` or
/// `Internal`.
fn is_broken(status: &Status) -> bool {
    let code = status.code();
    !is_ours(status) && matches!(code, Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal)
}

/// Whether a coordinator says that it cannot answer.
fn is_elsewhere(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use flatbed_types::ErrorCode;
    use tonic::transport::Endpoint;

    use super::*;
    use crate::status::to_status;

    struct Lazy;

    impl Dial for Lazy {
        fn dial(&self, _: &str) -> Result<Channel, InvalidAddress> {
            Ok(Endpoint::from_static("http://nowhere").connect_lazy())
        }
    }

    /// What two coordinators that answer in this order make of a call, and how often they were called.
    async fn call(answers: Vec<Result<u32, Status>>) -> (Result<u32, Code>, usize) {
        let seeds = vec!["http://a:1".to_owned(), "http://b:1".to_owned()];
        let coordinators = Coordinators::new(seeds, Arc::new(Lazy)).unwrap();
        let calls = AtomicUsize::new(0);
        let next = |_| {
            let answer = answers[calls.fetch_add(1, Ordering::Relaxed)].clone();
            async move { answer }
        };
        let answer = coordinators.call(Duration::from_secs(5), next).await;
        (answer.map_err(|status| status.code()), calls.into_inner())
    }

    #[tokio::test]
    async fn connections_that_turn_out_to_be_broken_are_tried_once_more() {
        let broken = || Err(Status::unknown("transport error"));
        assert_eq!(call(vec![broken(), Ok(1)]).await, (Ok(1), 2));
        assert_eq!(call(vec![broken(), broken(), Ok(1)]).await, (Ok(1), 3));
        let all_broken = vec![broken(), broken(), broken(), broken()];
        assert_eq!(call(all_broken).await, (Err(Code::Unavailable), 4));
    }

    #[tokio::test]
    async fn what_a_coordinator_says_is_not_asked_of_it_again() {
        let unable = || Err(to_status(ErrorCode::Unavailable, "no worker is there"));
        assert_eq!(call(vec![unable(), Ok(1)]).await, (Ok(1), 2));
        assert_eq!(call(vec![unable(), unable()]).await, (Err(Code::Unavailable), 2));
        let absent = Err(to_status(ErrorCode::NotFound, "there is no such job"));
        assert_eq!(call(vec![absent]).await, (Err(Code::NotFound), 1));
        let defect = Err(to_status(ErrorCode::Internal, "internal error"));
        assert_eq!(call(vec![defect]).await, (Err(Code::Internal), 1));
    }
}
