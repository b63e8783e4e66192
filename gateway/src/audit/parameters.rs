//! What a request asked for, as it was sent: the query of its URL, the body of its POST.
//!
//! Both may name patients: they belong into the record, where an auditor must find them, and not into the log, which gets their
//! digest. Invariant: what might be a token in a query (it belongs into the header, but clients err) is left out.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::auth::oauth::decoded;

/// Bytes that are kept of what was not granted: enough to see what was meant.
pub const MAX_CUT: usize = 4 << 10;

/// Query parameters whose values are secrets of OAuth.
const SECRET: [&str; 6] =
    ["access_token", "token", "client_assertion", "client_secret", "assertion", "refresh_token"];

/// Stands for a value that was left out.
const LEFT_OUT: &str = "(left-out)";

/// The parameters of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    text: Bytes,
    /// Bytes that there were.
    len: usize,
    sha256: [u8; 32],
}

impl Parameters {
    /// All of them, while the request is under way.
    pub fn new(text: Bytes) -> Parameters {
        Parameters { len: text.len(), sha256: Sha256::digest(&text).into(), text }
    }

    /// Their beginning, with length and digest of the whole.
    pub fn cut(self) -> Parameters {
        Parameters { text: self.text.slice(..self.text.len().min(MAX_CUT)), ..self }
    }

    /// What is kept.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Bytes that there were.
    pub fn full_len(&self) -> usize {
        self.len
    }

    /// Whether all of it is kept.
    pub fn is_whole(&self) -> bool {
        self.text.len() == self.len
    }

    /// SHA-256 of all of it, in hexadecimal.
    pub fn digest(&self) -> String {
        super::chain::hex(&self.sha256)
    }
}

/// A query without secrets, for the record.
pub fn safe_query(query: &str) -> String {
    let parts: Vec<String> = query
        .split('&')
        .map(|pair| {
            let name = pair.split('=').next().unwrap_or_default();
            let is_secret = decoded(name)
                .is_none_or(|name| SECRET.iter().any(|secret| name.trim().eq_ignore_ascii_case(secret)));
            if is_secret { format!("{name}={LEFT_OUT}") } else { pair.to_owned() }
        })
        .collect();
    parts.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_granted_is_cut_and_still_known_by_its_digest() {
        let whole = Parameters::new(Bytes::from(vec![b'x'; MAX_CUT + 1]));
        assert!(whole.is_whole());
        let cut = whole.clone().cut();
        assert_eq!((cut.text().len(), cut.full_len(), cut.is_whole()), (MAX_CUT, MAX_CUT + 1, false));
        assert_eq!(cut.digest(), whole.digest());
        assert_eq!(
            Parameters::new(Bytes::from_static(b"abc")).digest(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn secrets_of_a_query_are_left_out() {
        let query = "_type=Patient&access_token=s3cr3t&%61ccess_token=s3cr3t&ACCESS_TOKEN=s3cr3t&%zz=s3cr3t&code&_since=x";
        let safe = safe_query(query);
        assert!(!safe.contains("s3cr3t"), "{safe}");
        assert!(safe.starts_with("_type=Patient&") && safe.ends_with("&_since=x"), "{safe}");
        assert_eq!(safe_query("identifier=urn:x%7C1&name=A"), "identifier=urn:x%7C1&name=A");
    }
}
