//! Who and what exists: slots of patients, households, how many resources of each kind a patient has, which
//! of them were deleted, when each was changed. Everything is a function of the seed and an identity.
//!
//! Invariants:
//! - Patients stand in *slots* 0, 1, 2…; in each block of [`BLOCK`] slots exactly one was deleted, so that the
//!   first `n` living patients are a prefix of the slots for every `n`, and a smaller population is a prefix of
//!   a larger one.
//! - Index 0 of every sequence is never deleted, so that a reference always finds a living target.
//! - References to standalone resources stay in the patient's region or one before it: what a patient refers
//!   to does not depend on the size of the population.

use flatbed_types::{Instant, Lane, ResourceType, Section};

use super::config::SyntheticConfig;
use super::hash::{Draw, Purpose};

/// Slots of which exactly one was deleted.
pub const BLOCK: u64 = 128;
/// Slots of which exactly one is a very heavy patient.
pub const HEAVY_BLOCK: u64 = 1_000;
/// Slots that may share a household; the first is its head.
pub const HOUSEHOLD: u64 = 4;
/// Slots that share practitioners, organisations and places.
pub const REGION: u64 = 1_024;
/// One in this many resources was deleted.
pub const DEAD_ONE_IN: u64 = 64;
/// Payers, the first Organizations; then manufacturers; then the regions' own.
pub const PAYERS: u64 = 16;
/// Manufacturers of medications.
pub const MANUFACTURERS: u64 = 8;
/// Organizations of no region.
pub const NATIONAL_ORGANIZATIONS: u64 = PAYERS + MANUFACTURERS;
const DAY: i64 = 86_400_000;
/// 2020-01-01: clinical facts are before it, changes of resources after.
const FIRST_CHANGE: i64 = 1_577_836_800_000;
/// 2024-01-01: deletions are between this and the default time of a population.
const FIRST_DELETION: i64 = 1_704_067_200_000;
const DELETION_DAYS: u64 = 730;
/// Days between two changes of a resource.
const CHANGE_DAYS: [i64; 8] = [45, 90, 180, 180, 360, 360, 720, 720];
/// One in weights.
pub const WEIGHT_ONE: u64 = 1_024;
/// Quantiles of a log-normal distribution (sigma 0.95) with mean [`WEIGHT_ONE`].
#[rustfmt::skip]
const WEIGHTS: [u16; 64] = [
    67, 100, 124, 145, 164, 181, 198, 214, 230, 246, 262, 278, 293, 309, 325, 341, 358, 374, 391, 408, 426,
    443, 462, 480, 500, 519, 539, 560, 582, 604, 627, 651, 675, 701, 728, 756, 785, 815, 847, 880, 915, 952,
    992, 1033, 1077, 1125, 1175, 1230, 1288, 1352, 1422, 1499, 1584, 1679, 1786, 1909, 2052, 2221, 2428, 2688,
    3034, 3535, 4380, 6591,
];
/// A very heavy patient has about this many to four times this many times as many resources as others.
const HEAVY: u64 = 128;

/// The kinds of generated rows: one id sequence each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Patients' AllergyIntolerance.
    Allergy,
    /// Patients' Claim.
    Claim,
    /// Patients' Condition.
    Condition,
    /// Patients' Coverage; a dependant's belongs to the head of the household, too.
    Coverage,
    /// Patients' DiagnosticReport.
    Report,
    /// Patients' DocumentReference.
    Document,
    /// Patients' Encounter.
    Encounter,
    /// Patients' ExplanationOfBenefit: one for each Claim.
    Benefit,
    /// Patients' Immunization.
    Immunization,
    /// Patients' MedicationRequest.
    Prescription,
    /// Patients' Observation.
    Observation,
    /// Patient.
    Patient,
    /// Patients' Procedure.
    Procedure,
    /// Provenance of patients' resources.
    Provenance,
    /// Location.
    Location,
    /// Medication.
    Medication,
    /// Organization.
    Organization,
    /// Practitioner.
    Practitioner,
    /// PractitionerRole.
    Role,
    /// Provenance of Organizations: the same type as [`Kind::Provenance`], but of no patient.
    Audit,
}

