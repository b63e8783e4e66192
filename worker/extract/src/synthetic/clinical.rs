//! Content of the clinical rows of a patient.

use super::hash::Draw;
use super::population::{Kind, Stamp};
use super::row::{RowWriter, Subject, care_moment};
use super::words::{
    ALLERGIES, CVX, LOINC, MEASURES, NOTES, PANELS, PROBLEMS, PROCEDURES, SENTENCES, SNOMED, VACCINES, VISITS,
};

const HOUR: i64 = 3_600_000;

/// Writes an Encounter.
pub fn encounter(row: &mut RowWriter, subject: &Subject, index: u64, mut draw: Draw, stamp: Stamp) {
    let start = care_moment(&mut draw);
    let end = start + HOUR / 4 * (1 + draw.below(12) as i64);
    row.open(Kind::Encounter, subject.slot, index, stamp, "core/StructureDefinition/us-core-encounter");
    row.s(",\"identifier\":[{\"use\":\"official\",\"system\":\"https://visits.example.org\",\"value\":\"");
    row.hex(draw.bits()).s("\"}],\"status\":\"finished\",\"class\":{\"system\":\
        \"http://terminology.hl7.org/CodeSystem/v3-ActCode\",\"code\":\"");
    row.s(draw.pick(&["AMB", "AMB", "AMB", "EMER", "IMP", "VR"])).s("\"},\"type\":[");
    row.concept(SNOMED, draw.pick(&VISITS)).s("],\"subject\":").patient(subject.slot);
    row.s(",\"participant\":[{\"type\":[").hl7("v3-ParticipationType", "PPRF").s("],\"period\":");
    row.period(start, end).s(",\"individual\":").some(subject, Kind::Practitioner, &mut draw);
    row.s("}],\"period\":").period(start, end).s(",\"reasonCode\":[").concept(SNOMED, draw.pick(&PROBLEMS));
    row.s("],\"location\":[{\"location\":").some(subject, Kind::Location, &mut draw);
    row.s("}],\"serviceProvider\":").some(subject, Kind::Organization, &mut draw).s("}");
}

/// Writes a Condition.
pub fn condition(row: &mut RowWriter, subject: &Subject, index: u64, mut draw: Draw, stamp: Stamp) {
    let onset = care_moment(&mut draw);
    let problem = draw.pick(&PROBLEMS);
    row.open(Kind::Condition, subject.slot, index, stamp, "core/StructureDefinition/us-core-condition");
    if draw.one_in(4) {
        row.narrative("Problem", problem.display, draw.bits());
    }
    row.s(",\"clinicalStatus\":").hl7("condition-clinical", draw.pick(&["active", "active", "resolved"]));
    row.s(",\"verificationStatus\":").hl7("condition-ver-status", "confirmed").s(",\"category\":[");
    row.hl7("condition-category", draw.pick(&["encounter-diagnosis", "problem-list-item"])).s("],\"code\":");
    row.concept(SNOMED, problem).s(",\"subject\":").patient(subject.slot);
    row.own(",\"encounter\":", subject, Kind::Encounter, draw.below(1 << 20), "");
    row.s(",\"onsetDateTime\":\"").moment(onset).s("\",\"recordedDate\":\"").moment(onset + 2 * HOUR);
    row.s("\",\"recorder\":").some(subject, Kind::Role, &mut draw).s("}");
}

