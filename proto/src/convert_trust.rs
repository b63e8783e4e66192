//! Strict conversions of clients and of the keys that sign tokens.

use bytes::Bytes;
use flatbed_types::registration::Registration;
use flatbed_types::trust::{
    ClientKeys, ClientOrigin, ClientRecord, GroupGrant, LevelGrant, PrivateKey, SigningKey, SigningKeys,
};
use flatbed_types::{Instant, caps};

use crate::convert::{Malformed, Wire, each, each_to_wire};
use crate::convert_consent::{purpose_from_wire, purpose_to_wire};
use crate::wire::trust as wire;

impl Wire for ClientOrigin {
    type Message = i32;
    fn to_wire(&self) -> i32 {
        match self {
            ClientOrigin::File => wire::ClientOrigin::File.into(),
            ClientOrigin::Operator => wire::ClientOrigin::Operator.into(),
            ClientOrigin::Registration => wire::ClientOrigin::Registration.into(),
        }
    }
    fn from_wire(message: i32) -> Result<Self, Malformed> {
        match wire::ClientOrigin::try_from(message) {
            Ok(wire::ClientOrigin::File) => Ok(ClientOrigin::File),
            Ok(wire::ClientOrigin::Operator) => Ok(ClientOrigin::Operator),
            Ok(wire::ClientOrigin::Registration) => Ok(ClientOrigin::Registration),
            Ok(wire::ClientOrigin::Unspecified) | Err(_) => Err(Malformed("client.origin")),
        }
    }
}

impl Wire for ClientRecord {
    type Message = wire::ClientRecord;
    fn to_wire(&self) -> wire::ClientRecord {
        let (jwks, jwks_url) = match &self.keys {
            ClientKeys::None => (Bytes::new(), String::new()),
            ClientKeys::Document(jwks) => (Bytes::copy_from_slice(jwks), String::new()),
            ClientKeys::Url(url) => (Bytes::new(), url.clone()),
        };
        let (groups, all_groups) = match &self.groups {
            GroupGrant::All => (Vec::new(), true),
            GroupGrant::Listed(groups) => (groups.iter().map(ToString::to_string).collect(), false),
        };
        wire::ClientRecord {
            id: self.id.to_string(),
            version: self.version,
            updated: self.updated.nanos(),
            origin: self.origin.to_wire(),
            name: self.name.clone(),
            jwks,
            jwks_url,
            scopes: self.scopes.clone(),
            requested_scopes: self.requested_scopes.clone(),
            groups,
            all_groups,
            system_level: self.levels.system,
            patient_level: self.levels.patient,
            group_level: self.levels.group,
            max_jobs: self.max_jobs.unwrap_or(0),
            disabled: self.disabled,
            allow_repeated_jti: self.allow_repeated_jti,
            registration: self.registration.as_ref().map(|said| said.to_wire()),
            purpose: purpose_to_wire(self.purpose.as_ref()),
        }
    }
    fn from_wire(message: wire::ClientRecord) -> Result<Self, Malformed> {
        let keys = match (message.jwks.is_empty(), message.jwks_url.is_empty()) {
            (true, true) => ClientKeys::None,
            (false, true) => ClientKeys::Document(message.jwks.to_vec()),
            (true, false) => ClientKeys::Url(message.jwks_url),
            (false, false) => return Err(Malformed("client.jwks")),
        };
        let groups = match (message.all_groups, message.groups) {
            (true, groups) if groups.is_empty() => GroupGrant::All,
            (true, _) => return Err(Malformed("client.groups")),
            (false, groups) => {
                let id = |group: String| group.parse().map_err(|_| Malformed("client.groups"));
                GroupGrant::Listed(groups.into_iter().map(id).collect::<Result<_, _>>()?)
            }
        };
        let levels = LevelGrant {
            system: message.system_level,
            patient: message.patient_level,
            group: message.group_level,
        };
        let record = ClientRecord {
            id: message.id.parse().map_err(|_| Malformed("client.id"))?,
            version: message.version,
            updated: Instant::from_nanos(message.updated),
            origin: ClientOrigin::from_wire(message.origin)?,
            name: message.name,
            keys,
            scopes: message.scopes,
            requested_scopes: message.requested_scopes,
            groups,
            levels,
            max_jobs: (message.max_jobs != 0).then_some(message.max_jobs),
            disabled: message.disabled,
            allow_repeated_jti: message.allow_repeated_jti,
            registration: message.registration.map(Registration::from_wire).transpose()?.map(Box::new),
            purpose: purpose_from_wire(&message.purpose)?,
        };
        record.check().map_err(|_| Malformed("client: too long"))?;
        Ok(record)
    }
}

