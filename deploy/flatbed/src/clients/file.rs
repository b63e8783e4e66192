//! The client file: TOML with one `[[client]]` per client. Either all of it is good, or none of it is used; what is wrong
//! is said with the client and the key where it stands.
//!
//! Does not know the registry. Invariants: no id comes twice; whatever comes out has been checked in all its texts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flatbed_chassis::nearest;
use flatbed_types::ClientId;
use flatbed_types::caps;
use flatbed_types::consent::InvalidPurpose;
use flatbed_types::trust::{ClientKeys, ClientOrigin, ClientRecord, GroupGrant, LevelGrant};
use toml::{Table, Value};

use super::{check_jwks, check_jwks_url, check_scopes};

/// Bytes of a client file: some hundred thousand clients.
const MAX_FILE: u64 = 128 << 20;

/// The keys of an entry.
const KEYS: [&str; 11] = [
    "id",
    "name",
    "jwks",
    "jwks_url",
    "scopes",
    "groups",
    "levels",
    "max_jobs",
    "disabled",
    "allow_repeated_jti",
    "purpose",
];

/// Whether clients need keys of their own: not where another server makes their tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeysNeeded {
    /// They do.
    Yes,
    /// They may have some.
    No,
}

/// A client file that cannot be used: what is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("client file {path}: {problem}")]
pub struct BadFile {
    path: String,
    problem: String,
}

/// What a client file says, by the clients' ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFile {
    /// The clients.
    pub clients: BTreeMap<ClientId, ClientRecord>,
    /// The files that it was read from, itself first.
    pub files: Vec<PathBuf>,
}

/// By what a change of a file is noticed: its time and its size, if it is there.
pub type Stamp = Option<(SystemTime, u64)>;

/// The stamp of a file.
pub fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// Reads a client file and the key files that it names, which are looked for beside it.
///
/// # Errors
/// When anything in it is not as it has to be.
pub fn read(path: &Path, needed: KeysNeeded) -> Result<ClientFile, BadFile> {
    let bad = |problem: String| BadFile { path: path.display().to_string(), problem };
    let text = read_text(path, MAX_FILE).map_err(bad)?;
    let mut files = vec![path.to_owned()];
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let mut load = |name: &str| {
        let file = folder.join(name);
        let text = read_text(&file, caps::MAX_CLIENT_JWKS as u64);
        let text = text.map_err(|problem| format!("jwks = \"{name}\": {problem}"));
        files.push(file);
        text.map(String::into_bytes)
    };
    let clients = parse(&text, needed, &mut load).map_err(bad)?;
    Ok(ClientFile { clients, files })
}

fn read_text(path: &Path, most: u64) -> Result<String, String> {
    let meta = std::fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?;
    if meta.len() > most {
        return Err(format!("has more than {most} bytes"));
    }
    std::fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))
}

/// Reads a file of key sets by its name.
type Load<'a> = &'a mut dyn FnMut(&str) -> Result<Vec<u8>, String>;

fn parse(text: &str, needed: KeysNeeded, load: Load<'_>) -> Result<BTreeMap<ClientId, ClientRecord>, String> {
    let mut table: Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    let entries = match table.remove("client") {
        None => Vec::new(),
        Some(Value::Array(entries)) => entries,
        Some(_) => return Err("clients are written as [[client]]".to_owned()),
    };
    if let Some(key) = table.keys().next() {
        return Err(unknown(key, &["client"]));
    }
    let mut clients = BTreeMap::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let Value::Table(entry) = entry else { return Err("clients are written as [[client]]".to_owned()) };
        let named = entry.get("id").and_then(Value::as_str);
        let place = match named {
            Some(id) => format!("client '{}'", id.escape_debug()),
            None => format!("client number {}", index + 1),
        };
        let client = read_entry(entry, needed, load).map_err(|problem| format!("{place}: {problem}"))?;
        if clients.insert(client.id.clone(), client).is_some() {
            return Err(format!("{place}: the id comes twice"));
        }
    }
    Ok(clients)
}

fn unknown(key: &str, known: &[&str]) -> String {
    let shown = key.escape_debug();
    match nearest::nearest(key, known.iter().copied()) {
        Some(near) => format!("'{shown}' is not known; did you mean '{near}'?"),
        None => format!("'{shown}' is not known; known are: {}", known.join(", ")),
    }
}

