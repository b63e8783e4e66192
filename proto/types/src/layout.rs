//! Names of metadata keys and of objects (`coordination.md` 3.2 and 7.1).
//!
//! Metadata keys, below `/flatbed/1/<cluster>/`:
//!
//! | key | value | written by |
//! |---|---|---|
//! | `j/<job>` | job record | whoever creates the job; then its owner |
//! | `f/<job>` | fence: epoch and sequence number, 16 bytes | owner |
//! | `x/<job>` | stop request, create-only | any coordinator |
//! | `t/<job>/<task>` | task record, only while it differs from the plan | owner |
//! | `g/<job>/<seq>` | commit record | owner |
//! | `s/<job>/<n>` | commits that were folded into an object | owner |
//! | `m/<job>/<n>` | a page of the manifest, where the client takes pages | owner |
//! | `o/<job>` | who owns the job; on the owner's lease | owner |
//! | `c/<coordinator>` | address of a live coordinator; on its own lease | coordinator |
//! | `q/<client>` | ticket: changes with every job admitted for the client | any coordinator |
//! | `q/<client>/<job>` | marker of an unfinished job of the client | any coordinator; its owner removes it |
//! | `i/<client>/<key hash>` | job of an idempotency key | any coordinator |
//! | `h/<client>/n/<id>` | marker of a cohort of the client | any coordinator |
//! | `h/<client>/d/<id>` | the cohort | any coordinator |
//! | `h/<client>/r/<id>` | what became of an asynchronous request of the client | any coordinator |
//! | `k` | the keys that sign tokens | any coordinator |
//! | `n/<window>/<hash>` | nonce of whoever used a jti; windows are of some minutes | any coordinator |
//! | `v/<hash>` | until when a token is revoked | any coordinator |
//! | `w/<xx>/<client>/` | a registered client; two hex digits of its hash spread them | any coordinator |
//! | `r/i/<hash>` | an invitation: by what clients may register themselves | any coordinator |
//! | `r/w/<client>/` | marker of a client that registered itself and waits for an operator | any coordinator |
//!
//! Objects, below the output root and `<cluster>/<tenant>/<job>/`:
//!
//! | object | what |
//! |---|---|
//! | `d/<xx>/<task>-<attempt>-<segment>-<nonce>.<Type>.ndjson[.gz]` | data of a commit |
//! | `e/<xx>/…` | OperationOutcomes of a commit, same name pattern |
//! | `r/<xx>/…keys` | reference sidecar of a commit, same name pattern |
//! | `plan/draft-<attempt>-<nonce>.pb` | what the source said |
//! | `plan/roster-<attempt>-<nonce>.keys` | sorted patient ids |
//! | `plan/exclusions-<attempt>-<nonce>.keys` | sorted ids of patients that the job leaves out |
//! | `plan/keys-<round>-<attempt>-<nonce>.keys` | sorted supporting keys of a round |
//! | `plan/<round>-<sha256>.pb` | a plan |
//! | `plan/merge-<sha256>.pb` | the plan of merge tasks |
//! | `ledger/<n>-<sha256>.pb` | folded commits |
//! | `manifest/<sha256>.pb` | the manifest |
//! | `page/<n>-<sha256>.pb` | a page of it |
//!
//! Beside the jobs, below `<cluster>/answers/`: `<nonce>`, the answer to a question whose answer is content; swept some
//! minutes later.

use crate::registration::{InvitationId, SecretHash};
use crate::task::{CommitRecord, OutputKind, OutputObject};
use crate::{AttemptId, ClientId, Codec, CoordinatorId, FhirId, JobId, Nonce, TaskId};

/// Version of the stored format; a newer one is never touched by older code.
pub const FORMAT: u32 = 1;

/// Metadata keys of one cluster.
#[derive(Debug, Clone)]
pub struct MetaKeys {
    prefix: String,
}

impl MetaKeys {
    /// The keys of the cluster with this name.
    pub fn new(cluster: &str) -> MetaKeys {
        MetaKeys { prefix: format!("/flatbed/{FORMAT}/{cluster}/") }
    }

