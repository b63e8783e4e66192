//! Events of the record as FHIR R4 AuditEvents, after the Basic Audit Log Patterns of IHE (BALP), whose codes they use
//! (<https://hl7.org/fhir/R4/auditevent.html>, <https://profiles.ihe.net/ITI/BALP/>).
//!
//! A client is an `agent` with `requestor`; one that only claims to be somebody has `altId` instead of `who`. What was asked for
//! is `entity.query`, base64 of the text as it was sent.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::audit::{About, Event, Kind, Parameters, Who};

/// The code system of [`Kind`]s, which are the second `subtype` of each event.
pub(crate) const AUDIT_EVENTS: &str = "urn:flatbed:audit-event";

/// Where names of jobs, their files and tokens begin.
const JOB: &str = "urn:flatbed:job";
const TOKEN: &str = "urn:flatbed:token";
const CLIENT: &str = "urn:flatbed:client";

const DICOM: &str = "http://dicom.nema.org/resources/ontology/DCM";
const EVENT_TYPE: &str = "http://terminology.hl7.org/CodeSystem/audit-event-type";
const INTERACTION: &str = "http://hl7.org/fhir/restful-interaction";
const ENTITY_TYPE: &str = "http://terminology.hl7.org/CodeSystem/audit-entity-type";
const ROLE: &str = "http://terminology.hl7.org/CodeSystem/object-role";
const SOURCE_TYPE: &str = "http://terminology.hl7.org/CodeSystem/security-source-type";
const BALP_ENTITY: &str = "https://profiles.ihe.net/ITI/BALP/CodeSystem/BasicAuditEntityType";

/// Who writes a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observer {
    /// The public URL.
    pub site: String,
    /// The name of this process in the record.
    pub name: String,
}

/// A code with what it is called.
type Code = (&'static str, &'static str);

