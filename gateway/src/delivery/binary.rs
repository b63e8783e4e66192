//! The content of a Binary out of its JSON, in bounded memory: gone through once to find out what it is and where its
//! `data` stands, and decoded from base64 as the reader takes it.
//!
//! Knows no HTTP. The JSON was checked when its source was read; what is looked for stands at its root. Names and short
//! texts are kept, the content never is.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use flatbed_types::job::ObjectPointer;
use futures::stream::{self, BoxStream, StreamExt};
use sha2::{Digest, Sha256};

use super::objects::{Objects, ReadError};

/// Bytes kept of a name or a text: names of members and media types are shorter.
const MAX_TEXT: usize = 255;

/// What a Binary says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Binary {
    /// `contentType`.
    pub content_type: Option<String>,
    /// `meta.versionId`.
    pub version: Option<String>,
    /// `data`.
    pub data: Option<Data>,
}

/// Where the content stands in the JSON, encoded, and how long it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Data {
    place: Range<u64>,
    /// Bytes of the content.
    pub len: u64,
}

impl Objects {
    /// What the Binary in an object says of itself.
    ///
    /// # Errors
    /// `Damaged` where the object is not what was written, or no Binary, or `data` is no base64.
    pub async fn binary(&self, pointer: &ObjectPointer) -> Result<Binary, ReadError> {
        let mut input = self.object(pointer, None).await?;
        let (mut survey, mut hash) = (Survey::default(), Sha256::new());
        while let Some(chunk) = input.next().await {
            let chunk = chunk.map_err(|_| ReadError::Unavailable)?;
            hash.update(&chunk);
            survey.take(&chunk);
            // A long Binary must not keep the thread from other requests.
            tokio::task::consume_budget().await;
        }
        if hash.finalize().as_slice() != pointer.sha256 {
            return Err(ReadError::Damaged);
        }
        survey.finish().ok_or(ReadError::Damaged)
    }

    /// The content of a Binary of which [`Objects::binary`] has told.
    pub async fn content(
        &self,
        pointer: &ObjectPointer,
        data: &Data,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, ReadError> {
        if data.place.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let input = self.object(pointer, Some(data.place.clone())).await?;
        Ok(decoded(input, data.len).boxed())
    }
}

/// Takes the escapes of a JSON string away, byte by byte.
#[derive(Debug, Clone, Copy, Default)]
enum Unescape {
    #[default]
    Plain,
    Backslash,
    /// Digits of a character that are still to come, and its number so far.
    Unicode(u8, u32),
}

/// What a byte of a string amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// A byte of the text; characters beyond ASCII that are escaped become `?`.
    Byte(u8),
    /// Nothing yet.
    Nothing,
    /// The end of the string.
    End,
}

impl Unescape {
    fn take(&mut self, byte: u8) -> Unit {
        match *self {
            Unescape::Plain => match byte {
                b'"' => return Unit::End,
                b'\\' => *self = Unescape::Backslash,
                other => return Unit::Byte(other),
            },
            Unescape::Backslash => {
                *self = Unescape::Plain;
                return match byte {
                    b'n' => Unit::Byte(b'\n'),
                    b'r' => Unit::Byte(b'\r'),
                    b't' => Unit::Byte(b'\t'),
                    b'b' | b'f' => Unit::Byte(b'?'),
                    b'u' => {
                        *self = Unescape::Unicode(4, 0);
                        Unit::Nothing
                    }
                    other => Unit::Byte(other),
                };
            }
            Unescape::Unicode(left, number) => {
                let number = number << 4 | char::from(byte).to_digit(16).unwrap_or(0xff);
                if left > 1 {
                    *self = Unescape::Unicode(left - 1, number);
                } else {
                    *self = Unescape::Plain;
                    return Unit::Byte(u8::try_from(number).ok().filter(u8::is_ascii).unwrap_or(b'?'));
                }
            }
        }
        Unit::Nothing
    }
}

