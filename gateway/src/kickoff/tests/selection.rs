//! Parameters that select: elements, searches, associated data.

use flatbed_types::request::Associated;

use super::*;

fn elements(parsed: Parsed) -> Vec<String> {
    parsed.unwrap().elements.iter().map(ToString::to_string).collect()
}

#[test]
fn pm_29_pm_30_elements() {
    let listed =
        get(&[("_type", "Patient"), ("_elements", "id,Patient.birthDate"), ("_elements", "deceased[x]")]);
    assert_eq!(elements(listed), ["deceased", "id", "Patient.birthDate"]);
    let typed = [text("_type", "Patient"), text("_elements", "id"), text("_elements", "Patient.birthDate")];
    for parsed in [post_at(Level::System, &typed), v4_at(Level::System, &typed)] {
        assert_eq!(elements(parsed), ["id", "Patient.birthDate"]);
    }
    for bad in [
        "Patient.name.family",
        "name.family",
        "",
        ",",
        "Patient",
        "Nothing.id",
        "Patient.nothing",
        "nothing",
        "valueQuantity",
        "id,nothing",
    ] {
        assert_eq!(refused(get(&[("_elements", bad)]), "_elements"), ["invalid"], "{bad}");
    }
    let hint = get(&[("_elements", "Observation.valueQuantity")]).unwrap_err();
    assert!(hint[0].text.contains("did you mean value?"), "{hint:?}");
    let many = vec!["id"; 1_025].join(",");
    assert_eq!(refused(get(&[("_elements", &many)]), "_elements"), ["too-costly"]);
}

#[test]
fn pm_30_elements_are_held_against_the_types_asked_for() {
    let of = |types: &str, element: &str| get(&[("_elements", element), ("_type", types)]);
    assert!(of("Patient,Observation", "valueQuantity").is_err());
    assert!(of("Patient,Observation", "value").is_ok(), "of one of them");
    assert_eq!(refused(of("Patient", "value"), "_elements"), ["invalid"], "of none of them");
    assert_eq!(refused(of("Patient", "Observation.status"), "_elements"), ["invalid"], "another type");
    assert_eq!(refused(of("Patient", "Bundle.entry"), "_elements"), ["invalid"]);
    let place = post_at(Level::System, &[text("_type", "Patient"), text("_elements", "status")]).unwrap_err();
    assert_eq!(place[0].location.as_deref(), Some("Parameters.parameter[1]"));
}

#[test]
fn pm_44_pm_45_pm_46_associated_data() {
    const SYSTEM: &str = "http://hl7.org/fhir/uv/bulkdata/CodeSystem/include-associated-data";
    const FUTURE: &str = "http://terminology.hl7.org/CodeSystem/include-associated-data";
    const NAME: &str = "includeAssociatedData";
    let (latest, relevant) = ("LatestProvenanceResources", "RelevantProvenanceResources");
    let coding =
        |system: &str, code: &str| json!({"name": NAME, "valueCoding": {"system": system, "code": code}});
    let bare = |code: &str| json!({"name": NAME, "valueCoding": {"code": code}});
    let code = |code: &str| json!({"name": NAME, "valueCode": code});
    let asked = |parsed: Parsed| parsed.unwrap().associated;
    assert_eq!(asked(get(&[])), Associated::Unasked);
    assert_eq!(asked(get(&[(NAME, latest)])), Associated::LatestProvenance);
    for both in [format!("{latest},{relevant}"), format!("{relevant},{latest}")] {
        assert_eq!(asked(get(&[(NAME, &both)])), Associated::RelevantProvenance, "PM-45");
    }
    for good in [code(latest), text(NAME, latest), coding(SYSTEM, latest), bare(latest)] {
        assert_eq!(asked(post_at(Level::Patient, &[good])), Associated::LatestProvenance);
    }
    for good in [coding(SYSTEM, relevant), coding(FUTURE, relevant), bare(relevant)] {
        assert_eq!(
            asked(v4_at(Level::Patient, &[good, bare(latest)])),
            Associated::RelevantProvenance,
            "PM-45"
        );
    }
    for bad in [code(latest), text(NAME, latest)] {
        let issues = v4_at(Level::System, &[bad]).unwrap_err();
        assert!(issues[0].text.contains("expected valueCoding"), "PM-69: {issues:?}");
    }
    for bad in [bare("Bogus"), bare("_custom"), coding("http://example.org", latest)] {
        assert_eq!(refused(v4_at(Level::System, &[bad]), NAME), ["not-supported"], "PM-46");
    }
    assert_eq!(refused(v4_at(Level::System, &[json!({"name": NAME, "valueCoding": {}})]), NAME), ["invalid"]);
    assert_eq!(refused(get(&[(NAME, "")]), NAME), ["invalid"], "PM-25");
    assert_eq!(refused(get(&[(NAME, "Bogus")]), NAME), ["not-supported"], "PM-46");
}

