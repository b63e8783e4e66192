//! Kick-off requests of the legacy dialect: from parameters and header facts to an [`ExportRequest`], or to a
//! list of everything that is wrong with them (ER-02).
//!
//! Pure; knows neither who asks nor whether a Group or a patient exists. Invariant: a parameter that would
//! narrow the export is never dropped without a word. It is applied, or refused, or (with
//! `Prefer: handling=lenient`) listed among the ignored ones.

mod given;
mod headers;
mod values;

use std::collections::BTreeSet;

use flatbed_types::{ExportRequest, FhirId, Instant, Level, ResourceType, caps};

use crate::fhir::{Issue, IssueCode};
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

/// What the parameters are judged against.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    /// The level of the operation called.
    pub level: Level,
    /// The FHIR base URL, for absolute references.
    pub base: &'a str,
    /// The current time.
    pub now: Instant,
    /// Whether the client asked for `handling=lenient`.
    pub lenient: bool,
}

/// A kick-off that can go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// What to export.
    pub request: ExportRequest,
    /// The parameters that lenient handling ignored, one remark each (KO-23).
    pub ignored: Vec<Issue>,
}

/// Parameters of the Bulk Data guide that this server does not have.
const UNSUPPORTED: [&str; 7] = [
    "_typeFilter",
    "_elements",
    "includeAssociatedData",
    "organizeOutputBy",
    "allowPartialManifests",
    "_minimumFileSize",
    "_maximumFileSize",
];

/// The parameters that this server has.
const SUPPORTED: [&str; 5] = ["_outputFormat", "_since", "_until", "_type", "patient"];

/// Reads and checks the parameters of a kick-off.
///
/// # Errors
/// Every issue found, never an empty list.
pub fn parse(input: Input<'_>, context: &Context<'_>) -> Result<Accepted, Vec<Issue>> {
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
    let mut reader = Reader::new(context, is_get);
    given.iter().for_each(|each| reader.read(each));
    reader.finish()
}

fn misplaced(given: &Given<'_>) -> Issue {
    let name = given.shown_name();
    let text =
        format!("{name}: the parameters of a POST belong in its body, a Parameters resource, not in the URL");
    Issue::error(IssueCode::INVALID, text).at(given.location.clone())
}

struct Reader<'a> {
    context: &'a Context<'a>,
    is_get: bool,
    seen: BTreeSet<&'static str>,
    types: BTreeSet<ResourceType>,
    since: Option<Instant>,
    until: Option<Instant>,
    patients: BTreeSet<FhirId>,
    issues: Vec<Issue>,
    ignored: Vec<Issue>,
}

impl<'a> Reader<'a> {
    fn new(context: &'a Context<'a>, is_get: bool) -> Self {
        Reader {
            context,
            is_get,
            seen: BTreeSet::new(),
            types: BTreeSet::new(),
            since: None,
            until: None,
            patients: BTreeSet::new(),
            issues: Vec::new(),
            ignored: Vec::new(),
        }
    }

    fn read(&mut self, given: &Given<'_>) {
        let outcome = match given.name.as_ref() {
            "_outputFormat" => self.once("_outputFormat").and_then(|()| values::output_format(given)),
            "_since" => self.once("_since").and_then(|()| values::instant(given)).and_then(|since| {
                self.since = Some(since);
                if since > self.context.now { Err("lies in the future".to_owned().into()) } else { Ok(()) }
            }),
            "_until" => self.once("_until").and_then(|()| values::instant(given)).map(|until| {
                self.until = Some(until);
            }),
            "_type" => self.read_types(given),
            "patient" => self.read_patient(given),
            _ => return self.unknown(given),
        };
        if let Err(fault) = outcome {
            let text = format!("{}: {}", given.name, fault.text);
            self.issues.push(Issue::error(fault.code, text).at(given.location.clone()));
        }
    }

    fn once(&mut self, name: &'static str) -> Result<(), Fault> {
        let first = self.seen.insert(name);
        if first { Ok(()) } else { Err("given more than once".to_owned().into()) }
    }

    fn read_types(&mut self, given: &Given<'_>) -> Result<(), Fault> {
        self.seen.insert("_type");
        // Valid types are kept when others of the list are wrong, so that PM-27 does not complain as well.
        let (types, fault) = values::types(given);
        self.types.extend(types);
        fault.map_or(Ok(()), Err)
    }

    fn read_patient(&mut self, given: &Given<'_>) -> Result<(), Fault> {
        if self.context.level == Level::System {
            return Err("does not apply to a system level export; use Patient/$export".to_owned().into());
        }
        if self.is_get {
            return Err("only in the Parameters body of a POST".to_owned().into());
        }
        let patient = values::patient(given, self.context.base)?;
        if self.patients.len() >= caps::MAX_PATIENTS && !self.patients.contains(&patient) {
            let text = format!("more than {} patients; use a Group", caps::MAX_PATIENTS);
            return Err(Fault { code: IssueCode::TOO_COSTLY, text });
        }
        self.patients.insert(patient);
        Ok(())
    }

    fn unknown(&mut self, given: &Given<'_>) {
        let name = given.shown_name();
        let known = UNSUPPORTED.contains(&given.name.as_ref());
        let near = SUPPORTED.into_iter().find(|known| known.eq_ignore_ascii_case(&given.name));
        let what = match near {
            _ if known => "not supported by this server".to_owned(),
            Some(near) => format!("not a parameter of $export (did you mean {near}?)"),
            None => "not a parameter of $export".to_owned(),
        };
        let location = given.location.clone();
        if self.context.lenient {
            let text = format!("{name}: {what}; ignored");
            self.ignored.push(Issue::information(IssueCode::NOT_SUPPORTED, text).at(location));
        } else {
            let text = format!("{name}: {what}");
            self.issues.push(Issue::error(IssueCode::NOT_SUPPORTED, text).at(location));
        }
    }

    fn finish(mut self) -> Result<Accepted, Vec<Issue>> {
        if let (Some(since), Some(until)) = (self.since, self.until)
            && until <= since
        {
            self.issues
                .push(Issue::error(IssueCode::INVALID, "_until: not after _since, so nothing can match"));
        }
        self.check_types();
        if !self.issues.is_empty() {
            return Err(self.issues);
        }
        let request = ExportRequest {
            level: self.context.level.clone(),
            types: self.types,
            since: self.since,
            until: self.until,
            patients: self.patients,
            ..ExportRequest::everything(self.context.level.clone())
        };
        Ok(Accepted { request, ignored: self.ignored })
    }

    /// PM-27. Device has a patient in R4 without being in the compartment, and is exported with it
    /// (`decisions.md` 13).
    fn check_types(&mut self) {
        let of_patients =
            |each: &ResourceType| each.in_patient_compartment() || *each == ResourceType::DEVICE;
        let asks = self.context.level == Level::System
            || self.types.is_empty()
            || self.types.iter().any(of_patients)
            || self.context.lenient;
        if !asks {
            let text = "_type: none of these types is in the Patient compartment; at this level they come only \
                        together with types that refer to them. Add such a type, or use the system level [base]/$export";
            self.issues.push(Issue::error(IssueCode::NOT_SUPPORTED, text));
        }
    }
}

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    code: IssueCode,
    text: String,
}

impl From<String> for Fault {
    fn from(text: String) -> Fault {
        Fault { code: IssueCode::INVALID, text }
    }
}

#[cfg(test)]
mod tests;
