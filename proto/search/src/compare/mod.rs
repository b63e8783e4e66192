//! Whether a value of a row is what a filter asks for. Values are spans of JSON; what is not of the type that the
//! definitions promise does not match.

mod numbers;
mod reference;
mod texts;
mod times;
mod tokens;

use flatbed_types::Instant;

use crate::parameter::FhirType;
use crate::value::{Link, Wanted};
pub(crate) use reference::refers_to;
pub(crate) use times::date_range;
pub(crate) use tokens::boolean;

/// The row that is looked at.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) line: &'a [u8],
    /// When it was last updated, where it does not say so itself.
    pub(crate) last_updated: Option<Instant>,
}

/// What a value must have to be this one: tokens and references have such a key, so that one of many is found quickly.
fn key(wanted: &Wanted) -> Option<&str> {
    match wanted {
        Wanted::Token(token) => token.code.as_deref(),
        Wanted::Reference(Link::Id(key) | Link::Local { id: key, .. } | Link::Url { url: key, .. }) => {
            Some(key)
        }
        _ => None,
    }
}

/// Puts what is asked for into the order that [`any`] expects.
pub(crate) fn sort(wanted: &mut [Wanted]) {
    wanted.sort_by(|one, other| key(one).cmp(&key(other)));
}

/// Those with this key.
fn keyed<'w>(wanted: &'w [Wanted], wanted_key: Option<&str>) -> &'w [Wanted] {
    let start = wanted.partition_point(|one| key(one) < wanted_key);
    let behind = wanted[start..].partition_point(|one| key(one) == wanted_key);
    &wanted[start..start + behind]
}

/// Whether a value is one of those that are asked for, which are all of one form and sorted.
pub(crate) fn any(kind: &FhirType, value: &[u8], wanted: &[Wanted]) -> bool {
    match wanted.first() {
        Some(Wanted::Token(_)) => tokens::any(kind, value, wanted),
        Some(Wanted::Reference(_)) => reference::any(kind, value, wanted),
        Some(Wanted::LinkIdentifier(_)) => {
            wanted.iter().any(|one| reference::has_identifier(kind, value, one))
        }
        Some(Wanted::Date(..)) => times::range_of(kind, value)
            .is_some_and(|range| wanted.iter().any(|one| times::compare(range, one))),
        Some(Wanted::Number(..) | Wanted::Quantity(..)) => {
            wanted.iter().any(|one| numbers::is(kind, value, one))
        }
        Some(_) => wanted.iter().any(|one| texts::is(kind, value, one)),
        None => false,
    }
}
