//! Tokens (<http://hl7.org/fhir/R4/search.html#token>).

use crate::compare::keyed;
use crate::json::{elements, is_text, members, text};
use crate::parameter::FhirType;
use crate::value::{System, Token, Wanted};

/// The system that boolean values have by the standard, and never carry.
const SPECIAL_VALUES: &str = "http://terminology.hl7.org/CodeSystem/special-values";

/// Whether a boolean is what is wanted.
pub(crate) fn boolean(value: bool, wanted: &Wanted) -> bool {
    matches!(wanted, Wanted::Token(token) if boolean_token(value, token))
}

fn boolean_token(value: bool, token: &Token) -> bool {
    let code = if value { "true" } else { "false" };
    let system = match &token.system {
        System::Any | System::Absent => true,
        System::Is(system) => system == SPECIAL_VALUES,
    };
    system && token.code.as_deref() == Some(code)
}

/// Whether a value is one of the tokens.
pub(crate) fn any(kind: &FhirType, value: &[u8], wanted: &[Wanted]) -> bool {
    match kind {
        FhirType::Coding => pair(value, "code", wanted),
        FhirType::CodeableConcept => {
            let [codings] = members(value, ["coding"]);
            codings.is_some_and(|codings| elements(codings).any(|coding| pair(coding, "code", wanted)))
        }
        FhirType::Identifier => pair(value, "value", wanted),
        FhirType::Code(systems) => {
            let code = text(value);
            candidates(wanted, code.as_deref()).any(|token| match &token.system {
                System::Any | System::Absent => true,
                System::Is(system) => systems.contains(&system.as_str()),
            })
        }
        FhirType::Boolean => match value {
            b"true" => wanted.iter().any(|one| boolean(true, one)),
            b"false" => wanted.iter().any(|one| boolean(false, one)),
            _ => false,
        },
        FhirType::ContactPoint => {
            let [number] = members(value, ["value"]);
            number.is_some_and(|number| bare(number, wanted))
        }
        FhirType::Id | FhirType::Uri | FhirType::Canonical => bare(value, wanted),
        FhirType::Text => {
            let lower = text(value).map(|text| text.to_lowercase());
            let same = |token: &Token| token.code.as_ref().map(|code| code.to_lowercase()) == lower;
            lower.is_some()
                && tokens(wanted).any(|token| !matches!(token.system, System::Is(_)) && same(token))
        }
        _ => false,
    }
}

fn tokens(wanted: &[Wanted]) -> impl Iterator<Item = &Token> {
    wanted.iter().filter_map(|one| if let Wanted::Token(token) = one { Some(token) } else { None })
}

/// Tokens whose code is this one or does not matter.
fn candidates<'w>(wanted: &'w [Wanted], code: Option<&str>) -> impl Iterator<Item = &'w Token> {
    let same = if code.is_some() { keyed(wanted, code) } else { &[] };
    tokens(keyed(wanted, None)).chain(tokens(same))
}

/// A value that cannot have a system.
fn bare(value: &[u8], wanted: &[Wanted]) -> bool {
    let code = text(value);
    code.is_some()
        && candidates(wanted, code.as_deref())
            .any(|token| !matches!(token.system, System::Is(_)) && token.code.is_some())
}

/// A coding or an identifier.
fn pair(object: &[u8], code_member: &str, wanted: &[Wanted]) -> bool {
    let [system, code] = members(object, ["system", code_member]);
    let code = code.and_then(text);
    candidates(wanted, code.as_deref()).any(|token| has_system(system, token))
}

fn has_system(system: Option<&[u8]>, token: &Token) -> bool {
    match &token.system {
        System::Any => true,
        System::Absent => system.is_none(),
        System::Is(wanted) => system.is_some_and(|system| is_text(system, wanted)),
    }
}

/// Whether an identifier is this one.
pub(super) fn is_identifier(identifier: &[u8], token: &Token) -> bool {
    let [system, value] = members(identifier, ["system", "value"]);
    let value_fits = |wanted: &String| value.is_some_and(|value| is_text(value, wanted));
    has_system(system, token) && token.code.as_ref().is_none_or(value_fits)
}

/// Whether an identifier has a value and a type.
pub(super) fn of_type(identifier: &[u8], system: &str, code: &str, wanted: &str) -> bool {
    let [kind, value] = members(identifier, ["type", "value"]);
    if !value.is_some_and(|value| is_text(value, wanted)) {
        return false;
    }
    let [codings] = members(kind.unwrap_or_default(), ["coding"]);
    codings.is_some_and(|codings| {
        elements(codings).any(|coding| {
            let [its_system, its_code] = members(coding, ["system", "code"]);
            its_system.is_some_and(|found| is_text(found, system))
                && its_code.is_some_and(|found| is_text(found, code))
        })
    })
}

/// Whether one of the texts that stand by a code passes.
pub(super) fn any_code_text(kind: &FhirType, value: &[u8], passes: &dyn Fn(&[u8]) -> bool) -> bool {
    match kind {
        FhirType::Coding => {
            let [display] = members(value, ["display"]);
            display.is_some_and(passes)
        }
        FhirType::CodeableConcept => {
            let [text, codings] = members(value, ["text", "coding"]);
            let by_display = |coding: &[u8]| any_code_text(&FhirType::Coding, coding, passes);
            text.is_some_and(passes) || codings.is_some_and(|codings| elements(codings).any(by_display))
        }
        FhirType::Identifier => {
            let [kind] = members(value, ["type"]);
            let [text] = members(kind.unwrap_or_default(), ["text"]);
            text.is_some_and(passes)
        }
        _ => false,
    }
}
