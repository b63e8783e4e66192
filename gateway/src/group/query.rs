//! What a search or a read of Groups asks for.
//!
//! Searches are those of `flatbed-search` on Group, all joined by and; values in one parameter by or. Results come in order
//! of ids, a page at a time: `next` goes on behind the last id, so that pages need no state anywhere.

use std::collections::BTreeSet;

use flatbed_search::Filter;
use flatbed_types::request::{Element, FhirId};
use flatbed_types::{ResourceType, elements};

use super::subset;
use crate::fhir::{Issue, IssueCode};

/// Groups on a page: with `MAX_ROW_BYTES` each, what a gateway holds in memory for one answer stays small.
pub(crate) const MAX_COUNT: usize = 50;

/// Bytes of a Group in a search result above which it comes without its members.
pub(crate) const MAX_ROW_BYTES: u64 = 256 << 10;

/// Behind which id a page begins.
const AFTER: &str = "_after";

/// A search for Groups.
pub(crate) struct GroupQuery {
    /// What is looked for.
    pub filter: Filter,
    /// Groups on the page.
    pub count: usize,
    /// Only those behind this id.
    pub after: Option<FhirId>,
    /// Whether only their number is asked for.
    pub only_count: bool,
    /// The elements to keep; empty means all.
    pub elements: BTreeSet<Element>,
    /// The parameters as given, but for the place of the page: for links.
    echo: Vec<(String, String)>,
}

impl GroupQuery {
    /// Reads the parameters of a search, or says all that is wrong with them.
    pub fn parse(pairs: &[(String, String)]) -> Result<GroupQuery, Vec<Issue>> {
        let mut issues = Vec::new();
        let mut searches = Vec::new();
        let (mut count, mut after, mut summary) = (None, None, None);
        let mut given_elements = Vec::new();
        for (name, value) in pairs {
            match name.as_str() {
                // `Accept` and `_format` are looked at by the route; one form is all there is.
                "_format" | "_pretty" => {}
                "_count" => count = Some(value.as_str()),
                "_summary" => summary = Some(value.as_str()),
                "_elements" => given_elements.extend(value.split(',')),
                AFTER => after = Some(value.as_str()),
                _ => searches.push((name, value)),
            }
        }
        let text: Vec<String> =
            searches.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
        let filter = Filter::parse(&format!("Group?{}", text.join("&")));
        let filter = filter.map_err(|faults| issues.extend(faults.iter().map(fault))).ok();
        let count = count.map_or(Some(MAX_COUNT), |text| text.parse::<usize>().ok());
        if count.is_none() {
            issues.push(wrong("_count", "expected a number of Groups"));
        }
        let after = after.map(|id| id.parse::<FhirId>());
        if matches!(after, Some(Err(_))) {
            issues
                .push(wrong(AFTER, "expected an id; take the URL of a page from the link of the one before"));
        }
        let form = form_of(summary, &given_elements).map_err(|issue| issues.push(issue)).ok();
        match (filter, count, form) {
            (Some(filter), Some(count), Some((elements, only_count))) if issues.is_empty() => {
                let echo = pairs.iter().filter(|(name, _)| name != AFTER).cloned().collect();
                Ok(GroupQuery {
                    filter,
                    count: count.clamp(1, MAX_COUNT),
                    after: after.and_then(Result::ok),
                    only_count: only_count || count == 0,
                    elements,
                    echo,
                })
            }
            _ => Err(issues),
        }
    }

    /// The URL of this page, or with `after` of the one behind that id.
    pub fn url(&self, base: &str, after: Option<&FhirId>) -> String {
        let place = after.map(|id| (AFTER.to_owned(), id.to_string()));
        let pairs: Vec<String> = self
            .echo
            .iter()
            .cloned()
            .chain(place)
            .map(|(name, value)| format!("{}={}", encoded(&name), encoded(&value)))
            .collect();
        if pairs.is_empty() { format!("{base}/Group") } else { format!("{base}/Group?{}", pairs.join("&")) }
    }

    /// The URL of this page.
    pub fn own_url(&self, base: &str) -> String {
        self.url(base, self.after.as_ref())
    }
}

/// What a read asks for: the elements to keep, empty for all.
pub(crate) fn read_form(pairs: &[(String, String)]) -> Result<BTreeSet<Element>, Vec<Issue>> {
    let (mut summary, mut given, mut issues) = (None, Vec::new(), Vec::new());
    for (name, value) in pairs {
        match name.as_str() {
            "_format" | "_pretty" => {}
            "_summary" => summary = Some(value.as_str()),
            "_elements" => given.extend(value.split(',')),
            other => {
                let text = format!("a read takes _summary and _elements, not {}", shortened(other));
                issues.push(Issue::error(IssueCode::NOT_SUPPORTED, text));
            }
        }
    }
    if summary == Some("count") {
        issues.push(wrong("_summary", "count is for searches"));
    }
    let form = form_of(summary, &given).map_err(|issue| issues.push(issue)).ok();
    match form {
        Some((elements, _)) if issues.is_empty() => Ok(elements),
        _ => Err(issues),
    }
}