/// How many kinds belong to patients.
pub const PATIENT_KINDS: usize = 14;

impl Kind {
    /// Every kind.
    #[rustfmt::skip]
    pub const ALL: [Kind; 20] = [
        Kind::Allergy, Kind::Claim, Kind::Condition, Kind::Coverage, Kind::Report, Kind::Document,
        Kind::Encounter, Kind::Benefit, Kind::Immunization, Kind::Prescription, Kind::Observation,
        Kind::Patient, Kind::Procedure, Kind::Provenance, Kind::Location, Kind::Medication,
        Kind::Organization, Kind::Practitioner, Kind::Role, Kind::Audit,
    ];

    /// The name of the type and the first four bytes of its ids.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Kind::Allergy => ("AllergyIntolerance", "alg-"),
            Kind::Claim => ("Claim", "clm-"),
            Kind::Condition => ("Condition", "cnd-"),
            Kind::Coverage => ("Coverage", "cov-"),
            Kind::Report => ("DiagnosticReport", "drp-"),
            Kind::Document => ("DocumentReference", "doc-"),
            Kind::Encounter => ("Encounter", "enc-"),
            Kind::Benefit => ("ExplanationOfBenefit", "eob-"),
            Kind::Immunization => ("Immunization", "imm-"),
            Kind::Prescription => ("MedicationRequest", "mrx-"),
            Kind::Observation => ("Observation", "obs-"),
            Kind::Patient => ("Patient", "pat-"),
            Kind::Procedure => ("Procedure", "prc-"),
            Kind::Provenance => ("Provenance", "prv-"),
            Kind::Location => ("Location", "loc-"),
            Kind::Medication => ("Medication", "med-"),
            Kind::Organization => ("Organization", "org-"),
            Kind::Practitioner => ("Practitioner", "pra-"),
            Kind::Role => ("PractitionerRole", "rol-"),
            Kind::Audit => ("Provenance", "prs-"),
        }
    }

    /// The name of the type.
    pub const fn type_name(self) -> &'static str {
        self.names().0
    }

    /// What its ids start with.
    pub const fn prefix(self) -> &'static str {
        self.names().1
    }

    /// The type.
    pub const fn resource_type(self) -> ResourceType {
        ResourceType::of(self.type_name())
    }

    /// Whether its rows belong to patients.
    pub const fn of_patient(self) -> bool {
        (self as usize) < PATIENT_KINDS
    }

    /// The lane in which its rows stand.
    pub const fn lane(self) -> Lane {
        let section = if self.of_patient() { Section::Compartment } else { Section::Standalone };
        Lane { resource_type: self.resource_type(), section }
    }

    /// The kind whose rows stand in this lane; none for the lane of Groups and for empty lanes.
    pub fn of_lane(lane: Lane) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.lane() == lane)
    }

    /// Resources of a patient of weight one, in sixteenths; 0 for the kinds that are not counted by weight.
    pub const fn sixteenths(self) -> u64 {
        match self {
            Kind::Allergy => 8,
            Kind::Claim | Kind::Benefit => 128,
            Kind::Condition | Kind::Procedure => 80,
            Kind::Report => 72,
            Kind::Document => 40,
            Kind::Encounter => 160,
            Kind::Immunization => 40,
            Kind::Prescription => 96,
            Kind::Observation => 640,
            Kind::Provenance => 16,
            _ => 0,
        }
    }

    /// Rows of a region, for the standalone kinds. All medications are of region 0.
    const fn in_region(self) -> u64 {
        match self {
            Kind::Location => 12,
            Kind::Organization => 8,
            Kind::Practitioner | Kind::Role => 48,
            Kind::Audit => 2,
            Kind::Medication => (super::words::DRUGS.len() * super::words::STRENGTHS.len()) as u64,
            _ => 0,
        }
    }

    /// Rows of no region that come first.
    const fn national(self) -> u64 {
        match self {
            Kind::Organization => NATIONAL_ORGANIZATIONS,
            _ => 0,
        }
    }
}

