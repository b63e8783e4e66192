//! Reads files of the lake line by line into the sorters of one thread.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use flatbed_types::request::FhirId;
use flatbed_types::{Instant, ResourceType, Section};
use xxhash_rust::xxh3::Xxh3;

use super::deletions;
use super::directory::{NAMES_BINARY, REFERENCES, SEVERAL, put_list};
use super::disk::{Spool, Spooled};
use super::lines::{Heard, Line, Lines, Stop, open_plain};
use super::list::Listed;
use super::problems::Stored;
use super::provenance::{self, Found};
use super::record::{Origin, Payload, Row, Types, deletion_key, identity_key, section_number};
use crate::compartment::{Belonging, Compartment};
use crate::header::{Header, Malformed, check_utf8, scan_line, scan_stream};
use crate::piece::line_fingerprint;
use crate::sort::{Sorted, Sorter};

/// Memory for problems before they go to scratch files.
const PROBLEM_BUDGET: usize = 1 << 20;
/// Lines between two words of progress: some megabytes.
const TICK_LINES: u64 = 4096;
/// Share of the budget that is for identities, which are small against rows.
const IDENTITY_SHARE: usize = 8;
/// Share that is for Provenance, of which there is little.
const PROVENANCE_SHARE: usize = 8;

/// One reading of one file.
pub(super) struct Reading<'a> {
    pub(super) listed: &'a Listed,
    pub(super) file: File,
    pub(super) unit: u32,
    /// Stands in for a missing `lastUpdated`.
    pub(super) modified: Instant,
    /// Only rows of these types, and no word about problems: the file is known already.
    pub(super) only: Option<&'a BTreeSet<ResourceType>>,
}

/// What a reading found.
pub(super) struct Outcome {
    /// Types of which the file holds rows.
    pub(super) types: BTreeSet<ResourceType>,
    /// Hash of the bytes on disk, as far as they were read.
    pub(super) content: u128,
    /// The system could not read on: unlike damage, that may pass.
    pub(super) unread: bool,
    /// Not all of it could be taken apart.
    pub(super) damaged: bool,
}

impl Outcome {
    /// Of a file that could not be opened.
    pub(super) const NOTHING: Outcome =
        Outcome { types: BTreeSet::new(), content: 0, unread: true, damaged: false };
}

/// What one thread collects.
pub(super) struct Collector {
    spool: Spool,
    rows: Rows,
}

/// What a collector has at the end.
pub(super) struct Collected {
    pub(super) rows: Sorted,
    pub(super) identities: Sorted,
    pub(super) problems: Sorted,
    pub(super) provenance: provenance::Collecting,
    pub(super) spool: Arc<File>,
    /// Of rows that are no Provenance.
    pub(super) bytes: u64,
}

