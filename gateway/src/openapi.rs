//! The OpenAPI 3.1 description of everything that the gateway serves, for people and for generators of clients.
//!
//! Invariant: each route is described and nothing else is, which tests of `routes` check. What a parameter means is
//! said by the table of `kickoff`, as in the operation definitions.

use flatbed_types::request::Dialect;
use serde_json::{Map, Value, json};

use crate::kickoff::parameters::{Levels, PARAMETERS, Parameter};
use crate::kickoff::{Capabilities, Operation};

/// The description, for a server at this public URL.
pub(crate) fn description(public_url: &str, capabilities: Capabilities) -> Value {
    let mut paths = Map::new();
    let mut add = |path: &str, item: Value| paths.insert(path.to_owned(), item);
    add("/", json!({ "get": read("A page for people", "text/html") }));
    add("/fhir/metadata", json!({ "get": read("The capability statement", "application/fhir+json") }));
    add("/fhir/openapi.json", json!({ "get": read("This description", "application/json") }));
    add(
        "/fhir/OperationDefinition/{id}",
        json!({
            "parameters": [in_path("id", "The id of a definition, like group-export")],
            "get": read("The definition of an export operation", "application/fhir+json"),
        }),
    );
    for (place, levels) in
        [("", Levels::All), ("Patient/", Levels::OfPatients), ("Group/{id}/", Levels::OfPatients)]
    {
        for operation in [Operation::Export, Operation::ExportV4] {
            let path = format!("/fhir/{place}${}", operation.code());
            add(&path, export(place, levels, operation, capabilities));
        }
    }
    add("/fhir/Group", groups());
    add("/fhir/Group/_search", json!({ "post": search("Search for Groups by a form") }));
    add("/fhir/Group/{id}", group());
    add("/fhir/async/{request}", receipt());
    let (place, operation) = ("Group/{id}/", Operation::DavinciDataExport);
    let path = format!("/fhir/{place}${}", operation.code());
    add(&path, export(place, Levels::OfPatients, operation, capabilities));
    add("/fhir/export/{job}", status());
    add("/fhir/export/{job}/manifest/{page}", page());
    add(
        "/fhir/export/{job}/manifest/{page}/file/{file}",
        file(&[in_path("job", "The job"), in_path("page", "The page")]),
    );
    add("/fhir/export/{job}/file/{file}", file(&[in_path("job", "The job")]));
    let binary = [in_path("job", "The job"), in_path("id", "The id of the Binary")];
    add("/fhir/export/{job}/attachment/Binary/{id}/{mac}", attachment(&binary));
    add(
        "/fhir/export/{job}/attachment/Binary/{id}/_history/{version}/{mac}",
        attachment(&[&binary[..], &[in_path("version", "The version of the Binary")]].concat()),
    );
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Flatbed: FHIR Bulk Data export",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Exports of FHIR R4 resources as NDJSON, by HL7 FHIR Bulk Data Access 1.0 to 4.0. Every \
                            URL of a job, a page or a file is taken from an answer, never made up. HEAD is answered \
                            wherever GET is, but for kick-offs.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "externalDocs": { "url": "https://hl7.org/fhir/uv/bulkdata/" },
        "servers": [{ "url": public_url }],
        "paths": paths,
        "components": components(),
    })
}

fn read(about: &str, media_type: &str) -> Value {
    json!({
        "summary": about,
        "responses": {
            "200": { "description": about, "content": { media_type: {} } },
            "default": { "$ref": "#/components/responses/Error" },
        },
    })
}

/// Adds what is served where tokens are needed only, and where they are made.
pub(crate) fn add_tokens(description: &mut Value, makes_tokens: bool) {
    let discovery = "Where clients get tokens (SMART Backend Services)";
    let token = ["grant_type", "scope", "client_assertion_type", "client_assertion"];
    let paths = &mut description["paths"];
    paths["/fhir/.well-known/smart-configuration"] = json!({ "get": read(discovery, "application/json") });
    if makes_tokens {
        paths["/auth/token"] = oauth("Get an access token", &token);
    }
    paths["/auth/introspect"] =
        oauth("What a token of one's own grants, and whether it still does", &["token"]);
    paths["/auth/revoke"] = oauth("Revoke a token", &["token"]);
}