/// When a resource was changed, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Milliseconds since 1970.
    pub millis: i64,
    /// `meta.versionId`.
    pub version: u64,
}

impl Stamp {
    /// `meta.lastUpdated`.
    pub fn instant(self) -> Instant {
        Instant::from_millis(self.millis)
    }
}

/// A population at a moment. Costs nothing to make, whatever its size.
#[derive(Debug, Clone, Copy)]
pub struct Population {
    /// The seed.
    pub seed: u64,
    /// Slots of patients, with the deleted ones.
    pub slots: u64,
    now: i64,
}

impl Population {
    /// The population that a configuration describes.
    pub fn new(config: &SyntheticConfig) -> Population {
        let mut population = Population { seed: config.seed, slots: 0, now: config.time.millis() };
        let (blocks, rest) = (config.patients / (BLOCK - 1), config.patients % (BLOCK - 1));
        population.slots = blocks * BLOCK + rest + u64::from(population.dead_of_block(blocks) < rest);
        population
    }

    fn dead_of_block(&self, block: u64) -> u64 {
        Draw::new(self.seed, Purpose::DeadPatient, 0, block, 0).below(BLOCK)
    }

    /// Whether the patient of this slot exists.
    pub fn lives(&self, slot: u64) -> bool {
        slot < self.slots && self.dead_of_block(slot / BLOCK) != slot % BLOCK
    }

    /// The very heavy patient among the slots from `block * HEAVY_BLOCK` on.
    pub fn heavy_of_block(&self, block: u64) -> u64 {
        block * HEAVY_BLOCK + Draw::new(self.seed, Purpose::HeavyPatient, 0, block, 0).below(HEAVY_BLOCK)
    }

    /// How much care a patient needs, in 1024ths of the mean.
    pub fn weight(&self, slot: u64) -> u64 {
        let mut draw = Draw::new(self.seed, Purpose::Weight, 0, slot, 0);
        if self.heavy_of_block(slot / HEAVY_BLOCK) != slot {
            return u64::from(draw.pick(&WEIGHTS));
        }
        // From once to four times, smaller ones more often: 4^u as (1 + u)^2.
        let root = WEIGHT_ONE + draw.below(WEIGHT_ONE);
        HEAVY * root * root / WEIGHT_ONE
    }

    /// How many resources of a kind a patient of this weight has ever had, deleted ones among them.
    pub fn count_of_weight(&self, kind: Kind, slot: u64, weight: u64) -> u64 {
        // Every Claim has its ExplanationOfBenefit.
        let counted = if kind == Kind::Benefit { Kind::Claim } else { kind };
        let mut draw = Draw::new(self.seed, Purpose::Count, counted as u64, slot, 0);
        match kind {
            Kind::Patient => 1,
            Kind::Coverage => 1 + draw.below(3),
            _ => (kind.sixteenths() * weight + draw.below(16 * WEIGHT_ONE)) / (16 * WEIGHT_ONE),
        }
    }

    /// How many resources of a kind the patient of a slot has ever had, deleted ones among them.
    pub fn count(&self, kind: Kind, slot: u64) -> u64 {
        match kind {
            Kind::Patient => 1,
            Kind::Coverage => self.count_of_weight(kind, slot, 0),
            _ => self.count_of_weight(kind, slot, self.weight(slot)),
        }
    }

    /// Whether a resource of a living patient was deleted. Never the first of its kind.
    pub fn is_dead(&self, kind: Kind, slot: u64, index: u64) -> bool {
        index != 0 && Draw::new(self.seed, Purpose::Dead, kind as u64, slot, index).one_in(DEAD_ONE_IN)
    }

