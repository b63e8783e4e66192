//! Finished files: manifests and bytes from the object store.
//!
//! Knows no HTTP and no permissions. Invariants: objects are found by the keys of a verified manifest only,
//! never by listing or by a name from outside; memory is bounded, whatever the size of a file.

mod binary;
mod decode;
mod links;
mod manifests;
mod objects;

pub(crate) use binary::Binary;
pub(crate) use links::Links;
pub(crate) use manifests::{LoadedManifest, Manifests};
pub(crate) use objects::{Objects, ReadError};
