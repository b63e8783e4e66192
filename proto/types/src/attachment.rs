//! Attachments whose content is a `Binary` of the same server: how their URLs are recognised in resources, and the secret
//! under which a job gives URLs out that can be fetched (`bulk-data.md` FL-17 to FL-21).
//!
//! Data and parsing only. It does not know how resources are read, nor how a URL is made of a secret (`flatbed-proto`
//! does).

use std::fmt;
use std::str::FromStr;

use crate::FhirId;

/// Every name that a member of data type Attachment has in a resource of FHIR R4, or in a data type that resources are
/// made of: sorted. From the definitions of FHIR 4.0.1 as the independently generated `fhir.resources` 6.4.0 has them,
/// which type 39 members as Attachment. Other members of these names (`DocumentReference.content`, `Medication.form`)
/// are of types that have no `url`.
const NAMES: [&str; 15] = [
    "attachment",
    "content",
    "contentAttachment",
    "defaultValueAttachment",
    "document",
    "fixedAttachment",
    "form",
    "image",
    "legallyBindingAttachment",
    "patternAttachment",
    "photo",
    "presentedForm",
    "sequenceAttachment",
    "sourceAttachment",
    "valueAttachment",
];

/// Whether an object that has a `url`, or a list of such objects, is an Attachment where it stands under this name.
pub fn is_attachment(name: &[u8]) -> bool {
    NAMES.binary_search_by(|known| known.as_bytes().cmp(name)).is_ok()
}

/// A relative reference to a Binary, as `Attachment.url` may be one: `Binary/1`, `/Binary/1`, `Binary/1/_history/2`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BinaryReference {
    /// The id of the Binary.
    pub id: FhirId,
    /// The version that is meant, where one is.
    pub version: Option<FhirId>,
}

/// A text that is no relative reference to a Binary: absolute URLs among them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected Binary/[id] or Binary/[id]/_history/[version]")]
pub struct InvalidBinaryReference;

impl FromStr for BinaryReference {
    type Err = InvalidBinaryReference;

    fn from_str(text: &str) -> Result<Self, InvalidBinaryReference> {
        let rest = text.strip_prefix('/').unwrap_or(text);
        let rest = rest.strip_prefix("Binary/").ok_or(InvalidBinaryReference)?;
        let id = |text: &str| text.parse().map_err(|_| InvalidBinaryReference);
        match rest.split_once("/_history/") {
            None => Ok(BinaryReference { id: id(rest)?, version: None }),
            Some((of, version)) => Ok(BinaryReference { id: id(of)?, version: Some(id(version)?) }),
        }
    }
}

impl fmt::Display for BinaryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            None => write!(f, "Binary/{}", self.id),
            Some(version) => write!(f, "Binary/{}/_history/{version}", self.id),
        }
    }
}

/// Bytes of an [`AttachmentSecret`].
pub const SECRET_BYTES: usize = 32;

/// What tells the URLs of attachments that a job gave out from others: drawn at random with the job, known to its
/// coordinator, its workers and the gateways, shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct AttachmentSecret([u8; SECRET_BYTES]);

impl AttachmentSecret {
    /// A secret of random bytes.
    pub fn new(bytes: [u8; SECRET_BYTES]) -> AttachmentSecret {
        AttachmentSecret(bytes)
    }

    /// Its bytes, to sign with or to be stored; for no log.
    pub fn expose(&self) -> &[u8; SECRET_BYTES] {
        &self.0
    }
}

/// Records that hold it are logged in tests and traces: it says only that it is there.
impl fmt::Debug for AttachmentSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AttachmentSecret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_found() {
        assert!(NAMES.is_sorted());
        for name in NAMES {
            assert!(is_attachment(name.as_bytes()), "{name}");
        }
        for other in ["", "url", "Attachment", "valueUri", "extension", "photos"] {
            assert!(!is_attachment(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn relative_references_to_binaries_and_nothing_else() {
        for (text, shown) in [
            ("Binary/1", "Binary/1"),
            ("/Binary/a.b-C", "Binary/a.b-C"),
            ("Binary/1/_history/2", "Binary/1/_history/2"),
            ("/Binary/1/_history/v.2", "Binary/1/_history/v.2"),
        ] {
            let reference: BinaryReference = text.parse().unwrap();
            assert_eq!(reference.to_string(), shown);
            assert_eq!(shown.parse(), Ok(reference));
        }
        for other in [
            "",
            "Binary",
            "Binary/",
            "//Binary/1",
            "Binary/1/",
            "Binary/1/_history",
            "Binary/1/_history/",
            "Binary/1/_history/2/3",
            "Binary/1?x=y",
            "Binary/1#part",
            "binary/1",
            "Patient/1",
            "http://example.org/fhir/Binary/1",
            "urn:uuid:00000000-0000-0000-0000-000000000000",
            "../Binary/1",
        ] {
            assert_eq!(other.parse::<BinaryReference>(), Err(InvalidBinaryReference), "{other}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let secret = AttachmentSecret::new([7; SECRET_BYTES]);
        assert_eq!(format!("{secret:?}"), "AttachmentSecret");
        assert_eq!(secret.expose(), &[7; SECRET_BYTES]);
    }
}
