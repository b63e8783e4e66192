//! What a folder was like before, and what an increment must therefore bring.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::{Level, Query, Store};

impl Store {
    /// Says that this is what the folder `former` became, and that nobody had seen the change at `before`: what is new
    /// came after that, whatever it states.
    pub fn came_after(&mut self, former: &Store, before: Timestamp) {
        let just_after = before + jiff::SignedDuration::from_nanos(1);
        for resource in &mut self.resources {
            let key = (resource.resource_type.clone(), resource.id.clone());
            let known = former.by_key.get(&key).map(|index| &former.resources[*index]);
            resource.known = match known.filter(|known| known.hash == resource.hash) {
                Some(known) => known.known,
                None => resource.changed.max(just_after),
            };
        }
    }

    /// What `former` had and this has no more, as `Type/id`: of the types and patients that the query asks for.
    /// Searches do not concern what is gone.
    pub fn gone_since(&self, former: &Store, query: &Query, now: Timestamp) -> BTreeSet<String> {
        let asked = self.asked_patients(query, now);
        let mut gone = BTreeSet::new();
        for resource in &former.resources {
            let key = (resource.resource_type.clone(), resource.id.clone());
            let covered = match (&query.level, &asked) {
                (Level::System, _) => true,
                // Who else has a Group, or had, is not told.
                _ if resource.resource_type == "Group" => false,
                (_, None) => !resource.patients.is_empty(),
                (_, Some(asked)) if query.patients.is_empty() => !resource.patients.is_disjoint(asked),
                (_, Some(asked)) => !resource.patients.is_empty() && resource.patients.is_subset(asked),
            };
            if covered && query.wants_type(&resource.resource_type) && !self.by_key.contains_key(&key) {
                gone.insert(format!("{}/{}", resource.resource_type, resource.id));
            }
        }
        gone
    }

    /// The patients that a query asks for, by id, where it does not ask for all.
    pub fn members(&self, query: &Query, now: Timestamp) -> Option<BTreeSet<String>> {
        self.asked_patients(query, now)
    }
}
