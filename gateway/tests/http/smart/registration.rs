//! Dynamic registration: by invitation, without rights until an operator approves, and changed by whoever registered only.

use flatbed_gateway::auth::registration::hash_of;
use flatbed_gateway::auth::registry::{Registered, Registry};
use flatbed_gateway::trust_client::Removal;
use flatbed_types::registration::SecretHash;

use super::*;

const REGISTER: &str = "/auth/register";
const INVITED: &str = "authorization: Bearer invitation";

#[derive(Default)]
struct Records {
    clients: BTreeMap<ClientId, ClientRecord>,
    /// Invitations, and how often they may still be used.
    invitations: BTreeMap<SecretHash, u32>,
    full: bool,
    down: bool,
}

/// A registry in this process, in front of what the gateway asks for tokens.
struct FakeRegistry {
    records: Mutex<Records>,
    trust: Arc<FakeTrust>,
}

impl FakeRegistry {
    fn asked(&self) -> Result<std::sync::MutexGuard<'_, Records>, TrustUnavailable> {
        let records = self.records.lock().unwrap();
        if records.down { Err(TrustUnavailable) } else { Ok(records) }
    }

    fn store(&self, records: &mut Records, record: ClientRecord) -> ClientRecord {
        let record = ClientRecord { version: record.version + 1, ..record };
        self.trust.0.lock().unwrap().clients.insert(record.id.clone(), record.clone());
        records.clients.insert(record.id.clone(), record.clone());
        record
    }
}

#[async_trait]
impl Registry for FakeRegistry {
    async fn is_invited(&self, token: &SecretHash) -> Result<bool, TrustUnavailable> {
        Ok(self.asked()?.invitations.get(token).is_some_and(|uses| *uses > 0))
    }

    async fn register(
        &self,
        client: &ClientRecord,
        token: &SecretHash,
    ) -> Result<Registered, TrustUnavailable> {
        let mut records = self.asked()?;
        if records.full {
            return Ok(Registered::TooManyWait);
        }
        match records.invitations.get_mut(token) {
            Some(uses) if *uses > 0 => *uses -= 1,
            _ => return Ok(Registered::NotInvited),
        }
        assert!(client.is_waiting() && client.check().is_ok() && client.version == 0);
        Ok(Registered::Done(Box::new(self.store(&mut records, client.clone()))))
    }

    async fn record(&self, id: &ClientId) -> Result<Option<ClientRecord>, TrustUnavailable> {
        Ok(self.asked()?.clients.get(id).cloned())
    }

    async fn replace(&self, client: &ClientRecord) -> Result<Option<ClientRecord>, TrustUnavailable> {
        let mut records = self.asked()?;
        let is_known = records.clients.get(&client.id).is_some_and(|known| known.version == client.version);
        Ok(is_known.then(|| self.store(&mut records, client.clone())))
    }

    async fn remove(&self, id: &ClientId, version: u64) -> Result<Removal, TrustUnavailable> {
        let mut records = self.asked()?;
        match records.clients.get(id) {
            None => return Ok(Removal::NotFound),
            Some(known) if known.version != version => return Ok(Removal::Changed),
            Some(_) => {}
        }
        records.clients.remove(id);
        self.trust.0.lock().unwrap().clients.remove(id);
        Ok(Removal::Done)
    }
}

pub struct Desk {
    pub smart: Smart,
    registry: Arc<FakeRegistry>,
}

impl Desk {
    /// With the invitation `invitation` for this many clients.
    async fn new(uses: u32) -> Desk {
        Desk::with(uses, options()).await
    }

    async fn with(uses: u32, options: GatewayOptions) -> Desk {
        Desk::recorded(uses, options, None).await
    }

