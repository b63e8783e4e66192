//! Checks a file while it streams by: complete gzip, complete lines, each the beginning of a JSON object.
//!
//! Does not parse resources; what is inside a line is the server's business. Only the header lines of files that are
//! organised by a resource are told from resources (OB-02), by their type: a Parameters is never exported. Whether a file is compressed is
//! seen from its first bytes: NDJSON cannot begin like gzip, and servers also hand out compressed files without
//! saying so in a header.

use std::io::Write;

use flate2::write::MultiGzDecoder;

/// What a gzip member begins with (RFC 1952).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Longest last line without a line feed that is still looked at; every other line only streams by.
const MAX_OPEN_TAIL: usize = 64 << 20;

/// Why a file is not what it should be. Names lines, never their content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejected(pub String);

/// A header line is not longer: a Parameters with one reference.
const MAX_HEADER: usize = 4 << 10;

/// What a complete file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Resources: lines, blank ones and those that begin a block not counted.
    pub lines: u64,
    /// Whether it is compressed.
    pub gzip: bool,
}

/// A file in the making.
pub struct Verifier {
    head: Vec<u8>,
    /// Whether lines may begin blocks.
    organized: bool,
    state: State,
}

enum State {
    /// Too few bytes to tell.
    Undecided,
    Plain(Lines),
    Gzip(Box<MultiGzDecoder<Lines>>),
}

impl Verifier {
    /// Nothing seen yet of a file that is organised by a resource, or not.
    pub fn new(organized: bool) -> Verifier {
        Verifier { head: Vec::new(), organized, state: State::Undecided }
    }

    /// The next bytes of the file, as received.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Rejected> {
        match &mut self.state {
            State::Undecided => {
                self.head.extend_from_slice(bytes);
                if self.head.len() < GZIP_MAGIC.len() {
                    return Ok(());
                }
                self.state = if self.head.starts_with(&GZIP_MAGIC) {
                    State::Gzip(Box::new(MultiGzDecoder::new(Lines::new(self.organized))))
                } else {
                    State::Plain(Lines::new(self.organized))
                };
                let head = std::mem::take(&mut self.head);
                self.feed(&head)
            }
            State::Plain(lines) => lines.feed(bytes),
            State::Gzip(decoder) => {
                let written = decoder.write_all(bytes);
                if let Some(rejected) = decoder.get_ref().rejected.clone() {
                    return Err(rejected);
                }
                written.map_err(|error| Rejected(format!("damaged gzip: {error}")))
            }
        }
    }

    /// The end of the file. `count` is what the manifest says.
    pub fn finish(mut self, count: Option<u64>) -> Result<Verified, Rejected> {
        if let State::Undecided = self.state {
            let mut lines = Lines::new(self.organized);
            lines.feed(&self.head)?;
            self.state = State::Plain(lines);
        }
        let (mut lines, gzip) = match self.state {
            State::Undecided => (Lines::default(), false),
            State::Plain(lines) => (lines, false),
            State::Gzip(mut decoder) => {
                let finished = decoder.try_finish();
                let lines = std::mem::take(decoder.get_mut());
                if let Some(rejected) = lines.rejected {
                    return Err(rejected);
                }
                finished.map_err(|error| Rejected(format!("incomplete gzip: {error}")))?;
                (lines, true)
            }
        };
        lines.finish()?;
        let resources = lines.complete - lines.headers;
        // Servers differ in whether header lines count (OB-11).
        match count {
            Some(expected) if expected != resources && expected != lines.complete => {
                Err(Rejected(format!("holds {resources} lines, the manifest says {expected}")))
            }
            _ => Ok(Verified { lines: resources, gzip }),
        }
    }
}

#[derive(Default)]
struct Lines {
    complete: u64,
    /// Those of them that begin a block.
    headers: u64,
    organized: bool,
    /// The start of the present line, where it may be a header.
    start: Vec<u8>,
    inside: bool,
    /// The bytes of the line that is not complete yet.
    tail: Vec<u8>,
    tail_too_long: bool,
    rejected: Option<Rejected>,
}

impl Lines {
    fn new(organized: bool) -> Lines {
        Lines { organized, ..Lines::default() }
    }

    /// Keeps as much of the present line as a header can have, and a byte more.
    fn remember(&mut self, part: &[u8]) {
        if self.organized {
            let room = (MAX_HEADER + 1).saturating_sub(self.start.len());
            self.start.extend_from_slice(&part[..part.len().min(room)]);
        }
    }

    /// The present line is complete.
    fn count(&mut self) {
        self.complete += 1;
        self.inside = false;
        self.headers += u64::from(is_header(&self.start));
        self.start.clear();
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), Rejected> {
        // No JSON holds this byte; a part that was on its way to the disk when the power failed may.
        if memchr::memchr(0, bytes).is_some() {
            return Err(self.reject(format!("holds a zero byte near line {}", self.complete + 1)));
        }
        let mut rest = bytes;
        while let Some(first) = rest.first() {
            if !self.inside {
                match first {
                    b'{' => self.inside = true,
                    b'\n' | b'\r' | b' ' | b'\t' => {
                        rest = &rest[1..];
                        continue;
                    }
                    _ => {
                        let number = self.complete + 1;
                        return Err(self.reject(format!("line {number} does not begin a JSON object")));
                    }
                }
            }
            let Some(end) = memchr::memchr(b'\n', rest) else {
                self.remember(rest);
                if self.tail.len() + rest.len() > MAX_OPEN_TAIL {
                    self.tail_too_long = true;
                    self.tail = Vec::new();
                } else if !self.tail_too_long {
                    self.tail.extend_from_slice(rest);
                }
                return Ok(());
            };
            self.remember(&rest[..end]);
            self.count();
            self.tail.clear();
            self.tail_too_long = false;
            rest = &rest[end + 1..];
        }
        Ok(())
    }

