//! URLs of attachments that are relative references to Binaries become absolute ones (FL-18); everything else of a row
//! stays byte for byte. So do absolute URLs, and relative ones that name something else: nobody here could fetch them.
//!
//! An Attachment is known by the name that it stands under, wherever in the resource: in extensions and in contained
//! resources too.

use std::ops::Range;

use flatbed_types::attachment::{BinaryReference, is_attachment};
use memchr::memmem;

use super::Locate;
use super::json::{Broken, string_end};
use crate::header::MAX_DEPTH;

/// Whether a row may have such a URL: one that says no has none. Beside the plain text, escapes may spell it.
pub(super) fn may_name_binary(row: &[u8]) -> bool {
    memmem::find(row, b"Binary").is_some() || memmem::find(row, b"\\u00").is_some()
}

/// Appends a row with the URLs that `locate` gives.
pub(super) fn write(row: &[u8], locate: &Locate, out: &mut Vec<u8>) -> Result<(), Broken> {
    let mut copied = 0;
    each_url(row, &mut |place| {
        let Some(reference) = reference(&row[place.clone()]) else { return Ok(()) };
        out.extend_from_slice(&row[copied..place.start]);
        serde_json::to_writer(&mut *out, &locate(&reference)).map_err(|_| Broken { at: place.start })?;
        copied = place.end;
        Ok(())
    })?;
    out.extend_from_slice(&row[copied..]);
    Ok(())
}

/// The reference that a string is, which comes with its quotes.
fn reference(string: &[u8]) -> Option<BinaryReference> {
    // The longest reference, with every character written as an escape.
    const LONGEST: usize = 6 * (1 + "Binary/".len() + 64 + "/_history/".len() + 64) + 2;
    if string.len() > LONGEST {
        return None;
    }
    serde_json::from_slice::<String>(string).ok()?.parse().ok()
}

/// An object or array that is open.
struct Frame {
    is_object: bool,
    /// It is an Attachment, or has such elements.
    is_attachment: bool,
}

