//! Limits, each with its reason.

/// Types in one `_type` list: more than FHIR has, so that no honest request meets it.
pub const MAX_TYPES: usize = 256;

/// Patients in one `patient` list. 10,000 references fit the body limit below.
pub const MAX_PATIENTS: usize = 10_000;

/// Bytes of a kick-off body: a `Parameters` with `MAX_PATIENTS` references of about 100 bytes each.
pub const MAX_KICKOFF_BODY: usize = 1 << 20;

/// Tasks of one plan: 40 TB in tasks of 512 MiB are 80,000 (`coordination.md` 3.4).
pub const MAX_PLANNED_TASKS: usize = 131_072;

/// Attempts in a row without a commit before the task, and with it the job, fails.
pub const MAX_TASK_FAILURES: u32 = 4;

/// Workers lost in a row, without a commit, before a task is put off: kills and scaling down are normal.
pub const FREE_TASK_LOSSES: u32 = 20;

/// Workers lost in a row, without a commit, before the task, and with it the job, fails.
pub const MAX_TASK_LOSSES: u32 = 60;

/// Rounds of looking up supporting resources (`decisions.md` 3): role, then organisation, then its parent.
pub const MAX_ROUNDS: u32 = 3;

/// Task changes in one transaction: two operations each and the fence stay below etcd's 128.
pub const MAX_CHANGES_PER_TXN: usize = 60;

/// Raw bytes after which a segment is sealed even when its file could grow: bounds what a crash redoes.
pub const SEAL_BYTES: u64 = 512 << 20;

/// Time after which a segment is sealed: bounds what a crash redoes on slow sources.
pub const SEAL_MILLIS: u64 = 60_000;

/// Raw bytes compressed as one full-flush segment: 1 MiB loses about 1 % against one stream
/// (`performance-and-ecosystem.md` A3b).
pub const DEFLATE_SEGMENT: usize = 1 << 20;

/// Bytes of a part of a multipart upload: the least that S3 takes, since each slot holds one; at 10,000 parts a
/// file may reach 48 GiB.
pub const UPLOAD_PART: usize = 5 << 20;

/// No file is made larger than this because a client asks for large ones, before compression: also stored plain it
/// must fit into 10,000 parts of an upload.
pub const MAX_FILE_BYTES: u64 = 32 << 30;

/// Bytes between two boundary hints of a lane, so that tasks can be cut finely later.
pub const HINT_BYTES: u64 = 64 << 20;

/// Default of `--max-line`: longer lines are reported, shorter ones stream through whole.
pub const DEFAULT_MAX_LINE: u64 = 256 << 20;

/// A line longer than this is never held in memory in one piece.
pub const LONG_LINE: usize = 4 << 20;

/// How often a worker reports (`coordination.md` 5.3).
pub const HEARTBEAT_MILLIS: u64 = 3_000;

/// How long a lost worker's attempts stay allowed, counted from the last message (`--task-lease-ttl`).
pub const TASK_LEASE_MILLIS: u64 = 20_000;

/// How long the attempts of a worker whose stream broke stay allowed.
pub const STREAM_GRACE_MILLIS: u64 = 5_000;

/// How long a worker keeps a sealed segment and retries its commit before it gives the attempt up.
pub const ABANDON_MILLIS: u64 = 600_000;

/// How long a kick-off waits for a worker's answer about a Group or a patient (`decisions.md` 7).
pub const ASK_MILLIS: u64 = 5_000;

/// How long an idempotency key repeats its job (`coordination.md` 3.2).
pub const IDEMPOTENCY_MILLIS: u64 = 24 * 3_600_000;

/// How long finished files stay unless `--retention` says otherwise.
pub const DEFAULT_RETENTION_MILLIS: u64 = 24 * 3_600_000;

/// How long the record of a deleted job stays, so that its URLs say "gone".
pub const TOMBSTONE_MILLIS: u64 = 30 * 24 * 3_600_000;

/// Default of `--target-file-size`, before compression.
pub const DEFAULT_TARGET_FILE_SIZE: u64 = 1 << 30;

/// How long a job is reported as in progress at least (`--min-in-progress`).
pub const DEFAULT_MIN_IN_PROGRESS_MILLIS: u64 = 1_000;

/// Largest protobuf message between the roles. Plans and lists travel as objects; the longest message names the
/// sidecars of a round to a resolve task, some 170 bytes each.
pub const MAX_MESSAGE: usize = 64 << 20;

/// Data files of one job (`decisions.md` 2): above it small files are joined by merge tasks.
pub const MAX_FILES: usize = 50_000;

/// Files that one merge task joins: their names travel in one grant, about 100 bytes each.
pub const MAX_MERGE_INPUTS: usize = 4_096;

/// Commits in the store above which they are folded into an object (`coordination.md` 3.3): 4,096 of at most 450
/// bytes are 1.9 MB.
pub const FOLD_COMMITS: usize = 4_096;

/// How long commits stay in the store before they are folded even when they are few.
pub const FOLD_MILLIS: u64 = 300_000;

/// Folds happen by time only from this many commits on: a small job needs none.
pub const MIN_FOLD_COMMITS: usize = 512;

/// How long a coordinator that says nothing keeps its jobs (`--owner-lease-ttl`).
pub const OWNER_LEASE_MILLIS: u64 = 5_000;

/// How often a coordinator renews its lease.
pub const OWNER_KEEPALIVE_MILLIS: u64 = 1_500;

/// Jobs of at most this many tasks are small: they may use the reserved slots (`coordination.md` 5.5).
pub const SMALL_JOB_TASKS: u32 = 64;

/// Of so many slots, one is kept for small jobs.
pub const RESERVED_SLOT_EVERY: u32 = 10;

