//! Walking the bytes of JSON without a tree: members, elements, and skipping what nobody asked for.
//!
//! Values are spans of the input. Nothing here checks more of JSON than it needs to find the next member, and
//! nothing recurses: containers are skipped by counting brackets outside strings, 64 bytes at a time. On any bytes
//! each call ends with a value or with [`Malformed`].

use std::borrow::Cow;

use crate::error::Malformed;

/// A place in a line.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    line: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of a line.
    pub(crate) fn new(line: &'a [u8]) -> Cursor<'a> {
        Cursor { line, at: 0 }
    }

    #[cold]
    fn malformed<T>(&self) -> Result<T, Malformed> {
        Err(Malformed { at: self.at })
    }

    /// The next byte that is no white space.
    #[inline]
    pub(crate) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.line.get(self.at) {
                Some(b' ' | b'\t' | b'\r' | b'\n') => self.at += 1,
                other => return other.copied(),
            }
        }
    }

    /// Goes into the object or array that starts here.
    #[inline]
    pub(crate) fn enter(&mut self, open: u8) -> Result<(), Malformed> {
        if self.peek() != Some(open) {
            return self.malformed();
        }
        self.at += 1;
        Ok(())
    }

    /// The next member's name, as it is written between its quotes; the cursor then stands at its value. None at
    /// the end of the object, which is passed.
    #[inline]
    pub(crate) fn key(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        if self.peek() == Some(b',') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'"') => {}
            Some(b'}') => {
                self.at += 1;
                return Ok(None);
            }
            _ => return self.malformed(),
        }
        let start = self.at + 1;
        self.at = string_end(self.line, start)?;
        let key = &self.line[start..self.at - 1];
        if self.peek() != Some(b':') {
            return self.malformed();
        }
        self.at += 1;
        Ok(Some(key))
    }

    /// Whether the array has another element; the cursor then stands at it, else behind the array.
    #[inline]
    pub(crate) fn element(&mut self) -> Result<bool, Malformed> {
        if self.peek() == Some(b',') {
            self.at += 1;
        }
        match self.peek() {
            Some(b']') => {
                self.at += 1;
                Ok(false)
            }
            Some(_) => Ok(true),
            None => self.malformed(),
        }
    }

    /// The value that starts here; the cursor then stands behind it.
    #[inline]
    pub(crate) fn value(&mut self) -> Result<&'a [u8], Malformed> {
        let first = self.peek();
        let start = self.at;
        match first {
            Some(b'"') => self.at = string_end(self.line, start + 1)?,
            Some(b'{' | b'[') => self.at = container_end(self.line, start + 1)?,
            Some(b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
                let rest = &self.line[start..];
                let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n');
                self.at += rest.iter().position(ends).unwrap_or(rest.len());
            }
            _ => return self.malformed(),
        }
        Ok(&self.line[start..self.at])
    }

    /// Leaves the object in which the cursor stands between two members.
    pub(crate) fn leave(&mut self) -> Result<(), Malformed> {
        self.at = container_end(self.line, self.at)?;
        Ok(())
    }

    /// What lies between an earlier place and this one.
    pub(crate) fn since(&self, earlier: &Cursor<'a>) -> &'a [u8] {
        &self.line[earlier.at..self.at]
    }
}

/// Behind the string whose first character stands at `at`.
#[inline]
fn string_end(line: &[u8], at: usize) -> Result<usize, Malformed> {
    let mut from = at;
    loop {
        let rest = line.get(from..).ok_or(Malformed { at })?;
        let found = quote_or_backslash(rest).ok_or(Malformed { at })?;
        if rest[found] == b'"' {
            return Ok(from + found + 1);
        }
        from += found + 2;
    }
}

/// Most strings are short: two words are looked at before the machinery for long ones starts.
#[inline]
fn quote_or_backslash(bytes: &[u8]) -> Option<usize> {
    const SHORT: usize = 2;
    let (words, _) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().take(SHORT).enumerate() {
        let word = u64::from_le_bytes(*word);
        let found = equal(word, b'"') | equal(word, b'\\');
        if found != 0 {
            return Some(index * 8 + (found.trailing_zeros() / 8) as usize);
        }
    }
    let seen = SHORT.min(words.len()) * 8;
    memchr::memchr2(b'"', b'\\', &bytes[seen..]).map(|found| seen + found)
}

const ONES: u64 = 0x0101_0101_0101_0101;
const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;

/// The highest bit of each byte of the word that is this byte.
#[inline]
fn equal(word: u64, byte: u8) -> u64 {
    let other = word ^ (ONES * byte as u64);
    !(((other & LOW) + LOW) | other | LOW)
}

/// What matters of 64 bytes, one bit each.
struct Block {
    quotes: u64,
    backslashes: u64,
    opens: u64,
    closes: u64,
}

