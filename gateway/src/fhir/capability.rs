//! The capability statement and the operation definitions (rows MD).

use std::collections::BTreeSet;

use flatbed_types::request::Dialect;
use flatbed_types::{Instant, ResourceType};
use serde_json::{Value, json};

use super::BULK;
use crate::TokenEndpoints;
use crate::kickoff::Capabilities;
use crate::kickoff::parameters::{Levels, PARAMETERS, Parameter};

/// What is said of the server.
#[derive(Debug, Clone, Copy)]
pub struct Server<'a> {
    /// The FHIR base URL, without a slash at the end.
    pub base: &'a str,
    /// When what the statement says came into force.
    pub since: Instant,
    /// What can be asked for.
    pub capabilities: Capabilities,
    /// Where tokens come from, if they are needed.
    pub tokens: Option<&'a TokenEndpoints>,
}

/// An export operation at a level in a dialect.
struct Operation {
    /// The id of its definition here.
    id: &'static str,
    /// The id of the guide's definition that it carries out.
    guide: &'static str,
    title: &'static str,
    resource: Option<ResourceType>,
    dialect: Dialect,
}

const OPERATIONS: [Operation; 6] = [
    operation("export", "export", "System level export", None, Dialect::Legacy),
    operation(
        "patient-export",
        "patient-export",
        "Patient level export",
        Some(ResourceType::PATIENT),
        Dialect::Legacy,
    ),
    operation(
        "group-export",
        "group-export",
        "Group level export",
        Some(ResourceType::GROUP),
        Dialect::Legacy,
    ),
    operation("export-v4", "export", "System level export of Bulk Data 4.0", None, Dialect::V4),
    operation(
        "patient-export-v4",
        "patient-export",
        "Patient level export of Bulk Data 4.0",
        Some(ResourceType::PATIENT),
        Dialect::V4,
    ),
    operation(
        "group-export-v4",
        "group-export",
        "Group level export of Bulk Data 4.0",
        Some(ResourceType::GROUP),
        Dialect::V4,
    ),
];

const fn operation(
    id: &'static str,
    guide: &'static str,
    title: &'static str,
    resource: Option<ResourceType>,
    dialect: Dialect,
) -> Operation {
    Operation { id, guide, title, resource, dialect }
}

impl Operation {
    /// The guide's definition. The legacy name stands for every version before 4.0 (VN-01).
    fn canonical(&self) -> String {
        let version = match self.dialect {
            Dialect::Legacy => "",
            Dialect::V4 => "|4.0.0",
        };
        format!("{BULK}/OperationDefinition/{}{version}", self.guide)
    }

    /// What follows the `$`.
    fn code(&self) -> &'static str {
        match self.dialect {
            Dialect::Legacy => "export",
            Dialect::V4 => "export-v4",
        }
    }

    /// The names under which it is declared: clients look for the code, and some for the definition's id (MD-02 to
    /// MD-04).
    fn names(&self) -> BTreeSet<&'static str> {
        match self.dialect {
            Dialect::Legacy => [self.code(), self.guide].into(),
            Dialect::V4 => [self.code()].into(),
        }
    }
}

/// What clients should know of exports that no element of the statement says (MD-11).
const DOCUMENTATION: &str = "\
Bulk Data export. Kick-offs: `$export` by GET or POST answers in the form of Bulk Data 1.0 to 3.0, `$export-v4` by POST \
in that of 4.0, at system, Patient and Group level; the parameters are in the operation definitions. \
**Content**: resources are delivered as they are stored, not limited to any profile; a Patient or Group export holds the \
Patient compartments (with Device.patient) and the resources outside them that these refer to, such as Organization \
and Practitioner, up to three references away. \
**Files**: NDJSON (`application/fhir+ndjson` is the only `outputFormat`), one type a file, split at a size that the \
operator sets or `_minimumFileSize` and `_maximumFileSize` wish for; `count` is the number of resources, without header \
lines of organized output. `deleted` and message files are never organized by patient. \
**Time**: `_since` and `_until` go by `meta.lastUpdated` (where it is missing, by the time of the file that the \
resource came from) and only the current version counts; a `_since` in the future is refused. In a Group export \
`_since` applies to all members alike, also to those who joined later; a patient who left the Group is not \
reported as deleted. Supporting resources come whatever their age. \
**Merged and linked patients**: `Patient.link` is not followed to find members: a Group or `patient` list holds the patients \
that it names and no other, whether they are replaced, merged or deceased. A Patient resource belongs to the compartments of \
the patients that its `link.other` names too, as the compartment definition says, and is exported with them; other resources \
of a linked patient are not. \
**Filters**: `_typeFilter` takes the search parameters listed with each type; supporting resources are filtered like \
all others of their type. `includeAssociatedData` takes LatestProvenanceResources and RelevantProvenanceResources. \
**Handling**: what is not known or supported is refused; with `Prefer: handling=lenient` it is ignored and told in the \
message file. An export that could not read some resources is complete and names them there.";

