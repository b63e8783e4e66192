//! `$davinci-data-export`, by which payers and providers exchange the members of a Group (rows AT, PX, PV).

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::fixture::{Fixture, MEMBERS, NEWEST};
use flatbed_tests::conformance::target::{Done, Target, ids};
use flatbed_tests::conformance::wire::{Ask, Form, PATIENT, SYSTEM};
use reqwest::Method;
use serde_json::{Value, json};

checks! {
    anything: [],
    fixture: [
        at_01_the_operation,
        at_01_at_02_legacy_answers_and_parameters,
        at_03_px_12_pv_03_export_types,
        at_04_at_05_types_of_an_attribution_list,
        at_06_what_a_list_has_at_least,
        at_07_a_group_of_a_hundred_thousand_members,
        at_08_at_09_pv_04_patients_that_are_no_members,
        at_10_at_11_all_members_followed_as_any_export,
        at_28_another_name_of_type,
        px_02_pv_02_always_asynchronous,
        px_14_since_is_the_last_update_and_nothing_else,
        px_16_filters_are_applied_or_refused,
        px_17_no_type_is_everything,
    ],
}

const NAME: &str = "davinci-data-export";
const G1: &str = "Group/g1/";
const ATTRIBUTION: &str = "hl7.fhir.us.davinci-atr";
const PAYER_TO_PAYER: &str = "hl7.fhir.us.davinci-pdex#payertopayer";
const DELTA: &str = "hl7.fhir.us.davinci-pdex#provider-delta";
const TYPES: [&str; 5] = [
    ATTRIBUTION,
    PAYER_TO_PAYER,
    DELTA,
    "hl7.fhir.us.davinci-pdex#provider-download",
    "hl7.fhir.us.davinci-pdex#provider-snapshot",
];
const FORMS: [Form; 2] = [Form::Get, Form::Post];
const LIST: &str = "Group,Patient,Coverage";
const EARLY: &str = "2001-01-01T00:00:00Z";

fn ask(form: Form, group: &str) -> Ask {
    Ask::new(form, group).called(NAME)
}

/// All texts of the messages of an export.
async fn messages(t: &Target, done: &Done) -> Result<Vec<Value>> {
    Ok(t.download(done, "error").await?.lines().cloned().collect())
}

async fn at_01_the_operation() -> Result<()> {
    const DEFINITION: &str = "http://hl7.org/fhir/us/davinci-atr/OperationDefinition/davinci-data-export";
    let t = Target::fixture(&[]).await?;
    let statement = t.get(&format!("{}/metadata", t.base), &[]).await?.json()?;
    let resources = statement["rest"][0]["resource"].as_array().context("resources")?;
    let group = resources.iter().find(|each| each["type"] == "Group").context("no Group")?;
    let declared = group["operation"].as_array().into_iter().flatten();
    let declared = declared.filter(|each| each["name"] == NAME && each["definition"] == DEFINITION).count();
    ensure!(declared == 1, "declared {declared} times: {group}");
    let definition = t.get(&format!("{}/OperationDefinition/{NAME}", t.base), &[]).await?.is(200)?.json()?;
    ensure!(definition["base"] == DEFINITION && definition["instance"] == true, "{definition}");
    let names: BTreeSet<&str> = definition["parameter"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|each| each["name"].as_str())
        .collect();
    let expected =
        ["_since", "_type", "_typeFilter", "_until", "exportType", "patient", "resourceTypes"].into();
    ensure!(names == expected, "AT-02: {names:?}");
    for form in FORMS {
        for level in [SYSTEM, PATIENT] {
            t.refused(&ask(form, level), 404, &[]).await?;
        }
        t.refused(&ask(form, "Group/none/"), 404, &["Group/none"]).await?;
        let other = t.send(&ask(form, G1).by(Method::PUT)).await?;
        other.refused(405, &[])?;
        ensure!(other.header("allow")? == "GET, POST", other.wrong("Allow"));
    }
    Ok(())
}

