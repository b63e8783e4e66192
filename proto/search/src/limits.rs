//! Limits, each with its reason.

/// Bytes of one filter: a value set of a thousand coded values with their systems fits.
pub const MAX_FILTER: usize = 64 << 10;

/// Parameters in one filter: every row is tested against each.
pub const MAX_CLAUSES: usize = 64;

/// Values of one parameter (`a,b,c`): the size of a large value set.
pub const MAX_VALUES: usize = 1_000;

/// Characters of the client's text that an error repeats: enough to find the place, too little for a record.
pub const MAX_ECHO: usize = 40;

/// Digits kept of a decimal, which is twice what FHIR asks servers to keep.
pub const MAX_DIGITS: usize = 36;

/// Largest power of ten of a decimal in a filter. What rows hold beyond it is held to it.
pub const MAX_EXPONENT: i32 = 1_000;