/// Writes an Observation.
pub fn observation(row: &mut RowWriter, subject: &Subject, index: u64, mut draw: Draw, stamp: Stamp) {
    let at = care_moment(&mut draw);
    let choice = draw.below(MEASURES.len() as u64) as usize;
    let (code, unit, least, span) = MEASURES[choice];
    let category = if choice < 5 { "vital-signs" } else { "laboratory" };
    let profile = "core/StructureDefinition/us-core-observation-lab";
    row.open(Kind::Observation, subject.slot, index, stamp, profile);
    row.s(",\"status\":\"final\",\"category\":[").hl7("observation-category", category).s("],\"code\":");
    row.concept(LOINC, code).s(",\"subject\":").patient(subject.slot);
    row.own(",\"encounter\":", subject, Kind::Encounter, draw.below(1 << 20), "");
    row.s(",\"effectiveDateTime\":\"").moment(at).s("\",\"issued\":\"").moment(at + HOUR).s("\"");
    if draw.one_in(4) {
        row.s(",\"performer\":[").some(subject, Kind::Practitioner, &mut draw).s("]");
    }
    row.s(",\"valueQuantity\":{\"value\":").hundredths(least + draw.below(span)).s(",\"unit\":\"").s(unit);
    row.s("\",\"system\":\"http://unitsofmeasure.org\",\"code\":\"").s(unit).s("\"}");
    if category == "laboratory" {
        row.s(",\"referenceRange\":[{\"low\":{\"value\":")
            .hundredths(least + span / 8)
            .s(",\"unit\":\"")
            .s(unit);
        row.s("\"},\"high\":{\"value\":").hundredths(least + span / 2).s(",\"unit\":\"").s(unit).s("\"}}]");
    }
    row.s("}");
}

/// Writes a Procedure.
pub fn procedure(row: &mut RowWriter, subject: &Subject, index: u64, mut draw: Draw, stamp: Stamp) {
    let start = care_moment(&mut draw);
    row.open(Kind::Procedure, subject.slot, index, stamp, "core/StructureDefinition/us-core-procedure");
    row.s(",\"status\":\"completed\",\"code\":").concept(SNOMED, draw.pick(&PROCEDURES));
    row.s(",\"subject\":").patient(subject.slot);
    row.own(",\"encounter\":", subject, Kind::Encounter, draw.below(1 << 20), "");
    row.s(",\"performedPeriod\":").period(start, start + HOUR / 2).s(",\"performer\":[{\"actor\":");
    row.some(subject, Kind::Practitioner, &mut draw).s("}],\"location\":").some(
        subject,
        Kind::Location,
        &mut draw,
    );
    row.own(",\"reasonReference\":[", subject, Kind::Condition, draw.below(1 << 20), "]").s("}");
}

/// Writes a MedicationRequest.
pub fn prescription(row: &mut RowWriter, subject: &Subject, index: u64, mut draw: Draw, stamp: Stamp) {
    let at = care_moment(&mut draw);
    let profile = "core/StructureDefinition/us-core-medicationrequest";
    row.open(Kind::Prescription, subject.slot, index, stamp, profile);
    row.s(",\"status\":\"").s(draw.pick(&["active", "completed", "stopped"])).s("\",\"intent\":\"order\",");
    row.s("\"medicationReference\":").some(subject, Kind::Medication, &mut draw);
    row.s(",\"subject\":").patient(subject.slot);
    row.own(",\"encounter\":", subject, Kind::Encounter, draw.below(1 << 20), "");
    row.s(",\"authoredOn\":\"").moment(at).s("\",\"requester\":").some(
        subject,
        Kind::Practitioner,
        &mut draw,
    );
    row.own(",\"reasonReference\":[", subject, Kind::Condition, draw.below(1 << 20), "]");
    row.own(",\"insurance\":[", subject, Kind::Coverage, draw.below(4), "]");
    row.s(",\"dosageInstruction\":[{\"sequence\":1,\"text\":\"Take ").n(1 + draw.below(3));
    row.s(" by mouth daily\\nwith food; do not exceed the \\\"maximum\\\" dose\",\"timing\":{\"repeat\":{\
        \"frequency\":");
    row.n(1 + draw.below(4)).s(",\"period\":1.0,\"periodUnit\":\"d\"}},\"doseAndRate\":[{\"type\":");
    row.hl7("dose-rate-type", "ordered")
        .s(",\"doseQuantity\":{\"value\":")
        .hundredths(50 * (1 + draw.below(6)));
    row.s("}}]}],\"dispenseRequest\":{\"numberOfRepeatsAllowed\":")
        .n(draw.below(6))
        .s(",\"quantity\":{\"value\":");
    row.n(30 * (1 + draw.below(3))).s(".0},\"expectedSupplyDuration\":{\"value\":30,\"unit\":\"d\"}}}");
}