async fn at_01_at_02_legacy_answers_and_parameters() -> Result<()> {
    let t = Target::fixture(&["--post-dialect", "v4"]).await?;
    for form in FORMS {
        let all = ask(form, G1)
            .with("exportType", PAYER_TO_PAYER)
            .with("_since", EARLY)
            .with("_until", NEWEST)
            .with("_type", "Patient,Observation")
            .with("_typeFilter", "Observation?status=final,Patient?gender=male");
        let done = t.export(&all).await?;
        for key in ["transactionTime", "request", "requiresAccessToken", "output", "error"] {
            ensure!(done.manifest.get(key).is_some(), "{form:?}: {}", done.manifest);
        }
        ensure!(done.manifest.get("outcome").is_none(), "{form:?}: {}", done.manifest);
        let files = t.download(&done, "output").await?;
        ensure!(files.types() == ids(&["Observation", "Patient"]), "{:?}", files.types());
        ensure!(files.of("Observation").all(|line| line["status"] == "final"), "_typeFilter");
        ensure!(files.ids("Patient") == ids(&["p2"]), "_typeFilter: {:?}", files.ids("Patient"));
        for (name, value) in [
            ("_outputFormat", "application/fhir+ndjson"),
            ("_elements", "id"),
            ("includeAssociatedData", "LatestProvenanceResources"),
            ("organizeOutputBy", "Patient"),
            ("_maximumFileSize", "100000"),
            ("bogus", "1"),
        ] {
            t.refused(&ask(form, G1).with(name, value), 400, &[name]).await?;
            let lenient =
                t.export(&ask(form, G1).with("_type", "Patient").with(name, value).lenient()).await?;
            let told = messages(&t, &lenient).await?;
            ensure!(told.iter().any(|line| line.to_string().contains(name)), "KO-24: {name}: {told:?}");
        }
        t.refused(&Ask::new(form, G1).with("exportType", ATTRIBUTION), 400, &["exportType"]).await?;
    }
    t.refused(&ask(Form::Get, G1).with("patient", "Patient/p1"), 400, &["patient"]).await?;
    Ok(())
}

async fn at_03_px_12_pv_03_export_types() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        for kind in TYPES {
            let all = ask(form, G1).with("exportType", kind).with("_type", LIST).with("_since", EARLY);
            t.delete(&t.send(&all).await?.accepted()?).await?.is(202)?;
        }
        for unknown in
            ["hl7.fhir.us.davinci-pdex", "hl7.fhir.us.davinci-pdex#x", "HL7.FHIR.US.DAVINCI-ATR", ""]
        {
            t.refused(&ask(form, G1).with("exportType", unknown), 400, &["exportType"]).await?;
            t.refused(&ask(form, G1).with("exportType", unknown).lenient(), 400, &["exportType"]).await?;
        }
        t.refused(&ask(form, G1).each("exportType", &[PAYER_TO_PAYER; 2]), 400, &["exportType"]).await?;
        t.refused(&ask(form, G1).with("exportType", DELTA), 400, &["_since"]).await?;
        let future = ask(form, G1).with("exportType", DELTA).with("_since", "2999-01-01T00:00:00Z");
        t.refused(&future, 400, &["_since"]).await?;
        let delta =
            t.files(&ask(form, G1).with("exportType", DELTA).with("_since", "2025-01-01T00:00:00Z")).await?;
        ensure!(delta.ids("Observation") == ids(&["n-p1", "n-p2", "n-p3"]), "{:?}", delta.ids("Observation"));
    }
    Ok(())
}

/// The fixture with what an attribution list may name beside its members.
fn with_providers() -> Result<Fixture> {
    let mut lake = Fixture::default();
    let mut patient = lake.get("Patient/p1")?.clone();
    patient["generalPractitioner"] = json!([{"reference": "PractitionerRole/role1"}]);
    lake.put(patient);
    lake.put(json!({"resourceType": "PractitionerRole", "id": "role1", "practitioner": {"reference": "Practitioner/dr1"},
        "location": [{"reference": "Location/loc1"}]}));
    lake.put(json!({"resourceType": "Location", "id": "loc1", "name": "x"}));
    lake.put(json!({"resourceType": "RelatedPerson", "id": "rp1", "patient": {"reference": "Patient/p1"}}));
    Ok(lake)
}

async fn at_04_at_05_types_of_an_attribution_list() -> Result<()> {
    const ALL: [&str; 8] = [
        "Group",
        "Patient",
        "Coverage",
        "RelatedPerson",
        "Practitioner",
        "PractitionerRole",
        "Organization",
        "Location",
    ];
    let t = Target::over(&with_providers()?, &[]).await?;
    for form in FORMS {
        let list = |types: &str| ask(form, G1).with("exportType", ATTRIBUTION).with("_type", types);
        let least = t.files(&list(LIST)).await?;
        ensure!(least.types() == ids(&["Coverage", "Group", "Patient"]), "AT-04: {:?}", least.types());
        ensure!(least.ids("Coverage") == ids(&["cov-p1", "cov-p2", "cov-p3"]), "{:?}", least.ids("Coverage"));
        for asked in [list(&ALL.join(",")), ask(form, G1).with("exportType", ATTRIBUTION)] {
            let all = t.files(&asked).await?;
            ensure!(all.types() == ids(&ALL), "AT-05: {:?}", all.types());
        }
    }
    Ok(())
}

