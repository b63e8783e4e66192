//! TLS of the public address: certificate and key from files, read again when they change.
//!
//! Knows no roles and no HTTP but the names of its versions. Invariants: TLS 1.2 and 1.3 only; a pair of files that does not
//! fit never replaces one that does; connections keep the certificate that they began with.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use clap::Args;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::cli::Failure;

/// How often the files are looked at: certificates are renewed days before they expire.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// TLS of the public address.
#[derive(Debug, Clone, Default, Args)]
pub struct TlsArgs {
    /// Certificate chain of the public address (PEM), the own one first; read again when it changes.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the certificate (PEM).
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
}

impl TlsArgs {
    /// Whether there is to be TLS.
    pub fn is_given(&self) -> bool {
        self.tls_cert.is_some()
    }

    /// The certificate, if one is configured.
    ///
    /// # Errors
    /// As usage, when one of the two options is missing or the files do not fit together.
    pub fn load(&self) -> Result<Option<PublicTls>, Failure> {
        let (cert, key) = match (&self.tls_cert, &self.tls_key) {
            (None, None) => return Ok(None),
            (Some(cert), Some(key)) => (cert.clone(), key.clone()),
            (Some(_), None) => return Err(Failure::usage("--tls-key is missing: it goes with --tls-cert")),
            (None, Some(_)) => return Err(Failure::usage("--tls-cert is missing: it goes with --tls-key")),
        };
        let files = Files { cert, key };
        let stamp = files.stamp();
        let config = files.read().map_err(Failure::usage)?;
        Ok(Some(PublicTls { files, stamp, current: Arc::new(RwLock::new(config)) }))
    }
}

/// When the two files changed.
type Stamp = [Option<(SystemTime, u64)>; 2];

#[derive(Debug, Clone)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
}

impl Files {
    /// Follows links, as mounted secrets are replaced by moving one.
    fn stamp(&self) -> Stamp {
        let of = |path: &Path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        [of(&self.cert), of(&self.key)]
    }

    fn read(&self) -> Result<Arc<ServerConfig>, String> {
        let (cert, key) = (self.cert.display(), self.key.display());
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&self.cert)
            .and_then(Iterator::collect)
            .map_err(|error| format!("cannot read --tls-cert {cert}: {error}"))?;
        if chain.is_empty() {
            return Err(format!("--tls-cert {cert} holds no certificate in PEM"));
        }
        let private = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|_| format!("cannot read a private key in PEM from --tls-key {key}"))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| format!("TLS cannot be set up: {error}"))?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(|error| format!("--tls-cert {cert} and --tls-key {key} do not fit: {error}"))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// The certificate in use.
#[derive(Clone)]
pub struct PublicTls {
    files: Files,
    /// Of the files that were read last.
    stamp: Stamp,
    current: Arc<RwLock<Arc<ServerConfig>>>,
}

// The key is nobody's business.
impl fmt::Debug for PublicTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicTls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl PublicTls {
    /// What takes the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Looks at the files now and then, until the token is cancelled.
    pub async fn watch(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => self.look(),
            }
        }
    }

    /// Takes the files over if they have changed and fit. Of a pair that is being replaced one may be read too early: the
    /// other's change has it read again.
    fn look(&mut self) {
        let stamp = self.files.stamp();
        if stamp == self.stamp {
            return;
        }
        self.stamp = stamp;
        match self.files.read() {
            Ok(config) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                tracing::info!("the public certificate was read anew");
            }
            Err(error) => {
                tracing::warn!(error, "the new public certificate cannot be used; the former one stays")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertifiedKey, generate_simple_self_signed};

    fn write(folder: &Path, name: &str) -> (Vec<u8>, TlsArgs) {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([name.to_owned()]).unwrap();
        let (cert_file, key_file) = (folder.join("tls.crt"), folder.join("tls.key"));
        std::fs::write(&cert_file, cert.pem()).unwrap();
        std::fs::write(&key_file, signing_key.serialize_pem()).unwrap();
        (cert.der().to_vec(), TlsArgs { tls_cert: Some(cert_file), tls_key: Some(key_file) })
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_option() {
        let folder = tempfile::tempdir().unwrap();
        let (_, args) = write(folder.path(), "localhost");
        let refused = |args: &TlsArgs| args.load().unwrap_err().to_string();
        assert!(TlsArgs::default().load().unwrap().is_none());
        assert!(refused(&TlsArgs { tls_key: None, ..args.clone() }).contains("--tls-key is missing"));
        assert!(refused(&TlsArgs { tls_cert: None, ..args.clone() }).contains("--tls-cert is missing"));
        let missing = TlsArgs { tls_cert: Some(folder.path().join("none")), ..args.clone() };
        assert!(refused(&missing).contains("cannot read --tls-cert"));
        let swapped = TlsArgs { tls_cert: args.tls_key.clone(), tls_key: args.tls_cert.clone() };
        assert!(refused(&swapped).contains("no certificate"));
        let other = tempfile::tempdir().unwrap();
        let (_, foreign) = write(other.path(), "localhost");
        assert!(refused(&TlsArgs { tls_key: foreign.tls_key, ..args.clone() }).contains("do not fit"));
        assert!(args.load().unwrap().is_some());
    }

    #[test]
    fn a_new_pair_is_taken_over_and_a_bad_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (_, args) = write(folder.path(), "first.example");
        let mut tls = args.load().unwrap().unwrap();
        let config = |tls: &PublicTls| tls.current.read().unwrap().clone();
        let first = config(&tls);
        tls.look();
        assert!(Arc::ptr_eq(&first, &config(&tls)), "nothing changed");
        std::fs::write(args.tls_cert.as_ref().unwrap(), "half").unwrap();
        tls.look();
        assert!(Arc::ptr_eq(&first, &config(&tls)), "the former one stays");
        write(folder.path(), "second.example");
        tls.look();
        assert!(!Arc::ptr_eq(&first, &config(&tls)));
    }
}
