//! Second half of a build: the sorted rows become lane files.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use flatbed_types::{Lane, ResourceType, Section};

use super::duplicates::Losers;
use super::lane_writer::{HomeRow, JobQueue, LaneWriter, Packer};
use super::merge::Merged;
use super::record::{Payload, Row, Types};
use crate::source::Progress;

/// Bytes between two reports of progress.
const REPORT_BYTES: u64 = 16 << 20;

/// Where the rows come from and which of them are left out.
pub(super) struct Sources<'a> {
    pub(super) rows: Merged,
    /// The spools of the collectors, by number.
    pub(super) spools: &'a [Arc<File>],
    pub(super) losers: &'a Losers,
    /// Readings of files that were given up.
    pub(super) dead: &'a HashSet<u32>,
    /// Bytes of rows that were read, for the progress.
    pub(super) bytes: u64,
}

/// What was written.
#[derive(Default)]
pub(super) struct Ordered {
    pub(super) lanes: Vec<(Lane, String)>,
}

/// Writes the lanes of one generation. `name` gives the file of a lane in `folder`.
pub(super) fn write_lanes(
    mut sources: Sources<'_>,
    folder: &Path,
    name: &dyn Fn(Lane) -> String,
    threads: usize,
    progress: &dyn Progress,
) -> io::Result<Ordered> {
    let queue = JobQueue::default();
    std::thread::scope(|scope| {
        // Dropped at the end of this closure, so that its threads end before the scope waits for them.
        let packer = Packer::start(scope, &queue, threads);
        let types = Types::new();
        let mut ordered = Ordered::default();
        let mut open: Option<([u8; 2], LaneWriter<'_>)> = None;
        let (mut done, mut reported) = (0, 0);
        progress.report("ordering", 0, sources.bytes);
        while let Some((key, value)) = sources.rows.next()? {
            let row = Row::decode(value)?;
            if sources.dead.contains(&row.origin.unit) || sources.losers.contains(row.origin) {
                continue;
            }
            let Some((number, key)) = key.split_first_chunk::<2>() else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            if open.as_ref().is_none_or(|(current, _)| current != number) {
                if let Some((_, writer)) = open.take() {
                    writer.finish()?;
                }
                let section = if number[1] == 0 { Section::Compartment } else { Section::Standalone };
                let resource_type: ResourceType = types.of(number[0])?;
                let lane = Lane { resource_type, section };
                let file = name(lane);
                open = Some((*number, LaneWriter::create(&folder.join(&file), &packer)?));
                ordered.lanes.push((lane, file));
            }
            let Some((_, writer)) = &mut open else { continue };
            done += write_row(writer, key, &row, sources.spools)?;
            if done - reported >= REPORT_BYTES {
                reported = done;
                progress.report("ordering", done, sources.bytes);
            }
        }
        if let Some((_, writer)) = open.take() {
            writer.finish()?;
        }
        progress.report("ordering", sources.bytes, sources.bytes);
        Ok(ordered)
    })
}

fn write_row(
    writer: &mut LaneWriter<'_>,
    key: &[u8],
    row: &Row<'_>,
    spools: &[Arc<File>],
) -> io::Result<u64> {
    let mut home = HomeRow {
        key,
        changed: row.changed,
        flags: row.flags,
        lists: row.lists,
        fingerprint: row.fingerprint,
        len: 0,
    };
    match row.payload {
        Payload::Link(least) => writer.link(key, row.changed, least)?,
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
