//! The Groups of a population, and the reader of their lane.
//!
//! A Group of all patients of a large population is a line of many gigabytes: rosters are walked, never held,
//! and a long line goes out in several pieces, of which only the last one has a place to go on from.

use std::sync::Arc;

use bytes::Bytes;
use flatbed_types::{Position, ResourceType, caps};
use xxhash_rust::xxh3::Xxh3;

use super::hash::{Draw, Purpose};
use super::population::{Kind, Population};
use super::reader::defect;
use super::row::{RowWriter, id};
use crate::keylist::KeyList;
use crate::piece::{Body, Piece, line_fingerprint};
use crate::select::{Verdict, in_window};
use crate::shape::Shape;
use crate::source::{GroupMember, RowReader, Scan, SourceError, Window, supporting_key};

/// A piece ends when less than this is left of it: no member is as long.
const MARGIN: usize = 1 << 10;
/// Bytes of a plain member in the line, for estimates.
const MEMBER_BYTES: u64 = 49;
/// Bytes of a Group around its members, for estimates.
const FRAME_BYTES: u64 = 400;

/// How a Group's roster follows from the population.
pub struct GroupPlan {
    /// The id.
    pub id: &'static str,
    name: &'static str,
    /// `active`.
    pub active: bool,
    /// Groups that are members, first.
    groups: &'static [&'static str],
    /// One living patient of so many slots is a member; none at all where this is 0.
    stride: u64,
    /// Only slots below this are looked at.
    slots: u64,
    /// Whether members are inactive, ended, not yet begun, or deleted now and then.
    mixed: bool,
}

const fn plan(
    id: &'static str,
    name: &'static str,
    groups: &'static [&'static str],
    stride: u64,
) -> GroupPlan {
    GroupPlan { id, name, active: true, groups, stride, slots: u64::MAX, mixed: false }
}

/// The Groups, by id.
pub const GROUPS: [GroupPlan; 8] = [
    plan("group-1pct", "One in a hundred", &[], 100),
    plan("group-all", "Every member", &[], 1),
    GroupPlan {
        slots: 640,
        ..plan("group-cycle-a", "Holds B, which holds this one", &["group-cycle-b"], 64)
    },
    GroupPlan {
        slots: 640,
        ..plan("group-cycle-b", "Holds A, which holds this one", &["group-cycle-a"], 64)
    },
    plan("group-empty", "Nobody yet", &[], 0),
    GroupPlan {
        active: false,
        slots: 5_000,
        ..plan("group-inactive", "Contract \\\"2019\\\", ended", &[], 50)
    },
    GroupPlan { mixed: true, slots: 20_000, ..plan("group-mixed", "Attribution with history", &[], 10) },
    GroupPlan {
        slots: 1_000,
        ..plan("group-nested", "Groups of groups", &["group-1pct", "group-cycle-a", "group-empty"], 100)
    },
];

/// Who a member is.
#[derive(Clone, Copy)]
enum Entity {
    Group(&'static str),
    Patient(u64),
}

/// A member, before it is written.
#[derive(Clone, Copy)]
struct Member {
    entity: Entity,
    inactive: bool,
    start: Option<&'static str>,
    end: Option<&'static str>,
}

/// A walk over a Group's members, in order.
struct Roster {
    population: Population,
    group: usize,
    /// Groups given, then stretches of slots looked at.
    next: u64,
}

impl Roster {
    fn new(population: Population, group: usize) -> Roster {
        Roster { population, group, next: 0 }
    }

    fn plan(&self) -> &'static GroupPlan {
        &GROUPS[self.group]
    }

    /// The member of a stretch of slots: one of them that lives, or of a mixed Group any.
    fn of_stretch(&self, stretch: u64) -> Option<Member> {
        let GroupPlan { stride, mixed, slots, .. } = self.plan();
        let first = stretch * stride;
        let last = (first + stride).min(self.population.slots).min(*slots);
        let variant = self.group as u64;
        let chosen =
            first + Draw::new(self.population.seed, Purpose::Member, variant, stretch, 0).below(last - first);
        let mut member = Member { entity: Entity::Patient(chosen), inactive: false, start: None, end: None };
        if *mixed {
            let standing = Draw::new(self.population.seed, Purpose::Standing, variant, stretch, 0).below(8);
            member.inactive = standing == 0;
            member.start = (standing != 4).then_some(if standing == 1 { "2027-01" } else { "2024-01-01" });
            member.end = match standing {
                2 => Some("2025-06-30"),
                3 => Some("2099-12-31T23:59:59-05:00"),
                _ => None,
            };
            return Some(member);
        }
        let living = (chosen..last).chain(first..chosen).find(|slot| self.population.lives(*slot))?;
        Some(Member { entity: Entity::Patient(living), ..member })
    }
}

impl Iterator for Roster {
    type Item = Member;