    fn with_job(&self, area: &str, job: JobId) -> String {
        format!("{}{area}/{:032x}", self.prefix, job.0)
    }

    /// The record of a job.
    pub fn job(&self, job: JobId) -> Vec<u8> {
        self.with_job("j", job).into_bytes()
    }

    /// What all job records start with.
    pub fn jobs(&self) -> Vec<u8> {
        format!("{}j/", self.prefix).into_bytes()
    }

    /// The fence of a job.
    pub fn fence(&self, job: JobId) -> Vec<u8> {
        self.with_job("f", job).into_bytes()
    }

    /// The stop request of a job.
    pub fn stop(&self, job: JobId) -> Vec<u8> {
        self.with_job("x", job).into_bytes()
    }

    /// The record of a task.
    pub fn task(&self, job: JobId, task: TaskId) -> Vec<u8> {
        format!("{}/{:08x}", self.with_job("t", job), task.0).into_bytes()
    }

    /// What all task records of a job start with.
    pub fn tasks(&self, job: JobId) -> Vec<u8> {
        format!("{}/", self.with_job("t", job)).into_bytes()
    }

    /// A commit record.
    pub fn commit(&self, job: JobId, number: u64) -> Vec<u8> {
        format!("{}/{number:016x}", self.with_job("g", job)).into_bytes()
    }

    /// What all commit records of a job start with.
    pub fn commits(&self, job: JobId) -> Vec<u8> {
        format!("{}/", self.with_job("g", job)).into_bytes()
    }

    /// A fold of commits.
    pub fn fold(&self, job: JobId, number: u32) -> Vec<u8> {
        format!("{}/{number:08x}", self.with_job("s", job)).into_bytes()
    }

    /// What all folds of a job start with.
    pub fn folds(&self, job: JobId) -> Vec<u8> {
        format!("{}/", self.with_job("s", job)).into_bytes()
    }

    /// A page of the manifest of a job, from 1.
    pub fn page(&self, job: JobId, number: u32) -> Vec<u8> {
        format!("{}/{number:08x}", self.with_job("m", job)).into_bytes()
    }

    /// What all pages of a job start with.
    pub fn pages(&self, job: JobId) -> Vec<u8> {
        format!("{}/", self.with_job("m", job)).into_bytes()
    }

    /// The owner of a job.
    pub fn owner(&self, job: JobId) -> Vec<u8> {
        self.with_job("o", job).into_bytes()
    }

    /// What all owner keys start with.
    pub fn owners(&self) -> Vec<u8> {
        format!("{}o/", self.prefix).into_bytes()
    }

    /// What all stop requests start with.
    pub fn stops(&self) -> Vec<u8> {
        format!("{}x/", self.prefix).into_bytes()
    }

    /// A live coordinator.
    pub fn coordinator(&self, coordinator: &CoordinatorId) -> Vec<u8> {
        format!("{}c/{coordinator}", self.prefix).into_bytes()
    }

    /// What the keys of all live coordinators start with.
    pub fn coordinators(&self) -> Vec<u8> {
        format!("{}c/", self.prefix).into_bytes()
    }

    /// The ticket of a client: whoever admits a job for it compares and changes it.
    pub fn ticket(&self, client: &ClientId) -> Vec<u8> {
        format!("{}q/{client}", self.prefix).into_bytes()
    }

    /// The marker of an unfinished job of a client.
    pub fn admitted(&self, client: &ClientId, job: JobId) -> Vec<u8> {
        format!("{}q/{client}/{:032x}", self.prefix, job.0).into_bytes()
    }

    /// What the markers of a client's unfinished jobs start with.
    pub fn admitted_of(&self, client: &ClientId) -> Vec<u8> {
        format!("{}q/{client}/", self.prefix).into_bytes()
    }

    /// What all idempotency keys start with.
    pub fn idempotency_keys(&self) -> Vec<u8> {
        format!("{}i/", self.prefix).into_bytes()
    }

