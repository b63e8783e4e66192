//! The rules and examples of the search page (<http://hl7.org/fhir/R4/search.html>), kind by kind.

use super::*;

#[test]
fn tokens() {
    let line = r#"{"code":{"text":"Blood Pressure panel","coding":[{"system":"http://loinc.org","code":"55284-4","display":"Blöod pressure"},{"code":"BP"}]},
        "status":"final","identifier":[{"system":"http://acme.org/mrn","value":"446053","type":{"text":"Record","coding":[{"system":"t","code":"MR"}]}}]}"#;
    check(
        line,
        &[
            ("Observation?code=55284-4", true),
            ("Observation?code=http://loinc.org|55284-4", true),
            ("Observation?code=http://loinc.org|", true),
            ("Observation?code=http://snomed.info/sct|", false),
            ("Observation?code=http://snomed.info/sct|55284-4", false),
            ("Observation?code=|55284-4", false),
            ("Observation?code=|BP", true),
            ("Observation?code=BP", true),
            ("Observation?code=bp", false),
            // System and code of two codings are no pair.
            ("Observation?code=http://loinc.org|BP", false),
            ("Observation?code=x,BP", true),
            ("Observation?code:not=BP", false),
            ("Observation?code:not=x", true),
            ("Observation?code:not=x,BP", false),
            ("Observation?category:not=x", true),
            ("Observation?code:text=blood", true),
            ("Observation?code:text=bloöd PRESSURE", true),
            ("Observation?code:text=pressure", false),
            ("Observation?status=final", true),
            ("Observation?status=http://hl7.org/fhir/observation-status|final", true),
            ("Observation?status=http://hl7.org/fhir/observation-status|", true),
            ("Observation?status=http://example.org|final", false),
            ("Observation?status=|final", true),
            ("Observation?identifier=446053", true),
            ("Observation?identifier=http://acme.org/mrn|446053", true),
            ("Observation?identifier:of-type=t|MR|446053", true),
            ("Observation?identifier:of-type=t|MR|446054", false),
            ("Observation?identifier:of-type=t|XX|446053", false),
            ("Observation?identifier:of-type=u|MR|446053", false),
            ("Observation?identifier:text=rec", true),
        ],
    );
}

#[test]
fn tokens_on_simple_types() {
    let patient = r#"{"id":"Ab","active":true,"gender":"male","deceasedBoolean":false,"meta":{"tag":[{"system":"s","code":"t"}],"security":[{"code":"R"}]},
        "telecom":[{"system":"phone","value":"(03) 5555"},{"system":"email","value":"a@b.c"}]}"#;
    check(
        patient,
        &[
            ("Patient?_id=Ab", true),
            ("Patient?_id=ab", false),
            ("Patient?active=true", true),
            ("Patient?active=false", false),
            ("Patient?active=|true", true),
            ("Patient?gender:not=male", false),
            ("Patient?phone=(03) 5555", true),
            ("Patient?phone=a@b.c", false),
            ("Patient?email=a@b.c", true),
            ("Patient?telecom=a@b.c", true),
            ("Patient?phone:missing=false", true),
            ("Patient?_tag=s|t", true),
            ("Patient?_security=R", true),
            ("Patient?_security=x|R", false),
            ("Patient?deceased=false", true),
            ("Patient?deceased=true", false),
        ],
    );
    check(
        r#"{"deceasedDateTime":"2018"}"#,
        &[("Patient?deceased=true", true), ("Patient?death-date=2018", true)],
    );
    check(
        "{}",
        &[
            ("Patient?deceased=false", true),
            ("Patient?deceased:not=true", true),
            ("Patient?phone:missing=true", true),
        ],
    );
    // A token on a string does not mind case.
    check(
        r#"{"section":[{"code":{}}],"vaccineCode":{},"lotNumber":"Ab","version":"1.0-RC"}"#,
        &[("ValueSet?version=1.0-rc", true)],
    );
}

