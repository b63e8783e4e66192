//! The one place where FHIR JSON is shaped: OperationOutcome, the manifest of the legacy dialect (bulk data
//! 1.0 to 3.0), the capability statement and the operation definitions.
//!
//! Pure, and knows neither HTTP nor the coordinator; what is put into the JSON is passed in.

mod capability;
mod manifest;
mod outcome;

pub use capability::{Server, capability_statement, operation_definition};
pub use manifest::{ManifestFacts, manifest};
pub use outcome::{Issue, IssueCode, Severity, operation_outcome};
