//! A gateway to drive: a Jobs service that remembers what it was asked, reached over an in-process pipe.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use flatbed_gateway::{Gateway, GatewayOptions, HostPolicy, Limits};
use flatbed_proto::convert::{Wire, u128_bytes};
use flatbed_proto::reach::{Coordinators, Dial, InvalidAddress};
use flatbed_proto::status::to_status;
use flatbed_proto::wire::job as wire;
use flatbed_proto::wire::job::jobs_server::{Jobs, JobsServer};
use flatbed_types::job::{JobRecord, JobState, ObjectPointer, Volume};
use flatbed_types::manifest::{Manifest, ManifestEntry, PageRecord};
use flatbed_types::task::OutputKind;
use flatbed_types::{ClientId, Codec, ErrorCode, ExportRequest, Instant, JobId, Level, Nonce, ResourceType};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::signer::{Signer, Url};
use object_store::{ObjectStore, ObjectStoreExt};
use prost::Message;
use sha2::{Digest, Sha256};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Response as Reply, Status};
use tower::ServiceExt;

pub const PUBLIC: &str = "https://example.org";
pub const BASE: &str = "https://example.org/fhir";

pub fn now() -> Instant {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

#[derive(Default)]
pub struct Fake {
    pub views: BTreeMap<u128, wire::JobView>,
    /// Pages by job and number.
    pub pages: BTreeMap<(u128, u32), wire::GetPageResponse>,
    pub created: Vec<wire::CreateJobRequest>,
    pub failure: Option<(ErrorCode, &'static str)>,
    pub source: wire::GetSourceResponse,
}

#[derive(Clone, Default)]
pub struct FakeJobs(pub Arc<Mutex<Fake>>);

impl FakeJobs {
    fn asked(&self) -> Result<std::sync::MutexGuard<'_, Fake>, Status> {
        let fake = self.0.lock().unwrap();
        match fake.failure {
            Some((code, text)) => Err(to_status(code, text)),
            None => Ok(fake),
        }
    }
}

fn key(bytes: &[u8]) -> u128 {
    u128::from_be_bytes(bytes.try_into().unwrap())
}

fn absent() -> Status {
    to_status(ErrorCode::NotFound, "there is no such job")
}

#[tonic::async_trait]
impl Jobs for FakeJobs {
    async fn create_job(
        &self,
        request: tonic::Request<wire::CreateJobRequest>,
    ) -> Result<Reply<wire::CreateJobResponse>, Status> {
        let mut fake = self.asked()?;
        let request = request.into_inner();
        let earlier = fake.created.iter().position(|each| {
            !each.idempotency_key.is_empty() && each.idempotency_key == request.idempotency_key
        });
        let number = earlier.unwrap_or(fake.created.len());
        fake.created.push(request);
        let job = u128_bytes(number as u128);
        Ok(Reply::new(wire::CreateJobResponse { job, repeated_job: earlier.is_some() }))
    }

    async fn get_job(
        &self,
        request: tonic::Request<wire::GetJobRequest>,
    ) -> Result<Reply<wire::GetJobResponse>, Status> {
        let view = self.asked()?.views.get(&key(&request.into_inner().job)).cloned();
        Ok(Reply::new(wire::GetJobResponse { job: Some(view.ok_or_else(absent)?) }))
    }

    async fn list_jobs(
        &self,
        _: tonic::Request<wire::ListJobsRequest>,
    ) -> Result<Reply<wire::ListJobsResponse>, Status> {
        Err(Status::unimplemented("gateways do not list jobs"))
    }

    async fn stop_job(
        &self,
        request: tonic::Request<wire::StopJobRequest>,
    ) -> Result<Reply<wire::StopJobResponse>, Status> {
        self.asked()?.views.remove(&key(&request.into_inner().job)).ok_or_else(absent)?;
        Ok(Reply::new(wire::StopJobResponse {}))
    }

    async fn get_page(
        &self,
        request: tonic::Request<wire::GetPageRequest>,
    ) -> Result<Reply<wire::GetPageResponse>, Status> {
        let wire::GetPageRequest { job, page } = request.into_inner();
        self.asked()?.pages.get(&(key(&job), page)).cloned().map(Reply::new).ok_or_else(absent)
    }

    async fn get_source(
        &self,
        _: tonic::Request<wire::GetSourceRequest>,
    ) -> Result<Reply<wire::GetSourceResponse>, Status> {
        Ok(Reply::new(self.asked()?.source.clone()))
    }

    async fn read_resource(
        &self,
        _: tonic::Request<wire::ReadResourceRequest>,
    ) -> Result<Reply<wire::ReadResourceResponse>, Status> {
        drop(self.asked()?);
        Err(Status::unimplemented("Groups are tested over the real thing"))
    }

    async fn search_groups(
        &self,
        _: tonic::Request<wire::SearchGroupsRequest>,
    ) -> Result<Reply<wire::SearchGroupsResponse>, Status> {
        drop(self.asked()?);
        Err(Status::unimplemented("Groups are tested over the real thing"))
    }

    async fn put_cohort(
        &self,
        _: tonic::Request<wire::PutCohortRequest>,
    ) -> Result<Reply<wire::PutCohortResponse>, Status> {
        drop(self.asked()?);
        Err(Status::unimplemented("Groups are tested over the real thing"))
    }

    async fn get_cohort(
        &self,
        _: tonic::Request<wire::GetCohortRequest>,
    ) -> Result<Reply<wire::GetCohortResponse>, Status> {
        drop(self.asked()?);
        Err(Status::unimplemented("Groups are tested over the real thing"))
    }

    async fn list_cohorts(
        &self,
        _: tonic::Request<wire::ListCohortsRequest>,
    ) -> Result<Reply<wire::ListCohortsResponse>, Status> {
        drop(self.asked()?);
        Err(Status::unimplemented("Groups are tested over the real thing"))
    }

    async fn delete_cohort(
        &self,
        _: tonic::Request<wire::DeleteCohortRequest>,
    ) -> Result<Reply<wire::DeleteCohortResponse>, Status> {
        drop(self.asked()?);
        Err(Status::unimplemented("Groups are tested over the real thing"))
    }

    async fn put_receipt(
        &self,
        _: tonic::Request<wire::PutReceiptRequest>,
    ) -> Result<Reply<wire::PutReceiptResponse>, Status> {
        drop(self.asked()?);
        Err(Status::unimplemented("Groups are tested over the real thing"))
    }

    async fn get_receipt(
        &self,
        _: tonic::Request<wire::GetReceiptRequest>,
    ) -> Result<Reply<wire::GetReceiptResponse>, Status> {
        drop(self.asked()?);
        Err(Status::unimplemented("Groups are tested over the real thing"))
    }

    async fn delete_receipt(
        &self,
        _: tonic::Request<wire::DeleteReceiptRequest>,
    ) -> Result<Reply<wire::DeleteReceiptResponse>, Status> {
        drop(self.asked()?);
        Err(Status::unimplemented("Groups are tested over the real thing"))
    }
}

/// A channel to the service over a pipe. Each connection is a new pipe.
pub async fn channel(jobs: FakeJobs) -> Channel {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<tokio::io::DuplexStream>();
    let incoming = tokio_stream::StreamExt::map(
        tokio_stream::wrappers::UnboundedReceiverStream::new(receiver),
        Ok::<_, std::io::Error>,
    );
    tokio::spawn(Server::builder().add_service(JobsServer::new(jobs)).serve_with_incoming(incoming));
    let connector = tower::service_fn(move |_: http::Uri| {
        let sender = sender.clone();
        async move {
            let (client, server) = tokio::io::duplex(64 << 10);
            sender.send(server).map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(client))
        }
    });
    Endpoint::from_static("http://jobs").connect_with_connector(connector).await.unwrap()
}