/// Adds what is served where clients may register themselves only.
pub(crate) fn add_registration(description: &mut Value) {
    let metadata = json!({
        "type": "object",
        "properties": {
            "client_name": { "type": "string" },
            "jwks": { "type": "object" },
            "jwks_uri": { "type": "string", "format": "uri" },
            "scope": { "type": "string" },
            "contacts": { "type": "array", "items": { "type": "string" } },
            "software_id": { "type": "string" },
            "software_version": { "type": "string" },
        },
        "required": ["client_name"],
    });
    let about = |about: &str, status: &str| {
        json!({
            "summary": about,
            "responses": {
                status: { "description": "Done", "content": { "application/json": {} } },
                "default": { "description": "An error of OAuth 2.0", "content": { "application/json": {} } },
            },
        })
    };
    let sent = |text: &str, status: &str| {
        let mut operation = about(text, status);
        let body = json!({ "required": true, "content": { "application/json": { "schema": metadata } } });
        operation["requestBody"] = body;
        operation
    };
    let paths = &mut description["paths"];
    paths["/auth/register"] =
        json!({ "post": sent("Register a client by an initial access token (RFC 7591)", "201") });
    paths["/auth/register/{client}"] = json!({
        "parameters": [in_path("client", "The client, with its registration access token (RFC 7592)")],
        "get": about("What is registered of a client", "200"),
        "put": sent("Change all that is registered of a client", "200"),
        "delete": about("Remove a client", "204"),
    });
}

/// An endpoint of OAuth, whose form needs these parameters.
fn oauth(about: &str, needed: &[&str]) -> Value {
    let fields: Map<String, Value> =
        needed.iter().map(|name| ((*name).to_owned(), json!({ "type": "string" }))).collect();
    let form = json!({ "type": "object", "properties": fields, "required": needed });
    json!({ "post": {
        "summary": about,
        "requestBody": { "required": true, "content": { "application/x-www-form-urlencoded": { "schema": form } } },
        "responses": {
            "200": { "description": "Done", "content": { "application/json": {} } },
            "default": { "description": "An error of OAuth 2.0", "content": { "application/json": {} } },
        },
    } })
}

fn in_path(name: &str, about: &str) -> Value {
    json!({ "name": name, "in": "path", "required": true, "description": about, "schema": { "type": "string" } })
}

/// Kick-offs of one level by one operation.
fn export(place: &str, levels: Levels, operation: Operation, capabilities: Capabilities) -> Value {
    let offered = |row: &&Parameter| {
        let at_level = row.levels == Levels::All || levels == Levels::OfPatients;
        (row.offered)(capabilities) && at_level && row.is_of(operation)
    };
    let rows: Vec<&Parameter> = PARAMETERS.iter().filter(offered).collect();
    let mut parameters = vec![
        header("Accept", "application/fhir+json"),
        header("Prefer", "respond-async, and handling=lenient and separate-export-status where wanted"),
        header("Idempotency-Key", "Names the job: the same key of the same client starts no second one"),
    ];
    if place.contains("{id}") {
        parameters.push(in_path("id", "The id of a Group"));
    }
    let names: Vec<&str> = rows.iter().map(|row| row.name).collect();
    let mut post = kick_off("Start an export");
    post["requestBody"] = json!({
        "description": format!("A Parameters resource with any of {}; none for everything", names.join(", ")),
        "content": { "application/fhir+json": { "schema": { "$ref": "#/components/schemas/Parameters" } } },
    });
    let mut item = json!({ "parameters": parameters, "post": post });
    if operation.dialect() == Dialect::Legacy {
        let mut get = kick_off("Start an export, in the form of Bulk Data 1.0 to 3.0");
        get["parameters"] = rows.iter().filter(|row| row.by_get).map(|row| in_query(row)).collect();
        item["get"] = get;
    }
    item
}

