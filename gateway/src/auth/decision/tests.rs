//! What is decided, case by case.

use super::*;
use flatbed_types::Level;

const NOW: Instant = Instant::from_millis(1_000);

fn thrice(decision: Decision) -> [Decision; 3] {
    [decision.clone(), decision.clone(), decision]
}

fn everything() -> Coverage {
    Coverage::from(&ExportRequest::everything(Level::System))
}

/// The decisions for (status, stop, file) on a job of one's own.
fn row(state: JobState, expires: Option<i64>, has_pages: bool) -> [Decision; 3] {
    let owner = ClientId::open();
    let expires = expires.map(Instant::from_millis);
    let facts = JobFacts { owner, state, expires, has_pages, covers: everything() };
    let actions = [Action::ReadStatus, Action::StopJob, Action::ReadFile];
    actions.map(|action| decide(&Caller::open(), action, Some(&facts), NOW))
}

#[test]
fn gr_02_the_open_client_sees_and_makes_every_group() {
    let id = "g".parse().unwrap();
    for action in [Action::ReadGroup(&id), Action::SearchGroups, Action::ManageGroups, Action::DrawFromAll] {
        assert_eq!(decide(&Caller::open(), action, None, NOW), Decision::Allow);
    }
}

#[test]
fn every_state_before_and_after_its_time() {
    use Decision::{Allow, Gone, NotFound};
    for state in JobState::ALL {
        let (in_time, late) = match state {
            JobState::Complete => (thrice(Allow), thrice(Gone)),
            JobState::Failed => ([Allow, Allow, NotFound], thrice(Gone)),
            JobState::Cancelled => (thrice(NotFound), thrice(NotFound)),
            JobState::Deleting | JobState::Gone => (thrice(NotFound), thrice(Gone)),
            _ => ([Allow, Allow, NotFound], [Allow, Allow, NotFound]),
        };
        assert_eq!(row(state, None, false), in_time, "{state:?}");
        assert_eq!(row(state, Some(1_001), false), in_time, "{state:?}");
        assert_eq!(row(state, Some(1_000), false), late, "{state:?}, ST-07");
    }
}

#[test]
fn pp_02_pp_04_files_of_pages_can_be_read_before_the_job_is_complete_and_after_it_failed() {
    for state in JobState::ALL {
        let bare = row(state, None, false);
        let published = bare == [Decision::Allow, Decision::Allow, Decision::NotFound];
        let [status, stop, file] = row(state, None, true);
        let [bare_status, bare_stop, bare_file] = bare;
        assert_eq!([status, stop], [bare_status, bare_stop], "{state:?}");
        let expected = if published { Decision::Allow } else { bare_file };
        assert_eq!(file, expected, "{state:?}");
    }
}

#[test]
fn st_18_dl_08_fl_26_what_is_another_clients_is_not_there() {
    let owner: ClientId = "a".parse().unwrap();
    let other = Caller { client: "b".parse().unwrap(), may: May::Everything };
    for state in JobState::ALL {
        let expires = Some(Instant::from_millis(1));
        let facts = JobFacts { owner: owner.clone(), state, expires, has_pages: true, covers: everything() };
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
        assert_eq!(decide(&Caller::open(), action, None, NOW), Decision::Allow);
    }
}

fn granted(scopes: &str, groups: GroupGrant, levels: LevelGrant) -> Caller {
    let scopes = Scopes::read(scopes).unwrap();
    let grants = Grants { scopes, groups, levels, disabled: false };
    Caller { client: "a".parse().unwrap(), may: May::Granted(Box::new(grants)) }
}

#[test]
fn au_83_narrowing_never_widens_and_leaves_nothing_that_is_refused() {
    let levels = LevelGrant { system: true, patient: true, group: true };
    let listed = GroupGrant::Listed(["g".parse().unwrap()].into());
    for scopes in [
        "system/*.rs",
        "system/Patient.rs",
        "system/*.r system/Group.s",
        "system/*.cud",
        "system/Device.read",
    ] {
        for groups in [GroupGrant::All, listed.clone()] {
            for level in [Level::System, Level::Patient] {
                let caller = granted(scopes, groups.clone(), levels);
                let mut request = ExportRequest::everything(level);
                let narrowed = narrow(&caller, &mut request);
                let decision = decide(&caller, Action::KickOff(&request), None, NOW);
                assert_eq!(narrowed.is_ok(), decision == Decision::Allow, "{scopes}: {decision:?}");
            }
        }
    }
    // What names types stays as it is, and is refused.
    let caller = granted("system/Patient.rs", GroupGrant::All, levels);
    let named =
        ExportRequest { types: [ResourceType::DEVICE].into(), ..ExportRequest::everything(Level::System) };
    let mut request = named.clone();
    assert_eq!(narrow(&caller, &mut request), Ok(()));
    assert_eq!(request, named);
    let lack = Lack::Types([ResourceType::DEVICE].into());
    assert_eq!(decide(&caller, Action::KickOff(&request), None, NOW), Decision::Forbidden(lack));
}

