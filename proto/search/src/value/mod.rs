//! What a filter asks for: the values of each kind of parameter, parsed and checked.

pub(crate) mod date;
pub(crate) mod decimal;
mod token;

use flatbed_types::{FhirId, ResourceType};

use crate::parameter::{Component, FhirType, Kind, Path};
use crate::text::{fold, split_unescaped, unescape};
pub(crate) use date::DateRange;
pub(crate) use decimal::Decimal;
pub(crate) use token::{System, Token};

/// How a value in a resource must lie to the one that is asked for
/// (<http://hl7.org/fhir/R4/search.html#prefix>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    /// Within the range of what is asked for.
    Eq,
    /// Not within it.
    Ne,
    /// At least partly above.
    Gt,
    /// At least partly below.
    Lt,
    /// Above, or equal.
    Ge,
    /// Below, or equal.
    Le,
    /// Wholly above.
    Sa,
    /// Wholly below.
    Eb,
    /// About equal.
    Ap,
}

impl Prefix {
    const ALL: [(&'static str, Prefix); 9] = [
        ("eq", Prefix::Eq),
        ("ne", Prefix::Ne),
        ("gt", Prefix::Gt),
        ("lt", Prefix::Lt),
        ("ge", Prefix::Ge),
        ("le", Prefix::Le),
        ("sa", Prefix::Sa),
        ("eb", Prefix::Eb),
        ("ap", Prefix::Ap),
    ];

    fn split(text: &str) -> (Prefix, &str) {
        Prefix::ALL
            .iter()
            .find_map(|(name, prefix)| text.strip_prefix(name).map(|rest| (*prefix, rest)))
            .unwrap_or((Prefix::Eq, text))
    }
}

/// How a parameter is compared, where not in its usual way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Modifier {
    None,
    Missing,
    Not,
    Text,
    OfType,
    Exact,
    Contains,
    Identifier,
    Type(ResourceType),
    Above,
    Below,
}

/// One value of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Wanted {
    /// Whether values are absent.
    Missing(bool),
    Token(Token),
    /// `system|code|value` of an identifier's type.
    OfType {
        system: String,
        code: String,
        value: String,
    },
    /// Start of a text that stands by a code, folded.
    CodeText(String),
    /// Start of a text, folded.
    Start(String),
    /// Part of a text, folded.
    Part(String),
    /// A whole text as it is.
    Exact(String),
    Date(Prefix, DateRange),
    Number(Prefix, Decimal),
    Quantity(Prefix, Decimal, Option<Unit>),
    Reference(Link),
    /// An identifier in a reference.
    LinkIdentifier(Token),
    Uri(String),
    /// Addresses of which this is a part of the path.
    UriBelow(String),
    /// Addresses that are a part of the path of this.
    UriAbove(String),
    Composite(Vec<Wanted>),
}

/// A unit: `system|code`, or `|code` for a code or a printed unit of any system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    pub(crate) system: Option<String>,
    pub(crate) code: String,
}

/// What a reference must point to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Link {
    /// A resource of this server, of any type.
    Id(String),
    /// A resource of this server, in any version or in one.
    Local { kind: ResourceType, id: String, version: Option<String> },
    /// An address, of any version or of one.
    Url { url: String, version: Option<String> },
}

/// What a value is parsed for.
#[derive(Clone, Copy)]
pub(crate) struct Shape<'a> {
    pub(crate) kind: Kind,
    pub(crate) modifier: Modifier,
    pub(crate) paths: &'a [Path],
    pub(crate) components: &'a [Component],
}

/// What would have been right.
pub(crate) type Expected = &'static str;

impl Wanted {
    /// One value, without percent-encoding but with FHIR's escapes.
    pub(crate) fn parse(shape: Shape<'_>, text: &str) -> Result<Wanted, Expected> {
        if text.is_empty() {
            return Err("a value");
        }
        let plain = || unescape(text).ok_or("`\\` only before `,` `|` `$` or `\\`");
        match (shape.modifier, shape.kind) {
            (Modifier::Missing, _) => match text {
                "true" => Ok(Wanted::Missing(true)),
                "false" => Ok(Wanted::Missing(false)),
                _ => Err("true or false"),
            },
            (Modifier::OfType, _) => of_type(text),
            (Modifier::Text, _) => folded(&plain()?).map(Wanted::CodeText),
            (Modifier::Identifier, _) => Token::parse(text).map(Wanted::LinkIdentifier),
            (_, Kind::Token) => Token::parse_for(shape.paths, text).map(Wanted::Token),
            (Modifier::Exact, Kind::String) => Ok(Wanted::Exact(plain()?.into_owned())),
            (Modifier::Contains, Kind::String) => folded(&plain()?).map(Wanted::Part),
            (_, Kind::String) => folded(&plain()?).map(Wanted::Start),
            (_, Kind::Date) => {
                let (prefix, rest) = Prefix::split(text);
                let range = DateRange::parse(rest).ok_or(
                    "a date or time like 2018, 2018-07, 2018-07-01 or 2018-07-01T10:30:00Z, with a prefix if any",
                )?;
                Ok(Wanted::Date(prefix, range))
            }
            (_, Kind::Number) => {
                let (prefix, rest) = Prefix::split(text);
                let number =
                    Decimal::parse(rest).ok_or("a number like 5.40 or 1e-3, with a prefix if any")?;
                Ok(Wanted::Number(prefix, number))
            }
            (_, Kind::Quantity) => quantity(text),
            (modifier, Kind::Reference) => link(modifier, shape.paths, text).map(Wanted::Reference),
            (modifier, Kind::Uri) => uri(modifier, &plain()?),
            (_, Kind::Composite) => composite(shape.components, text),
            (_, Kind::Special) => Err("nothing: it is not supported"),
        }
    }
}

