//! Questions whose answer is content of the source (GR-01): a coordinator passes them on to a worker, which writes the
//! answer as an object, and whoever asked reads the object. Coordinators see neither.

use std::collections::BTreeSet;

use crate::request::Element;
use crate::{FhirId, ResourceType};

/// A resource that belongs to no patient, by its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadResource {
    /// The type.
    pub resource_type: ResourceType,
    /// The id.
    pub id: FhirId,
    /// The elements to keep; empty means all.
    pub elements: BTreeSet<Element>,
    /// Bytes above which the answer is an error of class `TooLarge`; `None` for no limit.
    pub max_bytes: Option<u64>,
}

impl ReadResource {
    /// All of a resource, whatever its size.
    pub fn whole(resource_type: ResourceType, id: FhirId) -> ReadResource {
        ReadResource { resource_type, id, elements: BTreeSet::new(), max_bytes: None }
    }
}

/// The Groups that match a search, in order of their ids: as NDJSON.
#[derive(Clone, PartialEq, Eq)]
pub struct SearchGroups {
    /// `Group?query` in the canonical text of `flatbed-search`; all its parameters must match.
    pub filter: String,
    /// Only those behind this id.
    pub after: Option<FhirId>,
    /// At most so many, from 1 to [`caps::MAX_GROUPS_ASKED`](crate::caps::MAX_GROUPS_ASKED).
    pub limit: u32,
    /// The elements to keep; empty means all.
    pub elements: BTreeSet<Element>,
    /// Bytes of a Group above which it comes without its members.
    pub max_row_bytes: u64,
    /// Only these, whatever else matches: nothing of others is told, not even that there are more. `None` for all.
    pub among: Option<BTreeSet<FhirId>>,
}

/// A question whose answer is content.
#[derive(Clone, PartialEq, Eq)]
pub enum ContentQuestion {
    /// One resource.
    Read(ReadResource),
    /// Groups.
    SearchGroups(SearchGroups),
}