#[test]
fn sec_13_files_of_a_group_by_criteria_need_what_its_members_were_drawn_from() {
    use flatbed_types::cohort::CohortMember;

    let cohort: FhirId = flatbed_types::cohort::cohort_id(7).unwrap();
    let rule =
        |among: Option<Vec<CohortMember>>| CohortRule { filters: vec!["Condition?code=x".to_owned()], among };
    let facts = |plan: Option<CohortPlan>| {
        let mut request = ExportRequest::everything(Level::Group(cohort.clone()));
        request.types = [ResourceType::PATIENT].into();
        request.cohort = plan;
        let mut record = JobRecord::new(
            flatbed_types::JobId(1),
            "a".parse().unwrap(),
            request,
            flatbed_types::Codec::None,
            Instant::from_millis(1),
        );
        record.state = JobState::Complete;
        JobFacts::from(&record)
    };
    let group = |id: &str| CohortMember::Group(id.parse().unwrap());
    let of_group = facts(Some(CohortPlan(vec![(cohort.clone(), rule(Some(vec![group("g1")])))])));
    let of_all = facts(Some(CohortPlan(vec![(cohort.clone(), rule(None))])));
    let bare = facts(None);
    let levels = |patient: bool| LevelGrant { system: false, patient, group: true };
    let listed = |id: &str| GroupGrant::Listed([id.parse().unwrap()].into());
    let scopes = "system/Patient.rs system/Group.rs system/Condition.rs";
    let decided = |scopes: &str, groups: GroupGrant, levels: LevelGrant, facts: &JobFacts| {
        decide(&granted(scopes, groups, levels), Action::ReadFile, Some(facts), NOW)
    };
    assert_eq!(decided(scopes, listed("g1"), levels(false), &of_group), Decision::Allow);
    let lost = Decision::Forbidden(Lack::Group);
    assert_eq!(decided(scopes, listed("g2"), levels(false), &of_group), lost, "the Group was taken away");
    assert_eq!(decided(scopes, listed("g2"), levels(true), &of_group), lost, "whatever its level");
    assert_eq!(decided(scopes, listed("g1"), levels(true), &of_all), Decision::Allow);
    let all = Decision::Forbidden(Lack::AllPatients);
    assert_eq!(decided(scopes, listed("g1"), levels(false), &of_all), all, "the level was taken away");
    let chosen = Decision::Forbidden(Lack::Types(["Condition".parse().unwrap()].into()));
    let fewer = "system/Patient.rs system/Group.rs";
    assert_eq!(decided(fewer, listed("g1"), levels(false), &of_group), chosen);
    assert_eq!(decided(scopes, listed("g1"), levels(false), &bare), lost, "a source's Group of such a name");
}

#[test]
fn au_86_nobody_and_the_disabled_read_what_is_public() {
    let mut disabled = granted("system/*.rs", GroupGrant::All, LevelGrant::default());
    let May::Granted(grants) = &mut disabled.may else { panic!("nothing granted") };
    grants.disabled = true;
    let request = ExportRequest::everything(Level::System);
    let facts = JobFacts {
        owner: disabled.client.clone(),
        state: JobState::Complete,
        expires: None,
        has_pages: true,
        covers: everything(),
    };
    let id = "g".parse().unwrap();
    for caller in [disabled, Caller::nobody()] {
        assert_eq!(decide(&caller, Action::ReadPublic, None, NOW), Decision::Allow);
        for action in [
            Action::KickOff(&request),
            Action::ReadStatus,
            Action::StopJob,
            Action::ReadFile,
            Action::ReadGroup(&id),
            Action::SearchGroups,
            Action::ManageGroups,
            Action::DrawFromAll,
            Action::ChooseBy(ResourceType::PATIENT),
        ] {
            assert_eq!(decide(&caller, action, Some(&facts), NOW), Decision::Unauthenticated, "{action:?}");
        }
    }
}
