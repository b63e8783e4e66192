//! The keys that sign the cluster's tokens. Made by whichever coordinator is asked and finds none, or an old one; decided by
//! one compare of the record that holds all of them.
//!
//! A new key verifies for a while before it signs, so that no gateway meets a token whose key it has not asked for yet; a
//! former one verifies for as long as its tokens may be out. Invariants: at most one key is about to sign; there is
//! always one that signs.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use flatbed_proto::convert::Wire;
use flatbed_proto::frame;
use flatbed_proto::status::to_status;
use flatbed_proto::wire::trust as wire;
use flatbed_types::trust::{PrivateKey, SigningKey, SigningKeys};
use flatbed_types::{ErrorCode, Instant, caps};
use tonic::Status;

use super::super::{Services, finish, random_id, store_status};
use super::short_hash;
use crate::store::{Compare, Outcome, Transaction, Write};

/// Tries of a change that others came before.
const TRIES: u32 = 8;

/// A pair of keys, and what names it.
struct Fresh {
    kid: String,
    private: PrivateKey,
    public: Vec<u8>,
}

impl Fresh {
    fn make(number: u128) -> Result<Fresh, Status> {
        let failed = |_| to_status(ErrorCode::Internal, "the system makes no keys");
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        let pkcs8 = pkcs8.map_err(failed)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref());
        let pair = pair.map_err(|_| to_status(ErrorCode::Internal, "a key that was made cannot be read"))?;
        Ok(Fresh {
            kid: kid_of(number),
            private: PrivateKey::new(pkcs8.as_ref().to_vec()),
            public: pair.public_key().as_ref().to_vec(),
        })
    }

    fn signing_from(self, created: Instant, signs_from: Instant) -> SigningKey {
        let Fresh { kid, private, public } = self;
        SigningKey { kid, created, signs_from, verifies_until: None, private, public }
    }
}

fn kid_of(number: u128) -> String {
    format!("{:016x}", number >> 64)
}

/// What is to be done about the keys now.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// Nothing.
    Nothing,
    /// Keys that verify nothing any more go.
    Forget,
    /// Another key is to follow; it signs from then on.
    Another(Instant),
}

fn due(keys: &SigningKeys, now: Instant) -> Due {
    let Some(newest) = keys.0.iter().map(|key| key.signs_from).max() else { return Due::Another(now) };
    if newest.plus_millis(caps::SIGNING_KEY_MILLIS) <= now {
        return Due::Another(now.plus_millis(caps::SIGNING_KEY_AHEAD_MILLIS));
    }
    if keys.verifiers(now).count() < keys.0.len() { Due::Forget } else { Due::Nothing }
}

/// The keys that are left, with one that follows them.
fn followed(keys: &SigningKeys, now: Instant, next: Option<SigningKey>) -> SigningKeys {
    let mut left: Vec<SigningKey> = keys.verifiers(now).cloned().collect();
    if let Some(next) = next {
        let until = next.signs_from.plus_millis(caps::SIGNING_KEY_AFTER_MILLIS);
        left.iter_mut().for_each(|key| key.verifies_until = Some(key.verifies_until.unwrap_or(until)));
        left.push(next);
    }
    SigningKeys(left)
}

fn opened(value: &[u8]) -> Result<SigningKeys, Status> {
    frame::open::<wire::SigningKeys>(value).and_then(SigningKeys::from_wire).map_err(store_status)
}

impl Services {
    async fn stored_keys(&self) -> Result<Option<(Vec<u8>, SigningKeys)>, Status> {
        let key = self.context.keys().signing_keys();
        let (_, entries) = self.context.store.range(&key, None).await.map_err(store_status)?;
        let value = entries.into_iter().find(|(found, _)| *found == key).map(|(_, value)| value);
        value.map(|value| opened(&value).map(|keys| (value, keys))).transpose()
    }

    /// Puts keys in the place of those that are known; whether nobody came before.
    async fn replace_keys(&self, known: Option<Vec<u8>>, keys: &SigningKeys) -> Result<bool, Status> {
        let key = self.context.keys().signing_keys();
        let value = frame::seal(&keys.to_wire());
        let compare = match known {
            Some(known) => Compare::Equals(key.clone(), known),
            None => Compare::Absent(key.clone()),
        };
        let transaction = Transaction {
            compares: vec![compare],
            writes: vec![Write::Put(key.clone(), value.clone())],
            reads: vec![key],
        };
        Ok(match self.txn(transaction).await? {
            Outcome::Applied(_) => true,
            Outcome::NotApplied(reads) => reads.first().cloned().flatten() == Some(value),
        })
    }

