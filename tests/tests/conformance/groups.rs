//! Groups (rows GR).

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::fixture::Fixture;
use flatbed_tests::conformance::target::{Target, ids};
use flatbed_tests::conformance::wire::{Answer, Ask, FORMS, Form, escaped};
use serde_json::json;

checks! {
    anything: [gr_03_groups_that_are_not_there],
    fixture: [
        gr_01_read_and_search,
        gr_01_parts_of_groups,
        gr_01_what_is_wrong_with_a_search,
        gr_10_linked_patients_are_documented,
        gr_04_an_empty_group,
        gr_05_groups_of_others,
        gr_06_former_members,
        gr_07_groups_in_groups,
        gr_08_members_are_those_of_the_moment,
    ],
}

async fn gr_01_read_and_search() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let read = t.get(&format!("{}/Group/g1", t.base), &[]).await?;
    ensure!(read.is(200)?.json()?["id"] == "g1", read.wrong("another resource"));
    for query in [
        format!("identifier={}", escaped("http://example.org/rosters|g1")),
        "_id=g1".to_owned(),
        "name=g1".to_owned(),
    ] {
        let found = t.get(&format!("{}/Group?{query}", t.base), &[]).await?;
        let bundle = found.is(200)?.json()?;
        ensure!(
            bundle["type"] == "searchset" && bundle["entry"][0]["resource"]["id"] == "g1",
            found.wrong(&query)
        );
    }
    Ok(())
}

/// Groups without their members, and too large ones.
async fn gr_01_parts_of_groups() -> Result<()> {
    let mut lake = Fixture::default();
    let members =
        |number: usize| (0..number).map(|n| json!({"entity": {"reference": format!("Patient/x{n}")}}));
    lake.group("g-large", "person", members(10_000).collect());
    lake.group("g-huge", "person", members(120_000).collect());
    let t = Target::over(&lake, &[]).await?;
    for url in ["Group/g1?_summary=true", "Group/g-huge?_summary=true", "Group/g1?_elements=name"] {
        let read = t.get(&format!("{}/{url}", t.base), &[]).await?;
        let group = read.is(200)?.json()?;
        ensure!(group.get("member").is_none() && group["name"].is_string(), read.wrong("members"));
        ensure!(group["meta"]["tag"][0]["code"] == "SUBSETTED", read.wrong("no tag"));
    }
    let large = t.get(&format!("{}/Group/g-large", t.base), &[]).await?;
    ensure!(large.is(200)?.json()?["member"][9_999]["entity"].is_object(), large.wrong("not all members"));
    let huge = t.get(&format!("{}/Group/g-huge", t.base), &[]).await?;
    let outcome = huge.refused(413, &["_summary=true", "_type=Group"])?;
    ensure!(outcome["issue"][0]["code"] == "too-costly", huge.wrong("another issue"));
    t.get(&format!("{}/Group/none", t.base), &[]).await?.refused(404, &[])?;

    let found = t.get(&format!("{}/Group?_id=g1,g-large,g-huge", t.base), &[]).await?;
    let bundle = found.is(200)?.json()?;
    let groups: Vec<_> =
        bundle["entry"].as_array().context("no entries")?.iter().map(|e| &e["resource"]).collect();
    let has_members: Vec<bool> = groups.iter().map(|group| group.get("member").is_some()).collect();
    ensure!(has_members == [false, false, true], found.wrong("which of them has members"));
    ensure!(groups[0]["meta"]["tag"][0]["code"] == "SUBSETTED", found.wrong("no tag"));

    let counted = t.get(&format!("{}/Group?actual=true&_summary=count", t.base), &[]).await?;
    let bundle = counted.is(200)?.json()?;
    ensure!(bundle["total"] == 10 && bundle.get("entry").is_none(), counted.wrong("another count"));
    let summary = t.get(&format!("{}/Group?_summary=true", t.base), &[]).await?;
    ensure!(!summary.is(200)?.text().contains("\"member\""), summary.wrong("members"));

    let form = t.client.post(format!("{}/Group/_search", t.base));
    let form = form.header("content-type", "application/x-www-form-urlencoded");
    let form = form.body("name=g-sta&type=practitioner");
    let posted = Answer::to(form).await?;
    ensure!(
        posted.is(200)?.json()?["entry"][0]["resource"]["id"] == "g-staff",
        posted.wrong("another Group")
    );
    Ok(())
}

async fn gr_01_what_is_wrong_with_a_search() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for (query, named) in
        [("foo=1", "foo"), ("_sort=name", "_sort"), ("actual=maybe", "actual"), ("_count=many", "_count")]
    {
        t.get(&format!("{}/Group?{query}", t.base), &[]).await?.refused(400, &[named])?;
    }
    let group = format!("{}/Group/g1", t.base);
    t.get(&format!("{group}?name=x"), &[]).await?.refused(400, &["name"])?;
    t.get(&group, &[("accept", "text/html")]).await?.refused(406, &[])?;
    t.call(reqwest::Method::PATCH, &group, &[]).await?.refused(405, &[])?;
    Ok(())
}