/// Tells the place, with its quotes, of every string `url` in an Attachment.
fn each_url(row: &[u8], found: &mut dyn FnMut(Range<usize>) -> Result<(), Broken>) -> Result<(), Broken> {
    let mut stack: Vec<Frame> = Vec::new();
    // The name that a value follows, and whether a name comes first.
    let (mut name, mut expects_name) = (0..0, false);
    let mut at = 0;
    while let Some(byte) = row.get(at) {
        let start = at;
        at += 1;
        match byte {
            b'{' | b'[' => {
                if stack.len() >= MAX_DEPTH {
                    return Err(Broken { at: start });
                }
                let is_attachment = match stack.last() {
                    None => false,
                    Some(around) if around.is_object => is_attachment(&row[name.clone()]),
                    Some(around) => around.is_attachment,
                };
                expects_name = *byte == b'{';
                stack.push(Frame { is_object: expects_name, is_attachment });
            }
            b'}' | b']' => {
                let closed = stack.pop().filter(|frame| frame.is_object == (*byte == b'}'));
                closed.ok_or(Broken { at: start })?;
                expects_name = false;
            }
            b',' => expects_name = stack.last().is_some_and(|around| around.is_object),
            b'"' => {
                at = string_end(row, start)?;
                if expects_name {
                    (name, expects_name) = (start + 1..at - 1, false);
                } else if stack.last().is_some_and(|around| around.is_object && around.is_attachment)
                    && &row[name.clone()] == b"url"
                {
                    found(start..at)?;
                }
            }
            _ => {}
        }
    }
    if stack.is_empty() { Ok(()) } else { Err(Broken { at: row.len() }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn locate(reference: &BinaryReference) -> String {
        format!("https://h/{reference}/m")
    }

    fn written(row: &str) -> String {
        let mut out = b"before".to_vec();
        write(row.as_bytes(), &locate, &mut out).unwrap();
        String::from_utf8(out).unwrap().strip_prefix("before").unwrap().to_owned()
    }

    #[test]
    fn fl_18_relative_urls_of_attachments_become_absolute_wherever_they_stand() {
        for (row, expected) in [
            (
                r#"{"resourceType":"DocumentReference", "content":[{"attachment":{"contentType":"a/b","url":"Binary/1","size":1.50}}]}"#,
                r#"{"resourceType":"DocumentReference", "content":[{"attachment":{"contentType":"a/b","url":"https://h/Binary/1/m","size":1.50}}]}"#,
            ),
            (
                r#"{"photo" : [ {"url" : "\/Binary\/a"} , {"url":"/Binary/b/_history/3"} ]}"#,
                r#"{"photo" : [ {"url" : "https://h/Binary/a/m"} , {"url":"https://h/Binary/b/_history/3/m"} ]}"#,
            ),
            (
                r#"{"contained":[{"resourceType":"Media","content":{"url":"\u0042inary/1","data":"eA=="}}]}"#,
                r#"{"contained":[{"resourceType":"Media","content":{"url":"https://h/Binary/1/m","data":"eA=="}}]}"#,
            ),
            (
                r#"{"extension":[{"url":"Binary/1","valueAttachment":{"extension":[{"url":"Binary/2"}],"url":"Binary/3"}}]}"#,
                r#"{"extension":[{"url":"Binary/1","valueAttachment":{"extension":[{"url":"Binary/2"}],"url":"https://h/Binary/3/m"}}]}"#,
            ),
        ] {
            assert_eq!(written(row), expected);
            assert!(may_name_binary(row.as_bytes()));
        }
    }

    #[test]
    fn fl_21_everything_else_stays_byte_for_byte() {
        for row in [
            r#"{"photo":[{"url":"https://example.org/fhir/Binary/1"},{"url":"Patient/1"},{"url":"Binary/1?x"},{"url":"Binary/"}]}"#,
            r#"{"url":"Binary/1","entry":[{"request":{"method":"GET","url":"Binary/1"}}],"link":[{"url":"Binary/1"}]}"#,
            r#"{"photo":{"title":"Binary/1","_url":"Binary/1","x":{"url":"Binary/1"},"y":["url","Binary/1"],"url":["Binary/1"],"z":"url"}}"#,
            r#"{"note":[{"text":"photo\":{\"url\":\"Binary/1\"}"}],"photo":[],"content":{}}"#,
            "{}",
        ] {
            assert_eq!(written(row), row);
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let deep = format!("{}{}", "[".repeat(MAX_DEPTH + 1), "]".repeat(MAX_DEPTH + 1));
        for broken in ["{", "}", "{\"a", "{\"a\":[1}}", &deep] {
            assert!(write(broken.as_bytes(), &locate, &mut Vec::new()).is_err(), "{broken}");
        }
    }

    /// Any value, in which names and texts that matter are frequent.
    fn value() -> impl Strategy<Value = Value> {
        let text = prop::sample::select(vec![
            "Binary/1",
            "/Binary/2",
            "x\"y",
            "url",
            "https://e.org/Binary/1",
            "\\",
        ]);
        let leaf =
            prop_oneof![Just(Value::Null), text.prop_map(Value::from), any::<i32>().prop_map(Value::from)];
        leaf.prop_recursive(5, 40, 5, |inner| {
            let name = prop::sample::select(vec!["url", "photo", "attachment", "extension", "x", "data"]);
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(name.prop_map(str::to_owned), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// The same by a tree.
    fn expected(value: &mut Value, is_named: bool) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| expected(item, is_named)),
            Value::Object(map) => {
                for (name, member) in map.iter_mut() {
                    if let (Value::String(text), true, "url") = (&mut *member, is_named, name.as_str())
                        && let Ok(reference) = text.parse::<BinaryReference>()
                    {
                        *text = locate(&reference);
                    }
                    expected(member, is_attachment(name.as_bytes()));
                }
            }
            _ => {}
        }
    }

    proptest! {
        #[test]
        fn what_comes_out_is_what_a_tree_gives(mut row in value(), pretty in any::<bool>()) {
            row = serde_json::json!({ "resourceType": "x", "rest": row });
            let text = if pretty { serde_json::to_string_pretty(&row).unwrap() } else { row.to_string() };
            let out = written(&text);
            expected(&mut row, false);
            prop_assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), row);
            prop_assert_eq!(written(&out), out);
        }

        #[test]
        fn any_bytes_end_without_a_panic(bytes in prop::collection::vec(prop_oneof![
            Just(b'"'), Just(b'\\'), Just(b'{'), Just(b'}'), Just(b'['), Just(b']'), Just(b':'), Just(b','), any::<u8>()
        ], 0..80)) {
            let _ = write(&bytes, &locate, &mut Vec::new());
        }
    }
}
