//! The parameters of the export operations, one row each: what reads them, describes them and checks them goes by
//! this table.

use flatbed_types::request::Dialect;

use super::draft::Draft;
use super::given::GivenValue;
use super::values::Fault;
use super::{Capabilities, Operation};

/// One parameter of an export operation.
#[derive(Debug)]
pub(crate) struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// Whether it may be given more than once (PM-16).
    pub repeats: bool,
    /// Of which operations.
    pub operations: Operations,
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
    /// Whether an operation has it.
    pub fn is_of(&self, operation: Operation) -> bool {
        match self.operations {
            Operations::All => true,
            Operations::Exports => operation != Operation::DavinciDataExport,
            Operations::Davinci => operation == Operation::DavinciDataExport,
        }
    }

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

/// Operations that share a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operations {
    /// All.
    All,
    /// `$export` and `$export-v4`.
    Exports,
    /// `$davinci-data-export` (AT-02).
    Davinci,
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
pub(super) fn named(name: &str, operation: Operation) -> Option<&'static Parameter> {
    PARAMETERS.iter().find(|row| row.name == name && row.is_of(operation))
}

/// The row that was probably meant.
pub(super) fn near(name: &str, operation: Operation) -> Option<&'static Parameter> {
    PARAMETERS.iter().find(|row| row.name.eq_ignore_ascii_case(name) && row.is_of(operation))
}

/// A row with the properties that most have.
const USUAL: Parameter = Parameter {
    name: "",
    repeats: false,
    operations: Operations::Exports,
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
pub(crate) const PARAMETERS: [Parameter; 14] = [
    Parameter {
        name: "_outputFormat",
        about: "Format of the files: application/fhir+ndjson, application/ndjson or ndjson, which are one format.",
        read: |draft, given| draft.output_format(given),
        ..USUAL
    },
    Parameter {
        name: "_since",
        operations: Operations::All,
        legacy: &["instant", "dateTime", "string"],
        v4: "instant",
        about: "Only resources changed after this instant, which must not lie in the future; what was deleted after it \
                is listed under deleted. In a Group export it also applies to members who joined later.",
        read: |draft, given| draft.since(given),
        ..USUAL
    },
    Parameter {
        name: "_until",
        operations: Operations::All,
        legacy: &["instant", "dateTime", "string"],
        v4: "instant",
        about: "Only resources last changed before this instant. The current version counts: a resource that was \
                changed later is not in the window.",
        read: |draft, given| draft.until(given),
        ..USUAL
    },
    Parameter {
        name: "_type",
        operations: Operations::All,
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
        operations: Operations::All,
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
        operations: Operations::All,
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
        about: "Bytes that a file has at most before compression, unless it holds a single resource; at least 1000. An \
                export that would have more than 50000 files fails and says so.",
        read: |draft, given| draft.maximum_file_size(given),
        ..USUAL
    },
    Parameter {
        name: "exportType",
        operations: Operations::Davinci,
        legacy: &["canonical", "string", "uri", "code"],
        v4: "canonical",
        about: "hl7.fhir.us.davinci-atr: an attribution list, with at least Group, Patient and Coverage in _type; without \
                _type also RelatedPerson, Practitioner, PractitionerRole, Organization and Location, and nothing else. \
                hl7.fhir.us.davinci-pdex#payertopayer, #provider-download, #provider-snapshot: all that there is of the \
                members. hl7.fhir.us.davinci-pdex#provider-delta: what changed after _since, which must be given.",
        read: |draft, given| draft.export_type(given),
        ..USUAL
    },
    Parameter {
        name: "resourceTypes",
        repeats: true,
        operations: Operations::Davinci,
        about: "Another name of _type, as an example of the guide spells it.",
        read: |draft, given| draft.types(given),
        ..USUAL
    },
];
