//! SMART scopes of backend clients: what they say, what is granted of them, and what a grant covers
//! (SMART App Launch 2.2, "Scopes for requesting clinical data"; rows AU-73 to AU-83).
//!
//! Knows no tokens and no clients. Invariants: a grant never covers more than what was asked for, nor more than what
//! was registered; what cannot be understood is refused, never read as less or more; a grant that is written out and
//! read again is the same grant.
//!
//! ```text
//! system/(Type or *).(read, write or *)      version 1
//! system/(Type or *).(c)(r)(u)(d)(s)         version 2, letters in this order
//! ```
//!
//! Restrictions behind `?` are refused: a token that was read more widely than it was granted would be worse than none.

use std::collections::BTreeMap;
use std::fmt;

use flatbed_types::ResourceType;

/// Scopes of one request or registration: every type by name, and `*`, is 150 or so.
const MAX_SCOPES: usize = 512;

/// What may be done with resources of a type: a set of the letters `cruds`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Rights(u8);

/// The letters, in the order in which they are written.
const LETTERS: &[u8; 5] = b"cruds";

impl Rights {
    /// Nothing.
    pub const NONE: Rights = Rights(0);
    /// `rs`: what an export needs of each of its types (AU-81), and `read` of version 1.
    pub const READ: Rights = Rights(0b1_0010);
    /// `cud`: what keeping Groups needs (CH-15), and `write` of version 1.
    pub const WRITE: Rights = Rights(0b0_1101);
    /// `cruds`.
    pub const ALL: Rights = Rights(0b1_1111);

    /// Reads letters in their order, each once.
    fn read(text: &str) -> Option<Rights> {
        let mut letters = LETTERS.iter().enumerate();
        let mut rights = Rights::NONE;
        for byte in text.bytes() {
            let (position, _) = letters.find(|(_, letter)| **letter == byte)?;
            rights.0 |= 1 << position;
        }
        (rights != Rights::NONE).then_some(rights)
    }

    /// Whether all of these are among them.
    pub fn cover(self, other: Rights) -> bool {
        self.0 & other.0 == other.0
    }

    fn and(self, other: Rights) -> Rights {
        Rights(self.0 & other.0)
    }

    fn or(self, other: Rights) -> Rights {
        Rights(self.0 | other.0)
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, letter) in LETTERS.iter().enumerate() {
            if self.0 & (1 << position) != 0 {
                write!(f, "{}", char::from(*letter))?;
            }
        }
        Ok(())
    }
}

/// One scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scope {
    /// The type; `None` for all.
    of: Option<ResourceType>,
    rights: Rights,
    /// Whether it is written as in version 1.
    is_first: bool,
}

/// Why scopes are refused (`invalid_scope`). Names what was sent, shortened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidScope {
    /// There is none.
    #[error("scope names nothing; ask for system/<Type>.rs, as in system/Patient.rs or system/*.rs")]
    Empty,
    /// There are too many.
    #[error("scope names more than {MAX_SCOPES} scopes")]
    TooMany,
    /// It is none of this server's.
    #[error("{0} is no scope of this server: expected system/<Type>.rs or system/<Type>.read")]
    Unknown(String),
    /// Its type is no FHIR type.
    #[error("{0}: expected a resource type of FHIR R4 or * between / and .")]
    NoType(String),
    /// Its rights are not understood.
    #[error("{0}: expected read, write, * or letters of cruds in this order after the type")]
    NoRights(String),
    /// It is restricted by a search.
    #[error("{0}: scopes that a search restricts are not granted here; use _typeFilter in the request")]
    Restricted(String),
    /// Nothing of it may be granted.
    #[error("nothing of what scope asks for is granted to this client")]
    Nothing,
}

/// The longest part of a scope that an error repeats.
const SHOWN: usize = 64;

fn shown(scope: &str) -> String {
    // What is sent is shown as far as it is plain text: it ends in an answer's JSON and in logs.
    scope.chars().take(SHOWN).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
}

impl Scope {
    fn read(text: &str) -> Result<Scope, InvalidScope> {
        let rest = text.strip_prefix("system/").ok_or_else(|| InvalidScope::Unknown(shown(text)))?;
        if rest.contains('?') {
            return Err(InvalidScope::Restricted(shown(text)));
        }
        let (of, rights) = rest.split_once('.').ok_or_else(|| InvalidScope::NoRights(shown(text)))?;
        let of = match of {
            "*" => None,
            name => Some(name.parse().map_err(|_| InvalidScope::NoType(shown(text)))?),
        };
        let first = |rights| Scope { of, rights, is_first: true };
        match rights {
            "read" => Ok(first(Rights::READ)),
            "write" => Ok(first(Rights::WRITE)),
            "*" => Ok(first(Rights::ALL)),
            letters => Rights::read(letters)
                .map(|rights| Scope { of, rights, is_first: false })
                .ok_or_else(|| InvalidScope::NoRights(shown(text))),
        }
    }
}

