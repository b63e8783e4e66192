//! A TCP proxy that misbehaves as it is told, put before etcd or an object store. The kernel here may have no `netem`, and
//! a proxy can do what a network cannot: answer 503, or swallow the answer to a request that was carried out.
//!
//! A connection draws its luck once, from the seed, when it is accepted; the faults that befall it can be switched at any
//! time. The proxy has a thread of its own, so that a test that blocks does not block what it watches.

mod http;
mod link;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::{oneshot, watch};

use crate::ports::free_port;
use crate::random::Random;

/// What happens to the connections that are hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Every piece waits so long before it goes on, in both directions.
    Delay(Duration),
    /// They are reset, and so are new ones.
    Reset,
    /// Nothing goes on in either direction; new ones are accepted and never answered.
    BlackHole,
    /// Requests arrive and are carried out; answers do not come back.
    SwallowAnswers,
    /// HTTP/1.1: some of the requests, by percent, are answered 503 without reaching the server.
    Unavailable {
        /// Of a hundred requests, so many.
        percent: u64,
    },
    /// So many bytes a second in each direction.
    Bandwidth(u64),
}

/// The fault in force and how many of a hundred connections it hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Weather {
    fault: Option<Fault>,
    percent: u64,
}

impl Weather {
    /// What befalls a connection with this luck, from 0 to 99.
    fn on(self, luck: u64) -> Option<Fault> {
        self.fault.filter(|_| luck < self.percent)
    }
}

/// What the proxy did to its connections, so that a test can see that a fault was one.
#[derive(Debug, Default)]
pub struct Counters {
    accepted: AtomicU64,
    harmed: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A running proxy.
pub struct Proxy {
    port: u16,
    weather: watch::Sender<Weather>,
    counters: Arc<Counters>,
    thread: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Proxy {
    /// A proxy before a port of the loopback address, on a port of its own. All its choices follow from the seed.
    pub fn start(target: u16, seed: u64) -> Result<Proxy> {
        let port = free_port()?;
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        listener.set_nonblocking(true)?;
        let (weather, watched) = watch::channel(Weather { fault: None, percent: 0 });
        let counters = Arc::new(Counters::default());
        let (stop, stopped) = oneshot::channel();
        let counting = counters.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("proxy".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, target, Random::new(seed), watched, counting) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Proxy { port, weather, counters, thread: Some((stop, thread)) })
    }

    /// Where clients reach it.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on the fault hits every connection.
    pub fn inject(&self, fault: Fault) {
        self.inject_into(fault, 100);
    }

    /// From now on the fault hits so many of a hundred connections, of those that are open too.
    pub fn inject_into(&self, fault: Fault, percent: u64) {
        self.weather.send_replace(Weather { fault: Some(fault), percent });
    }

    /// No more faults. Connections that were not reset go on from where they are.
    pub fn heal(&self) {
        self.weather.send_replace(Weather { fault: None, percent: 0 });
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.counters.accepted.load(Ordering::Relaxed)
    }

    /// Resets, swallowed or late pieces, refused requests so far.
    pub fn harmed(&self) -> u64 {
        self.counters.harmed.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            // A panic of the thread was printed when it happened.
            let _ = thread.join();
        }
    }
}

async fn serve(
    listener: TcpListener,
    target: u16,
    mut random: Random,
    weather: watch::Receiver<Weather>,
    counters: Arc<Counters>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener).context("proxy") {
        Ok(listener) => listener,
        Err(error) => return eprintln!("{error:#}"),
    };
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // Out of descriptors: some may be free again in a moment.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        Counters::add(&counters.accepted);
        let link = link::Link {
            luck: random.below(100),
            seed: random.draw(),
            weather: weather.clone(),
            counters: counters.clone(),
            gone: Arc::default(),
        };
        tokio::spawn(link.run(client, target));
    }
}

#[cfg(test)]
mod tests;
