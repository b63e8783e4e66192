//! One thread a slot, for as long as the worker lives.
//!
//! A pool that takes any idle thread would spread a slot's buffers over the memory arenas of all of them, and
//! each keeps what it once had: with fixed threads the memory of a worker does not grow with the number of tasks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

type Work = Box<dyn FnOnce() + Send>;

/// The threads. They end when the value is dropped and their work is done.
pub(crate) struct Threads {
    queue: Sender<Work>,
}

/// The work panicked, or its thread is gone.
#[derive(Debug)]
pub(crate) struct Unfinished;

impl Threads {
    /// Starts this many.
    pub fn start(count: u32) -> std::io::Result<Threads> {
        let (queue, work) = channel::<Work>();
        let work = Arc::new(Mutex::new(work));
        for number in 0..count.max(1) {
            let work = work.clone();
            std::thread::Builder::new().name(format!("slot-{number}")).spawn(move || serve(&work))?;
        }
        Ok(Threads { queue })
    }

    /// Runs work on the next thread that is free.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unfinished> {
        let (done, result) = oneshot::channel();
        let job: Work = Box::new(move || {
            if let Ok(value) = catch_unwind(AssertUnwindSafe(work)) {
                let _ = done.send(value);
            }
        });
        self.queue.send(job).map_err(|_| Unfinished)?;
        result.await.map_err(|_| Unfinished)
    }
}

fn serve(work: &Mutex<Receiver<Work>>) {
    loop {
        // One thread waits in `recv` with the lock held; the others wait for the lock: either way for work.
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_runs_on_few_threads_and_a_panic_takes_none_away() {
        let threads = Threads::start(2).unwrap();
        let mut names = std::collections::BTreeSet::new();
        for number in 0..20 {
            if number % 5 == 0 {
                assert!(threads.run(|| -> () { panic!("on purpose") }).await.is_err());
            }
            names.insert(threads.run(|| std::thread::current().name().map(str::to_owned)).await.unwrap());
        }
        assert!(names.len() <= 2, "{names:?}");
    }
}
