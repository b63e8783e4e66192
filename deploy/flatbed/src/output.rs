//! Where output rests: a folder or a bucket, by URI; with links to single objects where the store can sign them.
//!
//! Buckets take credentials and endpoints from the vendors' usual variables, which are read here and nowhere
//! else. Invariant: an error names options and variables, never the value of one.

mod labels;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use axum::http::HeaderValue;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::signer::Signer;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use crate::places;
use labels::Labelled;

/// How long a request is tried again: shorter than a signature is valid, longer than a store takes to fail over.
const RETRY: Duration = Duration::from_secs(180);
/// Tries of a request within that time; with the default backoff they fill it.
const RETRIES: usize = 12;
/// How long a store may be silent while an answer is due. No limit on the whole of a request: a client may take
/// a large file slowly.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a connection to a store may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// The kind of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A folder of this machine.
    Folder(PathBuf),
    /// `s3://`
    S3,
    /// `gs://`
    Gcs,
    /// `az://`
    Azure,
}

/// An opened store.
#[derive(Clone)]
pub struct Output {
    /// The store, below the prefix.
    pub objects: Arc<dyn ObjectStore>,
    /// Signs links to objects by the same names, where the store can.
    pub links: Option<Arc<dyn Signer>>,
    /// What it is.
    pub place: Place,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("place", &self.place).finish_non_exhaustive()
    }
}

/// Opens the store of an `--output`: a folder, `file://`, `s3://`, `gs://` or `az://`. Folders are made; nothing is
/// asked of a bucket yet.
///
/// # Errors
/// When the URI names nothing that can be opened, or the environment does not say how.
pub fn open(uri: &str) -> anyhow::Result<Output> {
    open_with(uri, std::env::vars)
}

/// The same for a store that may refuse objects without a checksum, as buckets with object lock do. What a checksum costs is
/// nothing where little is written.
///
/// # Errors
/// As [`open`].
pub fn open_for_records(uri: &str) -> anyhow::Result<Output> {
    open_with(uri, || {
        let name = "AWS_CHECKSUM_ALGORITHM";
        let own = std::env::var_os(name).is_none().then(|| (name.to_owned(), "sha256".to_owned()));
        std::env::vars().chain(own)
    })
}

fn open_with<I>(uri: &str, variables: impl Fn() -> I) -> anyhow::Result<Output>
where
    I: Iterator<Item = (String, String)>,
{
    let Some((scheme, rest)) = uri.split_once("://").filter(|(scheme, _)| *scheme != "file") else {
        return folder(&folder_of(uri)?);
    };
    let address = Address::parse(scheme, rest)?;
    match scheme {
        "s3" => s3(&address, variables()),
        "gs" => gcs(&address, variables()),
        "az" => azure(&address, variables()),
        _ => {
            bail!("--output {scheme}:// is not known; use a folder, file://, s3://, gs:// or az://")
        }
    }
}

/// The folder that an output URI names.
///
/// # Errors
/// When it names none.
pub fn folder_of(uri: &str) -> anyhow::Result<PathBuf> {
    let path = match uri.split_once("://") {
        None => uri,
        Some(("file", path)) => path,
        Some((scheme, _)) => bail!("--output {scheme}:// names no folder"),
    };
    if path.is_empty() {
        bail!("--output names no folder");
    }
    Ok(std::path::absolute(path)?)
}

/// The store in a folder, which is made.
pub fn folder(path: &Path) -> anyhow::Result<Output> {
    // A commit is durable only when its objects are.
    let store = places::local_store(path)?.with_fsync(true);
    Ok(Output { objects: Arc::new(store), links: None, place: Place::Folder(path.to_owned()) })
}

/// Bucket (or container) and prefix.
struct Address {
    uri: String,
    bucket: String,
    prefix: Key,
}

impl Address {
    fn parse(scheme: &str, rest: &str) -> anyhow::Result<Address> {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        // Whatever else stands in it (a user, a query) would be taken for a name and might be a secret.
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if bucket.is_empty() || !bucket.bytes().all(plain) {
            bail!("--output {scheme}://… must name a bucket, like {scheme}://bucket/prefix");
        }
        let wrong =
            || anyhow!("the prefix in --output {scheme}://{bucket}/… is no path of names and slashes");
        if prefix.contains(['?', '#', '\\']) {
            return Err(wrong());
        }
        let prefix = Key::parse(prefix.trim_matches('/')).map_err(|_| wrong())?;
        Ok(Address { uri: format!("{scheme}://{bucket}/{prefix}"), bucket: bucket.to_owned(), prefix })
    }

