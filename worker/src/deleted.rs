//! The files of an increment that say what was deleted (MF-25 to MF-30): a Bundle of `DELETE` entries a line.
//!
//! What is told is what the export would have carried, were it still there: of the types asked for, and at Patient and
//! Group level of the patients of the job. Leaving a Group deletes nothing. Searches cannot be asked of what is gone:
//! they leave out nothing here. Of patients that the job leaves out nothing is told (`consent`), nor of whom nobody knows.
//! What has come under an exclusion since was not deleted either. Whether the resource is there again is the source's business, which then tells nothing.

use flatbed_extract::bundle::Deletions;
use flatbed_extract::outcome::{self, Severity};
use flatbed_extract::source::{DeletionsKnown, Tombstone, Window};
use flatbed_extract::{KeyList, Snapshot, SourceError};
use flatbed_types::job::{JobError, ObjectPointer};
use flatbed_types::task::{OutputKind, OutputObject};
use flatbed_types::{ExportRequest, Instant, Level, ResourceType};
use tokio::runtime::Handle;

use crate::lines::LineFiles;
use crate::slot::{Grant, open_list};
use crate::{Context, source_error};

/// Entries of a Bundle: lines that every reader holds with ease.
const BUNDLE_ENTRIES: usize = 100;

/// What was written.
pub(crate) struct Deleted {
    /// The files.
    pub files: Vec<OutputObject>,
    /// What there is to say of it: OperationOutcome lines.
    pub remarks: Vec<Vec<u8>>,
}

/// Writes what was deleted since the moment that the request asks for; nothing without one.
pub(crate) fn write(
    context: &Context,
    runtime: &Handle,
    grant: &Grant,
    snapshot: &dyn Snapshot,
    roster: Option<&ObjectPointer>,
    excluded: Option<&KeyList>,
) -> Result<Deleted, JobError> {
    let request = &grant.request;
    let Some(since) = request.since else { return Ok(Deleted { files: Vec::new(), remarks: Vec::new() }) };
    let roster = roster.map(|pointer| open_list(context, runtime, pointer)).transpose()?;
    let mut bundles = Bundles {
        files: LineFiles::new(context, runtime, grant, OutputKind::Deleted, ResourceType::BUNDLE),
        open: Deletions::default(),
    };
    let mut withheld = 0_u64;
    let mut failed = None;
    let window = Window { since: request.since, until: request.until };
    let known = snapshot.deletions(&window, &mut |tombstone| {
        let lot = decide(request, roster.as_ref(), excluded, &tombstone)
            .map_err(|error| SourceError::io("reading a list of keys", &error))?;
        let told = match lot {
            Lot::NotAsked | Lot::Excluded => Ok(()),
            Lot::Withheld => {
                withheld += 1;
                Ok(())
            }
            Lot::Told => bundles.add(&tombstone),
        };
        told.map_err(|error: JobError| {
            let stop = SourceError { code: error.code, message: error.message.clone() };
            failed = Some(error);
            stop
        })
    });
    if let Some(failed) = failed {
        return Err(failed);
    }
    let remarks = remarks(&known.map_err(source_error)?, since, withheld);
    Ok(Deleted { files: bundles.finish()?, remarks })
}

/// What becomes of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lot {
    Told,
    /// It is none of what the request asks for.
    NotAsked,
    /// It may be, but that is not known, or another patient has a part in it who is not to be told of.
    Withheld,
    /// Somebody has a part in it who is left out of the job.
    Excluded,
}

fn decide(
    request: &ExportRequest,
    roster: Option<&KeyList>,
    excluded: Option<&KeyList>,
    tombstone: &Tombstone,
) -> std::io::Result<Lot> {
    let lot = asked(request, roster, tombstone)?;
    let Some(excluded) = excluded.filter(|_| lot == Lot::Told) else { return Ok(lot) };
    // What stands in a Binary does not say whose it is: none is told of, as none is given out.
    if tombstone.resource_type == ResourceType::BINARY {
        return Ok(Lot::Excluded);
    }
    let Some(patients) = &tombstone.patients else { return Ok(Lot::Withheld) };
    for patient in patients {
        if excluded.contains(patient.as_bytes())? {
            return Ok(Lot::Excluded);
        }
    }
    Ok(lot)
}

/// What the request asks for.
fn asked(request: &ExportRequest, roster: Option<&KeyList>, tombstone: &Tombstone) -> std::io::Result<Lot> {
    if !request.wants_type(tombstone.resource_type) {
        return Ok(Lot::NotAsked);
    }
    if request.level == Level::System {
        return Ok(Lot::Told);
    }
    let Some(patients) = &tombstone.patients else { return Ok(Lot::Withheld) };
    let Some(roster) = roster else {
        return Ok(if patients.is_empty() { Lot::NotAsked } else { Lot::Told });
    };
    let mut listed = 0;
    for patient in patients {
        listed += usize::from(roster.contains(patient.as_bytes())?);
    }
    Ok(match listed {
        0 => Lot::NotAsked,
        _ if listed < patients.len() && !request.patients.is_empty() => Lot::Withheld,
        _ => Lot::Told,
    })
}