/// What clients should know of Groups (CH-16).
const GROUPS: &str = "\
Read and search of the Groups that the client may see, in order of their ids, at most 50 a page (`_count`); \
`_summary=true` leaves out the members, and in search results a Group of more than 256 KiB comes so too, tagged SUBSETTED. \
Groups that are created here are groups by criteria (Bulk Cohort API): `type` person, `actual` true exactly with `member`, at \
least one modifierExtension member-filter with an expression in application/x-fhir-query on Patient or a type of the Patient \
compartment, by the search parameters that are listed with that type. A patient is in when every filter finds something in \
its compartment; with `member`, only patients named there or in Groups named there. Members are found anew at each export, \
at its transactionTime, and are not listed in the Group. Only Groups created here can be changed or deleted, by the client \
that made them.";

/// The capability statement (MD-01 to MD-08, MD-11). `Patient` and `Group` are always listed, since their
/// export operations belong there.
pub fn capability_statement(server: Server<'_>, types: &BTreeSet<ResourceType>) -> Value {
    let fixed = [ResourceType::PATIENT, ResourceType::GROUP];
    let listed: BTreeSet<ResourceType> = types.iter().copied().chain(fixed).collect();
    let resources: Vec<Value> =
        listed.into_iter().map(|each| resource(each, types.contains(&each))).collect();
    let mut rest = json!({
        "mode": "server",
        "documentation": DOCUMENTATION,
        "resource": resources,
        "operation": operations(None),
    });
    if let Some(tokens) = server.tokens {
        rest["security"] = security(tokens);
    }
    json!({
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": server.since.to_string(),
        "publisher": "Flatbed",
        "kind": "instance",
        "instantiates": [format!("{BULK}/CapabilityStatement/bulk-data")],
        "software": { "name": "Flatbed", "version": env!("CARGO_PKG_VERSION") },
        "implementation": { "description": "Flatbed: FHIR Bulk Data export", "url": server.base },
        "fhirVersion": "4.0.1",
        "format": ["application/fhir+json", "json"],
        "rest": [rest],
    })
}

/// A type with what `_typeFilter` can search for (MD-05, MD-06), or with the word that it is not exported (MD-07).
fn resource(resource_type: ResourceType, exported: bool) -> Value {
    let mut json = json!({ "type": resource_type.name() });
    if resource_type == ResourceType::GROUP {
        describe_groups(&mut json);
    }
    if exported || resource_type == ResourceType::GROUP {
        let searches = flatbed_search::parameters(resource_type).filter(|each| each.is_supported());
        let searches: Vec<Value> =
            searches.map(|each| json!({ "name": each.code(), "type": each.kind().name() })).collect();
        if !searches.is_empty() {
            json["searchParam"] = Value::Array(searches);
        }
    }
    if !exported {
        json["extension"] = json!([{
            // As the guide's prose and example have it; the artifact's own URL differs.
            "url": format!("{BULK}/Extension/operation-not-supported"),
            "valueCanonical": format!("{BULK}/OperationDefinition/export"),
        }]);
    }
    let operations = operations(Some(resource_type));
    if !operations.is_empty() {
        json["operation"] = Value::Array(operations);
    }
    json
}

/// What can be done with Groups beside exporting them (GR-01, CH-04).
fn describe_groups(json: &mut Value) {
    let codes = ["read", "search-type", "create", "update", "delete"];
    json["interaction"] = codes.into_iter().map(|code| json!({ "code": code })).collect();
    json["versioning"] = json!("versioned-update");
    json["updateCreate"] = json!(false);
    json["documentation"] = json!(GROUPS);
}

