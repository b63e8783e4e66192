use proptest::prelude::*;

use super::*;
use crate::limits::MAX_ECHO;
use crate::parameter::parameters;

fn parsed(text: &str) -> Filter {
    Filter::parse(text).unwrap_or_else(|errors| panic!("{text}: {errors:?}"))
}

fn errors(text: &str) -> Vec<FilterError> {
    Filter::parse(text).err().unwrap_or_else(|| panic!("{text} is a filter"))
}

fn refusal(text: &str) -> String {
    let errors = errors(text);
    assert_eq!(errors.len(), 1, "{text}: {errors:?}");
    errors[0].to_string()
}

#[test]
fn filters_of_the_contract_are_understood() {
    for (text, canonical) in [
        ("Observation?status=final", "Observation?status=final"),
        (
            "MedicationRequest?status=completed&authoredon=gt2018-07-01",
            "MedicationRequest?status=completed&authoredon=gt2018-07-01",
        ),
        ("Observation?code=http://loinc.org|4548-4", "Observation?code=http://loinc.org|4548-4"),
        ("Observation?code=http%3A%2F%2Floinc.org%7C4548-4", "Observation?code=http://loinc.org|4548-4"),
        ("Observation%3Fstatus%3Dfinal", "Observation?status=final"),
        ("Observation%3Fcode%3Dhttp%253A%252F%252Floinc.org%257C1", "Observation?code=http://loinc.org|1"),
        ("Patient?name%3Aexact=Jos%C3%A9", "Patient?name:exact=Jos%C3%A9"),
        ("Patient?", "Patient?"),
        ("Patient?&_id=a&&_tag=b&", "Patient?_id=a&_tag=b"),
        ("Patient?identifier:ofType=s|c|v", "Patient?identifier:of-type=s|c|v"),
        ("Condition?subject:Patient=23", "Condition?subject:Patient=23"),
        (
            "Patient?_lastUpdated=gt2020-01-01T00:00:00+02:00",
            "Patient?_lastUpdated=gt2020-01-01T00:00:00%2B02:00",
        ),
        (
            "Patient?_lastUpdated=gt2020-01-01T00:00:00 02:00",
            "Patient?_lastUpdated=gt2020-01-01T00:00:00%2002:00",
        ),
        ("Patient?name=a\\,b,c", "Patient?name=a\\,b,c"),
    ] {
        let filter = parsed(text);
        assert_eq!(filter.to_string(), canonical);
        assert_eq!(parsed(canonical), filter);
    }
    assert_eq!(parsed("Patient?_id=1&name=x").parameters().collect::<Vec<_>>(), ["_id", "name"]);
}

