//! The closed list of error classes, each with total answers to the questions that every edge asks.

use std::fmt;

/// A class of error. Adding one forces an answer to every question below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorCode {
    /// The request is malformed or contradicts itself.
    Invalid,
    /// The request asks for something that this server does not do.
    NotSupported,
    /// There is no such job, Group, patient or file, or none that this client may know of.
    NotFound,
    /// It was there and has been deleted.
    Gone,
    /// No or no valid credentials.
    Unauthenticated,
    /// Valid credentials that do not cover the request.
    Forbidden,
    /// Too many requests or jobs.
    Throttled,
    /// The request is too large.
    TooLarge,
    /// Something that is needed cannot be reached at the moment.
    Unavailable,
    /// The answer did not come in time; whether it took effect is not known.
    Timeout,
    /// The source or its data cannot be read as they are.
    SourceFailed,
    /// The source changed under a running job.
    SourceChanged,
    /// The store of outputs or of state refused or lost something.
    StorageFailed,
    /// A defect of this software.
    Internal,
    /// The request is in order, but a parameter names something that does not exist, or that this client may not know of.
    NoSuchReference,
}

impl ErrorCode {
    /// Every code; the position is its number on the wire, so the order is fixed.
    pub const ALL: [ErrorCode; 15] = [
        ErrorCode::Invalid,
        ErrorCode::NotSupported,
        ErrorCode::NotFound,
        ErrorCode::Gone,
        ErrorCode::Unauthenticated,
        ErrorCode::Forbidden,
        ErrorCode::Throttled,
        ErrorCode::TooLarge,
        ErrorCode::Unavailable,
        ErrorCode::Timeout,
        ErrorCode::SourceFailed,
        ErrorCode::SourceChanged,
        ErrorCode::StorageFailed,
        ErrorCode::Internal,
        ErrorCode::NoSuchReference,
    ];

    /// The HTTP status that carries it.
    pub fn http_status(self) -> u16 {
        match self {
            ErrorCode::Invalid | ErrorCode::NotSupported | ErrorCode::NoSuchReference => 400,
            ErrorCode::NotFound => 404,
            ErrorCode::Gone => 410,
            ErrorCode::Unauthenticated => 401,
            ErrorCode::Forbidden => 403,
            ErrorCode::Throttled => 429,
            ErrorCode::TooLarge => 413,
            ErrorCode::Unavailable | ErrorCode::Timeout => 503,
            ErrorCode::SourceFailed
            | ErrorCode::SourceChanged
            | ErrorCode::StorageFailed
            | ErrorCode::Internal => 500,
        }
    }

    /// The FHIR issue type (<http://hl7.org/fhir/R4/valueset-issue-type.html>).
    pub fn issue_type(self) -> &'static str {
        match self {
            ErrorCode::Invalid => "invalid",
            ErrorCode::NotSupported => "not-supported",
            ErrorCode::NotFound | ErrorCode::NoSuchReference => "not-found",
            ErrorCode::Gone => "deleted",
            ErrorCode::Unauthenticated => "login",
            ErrorCode::Forbidden => "forbidden",
            ErrorCode::Throttled => "throttled",
            ErrorCode::TooLarge => "too-long",
            ErrorCode::Unavailable => "transient",
            ErrorCode::Timeout => "timeout",
            ErrorCode::SourceFailed | ErrorCode::SourceChanged => "processing",
            ErrorCode::StorageFailed => "processing",
            ErrorCode::Internal => "exception",
        }
    }

    /// The number of the gRPC status (<https://grpc.io/docs/guides/status-codes/>).
    pub fn grpc_status(self) -> i32 {
        match self {
            ErrorCode::Invalid | ErrorCode::NoSuchReference => 3,
            ErrorCode::NotSupported => 12,
            ErrorCode::NotFound | ErrorCode::Gone => 5,
            ErrorCode::Unauthenticated => 16,
            ErrorCode::Forbidden => 7,
            ErrorCode::Throttled | ErrorCode::TooLarge => 8,
            ErrorCode::Unavailable => 14,
            ErrorCode::Timeout => 4,
            ErrorCode::SourceFailed | ErrorCode::SourceChanged => 9,
            ErrorCode::StorageFailed | ErrorCode::Internal => 13,
        }
    }

    /// Whether a message of this class speaks of the request itself, and so may be shown to whoever made it. Messages of
    /// the other classes may name files and addresses of the server.
    pub fn is_about_the_request(self) -> bool {
        match self {
            ErrorCode::Invalid
            | ErrorCode::NotSupported
            | ErrorCode::NotFound
            | ErrorCode::Gone
            | ErrorCode::Unauthenticated
            | ErrorCode::Forbidden
            | ErrorCode::Throttled
            | ErrorCode::TooLarge
            | ErrorCode::NoSuchReference => true,
            ErrorCode::Unavailable
            | ErrorCode::Timeout
            | ErrorCode::SourceFailed
            | ErrorCode::SourceChanged
            | ErrorCode::StorageFailed
            | ErrorCode::Internal => false,
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(self) -> bool {
        match self {
            ErrorCode::Throttled | ErrorCode::Unavailable | ErrorCode::Timeout => true,
            ErrorCode::Invalid
            | ErrorCode::NotSupported
            | ErrorCode::NotFound
            | ErrorCode::Gone
            | ErrorCode::Unauthenticated
            | ErrorCode::Forbidden
            | ErrorCode::TooLarge
            | ErrorCode::SourceFailed
            | ErrorCode::SourceChanged
            | ErrorCode::StorageFailed
            | ErrorCode::Internal
            | ErrorCode::NoSuchReference => false,
        }
    }

    /// Whether the request may have had an effect all the same.
    pub fn may_have_effect(self) -> bool {
        matches!(self, ErrorCode::Timeout | ErrorCode::Internal | ErrorCode::StorageFailed)
    }

    /// The stable name, for logs, metrics and JSON.
    pub fn name(self) -> &'static str {
        match self {
            ErrorCode::Invalid => "invalid",
            ErrorCode::NotSupported => "not-supported",
            ErrorCode::NotFound => "not-found",
            ErrorCode::Gone => "gone",
            ErrorCode::Unauthenticated => "unauthenticated",
            ErrorCode::Forbidden => "forbidden",
            ErrorCode::Throttled => "throttled",
            ErrorCode::TooLarge => "too-large",
            ErrorCode::Unavailable => "unavailable",
            ErrorCode::Timeout => "timeout",
            ErrorCode::SourceFailed => "source-failed",
            ErrorCode::SourceChanged => "source-changed",
            ErrorCode::StorageFailed => "storage-failed",
            ErrorCode::Internal => "internal",
            ErrorCode::NoSuchReference => "no-such-reference",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a store that is a folder is not the folder any more that it was: something else took its place, or took from
/// it what was being written. Time does not mend that.
pub fn is_out_of_place(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    let mut cause = Some(error);
    while let Some(found) = cause {
        if let Some(io) = found.downcast_ref::<std::io::Error>()
            && matches!(
                io.kind(),
                IsADirectory | NotADirectory | NotFound | PermissionDenied | ReadOnlyFilesystem
            )
        {
            return true;
        }
        cause = found.source();
    }
    false
}
