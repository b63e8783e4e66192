//! Second half of a build: the sorted rows become lane files. Beside them goes what the generation before had: rows
//! that stand as they stood keep the moment since when they are known, and what changed is noted.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use flatbed_types::position::patient_of;
use flatbed_types::{Lane, ResourceType, Section};

use super::changes::{Changes, Moments, Note};
use super::directory::SEVERAL;
use super::duplicates::Resolved;
use super::former::FormerLane;
use super::gone::{Gone, take_list};
use super::lane_writer::{HomeRow, JobQueue, LaneWriter, Packer};
use super::merge::Merged;
use super::record::{Payload, Row, Types};
use crate::source::{Change, Progress};

/// Bytes between two reports of progress.
const REPORT_BYTES: u64 = 16 << 20;

/// Where the rows come from and which of them are left out.
pub(super) struct Sources<'a> {
    pub(super) rows: Merged,
    /// The spools of the collectors, by number.
    pub(super) spools: &'a [Arc<File>],
    pub(super) resolved: &'a Resolved,
    /// Readings of files that were given up.
    pub(super) dead: &'a HashSet<u32>,
    /// Bytes of rows that were read, for the progress.
    pub(super) bytes: u64,
    pub(super) moments: Moments,
    /// Lanes of the generation before whose types are made anew.
    pub(super) former: BTreeMap<Lane, FormerLane>,
}

/// What was written.
#[derive(Default)]
pub(super) struct Ordered {
    pub(super) lanes: Vec<(Lane, String)>,
}

/// A lane that is being written.
struct OpenLane<'p> {
    number: [u8; 2],
    lane: Lane,
    writer: LaneWriter<'p>,
    former: Option<FormerLane>,
}

impl OpenLane<'_> {
    fn finish(self, changes: &mut Changes) -> io::Result<()> {
        self.writer.finish()?;
        self.former.map_or(Ok(()), |former| vanish(self.lane, former, changes))
    }
}

/// Notes what is left of a lane of the generation before.
fn vanish(lane: Lane, former: FormerLane, changes: &mut Changes) -> io::Result<()> {
    former.finish(&mut |gone| note_gone(lane, gone, changes))
}

fn note_gone(lane: Lane, gone: Gone, changes: &mut Changes) -> io::Result<()> {
    let id = id_in(lane.section, &gone.key).to_vec();
    changes.note(lane.resource_type, &id, Note::Gone(lane.section, gone))
}

/// The id of the row with this key.
fn id_in(section: Section, key: &[u8]) -> &[u8] {
    if section == Section::Standalone {
        return key;
    }
    key.get(patient_of(key).len() + 1..).unwrap_or_default()
}

/// Writes the lanes of one generation. `name` gives the file of a lane in `folder`.
pub(super) fn write_lanes(
    mut sources: Sources<'_>,
    folder: &Path,
    name: &dyn Fn(Lane) -> String,
    threads: usize,
    changes: &mut Changes,
    progress: &dyn Progress,
) -> io::Result<Ordered> {
    let queue = JobQueue::default();
    std::thread::scope(|scope| {
        // Dropped at the end of this closure, so that its threads end before the scope waits for them.
        let packer = Packer::start(scope, &queue, threads);
        let types = Types::new();
        let mut ordered = Ordered::default();
        let mut open: Option<OpenLane<'_>> = None;
        let (mut done, mut reported) = (0, 0);
        progress.report("ordering", 0, sources.bytes);
        while let Some((key, value)) = sources.rows.next()? {
            let row = Row::decode(value)?;
            let Some((number, key)) = key.split_first_chunk::<2>() else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            let section = if number[1] == 0 { Section::Compartment } else { Section::Standalone };
            if sources.dead.contains(&row.origin.unit) {
                continue;
            }
            if sources.resolved.losers.contains(row.origin) {
                if sources.resolved.buried.contains(row.origin) && !matches!(row.payload, Payload::Link(_)) {
                    let note = Note::Buried(patients(section, key, &row)?);
                    changes.note(types.of(number[0])?, id_in(section, key), note)?;
                }
                continue;
            }
            if open.as_ref().is_none_or(|open| open.number != *number) {
                open.take().map_or(Ok(()), |open| open.finish(changes))?;
                let resource_type: ResourceType = types.of(number[0])?;
                let lane = Lane { resource_type, section };
                let file = name(lane);
                let writer = LaneWriter::create(&folder.join(&file), &packer)?;
                let former = sources.former.remove(&lane);
                open = Some(OpenLane { number: *number, lane, writer, former });
                ordered.lanes.push((lane, file));
            }
            let Some(open) = &mut open else { continue };
            let changed = change_of(open, key, &row, &sources.moments, changes)?;
            done += write_row(&mut open.writer, key, changed, &row, sources.spools)?;
            if done - reported >= REPORT_BYTES {
                reported = done;
                progress.report("ordering", done, sources.bytes);
            }
        }
        open.map_or(Ok(()), |open| open.finish(changes))?;
        for (lane, former) in sources.former {
            vanish(lane, former, changes)?;
        }
        progress.report("ordering", sources.bytes, sources.bytes);
        Ok(ordered)
    })
}

/// The patients of a row that stands at home.
fn patients(section: Section, key: &[u8], row: &Row<'_>) -> io::Result<Vec<Vec<u8>>> {
    if section == Section::Standalone {
        return Ok(Vec::new());
    }
    if row.flags & SEVERAL == 0 {
        return Ok(vec![patient_of(key).to_vec()]);
    }
    // The list of patients comes first.
    take_list(&mut { row.lists })
}

/// When a row changed, by what stood in its place before.
fn change_of(
    open: &mut OpenLane<'_>,
    key: &[u8],
    row: &Row<'_>,
    moments: &Moments,
    changes: &mut Changes,
) -> io::Result<Change> {
    let stated = row.changed;
    let lane = open.lane;
    let before = match &mut open.former {
        Some(former) => former.find(key, &mut |gone| note_gone(lane, gone, changes))?,
        None => None,
    };
    // Where a row comes to stand that stood elsewhere, it is gone there and present here, which may have had its link.
    let is_new_here = before.is_none_or(|before| before.is_link);
    if is_new_here && moments.seen.is_some() && !matches!(row.payload, Payload::Link(_)) {
        changes.note(lane.resource_type, id_in(lane.section, key), Note::Present)?;
    }
    let same = before.filter(|before| before.hash == row.hash());
    Ok(Change { stated, known: same.map_or_else(|| moments.known(stated), |same| same.since) })
}

fn write_row(
    writer: &mut LaneWriter<'_>,
    key: &[u8],
    changed: Change,
    row: &Row<'_>,
    spools: &[Arc<File>],
) -> io::Result<u64> {
    let Row { flags, lists, fingerprint, .. } = *row;
    let mut home = HomeRow { key, changed, flags, lists, fingerprint, hash: row.hash(), len: 0 };
    match row.payload {
        Payload::Link(least) => writer.link(&home, least)?,
        Payload::Line(mut line) => {
            home.len = line.len() as u64;
            writer.home(&home, &mut line)?;
        }
        Payload::Spooled(number, place) => {
            home.len = place.len;
            let spool = spools.get(number as usize).ok_or(io::ErrorKind::InvalidData)?;
            writer.home(&home, &mut place.open(spool))?;
        }
    }
    Ok(home.len)
}
