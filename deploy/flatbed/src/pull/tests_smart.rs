//! A pull from a server that gives tokens by SMART Backend Services and believes nothing: every assertion is verified as
//! the standard says, every request needs a token that has not expired.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response};
use axum::middleware::{Next, from_fn_with_state};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::*;
use crate::jwk::{self, Algorithm, SigningJwk};

/// How long tokens live here.
const LIFE: Duration = Duration::from_secs(2);

struct Server {
    base: String,
    public: Value,
    capabilities: Vec<&'static str>,
    /// Answers of the token endpoint before it gives a token.
    refusals: Mutex<Vec<(u16, Value)>>,
    /// Tokens, and until when they are good.
    tokens: Mutex<HashMap<String, Instant>>,
    jtis: Mutex<HashSet<String>>,
    scopes: Mutex<Vec<String>>,
    polls: Mutex<u32>,
    /// The token that is forgotten before its time.
    forgets: Option<&'static str>,
}

type Shared = Arc<Server>;

fn answer(status: u16, body: impl Into<Body>) -> Response<Body> {
    Response::builder().status(status).body(body.into()).unwrap()
}

async fn discovery(State(server): State<Shared>) -> Response<Body> {
    let document =
        json!({"token_endpoint": format!("{}/auth/token", server.base), "capabilities": server.capabilities});
    answer(200, document.to_string())
}

/// Verifies an assertion; the claims.
fn verified(server: &Server, assertion: &str) -> Value {
    let (signed, signature) = assertion.rsplit_once('.').unwrap();
    let (header, claims) = signed.split_once('.').unwrap();
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let json = |text: &str| serde_json::from_slice::<Value>(&decode(text)).unwrap();
    let member = |name: &str| decode(server.public[name].as_str().unwrap());
    let point = [vec![4], member("x"), member("y")].concat();
    let key = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point);
    assert!(key.verify(signed.as_bytes(), &decode(signature)).is_ok());
    assert_eq!(json(header), json!({"alg": "ES384", "typ": "JWT", "kid": server.public["kid"]}));
    json(claims)
}