    /// The marker of a cohort: what is counted and listed without its definition.
    pub fn cohort_marker(&self, client: &ClientId, id: &FhirId) -> Vec<u8> {
        format!("{}h/{client}/n/{id}", self.prefix).into_bytes()
    }

    /// What the markers of a client's cohorts start with.
    pub fn cohort_markers(&self, client: &ClientId) -> Vec<u8> {
        format!("{}h/{client}/n/", self.prefix).into_bytes()
    }

    /// A cohort of a client.
    pub fn cohort(&self, client: &ClientId, id: &FhirId) -> Vec<u8> {
        format!("{}h/{client}/d/{id}", self.prefix).into_bytes()
    }

    /// What became of an asynchronous request of a client.
    pub fn receipt(&self, client: &ClientId, id: u128) -> Vec<u8> {
        format!("{}h/{client}/r/{id:032x}", self.prefix).into_bytes()
    }

    /// What all receipts of a client start with.
    pub fn receipts(&self, client: &ClientId) -> Vec<u8> {
        format!("{}h/{client}/r/", self.prefix).into_bytes()
    }

    /// A registered client. The `/` at the end keeps it apart from those whose names go on.
    pub fn client(&self, client: &ClientId) -> Vec<u8> {
        format!("{}w/{:02x}/{client}/", self.prefix, client_bucket(client)).into_bytes()
    }

    /// What all clients of a bucket start with.
    pub fn clients_of(&self, bucket: u8) -> Vec<u8> {
        format!("{}w/{bucket:02x}/", self.prefix).into_bytes()
    }

    /// An invitation, by the hash of its token.
    pub fn invitation(&self, token: &SecretHash) -> Vec<u8> {
        format!("{}r/i/{}", self.prefix, token.hex()).into_bytes()
    }

    /// What the invitation of this name starts with.
    pub fn invitation_named(&self, id: InvitationId) -> Vec<u8> {
        format!("{}r/i/{}", self.prefix, id.hex()).into_bytes()
    }

    /// What all invitations start with.
    pub fn invitations(&self) -> Vec<u8> {
        format!("{}r/i/", self.prefix).into_bytes()
    }

    /// The marker of a client that waits for an operator.
    pub fn waiting(&self, client: &ClientId) -> Vec<u8> {
        format!("{}r/w/{client}/", self.prefix).into_bytes()
    }

    /// What the markers of all clients that wait start with.
    pub fn all_waiting(&self) -> Vec<u8> {
        format!("{}r/w/", self.prefix).into_bytes()
    }

    /// A jti that was used within a window of time.
    pub fn used_jti(&self, window: u32, hash: u128) -> Vec<u8> {
        format!("{}n/{window:08x}/{hash:032x}", self.prefix).into_bytes()
    }

    /// What a sixteenth of the jtis of a window start with: as many as a store removes at once without a halt.
    pub fn used_jtis_of(&self, window: u32, sixteenth: u8) -> Vec<u8> {
        format!("{}n/{window:08x}/{:x}", self.prefix, sixteenth & 0xf).into_bytes()
    }

    /// Where the jtis of all windows before this one lie: from the first key to the second, which is not among them.
    pub fn used_jtis_before(&self, window: u32) -> (Vec<u8>, Vec<u8>) {
        let edge = |window: u32| format!("{}n/{window:08x}", self.prefix).into_bytes();
        (edge(0), edge(window))
    }

    /// The revocation of a token, by the hash of its id.
    pub fn revoked(&self, hash: u128) -> Vec<u8> {
        format!("{}v/{hash:032x}", self.prefix).into_bytes()
    }

    /// What all revocations start with.
    pub fn all_revoked(&self) -> Vec<u8> {
        format!("{}v/", self.prefix).into_bytes()
    }

    /// The keys that sign tokens.
    pub fn signing_keys(&self) -> Vec<u8> {
        format!("{}k", self.prefix).into_bytes()
    }

