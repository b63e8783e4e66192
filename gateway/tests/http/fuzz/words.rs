//! The words of which requests are made: right ones, nearly right ones, odd ones.

use flatbed_search::parameters;
use flatbed_types::ResourceType;

use super::sequence::Sequence;

/// Operations: path and whether it is called by GET.
pub const OPERATIONS: [&str; 9] = [
    "/fhir/$export",
    "/fhir/Patient/$export",
    "/fhir/Group/g1/$export",
    "/fhir/$export-v4",
    "/fhir/Patient/$export-v4",
    "/fhir/Group/g1/$export-v4",
    "/fhir/Group/g1/$davinci-data-export",
    "/fhir/Group/g1/%24davinci-data-export",
    "/fhir/%24export",
];

const NAMES: [&str; 18] = [
    "_outputFormat",
    "_since",
    "_until",
    "_type",
    "_elements",
    "patient",
    "includeAssociatedData",
    "_typeFilter",
    "organizeOutputBy",
    "allowPartialManifests",
    "_minimumFileSize",
    "_maximumFileSize",
    "exportType",
    "resourceTypes",
    "_format",
    "_pretty",
    "_Type",
    "",
];

const TYPES: [&str; 14] = [
    "Patient",
    "Observation",
    "Group",
    "Coverage",
    "ExplanationOfBenefit",
    "Encounter",
    "Device",
    "Practitioner",
    "Bundle",
    "patient",
    "Resource",
    "Parameters",
    "Nothing",
    "",
];

const VALUES: [&str; 36] = [
    "application/fhir+ndjson",
    "ndjson",
    "text/csv",
    "2024-01-01T00:00:00Z",
    "2024-01-01T00:00:00+02:00",
    "2024-02-30T25:61:61Z",
    "9999-12-31T23:59:59.999999999Z",
    "0000-00-00T00:00:00-23:59",
    "2024",
    "Patient.birthDate",
    "birthDate",
    "Observation.value[x]",
    "LatestProvenanceResources",
    "RelevantProvenanceResources",
    "_source",
    "true",
    "false",
    "TRUE",
    "1",
    "0",
    "-1",
    "1000",
    "18446744073709551615",
    "18446744073709551616",
    "1e3",
    "hl7.fhir.us.davinci-atr",
    "hl7.fhir.us.davinci-pdex#payertopayer",
    "hl7.fhir.us.davinci-pdex#provider-delta",
    "Patient/p1",
    "https://example.org/fhir/Patient/p2",
    "Patient/",
    "Organization/x",
    "urn:uuid:1",
    "#p",
    "json",
    "xml",
];

const SEARCH_VALUES: [&str; 22] = [
    "final",
    "true",
    "male",
    "x",
    "http://loinc.org|4548-4",
    "|x",
    "x|",
    "http://x|",
    "ge2020-01-01",
    "ap2020",
    "2020-13",
    "sa2020-01-01T00:00:00.000Z",
    "5.4",
    "lt5.4|http://unitsofmeasure.org|mg",
    "1e1000",
    "-0.000",
    "Patient/p1",
    "p1",
    "http://example.org/fhir/Patient/p1|2",
    "urn:oid:1.2",
    "a\\,b\\$c\\|d\\\\",
    "x$5",
];

const MODIFIERS: [&str; 16] = [
    "",
    "",
    "",
    "",
    "",
    ":missing",
    ":exact",
    ":contains",
    ":not",
    ":text",
    ":in",
    ":above",
    ":below",
    ":identifier",
    ":Patient",
    ":nonsense",
];

impl Sequence {
    /// The name of a parameter.
    pub fn name(&mut self) -> String {
        match self.below(12) {
            0 => self.mark(),
            1 => {
                let near = self.pick(&NAMES);
                self.damaged_text(near)
            }
            _ => self.pick(&NAMES).to_owned(),
        }
    }

    /// A name that is likely to go with the value drawn for it.
    pub fn pair(&mut self) -> (String, String) {
        let name = self.name();
        let value = match (name.as_str(), self.below(4)) {
            ("_type" | "resourceTypes", 1..) => self.types(),
            ("_typeFilter", 1..) => self.filter(),
            _ => self.value(),
        };
        (name, value)
    }

    fn types(&mut self) -> String {
        let count = if self.one_in(20) { 300 } else { 1 + self.below(4) };
        let types: Vec<String> = (0..count).map(|_| self.pick(&TYPES).to_owned()).collect();
        types.join(self.pick(&[",", ",", ", ", ",,"]))
    }

    /// A value of anything.
    pub fn value(&mut self) -> String {
        match self.below(10) {
            0 => self.mark(),
            1 => self.types(),
            2 => self.filter(),
            3 => {
                let near = self.pick(&VALUES);
                self.damaged_text(near)
            }
            _ => self.pick(&VALUES).to_owned(),
        }
    }

    /// A search with a real parameter of its type, or nearly.
    pub fn filter(&mut self) -> String {
        let kind = self.pick(&TYPES);
        let mut codes: Vec<&str> = kind
            .parse::<ResourceType>()
            .map(|kind| parameters(kind).map(|each| each.code()).collect())
            .unwrap_or_default();
        codes.extend([
            "_id",
            "_lastUpdated",
            "_sort",
            "_has:Observation:subject:code",
            "subject:Patient.name",
        ]);
        let mut text = format!("{kind}?");
        for clause in 0..self.below(4) {
            let values: Vec<String> = (0..1 + self.below(3))
                .map(|_| if self.one_in(30) { self.mark() } else { self.pick(&SEARCH_VALUES).to_owned() })
                .collect();
            let joint = if clause == 0 { "" } else { "&" };
            let (code, modifier) = (self.pick(&codes), self.pick(&MODIFIERS));
            text += &format!("{joint}{code}{modifier}={}", values.join(","));
        }
        match self.below(12) {
            0 => text.replace('?', "%3F").replace('=', "%3D"),
            1 => format!("{text},{}?_id=1", self.pick(&TYPES)),
            2 | 3 => self.damaged_text(&text),
            _ => text,
        }
    }
}
