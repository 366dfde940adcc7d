use serde_json::json;
use wiremock::matchers::{body_string_contains, header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;
use crate::config::TlsConfig;

async fn uaa(answer: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .and(path("/oauth/token"))
        .respond_with(answer)
        .mount(&server)
        .await;
    server
}

fn token(life: Option<i64>) -> ResponseTemplate {
    let mut body = json!({"access_token": "t", "token_type": "bearer", "scope": "routing.routes.read uaa.none"});
    if let Some(life) = life {
        body["expires_in"] = life.into();
    }
    ResponseTemplate::new(200).set_body_json(body)
}

/// Gives this one token and is out of order from then on.
async fn uaa_that_fails_after(token: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .respond_with(token)
        .up_to_n_times(1)
        .mount(&server)
        .await;
    Mock::given(method("POST"))
        .respond_with(ResponseTemplate::new(503))
        .mount(&server)
        .await;
    server
}

fn source(server: &MockServer, secret: &str) -> TokenSource {
    source_with(server, Secret::new(secret.to_owned()))
}

fn source_with(server: &MockServer, client_secret: Secret) -> TokenSource {
    TokenSource::new(&UaaConfig {
        url: server.uri(),
        client_id: "id:+&".to_owned(),
        client_secret,
        tls: TlsConfig::default(),
    })
    .unwrap()
}

async fn asked(server: &MockServer) -> usize {
    server.received_requests().await.unwrap().len()
}

#[tokio::test]
async fn credentials_travel_in_the_form_body_and_no_scope_is_asked_for() {
    let server = MockServer::start().await;
    Mock::given(header("content-type", "application/x-www-form-urlencoded"))
        .and(body_string_contains("grant_type=client_credentials"))
        .and(body_string_contains("client_id=id%3A%2B%26"))
        .and(body_string_contains("client_secret=p+%2B%25%26"))
        .respond_with(token(Some(600)))
        .mount(&server)
        .await;
    assert_eq!(
        source(&server, "p +%&").token().await.unwrap().expose(),
        "t"
    );
    let request = &server.received_requests().await.unwrap()[0];
    assert!(!request.headers.contains_key("authorization"));
    assert!(!String::from_utf8_lossy(&request.body).contains("scope"));
}

#[tokio::test]
async fn many_who_ask_at_once_cost_one_request() {
    let server = uaa(token(Some(600)).set_delay(Duration::from_millis(100))).await;
    let source = source(&server, "s");
    let tokens = futures::future::join_all((0..20).map(|_| source.token())).await;
    assert!(tokens.iter().all(Result::is_ok));
    assert_eq!(asked(&server).await, 1);
}

#[tokio::test]
async fn a_refused_token_is_replaced_once_however_many_say_so() {
    let server = MockServer::start().await;
    for text in ["first", "second"] {
        let answer = json!({"access_token": text, "token_type": "bearer", "expires_in": 600});
        Mock::given(method("POST"))
            .respond_with(ResponseTemplate::new(200).set_body_json(answer))
            .up_to_n_times(1)
            .mount(&server)
            .await;
    }
    let source = source(&server, "s");
    let refused = source.token().await.unwrap();
    let replaced = futures::future::join_all((0..20).map(|_| source.replace(&refused))).await;
    assert!(
        replaced
            .iter()
            .all(|token| token.as_ref().unwrap().expose() == "second")
    );
    assert_eq!(asked(&server).await, 2);
}

#[tokio::test]
async fn a_refused_token_that_cannot_be_replaced_goes_on_serving() {
    // It may lack one scope and be good for the rest.
    let server = uaa_that_fails_after(token(Some(600))).await;
    let source = source(&server, "s");
    let refused = source.token().await.unwrap();
    assert!(matches!(
        source.replace(&refused).await,
        Err(UaaError::Status { status: 503, .. })
    ));
    assert_eq!(source.token().await.unwrap(), refused);
}

#[tokio::test]
async fn missing_scopes_are_named() {
    let server = uaa(token(None)).await;
    let source = source(&server, "s");
    let token = source.token().await.unwrap();
    assert_eq!(
        token.missing_scopes(),
        ["routing.router_groups.read", "routing.routes.write"]
    );
    assert_eq!(source.missing_scopes(), token.missing_scopes());
    let life = source.renew_in().unwrap();
    assert!(
        life > Duration::from_secs(200) && life <= Duration::from_mins(4),
        "{life:?}"
    );
}

#[tokio::test]
async fn a_failed_renewal_leaves_the_old_token_serving() {
    let server = uaa_that_fails_after(token(Some(4))).await;
    let source = source(&server, "s");
    source.token().await.unwrap();
    tokio::time::sleep(source.renew_in().unwrap()).await;
    // A life of 4 s is usable for 2 s; what is renewed at once is still good when it fails.
    source.lock().current.as_mut().unwrap().usable_until += Duration::from_mins(1);
    assert!(matches!(
        source.renew().await,
        Err(UaaError::Status { status: 503, .. })
    ));
    assert!(source.token().await.is_ok());
}

#[tokio::test]
async fn every_bad_answer_has_its_kind_and_its_wait() {
    let text = |status, body: &str| ResponseTemplate::new(status).set_body_string(body);
    let refused = json!({"error": "unauthorized", "error_description": "Bad credentials"});
    type Check = fn(&UaaError) -> bool;
    let cases: [(ResponseTemplate, Check, u64); 8] = [
        (
            ResponseTemplate::new(401).set_body_json(refused),
            |e| matches!(e, UaaError::Refused { status: 401, error, .. } if error == "unauthorized"),
            30,
        ),
        (
            text(429, "<html>"),
            |e| matches!(e, UaaError::Status { status: 429, .. }),
            10,
        ),
        (
            text(429, "").insert_header("retry-after", "77"),
            |e| {
                matches!(
                    e,
                    UaaError::Status {
                        retry_after: Some(_),
                        ..
                    }
                )
            },
            77,
        ),
        (
            text(503, ""),
            |e| matches!(e, UaaError::Status { status: 503, .. }),
            0,
        ),
        (
            text(302, ""),
            |e| matches!(e, UaaError::Status { status: 302, .. }),
            0,
        ),
        (
            text(200, "<html>"),
            |e| matches!(e, UaaError::Unreadable { status: 200, .. }),
            0,
        ),
        (
            token(Some(-1)),
            |e| matches!(e, UaaError::Unreadable { status: 200, .. }),
            0,
        ),
        (
            text(200, &"x".repeat(BODY_MAX + 1)),
            |e| matches!(e, UaaError::Unreadable { .. }),
            0,
        ),
    ];
    for (answer, check, wait) in cases {
        let server = uaa(answer).await;
        let source = source(&server, "hush");
        let error = source.token().await.unwrap_err();
        assert!(check(&error), "{error:?}");
        assert_eq!(
            error.wait().unwrap_or_default(),
            Duration::from_secs(wait),
            "{error:?}"
        );
        assert!(!format!("{error:?} {error}").contains("hush"));
        // The next who asks is told the same without a request.
        source.token().await.unwrap_err();
        assert_eq!(asked(&server).await, 1, "{error:?}");
    }
}

#[tokio::test]
async fn a_secret_that_changes_is_taken_at_the_next_request() {
    let server = uaa(token(Some(600))).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, "old\n").unwrap();
    let source = source_with(&server, Secret::read(&file).unwrap());
    let token = source.token().await.unwrap();
    std::fs::write(&file, "new\n").unwrap();
    let token = source.replace(&token).await.unwrap();
    std::fs::remove_file(&file).unwrap();
    source.replace(&token).await.unwrap();
    let bodies: Vec<_> = server.received_requests().await.unwrap();
    assert!(String::from_utf8_lossy(&bodies[0].body).contains("client_secret=old"));
    assert!(String::from_utf8_lossy(&bodies[1].body).contains("client_secret=new"));
    assert!(String::from_utf8_lossy(&bodies[2].body).contains("client_secret=new"));
}

