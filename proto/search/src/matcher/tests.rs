use proptest::prelude::*;

use super::*;
use crate::split_legacy;

mod page;

fn filter(text: &str) -> Filter {
    Filter::parse(text).unwrap_or_else(|errors| panic!("{text}: {errors:?}"))
}

fn matcher(text: &str) -> Matcher {
    Matcher::new(&[filter(text)]).unwrap()
}

fn matches(text: &str, line: &str) -> bool {
    matcher(text).matches(line.as_bytes()).unwrap()
}

/// Each filter with whether it matches the line.
fn check(line: &str, cases: &[(&str, bool)]) {
    for (text, expected) in cases {
        assert_eq!(matches(text, line), *expected, "{text} on {line}");
    }
}

#[test]
fn filters_of_one_type_are_alternatives_and_clauses_are_not() {
    let filters: Vec<Filter> = split_legacy(
        "MedicationRequest?status=active,MedicationRequest?status=completed&authoredon=gt2018-07-01",
    )
    .into_iter()
    .map(filter)
    .collect();
    let matcher = Matcher::new(&filters).unwrap();
    for (status, authored, expected) in [
        ("active", "2010-01-01", true),
        ("completed", "2019-01-01", true),
        ("completed", "2018-07-01", false),
        ("stopped", "2019-01-01", false),
    ] {
        let line = format!("{{\"status\":\"{status}\",\"authoredOn\":\"{authored}\"}}");
        assert_eq!(matcher.matches(line.as_bytes()), Ok(expected), "{line}");
    }
    assert_eq!(Matcher::new(&[]).unwrap().matches(b"{}"), Ok(false));
    assert_eq!(matcher.matches(b"{}"), Ok(false));
    assert!(matches("Patient?", "{}"));
    let mixed = [filter("Patient?"), filter("Group?")];
    assert_eq!(
        Matcher::new(&mixed).err(),
        Some(MixedTypes("Patient".parse().unwrap(), "Group".parse().unwrap()))
    );
}

#[test]
fn last_updated_may_come_from_the_caller() {
    let at = |text: &str| Some(text.parse::<Instant>().unwrap());
    let stated = br#"{"meta":{"lastUpdated":"2020-05-01T00:00:00.500Z"}}"#;
    for (text, line, fallback, expected) in [
        ("gt2020", &stated[..], None, false),
        ("ge2020-05-01", stated, None, true),
        ("2020-05-01T00:00:00Z", stated, None, true),
        ("gt2020-05-01T00:00:00Z", stated, None, false),
        ("gt2020-05-01T00:00:00.499Z", stated, None, true),
        ("2021", stated, at("2021-05-01T00:00:00Z"), false),
        ("2021", b"{}", at("2021-05-01T00:00:00Z"), true),
        ("lt2021", b"{\"meta\":{}}", at("2021-05-01T00:00:00Z"), false),
        ("2021", b"{}", None, false),
        ("ne2021", b"{}", None, false),
    ] {
        let matcher = matcher(&format!("Patient?_lastUpdated={text}"));
        assert_eq!(matcher.matches_at(line, fallback), Ok(expected), "{text}");
    }
    let missing = matcher("Patient?_lastUpdated:missing=true");
    assert_eq!(missing.matches(b"{}"), Ok(true));
    assert_eq!(missing.matches_at(b"{}", at("2021-05-01T00:00:00Z")), Ok(false));
}

#[test]
fn contained_resources_and_extensions_are_not_searched() {
    let line = r##"{"resourceType":"Observation","contained":[{"resourceType":"Patient","id":"p","status":"final"}],
        "extension":[{"status":"final"}],"_status":{"id":"final"},"status":"amended","subject":{"reference":"#p"}}"##;
    check(
        line,
        &[
            ("Observation?status=final", false),
            ("Observation?status=amended", true),
            ("Observation?_id=p", false),
            ("Observation?subject=p", false),
            ("Observation?subject:missing=false", true),
            // The reference into the row is one to a patient all the same.
            ("Observation?patient:missing=false", true),
        ],
    );
    let group = line.replace("\"Patient\"", "\"Group\"");
    check(&group, &[("Observation?patient:missing=true", true), ("Observation?subject:missing=true", false)]);
}

