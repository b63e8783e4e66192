//! The search parameters of R4, from a table that `proto/search/generate` makes of the official definitions
//! (the form of its lines is described there). The table is parsed once, when it is first needed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use flatbed_types::ResourceType;

static TABLE: LazyLock<BTreeMap<&'static str, Vec<Parameter>>> =
    LazyLock::new(|| parse(include_str!("table/r4.txt")));

/// In the table, the type of what all types have.
const EVERY_TYPE: &str = "*";

/// The kind of a search parameter (<http://hl7.org/fhir/R4/search.html#ptypes>).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A coded value, an identifier, a boolean.
    Token,
    /// A text, by its start.
    String,
    /// A date, a time, a period.
    Date,
    /// A number.
    Number,
    /// A number with a unit.
    Quantity,
    /// Another resource.
    Reference,
    /// An address, as it is written.
    Uri,
    /// Several values of one element.
    Composite,
    /// Something of its own; never supported.
    Special,
}

impl Kind {
    const ALL: [(Kind, &'static str); 9] = [
        (Kind::Token, "token"),
        (Kind::String, "string"),
        (Kind::Date, "date"),
        (Kind::Number, "number"),
        (Kind::Quantity, "quantity"),
        (Kind::Reference, "reference"),
        (Kind::Uri, "uri"),
        (Kind::Composite, "composite"),
        (Kind::Special, "special"),
    ];

    /// The code of the kind in a capability statement.
    pub fn name(self) -> &'static str {
        Kind::ALL.iter().find(|(kind, _)| *kind == self).map_or("special", |(_, name)| name)
    }

    fn of(name: &str) -> Option<Kind> {
        Kind::ALL.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A search parameter of a resource type.
#[derive(Debug, PartialEq, Eq)]
pub struct Parameter {
    code: &'static str,
    kind: Kind,
    targets: Targets,
    source: Source,
}

impl Parameter {
    /// Its name in a filter.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether filters may use it.
    pub fn is_supported(&self) -> bool {
        self.unsupported().is_none()
    }

    /// Why filters may not use it, if so.
    pub fn unsupported(&self) -> Option<&'static str> {
        match self.source {
            Source::Unsupported(reason) => Some(reason),
            _ => None,
        }
    }

    pub(crate) fn targets(&self) -> &Targets {
        &self.targets
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }
}

/// All search parameters of a type, those of every type first, in the order of their names.
pub fn parameters(of: ResourceType) -> impl Iterator<Item = &'static Parameter> {
    [EVERY_TYPE, of.name()].into_iter().filter_map(|name| TABLE.get(name)).flatten()
}

/// The search parameter of a type with this name.
pub(crate) fn find(of: ResourceType, code: &str) -> Option<&'static Parameter> {
    parameters(of).find(|parameter| parameter.code == code)
}

/// What a reference may point to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Targets {
    /// Resources of any type.
    Any,
    /// Resources of these types; none for what is no reference.
    Types(Vec<ResourceType>),
}

impl Targets {
    pub(crate) fn allow(&self, kind: ResourceType) -> bool {
        match self {
            Targets::Any => true,
            Targets::Types(types) => types.contains(&kind),
        }
    }
}

/// Where the values of a parameter are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// At the ends of these paths.
    Values(Vec<Path>),
    /// The value is a boolean: whether anything but `false` is at the ends of these paths.
    Presence(Vec<Path>),
    /// In several elements of one object.
    Composite(Vec<Base>),
    /// Not evaluated, and why.
    Unsupported(&'static str),
}

/// A member to go into, and what its objects must say to be gone into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) condition: Option<Condition>,
}

/// A member of an object that must have a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) member: &'static str,
    pub(crate) text: &'static str,
}

/// The way to values of one FHIR type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) steps: Vec<Step>,
    pub(crate) kind: FhirType,
    /// Only references to this type count.
    pub(crate) only: Option<ResourceType>,
}

/// The objects in which the components of a composite are looked for; no steps for the resource itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) steps: Vec<Step>,
    pub(crate) components: Vec<Component>,
}

/// One part of a composite.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Component {
    pub(crate) kind: Kind,
    pub(crate) targets: Targets,
    pub(crate) paths: Vec<Path>,
    /// Whether the paths start at the resource, not at the base.
    pub(crate) from_resource: bool,
}

/// The FHIR type at the end of a path, as far as comparing tells types apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FhirType {
    /// `code`, with the code systems of its required binding.
    Code(Vec<&'static str>),
    Coding,
    CodeableConcept,
    Identifier,
    ContactPoint,
    Boolean,
    /// `string` and `markdown`.
    Text,
    HumanName,
    Address,
    /// `id`.
    Id,
    /// `uri` and `url`.
    Uri,
    Canonical,
    Reference,
    /// `date` and `dateTime`: as long as they are exact.
    DateTime,
    /// `instant`: a point.
    Instant,
    Period,
    Timing,
    /// `integer` and `decimal`.
    Number,
    /// `Quantity` and its kin.
    Quantity,
    Money,
    Range,
    SampledData,
    /// A type that this kind of parameter cannot look into; it only counts as present.
    Opaque,
}