fn read_entry(entry: Table, needed: KeysNeeded, load: Load<'_>) -> Result<ClientRecord, String> {
    if let Some(key) = entry.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(unknown(key, &KEYS));
    }
    let id = text_of(&entry, "id")?.ok_or("'id' is missing")?;
    let id = id.parse().map_err(|_| "an id has 1 to 128 letters, digits, '-', '_' or '.'".to_owned())?;
    let mut client = ClientRecord::new(id, ClientOrigin::File);
    client.name = text_of(&entry, "name")?.unwrap_or_default().to_owned();
    client.keys = keys_of(&entry, needed, load)?;
    let scopes = texts_of(&entry, "scopes")?.unwrap_or_default();
    for scope in &scopes {
        check_scopes(scope).map_err(|problem| format!("scope '{}': {problem}", scope.escape_debug()))?;
    }
    client.scopes = scopes.join(" ");
    if let Some(groups) = texts_of(&entry, "groups")? {
        client.groups = groups_of(&groups)?;
    }
    if let Some(levels) = texts_of(&entry, "levels")? {
        client.levels = levels_of(&levels)?;
    }
    client.max_jobs = match entry.get("max_jobs") {
        None => None,
        Some(Value::Integer(jobs)) if (1..=1_000_000).contains(jobs) => u32::try_from(*jobs).ok(),
        Some(_) => return Err("max_jobs is a number from 1 to 1000000".to_owned()),
    };
    client.disabled = flag_of(&entry, "disabled")?;
    client.allow_repeated_jti = flag_of(&entry, "allow_repeated_jti")?;
    client.purpose = match text_of(&entry, "purpose")? {
        None => None,
        Some(text) => Some(text.parse().map_err(|problem: InvalidPurpose| problem.to_string())?),
    };
    client.check().map_err(|problem| problem.to_string())?;
    Ok(client)
}

fn text_of<'a>(entry: &'a Table, key: &str) -> Result<Option<&'a str>, String> {
    match entry.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("{key} is a text")),
    }
}

fn texts_of<'a>(entry: &'a Table, key: &str) -> Result<Option<Vec<&'a str>>, String> {
    let wrong = || format!("{key} is a list of texts");
    match entry.get(key) {
        None => Ok(None),
        Some(Value::Array(values)) => {
            values.iter().map(|value| value.as_str().ok_or_else(wrong)).collect::<Result<_, _>>().map(Some)
        }
        Some(_) => Err(wrong()),
    }
}

fn flag_of(entry: &Table, key: &str) -> Result<bool, String> {
    match entry.get(key) {
        None => Ok(false),
        Some(Value::Boolean(flag)) => Ok(*flag),
        Some(_) => Err(format!("{key} is true or false")),
    }
}

fn keys_of(entry: &Table, needed: KeysNeeded, load: Load<'_>) -> Result<ClientKeys, String> {
    match (text_of(entry, "jwks")?, text_of(entry, "jwks_url")?) {
        (Some(_), Some(_)) => Err("jwks and jwks_url exclude each other".to_owned()),
        (None, None) if needed == KeysNeeded::No => Ok(ClientKeys::None),
        (None, None) => Err("one of jwks (a file) and jwks_url is needed".to_owned()),
        (Some(name), None) => {
            let jwks = load(name)?;
            check_jwks(&jwks).map_err(|problem| format!("jwks = \"{name}\": {problem}"))?;
            Ok(ClientKeys::Document(jwks))
        }
        (None, Some(url)) => {
            check_jwks_url(url)?;
            // In the text that was given: assertions name it letter by letter (AU-55).
            Ok(ClientKeys::Url(url.to_owned()))
        }
    }
}

/// Groups as they are listed; `*` alone for all.
pub fn groups_of(groups: &[&str]) -> Result<GroupGrant, String> {
    if groups == ["*"] {
        return Ok(GroupGrant::All);
    }
    let id = |group: &&str| {
        let hint = if *group == "*" { "'*' stands alone" } else { "is no id of a Group" };
        group.parse().map_err(|_| format!("group '{}': {hint}", group.escape_debug()))
    };
    groups.iter().map(id).collect::<Result<_, _>>().map(GroupGrant::Listed)
}