    /// The job of an idempotency key, by its hash.
    pub fn idempotency(&self, client: &ClientId, key_hash: u128) -> Vec<u8> {
        format!("{}i/{client}/{key_hash:032x}", self.prefix).into_bytes()
    }
}

/// The id at the end of a key of `MetaKeys::jobs`, `tasks` or `commits`.
pub fn trailing_hex(key: &[u8]) -> Option<u128> {
    let text = std::str::from_utf8(key).ok()?;
    u128::from_str_radix(text.rsplit('/').next()?, 16).ok()
}

/// What all objects of a job start with, without a `/` at the end. `tenant` is the client's hashed name.
pub fn job_root(cluster: &str, tenant: &str, job: JobId) -> String {
    format!("{cluster}/{tenant}/{job}")
}

/// What all answers to questions about content start with, without a `/` at the end. Folders of clients begin with `t`.
pub fn answers_root(cluster: &str) -> String {
    format!("{cluster}/answers")
}

/// The key of an answer below `answers_root`.
pub fn answer_object(answers: &str, nonce: Nonce) -> String {
    format!("{answers}/{nonce}")
}

/// The name that tells clients' folders apart without showing who they are.
pub fn tenant_folder(client: &ClientId) -> String {
    format!("t{:016x}", client_hash(client))
}

/// FNV-1a, 64 bits: it spreads names, and keeps no secret.
fn client_hash(client: &ClientId) -> u64 {
    client.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The bucket that a client is listed in.
pub fn client_bucket(client: &ClientId) -> u8 {
    (client_hash(client) & 0xff) as u8
}

/// Who wrote an output object: the part of its name that makes it the attempt's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    /// The task.
    pub task: TaskId,
    /// The attempt.
    pub attempt: AttemptId,
    /// The segment within the attempt.
    pub segment: u32,
}

impl From<&CommitRecord> for Writer {
    fn from(commit: &CommitRecord) -> Writer {
        Writer { task: commit.task, attempt: commit.attempt, segment: commit.segment }
    }
}

/// The key of an output object. The two hex digits spread a job over 256 prefixes.
pub fn output_object(root: &str, writer: Writer, output: &OutputObject, codec: Codec) -> String {
    let Writer { task, attempt, segment } = writer;
    let spread = output.nonce.0 & 0xff;
    let name = format!("{spread:02x}/{:08x}-{attempt}-{segment:04x}-{}", task.0, output.nonce);
    let (kind, suffix) = (output.resource_type, codec.suffix());
    match output.kind {
        OutputKind::Data => format!("{root}/d/{name}.{kind}.ndjson{suffix}"),
        OutputKind::Outcome => format!("{root}/e/{name}.{kind}.ndjson{suffix}"),
        OutputKind::Deleted => format!("{root}/x/{name}.{kind}.ndjson{suffix}"),
        OutputKind::References => format!("{root}/r/{name}.{kind}.keys"),
    }
}

/// The attempt that wrote an object of `d/`, `e/`, `x/`, `r/` or a `plan/` object of a worker, from its key.
pub fn attempt_of(key: &str) -> Option<AttemptId> {
    let name = key.rsplit('/').next()?;
    let hex16 = |part: &str| (part.len() == 16).then(|| u64::from_str_radix(part, 16).ok()).flatten();
    name.split('-').find_map(hex16).map(AttemptId)
}

/// The key of a plan draft.
pub fn draft_object(root: &str, attempt: AttemptId, nonce: Nonce) -> String {
    format!("{root}/plan/draft-{attempt}-{nonce}.pb")
}

/// The key of a job's list of exclusions.
pub fn exclusions_object(root: &str, attempt: AttemptId, nonce: Nonce) -> String {
    format!("{root}/plan/exclusions-{attempt}-{nonce}.keys")
}

/// The key of a roster.
pub fn roster_object(root: &str, attempt: AttemptId, nonce: Nonce) -> String {
    format!("{root}/plan/roster-{attempt}-{nonce}.keys")
}

