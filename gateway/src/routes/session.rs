//! A request whose sender is known: what handlers take that show or change anything of a client's.
//!
//! Invariant: without a valid token there is no session where tokens are needed, so that a handler that takes one cannot
//! forget to ask; what the sender may do is still decided by `decide` for each action.

use std::ops::Deref;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use flatbed_types::{ClientId, JobId};
use http::request::Parts;

use super::audit::Trail;
use super::refusal::Refusal;
use super::{App, Shared};
use crate::auth::smart::NoEntry;
use crate::auth::{Action, Caller, JobFacts, decide};
use crate::jobs::JobView;

/// What all handlers share, and who asks.
pub(super) struct Session {
    app: App,
    caller: Caller,
    /// Present where a record is kept.
    trail: Option<Arc<Trail>>,
}

impl Deref for Session {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.app
    }
}

impl FromRequestParts<App> for Session {
    type Rejection = Refusal;

    /// Only the header `Authorization` counts (AU-88).
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Session, Refusal> {
        let caller = match &app.smart {
            None => Caller::open(),
            Some(smart) => match smart.caller(&parts.headers, app.now()).await {
                Ok(caller) => caller,
                Err(NoEntry::Unavailable) => return Err(Refusal::unauthenticated(NoEntry::Unavailable)),
                Err(why) => {
                    app.pace_refusal(parts)?;
                    return Err(Refusal::unauthenticated(why));
                }
            },
        };
        let trail = Trail::of(&parts.extensions);
        if let Some(trail) = &trail {
            trail.admit(&caller.client)?;
        }
        Ok(Session { app: App::clone(app), caller, trail })
    }
}

impl Session {
    /// Who asks, and what that is allowed.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Who asks.
    pub fn client(&self) -> ClientId {
        self.caller.client.clone()
    }

    /// The record of this request, where one is kept.
    pub fn trail(&self) -> Option<&Trail> {
        self.trail.as_deref()
    }

    /// Whether the client may do this, where it concerns no job.
    pub fn guard(&self, action: Action<'_>) -> Result<(), Refusal> {
        Refusal::unless_allowed(decide(&self.caller, action, None, self.now()))
    }

    /// Refuses kick-offs that come too fast (KO-27).
    pub fn pace_kick_offs(&self) -> Result<(), Refusal> {
        let taken = self.kick_offs.take(self.client(), self.since.elapsed());
        taken.map_err(|wait| Refusal::throttled(wait, "too many kick-offs in a short time"))
    }

    /// Refuses reads, searches and changes of Groups that come too fast.
    pub fn pace_questions(&self) -> Result<(), Refusal> {
        let taken = self.questions.take(self.client(), self.since.elapsed());
        taken.map_err(|wait| Refusal::throttled(wait, "too many requests for Groups in a short time"))
    }

    /// Refuses polls that come too fast (ST-04).
    pub fn pace_polls(&self, job: &str) -> Result<(), Refusal> {
        let Ok(job) = job.parse() else { return Ok(()) };
        let taken = self.polls.take((self.client(), job), self.since.elapsed());
        taken.map_err(|wait| Refusal::throttled(wait, "this job is asked for too often; go by Retry-After"))
    }

    /// The job that a URL names, if the client may do this to it.
    pub async fn guarded_job(&self, job: &str, action: Action<'_>) -> Result<JobView, Refusal> {
        let found = match job.parse::<JobId>() {
            Ok(id) => self.jobs.get(id).await?,
            Err(_) => None,
        };
        let facts = found.as_ref().map(|view| JobFacts::from(&view.record));
        Refusal::unless_allowed(decide(&self.caller, action, facts.as_ref(), self.now()))?;
        found.ok_or_else(Refusal::no_such_job)
    }
}
