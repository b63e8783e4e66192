//! Matchers: the filters of one type, compiled so that a row is read once.

use flatbed_types::{Instant, ResourceType};

use crate::compare::{self, Row};
use crate::error::Malformed;
use crate::filter::{Clause, Filter};
use crate::json::{elements, is_text, member};
use crate::parameter::{Base, Condition, FhirType, Path, Source, Step};
use crate::trie::{Found, Slot, Trie};
use crate::value::{DateRange, Modifier, Wanted};

/// Filters of one resource type, of which one must match (PM-50).
pub struct Matcher {
    trie: Trie,
    filters: Vec<Vec<Test>>,
}

/// Filters of different types were given to one matcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the filters of a matcher are all of one type, not of {0} and {1}")]
pub struct MixedTypes(ResourceType, ResourceType);

/// One clause of a filter, bound to places in a row.
struct Test {
    places: Places,
    wanted: Vec<Wanted>,
    modifier: Modifier,
    /// Whether rows that lack the value have that of the caller.
    last_updated: bool,
}

enum Places {
    Values(Vec<Place>),
    Presence(Vec<Place>),
    Composite(Vec<BoundBase>),
}

/// The way to values: a slot of the trie, and what must be done with its values by hand.
struct Place {
    slot: Slot,
    rest: Rest,
}

/// The part of a path behind its first condition.
struct Rest {
    condition: Option<Condition>,
    steps: Vec<Step>,
    kind: FhirType,
    only: Option<ResourceType>,
}

struct BoundBase {
    /// None: the resource itself.
    slot: Option<(Slot, Rest)>,
    components: Vec<Vec<Part>>,
}

/// Where a component of a composite is: somewhere in the row, or in the base.
enum Part {
    InRow(Place),
    InBase(Rest),
}

impl Matcher {
    /// Compiles filters that are all of one type. Without filters nothing matches.
    pub fn new(filters: &[Filter]) -> Result<Matcher, MixedTypes> {
        if let Some(first) = filters.first()
            && let Some(other) = filters.iter().find(|other| other.resource_type() != first.resource_type())
        {
            return Err(MixedTypes(first.resource_type(), other.resource_type()));
        }
        let mut trie = Trie::new();
        let filters = filters
            .iter()
            .map(|filter| filter.clauses().iter().map(|clause| Test::new(clause, &mut trie)).collect())
            .collect();
        Ok(Matcher { trie, filters })
    }

    /// Whether one of the filters matches a resource, given as its JSON. The resource must be of the matcher's type;
    /// that is not checked. Contained resources are not searched.
    pub fn matches(&self, line: &[u8]) -> Result<bool, Malformed> {
        self.matches_at(line, None)
    }

    /// As [`Matcher::matches`], for a resource that was last updated then unless it says otherwise itself.
    pub fn matches_at(&self, line: &[u8], last_updated: Option<Instant>) -> Result<bool, Malformed> {
        let found = self.trie.collect(line)?;
        let row = Row { line, last_updated };
        Ok(self.filters.iter().any(|tests| tests.iter().all(|test| test.matches(row, &found))))
    }
}

impl Test {
    fn new(clause: &Clause, trie: &mut Trie) -> Test {
        let mut place = |path: &Path| Place::new(path, trie);
        let places = match clause.parameter.source() {
            Source::Values(paths) => Places::Values(paths.iter().map(place).collect()),
            Source::Presence(paths) => Places::Presence(paths.iter().map(&mut place).collect()),
            Source::Composite(bases) => {
                Places::Composite(bases.iter().map(|base| BoundBase::new(base, trie)).collect())
            }
            // Not in a filter that was parsed.
            Source::Unsupported(_) => Places::Values(Vec::new()),
        };
        let mut wanted = clause.wanted.clone();
        compare::sort(&mut wanted);
        Test {
            places,
            wanted,
            modifier: clause.modifier,
            last_updated: clause.parameter.code() == "_lastUpdated",
        }
    }

    fn matches(&self, row: Row<'_>, found: &Found<'_>) -> bool {
        match self.modifier {
            Modifier::Missing => {
                let is_missing = !self.is_present(row, found);
                self.wanted
                    .iter()
                    .any(|wanted| matches!(wanted, Wanted::Missing(missing) if *missing == is_missing))
            }
            Modifier::Not => !self.any_matches(row, found),
            _ => self.any_matches(row, found),
        }
    }

    fn any_matches(&self, row: Row<'_>, found: &Found<'_>) -> bool {
        match &self.places {
            Places::Values(places) => {
                let test = |kind: &FhirType, value: &[u8]| compare::any(kind, value, &self.wanted);
                let matched = places.iter().any(|place| place.any(row, found, &test));
                matched || (self.last_updated && self.fallback_matches(row, found, places))
            }
            Places::Presence(places) => {
                let counts = |_: &FhirType, value: &[u8]| value != b"false";
                let there = places.iter().any(|place| place.any(row, found, &counts));
                self.wanted.iter().any(|wanted| compare::boolean(there, wanted))
            }
            Places::Composite(bases) => self.wanted.iter().any(|wanted| match wanted {
                Wanted::Composite(parts) => bases.iter().any(|base| base.matches(row, found, parts)),
                _ => false,
            }),
        }
    }

