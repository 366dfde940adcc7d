//! What happens to the cluster's Services and Nodes.

use crate::world::World;
use crate::world::cluster::{Key, Kind, NAMESPACES, Node, Object, Service, put};

use super::{HOSTS, port};

/// As many Services there are, labelled or not.
const SERVICES_MIN: usize = 2;
const SERVICES_MAX: usize = 8;
const NODES_MIN: usize = 2;
const NODES_MAX: usize = 4;

/// The cluster at the beginning.
pub fn populate(world: &mut World) {
    for _ in 0..world.rng.usize(3..=NODES_MAX) {
        add_node(world);
    }
    for _ in 0..world.rng.usize(SERVICES_MIN + 1..=SERVICES_MAX - 2) {
        create(world, None);
    }
}

/// One thing changes.
pub fn change(world: &mut World) {
    match world.rng.u32(..21) {
        0..=3 => create(world, None),
        4..=6 => delete(world),
        7..=11 => relabel(world),
        12 => another_node_port(world),
        13 => taken_over(world),
        14 => created_anew(world),
        15 => namespace(world),
        16 => add_node(world),
        17 => remove_node(world),
        18 => exchange_nodes(world),
        _ => node_changes(world),
    }
}

/// Every node is well.
pub fn calm(world: &mut World) {
    world.note(format_args!("calm"));
    world.cluster.gone.clear();
    for (key, node) in nodes(world) {
        if !node.ready {
            let node = Node {
                ready: true,
                ..node
            };
            put(world, key, Some(Object::Node(node)));
        }
    }
    for index in 0..world.nats.routers.len() {
        if !world.nats.routers[index].up {
            crate::world::nats::router_starts(world, index);
        }
    }
}

fn services(world: &World) -> Vec<(Key, Service)> {
    let services = world.cluster.services();
    services
        .map(|(key, service)| (key.clone(), service.clone()))
        .collect()
}

fn nodes(world: &World) -> Vec<(Key, Node)> {
    let nodes = world.cluster.nodes();
    nodes
        .map(|(key, node)| (key.clone(), node.clone()))
        .collect()
}

fn any<T>(world: &mut World, all: Vec<T>) -> Option<T> {
    let count = all.len();
    let pick = world.rng.usize(..count.max(1));
    all.into_iter().nth(pick)
}

fn labels(world: &mut World) -> (Option<String>, Option<u16>) {
    let rng = &mut world.rng;
    let host = format!("host-{}", rng.u32(..HOSTS));
    let port = port(rng);
    match rng.u32(..8) {
        0..=2 => (Some(host), None),
        3..=4 => (None, Some(port)),
        5..=6 => (Some(host), Some(port)),
        _ => (None, None),
    }
}

/// With a node port given or any that is free.
fn create(world: &mut World, node_port: Option<u16>) {
    let all = services(world);
    let alive = |namespace: &&'static str| !world.cluster.gone.contains(namespace);
    let namespaces: Vec<&'static str> = NAMESPACES.iter().filter(|it| alive(it)).copied().collect();
    let free = world.cluster.free_node_ports();
    let any_port = any(world, free);
    let (Some(namespace), Some(node_port)) = (any(world, namespaces), node_port.or(any_port))
    else {
        return;
    };
    // Names come again, as those of a rolled out chart do.
    let name = format!("service-{}", world.rng.u32(..SERVICES_MAX as u32));
    let key = (Kind::Service, namespace, name);
    if all.len() >= SERVICES_MAX || world.cluster.objects.contains_key(&key) {
        return;
    }
    let (host, port) = labels(world);
    let service = Service {
        uid: world.cluster.uid(),
        created: world.now(),
        host,
        port,
        node_port,
    };
    put(world, key, Some(Object::Service(service)));
}

fn delete(world: &mut World) {
    let all = services(world);
    if all.len() <= SERVICES_MIN {
        return;
    }
    if let Some((key, _)) = any(world, all) {
        put(world, key, None);
    }
}

fn relabel(world: &mut World) {
    let all = services(world);
    let Some((key, service)) = any(world, all) else {
        return;
    };
    let (host, port) = labels(world);
    let service = Service {
        host,
        port,
        ..service
    };
    put(world, key, Some(Object::Service(service)));
}

fn another_node_port(world: &mut World) {
    let (all, free) = (services(world), world.cluster.free_node_ports());
    let (Some((key, service)), Some(node_port)) = (any(world, all), any(world, free)) else {
        return;
    };
    let service = Service {
        node_port,
        ..service
    };
    put(world, key, Some(Object::Service(service)));
}

/// One goes, and its node port leads to another at once.
fn taken_over(world: &mut World) {
    let all = services(world);
    if let Some((key, service)) = any(world, all) {
        put(world, key, None);
        create(world, Some(service.node_port));
    }
}

/// The same name, another Service.
fn created_anew(world: &mut World) {
    let all = services(world);
    let Some((key, service)) = any(world, all) else {
        return;
    };
    put(world, key.clone(), None);
    let free = world.cluster.free_node_ports();
    let Some(node_port) = any(world, free) else {
        return;
    };
    let service = Service {
        uid: world.cluster.uid(),
        created: world.now(),
        node_port,
        ..service
    };
    put(world, key, Some(Object::Service(service)));
}

/// A namespace goes with all that is in it, and comes back empty.
fn namespace(world: &mut World) {
    let namespace = NAMESPACES[world.rng.usize(..NAMESPACES.len())];
    if !world.cluster.gone.is_empty() {
        world.cluster.gone.clear();
        return;
    }
    if world.rng.bool() {
        return;
    }
    world.note(format_args!("namespace {namespace} goes"));
    world.cluster.gone.push(namespace);
    for (key, _) in services(world) {
        if key.1 == namespace {
            put(world, key, None);
        }
    }
}

fn add_node(world: &mut World) {
    if nodes(world).len() < NODES_MAX {
        put_node(world);
    }
}

fn put_node(world: &mut World) {
    let uid = world.cluster.uid();
    let node = Node {
        uid,
        ip: format!("10.0.0.{}", uid % 250 + 1),
        ready: true,
        excluded: false,
    };
    put(
        world,
        (Kind::Node, "", format!("node-{uid}")),
        Some(Object::Node(node)),
    );
}

/// Not one of the last that serve.
fn spare(world: &mut World) -> Option<(Key, Node)> {
    let serving = nodes(world).into_iter().filter(|(_, node)| !node.excluded);
    let serving: Vec<_> = serving.collect();
    if serving.len() <= NODES_MIN {
        return None;
    }
    any(world, serving)
}

fn remove_node(world: &mut World) {
    if let Some((key, _)) = spare(world) {
        put(world, key, None);
    }
}

/// A pool is replaced by another: no node is as it was.
fn exchange_nodes(world: &mut World) {
    let old = nodes(world);
    for _ in 0..NODES_MIN {
        put_node(world);
    }
    for (key, _) in old {
        put(world, key, None);
    }
}

fn node_changes(world: &mut World) {
    let excludes = world.rng.u32(..4) == 0;
    let all = nodes(world);
    let (node, excluded) = if excludes {
        (spare(world), true)
    } else {
        (any(world, all), false)
    };
    if let Some((key, node)) = node {
        let ready = if excludes { node.ready } else { !node.ready };
        let node = Node {
            ready,
            excluded: excluded || node.excluded && world.rng.bool(),
            ..node
        };
        put(world, key, Some(Object::Node(node)));
    }
}