/// The elements to keep, and whether only a number is asked for.
fn form_of(summary: Option<&str>, given: &[&str]) -> Result<(BTreeSet<Element>, bool), Issue> {
    let kept = match summary {
        None | Some("false") => BTreeSet::new(),
        Some("true") => subset::summary(),
        Some("count") => return Ok((BTreeSet::new(), true)),
        Some(_) => return Err(unsupported("_summary", "true, count and false are supported")),
    };
    if given.is_empty() {
        return Ok((kept, false));
    }
    if !kept.is_empty() {
        return Err(wrong("_elements", "_summary=true and _elements exclude each other"));
    }
    let element = |name: &&str| -> Option<Element> {
        let element: Element = name.trim().parse().ok()?;
        let of_group = element.of.is_none_or(|of| of == ResourceType::GROUP);
        let known = elements::of(ResourceType::GROUP).iter().any(|known| known.name == element.name);
        let element = Element { of: Some(ResourceType::GROUP), ..element };
        (of_group && (known || element.name == "id" || element.name == "meta")).then_some(element)
    };
    let elements: Option<BTreeSet<Element>> = given.iter().map(element).collect();
    elements
        .map(|elements| (elements, false))
        .ok_or_else(|| wrong("_elements", "expected root elements of Group, parted by commas"))
}

fn wrong(name: &str, text: &str) -> Issue {
    Issue::error(IssueCode::VALUE, format!("{name}: {text}")).at(format!("http.{name}"))
}

fn unsupported(name: &str, text: &str) -> Issue {
    Issue::error(IssueCode::NOT_SUPPORTED, format!("{name}: {text}")).at(format!("http.{name}"))
}

pub(super) fn fault(error: &flatbed_search::FilterError) -> Issue {
    use flatbed_search::FilterError::{UnknownModifier, UnknownParameter};
    let beyond_us =
        error.is_unsupported() || matches!(error, UnknownParameter { .. } | UnknownModifier { .. });
    let code = if beyond_us { IssueCode::NOT_SUPPORTED } else { IssueCode::VALUE };
    Issue::error(code, error.to_string())
}

/// The beginning of what a client sent, for an error.
fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Percent-encoded, all but unreserved characters.
pub(crate) fn encoded(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        // A colon parts a parameter from its modifier.
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing into a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(query: &[(&str, &str)]) -> Vec<(String, String)> {
        query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn parsed(query: &[(&str, &str)]) -> Result<GroupQuery, Vec<String>> {
        let texts = |issues: Vec<Issue>| issues.into_iter().map(|issue| issue.text).collect();
        GroupQuery::parse(&pairs(query)).map_err(texts)
    }

    #[test]
    fn gr_01_searches_keep_their_meaning_on_the_way() {
        let query = parsed(&[
            ("identifier", "http://a|x,http://a|y"),
            ("name:contains", "R&D = 1"),
            ("_count", "2"),
            ("_pretty", "true"),
        ]);
        let query = query.ok().unwrap();
        assert_eq!(query.filter.parameters().collect::<Vec<_>>(), ["identifier", "name"]);
        assert_eq!((query.count, query.only_count, query.elements.len()), (2, false, 0));
        let next = query.url("https://x", Some(&"g-1".parse().unwrap()));
        let expected = "https://x/Group?identifier=http%3A%2F%2Fa%7Cx%2Chttp%3A%2F%2Fa%7Cy";
        assert!(next.replace(':', "%3A").starts_with(&expected.replace(':', "%3A")), "{next}");
        assert!(next.ends_with("&_pretty=true&_after=g-1"), "{next}");
        assert_eq!(parsed(&[]).ok().unwrap().own_url("b"), "b/Group");
    }

    #[test]
    fn gr_01_what_shapes_the_answer() {
        let count = |text| parsed(&[("_count", text)]).ok().map(|query| (query.count, query.only_count));
        assert_eq!(count("7"), Some((7, false)));
        assert_eq!(count("1000"), Some((MAX_COUNT, false)));
        assert_eq!(count("0"), Some((1, true)));
        assert_eq!(count("many"), None);
        assert!(parsed(&[("_summary", "count")]).ok().unwrap().only_count);
        let summary = parsed(&[("_summary", "true")]).ok().unwrap().elements;
        assert!(summary == subset::summary() && summary.iter().all(|element| element.name != "member"));
        let elements = parsed(&[("_elements", "name,Group.member")]).ok().unwrap().elements;
        assert_eq!(elements.len(), 2);
        for wrong in [
            [("_summary", "text")],
            [("_elements", "Patient.name")],
            [("_elements", "birthDate")],
            [("_after", "a/b")],
            [("_sort", "name")],
            [("_include", "*")],
            [("foo", "1")],
            [("actual", "maybe")],
        ] {
            assert!(parsed(&wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(parsed(&[("foo", "1"), ("_count", "x"), ("_summary", "y")]).err().unwrap().len(), 3);
    }

    #[test]
    fn gr_01_reads_take_what_shapes_the_answer_only() {
        assert!(
            read_form(&pairs(&[("_summary", "true"), ("_format", "json")])).unwrap() == subset::summary()
        );
        assert!(read_form(&[]).unwrap().is_empty());
        for wrong in [("name", "x"), ("_summary", "count"), ("_count", "1")] {
            assert!(read_form(&pairs(&[wrong])).is_err(), "{wrong:?}");
        }
    }
}
