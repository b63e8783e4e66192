//! Filters: parsed with all their faults, printed so that they parse back.

use std::borrow::Cow;
use std::fmt;

use flatbed_types::ResourceType;

use crate::error::FilterError;
use crate::limits::{MAX_CLAUSES, MAX_FILTER, MAX_VALUES};
use crate::parameter::{self, Component, FhirType, Kind, Parameter, Path, Source};
use crate::text::{echo, percent_decode, percent_encode, split_unescaped};
use crate::value::{Modifier, Shape, Wanted};

/// Parameters that shape the answer of a search, not what is found.
const RESULT_PARAMETERS: &[&str] = &[
    "_sort",
    "_count",
    "_include",
    "_revinclude",
    "_summary",
    "_total",
    "_elements",
    "_contained",
    "_containedType",
    "_format",
    "_pretty",
];

/// Parameters of the standard that have no definition of their own, and why they are not supported.
const WITHOUT_DEFINITION: &[(&str, &str)] = &[
    ("_has", "reverse chaining needs other resources"),
    ("_filter", "its expressions are not evaluated"),
    ("_list", "lists are not looked up"),
    ("_type", "a filter is about the one type that it starts with"),
    ("_in", "it is not part of FHIR R4"),
];

/// What a filter says of one parameter: any of the values matches.
#[derive(Clone)]
pub(crate) struct Clause {
    pub(crate) parameter: &'static Parameter,
    pub(crate) modifier: Modifier,
    pub(crate) wanted: Vec<Wanted>,
    /// The values as they were given, without percent-encoding.
    text: String,
}

impl Clause {
    /// The parameter with its modifier.
    fn name(&self) -> String {
        let code = self.parameter.code();
        match self.modifier {
            Modifier::None => code.to_owned(),
            Modifier::Type(kind) => format!("{code}:{kind}"),
            other => {
                let name =
                    MODIFIERS.iter().find(|(_, modifier)| *modifier == other).map_or("", |(name, _)| name);
                format!("{code}:{name}")
            }
        }
    }
}

/// Names of the modifiers that are evaluated.
const MODIFIERS: &[(&str, Modifier)] = &[
    ("missing", Modifier::Missing),
    ("not", Modifier::Not),
    ("text", Modifier::Text),
    ("of-type", Modifier::OfType),
    ("exact", Modifier::Exact),
    ("contains", Modifier::Contains),
    ("identifier", Modifier::Identifier),
    ("above", Modifier::Above),
    ("below", Modifier::Below),
];

/// A search on one resource type, all of whose parameters must match. May name patients: `Debug` shows parameters
/// only.
#[derive(Clone)]
pub struct Filter {
    resource_type: ResourceType,
    clauses: Vec<Clause>,
}

impl Filter {
    /// Reads a filter: `Type?parameter=value,value&parameter:modifier=value`. Names and values are percent-decoded
    /// once; a filter that is encoded as a whole is decoded once more. All faults are found at once.
    pub fn parse(text: &str) -> Result<Filter, Vec<FilterError>> {
        if text.len() > MAX_FILTER {
            return Err(vec![FilterError::TooLong]);
        }
        let whole = if text.contains('?') {
            Cow::Borrowed(text)
        } else {
            percent_decode(text).ok_or_else(|| vec![FilterError::Encoding(echo(text))])?
        };
        let Some((kind, query)) = whole.split_once('?') else {
            return Err(vec![FilterError::NotASearch(echo(text))]);
        };
        let resource_type = resource_type(kind).map_err(|error| vec![error])?;
        let pairs: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty()).collect();
        if pairs.len() > MAX_CLAUSES {
            return Err(vec![FilterError::TooManyClauses]);
        }
        let (mut clauses, mut errors) = (Vec::new(), Vec::new());
        for pair in pairs {
            match clause(resource_type, pair, &mut errors) {
                Ok(clause) => clauses.push(clause),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(Filter { resource_type, clauses }) } else { Err(errors) }
    }

    /// The type of which it keeps resources. Other types it leaves alone.
    pub fn resource_type(&self) -> ResourceType {
        self.resource_type
    }