fn operations(of: Option<ResourceType>) -> Vec<Value> {
    let here = OPERATIONS.iter().filter(|each| each.resource == of);
    let declared = here.flat_map(|each| {
        let named = |name| json!({ "name": name, "definition": each.canonical() });
        each.names().into_iter().map(named)
    });
    declared.collect()
}

/// Where tokens come from, for clients that do not look for `.well-known/smart-configuration`.
fn security(tokens: &TokenEndpoints) -> Value {
    let uris = [
        ("token", Some(&tokens.token)),
        ("register", tokens.register.as_ref()),
        ("introspect", tokens.introspect.as_ref()),
    ];
    let uris = uris.into_iter().filter_map(|(name, uri)| Some(json!({ "url": name, "valueUri": uri? })));
    json!({
        "extension": [{
            "url": "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris",
            "extension": uris.collect::<Vec<_>>(),
        }],
        "service": [{ "coding": [{
            "system": "http://terminology.hl7.org/CodeSystem/restful-security-service",
            "code": "SMART-on-FHIR",
        }] }],
    })
}

/// The definition with this id as this server serves it (MD-13): derived from the guide's, with the parameters
/// that are supported. `None` for ids that are not served.
pub fn operation_definition(server: Server<'_>, id: &str) -> Option<Value> {
    let operation = OPERATIONS.iter().find(|each| each.id == id)?;
    let parameters: Vec<Value> = PARAMETERS
        .iter()
        .filter(|row| (row.offered)(server.capabilities))
        .filter(|row| row.levels == Levels::All || operation.resource.is_some())
        .map(|row| parameter(row, operation.dialect))
        .collect();
    let mut json = json!({
        "resourceType": "OperationDefinition",
        "id": id,
        "url": format!("{}/OperationDefinition/{id}", server.base),
        "name": operation.title.replace([' ', '.'], ""),
        "title": operation.title,
        "status": "active",
        "kind": "operation",
        "date": server.since.to_string(),
        "description": "Starts an asynchronous export; see the Bulk Data Access implementation guide.",
        "affectsState": false,
        "code": operation.code(),
        "base": operation.canonical(),
        "system": operation.resource.is_none(),
        "type": operation.resource == Some(ResourceType::PATIENT),
        "instance": operation.resource == Some(ResourceType::GROUP),
        "parameter": parameters,
    });
    if let Some(resource) = operation.resource {
        json["resource"] = json!([resource.name()]);
    }
    Some(json)
}