    /// The keys as they are to be used from now on.
    pub(super) async fn signing_keys(self) -> Result<SigningKeys, Status> {
        let work = async move {
            for _ in 0..TRIES {
                let known = self.stored_keys().await?;
                let (value, keys) =
                    known.map_or((None, SigningKeys::default()), |(value, keys)| (Some(value), keys));
                let now = self.context.now();
                let next = match due(&keys, now) {
                    Due::Nothing => return Ok(keys),
                    Due::Forget => None,
                    Due::Another(from) => Some(Fresh::make(random_id()?)?.signing_from(now, from)),
                };
                let kid = next.as_ref().map(|key| key.kid.clone());
                let keys = followed(&keys, now, next);
                if self.replace_keys(value, &keys).await? {
                    if let Some(kid) = kid {
                        tracing::info!(kid, "a new key will sign tokens");
                    }
                    return Ok(keys);
                }
            }
            Err(busy())
        };
        finish(work).await
    }

    /// Signs with a new key from now on and forgets all others. The nonce names the key, so that a call that is repeated
    /// finds it.
    pub(super) async fn replace_signing_keys(self, nonce: u128) -> Result<String, Status> {
        let work = async move {
            let number = short_hash(&[b"rotate", &nonce.to_be_bytes()]);
            for _ in 0..TRIES {
                let known = self.stored_keys().await?;
                let is_there = |keys: &SigningKeys| keys.0.iter().any(|key| key.kid == kid_of(number));
                if known.as_ref().is_some_and(|(_, keys)| is_there(keys)) {
                    return Ok(kid_of(number));
                }
                let now = self.context.now();
                let only = SigningKeys(vec![Fresh::make(number)?.signing_from(now, now)]);
                if self.replace_keys(known.map(|(value, _)| value), &only).await? {
                    tracing::warn!(
                        kid = kid_of(number),
                        "all keys that sign tokens were replaced by a new one"
                    );
                    return Ok(kid_of(number));
                }
            }
            Err(busy())
        };
        finish(work).await
    }
}

fn busy() -> Status {
    to_status(ErrorCode::Unavailable, "the signing keys are being changed by others; try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = caps::SIGNING_KEY_MILLIS;
    const AHEAD: i64 = caps::SIGNING_KEY_AHEAD_MILLIS;

    fn at(millis: i64) -> Instant {
        Instant::from_millis(millis)
    }

    #[test]
    fn keys_follow_each_other_without_a_gap() {
        let mut keys = SigningKeys::default();
        let (mut made, mut now) = (0_u128, 1_000);
        let begin = now;
        while now < begin + 5 * DAY {
            let next = match due(&keys, at(now)) {
                Due::Another(from) => {
                    made += 1;
                    Some(Fresh::make(made << 64).unwrap().signing_from(at(now), from))
                }
                Due::Forget | Due::Nothing => None,
            };
            let before = keys.signer(at(now)).map(|key| key.kid.clone());
            keys = followed(&keys, at(now), next);
            let signer = keys.signer(at(now)).unwrap().kid.clone();
            assert!(
                before.is_none_or(|before| before == signer),
                "a key that is new to gateways does not sign"
            );
            assert!(keys.verifiers(at(now)).any(|key| key.kid == signer));
            assert!(keys.0.len() <= 2 && due(&keys, at(now)) == Due::Nothing);
            now += AHEAD / 2;
        }
        assert_eq!(made, 5, "one a day");
    }

    #[test]
    fn a_former_key_verifies_as_long_as_its_tokens_live() {
        let first = Fresh::make(1 << 64).unwrap().signing_from(at(0), at(0));
        let one = followed(&SigningKeys::default(), at(0), Some(first));
        assert_eq!(due(&one, at(DAY - 1)), Due::Nothing);
        assert_eq!(due(&one, at(DAY)), Due::Another(at(DAY + AHEAD)));
        let next = Fresh::make(2 << 64).unwrap().signing_from(at(DAY), at(DAY + AHEAD));
        let two = followed(&one, at(DAY), Some(next));
        let end = DAY + AHEAD + caps::SIGNING_KEY_AFTER_MILLIS;
        assert_eq!(two.0[0].verifies_until, Some(at(end)));
        assert_eq!((due(&two, at(end - 1)), due(&two, at(end))), (Due::Nothing, Due::Forget));
        assert_eq!(followed(&two, at(end), None).0.len(), 1);
    }
}
