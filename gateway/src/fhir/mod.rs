//! The one place where FHIR JSON is shaped: OperationOutcome, the manifest in both dialects, the capability
//! statement, the operation definitions, Bundles of Groups, and AuditEvents.
//!
//! Pure, and knows neither HTTP nor the coordinator; what is put into the JSON is passed in.

mod audit_event;
mod bundle;
mod capability;
mod manifest;
mod outcome;

pub(crate) use audit_event::AUDIT_EVENTS;
pub use audit_event::{Observer, audit_event};
pub use bundle::{Found, Response, SearchResult, batch_response, searchset};
pub use capability::{Server, capability_statement, operation_definition};
pub use manifest::{ManifestFacts, Page, manifest};
pub use outcome::{Issue, IssueCode, Severity, operation_outcome};

/// Where the names of the Bulk Data guide begin.
pub(crate) const BULK: &str = "http://hl7.org/fhir/uv/bulkdata";

/// Where the names of the guide to member attribution begin, which defines `$davinci-data-export` for all of Da Vinci.
const ATTRIBUTION: &str = "http://hl7.org/fhir/us/davinci-atr";
