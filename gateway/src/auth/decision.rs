//! Who may do what. [`decide`] is the one function that every route asks before it acts, in open mode too
//! (`decisions.md` 21); what it needs to know is passed in.
//!
//! Knows no tokens: who asks, and what that client was granted, was found out before. Invariants: a job of another client, and a Group that
//! the client may not see, look exactly like ones that do not exist; nothing is allowed on a job that is not
//! known; what an export carries is held against the scopes twice, when it is kicked off and each time something of it is read.

use std::collections::BTreeSet;

use flatbed_types::cohort::{CohortPlan, CohortRule, is_cohort_id};
use flatbed_types::job::{JobRecord, JobState};
use flatbed_types::trust::{GroupGrant, LevelGrant};
use flatbed_types::{ClientId, ExportRequest, FhirId, Instant, Level, ResourceType};

use super::scopes::{Rights, Scopes};

/// Who asks, and what that is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Who: the owner of what is made.
    pub client: ClientId,
    /// What is allowed.
    pub may: May,
}

/// What somebody may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum May {
    /// Read what is public: nobody has proved to be anyone.
    ReadPublic,
    /// Everything: the one client of a server without authentication.
    Everything,
    /// What was granted.
    Granted(Box<Grants>),
}

/// What a client with a valid token may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grants {
    /// Scopes that the token grants and the client is still registered for.
    pub scopes: Scopes,
    /// Groups.
    pub groups: GroupGrant,
    /// Levels.
    pub levels: LevelGrant,
    /// Whether the client was disabled after the token was made.
    pub disabled: bool,
}

impl Caller {
    /// The one client of a server without authentication.
    pub fn open() -> Caller {
        Caller { client: ClientId::open(), may: May::Everything }
    }

    /// The Groups of the source that it may see; `None` for all.
    pub fn listed_groups(&self) -> Option<BTreeSet<FhirId>> {
        match &self.may {
            May::Granted(grants) => match &grants.groups {
                GroupGrant::All => None,
                GroupGrant::Listed(groups) => Some(groups.clone()),
            },
            May::Everything => None,
            May::ReadPublic => Some(BTreeSet::new()),
        }
    }

    /// Somebody without a token, where tokens are needed.
    pub fn nobody() -> Caller {
        Caller { client: ClientId::open(), may: May::ReadPublic }
    }
}

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
    /// See a Group of the source, by itself or in a result.
    ReadGroup(&'a FhirId),
    /// Search for Groups; each that is found is asked about on its own.
    SearchGroups,
    /// Make, change or delete Groups by criteria, and ask what became of that (CH-15).
    ManageGroups,
    /// Make or export a Group by criteria that draws its members from all patients, not from Groups or patients that it names.
    DrawFromAll,
    /// Choose members of a Group by what resources of a type say.
    ChooseBy(ResourceType),
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
    /// Whether files can be read though it is not complete: pages of its manifest list them (PP-02).
    pub has_pages: bool,
    /// What it exports.
    pub covers: Coverage,
}

/// What an export carries, as far as it has to be allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    /// For whom.
    pub level: Level,
    /// Types, with those that come along; `None` for all that can be exported.
    pub types: Option<BTreeSet<ResourceType>>,
    /// Where the members of its Group come from; `None` where that is not known yet: a kick-off asks for it.
    pub drawn: Option<Drawn>,
}

/// Where the members of a Group come from, which may have been made by criteria.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drawn {
    /// Groups of the source.
    pub groups: BTreeSet<FhirId>,
    /// Whether of all patients.
    pub from_all: bool,
    /// Types by whose resources they are chosen.
    pub chosen_by: BTreeSet<ResourceType>,
}

impl From<&CohortPlan> for Drawn {
    fn from(plan: &CohortPlan) -> Drawn {
        let made: BTreeSet<&FhirId> = plan.0.iter().map(|(id, _)| id).collect();
        let rules = || plan.0.iter().map(|(_, rule)| rule);
        Drawn {
            groups: rules().flat_map(CohortRule::groups).filter(|id| !made.contains(id)).cloned().collect(),
            from_all: rules().any(CohortRule::draws_from_all),
            chosen_by: rules().flat_map(CohortRule::chosen_by).collect(),
        }
    }
}

