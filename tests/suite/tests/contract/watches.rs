//! The apiserver's watches: what is told of a change, when, and how a watch ends.
//!
//! The real one is kube-apiserver 1.36 with etcd 3.6.

use counterparts::Program;
use counterparts::kube_apiserver::ADMIN_TOKEN;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::apiserver::{ApiserverUnderTest, LABEL, service};
use crate::{ANSWER_WITHIN, Side, agree};

/// The lines of one watch.
struct Watch {
    response: reqwest::Response,
    text: Vec<u8>,
}

// === impl ApiserverUnderTest ===

impl ApiserverUnderTest {
    async fn watch(&self, query: &str) -> Watch {
        let url = format!("{}{}?watch=true&{query}", self.url, self.services());
        let request = self
            .http
            .get(url)
            .bearer_auth(ADMIN_TOKEN)
            .timeout(ANSWER_WITHIN);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        Watch {
            response,
            text: Vec::new(),
        }
    }
}

// === impl Watch ===

impl Watch {
    /// The next event; none where the watch ends.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let chunk = timeout(ANSWER_WITHIN, self.response.chunk()).await;
            let chunk = chunk.expect("the watch must say something").unwrap();
            self.text.extend_from_slice(&chunk?);
        }
    }

    async fn expect(&mut self, event: &str, name: &str) -> Value {
        let next = self.next().await.expect("the watch must go on");
        let found = (&next["type"], &next["object"]["metadata"]["name"]);
        assert_eq!(found, (&json!(event), &json!(name)), "{next}");
        next["object"].clone()
    }
}

// === changes ===

#[test]
fn a_watch_from_a_revision_tells_what_came_after_it() {
    agree(
        "a watch from a revision tells what came after",
        async |server: &ApiserverUnderTest| {
            server.service("before", Value::Null).await;
            let revision = server.revision().await;
            let created = server.service("after", Value::Null).await;
            let mut watch = server.watch(&format!("resourceVersion={revision}")).await;
            let told = watch.expect("ADDED", "after").await;
            assert_eq!(told["metadata"]["uid"], created["metadata"]["uid"]);
            assert_eq!(
                (&told["kind"], &told["apiVersion"]),
                (&json!("Service"), &json!("v1"))
            );
            server.label("after", Some("1024")).await;
            let told = watch.expect("MODIFIED", "after").await;
            assert_eq!(told["metadata"]["labels"][LABEL], "1024");
            let path = format!("{}/after", server.services());
            assert_eq!(server.send("DELETE", &path, &Value::Null).await.status, 200);
            watch.expect("DELETED", "after").await;
        },
    );
}

#[test]
fn a_watch_without_a_revision_begins_with_what_is_there() {
    agree(
        "a watch without a revision begins with all",
        async |server: &ApiserverUnderTest| {
            server.service("a", Value::Null).await;
            for query in ["", "resourceVersion=0"] {
                let mut watch = server.watch(query).await;
                watch.expect("ADDED", "a").await;
            }
        },
    );
}

#[test]
fn an_object_that_leaves_a_selector_is_told_as_deleted_and_one_that_enters_as_added() {
    let statement = "with a selector, unlabelling is DELETED and labelling is ADDED";
    agree(statement, async |server: &ApiserverUnderTest| {
        server.service("in", json!({LABEL: "1024"})).await;
        server.service("out", Value::Null).await;
        let revision = server.revision().await;
        let query = format!("labelSelector={LABEL}&resourceVersion={revision}");
        let mut watch = server.watch(&query).await;
        server.label("in", None).await;
        let told = watch.expect("DELETED", "in").await;
        // The object as it was when it still matched, at the revision of its leaving.
        assert_eq!(told["metadata"]["labels"][LABEL], "1024");
        let path = format!("{}/in", server.services());
        let now = server.get(&path).await.json();
        assert_eq!(
            told["metadata"]["resourceVersion"],
            now["metadata"]["resourceVersion"]
        );
        server.label("out", Some("1025")).await;
        watch.expect("ADDED", "out").await;
        server.label("out", Some("1026")).await;
        watch.expect("MODIFIED", "out").await;
    });
}

#[test]
fn a_watch_that_allows_bookmarks_gets_one_before_its_time_is_up() {
    agree(
        "a bookmark comes before the watch's end",
        async |server: &ApiserverUnderTest| {
            let revision = server.revision().await;
            let query = format!("timeoutSeconds=12&resourceVersion={revision}");
            let mut watch = server
                .watch(&format!("{query}&allowWatchBookmarks=true"))
                .await;
            let mut unasked = server.watch(&query).await;
            // Elsewhere, so that the bookmark is the only word of it.
            let body = service("elsewhere", &Value::Null);
            let elsewhere = server
                .send("POST", "/api/v1/namespaces/default/services", &body)
                .await;
            assert_eq!(elsewhere.status, 201, "{}", elsewhere.text);
            let event = watch.next().await.expect("a bookmark must come");
            assert_eq!(event["type"], "BOOKMARK", "{event}");
            assert_eq!(event["object"]["kind"], "Service");
            assert!(event["object"]["metadata"]["name"].is_null(), "{event}");
            let told = event["object"]["metadata"]["resourceVersion"]
                .as_str()
                .unwrap();
            let number = |revision: &str| revision.parse::<u64>().unwrap();
            assert!(number(told) > number(&revision), "{told} after {revision}");
            while let Some(event) = watch.next().await {
                assert_eq!(event["type"], "BOOKMARK", "{event}");
            }
            assert_eq!(unasked.next().await, None);
            let path = "/api/v1/namespaces/default/services/elsewhere";
            assert_eq!(server.send("DELETE", path, &Value::Null).await.status, 200);
        },
    );
}

#[test]
fn a_watch_of_which_nothing_has_changed_gets_no_bookmark() {
    let statement = "while nothing changed since its beginning a watch gets no bookmark (1.36)";
    agree(statement, async |server: &ApiserverUnderTest| {
        let revision = server.revision().await;
        let query = format!("timeoutSeconds=4&resourceVersion={revision}");
        let mut watch = server
            .watch(&format!("{query}&allowWatchBookmarks=true"))
            .await;
        assert_eq!(watch.next().await, None);
    });
}

#[test]
fn a_watch_from_a_forgotten_revision_is_told_410_in_its_stream() {
    let statement = "a watch from a forgotten revision is 200 with an ERROR of 410, then ends";
    agree(statement, async |server: &ApiserverUnderTest| {
        server.service("a", Value::Null).await;
        match server.side {
            Side::Sandbox => server.world.sandbox.apiserver.compact(),
            // Its watch cache remembers what it saw itself, so a new process knows of nothing older.
            Side::Real => server
                .world
                .real
                .apiserver
                .lock()
                .await
                .restart()
                .await
                .unwrap(),
        }
        let mut watch = server.watch("resourceVersion=1").await;
        let event = watch.next().await.expect("an error must come");
        assert_eq!(event["type"], "ERROR", "{event}");
        let status = &event["object"];
        assert_eq!(
            (&status["kind"], &status["code"]),
            (&json!("Status"), &json!(410))
        );
        assert_eq!(status["reason"], "Expired");
        let message = status["message"].as_str().unwrap();
        assert!(
            message.starts_with("too old resource version: 1 ("),
            "{message}"
        );
        assert_eq!(watch.next().await, None);
    });
}
