//! The scanner against serde_json, whole and through tiny buffers.

use std::io::BufReader;

use proptest::prelude::*;

use super::*;

type Found = Vec<(String, String)>;

fn scan(line: &[u8]) -> Result<(Header, Found), Malformed> {
    let mut found = Vec::new();
    let header = scan_line(line, &mut |path, reference| {
        found.push((
            String::from_utf8_lossy(path).into_owned(),
            String::from_utf8_lossy(reference).into_owned(),
        ));
    })?;
    Ok((header, found))
}

#[test]
fn finds_the_header_and_all_references_with_their_paths() {
    let (header, found) = scan(
        br#" {"meta":{"x":["lastUpdated"],"lastUpdated":"2024","versionId":"7"},"performer":[{"reference":"A/1"},
            {"actor":{"reference":"B\/2"}}],"reference":"top","contained":[{"id":"c","resourceType":"Z",
            "subject":{"r\u0065ference":"C/3"}}],"id":"i","list":["reference",[1.50,-0e+1,true,null]],
            "reference2":{"reference":{"reference":"D/4"}},"resourceType":"T","tail":"\ud83d\ude00\n"} "#,
    )
    .unwrap();
    assert_eq!(header.resource_type.text(), Some("T"));
    assert_eq!(header.id.text(), Some("i"));
    assert_eq!(header.last_updated.text(), Some("2024"));
    assert_eq!(header.version.text(), Some("7"));
    let expected = [
        ("performer", "A/1"),
        ("performer.actor", "B/2"),
        ("", "top"),
        ("contained.subject", "C/3"),
        ("reference2.reference", "D/4"),
    ];
    assert_eq!(found, expected.map(|(path, text)| (path.to_owned(), text.to_owned())));
}

#[test]
fn refuses_what_is_no_resource() {
    #[rustfmt::skip]
    let all_wrong = [
        "", "{", "{}}", "{}{}", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{,}", "{\"a\":[1,]}",
        "{\"a\":[,1]}", "{\"a\":01}", "{\"a\":1.}", "{\"a\":.5}", "{\"a\":1e}", "{\"a\":+1}",
        "{\"a\":tru}", "{\"a\":\"\\x\"}", "{\"a\":\"\\u12g4\"}", "{\"a\":\"\t\"}", "{\"a\":\"", "{a:1}",
        "{\"a\":1 \"b\":2}", "{\"a\":[1}", "x", "{\"a\":NaN}", "{'a':1}",
    ];
    for wrong in all_wrong {
        assert!(matches!(scan(wrong.as_bytes()), Err(Malformed::Json { .. })), "{wrong}");
    }
    assert!(matches!(scan(b"[1]"), Err(Malformed::NotAnObject)));
    assert!(matches!(scan(b"\"x\""), Err(Malformed::NotAnObject)));
    assert!(matches!(scan(b"{\"a\":\"\xff\"}"), Err(Malformed::Utf8 { at: 6 })));
    assert!(matches!(scan(br#"{"id":"a","id":"b"}"#), Err(Malformed::Repeated("id"))));
    let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    assert!(scan(nested(MAX_DEPTH - 1).as_bytes()).is_ok());
    assert!(matches!(scan(nested(MAX_DEPTH).as_bytes()), Err(Malformed::TooDeep)));
    assert_eq!(scan(br#"{"id":7}"#).unwrap().0.id, Field::Other);
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        "\\PC{0,12}|[\\x00-\\x7f]{0,20}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            proptest::collection::vec(("[a-c]|reference", inner), 0..5)
                .prop_map(|fields| serde_json::Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    /// The scanner and serde_json accept the same texts, whole or through any buffer.
    #[test]
    fn agrees_with_serde_json(
        value in json(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2),
        buffer in 1_usize..9,
    ) {
        let mut text = serde_json::to_vec(&serde_json::json!({ "root": value })).unwrap();
        for (at, byte) in edits {
            let at = at.index(text.len());
            text[at] = byte;
        }
        let expected = serde_json::from_slice::<serde_json::Value>(&text);
        let got = scan(&text);
        // serde_json also refuses lone surrogates and numbers beyond f64.
        let only_serde = expected.as_ref().is_err_and(|error| {
            let text = error.to_string();
            text.contains("surrogate") || text.contains("out of range") || text.contains("hex escape")
        });
        prop_assume!(!only_serde);
        let object = expected.as_ref().is_ok_and(serde_json::Value::is_object);
        prop_assert_eq!(got.is_ok(), object, "{:?}", String::from_utf8_lossy(&text));
        let streamed = || BufReader::with_capacity(buffer, text.as_slice());
        let mut count = 0;
        let by_stream = check_utf8(streamed()).and_then(|()| scan_stream(streamed(), &mut |_, _| count += 1));
        prop_assert_eq!(by_stream.is_ok(), got.is_ok());
        if let Ok((_, found)) = got {
            prop_assert_eq!(found.len(), count);
        }
    }

    #[test]
    fn special_bytes_are_found(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let naive = bytes.iter().position(|b| *b < 0x20 || *b == b'"' || *b == b'\\').unwrap_or(bytes.len());
        prop_assert_eq!(special_in(&bytes), naive);
    }
}