impl Block {
    #[inline]
    fn of(bytes: &[u8; 64]) -> Block {
        // The highest bits of eight bytes, side by side.
        let gather = |bits: u64| bits.wrapping_mul(0x0002_0408_1020_4081) >> 56;
        let mut block = Block { quotes: 0, backslashes: 0, opens: 0, closes: 0 };
        let (words, _) = bytes.as_chunks::<8>();
        for (index, word) in words.iter().enumerate() {
            let word = u64::from_le_bytes(*word);
            // `[` and `{` differ in one bit, and so do `]` and `}`.
            let folded = word | (ONES * 0x20);
            let shift = index * 8;
            block.quotes |= gather(equal(word, b'"')) << shift;
            block.backslashes |= gather(equal(word, b'\\')) << shift;
            block.opens |= gather(equal(folded, b'{')) << shift;
            block.closes |= gather(equal(folded, b'}')) << shift;
        }
        block
    }
}

/// Behind the object or array of which `at` is the inside, between two members or elements.
fn container_end(line: &[u8], at: usize) -> Result<usize, Malformed> {
    let mut depth = 1_u32;
    // All ones while a string goes on; whether the byte before was a backslash that counts.
    let (mut in_string, mut escaping) = (0_u64, false);
    let mut from = at;
    let mut padded = [b' '; 64];
    while from < line.len() {
        let block = match line[from..].first_chunk::<64>() {
            Some(bytes) => Block::of(bytes),
            None => {
                padded[..line.len() - from].copy_from_slice(&line[from..]);
                Block::of(&padded)
            }
        };
        let mut quotes = block.quotes;
        if block.backslashes != 0 || escaping {
            quotes &= !escaped(block.backslashes, &mut escaping);
        }
        let inside = prefix_xor(quotes) ^ in_string;
        in_string = if inside >> 63 == 1 { u64::MAX } else { 0 };
        let (opens, closes) = (block.opens & !inside, block.closes & !inside);
        if depth > closes.count_ones() {
            depth = depth + opens.count_ones() - closes.count_ones();
        } else if let Some(end) = depth_zero(opens, closes, &mut depth) {
            return Ok(from + end);
        }
        from += 64;
    }
    Err(Malformed { at })
}

/// The bytes of a block that a backslash stands before.
#[cold]
fn escaped(mut backslashes: u64, escaping: &mut bool) -> u64 {
    let mut escaped = u64::from(*escaping);
    *escaping = false;
    while backslashes != 0 {
        let at = backslashes.trailing_zeros();
        backslashes &= backslashes - 1;
        if escaped >> at & 1 == 1 {
            continue;
        }
        if at == 63 {
            *escaping = true;
        } else {
            escaped |= 1 << (at + 1);
        }
    }
    escaped
}

/// Bit by bit, whether an odd number of bits is set up to there.
#[inline]
fn prefix_xor(mut bits: u64) -> u64 {
    for shift in [1, 2, 4, 8, 16, 32] {
        bits ^= bits << shift;
    }
    bits
}

/// Behind the bracket of a block that closes the last level, if one does.
#[inline]
fn depth_zero(opens: u64, closes: u64, depth: &mut u32) -> Option<usize> {
    let mut brackets = opens | closes;
    while brackets != 0 {
        let at = brackets.trailing_zeros();
        brackets &= brackets - 1;
        if opens >> at & 1 == 1 {
            *depth += 1;
        } else {
            *depth -= 1;
            if *depth == 0 {
                return Some(at as usize + 1);
            }
        }
    }
    None
}

/// Whether what is written between quotes means this text.
#[inline]
pub(crate) fn means(written: &[u8], text: &str) -> bool {
    if written.contains(&b'\\') {
        return unescaped(written).is_some_and(|plain| plain == text);
    }
    written == text.as_bytes()
}

/// What is written between quotes, where escapes are in it.
#[cold]
fn unescaped(written: &[u8]) -> Option<String> {
    let mut quoted = Vec::with_capacity(written.len() + 2);
    quoted.push(b'"');
    quoted.extend_from_slice(written);
    quoted.push(b'"');
    serde_json::from_slice(&quoted).ok()
}

/// The text of a value that is a string.
#[inline]
pub(crate) fn text(value: &[u8]) -> Option<Cow<'_, str>> {
    let written = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if written.contains(&b'\\') {
        return unescaped(written).map(Cow::Owned);
    }
    std::str::from_utf8(written).ok().map(Cow::Borrowed)
}

/// Whether a value is the string with this text.
#[inline]
pub(crate) fn is_text(value: &[u8], wanted: &str) -> bool {
    let Some(written) = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")) else {
        return false;
    };
    means(written, wanted)
}