    /// Names of the parameters that it uses, without modifiers.
    pub fn parameters(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.clauses.iter().map(|clause| clause.parameter.code())
    }

    pub(crate) fn clauses(&self) -> &[Clause] {
        &self.clauses
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Filter) -> bool {
        // What is wanted follows from the text.
        let key = |clause: &Clause| (clause.parameter.code(), clause.modifier, clause.text.clone());
        self.resource_type == other.resource_type
            && self.clauses.iter().map(key).eq(other.clauses.iter().map(key))
    }
}

impl Eq for Filter {}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.clauses.iter().map(Clause::name).collect();
        write!(f, "Filter({}?{})", self.resource_type, names.join("&"))
    }
}

impl fmt::Display for Filter {
    /// The canonical text: parameters in their order, with the encoding that is needed and no other.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}?", self.resource_type)?;
        for (index, clause) in self.clauses.iter().enumerate() {
            let separator = if index == 0 { "" } else { "&" };
            write!(f, "{separator}{}=", clause.name())?;
            percent_encode(&clause.text, f)?;
        }
        Ok(())
    }
}

/// The parts of a comma-joined list of filters, as D1 and D2 allow it: a comma parts two filters only where `Type?`
/// follows, so that commas between values survive (PM-57).
pub fn split_legacy(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    // `encoded`: no question mark so far in this part.
    let (mut start, mut escaped, mut encoded) = (0, false, true);
    for (at, byte) in text.bytes().enumerate() {
        if byte == b',' && !escaped && starts_filter(&text[at + 1..], encoded) {
            parts.push(&text[start..at]);
            (start, encoded) = (at + 1, true);
        }
        encoded &= byte != b'?';
        escaped = byte == b'\\' && !escaped;
    }
    parts.push(&text[start..]);
    parts
}

/// `%3F` stands for the question mark only behind a filter that is itself encoded as a whole: in another it belongs to
/// a value.
fn starts_filter(text: &str, encoded: bool) -> bool {
    let name = text.bytes().take_while(u8::is_ascii_alphabetic).count();
    let behind = text.as_bytes().get(name..).unwrap_or_default();
    text.starts_with(|first: char| first.is_ascii_uppercase())
        && (behind.starts_with(b"?")
            || (encoded && behind.get(..3).is_some_and(|code| code.eq_ignore_ascii_case(b"%3F"))))
}

fn resource_type(text: &str) -> Result<ResourceType, FilterError> {
    if text.is_empty() || text.contains(['/', ':']) {
        return Err(FilterError::NotOneType(echo(&format!("{text}?"))));
    }
    text.parse().map_err(|_| FilterError::UnknownType(echo(text)))
}

/// One parameter. Faults of single values go to `errors`, one each; then the clause lacks them.
fn clause(of: ResourceType, pair: &str, errors: &mut Vec<FilterError>) -> Result<Clause, FilterError> {
    let (name, text) = pair.split_once('=').unwrap_or((pair, ""));
    let decoded = |text| percent_decode(text).ok_or_else(|| FilterError::Encoding(echo(pair)));
    let (name, text) = (decoded(name)?, decoded(text)?);
    let (code, modifier) = match name.split_once(':') {
        Some((code, modifier)) => (code, Some(modifier)),
        None => (&*name, None),
    };
    let parameter = known(of, &name, code, modifier)?;
    let modifier = match modifier {
        Some(modifier) => self::modifier(parameter, modifier)?,
        None => Modifier::None,
    };
    let values = split_unescaped(&text, ',');
    if values.len() > MAX_VALUES {
        return Err(FilterError::TooManyValues(parameter.code().to_owned()));
    }
    let mut wanted = Vec::with_capacity(values.len());
    for value in values {
        match wanted_of(parameter, modifier, value) {
            Ok(one) => wanted.push(one),
            Err(expected) => {
                errors.push(FilterError::Value { name: echo(&name), expected, value: echo(value) });
            }
        }
    }
    Ok(Clause { parameter, modifier, wanted, text: text.into_owned() })
}

