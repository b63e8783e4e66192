//! Who may do what. [`decide`] is the one function that every route asks before it acts, in open mode too
//! (`decisions.md` 21); what it needs to know is passed in.
//!
//! Invariants: a job of another client looks exactly like one that does not exist; nothing is allowed on a
//! job that is not known.

use flatbed_types::job::{JobRecord, JobState};
use flatbed_types::{ClientId, ExportRequest, FhirId, Instant};

/// What a request wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'a> {
    /// Read the page for people, the capability statement or a definition.
    ReadPublic,
    /// Start a job.
    KickOff(&'a ExportRequest),
    /// Ask how far a job is, or for its manifest.
    ReadStatus,
    /// Cancel or delete a job.
    StopJob,
    /// Download a file of a job.
    ReadFile,
    /// See a Group, by itself or in a result.
    ReadGroup(&'a FhirId),
    /// Search for Groups; each that is found is asked about on its own.
    SearchGroups,
    /// Make, change or delete Groups by criteria, and ask what became of that (CH-15).
    ManageGroups,
}

/// What is known of the job that a request names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFacts {
    /// Who started it.
    pub owner: ClientId,
    /// Where it stands.
    pub state: JobState,
    /// When its files go away, once that is fixed.
    pub expires: Option<Instant>,
    /// Whether files can be read before it is complete: pages of its manifest list them (PP-02).
    pub has_pages: bool,
}

impl From<&JobRecord> for JobFacts {
    fn from(record: &JobRecord) -> JobFacts {
        JobFacts {
            owner: record.client.clone(),
            state: record.state,
            expires: record.expires,
            has_pages: record.pages > 0,
        }
    }
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// There is no such thing, or none that this client may know of.
    NotFound,
    /// It was this client's and its time is over.
    Gone,
}

/// Decides. `job` is `None` for actions on no job, and where the job named is not known.
///
/// A job that its client stopped is not found from then on (DL-04, DL-06); one whose time has passed is gone,
/// whether its files have been removed yet or not (ST-07, ST-22).
pub fn decide(client: &ClientId, action: Action<'_>, job: Option<&JobFacts>, now: Instant) -> Decision {
    match action {
        // These concern no job; the open client has every level, Group and type.
        Action::ReadPublic | Action::KickOff(_) => return Decision::Allow,
        Action::ReadGroup(_) | Action::SearchGroups | Action::ManageGroups => return Decision::Allow,
        Action::ReadStatus | Action::StopJob | Action::ReadFile => {}
    }
    let Some(job) = job.filter(|job| job.owner == *client) else {
        return Decision::NotFound;
    };
    let expired = job.expires.is_some_and(|expires| expires <= now);
    match (job.state, action) {
        (JobState::Cancelled, _) => Decision::NotFound,
        (JobState::Deleting | JobState::Gone, _) if !expired => Decision::NotFound,
        (JobState::Deleting | JobState::Gone, _) => Decision::Gone,
        (JobState::Complete | JobState::Failed, _) if expired => Decision::Gone,
        (JobState::Complete, _) => Decision::Allow,
        (JobState::Failed, Action::ReadFile) => Decision::NotFound,
        (_, Action::ReadFile) if !job.has_pages => Decision::NotFound,
        (
            JobState::Planning
            | JobState::Running
            | JobState::Resolving
            | JobState::Merging
            | JobState::Finalizing
            | JobState::Failed,
            _,
        ) => Decision::Allow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatbed_types::Level;

    const NOW: Instant = Instant::from_millis(1_000);
    /// The decisions for (status, stop, file) on a job of one's own.
    fn row(state: JobState, expires: Option<i64>, has_pages: bool) -> [Decision; 3] {
        let owner = ClientId::open();
        let expires = expires.map(Instant::from_millis);
        let facts = JobFacts { owner: owner.clone(), state, expires, has_pages };
        let actions = [Action::ReadStatus, Action::StopJob, Action::ReadFile];
        actions.map(|action| decide(&owner, action, Some(&facts), NOW))
    }

    #[test]
    fn gr_02_the_open_client_sees_and_makes_every_group() {
        let (client, id) = (ClientId::open(), "g".parse().unwrap());
        for action in [Action::ReadGroup(&id), Action::SearchGroups, Action::ManageGroups] {
            assert_eq!(decide(&client, action, None, NOW), Decision::Allow);
        }
    }

    #[test]
    fn every_state_before_and_after_its_time() {
        use Decision::{Allow, Gone, NotFound};
        for state in JobState::ALL {
            let (in_time, late) = match state {
                JobState::Complete => ([Allow; 3], [Gone; 3]),
                JobState::Failed => ([Allow, Allow, NotFound], [Gone; 3]),
                JobState::Cancelled => ([NotFound; 3], [NotFound; 3]),
                JobState::Deleting | JobState::Gone => ([NotFound; 3], [Gone; 3]),
                _ => ([Allow, Allow, NotFound], [Allow, Allow, NotFound]),
            };
            assert_eq!(row(state, None, false), in_time, "{state:?}");
            assert_eq!(row(state, Some(1_001), false), in_time, "{state:?}");
            assert_eq!(row(state, Some(1_000), false), late, "{state:?}, ST-07");
        }
    }

    #[test]
    fn pp_02_files_of_pages_can_be_read_before_the_job_is_complete() {
        for state in JobState::ALL {
            let running = row(state, None, false) == [Decision::Allow, Decision::Allow, Decision::NotFound]
                && state != JobState::Failed;
            let [status, stop, file] = row(state, None, true);
            assert_eq!([status, stop], [row(state, None, false)[0], row(state, None, false)[1]], "{state:?}");
            let expected = if running { Decision::Allow } else { row(state, None, false)[2] };
            assert_eq!(file, expected, "{state:?}");
        }
    }

    #[test]
    fn st_18_dl_08_fl_26_what_is_another_clients_is_not_there() {
        let owner: ClientId = "a".parse().unwrap();
        let other: ClientId = "b".parse().unwrap();
        for state in JobState::ALL {
            let expires = Some(Instant::from_millis(1));
            let facts = JobFacts { owner: owner.clone(), state, expires, has_pages: true };
            for action in [Action::ReadStatus, Action::StopJob, Action::ReadFile] {
                assert_eq!(decide(&other, action, Some(&facts), NOW), Decision::NotFound);
                assert_eq!(decide(&other, action, None, NOW), Decision::NotFound);
            }
        }
    }

    #[test]
    fn md_12_public_reads_and_kick_offs_concern_no_job() {
        let request = ExportRequest::everything(Level::System);
        for action in [Action::ReadPublic, Action::KickOff(&request)] {
            assert_eq!(decide(&ClientId::open(), action, None, NOW), Decision::Allow);
        }
    }
}
