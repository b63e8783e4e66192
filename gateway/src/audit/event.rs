//! What happened, and what of it is kept.
//!
//! Pure: time and randomness are passed in, and nothing is known of HTTP but its status codes. Invariant: every field is a number, a
//! validated name or cut to a bound, so that an event without parameters stays below [`MAX_PLAIN`] bytes as JSON.

use std::fmt;
use std::net::IpAddr;

use flatbed_types::attachment::BinaryReference;
use flatbed_types::{ClientId, FhirId, Instant, JobId, Nonce};

use super::parameters::Parameters;

/// Bytes of an event as JSON, its parameters cut (`parameters::MAX_CUT`): the fields below, some 3 KiB of FHIR around them,
/// [`MAX_SCOPES`] and the parameters.
pub const MAX_PLAIN: usize = 16 << 10;

/// Bytes of the scopes of a token that are kept: dozens of types; what is longer says so at its end.
pub const MAX_SCOPES: usize = 2 << 10;

/// Bytes of a [`Label`]: a UUID needs 36.
const MAX_LABEL: usize = 64;

/// What was done or tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A gateway begins its record.
    RecordBegins,
    /// A gateway ends its record in order.
    RecordEnds,
    /// Refusals of senders that nobody knows came too fast to be recorded one by one.
    Omitted,
    /// A token was asked for.
    Token,
    /// How a token stands was asked.
    Introspection,
    /// A token was to be revoked.
    Revocation,
    /// An export was asked for.
    KickOff,
    /// How a job stands was asked and refused; answers to polls are not recorded.
    Status,
    /// A job was to be cancelled or deleted.
    Stop,
    /// A manifest, or a page of one, was read.
    Manifest,
    /// A file was read, or the way to it was given.
    File,
    /// An attachment was read.
    Attachment,
    /// A Group was read.
    GroupRead,
    /// Groups were searched.
    GroupSearch,
    /// A Group was made.
    GroupCreate,
    /// A Group was changed.
    GroupUpdate,
    /// A Group was deleted.
    GroupDelete,
    /// What became of a request about a Group was asked and refused, or was to be forgotten.
    GroupReceipt,
    /// A client was registered.
    ClientRegistered,
    /// The registration of a client was read or changed.
    ClientChanged,
    /// The registration of a client was removed.
    ClientRemoved,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 21] = [
        Kind::RecordBegins,
        Kind::RecordEnds,
        Kind::Omitted,
        Kind::Token,
        Kind::Introspection,
        Kind::Revocation,
        Kind::KickOff,
        Kind::Status,
        Kind::Stop,
        Kind::Manifest,
        Kind::File,
        Kind::Attachment,
        Kind::GroupRead,
        Kind::GroupSearch,
        Kind::GroupCreate,
        Kind::GroupUpdate,
        Kind::GroupDelete,
        Kind::GroupReceipt,
        Kind::ClientRegistered,
        Kind::ClientChanged,
        Kind::ClientRemoved,
    ];

    /// Its name in the record and in the log.
    pub fn name(self) -> &'static str {
        match self {
            Kind::RecordBegins => "record-begins",
            Kind::RecordEnds => "record-ends",
            Kind::Omitted => "refusals-omitted",
            Kind::Token => "token",
            Kind::Introspection => "introspection",
            Kind::Revocation => "revocation",
            Kind::KickOff => "kick-off",
            Kind::Status => "status",
            Kind::Stop => "stop",
            Kind::Manifest => "manifest",
            Kind::File => "file",
            Kind::Attachment => "attachment",
            Kind::GroupRead => "group-read",
            Kind::GroupSearch => "group-search",
            Kind::GroupCreate => "group-create",
            Kind::GroupUpdate => "group-update",
            Kind::GroupDelete => "group-delete",
            Kind::GroupReceipt => "group-receipt",
            Kind::ClientRegistered => "client-registered",
            Kind::ClientChanged => "client-changed",
            Kind::ClientRemoved => "client-removed",
        }
    }

    /// Whether it changes something beyond the answer, so that there must be room for its record before it is begun. A revocation is
    /// not held up: it only takes away.
    pub fn has_effect(self) -> bool {
        match self {
            Kind::KickOff
            | Kind::Stop
            | Kind::GroupCreate
            | Kind::GroupUpdate
            | Kind::GroupDelete
            | Kind::ClientRegistered
            | Kind::ClientChanged
            | Kind::ClientRemoved => true,
            Kind::RecordBegins
            | Kind::RecordEnds
            | Kind::Omitted
            | Kind::Token
            | Kind::Introspection
            | Kind::Revocation
            | Kind::Status
            | Kind::Manifest
            | Kind::File
            | Kind::Attachment
            | Kind::GroupRead
            | Kind::GroupSearch
            | Kind::GroupReceipt => false,
        }
    }

    /// Whether the gateway itself did it, without a request.
    pub fn is_own(self) -> bool {
        matches!(self, Kind::RecordBegins | Kind::RecordEnds | Kind::Omitted)
    }
}

/// A name that somebody else chose and that says nothing by itself: 1 to 64 letters, digits, `-`, `_`, `.` or `:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label(String);

