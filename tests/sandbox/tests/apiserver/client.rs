//! A plain HTTP client of the sandbox's apiserver, and the lines of a watch.

use std::time::Duration;

use reqwest::StatusCode;
use sandbox::apiserver::{ApiServer, ApiServerOptions, Rules, Token};
use serde_json::{Value, json};

/// Generous: the machine may be slow, and nothing is measured here.
const DEADLINE: Duration = Duration::from_secs(20);
pub const SERVICES: &str = "/api/v1/namespaces/default/services";

pub struct Client {
    pub server: ApiServer,
    pub http: reqwest::Client,
    pub token: &'static str,
}

impl Client {
    pub async fn start() -> Self {
        Self::with(ApiServerOptions::default()).await
    }

    pub async fn with(mut options: ApiServerOptions) -> Self {
        options.tokens.push(Token {
            token: "reader".into(),
            user: "route-sync".into(),
            rules: Rules::cluster(&["get", "list", "watch"], &["services", "nodes"]),
        });
        // reqwest is built without a provider of its own; a second installation is refused: fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let server = ApiServer::start(options).await.unwrap();
        Self {
            server,
            http: reqwest::Client::new(),
            token: "admin",
        }
    }

    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let url = format!("{}{path}", self.server.url());
        self.http.request(method, url).bearer_auth(self.token)
    }

    pub async fn send(&self, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
        let mut request = self.request(method.parse().unwrap(), path);
        if !body.is_null() {
            let patch = method == "PATCH" && body.is_object();
            let json_patch = method == "PATCH" && body.is_array();
            let content_type = match (patch, json_patch) {
                (true, _) => "application/merge-patch+json",
                (_, true) => "application/json-patch+json",
                _ => "application/json",
            };
            request = request
                .header("content-type", content_type)
                .body(body.to_string());
        }
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        (
            status,
            serde_json::from_str(&text).unwrap_or(Value::String(text)),
        )
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send("GET", path, Value::Null).await
    }

    pub async fn names(&self, path: &str) -> Vec<String> {
        let (status, list) = self.get(path).await;
        assert_eq!(status, 200, "{list}");
        let items = list["items"].as_array().unwrap();
        items
            .iter()
            .map(|i| i["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    }

    pub async fn service(&self, name: &str, labels: Value) -> Value {
        let (status, created) = self.send("POST", SERVICES, service(name, labels)).await;
        assert_eq!(status, 201, "{created}");
        created
    }

    pub async fn watch(&self, path: &str) -> Events {
        let response = self
            .request(reqwest::Method::GET, path)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        Events {
            response,
            buffer: Vec::new(),
        }
    }
}

/// The lines of a watch.
pub struct Events {
    response: reqwest::Response,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event; none at the end of the stream, an error where it breaks.
    pub async fn next(&mut self) -> Result<Option<Value>, reqwest::Error> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line).unwrap()));
            }
            let chunk = tokio::time::timeout(DEADLINE, self.response.chunk());
            match chunk.await.expect("the watch must say something")? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }

    pub async fn expect(&mut self, event: &str, name: &str) -> Value {
        let next = self.next().await.unwrap().expect("the watch must go on");
        assert_eq!(
            (&next["type"], &next["object"]["metadata"]["name"]),
            (&json!(event), &json!(name))
        );
        next["object"].clone()
    }
}

pub fn service(name: &str, labels: Value) -> Value {
    json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"type": "NodePort", "ports": [{"port": 80}]},
    })
}
