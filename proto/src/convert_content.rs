//! Strict conversions of questions whose answer is content.

use std::collections::BTreeSet;

use flatbed_types::caps::MAX_GROUPS_ASKED;
use flatbed_types::content::{ReadResource, SearchGroups};
use flatbed_types::request::Element;

use crate::convert::{Malformed, Wire, type_from};
use crate::wire::types as wire;

fn elements_from(texts: &[String]) -> Result<BTreeSet<Element>, Malformed> {
    texts.iter().map(|text| text.parse().map_err(|_| Malformed("question: element"))).collect()
}

impl Wire for ReadResource {
    type Message = wire::ReadResource;
    fn to_wire(&self) -> wire::ReadResource {
        wire::ReadResource {
            resource_type: self.resource_type.name().to_owned(),
            id: self.id.to_string(),
            elements: self.elements.iter().map(ToString::to_string).collect(),
            max_bytes: self.max_bytes.unwrap_or(0),
        }
    }
    fn from_wire(message: wire::ReadResource) -> Result<Self, Malformed> {
        Ok(ReadResource {
            resource_type: type_from(&message.resource_type)?,
            id: message.id.parse().map_err(|_| Malformed("question: FHIR id"))?,
            elements: elements_from(&message.elements)?,
            max_bytes: Some(message.max_bytes).filter(|bytes| *bytes > 0),
        })
    }
}

impl Wire for SearchGroups {
    type Message = wire::SearchGroups;
    fn to_wire(&self) -> wire::SearchGroups {
        wire::SearchGroups {
            filter: self.filter.clone(),
            after: self.after.as_ref().map(ToString::to_string).unwrap_or_default(),
            limit: self.limit,
            elements: self.elements.iter().map(ToString::to_string).collect(),
            max_row_bytes: self.max_row_bytes,
            is_among: self.among.is_some(),
            among: self.among.iter().flatten().map(ToString::to_string).collect(),
        }
    }
    fn from_wire(message: wire::SearchGroups) -> Result<Self, Malformed> {
        let after = match message.after.as_str() {
            "" => None,
            id => Some(id.parse().map_err(|_| Malformed("question: FHIR id"))?),
        };
        if !(1..=MAX_GROUPS_ASKED).contains(&message.limit) {
            return Err(Malformed("question: limit"));
        }
        let ids = message.among.iter().map(|id| id.parse().map_err(|_| Malformed("question: FHIR id")));
        let among = ids.collect::<Result<BTreeSet<_>, _>>()?;
        Ok(SearchGroups {
            among: message.is_among.then_some(among),
            after,
            limit: message.limit,
            elements: elements_from(&message.elements)?,
            filter: message.filter,
            max_row_bytes: message.max_row_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatbed_types::ResourceType;

    #[test]
    fn questions_come_back_as_they_went() {
        let id = || "g-1.A".parse().unwrap();
        let mut read = ReadResource::whole(ResourceType::GROUP, id());
        assert!(ReadResource::from_wire(read.to_wire()).unwrap() == read);
        read.elements = ["Group.name".parse().unwrap()].into();
        read.max_bytes = Some(7);
        assert!(ReadResource::from_wire(read.to_wire()).unwrap() == read);
        let mut search = SearchGroups {
            filter: "Group?name=a".to_owned(),
            after: None,
            limit: 1,
            elements: BTreeSet::new(),
            max_row_bytes: 9,
            among: None,
        };
        assert!(SearchGroups::from_wire(search.to_wire()).unwrap() == search);
        search.after = Some(id());
        search.elements = read.elements.clone();
        search.among = Some(BTreeSet::new());
        assert!(SearchGroups::from_wire(search.to_wire()).unwrap() == search);
        search.among = Some([id()].into());
        assert!(SearchGroups::from_wire(search.to_wire()).unwrap() == search);
        for limit in [0, MAX_GROUPS_ASKED + 1] {
            assert!(SearchGroups::from_wire(wire::SearchGroups { limit, ..search.to_wire() }).is_err());
        }
        assert!(
            ReadResource::from_wire(wire::ReadResource { id: "a/b".to_owned(), ..read.to_wire() }).is_err()
        );
    }
}
