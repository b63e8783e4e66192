//! What differs between the dialects, and parameters about the answer.

use super::*;

#[test]
fn vn_05_a_request_keeps_its_form() {
    let legacy = post_at(Level::System, &[]).unwrap().form;
    assert_eq!((legacy.dialect, legacy.separate_status), (Dialect::Legacy, false));
    let asked = Context { dialect: Dialect::V4, separate_status: true, ..context(Level::System) };
    let form = post_in(&asked, &[]).unwrap().form;
    assert_eq!((form.dialect, form.separate_status, form.partial_manifests), (Dialect::V4, true, false));
}

#[test]
fn pm_24_commas_are_refused_in_4_0_with_the_way_out() {
    for (name, list) in [("_type", "Patient,Condition"), ("_elements", "id,name")] {
        let issues = v4_at(Level::System, &[text(name, list)]).unwrap_err();
        assert_eq!(issues.len(), 1);
        assert!(issues[0].text.contains("repeat the parameter"), "{issues:?}");
        assert!(post_at(Level::System, &[text(name, list)]).is_ok(), "PM-23");
    }
    let repeated = [text("_type", "Patient"), text("_type", "Condition")];
    assert_eq!(types_of(v4_at(Level::System, &repeated)), ["Condition", "Patient"]);
}

#[test]
fn pm_69_value_elements_of_4_0_are_those_of_the_definition() {
    let wrong = [
        (text("_since", "2024-01-01T00:00:00Z"), "valueInstant"),
        (json!({"name": "_since", "valueDateTime": "2024-01-01T00:00:00Z"}), "valueInstant"),
        (json!({"name": "_type", "valueCode": "Patient"}), "valueString"),
        (json!({"name": "_typeFilter", "valueUri": "Patient?gender=male"}), "valueString"),
        (text("allowPartialManifests", "true"), "valueBoolean"),
        (text("_minimumFileSize", "10"), "valuePositiveInt"),
        (json!({"name": "_maximumFileSize", "valueInteger": 1_000}), "valuePositiveInt"),
        (text("patient", "Patient/p1"), "valueReference"),
        (json!({"name": "organizeOutputBy", "valueCode": "Patient"}), "valueString"),
    ];
    for (parameter, expected) in wrong {
        let issues = v4_at(Level::Patient, std::slice::from_ref(&parameter)).unwrap_err();
        assert!(issues[0].text.contains(&format!("expected {expected}")), "{parameter}: {issues:?}");
        let coerced = post_at(Level::Patient, std::slice::from_ref(&parameter));
        assert_eq!(coerced.is_ok(), expected != "valueReference", "{parameter}: {coerced:?}");
    }
}

#[test]
fn pm_61_ob_09_organised_output() {
    for level in [Level::Patient, group()] {
        assert!(get_at(level.clone(), &[("organizeOutputBy", "Patient")]).unwrap().by_patient);
        assert!(v4_at(level.clone(), &[text("organizeOutputBy", "Patient")]).unwrap().by_patient);
        for other in ["Observation", "patient", ""] {
            let refusal = get_at(level.clone(), &[("organizeOutputBy", other)]);
            assert_eq!(refused(refusal, "organizeOutputBy"), ["not-supported"], "{other}");
        }
    }
    assert_eq!(refused(get(&[("organizeOutputBy", "Patient")]), "organizeOutputBy"), ["not-supported"]);
    assert!(!get(&[]).unwrap().by_patient, "OB-10");
}

#[test]
fn pm_62_partial_manifests() {
    let allowed = |parsed: Parsed| parsed.unwrap().form.partial_manifests;
    assert!(!allowed(get(&[])));
    assert!(allowed(get(&[("allowPartialManifests", "true")])));
    assert!(!allowed(get(&[("allowPartialManifests", "false")])));
    for value in [true, false] {
        let typed = [json!({"name": "allowPartialManifests", "valueBoolean": value})];
        assert_eq!(allowed(v4_at(Level::System, &typed)), value);
        assert_eq!(allowed(post_at(Level::System, &typed)), value);
    }
    for bad in ["1", "True", "", "yes"] {
        assert_eq!(
            refused(get(&[("allowPartialManifests", bad)]), "allowPartialManifests"),
            ["invalid"],
            "{bad}"
        );
    }
}

#[test]
fn pm_63_pm_64_file_sizes() {
    let sizes =
        |parsed: Parsed| parsed.map(|request| (request.min_file_bytes, request.max_file_bytes)).unwrap();
    assert_eq!(sizes(get(&[])), (None, None));
    let both = get(&[("_minimumFileSize", "10"), ("_maximumFileSize", "5000000000")]);
    assert_eq!(sizes(both), (Some(10), Some(5_000_000_000)));
    let typed = [
        json!({"name": "_minimumFileSize", "valuePositiveInt": 10}),
        json!({"name": "_maximumFileSize", "valuePositiveInt": 1_000}),
    ];
    assert_eq!(sizes(v4_at(Level::System, &typed)), (Some(10), Some(1_000)));
    assert_eq!(sizes(post_at(Level::System, &typed)), (Some(10), Some(1_000)));
    assert_eq!(refused(get(&[("_maximumFileSize", "999")]), "_maximumFileSize"), ["invalid"]);
    for name in ["_minimumFileSize", "_maximumFileSize"] {
        for bad in ["0", "-1", "abc", "", "1.5", "1e3"] {
            assert_eq!(refused(get(&[(name, bad)]), name), ["invalid"], "{bad}");
        }
        for bad in [json!(0), json!(-1), json!(1.5)] {
            let typed = json!({"name": name, "valuePositiveInt": bad});
            assert_eq!(refused(v4_at(Level::System, &[typed]), name), ["invalid"]);
        }
    }
    for (least, most) in [("2000", "1500"), ("1000", "1000")] {
        let refusal = get(&[("_minimumFileSize", least), ("_maximumFileSize", most)]);
        assert_eq!(refused(refusal, "_maximumFileSize"), ["invalid"], "{least} {most}");
    }
}

#[test]
fn pm_16_single_values_are_given_once() {
    let twice = [
        ("organizeOutputBy", "Patient"),
        ("allowPartialManifests", "true"),
        ("_minimumFileSize", "1"),
        ("_outputFormat", "ndjson"),
    ];
    for given in twice {
        assert_eq!(refused(get_at(Level::Patient, &[given, given]), given.0), ["invalid"], "{given:?}");
    }
}

#[test]
fn what_the_server_cannot_do_is_refused_or_told() {
    let capabilities =
        Capabilities { organized_output: false, associated_data: false, partial_manifests: false };
    let strict = Context { capabilities, ..context(Level::Patient) };
    let lenient = Context { lenient: true, ..strict.clone() };
    for given in [
        ("organizeOutputBy", "Patient"),
        ("includeAssociatedData", "LatestProvenanceResources"),
        ("allowPartialManifests", "true"),
    ] {
        let query = pairs(&[given]);
        assert_eq!(refused(parse(Input::Get(&query), &strict), given.0), ["not-supported"]);
        let request = parse(Input::Get(&query), &lenient).unwrap();
        assert!(request.remarks[0].text.starts_with(given.0));
        let untold = ExportRequest { remarks: Vec::new(), ..request };
        assert_eq!(untold, ExportRequest::everything(Level::Patient));
    }
}