fn filters(parsed: Parsed) -> Vec<String> {
    parsed.unwrap().filters
}

#[test]
fn pm_48_to_57_filters() {
    let two =
        ["MedicationRequest?status=active", "MedicationRequest?status=completed&authoredon=gt2018-07-01"];
    assert_eq!(filters(get(&[("_typeFilter", two[0]), ("_typeFilter", two[1])])), two, "PM-50");
    let typed = two.map(|filter| text("_typeFilter", filter));
    assert_eq!(filters(v4_at(Level::System, &typed)), two);
    let joined = "MedicationRequest?status=active,completed,Condition?code=x";
    let split = ["MedicationRequest?status=active,completed", "Condition?code=x"];
    assert_eq!(filters(get(&[("_typeFilter", joined)])), split, "PM-57");
    assert_eq!(filters(post_at(Level::System, &[text("_typeFilter", joined)])), split, "PM-57");
    let or = "MedicationRequest?status=active,completed";
    assert_eq!(filters(v4_at(Level::System, &[text("_typeFilter", or)])), [or], "a comma is an OR");
    for bad in [
        "Patient?_sort=name",
        "Patient?_include=Patient:organization",
        "?_lastUpdated=gt2020",
        "Patient/p1/Observation?code=x",
        "Patient",
        "Nothing?a=b",
        "",
        "Patient?birthdate=yesterday",
    ] {
        assert_eq!(refused(get(&[("_typeFilter", bad)]), "_typeFilter"), ["invalid"], "PM-52, PM-53: {bad}");
    }
    for bad in ["Patient?foo=1", "Observation?subject.name=peter"] {
        assert_eq!(
            refused(get(&[("_typeFilter", bad)]), "_typeFilter"),
            ["not-supported"],
            "PM-54, PM-56: {bad}"
        );
    }
    let many = vec![("_typeFilter", "Patient?gender=male"); 257];
    assert_eq!(refused(get(&many), "_typeFilter"), ["too-costly"], "SEC-10");
}

#[test]
fn pm_58_a_filter_on_a_type_that_is_not_asked_for() {
    for order in [[0, 1], [1, 0]] {
        let given = [("_type", "Condition"), ("_typeFilter", "Patient?gender=male")];
        assert_eq!(refused(get(&order.map(|at| given[at])), "_typeFilter"), ["invalid"]);
    }
    assert_eq!(refused(get(&[("_typeFilter", "Bundle?type=batch")]), "_typeFilter"), ["invalid"]);
}

#[test]
fn pm_60_filters_encoded_once_more() {
    let plain = filters(get(&[("_typeFilter", "Observation?code=http://loinc.org|4548-4")]));
    for same in [
        "Observation?code=http%3A%2F%2Floinc.org%7C4548-4",
        "Observation%3Fcode%3Dhttp://loinc.org|4548-4",
        "Observation%3Fcode%3Dhttp%253A%252F%252Floinc.org%257C4548-4",
    ] {
        assert_eq!(filters(get(&[("_typeFilter", same)])), plain, "{same}");
    }
}