/// What is said of `Patient.link`, and that it is so.
async fn gr_10_linked_patients_are_documented() -> Result<()> {
    let mut lake = Fixture::default();
    let mut twin = lake.get("Patient/p1")?.clone();
    twin["id"] = json!("p1-old");
    twin["link"] = json!([{"other": {"reference": "Patient/p1"}, "type": "replaced-by"}]);
    lake.put(twin);
    let mut encounter = lake.get("Encounter/e-p1")?.clone();
    encounter["id"] = json!("e-p1-old");
    encounter["subject"] = json!({"reference": "Patient/p1-old"});
    lake.put(encounter);
    let t = Target::over(&lake, &[]).await?;
    let statement = t.get(&format!("{}/metadata", t.base), &[]).await?.is(200)?.json()?;
    let text = statement["rest"][0]["documentation"].as_str().context("no documentation")?;
    ensure!(text.contains("Patient.link") && text.contains("link.other"), "{text}");
    let files = t.files(&Ask::new(Form::V4, "Group/g1/").each("_type", &["Patient", "Encounter"])).await?;
    ensure!(files.ids("Patient") == ids(&["p1", "p1-old", "p2", "p3"]), "{:?}", files.ids("Patient"));
    ensure!(!files.has("Encounter/e-p1-old"), "{:?}", files.keys());
    Ok(())
}

async fn gr_03_groups_that_are_not_there(t: Target) -> Result<()> {
    for form in FORMS {
        let outcome = t.refused(&Ask::new(form, "Group/none-of-that-name/"), 404, &[]).await?;
        ensure!(outcome["issue"][0]["code"] == "not-found", "{outcome}");
        t.refused(&Ask::new(form, "Group/none-of-that-name/").lenient(), 404, &[]).await?;
    }
    Ok(())
}

async fn gr_04_an_empty_group() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let done = t.export(&Ask::new(form, "Group/g-empty/")).await?;
        let types = t.download(&done, "output").await?.types();
        // The exported Group itself may be there.
        ensure!(types.is_subset(&ids(&["Group"])), "{types:?}");
        let typed = t.export(&Ask::new(form, "Group/g-empty/").with("_type", "Patient")).await?;
        ensure!(typed.items("output").is_empty(), "{}", typed.manifest);
        ensure!(typed.items(form.messages()).is_empty(), "{}", typed.manifest);
    }
    Ok(())
}

/// A Group of practitioners has no patients: refused, or empty, never something else's compartment.
async fn gr_05_groups_of_others() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let answer = t.send(&Ask::new(form, "Group/g-staff/")).await?;
        if answer.status == 202 {
            let manifest = t.finished(&answer.accepted()?).await?;
            ensure!(!manifest.is(200)?.text().contains("\"Patient\""), manifest.wrong("patients of nobody"));
        } else {
            ensure!((400..500).contains(&answer.status), answer.wrong("expected 4xx"));
            answer.refused(answer.status, &[])?;
        }
    }
    Ok(())
}

async fn gr_06_former_members() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let files = t.files(&Ask::new(form, "Group/g-former/")).await?;
        ensure!(files.ids("Patient") == ids(&["p1"]), "{:?}", files.ids("Patient"));
        ensure!(
            files.has("Observation/o-p1") && !files.has("Observation/o-p2") && !files.has("Observation/o-p3"),
            "{:?}",
            files.keys()
        );
        let closed = t.files(&Ask::new(form, "Group/g-closed/").with("_type", "Patient")).await?;
        ensure!(closed.lines().count() == 0, "{:?}", closed.keys());
    }
    Ok(())
}

async fn gr_07_groups_in_groups() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        for group in ["g3", "g4"] {
            let files = t.files(&Ask::new(form, &format!("Group/{group}/")).with("_type", "Patient")).await?;
            ensure!(files.ids("Patient") == ids(&["p1", "p5"]), "{group}: {:?}", files.ids("Patient"));
        }
    }
    Ok(())
}

/// All files of an export are of the members of one moment; a change shows in the next.
async fn gr_08_members_are_those_of_the_moment() -> Result<()> {
    let mut lake = Fixture::default();
    let t = Target::over(&lake, &[]).await?;
    for (round, member) in ["p4", "p5", "p2"].into_iter().enumerate() {
        lake.group("g2", "person", vec![json!({"entity": {"reference": format!("Patient/{member}")}})]);
        t.rewrite(&lake)?;
        let files = t.files(&Ask::new(Form::V4, "Group/g2/")).await?;
        ensure!(files.ids("Patient") == ids(&[member]), "round {round}: {:?}", files.ids("Patient"));
        ensure!(
            files.ids("Encounter") == ids(&[&format!("e-{member}")]),
            "round {round}: {:?}",
            files.ids("Encounter")
        );
        let group = files.of("Group").next().context("the Group itself")?;
        ensure!(
            group["member"][0]["entity"]["reference"] == format!("Patient/{member}"),
            "round {round}: {group}"
        );
    }
    Ok(())
}
