//! `_type`, `_since`, `_until` and `patient`, alone and together, on a population made to have every hard case.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use flatbed_tests::lab::Lab;
use flatbed_tests::lake;
use flatbed_tests::oracle::{Associated, Level, Query};
use flatbed_tests::population::{Population, patient, uuid};
use serde_json::json;

fn lab() -> Result<Lab> {
    Lab::filled(|folder| {
        let mut population = Population::generate(40, 21);
        let members: Vec<_> = (0..20)
            .map(|n| json!({"entity": {"reference": format!("Patient/{}", patient(n * 2))}}))
            .collect();
        population.add(&json!({"resourceType": "Group", "id": "even", "member": members,
            "managingEntity": {"reference": "Organization/managing"}}));
        population.add(&json!({"resourceType": "Organization", "id": "managing"}));
        // A reference must not lead to what names patients outside the export.
        let to = |reference: &str| json!({"reference": reference});
        let (inside, outside) = (format!("Patient/{}", patient(4)), format!("Patient/{}", patient(5)));
        let contracts = [
            ("own", vec![to(&inside)]),
            ("shared", vec![to(&inside), to(&outside)]),
            ("foreign", vec![to(&outside)]),
            ("elsewhere", vec![to("https://example.org/fhir/Patient/1")]),
        ];
        let links: Vec<_> = contracts.iter().map(|(id, _)| to(&format!("Contract/{id}"))).collect();
        population.add(&json!({"resourceType": "Observation", "id": "leads-out", "status": "final",
            "subject": to(&inside), "focus": links}));
        for (id, subject) in contracts {
            population.add(&json!({"resourceType": "Contract", "id": id, "subject": subject}));
        }
        provenance(&mut population);
        population.write(folder, "ndjson.zst")?;
        // What has no lastUpdated changed when its file did.
        let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(1_717_200_000);
        for path in lake::files(folder)? {
            if !lake::file_name(&path).starts_with("Group") {
                std::fs::File::options().append(true).open(path)?.set_modified(moment)?;
            }
        }
        Ok(())
    })
}

/// Of one resource and of many, of one patient and of several, old and new, of what is not there and of each other.
fn provenance(population: &mut Population) {
    let mut add = |id: &str, recorded: &str, targets: &[String]| {
        let targets: Vec<_> = targets.iter().map(|target| json!({"reference": target})).collect();
        population.add(&json!({"resourceType": "Provenance", "id": id, "meta": {"lastUpdated": recorded},
            "recorded": recorded, "target": targets, "agent": [{"who": {"reference": "Organization/managing"}}]}));
    };
    let encounter = |patient: usize, visit: usize| format!("Encounter/{}", uuid(10, patient * 100 + visit));
    for n in 0..20 {
        let both = [encounter(n, 0), encounter(n + 1, 1), "Encounter/nowhere".to_owned()];
        add(&format!("both-{n}"), &format!("2020-01-{:02}T00:00:00Z", n + 1), &both);
        let own = [encounter(n, 0), encounter(n, 2), format!("Patient/{}", patient(n))];
        add(&format!("own-{n}"), &format!("2024-0{}-01T00:00:00Z", 1 + n % 9), &own);
        add(&format!("about-{n}"), "2021-01-01T00:00:00Z", &[format!("Provenance/own-{n}")]);
    }
    add("same-moment", "2024-01-01T00:00:00Z", &[encounter(0, 0)]);
    add("managing", "2020-01-01T00:00:00Z", &["Organization/managing".to_owned()]);
    add("even", "2020-01-01T00:00:00Z", &["Group/even".to_owned()]);
}

