//! Content codings: which form of a stored file a client gets.

use flatbed_types::Codec;
use http::{HeaderMap, header};

use super::{list_elements, weight, with_parameters};

/// In which form a file goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The bytes as they rest, with `Content-Encoding` when they rest compressed.
    Stored,
    /// Decompressed on the way.
    Decoded,
}

/// Chooses the form of a file that rests in `codec` (FL-09). Without `Accept-Encoding` it is plain NDJSON: a
/// coding is only used when the client listed it. `None` when the client excludes every form there is.
pub fn choose(headers: &HeaderMap, codec: Codec) -> Option<Form> {
    let listed = list_elements(headers, header::ACCEPT_ENCODING).unwrap_or_default();
    let weights: Vec<(&str, u16)> = listed
        .into_iter()
        .map(|element| {
            let (name, parameters) = with_parameters(element);
            (name, weight(&parameters))
        })
        .collect();
    let weight_of = |names: &[&str]| {
        let named = |wanted: &&str| weights.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        names.iter().find_map(named).map(|(_, weight)| *weight)
    };
    let any = weight_of(&["*"]);
    let identity = weight_of(&["identity"]);
    let identity_allowed = identity.or(any).is_none_or(|weight| weight > 0);
    let plain = if codec == Codec::None { Form::Stored } else { Form::Decoded };
    let coded = match codec {
        Codec::None => None,
        Codec::Gzip => weight_of(&["gzip", "x-gzip"]).or(any),
        Codec::Zstd => weight_of(&["zstd"]).or(any),
    };
    match coded {
        // The stored bytes cost nothing to send, so they win unless identity is preferred explicitly.
        Some(weight) if weight > 0 && identity.is_none_or(|plain| plain <= weight) => Some(Form::Stored),
        _ if identity_allowed => Some(plain),
        Some(weight) if weight > 0 => Some(Form::Stored),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn fl_09_content_codings() {
        use Codec::{Gzip, None as Plain, Zstd};
        use Form::{Decoded, Stored};
        let table: [(Option<&str>, Codec, Option<Form>); 22] = [
            (None, Gzip, Some(Decoded)),
            (None, Plain, Some(Stored)),
            (Some(""), Gzip, Some(Decoded)),
            (Some("gzip"), Gzip, Some(Stored)),
            (Some("GZIP;q=0.5"), Gzip, Some(Stored)),
            (Some("x-gzip"), Gzip, Some(Stored)),
            (Some("gzip"), Plain, Some(Stored)),
            (Some("gzip"), Zstd, Some(Decoded)),
            (Some("gzip, zstd"), Zstd, Some(Stored)),
            (Some("br, deflate"), Gzip, Some(Decoded)),
            (Some("identity"), Gzip, Some(Decoded)),
            (Some("gzip;q=0"), Gzip, Some(Decoded)),
            (Some("gzip;q=0, *"), Gzip, Some(Decoded)),
            (Some("*"), Gzip, Some(Stored)),
            (Some("*;q=0"), Gzip, None),
            (Some("*;q=0, identity"), Gzip, Some(Decoded)),
            (Some("identity;q=0"), Gzip, None),
            (Some("identity;q=0"), Plain, None),
            (Some("identity;q=0, gzip"), Gzip, Some(Stored)),
            (Some("identity;q=0, gzip;q=0"), Gzip, None),
            (Some("gzip;q=0.5, identity;q=0.9"), Gzip, Some(Decoded)),
            (Some("gzip;q=0.9, identity;q=0.5"), Gzip, Some(Stored)),
        ];
        for (value, codec, form) in table {
            let line = |text| (header::ACCEPT_ENCODING, HeaderValue::from_static(text));
            let headers = value.map(line).into_iter().collect();
            assert_eq!(choose(&headers, codec), form, "{value:?} {codec:?}");
        }
    }
}