    fn output<S>(self: &Address, store: S, signs: bool, place: Place) -> Output
    where
        S: ObjectStore + Signer + Clone,
    {
        let store = PrefixStore::new(store, self.prefix.clone());
        let links = signs.then(|| Arc::new(store.clone()) as Arc<dyn Signer>);
        Output { objects: Arc::new(Labelled::new(store)), links, place }
    }
}

fn client_options() -> ClientOptions {
    let agent = HeaderValue::from_static(concat!("flatbed/", env!("CARGO_PKG_VERSION")));
    ClientOptions::new()
        .with_user_agent(agent)
        .with_timeout_disabled()
        .with_read_timeout(SILENCE)
        .with_connect_timeout(CONNECT)
}

fn retry_config() -> RetryConfig {
    RetryConfig { max_retries: RETRIES, retry_timeout: RETRY, ..RetryConfig::default() }
}

/// The variables of a vendor that mean something to its client.
fn known<K: std::str::FromStr>(
    variables: impl Iterator<Item = (String, String)>,
    prefix: &str,
) -> impl Iterator<Item = (K, String)> {
    variables.filter(move |(name, value)| name.starts_with(prefix) && !value.is_empty()).filter_map(
        |(name, value)| {
            let key = name.to_ascii_lowercase().parse().ok()?;
            Some((key, value))
        },
    )
}

fn s3(address: &Address, variables: impl Iterator<Item = (String, String)>) -> anyhow::Result<Output> {
    use AmazonS3ConfigKey::{
        AccessKeyId, Endpoint, S3Endpoint, SecretAccessKey, SkipSignature, UnsignedPayload,
    };
    let uri = &address.uri;
    let given: Vec<(AmazonS3ConfigKey, String)> = known(variables, "AWS_").collect();
    let value = |wanted: AmazonS3ConfigKey| {
        given.iter().find(|(key, _)| *key == wanted).map(|(_, value)| value.as_str())
    };
    match (value(AccessKeyId), value(SecretAccessKey)) {
        (Some(_), None) => bail!("--output {uri}: AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not"),
        (None, Some(_)) => bail!("--output {uri}: AWS_SECRET_ACCESS_KEY is set, AWS_ACCESS_KEY_ID is not"),
        _ => {}
    }
    let endpoint = value(S3Endpoint).or_else(|| value(Endpoint));
    let plain = endpoint.and_then(|url| url.strip_prefix("http://"));
    let start = AmazonS3Builder::new().with_client_options(client_options()).with_retry(retry_config());
    let set = |builder: AmazonS3Builder, (key, value): &(AmazonS3ConfigKey, String)| {
        builder.with_config(*key, value)
    };
    let mut builder = given.iter().fold(start, set).with_bucket_name(&address.bucket);
    match plain {
        Some(authority) => {
            let allowed = value("aws_allow_http".parse()?).is_some_and(is_true);
            if !allowed && !is_loopback(authority) {
                bail!(
                    "--output {uri}: AWS_ENDPOINT is http://, which sends resources unencrypted; \
                     use https://, or set AWS_ALLOW_HTTP=true if the network encrypts"
                );
            }
            if value(UnsignedPayload).is_some_and(is_true) {
                bail!(
                    "--output {uri}: AWS_UNSIGNED_PAYLOAD needs https://: without either nothing notices damage"
                );
            }
            builder = builder.with_allow_http(true);
        }
        // TLS protects the bytes; hashing them once more would cost a core for each GB/s.
        None if value(UnsignedPayload).is_none() => builder = builder.with_unsigned_payload(true),
        None => {}
    }
    // Whoever follows a link would have to send the customer's key with it.
    let needs_key = value("aws_server_side_encryption".parse()?) == Some("sse-c");
    let signs = !needs_key && !value(SkipSignature).is_some_and(is_true);
    let store = builder.build().with_context(|| format!("--output {uri}"))?;
    Ok(address.output(store, signs, Place::S3))
}

fn gcs(address: &Address, variables: impl Iterator<Item = (String, String)>) -> anyhow::Result<Output> {
    let start =
        GoogleCloudStorageBuilder::new().with_client_options(client_options()).with_retry(retry_config());
    let given: Vec<(GoogleConfigKey, String)> = known(variables, "GOOGLE_").collect();
    let set: Vec<String> = given.iter().map(|(key, _)| key.as_ref().to_ascii_uppercase()).collect();
    let skips =
        given.iter().any(|(key, text)| matches!(key, GoogleConfigKey::SkipSignature) && is_true(text));
    let builder = given.into_iter().fold(start, |builder, (key, value)| builder.with_config(key, value));
    // The client's own error may quote a part of a key.
    let store = builder.with_bucket_name(&address.bucket).build().map_err(|_| {
        unusable(address, &set, "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS (a key file)")
    })?;
    Ok(address.output(store, !skips, Place::Gcs))
}

