//! Metadata of every kind.

use proptest::prelude::*;

use super::*;

fn number(len: usize) -> String {
    URL_SAFE_NO_PAD.encode(vec![0xff; len])
}

fn ec() -> Value {
    json!({ "kty": "EC", "crv": "P-384", "kid": "e", "x": number(48), "y": number(48) })
}

/// Good metadata, changed.
fn body(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut metadata = json!({
        "client_name": "Example ACO",
        "jwks": { "keys": [ec()] },
        "token_endpoint_auth_method": "private_key_jwt",
        "grant_types": ["client_credentials"],
        "scope": "system/Patient.rs system/Group.rs",
        "contacts": ["ops@aco.example"],
        "software_id": "puller",
        "software_version": "1.2",
    });
    change(&mut metadata);
    metadata.to_string().into_bytes()
}

fn read(change: impl FnOnce(&mut Value)) -> Result<Metadata, RegistrationError> {
    Metadata::read(&body(change))
}

fn id() -> ClientId {
    "client_1".parse().unwrap()
}

#[test]
fn rg_01_rg_02_what_is_said_is_what_is_registered() {
    let record = read(|_| {}).unwrap().register(id(), hash_of("t"), Instant::from_millis(1_700));
    assert_eq!(record.check(), Ok(()));
    assert!(record.is_waiting() && record.scopes.is_empty(), "RG-05");
    let said = record.registration.as_deref().unwrap();
    let told = described(&record, said, "https://a.example/auth/register", "t");
    for (name, value) in [
        ("client_id", json!("client_1")),
        ("client_id_issued_at", json!(1)),
        ("client_name", json!("Example ACO")),
        ("jwks", json!({ "keys": [ec()] })),
        ("token_endpoint_auth_method", json!("private_key_jwt")),
        ("grant_types", json!(["client_credentials"])),
        ("scope", json!("system/Group.rs system/Patient.rs")),
        ("approved_scope", json!("")),
        ("contacts", json!(["ops@aco.example"])),
        ("software_id", json!("puller")),
        ("software_version", json!("1.2")),
        ("registration_client_uri", json!("https://a.example/auth/register/client_1")),
        ("registration_access_token", json!("t")),
    ] {
        assert_eq!(told[name], value, "{name}");
    }
    assert!(told.get("client_secret").is_none() && told.get("jwks_uri").is_none());
    assert!(is_token("t", &said.token) && !is_token("u", &said.token) && !is_token("", &said.token));
}

#[test]
fn rg_01_what_may_be_left_out() {
    for name in
        ["token_endpoint_auth_method", "grant_types", "contacts", "software_id", "software_version", "scope"]
    {
        let without = read(|metadata| drop(metadata.as_object_mut().unwrap().remove(name)));
        assert!(without.is_ok(), "{name}");
        assert_eq!(read(|metadata| metadata[name] = Value::Null), without, "{name}: null is not there");
    }
    assert!(read(|metadata| metadata["client_uri"] = json!(7)).is_ok(), "what is not known is ignored");
    assert!(read(|metadata| metadata["redirect_uris"] = json!(["https://a.example/x"])).is_ok());
    let more = read(|metadata| metadata["grant_types"] = json!(["client_credentials", "refresh_token"]));
    assert!(more.is_ok(), "what else is wanted is not registered");
}

