//! A request in the making: the parameters read so far, and what is wrong with them.

use std::collections::BTreeSet;

use flatbed_types::request::{AnswerForm, Dialect, Element, ForeignPatients, Remark};
use flatbed_types::{ExportRequest, Level, ResourceType, caps, elements};

use super::given::{Given, shown};
use super::parameters::{self, Levels, Occurrence, Parameter};
use super::payers::{self, ExportType};
use super::values::{self, Fault};
use super::{Context, Operation, filters};
use crate::fhir::{Issue, IssueCode};

/// Elements in one request: more than any type has, so that no honest request meets it.
const MAX_ELEMENTS: usize = 1_024;

/// Searches in one request. Every row of a type is held against all searches on it.
const MAX_FILTERS: usize = 256;

/// Bytes of all searches of one request: with patients, elements and remarks they stay below the 1.5 MiB that the
/// smallest store of jobs takes at once.
const MAX_FILTER_BYTES: usize = 256 << 10;

/// Parameters of one request that lenient handling ignores: each is kept with the job.
const MAX_REMARKS: usize = 100;

/// The request so far.
pub(super) struct Draft<'a> {
    context: &'a Context<'a>,
    is_get: bool,
    request: ExportRequest,
    seen: BTreeSet<&'static str>,
    /// Elements and types of filters with their places, to be held against the types in the end.
    elements: Vec<(Element, String)>,
    filtered: Vec<(ResourceType, String)>,
    /// Of `$davinci-data-export`.
    export_type: Option<ExportType>,
    issues: Vec<Issue>,
}

impl<'a> Draft<'a> {
    pub fn new(context: &'a Context<'a>, is_get: bool) -> Self {
        let form = AnswerForm {
            dialect: context.dialect,
            separate_status: context.separate_status,
            partial_manifests: false,
        };
        let foreign_patients = match context.operation {
            Operation::Export | Operation::ExportV4 => ForeignPatients::Refused,
            Operation::DavinciDataExport => ForeignPatients::Reported,
        };
        let level = context.level.clone();
        Draft {
            context,
            is_get,
            request: ExportRequest { form, foreign_patients, ..ExportRequest::everything(level) },
            seen: BTreeSet::new(),
            elements: Vec::new(),
            filtered: Vec::new(),
            export_type: None,
            issues: Vec::new(),
        }
    }

    /// Reads one parameter by its row of the table.
    pub fn read(&mut self, given: &Given<'_>) {
        let Some(row) = parameters::named(&given.name, self.context.operation) else {
            return self.unknown(given);
        };
        let v4 = [row.v4];
        let types = if self.is_legacy() { row.legacy } else { &v4 };
        let occurrence = Occurrence { types, value: &given.value, location: &given.location };
        let outcome = self.check_place(row).and_then(|()| (row.read)(self, &occurrence));
        let Err(fault) = outcome else { return };
        let skippable = row.skippable && fault.code == IssueCode::NOT_SUPPORTED;
        self.refuse(row.name, fault, skippable, &given.location);
    }

    /// Whether the parameter may stand where it stands (PM-16, PM-38, PM-39).
    fn check_place(&mut self, row: &'static Parameter) -> Result<(), Fault> {
        if !(row.offered)(self.context.capabilities) {
            return Err(Fault::unsupported("not supported by this server"));
        }
        if !self.seen.insert(row.name) && !row.repeats {
            return Err(Fault::invalid("given more than once"));
        }
        if row.levels == Levels::OfPatients && self.context.level == Level::System {
            let text = "does not apply to a system level export; use the Patient or the Group level";
            return Err(if row.skippable { Fault::unsupported(text) } else { Fault::invalid(text) });
        }
        if self.is_get && !row.by_get {
            return Err(Fault::invalid("only in the Parameters body of a POST"));
        }
        Ok(())
    }

    fn is_legacy(&self) -> bool {
        self.context.dialect == Dialect::Legacy
    }

    fn unknown(&mut self, given: &Given<'_>) {
        let name = given.shown_name();
        let text = match parameters::near(&given.name, self.context.operation) {
            Some(near) => format!("not a parameter of this operation (did you mean {}?)", near.name),
            None => "not a parameter of this operation".to_owned(),
        };
        self.refuse(&name, Fault::unsupported(text), true, &given.location);
    }

    /// Refuses a parameter, or, with lenient handling, goes on without it and says so (KO-23, MF-24).
    fn refuse(&mut self, name: &str, fault: Fault, skippable: bool, location: &str) {
        let fault = Fault { text: format!("{name}: {}", fault.text), ..fault };
        if self.context.lenient && skippable {
            return self.ignore(fault, location);
        }
        self.issues.push(Issue::error(fault.code, fault.text).at(location));
    }

    /// Goes on without a parameter, and says so.
    fn ignore(&mut self, Fault { code, text }: Fault, location: &str) {
        if self.request.remarks.len() >= MAX_REMARKS {
            let text = format!("{text}; more than {MAX_REMARKS} parameters would be ignored");
            return self.issues.push(Issue::error(IssueCode::TOO_COSTLY, text).at(location));
        }
        let (code, location) = (code.as_str().to_owned(), Some(location.to_owned()));
        self.request.remarks.push(Remark { code, text: format!("{text}; ignored"), location });
    }