fn azure(address: &Address, variables: impl Iterator<Item = (String, String)>) -> anyhow::Result<Output> {
    let start = MicrosoftAzureBuilder::new().with_client_options(client_options()).with_retry(retry_config());
    let given: Vec<(AzureConfigKey, String)> = known(variables, "AZURE_").collect();
    let set: Vec<String> = given.iter().map(|(key, _)| key.as_ref().to_ascii_uppercase()).collect();
    let has = |wanted: AzureConfigKey| given.iter().any(|(key, _)| *key == wanted);
    let on = |wanted: AzureConfigKey| given.iter().any(|(key, text)| *key == wanted && is_true(text));
    if !has(AzureConfigKey::AccountName) && !on(AzureConfigKey::UseEmulator) {
        bail!("--output {}: set AZURE_STORAGE_ACCOUNT_NAME", address.uri);
    }
    // A shared access signature is a link already: it signs no others.
    let signs = !on(AzureConfigKey::SkipSignature) && !has(AzureConfigKey::SasKey);
    let builder = given.into_iter().fold(start, |builder, (key, value)| builder.with_config(key, value));
    let store = builder.with_container_name(&address.bucket).build().map_err(|_| {
        unusable(address, &set, "AZURE_STORAGE_ACCOUNT_KEY or AZURE_CLIENT_ID and its secret")
    })?;
    Ok(address.output(store, signs, Place::Azure))
}

fn unusable(address: &Address, set: &[String], hint: &str) -> anyhow::Error {
    let set = if set.is_empty() { "none is set".to_owned() } else { format!("set are: {}", set.join(", ")) };
    anyhow!("--output {}: the credentials cannot be used; check {hint} ({set})", address.uri)
}

fn is_true(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "1" | "true" | "on" | "yes" | "y")
}