fn kick_off(about: &str) -> Value {
    json!({
        "summary": about,
        "responses": {
            "202": {
                "description": "Started, or found by its Idempotency-Key; the outcome tells what was ignored",
                "headers": {
                    "Content-Location": { "description": "The status URL", "schema": { "type": "string", "format": "uri" } },
                    "Preference-Applied": { "schema": { "type": "string" } },
                },
                "content": { "application/fhir+json": { "schema": { "$ref": "#/components/schemas/OperationOutcome" } } },
            },
            "default": { "$ref": "#/components/responses/Error" },
        },
    })
}

fn header(name: &str, about: &str) -> Value {
    json!({ "name": name, "in": "header", "description": about, "schema": { "type": "string" } })
}

fn in_query(row: &Parameter) -> Value {
    let one = match row.definition_type(Dialect::Legacy) {
        "instant" => json!({ "type": "string", "format": "date-time" }),
        "boolean" => json!({ "type": "boolean" }),
        "positiveInt" => json!({ "type": "integer", "minimum": 1 }),
        _ => json!({ "type": "string" }),
    };
    let schema = if row.repeats { json!({ "type": "array", "items": one }) } else { one };
    json!({ "name": row.name, "in": "query", "description": row.about, "schema": schema })
}

fn manifests() -> Value {
    json!({ "oneOf": [
        { "$ref": "#/components/schemas/Manifest" },
        { "$ref": "#/components/schemas/Manifest4" },
    ] })
}

fn status() -> Value {
    json!({
        "parameters": [in_path("job", "The job")],
        "get": {
            "summary": "How far a job is, and its manifest",
            "responses": {
                "200": {
                    "description": "Complete. With Prefer: separate-export-status at the kick-off every poll that \
                                    succeeds answers 200, and X-Export-Status tells how the job stands",
                    "headers": {
                        "Expires": { "description": "When the files go away", "schema": { "type": "string" } },
                        "X-Export-Status": { "schema": { "type": "string" } },
                    },
                    "content": { "application/json": { "schema": manifests() } },
                },
                "202": {
                    "description": "Running; with allowPartialManifests the first page of the manifest once there is one",
                    "headers": {
                        "X-Progress": { "schema": { "type": "string", "maxLength": 99 } },
                        "Retry-After": { "description": "Seconds", "schema": { "type": "integer" } },
                    },
                },
                "default": { "$ref": "#/components/responses/Error" },
            },
        },
        "delete": {
            "summary": "Stop a job, or say that its files are no longer needed",
            "responses": {
                "202": { "description": "Stopped" },
                "default": { "$ref": "#/components/responses/Error" },
            },
        },
    })
}

fn page() -> Value {
    json!({
        "parameters": [in_path("job", "The job"), in_path("page", "The number of the page, from 2 on")],
        "get": {
            "summary": "A page of a manifest that comes in pages (allowPartialManifests)",
            "responses": {
                "200": { "description": "The page", "content": { "application/json": { "schema": manifests() } } },
                "202": { "description": "Not there yet; ask again after Retry-After" },
                "default": { "$ref": "#/components/responses/Error" },
            },
        },
    })
}

fn file(above: &[Value]) -> Value {
    let whole = json!({
        "description": "The file, or the range asked for with 206",
        "headers": { "ETag": { "schema": { "type": "string" } } },
        "content": { "application/fhir+ndjson": {} },
    });
    let named = [above, &[in_path("file", "The file")]].concat();
    json!({
        "parameters": named,
        "get": {
            "summary": "A file of a job",
            "parameters": [
                header("Accept-Encoding", "gzip or zstd gets the file as it rests, where it rests so"),
                header("Range", "One range of bytes"),
            ],
            "responses": {
                "200": whole,
                "206": whole,
                "304": { "description": "As If-None-Match names it" },
                "307": {
                    "description": "The file is at Location, without a token, for at most five minutes",
                    "headers": { "Location": { "schema": { "type": "string", "format": "uri" } } },
                },
                "default": { "$ref": "#/components/responses/Error" },
            },
        },
    })
}

