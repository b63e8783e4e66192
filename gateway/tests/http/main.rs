//! The gateway's routes over a Jobs service in the same process and a store in memory. Rows of the wire
//! contract are named in the tests.

// The whole crate is a test, which the lint's exception for tests does not see.
#![allow(clippy::unwrap_used)]

mod dialects;
mod failover;
mod files;
mod fuzz;
mod groups;
mod kickoff;
mod links;
mod metadata;
mod pages;
mod smart;
mod status;
mod support;
