//! Small operations on text: percent-encoding, FHIR's escapes, folding, and what errors may repeat.

use std::borrow::Cow;
use std::fmt::Write;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

use crate::limits::MAX_ECHO;

/// The start of a client's text, fit to be printed.
pub(crate) fn echo(text: &str) -> String {
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut start: String = text.chars().take(MAX_ECHO).map(printable).collect();
    if text.chars().nth(MAX_ECHO).is_some() {
        start.push('…');
    }
    start
}

/// Undoes percent-encoding once. `+` stays what it is: filters are queries, not forms. None where the text is not
/// well encoded.
pub(crate) fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        decoded.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

/// Encodes what would end or change a value in a query, and what is not visible ASCII.
pub(crate) fn percent_encode(text: &str, into: &mut impl Write) -> std::fmt::Result {
    for byte in text.bytes() {
        match byte {
            b'%' | b'&' | b'#' | b'+' | b'?' | b'"' | b'<' | b'>' => write!(into, "%{byte:02X}")?,
            b'!'..=b'~' => into.write_char(char::from(byte))?,
            _ => write!(into, "%{byte:02X}")?,
        }
    }
    Ok(())
}

/// The parts between separators that no backslash stands before.
pub(crate) fn split_unescaped(text: &str, separator: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == separator {
            parts.push(&text[start..at]);
            start = at + c.len_utf8();
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Takes the escapes `\,` `\|` `\$` `\\` away. None where a backslash stands before anything else.
pub(crate) fn unescape(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('\\') {
        return Some(Cow::Borrowed(text));
    }
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => plain.push(characters.next().filter(|next| matches!(next, ',' | '|' | '$' | '\\'))?),
            _ => plain.push(c),
        }
    }
    Some(Cow::Owned(plain))
}

/// A text without case and accents.
pub(crate) fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    text.nfd().filter(|c| !is_combining_mark(*c)).flat_map(char::to_lowercase).collect()
}

/// Whether the text, folded, starts with what is wanted, which is folded already.
pub(crate) fn folded_starts_with(text: &str, wanted: &str) -> bool {
    match text.as_bytes().get(..wanted.len()) {
        Some(start) if start.is_ascii() && wanted.is_ascii() => {
            // An accent that follows would belong to the last character, and folds away.
            start.eq_ignore_ascii_case(wanted.as_bytes())
        }
        _ if text.is_ascii() => false,
        _ => fold(text).starts_with(wanted),
    }
}

/// Whether the text, folded, has what is wanted, which is folded already, anywhere.
pub(crate) fn folded_contains(text: &str, wanted: &str) -> bool {
    memchr::memmem::find(fold(text).as_bytes(), wanted.as_bytes()).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_is_undone_once() {
        assert_eq!(percent_decode("a%2Cb%252C+%C3%A9").unwrap(), "a,b%2C+é");
        for wrong in ["%", "%4", "%zz", "%ff", "%+1"] {
            assert!(percent_decode(wrong).is_none(), "{wrong}");
        }
        let mut encoded = String::new();
        percent_encode("a b&c=d%|é\\,", &mut encoded).unwrap();
        assert_eq!(encoded, "a%20b%26c=d%25|%C3%A9\\,");
        assert_eq!(percent_decode(&encoded).unwrap(), "a b&c=d%|é\\,");
    }

    #[test]
    fn escapes_protect_separators() {
        assert_eq!(split_unescaped("a\\,b,c\\\\,d", ','), ["a\\,b", "c\\\\", "d"]);
        assert_eq!(unescape("a\\,b\\|\\$\\\\").unwrap(), "a,b|$\\");
        assert!(unescape("a\\n").is_none() && unescape("a\\").is_none());
    }

    #[test]
    fn case_and_accents_fold_away() {
        assert_eq!(fold("Zoë ÅKESSON e\u{301}"), "zoe akesson e");
        assert!(folded_starts_with("EVE", "eve") && folded_starts_with("Évelyn", "eve"));
        assert!(!folded_starts_with("Severine", "eve") && folded_contains("Severine", "eve"));
        assert!(!folded_starts_with("Ev", "eve") && folded_starts_with("e\u{301}ve", "eve"));
        assert!(folded_starts_with("Петрова", "петр") && !folded_starts_with("Петрова", "eve"));
    }

    #[test]
    fn errors_repeat_little() {
        assert_eq!(echo("a\nb"), "a\u{fffd}b");
        assert_eq!(echo(&"x".repeat(100)).chars().count(), MAX_ECHO + 1);
    }
}
