//! Writing many rows so that one bad row harms none of the others.
//!
//! The API judges a batch as a whole (one bad row and nothing is stored) but stores it row by row (a row that
//! stands twice stops the ones behind it). Both are answered by halving: down to the one row that is to blame,
//! with everything else written. Writing again what was written changes nothing.

use std::time::Duration;

use super::client::{ApiError, Client};
use crate::plan::{InstanceId, TcpRow};

/// Rows in one request: half a second of the API's time, 16 kB (measured).
pub(super) const BATCH_MAX: usize = 100;

/// What became of the rows of a batch. Rows in none of the lists were not written, or nobody knows.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) confirmed: Vec<TcpRow>,
    /// Each refused on its own, with what was said.
    pub(super) refused: Vec<(TcpRow, String)>,
    /// Each stands twice in the API's table.
    pub(super) duplicate: Vec<TcpRow>,
    /// What ended the work early.
    pub(super) error: Option<ApiError>,
}

/// Creates or refreshes up to [`BATCH_MAX`] rows.
pub(super) async fn create(
    client: &Client,
    rows: Vec<TcpRow>,
    instance: &InstanceId,
    ttl: Duration,
) -> Written {
    let mut written = Written::default();
    let mut batches = vec![rows];
    while let Some(mut rows) = batches.pop() {
        match client.create(&rows, instance, ttl).await {
            Ok(()) => written.confirmed.append(&mut rows),
            Err(error) => {
                if let Err(error) = written.halve(rows, error, &mut batches) {
                    written.error = Some(error);
                    break;
                }
            }
        }
    }
    written
}

/// Deletes up to [`BATCH_MAX`] rows; "confirmed" says only that the API took the request.
pub(super) async fn delete(client: &Client, rows: Vec<TcpRow>) -> Written {
    let mut written = Written::default();
    let mut batches = vec![rows];
    while let Some(mut rows) = batches.pop() {
        match client.delete(&rows).await {
            Ok(()) => written.confirmed.append(&mut rows),
            Err(error) => {
                if let Err(error) = written.halve(rows, error, &mut batches) {
                    written.error = Some(error);
                    break;
                }
            }
        }
    }
    written
}

// === impl Written ===

impl Written {
    /// Puts both halves of a blamed batch back, or the blame on its only row. Any other error ends the work.
    fn halve(
        &mut self,
        mut rows: Vec<TcpRow>,
        error: ApiError,
        batches: &mut Vec<Vec<TcpRow>>,
    ) -> Result<(), ApiError> {
        if !matches!(error, ApiError::Refused { .. } | ApiError::Duplicate { .. }) {
            return Err(error);
        }
        if rows.len() > 1 {
            let tail = rows.split_off(rows.len() / 2);
            batches.extend([tail, rows]);
            return Ok(());
        }
        match (rows.pop(), error) {
            (Some(row), ApiError::Refused { message, .. }) => self.refused.push((row, message)),
            (Some(row), _) => self.duplicate.push(row),
            (None, _) => {}
        }
        Ok(())
    }
}