async fn at_06_what_a_list_has_at_least() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let any = Target::fixture(&["--attribution-types", "any"]).await?;
    for form in FORMS {
        for (types, missing) in
            [("Patient", "Group"), ("Group,Patient", "Coverage"), ("Coverage,Group", "Patient")]
        {
            let list = ask(form, G1).with("exportType", ATTRIBUTION).with("_type", types);
            t.refused(&list, 400, &["_type", missing]).await?;
            t.refused(&list.clone().lenient(), 400, &["_type", missing]).await?;
            any.delete(&any.send(&list).await?.accepted()?).await?;
        }
        // Other kinds of export have no least.
        let other = ask(form, G1).with("exportType", PAYER_TO_PAYER).with("_type", "Patient");
        t.delete(&t.send(&other).await?.accepted()?).await?;
    }
    Ok(())
}

async fn at_07_a_group_of_a_hundred_thousand_members() -> Result<()> {
    const COUNT: usize = 100_001;
    let mut lake = Fixture::default();
    let name = |n: usize| format!("Patient/member-{n}");
    let members = (0..COUNT).map(|n| json!({"entity": {"reference": name(n)}, "inactive": false})).collect();
    lake.group("huge", "person", members);
    for n in 0..COUNT {
        lake.put(json!({"resourceType": "Patient", "id": format!("member-{n}")}));
    }
    let t = Target::over(&lake, &[]).await?;
    let done =
        t.export(&ask(Form::Get, "Group/huge/").with("exportType", ATTRIBUTION).with("_type", LIST)).await?;
    let files = t.download(&done, "output").await?;
    let of_group: Vec<_> = files.of_item.iter().filter(|(item, _)| item["type"] == "Group").collect();
    ensure!(of_group.len() == 1 && of_group[0].1.len() == 1, "{} files of Group", of_group.len());
    ensure!(of_group[0].1[0]["member"].as_array().map(Vec::len) == Some(COUNT), "members are missing");
    ensure!(files.ids("Patient").len() == COUNT, "{} patients", files.ids("Patient").len());
    Ok(())
}

async fn at_08_at_09_pv_04_patients_that_are_no_members() -> Result<()> {
    let mut lake = Fixture::default();
    let mut group = lake.get("Group/g1")?.clone();
    group["member"].as_array_mut().context("member")?.push(json!({"entity": {"reference": "Patient/ghost"}}));
    lake.put(group);
    let t = Target::over(&lake, &[]).await?;
    // No member, not there, in the Group but not there, no patient, of another server.
    let left_out = [
        "Patient/p4",
        "Patient/nope",
        "Patient/ghost",
        "Organization/org1",
        "https://elsewhere.example/Patient/p2",
    ];
    for kind in TYPES {
        let asked = || ask(Form::Post, G1).with("exportType", kind).with("_since", EARLY);
        let done = t.export(&asked().with("patient", "Patient/p1").each("patient", &left_out)).await?;
        let files = t.download(&done, "output").await?;
        ensure!(files.ids("Patient") == ids(&["p1"]), "AT-08, {kind}: {:?}", files.ids("Patient"));
        ensure!(
            !files.has("Appointment/a-p1-p4") && !files.has("Coverage/cov-p4"),
            "{kind}: {:?}",
            files.keys()
        );
        let told = messages(&t, &done).await?;
        for name in left_out {
            let about = told.iter().filter(|line| {
                line["resourceType"] == "OperationOutcome"
                    && line["issue"][0]["code"] == "not-found"
                    && line.to_string().contains(name)
            });
            ensure!(about.count() == 1, "AT-09, {kind}: {name} in {told:?}");
        }
        let named = told.iter().filter(|line| line["issue"][0]["code"] == "not-found").count();
        ensure!(named == left_out.len(), "{kind}: {told:?}");

        // A list of which nobody remains is not the list of all.
        let nobody = t.files(&asked().each("patient", &left_out[..2])).await?;
        ensure!(nobody.types().is_subset(&ids(&["Group"])), "{kind}: {:?}", nobody.keys());
        t.refused(&asked().with("patient", "Organization/org1"), 400, &["patient"]).await?;
    }
    // What is no reference at all is a mistake of the request.
    let text = ask(Form::Post, G1).typed("patient", "valueString", json!("Patient/p1"));
    t.refused(&text, 400, &["patient"]).await?;
    Ok(())
}

