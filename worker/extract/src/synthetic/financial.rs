//! Content of Claim and ExplanationOfBenefit: the bulk of a payer's bytes.

use super::hash::Draw;
use super::population::{Kind, PAYERS, Stamp};
use super::row::{RowWriter, Subject, care_moment};
use super::words::{DIAGNOSES, HCPCS, ICD10, PAYER_NAMES, SERVICES};

const HOUR: i64 = 3_600_000;
/// Items of a claim: most have few, some many.
#[rustfmt::skip]
const ITEMS: [u64; 16] = [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 6, 8, 11];
const ADJUDICATIONS: [&str; 6] = ["submitted", "eligible", "deductible", "copay", "benefit", "noncovered"];
const CLAIM_TYPES: [&str; 4] = ["institutional", "professional", "pharmacy", "oral"];

/// Writes a Claim.
pub fn claim(row: &mut RowWriter, subject: &Subject, index: u64, mut draw: Draw, stamp: Stamp) {
    let start = care_moment(&mut draw);
    row.open(Kind::Claim, subject.slot, index, stamp, "davinci-pas/StructureDefinition/profile-claim");
    row.s(",\"identifier\":[{\"system\":\"https://claims.example.org/number\",\"value\":\"").hex(draw.bits());
    row.s("\"}],\"status\":\"active\",\"type\":").hl7("claim-type", draw.pick(&CLAIM_TYPES));
    row.s(",\"use\":\"claim\",\"patient\":").patient(subject.slot);
    row.s(",\"billablePeriod\":").period(start, start + HOUR / 4).s(",\"created\":\"").moment(start + HOUR);
    row.s("\",\"insurer\":").standing(Kind::Organization, draw.below(PAYERS));
    row.s(",\"provider\":").some(subject, Kind::Organization, &mut draw).s(",\"priority\":");
    row.hl7("processpriority", "normal").s(",\"facility\":").some(subject, Kind::Location, &mut draw);
    row.s(",\"careTeam\":[{\"sequence\":1,\"provider\":")
        .some(subject, Kind::Practitioner, &mut draw)
        .s("}]");
    let diagnoses = 1 + draw.below(3);
    row.s(",\"diagnosis\":[");
    for sequence in 1..=diagnoses {
        row.s(if sequence > 1 { ",{" } else { "{" }).s("\"sequence\":").n(sequence);
        row.s(",\"diagnosisCodeableConcept\":").concept(ICD10, draw.pick(&DIAGNOSES)).s("}");
    }
    row.s("],\"insurance\":[{\"sequence\":1,\"focal\":true");
    row.own(",\"coverage\":", subject, Kind::Coverage, draw.below(4), "").s("}],\"item\":[");
    let mut total = 0;
    for sequence in 1..=draw.pick(&ITEMS) {
        let cents = 500 + draw.below(40_000);
        total += cents;
        row.s(if sequence > 1 { ",{" } else { "{" }).s("\"sequence\":").n(sequence);
        row.s(",\"diagnosisSequence\":[").n(1 + draw.below(diagnoses)).s("],\"productOrService\":");
        row.concept(HCPCS, draw.pick(&SERVICES)).s(",\"servicedPeriod\":").period(start, start + HOUR / 4);
        row.s(",\"quantity\":{\"value\":").n(1 + draw.below(4)).s(".0},\"unitPrice\":").money(cents);
        row.s(",\"net\":").money(cents);
        row.own(",\"encounter\":[", subject, Kind::Encounter, index, "]").s("}");
    }
    row.s("],\"total\":").money(total).s("}");
}

