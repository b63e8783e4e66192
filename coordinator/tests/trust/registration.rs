//! An invitation lets in as many clients as it says, whoever asks where; those who wait are counted, and leave the count when
//! somebody decides on them.

use flatbed_coordinator::store::{Transaction, Write};
use flatbed_proto::convert::Wire;
use flatbed_proto::convert_registration::secret_hash_bytes;
use flatbed_proto::status::code_of;
use flatbed_proto::wire::trust::{
    CheckInvitationRequest, GetClientRequest, ListInvitationsRequest, PutClientRequest, PutInvitationRequest,
    RegisterClientRequest, RemoveClientRequest, RemoveInvitationRequest,
};
use flatbed_types::layout::MetaKeys;
use flatbed_types::registration::{Invitation, Registration, SecretHash};
use flatbed_types::trust::{ClientOrigin, ClientRecord};
use flatbed_types::{ErrorCode, caps};

use super::*;

const DAY: i64 = 24 * 3_600_000;

fn invitation(number: u8, uses_left: u32) -> Invitation {
    Invitation {
        token: SecretHash([number; 32]),
        created: Instant::from_millis(BEGIN),
        expires: Instant::from_millis(BEGIN + DAY),
        uses_left,
        note: String::new(),
    }
}

async fn invite(bench: &Bench, invitation: &Invitation) -> Result<(), ErrorCode> {
    let request = PutInvitationRequest { invitation: Some(invitation.to_wire()) };
    bench.client().put_invitation(request).await.map(drop).map_err(|status| code_of(&status))
}

async fn is_open(bench: &Bench, number: u8) -> bool {
    let request = CheckInvitationRequest { token_sha256: secret_hash_bytes(&SecretHash([number; 32])) };
    bench.client().check_invitation(request).await.unwrap().into_inner().open
}

async fn invitations(bench: &Bench) -> Vec<Invitation> {
    let listed = bench.client().list_invitations(ListInvitationsRequest {}).await.unwrap().into_inner();
    listed.invitations.into_iter().map(|each| Invitation::from_wire(each).unwrap()).collect()
}

fn record(id: &str) -> ClientRecord {
    let said = Registration {
        issued: Instant::from_millis(BEGIN),
        token: SecretHash([9; 32]),
        contacts: vec!["ops@a.example".to_owned()],
        software_id: String::new(),
        software_version: String::new(),
    };
    ClientRecord {
        requested_scopes: "system/*.rs".to_owned(),
        registration: Some(Box::new(said)),
        ..ClientRecord::new(id.parse().unwrap(), ClientOrigin::Registration)
    }
}

async fn register(bench: &Bench, client: &ClientRecord, number: u8) -> Result<ClientRecord, ErrorCode> {
    let token_sha256 = secret_hash_bytes(&SecretHash([number; 32]));
    let request = RegisterClientRequest { client: Some(client.to_wire()), token_sha256 };
    let answer = bench.client().register_client(request).await.map_err(|status| code_of(&status))?;
    Ok(ClientRecord::from_wire(answer.into_inner().client.unwrap()).unwrap())
}

async fn get(bench: &Bench, id: &str) -> Option<ClientRecord> {
    let found = bench.client().get_client(GetClientRequest { id: id.to_owned() }).await.unwrap();
    found.into_inner().client.map(|client| ClientRecord::from_wire(client).unwrap())
}

async fn waiting(store: &Arc<dyn MetaStore>) -> usize {
    store.range(&MetaKeys::new("main").all_waiting(), None).await.unwrap().1.len()
}

#[tokio::test]
async fn rg_04_an_invitation_is_used_up_with_the_client_that_it_lets_in() {
    for (store, _room) in local_stores() {
        let (one, two) = (Bench::over(store.clone(), BEGIN).await, Bench::over(store, BEGIN).await);
        assert_eq!(register(&one, &record("a"), 1).await, Err(ErrorCode::Unauthenticated));
        invite(&one, &invitation(1, 2)).await.unwrap();
        invite(&two, &invitation(1, 2)).await.unwrap();
        assert!(is_open(&two, 1).await && !is_open(&two, 2).await);
        let first = register(&one, &record("a"), 1).await.unwrap();
        assert!(first.says_the_same(&record("a")) && first.version > 0);
        assert_eq!(register(&two, &record("a"), 1).await, Ok(first.clone()), "repeated");
        assert_eq!(invitations(&two).await[0].uses_left, 1, "and used once");
        assert_eq!(get(&two, "a").await, Some(first));
        let other = ClientRecord { name: "x".to_owned(), ..record("a") };
        assert_eq!(register(&two, &other, 1).await, Err(ErrorCode::Invalid), "an id is one client's");
        register(&two, &record("b"), 1).await.unwrap();
        assert_eq!(register(&one, &record("c"), 1).await, Err(ErrorCode::Unauthenticated));
        assert_eq!(get(&one, "c").await, None);
        assert!(!is_open(&one, 1).await && invitations(&one).await.is_empty());
    }
}

