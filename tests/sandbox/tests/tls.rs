//! Certificates: who is let in by whom.

use sandbox::listen::{Server, full};
use sandbox::tls::{self, Ca};

#[tokio::test]
async fn a_server_is_believed_by_its_name_and_ca_and_lets_in_its_own_clients_only() {
    let (ca, stranger) = (Ca::new("ca"), Ca::new("stranger"));
    let config = tls::server_config(&ca.issue(&["localhost"], false), Some(ca.pem()));
    let addr = "127.0.0.1:0".parse().unwrap();
    let answer = |_, _| async { http::Response::new(full("hello")) };
    let server = Server::http(addr, Some(config), answer).await.unwrap();
    let port = server.addr().port();
    let get = async |host: &str, client: reqwest::Client| {
        client.get(format!("https://{host}:{port}/")).send().await
    };
    let mine = ca.issue(&["client"], true);
    let known = tls::http_client(Some(ca.pem()), Some(&mine));
    assert!(get("localhost", known.clone()).await.is_ok());
    assert!(
        get("127.0.0.1", known).await.is_err(),
        "the name is not in the certificate"
    );
    let foreign = tls::http_client(Some(ca.pem()), Some(&stranger.issue(&["client"], true)));
    assert!(
        get("localhost", foreign).await.is_err(),
        "the certificate is another CA's"
    );
    let server_only = tls::http_client(Some(ca.pem()), Some(&ca.issue(&["client"], false)));
    assert!(
        get("localhost", server_only).await.is_err(),
        "its usage is a server's"
    );
    let doubting = tls::http_client(Some(stranger.pem()), Some(&mine));
    assert!(
        get("localhost", doubting).await.is_err(),
        "the server's CA is unknown"
    );
}

#[tokio::test]
async fn a_stopped_server_frees_its_address_at_once() {
    let addr = "127.0.0.1:0".parse().unwrap();
    let answer = |_, _| async { http::Response::new(full("hello")) };
    let first = Server::http(addr, None, answer).await.unwrap();
    let addr = first.addr();
    let client = tls::http_client(None, None);
    assert!(client.get(format!("http://{addr}/")).send().await.is_ok());
    first.stop().await;
    assert!(client.get(format!("http://{addr}/")).send().await.is_err());
    let _second = Server::http(addr, None, answer).await.unwrap();
    assert!(client.get(format!("http://{addr}/")).send().await.is_ok());
}