    fn fallback_matches(&self, row: Row<'_>, found: &Found<'_>, places: &[Place]) -> bool {
        let Some(instant) = row.last_updated else { return false };
        if places.iter().any(|place| place.any(row, found, &|_, _| true)) {
            return false;
        }
        self.wanted.iter().any(|wanted| compare::date_range(DateRange::at(instant), wanted))
    }

    fn is_present(&self, row: Row<'_>, found: &Found<'_>) -> bool {
        let any = |_: &FhirType, _: &[u8]| true;
        match &self.places {
            Places::Values(places) => {
                places.iter().any(|place| place.any(row, found, &any))
                    || (self.last_updated && row.last_updated.is_some())
            }
            // The boolean is always known.
            Places::Presence(_) => true,
            Places::Composite(bases) => bases.iter().any(|base| base.any(row, found, &any)),
        }
    }
}

/// Says whether a value of a type is what is looked for.
type Judge<'a> = &'a dyn Fn(&FhirType, &[u8]) -> bool;

impl Place {
    fn new(path: &Path, trie: &mut Trie) -> Place {
        let conditioned = path.steps.iter().position(|step| step.condition.is_some());
        let (head, tail) = match conditioned {
            Some(index) => path.steps.split_at(index + 1),
            None => (path.steps.as_slice(), &[][..]),
        };
        let slot = trie.slot(head.iter().map(|step| step.name));
        let condition = head.last().and_then(|step| step.condition);
        Place {
            slot,
            rest: Rest { condition, steps: tail.to_vec(), kind: path.kind.clone(), only: path.only },
        }
    }

    fn any(&self, row: Row<'_>, found: &Found<'_>, judge: Judge<'_>) -> bool {
        found.of(self.slot).any(|value| self.rest.any(row, value, judge))
    }
}

impl Rest {
    /// Whether a value at the end of the way from this one is right.
    fn any(&self, row: Row<'_>, value: &[u8], judge: Judge<'_>) -> bool {
        self.follow(self.condition, &self.steps, value, &|end| {
            self.only.is_none_or(|only| compare::refers_to(row, end, only)) && judge(&self.kind, end)
        })
    }

    /// Recursion ends with the steps, of which the table has few.
    fn follow(
        &self,
        condition: Option<Condition>,
        steps: &[Step],
        value: &[u8],
        judge: &dyn Fn(&[u8]) -> bool,
    ) -> bool {
        if let Some(Condition { member: name, text }) = condition
            && !member(value, name).is_some_and(|found| is_text(found, text))
        {
            return false;
        }
        match steps.split_first() {
            None => value != b"null" && judge(value),
            Some((step, rest)) => member(value, step.name).is_some_and(|found| {
                elements(found).any(|one| self.follow(step.condition, rest, one, judge))
            }),
        }
    }
}

impl BoundBase {
    fn new(base: &Base, trie: &mut Trie) -> BoundBase {
        let is_row = base.steps.is_empty();
        let slot = (!is_row).then(|| {
            let way = Path { steps: base.steps.clone(), kind: FhirType::Opaque, only: None };
            let place = Place::new(&way, trie);
            (place.slot, place.rest)
        });
        let mut part = |path: &Path, from_resource: bool| {
            if is_row || from_resource {
                return Part::InRow(Place::new(path, trie));
            }
            let rest =
                Rest { condition: None, steps: path.steps.clone(), kind: path.kind.clone(), only: path.only };
            Part::InBase(rest)
        };
        let components = base
            .components
            .iter()
            .map(|component| component.paths.iter().map(|path| part(path, component.from_resource)).collect())
            .collect();
        BoundBase { slot, components }
    }

    fn matches(&self, row: Row<'_>, found: &Found<'_>, wanted: &[Wanted]) -> bool {
        let all = |base: Option<&[u8]>| {
            self.components.iter().zip(wanted).all(|(parts, wanted)| {
                let judge =
                    |kind: &FhirType, value: &[u8]| compare::any(kind, value, std::slice::from_ref(wanted));
                parts.iter().any(|part| part.any(row, found, base, &judge))
            })
        };
        self.any_base(row, found, &all)
    }

    /// Whether there is a base in which each component has some value.
    fn any(&self, row: Row<'_>, found: &Found<'_>, judge: Judge<'_>) -> bool {
        let all = |base: Option<&[u8]>| {
            self.components.iter().all(|parts| parts.iter().any(|part| part.any(row, found, base, judge)))
        };
        self.any_base(row, found, &all)
    }

    fn any_base(&self, row: Row<'_>, found: &Found<'_>, test: &dyn Fn(Option<&[u8]>) -> bool) -> bool {
        match &self.slot {
            None => test(None),
            Some((slot, rest)) => {
                found.of(*slot).any(|value| rest.any(row, value, &|_, base| test(Some(base))))
            }
        }
    }
}

impl Part {
    fn any(&self, row: Row<'_>, found: &Found<'_>, base: Option<&[u8]>, judge: Judge<'_>) -> bool {
        match (self, base) {
            (Part::InRow(place), _) => place.any(row, found, judge),
            (Part::InBase(rest), Some(base)) => rest.any(row, base, judge),
            (Part::InBase(_), None) => false,
        }
    }
}

#[cfg(test)]
mod tests;