async fn token(State(server): State<Shared>, headers: HeaderMap, body: String) -> Response<Body> {
    assert_eq!(headers["content-type"], "application/x-www-form-urlencoded");
    assert!(!headers.contains_key("authorization"));
    let form: HashMap<String, String> =
        Url::parse(&format!("x:?{body}")).unwrap().query_pairs().into_owned().collect();
    assert_eq!(form["grant_type"], "client_credentials");
    assert_eq!(form["client_assertion_type"], "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
    let claims = verified(&server, &form["client_assertion"]);
    assert_eq!((&claims["iss"], &claims["sub"]), (&json!("aco-17"), &json!("aco-17")));
    assert_eq!(claims["aud"], format!("{}/auth/token", server.base));
    let left = claims["exp"].as_i64().unwrap() - jiff::Timestamp::now().as_second();
    assert!((1..=300).contains(&left), "{left}");
    let jti = claims["jti"].as_str().unwrap().to_owned();
    assert!(server.jtis.lock().unwrap().insert(jti), "a jti comes twice");
    server.scopes.lock().unwrap().push(form["scope"].clone());
    let refusal = server.refusals.lock().unwrap().pop();
    if let Some((status, body)) = refusal {
        return answer(status, body.to_string());
    }
    let mut tokens = server.tokens.lock().unwrap();
    let name = format!("token-{}", tokens.len() + 1);
    tokens.insert(name.clone(), Instant::now() + LIFE);
    let body =
        json!({"access_token": name, "token_type": "bearer", "expires_in": LIFE.as_secs(), "scope": "x"});
    answer(200, body.to_string())
}

async fn guard(State(server): State<Shared>, request: Request, next: Next) -> Response<Body> {
    let bearer = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let token = bearer.and_then(|bearer| bearer.strip_prefix("Bearer ")).unwrap_or_default().to_owned();
    let until = server.tokens.lock().unwrap().get(&token).copied();
    if until.is_none_or(|until| until <= Instant::now()) || server.forgets == Some(token.as_str()) {
        return answer(401, "");
    }
    next.run(request).await
}

async fn status(State(server): State<Shared>) -> Response<Body> {
    let mut polls = server.polls.lock().unwrap();
    *polls += 1;
    if *polls <= 4 {
        return Response::builder().status(202).header("Retry-After", "1").body(Body::empty()).unwrap();
    }
    let output = json!([{"type": "Patient", "url": format!("{}/files/1", server.base), "count": 1}]);
    let manifest = json!({
        "transactionTime": "2026-01-01T00:00:00.000Z", "request": "r", "requiresAccessToken": true,
        "output": output, "error": [],
    });
    answer(200, manifest.to_string())
}

struct Fixture {
    server: Shared,
    options: PullOptions,
    _folder: tempfile::TempDir,
}

async fn fixture(change: impl FnOnce(&mut Server), scopes: Scopes) -> Fixture {
    let made = jwk::make(Algorithm::Es384).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let mut server = Server {
        base: base.clone(),
        public: made.public,
        capabilities: vec!["client-confidential-asymmetric", "permission-v2"],
        refusals: Mutex::default(),
        tokens: Mutex::default(),
        jtis: Mutex::default(),
        scopes: Mutex::default(),
        polls: Mutex::default(),
        forgets: None,
    };
    change(&mut server);
    let server = Arc::new(server);
    let kick_off = || async {
        Response::builder().status(202).header("Content-Location", "/status/1").body(Body::empty()).unwrap()
    };
    let file = || async { answer(200, "{\"resourceType\":\"Patient\",\"id\":\"1\"}\n") };
    let router = Router::new()
        .route("/fhir/$export", get(kick_off))
        .route("/status/1", get(status))
        .route("/files/1", get(file))
        .layer(from_fn_with_state(server.clone(), guard))
        .route("/fhir/.well-known/smart-configuration", get(discovery))
        .route("/auth/token", post(token))
        .with_state(server.clone());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let folder = tempfile::tempdir().unwrap();
    let retries =
        Retries { attempts: 3, first: Duration::from_millis(5), longest: Duration::from_millis(20) };
    let key = SigningJwk::read(made.private.to_string().as_bytes()).unwrap();
    let fhir: Url = format!("{base}/fhir").parse().unwrap();
    let smart = Smart::new(fhir, "aco-17".to_owned(), key, scopes, retries).unwrap();
    let options = PullOptions {
        kick_off: KickOff { url: format!("{base}/fhir/$export").parse().unwrap(), body: None },
        out: folder.path().join("out"),
        parallel: 2,
        token: TokenSource::Smart(Arc::new(smart)),
        retries,
        delete_after: false,
    };
    Fixture { server, options, _folder: folder }
}

struct Quiet;
impl PullObserver for Quiet {}

#[tokio::test]
async fn tokens_are_renewed_before_they_expire_each_with_an_assertion_of_its_own() {
    let fixture = fixture(|_| {}, Scopes::Types(Vec::new())).await;
    let report = run(&fixture.options, &Quiet).await.unwrap();
    assert_eq!(report.files.iter().map(|file| file.lines).sum::<u64>(), 1);
    let tokens = fixture.server.tokens.lock().unwrap().len();
    assert!((3..=6).contains(&tokens), "{tokens} tokens of two seconds in more than four");
    assert!(fixture.server.scopes.lock().unwrap().iter().all(|scope| scope == "system/*.rs"));
}

#[tokio::test]
async fn servers_of_the_first_version_are_asked_in_their_words() {
    let types = Scopes::Types(vec!["Patient".to_owned(), "Group".to_owned()]);
    let fixture = fixture(|server| server.capabilities = vec!["permission-v1"], types).await;
    run(&fixture.options, &Quiet).await.unwrap();
    assert_eq!(fixture.server.scopes.lock().unwrap()[0], "system/Patient.read system/Group.read");
}

#[tokio::test]
async fn a_token_that_the_server_forgot_is_replaced_once() {
    let fixture = fixture(|server| server.forgets = Some("token-1"), Scopes::Types(Vec::new())).await;
    run(&fixture.options, &Quiet).await.unwrap();
    assert!(fixture.server.tokens.lock().unwrap().len() >= 2);
}

#[tokio::test]
async fn what_the_server_says_of_a_refusal_is_told_and_trouble_that_passes_is_waited_for() {
    let refused = json!({"error": "invalid_client", "error_description": "unknown\u{1b}[2J client"});
    let body = refused.clone();
    let fixture_refused =
        fixture(move |server| server.refusals = Mutex::new(vec![(400, body)]), Scopes::Types(Vec::new()))
            .await;
    let error = format!("{:#}", run(&fixture_refused.options, &Quiet).await.unwrap_err());
    assert!(error.contains("invalid_client: unknown[2J client"), "{error}");
    assert!(!error.contains("eyJ"), "no assertion in what people see: {error}");
    let passing = vec![(503, json!({})), (429, json!({}))];
    let given = Scopes::Given("system/Patient.rs".to_owned());
    let fixture_busy = fixture(move |server| server.refusals = Mutex::new(passing), given).await;
    run(&fixture_busy.options, &Quiet).await.unwrap();
    assert_eq!(fixture_busy.server.scopes.lock().unwrap()[2], "system/Patient.rs");
}
