//! The root elements of every resource type, as `_elements` names them (`bulk-data.md` PM-29 to PM-34).
//!
//! Data only: `elements.txt` is made by `examples/elements.rs` from the official profiles of FHIR R4 and holds a line
//! for each type: its name, then its elements in the order of the definition, marked `+` mandatory, `!` modifier,
//! `*` choice of types.

use std::sync::LazyLock;

use crate::ResourceType;

/// A root element of a resource type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootElement {
    /// The name in the definition; a choice of types has its base name (`value` for `value[x]`).
    pub name: &'static str,
    /// Whether a valid resource has it (its least cardinality is not 0).
    pub mandatory: bool,
    /// Whether it can change the meaning of the others (`isModifier`).
    pub modifier: bool,
    /// Whether its name in a resource is followed by that of its type (`valueQuantity`).
    pub choice: bool,
}

const TABLE: &str = include_str!("elements.txt");

static ELEMENTS: LazyLock<Vec<(ResourceType, Vec<RootElement>)>> = LazyLock::new(|| {
    let line = |line: &'static str| {
        let mut words = line.split_ascii_whitespace();
        let resource_type = words.next()?.parse().ok()?;
        Some((resource_type, words.map(element).collect()))
    };
    TABLE.lines().filter_map(line).collect()
});

fn element(word: &'static str) -> RootElement {
    let name = word.trim_end_matches(['+', '!', '*']);
    let marks = &word[name.len()..];
    RootElement {
        name,
        mandatory: marks.contains('+'),
        modifier: marks.contains('!'),
        choice: marks.contains('*'),
    }
}

/// The root elements of a type, in the order of its definition.
pub fn of(resource_type: ResourceType) -> &'static [RootElement] {
    match ELEMENTS.binary_search_by_key(&resource_type, |(of, _)| *of) {
        Ok(at) => &ELEMENTS[at].1,
        Err(_) => &[],
    }
}

/// The root element of a type with this name.
pub fn find(resource_type: ResourceType, name: &str) -> Option<&'static RootElement> {
    of(resource_type).iter().find(|element| element.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(resource_type: &str, mark: fn(&RootElement) -> bool) -> Vec<&'static str> {
        let marked = of(resource_type.parse().unwrap()).iter().filter(|element| mark(element));
        marked.map(|element| element.name).collect()
    }

    #[test]
    fn every_type_has_its_line_in_the_order_of_types() {
        assert!(ELEMENTS.iter().map(|(of, _)| *of).eq(ResourceType::all()));
        for resource_type in ResourceType::all() {
            for name in ["id", "meta", "implicitRules", "language"] {
                assert!(find(resource_type, name).is_some(), "{resource_type} {name}");
            }
            for element in of(resource_type) {
                assert!(
                    element.name.bytes().all(|b| b.is_ascii_alphanumeric()),
                    "{resource_type} {element:?}"
                );
            }
        }
        assert_eq!(ELEMENTS.iter().map(|(_, elements)| elements.len()).sum::<usize>(), 3603);
    }

    #[test]
    fn pm_30_31_34_names_mandatory_and_modifier_elements_of_the_definitions() {
        assert_eq!(marked("Observation", |e| e.mandatory), ["status", "code"]);
        assert_eq!(marked("Observation", |e| e.modifier), ["implicitRules", "modifierExtension", "status"]);
        assert_eq!(marked("Observation", |e| e.choice), ["effective", "value"]);
        assert_eq!(
            marked("Patient", |e| e.modifier),
            ["implicitRules", "modifierExtension", "active", "deceased", "link"]
        );
        assert_eq!(
            marked("MedicationRequest", |e| e.mandatory),
            ["status", "intent", "medication", "subject"]
        );
        assert_eq!(marked("EvidenceVariable", |e| e.mandatory), ["status", "characteristic"]);
        assert_eq!(find("ResearchStudy".parse().unwrap(), "recruitment"), None, "an element of R5");
        assert_eq!(find(ResourceType::PATIENT, "value"), None);
    }
}