fn folded(text: &str) -> Result<String, Expected> {
    let folded = fold(text);
    if folded.is_empty() { Err("a text that is more than accents") } else { Ok(folded) }
}

fn of_type(text: &str) -> Result<Wanted, Expected> {
    const EXPECTED: Expected = "type-system|type-code|identifier, all three";
    let parts: Option<Vec<String>> =
        split_unescaped(text, '|').into_iter().map(|part| unescape(part).map(Into::into)).collect();
    match parts.and_then(|parts| <[String; 3]>::try_from(parts).ok()) {
        Some([system, code, value]) if !(system.is_empty() || code.is_empty() || value.is_empty()) => {
            Ok(Wanted::OfType { system, code, value })
        }
        _ => Err(EXPECTED),
    }
}

fn quantity(text: &str) -> Result<Wanted, Expected> {
    const EXPECTED: Expected = "number, number|system|code or number||code, with a prefix if any";
    let (prefix, rest) = Prefix::split(text);
    let parts: Vec<&str> = split_unescaped(rest, '|');
    let number = Decimal::parse(parts[0]).ok_or(EXPECTED)?;
    let unit = match parts[..] {
        [_] => None,
        [_, system, code] if !code.is_empty() => {
            let system = unescape(system).ok_or(EXPECTED)?;
            Some(Unit {
                system: (!system.is_empty()).then(|| system.into_owned()),
                code: unescape(code).ok_or(EXPECTED)?.into_owned(),
            })
        }
        _ => return Err(EXPECTED),
    };
    Ok(Wanted::Quantity(prefix, number, unit))
}

fn link(modifier: Modifier, paths: &[Path], text: &str) -> Result<Link, Expected> {
    // In references a bar parts a canonical address from its version; it may be escaped or not.
    let plain = unescape(text).ok_or("`\\` only before `,` `|` `$` or `\\`")?;
    if let Modifier::Type(kind) = modifier {
        let id = plain.strip_prefix(kind.name()).and_then(|rest| rest.strip_prefix('/')).unwrap_or(&plain);
        let id: FhirId = id.parse().map_err(|_| "the id of a resource")?;
        return Ok(Link::Local { kind, id: id.to_string(), version: None });
    }
    if let Some(link) = local(&plain) {
        return Ok(link);
    }
    let (url, version) = match plain.split_once('|') {
        Some((url, version)) if !version.is_empty() => (url, Some(version.to_owned())),
        Some(_) => return Err("a version behind `|`"),
        None => match plain.split_once("/_history/") {
            Some((url, version)) => (url, Some(version.to_owned())),
            None => (&*plain, None),
        },
    };
    let canonical = paths.iter().any(|path| matches!(path.kind, FhirType::Canonical | FhirType::Uri));
    let absolute = url.split_once(':').is_some_and(|(scheme, rest)| {
        !rest.is_empty()
            && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    });
    match absolute {
        true => Ok(Link::Url { url: url.to_owned(), version }),
        false if canonical => Err("a resource's id, Type/id or an absolute address"),
        false => Err("id, Type/id or an absolute address of a resource"),
    }
}

/// `id`, `Type/id` or `Type/id/_history/version`.
fn local(text: &str) -> Option<Link> {
    if let Ok(id) = text.parse::<FhirId>() {
        return Some(Link::Id(id.to_string()));
    }
    let mut parts = text.split('/');
    let kind: ResourceType = parts.next()?.parse().ok()?;
    let id: FhirId = parts.next()?.parse().ok()?;
    let version = match parts.next() {
        None => None,
        Some("_history") => Some(parts.next()?.parse::<FhirId>().ok()?.to_string()),
        Some(_) => return None,
    };
    parts.next().is_none().then(|| Link::Local { kind, id: id.to_string(), version })
}

fn uri(modifier: Modifier, text: &str) -> Result<Wanted, Expected> {
    let hierarchical = text.contains("://");
    match modifier {
        Modifier::Above | Modifier::Below if !hierarchical => {
            Err("a URL: other addresses have nothing above them")
        }
        Modifier::Above => Ok(Wanted::UriAbove(text.to_owned())),
        Modifier::Below => Ok(Wanted::UriBelow(text.trim_end_matches('/').to_owned())),
        _ => Ok(Wanted::Uri(text.to_owned())),
    }
}

fn composite(components: &[Component], text: &str) -> Result<Wanted, Expected> {
    let parts = split_unescaped(text, '$');
    if parts.len() != components.len() {
        return Err("the values of all components, parted by `$`");
    }
    components
        .iter()
        .zip(parts)
        .map(|(Component { kind, paths, .. }, part)| {
            Wanted::parse(Shape { kind: *kind, modifier: Modifier::None, paths, components: &[] }, part)
        })
        .collect::<Result<_, _>>()
        .map(Wanted::Composite)
}

#[cfg(test)]
mod tests;