fn attachment(above: &[Value]) -> Value {
    let mac =
        "What makes the URL one that the job gave out: taken from Attachment.url in a file, never made up";
    let named = [above, &[in_path("mac", mac)]].concat();
    json!({
        "parameters": named,
        "get": {
            "summary": "The content of an attachment, with the credentials of the files",
            "parameters": [
                header("Accept", "application/fhir+json gets the Binary as a resource, all else its content"),
            ],
            "responses": {
                "200": {
                    "description": "The content in the type of the Binary, as the source has it now",
                    "content": { "*/*": {}, "application/fhir+json": { "schema": resource("Binary") } },
                },
                "default": { "$ref": "#/components/responses/Error" },
            },
        },
    })
}

fn search(about: &str) -> Value {
    json!({
        "summary": about,
        "responses": {
            "200": {
                "description": "A Bundle of type searchset, in order of ids; its link next leads on",
                "content": { "application/fhir+json": { "schema": { "$ref": "#/components/schemas/Bundle" } } },
            },
            "default": { "$ref": "#/components/responses/Error" },
        },
    })
}

/// A change of a Group, synchronous or not.
fn change(about: &str, done: &str) -> Value {
    let group = json!({ "application/fhir+json": { "schema": { "$ref": "#/components/schemas/Group" } } });
    json!({
        "summary": about,
        "parameters": [header("Prefer", "respond-async for an answer by a status URL")],
        "requestBody": { "required": true, "content": group },
        "responses": {
            done: { "description": "Done", "content": group },
            "202": {
                "description": "With Prefer: respond-async. What became of it is told at Content-Location",
                "headers": {
                    "Content-Location": { "description": "The status URL", "schema": { "type": "string", "format": "uri" } },
                },
            },
            "default": { "$ref": "#/components/responses/Error" },
        },
    })
}

fn groups() -> Value {
    let about = |name: &str, about: &str| json!({ "name": name, "in": "query", "description": about, "schema": { "type": "string" } });
    let parameters = flatbed_search::parameters(flatbed_types::ResourceType::GROUP)
        .filter(|each| each.is_supported())
        .map(|each| about(each.code(), &format!("A search of kind {}", each.kind())));
    let results = [
        about("_count", "Groups on a page: at most 50"),
        about("_summary", "true: without members; count: only how many"),
        about("_elements", "Root elements to keep, parted by commas"),
    ];
    let mut get = search("Search for Groups");
    get["parameters"] = parameters.chain(results).collect();
    json!({ "get": get, "post": change("Make a Group by criteria (Bulk Cohort API)", "201") })
}

fn group() -> Value {
    let mut put = change("Change a Group by criteria", "200");
    let condition = header("If-Match", "The version that is meant, like W/\"1\"");
    if let Some(parameters) = put["parameters"].as_array_mut() {
        parameters.push(condition.clone());
    }
    json!({
        "parameters": [in_path("id", "The id of a Group")],
        "get": read("A Group", "application/fhir+json"),
        "put": put,
        "delete": {
            "summary": "Delete a Group by criteria",
            "parameters": [condition],
            "responses": {
                "204": { "description": "Deleted" },
                "default": { "$ref": "#/components/responses/Error" },
            },
        },
    })
}

fn receipt() -> Value {
    json!({
        "parameters": [in_path("request", "The request")],
        "get": {
            "summary": "What became of a request that was answered asynchronously",
            "responses": {
                "200": {
                    "description": "A Bundle of type batch-response with one entry",
                    "content": { "application/fhir+json": { "schema": { "$ref": "#/components/schemas/Bundle" } } },
                },
                "default": { "$ref": "#/components/responses/Error" },
            },
        },
        "delete": {
            "summary": "Forget what became of it",
            "responses": {
                "202": { "description": "Forgotten" },
                "default": { "$ref": "#/components/responses/Error" },
            },
        },
    })
}

