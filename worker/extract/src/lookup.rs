//! Single resources of a snapshot, and the Groups that match a search: answers to questions, not exports.
//!
//! Built on [`Snapshot::read`] alone, so that it holds for every source: a resource that belongs to no patient is the one
//! row of a range that holds one key, which sources find by their index. What belongs to patients has no index by id and
//! is not looked up here. Bytes are passed on as they come; a row is in memory whole only where its form changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use flatbed_types::request::{Element, FhirId};
use flatbed_types::{ErrorCode, ExportRequest, KeyRange, Lane, Level, Position, ResourceType, elements};

use crate::piece::Body;
use crate::shape::{LongRows, Shape};
use crate::source::{Scan, Snapshot, SourceError};

/// Takes the bytes of an answer as they come; its error ends the reading.
pub type OnBytes<'a> = dyn FnMut(&[u8]) -> Result<(), SourceError> + 'a;

/// The element that makes Groups long.
const MEMBER: &str = "member";

/// Reads one resource that belongs to no patient, without a line end, with these elements only unless they are none.
/// Answers whether there is one.
///
/// # Errors
/// Those of the source, and those of `each`.
pub fn resource(
    snapshot: &dyn Snapshot,
    (resource_type, id): (ResourceType, &FhirId),
    elements: &BTreeSet<Element>,
    long_rows: &Arc<LongRows>,
    each: &mut OnBytes<'_>,
) -> Result<bool, SourceError> {
    let key = id.as_str().as_bytes();
    let range = KeyRange { lo: Position::At(key.to_vec()), hi: Position::after(key) };
    let shape = shape_of(resource_type, &[], elements, long_rows)?;
    let mut rows = snapshot.read(Scan { range, shape, ..Scan::whole(Lane::standalone(resource_type)) })?;
    let mut found = 0;
    while let Some(piece) = rows.next()? {
        let Body::Plain(bytes) = &piece.body else { return Err(deflated()) };
        found += piece.rows;
        let bytes = if piece.rows > 0 { bytes.strip_suffix(b"\n").unwrap_or(bytes) } else { bytes };
        if !bytes.is_empty() {
            each(bytes)?;
        }
    }
    Ok(found > 0)
}

/// Which Groups are looked for, and in what form they come.
pub struct GroupSearch<'a> {
    /// `Group?query`: all of its parameters must match.
    pub filter: &'a str,
    /// Only Groups behind this id.
    pub after: Option<&'a FhirId>,
    /// At most so many.
    pub limit: usize,
    /// The elements to keep; empty means all.
    pub elements: &'a BTreeSet<Element>,
    /// Bytes above which a Group comes without its members.
    pub max_row_bytes: u64,
    /// Only these; `None` for all.
    pub among: Option<&'a BTreeSet<FhirId>>,
}

/// Gives out the Groups that match, as NDJSON in order of their ids. Answers whether there are more.
///
/// # Errors
/// Those of the source, and those of `each`.
pub fn groups(
    snapshot: &dyn Snapshot,
    search: &GroupSearch<'_>,
    long_rows: &Arc<LongRows>,
    each: &mut OnBytes<'_>,
) -> Result<bool, SourceError> {
    let (ids, more) = matching(snapshot, search, long_rows)?;
    let group = ResourceType::GROUP;
    let memberless: BTreeSet<Element> = match search.elements.is_empty() {
        true => elements::of(group)
            .iter()
            .map(|element| element.name)
            .filter(|name| *name != MEMBER)
            .map(of_group)
            .collect(),
        false => search.elements.iter().filter(|element| element.name != MEMBER).cloned().collect(),
    };
    for id in &ids {
        let mut line = Vec::new();
        // One byte too many is enough to know; what comes behind it is not kept.
        let most = usize::try_from(search.max_row_bytes).unwrap_or(usize::MAX).saturating_add(1);
        resource(snapshot, (group, id), search.elements, long_rows, &mut |bytes| {
            line.extend_from_slice(&bytes[..bytes.len().min(most - line.len())]);
            Ok(())
        })?;
        if line.len() == most {
            line.clear();
            resource(snapshot, (group, id), &memberless, long_rows, &mut |bytes| {
                line.extend_from_slice(bytes);
                Ok(())
            })?;
        }
        line.push(b'\n');
        each(&line)?;
    }
    Ok(more)
}