impl Wire for SigningKey {
    type Message = wire::SigningKey;
    fn to_wire(&self) -> wire::SigningKey {
        wire::SigningKey {
            kid: self.kid.clone(),
            created: self.created.nanos(),
            signs_from: self.signs_from.nanos(),
            verifies_until: self.verifies_until.map_or(0, Instant::nanos),
            private_key: Bytes::copy_from_slice(self.private.expose()),
            public_key: Bytes::copy_from_slice(&self.public),
        }
    }
    fn from_wire(message: wire::SigningKey) -> Result<Self, Malformed> {
        if message.kid.is_empty() || message.private_key.is_empty() || message.public_key.is_empty() {
            return Err(Malformed("signing key"));
        }
        Ok(SigningKey {
            kid: message.kid,
            created: Instant::from_nanos(message.created),
            signs_from: Instant::from_nanos(message.signs_from),
            verifies_until: (message.verifies_until != 0)
                .then(|| Instant::from_nanos(message.verifies_until)),
            private: PrivateKey::new(message.private_key.to_vec()),
            public: message.public_key.to_vec(),
        })
    }
}

/// Messages are written out in traces and tests: of this one only its name is.
impl std::fmt::Debug for wire::SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.kid)
    }
}

impl Wire for SigningKeys {
    type Message = wire::SigningKeys;
    fn to_wire(&self) -> wire::SigningKeys {
        wire::SigningKeys { keys: each_to_wire(&self.0) }
    }
    fn from_wire(message: wire::SigningKeys) -> Result<Self, Malformed> {
        each(message.keys).map(SigningKeys)
    }
}

/// A text that can name a token.
pub fn token_id_from(text: &str) -> Result<&str, Malformed> {
    let fits =
        (1..=caps::MAX_TOKEN_ID).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits { Ok(text) } else { Err(Malformed("token id")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ClientRecord {
        ClientRecord {
            version: 3,
            updated: Instant::from_millis(5),
            name: "Example ACO".to_owned(),
            scopes: "system/*.rs".to_owned(),
            requested_scopes: "system/*.cruds".to_owned(),
            max_jobs: Some(2),
            disabled: true,
            allow_repeated_jti: true,
            purpose: Some("TREAT".parse().unwrap()),
            ..ClientRecord::new("aco-17".parse().unwrap(), ClientOrigin::File)
        }
    }

    #[test]
    fn clients_come_back_as_they_went() {
        let listed = GroupGrant::Listed(["g1", "g2"].iter().map(|id| id.parse().unwrap()).collect());
        let keys = [
            ClientKeys::None,
            ClientKeys::Document(b"{}".to_vec()),
            ClientKeys::Url("https://a.example/jwks".to_owned()),
        ];
        for (keys, groups) in keys.into_iter().zip([GroupGrant::All, listed, record().groups]) {
            for origin in [ClientOrigin::File, ClientOrigin::Operator, ClientOrigin::Registration] {
                for level in 0..3 {
                    let levels = LevelGrant { system: level == 0, patient: level == 1, group: level == 2 };
                    let (keys, groups) = (keys.clone(), groups.clone());
                    let record = ClientRecord { keys, groups, origin, levels, ..record() };
                    assert_eq!(ClientRecord::from_wire(record.to_wire()), Ok(record));
                }
            }
        }
        let bare = ClientRecord::new("a".parse().unwrap(), ClientOrigin::Operator);
        assert_eq!(ClientRecord::from_wire(bare.to_wire()), Ok(bare));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let message = || record().to_wire();
        let both =
            wire::ClientRecord { jwks: Bytes::from_static(b"{}"), jwks_url: "u".to_owned(), ..message() };
        let groups = wire::ClientRecord { all_groups: true, groups: vec!["g".to_owned()], ..message() };
        let origin = wire::ClientRecord { origin: 0, ..message() };
        let group = wire::ClientRecord { groups: vec!["a b".to_owned()], ..message() };
        let name = wire::ClientRecord { name: "x".repeat(caps::MAX_CLIENT_NAME + 1), ..message() };
        let id = wire::ClientRecord { id: "a/b".to_owned(), ..message() };
        for wrong in [both, groups, origin, group, name, id, wire::ClientRecord::default()] {
            assert!(ClientRecord::from_wire(wrong.clone()).is_err(), "{wrong:?}");
        }
        for wrong in ["", "a b", "a\n", "ä", &"x".repeat(caps::MAX_TOKEN_ID + 1)] {
            assert!(token_id_from(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(token_id_from("a-1"), Ok("a-1"));
    }

    #[test]
    fn keys_come_back_as_they_went_and_are_not_shown() {
        let key = |until: Option<i64>| SigningKey {
            kid: "k".to_owned(),
            created: Instant::from_millis(1),
            signs_from: Instant::from_millis(2),
            verifies_until: until.map(Instant::from_millis),
            private: PrivateKey::new(vec![211, 212]),
            public: vec![4, 5],
        };
        let keys = SigningKeys(vec![key(Some(9)), key(None)]);
        assert_eq!(SigningKeys::from_wire(keys.to_wire()), Ok(keys.clone()));
        let shown = format!("{:?} {keys:?}", keys.to_wire());
        assert!(!shown.contains("211") && !shown.contains("\\xd3"), "{shown}");
        let mut without = keys.to_wire();
        without.keys[0].private_key = Bytes::new();
        assert!(SigningKeys::from_wire(without).is_err());
    }
}