/// Levels as they are listed.
pub fn levels_of(levels: &[&str]) -> Result<LevelGrant, String> {
    let mut grant = LevelGrant::default();
    for level in levels {
        match *level {
            "system" => grant.system = true,
            "patient" => grant.patient = true,
            "group" => grant.group = true,
            other => return Err(format!("level {}", unknown(other, &["system", "patient", "group"]))),
        }
    }
    Ok(grant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwk;

    fn good_keys() -> Vec<u8> {
        let made = jwk::make(jwk::Algorithm::Es384).unwrap();
        serde_json::json!({ "keys": [made.public] }).to_string().into_bytes()
    }

    fn parsed(text: &str) -> Result<BTreeMap<ClientId, ClientRecord>, String> {
        let mut load = |name: &str| match name {
            "good.json" => Ok(good_keys()),
            "bad.json" => Ok(b"[]".to_vec()),
            other => Err(format!("jwks = \"{other}\": cannot be read")),
        };
        parse(text, KeysNeeded::Yes, &mut load)
    }

    fn entry(rest: &str) -> Result<ClientRecord, String> {
        let text = format!("[[client]]\nid = \"a\"\n{rest}");
        parsed(&text).map(|mut clients| clients.pop_first().unwrap().1)
    }

    #[test]
    fn an_entry_says_what_the_surface_promises() {
        let text = "[[client]]\nid = \"aco-17\"\nname = \"Example ACO\"\njwks = \"good.json\"\n\
                    scopes = [\"system/*.rs\", \"system/Group.rs\"]\ngroups = [\"roster-2026\"]\n\
                    levels = [\"group\", \"patient\"]\nmax_jobs = 2\ndisabled = true\npurpose = \"TREAT\"\n\
                    [[client]]\nid = \"b\"\njwks_url = \"https://b.example/jwks\"\ngroups = [\"*\"]\n";
        let clients = parsed(text).unwrap();
        let first = &clients[&"aco-17".parse().unwrap()];
        assert_eq!(
            (first.name.as_str(), first.scopes.as_str()),
            ("Example ACO", "system/*.rs system/Group.rs")
        );
        assert!(matches!(first.keys, ClientKeys::Document(_)));
        assert!(first.groups.covers(&"roster-2026".parse().unwrap()) && first.groups != GroupGrant::All);
        assert_eq!(first.levels, LevelGrant { system: false, patient: true, group: true });
        assert_eq!((first.max_jobs, first.disabled, first.origin), (Some(2), true, ClientOrigin::File));
        let second = &clients[&"b".parse().unwrap()];
        assert_eq!(second.keys, ClientKeys::Url("https://b.example/jwks".to_owned()));
        assert_eq!((&second.groups, second.levels), (&GroupGrant::All, LevelGrant::USUAL));
        assert_eq!((second.max_jobs, second.disabled), (None, false));
        assert_eq!((&first.purpose, &second.purpose), (&Some("TREAT".parse().unwrap()), &None));
        assert!(parsed("").unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let good = "jwks = \"good.json\"\n";
        for (rest, problem) in [
            (format!("{good}scope = []"), "client 'a': 'scope' is not known; did you mean 'scopes'?"),
            (format!("{good}levels = [\"ward\"]"), "level 'ward' is not known"),
            (format!("{good}levels = [\"grup\"]"), "did you mean 'group'?"),
            (format!("{good}scopes = [\"patient/*.rs\"]"), "scope 'patient/*.rs': "),
            (format!("{good}scopes = \"system/*.rs\""), "scopes is a list of texts"),
            (format!("{good}groups = [\"*\", \"b\"]"), "'*' stands alone"),
            (format!("{good}groups = [\"a b\"]"), "is no id of a Group"),
            (format!("{good}max_jobs = 0"), "max_jobs is a number from 1"),
            (format!("{good}disabled = \"no\""), "disabled is true or false"),
            (format!("{good}purpose = \"*\""), "a purpose has 1 to 64"),
            (format!("{good}jwks_url = \"https://a.example\""), "exclude each other"),
            ("jwks = \"bad.json\"".to_owned(), "jwks = \"bad.json\": not a JSON Web Key Set"),
            ("jwks = \"none.json\"".to_owned(), "cannot be read"),
            (String::new(), "one of jwks (a file) and jwks_url is needed"),
            ("jwks_url = \"http://a.example\"".to_owned(), "https URL"),
            ("jwks_url = \"https://u:p@a.example\"".to_owned(), "without user"),
            (format!("{good}name = \"{}\"", "x".repeat(300)), "the name is too long"),
        ] {
            let said = entry(&rest).unwrap_err();
            assert!(said.contains(problem) && said.starts_with("client 'a': "), "{rest}: {said}");
        }
        for (text, problem) in [
            ("[[client]]\njwks = \"good.json\"", "client number 1: 'id' is missing"),
            ("[[client]]\nid = \"a/b\"", "an id has 1 to 128"),
            ("[[clients]]\nid = \"a\"", "did you mean 'client'?"),
            ("client = 3", "[[client]]"),
            ("[[client]", "TOML parse error"),
        ] {
            let said = parsed(text).unwrap_err();
            assert!(said.contains(problem), "{text}: {said}");
        }
        let twice = format!("[[client]]\nid = \"a\"\n{good}[[client]]\nid = \"a\"\n{good}");
        assert!(parsed(&twice).unwrap_err().contains("the id comes twice"));
    }

    #[test]
    fn key_files_lie_beside_the_client_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clients.toml");
        std::fs::write(&path, "[[client]]\nid = \"a\"\njwks = \"a.json\"").unwrap();
        let missing = read(&path, KeysNeeded::Yes).unwrap_err().to_string();
        assert!(missing.contains("clients.toml: client 'a': jwks = \"a.json\": cannot be read"), "{missing}");
        std::fs::write(folder.path().join("a.json"), good_keys()).unwrap();
        let file = read(&path, KeysNeeded::Yes).unwrap();
        assert_eq!(file.files, [path.clone(), folder.path().join("a.json")]);
        assert!(stamp(&path).is_some() && stamp(&folder.path().join("b.json")).is_none());
    }
}
