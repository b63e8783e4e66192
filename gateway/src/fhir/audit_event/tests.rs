//! Events as R4 asks for them, of whatever they are made.

use bytes::Bytes;
use flatbed_types::{ClientId, FhirId, Instant, JobId, Nonce};
use proptest::prelude::*;

use super::*;
use crate::audit::log::max_line;
use crate::audit::{ByteRange, Label, chain::Chain};

fn observer() -> Observer {
    Observer { site: "https://example.org".to_owned(), name: "gw-00000000000000aa".to_owned() }
}

fn event(kind: Kind) -> Event {
    Event {
        id: 7,
        recorded: Instant::from_millis(0),
        kind,
        who: Who::Nobody,
        peer: None,
        request: None,
        status: Some(200),
        about: About::default(),
    }
}

/// What R4 makes of AuditEvent, as far as it binds us: required elements, required codes, invariant sev-1.
fn check(json: &Value) {
    assert_eq!(json["resourceType"], "AuditEvent");
    let known = [
        "resourceType",
        "id",
        "type",
        "subtype",
        "action",
        "recorded",
        "outcome",
        "outcomeDesc",
        "agent",
        "source",
        "entity",
    ];
    let members = json.as_object().unwrap();
    assert!(members.keys().all(|name| known.contains(&name.as_str())), "{json}");
    let is_coding = |json: &Value| json["system"].is_string() && json["code"].is_string();
    let id = json["id"].as_str().unwrap();
    assert!(id.parse::<FhirId>().is_ok() && is_coding(&json["type"]));
    assert!(json["subtype"].as_array().unwrap().iter().all(is_coding));
    assert!(["C", "R", "U", "D", "E"].contains(&json["action"].as_str().unwrap()));
    assert!(json["recorded"].as_str().unwrap().parse::<Instant>().is_ok());
    assert!(["0", "4", "8", "12"].contains(&json["outcome"].as_str().unwrap()));
    let agents = json["agent"].as_array().unwrap();
    assert!(!agents.is_empty() && agents.iter().all(|agent| agent["requestor"].is_boolean()));
    assert_eq!(agents.iter().filter(|agent| agent["requestor"] == true).count(), 1);
    assert!(json["source"]["observer"].is_object());
    for entity in json["entity"].as_array().into_iter().flatten() {
        assert!(is_coding(&entity["type"]));
        assert!(entity["name"].is_null() || entity["query"].is_null(), "sev-1");
        for detail in entity["detail"].as_array().into_iter().flatten() {
            assert!(detail["type"].is_string() && detail["valueString"].is_string());
        }
    }
    fn nothing_is_empty(json: &Value) {
        match json {
            Value::Object(members) => {
                assert!(!members.is_empty() && members.values().all(|member| !member.is_null()));
                members.values().for_each(nothing_is_empty);
            }
            Value::Array(items) => {
                assert!(!items.is_empty());
                items.iter().for_each(nothing_is_empty);
            }
            Value::String(text) => assert!(!text.is_empty()),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    nothing_is_empty(json);
}

#[test]
fn every_kind_is_an_audit_event() {
    for kind in Kind::ALL {
        for (status, outcome) in
            [(Some(200), "0"), (Some(307), "0"), (Some(403), "4"), (Some(503), "8"), (None, "8")]
        {
            let event = Event { status, ..event(kind) };
            let json = audit_event(&event, &observer());
            check(&json);
            let own = kind.is_own();
            assert_eq!(json["outcome"], if own { "0" } else { outcome }, "{kind:?} {status:?}");
            assert_eq!(json["agent"].as_array().unwrap().len(), if own { 1 } else { 2 });
            let last = json["subtype"].as_array().unwrap().last().unwrap();
            assert_eq!(
                (last["system"].as_str(), last["code"].as_str()),
                (Some(AUDIT_EVENTS), Some(kind.name()))
            );
        }
    }
}

#[test]
fn a_download_says_who_took_what_of_which_file() {
    let mut event = event(Kind::File);
    event.who = Who::Client { id: "aco-17".parse().unwrap(), token: Label::new("t1") };
    event.peer = Some("2001:db8::1".parse().unwrap());
    event.request = Label::new("r1");
    event.status = Some(206);
    event.about.job = Some(JobId(5));
    event.about.file = Some(Nonce(0xa0));
    event.about.bytes = Some(10);
    event.about.range = ByteRange::read("bytes 5-14/100");
    let json = audit_event(&event, &observer());
    check(&json);
    assert_eq!((&json["type"]["code"], &json["action"]), (&json!("110106"), &json!("R")));
    let client = &json["agent"][0];
    assert_eq!(client["who"]["identifier"]["value"], "aco-17");
    assert_eq!(client["policy"], json!(["t1"]));
    assert_eq!(client["network"], json!({ "address": "2001:db8::1", "type": "2" }));
    assert_eq!(json["entity"][0]["what"]["identifier"]["value"], JobId(5).to_string());
    let file = &json["entity"][1];
    assert_eq!(file["what"]["identifier"]["value"], format!("{}/file/00000000000000a0", JobId(5)));
    assert_eq!(file["detail"][0], json!({ "type": "bytes", "valueString": "10" }));
    assert_eq!(file["detail"][1], json!({ "type": "range", "valueString": "bytes 5-14/100" }));
    assert_eq!(json["entity"][2]["what"]["identifier"]["value"], "r1");
}

#[test]
fn who_only_claims_to_be_somebody_is_nobody_in_particular() {
    let who = Who::Claimed("aco-17".parse().unwrap());
    let json = audit_event(&Event { who, status: Some(401), ..event(Kind::Token) }, &observer());
    check(&json);
    assert_eq!((&json["agent"][0]["altId"], &json["agent"][0]["who"]), (&json!("aco-17"), &Value::Null));
}

#[test]
fn what_was_asked_for_is_the_query() {
    let mut event = event(Kind::KickOff);
    event.about.parameters = Some(Parameters::new(Bytes::from_static(b"_type=Patient")));
    let json = audit_event(&event, &observer());
    check(&json);
    assert_eq!(json["entity"][0]["query"], STANDARD.encode("_type=Patient"));
    assert_eq!(json["entity"][0]["detail"][0]["type"], "sha256");
}

fn label() -> impl Strategy<Value = Option<Label>> {
    proptest::option::of("[a-zA-Z0-9_.:-]{1,64}").prop_map(|text| text.and_then(|text| Label::new(&text)))
}

proptest! {
    #[test]
    fn no_event_is_longer_than_its_bound(
        kind in proptest::sample::select(Kind::ALL.to_vec()),
        numbers in any::<(u128, u128, u32, u64, u64)>(),
        client in "[a-zA-Z0-9_.-]{1,128}",
        labels in (label(), label(), label()),
        group in "[a-zA-Z0-9.-]{1,64}",
        scopes in "(?s).{0,4000}",
        peer in any::<[u8; 16]>(),
        body in proptest::collection::vec(any::<u8>(), 0..20_000),
        is_cut: bool,
        status in proptest::option::of(100..600_u16),
    ) {
        let (id, job, page, file, bytes) = numbers;
        let client: ClientId = client.parse().unwrap();
        let group: FhirId = group.parse().unwrap();
        let parameters = Parameters::new(Bytes::from(body));
        let parameters = if is_cut { parameters.cut() } else { parameters };
        let kept = if is_cut { 0 } else { parameters.text().len() };
        let mut about = About {
            job: Some(JobId(job)),
            page: Some(page),
            file: Some(Nonce(file)),
            binary: format!("Binary/{group}/_history/{group}").parse().ok(),
            group: Some(group),
            client: Some(client.clone()),
            token: labels.0,
            scopes: None,
            error: Some("temporarily_unavailable"),
            bytes: Some(bytes),
            range: Some(ByteRange { first: file, last: bytes, of: u64::MAX }),
            parameters: Some(parameters),
            omitted: Some(file),
        };
        about.set_scopes(&scopes);
        let event = Event {
            id,
            recorded: Instant::from_nanos(1),
            kind,
            who: Who::Client { id: client, token: labels.1 },
            peer: Some(peer.into()),
            request: labels.2,
            status,
            about,
        };
        let json = audit_event(&event, &observer());
        check(&json);
        let line = Chain::new(observer().name).link(&json.to_string());
        prop_assert!(line.len() <= max_line(kept), "{} bytes with {kept}", line.len());
    }
}
