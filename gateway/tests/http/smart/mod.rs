//! SMART Backend Services: a cluster's knowledge of clients in this process, clients with keys of their own, and the gateway
//! between them.

mod access;
mod audit;
mod external;
mod fuzz;
mod jwks;
mod limits;
mod matrix;
mod registration;
mod token;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA384,
};
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flatbed_gateway::audit::AuditLog;
use flatbed_gateway::auth::external::ExternalIssuer;
use flatbed_gateway::auth::jwks::JwksOptions;
use flatbed_gateway::auth::tokens::SigningKey;
use flatbed_gateway::auth::trust::{JtiUse, Standing, Trust, TrustUnavailable};
use flatbed_gateway::{Gateway, GatewayOptions};
use flatbed_proto::reach::Coordinators;
use flatbed_types::trust::{ClientKeys, ClientOrigin, ClientRecord, GroupGrant, LevelGrant};
use flatbed_types::{ClientId, Instant};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use serde_json::{Value, json};

use crate::support::{Answer, FakeJobs, World, channel, now, options, request};

pub const TOKEN_URL: &str = "https://example.org/auth/token";

#[derive(Default)]
pub struct Known {
    pub clients: BTreeMap<ClientId, ClientRecord>,
    pub used: BTreeSet<(ClientId, [u8; 32])>,
    pub revoked: BTreeSet<String>,
    pub keys: Vec<SigningKey>,
    pub down: bool,
    /// Whether the answer to a use gets lost.
    pub losing: bool,
}

#[derive(Default)]
pub struct FakeTrust(pub Mutex<Known>);

impl FakeTrust {
    fn asked(&self) -> Result<std::sync::MutexGuard<'_, Known>, TrustUnavailable> {
        let known = self.0.lock().unwrap();
        if known.down { Err(TrustUnavailable) } else { Ok(known) }
    }
}

#[async_trait]
impl Trust for FakeTrust {
    async fn client(&self, id: &ClientId) -> Result<Option<Arc<ClientRecord>>, TrustUnavailable> {
        Ok(self.asked()?.clients.get(id).cloned().map(Arc::new))
    }

    async fn use_jti(&self, client: &ClientId, sha256: [u8; 32], _: Instant) -> JtiUse {
        let Ok(mut known) = self.asked() else { return JtiUse::Unknown };
        let first = known.used.insert((client.clone(), sha256));
        match (known.losing, first) {
            (true, _) => JtiUse::Unknown,
            (_, true) => JtiUse::First,
            (_, false) => JtiUse::Used,
        }
    }

    async fn standing(&self, client: &ClientId, token: &str) -> Result<Standing, TrustUnavailable> {
        let known = self.asked()?;
        let client = known.clients.get(client).cloned().map(Arc::new);
        Ok(Standing { client, revoked: known.revoked.contains(token) })
    }

    async fn revoke(&self, token: &str, _: Instant) -> Result<(), TrustUnavailable> {
        self.asked()?.revoked.insert(token.to_owned());
        Ok(())
    }

    async fn signing_keys(&self) -> Result<Vec<SigningKey>, TrustUnavailable> {
        Ok(self.asked()?.keys.clone())
    }
}

pub fn signing_key(kid: &str) -> SigningKey {
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
    SigningKey { kid: kid.to_owned(), pkcs8: pkcs8.as_ref().to_vec() }
}

pub fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A private key of a client.
pub enum Key {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl Key {
    pub fn ec() -> Key {
        Key::Ec(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap())
    }

    pub fn rsa() -> Key {
        Key::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
    }

    pub fn alg(&self) -> &'static str {
        match self {
            Key::Ec(_) => "ES384",
            Key::Rsa(_) => "RS384",
        }
    }

