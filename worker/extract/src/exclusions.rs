//! Reads a roster of exclusions: which patients must not be in the exports of which clients, for which purposes.
//!
//! NDJSON: a head with the version, a row for each exclusion, and a foot with the number of rows, without which a roster
//! that was cut off would pass for a short one:
//!
//! ```text
//! {"version":"2026-11-22T03:00Z"}
//! {"client":"aco-17","purpose":"TREAT","patient":"p1"}      from this client for this purpose
//! {"client":"*","patient":"Patient/p2"}                     from every client for every purpose
//! {"rows":2}
//! ```
//!
//! Nothing is passed over: an unknown or repeated key, a value of another form or a line behind the foot makes the whole
//! roster unusable, for what was meant to leave somebody out may stand in it. Memory is bounded by the longest line.
//! Flaws name the line and never what stands in it. Does not know where rosters are nor what exports do with them.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader};

use flatbed_types::consent::Purpose;
use flatbed_types::{ClientId, FhirId};
use serde::Deserialize;

/// Longest line in bytes: ids have 64 bytes at most, so that nothing needs more.
const MAX_LINE: u64 = 4_096;
/// Bytes read, and decompressed, at once.
const READ_BUFFER: usize = 256 << 10;
/// Longest version.
const MAX_VERSION: usize = 128;
/// Stands for every client, or every purpose.
const ANY: &str = "*";

/// For whom an export is.
#[derive(Debug, Clone, Copy)]
pub struct Recipient<'a> {
    /// The client.
    pub client: &'a ClientId,
    /// What it uses data for; rows of every purpose concern one of which that is not known.
    pub purpose: Option<&'a Purpose>,
}

/// What a roster says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The version.
    pub version: String,
    /// Rows of all clients and purposes.
    pub rows: u64,
}

/// Why a roster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// What stands in it is at fault: the line, from 1, and what is wrong there.
    #[error("line {0}: {1}")]
    Flaw(u64, &'static str),
    /// It ends before its foot, after this many lines.
    #[error("ends after line {0} without the closing line {{\"rows\":N}}; was it cut off?")]
    Torn(u64),
    /// It cannot be decompressed behind this line.
    #[error("cannot be decompressed behind line {0}; was it cut off?")]
    Damaged(u64),
    /// It could not be read, or what it says could not be taken.
    #[error("{0}")]
    Io(io::Error),
}

/// A line, whichever it is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    version: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    client: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    purpose: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    patient: Option<Cow<'a, str>>,
    #[serde(default)]
    rows: Option<u64>,
}

/// A text, and not `null`: that might mean anybody or nobody.
fn present<'de: 'a, 'a, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Cow<'a, str>>, D::Error> {
    Text::deserialize(from).map(|text| Some(text.0))
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The plain bytes of a roster, which its name tells how to get: `.gz`, `.zst` or plain.
///
/// # Errors
/// When there is no memory for it.
pub fn plain(file: File, name: &str) -> io::Result<Box<dyn BufRead>> {
    let input = BufReader::with_capacity(READ_BUFFER, file);
    let name = name.to_ascii_lowercase();
    Ok(if name.ends_with(".gz") {
        Box::new(BufReader::with_capacity(READ_BUFFER, flate2::bufread::MultiGzDecoder::new(input)))
    } else if name.ends_with(".zst") {
        Box::new(BufReader::with_capacity(READ_BUFFER, zstd::Decoder::with_buffer(input)?))
    } else {
        Box::new(input)
    })
}

/// Reads a roster to its end and gives out whoever it leaves out of an export for this recipient, in its order, perhaps
/// more than once.
///
/// # Errors
/// When it is not whole and in order to its last line; what was given out by then is worth nothing.
pub fn read(
    input: impl BufRead,
    recipient: Recipient<'_>,
    each: &mut dyn FnMut(&FhirId) -> io::Result<()>,
) -> Result<Head, Unusable> {
    let mut lines = Lines { input, number: 0, bytes: Vec::new() };
    let mut version = None;
    let mut rows = 0;
    while lines.next()? {
        let flaw = |what| Unusable::Flaw(lines.number, what);
        let line: Line<'_> = serde_json::from_slice(&lines.bytes).map_err(|_| {
            flaw("not a JSON object of version, of rows, or of client, purpose and patient, each once and a text")
        })?;
        match line {
            Line { version: Some(text), client: None, purpose: None, patient: None, rows: None } => {
                if version.is_some() || !is_version(&text) {
                    return Err(flaw(
                        "the version stands once, in the first line, and has 1 to 128 visible characters",
                    ));
                }
                version = Some(text.into_owned());
            }
            Line { version: None, client, purpose, patient: Some(patient), rows: None } => {
                if version.is_none() {
                    return Err(flaw("the first line must be the version"));
                }
                rows += 1;
                let patient = patient.strip_prefix("Patient/").unwrap_or(&patient);
                let patient: FhirId = patient.parse().map_err(|_| flaw("the patient is not an id"))?;
                if concerns(recipient, client.as_deref(), purpose.as_deref()).map_err(flaw)? {
                    each(&patient).map_err(Unusable::Io)?;
                }
            }
            Line { version: None, client: None, purpose: None, patient: None, rows: Some(count) } => {
                let Some(version) = version else { return Err(flaw("the first line must be the version")) };
                if count != rows {
                    return Err(flaw("there are more or fewer rows than the closing line says"));
                }
                return match lines.next()? {
                    true => Err(Unusable::Flaw(lines.number, "a line behind the closing one")),
                    false => Ok(Head { version, rows }),
                };
            }
            Line { .. } => {
                return Err(flaw(
                    "neither the version, nor an exclusion with its patient, nor the closing line",
                ));
            }
        }
    }
    Err(Unusable::Torn(lines.number))
}

