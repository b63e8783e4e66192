//! The parameters of the export operations, one row each: what reads them, describes them and checks them goes by
//! this table.

use flatbed_types::request::Dialect;

use super::Capabilities;
use super::draft::Draft;
use super::given::GivenValue;
use super::values::Fault;

/// One parameter of an export operation.
#[derive(Debug)]
pub(crate) struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// Whether it may be given more than once (PM-16).
    pub repeats: bool,
    /// At which levels.
    pub levels: Levels,
    /// Whether a GET may carry it (PM-39).
    pub by_get: bool,
    /// FHIR types of its value in a legacy `Parameters`: the first is that of the definition, the others lose nothing
    /// on the way (PM-69).
    pub legacy: &'static [&'static str],
    /// FHIR type of its value in the 4.0 dialect.
    pub v4: &'static str,
    /// Whether `handling=lenient` goes on without it where it asks for something that this server does not do. Not so
    /// where that would deliver more than was asked for (KO-23, KO-26).
    pub skippable: bool,
    /// Whether a server with these capabilities has it.
    pub offered: fn(Capabilities) -> bool,
    /// What it does, for the definitions.
    pub about: &'static str,
    /// Reads one occurrence.
    pub(super) read: fn(&mut Draft<'_>, &Occurrence<'_>) -> Result<(), Fault>,
}

impl Parameter {
    /// The FHIR type of its value in the operation's definition.
    pub fn definition_type(&self, dialect: Dialect) -> &'static str {
        match dialect {
            Dialect::Legacy => self.legacy.first().copied().unwrap_or_default(),
            Dialect::V4 => self.v4,
        }
    }
}

/// Levels of the operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Levels {
    /// All.
    All,
    /// Patient and Group.
    OfPatients,
}

/// One occurrence of a parameter in a request.
#[derive(Debug)]
pub(super) struct Occurrence<'a> {
    /// FHIR types that its value may have, the right one first.
    pub types: &'a [&'a str],
    /// Its value.
    pub value: &'a GivenValue<'a>,
    /// Where it stands.
    pub location: &'a str,
}

/// The row of a name.
pub(crate) fn named(name: &str) -> Option<&'static Parameter> {
    PARAMETERS.iter().find(|row| row.name == name)
}

/// The row that was probably meant.
pub(super) fn near(name: &str) -> Option<&'static Parameter> {
    PARAMETERS.iter().find(|row| row.name.eq_ignore_ascii_case(name))
}

/// A row with the properties that most have.
const USUAL: Parameter = Parameter {
    name: "",
    repeats: false,
    levels: Levels::All,
    by_get: true,
    legacy: &["string", "code"],
    v4: "string",
    skippable: false,
    offered: |_| true,
    about: "",
    read: |_, _| Ok(()),
};

/// All parameters, in the order of the guide.
pub(crate) const PARAMETERS: [Parameter; 12] = [
    Parameter {
        name: "_outputFormat",
        about: "Format of the files: application/fhir+ndjson, application/ndjson or ndjson, which are one format.",
        read: |draft, given| draft.output_format(given),
        ..USUAL
    },
    Parameter {
        name: "_since",
        legacy: &["instant", "dateTime", "string"],
        v4: "instant",
        about: "Only resources changed after this instant, which must not lie in the future; what was deleted after it \
                is listed under deleted. In a Group export it also applies to members who joined later.",
        read: |draft, given| draft.since(given),
        ..USUAL
    },
    Parameter {
        name: "_until",
        legacy: &["instant", "dateTime", "string"],
        v4: "instant",
        about: "Only resources last changed before this instant. The current version counts: a resource that was \
                changed later is not in the window.",
        read: |draft, given| draft.until(given),
        ..USUAL
    },
    Parameter {
        name: "_type",
        repeats: true,
        about: "Only resources of this type. Repeated for several; `$export` also takes a list with commas.",
        read: |draft, given| draft.types(given),
        ..USUAL
    },
    Parameter {
        name: "_elements",
        repeats: true,
        about: "Only this root element and those that are mandatory or modify the meaning: an element of one type \
                (Patient.birthDate) or of every type that has it (id). Reduced resources are tagged SUBSETTED. \
                Repeated for several; `$export` also takes a list with commas.",
        read: |draft, given| draft.elements(given),
        ..USUAL
    },
    Parameter {
        name: "patient",
        repeats: true,
        levels: Levels::OfPatients,
        by_get: false,
        legacy: &["Reference"],
        v4: "Reference",
        about: "Only resources of these patients, Patient/<id>. In the body of a POST only.",
        read: |draft, given| draft.patient(given),
        ..USUAL
    },
    Parameter {
        name: "includeAssociatedData",
        repeats: true,
        legacy: &["code", "string", "Coding"],
        v4: "Coding",
        skippable: true,
        offered: |capabilities| capabilities.associated_data,
        about: "LatestProvenanceResources or RelevantProvenanceResources: the newest or every Provenance of the \
                resources exported. Of both, the second counts.",
        read: |draft, given| draft.associated(given),
        ..USUAL
    },
    Parameter {
        name: "_typeFilter",
        repeats: true,
        legacy: &["string", "uri"],
        skippable: true,
        about: "A search on one type, like Observation?status=final: of that type only what matches it or another \
                _typeFilter on the same type. The search parameters of each type are listed in the capability \
                statement.",
        read: |draft, given| draft.type_filter(given),
        ..USUAL
    },
    Parameter {
        name: "organizeOutputBy",
        levels: Levels::OfPatients,
        skippable: true,
        offered: |capabilities| capabilities.organized_output,
        about: "Patient: files hold blocks, each a Parameters resource that names a patient, the patient and the \
                patient's resources.",
        read: |draft, given| draft.organize_output_by(given),
        ..USUAL
    },
    Parameter {
        name: "allowPartialManifests",
        legacy: &["boolean", "string", "code"],
        v4: "boolean",
        skippable: true,
        offered: |capabilities| capabilities.partial_manifests,
        about: "true: the manifest may come in pages, linked by next.",
        read: |draft, given| draft.partial_manifests(given),
        ..USUAL
    },
    Parameter {
        name: "_minimumFileSize",
        legacy: &["positiveInt", "integer", "unsignedInt", "string"],
        v4: "positiveInt",
        about: "Bytes that a file has at least before compression, where a type has so many.",
        read: |draft, given| draft.minimum_file_size(given),
        ..USUAL
    },
    Parameter {
        name: "_maximumFileSize",
        legacy: &["positiveInt", "integer", "unsignedInt", "string"],
        v4: "positiveInt",
        about: "Bytes that a file has at most before compression, unless it holds a single resource.",
        read: |draft, given| draft.maximum_file_size(given),
        ..USUAL
    },
];