    /// The public JWK.
    pub fn jwk(&self, kid: &str) -> Value {
        match self {
            Key::Ec(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(48);
                json!({ "kty": "EC", "crv": "P-384", "kid": kid, "x": b64(x), "y": b64(y) })
            }
            Key::Rsa(pair) => {
                // PKCS #1 in DER: a sequence of two integers, of which the first has a sign byte.
                let der = pair.public_key().as_ref();
                let (n, e) = (&der[9..265], &der[der.len() - 3..]);
                assert_eq!((&der[..9], e), (&b"\x30\x82\x01\x0a\x02\x82\x01\x01\x00"[..], &[1, 0, 1][..]));
                json!({ "kty": "RSA", "kid": kid, "n": b64(n), "e": b64(e) })
            }
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Key::Ec(pair) => pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
            Key::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA384, &SystemRandom::new(), message, &mut signature).unwrap();
                signature
            }
        }
    }

    /// A JWT of these two, signed.
    pub fn jwt(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let signature = self.sign(signed.as_bytes());
        format!("{signed}.{}", b64(signature))
    }
}

pub fn jwks(keys: &[Value]) -> Vec<u8> {
    json!({ "keys": keys }).to_string().into_bytes()
}

/// A client with every right.
pub fn client(id: &str, keys: ClientKeys) -> ClientRecord {
    ClientRecord {
        version: 1,
        keys,
        scopes: "system/*.cruds".to_owned(),
        groups: GroupGrant::All,
        levels: LevelGrant { system: true, patient: true, group: true },
        ..ClientRecord::new(id.parse().unwrap(), ClientOrigin::Operator)
    }
}

/// A gateway that asks for tokens, with one client `app`, whose key `k` is on P-384.
pub struct Smart {
    pub world: World,
    pub trust: Arc<FakeTrust>,
    pub key: Key,
    pub clock: Arc<AtomicI64>,
    jtis: AtomicI64,
}

impl Smart {
    pub async fn new() -> Smart {
        Smart::with(JwksOptions::default()).await
    }

    pub async fn with(jwks_options: JwksOptions) -> Smart {
        Smart::over(jwks_options, options(), |gateway, _| gateway).await
    }

    /// With tokens of another server.
    pub async fn external(jwks_options: JwksOptions, server: ExternalIssuer) -> Smart {
        Smart::of(options(), |gateway, trust| {
            gateway.with_external_issuer(Arc::clone(trust) as _, jwks_options, server).unwrap()
        })
        .await
    }

    pub async fn over(
        jwks_options: JwksOptions,
        options: GatewayOptions,
        changed: impl FnOnce(Gateway, &Arc<FakeTrust>) -> Gateway,
    ) -> Smart {
        Smart::of(options, |gateway, trust| {
            changed(gateway.with_smart(Arc::clone(trust) as _, jwks_options).unwrap(), trust)
        })
        .await
    }

    /// With a record of what is done.
    pub async fn recorded(jwks_options: JwksOptions, audit: Option<AuditLog>) -> Smart {
        Smart::over(jwks_options, options(), |gateway, _| match audit {
            Some(log) => gateway.with_audit(log),
            None => gateway,
        })
        .await
    }

    async fn of(options: GatewayOptions, guarded: impl FnOnce(Gateway, &Arc<FakeTrust>) -> Gateway) -> Smart {
        let key = Key::ec();
        let trust = Arc::new(FakeTrust::default());
        let document = ClientKeys::Document(jwks(&[key.jwk("k")]));
        {
            let mut known = trust.0.lock().unwrap();
            known.keys.push(signing_key("s1"));
            let app = client("app", document);
            known.clients.insert(app.id.clone(), app);
        }
        let jobs = FakeJobs::default();
        let channel = channel(jobs.clone()).await;
        let objects = Arc::new(InMemory::new());
        let store = Arc::clone(&objects) as Arc<dyn ObjectStore>;
        let clock = Arc::new(AtomicI64::new(now().millis()));
        let ticks = Arc::clone(&clock);
        let time = Arc::new(move || Instant::from_millis(ticks.load(Ordering::Relaxed)));
        let gateway = Gateway::new(Coordinators::fixed(channel), store, options, time);
        let app = guarded(gateway, &trust).router();
        Smart { world: World { jobs, objects, app }, trust, key, clock, jtis: AtomicI64::new(0) }
    }

