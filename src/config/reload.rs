//! From one configuration to the next while the process runs: what may change, and what waits for a start.
//!
//! A key waits where it says which foundation or cluster this is (routes of another are none of ours), where it is
//! bound to what the process opened at its start, or where rows that live depend on the old value. Everything
//! else changes at once. Pure: who reads files and who proves that settings work is elsewhere.

use super::{
    ClusterConfig, Config, KeyPair, KubernetesConfig, LeaderElectionConfig, MetricsConfig,
    NatsConfig, RoutingApiConfig, Source,
};

/// Keys that take effect at the next start; one that ends in a dot stands for its whole group.
const AT_START: &[&str] = &[
    "static_routes[].",
    "kubernetes.",
    "routing_api.url",
    "routing_api.router_group",
    "routing_api.ttl",
    "routing_api.instance_id",
    "nats.send_app",
    "routes.app_domain",
    "tcp.enabled",
    "http.enabled",
    "leader_election.",
    "state.",
    "admin.",
    "metrics.",
    "log.format",
    "routing_api_url",
    "app_domain_name",
    "kube_config_path",
];

/// Whether a key takes effect at the next start only.
#[must_use]
pub fn at_start(path: &str) -> bool {
    AT_START.iter().any(|key| {
        let group = key.ends_with('.') && path.starts_with(key);
        group || *key == path
    })
}

