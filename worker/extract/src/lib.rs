//! The byte path of a worker: sources, the selection of rows, compression in segments, sorted key lists.
//!
//! Knows nothing of leases, jobs, gRPC or object stores. Everything here is synchronous and meant to run on a
//! thread of its own: a reader blocks while its source does, and whoever takes the pieces decides how far it
//! may run ahead. Stored resources are bytes on this path; only building a lake's ordered copy looks inside.

pub mod associated;
pub mod bundle;
pub mod cohort;
pub mod compartment;
pub mod cut;
pub mod encode;
pub mod exclusions;
pub mod header;
pub mod join;
pub mod keylist;
pub mod lake;
pub mod lookup;
pub mod open;
pub mod organise;
pub mod outcome;
pub mod piece;
pub mod roster;
pub mod segment;
pub mod select;
pub mod shape;
pub mod sort;
pub mod source;
pub mod synthetic;

pub use keylist::{KeyList, KeyListBuilder};
pub use piece::{Body, Piece};
pub use source::{Scan, Select, Snapshot, Source, SourceError};
