//! The contract: statements about the programs that route-sync speaks to, on which the sandbox and
//! the real programs must agree.
//!
//! A statement is one test. [`agree`] runs the same closure on the sandbox's program and on the
//! real one, and fails with what either has against it. Where a handed-in program is absent the
//! statement is written down as not confirmed, which is a skip and never a pass. A statement that
//! holds for some versions only says so in its text.
//!
//! The controller takes no part. Run through `tests/counterparts/private-network`.

mod apiserver;
mod gorouter;
mod haproxy;
mod nats;
mod route_ends;
mod routes;
mod routing_api;
mod tcp_router;
mod uaa;
mod watches;
mod world;

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use counterparts::{handed_in, not_confirmed};
use futures::FutureExt;
use reqwest::header::HeaderMap;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use world::World;

/// Far more than any answer takes; only a program that hangs is waited for as long.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Whose program a statement is put to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Sandbox,
    Real,
}

/// One program as a statement sees it, on either side.
pub trait UnderTest: Sized {
    /// What the real side needs that no registry has.
    const HANDED_IN: &'static [&'static str] = &[];

    fn on(world: &'static World, side: Side) -> impl Future<Output = Self>;
}

/// An answer over HTTP, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

/// Puts a statement to the sandbox's program and to the real one.
pub fn agree<P: UnderTest>(statement: &str, check: impl AsyncFn(&P)) {
    static RUNTIME: LazyLock<Runtime> =
        LazyLock::new(|| Runtime::new().expect("a runtime must start"));
    static WORLD: LazyLock<World> = LazyLock::new(|| {
        RUNTIME
            .block_on(World::start())
            .expect("the programs must start")
    });
    static TURN: Mutex<()> = Mutex::new(());

    // Statements share programs and ports: one at a time, however many threads there are.
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let world: &'static World = &WORLD;
    let absent = P::HANDED_IN.iter().filter(|name| handed_in(name).is_none());
    let absent: Vec<&&str> = absent.collect();
    let mut objections = Vec::new();
    for side in [Side::Sandbox, Side::Real] {
        if side == Side::Real && !absent.is_empty() {
            absent
                .iter()
                .for_each(|program| not_confirmed(program, statement));
            continue;
        }
        let began = Instant::now();
        let outcome = AssertUnwindSafe(async { check(&P::on(world, side).await).await });
        if let Err(panic) = RUNTIME.block_on(outcome.catch_unwind()) {
            objections.push(format!("{side:?}: {}", told(panic.as_ref())));
        }
        println!("{side:?}: {:.1} s", began.elapsed().as_secs_f32());
    }
    assert!(
        objections.is_empty(),
        "{statement}\n{}",
        objections.join("\n")
    );
}

fn told(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a text")
}

// === impl Answer ===

impl Answer {
    pub async fn to(request: reqwest::RequestBuilder) -> Self {
        let answer = request
            .timeout(ANSWER_WITHIN)
            .send()
            .await
            .expect("it must answer");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let text = answer
            .text()
            .await
            .expect("the answer must come to its end");
        Self {
            status,
            headers,
            text,
        }
    }

    /// Null where the body is no JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// Empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }
}
