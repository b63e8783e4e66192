//! References (<http://hl7.org/fhir/R4/search.html#reference>). The address of the server is not known here: `id` and
//! `Type/id` mean relative references, addresses are compared as they are written.

use flatbed_types::ResourceType;

use crate::compare::{Row, keyed, tokens};
use crate::json::{elements, is_text, member, members, text};
use crate::parameter::FhirType;
use crate::value::{Link, Wanted};

/// Whether a value points to something that is asked for.
pub(super) fn any(kind: &FhirType, value: &[u8], wanted: &[Wanted]) -> bool {
    let links = |key: &str| {
        let links = keyed(wanted, Some(key)).iter();
        links.filter_map(|one| if let Wanted::Reference(link) = one { Some(link) } else { None })
    };
    match kind {
        FhirType::Reference => {
            let Some(reference) = member(value, "reference").and_then(text) else { return false };
            let (resource, version) = split_version(&reference);
            let relative = relative(resource);
            // A relative reference is looked for by its id, any other by its address.
            let key = relative.map_or(resource, |(_, id)| id);
            links(key).any(|link| points_to(resource, relative, version, link))
        }
        FhirType::Canonical | FhirType::Uri => {
            let Some(address) = text(value) else { return false };
            let (url, version) = match address.split_once('|') {
                Some((url, version)) => (url, Some(version)),
                None => (&*address, None),
            };
            links(url).any(|link| names(url, version, link))
        }
        _ => false,
    }
}

/// Whether a reference has the identifier that is asked for.
pub(super) fn has_identifier(kind: &FhirType, value: &[u8], wanted: &Wanted) -> bool {
    match (kind, wanted) {
        (FhirType::Reference, Wanted::LinkIdentifier(token)) => {
            member(value, "identifier").is_some_and(|identifier| tokens::is_identifier(identifier, token))
        }
        _ => false,
    }
}

/// The parts of a literal reference: what it points to, and in which version.
fn split_version(reference: &str) -> (&str, Option<&str>) {
    match reference.split_once("/_history/") {
        Some((resource, version)) => (resource, Some(version)),
        None => (reference, None),
    }
}

fn points_to(resource: &str, relative: Option<(&str, &str)>, version: Option<&str>, link: &Link) -> bool {
    let version_fits = |wanted: &Option<String>| wanted.is_none() || wanted.as_deref() == version;
    match link {
        Link::Id(wanted) => relative.is_some_and(|(_, id)| id == wanted),
        Link::Local { kind, id: wanted, version } => {
            relative == Some((kind.name(), wanted)) && version_fits(version)
        }
        Link::Url { url, version } => url == resource && version_fits(version),
    }
}

/// Type and id of a relative reference.
fn relative(resource: &str) -> Option<(&str, &str)> {
    let (kind, id) = resource.split_once('/')?;
    (!id.contains('/') && kind.starts_with(|first: char| first.is_ascii_uppercase())).then_some((kind, id))
}

/// Whether a canonical address is the one that is asked for; without a version, any version is meant.
fn names(url: &str, version: Option<&str>, link: &Link) -> bool {
    match link {
        Link::Url { url: wanted, version: wanted_version } => {
            url == wanted && (wanted_version.is_none() || wanted_version.as_deref() == version)
        }
        Link::Id(_) | Link::Local { .. } => false,
    }
}

/// Whether a reference is one to this type: by its address, by the contained resource that it names, else by the type
/// that it states.
pub(crate) fn refers_to(row: Row<'_>, value: &[u8], wanted: ResourceType) -> bool {
    let [reference, stated] = members(value, ["reference", "type"]);
    if let Some(reference) = reference.and_then(text) {
        if let Some(id) = reference.strip_prefix('#') {
            return contained_type_is(row.line, id, wanted);
        }
        let (resource, _) = split_version(&reference);
        let mut parts = resource.rsplit('/');
        let (_, kind) = (parts.next(), parts.next());
        if let Some(kind) = kind.and_then(|kind| kind.parse::<ResourceType>().ok()) {
            return kind == wanted;
        }
    }
    stated.is_some_and(|stated| is_text(stated, wanted.name()))
}

/// References into a row are rare, so its contained resources are looked for only now.
fn contained_type_is(line: &[u8], id: &str, wanted: ResourceType) -> bool {
    member(line, "contained").is_some_and(|contained| {
        elements(contained).any(|resource| {
            let [its_id, its_type] = members(resource, ["id", "resourceType"]);
            its_id.is_some_and(|found| is_text(found, id))
                && its_type.is_some_and(|found| is_text(found, wanted.name()))
        })
    })
}
