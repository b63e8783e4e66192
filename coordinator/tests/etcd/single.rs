//! The store over one real etcd: the conformance suite, and what is particular to a server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use flatbed_coordinator::store::{
    Compare, EtcdOptions, EtcdStore, Events, MetaStore, Outcome, Revision, StoreError, Transaction, Write,
    conformance,
};
use futures::StreamExt;
use tokio::time::{Instant, timeout};

use super::servers::Servers;

fn put(key: &str, value: &str) -> Write {
    Write::Put(key.into(), value.into())
}

fn unguarded(writes: Vec<Write>) -> Transaction {
    Transaction { writes, ..Transaction::default() }
}

async fn applied(store: &dyn MetaStore, writes: Vec<Write>) -> Revision {
    match store.txn(unguarded(writes)).await {
        Ok(Outcome::Applied(revision)) => revision,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_conforms() {
    let servers = Servers::start(1);
    let count = AtomicU32::new(0);
    let fresh = || async {
        let number = count.fetch_add(1, Ordering::Relaxed);
        // Without a prefix only once: the first case sees an empty server.
        let prefix = if number == 0 { String::new() } else { format!("case/{number}") };
        let store = servers.open_shared(&prefix).await;
        applied(&*store, vec![Write::DeletePrefix(vec![])]).await;
        store
    };
    let compact = |_: Arc<dyn MetaStore>, revision: Revision| {
        servers.control(0, &["compaction", &revision.to_string()]);
        async {}
    };
    conformance::all(fresh, compact).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prefixes_keep_stores_apart() {
    let servers = Servers::start(1);
    let one = servers.open_shared("a").await;
    let other = servers.open_shared("ab").await;
    let mut watch = one.watch(&[b"".to_vec()], applied(&*one, vec![put("k", "1")]).await).await.unwrap();
    applied(&*other, vec![put("/k", "2"), put("k", "2")]).await;
    let revision = applied(&*one, vec![Write::DeletePrefix(vec![]), put("l", "1")]).await;
    let events = vec![(b"k".to_vec(), None), (b"l".to_vec(), Some(b"1".to_vec()))];
    assert_eq!(watch.next().await.unwrap().unwrap(), Events { revision, events });
    assert_eq!(other.range(b"", None).await.unwrap().1.len(), 2);
    let all = servers.open_shared("").await;
    let keys: Vec<_> = all.range(b"", None).await.unwrap().1.into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, [b"/a/l".to_vec(), b"/ab//k".to_vec(), b"/ab/k".to_vec()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_certainly_without_effect() {
    let servers = Servers::start(1);
    let store = servers.open_shared("x").await;
    let refused = |writes: Vec<Write>| {
        let store = store.clone();
        async move {
            match store.txn(unguarded(writes)).await {
                Err(StoreError::NotApplied(why)) => why,
                other => panic!("{other:?}"),
            }
        }
    };
    let many = |count: u32| (0..count).map(|number| put(&number.to_string(), "v")).collect::<Vec<_>>();
    assert!(refused(many(129)).await.contains("129 operations"));
    let large = vec![Write::Put(b"k".to_vec(), vec![0; 1_700_000])];
    assert!(refused(large).await.contains("too large"));
    applied(&*store, many(128)).await;
    // Split around the puts, one delete is three.
    let mut split = many(126);
    split.insert(0, Write::DeletePrefix(b"2".to_vec()));
    assert!(refused(split).await.contains("operations"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_a_frozen_server_ends_with_an_error() {
    let mut servers = Servers::start(1);
    let store = servers.open_shared("x").await;
    let mut watch = store.watch(&[b"".to_vec()], applied(&*store, vec![put("k", "1")]).await).await.unwrap();
    // It goes on while nothing happens but the server is there.
    assert!(timeout(Duration::from_secs(5), watch.next()).await.is_err(), "silence alone is no error");
    servers.signal(0, "STOP");
    let frozen = Instant::now();
    let ended =
        timeout(Duration::from_secs(10), watch.next()).await.expect("an end").expect("an error first");
    assert!(matches!(ended, Err(StoreError::NotApplied(_))), "{ended:?}");
    eprintln!("a frozen server is noticed by a watch after {:?}", frozen.elapsed());
    assert_eq!(watch.next().await, None);
    let asked = Instant::now();
    assert!(matches!(store.txn(unguarded(vec![put("k", "2")])).await, Err(StoreError::Unknown(_))));
    assert!(asked.elapsed() < Duration::from_secs(3));
    assert!(matches!(store.range(b"", None).await, Err(StoreError::NotApplied(_))));
    servers.signal(0, "CONT");
    let back = Instant::now();
    while store.range(b"", None).await.is_err() {
        assert!(back.elapsed() < Duration::from_secs(10));
    }
    assert!(store.watch(&[b"".to_vec()], 1).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_was_sent_nothing() {
    let mut servers = Servers::start(1);
    let store = servers.open_shared("x").await;
    applied(&*store, vec![put("k", "1")]).await;
    servers.signal(0, "KILL");
    // The first request may find the broken connection, those after it that there is none.
    let mut last = StoreError::LeaseEnded;
    for _ in 0..3 {
        last = store.txn(unguarded(vec![put("k", "2")])).await.expect_err("no server");
    }
    assert!(matches!(&last, StoreError::NotApplied(why) if why.contains("cannot connect")), "{last:?}");
    servers.launch(0);
    let back = Instant::now();
    while store.range(b"", None).await.is_err() {
        assert!(back.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(store.range(b"", None).await.unwrap().1, [(b"k".to_vec(), b"1".to_vec())]);
    let missing = EtcdStore::open("etcd://127.0.0.1:1,127.0.0.1:2", EtcdOptions::default()).await;
    let error = missing.err().expect("nobody is there").to_string();
    assert!(error.contains("http://127.0.0.1:1") && error.contains("http://127.0.0.1:2"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_are_needed_where_the_server_asks_for_them() {
    let servers = Servers::start(1);
    let address = servers.address(&[0], "x");
    drop(servers.open(&address, EtcdOptions::default()).await);
    servers.control(0, &["user", "add", "root:right"]);
    servers.control(0, &["user", "grant-role", "root", "root"]);
    servers.control(0, &["auth", "enable"]);
    let with = |password: &str| EtcdOptions {
        user: Some(("root".to_owned(), password.to_owned())),
        ..EtcdOptions::default()
    };
    let wrong = EtcdStore::open(&address, with("wrong")).await.err().expect("a refusal").to_string();
    assert!(wrong.contains("authentication failed") && !wrong.contains("wrong"), "{wrong}");
    let store = servers.open(&address, with("right")).await;
    let revision = applied(&store, vec![put("k", "1")]).await;
    let mut watch = store.watch(&[b"".to_vec()], revision - 1).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().revision, revision);
    let lease = store.grant_lease(Duration::from_secs(60)).await.unwrap();
    assert_eq!(store.keep_alive(lease).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_and_clients_prove_who_they_are_over_tls() {
    let key = || rcgen::KeyPair::generate().expect("a key");
    let mut authority = rcgen::CertificateParams::new(vec![]).expect("parameters");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = rcgen::CertifiedIssuer::self_signed(authority, key()).expect("an authority");
    let signed = |key: &rcgen::KeyPair| {
        let mut parameters = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
        parameters.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        parameters.signed_by(key, &authority).expect("a certificate").pem()
    };
    let (server, client) = (key(), key());
    let servers = Servers::start_with(1, "https", |folder| {
        let file = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).expect("a file");
            path.display().to_string()
        };
        vec![
            "--cert-file".to_owned(),
            file("server.pem", signed(&server)),
            "--key-file".to_owned(),
            file("server.key", server.serialize_pem()),
            "--trusted-ca-file".to_owned(),
            file("ca.pem", authority.pem()),
            "--client-cert-auth".to_owned(),
        ]
    });
    let address = servers.address(&[0], "x");
    let options = EtcdOptions {
        authorities: Some(authority.pem().into_bytes()),
        identity: Some((signed(&client).into_bytes(), client.serialize_pem().into_bytes())),
        ..EtcdOptions::default()
    };
    let store = servers.open(&address, options.clone()).await;
    applied(&store, vec![put("k", "1")]).await;
    let nobody = EtcdOptions { identity: None, ..options.clone() };
    assert!(EtcdStore::open(&address, nobody).await.is_err(), "no certificate, no entry");
    let stranger =
        rcgen::CertifiedIssuer::self_signed(rcgen::CertificateParams::default(), key()).expect("another");
    let distrusting = EtcdOptions { authorities: Some(stranger.pem().into_bytes()), ..options };
    assert!(EtcdStore::open(&address, distrusting).await.is_err(), "no authority, no trust");
}

/// What a caller may rely on where two copies of a transaction are out: see the store's module.
#[tokio::test(flavor = "multi_thread")]
async fn a_guarded_transaction_applies_once_however_often_it_is_proposed() {
    let servers = Servers::start(1);
    let store = servers.open_shared("x").await;
    applied(&*store, vec![put("f", "0")]).await;
    let transaction = Transaction {
        compares: vec![Compare::Equals(b"f".to_vec(), b"0".to_vec())],
        writes: vec![put("f", "1"), put("log", "1")],
        reads: vec![b"f".to_vec()],
    };
    assert!(transaction.moves_its_guard());
    let copies = futures::future::join_all((0..20).map(|_| store.txn(transaction.clone()))).await;
    let outcomes = |applied: bool| {
        copies.iter().filter(|copy| matches!(copy, Ok(Outcome::Applied(_))) == applied).count()
    };
    assert_eq!((outcomes(true), outcomes(false)), (1, 19));
}