/// Whether the authority of a URL (host, perhaps a port, perhaps a path behind) is of this machine.
fn is_loopback(authority: &str) -> bool {
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    crate::dial::is_loopback_host(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The variables are pairs; the error's text, or what was opened.
    fn opened(uri: &str, variables: &[(&str, &str)]) -> Result<Output, String> {
        let pairs = || variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        open_with(uri, pairs).map_err(|error| format!("{error:#}"))
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "AKIAKNOWN"), ("AWS_SECRET_ACCESS_KEY", "s3cr3t")];

    fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        KEYS.iter().chain(more).copied().collect()
    }

    #[test]
    fn folders_are_opened_and_made() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        for uri in [path.to_str().unwrap().to_owned(), format!("file://{}", path.display())] {
            let output = opened(&uri, &[]).unwrap();
            assert_eq!(output.place, Place::Folder(path.clone()));
            assert!(output.links.is_none() && path.is_dir());
        }
        assert!(folder_of("out").unwrap().is_absolute());
        assert!(opened("file://", &[]).unwrap_err().contains("names no folder"));
    }

    #[test]
    fn buckets_take_the_vendors_variables() {
        let region = [("AWS_REGION", "eu-central-1")];
        let output = opened("s3://bucket/exports/main/", &with(&region)).unwrap();
        assert!(output.place == Place::S3 && output.links.is_some());
        assert!(opened("s3://bucket", &with(&[("AWS_SKIP_SIGNATURE", "true")])).unwrap().links.is_none());
        let emulator = [("AZURE_STORAGE_USE_EMULATOR", "true")];
        assert_eq!(opened("az://container/x", &emulator).unwrap().place, Place::Azure);
        let error = opened("az://container/x", &[]).unwrap_err();
        assert!(error.contains("AZURE_STORAGE_ACCOUNT_NAME"), "{error}");
    }

    #[tokio::test]
    async fn the_stores_own_encryption_is_asked_for_with_each_object() {
        use object_store::ObjectStoreExt;
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let put = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut seen, mut part) = (Vec::new(), [0; 4_096]);
            while !seen.windows(4).any(|end| end == b"\r\n\r\n") {
                let count = stream.read(&mut part).await.unwrap();
                seen.extend_from_slice(&part[..count]);
            }
            let answer = b"HTTP/1.1 200 OK\r\netag: \"a\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            String::from_utf8_lossy(&seen).to_ascii_lowercase()
        });
        let kms = [("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms"), ("AWS_SSE_KMS_KEY_ID", "key-17")];
        let output =
            opened("s3://bucket", &with(&[&[("AWS_ENDPOINT", &*endpoint)], &kms[..]].concat())).unwrap();
        output.objects.put(&Key::from("x"), "y".into()).await.unwrap();
        let seen = put.await.unwrap();
        assert!(seen.contains("\r\nx-amz-server-side-encryption: aws:kms\r\n"), "{seen}");
        assert!(seen.contains("\r\nx-amz-server-side-encryption-aws-kms-key-id: key-17\r\n"), "{seen}");
        assert!(output.links.is_some());

        let key = ("AWS_SSE_CUSTOMER_KEY_BASE64", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=");
        let customer = with(&[("AWS_SERVER_SIDE_ENCRYPTION", "sse-c"), key]);
        assert!(opened("s3://bucket", &customer).unwrap().links.is_none(), "a link does not carry the key");
    }

    #[test]
    fn data_travels_unencrypted_only_where_that_was_asked_for() {
        let far = ("AWS_ENDPOINT", "http://minio:9000");
        assert!(opened("s3://bucket", &with(&[far])).unwrap_err().contains("AWS_ALLOW_HTTP"));
        assert!(opened("s3://bucket", &with(&[far, ("AWS_ALLOW_HTTP", "true")])).is_ok());
        for near in ["http://127.0.0.1:3900", "http://localhost:3900/", "http://[::1]:3900"] {
            assert!(opened("s3://bucket", &with(&[("AWS_ENDPOINT", near)])).is_ok(), "{near}");
        }
        let local = ("AWS_ENDPOINT_URL", "http://127.0.0.1:3900");
        let unsigned = opened("s3://bucket", &with(&[local, ("AWS_UNSIGNED_PAYLOAD", "true")]));
        assert!(unsigned.unwrap_err().contains("AWS_UNSIGNED_PAYLOAD"));
        let allowed = with(&[("AWS_ENDPOINT", "https://s3.example"), ("AWS_UNSIGNED_PAYLOAD", "true")]);
        assert!(opened("s3://bucket", &allowed).is_ok());
    }

    #[test]
    fn errors_name_variables_and_never_their_values() {
        let half = opened("s3://bucket", &[KEYS[0]]).unwrap_err();
        assert!(half.contains("AWS_SECRET_ACCESS_KEY") && !half.contains("AKIAKNOWN"), "{half}");
        let half = opened("s3://bucket", &[KEYS[1]]).unwrap_err();
        assert!(half.contains("AWS_ACCESS_KEY_ID") && !half.contains("s3cr3t"), "{half}");
        let sse = ("AWS_SERVER_SIDE_ENCRYPTION", "sse-c");
        let key = ("AWS_SSE_CUSTOMER_KEY_BASE64", "s3cr3t\n!");
        let amazon = opened("s3://bucket/x", &[sse, key]).unwrap_err();
        assert!(!amazon.contains("s3cr3t"), "{amazon}");
        let key = ("GOOGLE_SERVICE_ACCOUNT_KEY", "{\"private_key\": s3cr3t}");
        let google = opened("gs://bucket/x", &[key]).unwrap_err();
        assert!(google.contains("GOOGLE_SERVICE_ACCOUNT") && !google.contains("s3cr3t"), "{google}");
        let azure = [("AZURE_STORAGE_ACCOUNT_NAME", "a"), ("AZURE_STORAGE_ACCOUNT_KEY", "s3cr3t!")];
        let azure = opened("az://container", &azure).unwrap_err();
        assert!(azure.contains("AZURE_STORAGE_ACCOUNT_KEY") && !azure.contains("s3cr3t"), "{azure}");
        for wrong in
            ["s3://", "s3:///x", "s3://user:s3cr3t@bucket/x", "s3://bucket/a?s3cr3t", "ftp://s3cr3t/x"]
        {
            let error = opened(wrong, &KEYS).unwrap_err();
            assert!(error.contains("--output") && !error.contains("s3cr3t"), "{wrong}: {error}");
        }
    }

    #[tokio::test]
    async fn links_name_the_object_below_the_prefix() {
        let near = [("AWS_ENDPOINT", "http://127.0.0.1:3900")];
        let output = opened("s3://bucket/exports/main", &with(&near)).unwrap();
        let signer = output.links.unwrap();
        let (key, minute) = (Key::from("c/a.ndjson"), Duration::from_secs(60));
        let link = signer.signed_url(axum::http::Method::GET, &key, minute).await.unwrap();
        assert_eq!(link.path(), "/bucket/exports/main/c/a.ndjson", "path style");
        assert!(link.query().unwrap().contains("X-Amz-Expires=60"));
    }
}