fn of_group(name: &'static str) -> Element {
    Element { of: Some(ResourceType::GROUP), name: name.to_owned() }
}

/// The ids of the Groups that match, and whether there are more. Rosters are gone through and never held: of each Group
/// that matches only its id comes out of the source's reader.
fn matching(
    snapshot: &dyn Snapshot,
    search: &GroupSearch<'_>,
    long_rows: &Arc<LongRows>,
) -> Result<(Vec<FhirId>, bool), SourceError> {
    let group = ResourceType::GROUP;
    let shape = shape_of(group, &[search.filter.to_owned()], &BTreeSet::from([of_group("id")]), long_rows)?;
    let lo = search.after.map_or(Position::START, |id| Position::after(id.as_str().as_bytes()));
    let range = KeyRange { lo, hi: Position::End };
    let mut rows = snapshot.read(Scan { range, shape, ..Scan::whole(Lane::standalone(group)) })?;
    let mut ids = Vec::new();
    while let Some(piece) = rows.next()? {
        let Body::Plain(bytes) = &piece.body else { return Err(deflated()) };
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let id = id_of(line)?;
            if search.among.is_some_and(|among| !among.contains(&id)) {
                continue;
            }
            if ids.len() == search.limit {
                return Ok((ids, true));
            }
            ids.push(id);
        }
    }
    Ok((ids, false))
}

fn id_of(line: &[u8]) -> Result<FhirId, SourceError> {
    let header = crate::header::scan_line(line, &mut |_, _| {});
    let id = header.ok().and_then(|header| header.id.text()?.parse().ok());
    id.ok_or_else(|| SourceError::failed("a Group of the source has no valid id"))
}

/// What becomes of rows of a type by these searches and elements, in the words of an export's request.
fn shape_of(
    resource_type: ResourceType,
    filters: &[String],
    elements: &BTreeSet<Element>,
    long_rows: &Arc<LongRows>,
) -> Result<Option<Arc<Shape>>, SourceError> {
    let mut request = ExportRequest::everything(Level::System);
    request.filters = filters.to_vec();
    request.elements = elements.clone();
    let unknown = |error: crate::shape::UnknownSearch| SourceError {
        code: ErrorCode::NotSupported,
        message: error.to_string(),
    };
    Shape::of(&request, resource_type, long_rows).map_err(unknown)
}

