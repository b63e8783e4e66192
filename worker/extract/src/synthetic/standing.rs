//! Content of the rows of no patient: who gives care, where, with what.
//!
//! References lead upwards only, and at most three steps from a patient's row (role, its hospital, the
//! hospital's system), so that the rounds of a plan (`caps::MAX_ROUNDS`) reach all of them.

use super::hash::Draw;
use super::population::{Kind, MANUFACTURERS, NATIONAL_ORGANIZATIONS, PAYERS, Stamp};
use super::row::RowWriter;
use super::words::{Code, DRUGS, PAYER_NAMES, RXNORM, SPECIALITIES, STRENGTHS};

/// Hospitals of a region, after its system; the clinics follow.
const HOSPITALS: u64 = 3;

/// Writes an Organization: a payer, a manufacturer, or the system, a hospital or a clinic of a region.
pub fn organization(row: &mut RowWriter, ordinal: u64, mut draw: Draw, stamp: Stamp) {
    row.open(Kind::Organization, ordinal, 0, stamp, "core/StructureDefinition/us-core-organization");
    row.s(",\"identifier\":[{\"system\":\"http://hl7.org/fhir/sid/us-npi\",\"value\":\"")
        .n(1_000_000_000 + ordinal);
    row.s("\"}],\"active\":true,\"type\":[");
    if ordinal < PAYERS {
        row.hl7("organization-type", "pay").s("],\"name\":\"").s(PAYER_NAMES[ordinal as usize]).s("\"");
        if ordinal >= PAYERS / 2 {
            row.s(",\"partOf\":").standing(Kind::Organization, ordinal - PAYERS / 2);
        }
    } else if ordinal < NATIONAL_ORGANIZATIONS {
        row.hl7("organization-type", "bus")
            .s("],\"name\":\"Manufacturer \\\"")
            .n(ordinal)
            .s("\\\" GmbH & Co\"");
    } else {
        let region = row.population.region_of(Kind::Organization, ordinal);
        let place = ordinal - row.population.regional(Kind::Organization, region, 0);
        let name = match place {
            0 => "Regional Health System",
            1..=HOSPITALS => "Hôpital général",
            _ => "Family Clinic",
        };
        row.hl7("organization-type", "prov").s("],\"name\":\"").s(name).s(" №").n(ordinal).s("\"");
        if place > HOSPITALS {
            let hospital = row.population.regional(Kind::Organization, region, 1 + place % HOSPITALS);
            row.s(",\"partOf\":").standing(Kind::Organization, hospital);
        } else if place > 0 {
            let system = row.population.regional(Kind::Organization, region, 0);
            row.s(",\"partOf\":").standing(Kind::Organization, system);
        }
    }
    row.s(",\"telecom\":[{\"system\":\"phone\",\"value\":\"555-").padded(draw.below(10_000_000), 7);
    row.s("\"}],\"address\":[").address(&mut draw).s("]}");
}

/// Writes a Location of one of the region's hospitals.
pub fn location(row: &mut RowWriter, ordinal: u64, mut draw: Draw, stamp: Stamp) {
    let region = row.population.region_of(Kind::Location, ordinal);
    let hospital = row.population.regional(Kind::Organization, region, 1 + draw.below(HOSPITALS));
    row.open(Kind::Location, ordinal, 0, stamp, "core/StructureDefinition/us-core-location");
    row.s(",\"status\":\"active\",\"name\":\"Building ")
        .n(ordinal)
        .s(", \\\"West\\\" wing\",\"telecom\":[{\"system\":");
    row.s("\"phone\",\"value\":\"555-").padded(draw.below(10_000_000), 7).s("\"}],\"address\":");
    row.address(&mut draw).s(",\"position\":{\"longitude\":-").hundredths(7_000 + draw.below(5_000));
    row.s(",\"latitude\":").hundredths(2_600 + draw.below(2_200)).s("},\"managingOrganization\":");
    row.standing(Kind::Organization, hospital).s("}");
}