#[test]
fn strings() {
    let line = r#"{"name":[{"family":"Eve","given":["Søren","Évelyn"],"prefix":["Dr"]},{"text":"Ms Severine"}],
        "address":[{"line":["1 High St"],"city":"Åre","postalCode":"837"}]}"#;
    check(
        line,
        &[
            ("Patient?family=eve", true),
            ("Patient?family=ev", true),
            ("Patient?family=eves", false),
            ("Patient?given=eve", true),
            ("Patient?given=EVELYN", true),
            ("Patient?given:contains=vely", true),
            ("Patient?given:contains=VÉLY", true),
            ("Patient?given:exact=Évelyn", true),
            ("Patient?given:exact=Evelyn", false),
            ("Patient?given:exact=évelyn", false),
            ("Patient?given:exact=Évely", false),
            ("Patient?name=severine", false),
            ("Patient?name:contains=severine", true),
            ("Patient?name=dr", true),
            ("Patient?address=are", true),
            ("Patient?address=1 high", true),
            ("Patient?address-city=åre", true),
            ("Patient?address-postalcode=83", true),
            ("Patient?name=x,eve", true),
            ("Patient?name:missing=true", false),
            ("Patient?address-state:missing=true", true),
        ],
    );
}

#[test]
fn dates_by_the_table_of_prefixes() {
    let period = |start: &str, end: &str| {
        let bound = |name: &str, value: &str| (!value.is_empty()).then(|| format!("\"{name}\":\"{value}\""));
        let bounds: Vec<String> = [bound("start", start), bound("end", end)].into_iter().flatten().collect();
        format!("{{\"effectivePeriod\":{{{}}}}}", bounds.join(","))
    };
    let time = |text: &str| format!("{{\"effectiveDateTime\":\"{text}\"}}");
    for (line, asked, expected) in [
        (time("2013-01-14T00:00:00Z"), "eq2013-01-14", true),
        (time("2013-01-14T10:00:00Z"), "eq2013-01-14", true),
        (time("2013-01-15T00:00:00Z"), "eq2013-01-14", false),
        (time("2013-01-15T00:00:00Z"), "ne2013-01-14", true),
        (time("2013-01-14T00:00:00Z"), "ne2013-01-14", false),
        (time("2013-01-14T10:00:00Z"), "ne2013-01-14", false),
        // A day includes times before and after ten.
        (time("2013-01-14"), "lt2013-01-14T10:00", true),
        (time("2013-01-14"), "gt2013-01-14T10:00", true),
        (time("2013-01-14"), "2013-01-14T10:00", false),
        (period("2013-01-21", ""), "ge2013-03-14", true),
        (period("2013-01-21", ""), "le2013-03-14", true),
        (period("2013-03-15", ""), "sa2013-03-14", true),
        (period("2013-01-21", ""), "sa2013-03-14", false),
        (period("", "2013-01-21"), "sa2013-03-14", false),
        (period("2013-03-15", ""), "eb2013-03-14", false),
        (period("2013-01-21", ""), "eb2013-03-14", false),
        (period("", "2013-01-21"), "eb2013-03-14", true),
        (time("2013-03-14"), "ap2013-03-14", true),
        (time("2013-03-14"), "ap2013-03", true),
        (time("2013-04-14"), "ap2013-03", false),
        (period("2013-01-21", "2013-03-20"), "2013-01", false),
        (period("2013-01-21", "2013-01-31"), "2013-01", true),
        (period("2013-01-21", "2013-02-01"), "2013-01", false),
        (period("2013-01-21", ""), "ne2013-01", true),
        (period("", ""), "ne2013-01", false),
        (time("2013-01-14T23:30:00-02:00"), "2013-01-15", true),
        (time("2013"), "2013-01", false),
        (time("2013-02"), "2013", true),
    ] {
        assert_eq!(matches(&format!("Observation?date={asked}"), &line), expected, "{asked} on {line}");
    }
}