#[test]
fn rg_03_au_23_au_25_each_fault_is_named() {
    let code = |change: &dyn Fn(&mut Value)| read(change).unwrap_err();
    let table: [(&str, &str, Value, &str); 25] = [
        ("jwks_uri", "invalid_client_metadata", json!("https://a.example/jwks"), "exclude each other"),
        ("grant_types", "invalid_client_metadata", json!(["password"]), "client_credentials"),
        ("grant_types", "invalid_client_metadata", json!("client_credentials"), "a list of texts"),
        ("token_endpoint_auth_method", "invalid_client_metadata", json!("none"), "private_key_jwt"),
        ("token_endpoint_auth_signing_alg", "invalid_client_metadata", json!("HS256"), "RS384 or ES384"),
        ("client_name", "invalid_client_metadata", json!(""), "client_name"),
        ("client_name", "invalid_client_metadata", json!("a\u{1b}b"), "client_name"),
        ("client_name", "invalid_client_metadata", json!("x".repeat(257)), "client_name"),
        ("scope", "invalid_client_metadata", json!("openid user/*.read"), "scope names none"),
        ("scope", "invalid_client_metadata", json!(["system/*.rs"]), "scope is a text"),
        ("contacts", "invalid_client_metadata", json!("a"), "contacts"),
        ("contacts", "invalid_client_metadata", json!(vec!["a"; 9]), "contacts"),
        ("software_id", "invalid_client_metadata", json!("x".repeat(257)), "software_id"),
        ("redirect_uris", "invalid_redirect_uri", json!(["here"]), "absolute"),
        ("redirect_uris", "invalid_redirect_uri", json!(["https://a.example/#x"]), "fragments"),
        ("redirect_uris", "invalid_redirect_uri", json!("https://a.example/"), "a list"),
        ("software_statement", "unapproved_software_statement", json!("YQ.YQ.YQ"), "trusted from nobody"),
        ("software_statement", "invalid_software_statement", json!("a.b"), "no JWT"),
        ("software_statement", "invalid_software_statement", json!(7), "no JWT"),
        ("jwks", "invalid_client_metadata", json!({ "keys": [] }), "jwks: "),
        ("jwks", "invalid_client_metadata", json!("text"), "jwks: "),
        ("jwks", "invalid_client_metadata", json!({ "keys": [{ "kty": "EC", "crv": "P-384" }] }), "key 1"),
        (
            "jwks",
            "invalid_client_metadata",
            json!({ "keys": [{ "kty": "RSA", "kid": "r", "n": number(128), "e": "AQAB" }] }),
            "2048",
        ),
        (
            "jwks",
            "invalid_client_metadata",
            json!({ "keys": [{ "kty": "EC", "crv": "P-384", "kid": "e", "x": number(48), "y": number(48), "d": "c2VjcmV0" }] }),
            "key 1 is private",
        ),
        (
            "jwks",
            "invalid_client_metadata",
            json!({ "keys": [{ "kty": "oct", "kid": "o", "k": "c2VjcmV0" }] }),
            "key 1",
        ),
    ];
    for (name, expected, value, said) in table {
        let error = code(&|metadata| metadata[name] = value.clone());
        assert_eq!(error.code(), expected, "{name}: {value}");
        assert_eq!(error.status(), 400);
        let told = error.json()["error_description"].as_str().unwrap().to_owned();
        assert!(told.contains(said) && !told.contains("c2VjcmV0"), "{name}: {told}");
    }
    let neither = code(&|metadata| drop(metadata.as_object_mut().unwrap().remove("jwks")));
    assert!(neither.to_string().contains("one of jwks and jwks_uri"));
    for wrong in ["http://a.example/jwks", "https://u:p@a.example/jwks", "https://a.example/#x", "jwks", ""] {
        let error = code(&|metadata| {
            drop(metadata.as_object_mut().unwrap().remove("jwks"));
            metadata["jwks_uri"] = json!(wrong);
        });
        assert!(error.to_string().contains("jwks_uri"), "{wrong}: {error}");
    }
    for wrong in [&b"[]"[..], b"", b"{", b"\xff", b"7"] {
        assert!(Metadata::read(wrong).is_err());
    }
}

#[test]
fn scopes_that_are_asked_for_are_cut_to_what_can_be_had() {
    let asked = |scope: &str| read(|metadata| metadata["scope"] = json!(scope)).map(|found| found.scopes);
    assert_eq!(asked("system/*.cruds openid").as_deref(), Ok("system/*.rs system/Group.cruds"));
    assert_eq!(asked("system/*.read").as_deref(), Ok("system/*.read"));
    assert_eq!(asked("  ").as_deref(), Ok(""));
    assert!(asked("system/Observation.rs?category=lab").is_err());
    assert!(asked("system/Patient.cud").is_err(), "nothing of that is granted to anybody");
}

