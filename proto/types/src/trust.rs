//! What the cluster knows of clients, and the keys that sign its tokens.
//!
//! Does not know what a scope means or whether a key verifies anything: these are texts and bytes here, bounded in size.
//! The gateway room checks them (`auth` there), where a record is made and again where it is used. Times are whoever's
//! clock is passed in.

use std::collections::BTreeSet;
use std::fmt;

use crate::consent::Purpose;
use crate::registration::Registration;
use crate::{ClientId, FhirId, Instant, Level, caps};

/// Who made a record. Each changes its own only; operators change all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientOrigin {
    /// A client file of a gateway.
    File,
    /// A person, by command.
    Operator,
    /// The client itself, by dynamic registration.
    Registration,
}

impl ClientOrigin {
    /// The name, for people and JSON.
    pub fn name(self) -> &'static str {
        match self {
            ClientOrigin::File => "file",
            ClientOrigin::Operator => "operator",
            ClientOrigin::Registration => "registration",
        }
    }
}

/// Where a client's public keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientKeys {
    /// Nowhere: it cannot authenticate.
    None,
    /// Here: a JWK Set as it was given, with public keys only.
    Document(Vec<u8>),
    /// Behind this URL.
    Url(String),
}

/// Groups that a client may read and export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupGrant {
    /// All of the source, and those that it made.
    All,
    /// These, and those that it made.
    Listed(BTreeSet<FhirId>),
}

impl GroupGrant {
    /// Whether a Group of the source is among them.
    pub fn covers(&self, group: &FhirId) -> bool {
        match self {
            GroupGrant::All => true,
            GroupGrant::Listed(groups) => groups.contains(group),
        }
    }
}

/// Levels at which a client may export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LevelGrant {
    /// `$export`.
    pub system: bool,
    /// `Patient/$export`.
    pub patient: bool,
    /// `Group/{id}/$export`, of the Groups that it may export.
    pub group: bool,
}

impl LevelGrant {
    /// Where nothing is said: Groups only.
    pub const USUAL: LevelGrant = LevelGrant { system: false, patient: false, group: true };

    /// Whether an export of this level is among them; of which Group is not asked here.
    pub fn covers(self, level: &Level) -> bool {
        match level {
            Level::System => self.system,
            Level::Patient => self.patient,
            Level::Group(_) => self.group,
        }
    }

    /// Whether data of any patient may be exported, so that there is nothing to be got by a Group that could not be got
    /// without one.
    pub fn reaches_all_patients(self) -> bool {
        self.system || self.patient
    }

    /// The names of those granted, as the client file writes them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let all = [("system", self.system), ("patient", self.patient), ("group", self.group)];
        all.into_iter().filter_map(|(name, granted)| granted.then_some(name))
    }
}

/// A registered client: a tenant (`decisions.md` 10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientRecord {
    /// Its id.
    pub id: ClientId,
    /// Rises by one with each change, from 1; 0 before it is stored.
    pub version: u64,
    /// When it was changed last.
    pub updated: Instant,
    /// Who made it.
    pub origin: ClientOrigin,
    /// For people; may be empty.
    pub name: String,
    /// Its public keys.
    pub keys: ClientKeys,
    /// What it may be granted: SMART scopes, separated by spaces.
    pub scopes: String,
    /// What it asked for when it registered itself; it holds none of it until an operator approves.
    pub requested_scopes: String,
    /// Groups that it may read and export.
    pub groups: GroupGrant,
    /// Levels at which it may export.
    pub levels: LevelGrant,
    /// Unfinished jobs; `None` for the cluster's usual number.
    pub max_jobs: Option<u32>,
    /// It gets no token, and its tokens are void.
    pub disabled: bool,
    /// Its assertions may be used again until they expire, against the standard (AU-61): for clients that cannot do
    /// otherwise.
    pub allow_repeated_jti: bool,
    /// Of a client that registered itself: what it said, and how it may change that.
    pub registration: Option<Box<Registration>>,
    /// What it uses data for, by which rosters of exclusions tell clients apart; `None` where that is not known: then rows
    /// of every purpose concern it.
    pub purpose: Option<Purpose>,
}

