//! UAA 4.30 as measured, asked with plain HTTP.

use sandbox::tls::{self, Ca};
use sandbox::uaa::{Client, Failure, Uaa, UaaOptions};
use serde_json::{Value, json};

const ALL: &[&str] = &["routing.routes.read", "routing.routes.write"];

async fn start() -> Uaa {
    let options = UaaOptions {
        addr: "127.0.0.1:0".parse().unwrap(),
        tls: None,
        clients: vec![
            Client::new("route-sync", "s3cret", ALL),
            Client::new("odd:id", "a+b&c%d e", ALL),
        ],
    };
    Uaa::start(options).await.unwrap()
}

async fn ask(uaa: &Uaa, form: &str) -> (u16, Value) {
    let client = tls::http_client(None, None);
    let request = client
        .post(format!("{}/oauth/token", uaa.url()))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form.to_owned());
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    (status, response.json().await.unwrap_or_default())
}

async fn ask_basic(uaa: &Uaa, id: &str, secret: &str) -> u16 {
    let request = tls::http_client(None, None)
        .post(format!("{}/oauth/token", uaa.url()))
        .basic_auth(id, Some(secret))
        .header("content-type", "application/x-www-form-urlencoded")
        .body("grant_type=client_credentials");
    request.send().await.unwrap().status().as_u16()
}

const GOOD: &str = "grant_type=client_credentials&client_id=route-sync&client_secret=s3cret";

#[tokio::test]
async fn a_token_names_its_scopes_and_lives_one_second_less_than_its_validity() {
    let uaa = start().await;
    let (status, token) = ask(&uaa, GOOD).await;
    assert_eq!(status, 200);
    assert_eq!(token["token_type"], "bearer");
    assert_eq!(token["expires_in"], 43_199);
    assert_eq!(token["scope"], "routing.routes.read routing.routes.write");
    assert!(token["jti"].is_string());
    assert_eq!(
        token["access_token"].as_str().unwrap().split('.').count(),
        3
    );
    assert_eq!(uaa.token_requests(), 1);
}

#[tokio::test]
async fn wrong_secret_and_unknown_client_are_told_alike() {
    let uaa = start().await;
    for form in [
        GOOD.replace("s3cret", "wrong"),
        GOOD.replace("route-sync", "who"),
    ] {
        let (status, body) = ask(&uaa, &form).await;
        assert_eq!(status, 401);
        let told = json!({"error": "unauthorized", "error_description": "Bad credentials"});
        assert_eq!(body, told);
    }
}

#[tokio::test]
async fn a_scope_the_client_has_not_is_400_and_lists_those_it_has() {
    let uaa = start().await;
    let (status, body) = ask(&uaa, &format!("{GOOD}&scope=cloud_controller.admin")).await;
    assert_eq!((status, &body["error"]), (400, &json!("invalid_scope")));
    assert_eq!(body["scope"], "routing.routes.read routing.routes.write");
    let (status, body) = ask(&uaa, &format!("{GOOD}&scope=routing.routes.read")).await;
    assert_eq!(
        (status, &body["scope"]),
        (200, &json!("routing.routes.read"))
    );
}

#[tokio::test]
async fn an_id_with_a_colon_passes_in_the_form_only() {
    let uaa = start().await;
    assert_eq!(ask_basic(&uaa, "route-sync", "s3cret").await, 200);
    assert_eq!(ask_basic(&uaa, "odd:id", "a+b&c%d e").await, 401);
    assert_eq!(ask_basic(&uaa, "odd%3Aid", "a%2Bb%26c%25d+e").await, 401);
    let form = "grant_type=client_credentials&client_id=odd%3Aid&client_secret=a%2Bb%26c%25d+e";
    assert_eq!(ask(&uaa, form).await.0, 200);
}

#[tokio::test]
async fn two_secrets_are_good_while_both_are_set_and_rights_can_change() {
    let uaa = start().await;
    uaa.set_secrets("route-sync", &["s3cret", "next"]);
    assert_eq!(ask(&uaa, GOOD).await.0, 200);
    assert_eq!(ask(&uaa, &GOOD.replace("s3cret", "next")).await.0, 200);
    uaa.set_secrets("route-sync", &["next"]);
    assert_eq!(ask(&uaa, GOOD).await.0, 401);
    uaa.set_authorities("route-sync", &["routing.routes.read"]);
    let (_, token) = ask(&uaa, &GOOD.replace("s3cret", "next")).await;
    assert_eq!(token["scope"], "routing.routes.read");
}

#[tokio::test]
async fn the_key_rotates_and_only_the_active_one_is_shown() {
    let uaa = start().await;
    let client = tls::http_client(None, None);
    let key = async || {
        let url = format!("{}/token_key", uaa.url());
        client
            .get(url)
            .send()
            .await
            .unwrap()
            .json::<Value>()
            .await
            .unwrap()
    };
    let before = key().await;
    assert!(
        before["value"]
            .as_str()
            .unwrap()
            .starts_with("-----BEGIN PUBLIC KEY-----")
    );
    uaa.rotate_key().await.unwrap();
    let after = key().await;
    assert_ne!(before["value"], after["value"]);
    assert_ne!(before["kid"], after["kid"]);
}

#[tokio::test]
async fn it_fails_as_told_and_comes_back_on_the_same_address() {
    let uaa = start().await;
    let failure = Failure::Status(
        429,
        "slow down".into(),
        vec![("Retry-After".into(), "3".into())],
    );
    uaa.fail_with(Some(failure));
    assert_eq!(ask(&uaa, GOOD).await.0, 429);
    uaa.fail_with(None);
    uaa.stop().await;
    let refused = tls::http_client(None, None).get(uaa.url()).send().await;
    assert!(refused.unwrap_err().is_connect());
    uaa.start_again().await.unwrap();
    assert_eq!(ask(&uaa, GOOD).await.0, 200);
}

#[tokio::test]
async fn over_https_the_issuer_is_the_token_endpoint() {
    let ca = Ca::new("uaa-ca");
    let options = UaaOptions {
        addr: "127.0.0.1:0".parse().unwrap(),
        tls: Some(ca.issue(&["127.0.0.1"], false)),
        clients: Vec::new(),
    };
    let uaa = Uaa::start(options).await.unwrap();
    let url = format!("{}/.well-known/openid-configuration", uaa.url());
    let trusting = tls::http_client(Some(ca.pem()), None);
    let document: Value = trusting
        .get(&url)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(document["issuer"], format!("{}/oauth/token", uaa.url()));
    assert!(tls::http_client(None, None).get(&url).send().await.is_err());
}