/// A channel to a coordinator that cannot be reached.
pub fn refusing() -> Channel {
    let refused = |_: http::Uri| async {
        Err::<TokioIo<tokio::io::DuplexStream>, _>(std::io::Error::other("10.0.0.3:7070 refused"))
    };
    Endpoint::from_static("http://jobs").connect_with_connector_lazy(tower::service_fn(refused))
}

/// Signs every link with the same word, or never.
#[derive(Debug)]
pub struct FakeSigner {
    pub broken: bool,
}

#[async_trait::async_trait]
impl Signer for FakeSigner {
    async fn signed_url(
        &self,
        method: http::Method,
        path: &Path,
        left: Duration,
    ) -> object_store::Result<Url> {
        if self.broken {
            return Err(object_store::Error::NotImplemented {
                operation: "sign".into(),
                implementer: "fake".into(),
            });
        }
        let text = format!(
            "https://store.example/{path}?method={method}&expires={}&signature=s3cr3t",
            left.as_secs()
        );
        Ok(Url::parse(&text).unwrap())
    }
}

/// Knows the channels of addresses.
#[derive(Default)]
pub struct FakeDial(pub Mutex<BTreeMap<String, Channel>>);

impl Dial for FakeDial {
    fn dial(&self, address: &str) -> Result<Channel, InvalidAddress> {
        self.0.lock().unwrap().get(address).cloned().ok_or_else(|| InvalidAddress(address.to_owned()))
    }
}

