//! The one binary, as a library: the commands, and the parts that they are put together from.
//!
//! Assembly only: what is decided about jobs, resources and HTTP is decided in the rooms that this crate joins.
//! [`embedded`] is a whole cluster in one process, for `export`, `serve` and tests alike.

pub mod cli;
pub mod clients;
mod commands;
pub mod dial;
pub mod display;
mod edge;
pub mod embedded;
pub mod exclusions;
pub mod folder;
pub mod jwk;
pub mod options;
pub mod output;
pub mod places;
pub mod pull;
pub mod remote;
pub mod result;
pub mod rpc;
mod service;
mod sources;
mod tls;