#[test]
fn rfc_7592_a_change_replaces_all_and_widens_nothing() {
    let record = read(|_| {}).unwrap().register(id(), hash_of("t"), Instant::from_millis(1_700));
    let said = record.registration.clone().unwrap();
    let approved = ClientRecord { scopes: "system/Patient.rs".to_owned(), version: 7, ..record };
    let changed = |change: &dyn Fn(&mut Value)| {
        let full = body(|metadata| {
            metadata["client_id"] = json!("client_1");
            change(metadata);
        });
        Metadata::read_update(&full, &id()).map(|metadata| metadata.replace(&approved, &said))
    };
    let wider = changed(&|metadata| metadata["scope"] = json!("system/*.cruds")).unwrap();
    assert_eq!(wider.scopes, "system/Patient.rs");
    assert_eq!(wider.requested_scopes, "system/*.rs system/Group.cruds");
    assert_eq!((wider.version, wider.origin), (7, ClientOrigin::Registration));
    let kept = wider.registration.as_deref().unwrap();
    assert_eq!((kept.issued, kept.token), (said.issued, said.token));
    let other = changed(&|metadata| metadata["scope"] = json!("system/Group.rs")).unwrap();
    assert_eq!(other.scopes, "", "what it does not ask for any more it does not keep");
    let silent = changed(&|metadata| drop(metadata.as_object_mut().unwrap().remove("scope"))).unwrap();
    assert_eq!((silent.scopes.as_str(), silent.requested_scopes.as_str()), ("system/Patient.rs", ""));
    let bare = changed(&|metadata| drop(metadata.as_object_mut().unwrap().remove("contacts"))).unwrap();
    assert!(bare.registration.unwrap().contacts.is_empty(), "what is left out is gone");
    for (name, value) in [
        ("client_id", json!("client_2")),
        ("client_id", Value::Null),
        ("client_secret", json!("x")),
        ("registration_access_token", json!("t")),
        ("client_id_issued_at", json!(1)),
    ] {
        assert!(changed(&|metadata| metadata[name] = value.clone()).is_err(), "{name}");
    }
}

/// Any JSON that is not too deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
        prop_oneof![Just("client_credentials"), Just("https://a.example/jwks"), Just("system/*.rs")]
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let name = prop_oneof!["[a-z_]{1,6}", Just("keys".to_owned()), Just("kty".to_owned())];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(name, inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn nothing_that_is_sent_panics_and_what_is_taken_fits_a_record(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
        name in prop_oneof![
            Just("client_name"), Just("jwks"), Just("jwks_uri"), Just("scope"), Just("contacts"), Just("grant_types"),
            Just("software_id"), Just("software_statement"), Just("redirect_uris"), Just("response_types"),
        ],
        value in any_json(),
        scope in "(system/[A-Za-z*]{1,8}\\.[a-z*]{1,6} ?){0,5}",
    ) {
        let _ = Metadata::read(&bytes);
        for change in [(name, value), ("scope", json!(scope))] {
            if let Ok(metadata) = read(|metadata| metadata[change.0] = change.1) {
                let record = metadata.register(id(), hash_of("t"), Instant::from_millis(0));
                prop_assert!(record.check().is_ok() && record.is_waiting());
            }
        }
    }

    /// Whatever is asked for, in whatever order, nothing is held that no operator approved.
    #[test]
    fn rg_05_asking_never_adds_to_what_is_held(
        approved in "system/(Patient|Group|\\*)\\.(rs|r|cruds|read)",
        asked in "(system/(Patient|Group|Encounter|\\*)\\.(rs|cruds|read|s) ?){1,3}",
    ) {
        let record = read(|_| {}).unwrap().register(id(), hash_of("t"), Instant::from_millis(0));
        let said = record.registration.clone().unwrap();
        let held = ClientRecord { scopes: approved.clone(), ..record };
        if let Ok(metadata) = read(|metadata| metadata["scope"] = json!(asked)) {
            let after = metadata.replace(&held, &said).scopes;
            let approved = Scopes::read(&approved).unwrap();
            if let Ok(after) = Scopes::read(&after) {
                for of in flatbed_types::ResourceType::all() {
                    prop_assert!(approved.rights(of).cover(after.rights(of)));
                }
            }
        }
    }
}