/// The collector but for its spool, which the lines come from.
struct Rows {
    number: u32,
    max_line: u64,
    compartment: Compartment,
    types: Types,
    rows: Sorter,
    identities: Sorter,
    problems: Sorter,
    provenance: provenance::Collecting,
    bytes: u64,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Collector {
    /// `budget` is in bytes of memory, more or less.
    pub(super) fn new(
        number: u32,
        max_line: u64,
        compartment: Compartment,
        scratch: &Path,
        budget: usize,
    ) -> io::Result<Collector> {
        let (identity_budget, provenance_budget) = (budget / IDENTITY_SHARE, budget / PROVENANCE_SHARE);
        Ok(Collector {
            spool: Spool::new(scratch)?,
            rows: Rows {
                number,
                max_line,
                compartment,
                types: Types::new(),
                rows: Sorter::new(scratch, budget - identity_budget - provenance_budget),
                identities: Sorter::new(scratch, identity_budget),
                problems: Sorter::new(scratch, PROBLEM_BUDGET),
                provenance: provenance::Collecting::new(scratch, provenance_budget),
                bytes: 0,
                key: Vec::new(),
                value: Vec::new(),
            },
        })
    }

    /// Reads a file to its end or to where it is damaged. `count` hears the bytes read, `tick` is called now
    /// and then. Errors are those of the scratch folder.
    pub(super) fn read(
        &mut self,
        reading: Reading<'_>,
        count: Arc<AtomicU64>,
        tick: &dyn Fn(),
    ) -> io::Result<Outcome> {
        let about = About {
            path: &reading.listed.path,
            unit: reading.unit,
            modified: reading.modified,
            only: reading.only,
            named: types_in_name(&reading.listed.path),
            has_deletions: deletions::may_hold(&reading.listed.path),
        };
        let mut held = Held::default();
        let rows = &mut self.rows;
        let content = Arc::new(Mutex::new(Xxh3::new()));
        let heard = Heard { count, content: content.clone() };
        let (mut unread, mut damaged) = (false, false);
        let stop = match open_plain(reading.file, reading.listed.coding, heard) {
            Ok(input) => Lines { input, max_line: rows.max_line, spool: &mut self.spool }.each(
                &mut |line, content, spool| {
                    if line % TICK_LINES == 0 {
                        tick();
                    }
                    rows.line(&about, &mut held, line, content, spool)
                },
            ),
            Err(error) => Err(Stop::Damaged(error, 0)),
        };
        match stop {
            Ok(()) => {}
            Err(Stop::Fatal(error)) => return Err(error),
            Err(Stop::Damaged(error, after)) => {
                // Decoders report damage with errors of their own; those of the system come through as such.
                unread = error.raw_os_error().is_some();
                damaged = !unread;
                let what = if unread { "not readable" } else { "damaged" };
                let message = format!("{what} after line {after}, what follows is left out: {error}");
                rows.problem(&about, after + 1, "incomplete", &message, None)?;
            }
        }
        for (found, (line, count)) in &held.misnamed {
            let message =
                format!("{found} in a file named for another type ({count} rows, exported as {found})");
            rows.problem(&about, *line, "value", &message, None)?;
        }
        let content = content.lock().unwrap_or_else(PoisonError::into_inner).digest128();
        Ok(Outcome { types: held.types, content, unread, damaged })
    }

    /// Notes a problem of a whole file.
    pub(super) fn file_problem(&mut self, listed: &Listed, unit: u32, message: &str) -> io::Result<()> {
        let about = About {
            path: &listed.path,
            unit,
            modified: listed.stamp.modified,
            only: None,
            named: BTreeSet::new(),
            has_deletions: false,
        };
        self.rows.problem(&about, 0, "exception", message, None)
    }

    pub(super) fn finish(self) -> io::Result<Collected> {
        Ok(Collected {
            rows: self.rows.rows.finish()?,
            identities: self.rows.identities.finish()?,
            problems: self.rows.problems.finish()?,
            provenance: self.rows.provenance,
            spool: self.spool.file(),
            bytes: self.rows.bytes,
        })
    }
}

/// The file that is being read.
struct About<'a> {
    path: &'a str,
    unit: u32,
    modified: Instant,
    only: Option<&'a BTreeSet<ResourceType>>,
    named: BTreeSet<ResourceType>,
    has_deletions: bool,
}

/// What was found in the file so far.
#[derive(Default)]
struct Held {
    types: BTreeSet<ResourceType>,
    last: Option<ResourceType>,
    /// Types that contradict the file's name: the first line, and how many.
    misnamed: BTreeMap<ResourceType, (u64, u64)>,
}

/// Types that a file is named for: `Patient.ndjson`, `2.Patient-0001.ndjson.gz`.
fn types_in_name(path: &str) -> BTreeSet<ResourceType> {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split(['.', '-', '_']).filter_map(|part| part.parse().ok()).collect()
}

/// A resource that has what it needs.
struct Identity {
    resource_type: ResourceType,
    id: FhirId,
    changed: Instant,
    version: Option<String>,
    names_binary: bool,
    /// Of a Provenance: when it was recorded, where that is an instant.
    recorded: Option<Instant>,
}

