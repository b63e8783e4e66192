//! SMART Backend Services, and what clients may do.
//!
//! Read in this order: `decision` (the one question that every route asks), `scopes`, `jws`, `keys`, `assertion`, `tokens`,
//! `oauth` (what is sent and what is granted: pure), `trust` (what is asked of the cluster), `cluster` (how), `addresses` and `jwks`
//! (keys behind URLs), `external` (tokens of another server), `smart` (all of them together); `registration` (what clients say of
//! themselves: pure) and `registry` (where it is kept).

pub mod addresses;
pub mod assertion;
pub mod cluster;
mod decision;
pub mod external;
pub mod jwks;
pub mod jws;
pub mod keys;
pub mod oauth;
pub mod registration;
pub mod registry;
pub mod scopes;
pub mod smart;
pub mod tokens;
pub mod trust;

pub(crate) use decision::{Action, Caller, Decision, JobFacts, Lack, May, decide, narrow};
