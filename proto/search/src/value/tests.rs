use super::*;
use crate::filter::Filter;
use crate::parameter::{self, Source};

fn shape(of: &str, code: &str, modifier: Modifier) -> Shape<'static> {
    let parameter = parameter::find(of.parse().unwrap(), code).unwrap();
    let Source::Values(paths) = parameter.source() else { panic!("{code}") };
    Shape { kind: parameter.kind(), modifier, paths, components: &[] }
}

fn token(system: System, code: Option<&str>) -> Wanted {
    Wanted::Token(Token { system, code: code.map(Into::into) })
}

#[test]
fn tokens_have_four_forms() {
    let parse = |text| Wanted::parse(shape("Observation", "code", Modifier::None), text);
    assert_eq!(parse("1"), Ok(token(System::Any, Some("1"))));
    assert_eq!(parse("s|1"), Ok(token(System::Is("s".into()), Some("1"))));
    assert_eq!(parse("|1"), Ok(token(System::Absent, Some("1"))));
    assert_eq!(parse("s|"), Ok(token(System::Is("s".into()), None)));
    assert_eq!(parse("s\\|t|1\\,2\\$\\\\"), Ok(token(System::Is("s|t".into()), Some("1,2$\\"))));
}

#[test]
fn links_have_their_forms() {
    let local = |kind: &str, id: &str, version: Option<&str>| {
        Wanted::Reference(Link::Local {
            kind: kind.parse().unwrap(),
            id: id.into(),
            version: version.map(Into::into),
        })
    };
    let url = |url: &str, version: Option<&str>| {
        Wanted::Reference(Link::Url { url: url.into(), version: version.map(Into::into) })
    };
    let plain = shape("Observation", "subject", Modifier::None);
    for (text, link) in [
        ("23", Wanted::Reference(Link::Id("23".into()))),
        ("Patient/23", local("Patient", "23", None)),
        ("Patient/23/_history/4", local("Patient", "23", Some("4"))),
        ("http://example.org/fhir/Patient/23", url("http://example.org/fhir/Patient/23", None)),
        ("http://example.org/Patient/23/_history/4", url("http://example.org/Patient/23", Some("4"))),
        ("urn:uuid:0-1", url("urn:uuid:0-1", None)),
        ("http://example.org/x|1.0", url("http://example.org/x", Some("1.0"))),
        ("http://example.org/x\\|1.0", url("http://example.org/x", Some("1.0"))),
    ] {
        assert_eq!(Wanted::parse(plain, text), Ok(link), "{text}");
    }
    let typed = shape("Observation", "subject", Modifier::Type(ResourceType::PATIENT));
    assert_eq!(Wanted::parse(typed, "23"), Ok(local("Patient", "23", None)));
    assert_eq!(Wanted::parse(typed, "Patient/23"), Ok(local("Patient", "23", None)));
    for wrong in ["Group/23", "a b", "http://x/y"] {
        assert!(Wanted::parse(typed, wrong).is_err(), "{wrong}");
    }
    for wrong in ["Patient/", "/23", "Patient/2/3", "a b", "Patient/1/_history/", "1:2", "x/y"] {
        assert!(Wanted::parse(plain, wrong).is_err(), "{wrong}");
    }
}

#[test]
fn prefixes_are_two_letters_before_the_value() {
    for (text, prefix) in Prefix::ALL {
        let parsed = Wanted::parse(shape("Observation", "date", Modifier::None), &format!("{text}2018"));
        assert_eq!(parsed, Ok(Wanted::Date(prefix, DateRange::parse("2018").unwrap())));
        let parsed =
            Wanted::parse(shape("RiskAssessment", "probability", Modifier::None), &format!("{text}0.5"));
        assert_eq!(parsed, Ok(Wanted::Number(prefix, Decimal::parse("0.5").unwrap())));
    }
    // In a text they are letters.
    let parsed = Wanted::parse(shape("Patient", "name", Modifier::None), "Leo");
    assert_eq!(parsed, Ok(Wanted::Start("leo".into())));
}

#[test]
fn quantities_have_three_forms() {
    let parse = |text| Wanted::parse(shape("Observation", "value-quantity", Modifier::None), text);
    let number = || Decimal::parse("5.4").unwrap();
    let unit =
        |system: Option<&str>, code: &str| Some(Unit { system: system.map(Into::into), code: code.into() });
    assert_eq!(parse("5.4"), Ok(Wanted::Quantity(Prefix::Eq, number(), None)));
    assert_eq!(
        parse("le5.4|http://u|mg"),
        Ok(Wanted::Quantity(Prefix::Le, number(), unit(Some("http://u"), "mg")))
    );
    assert_eq!(parse("5.4||mg"), Ok(Wanted::Quantity(Prefix::Eq, number(), unit(None, "mg"))));
}

#[test]
fn composites_parse_their_parts_by_kind() {
    assert!(Filter::parse("Observation?code-value-quantity=http://loinc.org|1$gt5||mg").is_ok());
    assert!(Filter::parse("Observation?code-value-string=1$a\\$b").is_ok());
    assert!(Filter::parse("DocumentReference?relationship=replaces$DocumentReference/1").is_ok());
    assert!(Filter::parse("MolecularSequence?chromosome-variant-coordinate=1$lt345$gt123").is_ok());
    assert!(Filter::parse("Observation?code-value-quantity:missing=true").is_ok());
}