async fn at_10_at_11_all_members_followed_as_any_export() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let done = t.export(&ask(form, G1).with("exportType", ATTRIBUTION).with("_type", LIST)).await?;
        let files = t.download(&done, "output").await?;
        ensure!(files.ids("Patient") == ids(&MEMBERS), "AT-10: {:?}", files.ids("Patient"));
        ensure!(done.items("error").is_empty(), "{}", done.manifest);
        let again = t.poll(&done.status_url).await?;
        ensure!(again.is(200)?.json()? == done.manifest, again.wrong("another manifest"));
        t.delete(&done.status_url).await?.is(202)?;
        t.poll(&done.status_url).await?.refused(404, &[])?;
        t.get(done.url(0)?, &[]).await?.refused(404, &[])?;
    }
    Ok(())
}

async fn at_28_another_name_of_type() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let list = ask(form, G1).with("exportType", ATTRIBUTION).with("resourceTypes", LIST);
        let files = t.files(&list).await?;
        ensure!(files.types() == ids(&["Coverage", "Group", "Patient"]), "{:?}", files.types());
        let short = ask(form, G1).with("exportType", ATTRIBUTION).with("resourceTypes", "Patient");
        t.refused(&short, 400, &["Coverage"]).await?;
        t.refused(&Ask::new(form, G1).with("resourceTypes", LIST), 400, &["resourceTypes"]).await?;
    }
    Ok(())
}

async fn px_02_pv_02_always_asynchronous() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        t.refused(&ask(form, G1).without("prefer"), 400, &["respond-async"]).await?;
        let job = t.send(&ask(form, G1).with("exportType", PAYER_TO_PAYER)).await?.accepted()?;
        t.finished(&job).await?.is(200)?;
    }
    Ok(())
}

async fn px_14_since_is_the_last_update_and_nothing_else() -> Result<()> {
    let mut lake = Fixture::default();
    let condition = |id: &str, updated: &str| {
        json!({"resourceType": "Condition", "id": id, "meta": {"lastUpdated": updated}, "recordedDate": "1990-01-01",
            "onsetDateTime": "1990-01-01", "subject": {"reference": "Patient/p1"}})
    };
    lake.put(condition("old-and-touched", NEWEST));
    lake.put(condition("old-and-still", "2001-01-01T00:00:00Z"));
    let t = Target::over(&lake, &[]).await?;
    for form in FORMS {
        let asked = || ask(form, G1).with("exportType", PAYER_TO_PAYER).with("_type", "Condition");
        let recent = t.files(&asked().with("_since", "2025-01-01T00:00:00Z")).await?;
        ensure!(recent.ids("Condition") == ids(&["old-and-touched"]), "{:?}", recent.keys());
        let all = t.files(&asked()).await?;
        ensure!(
            all.has("Condition/old-and-touched") && all.has("Condition/old-and-still"),
            "{:?}",
            all.keys()
        );
    }
    Ok(())
}

async fn px_16_filters_are_applied_or_refused() -> Result<()> {
    let mut lake = Fixture::default();
    for (id, start) in [("e-p1", "2015-03-01"), ("e-p2", "2023-03-01")] {
        let mut encounter = lake.get(&format!("Encounter/{id}"))?.clone();
        encounter["period"] = json!({"start": start, "end": start});
        lake.put(encounter);
    }
    let t = Target::over(&lake, &[]).await?;
    for form in FORMS {
        let asked = || ask(form, G1).with("exportType", PAYER_TO_PAYER);
        let files = t
            .files(&asked().with("_type", "Encounter").with("_typeFilter", "Encounter?date=ge2020-01-01"))
            .await?;
        ensure!(files.ids("Encounter") == ids(&["e-p2"]), "{:?}", files.ids("Encounter"));
        for refused in ["Encounter?no-such-parameter=1", "Encounter?date=soon", "Encounter?_sort=date"] {
            t.refused(&asked().with("_typeFilter", refused), 400, &["_typeFilter"]).await?;
        }
        // Ignored where the client wants that, and told.
        let lenient =
            asked().with("_type", "Encounter").with("_typeFilter", "Encounter?no-such-parameter=1").lenient();
        let told = messages(&t, &t.export(&lenient).await?).await?;
        ensure!(told.iter().any(|line| line.to_string().contains("no-such-parameter")), "{told:?}");
    }
    Ok(())
}

async fn px_17_no_type_is_everything() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let all = t.files(&Ask::new(Form::Get, G1)).await?.keys();
    for form in FORMS {
        for asked in [ask(form, G1), ask(form, G1).with("exportType", PAYER_TO_PAYER)] {
            let files = t.files(&asked).await?.keys();
            ensure!(files == all, "{:?}", files.symmetric_difference(&all).collect::<Vec<_>>());
        }
    }
    Ok(())
}