/// Keys that differ and have to wait.
#[derive(Default)]
struct Waiting(Vec<&'static str>);

impl Waiting {
    /// Puts what runs back where the file says something else.
    fn keep<T: Clone + PartialEq>(&mut self, key: &'static str, runs: &T, file: &mut T) {
        if runs != file {
            self.0.push(key);
            file.clone_from(runs);
        }
    }

    /// The same for a lane, which is on or off; where it is on its own keys are looked at one by one.
    fn lane<T: Clone>(
        &mut self,
        key: &'static str,
        runs: Option<&T>,
        file: &mut Option<T>,
        each: impl FnOnce(&mut Self, &T, &mut T),
    ) {
        match (runs, &mut *file) {
            (Some(runs), Some(file)) => each(self, runs, file),
            (None, None) => {}
            (runs, _) => {
                self.0.push(key);
                *file = runs.cloned();
            }
        }
    }
}

// === impl Config ===

impl Config {
    /// What may run once `file` was read while `self` runs, and the keys that take effect at the next start.
    #[must_use]
    pub fn reloaded(&self, file: Self) -> (Self, Vec<&'static str>) {
        let mut next = file;
        let mut waiting = Waiting::default();
        // Exhaustive, so that a new key is decided here.
        let Self {
            source,
            uaa,
            routing_api,
            admin,
            metrics,
            log,
            state_dir,
            state_max_age,
            warnings: _,
            unknown_keys: _,
        } = self;
        if let (Source::Cluster(runs), Source::Cluster(file)) = (source, &mut next.source) {
            keep_cluster(&mut waiting, runs, file);
        } else {
            waiting.keep("static_routes", source, &mut next.source);
        }
        let was_on = routing_api.is_some();
        let is_on = next.routing_api.is_some();
        let api = routing_api.as_ref();
        waiting.lane("tcp.enabled", api, &mut next.routing_api, keep_routing_api);
        if was_on != is_on {
            next.uaa.clone_from(uaa);
        }
        waiting.keep("admin.listen", admin, &mut next.admin);
        let key = "metrics.listen";
        waiting.lane(key, metrics.as_ref(), &mut next.metrics, keep_metrics);
        waiting.keep("log.format", &log.format, &mut next.log.format);
        waiting.keep("state.dir", state_dir, &mut next.state_dir);
        waiting.keep("state.max_age", state_max_age, &mut next.state_max_age);
        if !waiting.0.is_empty()
            && let (Source::Cluster(runs), Source::Cluster(file)) = (source, &mut next.source)
        {
            // A host that is still in use stays reserved.
            let reserved = &mut file.routes.reserved_hosts;
            for host in &runs.routes.reserved_hosts {
                if !reserved.contains(host) {
                    reserved.push(host.clone());
                }
            }
        }
        (next, waiting.0)
    }
}

fn keep_cluster(waiting: &mut Waiting, runs: &ClusterConfig, file: &mut ClusterConfig) {
    let ClusterConfig {
        kubernetes,
        nats,
        routes,
        leader_election,
    } = runs;
    keep_kubernetes(waiting, kubernetes, &mut file.kubernetes);
    waiting.lane("http.enabled", nats.as_ref(), &mut file.nats, keep_nats);
    if routes.app_domain == file.routes.app_domain {
        file.routes.state_survives = routes.state_survives;
    } else {
        // Every other key of these groups is read in its light.
        waiting.0.push("routes.app_domain");
        file.routes.clone_from(routes);
    }
    waiting.lane(
        "leader_election.enabled",
        leader_election.as_ref(),
        &mut file.leader_election,
        keep_leader_election,
    );
}

fn keep_kubernetes(waiting: &mut Waiting, runs: &KubernetesConfig, file: &mut KubernetesConfig) {
    let KubernetesConfig {
        kubeconfig,
        rescan_interval,
        poll_interval,
        proxy_url,
        cluster_id,
    } = runs;
    waiting.keep("kubernetes.kubeconfig", kubeconfig, &mut file.kubeconfig);
    let key = "kubernetes.rescan_interval";
    waiting.keep(key, rescan_interval, &mut file.rescan_interval);
    let key = "kubernetes.poll_interval";
    waiting.keep(key, poll_interval, &mut file.poll_interval);
    waiting.keep("kubernetes.proxy_url", proxy_url, &mut file.proxy_url);
    waiting.keep("kubernetes.cluster_id", cluster_id, &mut file.cluster_id);
}

fn keep_routing_api(waiting: &mut Waiting, runs: &RoutingApiConfig, file: &mut RoutingApiConfig) {
    let RoutingApiConfig {
        url,
        router_group,
        router_group_is_default,
        ttl,
        instance_id,
        // These change at once.
        reserved_ports: _,
        on_foreign: _,
        tls: _,
    } = runs;
    waiting.keep("routing_api.url", url, &mut file.url);
    let is_default = *router_group_is_default;
    if (router_group, is_default) != (&file.router_group, file.router_group_is_default) {
        waiting.0.push("routing_api.router_group");
        file.router_group.clone_from(router_group);
        file.router_group_is_default = is_default;
    }
    waiting.keep("routing_api.ttl", ttl, &mut file.ttl);
    let key = "routing_api.instance_id";
    waiting.keep(key, instance_id, &mut file.instance_id);
}

fn keep_leader_election(
    waiting: &mut Waiting,
    runs: &LeaderElectionConfig,
    file: &mut LeaderElectionConfig,
) {
    let LeaderElectionConfig {
        name,
        namespace,
        identity,
    } = runs;
    waiting.keep("leader_election.name", name, &mut file.name);
    let key = "leader_election.namespace";
    waiting.keep(key, namespace, &mut file.namespace);
    waiting.keep("leader_election.identity", identity, &mut file.identity);
}

fn keep_metrics(waiting: &mut Waiting, runs: &MetricsConfig, file: &mut MetricsConfig) {
    let MetricsConfig {
        listen,
        identity: KeyPair {
            cert_file,
            key_file,
        },
        client_ca_file,
    } = runs;
    waiting.keep("metrics.listen", listen, &mut file.listen);
    let key = "metrics.cert_file";
    waiting.keep(key, cert_file, &mut file.identity.cert_file);
    waiting.keep("metrics.key_file", key_file, &mut file.identity.key_file);
    let key = "metrics.client_ca_file";
    waiting.keep(key, client_ca_file, &mut file.client_ca_file);
}

fn keep_nats(waiting: &mut Waiting, runs: &NatsConfig, file: &mut NatsConfig) {
    let NatsConfig {
        send_app,
        // It stands under another key.
        state_dir,
        // These change at once.
        servers: _,
        tls: _,
        default_interval: _,
        messages_per_second: _,
        join_foreign: _,
    } = runs;
    waiting.keep("nats.send_app", send_app, &mut file.send_app);
    file.state_dir.clone_from(state_dir);
}

#[cfg(test)]
mod tests;
