//! What an extract task reads: a lane of the source, or all that a job wants put together by patient.

use std::sync::Arc;

use flatbed_extract::associated::Association;
use flatbed_extract::organise::Organised;
use flatbed_extract::shape::{Locate, Shape};
use flatbed_extract::source::{Patients, RowReader, Window};
use flatbed_extract::{Scan, Select, Snapshot};
use flatbed_proto::attachment::AttachmentUrls;
use flatbed_types::job::JobError;
use flatbed_types::{Codec, KeyRange, Lane, Position, ResourceType, Section, caps};
use tokio::runtime::Handle;

use crate::slot::{Grant, open_list, reopen};
use crate::{Context, consent, internal, source_error};

/// The rows of a task, in an order that can be cut.
pub(crate) enum Rows {
    /// Of one lane; the range of the scan means nothing.
    Lane(Arc<dyn Snapshot>, Box<Scan>),
    /// Of many, by patient.
    Organised(Organised),
}

impl Rows {
    /// What a grant of this lane asks for.
    pub fn open(context: &Context, runtime: &Handle, grant: &Grant, lane: Lane) -> Result<Rows, JobError> {
        let snapshot = reopen(context, grant)?;
        let select = select(context, runtime, grant, lane)?.without(consent::given(context, runtime, grant)?);
        let request = &grant.request;
        // Supporting resources are wanted whatever their age (`decisions.md` 3).
        let window = match grant.round {
            0 => Window { since: request.since, until: request.until },
            _ => Window::default(),
        };
        // Association runs last: the age of what is associated does not count (PM-59).
        let associated = Association::of(request, &context.long_rows).map_err(internal)?;
        let locate = locate(grant);
        let shape = |of: ResourceType| {
            Shape::with_attachments(request, of, &context.long_rows, locate.as_ref()).map_err(internal)
        };
        if lane.section == Section::Organised {
            let types = snapshot.types().into_iter().filter(|of| request.wants_type(*of));
            let types = types.map(|of| Ok((of, shape(of)?))).collect::<Result<Vec<_>, JobError>>()?;
            let organised = Organised::new(snapshot, types, &select, window, most(grant));
            return Ok(Rows::Organised(organised.associated(associated)));
        }
        let associated = associated.filter(|_| request.associates(lane.resource_type));
        let window = if associated.is_some() { Window::default() } else { window };
        let shape = shape(lane.resource_type)?;
        let scan = Scan {
            lane,
            range: grant.range.clone(),
            select,
            window,
            references: request.follows_references(),
            deflated: grant.codec == Codec::Gzip,
            shape,
            associated,
            patients: Patients::Together,
            most: most(grant),
        };
        Ok(Rows::Lane(snapshot, Box::new(scan)))
    }

    /// Reads a range.
    pub fn read(&self, range: &KeyRange) -> Result<Box<dyn RowReader>, JobError> {
        let reader = match self {
            Rows::Lane(snapshot, scan) => snapshot.read(Scan { range: range.clone(), ..(**scan).clone() }),
            Rows::Organised(organised) => organised.read(range),
        };
        reader.map_err(source_error)
    }

    /// Roughly the bytes of a range.
    pub fn weigh(&self, range: &KeyRange) -> u64 {
        match self {
            Rows::Lane(snapshot, scan) => snapshot.weigh(scan.lane, range),
            Rows::Organised(organised) => organised.weigh(range),
        }
    }

    /// A place near the middle of a range, where it is worth a cut.
    pub fn middle(&self, range: &KeyRange) -> Option<Position> {
        match self {
            Rows::Lane(snapshot, scan) => snapshot.middle(scan.lane, range),
            Rows::Organised(organised) => organised.middle(range),
        }
    }
}

/// Where clients of the job fetch the content of attachments, if anybody serves it to them (FL-18).
fn locate(grant: &Grant) -> Option<Arc<Locate>> {
    let (base, secret) = (grant.request.attachment_base.as_ref()?, grant.attachment_secret.as_ref()?);
    let urls = AttachmentUrls::new(base, grant.job, secret);
    Some(Arc::new(move |reference| urls.url(reference)))
}

/// Most bytes of a piece of several rows: what a file may have, where that is less.
fn most(grant: &Grant) -> usize {
    let of_file = grant.request.max_file_bytes.map(|most| usize::try_from(most).unwrap_or(usize::MAX));
    of_file.unwrap_or(usize::MAX).min(caps::DEFLATE_SEGMENT)
}

fn select(context: &Context, runtime: &Handle, grant: &Grant, lane: Lane) -> Result<Select, JobError> {
    let list = |pointer| open_list(context, runtime, pointer).map(Arc::new);
    match (&grant.keys, &grant.roster, lane.section) {
        (Some(keys), roster, _) => {
            let roster = roster.as_ref().map(list).transpose()?;
            Ok(Select::Keys { keys: list(keys)?, roster })
        }
        (None, None, _) | (None, Some(_), Section::Standalone) => Ok(Select::All),
        (None, Some(roster), _) if grant.request.patients.is_empty() => Ok(Select::Members(list(roster)?)),
        (None, Some(roster), _) => Ok(Select::EveryPatient(list(roster)?)),
    }
}
