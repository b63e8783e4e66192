//! Groups and their rosters.

use super::*;
use crate::keylist::KeyList;
use crate::source::supporting_key;

#[test]
fn a_long_group_goes_out_in_pieces() {
    let snapshot = snapshot("synthetic:patients=60000,seed=3");
    let lane = Lane::standalone(ResourceType::GROUP);
    let whole = read(&*snapshot, scan(lane, KeyRange::ALL));
    assert_eq!(whole.lines.len(), group::GROUPS.len());
    assert!(whole.lines[1].len() > 2 * caps::DEFLATE_SEGMENT);
    for (done, next) in &whole.nexts {
        let rest = read(&*snapshot, scan(lane, KeyRange { lo: next.clone(), hi: Position::End }));
        assert!(rest.lines == whole.lines[*done..]);
    }
    for (place, plan) in group::GROUPS.iter().enumerate() {
        let range = KeyRange {
            lo: Position::At(plan.id.as_bytes().to_vec()),
            hi: Position::after(plan.id.as_bytes()),
        };
        assert!(read(&*snapshot, scan(lane, range)).lines == whole.lines[place..=place]);
        let keys = KeyList::from_keys([supporting_key(ResourceType::GROUP, plan.id)]).unwrap();
        let keyed =
            Scan { select: Select::Keys { keys: Arc::new(keys), roster: None }, ..scan(lane, KeyRange::ALL) };
        assert!(read(&*snapshot, keyed).lines == whole.lines[place..=place]);
    }
}

#[test]
fn groups_have_the_members_that_their_lines_show() {
    let snapshot = snapshot("synthetic:patients=3000,seed=5");
    let lines = read(&*snapshot, scan(Lane::standalone(ResourceType::GROUP), KeyRange::ALL)).lines;
    let mut sizes = BTreeMap::new();
    let (mut inactive, mut ended, mut deleted) = (0, 0, 0);
    for text in &lines {
        let value: Value = serde_json::from_str(text).unwrap();
        let id = value["id"].as_str().unwrap();
        let mut members = Vec::new();
        let standing = snapshot
            .group(&id.parse().unwrap(), &mut |member| {
                members.push(member);
                Ok(())
            })
            .unwrap()
            .unwrap();
        assert_eq!(value["active"], standing.active);
        let text_of = |value: &Value| value.as_str().map(str::to_owned);
        let shown: Vec<GroupMember> = value["member"]
            .as_array()
            .unwrap_or(&Vec::new())
            .iter()
            .map(|member| GroupMember {
                reference: text_of(&member["entity"]["reference"]),
                inactive: member["inactive"].as_bool().unwrap_or(false),
                period_start: text_of(&member["period"]["start"]),
                period_end: text_of(&member["period"]["end"]),
            })
            .collect();
        assert_eq!(members, shown, "{id}");
        let patients: Vec<FhirId> = members
            .iter()
            .filter_map(|member| member.reference.as_deref()?.strip_prefix("Patient/")?.parse().ok())
            .collect();
        let present = snapshot.has_patients(&patients).unwrap();
        assert!(id == "group-mixed" || present.iter().all(|present| *present));
        deleted += present.iter().filter(|present| !**present).count();
        inactive += members.iter().filter(|member| member.inactive).count();
        ended += members.iter().filter(|member| member.period_end.is_some()).count();
        assert_eq!(patients.iter().collect::<BTreeSet<_>>().len(), patients.len());
        sizes.insert(id.to_owned(), (members.len(), patients.len()));
    }
    assert_eq!(sizes["group-all"], (3_000, 3_000));
    assert_eq!(sizes["group-1pct"], (31, 31));
    assert_eq!((sizes["group-empty"], sizes["group-nested"].0 - sizes["group-nested"].1), ((0, 0), 3));
    assert!(inactive > 10 && ended > 10 && deleted > 0, "{inactive} {ended} {deleted}");
    assert!(snapshot.group(&"group-none".parse().unwrap(), &mut |_| Ok(())).unwrap().is_none());
}
