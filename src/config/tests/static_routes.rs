//! Files of registrars.

use super::*;

const REGISTRAR: &str = "
uaa: {url: https://uaa.test, client_id: id, client_secret: hunter2}
routing_api: {url: https://api.test}
static_routes:
- name: kubernetes-api
  port: 6443
  backends: [10.0.0.5:8443]
  health: {url: https://127.0.0.1:8443/readyz}
";

fn static_routes(text: &str) -> Vec<StaticRoute> {
    match parse(text).unwrap_or_else(|error| panic!("{error}")).source {
        Source::Static(routes) => routes,
        Source::Cluster(_) => panic!("no static routes"),
    }
}

#[test]
fn static_routes_need_no_cluster_and_no_nats() {
    let config = parse(REGISTRAR).unwrap();
    assert_eq!(config.warnings, [""; 0]);
    let api = config.routing_api.unwrap();
    assert_eq!(api.on_foreign, OnForeign::Share);
    let routes = static_routes(REGISTRAR);
    let [route] = routes.as_slice() else {
        panic!("{routes:?}")
    };
    assert_eq!(
        (route.name.as_str(), route.port.get()),
        ("kubernetes-api", 6443)
    );
    assert_eq!(
        route.backends.iter().next().unwrap().to_string(),
        "10.0.0.5:8443"
    );
    let health = route.health.as_ref().unwrap();
    assert_eq!(health.interval, Duration::from_secs(5));
    let unwatched = REGISTRAR.replace("  health: {url: https://127.0.0.1:8443/readyz}\n", "");
    assert_eq!(static_routes(&unwatched)[0].health, None);
}

#[test]
fn a_registrar_is_known_by_its_routes_unless_somebody_chose_a_name() {
    let id = |text: &str| {
        let api = parse(text).unwrap().routing_api.unwrap();
        api.instance_id.unwrap().as_str().to_owned()
    };
    let ours = id(REGISTRAR);
    assert!(
        ours.starts_with("rs-") && ours.len() == "rs-".len() + 16,
        "{ours}"
    );
    assert_ne!(
        id(&REGISTRAR.replace("10.0.0.5", "10.0.0.6")),
        ours,
        "the next machine"
    );
    let with_id = |id: &str| {
        let api = "routing_api: {url: https://api.test";
        REGISTRAR.replace(api, &format!("{api}, instance_id: {id}"))
    };
    assert_eq!(id(&with_id("rs-1a2b3c4d-5e6f7a8b")), "rs-1a2b3c4d-5e6f7a8b");
    assert_eq!(id(&with_id(&"x".repeat(255))).len(), 255);
    for wrong in ["'a b'", "ü", &"x".repeat(256)] {
        let expect =
            "routing_api.instance_id: must be 1 to 255 visible ASCII characters without spaces";
        assert_eq!(mistakes(&with_id(wrong)), expect);
    }
}

#[test]
fn every_mistake_of_static_routes_is_reported_at_once() {
    let text = "
uaa: {url: https://uaa.test, client_id: id, client_secret: hunter2}
routing_api: {url: https://api.test}
static_routes:
- {name: API, port: 443, backends: [10.0.0.5]}
- {name: a, port: 6443, backends: ['10.0.0.5:0', 'api.test:8443']}
- {port: x, backends: []}
- name: b
  port: 6444
  backends: ['10.0.0.5:1', '10.0.0.5:1']
  health: {url: tcp://x, interval: 1ms, server_name: a_b, cert_file: c}
- {name: c, port: 6445, backends: ['10.0.0.5:1'], health: {server_name: x.test}}
- {name: d, port: 6446, backends: ['10.0.0.5:1']}
- {name: d, port: 6446, backends: ['10.0.0.6:1']}
- hunter2
";
    let expect = "\
static_routes[7]: must be a group of keys
static_routes[0].name: `API` is no name: up to 63 lower-case letters, digits and dashes
static_routes[0].port: must be 1024 or above, as no router group has others
static_routes[0].backends[0]: `10.0.0.5` is no address such as `10.0.0.5:8443`
static_routes[1].backends[0]: `10.0.0.5:0` is no address such as `10.0.0.5:8443`
static_routes[1].backends[1]: `api.test:8443` is no address such as `10.0.0.5:8443`
static_routes[2].port: `x` is no port number
static_routes[2].name: is missing
static_routes[2].backends: must name one to 100 addresses
static_routes[3].backends[1]: stands twice
static_routes[3].health.url: must start with `https://` (or `http://`)
static_routes[3].health.server_name: is no DNS name: it contains `_`; only letters, digits, dashes and dots may stand in a host
static_routes[3].health.key_file: is missing beside `cert_file`
static_routes[3].health.interval: must lie between 1s and 30s
static_routes[4].health.url: is missing
static_routes[4].health.ca_file: is missing beside `server_name`; hint: give the authority that signed the server's certificate
static_routes[6].name: is another static route's as well";
    let told = mistakes(text);
    assert!(told.starts_with(expect), "{told}");
    let refused = mistakes(&REGISTRAR.replace("6443", "70000"));
    assert_eq!(refused, "static_routes[0].port: `70000` is no port number");
}

#[test]
fn a_clusters_keys_cannot_stand_beside_static_routes() {
    for (group, key) in [
        ("kubernetes: {kubeconfig: /k}", "kubernetes"),
        ("nats: {servers: [{host: h}]}", "nats"),
        ("routes: {app_domain: apps.test}", "routes"),
        ("app_domain_name: apps.test", "app_domain_name"),
        ("leader_election: {enabled: false}", "leader_election"),
        ("tcp: {on_foreign_backend: hold}", "tcp"),
    ] {
        let told = mistakes(&format!("{REGISTRAR}{group}\n"));
        let expect = "cannot stand beside `static_routes`; hint: static routes need no cluster";
        assert!(told.starts_with(&format!("{key}: {expect}")), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
    for nothing in ["kubernetes:", "nats: {}"] {
        assert_eq!(mistakes(&format!("{REGISTRAR}{nothing}\n")), "");
    }
    let (common, _) = REGISTRAR.split_once("static_routes").unwrap();
    for none in ["static_routes: []", "static_routes:"] {
        let expect = "static_routes: must name one to 100 routes";
        assert_eq!(mistakes(&format!("{common}{none}\n")), expect);
    }
}

#[test]
fn a_health_question_that_anybody_may_answer_is_one_warning() {
    let health = |more: &str| {
        let text = REGISTRAR.replace("/readyz}", &format!("/readyz{more}}}"));
        parse(&text).unwrap().warnings
    };
    let told = health(", skip_tls_verification: true");
    assert!(
        told.len() == 1 && told[0].contains("static_routes[0].health.ca_file"),
        "{told:?}"
    );
    let plain = REGISTRAR.replace("https://127", "http://127");
    assert_eq!(
        parse(&plain).unwrap().warnings,
        [""; 0],
        "nothing secret travels"
    );
    let plain = plain.replace("/readyz}", "/readyz, token_file: /t}");
    assert_eq!(parse(&plain).unwrap().warnings.len(), 1);
}
