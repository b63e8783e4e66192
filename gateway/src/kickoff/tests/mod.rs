//! Tables of kick-off parameters, by row of the contract.

mod dialects;
mod selection;

use flatbed_types::caps;
use serde_json::{Value, json};

use super::*;

const BASE: &str = "https://example.org/fhir";

type Parsed = Result<ExportRequest, Vec<Issue>>;

fn context(level: Level) -> Context<'static> {
    Context::new(level, BASE, "2026-01-01T00:00:00Z".parse().unwrap())
}

fn group() -> Level {
    Level::Group("g1".parse().unwrap())
}

fn pairs(query: &[(&str, &str)]) -> Vec<(String, String)> {
    query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn get_at(level: Level, query: &[(&str, &str)]) -> Parsed {
    parse(Input::Get(&pairs(query)), &context(level))
}

fn get(query: &[(&str, &str)]) -> Parsed {
    get_at(Level::System, query)
}

fn post_in(context: &Context<'_>, parameters: &[Value]) -> Parsed {
    let body = json!({ "resourceType": "Parameters", "parameter": parameters }).to_string();
    parse(Input::Post(body.as_bytes(), &[]), context)
}

fn post_at(level: Level, parameters: &[Value]) -> Parsed {
    post_in(&context(level), parameters)
}

/// A POST of the 4.0 dialect.
fn v4_at(level: Level, parameters: &[Value]) -> Parsed {
    post_in(&Context { dialect: Dialect::V4, ..context(level) }, parameters)
}

/// A parameter whose value is a string.
fn text(name: &str, value: &str) -> Value {
    json!({ "name": name, "valueString": value })
}

fn types_of(accepted: Parsed) -> Vec<&'static str> {
    accepted.unwrap().types.iter().map(|each| each.name()).collect()
}

/// The codes of the issues, and whether each text names the parameter.
fn refused(result: Parsed, name: &str) -> Vec<&'static str> {
    let issues = result.expect_err(name);
    assert!(issues.iter().all(|issue| issue.text.starts_with(name)), "{name}: {issues:?}");
    issues.iter().map(|issue| issue.code.as_str()).collect()
}

