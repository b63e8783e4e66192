//! Kick-off requests of both dialects: from parameters and header facts to an [`ExportRequest`], or to a list of
//! everything that is wrong with them (ER-02).
//!
//! Reading order: `given` (parameters as they were sent), `parameters` (the table of all there are), `values` and
//! `filters` (what a value says), `payers` (what kinds of export payers ask for), `draft` (all of them together),
//! `headers`.
//!
//! Pure; knows neither who asks nor whether a Group or a patient exists. Invariant: a parameter that would
//! narrow the export is never dropped without a word. It is applied, or refused, or (with
//! `Prefer: handling=lenient`) told in the request's remarks.

mod draft;
mod filters;
mod given;
mod headers;
pub(crate) mod parameters;
mod payers;
mod values;

use flatbed_types::request::Dialect;
use flatbed_types::{ExportRequest, Instant, Level};

use crate::fhir::{Issue, IssueCode};
use draft::Draft;
use given::Given;
pub use headers::{HeaderFacts, check_headers};

/// Where the parameters come from.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// A GET with these decoded query parameters.
    Get(&'a [(String, String)]),
    /// A POST with this body, empty for no parameters (KO-07), and these query parameters, of which only the
    /// generic ones are allowed (KO-08).
    Post(&'a [u8], &'a [(String, String)]),
}

/// What of the guide this server can do, as far as that depends on what stands behind it. What it cannot is refused,
/// or, with `handling=lenient`, told and ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// `organizeOutputBy=Patient`.
    pub organized_output: bool,
    /// `includeAssociatedData`.
    pub associated_data: bool,
    /// `allowPartialManifests=true`.
    pub partial_manifests: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Capabilities { organized_output: true, associated_data: true, partial_manifests: true }
    }
}

/// The operations that start exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `$export`.
    Export,
    /// `$export-v4`.
    ExportV4,
    /// `$davinci-data-export`, of a Group.
    DavinciDataExport,
}

impl Operation {
    /// What follows the `$`.
    pub fn code(self) -> &'static str {
        match self {
            Operation::Export => "export",
            Operation::ExportV4 => "export-v4",
            Operation::DavinciDataExport => "davinci-data-export",
        }
    }

    /// The dialect that belongs to it.
    pub fn dialect(self) -> Dialect {
        match self {
            Operation::Export | Operation::DavinciDataExport => Dialect::Legacy,
            Operation::ExportV4 => Dialect::V4,
        }
    }
}

/// What the parameters are judged against.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    /// The operation called.
    pub operation: Operation,
    /// Its level.
    pub level: Level,
    /// The dialect in which it is called.
    pub dialect: Dialect,
    /// The FHIR base URL, for absolute references.
    pub base: &'a str,
    /// The current time.
    pub now: Instant,
    /// Whether the client asked for `handling=lenient`.
    pub lenient: bool,
    /// Whether the client asked for `separate-export-status`.
    pub separate_status: bool,
    /// What can be asked for.
    pub capabilities: Capabilities,
    /// Whether attribution lists may leave out the types that belong to every one (AT-06).
    pub any_attribution_types: bool,
}

impl<'a> Context<'a> {
    /// A legacy kick-off without preferences, of a server that can do everything.
    pub fn new(level: Level, base: &'a str, now: Instant) -> Self {
        let capabilities = Capabilities::default();
        Context {
            operation: Operation::Export,
            level,
            dialect: Dialect::Legacy,
            base,
            now,
            lenient: false,
            separate_status: false,
            capabilities,
            any_attribution_types: false,
        }
    }
}

/// Reads and checks the parameters of a kick-off. What lenient handling ignored is in the remarks of the request, one
/// for each parameter (KO-23).
///
/// # Errors
/// Every issue found, never an empty list.
pub fn parse(input: Input<'_>, context: &Context<'_>) -> Result<ExportRequest, Vec<Issue>> {
    let (given, is_get) = match input {
        Input::Get(query) => (given::from_query(query), true),
        Input::Post(body, query) => {
            let misplaced: Vec<Issue> = given::from_query(query).iter().map(misplaced).collect();
            match given::from_body(body) {
                Ok(given) if misplaced.is_empty() => (given, false),
                Ok(_) => return Err(misplaced),
                Err(issues) => return Err(misplaced.into_iter().chain(issues).collect()),
            }
        }
    };
    let mut draft = Draft::new(context, is_get);
    given.iter().for_each(|each| draft.read(each));
    draft.finish()
}

fn misplaced(given: &Given<'_>) -> Issue {
    let name = given.shown_name();
    let text =
        format!("{name}: the parameters of a POST belong in its body, a Parameters resource, not in the URL");
    Issue::error(IssueCode::INVALID, text).at(given.location.clone())
}

#[cfg(test)]
mod tests;