fn components() -> Value {
    let outcome = json!({ "$ref": "#/components/schemas/OperationOutcome" });
    json!({
        "responses": {
            "Error": {
                "description": "What was wrong and what to do. 429 and 503 carry Retry-After",
                "content": { "application/fhir+json": { "schema": outcome } },
            },
        },
        "schemas": {
            "Parameters": resource("Parameters"),
            "Group": resource("Group"),
            "Bundle": resource("Bundle"),
            "OperationOutcome": resource("OperationOutcome"),
            "Manifest": manifest_schema(Dialect::Legacy),
            "Manifest4": manifest_schema(Dialect::V4),
        },
    })
}

fn resource(name: &str) -> Value {
    json!({
        "type": "object",
        "externalDocs": { "url": format!("http://hl7.org/fhir/R4/{}.html", name.to_ascii_lowercase()) },
        "properties": { "resourceType": { "const": name } },
        "required": ["resourceType"],
    })
}

fn manifest_schema(dialect: Dialect) -> Value {
    let mut item = json!({
        "type": { "type": "string" },
        "url": { "type": "string", "format": "uri" },
        "count": { "type": "integer" },
    });
    let mut properties = json!({
        "transactionTime": { "type": "string", "format": "date-time" },
        "requiresAccessToken": { "type": "boolean" },
        "outputOrganizedBy": { "type": "string" },
        "link": { "type": "array", "items": {
            "type": "object",
            "properties": { "relation": { "const": "next" }, "url": { "type": "string", "format": "uri" } },
        } },
    });
    let (messages, required) = match dialect {
        Dialect::Legacy => {
            properties["request"] = json!({ "type": "string", "format": "uri" });
            ("error", json!(["transactionTime", "request", "requiresAccessToken", "output", "error"]))
        }
        Dialect::V4 => {
            item["fileSize"] = json!({ "type": "integer" });
            properties["manifestType"] = json!({ "type": "string", "format": "uri" });
            properties["outputFormat"] = json!({ "const": "application/fhir+ndjson" });
            ("outcome", json!(["transactionTime", "requiresAccessToken"]))
        }
    };
    for list in ["output", "deleted", messages] {
        properties[list] = json!({ "type": "array", "items": { "type": "object", "properties": item, "required": ["url"] } });
    }
    json!({ "type": "object", "properties": properties, "required": required })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_lead_somewhere_and_paths_name_their_parameters() {
        let description = description("https://example.org", Capabilities::default());
        let text = description.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(description.pointer(pointer).is_some(), "{pointer}");
        }
        for (path, item) in description["paths"].as_object().unwrap() {
            let named = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
            let listed = item["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
            let listed = listed.iter().filter(|each| each["in"] == "path");
            assert!(named.eq(listed.map(|each| each["name"].as_str().unwrap())), "{path}");
        }
    }

    #[test]
    fn parameters_are_those_of_the_level_and_of_the_server() {
        let none = Capabilities { organized_output: false, associated_data: false, partial_manifests: false };
        let names = |capabilities, path: &str| -> Vec<String> {
            let description = description("https://example.org", capabilities);
            let listed = description["paths"][path]["get"]["parameters"].as_array().unwrap().clone();
            listed.iter().map(|each| each["name"].as_str().unwrap().to_owned()).collect()
        };
        let all = names(Capabilities::default(), "/fhir/Patient/$export");
        assert!(
            all.iter().any(|name| name == "organizeOutputBy") && !all.iter().any(|name| name == "patient")
        );
        let fewer = names(none, "/fhir/Patient/$export");
        assert_eq!(all.len(), fewer.len() + 3);
        assert!(
            !names(Capabilities::default(), "/fhir/$export").iter().any(|name| name == "organizeOutputBy")
        );
    }
}