pub struct World {
    pub jobs: FakeJobs,
    pub objects: Arc<InMemory>,
    pub app: Router,
}

pub fn options() -> GatewayOptions {
    GatewayOptions {
        hosts: HostPolicy::Any,
        limits: Limits::NONE,
        ..GatewayOptions::new(PUBLIC.parse().unwrap())
    }
}

impl World {
    pub async fn new() -> World {
        World::with(options()).await
    }

    pub async fn with(options: GatewayOptions) -> World {
        let jobs = FakeJobs::default();
        let channel = channel(jobs.clone()).await;
        World::over(options, jobs, channel)
    }

    /// A gateway whose coordinator cannot be reached.
    pub fn cut_off() -> World {
        World::over(options(), FakeJobs::default(), refusing())
    }

    /// A gateway whose coordinator takes connections and calls and dies.
    pub fn dying() -> World {
        let dying = |_: http::Uri| async {
            let (client, mut server) = tokio::io::duplex(64 << 10);
            tokio::spawn(async move {
                use tokio::io::AsyncReadExt;
                let _ = server.read(&mut [0; 64]).await;
            });
            Ok::<_, std::io::Error>(TokioIo::new(client))
        };
        let channel =
            Endpoint::from_static("http://jobs").connect_with_connector_lazy(tower::service_fn(dying));
        World::over(options(), FakeJobs::default(), channel)
    }

    fn over(options: GatewayOptions, jobs: FakeJobs, channel: Channel) -> World {
        let objects = Arc::new(InMemory::new());
        let store = Arc::clone(&objects) as Arc<dyn ObjectStore>;
        let app = Gateway::new(Coordinators::fixed(channel), store, options, Arc::new(now)).router();
        World { jobs, objects, app }
    }

    /// A gateway whose store signs links, or fails to.
    pub async fn with_links(signer: FakeSigner) -> World {
        let jobs = FakeJobs::default();
        let channel = channel(jobs.clone()).await;
        let objects = Arc::new(InMemory::new());
        let store = Arc::clone(&objects) as Arc<dyn ObjectStore>;
        let gateway = Gateway::new(Coordinators::fixed(channel), store, options(), Arc::new(now));
        World { jobs, objects, app: gateway.with_links(Arc::new(signer)).router() }
    }

    /// A gateway with these coordinators, by address.
    pub fn over_several(seeds: &[&str], dial: Arc<FakeDial>) -> World {
        let jobs = FakeJobs::default();
        let objects = Arc::new(InMemory::new());
        let store = Arc::clone(&objects) as Arc<dyn ObjectStore>;
        let seeds = seeds.iter().map(|seed| (*seed).to_owned()).collect();
        let coordinators = Coordinators::new(seeds, dial).unwrap();
        let app = Gateway::new(coordinators, store, options(), Arc::new(now)).router();
        World { jobs, objects, app }
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.app.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.map(|body| body.to_bytes()).map_err(|error| error.to_string());
        Answer { status: parts.status, headers: parts.headers, bytes }
    }

    /// Without a body; header lines are `name: value`.
    pub async fn ask(&self, method: &str, path: &str, headers: &[&str]) -> Answer {
        self.send(request(method, path, headers, Body::empty())).await
    }

    /// A file's headers and bytes.
    pub async fn get(&self, path: &str, headers: &[&str]) -> Answer {
        self.ask("GET", path, headers).await
    }

    pub fn add_job(&self, record: &JobRecord) {
        let view = wire::JobView {
            record: Some(record.to_wire()),
            committed: Some(Volume { rows: 1_234, bytes: 5_600_000 }.to_wire()),
            in_flight: Some(Volume { rows: 999_999, bytes: 9 }.to_wire()),
            permille: 423,
            retry_after_ms: 2_500,
            ..wire::JobView::default()
        };
        self.jobs.0.lock().unwrap().views.insert(record.id.0, view);
    }

