//! The header of a resource: what the lake's index needs of one line, found in a single pass that also checks
//! that the whole line is JSON.
//!
//! The pass builds no tree and holds no value that is not asked for, so that a line of any length goes through
//! in small memory. It is a scanner of its own because serde cannot skip a string without buffering it when it
//! does not know beforehand that a string comes. Grammar: RFC 8259; UTF-8 is checked apart, over the whole line
//! at once ([`scan_line`]) or piecewise ([`check_utf8`]).
//!
//! Knows nothing of resource types or of which references matter: [`crate::compartment`] does.

use std::io::{self, BufRead};

use flatbed_types::attachment::{BinaryReference, is_attachment};

/// Objects and arrays inside each other: more than any resource has, little enough for every reader of the
/// output.
pub const MAX_DEPTH: usize = 128;
/// Bytes kept of a string that is looked at: ids have 64, references are URLs at most.
const MAX_TEXT: usize = 2048;
/// Bytes kept of a path of keys.
const MAX_PATH: usize = 1024;

/// Why a line is no resource.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// Not JSON.
    #[error("not valid JSON at byte {at}: expected {expected}")]
    Json {
        /// Offset in the line, from 0.
        at: u64,
        /// What would have been allowed there.
        expected: &'static str,
    },
    /// Not UTF-8.
    #[error("not valid UTF-8 at byte {at}")]
    Utf8 {
        /// Offset in the line, from 0.
        at: u64,
    },
    /// JSON, but no object.
    #[error("not a JSON object")]
    NotAnObject,
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// A property that names the resource stands there twice, so that readers would differ about it.
    #[error("property `{0}` is repeated")]
    Repeated(&'static str),
    /// The line could not be read again from where it was put aside.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A property of the header.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Field {
    /// Not there.
    #[default]
    Absent,
    /// A string.
    Text(String),
    /// Something else than a string.
    Other,
}

impl Field {
    /// The text, where it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Field::Text(text) => Some(text),
            Field::Absent | Field::Other => None,
        }
    }
}

/// What the index needs of a resource. Holds patient data: no `Debug`.
#[derive(Default)]
pub struct Header {
    /// `resourceType`.
    pub resource_type: Field,
    /// `id`.
    pub id: Field,
    /// `meta.lastUpdated`.
    pub last_updated: Field,
    /// `meta.versionId`.
    pub version: Field,
    /// Whether the `url` of an Attachment is a relative reference to a Binary.
    pub names_binary: bool,
    /// `recorded`, which a Provenance has; the first where it is repeated.
    pub recorded: Field,
}

/// Hears every string property named `reference`: the keys of the objects around it joined by dots (arrays do
/// not count), and the string.
pub type OnReference<'a> = dyn FnMut(&[u8], &[u8]) + 'a;

/// Reads one line that is in memory.
pub fn scan_line(line: &[u8], on_reference: &mut OnReference<'_>) -> Result<Header, Malformed> {
    if let Err(error) = std::str::from_utf8(line) {
        return Err(Malformed::Utf8 { at: error.valid_up_to() as u64 });
    }
    Scanner::new(line, on_reference).run()
}

/// Reads one line from a stream; its UTF-8 is the business of [`check_utf8`].
pub fn scan_stream(input: impl BufRead, on_reference: &mut OnReference<'_>) -> Result<Header, Malformed> {
    Scanner::new(input, on_reference).run()
}

/// Checks that a stream is UTF-8, piecewise.
pub fn check_utf8(mut input: impl BufRead) -> Result<(), Malformed> {
    let mut at = 0_u64;
    let mut carried = [0_u8; 4];
    let mut carried_len = 0;
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return if carried_len == 0 { Ok(()) } else { Err(Malformed::Utf8 { at }) };
        }
        if carried_len > 0 {
            // A character that was cut by the buffer's end is completed byte by byte.
            carried[carried_len] = buffer[0];
            carried_len += 1;
            input.consume(1);
            match std::str::from_utf8(&carried[..carried_len]) {
                Ok(_) => {
                    at += carried_len as u64;
                    carried_len = 0;
                }
                Err(error) if error.error_len().is_none() && carried_len < 4 => {}
                Err(_) => return Err(Malformed::Utf8 { at }),
            }
            continue;
        }
        let len = buffer.len();
        let valid = match std::str::from_utf8(buffer) {
            Ok(_) => len,
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(error) => return Err(Malformed::Utf8 { at: at + error.valid_up_to() as u64 }),
        };
        carried_len = len - valid;
        carried[..carried_len].copy_from_slice(&buffer[valid..]);
        at += valid as u64;
        input.consume(len);
    }
}

