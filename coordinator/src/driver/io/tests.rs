//! Work that panics is answered.

use std::fmt;

use async_trait::async_trait;
use flatbed_proto::reach::{Dial, InvalidAddress};
use flatbed_types::{Codec, ExportRequest, Level};
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::mpsc;
use tonic::transport::Channel;

use super::*;
use crate::CoordinatorOptions;
use crate::registry::Place;
use crate::store::{Entry, LeaseId, MetaStore, Outcome, Revision, StoreError, Transaction, Watch};

/// A store of objects and of state whose every request is a defect.
#[derive(Debug)]
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken")
    }
}

#[async_trait]
impl ObjectStore for Broken {
    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        panic!("on purpose")
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        panic!("on purpose")
    }

    async fn get_opts(&self, _: &Path, _: GetOptions) -> Result<GetResult> {
        panic!("on purpose")
    }

    fn delete_stream(&self, _: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        panic!("on purpose")
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        panic!("on purpose")
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        panic!("on purpose")
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        panic!("on purpose")
    }
}

#[async_trait]
impl MetaStore for Broken {
    async fn txn(&self, _: Transaction) -> std::result::Result<Outcome, StoreError> {
        panic!("on purpose")
    }

    async fn range(
        &self,
        _: &[u8],
        _: Option<Revision>,
    ) -> std::result::Result<(Revision, Vec<Entry>), StoreError> {
        panic!("on purpose")
    }

    async fn grant_lease(&self, _: Duration) -> std::result::Result<LeaseId, StoreError> {
        panic!("on purpose")
    }

    async fn keep_alive(&self, _: LeaseId) -> std::result::Result<(), StoreError> {
        panic!("on purpose")
    }

    async fn revoke_lease(&self, _: LeaseId) -> std::result::Result<(), StoreError> {
        panic!("on purpose")
    }

    async fn watch(&self, _: &[Vec<u8>], _: Revision) -> std::result::Result<Watch, StoreError> {
        panic!("on purpose")
    }
}

struct Nobody;

impl Dial for Nobody {
    fn dial(&self, address: &str) -> std::result::Result<Channel, InvalidAddress> {
        Err(InvalidAddress(address.to_owned()))
    }
}

fn io() -> (Io, mpsc::Receiver<Event>, JobRecord) {
    let (events, inbox) = mpsc::channel(8);
    let clock: crate::Clock = Arc::new(|| Instant::from_millis(1));
    let context = Context::new(
        "coo_1".parse().unwrap(),
        (Arc::new(Broken), Arc::new(Broken)),
        CoordinatorOptions::default(),
        Arc::new(Nobody),
        (clock, Arc::new(|| Some(1))),
        events,
    );
    context.set_place(Some(Place { lease: LeaseId(1), record: Vec::new(), revision: 1 }));
    let request = ExportRequest::everything(Level::System);
    let record = JobRecord::new(JobId(7), ClientId::open(), request, Codec::Gzip, Instant::from_millis(0));
    (Io::new(Arc::new(context)), inbox, record)
}

async fn answer(inbox: &mut mpsc::Receiver<Event>) -> Input {
    match inbox.recv().await {
        Some(Event::Input(JobId(7), Epoch(3), input)) => input,
        _ => panic!("expected the answer for the job and its epoch"),
    }
}

#[tokio::test(start_paused = true)]
async fn object_work_that_panics_is_answered_with_an_error_that_no_retry_mends() {
    let (io, mut inbox, record) = io();
    let pointer = || ObjectPointer { key: "key".to_owned(), sha256: [0; 32], size: 1 };
    let manifest = || {
        let transaction_time = Instant::from_millis(0);
        Box::new(Manifest { transaction_time, codec: Codec::Gzip, entries: Vec::new() })
    };
    let plan = || Plan { first_task: 0, tasks: Vec::new() };
    let merges = MergePlan { first_task: 0, tasks: Vec::new() };
    let all = [
        ObjectWork::ReadDraft(pointer()),
        ObjectWork::WritePlan(0, plan()),
        ObjectWork::WriteMergePlan(merges),
        ObjectWork::WriteManifest(manifest()),
        ObjectWork::WriteLedger(0, Vec::new()),
        ObjectWork::WritePage(1, manifest()),
        ObjectWork::Verify(vec![("key".to_owned(), 1)]),
        ObjectWork::Delete,
    ];
    for (number, work) in all.into_iter().enumerate() {
        io.objects(&record, Epoch(3), work);
        let error = match (number, answer(&mut inbox).await) {
            (0, Input::DraftRead(Err(error)))
            | (1..=3, Input::ObjectWritten(Err(error)))
            | (4, Input::LedgerWritten(Err(error)))
            | (5, Input::PageWritten(Err(error)))
            | (6, Input::ObjectsVerified(Err(error)))
            | (7, Input::ObjectsDeleted(Err(error))) => error,
            (_, other) => panic!("{number}: {other:?}"),
        };
        assert!(error.code == ErrorCode::Internal && !error.code.is_retryable(), "{number}: {error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_transaction_whose_proposing_panics_gives_the_machine_up() {
    let (io, mut inbox, record) = io();
    let txn = Txn { epoch: Epoch(3), seq: 0, ops: Vec::new(), unless_stopped: false };
    io.propose(record.id, Epoch(3), record.client, txn);
    assert!(matches!(answer(&mut inbox).await, Input::TxnDone(TxnOutcome::Fenced)));
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_panics_has_failed() {
    let (io, mut inbox, record) = io();
    io.claim(record.id);
    let Some(Event::Claimed(JobId(7), Err(ClaimError::Defect))) = inbox.recv().await else {
        panic!("expected a claim that failed");
    };
}