#[test]
fn what_is_wrong_is_named() {
    for (text, words) in [
        ("Patient", "expected a search like"),
        ("", "expected a search like"),
        ("status=final", "expected a search like"),
        ("?_lastUpdated=gt2020", "`?`: a filter is a search on one resource type"),
        (
            "Patient/p1/Observation?code=x",
            "`Patient/p1/Observation?`: a filter is a search on one resource type",
        ),
        ("http://example.org/Patient?name=x", "a filter is a search on one resource type"),
        ("patient?name=x", "`patient` is no resource type"),
        ("Patient?foo=1", "Patient has no search parameter `foo`"),
        ("Patient?Name=1", "Patient has no search parameter `Name`"),
        ("Patient?=1", "Patient has no search parameter ``"),
        ("Patient?_sort=name", "`_sort` shapes the results"),
        ("Patient?_include:iterate=Patient:organization", "`_include` shapes the results"),
        ("Patient?_has:Observation:patient:code=1", "`_has` is not supported: reverse chaining"),
        ("Patient?_filter=name eq x", "`_filter` is not supported"),
        ("Patient?_text=x", "`_text` is not supported: full text"),
        ("Patient?_content=x", "`_content` is not supported: full text"),
        ("Patient?_query=x", "`_query` is not supported"),
        ("Patient?_list=42", "`_list` is not supported"),
        ("Patient?_type=Patient", "`_type` is not supported"),
        ("Patient?phonetic=x", "`phonetic` is not supported"),
        ("Location?near=42.25|-83.69", "`near` is not supported"),
        ("Observation?subject.name=peter", "`subject.name`: chained parameters"),
        ("Observation?subject:Patient.name=peter", "`subject:Patient.name`: chained parameters"),
        ("Observation?nobody.name=peter", "Observation has no search parameter `nobody`"),
        ("Observation?code:in=http://example.org/vs", "`code:in`: the modifier is not supported: value sets"),
        ("Observation?code:not-in=http://example.org/vs", "`code:not-in`: the modifier is not supported"),
        ("Observation?code:above=1", "`code:above`: the modifier is not supported: code systems"),
        ("Observation?subject:below=1", "`subject:below`: the modifier is not supported: hierarchies"),
        ("Observation?code:exact=1", "`code` is a token parameter and has no modifier `:exact`"),
        ("Observation?code:=1", "`code` is a token parameter and has no modifier `:`"),
        ("Observation?date:not=2018", "`date` is a date parameter and has no modifier `:not`"),
        ("Observation?status:text=final", "`status` is a token parameter and has no modifier `:text`"),
        ("Observation?code:of-type=a|b|c", "`code` is a token parameter and has no modifier `:of-type`"),
        (
            "Observation?subject:Medication=1",
            "`subject` is a reference parameter and has no modifier `:Medication`",
        ),
        ("Observation?code-value-quantity:not=a$1", "a composite parameter and has no modifier `:not`"),
        ("Patient?name", "`name`: expected a value, got ``"),
        ("Patient?name=", "`name`: expected a value, got ``"),
        ("Observation?status=final,,amended", "`status`: expected a value"),
        ("Patient?active=yes", "`active`: expected true or false, got `yes`"),
        ("Patient?deceased=2018", "`deceased`: expected true or false"),
        ("Patient?birthdate:missing=1", "`birthdate:missing`: expected true or false"),
        ("Patient?birthdate=18", "`birthdate`: expected a date or time like"),
        ("Patient?birthdate=gt", "`birthdate`: expected a date or time like"),
        ("Patient?birthdate=po2018", "`birthdate`: expected a date or time like"),
        ("RiskAssessment?probability=gt0,5x", "`probability`: expected a number"),
        ("Observation?value-quantity=5.4|mg", "`value-quantity`: expected number, number|system|code"),
        ("Observation?value-quantity=5.4|s|", "`value-quantity`: expected number, number|system|code"),
        ("Observation?code=a|b|c", "`code`: expected code, system|code"),
        ("Observation?code=|", "`code`: expected code, system|code"),
        ("Patient?identifier:of-type=a|b", "`identifier:of-type`: expected type-system|type-code|identifier"),
        ("Patient?phone=tel|555", "`phone`: expected a code without a system"),
        ("Observation?subject=Patient/", "`subject`: expected id, Type/id or an absolute address"),
        ("Observation?subject=Nobody/1", "`subject`: expected id, Type/id"),
        ("Observation?code-value-quantity=a", "`code-value-quantity`: expected the values of all components"),
        ("Observation?code-value-quantity=a$x", "`code-value-quantity`: expected number"),
        ("ValueSet?url:below=urn:oid:1.2", "`url:below`: expected a URL"),
        ("Patient?name=a\\nb", "`name`: expected `\\` only before"),
        ("Patient?name=%zz", "not valid percent-encoding"),
        ("Patient?name=%ff", "not valid percent-encoding"),
        ("Patient?name:exact=%CC%81%", "not valid percent-encoding"),
        ("Patient?name=%CC%81", "`name`: expected a text that is more than accents"),
        ("%ff", "not valid percent-encoding"),
    ] {
        let message = refusal(text);
        assert!(message.contains(words), "{text}: {message}");
    }
}

#[test]
fn unsupported_is_told_from_wrong() {
    for (text, unsupported) in [
        ("Observation?code:in=http://x", true),
        ("Observation?subject.name=x", true),
        ("Patient?_text=x", true),
        ("Patient?_has:Observation:patient:code=1", true),
        ("Patient?foo=1", false),
        ("Patient?_sort=name", false),
        ("Patient?active=yes", false),
        ("Patient?name:wrong=x", false),
    ] {
        assert_eq!(errors(text)[0].is_unsupported(), unsupported, "{text}");
    }
}

#[test]
fn all_faults_are_found_at_once() {
    let found = errors("Patient?foo=1&active=yes,no&_sort=x&name=ok&gender:in=y");
    assert_eq!(found.len(), 5, "{found:?}");
}

#[test]
fn errors_repeat_no_more_than_a_piece() {
    let long = "x\n".repeat(200);
    for text in [
        format!("Patient?active={long}"),
        format!("Patient?{long}=1"),
        format!("{long}?name=1"),
        format!("Patient?name:{long}=1"),
        format!("Patient?name={long}%"),
        long.clone(),
    ] {
        let message = refusal(&text);
        assert!(!message.contains('\n') && message.len() < 160 + 2 * 3 * MAX_ECHO, "{message}");
    }
}

#[test]
fn limits_are_kept() {
    let values = |count: usize| format!("Patient?_id={}", vec!["a"; count].join(","));
    assert!(Filter::parse(&values(MAX_VALUES)).is_ok());
    assert_eq!(errors(&values(MAX_VALUES + 1)), [FilterError::TooManyValues("_id".to_owned())]);
    let clauses = |count: usize| format!("Patient?{}", vec!["_id=a"; count].join("&"));
    assert!(Filter::parse(&clauses(MAX_CLAUSES)).is_ok());
    assert_eq!(errors(&clauses(MAX_CLAUSES + 1)), [FilterError::TooManyClauses]);
    assert_eq!(errors(&"x".repeat(MAX_FILTER + 1)), [FilterError::TooLong]);
}

