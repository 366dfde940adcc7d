//! What others register, word for word as a foundation's own clients say it: apps' endpoints by route-emitter, most of
//! them, and the platform's by route-registrar.
//!
//! Nothing is drawn: the same number is always the same endpoint, so that it can be said again.

use std::fmt::Write as _;

use crate::foundation::APP_DOMAIN;

/// route-emitter and route-registrar say everything again so often (gorouter's job's default).
pub const INTERVAL_SECONDS: u32 = 20;
/// Endpoints of one app.
const INSTANCES: u32 = 2;
/// One in so many is the platform's own, with several uris.
const PLATFORM: u32 = 50;
/// Containers on a cell; each cell has an address.
const CONTAINERS: u32 = 250;
const FIRST_CONTAINER_PORT: u32 = 61_000;

/// The registration of endpoint `number`.
pub fn registration(number: u32) -> String {
    if number.is_multiple_of(PLATFORM) {
        return platform(number);
    }
    let (app, instance) = (number / INSTANCES, number % INSTANCES);
    let [_, _, a, b] = (number / CONTAINERS).to_be_bytes();
    let port = FIRST_CONTAINER_PORT + number % CONTAINERS * 8;
    let (guid, space) = (guid(1, app), guid(2, app / 20));
    let (organization, container) = (self::guid(3, app / 200), self::guid(4, number));
    let mut text = String::with_capacity(1200);
    // The order and the fields are route-emitter's of 2025-07.
    let _ = write!(
        text,
        concat!(
            r#"{{"host":"10.244.{a}.{b}","port":{port},"tls_port":{tls},"#,
            r#""uris":["app-{app}.{domain}"],"app":"{guid}","#,
            r#""private_instance_id":"{container}","private_instance_index":"{instance}","#,
            r#""server_cert_domain_san":"{container}","isolation_segment":"","protocol":"http1","#,
            r#""endpoint_updated_at_ns":17000000{number:011},"availability_zone":"z{zone}","#,
            r#""tags":{{"app_id":"{guid}","app_name":"app-{app}","component":"route-emitter","#,
            r#""instance_id":"{instance}","organization_id":"{organization}","#,
            r#""organization_name":"organization-{org}","process_id":"{guid}","#,
            r#""process_instance_id":"{container}","process_type":"web","source_id":"{guid}","#,
            r#""space_id":"{space}","space_name":"space-{sp}"}}}}"#,
        ),
        a = a,
        b = b,
        port = port,
        tls = port + 2,
        app = app,
        domain = APP_DOMAIN,
        guid = guid,
        container = container,
        instance = instance,
        number = number,
        zone = number % 3,
        organization = organization,
        org = app / 200,
        space = space,
        sp = app / 20,
    );
    text
}

fn platform(number: u32) -> String {
    let [_, _, a, b] = (number / CONTAINERS).to_be_bytes();
    format!(
        concat!(
            r#"{{"uris":["api-{number}.sys.example.test","*.login-{number}.sys.example.test","#,
            r#""uaa-{number}.sys.example.test/oauth"],"host":"10.0.{a}.{b}","tls_port":{port},"#,
            r#""private_instance_id":"{guid}","server_cert_domain_san":"api.service.cf.internal","#,
            r#""tags":{{"component":"CloudController"}}}}"#,
        ),
        number = number,
        a = a,
        b = b,
        port = 9000 + number % 250,
        guid = guid(5, number),
    )
}

fn guid(kind: u32, number: u32) -> String {
    let mixed = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
    format!(
        "{number:08x}-{kind:04x}-4{kind:03x}-9{:03x}-{mixed:012x}",
        number % 0xfff
    )
}