/// Writes an Immunization.
pub fn immunization(row: &mut RowWriter, subject: &Subject, index: u64, mut draw: Draw, stamp: Stamp) {
    let at = care_moment(&mut draw);
    row.open(Kind::Immunization, subject.slot, index, stamp, "core/StructureDefinition/us-core-immunization");
    row.s(",\"status\":\"completed\",\"vaccineCode\":").concept(CVX, draw.pick(&VACCINES));
    row.s(",\"patient\":").patient(subject.slot);
    row.own(",\"encounter\":", subject, Kind::Encounter, draw.below(1 << 20), "");
    row.s(",\"occurrenceDateTime\":\"").moment(at).s("\",\"primarySource\":true,\"location\":");
    row.some(subject, Kind::Location, &mut draw).s(",\"lotNumber\":\"").hex(draw.bits());
    row.s("\",\"doseQuantity\":{\"value\":0.50,\"unit\":\"mL\"}}");
}

/// Writes an AllergyIntolerance.
pub fn allergy(row: &mut RowWriter, subject: &Subject, index: u64, mut draw: Draw, stamp: Stamp) {
    let (code, category) = draw.pick(&ALLERGIES);
    let profile = "core/StructureDefinition/us-core-allergyintolerance";
    row.open(Kind::Allergy, subject.slot, index, stamp, profile);
    row.s(",\"clinicalStatus\":").hl7("allergyintolerance-clinical", "active").s(",\"verificationStatus\":");
    row.hl7("allergyintolerance-verification", "confirmed")
        .s(",\"type\":\"allergy\",\"category\":[\"")
        .s(category);
    row.s("\"],\"criticality\":\"").s(draw.pick(&["low", "high", "unable-to-assess"])).s("\",\"code\":");
    row.concept(SNOMED, code).s(",\"patient\":").patient(subject.slot).s(",\"recordedDate\":\"");
    row.moment(care_moment(&mut draw)).s("\",\"recorder\":").some(subject, Kind::Practitioner, &mut draw);
    row.s(",\"note\":[{\"text\":\"Reported by the member (\\\"as a child\\\").\\tReaction: urticaria \\u2013 mild\"}]}");
}

/// Writes a DiagnosticReport: a panel with its results, sometimes with a note attached.
pub fn report(row: &mut RowWriter, subject: &Subject, index: u64, mut draw: Draw, stamp: Stamp) {
    let at = care_moment(&mut draw);
    let profile = "core/StructureDefinition/us-core-diagnosticreport-lab";
    row.open(Kind::Report, subject.slot, index, stamp, profile);
    row.s(",\"status\":\"final\",\"category\":[").hl7("v2-0074", "LAB").s("],\"code\":");
    row.concept(LOINC, draw.pick(&PANELS)).s(",\"subject\":").patient(subject.slot);
    row.own(",\"encounter\":", subject, Kind::Encounter, draw.below(1 << 20), "");
    row.s(",\"effectiveDateTime\":\"").moment(at).s("\",\"issued\":\"").moment(at + HOUR);
    row.s("\",\"performer\":[").some(subject, Kind::Organization, &mut draw).s("]");
    if subject.count(Kind::Observation) > 0 {
        let first = draw.below(1 << 20);
        row.s(",\"result\":[");
        for place in 0..2 + draw.below(5) {
            row.own(if place > 0 { "," } else { "" }, subject, Kind::Observation, first + place, "");
        }
        row.s("]");
    }
    if draw.one_in(6) {
        compose_note(row, 2, &mut draw);
        row.s(",\"presentedForm\":[{\"contentType\":\"text/plain; charset=utf-8\",\"data\":\"")
            .base64_of_note();
        row.s("\"}]");
    }
    row.s(",\"conclusion\":\"Within expected limits.\\r\\nCompared with \\\"prior\\\" of ")
        .n(2_000 + draw.below(20));
    row.s("\"}");
}

