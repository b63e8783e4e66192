//! Reads a Group as a stream: its members one by one, whatever their number.

use std::fmt;
use std::io::Read;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::source::{GroupMember, GroupStanding, SourceError};

/// Whoever takes the members.
type OnMember<'a> = dyn FnMut(GroupMember) -> Result<(), SourceError> + 'a;

#[derive(Deserialize)]
struct Member {
    #[serde(default)]
    entity: Option<Entity>,
    #[serde(default)]
    inactive: Option<bool>,
    #[serde(default)]
    period: Option<Period>,
}

#[derive(Deserialize)]
struct Entity {
    #[serde(default)]
    reference: Option<String>,
}

#[derive(Deserialize)]
struct Period {
    #[serde(default)]
    start: Option<String>,
    #[serde(default)]
    end: Option<String>,
}

/// What came out of the members' taker, which serde's errors cannot carry.
struct Taker<'a, 'b> {
    member: &'a mut OnMember<'b>,
    refused: Option<SourceError>,
}

struct GroupVisitor<'t, 'a, 'b>(&'t mut Taker<'a, 'b>);

impl<'de> Visitor<'de> for GroupVisitor<'_, '_, '_> {
    type Value = GroupStanding;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Group")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<GroupStanding, A::Error> {
        let mut standing = GroupStanding { active: true };
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "active" => standing.active = map.next_value::<Option<bool>>()?.unwrap_or(true),
                "member" => map.next_value_seed(Members(&mut *self.0))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(standing)
    }
}

struct Members<'t, 'a, 'b>(&'t mut Taker<'a, 'b>);

impl<'de> DeserializeSeed<'de> for Members<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Members<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of members")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(member) = members.next_element::<Member>()? {
            let period = member.period.unwrap_or(Period { start: None, end: None });
            let taken = (self.0.member)(GroupMember {
                reference: member.entity.and_then(|entity| entity.reference),
                inactive: member.inactive.unwrap_or(false),
                period_start: period.start,
                period_end: period.end,
            });
            if let Err(refused) = taken {
                self.0.refused = Some(refused);
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

/// Reads a Group from its bytes. `name` (`Group/id`) is for errors.
pub(super) fn read_group(
    input: impl Read,
    name: &str,
    member: &mut OnMember<'_>,
) -> Result<GroupStanding, SourceError> {
    let mut taker = Taker { member, refused: None };
    let mut json = serde_json::Deserializer::from_reader(input);
    let read = json.deserialize_map(GroupVisitor(&mut taker));
    match (read, taker.refused) {
        (_, Some(refused)) => Err(refused),
        (Ok(standing), None) => Ok(standing),
        (Err(error), None) if error.is_io() => {
            Err(SourceError::io("the lake's index could not be read", &error.into()))
        }
        // serde's own message may quote the resource.
        (Err(error), None) => Err(SourceError::failed(format!(
            "{name} is not a valid Group at byte {}: check its `active` and `member` elements",
            error.column()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<(GroupStanding, Vec<GroupMember>), SourceError> {
        let mut members = Vec::new();
        let standing = read_group(json.as_bytes(), "Group/g", &mut |member| {
            members.push(member);
            Ok(())
        })?;
        Ok((standing, members))
    }

    #[test]
    fn members_come_in_order_with_what_bounds_them() {
        let (standing, members) = read(
            r#"{"resourceType":"Group","member":[{"entity":{"reference":"Patient/b"},"period":{"start":"2020","end":"2021-01"}},
                {"entity":{"reference":"Patient/a","display":"x"},"inactive":true},{"entity":{"identifier":{}}}],"active":false,"x":[{}]}"#,
        )
        .unwrap();
        assert!(!standing.active);
        let bounded = GroupMember {
            reference: Some("Patient/b".into()),
            inactive: false,
            period_start: Some("2020".into()),
            period_end: Some("2021-01".into()),
        };
        let inactive =
            GroupMember { reference: Some("Patient/a".into()), inactive: true, ..GroupMember::default() };
        assert_eq!(members, [bounded, inactive, GroupMember::default()]);
        assert!(read("{}").unwrap().0.active);
    }

    #[test]
    fn errors_are_told_without_content() {
        let error = read(r#"{"member":[{"entity":{"reference":["secret"]}}]}"#).unwrap_err();
        assert!(error.message.contains("Group/g") && !error.message.contains("secret"), "{error}");
        let mut calls = 0;
        let refused = read_group(&br#"{"member":[{},{}]}"#[..], "Group/g", &mut |_| {
            calls += 1;
            Err(SourceError::unavailable("enough"))
        });
        assert_eq!((refused.unwrap_err().message.as_str(), calls), ("enough", 1));
    }
}
