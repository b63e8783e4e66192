//! Strict conversions of what clients say of themselves, and of invitations.

use bytes::Bytes;
use flatbed_types::Instant;
use flatbed_types::registration::{Invitation, Registration, SecretHash};

use crate::convert::{Malformed, Wire};
use crate::wire::trust as wire;

/// The hash of a secret.
pub fn secret_hash_from(bytes: &[u8]) -> Result<SecretHash, Malformed> {
    bytes.try_into().map(SecretHash).map_err(|_| Malformed("hash of a token"))
}

/// The bytes of a hash of a secret.
pub fn secret_hash_bytes(hash: &SecretHash) -> Bytes {
    Bytes::copy_from_slice(&hash.0)
}

impl Wire for Registration {
    type Message = wire::Registration;
    fn to_wire(&self) -> wire::Registration {
        wire::Registration {
            issued: self.issued.nanos(),
            token_sha256: secret_hash_bytes(&self.token),
            contacts: self.contacts.clone(),
            software_id: self.software_id.clone(),
            software_version: self.software_version.clone(),
        }
    }
    fn from_wire(message: wire::Registration) -> Result<Self, Malformed> {
        let registration = Registration {
            issued: Instant::from_nanos(message.issued),
            token: secret_hash_from(&message.token_sha256)?,
            contacts: message.contacts,
            software_id: message.software_id,
            software_version: message.software_version,
        };
        registration.check().map_err(Malformed)?;
        Ok(registration)
    }
}

impl Wire for Invitation {
    type Message = wire::Invitation;
    fn to_wire(&self) -> wire::Invitation {
        wire::Invitation {
            token_sha256: secret_hash_bytes(&self.token),
            created: self.created.nanos(),
            expires: self.expires.nanos(),
            uses_left: self.uses_left,
            note: self.note.clone(),
        }
    }
    fn from_wire(message: wire::Invitation) -> Result<Self, Malformed> {
        let invitation = Invitation {
            token: secret_hash_from(&message.token_sha256)?,
            created: Instant::from_nanos(message.created),
            expires: Instant::from_nanos(message.expires),
            uses_left: message.uses_left,
            note: message.note,
        };
        invitation.check().map_err(|_| Malformed("invitation"))?;
        Ok(invitation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatbed_types::trust::{ClientOrigin, ClientRecord};

    fn registration() -> Registration {
        Registration {
            issued: Instant::from_millis(5),
            token: SecretHash([3; 32]),
            contacts: vec!["ops@a.example".to_owned()],
            software_id: "s".to_owned(),
            software_version: "1".to_owned(),
        }
    }

    #[test]
    fn what_was_registered_comes_back_as_it_went() {
        assert_eq!(Registration::from_wire(registration().to_wire()), Ok(registration()));
        let record = ClientRecord {
            registration: Some(Box::new(registration())),
            ..ClientRecord::new("a".parse().unwrap(), ClientOrigin::Registration)
        };
        assert_eq!(ClientRecord::from_wire(record.to_wire()), Ok(record));
        let invitation = Invitation {
            token: SecretHash([4; 32]),
            created: Instant::from_millis(1),
            expires: Instant::from_millis(2),
            uses_left: 7,
            note: "for ACO 17".to_owned(),
        };
        assert_eq!(Invitation::from_wire(invitation.to_wire()), Ok(invitation.clone()));
        let none = wire::Invitation { uses_left: 0, ..invitation.to_wire() };
        assert!(Invitation::from_wire(none).is_err());
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let short = Bytes::from_static(&[1; 31]);
        let short = wire::Registration { token_sha256: short, ..registration().to_wire() };
        let long = wire::Registration { software_id: "x".repeat(300), ..registration().to_wire() };
        for wrong in [short, long] {
            assert!(Registration::from_wire(wrong).is_err());
        }
    }
}