/// What AuditEvent says of a kind.
struct Facts {
    of: (&'static str, Code),
    subtype: Option<(&'static str, Code)>,
    action: &'static str,
}

fn facts(kind: Kind) -> Facts {
    const EXPORT: (&str, Code) = (DICOM, ("110106", "Export"));
    const LOGIN: (&str, Code) = (DICOM, ("110114", "User Authentication"));
    const REST: (&str, Code) = (EVENT_TYPE, ("rest", "RESTful Operation"));
    const ACTIVITY: (&str, Code) = (DICOM, ("110100", "Application Activity"));
    const ALERT: (&str, Code) = (DICOM, ("110113", "Security Alert"));
    const ATTRIBUTES: Option<(&str, Code)> = Some((DICOM, ("110137", "User Security Attributes Changed")));
    let interaction = |code: &'static str| Some((INTERACTION, (code, code)));
    let (of, subtype, action) = match kind {
        Kind::RecordBegins => (ACTIVITY, Some((DICOM, ("110120", "Application Start"))), "E"),
        Kind::RecordEnds => (ACTIVITY, Some((DICOM, ("110121", "Application Stop"))), "E"),
        Kind::Omitted => (ALERT, None, "E"),
        Kind::Token => (LOGIN, Some((DICOM, ("110122", "Login"))), "E"),
        Kind::Introspection => (LOGIN, None, "R"),
        Kind::Revocation => (LOGIN, Some((DICOM, ("110123", "Logout"))), "E"),
        Kind::KickOff => (EXPORT, interaction("operation"), "E"),
        Kind::Status => (REST, interaction("read"), "R"),
        Kind::Stop => (REST, interaction("delete"), "D"),
        Kind::Manifest | Kind::File | Kind::Attachment => (EXPORT, interaction("read"), "R"),
        Kind::GroupRead | Kind::GroupReceipt => (REST, interaction("read"), "R"),
        Kind::GroupSearch => (REST, interaction("search-type"), "E"),
        Kind::GroupCreate => (REST, interaction("create"), "C"),
        Kind::GroupUpdate => (REST, interaction("update"), "U"),
        Kind::GroupDelete => (REST, interaction("delete"), "D"),
        Kind::ClientRegistered => (ALERT, ATTRIBUTES, "C"),
        Kind::ClientChanged => (ALERT, ATTRIBUTES, "U"),
        Kind::ClientRemoved => (ALERT, ATTRIBUTES, "D"),
    };
    Facts { of, subtype, action }
}

/// An event as an AuditEvent.
pub fn audit_event(event: &Event, observer: &Observer) -> Value {
    let facts = facts(event.kind);
    let kind = coding((AUDIT_EVENTS, (event.kind.name(), event.kind.name())));
    let subtype: Vec<Value> = facts.subtype.into_iter().map(coding).chain([kind]).collect();
    let mut json = json!({
        "resourceType": "AuditEvent",
        "id": format!("{:032x}", event.id),
        "type": coding(facts.of),
        "subtype": subtype,
        "action": facts.action,
        "recorded": event.recorded.to_string(),
        "outcome": event.outcome().code(),
        "outcomeDesc": event.outcome_text(),
        "agent": agents(event, observer),
        "source": {
            "site": observer.site,
            "observer": { "display": "Flatbed gateway", "identifier": { "value": observer.name } },
            "type": [coding((SOURCE_TYPE, ("4", "Application Server")))],
        },
    });
    let entities = entities(event);
    if !entities.is_empty() {
        json["entity"] = Value::Array(entities);
    }
    json
}

fn coding((system, (code, display)): (&str, Code)) -> Value {
    json!({ "system": system, "code": code, "display": display })
}

/// The client and the gateway. Data flows from the one that is its source to its destination.
fn agents(event: &Event, observer: &Observer) -> Value {
    let role = |is_source: bool| {
        let code = if is_source { ("110153", "Source Role ID") } else { ("110152", "Destination Role ID") };
        json!({ "coding": [coding((DICOM, code))] })
    };
    let is_sent = matches!(
        event.kind,
        Kind::Token | Kind::Manifest | Kind::File | Kind::Attachment | Kind::GroupRead | Kind::GroupSearch
    );
    let gateway = json!({
        "type": role(is_sent),
        "who": { "display": "Flatbed gateway", "identifier": { "value": observer.name } },
        "requestor": event.kind.is_own(),
    });
    if event.kind.is_own() {
        return json!([gateway]);
    }
    let mut client = json!({ "type": role(!is_sent), "requestor": true });
    match &event.who {
        Who::Nobody => client["name"] = json!("nobody who proved to be anyone"),
        Who::Claimed(id) => {
            client["altId"] = json!(id.as_str());
            client["name"] = json!("a client by its own word, which it did not prove");
        }
        Who::Client { id, token } => {
            client["who"] = json!({ "identifier": { "system": CLIENT, "value": id.as_str() } });
            if let Some(token) = token {
                client["policy"] = json!([token.as_str()]);
            }
        }
    }
    if let Some(peer) = event.peer {
        client["network"] = json!({ "address": peer.to_string(), "type": "2" });
    }
    json!([client, gateway])
}

/// What it was about; what was asked for stands first, where it is not part of the job.
fn entities(event: &Event) -> Vec<Value> {
    let about = &event.about;
    let mut entities = Vec::new();
    if let Some(parameters) = &about.parameters {
        entities.push(asked(parameters));
    }
    if let Some(job) = about.job {
        entities.push(entity(identifier(JOB, job.to_string()), ("20", "Job"), &[]));
    }
    if let Some(report) = report(about) {
        entities.push(report);
    }
    if let Some(binary) = &about.binary {
        let what = json!({ "reference": binary.to_string(), "type": "Binary" });
        entities.push(entity(what, ("4", "Domain Resource"), &delivered(about)));
    }
    if let Some(group) = &about.group {
        let what = json!({ "reference": format!("Group/{group}"), "type": "Group" });
        entities.push(entity(what, ("4", "Domain Resource"), &[]));
    }
    if let Some(client) = &about.client {
        entities.push(entity(identifier(CLIENT, client.to_string()), ("11", "Security User Entity"), &[]));
    }
    if about.token.is_some() || about.scopes.is_some() {
        let what = about.token.as_ref().map_or(Value::Null, |token| identifier(TOKEN, token.to_string()));
        let scopes = about.scopes.iter().map(|scopes| ("scope", scopes.clone()));
        entities.push(entity(what, ("13", "Security Resource"), &scopes.collect::<Vec<_>>()));
    }
    if let Some(omitted) = about.omitted {
        entities.push(entity(Value::Null, ("13", "Security Resource"), &[("refusals", omitted.to_string())]));
    }
    if let Some(request) = &event.request {
        entities.push(json!({
            "what": { "identifier": { "value": request.as_str() } },
            "type": coding((BALP_ENTITY, ("XrequestId", "X-Request-Id"))),
        }));
    }
    entities
}

/// The page or the file, or the manifest of the whole, of a job.
fn report(about: &About) -> Option<Value> {
    let job = about.job?;
    let page = about.page.map_or(String::new(), |page| format!("/manifest/{page}"));
    let file = about.file.map_or(String::new(), |file| format!("/file/{file}"));
    (!page.is_empty() || !file.is_empty())
        .then(|| entity(identifier(JOB, format!("{job}{page}{file}")), ("3", "Report"), &delivered(about)))
}

fn delivered(about: &About) -> Vec<(&'static str, String)> {
    let bytes = about.bytes.map(|bytes| ("bytes", bytes.to_string()));
    bytes.into_iter().chain(about.range.map(|range| ("range", range.to_string()))).collect()
}

fn asked(parameters: &Parameters) -> Value {
    let mut details = vec![("sha256", parameters.digest()), ("bytes", parameters.full_len().to_string())];
    if !parameters.is_whole() {
        details.push(("cut-to", parameters.text().len().to_string()));
    }
    let mut entity = entity(Value::Null, ("24", "Query"), &details);
    entity["query"] = json!(STANDARD.encode(parameters.text()));
    entity
}

fn identifier(system: &str, value: String) -> Value {
    json!({ "identifier": { "system": system, "value": value } })
}

fn entity(what: Value, role: Code, details: &[(&str, String)]) -> Value {
    let mut entity = Map::new();
    if !what.is_null() {
        entity.insert("what".to_owned(), what);
    }
    entity.insert("type".to_owned(), coding((ENTITY_TYPE, ("2", "System Object"))));
    entity.insert("role".to_owned(), coding((ROLE, role)));
    if !details.is_empty() {
        let detail = |(of, value): &(&str, String)| json!({ "type": of, "valueString": value });
        entity.insert("detail".to_owned(), details.iter().map(detail).collect());
    }
    Value::Object(entity)
}

#[cfg(test)]
mod tests;
