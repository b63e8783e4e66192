//! What an export makes of the rows of one type beyond choosing them by patient and moment: rows that do not match
//! the searches of the request are left out (`_typeFilter`), and the others lose the elements that nobody asked for
//! (`_elements`), and URLs of attachments that are relative are made absolute (FL-18).
//!
//! One rule for all sources: a reader shows each row that it would emit to the scan's [`Shape`]. Without one no row is
//! looked into. It does not know patients, windows or where bytes go.

mod attachments;
mod json;
mod reduce;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flatbed_search::{Filter, Matcher};
use flatbed_types::attachment::BinaryReference;
use flatbed_types::{ExportRequest, Instant, ResourceType};

use self::reduce::Reduction;

/// Lets one row at a time of those be in memory that are longer than [`LONG_LINE`](flatbed_types::caps::LONG_LINE):
/// searches and elements need a row whole, and each of a worker's slots may meet one as long as `--max-line`.
#[derive(Debug, Default)]
pub struct LongRows(Mutex<()>);

/// Says where the content of a Binary can be fetched: the same URL for the same reference for as long as the job lives, so
/// that every attempt at a task writes the same bytes.
pub type Locate = dyn Fn(&BinaryReference) -> String + Send + Sync;

/// A search that is none, though it was accepted: a coordinator of another version, perhaps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the request holds a search that this version does not know")]
pub struct UnknownSearch;

/// What becomes of the rows of one type. Holds what a client searches for: no `Debug`.
pub struct Shape {
    matcher: Option<Matcher>,
    reduction: Option<Reduction>,
    locate: Option<Arc<Locate>>,
    long_rows: Arc<LongRows>,
}

impl Shape {
    /// What a request makes of a type; `None` where rows stay as they are.
    pub fn of(
        request: &ExportRequest,
        resource_type: ResourceType,
        long_rows: &Arc<LongRows>,
    ) -> Result<Option<Arc<Shape>>, UnknownSearch> {
        Shape::with_attachments(request, resource_type, long_rows, None)
    }

    /// The same where somebody serves the content of attachments.
    pub fn with_attachments(
        request: &ExportRequest,
        resource_type: ResourceType,
        long_rows: &Arc<LongRows>,
        locate: Option<&Arc<Locate>>,
    ) -> Result<Option<Arc<Shape>>, UnknownSearch> {
        let parsed: Result<Vec<Filter>, _> = request.filters_on(resource_type).map(Filter::parse).collect();
        let filters = parsed.map_err(|_| UnknownSearch)?;
        let matcher = match filters.as_slice() {
            [] => None,
            filters => Some(Matcher::new(filters).map_err(|_| UnknownSearch)?),
        };
        let reduction = Reduction::new(resource_type, &request.elements);
        let shape = Shape { matcher, reduction, locate: locate.cloned(), long_rows: long_rows.clone() };
        Ok(shape.regards(true).then(|| Arc::new(shape)))
    }

    /// Whether rows have to be shown to it at all: others come out as they are. `names_binary` says whether an attachment
    /// of them may have a relative URL, as far as the source knows; true where it does not.
    pub fn regards(&self, names_binary: bool) -> bool {
        self.matcher.is_some() || self.alters(names_binary)
    }

    /// Whether such rows may come out otherwise than they are.
    pub fn alters(&self, names_binary: bool) -> bool {
        self.reduction.is_some() || (names_binary && self.locate.is_some())
    }

    /// Whether rows may be left out.
    pub fn chooses(&self) -> bool {
        self.matcher.is_some()
    }

    /// Whether a row is wanted. It comes without its line end; `changed` is when it changed, for rows that do not say.
    ///
    /// # Errors
    /// `InvalidData` where the row is not JSON, which the source should have noticed.
    pub fn wants(&self, row: &[u8], changed: Instant) -> io::Result<bool> {
        match &self.matcher {
            Some(matcher) => matcher.matches_at(row, Some(changed)).map_err(invalid),
            None => Ok(true),
        }
    }

    /// Appends a row as the result has it, without a line end.
    ///
    /// # Errors
    /// As [`Shape::wants`]; what was appended then is of no use.
    pub fn write(&self, row: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let locate = self.locate.as_deref().filter(|_| attachments::may_name_binary(row));
        match (&self.reduction, locate) {
            (None, None) => {
                out.extend_from_slice(row);
                Ok(())
            }
            (Some(reduction), None) => reduction.write(row, out).map_err(invalid),
            (None, Some(locate)) => attachments::write(row, locate, out).map_err(invalid),
            (Some(reduction), Some(locate)) => {
                let mut reduced = Vec::new();
                reduction.write(row, &mut reduced).map_err(invalid)?;
                attachments::write(&reduced, locate, out).map_err(invalid)
            }
        }
    }

    /// To be held while a long row is in memory.
    pub fn long_row(&self) -> MutexGuard<'_, ()> {
        self.long_rows.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
