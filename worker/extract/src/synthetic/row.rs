//! Writes JSON by templates into one buffer. Knows how ids, dates, amounts and references look; not what
//! stands in a resource.

use super::hash::{Draw, Purpose};
use super::population::{Kind, PATIENT_KINDS, Population, Stamp};
use super::words::{self, Code};

/// Digits of an ordinal in an id: enough for [`MAX_PATIENTS`](super::config::MAX_PATIENTS), so that id order
/// is ordinal order.
pub const ORDINAL_DIGITS: usize = 9;
/// Digits of an index in an id: the heaviest patient has some 20,000 resources of a kind.
pub const INDEX_DIGITS: usize = 6;
const DAY: i64 = 86_400_000;
/// 2012-01-01 and the days until 2019-12-31: when care was given.
const FIRST_CARE_DAY: i64 = 15_340;
const CARE_DAYS: u64 = 2_921;
/// Places in the memory of references already collected.
const RECENT: usize = 512;

/// Appends `value` with leading zeros.
pub fn put_padded(out: &mut Vec<u8>, value: u64, digits: usize) {
    let mut text = [b'0'; 20];
    let mut rest = value;
    for place in text[..digits].iter_mut().rev() {
        *place = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.extend_from_slice(&text[..digits]);
}

/// Appends the id of a resource: of a patient, or (without index) of one that stands alone.
pub fn put_id(out: &mut Vec<u8>, kind: Kind, ordinal: u64, index: u64) {
    out.extend_from_slice(kind.prefix().as_bytes());
    put_padded(out, ordinal, ORDINAL_DIGITS);
    if kind.of_patient() && kind != Kind::Patient {
        out.push(b'-');
        put_padded(out, index, INDEX_DIGITS);
    }
}

/// The id of a resource.
pub fn id(kind: Kind, ordinal: u64, index: u64) -> Vec<u8> {
    let mut id = Vec::with_capacity(24);
    put_id(&mut id, kind, ordinal, index);
    id
}

/// The ordinal in the id of a Patient or of a standalone resource.
pub fn parse_id(kind: Kind, id: &[u8]) -> Option<u64> {
    let digits = id.strip_prefix(kind.prefix().as_bytes())?;
    if digits.len() != ORDINAL_DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0')))
}

/// Ordinal and index in the id of any resource.
pub fn parse_any_id(kind: Kind, id: &[u8]) -> Option<(u64, u64)> {
    if !kind.of_patient() || kind == Kind::Patient {
        return Some((parse_id(kind, id)?, 0));
    }
    let (head, index) = id.split_at_checked(id.len().checked_sub(INDEX_DIGITS)?)?;
    if !index.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let index = index.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0'));
    Some((parse_id(kind, head.strip_suffix(b"-")?)?, index))
}

/// The patient that rows are written for, with what they need to refer to each other.
#[derive(Clone, Copy)]
pub struct Subject {
    /// The slot of the patient.
    pub slot: u64,
    /// The head of the household.
    pub head: u64,
    /// The region of the patient.
    pub region: u64,
    counts: [u32; PATIENT_KINDS],
}

impl Subject {
    /// The patient of a slot.
    pub fn new(population: &Population, slot: u64) -> Subject {
        let weight = population.weight(slot);
        let mut counts = [0; PATIENT_KINDS];
        for kind in Kind::ALL.into_iter().filter(|kind| kind.of_patient()) {
            counts[kind as usize] = population.count_of_weight(kind, slot, weight) as u32;
        }
        Subject { slot, head: population.head(slot), region: slot / super::population::REGION, counts }
    }

    /// How many resources of a kind the patient has ever had.
    pub fn count(&self, kind: Kind) -> u64 {
        u64::from(self.counts[kind as usize])
    }
}

/// Keys of supporting resources; a short memory keeps most repeats out.
pub struct References {
    keys: Vec<Vec<u8>>,
    recent: Box<[u64; RECENT]>,
}

impl References {
    fn note(&mut self, kind: Kind, ordinal: u64) {
        let mark = (kind as u64 + 1) << 40 | ordinal;
        let place = super::hash::mix(mark) as usize % RECENT;
        if self.recent[place] != mark {
            self.recent[place] = mark;
            let mut key = Vec::with_capacity(kind.type_name().len() + 16);
            key.extend_from_slice(kind.type_name().as_bytes());
            key.push(0);
            put_id(&mut key, kind, ordinal, 0);
            self.keys.push(key);
        }
    }
}

/// The buffer that rows are written into. Holds generated resources.
pub struct RowWriter {
    /// The population that the rows belong to.
    pub population: Population,
    /// What has been written.
    pub out: Vec<u8>,
    /// Room for the plain text of an attachment.
    pub note: Vec<u8>,
    references: Option<References>,
}

impl RowWriter {
    /// A writer that collects references to supporting resources, or not.
    pub fn new(population: Population, collect_references: bool) -> RowWriter {
        let references =
            collect_references.then(|| References { keys: Vec::new(), recent: Box::new([0; RECENT]) });
        RowWriter { population, out: Vec::new(), note: Vec::new(), references }
    }

    /// How many references have been noted since the last take.
    pub fn references_noted(&self) -> usize {
        self.references.as_ref().map_or(0, |references| references.keys.len())
    }

    /// Forgets all references but the first so many: their row is left out.
    pub fn forget_references(&mut self, noted: usize) {
        if let Some(references) = &mut self.references
            && references.keys.len() > noted
        {
            references.keys.truncate(noted);
            // What it keeps out may have been forgotten just now.
            references.recent.fill(0);
        }
    }

    /// Takes what was written and the references collected, and starts again with room for `room` bytes.
    pub fn take(&mut self, room: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
        let written = std::mem::replace(&mut self.out, Vec::with_capacity(room));
        let keys = match &mut self.references {
            Some(references) => {
                references.recent.fill(0);
                std::mem::take(&mut references.keys)
            }
            None => Vec::new(),
        };
        (written, keys)
    }

    /// Appends text as it is.
    #[inline]
    pub fn s(&mut self, text: &str) -> &mut Self {
        self.out.extend_from_slice(text.as_bytes());
        self
    }

    /// Appends a number.
    #[inline]
    pub fn n(&mut self, value: u64) -> &mut Self {
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        self
    }

    /// Appends a number with leading zeros.
    pub fn padded(&mut self, value: u64, digits: usize) -> &mut Self {
        put_padded(&mut self.out, value, digits);
        self
    }

    /// Appends a decimal with exactly two places: `1.50`.
    pub fn hundredths(&mut self, value: u64) -> &mut Self {
        self.n(value / 100).s(".").padded(value % 100, 2)
    }

    /// Appends 16 hexadecimal digits.
    pub fn hex(&mut self, value: u64) -> &mut Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 16];
        for (place, shift) in text.iter_mut().zip((0..64).step_by(4).rev()) {
            *place = DIGITS[(value >> shift & 15) as usize];
        }
        self.out.extend_from_slice(&text);
        self
    }

    /// Appends a `date`, given in days since 1970.
    pub fn date(&mut self, days: i64) -> &mut Self {
        let (year, month, day) = civil(days);
        self.padded(year, 4).s("-").padded(month, 2).s("-").padded(day, 2)
    }

    /// Appends an `instant` in UTC with milliseconds.
    pub fn moment(&mut self, millis: i64) -> &mut Self {
        self.local(millis).s("Z")
    }

    fn local(&mut self, millis: i64) -> &mut Self {
        let of_day = millis.rem_euclid(DAY) as u64;
        self.date(millis.div_euclid(DAY)).s("T").padded(of_day / 3_600_000, 2).s(":");
        self.padded(of_day / 60_000 % 60, 2).s(":").padded(of_day / 1_000 % 60, 2).s(".");
        self.padded(of_day % 1_000, 3)
    }

    /// Appends `{"start":…,"end":…}`.
    pub fn period(&mut self, start: i64, end: i64) -> &mut Self {
        self.s("{\"start\":\"").moment(start).s("\",\"end\":\"").moment(end).s("\"}")
    }

    /// Opens a resource: type, id and meta, without the closing brace.
    pub fn open(&mut self, kind: Kind, ordinal: u64, index: u64, stamp: Stamp, profile: &str) -> &mut Self {
        self.s("{\"resourceType\":\"").s(kind.type_name()).s("\",\"id\":\"");
        put_id(&mut self.out, kind, ordinal, index);
        self.s("\",\"meta\":{\"versionId\":\"").n(stamp.version).s("\",\"lastUpdated\":\"");
        // The same instant in another zone now and then, as real stores write it.
        if stamp.millis % 16 == 0 {
            self.local(stamp.millis - 5 * 3_600_000).s("-05:00");
        } else {
            self.moment(stamp.millis);
        }
        self.s("\",\"profile\":[\"http://hl7.org/fhir/us/").s(profile).s("\"]}")
    }

    /// Appends a `CodeableConcept` with its text.
    pub fn concept(&mut self, system: &str, code: Code) -> &mut Self {
        self.s("{\"coding\":[{\"system\":\"").s(system).s("\",\"code\":\"").s(code.code);
        self.s("\",\"display\":\"").s(code.display).s("\"}],\"text\":\"").s(code.display).s("\"}")
    }

    /// Appends a `CodeableConcept` of one of HL7's own code systems.
    pub fn hl7(&mut self, system: &str, code: &str) -> &mut Self {
        self.s("{\"coding\":[{\"system\":\"http://terminology.hl7.org/CodeSystem/").s(system);
        self.s("\",\"code\":\"").s(code).s("\"}]}")
    }

    /// Appends an amount in dollars.
    pub fn money(&mut self, cents: u64) -> &mut Self {
        self.s("{\"value\":").hundredths(cents).s(",\"currency\":\"USD\"}")
    }

    /// Appends a reference to a patient.
    pub fn patient(&mut self, slot: u64) -> &mut Self {
        self.s("{\"reference\":\"Patient/");
        put_id(&mut self.out, Kind::Patient, slot, 0);
        self.s("\"}")
    }

    /// Appends `before`, a reference to one of the patient's resources (the `wanted`th, or the first where
    /// that was deleted) and `after`; nothing where the patient has none.
    pub fn own(
        &mut self,
        before: &str,
        subject: &Subject,
        kind: Kind,
        wanted: u64,
        after: &str,
    ) -> &mut Self {
        let Some(wanted) = wanted.checked_rem(subject.count(kind)) else { return self };
        let index = if self.population.is_dead(kind, subject.slot, wanted) { 0 } else { wanted };
        self.s(before).s("{\"reference\":\"").s(kind.type_name()).s("/");
        put_id(&mut self.out, kind, subject.slot, index);
        self.s("\"}").s(after)
    }

    /// Appends a reference to a standalone resource.
    pub fn standing(&mut self, kind: Kind, ordinal: u64) -> &mut Self {
        if let Some(references) = &mut self.references {
            references.note(kind, ordinal);
        }
        self.s("{\"reference\":\"").s(kind.type_name()).s("/");
        put_id(&mut self.out, kind, ordinal, 0);
        self.s("\"}")
    }

    /// Appends a reference to some standalone resource of the patient's region, seldom of an earlier one.
    pub fn some(&mut self, subject: &Subject, kind: Kind, draw: &mut Draw) -> &mut Self {
        let region = if draw.one_in(16) { draw.below(subject.region + 1) } else { subject.region };
        let region = if kind == Kind::Medication { 0 } else { region };
        let ordinal = self.population.regional(kind, region, draw.below(1 << 16));
        self.standing(kind, ordinal)
    }

    /// Appends a `HumanName` of a person: a practitioner or patient, of a household where there is one.
    pub fn name(&mut self, kind: Kind, ordinal: u64, household: u64, prefix: &str) -> &mut Self {
        let (given, family) = self.names_of(kind, ordinal, household);
        self.s("{\"use\":\"official\",\"text\":\"").s(prefix).s(given).s(" ").s(family);
        self.s("\",\"family\":\"").s(family).s("\",\"given\":[\"").s(given).s("\"]}")
    }

    /// Given and family name.
    pub fn names_of(&self, kind: Kind, ordinal: u64, household: u64) -> (&'static str, &'static str) {
        let given =
            Draw::new(self.population.seed, Purpose::Person, kind as u64, ordinal, 0).pick(&words::GIVEN);
        let family = Draw::new(self.population.seed, Purpose::Family, kind as u64, household, 0);
        (given.0, { family }.pick(&words::FAMILY))
    }

    /// Whether a person is a woman, by the name.
    pub fn is_woman(&self, kind: Kind, ordinal: u64) -> bool {
        Draw::new(self.population.seed, Purpose::Person, kind as u64, ordinal, 0).pick(&words::GIVEN).1
    }

    /// Appends an `Address`.
    pub fn address(&mut self, draw: &mut Draw) -> &mut Self {
        let (city, state, postal) = draw.pick(&words::CITIES);
        self.s("{\"line\":[\"")
            .n(1 + draw.below(9_999))
            .s(" ")
            .s(draw.pick(&words::STREETS))
            .s("\"],\"city\":\"");
        self.s(city)
            .s("\",\"state\":\"")
            .s(state)
            .s("\",\"postalCode\":\"")
            .s(postal)
            .padded(draw.below(100), 2);
        self.s("\",\"country\":\"US\"}")
    }

    /// Appends a generated narrative: escapes of all sorts, as real ones hold.
    pub fn narrative(&mut self, title: &str, text: &str, number: u64) -> &mut Self {
        self.s(",\"text\":{\"status\":\"generated\",\"div\":\"<div xmlns=\\\"http://www.w3.org/1999/xhtml\\\">\\n  <p><b>");
        self.s(title).s("</b>: ").s(text).s("</p>\\n  <p>file:\\\\\\\\archive\\\\").hex(number);
        self.s("\\t\\u00a7 1</p>\\n</div>\"}")
    }

    /// Appends what is in `note`, in base64.
    pub fn base64_of_note(&mut self) -> &mut Self {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        // Filled to whole triples with spaces, so that no padding is needed.
        while !self.note.len().is_multiple_of(3) {
            self.note.push(b' ');
        }
        self.out.reserve(self.note.len() / 3 * 4);
        for triple in self.note.chunks_exact(3) {
            let bits = u32::from(triple[0]) << 16 | u32::from(triple[1]) << 8 | u32::from(triple[2]);
            let quad = [18, 12, 6, 0].map(|shift| DIGITS[(bits >> shift & 63) as usize]);
            self.out.extend_from_slice(&quad);
        }
        self
    }
}