    /// The head of a slot's household: itself, unless it is a dependant.
    pub fn head(&self, slot: u64) -> u64 {
        let head = slot - slot % HOUSEHOLD;
        let depends = head != slot && !Draw::new(self.seed, Purpose::Household, 0, slot, 0).one_in(3);
        if depends && self.lives(head) { head } else { slot }
    }

    /// When a resource was changed last.
    pub fn stamp(&self, kind: Kind, ordinal: u64, index: u64) -> Stamp {
        self.stamp_of(Draw::new(self.seed, Purpose::Changed, kind as u64, ordinal, index))
    }

    /// When a Group was changed last.
    pub fn group_stamp(&self, group: u64) -> Stamp {
        self.stamp_of(Draw::new(self.seed, Purpose::Changed, Kind::ALL.len() as u64, group, 0))
    }

    /// A resource changes every so many days, so that moving the time on changes some and leaves the others.
    fn stamp_of(&self, mut draw: Draw) -> Stamp {
        let period = draw.pick(&CHANGE_DAYS) * DAY;
        let phase = (draw.bits() % period as u64) as i64;
        let first = FIRST_CHANGE + phase;
        let changes = (self.now - 1 - first) / period;
        Stamp { millis: first + changes * period, version: changes as u64 + 1 }
    }

    /// When a deleted resource was deleted.
    pub fn deleted(&self, kind: Kind, ordinal: u64, index: u64) -> Instant {
        let mut draw = Draw::new(self.seed, Purpose::Changed, kind as u64, ordinal, index);
        Instant::from_millis(FIRST_DELETION + (draw.bits() % (DELETION_DAYS * DAY as u64)) as i64)
    }

    /// How many ordinals a standalone kind has, deleted ones among them.
    pub fn ordinals(&self, kind: Kind) -> u64 {
        if kind.of_patient() {
            return self.slots;
        }
        let regions = if kind == Kind::Medication { 1 } else { self.slots.div_ceil(REGION) };
        kind.national() + regions * kind.in_region()
    }

    /// Whether a standalone row exists. The first of each region and all national ones do.
    pub fn stands(&self, kind: Kind, ordinal: u64) -> bool {
        let national = kind.national();
        if ordinal < national || (ordinal - national).is_multiple_of(kind.in_region()) {
            return ordinal < self.ordinals(kind);
        }
        ordinal < self.ordinals(kind)
            && !Draw::new(self.seed, Purpose::Dead, kind as u64, ordinal, 0).one_in(DEAD_ONE_IN)
    }

    /// A standalone row of a region that exists: the `wanted`th (from 0), or the region's first.
    pub fn regional(&self, kind: Kind, region: u64, wanted: u64) -> u64 {
        let first = kind.national() + region * kind.in_region();
        let ordinal = first + wanted % kind.in_region();
        if self.stands(kind, ordinal) { ordinal } else { first }
    }

    /// The ordinals of a standalone kind in a region.
    pub fn of_region(&self, kind: Kind, region: u64) -> std::ops::Range<u64> {
        let first = kind.national() + region * kind.in_region();
        first..(first + kind.in_region()).min(self.ordinals(kind))
    }

    /// The region of a regional row.
    pub fn region_of(&self, kind: Kind, ordinal: u64) -> u64 {
        ordinal.saturating_sub(kind.national()) / kind.in_region().max(1)
    }
}

/// The slots whose rows of a kind stand under the patient of `slot`, in order.
pub fn owners(population: &Population, kind: Kind, slot: u64) -> impl Iterator<Item = u64> + use<> {
    let population = *population;
    let last =
        if kind == Kind::Coverage && slot.is_multiple_of(HOUSEHOLD) { slot + HOUSEHOLD } else { slot + 1 };
    (slot..last)
        .filter(move |owner| population.lives(*owner) && (*owner == slot || population.head(*owner) == slot))
}
