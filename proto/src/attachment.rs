//! The URLs under which a job's clients fetch the content of attachments. Workers write them into files, gateways answer
//! them: this is what they agree on.
//!
//! ```text
//! <FHIR base>/export/<job>/attachment/Binary/<id>/<mac>
//! <FHIR base>/export/<job>/attachment/Binary/<id>/_history/<version>/<mac>
//! ```
//!
//! `mac` is HMAC-SHA-256 under the job's secret over the reference (`Binary/<id>`, ...), cut to 128 bits, in base64url:
//! only what stands in a file of this job can be fetched, not what its client guesses. It says nothing of who may ask;
//! that is the gateway's question.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use flatbed_types::JobId;
use flatbed_types::attachment::{AttachmentSecret, BinaryReference};

use crate::Malformed;

/// Bytes of a mac: nobody guesses 128 bits, and a URL is as long for each attachment.
const MAC_BYTES: usize = 16;

/// Makes and checks the last part of URLs of attachments. Holds a secret: shows nothing of it.
pub struct AttachmentMac(hmac::Key);

impl AttachmentMac {
    /// Under the secret of a job.
    pub fn new(secret: &AttachmentSecret) -> AttachmentMac {
        AttachmentMac(hmac::Key::new(hmac::HMAC_SHA256, secret.expose()))
    }

    fn bytes(&self, reference: &BinaryReference) -> [u8; MAC_BYTES] {
        let tag = hmac::sign(&self.0, reference.to_string().as_bytes());
        let mut mac = [0; MAC_BYTES];
        mac.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        mac
    }

    /// The mac of a reference, as it stands in a URL.
    pub fn of(&self, reference: &BinaryReference) -> String {
        URL_SAFE_NO_PAD.encode(self.bytes(reference))
    }

    /// Whether this text is the mac of a reference. Takes as long for a wrong one as for a right one.
    pub fn is_of(&self, reference: &BinaryReference, text: &str) -> bool {
        URL_SAFE_NO_PAD
            .decode(text)
            .is_ok_and(|given| verify_slices_are_equal(&given, &self.bytes(reference)).is_ok())
    }
}

impl fmt::Debug for AttachmentMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AttachmentMac")
    }
}

/// Makes the URLs of a job's attachments.
#[derive(Debug)]
pub struct AttachmentUrls {
    folder: String,
    mac: AttachmentMac,
}

impl AttachmentUrls {
    /// URLs of this job below this FHIR base.
    pub fn new(base: &str, job: JobId, secret: &AttachmentSecret) -> AttachmentUrls {
        AttachmentUrls { folder: format!("{base}/export/{job}/attachment"), mac: AttachmentMac::new(secret) }
    }

    /// The URL of the content of a Binary.
    pub fn url(&self, reference: &BinaryReference) -> String {
        format!("{}/{reference}/{}", self.folder, self.mac.of(reference))
    }
}

/// A secret in a message; empty for none.
pub fn secret_to_wire(secret: Option<&AttachmentSecret>) -> Bytes {
    secret.map(|secret| Bytes::copy_from_slice(secret.expose())).unwrap_or_default()
}

/// The same back.
///
/// # Errors
/// When it has another length than a secret.
pub fn secret_from_wire(bytes: &Bytes) -> Result<Option<AttachmentSecret>, Malformed> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let bytes = bytes.as_ref().try_into().map_err(|_| Malformed("attachment secret"))?;
    Ok(Some(AttachmentSecret::new(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> BinaryReference {
        text.parse().unwrap()
    }

    #[test]
    fn fl_18_a_url_names_the_job_the_reference_and_a_mac_of_128_bits() {
        // HMAC-SHA-256 of "Binary/1" under 32 bytes of 0x0b, by an independent implementation.
        let urls = AttachmentUrls::new("https://h/fhir", JobId(1), &AttachmentSecret::new([0x0b; 32]));
        let url = urls.url(&reference("/Binary/1"));
        assert_eq!(
            url,
            format!("https://h/fhir/export/{}/attachment/Binary/1/as7RHzVuS489Xm8tgeiDFA", JobId(1))
        );
        let versioned = urls.url(&reference("Binary/1/_history/2"));
        assert!(versioned.contains("/Binary/1/_history/2/"), "{versioned}");
    }

    #[test]
    fn a_mac_holds_for_its_reference_and_its_job_only() {
        let mac = AttachmentMac::new(&AttachmentSecret::new([1; 32]));
        let one = reference("Binary/1");
        let text = mac.of(&one);
        assert!(mac.is_of(&one, &text));
        assert!(!mac.is_of(&reference("Binary/2"), &text));
        assert!(!mac.is_of(&reference("Binary/1/_history/1"), &text));
        assert!(!AttachmentMac::new(&AttachmentSecret::new([2; 32])).is_of(&one, &text));
        for wrong in
            ["", "A", &text[..20], &format!("{text}A"), &format!("{text}=="), "AAAAAAAAAAAAAAAAAAAAAA"]
        {
            assert!(!mac.is_of(&one, wrong), "{wrong}");
        }
    }

    #[test]
    fn secrets_come_back_and_nothing_shows_them() {
        let secret = AttachmentSecret::new([9; 32]);
        assert_eq!(secret_from_wire(&secret_to_wire(Some(&secret))), Ok(Some(secret.clone())));
        assert_eq!(secret_from_wire(&secret_to_wire(None)), Ok(None));
        assert!(secret_from_wire(&Bytes::from_static(&[1; 31])).is_err());
        let urls = AttachmentUrls::new("b", JobId(1), &secret);
        assert!(!format!("{urls:?}").contains('9'), "{urls:?}");
    }
}