impl FhirType {
    fn of(text: &'static str) -> FhirType {
        if let Some(systems) = text.strip_prefix("code(").and_then(|rest| rest.strip_suffix(')')) {
            return FhirType::Code(systems.split(',').collect());
        }
        match text {
            "code" => FhirType::Code(Vec::new()),
            "Coding" => FhirType::Coding,
            "CodeableConcept" => FhirType::CodeableConcept,
            "Identifier" => FhirType::Identifier,
            "ContactPoint" => FhirType::ContactPoint,
            "boolean" => FhirType::Boolean,
            "string" | "markdown" => FhirType::Text,
            "HumanName" => FhirType::HumanName,
            "Address" => FhirType::Address,
            "id" => FhirType::Id,
            "uri" | "url" => FhirType::Uri,
            "canonical" => FhirType::Canonical,
            "Reference" => FhirType::Reference,
            "date" | "dateTime" => FhirType::DateTime,
            "instant" => FhirType::Instant,
            "Period" => FhirType::Period,
            "Timing" => FhirType::Timing,
            "integer" | "decimal" => FhirType::Number,
            "Quantity" | "Age" | "Duration" => FhirType::Quantity,
            "Money" => FhirType::Money,
            "Range" => FhirType::Range,
            "SampledData" => FhirType::SampledData,
            _ => FhirType::Opaque,
        }
    }
}

/// Lines that are not of the table's form are left out; a test of the table's counts would see it.
fn parse(table: &'static str) -> BTreeMap<&'static str, Vec<Parameter>> {
    let mut parsed: BTreeMap<&str, Vec<Parameter>> = BTreeMap::new();
    for line in table.lines() {
        let mut fields = line.split('\t');
        if let Some(of) = fields.next()
            && let Some(parameter) = parameter(fields)
        {
            parsed.entry(of).or_default().push(parameter);
        }
    }
    parsed
}

fn parameter(mut fields: impl Iterator<Item = &'static str>) -> Option<Parameter> {
    let code = fields.next()?;
    let kind = Kind::of(fields.next()?)?;
    let targets = targets(fields.next()?)?;
    let text = fields.next()?;
    let source = if let Some(reason) = text.strip_prefix('!') {
        Source::Unsupported(reason)
    } else if let Some(presence) = text.strip_prefix('?') {
        Source::Presence(paths(presence)?)
    } else if kind == Kind::Composite {
        Source::Composite(bases(text)?)
    } else {
        Source::Values(paths(text)?)
    };
    Some(Parameter { code, kind, targets, source })
}

fn targets(text: &'static str) -> Option<Targets> {
    match text {
        "*" => Some(Targets::Any),
        "-" => Some(Targets::Types(Vec::new())),
        names => names.split(',').map(|name| name.parse().ok()).collect::<Option<_>>().map(Targets::Types),
    }
}

fn steps(text: &'static str) -> Vec<Step> {
    let step = |text: &'static str| match text.strip_suffix(']').and_then(|rest| rest.split_once('[')) {
        Some((name, condition)) => Step {
            name,
            condition: condition.split_once('=').map(|(member, text)| Condition { member, text }),
        },
        None => Step { name: text, condition: None },
    };
    text.split('.').map(step).collect()
}

fn path(text: &'static str) -> Option<Path> {
    let (way, kind) = text.split_once(':')?;
    let (kind, only) = match kind.split_once('@') {
        Some((kind, only)) => (kind, Some(only.parse().ok()?)),
        None => (kind, None),
    };
    Some(Path { steps: steps(way), kind: FhirType::of(kind), only })
}

fn paths(text: &'static str) -> Option<Vec<Path>> {
    text.split('|').map(path).collect()
}

/// `BASE{CODE KIND TARGETS PATHS}{...}|BASE{...}`.
fn bases(text: &'static str) -> Option<Vec<Base>> {
    let mut bases = Vec::new();
    let mut rest = text;
    while let Some((way, mut behind)) = rest.split_once('{') {
        let mut components = Vec::new();
        loop {
            let (inside, after) = behind.split_once('}')?;
            components.push(component(inside)?);
            match after.strip_prefix('{') {
                Some(next) => behind = next,
                None => {
                    rest = after.strip_prefix('|').unwrap_or(after);
                    break;
                }
            }
        }
        bases.push(Base { steps: if way == "." { Vec::new() } else { steps(way) }, components });
    }
    (!bases.is_empty()).then_some(bases)
}