    /// With a record of what is done.
    pub async fn recorded(uses: u32, options: GatewayOptions, audit: Option<AuditLog>) -> Desk {
        let mut made = None;
        let smart = Smart::over(JwksOptions::default(), options, |gateway, trust| {
            let records =
                Records { invitations: [(hash_of("invitation"), uses)].into(), ..Records::default() };
            let registry = Arc::new(FakeRegistry { records: Mutex::new(records), trust: Arc::clone(trust) });
            made = Some(Arc::clone(&registry));
            let gateway = gateway.with_registration(registry);
            match audit {
                Some(log) => gateway.with_audit(log),
                None => gateway,
            }
        })
        .await;
        Desk { smart, registry: made.unwrap() }
    }

    pub fn metadata(&self) -> Value {
        json!({
            "client_name": "Example ACO",
            "jwks": { "keys": [self.smart.key.jwk("k")] },
            "token_endpoint_auth_method": "private_key_jwt",
            "grant_types": ["client_credentials"],
            "scope": "system/Patient.rs",
            "contacts": ["ops@aco.example"],
            "software_id": "puller",
            "software_version": "1.2",
        })
    }

    async fn send(&self, method: &str, path: &str, headers: &[&str], body: &Value) -> Answer {
        let lines = [&["content-type: application/json"], headers].concat();
        self.smart.world.send(request(method, path, &lines, Body::from(body.to_string()))).await
    }

    /// Registers a client with the invitation.
    pub async fn register(&self, change: impl FnOnce(&mut Value)) -> Answer {
        let mut metadata = self.metadata();
        change(&mut metadata);
        self.send("POST", REGISTER, &[INVITED], &metadata).await
    }

    /// A client that is registered: its id and its token.
    async fn registered(&self) -> (String, String) {
        let answer = self.register(|_| {}).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let json = answer.json();
        let text = |name: &str| json[name].as_str().unwrap().to_owned();
        (text("client_id"), text("registration_access_token"))
    }

    /// What an operator does.
    fn approve(&self, client: &str, scopes: &str) {
        let mut records = self.registry.records.lock().unwrap();
        let known = records.clients[&client.parse().unwrap()].clone();
        let approved = ClientRecord { scopes: scopes.to_owned(), groups: GroupGrant::All, ..known };
        let levels = flatbed_types::trust::LevelGrant { system: true, patient: true, group: true };
        self.registry.store(&mut records, ClientRecord { levels, ..approved });
    }

    async fn request_token(&self, client: &str, scope: &str) -> Answer {
        let assertion = self.smart.assertion(|_, claims| {
            claims["iss"] = json!(client);
            claims["sub"] = json!(client);
        });
        self.smart.request_token(&assertion, scope).await
    }

    pub async fn own(&self, method: &str, client: &str, token: &str, body: &Value) -> Answer {
        let bearer = format!("authorization: Bearer {token}");
        self.send(method, &format!("{REGISTER}/{client}"), &[&bearer], body).await
    }
}

/// Whether this is a refusal of OAuth for want of a token.
fn is_refused(answer: &Answer) -> bool {
    is_error(answer, 401, "invalid_token") && answer.header("www-authenticate").starts_with("Bearer")
}

#[tokio::test]
async fn rg_01_rg_02_au_24_a_client_registers_itself() {
    let desk = Desk::new(2).await;
    let answer = desk.register(|_| {}).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!((answer.header("cache-control"), answer.header("pragma")), ("no-store", "no-cache"));
    assert_eq!(answer.header("content-type"), "application/json");
    let told = answer.json();
    let sent = desk.metadata();
    for (name, value) in sent.as_object().unwrap() {
        assert_eq!(&told[name], value, "{name}");
    }
    let id = told["client_id"].as_str().unwrap();
    let issued = desk.smart.now();
    assert_eq!(told["client_id_issued_at"], issued);
    assert_eq!(told["registration_client_uri"], format!("https://example.org/auth/register/{id}"));
    assert!(told["registration_access_token"].as_str().unwrap().len() > 40);
    assert!(told.get("client_secret").is_none(), "clients have keys");
    let (other, token) = desk.registered().await;
    assert_ne!(other, id);
    let records = desk.registry.records.lock().unwrap();
    let kept = format!("{:?}", records.clients);
    assert!(!kept.contains(&token), "tokens are kept as hashes");
}

