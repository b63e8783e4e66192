//! [`Trust`] of a whole cluster: asks the coordinators, and remembers the clients that it was told of by their version.
//!
//! Knows no HTTP. Invariants: nothing is answered from memory alone: every answer was asked for, and what is remembered
//! only saves sending a client's record again; memory is bounded.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use flatbed_types::trust::{ClientRecord, SigningKeys};
use flatbed_types::{ClientId, Instant};

use super::tokens::SigningKey;
use super::trust::{JtiUse, Standing, Trust, TrustUnavailable};
use crate::Clock;
use crate::trust_client::{self, TrustClient};

/// Clients that are remembered: their records have some hundred bytes, rarely with keys of some kilobytes.
const MAX_CLIENTS: usize = 4_096;

/// What the coordinators know.
pub struct ClusterTrust {
    coordinators: TrustClient,
    clock: Clock,
    /// The operator's own signing keys; those of the cluster where there are none.
    own_keys: Vec<SigningKey>,
    known: Mutex<HashMap<ClientId, Arc<ClientRecord>>>,
}

impl ClusterTrust {
    /// By these coordinators. With keys of the operator's own, tokens are signed with the first of them and verified with
    /// all; without, with those that the cluster makes and changes by itself.
    pub fn new(coordinators: TrustClient, clock: Clock, own_keys: Vec<SigningKey>) -> ClusterTrust {
        ClusterTrust { coordinators, clock, own_keys, known: Mutex::default() }
    }

    fn remembered(&self, id: &ClientId) -> Option<Arc<ClientRecord>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn remember(&self, client: ClientRecord) -> Arc<ClientRecord> {
        let client = Arc::new(client);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_CLIENTS {
            // Being told again is all that it costs.
            known.clear();
        }
        known.insert(client.id.clone(), Arc::clone(&client));
        client
    }

    fn forget(&self, id: &ClientId) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

impl fmt::Debug for ClusterTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterTrust")
    }
}

#[async_trait]
impl Trust for ClusterTrust {
    async fn client(&self, id: &ClientId) -> Result<Option<Arc<ClientRecord>>, TrustUnavailable> {
        let found = self.coordinators.client(id).await.map_err(|_| TrustUnavailable)?;
        Ok(found.map(|client| self.remember(client)))
    }

    async fn use_jti(&self, client: &ClientId, sha256: [u8; 32], until: Instant) -> JtiUse {
        match self.coordinators.use_jti(client, sha256, until).await {
            Ok(trust_client::JtiUse::First) => JtiUse::First,
            Ok(trust_client::JtiUse::Used) => JtiUse::Used,
            Err(_) => JtiUse::Unknown,
        }
    }

    async fn standing(&self, client: &ClientId, token: &str) -> Result<Standing, TrustUnavailable> {
        let known = self.remembered(client);
        let version = known.as_ref().map_or(0, |known| known.version);
        let answer = self.coordinators.authorize(client, token, version).await;
        let answer = answer.map_err(|_| TrustUnavailable)?;
        let client = match (answer.client, known) {
            (trust_client::Standing::Gone, _) => {
                self.forget(client);
                None
            }
            (trust_client::Standing::Changed(client), _) => Some(self.remember(*client)),
            (trust_client::Standing::Same, Some(known)) => Some(known),
            // Nothing was known that could be the same.
            (trust_client::Standing::Same, None) => return Err(TrustUnavailable),
        };
        Ok(Standing { client, revoked: answer.revoked })
    }

    async fn revoke(&self, token: &str, until: Instant) -> Result<(), TrustUnavailable> {
        self.coordinators.revoke(token, until).await.map_err(|_| TrustUnavailable)
    }

    async fn signing_keys(&self) -> Result<Vec<SigningKey>, TrustUnavailable> {
        if !self.own_keys.is_empty() {
            return Ok(self.own_keys.clone());
        }
        let keys = self.coordinators.signing_keys().await.map_err(|_| TrustUnavailable)?;
        Ok(in_use(&keys, (self.clock)()))
    }
}

/// The keys that verify now, of which the one that signs comes first.
fn in_use(keys: &SigningKeys, now: Instant) -> Vec<SigningKey> {
    let signer = keys.signer(now).map(|key| key.kid.as_str());
    let mut found: Vec<SigningKey> = keys
        .verifiers(now)
        .map(|key| SigningKey { kid: key.kid.clone(), pkcs8: key.private.expose().to_vec() })
        .collect();
    found.sort_by_key(|key| Some(key.kid.as_str()) != signer);
    found
}

#[cfg(test)]
mod tests {
    use flatbed_types::trust::{PrivateKey, SigningKey as Stored};

    use super::*;

    #[test]
    fn the_key_that_signs_comes_first_and_those_that_ended_are_gone() {
        let at = Instant::from_millis;
        let key = |kid: &str, signs_from: i64, verifies_until: Option<i64>| Stored {
            kid: kid.to_owned(),
            created: at(0),
            signs_from: at(signs_from),
            verifies_until: verifies_until.map(at),
            private: PrivateKey::new(kid.as_bytes().to_vec()),
            public: Vec::new(),
        };
        let keys = SigningKeys(vec![key("a", 0, Some(30)), key("b", 10, Some(60)), key("c", 50, None)]);
        let kids = |now: i64| in_use(&keys, at(now)).into_iter().map(|key| key.kid).collect::<Vec<_>>();
        assert_eq!(kids(5), ["a", "b", "c"]);
        assert_eq!(kids(20), ["b", "a", "c"]);
        assert_eq!(kids(40), ["b", "c"]);
        assert_eq!(kids(70), ["c"]);
        assert_eq!(in_use(&keys, at(70))[0].pkcs8, b"c");
    }
}