fn is_version(text: &str) -> bool {
    (1..=MAX_VERSION).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// Whether a row of this client and purpose goes for a recipient.
fn concerns(
    recipient: Recipient<'_>,
    client: Option<&str>,
    purpose: Option<&str>,
) -> Result<bool, &'static str> {
    let of_client = match client {
        None | Some(ANY) => true,
        Some(text) => {
            let named: ClientId =
                text.parse().map_err(|_| "the client is neither an id of a client nor *")?;
            named == *recipient.client
        }
    };
    let of_purpose = match purpose {
        None | Some(ANY) => true,
        Some(text) => {
            let named: Purpose = text.parse().map_err(|_| "the purpose is neither a code nor *")?;
            recipient.purpose.is_none_or(|purpose| purpose.is(&named))
        }
    };
    Ok(of_client && of_purpose)
}

/// Lines that are not blank, one at a time.
struct Lines<R> {
    input: R,
    number: u64,
    bytes: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// Reads the next one; false where there is none.
    fn next(&mut self) -> Result<bool, Unusable> {
        loop {
            self.bytes.clear();
            let mut bounded = io::Read::take(&mut self.input, MAX_LINE);
            let read = bounded.read_until(b'\n', &mut self.bytes).map_err(|error| self.failed(error))?;
            if read == 0 {
                return Ok(false);
            }
            self.number += 1;
            if read as u64 == MAX_LINE && !self.bytes.ends_with(b"\n") {
                return Err(Unusable::Flaw(self.number, "the line is too long"));
            }
            if !self.bytes.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }

    fn failed(&self, error: io::Error) -> Unusable {
        match error.kind() {
            // What decompressors say of bytes that are not theirs.
            io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::Other => Unusable::Damaged(self.number),
            _ => Unusable::Io(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn client(text: &str) -> ClientId {
        text.parse().unwrap()
    }

    fn read_for(text: &str, of: &str, purpose: Option<&str>) -> Result<(Head, Vec<String>), Unusable> {
        let (of, purpose) = (client(of), purpose.map(|text| text.parse::<Purpose>().unwrap()));
        let mut found = Vec::new();
        let head =
            read(text.as_bytes(), Recipient { client: &of, purpose: purpose.as_ref() }, &mut |patient| {
                found.push(patient.to_string());
                Ok(())
            })?;
        Ok((head, found))
    }

    const ROSTER: &str = r#"{"version":"7"}
{"client":"aco-17","purpose":"TREAT","patient":"p1"}
{"client":"aco-17","purpose":"HPAYMT","patient":"p2"}
{"client":"other","patient":"p3"}
{"client":"*","purpose":"*","patient":"Patient/p4"}

{"patient":"p5","purpose":"treat"}
{"rows":5}
"#;

    #[test]
    fn rows_concern_their_client_and_purpose_and_every_doubt_leaves_out() {
        for (of, purpose, expected) in [
            ("aco-17", Some("TREAT"), &["p1", "p4", "p5"][..]),
            ("aco-17", Some("hpaymt"), &["p2", "p4"]),
            ("aco-17", None, &["p1", "p2", "p4", "p5"]),
            ("other", Some("TREAT"), &["p3", "p4", "p5"]),
            ("open", Some("PUBHLTH"), &["p4"]),
        ] {
            let (head, found) = read_for(ROSTER, of, purpose).unwrap();
            assert_eq!(head, Head { version: "7".to_owned(), rows: 5 });
            assert_eq!(found, expected, "{of} {purpose:?}");
        }
    }

    #[test]
    fn an_empty_roster_is_good_and_none_is_not() {
        assert_eq!(read_for("{\"version\":\"1\"}\n{\"rows\":0}", "a", None).unwrap().0.rows, 0);
        assert!(matches!(read_for("", "a", None), Err(Unusable::Torn(0))));
        assert!(matches!(read_for("{\"version\":\"1\"}\n", "a", None), Err(Unusable::Torn(1))));
    }

    #[test]
    fn what_is_not_in_order_makes_the_whole_unusable_and_is_not_quoted() {
        for (line, rows) in [
            ("{\"client\":\"a\",\"pateint\":\"secret\"}", 1),
            ("{\"cilent\":\"a\",\"patient\":\"secret\"}", 1),
            ("{\"patient\":\"secret\",\"patient\":\"secret\"}", 1),
            ("{\"patient\":\"not an id secret\"}", 1),
            ("{\"patient\":null}", 1),
            ("{\"client\":null,\"patient\":\"secret\"}", 1),
            ("{\"purpose\":null,\"patient\":\"secret\"}", 1),
            ("{\"client\":\"\",\"patient\":\"secret\"}", 1),
            ("{\"client\":\"a b\",\"patient\":\"secret\"}", 1),
            ("{\"purpose\":\"\",\"patient\":\"secret\"}", 1),
            ("{\"purpose\":[\"TREAT\"],\"patient\":\"secret\"}", 1),
            ("{\"client\":\"a\"}", 1),
            ("{\"patient\":\"secret\"", 1),
            ("secret", 1),
            ("[\"secret\"]", 1),
            ("{\"version\":\"2\"}", 0),
            ("{\"patient\":\"secret\",\"rows\":1}", 1),
            ("{\"patient\":\"secret\"}\n{\"rows\":1}", 1),
            ("{}", 0),
        ] {
            let text = format!("{{\"version\":\"1\"}}\n{line}\n{{\"rows\":{rows}}}\n");
            let error = read_for(&text, "a", None).unwrap_err();
            let at = if line.contains('\n') { 4 } else { 2 };
            assert!(matches!(&error, Unusable::Flaw(found, _) if *found == at), "{line}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        let long = format!("{{\"version\":\"1\"}}\n{{\"patient\":\"{}\"}}\n", "x".repeat(MAX_LINE as usize));
        assert!(matches!(read_for(&long, "a", None), Err(Unusable::Flaw(2, "the line is too long"))));
        for text in ["{\"patient\":\"p\"}\n{\"rows\":1}", "{\"rows\":0}", "{\"version\":\"\"}\n{\"rows\":0}"]
        {
            assert!(matches!(read_for(text, "a", None), Err(Unusable::Flaw(1, _))), "{text}");
        }
        let wrong_count = "{\"version\":\"1\"}\n{\"patient\":\"p\"}\n{\"rows\":2}";
        assert!(matches!(read_for(wrong_count, "a", None), Err(Unusable::Flaw(3, _))));
    }

    proptest! {
        /// Whoever the rows name for a recipient is found, by a rule written another way; and however the roster is cut
        /// off, it is refused.
        #[test]
        fn a_roster_is_read_whole_or_not_at_all(
            rows in proptest::collection::vec(("[ab*]", "[xY*]", "p[0-9]{1,2}"), 0..20),
            of in "[ab]",
            purpose in proptest::option::of("[XyZ]"),
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut text = "{\"version\":\"v\"}\n".to_owned();
            for (client, purpose, patient) in &rows {
                text += &serde_json::json!({"client": client, "purpose": purpose, "patient": patient}).to_string();
                text.push('\n');
            }
            text += &format!("{{\"rows\":{}}}\n", rows.len());
            let expected: BTreeSet<&String> = rows.iter().filter(|(client, named, _)| {
                let same = |purpose: &String| purpose.to_lowercase() == named.to_lowercase();
                ["*", &of].contains(&client.as_str()) && (named == "*" || purpose.as_ref().is_none_or(same))
            }).map(|(_, _, patient)| patient).collect();
            let (head, found) = read_for(&text, &of, purpose.as_deref()).unwrap();
            prop_assert_eq!(head.rows, rows.len() as u64);
            prop_assert_eq!(found.iter().collect::<BTreeSet<_>>(), expected);
            let whole = text.trim_end();
            prop_assert!(read_for(&whole[..cut.index(whole.len())], &of, purpose.as_deref()).is_err());
        }
    }
}