    pub fn output_format(&mut self, given: &Occurrence<'_>) -> Result<(), Fault> {
        values::output_format(given)
    }

    pub fn since(&mut self, given: &Occurrence<'_>) -> Result<(), Fault> {
        let since = values::instant(given)?;
        self.request.since = Some(since);
        if since > self.context.now { Err(Fault::invalid("lies in the future")) } else { Ok(()) }
    }

    pub fn until(&mut self, given: &Occurrence<'_>) -> Result<(), Fault> {
        self.request.until = Some(values::instant(given)?);
        Ok(())
    }

    pub fn types(&mut self, given: &Occurrence<'_>) -> Result<(), Fault> {
        let names = values::list(given, self.context.dialect, "type")?;
        if names.len() > caps::MAX_TYPES {
            return Err(Fault::too_costly(format!("more than {} types", caps::MAX_TYPES)));
        }
        // Valid types are kept when others of the list are wrong, so that PM-27 does not complain as well.
        let (types, faults) = sorted(names.into_iter().map(values::exportable_type));
        self.request.types.extend(types);
        Fault::all(faults)
    }

    pub fn elements(&mut self, given: &Occurrence<'_>) -> Result<(), Fault> {
        let names = values::list(given, self.context.dialect, "element")?;
        if self.elements.len() + names.len() > MAX_ELEMENTS {
            return Err(Fault::too_costly(format!("more than {MAX_ELEMENTS} elements")));
        }
        let (elements, faults) = sorted(names.into_iter().map(values::element));
        self.elements.extend(elements.into_iter().map(|element| (element, given.location.to_owned())));
        Fault::all(faults)
    }

    pub fn patient(&mut self, given: &Occurrence<'_>) -> Result<(), Fault> {
        let reference = values::reference(given)?;
        let Some(patient) = values::patient(reference, self.context.base) else {
            let text = "not a reference to a patient of this server";
            if self.request.foreign_patients == ForeignPatients::Refused {
                return Err(Fault::invalid(format!("{text}; write Patient/<id>")));
            }
            let text = format!("patient: {}: {text}", shown(reference));
            self.ignore(Fault { code: IssueCode::NOT_FOUND, text }, given.location);
            return Ok(());
        };
        let patients = &mut self.request.patients;
        if patients.len() >= caps::MAX_PATIENTS && !patients.contains(&patient) {
            return Err(Fault::too_costly(format!("more than {} patients; use a Group", caps::MAX_PATIENTS)));
        }
        patients.insert(patient);
        Ok(())
    }

    pub fn export_type(&mut self, given: &Occurrence<'_>) -> Result<(), Fault> {
        self.export_type = Some(values::export_type(given)?);
        Ok(())
    }

    pub fn associated(&mut self, given: &Occurrence<'_>) -> Result<(), Fault> {
        let codes = values::associated_codes(given, self.context.dialect)?;
        let (asked, faults) = sorted(codes.into_iter().map(values::associated));
        // Of conflicting codes the least restrictive counts (PM-45).
        self.request.associated = asked.into_iter().fold(self.request.associated, Ord::max);
        Fault::all(faults)
    }

    pub fn type_filter(&mut self, given: &Occurrence<'_>) -> Result<(), Fault> {
        let texts = filters::texts(given, self.context.dialect)?;
        if self.request.filters.len() + texts.len() > MAX_FILTERS {
            return Err(Fault::too_costly(format!("more than {MAX_FILTERS} searches")));
        }
        let (filters, faults) = sorted(texts.iter().map(|text| filters::filter(text)));
        for (resource_type, filter) in filters {
            self.filtered.push((resource_type, given.location.to_owned()));
            self.request.filters.push(filter);
        }
        if self.request.filters.iter().map(String::len).sum::<usize>() > MAX_FILTER_BYTES {
            return Err(Fault::too_costly(format!("more than {MAX_FILTER_BYTES} bytes of searches")));
        }
        Fault::all(faults)
    }

    pub fn organize_output_by(&mut self, given: &Occurrence<'_>) -> Result<(), Fault> {
        if values::text(given)? != "Patient" {
            return Err(Fault::unsupported("files can be organized by Patient only"));
        }
        self.request.by_patient = true;
        Ok(())
    }

    pub fn partial_manifests(&mut self, given: &Occurrence<'_>) -> Result<(), Fault> {
        self.request.form.partial_manifests = values::boolean(given)?;
        Ok(())
    }

    pub fn minimum_file_size(&mut self, given: &Occurrence<'_>) -> Result<(), Fault> {
        self.request.min_file_bytes = Some(values::bytes(given)?);
        Ok(())
    }