/// PM-44, PM-45, PM-47, PM-59: what is associated follows what the other parameters leave, whatever they are.
#[test]
fn provenance_follows_what_is_returned() -> Result<()> {
    let lab = lab()?;
    let even = || Query::of(Level::Group("even".to_owned()));
    let since = Some("2024-06-01T00:00:00Z".parse()?);
    let (p, q) = (patient(4), patient(5));
    let queries = [
        Query::of(Level::System),
        Query::of(Level::System).types(&["Organization"]),
        Query { since, ..Query::of(Level::System).types(&["Encounter"]) },
        Query::of(Level::Patient),
        Query::of(Level::Patient).types(&["Provenance", "Patient"]),
        Query { since, ..Query::of(Level::Patient) },
        Query { until: since, ..Query::of(Level::Patient).types(&["Encounter"]) },
        Query::of(Level::Patient).patients([p.as_str()]),
        Query::of(Level::Patient).patients([p.as_str(), q.as_str()]),
        even(),
        Query { since, ..even().types(&["Encounter"]) },
    ];
    for query in queries {
        for associated in [Associated::Relevant, Associated::Latest, Associated::Unasked] {
            let query = query.clone().associated(associated);
            let export = lab.check(&query, &[])?.export;
            let named = query.types.is_empty() || query.types.contains("Provenance");
            let asked = named || associated != Associated::Unasked;
            assert_eq!(export.lines.count("Provenance") > 0, asked, "{query:?}");
        }
    }
    Ok(())
}

#[test]
fn types_since_until_and_patients() -> Result<()> {
    let lab = lab()?;
    let even = || Query::of(Level::Group("even".to_owned()));
    let window = |query: Query, since: Option<&str>, until: Option<&str>| -> Result<Query> {
        let moment = |text: Option<&str>| text.map(str::parse).transpose();
        Ok(Query { since: moment(since)?, until: moment(until)?, ..query })
    };
    let mid = Some("2024-06-01T00:00:00Z");
    let (p, q) = (patient(4), patient(5));
    let queries = [
        Query::of(Level::System),
        Query::of(Level::System).types(&["Patient", "Location", "Binary"]),
        window(Query::of(Level::System), mid, None)?,
        window(Query::of(Level::System), None, Some("2024-06-01T00:00:00.000Z"))?,
        Query::of(Level::Patient),
        Query::of(Level::Patient).types(&["Appointment", "Device", "Medication"]),
        window(Query::of(Level::Patient), mid, None)?,
        window(
            Query::of(Level::Patient),
            Some("2024-03-01T00:00:00+01:00"),
            Some("2024-09-01T00:00:00+01:00"),
        )?,
        window(Query::of(Level::Patient), Some("2025-06-01T00:00:00Z"), None)?,
        Query::of(Level::Patient).patients([p.as_str()]),
        Query::of(Level::Patient).patients([p.as_str(), q.as_str()]),
        even(),
        even().types(&["Group", "Patient"]),
        even().types(&["Encounter", "PractitionerRole", "Organization"]),
        window(even(), mid, None)?,
    ];
    for query in &queries {
        lab.check(query, &[])?;
    }
    assert!(lab.store.expected(&queries[6], jiff::Timestamp::now()).total() > 0);
    Ok(())
}

/// Two windows that meet give together what one that spans both gives: nothing is lost at their border.
#[test]
fn windows_that_meet_cover_everything() -> Result<()> {
    let lab = lab()?;
    let whole = lab.export(&["--level", "system", "--type", "Encounter"])?.export.lines;
    let early = lab
        .export(&["--level", "system", "--type", "Encounter", "--until", "2024-06-15T00:00:00.001Z"])?
        .export
        .lines;
    let mut late = lab
        .export(&["--level", "system", "--type", "Encounter", "--since", "2024-06-15T00:00:00.000Z"])?
        .export
        .lines;
    assert!(early.total() > 0 && late.total() > 0);
    late.merge(early);
    assert_eq!(whole.difference(&late, &|_| None), "");
    Ok(())
}

#[test]
fn what_cannot_be_asked_is_refused_with_a_reason() -> Result<()> {
    let lab = lab()?;
    for (options, named) in [
        (vec!["--level", "group/nowhere"], "nowhere"),
        (vec!["--level", "everything"], "everything"),
        (vec!["--type", "Patien"], "Patien"),
        (vec!["--since", "yesterday"], "since"),
        (vec!["--level", "patient", "--patient", "nobody"], "nobody"),
    ] {
        let finished = lab.run("refused", &options)?;
        assert!(!finished.status.success(), "{options:?} went through");
        assert!(finished.stderr.contains(named), "{options:?}: {}", finished.stderr);
        assert!(!lab.folder("refused").join("manifest.json").exists(), "{options:?} left a manifest");
    }
    Ok(())
}