/// A reason to leave a line out: issue type, message.
type Refusal = (&'static str, String);

impl Rows {
    fn line(
        &mut self,
        about: &About<'_>,
        held: &mut Held,
        number: u64,
        line: Line<'_>,
        spool: &Spool,
    ) -> io::Result<()> {
        if about.has_deletions && self.deletions(about, held, number, &line, &spool.file())? {
            return Ok(());
        }
        let outcome = match line {
            Line::Short(bytes) => self.short(about, held, number, bytes)?,
            Line::Long(place) => self.long(about, held, number, place, &spool.file())?,
            Line::TooLong => {
                Err(("too-long", format!("longer than {} bytes (option --max-line)", self.max_line)))
            }
        };
        match outcome {
            Ok(()) => Ok(()),
            Err((issue, message)) => self.problem(about, number, issue, &message, None),
        }
    }

    /// Takes the deletions of a line that is a Bundle of them; false for any other.
    fn deletions(
        &mut self,
        about: &About<'_>,
        held: &mut Held,
        number: u64,
        line: &Line<'_>,
        spool: &Arc<File>,
    ) -> io::Result<bool> {
        let open = || -> Box<dyn io::Read + '_> {
            match line {
                Line::Short(bytes) => Box::new(*bytes),
                Line::Long(place) => Box::new(place.open(spool)),
                Line::TooLong => Box::new(io::empty()),
            }
        };
        let Some(found) = deletions::recognise(open())? else { return Ok(false) };
        if found.is_moment_wrong {
            let message = "meta.lastUpdated is not a FHIR instant; the file's time stands in for it";
            self.problem(about, number, "value", message, None)?;
        }
        let deleted = found.moment.unwrap_or(about.modified);
        let origin = Origin { unit: about.unit, line: number };
        let mut others = 0_u64;
        let is_whole = deletions::each_entry(open(), &mut |target| {
            let Some((resource_type, id)) = target else {
                others += 1;
                return Ok(());
            };
            if about.only.is_some_and(|only| !only.contains(&resource_type)) {
                return Ok(());
            }
            held.types.insert(resource_type);
            deletion_key(&mut self.key, self.types.number(resource_type), id.as_str(), deleted, origin);
            self.identities.push(&self.key, &[])
        })?;
        if !is_whole {
            let message = "not a Bundle of deletions as a whole, what follows in it is left out";
            self.problem(about, number, "structure", message, None)?;
        }
        if others > 0 {
            let message = format!("{others} entries of the Bundle are not the deletion of a Type/id");
            self.problem(about, number, "value", &message, None)?;
        }
        Ok(true)
    }

    fn short(
        &mut self,
        about: &About<'_>,
        held: &mut Held,
        number: u64,
        bytes: &[u8],
    ) -> io::Result<Result<(), Refusal>> {
        // The type may stand behind the references.
        let mut references: Vec<(usize, usize)> = Vec::new();
        let mut texts = Vec::new();
        let scanned = scan_line(bytes, &mut |path, reference| {
            references.push((path.len(), reference.len()));
            texts.extend_from_slice(path);
            texts.extend_from_slice(reference);
        });
        let header = match scanned {
            Ok(header) => header,
            Err(error) => return refuse(error),
        };
        let identity = match self.identify(about, held, number, &header)? {
            Ok(Some(identity)) => identity,
            Ok(None) => return Ok(Ok(())),
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut collect = self.compartment.belonging(identity.resource_type, identity.id.as_str());
        let mut rest = texts.as_slice();
        for (path, reference) in references {
            let (pair, tail) = rest.split_at(path + reference);
            collect.reference(&pair[..path], &pair[path..]);
            rest = tail;
        }
        let origin = Origin { unit: about.unit, line: number };
        let fingerprint = line_fingerprint(bytes);
        self.push(origin, &identity, &collect.finish(), fingerprint, Payload::Line(bytes)).map(Ok)
    }

    /// A line that is never in memory whole: it is read three times from the spool.
    fn long(
        &mut self,
        about: &About<'_>,
        held: &mut Held,
        number: u64,
        place: Spooled,
        spool: &Arc<File>,
    ) -> io::Result<Result<(), Refusal>> {
        let scanned =
            check_utf8(place.open(spool)).and_then(|()| scan_stream(place.open(spool), &mut |_, _| {}));
        let header = match scanned {
            Ok(header) => header,
            Err(error) => return refuse(error),
        };
        let identity = match self.identify(about, held, number, &header)? {
            Ok(Some(identity)) => identity,
            Ok(None) => return Ok(Ok(())),
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut collect = self.compartment.belonging(identity.resource_type, identity.id.as_str());
        let again = scan_stream(place.open(spool), &mut |path, reference| collect.reference(path, reference));
        if let Err(error) = again {
            return refuse(error);
        }
        let mut hasher = Xxh3::new();
        let mut reader = place.open(spool);
        loop {
            let buffer = io::BufRead::fill_buf(&mut reader)?;
            if buffer.is_empty() {
                break;
            }
            hasher.update(buffer);
            let len = buffer.len();
            io::BufRead::consume(&mut reader, len);
        }
        let origin = Origin { unit: about.unit, line: number };
        let payload = Payload::Spooled(self.number, place);
        self.push(origin, &identity, &collect.finish(), hasher.digest128(), payload).map(Ok)
    }

    /// Checks type, id and time. `None` for a row of a type that is not wanted.
    fn identify(
        &mut self,
        about: &About<'_>,
        held: &mut Held,
        number: u64,
        header: &Header,
    ) -> io::Result<Result<Option<Identity>, Refusal>> {
        let refusal = |issue, message: &str| Ok(Err((issue, message.to_owned())));
        let Some(name) = header.resource_type.text() else {
            return refusal("required", "no resourceType");
        };
        let Ok(resource_type) = name.parse::<ResourceType>() else {
            return refusal("value", "the resourceType is not a type of FHIR R4");
        };
        if !resource_type.is_exportable() {
            return Ok(Err(("value", format!("{resource_type} resources are not exported"))));
        }
        let Some(id) = header.id.text() else {
            return refusal("required", "no id");
        };
        let Ok(id) = id.parse::<FhirId>() else {
            return refusal("value", "the id is not a FHIR id (1 to 64 letters, digits, '-' or '.')");
        };
        if about.only.is_some_and(|only| !only.contains(&resource_type)) {
            return Ok(Ok(None));
        }
        if held.last != Some(resource_type) {
            held.last = Some(resource_type);
            held.types.insert(resource_type);
        }
        if !about.named.is_empty() && !about.named.contains(&resource_type) {
            held.misnamed.entry(resource_type).or_insert((number, 0)).1 += 1;
        }
        let changed = match &header.last_updated {
            crate::header::Field::Absent => about.modified,
            field => match field.text().and_then(|text| text.parse().ok()) {
                Some(changed) => changed,
                None => {
                    let message = "meta.lastUpdated is not a FHIR instant; the file's time stands in for it";
                    self.problem(about, number, "value", message, Some(format!("{resource_type}/{id}")))?;
                    about.modified
                }
            },
        };
        let version = header.version.text().map(str::to_owned);
        let names_binary = header.names_binary;
        let recorded = header.recorded.text().and_then(|text| text.parse().ok());
        Ok(Ok(Some(Identity { resource_type, id, changed, version, names_binary, recorded })))
    }

    fn push(
        &mut self,
        origin: Origin,
        identity: &Identity,
        belonging: &Belonging,
        fingerprint: u128,
        payload: Payload<'_>,
    ) -> io::Result<()> {
        let type_number = self.types.number(identity.resource_type);
        let id = identity.id.as_str();
        let mut key = std::mem::take(&mut self.key);
        identity_key(&mut key, type_number, id, identity.changed, identity.version.as_deref(), origin);
        self.identities.push(&key, &fingerprint.to_le_bytes())?;
        if identity.resource_type == ResourceType::PROVENANCE {
            self.key = key;
            let (changed, recorded) = (identity.changed, identity.recorded);
            let found = Found { origin, id, changed, recorded, fingerprint, payload };
            return self.provenance.push(&found, belonging);
        }
        self.bytes += payload.len();

        let mut lists = Vec::new();
        let mut flags = if identity.names_binary { NAMES_BINARY } else { 0 };
        if belonging.patients.len() > 1 {
            flags |= SEVERAL;
            put_list(&mut lists, &belonging.patients);
        } else if !belonging.named.is_empty() {
            flags |= SEVERAL;
            put_list(&mut lists, &belonging.named);
        }
        if !belonging.supporting.is_empty() {
            flags |= REFERENCES;
            put_list(&mut lists, &belonging.supporting);
        }
        let changed = identity.changed;
        let row = Row { origin, fingerprint, belongs: 0, changed, flags, lists: &lists, payload };
        row.encode(&mut self.value);
        let section = if belonging.patients.is_empty() { Section::Standalone } else { Section::Compartment };
        let lane = [type_number, section_number(section)];
        row_key(&mut key, lane, belonging.patients.first(), id.as_bytes());
        self.rows.push(&key, &self.value)?;
        if let Some((least, others)) = belonging.patients.split_first() {
            let payload = Payload::Link(least);
            Row { flags: 0, lists: &[], payload, ..row }.encode(&mut self.value);
            for other in others {
                row_key(&mut key, lane, Some(other), id.as_bytes());
                self.rows.push(&key, &self.value)?;
            }
        }
        self.key = key;
        Ok(())
    }

    fn problem(
        &mut self,
        about: &About<'_>,
        line: u64,
        issue: &str,
        message: &str,
        resource: Option<String>,
    ) -> io::Result<()> {
        if about.only.is_some() {
            return Ok(());
        }
        let place = if line == 0 { about.path.to_owned() } else { format!("{}:{line}", about.path) };
        let stored = Stored {
            issue: issue.to_owned(),
            message: format!("{place}: {message}"),
            resource,
            file: Some(about.path.to_owned()),
            conflict: None,
            line,
        };
        push_problem(&mut self.problems, about.unit, &stored)
    }
}

/// The key of a row in the sort: its lane, then its key in the lane.
pub(super) fn row_key(out: &mut Vec<u8>, lane: [u8; 2], patient: Option<&Vec<u8>>, id: &[u8]) {
    out.clear();
    out.extend_from_slice(&lane);
    if let Some(patient) = patient {
        out.extend_from_slice(patient);
        out.push(0);
    }
    out.extend_from_slice(id);
}

/// Adds a problem to a sorter, with the reading that it stems from.
pub(super) fn push_problem(problems: &mut Sorter, unit: u32, stored: &Stored) -> io::Result<()> {
    let mut value = unit.to_le_bytes().to_vec();
    serde_json::to_writer(&mut value, stored)?;
    problems.push(&stored.sort_key(), &value)
}

/// A line that cannot be used is a refusal; that it could not be read back from the spool is an error.
fn refuse(error: Malformed) -> io::Result<Result<(), Refusal>> {
    match error {
        Malformed::Io(error) => Err(error),
        other => Ok(Err(("structure", other.to_string()))),
    }
}
