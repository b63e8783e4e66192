//! Search of FHIR R4 as `_typeFilter` needs it: what a filter says, whether it is right, and whether a resource
//! matches it (<http://hl7.org/fhir/R4/search.html>, rows PM-48 to PM-60 of the contract).
//!
//! A [`Filter`] is parsed from text such as `MedicationRequest?status=completed&authoredon=gt2018-07-01`. All
//! faults are found at once and each is named; what cannot be evaluated is refused, never ignored. A [`Matcher`]
//! is compiled from the filters of one type and gives a verdict on one resource, which it never parses into a
//! tree: a single pass over the bytes collects the values that the filters look at.
//!
//! Does not know where filters come from, other resources (so no chains, no `_has`, no lists), value sets, full
//! text, or the address of the server (so absolute references are compared as they are written). Whether a line
//! is valid JSON is not its business either; on any bytes it ends, within the depth of its paths.
//!
//! Reading order: [`parameter`] (what can be searched), [`filter`], [`value`] (what is asked), `json` (walking
//! bytes), `compare` (does a value match), [`matcher`].

mod compare;
mod error;
pub mod filter;
mod json;
pub mod limits;
pub mod matcher;
pub mod parameter;
mod text;
mod trie;
pub mod value;

pub use error::{FilterError, Malformed};
pub use filter::{Filter, split_legacy};
pub use matcher::Matcher;
pub use parameter::{Kind, Parameter, parameters};
