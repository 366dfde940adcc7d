//! Writing many rows so that one bad row harms none of the others.
//!
//! The API judges a batch as a whole (one bad row and nothing is stored) but stores it row by row (a row that
//! stands twice stops the ones behind it). Both are answered by halving: down to the one row that is to blame,
//! with everything else written. Writing again what was written changes nothing.

use std::time::Duration;

use tokio::time::timeout;

use super::client::{ApiError, RequestId, RoutingApi};
use crate::lease::Roles;
use crate::lifecycle::Clock;
use crate::plan::{InstanceId, TcpRow};

/// Rows in one request: half a second of the API's time, 16 kB (measured).
pub(super) const BATCH_MAX: usize = 100;

/// A deletion that takes longer has failed, the wait for a token and a second try included: whoever holds the Lease
/// has proof for 5 s less than it lasts, and what leaves later may remove what a successor wrote.
const DELETE_WITHIN: Duration = Duration::from_secs(4);

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
    api: &dyn RoutingApi,
    rows: Vec<TcpRow>,
    instance: &InstanceId,
    ttl: Duration,
) -> Written {
    let mut written = Written::default();
    let mut batches = vec![rows];
    while written.error.is_none()
        && let Some(rows) = batches.pop()
    {
        let answer = api.create(&rows, instance, ttl).await;
        written.take_in(rows, answer, &mut batches);
    }
    written
}

/// Deletes up to [`BATCH_MAX`] rows, for as long as there is proof of the Lease; "confirmed" says only that the API
/// took the request.
pub(super) async fn delete(
    api: &dyn RoutingApi,
    rows: Vec<TcpRow>,
    roles: &Roles,
    clock: Clock,
) -> Written {
    let mut written = Written::default();
    let mut batches = vec![rows];
    while written.error.is_none()
        && let Some(rows) = batches.pop()
    {
        // Halving sends dozens of requests, and proof may end between two.
        if !roles.at(clock.now()).is_active() {
            break;
        }
        let answer = timeout(DELETE_WITHIN, api.delete(&rows)).await;
        let answer = answer.unwrap_or_else(|_| Err(unanswered()));
        written.take_in(rows, answer, &mut batches);
    }
    written
}

fn unanswered() -> ApiError {
    let secs = DELETE_WITHIN.as_secs();
    ApiError::Unavailable {
        reason: format!("a deletion was not answered within {secs} s"),
        id: RequestId::default(),
    }
}

// === impl Written ===

impl Written {
    /// What came of one batch; an error ends the work.
    fn take_in(
        &mut self,
        mut rows: Vec<TcpRow>,
        answer: Result<(), ApiError>,
        batches: &mut Vec<Vec<TcpRow>>,
    ) {
        match answer {
            Ok(()) => self.confirmed.append(&mut rows),
            Err(error) => self.error = self.halve(rows, error, batches).err(),
        }
    }

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

#[cfg(test)]
mod tests {
    use futures::future::{BoxFuture, FutureExt as _, pending, ready};

    use super::super::client::EventBytes;
    use super::*;
    use crate::plan::admission::RouterGroup;
    use crate::plan::{NO_TLS, Observed};
    use crate::route::RouterPort;
    use crate::uaa::UaaError;

    /// Answers nothing at all.
    struct Silent;

    impl RoutingApi for Silent {
        fn router_groups(&self) -> BoxFuture<'_, Result<Vec<RouterGroup>, ApiError>> {
            pending().boxed()
        }

        fn list(&self) -> BoxFuture<'_, Result<Observed, ApiError>> {
            pending().boxed()
        }

        fn events(&self) -> BoxFuture<'_, Result<EventBytes, ApiError>> {
            pending().boxed()
        }

        fn create<'a>(
            &'a self,
            _rows: &'a [TcpRow],
            _instance: &'a InstanceId,
            _ttl: Duration,
        ) -> BoxFuture<'a, Result<(), ApiError>> {
            pending().boxed()
        }

        fn delete<'a>(&'a self, _rows: &'a [TcpRow]) -> BoxFuture<'a, Result<(), ApiError>> {
            pending().boxed()
        }

        fn renew_token(&self) -> BoxFuture<'_, Result<(), UaaError>> {
            ready(Ok(())).boxed()
        }

        fn renew_token_in(&self) -> Option<Duration> {
            None
        }

        fn missing_scopes(&self) -> Vec<&'static str> {
            Vec::new()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_deletion_that_nobody_answers_is_given_up_within_the_leases_margin() {
        let row = TcpRow {
            port: RouterPort::new(2000).unwrap(),
            ip: "10.0.0.1".to_owned(),
            backend_port: 32000,
            tls_port: NO_TLS,
            sni: None,
            group: "g".to_owned(),
        };
        let clock = Clock::start();
        let written = delete(&Silent, vec![row], &Roles::alone(), clock).await;
        assert!(clock.now() < Duration::from_secs(5));
        assert!(written.confirmed.is_empty() && written.refused.is_empty());
        assert!(matches!(written.error, Some(ApiError::Unavailable { .. })));
    }
}