/// Why a client cannot be registered like this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidClient {
    /// A text is too long, or holds what no person can see.
    #[error("{0} is too long, or holds control characters")]
    Text(&'static str),
    /// The set of keys is too large.
    #[error("the JWK Set is larger than {} bytes", caps::MAX_CLIENT_JWKS)]
    Keys,
    /// Its id is that of whoever comes where nobody is asked.
    #[error("the id 'open' is that of all clients of --auth open, whose exports it would own")]
    Reserved,
    /// Too many Groups.
    #[error("more than {} groups are listed", caps::MAX_CLIENT_GROUPS)]
    Groups,
}

impl ClientRecord {
    /// A client of this id that may do nothing yet.
    pub fn new(id: ClientId, origin: ClientOrigin) -> ClientRecord {
        ClientRecord {
            id,
            version: 0,
            updated: Instant::from_nanos(0),
            origin,
            name: String::new(),
            keys: ClientKeys::None,
            scopes: String::new(),
            requested_scopes: String::new(),
            groups: GroupGrant::Listed(BTreeSet::new()),
            levels: LevelGrant::USUAL,
            max_jobs: None,
            disabled: false,
            allow_repeated_jti: false,
            registration: None,
            purpose: None,
        }
    }

    /// Whether it registered itself, and no operator has given it anything yet.
    pub fn is_waiting(&self) -> bool {
        self.origin == ClientOrigin::Registration && self.scopes.is_empty()
    }

    /// Checks its sizes and texts, which is all that can be said without knowing SMART.
    pub fn check(&self) -> Result<(), InvalidClient> {
        if self.id == ClientId::open() {
            return Err(InvalidClient::Reserved);
        }
        let url = match &self.keys {
            ClientKeys::Url(url) => url.as_str(),
            ClientKeys::None | ClientKeys::Document(_) => "",
        };
        for (what, text, most) in [
            ("the name", self.name.as_str(), caps::MAX_CLIENT_NAME),
            ("the list of scopes", self.scopes.as_str(), caps::MAX_CLIENT_SCOPES),
            ("the list of requested scopes", self.requested_scopes.as_str(), caps::MAX_CLIENT_SCOPES),
            ("the URL of the keys", url, caps::MAX_CLIENT_URL),
        ] {
            if text.len() > most || text.chars().any(char::is_control) {
                return Err(InvalidClient::Text(what));
            }
        }
        if matches!(&self.keys, ClientKeys::Document(jwks) if jwks.len() > caps::MAX_CLIENT_JWKS) {
            return Err(InvalidClient::Keys);
        }
        if let Some(said) = &self.registration {
            said.check().map_err(InvalidClient::Text)?;
        }
        match &self.groups {
            GroupGrant::Listed(groups) if groups.len() > caps::MAX_CLIENT_GROUPS => {
                Err(InvalidClient::Groups)
            }
            GroupGrant::Listed(_) | GroupGrant::All => Ok(()),
        }
    }

    /// Whether both say the same of the client, whatever their versions and times are.
    pub fn says_the_same(&self, other: &ClientRecord) -> bool {
        let same_times = ClientRecord { version: other.version, updated: other.updated, ..self.clone() };
        same_times == *other
    }
}

/// A private key, PKCS #8: for gateways and the state store, shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(Vec<u8>);

impl PrivateKey {
    /// From its bytes.
    pub fn new(pkcs8: Vec<u8>) -> PrivateKey {
        PrivateKey(pkcs8)
    }

    /// Its bytes, to sign with or to be stored; for no log.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

/// A pair of keys on P-256 that signs the cluster's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningKey {
    /// Names the pair in tokens.
    pub kid: String,
    /// When it was made.
    pub created: Instant,
    /// It signs from then on, until another does; it verifies at once, so that gateways know it before they meet it.
    pub signs_from: Instant,
    /// It verifies until then; `None` while none follows it.
    pub verifies_until: Option<Instant>,
    /// The private key.
    pub private: PrivateKey,
    /// The public key, an uncompressed point.
    pub public: Vec<u8>,
}

/// All keys of the cluster, in the order in which they were made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SigningKeys(pub Vec<SigningKey>);

impl SigningKeys {
    /// The one that signs now.
    pub fn signer(&self, now: Instant) -> Option<&SigningKey> {
        let begun = self.0.iter().filter(|key| key.signs_from <= now);
        // A clock that is behind that of whoever made the only key must not leave the cluster without tokens.
        begun.max_by_key(|key| key.signs_from).or_else(|| self.0.first())
    }