/// What the client must know of the list.
fn remarks(known: &DeletionsKnown, since: Instant, withheld: u64) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    if let Some(from) = known.from.filter(|from| *from > since) {
        let text = format!(
            "Deletions before {from} are not known here: what was deleted between _since and then may be missing under \
             deleted. A full export shows what is left"
        );
        lines.push(outcome::line(Severity::Warning, "incomplete", &text, None));
    }
    if known.undecided > 0 {
        let text = format!(
            "{} resources are missing while a part of the source cannot be read: whether they were deleted is not known, \
             and they are not under deleted",
            known.undecided
        );
        lines.push(outcome::line(Severity::Warning, "incomplete", &text, None));
    }
    if withheld > 0 {
        let text = format!(
            "{withheld} deletions were left out: the patients of the resources are not known, or are not all part of this \
             export"
        );
        lines.push(outcome::line(Severity::Information, "suppressed", &text, None));
    }
    lines
}

/// Puts deletions into Bundles and these into files.
struct Bundles<'a> {
    files: LineFiles<'a>,
    open: Deletions,
}

impl Bundles<'_> {
    fn add(&mut self, tombstone: &Tombstone) -> Result<(), JobError> {
        self.open.add(tombstone.resource_type, &tombstone.id, tombstone.deleted);
        if self.open.len() < BUNDLE_ENTRIES { Ok(()) } else { self.files.add(self.open.take_line()) }
    }

    fn finish(mut self) -> Result<Vec<OutputObject>, JobError> {
        if !self.open.is_empty() {
            self.files.add(self.open.take_line())?;
        }
        self.files.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tombstone(kind: &str, patients: Option<&[&str]>) -> Tombstone {
        Tombstone {
            resource_type: kind.parse().unwrap(),
            id: "x".to_owned(),
            patients: patients.map(|all| all.iter().map(|one| (*one).to_owned()).collect()),
            deleted: Instant::from_millis(5),
        }
    }

    #[test]
    fn deletions_follow_the_criteria_of_the_request() {
        let system = ExportRequest::everything(Level::System);
        let patient = ExportRequest::everything(Level::Patient);
        let group = ExportRequest::everything(Level::Group("g".parse().unwrap()));
        let listed =
            ExportRequest { patients: ["a", "c"].map(|id| id.parse().unwrap()).into(), ..patient.clone() };
        let typed = ExportRequest { types: ["Patient".parse().unwrap()].into(), ..system.clone() };
        let roster = KeyList::from_keys(["a", "c"]).unwrap();
        let of = |request: &ExportRequest, has_roster: bool, tombstone: &Tombstone| {
            decide(request, has_roster.then_some(&roster), None, tombstone).unwrap()
        };
        let [unknown, nobody, one, two, other] =
            [None, Some(&[][..]), Some(&["a"][..]), Some(&["a", "b"][..]), Some(&["b"][..])]
                .map(|patients| tombstone("Observation", patients));
        for tombstone in [&unknown, &nobody, &one, &two, &other] {
            assert_eq!(of(&system, false, tombstone), Lot::Told);
            assert_eq!(of(&typed, false, tombstone), Lot::NotAsked);
        }
        use Lot::{NotAsked, Told, Withheld};
        for (request, has_roster, expected) in [
            (&patient, false, [Withheld, NotAsked, Told, Told, Told]),
            (&group, true, [Withheld, NotAsked, Told, Told, NotAsked]),
            (&listed, true, [Withheld, NotAsked, Told, Withheld, NotAsked]),
        ] {
            let lots = [&unknown, &nobody, &one, &two, &other].map(|each| of(request, has_roster, each));
            assert_eq!(lots, expected, "{:?}", request.level);
        }
        assert_eq!(
            of(&group, true, &tombstone("Group", Some(&[]))),
            NotAsked,
            "no client sees another's Group"
        );
        assert_eq!(of(&system, false, &tombstone("Bundle", Some(&[]))), NotAsked);
    }

    #[test]
    fn mf_26_of_whoever_is_left_out_nothing_is_told() {
        let system = ExportRequest::everything(Level::System);
        let group = ExportRequest::everything(Level::Group("g".parse().unwrap()));
        let (roster, excluded) =
            (KeyList::from_keys(["a", "b"]).unwrap(), KeyList::from_keys(["b"]).unwrap());
        use Lot::{Excluded, NotAsked, Told, Withheld};
        for (kind, patients, of_system, of_group) in [
            ("Patient", Some(&["b"][..]), Excluded, Excluded),
            ("Observation", Some(&["a"]), Told, Told),
            ("Observation", Some(&["a", "b"]), Excluded, Excluded),
            ("Observation", Some(&["c"]), Told, NotAsked),
            ("Observation", None, Withheld, Withheld),
            ("Organization", Some(&[]), Told, NotAsked),
            ("Binary", Some(&[]), Excluded, NotAsked),
        ] {
            let tombstone = tombstone(kind, patients);
            assert_eq!(decide(&system, None, Some(&excluded), &tombstone).unwrap(), of_system, "{kind}");
            assert_eq!(
                decide(&group, Some(&roster), Some(&excluded), &tombstone).unwrap(),
                of_group,
                "{kind}"
            );
        }
    }

    #[test]
    fn what_is_not_known_is_said() {
        let at = Instant::from_millis;
        let known = |from, undecided| DeletionsKnown { from, undecided };
        assert!(remarks(&known(None, 0), at(1), 0).is_empty());
        assert!(remarks(&known(Some(at(1)), 0), at(1), 0).is_empty());
        let all = remarks(&known(Some(at(2)), 3), at(1), 4);
        let texts: Vec<String> = all.into_iter().map(|line| String::from_utf8(line).unwrap()).collect();
        assert!(texts[0].contains("1970-01-01T00:00:00.002Z") && texts[0].contains("warning"), "{texts:?}");
        assert!(texts[1].contains("3 resources") && texts[2].contains("4 deletions"), "{texts:?}");
    }
}