#[tokio::test]
async fn a_refused_client_whose_secret_changes_need_not_wait() {
    let server = MockServer::start().await;
    Mock::given(body_string_contains("client_secret=new"))
        .respond_with(token(Some(600)))
        .mount(&server)
        .await;
    Mock::given(body_string_contains("client_secret=old"))
        .respond_with(ResponseTemplate::new(401).set_body_json(json!({"error": "unauthorized"})))
        .mount(&server)
        .await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, "old").unwrap();
    let source = source_with(&server, Secret::read(&file).unwrap());
    for _ in 0..3 {
        source.token().await.unwrap_err();
    }
    assert_eq!(
        asked(&server).await,
        1,
        "the same secret is not tried again"
    );
    std::fs::write(&file, "new").unwrap();
    assert!(source.token().await.is_ok());
}

#[tokio::test]
async fn without_uaa_a_token_serves_to_its_very_end() {
    let server = uaa_that_fails_after(token(Some(600))).await;
    let source = source(&server, "s");
    let token = source.token().await.unwrap();
    source.lock().current.as_mut().unwrap().usable_until = Instant::now();
    assert_eq!(source.token().await.unwrap(), token);
    source.lock().current.as_mut().unwrap().ends_at = Instant::now();
    assert!(source.token().await.is_err());
}

#[tokio::test]
async fn a_life_of_nothing_is_no_hot_loop_and_an_endless_one_no_panic() {
    for (life, renew) in [
        (0, Duration::from_millis(500)),
        (60, Duration::from_secs(25)),
        (61, Duration::from_secs(25)),
        (i64::MAX, Duration::from_hours(1)),
    ] {
        let server = uaa(token(Some(life))).await;
        let source = source(&server, "s");
        source.token().await.unwrap();
        let renew_in = source.renew_in().unwrap();
        assert!(renew_in > renew, "{life}: {renew_in:?}");
    }
}

#[tokio::test]
async fn of_a_long_refusal_only_the_beginning_is_repeated() {
    let text = "x".repeat(60_000);
    let body = json!({"error": "unauthorized", "error_description": text});
    let server = uaa(ResponseTemplate::new(401).set_body_json(body)).await;
    let error = source(&server, "s").token().await.unwrap_err().to_string();
    assert!(error.len() < 400, "{} characters", error.len());
    assert!(error.contains("unauthorized"));
}
