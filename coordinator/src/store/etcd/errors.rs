//! What an error of etcd says about the effect of a request (`coordination.md` 3.1, R4).
//!
//! Certainly without effect is only what etcd itself refuses with one of its own texts, and what was never sent. The codes
//! alone do not tell: HTTP/2 resets are mapped to some of the same ones, and happen to requests that were carried out.

use std::error::Error as _;

use etcd_client::Error;
use tonic::Code;

use super::race::Answer;
use crate::store::StoreError;

/// What an error means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Class {
    /// Refused; it would be refused elsewhere too.
    Refused(String),
    /// Not sent, or turned away unread.
    NotSent(String),
    /// There is no such lease.
    NoLease,
    /// A lease of this id exists.
    LeaseExists,
    /// The revision is compacted.
    Compacted,
    /// The revision is not reached, by the server that was asked.
    Ahead,
    /// Perhaps with effect.
    Lost(String),
}

impl Class {
    /// What this answers to a call with no special cases.
    pub fn answer<T>(self) -> Answer<T> {
        match self {
            Class::Refused(why) => Answer::Without(Err(StoreError::NotApplied(why))),
            Class::NotSent(why) => Answer::Elsewhere(StoreError::NotApplied(why)),
            Class::NoLease => Answer::Without(Err(StoreError::LeaseEnded)),
            Class::LeaseExists => refused("the lease exists"),
            Class::Compacted => refused("the revision is compacted"),
            Class::Ahead => refused("the revision is not reached"),
            Class::Lost(why) => Answer::Lost(why),
        }
    }
}

fn refused<T>(why: &str) -> Answer<T> {
    Answer::Without(Err(StoreError::NotApplied(format!("etcd: {why}"))))
}

/// Classifies an error of a request to `endpoint`.
pub(super) fn classify(endpoint: &str, error: &Error) -> Class {
    let said = |text: &str| format!("etcd {endpoint}: {text}");
    match error {
        Error::GRpcStatus(status) => of_status(endpoint, status),
        Error::LeaseKeepAliveError(text) if text == "lease not found" => Class::NoLease,
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
            Class::Refused(said(&error.to_string()))
        }
        other => Class::Lost(said(&other.to_string())),
    }
}

/// What went wrong, in a few words.
pub(super) fn text(error: &Error) -> String {
    match error {
        Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    }
}

fn of_status(endpoint: &str, status: &tonic::Status) -> Class {
    let text = status.message();
    let said = format!("etcd {endpoint}: {text}");
    if never_connected(status) {
        return Class::NotSent(format!("etcd {endpoint}: cannot connect ({})", innermost(status)));
    }
    // gRPC servers refuse what is too large for them before anything reads it.
    let own = text.starts_with("etcdserver: ") || text.starts_with("grpc: received message larger");
    match status.code() {
        _ if !own => Class::Lost(said),
        Code::NotFound if text.contains("lease not found") => Class::NoLease,
        Code::FailedPrecondition if text.contains("lease already exists") => Class::LeaseExists,
        Code::OutOfRange if text.contains("has been compacted") => Class::Compacted,
        Code::OutOfRange if text.contains("future revision") => Class::Ahead,
        Code::ResourceExhausted if text.contains("too many requests") => Class::NotSent(said),
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::ResourceExhausted
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => Class::Refused(said),
        _ => Class::Lost(said),
    }
}

fn sources<'a>(status: &'a tonic::Status) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(status.source(), |error| {
        let error: &'a (dyn std::error::Error + 'static) = *error;
        error.source()
    })
}

fn never_connected(status: &tonic::Status) -> bool {
    sources(status).any(|error| error.is::<tonic::ConnectError>())
}

fn innermost(status: &tonic::Status) -> String {
    sources(status).last().map_or_else(String::new, ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(code: Code, text: &str) -> Class {
        classify("http://h:1", &Error::GRpcStatus(tonic::Status::new(code, text)))
    }

    #[test]
    fn only_what_etcd_refused_is_without_effect() {
        let refused = |class: Class| matches!(class, Class::Refused(_));
        assert!(refused(class(Code::InvalidArgument, "etcdserver: too many operations in txn request")));
        assert!(refused(class(Code::InvalidArgument, "etcdserver: request is too large")));
        assert!(refused(class(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded")));
        assert!(refused(class(Code::ResourceExhausted, "grpc: received message larger than max (3 vs. 2)")));
        assert!(refused(class(Code::PermissionDenied, "etcdserver: permission denied")));
        assert!(refused(class(Code::Unauthenticated, "etcdserver: invalid auth token")));
        let lost = |class: Class| matches!(class, Class::Lost(_));
        assert!(lost(class(Code::Unavailable, "etcdserver: leader changed")));
        assert!(lost(class(Code::Unavailable, "etcdserver: request timed out")));
        assert!(lost(class(Code::Unavailable, "etcdserver: no leader")));
        assert!(lost(class(Code::DeadlineExceeded, "context deadline exceeded")));
        assert!(lost(class(Code::Cancelled, "h2 protocol error")));
        // Resets of the connection carry these codes, too.
        assert!(lost(class(Code::ResourceExhausted, "h2 protocol error: http2 error")));
        assert!(lost(class(Code::PermissionDenied, "h2 protocol error: http2 error")));
        // An answer that this client would not decode says nothing about the request.
        assert!(lost(class(Code::OutOfRange, "Error, decoded message length too large")));
    }

    #[test]
    fn special_answers_are_told_apart() {
        assert_eq!(class(Code::NotFound, "etcdserver: requested lease not found"), Class::NoLease);
        assert_eq!(class(Code::FailedPrecondition, "etcdserver: lease already exists"), Class::LeaseExists);
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        assert_eq!(class(Code::OutOfRange, compacted), Class::Compacted);
        let ahead = "etcdserver: mvcc: required revision is a future revision";
        assert_eq!(class(Code::OutOfRange, ahead), Class::Ahead);
        let busy = class(Code::ResourceExhausted, "etcdserver: too many requests");
        assert!(matches!(busy, Class::NotSent(_)));
    }
}