/// A set of scopes: asked for, registered or granted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scopes {
    /// Rights on each type that is named.
    types: BTreeMap<ResourceType, Rights>,
    /// Rights on every type.
    every: Rights,
    /// Whether all of them are written as in version 1, so that what is granted is too (AU-77).
    is_first: bool,
}

impl Scopes {
    /// Reads a list with spaces between, as OAuth has it. Scopes on one type add up.
    pub fn read(text: &str) -> Result<Scopes, InvalidScope> {
        let mut scopes = Scopes { is_first: true, ..Scopes::default() };
        let mut count = 0;
        for part in text.split(' ').filter(|part| !part.is_empty()) {
            count += 1;
            if count > MAX_SCOPES {
                return Err(InvalidScope::TooMany);
            }
            let scope = Scope::read(part)?;
            scopes.is_first &= scope.is_first;
            scopes.add(scope.of, scope.rights);
        }
        if count == 0 { Err(InvalidScope::Empty) } else { Ok(scopes) }
    }

    fn add(&mut self, of: Option<ResourceType>, rights: Rights) {
        match of {
            None => self.every = self.every.or(rights),
            Some(of) => {
                let known = self.types.entry(of).or_default();
                *known = known.or(rights);
            }
        }
    }

    /// What may be done with a type.
    pub fn rights(&self, of: ResourceType) -> Rights {
        self.every.or(self.types.get(&of).copied().unwrap_or_default())
    }

    /// Whether resources of a type may be exported (AU-81).
    pub fn may_read(&self, of: ResourceType) -> bool {
        self.rights(of).cover(Rights::READ)
    }

    /// What of these is left where only `allowed` is registered any more (AU-93).
    pub fn within(&self, allowed: &Scopes) -> Scopes {
        let mut left =
            Scopes { is_first: self.is_first, every: self.every.and(allowed.every), ..Scopes::default() };
        for of in self.types.keys().chain(allowed.types.keys()) {
            left.types.insert(*of, self.rights(*of).and(allowed.rights(*of)));
        }
        left
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.every == Rights::NONE && self.types.values().all(|rights| *rights == Rights::NONE)
    }

    /// What is granted of these to a client that is registered for `allowed` (AU-73 to AU-76), where a client may be
    /// granted no more than `offered(type)`: what this server does with the type.
    pub fn grant(
        &self,
        allowed: &Scopes,
        offered: &dyn Fn(ResourceType) -> Rights,
    ) -> Result<Scopes, InvalidScope> {
        let mut granted = Scopes { is_first: self.is_first, ..Scopes::default() };
        // Rights that all types have are granted on all types; what else there is, type by type.
        let offered_on_all =
            ResourceType::all().map(offered).fold(Rights::ALL, |common, rights| common.and(rights));
        granted.every = self.every.and(allowed.every).and(offered_on_all);
        for of in ResourceType::all() {
            let rights = self.rights(of).and(allowed.rights(of)).and(offered(of));
            if !granted.every.cover(rights) {
                granted.types.insert(of, rights);
            }
        }
        if granted.is_empty() { Err(InvalidScope::Nothing) } else { Ok(granted) }
    }
}