    fn reject(&mut self, why: String) -> Rejected {
        let rejected = Rejected(why);
        self.rejected = Some(rejected.clone());
        rejected
    }

    /// A last line without its line feed counts when it is complete JSON; otherwise the file was cut off.
    fn finish(&mut self) -> Result<(), Rejected> {
        if !self.inside {
            return Ok(());
        }
        let whole =
            !self.tail_too_long && serde_json::from_slice::<serde::de::IgnoredAny>(&self.tail).is_ok();
        if !whole {
            return Err(Rejected(format!("ends in the middle of line {}", self.complete + 1)));
        }
        self.count();
        Ok(())
    }
}

/// Whether a line begins a block (OB-02).
fn is_header(line: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Header {
        #[serde(rename = "resourceType")]
        resource_type: String,
        parameter: Vec<Parameter>,
    }
    #[derive(serde::Deserialize)]
    struct Parameter {
        name: String,
    }
    let may_be = line.len() <= MAX_HEADER && memchr::memmem::find(line, b"Parameters").is_some();
    let Some(Ok(Header { resource_type, parameter })) = may_be.then(|| serde_json::from_slice(line)) else {
        return false;
    };
    resource_type == "Parameters" && parameter.iter().any(|parameter| parameter.name == "header")
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.feed(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(rejected) => Err(std::io::Error::other(rejected)),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    /// Fed whole and byte by byte, which must make no difference.
    fn verify(bytes: &[u8], count: Option<u64>) -> Result<Verified, String> {
        let run = |size: usize| {
            let mut verifier = Verifier::new(false);
            for chunk in bytes.chunks(size) {
                verifier.feed(chunk)?;
            }
            verifier.finish(count)
        };
        let whole = run(bytes.len().max(1));
        let bytewise = run(1);
        assert_eq!(whole.is_ok(), bytewise.is_ok());
        if whole.is_ok() {
            assert_eq!(whole, bytewise);
        }
        whole.map_err(|rejected| rejected.0)
    }

    #[test]
    fn complete_files_pass_in_both_forms() {
        let text = b"{\"a\":1}\n{\"b\":\"{\\n\"}\n";
        assert_eq!(verify(text, Some(2)), Ok(Verified { lines: 2, gzip: false }));
        assert_eq!(verify(&gzip(text), Some(2)), Ok(Verified { lines: 2, gzip: true }));
        assert_eq!(verify(&[gzip(text), gzip(text)].concat(), Some(4)).map(|v| v.lines), Ok(4));
        assert_eq!(verify(b"", Some(0)).map(|v| v.lines), Ok(0));
        assert_eq!(verify(b"{\"a\":1}\r\n\r\n{\"a\":2}\r\n", None).map(|v| v.lines), Ok(2));
        assert_eq!(verify(b"{\"a\":1}\n{\"a\":2}", Some(2)).map(|v| v.lines), Ok(2));
    }

    #[test]
    fn ob_11_lines_that_begin_blocks_are_no_resources() {
        let header = r#"{"resourceType":"Parameters","parameter":[{"name":"header","valueReference":{"reference":"Patient/1"}}]}"#;
        let patient =
            format!(r#"{{"resourceType":"Patient","id":"1","text":"{}"}}"#, "x".repeat(2 * MAX_HEADER));
        let other = r#"{"resourceType":"Observation","note":"\"Parameters\""}"#;
        let text = format!("{header}\n{patient}\n{other}\n{header}\n{other}");
        let verify = |organized: bool, size: usize, count: u64| {
            let mut verifier = Verifier::new(organized);
            for chunk in text.as_bytes().chunks(size) {
                verifier.feed(chunk).unwrap();
            }
            verifier.finish(Some(count)).map(|verified| verified.lines).ok()
        };
        for size in [1, 7, 5_000, text.len()] {
            assert_eq!([3, 5, 4].map(|count| verify(true, size, count)), [Some(3), Some(3), None]);
            assert_eq!([3, 5].map(|count| verify(false, size, count)), [None, Some(5)]);
        }
    }

    #[test]
    fn cut_off_and_wrong_files_are_rejected() {
        let text: Vec<u8> = (0..500).flat_map(|n| format!("{{\"n\":{n}}}\n").into_bytes()).collect();
        let packed = gzip(&text);
        for cut in [3, packed.len() / 2, packed.len() - 4, packed.len() - 1] {
            assert!(verify(&packed[..cut], None).is_err(), "gzip cut at {cut}");
        }
        let mut damaged = packed.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0x40;
        assert!(verify(&damaged, Some(500)).is_err());
        assert!(verify(&text[..text.len() - 3], None).unwrap_err().contains("line 500"));
        assert!(verify(&text, Some(499)).unwrap_err().contains("500 lines, the manifest says 499"));
        assert!(verify(b"{\"a\":1}\n[1]\n", None).unwrap_err().contains("line 2"));
        assert!(verify(&gzip(b"{\"a\":1}\n[1]\n"), None).unwrap_err().contains("line 2"));
        assert!(verify(b"{\"a\":\"\0\"}\n", None).unwrap_err().contains("zero byte"));
        assert!(verify(b"<html>", None).unwrap_err().contains("line 1"));
        assert!(verify(b"<", None).unwrap_err().contains("line 1"));
    }
}