    /// A complete job with one file of each of these contents, and its manifest in the store.
    pub async fn add_complete(&self, number: u128, codec: Codec, files: &[&[u8]]) -> JobRecord {
        let mut entries = Vec::new();
        for (index, content) in files.iter().enumerate() {
            let stored = encode(codec, content);
            let key = format!("c/t/j{number}/d/{index}.ndjson");
            self.objects.put(&Path::parse(&key).unwrap(), stored.clone().into()).await.unwrap();
            entries.push(ManifestEntry {
                kind: if index == 1 { OutputKind::Outcome } else { OutputKind::Data },
                resource_type: if index == 1 {
                    ResourceType::OPERATION_OUTCOME
                } else {
                    ResourceType::PATIENT
                },
                file: Nonce(index as u64 + 0xa0),
                key,
                lines: content.iter().filter(|byte| **byte == b'\n').count() as u64,
                raw_bytes: content.len() as u64,
                stored_bytes: stored.len() as u64,
                sha256: Sha256::digest(&stored).into(),
            });
        }
        self.add_manifest(number, codec, entries).await
    }

    /// A complete job with these files, which need not be in the store, and its manifest, which is.
    pub async fn add_manifest(&self, number: u128, codec: Codec, entries: Vec<ManifestEntry>) -> JobRecord {
        let mut complete = record(number, JobState::Complete);
        complete.manifest =
            Some(self.put_manifest(&format!("c/t/j{number}/manifest.pb"), codec, entries).await);
        complete.codec = codec;
        complete.expires = Some(now().plus_millis(3_600_000));
        self.add_job(&complete);
        complete
    }
}

impl World {
    /// The list of these files, in the store.
    async fn put_manifest(&self, key: &str, codec: Codec, entries: Vec<ManifestEntry>) -> ObjectPointer {
        let transaction_time = now().plus_millis(-5_000);
        let bytes = Manifest { transaction_time, codec, entries }.to_wire().encode_to_vec();
        let (sha256, size) = (Sha256::digest(&bytes).into(), bytes.len() as u64);
        self.objects.put(&Path::parse(key).unwrap(), bytes.into()).await.unwrap();
        ObjectPointer { key: key.to_owned(), sha256, size }
    }

    /// A page of a job's manifest, as coordinators publish it.
    pub async fn add_page(&self, number: u128, page: u32, entries: Vec<ManifestEntry>, last: bool) {
        let files = entries.len() as u64;
        let key = format!("c/t/j{number}/page-{page}.pb");
        let object = self.put_manifest(&key, Codec::Gzip, entries).await;
        let record = PageRecord { object, first: 0, behind: files, files };
        let answer = wire::GetPageResponse { page: Some(record.to_wire()), last };
        self.jobs.0.lock().unwrap().pages.insert((number, page), answer);
    }
}

pub fn encode(codec: Codec, content: &[u8]) -> Vec<u8> {
    match codec {
        Codec::None => content.to_vec(),
        Codec::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        Codec::Zstd => zstd::encode_all(content, 3).unwrap(),
    }
}

pub fn record(number: u128, state: JobState) -> JobRecord {
    let request = ExportRequest::everything(Level::System);
    let created = now().plus_millis(-10_000);
    JobRecord {
        request_url: format!("{BASE}/$export?_type=Patient"),
        state,
        estimate: Volume { rows: 9_999, bytes: 13_400_000 },
        ..JobRecord::new(JobId(number), ClientId::open(), request, Codec::Gzip, created)
    }
}

pub fn status_path(number: u128) -> String {
    format!("/fhir/export/{}", JobId(number))
}

pub fn file_path(number: u128, index: u64) -> String {
    format!("{}/file/{}", status_path(number), Nonce(index + 0xa0))
}

pub fn request(method: &str, path: &str, headers: &[&str], body: Body) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for line in headers {
        let (name, value) = line.split_once(':').unwrap();
        request = request.header(name.trim(), value.trim());
    }
    request.body(body).unwrap()
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Result<Bytes, String>,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn body(&self) -> &[u8] {
        self.bytes.as_ref().unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(self.body()).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// KO-14, ST-09, ER-01: whatever is refused is refused with an OperationOutcome.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) -> Vec<String> {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/fhir+json", "{self:?}");
        let json = self.json();
        assert_eq!(json["resourceType"], "OperationOutcome");
        let issues = json["issue"].as_array().unwrap();
        assert_eq!(issues[0]["severity"], "error");
        assert_eq!(issues[0]["code"], code, "{json}");
        issues.iter().map(|issue| issue["diagnostics"].as_str().unwrap().to_owned()).collect()
    }
}