/// A moment of care, in milliseconds since 1970.
pub fn care_moment(draw: &mut Draw) -> i64 {
    let day = FIRST_CARE_DAY + draw.below(CARE_DAYS) as i64;
    day * DAY + draw.below(DAY as u64) as i64
}

/// Year, month and day of a number of days since 1970 (not before 1900), in the Gregorian calendar.
fn civil(days: i64) -> (u64, u64, u64) {
    // Years that begin in March put the leap day at the end: months then have a regular pattern.
    let shifted = (days + 719_468) as u64;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::super::config::SyntheticConfig;
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar_library() {
        let mut writer = RowWriter::new(Population::new(&SyntheticConfig::default()), false);
        for days in (-20_000..60_000).step_by(17) {
            let millis = days * DAY + 45_296_789;
            writer.out.clear();
            writer.moment(millis);
            let expected = flatbed_types::Instant::from_millis(millis).to_string();
            assert_eq!(std::str::from_utf8(&writer.out).unwrap(), expected);
        }
    }

    #[test]
    fn ids_parse_back_and_others_do_not() {
        assert_eq!(parse_id(Kind::Organization, &id(Kind::Organization, 123_456, 0)), Some(123_456));
        for wrong in ["org-", "org-00012345", "org-0000123456", "org-00012345x", "loc-000123456", ""] {
            assert_eq!(parse_id(Kind::Organization, wrong.as_bytes()), None, "{wrong}");
        }
    }
}