fn wanted_of(parameter: &Parameter, modifier: Modifier, value: &str) -> Result<Wanted, &'static str> {
    let no_components: &[Component] = &[];
    let (paths, components) = match parameter.source() {
        Source::Values(paths) | Source::Presence(paths) => (paths.as_slice(), no_components),
        // The components of all bases are of the same kinds.
        Source::Composite(bases) => (&[][..], bases.first().map_or(no_components, |base| &base.components)),
        Source::Unsupported(_) => (&[][..], no_components),
    };
    Wanted::parse(Shape { kind: parameter.kind(), modifier, paths, components }, value)
}

/// The supported parameter of this name, else what is wrong with it.
fn known(
    of: ResourceType,
    name: &str,
    code: &str,
    modifier: Option<&str>,
) -> Result<&'static Parameter, FilterError> {
    if RESULT_PARAMETERS.contains(&code) {
        return Err(FilterError::ResultParameter(code.to_owned()));
    }
    if let Some((code, reason)) = WITHOUT_DEFINITION.iter().find(|(known, _)| *known == code) {
        return Err(FilterError::UnsupportedParameter { name: (*code).to_owned(), reason });
    }
    let head = code.split('.').next().unwrap_or_default();
    let unknown = || FilterError::UnknownParameter { of, name: echo(head) };
    let parameter = parameter::find(of, head).ok_or_else(unknown)?;
    if code.contains('.') || modifier.is_some_and(|modifier| modifier.contains('.')) {
        return Err(FilterError::Chained(echo(name)));
    }
    match parameter.unsupported() {
        Some(reason) => Err(FilterError::UnsupportedParameter { name: code.to_owned(), reason }),
        None => Ok(parameter),
    }
}

fn modifier(parameter: &Parameter, text: &str) -> Result<Modifier, FilterError> {
    let name = parameter.code().to_owned();
    let unknown =
        || FilterError::UnknownModifier { name: name.clone(), kind: parameter.kind(), modifier: echo(text) };
    let unsupported = |reason| {
        Err(FilterError::UnsupportedModifier { name: name.clone(), modifier: text.to_owned(), reason })
    };
    match (parameter.kind(), text) {
        (Kind::Token, "in" | "not-in") => return unsupported("value sets are not expanded"),
        (Kind::Token, "above" | "below") => return unsupported("code systems are not looked up"),
        (Kind::Reference, "above" | "below") => {
            return unsupported("hierarchies of resources are not looked up");
        }
        (Kind::Reference, kind) if kind.starts_with(|first: char| first.is_ascii_uppercase()) => {
            let kind = kind.parse().ok().filter(|kind| parameter.targets().allow(*kind));
            return kind.map(Modifier::Type).ok_or_else(unknown);
        }
        _ => {}
    }
    // R4 itself spells it both ways.
    let text = if text == "ofType" { "of-type" } else { text };
    let modifier = MODIFIERS.iter().find(|(known, _)| *known == text).map(|(_, modifier)| *modifier);
    let modifier = modifier.ok_or_else(unknown)?;
    let has = |wanted: &[FhirType]| match parameter.source() {
        Source::Values(paths) => paths.iter().any(|path: &Path| wanted.contains(&path.kind)),
        _ => false,
    };
    let applies = match modifier {
        Modifier::Missing => true,
        Modifier::Not => parameter.kind() == Kind::Token,
        Modifier::Exact | Modifier::Contains => parameter.kind() == Kind::String,
        Modifier::Text => {
            parameter.kind() == Kind::Token
                && has(&[FhirType::Coding, FhirType::CodeableConcept, FhirType::Identifier])
        }
        Modifier::OfType => parameter.kind() == Kind::Token && has(&[FhirType::Identifier]),
        Modifier::Identifier => parameter.kind() == Kind::Reference && has(&[FhirType::Reference]),
        Modifier::Above | Modifier::Below => parameter.kind() == Kind::Uri,
        Modifier::Type(_) | Modifier::None => false,
    };
    if applies { Ok(modifier) } else { Err(unknown()) }
}

#[cfg(test)]
mod tests;