    pub fn maximum_file_size(&mut self, given: &Occurrence<'_>) -> Result<(), Fault> {
        let most = values::bytes(given)?;
        self.request.max_file_bytes = Some(most);
        if most < values::MIN_MAXIMUM_FILE_SIZE {
            return Err(Fault::invalid(format!("at least {} bytes", values::MIN_MAXIMUM_FILE_SIZE)));
        }
        Ok(())
    }

    /// The request, after the checks that concern several parameters.
    ///
    /// # Errors
    /// Everything that is wrong, never an empty list.
    pub fn finish(mut self) -> Result<ExportRequest, Vec<Issue>> {
        self.check_windows();
        self.check_export_type();
        self.check_patients();
        self.check_types();
        self.check_elements();
        self.check_filters();
        if !self.issues.is_empty() {
            return Err(self.issues);
        }
        self.request.elements = self.elements.into_iter().map(|(element, _)| element).collect();
        Ok(self.request)
    }

    fn check_windows(&mut self) {
        if let (Some(since), Some(until)) = (self.request.since, self.request.until)
            && until <= since
        {
            let text = "_until: not after _since, so nothing can match";
            self.issues.push(Issue::error(IssueCode::INVALID, text));
        }
        if let (Some(least), Some(most)) = (self.request.min_file_bytes, self.request.max_file_bytes)
            && most <= least
        {
            let text = "_maximumFileSize: not greater than _minimumFileSize";
            self.issues.push(Issue::error(IssueCode::INVALID, text));
        }
    }

    /// AT-06, PV-03. An attribution list is that of its types, unless others are named.
    fn check_export_type(&mut self) {
        let Some(kind) = self.export_type else { return };
        let names_types = self.seen.contains("_type") || self.seen.contains("resourceTypes");
        if kind == ExportType::Attribution && !names_types {
            self.request.types = payers::attribution_types();
        }
        // What is wrong with a parameter that is there has been said.
        let is_said = kind == ExportType::ProviderDelta && self.seen.contains("_since");
        let missing = payers::missing(kind, &self.request, self.context.any_attribution_types);
        self.issues.extend(missing.filter(|_| !is_said));
    }

    /// A list of which nothing is left must not become the list of all.
    fn check_patients(&mut self) {
        if self.seen.contains("patient") && self.request.patients.is_empty() && self.issues.is_empty() {
            let text = "patient: none of these references names a patient of this server; write Patient/<id>";
            self.issues.push(Issue::error(IssueCode::INVALID, text));
        }
    }

    /// PM-27. Device has a patient in R4 without being in the compartment, and is exported with it
    /// (`decisions.md` 13).
    fn check_types(&mut self) {
        let of_patients =
            |each: &ResourceType| each.in_patient_compartment() || *each == ResourceType::DEVICE;
        let types = &self.request.types;
        let asks = self.context.level == Level::System
            || types.is_empty()
            || types.iter().any(of_patients)
            || self.context.lenient;
        if !asks {
            let text = "_type: none of these types is in the Patient compartment; at this level they come only \
                        together with types that refer to them. Add such a type, or use the system level [base]/$export";
            self.issues.push(Issue::error(IssueCode::NOT_SUPPORTED, text));
        }
    }

    /// Elements must be root elements of what is asked for (PM-30).
    fn check_elements(&mut self) {
        for (element, location) in &self.elements {
            if let Some(text) = element_fault(element, &self.request) {
                let text = format!("_elements: {text}");
                self.issues.push(Issue::error(IssueCode::INVALID, text).at(location.clone()));
            }
        }
    }

    /// A search on a type that is not asked for is a contradiction (PM-58).
    fn check_filters(&mut self) {
        for (resource_type, location) in &self.filtered {
            if !self.request.wants_type(*resource_type) {
                let text = format!("_typeFilter: {resource_type} is not among the types of _type");
                self.issues.push(Issue::error(IssueCode::INVALID, text).at(location.clone()));
            }
        }
    }
}

/// Results by kind.
fn sorted<T>(results: impl Iterator<Item = Result<T, Fault>>) -> (Vec<T>, Vec<Fault>) {
    let (mut values, mut faults) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(fault) => faults.push(fault),
        }
    }
    (values, faults)
}

fn element_fault(element: &Element, request: &ExportRequest) -> Option<String> {
    match element.of {
        Some(of) if !request.wants_type(of) => {
            Some(format!("{element}: {of} is not among the types that are exported"))
        }
        Some(of) if elements::find(of, &element.name).is_some() => None,
        Some(of) => Some(format!("{element}: not a root element of {of}{}", hint(of, &element.name))),
        None => {
            let mut asked = ResourceType::all().filter(|each| request.wants_type(*each));
            let known = asked.any(|each| elements::find(each, &element.name).is_some());
            (!known).then(|| format!("{element}: not a root element of any type that is exported"))
        }
    }
}

/// Clients write a choice of types as it stands in a resource.
fn hint(of: ResourceType, name: &str) -> String {
    let choice = elements::of(of).iter().find(|each| each.choice && name.starts_with(each.name));
    choice.map(|each| format!(" (did you mean {}?)", each.name)).unwrap_or_default()
}