#[derive(Clone, Copy)]
enum Frame {
    /// An object; the path that leads to it has this length.
    Object(usize),
    /// An array; likewise.
    Array(usize),
}

/// What a string is needed for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Nothing,
    Reference,
    AttachmentUrl,
    ResourceType,
    Id,
    LastUpdated,
    Version,
    Recorded,
}

struct Scanner<'a, 'b, R> {
    input: R,
    at: u64,
    stack: Vec<Frame>,
    path: Vec<u8>,
    /// Where the last key starts in `path`.
    key_at: usize,
    text: Vec<u8>,
    header: Header,
    on_reference: &'a mut OnReference<'b>,
}

impl<'a, 'b, R: BufRead> Scanner<'a, 'b, R> {
    fn new(input: R, on_reference: &'a mut OnReference<'b>) -> Self {
        Scanner {
            input,
            at: 0,
            stack: Vec::with_capacity(16),
            path: Vec::with_capacity(128),
            key_at: 0,
            text: Vec::with_capacity(64),
            header: Header::default(),
            on_reference,
        }
    }

    fn run(mut self) -> Result<Header, Malformed> {
        match self.peek_token()? {
            Some(b'{') => {}
            Some(b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
                return Err(Malformed::NotAnObject);
            }
            _ => return self.expected("an object"),
        }
        self.bump();
        self.open(Frame::Object(0))?;
        // Whether the container on top has just been opened.
        let mut fresh = true;
        while let Some(frame) = self.stack.last().copied() {
            let close = if matches!(frame, Frame::Object(_)) { b'}' } else { b']' };
            let token = self.peek_token()?;
            if token == Some(close) {
                self.bump();
                self.stack.pop();
                fresh = false;
                continue;
            }
            if !fresh {
                if token != Some(b',') {
                    return self.expected("',' or the end of the object or array");
                }
                self.bump();
            }
            match frame {
                Frame::Object(path_len) => self.key(path_len)?,
                // The element before may have left its keys.
                Frame::Array(path_len) => self.path.truncate(path_len),
            }
            fresh = self.value(frame)?;
        }
        match self.peek_token()? {
            None => Ok(self.header),
            Some(_) => self.expected("nothing after the resource"),
        }
    }

    /// Reads `"key" :` and leaves the path at it.
    fn key(&mut self, path_len: usize) -> Result<(), Malformed> {
        if self.peek_token()? != Some(b'"') {
            return self.expected("a property name");
        }
        self.bump();
        self.path.truncate(path_len);
        if path_len > 0 {
            self.path.push(b'.');
        }
        self.key_at = self.path.len();
        let mut path = std::mem::take(&mut self.path);
        let read = self.take_string(&mut path, MAX_PATH);
        self.path = path;
        read?;
        if self.peek_token()? != Some(b':') {
            return self.expected("':'");
        }
        self.bump();
        Ok(())
    }

