//! Strict conversions of what says whom a job leaves out.

use flatbed_types::consent::{ConsentRule, Exclusions, Purpose};

use crate::convert::{Malformed, Wire, required, sha256_from};
use crate::wire::types as wire;

/// A purpose as it travels: empty for none.
pub fn purpose_to_wire(purpose: Option<&Purpose>) -> String {
    purpose.map(ToString::to_string).unwrap_or_default()
}

/// The purpose of a message.
///
/// # Errors
/// When it is none.
pub fn purpose_from_wire(text: &str) -> Result<Option<Purpose>, Malformed> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| Malformed("purpose"))
}

impl Wire for ConsentRule {
    type Message = wire::ConsentRule;
    fn to_wire(&self) -> wire::ConsentRule {
        wire::ConsentRule { location: self.location.clone(), purpose: purpose_to_wire(self.purpose.as_ref()) }
    }
    fn from_wire(message: wire::ConsentRule) -> Result<Self, Malformed> {
        if message.location.is_empty() {
            return Err(Malformed("consent.location"));
        }
        Ok(ConsentRule { location: message.location, purpose: purpose_from_wire(&message.purpose)? })
    }
}

impl Wire for Exclusions {
    type Message = wire::Exclusions;
    fn to_wire(&self) -> wire::Exclusions {
        wire::Exclusions {
            list: Some(self.list.to_wire()),
            version: self.version.clone(),
            roster_sha256: bytes::Bytes::copy_from_slice(&self.roster_sha256),
            listed: self.listed,
            patients: self.patients,
        }
    }
    fn from_wire(message: wire::Exclusions) -> Result<Self, Malformed> {
        Ok(Exclusions {
            list: required(message.list, "exclusions.list")?,
            version: message.version,
            roster_sha256: sha256_from(&message.roster_sha256)?,
            listed: message.listed,
            patients: message.patients,
        })
    }
}

#[cfg(test)]
mod tests {
    use flatbed_types::job::ObjectPointer;

    use super::*;

    #[test]
    fn rules_and_exclusions_come_back_and_nothing_is_made_up() {
        for purpose in [None, Some("TREAT".parse().unwrap())] {
            let rule = ConsentRule { location: "/x/roster.ndjson".to_owned(), purpose };
            assert_eq!(ConsentRule::from_wire(rule.to_wire()).unwrap(), rule);
        }
        let wrong = |location: &str, purpose: &str| {
            let message = wire::ConsentRule { location: location.to_owned(), purpose: purpose.to_owned() };
            ConsentRule::from_wire(message).is_err()
        };
        assert!(wrong("", "") && wrong("/x", "no purpose"));
        let list = ObjectPointer { key: "k".to_owned(), sha256: [7; 32], size: 9 };
        let said =
            Exclusions { list, version: "v1".to_owned(), roster_sha256: [8; 32], listed: 3, patients: 2 };
        assert_eq!(Exclusions::from_wire(said.to_wire()).unwrap(), said);
        assert!(Exclusions::from_wire(wire::Exclusions { list: None, ..said.to_wire() }).is_err());
        assert!(Exclusions::from_wire(wire::Exclusions::default()).is_err());
    }
}
