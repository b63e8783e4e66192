//! Lanes: the ordered sequences of rows that a plan cuts into tasks.

use crate::ResourceType;

/// Which rows of a type a lane holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Section {
    /// Rows that belong to at least one patient, under each of their patients, ordered by
    /// `patient ‖ 0x00 ‖ id`. A row of several patients stands under each of them; among the patients of the
    /// job the least one emits it.
    Compartment,
    /// Rows of no patient, and every `Group`, ordered by id.
    Standalone,
    /// Every row that the job wants of every compartment lane, put together by patient (`organizeOutputBy=Patient`).
    /// Its type is Patient. Only the plan of such a job has it, never a source; all of its positions are between
    /// patients (`position::is_between_patients`).
    Organised,
}

/// One ordered sequence of rows of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// The type of all rows.
    pub resource_type: ResourceType,
    /// Which rows of the type.
    pub section: Section,
}

impl Lane {
    /// The lane of this type's rows that belong to patients.
    pub fn compartment(resource_type: ResourceType) -> Lane {
        Lane { resource_type, section: Section::Compartment }
    }

    /// The lane of this type's rows that belong to no patient.
    pub fn standalone(resource_type: ResourceType) -> Lane {
        Lane { resource_type, section: Section::Standalone }
    }

    /// The lane of a job whose output is organised by patient.
    pub const ORGANISED: Lane = Lane { resource_type: ResourceType::PATIENT, section: Section::Organised };
}

/// Whether rows may be delivered to Patient and Group level exports because another row refers to them
/// (`decisions.md` 3): types outside the Patient compartment, and devices of no patient. Never `Group` (its
/// members are patients) nor `Binary` (patient content travels in `DocumentReference`).
pub fn is_supporting(resource_type: ResourceType) -> bool {
    !resource_type.in_patient_compartment()
        && resource_type.is_exportable()
        && resource_type != ResourceType::GROUP
        && resource_type != ResourceType::BINARY
}