    fn next(&mut self) -> Option<Member> {
        let GroupPlan { groups, stride, slots, .. } = self.plan();
        loop {
            let step = self.next;
            self.next += 1;
            if let Some(group) = groups.get(step as usize) {
                return Some(Member {
                    entity: Entity::Group(group),
                    inactive: false,
                    start: None,
                    end: None,
                });
            }
            let stretch = step - groups.len() as u64;
            if *stride == 0 || stretch * stride >= self.population.slots.min(*slots) {
                return None;
            }
            if let Some(member) = self.of_stretch(stretch) {
                return Some(member);
            }
        }
    }
}

/// The Group with this id, by its place.
pub fn find(id: &str) -> Option<usize> {
    GROUPS.iter().position(|group| group.id == id)
}

/// Gives out the members of a Group as its line shows them.
pub fn members(
    population: Population,
    group: usize,
    each: &mut dyn FnMut(GroupMember) -> Result<(), SourceError>,
) -> Result<(), SourceError> {
    for member in Roster::new(population, group) {
        let mut reference = match member.entity {
            Entity::Group(_) => b"Group/".to_vec(),
            Entity::Patient(_) => b"Patient/".to_vec(),
        };
        match member.entity {
            Entity::Group(group) => reference.extend_from_slice(group.as_bytes()),
            Entity::Patient(slot) => reference.extend_from_slice(&id(Kind::Patient, slot, 0)),
        }
        each(GroupMember {
            reference: Some(String::from_utf8_lossy(&reference).into_owned()),
            inactive: member.inactive,
            period_start: member.start.map(str::to_owned),
            period_end: member.end.map(str::to_owned),
        })?;
    }
    Ok(())
}

/// Roughly the bytes of a Group's line.
pub fn estimated_bytes(population: &Population, group: usize) -> u64 {
    let GroupPlan { stride, slots, .. } = &GROUPS[group];
    FRAME_BYTES + population.slots.min(*slots).checked_div(*stride).unwrap_or(0) * MEMBER_BYTES
}

/// Opens the line of a Group, up to its members.
fn open(row: &mut RowWriter, group: usize) {
    let GroupPlan { id, name, active, .. } = &GROUPS[group];
    let stamp = row.population.group_stamp(group as u64);
    row.s("{\"resourceType\":\"Group\",\"id\":\"").s(id).s("\",\"meta\":{\"versionId\":\"").n(stamp.version);
    row.s("\",\"lastUpdated\":\"").moment(stamp.millis).s("\"},\"identifier\":[{\"system\":\
        \"https://contracts.example.org\",\"value\":\"");
    row.s(id).s("\"}],\"active\":").s(if *active { "true" } else { "false" });
    row.s(",\"type\":\"person\",\"actual\":true,\"name\":\"").s(name).s("\"");
}

fn put_member(row: &mut RowWriter, member: Member, first: bool) {
    row.s(if first { ",\"member\":[{\"entity\":" } else { ",{\"entity\":" });
    match member.entity {
        Entity::Patient(slot) => row.patient(slot),
        Entity::Group(group) => row.s("{\"reference\":\"Group/").s(group).s("\"}"),
    };
    match (member.start, member.end) {
        (None, None) => {}
        (Some(start), None) => {
            row.s(",\"period\":{\"start\":\"").s(start).s("\"}");
        }
        (None, Some(end)) => {
            row.s(",\"period\":{\"end\":\"").s(end).s("\"}");
        }
        (Some(start), Some(end)) => {
            row.s(",\"period\":{\"start\":\"").s(start).s("\",\"end\":\"").s(end).s("\"}");
        }
    }
    if member.inactive {
        row.s(",\"inactive\":true");
    }
    row.s("}");
}

/// A line that has been begun.
struct OpenLine {
    roster: Roster,
    /// Hash of what earlier pieces carried of the line.
    hash: Xxh3,
    /// Where the line begins (or goes on) in the buffer.
    from: usize,
    has_members: bool,
}

/// Reads the lane of Groups.
pub struct GroupReader {
    row: RowWriter,
    shape: Option<Arc<Shape>>,
    keys: Option<Arc<KeyList>>,
    window: Window,
    hi: Position,
    /// Whether pieces must be small: then each Group has pieces of its own.
    is_bounded: bool,
    at: usize,
    end: usize,
    line: Option<OpenLine>,
    rows: u64,
    fingerprint: u128,
    filtered: u64,
    excluded: u64,
    /// A Group that has any of these as a member is left out whole.
    left_out: Option<Arc<KeyList>>,
    finished: bool,
}

impl GroupReader {
    /// A reader of the Groups in the scan's range, all or those whose keys are listed.
    pub fn new(population: Population, keys: Option<Arc<KeyList>>, scan: Scan) -> GroupReader {
        let place = |at: &Position| GROUPS.iter().filter(|group| !at.admits(group.id.as_bytes())).count();
        GroupReader {
            row: RowWriter::new(population, scan.references),
            shape: scan.shape.filter(|shape| shape.regards(false)),
            keys,
            window: scan.window,
            at: place(&scan.range.lo),
            end: place(&scan.range.hi),
            hi: scan.range.hi,
            is_bounded: scan.most < caps::DEFLATE_SEGMENT,
            line: None,
            rows: 0,
            fingerprint: 0,
            filtered: 0,
            excluded: 0,
            left_out: scan.select.parts().1.cloned(),
            finished: false,
        }
    }

