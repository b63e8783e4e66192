//! Errors as gRPC statuses: the error class travels in a trailer, so that the caller gets it back intact.

use flatbed_types::ErrorCode;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

const TRAILER: &str = "flatbed-error";

/// A status of this class. The message is for people and holds no resource content.
pub fn to_status(code: ErrorCode, message: impl Into<String>) -> Status {
    let mut status = Status::new(Code::from(code.grpc_status()), message);
    status.metadata_mut().insert(TRAILER, MetadataValue::from_static(code.name()));
    status
}

/// Whether one of us made a status, as opposed to the connection.
pub fn is_ours(status: &Status) -> bool {
    status.metadata().contains_key(TRAILER)
}

/// The class of a status, whoever made it.
pub fn code_of(status: &Status) -> ErrorCode {
    let named = status.metadata().get(TRAILER).and_then(|value| value.to_str().ok());
    if let Some(code) = ErrorCode::ALL.into_iter().find(|code| Some(code.name()) == named) {
        return code;
    }
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange => ErrorCode::Invalid,
        Code::Unimplemented => ErrorCode::NotSupported,
        Code::NotFound => ErrorCode::NotFound,
        Code::Unauthenticated => ErrorCode::Unauthenticated,
        Code::PermissionDenied => ErrorCode::Forbidden,
        Code::ResourceExhausted => ErrorCode::Throttled,
        Code::Unavailable | Code::Cancelled | Code::Aborted => ErrorCode::Unavailable,
        Code::DeadlineExceeded => ErrorCode::Timeout,
        Code::Ok
        | Code::Unknown
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Internal
        | Code::DataLoss => ErrorCode::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_survives_the_way() {
        for code in ErrorCode::ALL {
            assert_eq!(code_of(&to_status(code, "x")), code);
        }
        assert_eq!(code_of(&Status::unavailable("connection refused")), ErrorCode::Unavailable);
    }
}