impl From<&ExportRequest> for Coverage {
    fn from(request: &ExportRequest) -> Coverage {
        let provenance = request.associates(ResourceType::PROVENANCE).then_some(ResourceType::PROVENANCE);
        let named = request.types.iter().copied().chain(provenance).collect();
        let types = (!request.types.is_empty()).then_some(named);
        let drawn = request.cohort.as_ref().map(Drawn::from);
        Coverage { level: request.level.clone(), types, drawn }
    }
}

impl From<&JobRecord> for JobFacts {
    fn from(record: &JobRecord) -> JobFacts {
        let mut covers = Coverage::from(&record.request);
        if let Level::Group(id) = &record.request.level {
            // Without rules it is one of the source, whatever its id looks like.
            let itself = || Drawn { groups: [id.clone()].into(), ..Drawn::default() };
            covers.drawn.get_or_insert_with(itself);
        }
        JobFacts {
            owner: record.client.clone(),
            state: record.state,
            expires: record.expires,
            has_pages: record.pages > 0,
            covers,
        }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// There is no such thing, or none that this client may know of.
    NotFound,
    /// It was this client's and its time is over.
    Gone,
    /// Nobody has proved to be anyone, or not any more.
    Unauthenticated,
    /// The client is known, and may not.
    Forbidden(Lack),
}

/// What somebody lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// A scope with `rs` on each of these types.
    Types(BTreeSet<ResourceType>),
    /// A scope with `rs` on any type that could be exported.
    AnyType,
    /// The level.
    Level,
    /// A scope on Groups.
    GroupScope(Rights),
    /// Access to the Group of the export.
    Group,
    /// All Groups, which an export of type Group at system level would carry.
    AllGroups,
    /// Access to all patients.
    AllPatients,
}

/// Decides. `job` is `None` for actions on no job, and where the job named is not known.
///
/// Files that pages list stay readable after a failure: they were published and do not change (PP-03, PP-04).
///
/// A job that its client stopped is not found from then on (DL-04, DL-06); one whose time has passed is gone,
/// whether its files have been removed yet or not (ST-07, ST-22).
pub fn decide(caller: &Caller, action: Action<'_>, job: Option<&JobFacts>, now: Instant) -> Decision {
    let grants = match &caller.may {
        _ if action == Action::ReadPublic => return Decision::Allow,
        May::ReadPublic => return Decision::Unauthenticated,
        May::Granted(grants) if grants.disabled => return Decision::Unauthenticated,
        May::Granted(grants) => Some(grants.as_ref()),
        May::Everything => None,
    };
    match action {
        Action::ReadPublic => Decision::Allow,
        Action::KickOff(request) => {
            let group_is_there = |grants: &Grants| match &request.level {
                Level::Group(id) => may_name(&grants.groups, id),
                Level::System | Level::Patient => true,
            };
            match grants {
                None => Decision::Allow,
                Some(grants) => match lack_of(grants, &Coverage::from(request)) {
                    Some(Lack::Group) => Decision::NotFound,
                    Some(lack) => Decision::Forbidden(lack),
                    None if group_is_there(grants) => Decision::Allow,
                    None => Decision::NotFound,
                },
            }
        }
        Action::ReadGroup(id) => on_groups(grants, Rights::READ, |grants| grants.groups.covers(id)),
        Action::SearchGroups => on_groups(grants, Rights::READ, |_| true),
        Action::ManageGroups => on_groups(grants, Rights::WRITE, |_| true),
        Action::DrawFromAll if grants.is_none_or(|grants| grants.levels.reaches_all_patients()) => {
            Decision::Allow
        }
        Action::DrawFromAll => Decision::Forbidden(Lack::AllPatients),
        // Who is chosen tells what the resources say.
        Action::ChooseBy(of) if grants.is_none_or(|grants| grants.scopes.may_read(of)) => Decision::Allow,
        Action::ChooseBy(of) => Decision::Forbidden(Lack::Types([of].into())),
        Action::ReadStatus | Action::StopJob | Action::ReadFile => {
            let Some(job) = job.filter(|job| job.owner == caller.client) else {
                return Decision::NotFound;
            };
            match (on_own(action, job, now), grants) {
                // Whoever stops a job learns nothing of what it holds.
                (Decision::Allow, Some(grants)) if action != Action::StopJob => {
                    lack_of(grants, &job.covers).map_or(Decision::Allow, Decision::Forbidden)
                }
                (decision, _) => decision,
            }
        }
    }
}

