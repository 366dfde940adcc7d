//! The Lease, as the apiserver keeps it: a write names the version that it replaces. Who holds it stands here for the
//! judge as well.

use http::Method;
use serde_json::{Value, json};

use super::json::status;
use crate::Moment;
use crate::process::NAMES;
use crate::world::World;

const COLLECTION: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";

#[derive(Default)]
pub struct Lease {
    object: Option<Value>,
    version: u64,
    /// Which instance holds it, and since when.
    pub holder: Option<(usize, Moment)>,
    /// Until when nobody may read or write it.
    pub forbidden: Moment,
    /// Until when answers to writes are lost, and what they answer was done.
    pub unanswered: Moment,
}

/// Whether a path is about Leases.
pub fn is_at(path: &str) -> bool {
    path.starts_with(COLLECTION)
}

/// What is answered; nothing where the answer is lost.
pub fn answer(world: &mut World, method: &Method, path: &str, body: &[u8]) -> Option<(u16, Value)> {
    let now = world.now();
    let faults = &world.cluster.faults;
    if now < faults.broken.max(faults.all_empty) {
        return Some((500, status(500, "InternalError")));
    }
    let lease = &world.cluster.lease;
    if now < lease.forbidden {
        return Some((403, status(403, "Forbidden")));
    }
    let missing = Some((404, status(404, "NotFound")));
    let another = Some((409, status(409, "Conflict")));
    let creates = *method == Method::POST && path == COLLECTION;
    let stands = lease.object.as_ref();
    let sent: Value = serde_json::from_slice(body).unwrap_or_default();
    match stands {
        None if creates => {}
        None => return missing,
        Some(_) if creates => return another,
        Some(object) if *method == Method::GET => return Some((200, object.clone())),
        Some(object) => {
            let version = |value: &Value| value["metadata"]["resourceVersion"].clone();
            if version(&sent) != version(object) {
                return another;
            }
        }
    }
    let written = write(world, sent);
    (now >= world.cluster.lease.unanswered).then_some((200, written))
}

/// Somebody deletes it.
pub fn delete(world: &mut World) {
    world.cluster.lease.object = None;
    world.cluster.lease.holder = None;
    world.note(format_args!("the Lease is deleted"));
}

fn write(world: &mut World, mut object: Value) -> Value {
    let now = world.now();
    let lease = &mut world.cluster.lease;
    lease.version += 1;
    object["metadata"]["resourceVersion"] = json!(lease.version.to_string());
    lease.object = Some(object.clone());
    let holder = object["spec"]["holderIdentity"].as_str();
    let holder = NAMES.iter().position(|name| Some(*name) == holder);
    if holder != lease.holder.map(|(holder, _)| holder) {
        lease.holder = holder.map(|holder| (holder, now));
        let generation = &object["spec"]["leaseTransitions"];
        let name = holder.map_or("nobody", |holder| NAMES[holder]);
        world.note(format_args!(
            "the Lease is {name}'s, generation {generation}"
        ));
    }
    object
}