    /// Those that verify now.
    pub fn verifiers(&self, now: Instant) -> impl Iterator<Item = &SigningKey> {
        self.0.iter().filter(move |key| key.verifies_until.is_none_or(|until| now < until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ClientRecord {
        ClientRecord::new("a".parse().unwrap(), ClientOrigin::File)
    }

    #[test]
    fn texts_keys_and_groups_are_bounded() {
        assert_eq!(record().check(), Ok(()));
        let long = "x".repeat(caps::MAX_CLIENT_NAME + 1);
        let text = |name: &str| ClientRecord { name: name.to_owned(), ..record() }.check();
        assert_eq!(text("Example ACO, “east”"), Ok(()));
        assert_eq!(text(&long), Err(InvalidClient::Text("the name")));
        assert_eq!(text("a\u{1b}[2J"), Err(InvalidClient::Text("the name")));
        let url = ClientKeys::Url(format!("https://{}", "x".repeat(caps::MAX_CLIENT_URL)));
        assert!(ClientRecord { keys: url, ..record() }.check().is_err());
        let keys = |size: usize| ClientRecord { keys: ClientKeys::Document(vec![b' '; size]), ..record() };
        assert_eq!(keys(caps::MAX_CLIENT_JWKS).check(), Ok(()));
        assert_eq!(keys(caps::MAX_CLIENT_JWKS + 1).check(), Err(InvalidClient::Keys));
        let groups = (0..=caps::MAX_CLIENT_GROUPS).map(|number| format!("g{number}").parse().unwrap());
        let groups = GroupGrant::Listed(groups.collect());
        assert_eq!(ClientRecord { groups, ..record() }.check(), Err(InvalidClient::Groups));
    }

    #[test]
    fn what_is_granted_is_covered_and_nothing_else() {
        let (one, two): (FhirId, FhirId) = ("g1".parse().unwrap(), "g2".parse().unwrap());
        let listed = GroupGrant::Listed(BTreeSet::from([one.clone()]));
        assert!(listed.covers(&one) && !listed.covers(&two) && GroupGrant::All.covers(&two));
        let levels = [Level::System, Level::Patient, Level::Group(one)];
        assert_eq!(levels.each_ref().map(|level| LevelGrant::USUAL.covers(level)), [false, false, true]);
        assert_eq!(levels.map(|level| LevelGrant::default().covers(&level)), [false; 3]);
        assert_eq!(LevelGrant::USUAL.names().collect::<Vec<_>>(), ["group"]);
    }

    #[test]
    fn nobody_is_registered_as_whoever_comes() {
        let open = ClientRecord::new(ClientId::open(), ClientOrigin::Operator);
        assert_eq!(open.check(), Err(InvalidClient::Reserved));
    }

    #[test]
    fn versions_and_times_are_not_what_a_record_says() {
        let other = ClientRecord { version: 7, updated: Instant::from_millis(9), ..record() };
        assert!(record().says_the_same(&other));
        assert!(!record().says_the_same(&ClientRecord { disabled: true, ..other }));
    }

    #[test]
    fn a_new_key_verifies_before_it_signs_and_a_former_one_after_it_did() {
        let key = |kid: &str, from: i64, until: Option<i64>| SigningKey {
            kid: kid.to_owned(),
            created: Instant::from_millis(from - 5),
            signs_from: Instant::from_millis(from),
            verifies_until: until.map(Instant::from_millis),
            private: PrivateKey::new(vec![7]),
            public: vec![4],
        };
        let keys = SigningKeys(vec![key("old", 10, Some(30)), key("new", 20, None)]);
        let at = |millis: i64| {
            let now = Instant::from_millis(millis);
            let verifiers: Vec<_> = keys.verifiers(now).map(|key| key.kid.as_str()).collect();
            (keys.signer(now).map(|key| key.kid.as_str()), verifiers)
        };
        assert_eq!(at(5), (Some("old"), vec!["old", "new"]), "a clock that is behind");
        assert_eq!(at(19), (Some("old"), vec!["old", "new"]));
        assert_eq!(at(20), (Some("new"), vec!["old", "new"]));
        assert_eq!(at(30), (Some("new"), vec!["new"]));
        assert_eq!(SigningKeys::default().signer(Instant::from_millis(1)), None);
        assert!(!format!("{keys:?}").contains('7'), "private keys are not shown");
    }
}
