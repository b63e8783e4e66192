//! Searches of `_typeFilter` (PM-48 to PM-60): how they are packed into parameters. What a search says is
//! `flatbed_search`'s business.

use flatbed_search::{Filter, FilterError, split_legacy};
use flatbed_types::ResourceType;
use flatbed_types::request::Dialect;

use super::parameters::Occurrence;
use super::values::{Fault, text};

/// The searches of one parameter: one in the 4.0 dialect; earlier clients join several by commas (PM-57).
pub(super) fn texts(given: &Occurrence<'_>, dialect: Dialect) -> Result<Vec<String>, Fault> {
    let text = text(given)?.trim();
    if text.is_empty() {
        return Err(Fault::invalid("names no search; write one like Observation?status=final"));
    }
    let text = if is_encoded_once_more(text) { decoded(text) } else { text.to_owned() };
    Ok(match dialect {
        Dialect::V4 => vec![text],
        Dialect::Legacy => split_legacy(&text).into_iter().map(|each| each.trim().to_owned()).collect(),
    })
}

/// Some clients encode a search, and then the query that it is put into. No search is without a `?`.
fn is_encoded_once_more(text: &str) -> bool {
    !text.contains('?') && text.to_ascii_uppercase().contains("%3F")
}

/// Percent-decoded; what is no code stays as it is, and `Filter::parse` complains about it.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).filter(|_| *first == b'%').and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One search: its type, and its canonical text.
pub(super) fn filter(text: &str) -> Result<(ResourceType, String), Fault> {
    match Filter::parse(text) {
        Ok(filter) => Ok((filter.resource_type(), filter.to_string())),
        Err(errors) => match Fault::all(errors.iter().map(fault).collect()) {
            Err(fault) => Err(fault),
            Ok(()) => Err(Fault::invalid("not a search")),
        },
    }
}

fn fault(error: &FilterError) -> Fault {
    let beyond_us = error.is_unsupported()
        || matches!(error, FilterError::UnknownParameter { .. } | FilterError::UnknownModifier { .. });
    if beyond_us { Fault::unsupported(error.to_string()) } else { Fault::invalid(error.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pm_60_searches_encoded_once_more_are_decoded() {
        for (given, plain) in [
            ("Patient%3Fgender%3Dmale", "Patient?gender=male"),
            ("Patient%3fname%3Da%2526b", "Patient?name=a%26b"),
            ("Patient%3Fname%3D%zz%4", "Patient?name=%zz%4"),
        ] {
            assert!(is_encoded_once_more(given));
            assert_eq!(decoded(given), plain);
        }
        assert!(!is_encoded_once_more("Patient?name=a%3F"));
        assert!(!is_encoded_once_more("Patient"));
    }
}
