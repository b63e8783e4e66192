//! The members of a JSON object as spans of its bytes.
//!
//! For rows that a source has checked already: bytes that are no JSON are noticed where they would lead astray, not
//! everywhere. No tree is built, nothing is copied, and nothing recurses.

use std::ops::Range;

use memchr::{memchr2, memchr3};

/// Bytes that are not the object they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON object at byte {at}")]
pub struct Broken {
    /// Offset in the bytes looked at.
    pub at: usize,
}

/// One member of an object, by spans of the bytes that the object stands in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The name between its quotes, with its escapes.
    pub name: Range<usize>,
    /// The value, without the white space around it.
    pub value: Range<usize>,
}

/// Goes through the members of one object.
pub struct Members<'a> {
    bytes: &'a [u8],
    at: usize,
    first: bool,
    done: bool,
}

impl<'a> Members<'a> {
    /// The members of the object that starts at `at`, after white space.
    pub fn new(bytes: &'a [u8], at: usize) -> Result<Members<'a>, Broken> {
        let at = space(bytes, at);
        if bytes.get(at) != Some(&b'{') {
            return Err(Broken { at });
        }
        Ok(Members { bytes, at: at + 1, first: true, done: false })
    }

    /// The next member; `None` behind the last.
    pub fn next(&mut self) -> Result<Option<Member>, Broken> {
        if self.done {
            return Ok(None);
        }
        let bytes = self.bytes;
        let mut at = space(bytes, self.at);
        match bytes.get(at) {
            Some(b'}') => {
                (self.done, self.at) = (true, at + 1);
                return Ok(None);
            }
            Some(b',') if !self.first => at = space(bytes, at + 1),
            Some(b'"') if self.first => {}
            _ => return Err(Broken { at }),
        }
        self.first = false;
        let name_end = string_end(bytes, at)?;
        let name = at + 1..name_end - 1;
        at = space(bytes, name_end);
        if bytes.get(at) != Some(&b':') {
            return Err(Broken { at });
        }
        let start = space(bytes, at + 1);
        let end = value_end(bytes, start)?;
        self.at = end;
        Ok(Some(Member { name, value: start..end }))
    }
}

fn space(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
        at += 1;
    }
    at
}

/// Behind the string that starts at `at`.
pub(super) fn string_end(bytes: &[u8], at: usize) -> Result<usize, Broken> {
    if bytes.get(at) != Some(&b'"') {
        return Err(Broken { at });
    }
    let mut from = at + 1;
    loop {
        let rest = bytes.get(from..).unwrap_or_default();
        let found = memchr2(b'"', b'\\', rest).ok_or(Broken { at })? + from;
        if bytes[found] == b'"' {
            return Ok(found + 1);
        }
        // Whatever is escaped, it is no end.
        from = found + 2;
    }
}

/// Behind the value that starts at `at`.
fn value_end(bytes: &[u8], at: usize) -> Result<usize, Broken> {
    match bytes.get(at) {
        Some(b'"') => string_end(bytes, at),
        Some(b'{') => nested_end(bytes, at, b'{', b'}'),
        Some(b'[') => nested_end(bytes, at, b'[', b']'),
        Some(b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
            let rest = &bytes[at..];
            let len = rest
                .iter()
                .position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n'));
            Ok(at + len.unwrap_or(rest.len()))
        }
        _ => Err(Broken { at }),
    }
}

/// Behind the object or array that starts at `at`. Only brackets of its own kind count: in JSON the others close
/// before it does.
fn nested_end(bytes: &[u8], at: usize, open: u8, close: u8) -> Result<usize, Broken> {
    let (mut depth, mut from) = (1_usize, at + 1);
    loop {
        let rest = bytes.get(from..).unwrap_or_default();
        let found = memchr3(b'"', open, close, rest).ok_or(Broken { at })? + from;
        from = found + 1;
        match bytes[found] {
            b'"' => from = string_end(bytes, found)?,
            byte if byte == open => depth += 1,
            _ => depth -= 1,
        }
        if depth == 0 {
            return Ok(from);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(text: &str) -> Result<Vec<(&str, &str)>, Broken> {
        let mut members = Members::new(text.as_bytes(), 0)?;
        let mut found = Vec::new();
        while let Some(member) = members.next()? {
            found.push((&text[member.name], &text[member.value]));
        }
        Ok(found)
    }

    #[test]
    fn members_come_in_order_with_their_bytes() {
        let text =
            r#" { "a" : 1.50 ,"b":"x\"}\\", "c":{"d":[{},"]"]},"e":[[1],{"f":"["}] , "g":null,"h":true}"#;
        let expected = [
            ("a", "1.50"),
            ("b", r#""x\"}\\""#),
            ("c", r#"{"d":[{},"]"]}"#),
            ("e", r#"[[1],{"f":"["}]"#),
            ("g", "null"),
            ("h", "true"),
        ];
        assert_eq!(members(text).unwrap(), expected);
        assert_eq!(members("{}").unwrap(), []);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for broken in [
            "",
            "[]",
            "{",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1",
            "{\"a\":\"x}",
            "{\"a\":[1}",
            "{,\"a\":1}",
            "{\"a\":1 \"b\":2}",
        ] {
            assert!(members(broken).is_err(), "{broken}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_a_panic(bytes in proptest::collection::vec(prop_oneof![Just(b'"'), Just(b'\\'), Just(b'{'), Just(b'}'), Just(b':'), Just(b','), any::<u8>()], 0..60)) {
            let Ok(mut members) = Members::new(&bytes, 0) else { return Ok(()) };
            while let Ok(Some(member)) = members.next() {
                prop_assert!(member.name.end <= bytes.len() && member.value.end <= bytes.len());
            }
        }
    }
}