fn deflated() -> SourceError {
    SourceError::failed("a reader gave compressed rows that nobody asked for; this is a defect")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{NoProgress, Source};
    use crate::synthetic::SyntheticSource;

    fn population() -> Arc<dyn Snapshot> {
        SyntheticSource::parse("synthetic:patients=20000,seed=7").unwrap().snapshot(&NoProgress).unwrap()
    }

    fn read(resource_type: &str, id: &str, elements: &[&str]) -> Option<Vec<u8>> {
        let elements = elements.iter().map(|text| text.parse().unwrap()).collect();
        let (mut all, rows) = (Vec::new(), Arc::default());
        let what = (resource_type.parse().unwrap(), &id.parse().unwrap());
        let found = resource(population().as_ref(), what, &elements, &rows, &mut |bytes| {
            all.extend_from_slice(bytes);
            Ok(())
        });
        found.unwrap().then_some(all)
    }

    /// The lines of a lane, by the id that they begin with.
    fn lane(resource_type: &str) -> Vec<Vec<u8>> {
        let mut rows =
            population().read(Scan::whole(Lane::standalone(resource_type.parse().unwrap()))).unwrap();
        let mut all = Vec::new();
        while let Some(piece) = rows.next().unwrap() {
            let Body::Plain(bytes) = piece.body else { panic!("compressed") };
            all.extend_from_slice(&bytes);
        }
        all.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn each_resource_is_found_by_its_id_as_the_lane_has_it() {
        for kind in ["Group", "Organization", "Practitioner"] {
            let lines = lane(kind);
            assert!(lines.len() > 3, "{kind}");
            for line in lines {
                let id = id_of(&line).unwrap();
                assert!(read(kind, id.as_str(), &[]).as_ref() == Some(&line), "{kind}/{id}");
            }
            assert_eq!(read(kind, "none", &[]), None);
        }
    }

    #[test]
    fn a_resource_can_come_in_part() {
        let part = read("Group", "group-all", &["Group.name"]).unwrap();
        let part: serde_json::Value = serde_json::from_slice(&part).unwrap();
        assert_eq!(part["meta"]["tag"][0]["code"], "SUBSETTED");
        assert!(part["name"].is_string() && part["type"].is_string() && part.get("member").is_none());
    }

    fn search(
        filter: &str,
        after: Option<&str>,
        limit: usize,
        max_row_bytes: u64,
    ) -> (Vec<serde_json::Value>, bool) {
        let after: Option<FhirId> = after.map(|id| id.parse().unwrap());
        let elements = BTreeSet::new();
        let search = GroupSearch {
            filter,
            after: after.as_ref(),
            limit,
            elements: &elements,
            max_row_bytes,
            among: None,
        };
        let mut all = Vec::new();
        let more = groups(population().as_ref(), &search, &Arc::default(), &mut |bytes| {
            all.extend_from_slice(bytes);
            Ok(())
        });
        let lines = all.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        (lines.map(|line| serde_json::from_slice(line).unwrap()).collect(), more.unwrap())
    }

    #[test]
    fn gr_02_of_others_nothing_is_told_not_even_that_there_are_more() {
        let (all, _) = search("Group", None, 100, u64::MAX);
        let last = all.last().unwrap()["id"].as_str().unwrap().to_owned();
        let (elements, among) = (BTreeSet::new(), BTreeSet::from([last.parse().unwrap()]));
        let wanted = GroupSearch {
            filter: "Group",
            after: None,
            limit: 1,
            elements: &elements,
            max_row_bytes: u64::MAX,
            among: Some(&among),
        };
        let mut found = Vec::new();
        let more = groups(population().as_ref(), &wanted, &Arc::default(), &mut |bytes| {
            found.extend_from_slice(bytes);
            Ok(())
        });
        assert!(!more.unwrap(), "there are others, and they are not told of");
        let found: serde_json::Value = serde_json::from_slice(&found).unwrap();
        assert_eq!(found["id"], last.as_str());
        let nobody = GroupSearch { among: Some(&BTreeSet::new()), ..wanted };
        let more =
            groups(population().as_ref(), &nobody, &Arc::default(), &mut |_| panic!("a Group of others"));
        assert!(!more.unwrap());
    }

    fn ids(found: &[serde_json::Value]) -> Vec<&str> {
        found.iter().map(|group| group["id"].as_str().unwrap()).collect()
    }

    #[test]
    fn groups_come_in_order_a_stretch_at_a_time() {
        let everything: Vec<String> =
            lane("Group").iter().map(|line| id_of(line).unwrap().to_string()).collect();
        let mut seen = Vec::new();
        loop {
            let after = seen.last().cloned();
            let (found, more) = search("Group?", after.as_deref(), 3, u64::MAX);
            seen.extend(ids(&found).into_iter().map(str::to_owned));
            if !more {
                break;
            }
            assert_eq!(found.len(), 3);
        }
        assert_eq!(seen, everything);
    }

    #[test]
    fn groups_are_found_by_what_they_say() {
        let (found, more) = search("Group?name=every", None, 10, u64::MAX);
        assert_eq!((ids(&found), more), (vec!["group-all"], false));
        let (found, _) =
            search("Group?identifier=https://contracts.example.org|group-empty,x", None, 10, 1 << 20);
        assert_eq!(ids(&found), ["group-empty"]);
        assert_eq!(search("Group?name=nobody%20at%20all", None, 10, 1 << 20).0.len(), 0);
    }

    #[test]
    fn a_large_group_comes_without_its_members_and_says_so() {
        let (found, _) = search("Group?", None, 10, 10_000);
        for group in &found {
            let whole = serde_json::from_slice::<serde_json::Value>(
                &read("Group", group["id"].as_str().unwrap(), &[]).unwrap(),
            );
            let is_large = whole.as_ref().unwrap().to_string().len() > 10_000;
            let tagged = group["meta"]["tag"][0]["code"] == "SUBSETTED";
            assert_eq!((is_large, is_large), (tagged, group.get("member").is_none() && is_large));
            assert_eq!(group["identifier"], whole.unwrap()["identifier"]);
        }
        let has =
            |large: bool| found.iter().any(|group| (group["meta"]["tag"][0]["code"] == "SUBSETTED") == large);
        assert!(has(true) && has(false));
    }
}