fn parameter(row: &Parameter, dialect: Dialect) -> Value {
    let kind = row.definition_type(dialect);
    let mut json = json!({
        "name": row.name,
        "use": "in",
        "min": 0,
        "max": if row.repeats { "*" } else { "1" },
        "documentation": row.about,
        "type": kind,
    });
    if kind == "Reference" {
        json["targetProfile"] = json!(["http://hl7.org/fhir/StructureDefinition/Patient"]);
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server<'static> {
        Server {
            base: "https://example.org/fhir",
            since: Instant::from_millis(0),
            capabilities: Capabilities::default(),
            tokens: None,
        }
    }

    fn declared(at: &Value) -> Vec<(&str, &str)> {
        let operations = at["operation"].as_array().unwrap();
        operations
            .iter()
            .map(|each| (each["name"].as_str().unwrap(), each["definition"].as_str().unwrap()))
            .collect()
    }

    #[test]
    fn md_01_to_05_md_08_md_09_vn_01_the_statement() {
        let observation: BTreeSet<_> = ["Observation".parse().unwrap()].into();
        let statement = capability_statement(server(), &observation);
        assert_eq!(
            statement["instantiates"][0],
            "http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data"
        );
        assert_eq!(statement["fhirVersion"], "4.0.1");
        assert_eq!(statement["format"][0], "application/fhir+json");
        let rest = &statement["rest"][0];
        const DEFINITION: &str = "http://hl7.org/fhir/uv/bulkdata/OperationDefinition";
        let expected = |guide: &str| {
            let mut names = vec![
                ("export".to_owned(), format!("{DEFINITION}/{guide}")),
                ("export-v4".to_owned(), format!("{DEFINITION}/{guide}|4.0.0")),
            ];
            if guide != "export" {
                names.insert(1, (guide.to_owned(), format!("{DEFINITION}/{guide}")));
            }
            names
        };
        let found = |at: &Value| -> Vec<_> {
            declared(at).into_iter().map(|(name, at)| (name.to_owned(), at.to_owned())).collect()
        };
        assert_eq!(found(rest), expected("export"));
        let resources = rest["resource"].as_array().unwrap();
        let types: Vec<_> = resources.iter().map(|each| each["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["Group", "Observation", "Patient"]);
        assert_eq!(found(&resources[0]), expected("group-export"));
        assert_eq!(found(&resources[2]), expected("patient-export"));
        assert!(resources[1].get("operation").is_none());
        assert!(rest.get("security").is_none());
    }

    #[test]
    fn md_06_md_07_searches_of_what_is_exported_and_a_word_on_what_is_not() {
        let statement = capability_statement(server(), &["Patient".parse().unwrap()].into());
        let resources = &statement["rest"][0]["resource"];
        let (group, patient) = (&resources[0], &resources[1]);
        assert_eq!(
            group["extension"][0]["url"],
            "http://hl7.org/fhir/uv/bulkdata/Extension/operation-not-supported"
        );
        assert!(patient.get("extension").is_none());
        let interactions: Vec<_> = group["interaction"]
            .as_array()
            .unwrap()
            .iter()
            .map(|each| each["code"].as_str().unwrap())
            .collect();
        assert_eq!(interactions, ["read", "search-type", "create", "update", "delete"], "GR-01, CH-04");
        assert!(group["searchParam"].as_array().unwrap().iter().any(|each| each["name"] == "name"), "CH-04");
        let searches = patient["searchParam"].as_array().unwrap();
        assert!(searches.iter().any(|each| each["name"] == "birthdate" && each["type"] == "date"));
        for each in searches {
            let name = each["name"].as_str().unwrap();
            assert!(!name.is_empty() && each["type"].is_string(), "{each}");
        }
    }

    #[test]
    fn tokens_that_are_needed_are_declared() {
        let tokens = TokenEndpoints {
            token: "https://example.org/auth/token".to_owned(),
            register: Some("https://example.org/auth/register".to_owned()),
            introspect: None,
        };
        let statement = capability_statement(Server { tokens: Some(&tokens), ..server() }, &BTreeSet::new());
        let uris = &statement["rest"][0]["security"]["extension"][0];
        assert_eq!(uris["url"], "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris");
        assert_eq!(
            uris["extension"],
            json!([
                { "url": "token", "valueUri": "https://example.org/auth/token" },
                { "url": "register", "valueUri": "https://example.org/auth/register" },
            ])
        );
    }

    #[test]
    fn md_13_the_definitions_that_are_referred_to() {
        for operation in &OPERATIONS {
            let definition = operation_definition(server(), operation.id).unwrap();
            let set: Vec<_> =
                ["system", "type", "instance"].into_iter().filter(|f| definition[*f] == true).collect();
            let flag = match operation.guide {
                "export" => "system",
                "patient-export" => "type",
                _ => "instance",
            };
            assert_eq!(set, [flag], "{}", operation.id);
            let kind = |name: &str| {
                let all = definition["parameter"].as_array().unwrap();
                let found = all.iter().find(|each| each["name"] == name)?;
                Some((found["type"].as_str().unwrap().to_owned(), found["max"].as_str().unwrap().to_owned()))
            };
            let is = |kind: &str, max: &str| Some((kind.to_owned(), max.to_owned()));
            assert_eq!(kind("_since"), is("instant", "1"));
            assert_eq!(kind("_type"), is("string", "*"));
            assert_eq!(kind("_typeFilter"), is("string", "*"));
            assert_eq!(kind("_maximumFileSize"), is("positiveInt", "1"));
            let coding = if operation.dialect == Dialect::V4 { "Coding" } else { "code" };
            assert_eq!(kind("includeAssociatedData"), is(coding, "*"));
            let of_patients = operation.guide != "export";
            assert_eq!(kind("patient").is_some(), of_patients, "PM-38");
            assert_eq!(kind("organizeOutputBy").is_some(), of_patients);
        }
        assert!(operation_definition(server(), "other").is_none());
        let capabilities =
            Capabilities { organized_output: false, associated_data: false, partial_manifests: false };
        let less = operation_definition(Server { capabilities, ..server() }, "patient-export").unwrap();
        for name in ["organizeOutputBy", "includeAssociatedData", "allowPartialManifests"] {
            assert!(!less.to_string().contains(name), "{name}");
        }
    }
}
