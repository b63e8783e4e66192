//! Groups as clients read, search and make them (GR-01, section 2.12 of the contract): what a request asks for, and
//! whether a Group that a client sends can be one by criteria. Pure; HTTP is in `routes`.
//!
//! Does not know where Groups are. Invariants: what is not understood is refused, never ignored, for ignoring a condition
//! would hold more patients than were meant; a Group that comes without its members says so.

pub(crate) mod definition;
pub(crate) mod query;
pub(crate) mod subset;