/// Writes the ExplanationOfBenefit of the Claim with the same index.
pub fn benefit(row: &mut RowWriter, subject: &Subject, index: u64, mut draw: Draw, stamp: Stamp) {
    let start = care_moment(&mut draw);
    let payer = draw.below(PAYERS);
    let kind = draw.pick(&CLAIM_TYPES);
    let profile = "carin-bb/StructureDefinition/C4BB-ExplanationOfBenefit";
    row.open(Kind::Benefit, subject.slot, index, stamp, profile);
    if draw.one_in(3) {
        contained(row, subject, payer, &mut draw);
    }
    row.s(
        ",\"identifier\":[{\"type\":{\"coding\":[{\"system\":\"http://hl7.org/fhir/us/carin-bb/CodeSystem/\
        C4BBIdentifierType\",\"code\":\"uc\",\"display\":\"Unique Claim ID\"}]},\"system\":\
        \"https://claims.example.org/eob\",\"value\":\"",
    );
    row.hex(draw.bits()).s("\"}],\"status\":\"active\",\"type\":").hl7("claim-type", kind);
    row.s(",\"subType\":{\"text\":\"").s(kind).s("\"},\"use\":\"claim\",\"patient\":").patient(subject.slot);
    row.s(",\"billablePeriod\":")
        .period(start, start + HOUR / 4)
        .s(",\"created\":\"")
        .moment(start + 24 * HOUR);
    row.s("\",\"insurer\":").standing(Kind::Organization, payer);
    row.s(",\"provider\":").some(subject, Kind::Role, &mut draw);
    row.s(",\"payee\":{\"type\":").hl7("payeetype", "provider").s(",\"party\":");
    row.some(subject, Kind::Organization, &mut draw).s("}");
    row.s(",\"facility\":").some(subject, Kind::Location, &mut draw);
    row.own(",\"claim\":", subject, Kind::Claim, index, "").s(",\"outcome\":\"complete\",\"careTeam\":[");
    for (sequence, role) in [(1, "primary"), (2, "supervisor")] {
        row.s(if sequence > 1 { ",{" } else { "{" }).s("\"sequence\":").n(sequence).s(",\"provider\":");
        row.some(subject, Kind::Practitioner, &mut draw)
            .s(",\"role\":")
            .hl7("claimcareteamrole", role)
            .s("}");
    }
    row.s("],\"supportingInfo\":[{\"sequence\":1,\"category\":").hl7("claiminformationcategory", "info");
    row.s(",\"timingDate\":\"").date(start.div_euclid(24 * HOUR)).s("\",\"valueString\":\"Bill type ");
    row.n(111 + draw.below(700)).s(" \\/ received \\\"electronic\\\"\"}],\"diagnosis\":[");
    let diagnoses = 1 + draw.below(4);
    for sequence in 1..=diagnoses {
        row.s(if sequence > 1 { ",{" } else { "{" }).s("\"sequence\":").n(sequence);
        row.s(",\"diagnosisCodeableConcept\":").concept(ICD10, draw.pick(&DIAGNOSES)).s(",\"type\":[");
        row.hl7("ex-diagnosistype", if sequence == 1 { "principal" } else { "other" }).s("]}");
    }
    row.s("],\"insurance\":[{\"focal\":true");
    row.own(",\"coverage\":", subject, Kind::Coverage, draw.below(4), "").s("}],\"item\":[");
    let total = items(row, subject, index, diagnoses, start, &mut draw);
    settlement(row, payer, total, start, &mut draw);
}

fn contained(row: &mut RowWriter, subject: &Subject, payer: u64, draw: &mut Draw) {
    row.s(
        ",\"contained\":[{\"resourceType\":\"ServiceRequest\",\"id\":\"referral\",\"status\":\"completed\",\
        \"intent\":\"order\",\"subject\":",
    );
    row.patient(subject.slot).s(",\"requester\":").some(subject, Kind::Practitioner, draw);
    row.s(",\"performer\":[").some(subject, Kind::Practitioner, draw);
    row.s(
        "]},{\"resourceType\":\"Coverage\",\"id\":\"coverage\",\"status\":\"active\",\"type\":{\"text\":\"",
    );
    row.s(PAYER_NAMES[payer as usize]).s("\"},\"beneficiary\":").patient(subject.slot).s(",\"payor\":[");
    row.standing(Kind::Organization, payer).s("]}],\"referral\":{\"reference\":\"#referral\"}");
}

fn items(
    row: &mut RowWriter,
    subject: &Subject,
    index: u64,
    diagnoses: u64,
    start: i64,
    draw: &mut Draw,
) -> u64 {
    let mut total = 0;
    for sequence in 1..=draw.pick(&ITEMS) {
        let cents = 150 * (1 + draw.below(400));
        total += cents;
        row.s(if sequence > 1 { ",{" } else { "{" }).s("\"sequence\":").n(sequence);
        row.s(",\"careTeamSequence\":[1],\"diagnosisSequence\":[").n(1 + draw.below(diagnoses));
        row.s("],\"category\":{\"text\":\"Service line\"},\"productOrService\":");
        row.concept(HCPCS, draw.pick(&SERVICES)).s(",\"servicedPeriod\":").period(start, start + HOUR / 4);
        row.s(",\"locationCodeableConcept\":").hl7("ex-serviceplace", draw.pick(&["11", "21", "22", "23"]));
        row.s(",\"quantity\":{\"value\":").n(1 + draw.below(4)).s(".0},\"net\":").money(cents);
        row.own(",\"encounter\":[", subject, Kind::Encounter, index, "]").s(",\"adjudication\":[");
        for (place, category) in ADJUDICATIONS.into_iter().enumerate() {
            row.s(if place > 0 { ",{" } else { "{" }).s("\"category\":").hl7("adjudication", category);
            row.s(",\"amount\":").money(if place == 0 { cents } else { draw.below(cents + 1) }).s("}");
        }
        row.s("]}");
    }
    total
}

fn settlement(row: &mut RowWriter, payer: u64, total: u64, start: i64, draw: &mut Draw) {
    row.s("],\"total\":[");
    for (place, category) in ADJUDICATIONS.into_iter().enumerate() {
        row.s(if place > 0 { ",{" } else { "{" }).s("\"category\":").hl7("adjudication", category);
        row.s(",\"amount\":").money(if place == 0 { total } else { draw.below(total + 1) }).s("}");
    }
    row.s("],\"payment\":{\"type\":").hl7("ex-paymenttype", "complete").s(",\"date\":\"");
    row.date(start.div_euclid(24 * HOUR) + draw.below(60) as i64)
        .s("\",\"amount\":")
        .money(draw.below(total + 1));
    row.s("},\"processNote\":[{\"number\":1,\"type\":\"display\",\"text\":\"Paid by ");
    row.s(PAYER_NAMES[payer as usize]).s(";\\n see remittance ").hex(draw.bits()).s("\"}]}");
}