impl Label {
    /// The label, if it is one.
    pub fn new(text: &str) -> Option<Label> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        let fits = (1..=MAX_LABEL).contains(&text.len()) && text.bytes().all(is_plain);
        fits.then(|| Label(text.to_owned()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Who {
    /// Nobody said.
    #[default]
    Nobody,
    /// A request said so and did not prove it.
    Claimed(ClientId),
    /// A client that proved who it is, or the one client of a server without authentication.
    Client {
        /// Which.
        id: ClientId,
        /// Names the token that it used, where it used one.
        token: Option<Label>,
    },
}

impl Who {
    /// The client, proved or not.
    pub fn client(&self) -> Option<&ClientId> {
        match self {
            Who::Nobody => None,
            Who::Claimed(id) | Who::Client { id, .. } => Some(id),
        }
    }

    /// Whether that is known.
    pub fn is_known(&self) -> bool {
        matches!(self, Who::Client { .. })
    }
}

/// A part of a file, as it was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// Its first byte.
    pub first: u64,
    /// Its last byte.
    pub last: u64,
    /// Bytes of the whole.
    pub of: u64,
}

impl ByteRange {
    /// Reads the header `Content-Range` of an answer (RFC 9110, 14.4).
    pub fn read(text: &str) -> Option<ByteRange> {
        let (range, of) = text.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        Some(ByteRange { first: first.parse().ok()?, last: last.parse().ok()?, of: of.parse().ok()? })
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}-{}/{}", self.first, self.last, self.of)
    }
}

/// With what it was done. What is absent was not part of it, or could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct About {
    /// The job.
    pub job: Option<JobId>,
    /// The page of its manifest.
    pub page: Option<u32>,
    /// The file of it.
    pub file: Option<Nonce>,
    /// The attachment.
    pub binary: Option<BinaryReference>,
    /// The Group.
    pub group: Option<FhirId>,
    /// The client whose registration it was about.
    pub client: Option<ClientId>,
    /// The token that was made or revoked, by its name.
    pub token: Option<Label>,
    /// What the token grants.
    pub scopes: Option<String>,
    /// The error code of OAuth.
    pub error: Option<&'static str>,
    /// Bytes that the answer promises.
    pub bytes: Option<u64>,
    /// The part of the file that they are.
    pub range: Option<ByteRange>,
    /// What was asked for.
    pub parameters: Option<Parameters>,
    /// How many refusals were not recorded one by one.
    pub omitted: Option<u64>,
}

impl About {
    /// Keeps the scopes of a token, cut to their bound; what no scope has in it becomes `?`.
    pub fn set_scopes(&mut self, scopes: &str) {
        let is_plain = |c: char| matches!(c, ' '..='~') && c != '"' && c != '\\';
        let plain = scopes.chars().map(|c| if is_plain(c) { c } else { '?' });
        let mut kept: String = plain.take(MAX_SCOPES).collect();
        if kept.len() < scopes.chars().count() {
            kept.push_str(" (cut)");
        }
        self.scopes = (!kept.is_empty()).then_some(kept);
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Drawn at random.
    pub id: u128,
    /// When it was recorded: when the answer was ready.
    pub recorded: Instant,
    /// What.
    pub kind: Kind,
    /// Who.
    pub who: Who,
    /// Where the request came from.
    pub peer: Option<IpAddr>,
    /// The name that the client or a proxy gave the request.
    pub request: Option<Label>,
    /// The HTTP status of the answer; `None` where the request ended without one, so that its effect is not known from here.
    pub status: Option<u16>,
    /// With what.
    pub about: About,
}

/// How it ended, in the codes of AuditEvent.outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// `0`.
    Success,
    /// `4`: refused.
    Refused,
    /// `8`: failed, or ended without an answer.
    Failed,
}

impl Outcome {
    /// The code.
    pub fn code(self) -> &'static str {
        match self {
            Outcome::Success => "0",
            Outcome::Refused => "4",
            Outcome::Failed => "8",
        }
    }
}

impl Event {
    /// How it ended.
    pub fn outcome(&self) -> Outcome {
        match self.status {
            _ if self.kind.is_own() => Outcome::Success,
            Some(..400) => Outcome::Success,
            Some(400..500) => Outcome::Refused,
            Some(_) | None => Outcome::Failed,
        }
    }

    /// Whether it may be counted instead of recorded when too many come: a refusal of somebody unknown, or of a client that is too
    /// fast. They cost their sender nothing, and must not fill the record.
    pub fn may_be_counted(&self) -> bool {
        match self.status {
            Some(429) => true,
            status => !self.who.is_known() && status.is_none_or(|status| status >= 400),
        }
    }

    /// The same for a person.
    pub fn outcome_text(&self) -> String {
        match (self.status, self.about.error) {
            (Some(status), Some(error)) => format!("HTTP {status} {error}"),
            (Some(status), None) => format!("HTTP {status}"),
            (None, _) if self.kind.is_own() => self.kind.name().to_owned(),
            (None, _) => "the request ended without an answer".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_short_and_plain() {
        for good in ["a", "0b7e-1.x:y_Z", &"x".repeat(MAX_LABEL)] {
            assert_eq!(Label::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "a b", "é", "a\nb", "\"", &"x".repeat(MAX_LABEL + 1)] {
            assert_eq!(Label::new(bad), None, "{bad}");
        }
    }

    #[test]
    fn ranges_are_read_as_they_are_answered() {
        let range = ByteRange::read("bytes 5-9/100").unwrap();
        assert_eq!(range, ByteRange { first: 5, last: 9, of: 100 });
        assert_eq!(range.to_string(), "bytes 5-9/100");
        for other in ["", "bytes */100", "bytes 5-/9", "items 1-2/3", "bytes 1-2/*"] {
            assert_eq!(ByteRange::read(other), None, "{other}");
        }
    }

    #[test]
    fn long_scopes_are_cut() {
        let mut about = About::default();
        about.set_scopes(&"é".repeat(MAX_SCOPES + 1));
        let kept = about.scopes.clone().unwrap();
        assert!(kept.len() == MAX_SCOPES + 6 && kept.ends_with("(cut)"));
        about.set_scopes("system/*.rs system/Group.cud");
        assert_eq!(about.scopes.as_deref(), Some("system/*.rs system/Group.cud"));
    }

    #[test]
    fn names_of_kinds_differ() {
        let names: std::collections::BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