    fn piece(&mut self, next: Option<Position>) -> Piece {
        let (written, references) = self.row.take(0);
        Piece {
            body: Body::Plain(Bytes::from(written)),
            rows: std::mem::take(&mut self.rows),
            fingerprint: std::mem::take(&mut self.fingerprint),
            more: if next.is_none() { u64::MAX } else { 0 },
            next,
            patient: None,
            references,
            filtered: std::mem::take(&mut self.filtered),
            withheld: 0,
            excluded: std::mem::take(&mut self.excluded),
        }
    }

    fn is_full(&self) -> bool {
        self.row.out.len() + MARGIN >= caps::DEFLATE_SEGMENT
    }

    /// Begins the line of the next Group, where it is asked for.
    fn begin(&mut self) -> Result<(), SourceError> {
        let group = self.at;
        self.at += 1;
        if let Some(keys) = &self.keys {
            let key = supporting_key(ResourceType::GROUP, GROUPS[group].id);
            if !keys.contains(&key).map_err(|e| SourceError::io("reading a key list", &e))? {
                return Ok(());
            }
        }
        let changed = self.row.population.group_stamp(group as u64).instant();
        if in_window(&self.window, changed) != Verdict::Emit {
            self.filtered += 1;
            return Ok(());
        }
        if self.has_excluded_member(group)? {
            self.excluded += 1;
            return Ok(());
        }
        let from = self.row.out.len();
        open(&mut self.row, group);
        let roster = Roster::new(self.row.population, group);
        self.line = Some(OpenLine { roster, hash: Xxh3::new(), from, has_members: false });
        Ok(())
    }

    fn has_excluded_member(&self, group: usize) -> Result<bool, SourceError> {
        let Some(list) = &self.left_out else { return Ok(false) };
        for member in Roster::new(self.row.population, group) {
            let Entity::Patient(slot) = member.entity else { continue };
            let found = list.contains(&id(Kind::Patient, slot, 0));
            if found.map_err(|e| SourceError::io("reading a key list", &e))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Puts a line together whole, and gives it the form that the scan asks for.
    fn shaped(&mut self, shape: &Shape, line: OpenLine) -> Result<(), SourceError> {
        let _one_at_a_time = shape.long_row();
        let OpenLine { roster, from, mut has_members, .. } = line;
        for member in roster {
            put_member(&mut self.row, member, !has_members);
            has_members = true;
        }
        self.row.s(if has_members { "]}" } else { "}" });
        let row = self.row.out.split_off(from);
        let changed = self.row.population.group_stamp(self.at as u64 - 1).instant();
        if !shape.wants(&row, changed).map_err(|error| defect(&error))? {
            self.filtered += 1;
            return Ok(());
        }
        shape.write(&row, &mut self.row.out).map_err(|error| defect(&error))?;
        self.fingerprint = self.fingerprint.wrapping_add(line_fingerprint(&self.row.out[from..]));
        self.row.out.push(b'\n');
        self.rows += 1;
        Ok(())
    }

    /// Goes on with a line until it ends (then it is gone) or the piece is full.
    fn go_on(&mut self, mut line: OpenLine) {
        while !self.is_full() {
            if let Some(member) = line.roster.next() {
                put_member(&mut self.row, member, !line.has_members);
                line.has_members = true;
                continue;
            }
            self.row.s(if line.has_members { "]}" } else { "}" });
            line.hash.update(&self.row.out[line.from..]);
            self.fingerprint = self.fingerprint.wrapping_add(line.hash.digest128());
            self.row.out.push(b'\n');
            self.rows += 1;
            return;
        }
        line.hash.update(&self.row.out[line.from..]);
        line.from = 0;
        self.line = Some(line);
    }
}

impl RowReader for GroupReader {
    fn next(&mut self) -> Result<Option<Piece>, SourceError> {
        if self.finished {
            return Ok(None);
        }
        loop {
            if let Some(line) = self.line.take() {
                match self.shape.clone() {
                    Some(shape) => self.shaped(&shape, line)?,
                    None => self.go_on(line),
                }
                if self.line.is_some() {
                    return Ok(Some(self.piece(None)));
                }
            }
            if self.at >= self.end {
                self.finished = true;
                let next = self.hi.clone();
                return Ok(Some(self.piece(Some(next))));
            }
            if self.is_full() || (self.is_bounded && self.rows > 0) {
                let next = Position::At(GROUPS[self.at].id.as_bytes().to_vec());
                return Ok(Some(self.piece(Some(next))));
            }
            self.begin()?;
        }
    }
}