#[tokio::test]
async fn au_20_keys_may_be_a_document_or_an_address() {
    let desk = Desk::new(2).await;
    let by_url = desk
        .register(|metadata| {
            metadata.as_object_mut().unwrap().remove("jwks");
            metadata["jwks_uri"] = json!("https://8.8.8.8/jwks");
        })
        .await;
    assert_eq!(by_url.status, 201, "{by_url:?}");
    assert_eq!(by_url.json()["jwks_uri"], "https://8.8.8.8/jwks");
    let (id, _) = desk.registered().await;
    desk.approve(&id, "system/Patient.rs");
    assert_eq!(desk.request_token(&id, "system/Patient.rs").await.status, 200);
}

#[tokio::test]
async fn rg_03_au_21_au_23_au_25_au_26_what_is_wrong_is_refused_and_uses_nothing_up() {
    let desk = Desk::new(1).await;
    let secret = json!({ "keys": [{ "kty": "oct", "kid": "o", "k": "c2VjcmV0" }] });
    let unnamed = {
        let mut jwk = desk.smart.key.jwk("k");
        jwk.as_object_mut().unwrap().remove("kid");
        json!({ "keys": [jwk] })
    };
    for (name, value, code) in [
        ("jwks_uri", json!("https://8.8.8.8/jwks"), "invalid_client_metadata"),
        ("grant_types", json!(["password"]), "invalid_client_metadata"),
        ("token_endpoint_auth_method", json!("client_secret_basic"), "invalid_client_metadata"),
        ("jwks", secret, "invalid_client_metadata"),
        ("jwks", unnamed, "invalid_client_metadata"),
        ("client_name", json!(null), "invalid_client_metadata"),
        ("redirect_uris", json!(["not a URI"]), "invalid_redirect_uri"),
        ("software_statement", json!("YQ.YQ.YQ"), "unapproved_software_statement"),
        ("software_statement", json!("nonsense"), "invalid_software_statement"),
    ] {
        let answer = desk.register(|metadata| metadata[name] = value.clone()).await;
        assert!(is_error(&answer, 400, code), "{name} {value}: {answer:?}");
    }
    for address in [
        "http://8.8.8.8/jwks",
        "https://127.0.0.1/jwks",
        "https://[::1]/jwks",
        "https://169.254.169.254/latest/meta-data",
        "https://10.0.0.1/jwks",
        "https://localhost/jwks",
    ] {
        let answer = desk
            .register(|metadata| {
                metadata.as_object_mut().unwrap().remove("jwks");
                metadata["jwks_uri"] = json!(address);
            })
            .await;
        assert!(is_error(&answer, 400, "invalid_client_metadata"), "{address}: {answer:?}");
    }
    let form = request("POST", REGISTER, &[INVITED], Body::from(desk.metadata().to_string()));
    assert!(is_error(&desk.smart.world.send(form).await, 400, "invalid_client_metadata"), "no media type");
    let long = desk.register(|metadata| metadata["x"] = json!("x".repeat(200 << 10))).await;
    assert_eq!(long.status, 413);
    assert_eq!(desk.register(|_| {}).await.status, 201, "the invitation is still good");
}

#[tokio::test]
async fn rg_04_without_an_open_invitation_nobody_registers() {
    let desk = Desk::new(1).await;
    let metadata = desk.metadata();
    let bare = desk.send("POST", REGISTER, &[], &metadata).await;
    assert!(is_refused(&bare) && bare.header("www-authenticate") == "Bearer", "{bare:?}");
    for header in ["authorization: Bearer other", "authorization: Basic YTpi", "authorization: Bearer "] {
        assert!(is_refused(&desk.send("POST", REGISTER, &[header], &metadata).await), "{header}");
    }
    // Whoever is not invited is not told what is wrong with the rest.
    assert!(is_refused(&desk.send("POST", REGISTER, &[], &json!({})).await));
    let access = format!("authorization: Bearer {}", desk.smart.token("system/*.rs").await);
    assert!(is_refused(&desk.send("POST", REGISTER, &[&access], &metadata).await), "no access token");
    let in_url = desk.send("POST", "/auth/register?access_token=invitation", &[], &metadata).await;
    assert!(is_refused(&in_url));
    assert_eq!(desk.register(|_| {}).await.status, 201);
    assert!(is_refused(&desk.register(|_| {}).await), "it was good for one");
    assert_eq!(desk.registry.records.lock().unwrap().clients.len(), 1);
}

