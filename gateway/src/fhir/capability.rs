//! The capability statement and the operation definitions (rows MD).

use std::collections::BTreeSet;

use flatbed_types::{Instant, ResourceType};
use serde_json::{Value, json};

const BULK: &str = "http://hl7.org/fhir/uv/bulkdata";

/// What is said of the server.
#[derive(Debug, Clone, Copy)]
pub struct Server<'a> {
    /// The FHIR base URL, without a slash at the end.
    pub base: &'a str,
    /// When what the statement says came into force.
    pub since: Instant,
}

/// The capability statement (MD-01 to MD-05, MD-08). `Patient` and `Group` are always listed, since their
/// export operations belong there.
pub fn capability_statement(server: Server<'_>, types: &BTreeSet<ResourceType>) -> Value {
    let fixed = [ResourceType::PATIENT, ResourceType::GROUP];
    let listed: BTreeSet<ResourceType> = types.iter().copied().chain(fixed).collect();
    let resources: Vec<Value> = listed.into_iter().map(resource).collect();
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
        "rest": [{
            "mode": "server",
            "documentation": "Bulk Data export. Files hold the types listed here.",
            "resource": resources,
            "operation": [operation("export")],
        }],
    })
}

fn resource(resource_type: ResourceType) -> Value {
    let mut json = json!({ "type": resource_type.name() });
    if resource_type == ResourceType::PATIENT {
        json["operation"] = json!([operation("patient-export")]);
    } else if resource_type == ResourceType::GROUP {
        json["operation"] = json!([operation("group-export")]);
    }
    json
}

fn operation(id: &str) -> Value {
    json!({ "name": "export", "definition": format!("{BULK}/OperationDefinition/{id}") })
}

/// The definition with this id (`export`, `patient-export`, `group-export`) as this server serves it (MD-13):
/// derived from the guide's, with the parameters that are supported. `None` for other ids.
pub fn operation_definition(server: Server<'_>, id: &str) -> Option<Value> {
    let (title, level, resource) = match id {
        "export" => ("System level export", "system", None),
        "patient-export" => ("Patient level export", "type", Some("Patient")),
        "group-export" => ("Group level export", "instance", Some("Group")),
        _ => return None,
    };
    let mut parameters = vec![
        parameter("_outputFormat", "string", "1", "application/fhir+ndjson, application/ndjson or ndjson."),
        parameter("_since", "instant", "1", "Only resources changed after this instant."),
        parameter("_until", "instant", "1", "Only resources changed before this instant."),
        parameter(
            "_type",
            "string",
            "*",
            "Only resources of these types; a comma-separated list or repeated.",
        ),
    ];
    if resource.is_some() {
        let about = "Only resources of these patients. In the body of a POST only.";
        parameters.push(parameter("patient", "Reference", "*", about));
    }
    let mut json = json!({
        "resourceType": "OperationDefinition",
        "id": id,
        "url": format!("{}/OperationDefinition/{id}", server.base),
        "name": title.replace(' ', ""),
        "title": title,
        "status": "active",
        "kind": "operation",
        "date": server.since.to_string(),
        "description": "Starts an asynchronous export; see the Bulk Data Access implementation guide.",
        "affectsState": false,
        "code": "export",
        "base": format!("{BULK}/OperationDefinition/{id}"),
        "system": level == "system",
        "type": level == "type",
        "instance": level == "instance",
        "parameter": parameters,
    });
    if let Some(resource) = resource {
        json["resource"] = json!([resource]);
    }
    Some(json)
}

fn parameter(name: &str, kind: &str, max: &str, about: &str) -> Value {
    json!({ "name": name, "use": "in", "min": 0, "max": max, "documentation": about, "type": kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server<'static> {
        Server { base: "https://example.org/fhir", since: Instant::from_millis(0) }
    }

    #[test]
    fn md_01_to_08_the_statement() {
        let observation: BTreeSet<_> = ["Observation".parse().unwrap()].into();
        let statement = capability_statement(server(), &observation);
        assert_eq!(
            statement["instantiates"][0],
            "http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data"
        );
        assert_eq!(statement["fhirVersion"], "4.0.1");
        assert_eq!(statement["format"][0], "application/fhir+json");
        let rest = &statement["rest"][0];
        let definition = |at: &Value| at["operation"][0]["definition"].as_str().unwrap().to_owned();
        assert_eq!(definition(rest), "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/export");
        let resources = rest["resource"].as_array().unwrap();
        let types: Vec<_> = resources.iter().map(|each| each["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["Group", "Observation", "Patient"]);
        assert_eq!(
            definition(&resources[0]),
            "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/group-export"
        );
        assert_eq!(
            definition(&resources[2]),
            "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/patient-export"
        );
        assert!(resources[1].get("operation").is_none());
    }

    #[test]
    fn md_13_the_definitions_that_are_referred_to() {
        for (id, flag) in [("export", "system"), ("patient-export", "type"), ("group-export", "instance")] {
            let definition = operation_definition(server(), id).unwrap();
            let set: Vec<_> =
                ["system", "type", "instance"].into_iter().filter(|f| definition[*f] == true).collect();
            assert_eq!(set, [flag], "{id}");
            let named = |name: &str| {
                definition["parameter"].as_array().unwrap().iter().any(|each| each["name"] == name)
            };
            assert!(named("_since") && named("_type"));
            assert_eq!(named("patient"), id != "export", "PM-38");
        }
        assert!(operation_definition(server(), "other").is_none());
    }
}
