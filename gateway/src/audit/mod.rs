//! The record of who did what at the door: tokens, kick-offs, downloads, deletions, Groups, registrations, and what was refused.
//!
//! Read in this order: [`event`] (what happened; `fhir::audit_event` gives it its JSON), [`parameters`] (what was asked for), [`chain`]
//! (how lines hold each other), `queue` (what waits to be stored), [`log`] (the writer). `routes::audit` makes events of requests and
//! answers. Knows no HTTP and no jobs.
//!
//! Invariants: nothing here ever deletes or replaces an object; what is not stored yet is bounded in bytes, and when there is no room
//! nothing more is granted; an event holds no resource content, no token, no assertion and no link, and is bounded whatever
//! a request says; the log gets the same events without the text of parameters, which may name patients.

pub mod chain;
pub mod event;
pub mod log;
pub mod parameters;
mod queue;

pub use event::{About, ByteRange, Event, Kind, Label, Who};
pub use log::{AuditLog, AuditStats, Full};
pub use parameters::Parameters;

/// The folder of the record below the root of its store. Nothing else of ours writes or deletes there.
pub const FOLDER: &str = "audit";