impl fmt::Display for Scopes {
    /// As OAuth writes them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let every = (self.every != Rights::NONE).then_some(("*", self.every));
        let types = self.types.iter().filter(|(_, rights)| **rights != Rights::NONE);
        let all = every.into_iter().chain(types.map(|(of, rights)| (of.name(), *rights)));
        for (number, (of, rights)) in all.enumerate() {
            let space = if number == 0 { "" } else { " " };
            match (self.is_first, rights) {
                (true, Rights::READ) => write!(f, "{space}system/{of}.read")?,
                (true, Rights::WRITE) => write!(f, "{space}system/{of}.write")?,
                (true, Rights::ALL) => write!(f, "{space}system/{of}.*")?,
                _ => write!(f, "{space}system/{of}.{rights}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Scopes {
        Scopes::read(text).unwrap()
    }

    fn offered(of: ResourceType) -> Rights {
        if of == ResourceType::GROUP { Rights::ALL } else { Rights::READ }
    }

    fn granted(asked: &str, allowed: &str) -> Result<String, InvalidScope> {
        read(asked).grant(&read(allowed), &offered).map(|scopes| scopes.to_string())
    }

    #[test]
    fn au_73_to_77_what_is_granted() {
        for (asked, allowed, expected) in [
            ("system/*.rs", "system/*.rs", "system/*.rs"),
            ("system/*.read", "system/*.rs", "system/*.read"),
            ("system/Patient.rs", "system/*.rs", "system/Patient.rs"),
            ("system/*.rs", "system/Patient.rs", "system/Patient.rs"),
            (
                "system/*.read",
                "system/Patient.rs system/Encounter.r",
                "system/Encounter.r system/Patient.read",
            ),
            ("system/Patient.rs system/Encounter.rs", "system/Patient.read", "system/Patient.rs"),
            ("system/Patient.cruds", "system/*.cruds", "system/Patient.rs"),
            ("system/*.*", "system/*.*", "system/*.read system/Group.*"),
            ("system/*.cruds", "system/*.rs system/Group.cud", "system/*.rs system/Group.cruds"),
            ("system/Group.cud", "system/Group.cruds", "system/Group.cud"),
            ("system/Patient.r system/Patient.s", "system/*.rs", "system/Patient.rs"),
            ("system/Patient.read system/Patient.rs", "system/*.rs", "system/Patient.rs"),
        ] {
            assert_eq!(granted(asked, allowed).as_deref(), Ok(expected), "{asked} of {allowed}");
        }
        for (asked, allowed) in [
            ("system/Patient.rs", "system/Observation.rs"),
            ("system/Patient.cud", "system/*.cruds"),
            ("system/Patient.write", "system/*.*"),
        ] {
            assert_eq!(granted(asked, allowed), Err(InvalidScope::Nothing), "{asked} of {allowed}");
        }
    }

    #[test]
    fn au_34_au_76_to_80_what_is_no_scope() {
        assert_eq!(Scopes::read(""), Err(InvalidScope::Empty));
        assert_eq!(Scopes::read("  "), Err(InvalidScope::Empty));
        for wrong in [
            "patient/*.rs",
            "user/Patient.read",
            "launch",
            "openid",
            "System/Patient.rs",
            "system/Bogus.rs",
            "system/patient.rs",
            "system/.rs",
            "system/Patient",
            "system/Patient.",
            "system/Patient.sr",
            "system/Patient.rr",
            "system/Patient.x",
            "system/Patient.read,rs",
            "system/Patient.Read",
            "system/Observation.rs?category=laboratory",
            "system/Patient.rs\tsystem/Observation.rs",
        ] {
            let refused = Scopes::read(wrong).unwrap_err();
            assert!(refused.to_string().contains(&shown(wrong)), "{refused}");
            assert!(Scopes::read(&format!("system/Patient.rs {wrong}")).is_err(), "{wrong} beside another");
        }
        let long = format!("system/{}.rs", "é".repeat(10_000));
        assert!(Scopes::read(&long).unwrap_err().to_string().len() < 200);
        assert_eq!(Scopes::read(&"system/*.rs ".repeat(MAX_SCOPES + 1)), Err(InvalidScope::TooMany));
    }

    #[test]
    fn au_81_an_export_needs_read_and_search() {
        let patient = ResourceType::PATIENT;
        assert!(read("system/Patient.rs").may_read(patient));
        assert!(read("system/*.read").may_read(patient));
        assert!(read("system/*.r system/Patient.s").may_read(patient));
        assert!(!read("system/Patient.r").may_read(patient));
        assert!(!read("system/Observation.rs").may_read(patient));
    }

    fn scope() -> impl Strategy<Value = String> {
        let of = prop_oneof!["\\*", "Patient", "Observation", "Group", "Encounter"];
        let rights = prop_oneof!["read", "write", "\\*", "c?r?u?d?s?"];
        (of, rights).prop_filter_map("no rights", |(of, rights)| {
            (!rights.is_empty()).then(|| format!("system/{of}.{rights}"))
        })
    }

    fn scopes() -> impl Strategy<Value = String> {
        proptest::collection::vec(scope(), 1..5).prop_map(|all| all.join(" "))
    }

    proptest! {
        /// A grant is exactly what was asked for, registered and offered, type by type, and survives being written.
        #[test]
        fn a_grant_is_the_common_part(asked in scopes(), allowed in scopes()) {
            let (asked, allowed) = (read(&asked), read(&allowed));
            let granted = asked.grant(&allowed, &offered);
            for of in ResourceType::all() {
                let common = asked.rights(of).and(allowed.rights(of)).and(offered(of));
                let rights = granted.as_ref().map_or(Rights::NONE, |granted| granted.rights(of));
                prop_assert_eq!(rights, common, "{}", of);
            }
            let within = asked.within(&allowed);
            for of in ResourceType::all() {
                prop_assert_eq!(within.rights(of), asked.rights(of).and(allowed.rights(of)), "{}", of);
            }
            if let Ok(granted) = granted {
                let again = read(&granted.to_string());
                for of in ResourceType::all() {
                    prop_assert_eq!(again.rights(of), granted.rights(of));
                }
            }
        }

        #[test]
        fn nothing_that_is_sent_panics(text in "\\PC*") {
            let _ = Scopes::read(&text);
        }
    }
}
