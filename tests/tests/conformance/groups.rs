//! Groups (rows GR).

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::fixture::Fixture;
use flatbed_tests::conformance::target::{Target, ids};
use flatbed_tests::conformance::wire::{Ask, FORMS, Form, escaped};
use serde_json::json;

checks! {
    anything: [gr_03_groups_that_are_not_there],
    fixture: [
        gr_01_read_and_search,
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
