//! Clients that register themselves (RFC 7591), and the invitations that let them.
//!
//! Does not know what metadata means: these are bounded texts here, which the gateway room has checked. Secrets are known by
//! their SHA-256 only, and have so many random bits that their hash gives nothing away.

use std::fmt;
use std::str::FromStr;

use crate::ids::InvalidId;
use crate::{Instant, caps};

/// The SHA-256 of a secret of at least 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretHash(pub [u8; 32]);

impl SecretHash {
    /// In hex digits, as keys of the state store hold it.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash")
    }
}

/// What a client said of itself when it registered itself, and by what it shows that it is the one that did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// When.
    pub issued: Instant,
    /// Its registration access token (RFC 7592).
    pub token: SecretHash,
    /// Whom to ask about it.
    pub contacts: Vec<String>,
    /// Names its software; may be empty.
    pub software_id: String,
    /// Of its software; may be empty.
    pub software_version: String,
}

impl Registration {
    /// Whether its texts are within their bounds; if not, which one is not.
    pub fn check(&self) -> Result<(), &'static str> {
        let fits =
            |text: &str| text.len() <= caps::MAX_REGISTERED_TEXT && !text.chars().any(char::is_control);
        if self.contacts.len() > caps::MAX_CLIENT_CONTACTS || !self.contacts.iter().all(|text| fits(text)) {
            return Err("contacts");
        }
        if !fits(&self.software_id) {
            return Err("software_id");
        }
        if fits(&self.software_version) { Ok(()) } else { Err("software_version") }
    }
}

/// What names an invitation for operators: the beginning of its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InvitationId(u64);

impl InvitationId {
    /// What the keys of its invitation in the state store begin with, behind what those of all begin with.
    pub fn hex(self) -> String {
        format!("{:016x}", self.0)
    }
}

impl fmt::Display for InvitationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inv_{:016x}", self.0)
    }
}

impl FromStr for InvitationId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let digits = text.strip_prefix("inv_").filter(|digits| {
            digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        number.map(InvitationId).ok_or(InvalidId { kind: "invitation" })
    }
}

/// An initial access token (RFC 7591): whoever has it may register so many clients until then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// The token.
    pub token: SecretHash,
    /// When it was made.
    pub created: Instant,
    /// It is of no use from then on.
    pub expires: Instant,
    /// Clients that may still register by it.
    pub uses_left: u32,
    /// For whom it was made; for people.
    pub note: String,
}

/// An invitation cannot be like this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "an invitation is good for 1 to {} clients, and has a note of at most {} bytes without control characters",
    caps::MAX_INVITATION_USES,
    caps::MAX_CLIENT_NAME
)]
pub struct InvalidInvitation;

impl Invitation {
    /// What names it for operators.
    pub fn id(&self) -> InvitationId {
        let first = self.token.0.iter().take(8);
        InvitationId(first.fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    }

    /// Checks its bounds; how long it is good is for whoever knows what time it is.
    pub fn check(&self) -> Result<(), InvalidInvitation> {
        let uses = (1..=caps::MAX_INVITATION_USES).contains(&self.uses_left);
        let note = self.note.len() <= caps::MAX_CLIENT_NAME && !self.note.chars().any(char::is_control);
        if uses && note { Ok(()) } else { Err(InvalidInvitation) }
    }

    /// Whether it is good at a time.
    pub fn is_open(&self, now: Instant) -> bool {
        now < self.expires
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invitation() -> Invitation {
        Invitation {
            token: SecretHash([0xab; 32]),
            created: Instant::from_millis(1),
            expires: Instant::from_millis(9),
            uses_left: 1,
            note: String::new(),
        }
    }

    #[test]
    fn an_invitation_has_bounds_and_an_end() {
        assert_eq!(invitation().check(), Ok(()));
        let uses = |uses_left| Invitation { uses_left, ..invitation() }.check().is_ok();
        assert_eq!([0, 1, 1_000, 1_001].map(uses), [false, true, true, false]);
        assert!(Invitation { note: "a\nb".to_owned(), ..invitation() }.check().is_err());
        assert!(Invitation { note: "x".repeat(257), ..invitation() }.check().is_err());
        assert_eq!([8, 9].map(|now| invitation().is_open(Instant::from_millis(now))), [true, false]);
    }

    #[test]
    fn its_id_is_the_beginning_of_its_hash_and_no_more() {
        let id = invitation().id();
        assert_eq!(id.to_string(), "inv_abababababababab");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(invitation().token.hex().starts_with(&id.hex()));
        for wrong in ["", "inv_", "abababababababab", "inv_ABABABABABABABAB", "inv_abababababababa"] {
            assert!(wrong.parse::<InvitationId>().is_err(), "{wrong}");
        }
        assert!(!format!("{:?}", invitation()).contains("171"), "hashes are not shown");
    }

    #[test]
    fn what_a_client_says_of_itself_is_bounded() {
        let said = |contacts: Vec<String>, id: &str, version: &str| {
            let registration = Registration {
                issued: Instant::from_millis(1),
                token: SecretHash([7; 32]),
                contacts,
                software_id: id.to_owned(),
                software_version: version.to_owned(),
            };
            registration.check()
        };
        let long = "x".repeat(caps::MAX_REGISTERED_TEXT + 1);
        assert_eq!(said(vec!["ops@a.example".to_owned()], "a", "1"), Ok(()));
        assert_eq!(said(vec![String::new(); caps::MAX_CLIENT_CONTACTS + 1], "", ""), Err("contacts"));
        assert_eq!(said(vec![long.clone()], "", ""), Err("contacts"));
        assert_eq!(said(Vec::new(), &long, ""), Err("software_id"));
        assert_eq!(said(Vec::new(), "", "1\u{7}"), Err("software_version"));
    }
}
