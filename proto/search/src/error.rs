//! What may be wrong with a filter, or with a row.

use flatbed_types::ResourceType;

use crate::limits::{MAX_CLAUSES, MAX_FILTER, MAX_VALUES};
use crate::parameter::Kind;

/// One fault of a filter. Texts of the client are cut to [`crate::limits::MAX_ECHO`] printable characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// More bytes than [`MAX_FILTER`].
    #[error("a filter has at most {MAX_FILTER} bytes")]
    TooLong,
    /// More parameters than [`MAX_CLAUSES`].
    #[error("a filter has at most {MAX_CLAUSES} parameters")]
    TooManyClauses,
    /// More values than [`MAX_VALUES`].
    #[error("`{0}`: a parameter has at most {MAX_VALUES} values")]
    TooManyValues(String),
    /// No `Type?`.
    #[error("`{0}`: expected a search like Observation?status=final")]
    NotASearch(String),
    /// A search over several types, in a compartment or on an instance.
    #[error("`{0}`: a filter is a search on one resource type, like Observation?status=final, not on a path")]
    NotOneType(String),
    /// What stands before `?` is no resource type.
    #[error("`{0}` is no resource type of FHIR R4")]
    UnknownType(String),
    /// A `%` that is not followed by two hexadecimal digits, or bytes that are not UTF-8.
    #[error("`{0}`: not valid percent-encoding of UTF-8")]
    Encoding(String),
    /// A parameter that shapes the answer of a search.
    #[error("`{0}` shapes the results of a search and cannot be part of a filter")]
    ResultParameter(String),
    /// No such search parameter.
    #[error("{of} has no search parameter `{name}` in FHIR R4")]
    UnknownParameter {
        /// The type of the filter.
        of: ResourceType,
        /// The name that is not known.
        name: String,
    },
    /// A search parameter that is known and cannot be evaluated.
    #[error("search parameter `{name}` is not supported: {reason}")]
    UnsupportedParameter {
        /// Its name.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// A path over references.
    #[error("`{0}`: chained parameters are not supported, since rows are filtered one by one")]
    Chained(String),
    /// A modifier that this kind of parameter does not have.
    #[error("`{name}` is a {kind} parameter and has no modifier `:{modifier}`")]
    UnknownModifier {
        /// The parameter.
        name: String,
        /// Its kind.
        kind: Kind,
        /// The modifier.
        modifier: String,
    },
    /// A modifier that the standard has and that cannot be evaluated.
    #[error("`{name}:{modifier}`: the modifier is not supported: {reason}")]
    UnsupportedModifier {
        /// The parameter.
        name: String,
        /// The modifier.
        modifier: String,
        /// Why.
        reason: &'static str,
    },
    /// A value that does not fit the parameter.
    #[error("`{name}`: expected {expected}, got `{value}`")]
    Value {
        /// The parameter, with its modifier.
        name: String,
        /// What would be right.
        expected: &'static str,
        /// The start of what is there.
        value: String,
    },
}

impl FilterError {
    /// Whether the filter is right by the standard, but asks for something that is not offered here.
    pub fn is_unsupported(&self) -> bool {
        use FilterError::{Chained, UnsupportedModifier, UnsupportedParameter};
        matches!(self, Chained(_) | UnsupportedModifier { .. } | UnsupportedParameter { .. })
    }
}

/// A row in which values could not be found, because it is no JSON object or ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON object at byte {at}")]
pub struct Malformed {
    /// Offset in the row.
    pub at: usize,
}
