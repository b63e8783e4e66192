//! The one place where FHIR JSON is shaped: OperationOutcome, the manifest in both dialects, the capability
//! statement, the operation definitions, and Bundles of Groups.
//!
//! Pure, and knows neither HTTP nor the coordinator; what is put into the JSON is passed in.

mod bundle;
mod capability;
mod manifest;
mod outcome;

pub use bundle::{Found, Response, SearchResult, batch_response, searchset};
pub use capability::{Server, capability_statement, operation_definition};
pub use manifest::{ManifestFacts, Page, manifest};
pub use outcome::{Issue, IssueCode, Severity, operation_outcome};

/// Where the names of the Bulk Data guide begin.
pub(crate) const BULK: &str = "http://hl7.org/fhir/uv/bulkdata";