    pub fn now(&self) -> i64 {
        self.clock.load(Ordering::Relaxed) / 1_000
    }

    pub fn pass(&self, seconds: i64) {
        self.clock.fetch_add(seconds * 1_000, Ordering::Relaxed);
    }

    /// Changes what is known of a client.
    pub fn change(&self, id: &str, change: impl FnOnce(&mut ClientRecord)) {
        let mut known = self.trust.0.lock().unwrap();
        let client = known.clients.get_mut(&id.parse().unwrap()).unwrap();
        change(client);
        client.version += 1;
    }

    pub fn add(&self, client: ClientRecord) {
        self.trust.0.lock().unwrap().clients.insert(client.id.clone(), client);
    }

    /// The claims of a good assertion.
    pub fn claims(&self) -> Value {
        let number = self.jtis.fetch_add(1, Ordering::Relaxed);
        json!({
            "iss": "app", "sub": "app", "aud": TOKEN_URL, "exp": self.now() + 240, "jti": format!("j{number}"),
        })
    }

    pub fn header(&self) -> Value {
        json!({ "alg": self.key.alg(), "kid": "k", "typ": "JWT" })
    }

    /// A good assertion, changed.
    pub fn assertion(&self, change: impl FnOnce(&mut Value, &mut Value)) -> String {
        let (mut header, mut claims) = (self.header(), self.claims());
        change(&mut header, &mut claims);
        self.key.jwt(&header, &claims)
    }

    pub async fn post(&self, path: &str, headers: &[&str], fields: &[(&str, &str)]) -> Answer {
        let form: Vec<String> =
            fields.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
        let mut lines = vec!["content-type: application/x-www-form-urlencoded"];
        lines.extend(headers);
        self.world.send(request("POST", path, &lines, Body::from(form.join("&")))).await
    }

    /// A token request with this assertion.
    pub async fn request_token(&self, assertion: &str, scope: &str) -> Answer {
        self.post("/auth/token", &[], &token_form(assertion, scope)).await
    }

    /// A token of the client `app`.
    pub async fn token(&self, scope: &str) -> String {
        let answer = self.request_token(&self.assertion(|_, _| {}), scope).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["access_token"].as_str().unwrap().to_owned()
    }

    /// A token of any client that has the same key.
    pub async fn token_of(&self, client: &str, scope: &str) -> String {
        let assertion = self.assertion(|_, claims| {
            claims["iss"] = json!(client);
            claims["sub"] = json!(client);
        });
        let answer = self.request_token(&assertion, scope).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["access_token"].as_str().unwrap().to_owned()
    }

    /// A second client with the same key.
    pub fn add_twin(&self, id: &str) {
        self.add(client(id, ClientKeys::Document(jwks(&[self.key.jwk("k")]))));
    }

    pub async fn ask(&self, method: &str, path: &str, token: &str) -> Answer {
        let bearer = format!("authorization: Bearer {token}");
        let lines = ["accept: application/fhir+json", "prefer: respond-async", &bearer];
        self.world.ask(method, path, &lines).await
    }
}

pub fn token_form<'a>(assertion: &'a str, scope: &'a str) -> [(&'static str, &'a str); 4] {
    [
        ("grant_type", "client_credentials"),
        ("scope", scope),
        ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
        ("client_assertion", assertion),
    ]
}

pub fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| {
            let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            if plain { char::from(byte).to_string() } else { format!("%{byte:02X}") }
        })
        .collect()
}

/// Whether an answer is this error of OAuth.
pub fn is_error(answer: &Answer, status: u16, code: &str) -> bool {
    let json = answer.json();
    answer.status.as_u16() == status
        && json["error"] == code
        && json["error_description"].as_str().is_some_and(|text| !text.is_empty())
        && answer.header("cache-control") == "no-store"
        && answer.header("pragma") == "no-cache"
        && answer.header("content-type") == "application/json"
}
