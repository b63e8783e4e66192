//! Whether the source has been read once, what is in it, and the questions of kick-offs about it (`decisions.md` 7).
//! Before the source is prepared, jobs and questions would wait for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flatbed_extract::source::Progress;
use flatbed_proto::convert::error_code_number;
use flatbed_proto::wire::lease as wire;
use flatbed_types::job::{JobError, ObjectPointer};
use flatbed_types::{ErrorCode, ResourceType, caps};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::contents::{self, Desk, Inquiry};
use crate::{Context, internal, planning, source_error};

/// How long to wait before a source that could not be prepared is tried again.
const PREPARE_AGAIN: Duration = Duration::from_secs(30);
/// Questions of kick-offs that are looked into at once; more wait.
const QUESTIONS_AT_ONCE: usize = 2;
/// Answers that are content and are written at once: each holds one part of an upload at most.
const CONTENTS_AT_ONCE: usize = 2;

/// How far the worker is with its source.
pub(crate) struct Readiness {
    types: Mutex<Vec<ResourceType>>,
    prepared: AtomicBool,
    /// Why the last try to prepare it failed.
    failure: Mutex<Option<JobError>>,
    questions: Semaphore,
    /// Apart from those of kick-offs, which are answered sooner.
    contents: Semaphore,
}

impl Readiness {
    pub fn new() -> Readiness {
        Readiness {
            types: Mutex::default(),
            prepared: AtomicBool::new(false),
            failure: Mutex::default(),
            questions: Semaphore::new(QUESTIONS_AT_ONCE),
            contents: Semaphore::new(CONTENTS_AT_ONCE),
        }
    }

    /// Whether the source has been read once and can be read now.
    pub fn is_prepared(&self) -> bool {
        self.prepared.load(Ordering::Acquire)
    }

    /// Names of the types that it holds, as far as known.
    pub fn type_names(&self) -> Vec<String> {
        let types = self.types.lock().unwrap_or_else(PoisonError::into_inner);
        types.iter().map(|kind| kind.name().to_owned()).collect()
    }

    /// Brings the source up to date and learns its types; returns when that has succeeded, or at the drain.
    pub async fn prepare(&self, context: &Context, drain: &CancellationToken) {
        loop {
            let source = context.source.clone();
            match tokio::task::spawn_blocking(move || source.snapshot(&Logged)).await {
                Ok(Ok(snapshot)) => {
                    *self.types.lock().unwrap_or_else(PoisonError::into_inner) = snapshot.types();
                    self.prepared.store(true, Ordering::Release);
                    return;
                }
                // The plan task of the first job says so to whoever asked.
                Ok(Err(error)) => {
                    tracing::error!(code = %error.code, "the source cannot be prepared: {error}");
                    *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(source_error(error));
                }
                Err(error) => tracing::error!("preparing the source ended unexpectedly: {error}"),
            }
            tokio::select! {
                () = tokio::time::sleep(PREPARE_AGAIN) => {}
                () = drain.cancelled() => return,
            }
        }
    }

    /// Looks into the source for a kick-off.
    pub async fn answer(&self, context: &Context, ask: wire::Ask) -> wire::Answer {
        let failed = |error: JobError| wire::Answer {
            number: ask.number,
            error: error.message,
            error_code: error_code_number(error.code),
            ..wire::Answer::default()
        };
        let group = match ask.group.as_str() {
            "" => None,
            id => match id.parse() {
                Ok(id) => Some(id),
                Err(_) => return wire::Answer { number: ask.number, ..wire::Answer::default() },
            },
        };
        if !self.is_prepared() {
            let message = "the source is still being prepared; try again".to_owned();
            let preparing = JobError { code: ErrorCode::Unavailable, message };
            let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
            return failed(failure.unwrap_or(preparing));
        }
        match Inquiry::of(&ask) {
            Ok(Some(inquiry)) => {
                let written = self.write_answer(context, inquiry).await;
                return written.map_or_else(failed, |written| contents::told(ask.number, written));
            }
            Ok(None) => {}
            Err(malformed) => return failed(internal(malformed)),
        }
        // Never closed, so a permit always comes.
        let _permit = self.questions.acquire().await;
        let patients: Vec<_> = ask.patients.iter().filter_map(|id| id.parse().ok()).collect();
        let source = context.source.clone();
        let looked = move || planning::answer(&source, group.as_ref(), &patients);
        match tokio::task::spawn_blocking(looked).await {
            Ok(Ok(answered)) => wire::Answer {
                number: ask.number,
                group_found: answered.group_found,
                missing_patients: answered.missing.iter().map(ToString::to_string).collect(),
                ..wire::Answer::default()
            },
            Ok(Err(error)) => failed(error),
            Err(_) => failed(internal("the source could not be read")),
        }
    }
}

impl Readiness {
    /// Writes an answer that is content, when its turn comes while somebody still waits for it.
    async fn write_answer(
        &self,
        context: &Context,
        inquiry: Inquiry,
    ) -> Result<(Option<ObjectPointer>, bool), JobError> {
        let turn = tokio::time::timeout(Duration::from_millis(caps::ASK_MILLIS), self.contents.acquire());
        let Ok(_permit) = turn.await else {
            let message = "too many questions at once; try again".to_owned();
            return Err(JobError { code: ErrorCode::Unavailable, message });
        };
        let desk = Desk::new(context);
        let answered = tokio::task::spawn_blocking(move || desk.answer(&inquiry)).await;
        answered.unwrap_or_else(|_| Err(internal("the source could not be read")))
    }
}

struct Logged;

impl Progress for Logged {
    fn report(&self, phase: &str, done: u64, total: u64) {
        tracing::info!("preparing the source: {}", planning::describe(phase, done, total));
    }
}
