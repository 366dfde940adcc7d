//! What a registration reads, and what it leaves alone.

use serde_json::json;
use wiremock::ResponseTemplate;

use serde_json::Value;

use super::{SCOPES, Told, World, answer};

/// What is said of a UAA without TLS.
const CLEAR: &str = "warning: `uaa.url` is http: the client secret travels in clear text\n";
/// Of a client that an earlier registration made.
const MARK: &str = "route-sync register-uaa-client";

impl World {
    /// Registers the client; every run first says that this UAA is one without TLS.
    async fn register(&self, more: &[&str]) -> Told {
        let arguments = ["register-uaa-client", "--admin-client-id", "admin"];
        let file = ["--admin-client-secret-file", "admin"];
        let (code, stdout, stderr) = self.run(&[&arguments[..], &file, more].concat()).await;
        let stderr = stderr.strip_prefix(CLEAR).map(str::to_owned);
        (code, stdout, stderr.unwrap())
    }
}

#[tokio::test]
async fn a_registration_without_rights_or_against_somebody_elses_haste_changes_nothing() {
    const CLIENT: &str = "/oauth/clients/us";
    let forbidden =
        json!({"error": "insufficient_scope", "error_description": "Insufficient scope"});
    let world = World::new().await;
    world.says("GET", CLIENT, answer(403, forbidden)).await;
    let (code, stdout, stderr) = world.register(&[]).await;
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert_eq!(
        stderr,
        "error: cannot read the client `us`: the administrator's client may not do it: Insufficient scope; hint: it \
         needs `clients.admin`\n"
    );

    let exists =
        json!({"error": "invalid_client", "error_description": "Client already exists: us"});
    let world = World::new().await;
    world.says("GET", CLIENT, ResponseTemplate::new(404)).await;
    world
        .says("POST", "/oauth/clients", answer(409, exists))
        .await;
    let (code, _, stderr) = world.register(&[]).await;
    assert_eq!(code, 1);
    let told = "error: cannot make the client `us`: UAA answers with status 409: Client already exists: us\n";
    assert_eq!(stderr, told);
    assert_eq!(
        world.asked("POST").await.len(),
        2,
        "a token and the client, each once"
    );

    let world = World::new().await;
    world
        .says("GET", CLIENT, answer(200, json!({"client_id": "them"})))
        .await;
    let (code, _, stderr) = world.register(&[]).await;
    assert!(
        code == 1 && stderr.contains("it is about another client"),
        "{stderr}"
    );
    assert_eq!(world.asked("PUT").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_client_that_logs_users_in_is_somebody_elses_whatever_it_may_do() {
    let world = World::new().await;
    let client = json!({
        "client_id": "us", "authorities": ["uaa.none"], "authorized_grant_types": ["password", "refresh_token"],
    });
    world
        .says("GET", "/oauth/clients/us", answer(200, client))
        .await;
    let (code, _, stderr) = world.register(&[]).await;
    assert_eq!(code, 1);
    let told =
        "error: the client `us` has `password`, `refresh_token` as well, so it is somebody else's";
    assert!(stderr.starts_with(told), "{stderr}");
    let (code, _, stderr) = world.register(&["--take-over"]).await;
    assert!(code == 1 && stderr.starts_with(told), "{stderr}");
    assert_eq!(world.asked("PUT").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_client_that_another_made_is_changed_only_where_that_is_asked_for() {
    const CLIENT: &str = "/oauth/clients/us";
    let world = World::new().await;
    // The least of cf-deployment's own ones, and one that is right but for its maker.
    for (authorities, validity) in [(&SCOPES[..26], 43200), (SCOPES, 600)] {
        let client = json!({
            "client_id": "us", "authorities": authorities.split(' ').collect::<Vec<_>>(),
            "authorized_grant_types": ["client_credentials"], "access_token_validity": validity,
            "name": "Router groups",
        });
        world.says("GET", CLIENT, answer(200, client)).await;
        let (code, stdout, stderr) = world.register(&[]).await;
        assert_eq!((code, stdout.as_str()), (1, ""));
        let told = "error: the client `us` was made by somebody else and stays as it is; hint: choose another \
                    `uaa.client_id`, or say `--take-over` if nobody else uses it\n";
        assert_eq!(stderr, told);
    }
    assert_eq!(world.asked("PUT").await, Vec::<String>::new());
    let logins = world.asked("POST").await;
    assert_eq!(logins.len(), 2, "nobody but the administrator logs in");

    let client = json!({
        "client_id": "us", "authorities": ["routing.routes.read"], "name": "Router groups",
        "authorized_grant_types": ["client_credentials"], "access_token_validity": 600,
    });
    let world = World::new().await;
    world.says("GET", CLIENT, answer(200, client)).await;
    world.says("PUT", CLIENT, answer(200, json!({}))).await;
    let (code, stdout, stderr) = world.register(&["--take-over"]).await;
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stdout.starts_with("client `us` updated: authorities, managed_by\n"),
        "{stdout}"
    );
    let requests = world.servers.received_requests().await.unwrap();
    let put = requests.iter().find(|request| request.method == "PUT");
    let put: Value = put.unwrap().body_json().unwrap();
    assert_eq!(
        (&put["name"], &put["managed_by"]),
        (&json!("Router groups"), &json!(MARK))
    );
}

#[tokio::test]
async fn a_registration_reads_its_own_group_and_tells_every_mistake_of_it() {
    let world = World::new().await;
    world.configure(|config| {
        config["kubernetes"] = json!({"kubeconfig": "absent"});
        config["nats"] = json!(7);
    });
    let client = json!({
        "client_id": "us", "authorities": SCOPES.split(' ').collect::<Vec<_>>(),
        "authorized_grant_types": ["client_credentials"], "access_token_validity": 600,
        "managed_by": MARK,
    });
    world
        .says("GET", "/oauth/clients/us", answer(200, client))
        .await;
    let (code, stdout, stderr) = world.register(&[]).await;
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stdout.starts_with("client `us` is as it should be, nothing changed\n"),
        "{stdout}"
    );
    let arguments = ["register-uaa-client", "--admin-client-id", "admin"];
    let json = ["--admin-client-secret-file", "admin", "--output", "json"];
    let (_, stdout, _) = world.run(&[arguments.as_slice(), &json].concat()).await;
    let told: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (&told["created"], &told["changed"]),
        (&json!(false), &json!([]))
    );

    world.configure(|config| config["uaa"] = json!({"url": "uaa", "client_secret": "hunter6"}));
    let (code, stdout, stderr) = world.run(&[&arguments[..], &json].concat()).await;
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(
        stderr.starts_with("error: 2 mistakes in the configuration"),
        "{stderr}"
    );
    let absent = ["--admin-client-secret-file", "absent"];
    let (code, _, stderr) = world.run(&[&arguments[..], &absent].concat()).await;
    assert!(
        code == 2 && stderr.contains("cannot read `absent`"),
        "{stderr}"
    );
}