#[test]
fn debug_shows_no_values() {
    let shown = format!("{:?}", parsed("Patient?name:exact=Secret&_id=p1"));
    assert_eq!(shown, "Filter(Patient?name:exact&_id)");
}

#[test]
fn legacy_lists_are_split_before_types_only() {
    for (text, parts) in [
        (
            "MedicationRequest?status=active,completed,Condition?code=x",
            &["MedicationRequest?status=active,completed", "Condition?code=x"][..],
        ),
        ("Patient?name=a,Foo?x=1", &["Patient?name=a", "Foo?x=1"]),
        ("Patient?name=a\\,Condition?code=x", &["Patient?name=a\\,Condition?code=x"]),
        ("Patient?name=a\\\\,Condition?code=x", &["Patient?name=a\\\\", "Condition?code=x"]),
        ("Patient%3Fname%3Da,Condition%3fcode%3Dx", &["Patient%3Fname%3Da", "Condition%3fcode%3Dx"]),
        ("Subscription?criteria=a,A%3Fa", &["Subscription?criteria=a,A%3Fa"]),
        ("Observation?code=A,B,condition?x", &["Observation?code=A,B,condition?x"]),
        ("", &[""]),
        ("Patient?name=é,Group?_id=1", &["Patient?name=é", "Group?_id=1"]),
    ] {
        assert_eq!(split_legacy(text), parts, "{text}");
    }
}

/// A value that is right for a kind of parameter.
fn value_of(kind: Kind) -> BoxedStrategy<String> {
    match kind {
        Kind::Token => "[a-z%&=+# é]{1,9}(\\|[0-9-]{1,6})?".boxed(),
        Kind::String => "[A-Za-zéß%&=+?# ]{0,9}[a-z](\\\\,[a-z])?".boxed(),
        Kind::Date => "(eq|ne|gt|lt|ge|le|sa|eb|ap)?(19|20)[0-9]{2}(-0[1-9](-[12][0-9](T1[0-9]:30(:15(\\.[0-9]{1,4})?)?(Z|[-+]0[0-9]:00))?)?)?".boxed(),
        Kind::Number => "(gt|ap)?-?[0-9]{1,9}(\\.[0-9]{1,5})?(e-?[0-9])?".boxed(),
        Kind::Quantity => "(lt)?[0-9]{1,4}(\\.[0-9]{1,3})?(\\|[a-z:/%]{0,9}\\|[a-z\\[\\]]{1,4})?".boxed(),
        Kind::Reference => "(Patient/)?[A-Za-z0-9.-]{1,20}|http://[a-z./%?=&-]{1,20}|urn:uuid:[0-9a-f]{4}".boxed(),
        Kind::Uri => "http://[a-z./%?=&#-]{1,20}(\\\\\\|1\\.0)?".boxed(),
        Kind::Composite | Kind::Special => Just(String::new()).boxed(),
    }
}

fn encoded(text: &str) -> String {
    let mut into = String::new();
    percent_encode(text, &mut into).unwrap();
    into
}

fn any_filter() -> impl Strategy<Value = String> {
    let types: Vec<ResourceType> = ResourceType::all().collect();
    prop::sample::select(types).prop_flat_map(|of| {
        let usable: Vec<&'static Parameter> =
            parameters(of).filter(|one| one.is_supported() && one.kind() != Kind::Composite).collect();
        let one = prop::sample::select(usable).prop_flat_map(|parameter| {
            prop::collection::vec(value_of(parameter.kind()), 1..4)
                .prop_map(move |values| format!("{}={}", parameter.code(), encoded(&values.join(","))))
        });
        prop::collection::vec(one, 0..4).prop_map(move |clauses| format!("{of}?{}", clauses.join("&")))
    })
}

proptest! {
    #[test]
    fn what_is_printed_parses_back(text in any_filter()) {
        // Some values do not fit some parameters, such as words for booleans.
        if let Ok(filter) = Filter::parse(&text) {
            let printed = filter.to_string();
            let again = Filter::parse(&printed);
            prop_assert_eq!(again, Ok(filter.clone()), "{} {}", text, printed);
            let list = format!("{printed},{printed}");
            prop_assert_eq!(split_legacy(&list), [&printed, &printed]);
            let wrapped = Filter::parse(&encoded(&printed).replace('=', "%3D"));
            prop_assert_eq!(wrapped, Ok(filter));
        }
    }

    #[test]
    fn any_text_is_a_filter_or_not(text in "(Patient|Observation|[A-Za-z/]{0,9})?\\??\\PC{0,80}") {
        let _ = Filter::parse(&text);
        prop_assert_eq!(split_legacy(&text).join(","), text);
    }

    #[test]
    fn any_query_is_a_filter_or_not(query in "(name|code|date|subject|_lastUpdated|value-quantity|url)(:[a-zA-Z.-]{0,8})?=[-a-z0-9,|$\\\\.:%/+TZé]{0,30}") {
        for of in ["Patient", "Observation", "ValueSet"] {
            let _ = Filter::parse(&format!("{of}?{query}"));
        }
    }
}