fn component(text: &'static str) -> Option<Component> {
    let mut fields = text.split(' ').skip(1);
    let kind = Kind::of(fields.next()?)?;
    let targets = targets(fields.next()?)?;
    let ways = fields.next()?;
    let from_resource = ways.starts_with('^');
    Some(Component { kind, targets, paths: paths(ways.trim_start_matches('^'))?, from_resource })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = include_str!("table/r4.txt");

    fn of(kind: &str, code: &str) -> &'static Parameter {
        find(kind.parse().unwrap(), code).unwrap()
    }

    #[test]
    fn every_line_is_understood() {
        assert_eq!(TABLE.values().map(Vec::len).sum::<usize>(), LINES.lines().count());
        assert_eq!(LINES.lines().count(), 1_707);
        assert!(LINES.lines().is_sorted());
        for name in TABLE.keys().filter(|name| **name != EVERY_TYPE) {
            assert!(name.parse::<ResourceType>().is_ok(), "{name}");
        }
    }

    #[test]
    fn counts_are_those_of_the_definitions() {
        let count = |kind: Kind| TABLE.values().flatten().filter(|one| one.kind == kind).count();
        let counts: Vec<usize> = Kind::ALL.iter().map(|(kind, _)| count(*kind)).collect();
        assert_eq!(counts, COUNTS);
        let unsupported: Vec<&str> =
            TABLE.values().flatten().filter(|one| !one.is_supported()).map(Parameter::code).collect();
        assert_eq!(unsupported.len(), 12);
        assert_eq!(parameters(ResourceType::PATIENT).count(), 9 + 23);
    }

    /// By [`Kind::ALL`].
    const COUNTS: [usize; 9] = [672, 202, 140, 6, 40, 517, 57, 72, 1];

    #[test]
    fn only_known_types_are_opaque() {
        let opaque: Vec<&str> = LINES
            .lines()
            .filter(|line| line.split('\t').nth(2) != Some("composite"))
            .flat_map(|line| line.rsplit('\t').next().unwrap().split('|'))
            .filter_map(|text| text.rsplit_once(':'))
            .filter(|(way, kind)| !way.contains("code(") && FhirType::of(kind) == FhirType::Opaque)
            .map(|(_, kind)| kind.split('@').next().unwrap())
            .collect();
        assert!(opaque.iter().all(|kind| ["Attachment", "Reference"].contains(kind)), "{opaque:?}");
    }

    #[test]
    fn choices_conditions_and_targets_are_as_defined() {
        let Source::Values(quantity) = of("Observation", "value-quantity").source() else { panic!() };
        let names: Vec<&str> = quantity.iter().map(|path| path.steps[0].name).collect();
        assert_eq!(names, ["valueQuantity", "valueSampledData"]);

        let Source::Values(phone) = of("Patient", "phone").source() else { panic!() };
        assert_eq!(phone[0].steps[0].condition, Some(Condition { member: "system", text: "phone" }));

        let subject = of("Observation", "subject");
        assert!(
            subject.targets().allow(ResourceType::GROUP) && !subject.targets().allow(ResourceType::BINARY)
        );
        let Source::Values(patient) = of("Observation", "patient").source() else { panic!() };
        assert_eq!(patient[0].only, Some(ResourceType::PATIENT));

        let Source::Values(status) = of("Observation", "status").source() else { panic!() };
        assert_eq!(status[0].kind, FhirType::Code(vec!["http://hl7.org/fhir/observation-status"]));
        assert!(matches!(of("Patient", "deceased").source(), Source::Presence(paths) if paths.len() == 2));
        assert!(!of("Location", "near").is_supported() && of("Patient", "_lastUpdated").is_supported());
        assert!(find(ResourceType::of("DeviceDefinition"), "classification").is_none());
    }

    #[test]
    fn composites_have_their_components() {
        let Source::Composite(combo) = of("Observation", "combo-code-value-quantity").source() else {
            panic!()
        };
        assert_eq!((combo.len(), combo[0].steps.len(), combo[1].steps[0].name), (2, 0, "component"));
        let Source::Composite(variant) = of("MolecularSequence", "chromosome-variant-coordinate").source()
        else {
            panic!()
        };
        let from: Vec<bool> = variant[0].components.iter().map(|one| one.from_resource).collect();
        assert_eq!(from, [true, false, false]);
        let Source::Composite(relates) = of("DocumentReference", "relationship").source() else { panic!() };
        let kinds: Vec<Kind> = relates[0].components.iter().map(|one| one.kind).collect();
        assert_eq!(kinds, [Kind::Token, Kind::Reference]);
    }
}
