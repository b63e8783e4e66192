//! Strings and addresses (<http://hl7.org/fhir/R4/search.html#string>, <http://hl7.org/fhir/R4/search.html#uri>), and
//! texts that stand by codes.

use crate::compare::tokens;
use crate::json::{elements, is_text, members, text};
use crate::parameter::FhirType;
use crate::text::{folded_contains, folded_starts_with};
use crate::value::Wanted;

/// Whether a value is what is asked for.
pub(super) fn is(kind: &FhirType, value: &[u8], wanted: &Wanted) -> bool {
    let starts =
        |wanted: &str, value: &[u8]| text(value).is_some_and(|text| folded_starts_with(&text, wanted));
    match wanted {
        Wanted::Start(wanted) => any_part(kind, value, &|part| starts(wanted, part)),
        Wanted::Part(wanted) => {
            any_part(kind, value, &|part| text(part).is_some_and(|text| folded_contains(&text, wanted)))
        }
        Wanted::Exact(wanted) => any_part(kind, value, &|part| is_text(part, wanted)),
        Wanted::CodeText(wanted) => tokens::any_code_text(kind, value, &|part| starts(wanted, part)),
        Wanted::OfType { system, code, value: wanted } => {
            *kind == FhirType::Identifier && tokens::of_type(value, system, code, wanted)
        }
        Wanted::Uri(wanted) => match kind {
            FhirType::Canonical => text(value).is_some_and(|text| same_canonical(&text, wanted)),
            _ => is_text(value, wanted),
        },
        Wanted::UriBelow(wanted) => text(value).is_some_and(|text| is_below(&text, wanted)),
        // The value is above what is asked for if that is below the value.
        Wanted::UriAbove(wanted) => text(value)
            .is_some_and(|text| text.contains("://") && is_below(wanted, text.trim_end_matches('/'))),
        _ => false,
    }
}

/// Whether one of the texts of a value passes: a name and an address have many.
fn any_part(kind: &FhirType, value: &[u8], passes: &dyn Fn(&[u8]) -> bool) -> bool {
    let any_of = |parts: &[Option<&[u8]>]| parts.iter().flatten().any(|part| elements(part).any(passes));
    match kind {
        FhirType::Text => passes(value),
        FhirType::HumanName => any_of(&members(value, ["family", "given", "text", "prefix", "suffix"])),
        FhirType::Address => {
            any_of(&members(value, ["line", "city", "district", "state", "postalCode", "country", "text"]))
        }
        _ => false,
    }
}

/// Without a version, any version is meant.
fn same_canonical(value: &str, wanted: &str) -> bool {
    value == wanted || (!wanted.contains('|') && value.split_once('|').is_some_and(|(url, _)| url == wanted))
}

/// Whether an address is another one, or lies below it; by whole parts of the path.
fn is_below(address: &str, base: &str) -> bool {
    address.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '|', '?', '#']))
}
