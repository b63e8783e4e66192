//! Prints the table of `src/elements.txt`: the root elements of every resource type, from the official profiles of
//! FHIR R4.
//!
//! ```text
//! cargo run -p flatbed-types --example elements -- profiles-resources.json > proto/types/src/elements.txt
//! ```
//!
//! The input is `profiles-resources.json` of the definitions of FHIR 4.0.1
//! (<http://hl7.org/fhir/R4/downloads.html>). Copies in package registries are often patched; the table was made from
//! the one with SHA-256 `d062516a420265da6d248e1d2b5d2a4aa9709c3c637807fe48e278054dffa114`, whose root elements agree
//! with those of the independently generated `fhir.resources` 6.4.0.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::error::Error;

use serde_json::Value;

const VERSION: &str = "4.0.1";

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: elements PROFILES_RESOURCES_JSON")?;
    let bundle: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let entries = bundle["entry"].as_array().ok_or("not a bundle")?;
    let types: BTreeMap<String, String> = entries.iter().filter_map(|e| line(&e["resource"])).collect();
    println!("# Made by examples/elements.rs from the profiles of FHIR {VERSION}; not to be edited.");
    for (name, elements) in types {
        println!("{name}{elements}");
    }
    Ok(())
}

/// The name and the root elements of a type of resource; nothing of any other definition.
fn line(definition: &Value) -> Option<(String, String)> {
    let concrete = definition["resourceType"] == "StructureDefinition"
        && definition["kind"] == "resource"
        && definition["abstract"] == false
        && definition["version"] == VERSION;
    if !concrete {
        return None;
    }
    let name = definition["type"].as_str()?;
    let mut elements = String::new();
    for element in definition["snapshot"]["element"].as_array()? {
        let Some(root) = element["path"].as_str()?.strip_prefix(name)?.strip_prefix('.') else { continue };
        if root.contains('.') {
            continue;
        }
        elements.push(' ');
        elements.push_str(root.strip_suffix("[x]").unwrap_or(root));
        for (mark, holds) in [
            ('+', element["min"].as_u64()? > 0),
            ('!', element["isModifier"] == true),
            ('*', root.ends_with("[x]")),
        ] {
            if holds {
                elements.push(mark);
            }
        }
    }
    Some((name.to_owned(), elements))
}