#[test]
fn no_parameters_mean_everything() {
    let everything = ExportRequest::everything(Level::Patient);
    assert_eq!(get_at(Level::Patient, &[]).unwrap(), everything);
    // KO-07
    for body in
        ["", "  \n", r#"{"resourceType":"Parameters"}"#, r#"{"resourceType":"Parameters","parameter":[]}"#]
    {
        let accepted = parse(Input::Post(body.as_bytes(), &[]), &context(Level::Patient)).unwrap();
        assert_eq!(accepted, everything, "{body:?}");
    }
}

#[test]
fn pm_01_to_05_output_format() {
    for good in [
        "application/fhir+ndjson",
        "application/fhir ndjson",
        "application/ndjson",
        "ndjson",
        "Application/FHIR+NDJSON; fhirVersion=4.0",
    ] {
        assert!(get(&[("_outputFormat", good)]).is_ok(), "{good}");
        assert!(post_at(Level::System, &[json!({"name": "_outputFormat", "valueString": good})]).is_ok());
    }
    for bad in ["text/csv", "", "json", "application/fhir+json"] {
        assert_eq!(refused(get(&[("_outputFormat", bad)]), "_outputFormat"), ["not-supported"], "{bad}");
    }
}

#[test]
fn pm_13_pm_14_since_is_an_instant() {
    for bad in ["2024", "2024-01-01", "2024-01-01T00:00:00", "yesterday", "", "2024-01-01T00:00:00X02:00"] {
        assert_eq!(refused(get(&[("_since", bad)]), "_since"), ["invalid"], "{bad}");
        let typed = post_at(Level::System, &[json!({"name": "_since", "valueInstant": bad})]);
        assert_eq!(refused(typed, "_since"), ["invalid"], "{bad}");
    }
    for good in ["2024-01-01T00:00:00Z", "2024-01-01T00:00:00.123Z", "2024-01-01T00:00:00+02:00"] {
        assert_eq!(get(&[("_since", good)]).unwrap().since, good.parse().ok(), "{good}");
    }
    let repaired = get(&[("_since", "2024-01-01T00:00:00 02:00")]).unwrap().since;
    assert_eq!(repaired, "2024-01-01T00:00:00+02:00".parse().ok());
}

#[test]
fn pm_15_16_17_19_windows() {
    let (early, late) = ("2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z");
    let window = get(&[("_since", early), ("_until", late)]).unwrap();
    assert_eq!((window.since, window.until), (early.parse().ok(), late.parse().ok()));
    assert_eq!(refused(get(&[("_since", "2026-01-01T00:00:00.001Z")]), "_since"), ["invalid"], "PM-15");
    assert!(get(&[("_since", "2026-01-01T00:00:00Z")]).is_ok());
    assert_eq!(refused(get(&[("_since", early), ("_since", early)]), "_since"), ["invalid"], "PM-16");
    assert_eq!(refused(get(&[("_since", late), ("_until", early)]), "_until"), ["invalid"], "PM-19");
    assert_eq!(refused(get(&[("_until", late), ("_since", late)]), "_until"), ["invalid"], "PM-19");
}

#[test]
fn pm_23_pm_25_type_lists() {
    let union = ["Condition", "Encounter", "Patient"];
    assert_eq!(types_of(get(&[("_type", "Patient,Condition"), ("_type", "Encounter")])), union);
    let typed = [
        json!({"name": "_type", "valueString": "Patient,Condition"}),
        json!({"name": "_type", "valueCode": "Encounter"}),
    ];
    assert_eq!(types_of(post_at(Level::System, &typed)), union);
    assert_eq!(types_of(get(&[("_type", " Patient , Patient,,")])), ["Patient"]);
    for empty in ["", ",", " , "] {
        assert_eq!(refused(get(&[("_type", empty)]), "_type"), ["invalid"], "{empty:?}");
        assert_eq!(
            refused(get(&[("_type", "Patient"), ("_type", empty)]), "_type"),
            ["invalid"],
            "{empty:?}"
        );
    }
    let many = vec!["Patient"; caps::MAX_TYPES + 1].join(",");
    assert_eq!(refused(get(&[("_type", &many)]), "_type"), ["too-costly"]);
}

#[test]
fn ko_32_pm_28_types_of_r4_only() {
    for bad in ["NotAResource", "patient", "Bundle", "Parameters", "OperationOutcome", "*", "Patient,Bundle"]
    {
        assert_eq!(refused(get(&[("_type", bad)]), "_type"), ["not-supported"], "{bad}");
    }
    let near = get(&[("_type", "patient")]).unwrap_err();
    assert!(near[0].text.contains("did you mean Patient?"));
}

#[test]
fn pm_27_only_supporting_types_at_patient_level() {
    for level in [Level::Patient, group()] {
        let alone = get_at(level.clone(), &[("_type", "Organization,Practitioner")]);
        assert_eq!(refused(alone, "_type"), ["not-supported"]);
        let together = get_at(level.clone(), &[("_type", "Organization,Encounter")]);
        assert_eq!(types_of(together), ["Encounter", "Organization"]);
        assert_eq!(types_of(get_at(level.clone(), &[("_type", "Device")])), ["Device"]);
        let lenient = Context { lenient: true, ..context(level) };
        assert!(parse(Input::Get(&pairs(&[("_type", "Organization")])), &lenient).is_ok());
    }
    assert!(get(&[("_type", "Organization")]).is_ok(), "KO-03");
}

#[test]
fn pm_38_to_41_patient() {
    let patient = |reference: &str| json!({"name": "patient", "valueReference": {"reference": reference}});
    let absolute = format!("{BASE}/Patient/p2");
    let merged = post_at(Level::Patient, &[patient("Patient/p1"), patient(&absolute), patient("Patient/p1")]);
    let ids: Vec<_> = merged.unwrap().patients.iter().map(ToString::to_string).collect();
    assert_eq!(ids, ["p1", "p2"]);
    let elsewhere = "https://other.org/fhir/Patient/p1";
    for bad in ["Patient/p1/_history/2", elsewhere, "Practitioner/p1", "p1", "", "Patient/", "Patient/a b"] {
        assert_eq!(refused(post_at(Level::Patient, &[patient(bad)]), "patient"), ["invalid"], "{bad}");
    }
    let by_identifier = json!({"name": "patient", "valueReference": {"identifier": {"value": "x"}}});
    assert_eq!(refused(post_at(Level::Patient, &[by_identifier]), "patient"), ["invalid"]);
    assert_eq!(refused(post_at(Level::System, &[patient("Patient/p1")]), "patient"), ["invalid"], "PM-38");
    let by_get = get_at(Level::Patient, &[("patient", "Patient/p1")]);
    assert_eq!(refused(by_get, "patient"), ["invalid"], "PM-39");
    let many: Vec<_> = (0..=caps::MAX_PATIENTS).map(|n| patient(&format!("Patient/p{n}"))).collect();
    assert!(post_at(Level::Patient, &many[1..]).is_ok(), "PM-41");
    assert_eq!(refused(post_at(Level::Patient, &many), "patient"), ["too-costly"], "PM-41");
}

#[test]
fn ko_24_pm_67_unknown_parameters() {
    for name in ["foo", "_Type", "resourceTypes", "bogus"] {
        assert_eq!(refused(get(&[(name, "1")]), name), ["not-supported"], "{name}");
        assert_eq!(refused(post_at(Level::System, &[text(name, "1")]), name), ["not-supported"], "{name}");
        assert_eq!(refused(v4_at(Level::System, &[text(name, "1")]), name), ["not-supported"], "{name}");
    }
    assert!(get(&[("_Type", "1")]).unwrap_err()[0].text.contains("did you mean _type?"));
    assert!(get(&[("_format", "json"), ("_pretty", "true")]).is_ok(), "PM-68");
}

#[test]
fn ko_23_mf_24_lenient_tells_each_parameter_that_it_ignores() {
    let lenient = Context { lenient: true, ..context(Level::Patient) };
    let query = pairs(&[
        ("_type", "Patient"),
        ("bogus", "1"),
        ("includeAssociatedData", "_custom"),
        ("organizeOutputBy", "Observation"),
        ("_typeFilter", "Patient?foo=1"),
    ]);
    let request = parse(Input::Get(&query), &lenient).unwrap();
    assert_eq!(request.types.len(), 1);
    assert_eq!((request.filters.len(), request.by_patient), (0, false));
    let names = ["bogus", "includeAssociatedData", "organizeOutputBy", "_typeFilter"];
    assert_eq!(request.remarks.len(), names.len());
    for (remark, name) in request.remarks.iter().zip(names) {
        assert!(remark.text.starts_with(name) && remark.text.ends_with("ignored"), "{remark:?}");
        assert_eq!(remark.location.as_deref(), Some(format!("http.{name}").as_str()));
        assert_eq!(remark.code, "not-supported");
    }
    // A wrong value of a parameter that counts would widen the export if it were ignored.
    for wrong in [
        ("_since", "2024"),
        ("_type", "Nothing"),
        ("patient", "Patient/p1"),
        ("_type", ""),
        ("_elements", "name.family"),
        ("_typeFilter", "Patient?_sort=name"),
        ("_maximumFileSize", "0"),
        ("allowPartialManifests", "maybe"),
    ] {
        assert!(parse(Input::Get(&pairs(&[wrong])), &lenient).is_err(), "{wrong:?}");
    }
}

#[test]
fn sec_10_what_is_kept_of_a_request_is_bounded() {
    let lenient = Context { lenient: true, ..context(Level::System) };
    let unknown = |count| vec![text("bogus", "1"); count];
    assert_eq!(post_in(&lenient, &unknown(100)).unwrap().remarks.len(), 100);
    assert_eq!(refused(post_in(&lenient, &unknown(101)), "bogus"), ["too-costly"]);
    let long = format!("Observation?code={}", vec!["x".repeat(90); 600].join(","));
    let filters = |count| vec![text("_typeFilter", &long); count];
    assert_eq!(post_at(Level::System, &filters(4)).unwrap().filters.len(), 4);
    assert_eq!(refused(post_at(Level::System, &filters(5)), "_typeFilter"), ["too-costly"]);
}

#[test]
fn er_02_all_bad_parameters_at_once() {
    let issues = get(&[("_since", "2024"), ("bogus", "1"), ("_type", "Nope"), ("_outputFormat", "csv")]);
    let issues = issues.unwrap_err();
    let places: Vec<_> = issues.iter().map(|issue| issue.location.as_deref().unwrap()).collect();
    assert_eq!(places, ["http._since", "http.bogus", "http._type", "http._outputFormat"]);
    let issues = post_at(
        Level::System,
        &[
            json!({"name": "_type", "valueString": "Patient"}),
            json!({"name": "a", "valueString": "x"}),
            json!({"name": "b", "valueString": "x"}),
        ],
    );
    let issues = issues.unwrap_err();
    let places: Vec<_> = issues.iter().map(|issue| issue.location.as_deref().unwrap()).collect();
    assert_eq!(places, ["Parameters.parameter[1]", "Parameters.parameter[2]"]);
}

#[test]
fn ko_09_bodies_that_are_no_parameters() {
    for bad in [
        "not-json",
        "[]",
        "{}",
        r#"{"resourceType":"Bundle"}"#,
        r#"{"resourceType":"Parameters","parameter":{}}"#,
        r#"{"resourceType":"Parameters","parameter":[{}]}"#,
        r#"{"resourceType":"Parameters","parameter":[1]}"#,
        r#"{"resourceType":"Parameters","parameter":[{"name":7,"valueString":"x"}]}"#,
        r#"{"resourceType":"Parameters","parameter":[{"name":"_type"}]}"#,
        r#"{"resourceType":"Parameters","parameter":[{"name":"_type","valueBogus":"Patient"}]}"#,
        r#"{"resourceType":"Parameters","parameter":[{"name":"_type","valueString":"a","valueCode":"b"}]}"#,
    ] {
        let issues = parse(Input::Post(bad.as_bytes(), &[]), &context(Level::System)).unwrap_err();
        assert!(issues.iter().all(|issue| issue.code == IssueCode::STRUCTURE), "{bad}: {issues:?}");
    }
}

#[test]
fn ko_08_a_post_with_a_query_is_not_widened() {
    let query = pairs(&[("_type", "Patient"), ("_pretty", "true")]);
    let refusal = parse(Input::Post(b"", &query), &Context { lenient: true, ..context(Level::System) });
    assert_eq!(refused(refusal, "_type"), ["invalid"]);
    assert!(parse(Input::Post(b"", &query[1..]), &context(Level::System)).is_ok());
}

#[test]
fn pm_69_wrong_value_elements() {
    let bad = [
        (json!({"name": "_since", "valueDate": "2024-01-01"}), "expected valueInstant"),
        (json!({"name": "_since", "valueInstant": 7}), "expected valueInstant"),
        (json!({"name": "_type", "valueUri": "Patient"}), "expected valueString"),
        (json!({"name": "patient", "valueString": "Patient/p1"}), "expected valueReference"),
    ];
    for (parameter, expected) in bad {
        let issues = post_at(Level::Patient, &[parameter]).unwrap_err();
        assert!(issues[0].text.contains(expected), "{issues:?}");
    }
    let coerced = post_at(Level::System, &[json!({"name": "_since", "valueString": "2024-01-01T00:00:00Z"})]);
    assert_eq!(coerced.unwrap().since, "2024-01-01T00:00:00Z".parse().ok());
}

#[test]
fn er_03_foreign_names_are_shown_short_and_printable() {
    let long = format!("a\r\n{}", "x".repeat(500));
    let issues = get(&[(&long, "1")]).unwrap_err();
    assert!(issues[0].text.starts_with("a??xxx") && issues[0].text.len() < 120);
}

#[test]
fn decision_20_missing_headers_are_refused_with_the_header_to_add() {
    use crate::negotiate::media::Acceptance;
    use crate::negotiate::prefer::Preferences;
    let preferences = Preferences { respond_async: true, ..Preferences::default() };
    let good = HeaderFacts { acceptance: Acceptance::Acceptable, preferences, lenient_headers: false };
    let none = Preferences::default();
    assert!(check_headers(good).is_empty());
    let bare = HeaderFacts { acceptance: Acceptance::Missing, preferences: none, lenient_headers: false };
    let texts: Vec<_> = check_headers(bare).into_iter().map(|issue| issue.text).collect();
    assert!(texts[0].contains("Accept: application/fhir+json") && texts[1].contains("Prefer: respond-async"));
    assert!(check_headers(HeaderFacts { lenient_headers: true, ..bare }).is_empty(), "KO-16, KO-19");
}