#[test]
fn schedules_reach_from_their_first_to_their_last_time() {
    for (timing, asked, expected) in [
        (r#"{"repeat":{"boundsPeriod":{"start":"2013-01-31","end":"2013-03-24"}}}"#, "ap2013-02-01", true),
        (r#"{"repeat":{"boundsPeriod":{"start":"2013-01-31","end":"2013-03-24"}}}"#, "2013", true),
        (r#"{"event":["2013-01-31","2014-01-01"]}"#, "2013", false),
        (r#"{"event":["2013-01-31","2014-01-01"]}"#, "ap2013-06", true),
        (r#"{"event":["2013-01-31"],"repeat":{"boundsPeriod":{"end":"2012"}}}"#, "lt1900", true),
        (r#"{"repeat":{"frequency":1}}"#, "ne2013", false),
        ("{}", "ne2013", false),
    ] {
        let line = format!("{{\"activity\":[{{\"detail\":{{\"scheduledTiming\":{timing}}}}}]}}");
        assert_eq!(matches(&format!("CarePlan?activity-date={asked}"), &line), expected, "{asked} on {line}");
    }
    // A choice that is no time is there, and matches no time.
    let line = r#"{"activity":[{"detail":{"scheduledString":"2013"}}]}"#;
    check(line, &[("CarePlan?activity-date=2013", false), ("CarePlan?activity-date:missing=false", true)]);
}

#[test]
fn numbers_by_their_precision() {
    for (value, asked, expected) in [
        ("99.5", "100", true),
        ("100.4999", "100", true),
        ("100.5", "100", false),
        ("99.995", "100.00", true),
        ("100.005", "100.00", false),
        ("95", "1e2", true),
        ("104.99", "1e2", true),
        ("105", "1e2", false),
        ("100", "lt100", false),
        ("99.9", "lt100", true),
        ("100", "le100", true),
        ("100.1", "gt100", true),
        ("100", "ge100", true),
        ("100.4", "ne100", false),
        ("100.6", "ne100", true),
        ("100.1", "sa100", true),
        ("99.9", "eb100", true),
        ("110", "ap100", true),
        ("110.1", "ap100", false),
        ("-110", "ap-100", true),
        ("1.0E+2", "100.0", true),
        ("0.1", "0.10", true),
    ] {
        let line = format!("{{\"factorOverride\":{value}}}");
        assert_eq!(
            matches(&format!("ChargeItem?factor-override={asked}"), &line),
            expected,
            "{asked} on {value}"
        );
    }
    check(
        r#"{"prediction":[{"probabilityRange":{"low":{"value":0.2},"high":{"value":0.4}}}]}"#,
        &[
            ("RiskAssessment?probability=gt0.3", true),
            ("RiskAssessment?probability=lt0.3", true),
            ("RiskAssessment?probability=sa0.3", false),
            ("RiskAssessment?probability=sa0.1", true),
            ("RiskAssessment?probability=0.3", false),
        ],
    );
}

#[test]
fn quantities_with_units() {
    let line = r#"{"valueQuantity":{"value":5.40,"unit":"milligram","system":"http://unitsofmeasure.org","code":"mg"}}"#;
    check(
        line,
        &[
            ("Observation?value-quantity=5.4", true),
            ("Observation?value-quantity=5.4|http://unitsofmeasure.org|mg", true),
            ("Observation?value-quantity=5.4|http://example.org|mg", false),
            ("Observation?value-quantity=5.4||mg", true),
            ("Observation?value-quantity=5.4||milligram", true),
            ("Observation?value-quantity=5.4|http://unitsofmeasure.org|milligram", false),
            ("Observation?value-quantity=5.4||g", false),
            ("Observation?value-quantity=le5.40||mg", true),
            ("Observation?value-quantity=5", true),
            ("Observation?value-quantity=5.41", false),
            ("Observation?value-quantity=ap5|http://unitsofmeasure.org|mg", true),
            ("Observation?value-quantity=6,5.4||g,5.4||mg", true),
            ("Observation?value-quantity=ne5.4||g", false),
        ],
    );
    check(
        r#"{"totalNet":{"value":12.5,"currency":"EUR"}}"#,
        &[
            ("Invoice?totalnet=12.5|urn:iso:std:iso:4217|EUR", true),
            ("Invoice?totalnet=12.5||EUR", true),
            ("Invoice?totalnet=12.5||USD", false),
        ],
    );
    check(
        r#"{"onsetRange":{"low":{"value":10,"code":"a"},"high":{"value":20,"code":"a"}}}"#,
        &[
            ("Condition?onset-age=gt15||a", true),
            ("Condition?onset-age=gt15||mo", false),
            ("Condition?onset-age=15", false),
            ("Condition?onset-age=sa9", true),
            ("Condition?onset-age=eb21", true),
            ("Condition?onset-age=gt20", false),
        ],
    );
    check(
        r#"{"valueSampledData":{"origin":{"value":2,"code":"mV"},"factor":0.5,"lowerLimit":-8,"data":"4 E -2 L 10"}}"#,
        &[
            ("Observation?value-quantity=le-2||mV", true),
            ("Observation?value-quantity=lt-2||mV", false),
            ("Observation?value-quantity=ge7", true),
            ("Observation?value-quantity=gt7", false),
            ("Observation?value-quantity=gt0||V", false),
        ],
    );
}

#[test]
fn comparators_make_half_lines_of_values() {
    for (comparator, asked, expected) in [
        ("<", "lt5.4", true),
        ("<", "ge5.4", false),
        ("<=", "ge5.4", true),
        ("<", "5.4", false),
        ("<", "eb5.4", true),
        ("<=", "eb5.4", false),
        (">", "gt100", true),
        (">", "le5.4", false),
        (">=", "le5.4", true),
        (">", "sa5.4", true),
        (">", "ne5.4", true),
        ("~", "5.4", false),
    ] {
        let line = format!("{{\"valueQuantity\":{{\"value\":5.4,\"comparator\":\"{comparator}\"}}}}");
        assert_eq!(
            matches(&format!("Observation?value-quantity={asked}"), &line),
            expected,
            "{asked} {comparator}"
        );
    }
}

#[test]
fn references_by_id_type_and_address() {
    let line = r#"{"subject":{"reference":"Patient/23/_history/4","identifier":{"system":"http://acme.org/mrn","value":"123"}},
        "performer":[{"reference":"http://example.org/fhir/Practitioner/7"},{"reference":"urn:uuid:1-2"}]}"#;
    check(
        line,
        &[
            ("Observation?subject=23", true),
            ("Observation?subject=Patient/23", true),
            ("Observation?subject:Patient=23", true),
            ("Observation?subject:Group=23", false),
            ("Observation?subject=Group/23", false),
            ("Observation?subject=2", false),
            ("Observation?subject=Patient/23/_history/4", true),
            ("Observation?subject=Patient/23/_history/5", false),
            ("Observation?subject=http://example.org/fhir/Patient/23", false),
            ("Observation?patient=23", true),
            ("Observation?patient=Patient/23", true),
            ("Observation?subject:identifier=http://acme.org/mrn|123", true),
            ("Observation?subject:identifier=123", true),
            ("Observation?subject:identifier=|123", false),
            ("Observation?performer=7", false),
            ("Observation?performer=Practitioner/7", false),
            ("Observation?performer=http://example.org/fhir/Practitioner/7", true),
            ("Observation?performer=http://example.org/fhir/Practitioner/7/_history/1", false),
            ("Observation?performer=urn:uuid:1-2", true),
            ("Observation?performer=1-2", false),
            ("Observation?subject=1,23", true),
        ],
    );
    let canonical = r#"{"instantiatesCanonical":["http://example.org/PlanDefinition/p|1.0"]}"#;
    check(
        canonical,
        &[
            ("CarePlan?instantiates-canonical=http://example.org/PlanDefinition/p", true),
            ("CarePlan?instantiates-canonical=http://example.org/PlanDefinition/p|1.0", true),
            ("CarePlan?instantiates-canonical=http://example.org/PlanDefinition/p|2.0", false),
            ("CarePlan?instantiates-canonical=p", false),
        ],
    );
}

#[test]
fn addresses_are_compared_as_they_are_written() {
    check(
        r#"{"url":"http://acme.org/fhir/ValueSet/123","meta":{"profile":["http://a.b/c|1"],"source":"http://x.y/z#1"}}"#,
        &[
            ("ValueSet?url=http://acme.org/fhir/ValueSet/123", true),
            ("ValueSet?url=http://acme.org/fhir/ValueSet/12", false),
            ("ValueSet?url=HTTP://acme.org/fhir/ValueSet/123", false),
            ("ValueSet?url:below=http://acme.org/fhir/", true),
            ("ValueSet?url:below=http://acme.org/fhir", true),
            ("ValueSet?url:below=http://acme.org/fh", false),
            ("ValueSet?url:above=http://acme.org/fhir/ValueSet/123/_history/5", true),
            ("ValueSet?url:above=http://acme.org/fhir/ValueSet/1234", false),
            ("ValueSet?_profile=http://a.b/c", true),
            ("ValueSet?_profile=http://a.b/c\\|1", true),
            ("ValueSet?_profile=http://a.b/c\\|2", false),
            ("ValueSet?_source=http://x.y/z%231", true),
            ("ValueSet?_source:below=http://x.y/z", true),
        ],
    );
}

#[test]
fn composites_hold_within_one_element() {
    check(
        r#"{"code":{"coding":[{"system":"l","code":"bp"}]},"component":[
            {"code":{"coding":[{"code":"sys"}]},"valueQuantity":{"value":120}},
            {"code":{"coding":[{"code":"dia"}]},"valueQuantity":{"value":80}}]}"#,
        &[
            ("Observation?component-code-value-quantity=sys$gt100", true),
            ("Observation?component-code-value-quantity=dia$gt100", false),
            ("Observation?combo-code-value-quantity=dia$lt100", true),
            ("Observation?combo-code-value-quantity=l|bp$lt100", false),
            ("Observation?code-value-quantity=bp$120", false),
            ("Observation?code-value-quantity:missing=true", true),
            ("Observation?component-code-value-quantity:missing=false", true),
            ("Observation?component-code-value-quantity=dia$gt100,dia$80", true),
        ],
    );
    check(
        r#"{"characteristic":[{"code":{"coding":[{"code":"a"}]},"valueBoolean":true},
            {"code":{"coding":[{"code":"b"}]},"valueCodeableConcept":{"coding":[{"code":"c"}]}}]}"#,
        &[
            ("Group?characteristic-value=a$true", true),
            ("Group?characteristic-value=b$c", true),
            ("Group?characteristic-value=b$true", false),
        ],
    );
    check(
        r#"{"referenceSeq":{"chromosome":{"coding":[{"code":"1"}]}},"variant":[{"start":5,"end":9},{"start":20,"end":30}]}"#,
        &[
            ("MolecularSequence?chromosome-variant-coordinate=1$ge20$le30", true),
            ("MolecularSequence?chromosome-variant-coordinate=1$5$30", false),
            ("MolecularSequence?chromosome-variant-coordinate=2$ge20$le30", false),
        ],
    );
}

#[test]
fn conditions_inside_paths_choose_objects() {
    check(
        r#"{"relatedArtifact":[{"type":"depends-on","resource":"http://a.b/c|1"},
            {"type":"composed-of","resource":"http://a.b/d"}]}"#,
        &[
            ("Library?depends-on=http://a.b/c", true),
            ("Library?depends-on=http://a.b/d", false),
            ("Library?composed-of=http://a.b/d", true),
            ("Library?successor:missing=true", true),
        ],
    );
}
