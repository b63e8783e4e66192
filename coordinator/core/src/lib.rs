//! Decisions of the coordinator, pure: no clock, no randomness, no I/O, no async. The same code runs in
//! production, in the model ([`ledger`] under stateright, in `tests/model`) and in simulation.
//!
//! - [`ledger`]: what is committed and what remains of a job, and the rules that change it.
//! - [`cluster`]: which coordinator owns which job.
//! - [`job`]: one job's life as `step(input) -> outputs`: group commit, planning rounds, finalizing, deleting.
//! - [`plan`]: from what a source says to tasks sized by bytes.
//! - [`merge`]: which small files are joined, and whether a worker joined them.
//! - [`manifest`]: from the ledger to the files of the result.
//! - [`page`]: when a page of it appears while the job runs, and what is on it.
//! - [`schedule`]: who works on what: fair shares, stealing, second attempts.
//! - [`progress`]: how far a job is, never backwards.
//!
//! It does not know how records are encoded, which store keeps them, or how workers are reached.

pub mod cluster;
pub mod job;
pub mod ledger;
pub mod manifest;
pub mod merge;
pub mod page;
pub mod plan;
pub mod progress;
pub mod schedule;