/// The values of the members with these names, in one pass. Null is as good as absent, and so is what follows a
/// place that is no JSON.
#[inline]
pub(crate) fn members<'a, const N: usize>(object: &'a [u8], names: [&str; N]) -> [Option<&'a [u8]>; N] {
    let mut found = [None; N];
    let mut cursor = Cursor::new(object);
    if cursor.enter(b'{').is_err() {
        return found;
    }
    while let Ok(Some(key)) = cursor.key() {
        let Ok(value) = cursor.value() else { break };
        if let Some(index) = names.iter().position(|name| means(key, name))
            && value != b"null"
        {
            found[index] = Some(value);
        }
    }
    found
}

/// The value of one member.
pub(crate) fn member<'a>(object: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let [found] = members(object, [name]);
    found
}

/// The elements of an array, or the value itself where it is none.
pub(crate) fn elements(value: &[u8]) -> Elements<'_> {
    let mut cursor = Cursor::new(value);
    if cursor.peek() == Some(b'[') && cursor.enter(b'[').is_ok() {
        Elements::Of(cursor)
    } else {
        Elements::One(Some(value))
    }
}

/// See [`elements`].
pub(crate) enum Elements<'a> {
    /// A value that is no array.
    One(Option<&'a [u8]>),
    /// What is left of an array.
    Of(Cursor<'a>),
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        match self {
            Elements::One(value) => value.take(),
            Elements::Of(cursor) => match cursor.element() {
                Ok(true) => cursor.value().ok().or_else(|| {
                    *self = Elements::One(None);
                    None
                }),
                _ => {
                    *self = Elements::One(None);
                    None
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn span(text: &str) -> Option<&str> {
        let value = Cursor::new(text.as_bytes()).value().ok()?;
        std::str::from_utf8(value).ok()
    }

    #[test]
    fn values_end_where_they_end() {
        for value in [
            "\"\"",
            "\"a\\\"b\\\\\"",
            "1.5e-3",
            "true",
            "null",
            "{}",
            "[]",
            "[[],{\"a\":[\"]\"]}]",
            "{\"a\":\"}\\\\\",\"b\":{\"c\":\"\\\"}\"}}",
        ] {
            for rest in ["", ",1", "}", " ]", "\"}]\""] {
                if rest.starts_with('"') && !value.ends_with(['"', '}', ']']) {
                    continue;
                }
                assert_eq!(span(&format!("  {value}{rest}")), Some(value), "{value}{rest}");
            }
        }
    }

    #[test]
    fn what_does_not_end_is_malformed() {
        for open in ["", "{", "[1,", "\"a", "\"a\\", "{\"a\":\"}", "x", ":", "]"] {
            assert_eq!(span(open), None, "{open}");
        }
    }

    #[test]
    fn brackets_and_escapes_are_seen_across_blocks() {
        for shift in 0..140 {
            for inner in ["\\\\\\\"}", "}\\\"{[", "\\\\", "]"] {
                let value = format!("[{}\"{inner}\",{{\"k\":[]}}]", " ".repeat(shift));
                let line = format!("{value},\"]\"");
                assert_eq!(span(&line), Some(value.as_str()));
            }
        }
    }

    #[test]
    fn members_are_found_whatever_their_spelling() {
        assert!(is_text(br#""\"""#, "\"") && !is_text(br#""\"""#, "\\\""));
        let object = br#" { "a" : 1 , "\u0062":"x\ty", "c":null, "d":[1, "2",{}] } "#;
        let [a, b, c, d, e] = members(object, ["a", "b", "c", "d", "e"]);
        assert_eq!((a, c, e), (Some(&b"1"[..]), None, None));
        assert!(is_text(b.unwrap(), "x\ty") && text(b.unwrap()).unwrap() == "x\ty");
        assert_eq!(elements(d.unwrap()).collect::<Vec<_>>(), [&b"1"[..], b"\"2\"", b"{}"]);
        assert_eq!(elements(b"[1,").collect::<Vec<_>>(), [b"1"]);
    }

    fn arbitrary_json() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::Value;
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z\\\\\"{}\\[\\], é\u{1}]{0,80}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::btree_map("[a-c\\\\\"{}]{0,4}", inner, 0..8)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_serde(value in arbitrary_json(), pretty: bool) {
            let written = if pretty { format!("{value:#}") } else { value.to_string() };
            let line = format!("{written}, 1]");
            prop_assert_eq!(span(&line), Some(written.as_str()));
            if let serde_json::Value::Object(map) = &value {
                for (key, inner) in map {
                    let found = member(written.as_bytes(), key);
                    let parsed = found.map(|bytes| serde_json::from_slice::<serde_json::Value>(bytes).unwrap());
                    prop_assert_eq!(parsed.unwrap_or_default(), inner.clone());
                }
            }
        }

        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(prop_oneof![Just(b'"'), Just(b'\\'), Just(b'{'),
            Just(b'}'), Just(b'['), Just(b']'), Just(b','), Just(b':'), any::<u8>()], 0..300)) {
            let _ = Cursor::new(&bytes).value();
            let _ = members(&bytes, ["a", ""]);
            let count = elements(&bytes).count();
            prop_assert!(count <= bytes.len() + 1);
        }
    }
}