/// The value of a digit of base64.
fn digit(byte: u8) -> Option<u32> {
    Some(u32::from(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

/// Counts the digits of base64 and says whether they are some. White space is allowed between them.
#[derive(Debug, Clone, Copy, Default)]
struct Digits {
    count: u64,
    padding: u64,
    is_wrong: bool,
}

impl Digits {
    fn take(&mut self, byte: u8) {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => {}
            b'=' => self.padding += 1,
            _ if self.padding > 0 || digit(byte).is_none() => self.is_wrong = true,
            _ => self.count += 1,
        }
    }

    /// Bytes that they stand for.
    fn len(&self) -> Option<u64> {
        let is_whole = self.padding <= 2 && (self.count + self.padding).is_multiple_of(4);
        (is_whole && !self.is_wrong).then_some(self.count / 4 * 3 + (self.count % 4).saturating_sub(1))
    }
}

/// What a string is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Nothing,
    Name,
    ResourceType,
    ContentType,
    Version,
    Data,
}

/// Goes through the JSON of a Binary.
#[derive(Debug, Default)]
struct Survey {
    /// Bytes gone through.
    at: u64,
    depth: u32,
    is_in_meta: bool,
    expects_name: bool,
    /// The name that was read last, at the root or in `meta`.
    name: Vec<u8>,
    string: Option<Purpose>,
    unescape: Unescape,
    text: Vec<u8>,
    digits: Digits,
    data_from: u64,
    is_binary: bool,
    is_wrong: bool,
    found: Binary,
}

impl Survey {
    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match self.string {
                Some(purpose) => self.take_in_string(purpose, *byte),
                None => self.take_between(*byte),
            }
            self.at += 1;
        }
    }

    fn take_between(&mut self, byte: u8) {
        match byte {
            b'{' | b'[' => {
                self.is_in_meta |= self.depth == 1 && byte == b'{' && self.name == b"meta";
                self.depth += 1;
                self.expects_name = byte == b'{';
            }
            b'}' | b']' => {
                self.is_in_meta &= self.depth != 2;
                self.is_wrong |= self.depth == 0;
                self.depth = self.depth.saturating_sub(1);
            }
            b',' => self.expects_name = true,
            b':' => self.expects_name = false,
            b'"' => {
                self.string = Some(self.purpose());
                self.text.clear();
                self.data_from = self.at + 1;
            }
            _ => {}
        }
    }

    fn purpose(&self) -> Purpose {
        let is_looked_at = self.depth == 1 || (self.depth == 2 && self.is_in_meta);
        match (is_looked_at, self.expects_name, self.depth, self.name.as_slice()) {
            (true, true, _, _) => Purpose::Name,
            (true, false, 1, b"resourceType") => Purpose::ResourceType,
            (true, false, 1, b"contentType") => Purpose::ContentType,
            (true, false, 1, b"data") => Purpose::Data,
            (true, false, 2, b"versionId") => Purpose::Version,
            _ => Purpose::Nothing,
        }
    }

    fn take_in_string(&mut self, purpose: Purpose, byte: u8) {
        match (self.unescape.take(byte), purpose) {
            (Unit::End, _) => {
                self.string = None;
                self.string_ended(purpose);
            }
            (Unit::Byte(byte), Purpose::Data) => self.digits.take(byte),
            (Unit::Byte(byte), _) if purpose != Purpose::Nothing && self.text.len() < MAX_TEXT => {
                self.text.push(byte);
            }
            _ => {}
        }
    }

    fn string_ended(&mut self, purpose: Purpose) {
        let text = || String::from_utf8_lossy(&self.text).into_owned();
        match purpose {
            Purpose::Nothing => {}
            Purpose::Name => std::mem::swap(&mut self.name, &mut self.text),
            Purpose::ResourceType => self.is_binary = self.text == b"Binary",
            Purpose::ContentType => self.found.content_type = Some(text()),
            Purpose::Version => self.found.version = Some(text()),
            Purpose::Data => match self.digits.len() {
                Some(len) if self.found.data.is_none() => {
                    self.found.data = Some(Data { place: self.data_from..self.at, len });
                }
                _ => self.is_wrong = true,
            },
        }
    }

    fn finish(self) -> Option<Binary> {
        let is_whole = self.depth == 0 && self.string.is_none() && self.at > 0;
        (is_whole && self.is_binary && !self.is_wrong).then_some(self.found)
    }
}

/// Decodes base64 as it stands in a JSON string.
#[derive(Debug, Default)]
struct Decode {
    unescape: Unescape,
    bits: u32,
    count: u8,
}

impl Decode {
    fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() / 4 * 3 + 3);
        for byte in bytes {
            let Unit::Byte(byte) = self.unescape.take(*byte) else { continue };
            let Some(digit) = digit(byte) else { continue };
            self.bits = self.bits << 6 | digit;
            self.count += 1;
            if self.count == 4 {
                out.extend_from_slice(&self.bits.to_be_bytes()[1..]);
                (self.bits, self.count) = (0, 0);
            }
        }
        out
    }

    /// What is left in digits that are less than four.
    fn rest(&self) -> Vec<u8> {
        let bytes = (self.bits << (6 * (4 - u32::from(self.count)))).to_be_bytes();
        bytes[1..].iter().copied().take(usize::from(self.count.saturating_sub(1))).collect()
    }
}