#[tokio::test]
async fn rg_05_nobody_registers_with_scopes_or_as_somebody_else() {
    let bench = Bench::over(Arc::new(LocalStore::memory()), BEGIN).await;
    invite(&bench, &invitation(1, 9)).await.unwrap();
    let scopes = ClientRecord { scopes: "system/*.rs".to_owned(), ..record("a") };
    let operator = ClientRecord { origin: ClientOrigin::Operator, ..record("a") };
    let silent = ClientRecord { registration: None, ..record("a") };
    for wrong in [scopes, operator, silent] {
        assert_eq!(register(&bench, &wrong, 1).await, Err(ErrorCode::Invalid));
    }
    assert_eq!(invitations(&bench).await[0].uses_left, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn rg_04_of_many_at_two_coordinators_as_many_as_are_invited_get_in() {
    for (store, _room) in local_stores() {
        let benches = [Bench::over(store.clone(), BEGIN).await, Bench::over(store.clone(), BEGIN).await];
        invite(&benches[0], &invitation(1, 5)).await.unwrap();
        let asking = (0..40_usize).map(|number| {
            let (bench, client) = (&benches[number % 2], record(&format!("c{number}")));
            async move {
                // Others by the same invitation may come first many times.
                loop {
                    match register(bench, &client, 1).await {
                        Err(ErrorCode::Unavailable) => tokio::task::yield_now().await,
                        answer => return answer.is_ok(),
                    }
                }
            }
        });
        let let_in = futures::future::join_all(asking).await.into_iter().filter(|done| *done).count();
        assert_eq!((let_in, waiting(&store).await), (5, 5));
    }
}

#[tokio::test]
async fn an_invitation_ends_is_taken_back_and_is_swept() {
    let store: Arc<dyn MetaStore> = Arc::new(LocalStore::memory());
    let bench = Bench::over(store.clone(), BEGIN).await;
    let long = Invitation { expires: Instant::from_millis(BEGIN + 91 * DAY), ..invitation(1, 1) };
    let over = Invitation { expires: Instant::from_millis(BEGIN), ..invitation(1, 1) };
    assert_eq!(invite(&bench, &long).await, Err(ErrorCode::Invalid));
    assert_eq!(invite(&bench, &over).await, Err(ErrorCode::Invalid));
    for number in [1, 2] {
        invite(&bench, &invitation(number, 1)).await.unwrap();
    }
    let remove =
        |id: String| async { bench.client().remove_invitation(RemoveInvitationRequest { id }).await };
    remove(invitation(1, 1).id().to_string()).await.unwrap();
    assert!(!is_open(&bench, 1).await && is_open(&bench, 2).await);
    let again = remove(invitation(1, 1).id().to_string()).await.unwrap_err();
    assert_eq!(code_of(&again), ErrorCode::NotFound);
    bench.set(BEGIN + DAY);
    assert!(!is_open(&bench, 2).await && invitations(&bench).await.is_empty());
    assert_eq!(register(&bench, &record("a"), 2).await, Err(ErrorCode::Unauthenticated));
    // The next coordinator sweeps when it starts.
    let _next = Bench::over(store.clone(), BEGIN + DAY).await;
    let swept = async {
        while !store.range(&MetaKeys::new("main").invitations(), None).await.unwrap().1.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), swept).await.expect("it stays");
}

#[tokio::test]
async fn those_who_wait_are_counted_until_somebody_decides() {
    let store: Arc<dyn MetaStore> = Arc::new(LocalStore::memory());
    let bench = Bench::over(store.clone(), BEGIN).await;
    invite(&bench, &invitation(1, 9)).await.unwrap();
    let (a, _) =
        (register(&bench, &record("a"), 1).await.unwrap(), register(&bench, &record("b"), 1).await.unwrap());
    assert_eq!(waiting(&store).await, 2);
    let approved = ClientRecord { scopes: "system/*.rs".to_owned(), ..a };
    let put = PutClientRequest { client: Some(approved.to_wire()) };
    assert!(bench.client().put_client(put).await.unwrap().into_inner().client.is_some());
    assert_eq!(waiting(&store).await, 1, "one is approved");
    let remove = RemoveClientRequest { id: "b".to_owned(), version: 0 };
    bench.client().remove_client(remove).await.unwrap();
    assert_eq!(waiting(&store).await, 0, "the other is removed");

    let keys = MetaKeys::new("main");
    let markers = |range: std::ops::Range<usize>| {
        range
            .map(|number| Write::Put(keys.waiting(&format!("w{number}").parse().unwrap()), Vec::new()))
            .collect()
    };
    let put = |writes| store.txn(Transaction { writes, ..Transaction::default() });
    put(markers(0..caps::MAX_WAITING_CLIENTS - 1)).await.unwrap();
    register(&bench, &record("last"), 1).await.unwrap();
    assert_eq!(register(&bench, &record("c"), 1).await, Err(ErrorCode::Throttled));
    assert_eq!(get(&bench, "c").await, None);
    assert_eq!(invitations(&bench).await[0].uses_left, 6, "who is turned away uses nothing up");
}