#[tokio::test]
async fn rg_05_a_new_client_has_nothing_until_an_operator_approves() {
    let desk = Desk::new(1).await;
    let (id, token) = desk.registered().await;
    let early = desk.request_token(&id, "system/Patient.rs").await;
    assert!(is_error(&early, 400, "invalid_scope"), "{early:?}");
    let shown = desk.own("GET", &id, &token, &Value::Null).await.json();
    assert_eq!((&shown["scope"], &shown["approved_scope"]), (&json!("system/Patient.rs"), &json!("")));
    desk.approve(&id, "system/Patient.rs");
    let answer = desk.request_token(&id, "system/*.rs").await;
    assert_eq!((answer.status.as_u16(), answer.json()["scope"].clone()), (200, json!("system/Patient.rs")));
    let access = answer.json()["access_token"].as_str().unwrap().to_owned();
    assert_eq!(desk.smart.ask("GET", "/fhir/$export?_type=Patient", &access).await.status, 202);
    let shown = desk.own("GET", &id, &token, &Value::Null).await.json();
    assert_eq!(shown["approved_scope"], "system/Patient.rs");
}

#[tokio::test]
async fn rfc_7592_a_client_reads_and_changes_its_registration() {
    let desk = Desk::new(1).await;
    let (id, token) = desk.registered().await;
    desk.approve(&id, "system/Patient.rs");
    let read = desk.own("GET", &id, &token, &Value::Null).await;
    assert_eq!((read.status.as_u16(), read.header("cache-control")), (200, "no-store"));
    assert_eq!(read.json()["registration_access_token"], token.as_str());
    let new_key = Key::ec();
    let changed = json!({
        "client_id": id,
        "client_name": "Example ACO, east",
        "jwks": { "keys": [new_key.jwk("k2")] },
        "scope": "system/*.rs",
    });
    let answer = desk.own("PUT", &id, &token, &changed).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let told = answer.json();
    assert_eq!((&told["client_name"], &told["scope"]), (&changed["client_name"], &changed["scope"]));
    assert_eq!(told["approved_scope"], "system/Patient.rs", "what is asked for is not had");
    assert!(told.get("contacts").is_none(), "what is left out is gone");
    let old = desk.request_token(&id, "system/Patient.rs").await;
    assert!(is_error(&old, 401, "invalid_client"), "the former key is no key any more");
    let mut claims = desk.smart.claims();
    (claims["iss"], claims["sub"]) = (json!(id), json!(id));
    let assertion = new_key.jwt(&json!({ "alg": "ES384", "kid": "k2" }), &claims);
    let granted = desk.smart.request_token(&assertion, "system/*.rs").await;
    assert_eq!(granted.json()["scope"], "system/Patient.rs");
    for (name, value) in [
        ("client_id", json!("another")),
        ("registration_access_token", json!(token)),
        ("client_secret", json!("x")),
        ("jwks", json!({ "keys": [] })),
    ] {
        let mut wrong = changed.clone();
        wrong[name] = value;
        let answer = desk.own("PUT", &id, &token, &wrong).await;
        assert!(is_error(&answer, 400, "invalid_client_metadata"), "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn rfc_7592_a_client_that_removes_itself_is_gone_with_its_tokens() {
    let desk = Desk::new(1).await;
    let (id, token) = desk.registered().await;
    desk.approve(&id, "system/*.rs");
    let access =
        desk.request_token(&id, "system/*.rs").await.json()["access_token"].as_str().unwrap().to_owned();
    assert_eq!(desk.smart.ask("GET", "/fhir/$export", &access).await.status, 202);
    let gone = desk.own("DELETE", &id, &token, &Value::Null).await;
    assert_eq!((gone.status.as_u16(), gone.header("cache-control")), (204, "no-store"));
    // How a token stands is remembered for a second.
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    assert_eq!(desk.smart.ask("GET", "/fhir/$export", &access).await.status, 401);
    assert!(is_error(&desk.request_token(&id, "system/*.rs").await, 401, "invalid_client"));
    for method in ["GET", "DELETE", "PUT"] {
        assert!(is_refused(&desk.own(method, &id, &token, &desk.metadata()).await), "{method}");
    }
}

#[tokio::test]
async fn rfc_7592_nobody_learns_which_clients_there_are() {
    let desk = Desk::new(2).await;
    let (id, token) = desk.registered().await;
    let (other, _) = desk.registered().await;
    let by_operator =
        ClientRecord::new("by-hand".parse().unwrap(), flatbed_types::trust::ClientOrigin::Operator);
    {
        let mut records = desk.registry.records.lock().unwrap();
        desk.registry.store(&mut records, by_operator);
    }
    let mut said = BTreeSet::new();
    for (client, token) in [
        (id.as_str(), "wrong"),
        (other.as_str(), token.as_str()),
        ("by-hand", token.as_str()),
        ("by-hand", ""),
        ("nobody", token.as_str()),
        ("%2F..", token.as_str()),
    ] {
        for method in ["GET", "DELETE", "PUT"] {
            let answer = desk.own(method, client, token, &json!({ "client_id": client })).await;
            assert!(is_refused(&answer), "{method} {client}: {answer:?}");
            if !token.is_empty() {
                said.insert(format!("{:?} {}", answer.headers, answer.json()));
            }
        }
    }
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(desk.own("GET", &id, &token, &Value::Null).await.status, 200);
}

#[tokio::test]
async fn au_11_registration_is_named_and_served_where_it_is_on() {
    const DISCOVERY: &str = "/fhir/.well-known/smart-configuration";
    let desk = Desk::new(1).await;
    let on = &desk.smart.world;
    assert_eq!(
        on.get(DISCOVERY, &[]).await.json()["registration_endpoint"],
        "https://example.org/auth/register"
    );
    let described = on.get("/fhir/openapi.json", &[]).await.json();
    assert!(described["paths"].get(REGISTER).is_some());
    for method in ["GET", "HEAD", "PUT", "DELETE"] {
        assert_eq!(on.ask(method, REGISTER, &[]).await.status, 405, "{method}");
    }
    assert_eq!(on.ask("POST", "/auth/register/x", &[]).await.status, 405);

    let smart = Smart::new().await;
    assert!(smart.world.get(DISCOVERY, &[]).await.json().get("registration_endpoint").is_none());
    let described = smart.world.get("/fhir/openapi.json", &[]).await.json();
    assert!(described["paths"].get(REGISTER).is_none());
    for path in [REGISTER, "/auth/register/x"] {
        assert_eq!(smart.world.ask("POST", path, &[INVITED]).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_registry_that_is_full_or_silent_registers_nobody() {
    let desk = Desk::new(1).await;
    desk.registry.records.lock().unwrap().full = true;
    let full = desk.register(|_| {}).await;
    assert!(
        is_error(&full, 503, "temporarily_unavailable") && full.header("retry-after") == "3600",
        "{full:?}"
    );
    desk.registry.records.lock().unwrap().full = false;
    let (id, token) = desk.registered().await;
    desk.registry.records.lock().unwrap().down = true;
    for answer in [
        desk.register(|_| {}).await,
        desk.own("GET", &id, &token, &Value::Null).await,
        desk.own("PUT", &id, &token, &desk.metadata()).await,
        desk.own("DELETE", &id, &token, &Value::Null).await,
    ] {
        assert!(is_error(&answer, 503, "temporarily_unavailable"), "{answer:?}");
        assert!(!answer.header("retry-after").is_empty());
    }
}