/// A worker stops reading when no coordinator has acknowledged a heartbeat for this long (`coordination.md` 5.3).
pub const PAUSE_MILLIS: u64 = 60_000;

/// Unfinished jobs of one client, unless the operator says otherwise.
pub const DEFAULT_MAX_JOBS: u32 = 16;

/// New files after which a page of a manifest appears while its job runs, where the client takes pages.
pub const PAGE_FILES: usize = 1_000;

/// How long a new file waits for its page at most, while few have appeared.
pub const PAGE_MILLIS: u64 = 60_000;

/// Files on one page: some 2 MB of JSON (MF-39).
pub const MAX_PAGE_FILES: usize = 10_000;

/// A page waits until it brings at least one part in so many of what there is: pages are then some hundred even of a job
/// that takes months, since their number grows with its logarithm from here on.
pub const PAGE_GROWTH: u64 = 32;

/// Groups in the answer to one question of a search: a count of more is not worth a client's patience.
pub const MAX_GROUPS_ASKED: u32 = 10_000;

/// How long a worker's answer rests as an object before it is swept: readers have begun long before.
pub const ANSWER_MILLIS: u64 = 10 * 60_000;

/// Bytes of the definition of a cohort: some thousand members, and far below what the state store takes at once.
pub const MAX_COHORT_BYTES: usize = 256 << 10;

/// Filters of one cohort: each may cost a pass over a lane.
pub const MAX_COHORT_FILTERS: usize = 20;

/// Cohorts of one client.
pub const MAX_COHORTS: usize = 200;

/// Cohorts that the members of one cohort follow from, itself among them.
pub const MAX_COHORTS_NESTED: usize = 32;

/// Bytes of the rules that travel with an export of a cohort: they rest in its record.
pub const MAX_COHORT_PLAN_BYTES: usize = 256 << 10;

/// Bytes of cohorts in one message of a list.
pub const MAX_COHORT_LIST_BYTES: usize = 8 << 20;

/// Bytes of what answers the poll of an asynchronous request: an outcome has at most a hundred issues.
pub const MAX_RECEIPT_BYTES: usize = 128 << 10;

/// Answers of asynchronous requests that are kept for one client.
pub const MAX_RECEIPTS: usize = 100;

/// How long they are kept.
pub const RECEIPT_MILLIS: u64 = 24 * 3_600_000;

/// Bytes of a client's name: what a page shows in one line.
pub const MAX_CLIENT_NAME: usize = 256;

/// Bytes of a client's scopes: one per type, twice over.
pub const MAX_CLIENT_SCOPES: usize = 16 << 10;

/// Bytes of the URL of a client's keys.
pub const MAX_CLIENT_URL: usize = 2 << 10;

/// Bytes of a client's JWK Set: some tens of keys.
pub const MAX_CLIENT_JWKS: usize = 64 << 10;

/// Groups listed for one client: its record stays far below what the state store takes at once.
pub const MAX_CLIENT_GROUPS: usize = 2_000;

/// Bytes of clients in one message of a list.
pub const MAX_CLIENT_LIST_BYTES: usize = 4 << 20;

/// How long one window of used jtis is. A sweep removes whole windows.
pub const JTI_WINDOW_MILLIS: i64 = 120_000;

/// How far ahead of a coordinator's clock an assertion may end: five minutes (AU-60), and what gateways allow for clocks.
pub const JTI_AHEAD_MILLIS: i64 = 480_000;

/// How far behind it may have ended: what gateways allow for clocks.
pub const JTI_BEHIND_MILLIS: i64 = 120_000;

/// Windows on both sides of the present one in which a jti may have been used before: whoever used the same assertion did
/// so with a clock that was at most the two times above away.
pub const JTI_WINDOWS: i64 = (JTI_AHEAD_MILLIS + JTI_BEHIND_MILLIS) / JTI_WINDOW_MILLIS;

/// Windows that are kept beyond those: by so much the clocks of coordinators may differ.
pub const JTI_WINDOWS_KEPT: i64 = 2 * JTI_WINDOWS;

/// Bytes that name a token.
pub const MAX_TOKEN_ID: usize = 128;

/// How long a token may live that is taken: our own live five minutes (AU-71), those of other servers often hours.
pub const MAX_TOKEN_MILLIS: i64 = 24 * 3_600_000;

/// How far ahead a revocation may end: no token that is taken lives longer, clocks considered.
pub const MAX_REVOCATION_MILLIS: i64 = MAX_TOKEN_MILLIS + 10 * 60_000;

/// How long a key signs tokens before another follows.
pub const SIGNING_KEY_MILLIS: i64 = 24 * 3_600_000;

/// How long a new key verifies before it signs: gateways ask more often than that.
pub const SIGNING_KEY_AHEAD_MILLIS: i64 = 10 * 60_000;

/// How long a key verifies after another has begun to sign: longer than any token of our own lives.
pub const SIGNING_KEY_AFTER_MILLIS: i64 = 70 * 60_000;

/// Bytes of each text that a client says of itself beside its name when it registers itself.
pub const MAX_REGISTERED_TEXT: usize = 256;

/// People to ask about a client that registered itself.
pub const MAX_CLIENT_CONTACTS: usize = 8;

/// Clients that registered themselves and wait for an operator: more than anybody looks through, and with all that a client may
/// say of itself some 100 MB, so that an invitation in wrong hands does not fill the state store.
pub const MAX_WAITING_CLIENTS: usize = 1_000;

/// Invitations that are open at once.
pub const MAX_INVITATIONS: usize = 1_000;

/// Clients that may register by one invitation.
pub const MAX_INVITATION_USES: u32 = 1_000;

/// How long an invitation is good at most.
pub const MAX_INVITATION_MILLIS: i64 = 90 * 24 * 3_600_000;