#[test]
fn references_to_one_type_are_told_apart() {
    for (subject, is_patient) in [
        (r#"{"reference":"Patient/1"}"#, true),
        (r#"{"reference":"Patient/1/_history/2"}"#, true),
        (r#"{"reference":"http://example.org/fhir/Patient/1"}"#, true),
        (r#"{"reference":"Group/1"}"#, false),
        (r#"{"reference":"http://example.org/Patient/Group/1","type":"Patient"}"#, false),
        (r#"{"reference":"urn:uuid:1","type":"Patient"}"#, true),
        (r#"{"identifier":{"value":"7"},"type":"Patient"}"#, true),
        (r#"{"identifier":{"value":"7"}}"#, false),
        ("{}", false),
        ("7", false),
    ] {
        let line = format!("{{\"subject\":{subject}}}");
        check(
            &line,
            &[
                ("Observation?patient:missing=false", is_patient),
                ("Observation?patient:missing=true", !is_patient),
            ],
        );
    }
    let line = r#"{"subject":{"identifier":{"system":"s","value":"7"},"type":"Patient"}}"#;
    check(
        line,
        &[("Observation?patient:identifier=s|7", true), ("Observation?patient:identifier=s|8", false)],
    );
}

#[test]
fn rows_of_other_shapes_do_not_match() {
    for line in [
        r#"{"code":"x","status":{"a":"final"},"valueQuantity":[],"effectiveDateTime":7,"subject":"Patient/1"}"#,
        r#"{"code":{"coding":{"code":null}},"status":null,"valueQuantity":{"value":"5"},"subject":{"reference":{}}}"#,
        r#"{"code":[[{"coding":[{"code":"x"}]}]],"valueQuantity":{"value":{}},"effectivePeriod":{"start":"?"}}"#,
    ] {
        check(
            line,
            &[
                ("Observation?code=x", false),
                ("Observation?code:text=x", false),
                ("Observation?status=final", false),
                ("Observation?value-quantity=5", false),
                ("Observation?date=ne2018", false),
                ("Observation?subject=Patient/1", false),
                ("Observation?patient=1", false),
                ("Observation?code-value-quantity=x$5", false),
            ],
        );
    }
    for malformed in ["", "[]", "{\"a\":", "{\"a\" 1}", "null", "{\"status\":}"] {
        assert!(matcher("Observation?status=final").matches(malformed.as_bytes()).is_err(), "{malformed}");
    }
}

#[test]
fn one_of_many_values_is_found() {
    // Longer than what a look at each would allow, in no order, with systems and repeats.
    let many =
        |one: fn(usize) -> String| (0..900).map(|n| one(n * 7919 % 1_000)).collect::<Vec<_>>().join(",");
    let codes = many(|n| format!("{}{n}", ["", "|", "s|", "t|"][n % 4]));
    let links = many(|n| format!("{}{n}", ["", "Patient/", "Group/", "http://a.b/Patient/"][n % 4]));
    for n in 0..1_000 {
        let asked = (0..900).any(|one| one * 7919 % 1_000 == n);
        for (system, right) in [("\"system\":\"s\",", [0, 2]), ("", [0, 1]), ("\"system\":\"t\",", [0, 3])] {
            let line = format!("{{\"code\":{{\"coding\":[{{{system}\"code\":\"{n}\"}}]}}}}");
            let expected = asked && right.contains(&(n % 4));
            assert_eq!(matches(&format!("Observation?code={codes}"), &line), expected, "{line}");
        }
        for (base, right) in [("Patient/", [0, 1]), ("Group/", [0, 2]), ("http://a.b/Patient/", [3, 3])] {
            let line = format!("{{\"subject\":{{\"reference\":\"{base}{n}\"}}}}");
            let expected = asked && right.contains(&(n % 4));
            assert_eq!(matches(&format!("Observation?subject={links}"), &line), expected, "{line}");
        }
    }
}

#[test]
fn escapes_in_rows_are_understood() {
    let line = r#"{"n\u0061me":[{"family":"O\u2019Brien \"Bob\"","given":["A\\B"]}],"id":"a\u002d1"}"#;
    check(
        line,
        &[
            ("Patient?name=o’brien \"b", true),
            ("Patient?name:exact=O’Brien \"Bob\"", true),
            ("Patient?given:exact=A\\\\B", true),
            ("Patient?given=a\\\\b", true),
            ("Patient?_id=a-1", true),
        ],
    );
}

/// One observation with values of many kinds, some of them absent.
fn observations() -> impl Strategy<Value = String> {
    let code = "[ab]{0,2}".prop_map(|code| format!("{{\"code\":\"{code}\"}}"));
    let system = prop_oneof![Just(""), Just("\"system\":\"s\","), Just("\"system\":\"t\",")];
    let coding = (system, "[ab]{1,2}").prop_map(|(system, code)| format!("{{{system}\"code\":\"{code}\"}}"));
    let concept = prop::collection::vec(prop_oneof![coding, code], 0..3)
        .prop_map(|codings| format!("\"code\":{{\"coding\":[{}]}}", codings.join(",")));
    let status = "final|amended".prop_map(|status| format!("\"status\":\"{status}\""));
    let date = "20(18|19)(-0[1-3](-1[0-2])?)?".prop_map(|date| format!("\"effectiveDateTime\":\"{date}\""));
    let subject = "(Patient|Group)/[12]".prop_map(|link| format!("\"subject\":{{\"reference\":\"{link}\"}}"));
    let value = "[0-3](\\.[0-9])?"
        .prop_map(|value| format!("\"valueQuantity\":{{\"value\":{value},\"code\":\"mg\"}}"));
    let parts: [BoxedStrategy<String>; 5] =
        [concept.boxed(), status.boxed(), date.boxed(), subject.boxed(), value.boxed()];
    let parts = parts.map(prop::option::of);
    parts
        .to_vec()
        .prop_map(|parts| format!("{{{}}}", parts.into_iter().flatten().collect::<Vec<_>>().join(",")))
}

/// A parameter with a value.
fn clauses() -> impl Strategy<Value = (&'static str, String)> {
    prop_oneof![
        "(([st]?\\|)?[ab]{1,2}|[st]\\|)".prop_map(|value| ("code", value)),
        "final|amended|x".prop_map(|value| ("status", value)),
        "(eq|ne|gt|lt|ge|le|sa|eb|ap)?20(18|19)(-0[1-3](-1[0-2])?)?".prop_map(|value| ("date", value)),
        "(Patient/|Group/)?[123]".prop_map(|value| ("subject", value)),
        "(eq|ne|gt|lt|ge|le|sa|eb|ap)?[0-3](\\.[05])?(\\|\\|mg)?".prop_map(|value| ("value-quantity", value)),
        "[st]\\|[ab]\\$(gt|le)?[0-3]".prop_map(|value| ("code-value-quantity", value)),
    ]
}

proptest! {
    #[test]
    fn not_and_missing_are_complements(line in observations(), (code, value) in clauses(), values in prop::collection::vec("(s\\|)?[ab]{1,2}", 1..3)) {
        let values = values.join(",");
        prop_assert_ne!(matches(&format!("Observation?code={values}"), &line), matches(&format!("Observation?code:not={values}"), &line));
        let absent = matches(&format!("Observation?{code}:missing=true"), &line);
        prop_assert_ne!(absent, matches(&format!("Observation?{code}:missing=false"), &line));
        // What is absent has no value that matches.
        let matched = matches(&format!("Observation?{code}={value}"), &line);
        prop_assert!(!(absent && matched));
    }

    #[test]
    fn commas_filters_and_clauses_combine(line in observations(), (code, one) in clauses(), (other_code, other) in clauses()) {
        let first = format!("{code}={one}");
        let second = format!("{other_code}={other}");
        let (a, b) = (matches(&format!("Observation?{first}"), &line), matches(&format!("Observation?{second}"), &line));
        prop_assert_eq!(matches(&format!("Observation?{first}&{second}"), &line), a && b);
        let either = Matcher::new(&[filter(&format!("Observation?{first}")), filter(&format!("Observation?{second}"))]).unwrap();
        prop_assert_eq!(either.matches(line.as_bytes()), Ok(a || b));
        if code == other_code {
            prop_assert_eq!(matches(&format!("Observation?{code}={one},{other}"), &line), a || b);
        }
    }

    #[test]
    fn single_values_have_one_place_among_prefixes(date in "20(18|19)-0[1-3]-1[0-2]", asked in "20(18|19)(-0[1-3](-1[0-2])?)?") {
        let line = format!("{{\"effectiveDateTime\":\"{date}\"}}");
        let is = |prefix: &str| matches(&format!("Observation?date={prefix}{asked}"), &line);
        // A day lies in a day, month or year, or before, or behind.
        prop_assert_eq!([is("eq"), is("sa"), is("eb")].iter().filter(|is| **is).count(), 1);
        prop_assert_eq!(is("ne"), !is("eq"));
        prop_assert_eq!((is("gt"), is("lt"), is("ap")), (is("sa"), is("eb"), is("eq")));
        prop_assert_eq!((is("ge"), is("le")), (is("gt") || is("eq"), is("lt") || is("eq")));
    }

    #[test]
    fn any_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200), junk in "[\\[\\]{}\",:\\\\a0-]{0,60}", at in 0_usize..200) {
        let matcher = Matcher::new(&[
            filter("Observation?code=s|a&patient=1&date=2018&value-quantity=5&code-value-quantity=a$1"),
            filter("Observation?combo-code-value-quantity=a$1&component-value-quantity=gt5&_tag=x"),
        ]).unwrap();
        let _ = matcher.matches(&bytes);
        let mut line = br#"{"code":{"coding":[{"system":"s","code":"a"}]},"component":[{"code":{},"valueQuantity":{"value":5}}],"subject":{"reference":"Patient/1"}}"#.to_vec();
        let at = at.min(line.len());
        line.splice(at..at, junk.bytes());
        let _ = matcher.matches(&line);
        line.truncate(at);
        let _ = matcher.matches(&line);
    }
}