/// The content, of which there must be as much as was found.
fn decoded(
    input: BoxStream<'static, io::Result<Bytes>>,
    len: u64,
) -> impl stream::Stream<Item = io::Result<Bytes>> + Send {
    let state = (input, Decode::default(), len, false);
    stream::try_unfold(state, |(mut input, mut decode, mut left, mut ended)| async move {
        loop {
            if ended {
                return Ok(None);
            }
            let out = match input.next().await {
                Some(chunk) => decode.take(&chunk?),
                None => {
                    ended = true;
                    decode.rest()
                }
            };
            left = left.checked_sub(out.len() as u64).ok_or(io::ErrorKind::InvalidData)?;
            if ended && left > 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if !out.is_empty() {
                return Ok(Some((Bytes::from(out), (input, decode, left, ended))));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;
    use proptest::prelude::*;
    use serde_json::json;

    fn survey(json: &[u8], chunk: usize) -> Option<Binary> {
        let mut survey = Survey::default();
        json.chunks(chunk.max(1)).for_each(|chunk| survey.take(chunk));
        survey.finish()
    }

    fn content(json: &[u8], data: &Data, chunk: usize) -> Vec<u8> {
        let part = &json[data.place.start as usize..data.place.end as usize];
        let chunks: Vec<_> = part.chunks(chunk.max(1)).map(|part| Ok(Bytes::copy_from_slice(part))).collect();
        let out = decoded(stream::iter(chunks).boxed(), data.len).try_collect::<Vec<Bytes>>();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(out).unwrap().concat()
    }

    #[test]
    fn what_stands_at_the_root_counts_in_any_order_and_form() {
        for json in [
            r#"{"resourceType":"Binary","id":"1","meta":{"versionId":"3","x":[{"versionId":"9"}]},"contentType":"text/plain","data":"aGVsbG8="}"#,
            r#" { "data" : "aGV\u0073bG8\u003d" , "meta":{"tag":["contentType","data"],"versionId":"3"},"x":{"data":"AAAA"},"contentType":"text\/plain","resourceType":"Binary" } "#,
            "{\"resourceType\":\"Binary\",\"data\":\"aGVs\\nbG 8=\",\"extension\":[{\"url\":\"data\",\"contentType\":\"x\"}],\"contentType\":\"text/plain\",\"meta\":{\"versionId\":\"3\"}}",
        ] {
            for chunk in [1, 7, 1000] {
                let binary = survey(json.as_bytes(), chunk).unwrap();
                assert_eq!(binary.content_type.as_deref(), Some("text/plain"), "{json}");
                assert_eq!(binary.version.as_deref(), Some("3"), "{json}");
                let data = binary.data.unwrap();
                assert_eq!(data.len, 5, "{json}");
                assert_eq!(content(json.as_bytes(), &data, chunk), b"hello", "{json}");
            }
        }
        let bare = survey(br#"{"resourceType":"Binary"}"#, 9).unwrap();
        assert_eq!(bare, Binary::default());
        assert_eq!(survey(br#"{"resourceType":"Binary","data":""}"#, 9).unwrap().data.unwrap().len, 0);
    }

    #[test]
    fn what_is_no_binary_or_no_base64_is_refused() {
        for json in [
            "",
            r#"{"resourceType":"Patient","data":"aGVsbG8="}"#,
            r#"{"data":"aGVsbG8="}"#,
            r#"{"resourceType":"Binary","data":"aGVsbG8"}"#,
            r#"{"resourceType":"Binary","data":"aGVs===="}"#,
            r#"{"resourceType":"Binary","data":"aG=sbG8="}"#,
            r#"{"resourceType":"Binary","data":"aGVs bG8!"}"#,
            r#"{"resourceType":"Binary","data":"A"}"#,
            r#"{"resourceType":"Binary","data":"AAAA","data":"BBBB"}"#,
            r#"{"resourceType":"Binary","data":"AAAA"#,
            r#"{"resourceType":"Binary"}}"#,
        ] {
            assert_eq!(survey(json.as_bytes(), 5), None, "{json}");
        }
    }

    proptest! {
        #[test]
        fn any_content_comes_back(bytes in prop::collection::vec(any::<u8>(), 0..300), chunk in 1..99_usize) {
            use base64::Engine;
            let data = base64::engine::general_purpose::STANDARD.encode(&bytes);
            let json = json!({"resourceType": "Binary", "data": data, "contentType": "a/b"}).to_string();
            let found = survey(json.as_bytes(), chunk).unwrap().data.unwrap();
            prop_assert_eq!(found.len, bytes.len() as u64);
            prop_assert_eq!(content(json.as_bytes(), &found, chunk), bytes);
        }

        #[test]
        fn any_bytes_end_without_a_panic(bytes in prop::collection::vec(prop_oneof![
            Just(b'"'), Just(b'\\'), Just(b'{'), Just(b'}'), Just(b'u'), any::<u8>()
        ], 0..80)) {
            let _ = survey(&bytes, 7);
            let _ = Decode::default().take(&bytes);
        }
    }
}