/// Writes a Medication.
pub fn medication(row: &mut RowWriter, ordinal: u64, mut draw: Draw, stamp: Stamp) {
    let drug = DRUGS[ordinal as usize / STRENGTHS.len() % DRUGS.len()];
    let strength = STRENGTHS[ordinal as usize % STRENGTHS.len()];
    row.open(Kind::Medication, ordinal, 0, stamp, "core/StructureDefinition/us-core-medication");
    row.s(",\"code\":{\"coding\":[{\"system\":\"").s(RXNORM).s("\",\"code\":\"").n(197_000 + ordinal);
    row.s("\",\"display\":\"").s(drug).s(" ").s(strength).s("\"}],\"text\":\"").s(drug).s(" ").s(strength);
    row.s("\"},\"status\":\"active\",\"manufacturer\":");
    row.standing(Kind::Organization, PAYERS + draw.below(MANUFACTURERS));
    row.s(",\"batch\":{\"lotNumber\":\"").hex(draw.bits()).s("\"}}");
}

/// Writes a Practitioner.
pub fn practitioner(row: &mut RowWriter, ordinal: u64, mut draw: Draw, stamp: Stamp) {
    let gender = if row.is_woman(Kind::Practitioner, ordinal) { "female" } else { "male" };
    row.open(Kind::Practitioner, ordinal, 0, stamp, "core/StructureDefinition/us-core-practitioner");
    row.s(",\"identifier\":[{\"system\":\"http://hl7.org/fhir/sid/us-npi\",\"value\":\"")
        .n(1_500_000_000 + ordinal);
    row.s("\"}],\"active\":true,\"name\":[").name(Kind::Practitioner, ordinal, ordinal, "Dr. ");
    row.s("],\"telecom\":[{\"system\":\"email\",\"value\":\"npi")
        .n(ordinal)
        .s("@example.org\",\"use\":\"work\"}],");
    row.s("\"address\":[")
        .address(&mut draw)
        .s("],\"gender\":\"")
        .s(gender)
        .s("\",\"qualification\":[{\"code\":");
    row.hl7("v2-0360", draw.pick(&["MD", "DO", "NP", "PA"])).s("}]}");
}

/// Writes the PractitionerRole of the Practitioner with the same ordinal.
pub fn role(row: &mut RowWriter, ordinal: u64, mut draw: Draw, stamp: Stamp) {
    let region = row.population.region_of(Kind::Role, ordinal);
    let place = ordinal - row.population.regional(Kind::Role, region, 0);
    let practitioner = row.population.regional(Kind::Practitioner, region, place);
    let hospital = row.population.regional(Kind::Organization, region, 1 + place % HOSPITALS);
    let location = row.population.regional(Kind::Location, region, draw.below(64));
    let Code { code, display } = draw.pick(&SPECIALITIES);
    row.open(Kind::Role, ordinal, 0, stamp, "core/StructureDefinition/us-core-practitionerrole");
    row.s(",\"active\":true,\"practitioner\":").standing(Kind::Practitioner, practitioner);
    row.s(",\"organization\":")
        .standing(Kind::Organization, hospital)
        .s(",\"specialty\":[{\"coding\":[{\"system\":");
    row.s("\"http://nucc.org/provider-taxonomy\",\"code\":\"").s(code).s("\",\"display\":\"").s(display);
    row.s("\"}],\"text\":\"").s(display).s("\"}],\"location\":[").standing(Kind::Location, location);
    row.s("],\"telecom\":[{\"system\":\"phone\",\"value\":\"555-")
        .padded(draw.below(10_000_000), 7)
        .s("\"}]}");
}

/// Writes a Provenance of an Organization.
pub fn audit(row: &mut RowWriter, ordinal: u64, mut draw: Draw, stamp: Stamp) {
    let region = row.population.region_of(Kind::Audit, ordinal);
    let target = row.population.regional(Kind::Organization, region, ordinal);
    let who = row.population.regional(Kind::Practitioner, region, draw.below(64));
    row.open(Kind::Audit, ordinal, 0, stamp, "core/StructureDefinition/us-core-provenance");
    row.s(",\"target\":[").standing(Kind::Organization, target).s("],\"recorded\":\"");
    row.moment(super::row::care_moment(&mut draw)).s("\",\"agent\":[{\"type\":");
    row.hl7("provenance-participant-type", "author")
        .s(",\"who\":")
        .standing(Kind::Practitioner, who)
        .s("}]}");
}
