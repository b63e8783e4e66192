//! Strict conversions of Groups that clients make by criteria.

use flatbed_types::cohort::{Cohort, CohortMember, CohortPlan, CohortRule};
use flatbed_types::{FhirId, Instant};

use crate::convert::{Malformed, Wire, each, each_to_wire, required};
use crate::wire::types as wire;

fn id_from(text: &str) -> Result<FhirId, Malformed> {
    text.parse().map_err(|_| Malformed("cohort: FHIR id"))
}

impl Wire for CohortMember {
    type Message = wire::CohortMember;
    fn to_wire(&self) -> wire::CohortMember {
        match self {
            CohortMember::Patient(id) => {
                wire::CohortMember { patient: id.to_string(), ..wire::CohortMember::default() }
            }
            CohortMember::Group(id) => {
                wire::CohortMember { group: id.to_string(), ..wire::CohortMember::default() }
            }
        }
    }
    fn from_wire(message: wire::CohortMember) -> Result<Self, Malformed> {
        match (message.patient.as_str(), message.group.as_str()) {
            (patient, "") => Ok(CohortMember::Patient(id_from(patient)?)),
            ("", group) => Ok(CohortMember::Group(id_from(group)?)),
            _ => Err(Malformed("cohort.member")),
        }
    }
}

impl Wire for CohortRule {
    type Message = wire::CohortRule;
    fn to_wire(&self) -> wire::CohortRule {
        wire::CohortRule {
            filters: self.filters.clone(),
            among_members: self.among.is_some(),
            members: each_to_wire(self.among.iter().flatten()),
        }
    }
    fn from_wire(message: wire::CohortRule) -> Result<Self, Malformed> {
        let members = each(message.members)?;
        Ok(CohortRule { filters: message.filters, among: message.among_members.then_some(members) })
    }
}

impl Wire for CohortPlan {
    type Message = wire::CohortPlan;
    fn to_wire(&self) -> wire::CohortPlan {
        let named = |(id, rule): &(FhirId, CohortRule)| wire::NamedRule {
            id: id.to_string(),
            rule: Some(rule.to_wire()),
        };
        wire::CohortPlan { cohorts: self.0.iter().map(named).collect() }
    }
    fn from_wire(message: wire::CohortPlan) -> Result<Self, Malformed> {
        let named = |one: wire::NamedRule| Ok((id_from(&one.id)?, required(one.rule, "cohort.rule")?));
        let rules: Vec<_> = message.cohorts.into_iter().map(named).collect::<Result<_, Malformed>>()?;
        if rules.is_empty() { Err(Malformed("cohort plan")) } else { Ok(CohortPlan(rules)) }
    }
}

impl Wire for Cohort {
    type Message = wire::Cohort;
    fn to_wire(&self) -> wire::Cohort {
        wire::Cohort {
            id: self.id.to_string(),
            version: self.version,
            updated: self.updated.nanos(),
            group: bytes::Bytes::copy_from_slice(&self.group),
            rule: Some(self.rule.to_wire()),
        }
    }
    fn from_wire(message: wire::Cohort) -> Result<Self, Malformed> {
        Ok(Cohort {
            id: id_from(&message.id)?,
            version: message.version,
            updated: Instant::from_nanos(message.updated),
            group: message.group.to_vec(),
            rule: required(message.rule, "cohort.rule")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cohorts_come_back_as_they_went() {
        let id = |text: &str| text.parse::<FhirId>().unwrap();
        let among = Some(vec![CohortMember::Patient(id("p")), CohortMember::Group(id("g"))]);
        for among in [among, Some(Vec::new()), None] {
            let rule = CohortRule { filters: vec!["Patient?gender=male".to_owned()], among };
            let cohort = Cohort {
                id: id("c"),
                version: 3,
                updated: Instant::from_millis(5),
                group: b"{}".to_vec(),
                rule: rule.clone(),
            };
            assert!(Cohort::from_wire(cohort.to_wire()).unwrap() == cohort);
            let plan = CohortPlan(vec![(id("c"), rule)]);
            assert!(CohortPlan::from_wire(plan.to_wire()).unwrap() == plan);
        }
        assert!(CohortPlan::from_wire(wire::CohortPlan::default()).is_err());
        let both = wire::CohortMember { patient: "a".to_owned(), group: "b".to_owned() };
        assert!(CohortMember::from_wire(both).is_err());
        assert!(CohortMember::from_wire(wire::CohortMember::default()).is_err());
    }
}