    /// Reads a value, or only the start of an object or array: then true.
    fn value(&mut self, frame: Frame) -> Result<bool, Malformed> {
        let token = self.peek_token()?;
        let wanted = match frame {
            Frame::Object(_) => self.wanted(),
            Frame::Array(_) => Wanted::Nothing,
        };
        match token {
            Some(b'"') => {
                self.bump();
                if wanted == Wanted::Nothing {
                    self.skip_string()?
                } else {
                    self.wanted_string(wanted)?
                }
                return Ok(false);
            }
            Some(b'{') => {
                self.bump();
                self.open(Frame::Object(self.path.len()))?;
            }
            Some(b'[') => {
                self.bump();
                self.open(Frame::Array(self.path.len()))?;
            }
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b't') => self.literal(b"true")?,
            Some(b'f') => self.literal(b"false")?,
            Some(b'n') => self.literal(b"null")?,
            _ => return self.expected("a value"),
        }
        if !matches!(wanted, Wanted::Nothing | Wanted::Reference | Wanted::AttachmentUrl) {
            self.set(wanted, Field::Other)?;
        }
        Ok(matches!(token, Some(b'{' | b'[')))
    }

    fn wanted(&self) -> Wanted {
        let key = &self.path[self.key_at..];
        if key == b"reference" {
            return Wanted::Reference;
        }
        if key == b"url" && is_attachment(self.parent()) {
            return Wanted::AttachmentUrl;
        }
        match self.stack.len() {
            1 if key == b"resourceType" => Wanted::ResourceType,
            1 if key == b"id" => Wanted::Id,
            1 if key == b"recorded" => Wanted::Recorded,
            2 if self.path == b"meta.lastUpdated" => Wanted::LastUpdated,
            2 if self.path == b"meta.versionId" => Wanted::Version,
            _ => Wanted::Nothing,
        }
    }

    /// The name under which the object stands whose key was read last.
    fn parent(&self) -> &[u8] {
        let parents = &self.path[..self.key_at.saturating_sub(1)];
        let name_at = memchr::memrchr(b'.', parents).map_or(0, |dot| dot + 1);
        &parents[name_at..]
    }

    fn wanted_string(&mut self, wanted: Wanted) -> Result<(), Malformed> {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        let read = self.take_string(&mut text, MAX_TEXT);
        self.text = text;
        read?;
        if wanted == Wanted::Reference {
            let parent = self.key_at.saturating_sub(1);
            (self.on_reference)(&self.path[..parent], &self.text);
            return Ok(());
        }
        if wanted == Wanted::AttachmentUrl {
            let text = std::str::from_utf8(&self.text).unwrap_or_default();
            self.header.names_binary |= text.parse::<BinaryReference>().is_ok();
            return Ok(());
        }
        let text = String::from_utf8_lossy(&self.text).into_owned();
        self.set(wanted, Field::Text(text))
    }

    fn set(&mut self, wanted: Wanted, value: Field) -> Result<(), Malformed> {
        let (field, name) = match wanted {
            Wanted::ResourceType => (&mut self.header.resource_type, "resourceType"),
            Wanted::Id => (&mut self.header.id, "id"),
            Wanted::LastUpdated => (&mut self.header.last_updated, "meta.lastUpdated"),
            Wanted::Version => (&mut self.header.version, "meta.versionId"),
            // It names no resource: readers may differ about it.
            Wanted::Recorded if self.header.recorded != Field::Absent => return Ok(()),
            Wanted::Recorded => (&mut self.header.recorded, "recorded"),
            Wanted::Nothing | Wanted::Reference | Wanted::AttachmentUrl => return Ok(()),
        };
        if *field != Field::Absent {
            return Err(Malformed::Repeated(name));
        }
        *field = value;
        Ok(())
    }

    fn open(&mut self, frame: Frame) -> Result<(), Malformed> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(Malformed::TooDeep);
        }
        self.stack.push(frame);
        Ok(())
    }

    #[inline]
    fn peek(&mut self) -> Result<Option<u8>, Malformed> {
        Ok(self.input.fill_buf()?.first().copied())
    }

    #[inline]
    fn bump(&mut self) {
        self.input.consume(1);
        self.at += 1;
    }

    /// The next byte that is no white space.
    #[inline]
    fn peek_token(&mut self) -> Result<Option<u8>, Malformed> {
        loop {
            match self.peek()? {
                Some(b' ' | b'\t' | b'\r' | b'\n') => self.bump(),
                other => return Ok(other),
            }
        }
    }

    #[cold]
    fn expected<T>(&self, expected: &'static str) -> Result<T, Malformed> {
        Err(Malformed::Json { at: self.at, expected })
    }

    /// The string up to the next quote, backslash or control character is passed to `keep`; says which it was.
    #[inline]
    fn plain_run(&mut self, mut keep: impl FnMut(&[u8])) -> Result<u8, Malformed> {
        loop {
            let buffer = self.input.fill_buf()?;
            let len = special_in(buffer);
            let found = buffer.get(len).copied();
            keep(&buffer[..len]);
            let used = if found.is_some() { len + 1 } else { len };
            self.input.consume(used);
            self.at += used as u64;
            match found {
                Some(special @ (b'"' | b'\\')) => return Ok(special),
                Some(_) => {
                    self.at -= 1;
                    return self.expected("no control character in a string");
                }
                None if used == 0 => return self.expected("the end of the string"),
                None => {}
            }
        }
    }

    fn skip_string(&mut self) -> Result<(), Malformed> {
        loop {
            if self.plain_run(|_| {})? == b'"' {
                return Ok(());
            }
            self.escape()?;
        }
    }

    /// Appends the decoded string, of which no more than `limit` bytes are kept in `into` altogether.
    fn take_string(&mut self, into: &mut Vec<u8>, limit: usize) -> Result<(), Malformed> {
        loop {
            let end = self.plain_run(|run| {
                let room = limit.saturating_sub(into.len());
                into.extend_from_slice(&run[..run.len().min(room)]);
            })?;
            if end == b'"' {
                return Ok(());
            }
            let mut character = self.escape()?;
            if (0xd800..0xdc00).contains(&character) && self.peek()? == Some(b'\\') {
                self.bump();
                let low = self.escape()?;
                if (0xdc00..0xe000).contains(&low) {
                    character = 0x10000 + ((character - 0xd800) << 10) + (low - 0xdc00);
                }
            }
            let character = char::from_u32(character).unwrap_or(char::REPLACEMENT_CHARACTER);
            let mut utf8 = [0; 4];
            if into.len() + 4 <= limit {
                into.extend_from_slice(character.encode_utf8(&mut utf8).as_bytes());
            }
        }
    }

    /// What follows a backslash.
    fn escape(&mut self) -> Result<u32, Malformed> {
        let kind = self.peek()?;
        let character = match kind {
            Some(b'"') => 0x22,
            Some(b'\\') => 0x5c,
            Some(b'/') => 0x2f,
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'n') => 0x0a,
            Some(b'r') => 0x0d,
            Some(b't') => 0x09,
            Some(b'u') => 0,
            _ => return self.expected("an escape sequence"),
        };
        self.bump();
        if kind != Some(b'u') {
            return Ok(character);
        }
        let mut unit = 0;
        for _ in 0..4 {
            let Some(digit) = self.peek()?.and_then(|byte| char::from(byte).to_digit(16)) else {
                return self.expected("four hexadecimal digits");
            };
            unit = unit * 16 + digit;
            self.bump();
        }
        Ok(unit)
    }

    fn number(&mut self) -> Result<(), Malformed> {
        if self.peek()? == Some(b'-') {
            self.bump();
        }
        match self.peek()? {
            Some(b'0') => self.bump(),
            Some(b'1'..=b'9') => self.digits()?,
            _ => return self.expected("a digit"),
        }
        if self.peek()? == Some(b'.') {
            self.bump();
            self.digits()?;
        }
        if matches!(self.peek()?, Some(b'e' | b'E')) {
            self.bump();
            if matches!(self.peek()?, Some(b'+' | b'-')) {
                self.bump();
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Malformed> {
        if !matches!(self.peek()?, Some(b'0'..=b'9')) {
            return self.expected("a digit");
        }
        while matches!(self.peek()?, Some(b'0'..=b'9')) {
            self.bump();
        }
        Ok(())
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), Malformed> {
        for byte in word {
            if self.peek()? != Some(*byte) {
                return self.expected("true, false or null");
            }
            self.bump();
        }
        Ok(())
    }
}

/// Offset of the first byte that ends a plain run of a string; the length where there is none. Eight bytes at
/// a time: strings are most of a resource.
#[inline]
fn special_in(buffer: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let mut at = 0;
    for word in buffer.chunks_exact(8) {
        let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
        let quote = word ^ (ONES * 0x22);
        let backslash = word ^ (ONES * 0x5c);
        let found = ((word.wrapping_sub(ONES * 0x20) & !word)
            | (quote.wrapping_sub(ONES) & !quote)
            | (backslash.wrapping_sub(ONES) & !backslash))
            & HIGH;
        if found != 0 {
            // A borrow can only mark bytes above the first true one.
            return at + (found.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    let rest = &buffer[at..];
    at + rest.iter().position(|byte| *byte < 0x20 || matches!(byte, b'"' | b'\\')).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests;
