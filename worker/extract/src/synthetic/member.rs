//! Content of the rows that say who is insured: Patient and Coverage.

use super::hash::Draw;
use super::population::{Kind, PAYERS, Stamp};
use super::row::{RowWriter, Subject};

const DAY: i64 = 86_400_000;
/// 1928-01-01, and the days of birth that follow.
const FIRST_BIRTH_DAY: i64 = -15_340;
const BIRTH_DAYS: u64 = 33_000;

/// Race and ethnicity as US Core has them.
const RACES: [(&str, &str); 5] = [
    ("2106-3", "White"),
    ("2054-5", "Black or African American"),
    ("2028-9", "Asian"),
    ("1002-5", "American Indian or Alaska Native"),
    ("2131-1", "Other Race"),
];

/// Writes the Patient of a slot.
pub fn patient(row: &mut RowWriter, subject: &Subject, mut draw: Draw, stamp: Stamp) {
    let slot = subject.slot;
    let woman = row.is_woman(Kind::Patient, slot);
    let gender = if woman { "female" } else { "male" };
    let mark = draw.bits();
    row.open(Kind::Patient, slot, 0, stamp, "core/StructureDefinition/us-core-patient");
    row.narrative("Member", "Demographics as of the last enrolment file, \\\"best record\\\" merged", mark);
    let (code, display) = draw.pick(&RACES);
    row.s(",\"extension\":[{\"url\":\"http://hl7.org/fhir/us/core/StructureDefinition/us-core-race\",\
        \"extension\":[{\"url\":\"ombCategory\",\"valueCoding\":{\"system\":\"urn:oid:2.16.840.1.113883.6.238\",\
        \"code\":\"");
    row.s(code).s("\",\"display\":\"").s(display).s("\"}},{\"url\":\"text\",\"valueString\":\"").s(display);
    row.s("\"}]},{\"url\":\"http://hl7.org/fhir/us/core/StructureDefinition/us-core-birthsex\",\"valueCode\":\"");
    row.s(if woman { "F" } else { "M" });
    row.s("\"},{\"url\":\"http://example.org/fhir/StructureDefinition/risk-score\",\"valueDecimal\":");
    row.hundredths(draw.below(500)).s("}]");
    row.s(",\"identifier\":[{\"type\":")
        .hl7("v2-0203", "MB")
        .s(",\"system\":\"https://member.example.org/id\",\
        \"value\":\"M");
    row.padded(mark >> 32, 10).s("\"},{\"type\":").hl7("v2-0203", "MR");
    row.s(",\"system\":\"urn:oid:1.3.6.1.4.1.99999.1\",\"value\":\"")
        .hex(draw.bits())
        .s("\"}],\"active\":true");
    row.s(",\"name\":[")
        .name(Kind::Patient, slot, subject.head, "")
        .s("],\"telecom\":[{\"system\":\"phone\",");
    row.s("\"value\":\"555-").padded(draw.below(1_000), 3).s("-").padded(draw.below(10_000), 4);
    row.s("\",\"use\":\"home\"},{\"system\":\"email\",\"value\":\"member")
        .n(slot)
        .s("@example.org\"}],\"gender\":\"");
    row.s(gender).s("\",\"birthDate\":\"").date(FIRST_BIRTH_DAY + draw.below(BIRTH_DAYS) as i64).s("\"");
    if draw.one_in(40) {
        row.s(",\"deceasedDateTime\":\"").moment(super::row::care_moment(&mut draw)).s("\"");
    }
    row.s(",\"address\":[")
        .address(&mut draw)
        .s("],\"maritalStatus\":")
        .hl7("v3-MaritalStatus", draw.pick(&["M", "S", "D", "W"]));
    row.s(",\"communication\":[{\"language\":{\"coding\":[{\"system\":\"urn:ietf:bcp:47\",\"code\":\"");
    row.s(draw.pick(&["en-US", "es", "vi", "zh", "fr-CA"])).s("\"}]},\"preferred\":true}]");
    row.s(",\"generalPractitioner\":[").some(subject, Kind::Practitioner, &mut draw);
    row.s("],\"managingOrganization\":").some(subject, Kind::Organization, &mut draw).s("}");
}

/// Writes a Coverage of a patient. The head of the household is its subscriber and policy holder.
pub fn coverage(row: &mut RowWriter, subject: &Subject, index: u64, mut draw: Draw, stamp: Stamp) {
    let dependant = subject.head != subject.slot;
    let start = super::row::care_moment(&mut draw);
    let payer = draw.below(PAYERS);
    row.open(Kind::Coverage, subject.slot, index, stamp, "carin-bb/StructureDefinition/C4BB-Coverage");
    row.s(",\"identifier\":[{\"type\":")
        .hl7("v2-0203", "MB")
        .s(",\"system\":\"https://member.example.org/coverage\",");
    row.s("\"value\":\"").hex(draw.bits()).s("\"}],\"status\":\"").s(if index == 0 {
        "active"
    } else {
        "cancelled"
    });
    row.s("\",\"type\":").hl7("v3-ActCode", draw.pick(&["HIP", "HMO", "PPO", "SUBSIDIZ"]));
    if dependant || draw.one_in(2) {
        row.s(",\"policyHolder\":").patient(subject.head);
    }
    row.s(",\"subscriber\":").patient(subject.head).s(",\"subscriberId\":\"S").padded(subject.head, 9);
    row.s("\",\"beneficiary\":").patient(subject.slot).s(",\"dependent\":\"").n(subject.slot - subject.head);
    row.s("\",\"relationship\":").hl7(
        "subscriber-relationship",
        match (dependant, draw.one_in(3)) {
            (false, _) => "self",
            (true, true) => "spouse",
            (true, false) => "child",
        },
    );
    row.s(",\"period\":").period(start, start + (365 + draw.below(1_500) as i64) * DAY);
    row.s(",\"payor\":[").standing(Kind::Organization, payer).s("],\"class\":[{\"type\":");
    row.hl7("coverage-class", "group").s(",\"value\":\"G").n(10_000 + draw.below(90_000));
    row.s("\",\"name\":\"").s(super::words::PAYER_NAMES[payer as usize]).s(" \\u2013 group\"},{\"type\":");
    row.hl7("coverage-class", "plan").s(",\"value\":\"P").n(100 + draw.below(900)).s("\",\"name\":\"Plan ");
    row.n(1 + draw.below(9)).s("\"}],\"order\":").n(index + 1).s(",\"costToBeneficiary\":[{\"type\":");
    row.hl7("coverage-copay-type", "gpvisit").s(",\"valueMoney\":").money(500 * draw.below(12)).s("}]}");
}