/// Writes a DocumentReference with its document inline, in base64.
pub fn document(row: &mut RowWriter, subject: &Subject, index: u64, mut draw: Draw, stamp: Stamp) {
    let at = care_moment(&mut draw);
    let profile = "core/StructureDefinition/us-core-documentreference";
    row.open(Kind::Document, subject.slot, index, stamp, profile);
    row.s(",\"identifier\":[{\"system\":\"urn:ietf:rfc:3986\",\"value\":\"urn:oid:2.25.").n(draw.bits());
    row.s("\"}],\"status\":\"current\",\"type\":").concept(LOINC, draw.pick(&NOTES));
    row.s(",\"category\":[{\"coding\":[{\"system\":\"http://hl7.org/fhir/us/core/CodeSystem/\
        us-core-documentreference-category\",\"code\":\"clinical-note\",\"display\":\"Clinical Note\"}]}],\
        \"subject\":");
    row.patient(subject.slot).s(",\"date\":\"").moment(at).s("\",\"author\":[");
    row.some(subject, Kind::Practitioner, &mut draw).s("],\"custodian\":");
    row.some(subject, Kind::Organization, &mut draw);
    let paragraphs = 1 + draw.below(4);
    compose_note(row, paragraphs, &mut draw);
    row.s(",\"content\":[{\"attachment\":{\"contentType\":\"text/plain; charset=utf-8\",\"data\":\"");
    row.base64_of_note();
    let size = row.note.len() as u64;
    row.s("\",\"size\":").n(size).s("}}],\"context\":{");
    row.own("\"encounter\":[", subject, Kind::Encounter, draw.below(1 << 20), "],").s("\"period\":");
    row.period(at - HOUR, at).s("}}");
}

/// Puts some paragraphs of about 900 bytes into the writer's note.
fn compose_note(row: &mut RowWriter, paragraphs: u64, draw: &mut Draw) {
    let mut number = itoa::Buffer::new();
    row.note.clear();
    for _ in 0..paragraphs {
        row.note.extend_from_slice(b"\n# Note\n");
        for _ in 0..9 {
            row.note.extend_from_slice(draw.pick(&SENTENCES).as_bytes());
            row.note.extend_from_slice(number.format(draw.below(1_000)).as_bytes());
            row.note.extend_from_slice(b".\n");
        }
    }
}

/// Writes a Provenance of the Patient and some of its resources.
pub fn provenance(row: &mut RowWriter, subject: &Subject, index: u64, mut draw: Draw, stamp: Stamp) {
    let at = care_moment(&mut draw);
    row.open(Kind::Provenance, subject.slot, index, stamp, "core/StructureDefinition/us-core-provenance");
    row.s(",\"target\":[").patient(subject.slot);
    for kind in
        [Kind::Encounter, Kind::Condition, Kind::Report, Kind::Claim, Kind::Benefit, Kind::Observation]
    {
        for _ in 0..subject.count(kind).min(4) {
            row.own(",", subject, kind, draw.below(1 << 20), "");
        }
    }
    row.s("],\"recorded\":\"")
        .moment(at)
        .s("\",\"agent\":[{\"type\":")
        .hl7("provenance-participant-type", "author");
    row.s(",\"who\":").some(subject, Kind::Practitioner, &mut draw).s(",\"onBehalfOf\":");
    row.some(subject, Kind::Organization, &mut draw)
        .s("},{\"type\":{\"coding\":[{\"system\":\"http://hl7.org/fhir/\
        us/core/CodeSystem/us-core-provenance-participant-type\",\"code\":\"transmitter\"}]},\"who\":");
    row.some(subject, Kind::Organization, &mut draw).s("}]}");
}
