//! Registered clients: by version, at every coordinator at once, as many as there are.

use std::collections::BTreeSet;

use flatbed_coordinator::store::{Transaction, Write};
use flatbed_proto::convert::Wire;
use flatbed_proto::frame;
use flatbed_proto::status::code_of;
use flatbed_proto::wire::trust::{
    self as wire, AuthorizeRequest, GetClientRequest, ListClientsRequest, PutClientRequest,
    RemoveClientRequest,
};
use flatbed_types::ErrorCode;
use flatbed_types::layout::MetaKeys;
use flatbed_types::trust::{ClientOrigin, ClientRecord};

use super::*;

fn record(id: &str) -> ClientRecord {
    ClientRecord::new(id.parse().unwrap(), ClientOrigin::Operator)
}

async fn put(bench: &Bench, client: &ClientRecord) -> Option<ClientRecord> {
    let request = PutClientRequest { client: Some(client.to_wire()) };
    let stored = bench.client().put_client(request).await.unwrap().into_inner().client;
    stored.map(|client| ClientRecord::from_wire(client).unwrap())
}

async fn get(bench: &Bench, id: &str) -> Option<ClientRecord> {
    let found = bench.client().get_client(GetClientRequest { id: id.to_owned() }).await.unwrap();
    found.into_inner().client.map(|client| ClientRecord::from_wire(client).unwrap())
}

async fn remove(bench: &Bench, id: &str, version: u64) -> Result<bool, ErrorCode> {
    let request = RemoveClientRequest { id: id.to_owned(), version };
    let removed = bench.client().remove_client(request).await;
    removed.map(|answer| !answer.into_inner().changed).map_err(|status| code_of(&status))
}

async fn authorize(bench: &Bench, id: &str, known_version: u64) -> wire::AuthorizeResponse {
    let request = AuthorizeRequest { client: id.to_owned(), token_id: "t".to_owned(), known_version };
    bench.client().authorize(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_client_is_changed_by_whoever_knows_its_version() {
    for (store, _room) in local_stores() {
        let (one, two) = (Bench::over(store.clone(), BEGIN).await, Bench::over(store, BEGIN).await);
        let first = put(&one, &record("a")).await.unwrap();
        assert_eq!(put(&two, &record("a")).await, Some(first.clone()), "repeated");
        assert_eq!(get(&two, "a").await, Some(first.clone()));
        let named = ClientRecord { name: "Example".to_owned(), ..record("a") };
        assert_eq!(put(&two, &named).await, None, "it is there already");
        let second = put(&two, &ClientRecord { version: first.version, ..named.clone() }).await.unwrap();
        assert!(second.version > first.version && second.says_the_same(&named));
        let late = ClientRecord { disabled: true, version: first.version, ..record("a") };
        assert_eq!(put(&one, &late).await, None, "another version is there");
        assert_eq!(remove(&one, "a", first.version).await, Ok(false));
        assert_eq!(remove(&one, "a", second.version).await, Ok(true));
        assert_eq!(get(&two, "a").await, None);
        assert_eq!(remove(&two, "a", 0).await, Err(ErrorCode::NotFound));
        one.set(BEGIN + 1_000);
        let again = put(&one, &record("a")).await.unwrap();
        assert!(again.version > second.version, "no version comes back with other content");
    }
}

#[tokio::test]
async fn au_93_a_request_is_told_what_changed_of_its_client() {
    for (store, _room) in local_stores() {
        let (one, two) = (Bench::over(store.clone(), BEGIN).await, Bench::over(store, BEGIN).await);
        assert!(authorize(&two, "a", 0).await.gone);
        let first = put(&one, &record("a")).await.unwrap();
        let told = authorize(&two, "a", 0).await;
        assert_eq!((told.gone, told.client, told.revoked), (false, Some(first.to_wire()), false));
        assert_eq!(authorize(&two, "a", first.version).await, wire::AuthorizeResponse::default());
        let disabled = ClientRecord { disabled: true, ..first.clone() };
        let second = put(&one, &disabled).await.unwrap();
        assert_eq!(authorize(&two, "a", first.version).await.client, Some(second.to_wire()));
        assert_eq!(remove(&one, "a", 0).await, Ok(true));
        assert!(authorize(&two, "a", second.version).await.gone);
    }
}

#[tokio::test]
async fn one_of_many_who_change_the_same_version_does() {
    let store = Arc::new(LocalStore::memory());
    let benches = [Bench::over(store.clone(), BEGIN).await, Bench::over(store, BEGIN).await];
    let first = put(&benches[0], &record("a")).await.unwrap();
    let changes = (0..100).map(|number| {
        let changed = ClientRecord { max_jobs: Some(number + 1), ..first.clone() };
        let bench = &benches[number as usize % 2];
        async move { put(bench, &changed).await.is_some() }
    });
    let applied = futures::future::join_all(changes).await;
    assert_eq!(applied.into_iter().filter(|applied| *applied).count(), 1);
}

/// Reads the whole list; how many pages it had.
async fn list(bench: &Bench) -> (BTreeSet<String>, usize) {
    let (mut ids, mut pages, mut after) = (BTreeSet::new(), 0, String::new());
    loop {
        let page = bench.client().list_clients(ListClientsRequest { after }).await.unwrap().into_inner();
        pages += 1;
        for client in page.clients {
            assert!(ids.insert(client.id.clone()), "{} comes twice", client.id);
        }
        after = page.next;
        if after.is_empty() {
            return (ids, pages);
        }
    }
}

#[tokio::test]
async fn all_clients_of_a_nation_are_listed_page_by_page() {
    let store: Arc<dyn MetaStore> = Arc::new(LocalStore::memory());
    let bench = Bench::over(store.clone(), BEGIN).await;
    assert_eq!(list(&bench).await.0, BTreeSet::new());
    let keys = MetaKeys::new("main");
    let ids: Vec<String> = (0..105_000).map(|number| format!("payer-{number}")).collect();
    for part in ids.chunks(1_000) {
        let write = |id: &String| {
            let record = ClientRecord { name: "n".repeat(200), version: 1, ..record(id) };
            Write::Put(keys.client(&record.id), frame::seal(&record.to_wire()))
        };
        let transaction = Transaction { writes: part.iter().map(write).collect(), ..Transaction::default() };
        store.txn(transaction).await.unwrap();
    }
    let (found, pages) = list(&bench).await;
    assert!(found.len() == ids.len() && ids.iter().all(|id| found.contains(id)));
    assert!((6..40).contains(&pages), "{pages} pages of 4 MiB");
}
