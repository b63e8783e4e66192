//! What a folder was like before, and what an increment must therefore bring.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::{Query, Store};

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
            let covered = self.is_covered(resource, query, asked.as_ref());
            // Who was in a Group is not told by its going.
            let is_group = resource.resource_type == "Group";
            let is_out = !is_group && !resource.patients.is_disjoint(&query.excluded);
            let is_wanted = covered && !is_out && query.wants_type(&resource.resource_type);
            if is_wanted && !self.by_key.contains_key(&key) {
                gone.insert(format!("{}/{}", resource.resource_type, resource.id));
            }
        }
        gone
    }
}