/// What follows from how a client's own job stands.
fn on_own(action: Action<'_>, job: &JobFacts, now: Instant) -> Decision {
    let expired = job.expires.is_some_and(|expires| expires <= now);
    match (job.state, action) {
        (JobState::Cancelled, _) => Decision::NotFound,
        (JobState::Deleting | JobState::Gone, _) if !expired => Decision::NotFound,
        (JobState::Deleting | JobState::Gone, _) => Decision::Gone,
        (JobState::Complete | JobState::Failed, _) if expired => Decision::Gone,
        (JobState::Complete, _) => Decision::Allow,
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

/// Groups that clients made by criteria are in no list; whether one that has such an id is this client's own, and of whom it may
/// draw its members, is asked of the coordinators.
fn may_name(groups: &GroupGrant, id: &FhirId) -> bool {
    groups.covers(id) || is_cohort_id(id)
}

fn on_groups(grants: Option<&Grants>, needed: Rights, sees: impl Fn(&Grants) -> bool) -> Decision {
    match grants {
        None => Decision::Allow,
        Some(grants) if !grants.scopes.rights(ResourceType::GROUP).cover(needed) => {
            Decision::Forbidden(Lack::GroupScope(needed))
        }
        Some(grants) if sees(grants) => Decision::Allow,
        Some(_) => Decision::NotFound,
    }
}

/// What of an export is not allowed (SEC-03, SEC-08, SEC-09, AU-81 to AU-83, AU-87).
fn lack_of(grants: &Grants, covers: &Coverage) -> Option<Lack> {
    if !grants.levels.covers(&covers.level) {
        return Some(Lack::Level);
    }
    if let Level::Group(id) = &covers.level {
        if !grants.scopes.may_read(ResourceType::GROUP) {
            return Some(Lack::GroupScope(Rights::READ));
        }
        if !may_name(&grants.groups, id) {
            return Some(Lack::Group);
        }
    }
    if let Some(lack) = covers.drawn.as_ref().and_then(|drawn| lack_of_drawn(grants, drawn)) {
        return Some(lack);
    }
    let lacks = |of: &ResourceType| !grants.scopes.may_read(*of);
    let lacking: BTreeSet<ResourceType> = match &covers.types {
        Some(types) => types.iter().copied().filter(lacks).collect(),
        None => ResourceType::all().filter(|of| of.is_exportable()).filter(lacks).collect(),
    };
    if !lacking.is_empty() {
        return Some(Lack::Types(lacking));
    }
    let carries_groups = covers.types.as_ref().is_none_or(|types| types.contains(&ResourceType::GROUP));
    if covers.level == Level::System && carries_groups && grants.groups != GroupGrant::All {
        return Some(Lack::AllGroups);
    }
    None
}

/// What of the members of a Group is not allowed, by where they come from and what they are chosen by.
fn lack_of_drawn(grants: &Grants, drawn: &Drawn) -> Option<Lack> {
    if !drawn.groups.iter().all(|group| grants.groups.covers(group)) {
        return Some(Lack::Group);
    }
    if drawn.from_all && !grants.levels.reaches_all_patients() {
        return Some(Lack::AllPatients);
    }
    let lacking: BTreeSet<ResourceType> =
        drawn.chosen_by.iter().copied().filter(|of| !grants.scopes.may_read(*of)).collect();
    (!lacking.is_empty()).then_some(Lack::Types(lacking))
}

/// Narrows a request that names no types to what its client may read (AU-83); one that names types stays as it is.
///
/// # Errors
/// Nothing is left.
pub fn narrow(caller: &Caller, request: &mut ExportRequest) -> Result<(), Lack> {
    let May::Granted(grants) = &caller.may else { return Ok(()) };
    if !request.types.is_empty() {
        return Ok(());
    }
    let exportable = || ResourceType::all().filter(|of| of.is_exportable());
    let is_granted = |of: &ResourceType| {
        let others_groups =
            *of == ResourceType::GROUP && request.level == Level::System && grants.groups != GroupGrant::All;
        grants.scopes.may_read(*of) && !others_groups
    };
    let types: BTreeSet<ResourceType> = exportable().filter(is_granted).collect();
    if types.is_empty() {
        return Err(Lack::AnyType);
    }
    // A search names its type: whoever searches among what is withheld is told, as with `_type` (AU-82).
    let searched: BTreeSet<ResourceType> =
        exportable().filter(|of| !types.contains(of) && request.filters_on(*of).next().is_some()).collect();
    if !searched.is_empty() {
        return Err(Lack::Types(searched));
    }
    if types.len() < exportable().count() {
        request.types = types;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