/// The key of a round's list of supporting keys.
pub fn key_list_object(root: &str, round: u32, attempt: AttemptId, nonce: Nonce) -> String {
    format!("{root}/plan/keys-{round}-{attempt}-{nonce}.keys")
}

/// The key of a plan.
pub fn plan_object(root: &str, round: u32, sha256_hex: &str) -> String {
    format!("{root}/plan/{round}-{sha256_hex}.pb")
}

/// The key of a plan of merge tasks.
pub fn merge_plan_object(root: &str, sha256_hex: &str) -> String {
    format!("{root}/plan/merge-{sha256_hex}.pb")
}

/// The key of folded commits.
pub fn ledger_object(root: &str, number: u32, sha256_hex: &str) -> String {
    format!("{root}/ledger/{number}-{sha256_hex}.pb")
}

/// The key of a manifest.
pub fn manifest_object(root: &str, sha256_hex: &str) -> String {
    format!("{root}/manifest/{sha256_hex}.pb")
}

/// The key of a page of the manifest.
pub fn page_object(root: &str, number: u32, sha256_hex: &str) -> String {
    format!("{root}/page/{number}-{sha256_hex}.pb")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, ResourceType};

    #[test]
    fn the_attempt_is_read_back_from_every_name_a_worker_writes() {
        let attempt = AttemptId::new(Epoch(3), 9).unwrap();
        let root = job_root("c", &tenant_folder(&ClientId::open()), JobId(5));
        let output = OutputObject {
            kind: OutputKind::Data,
            resource_type: ResourceType::PATIENT,
            nonce: Nonce(0xabcd),
            lines: 1,
            raw_bytes: 2,
            stored_bytes: 2,
            sha256: [0; 32],
        };
        let writer = Writer { task: TaskId(1), attempt, segment: 2 };
        let data = output_object(&root, writer, &output, Codec::Gzip);
        assert!(data.ends_with("/d/cd/00000001-0000000003000009-0002-000000000000abcd.Patient.ndjson.gz"));
        for key in [
            data,
            draft_object(&root, attempt, Nonce(1)),
            roster_object(&root, attempt, Nonce(1)),
            key_list_object(&root, 1, attempt, Nonce(1)),
        ] {
            assert_eq!(attempt_of(&key), Some(attempt), "{key}");
        }
        assert_eq!(attempt_of(&manifest_object(&root, &"0".repeat(64))), None);
        assert_eq!(attempt_of(&page_object(&root, 1, &"0".repeat(64))), None);
    }

    #[test]
    fn keys_of_a_job_share_its_prefix_and_end_with_their_number() {
        let keys = MetaKeys::new("main");
        let (job, other) = (JobId(7), JobId(70));
        assert!(keys.task(job, TaskId(3)).starts_with(&keys.tasks(job)));
        assert!(!keys.task(other, TaskId(3)).starts_with(&keys.tasks(job)));
        assert_eq!(trailing_hex(&keys.commit(job, 300)), Some(300));
        assert_eq!(trailing_hex(&keys.job(job)), Some(7));
    }

    #[test]
    fn keys_of_trust_lie_where_they_are_looked_for() {
        let keys = MetaKeys::new("main");
        let client = |name: &str| name.parse::<ClientId>().unwrap();
        assert!(!keys.client(&client("a-1")).starts_with(&keys.client(&client("a"))));
        assert!(keys.client(&client("a")).starts_with(&keys.clients_of(client_bucket(&client("a")))));
        let (from, to) = keys.used_jtis_before(16);
        let lies_there = |key: Vec<u8>| from <= key && key < to;
        assert!(lies_there(keys.used_jti(0, 0)) && lies_there(keys.used_jti(15, u128::MAX)));
        assert!(!lies_there(keys.used_jti(16, 0)) && !lies_there(keys.all_revoked()));
        assert!(keys.used_jti(9, 0xa << 124).starts_with(&keys.used_jtis_of(9, 10)));
    }
}
