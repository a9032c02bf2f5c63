//! What a rendered overlay comes to, in the form of `infra/expected`: its objects, what each pod runs with, and who may
//! reach whom.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::rules::{list, name, text};

/// Everything of an overlay that must be as expected.
pub(super) fn of(objects: &[Value]) -> Value {
    let mut names: Vec<String> = objects.iter().map(without_digest).collect();
    names.sort();
    let pods: Map<String, Value> = objects
        .iter()
        .filter_map(|object| Some((name(object), pod(objects, object.pointer("/spec/template/spec")?))))
        .collect();
    let mut flows: Vec<String> = of_kind(objects, "NetworkPolicy").flat_map(policy).collect();
    flows.sort();
    json!({"objects": names, "pods": pods, "flows": flows})
}

/// An object's name; that of a generated map without the digest of its content, which stands with the pods.
fn without_digest(object: &Value) -> String {
    let name = name(object);
    match name.rsplit_once('-') {
        Some((stem, digest)) if text(object, "/kind") == "ConfigMap" && digest.len() == 10 => stem.to_owned(),
        _ => name,
    }
}

fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| text(object, "/kind") == kind)
}

fn pod(objects: &[Value], pod: &Value) -> Value {
    let containers = |key: &str| -> Map<String, Value> {
        let containers = list(pod, key).iter();
        containers.map(|it| (text(it, "/name").to_owned(), container(objects, it))).collect()
    };
    let volumes: Map<String, Value> =
        list(pod, "/volumes").iter().map(|it| (text(it, "/name").to_owned(), volume(it))).collect();
    json!({
        "containers": containers("/containers"),
        "initContainers": containers("/initContainers"),
        "serviceAccount": text(pod, "/serviceAccountName"),
        "priorityClass": text(pod, "/priorityClassName"),
        "volumes": volumes,
    })
}

fn container(objects: &[Value], container: &Value) -> Value {
    let image = text(container, "/image");
    let (image, version) = match image.split_once('@') {
        Some((image, _)) => (image, "by digest"),
        None => (image, "by tag"),
    };
    let command: Vec<&Value> = ["/command", "/args"].iter().flat_map(|it| list(container, it)).collect();
    let mounts: BTreeMap<&str, &str> = list(container, "/volumeMounts")
        .iter()
        .map(|it| (text(it, "/mountPath"), text(it, "/name")))
        .collect();
    json!({
        "image": image,
        "version": version,
        "command": command,
        "environment": environment(objects, container),
        "mounts": mounts,
    })
}

/// All that a container finds in its environment, by what is set last. What comes from elsewhere than a configuration map of
/// this overlay stands with its source.
fn environment(objects: &[Value], container: &Value) -> Map<String, Value> {
    let mut all = Map::new();
    for source in list(container, "/envFrom") {
        let wanted = text(source, "/configMapRef/name");
        let map = of_kind(objects, "ConfigMap").find(|it| text(it, "/metadata/name") == wanted);
        match map.and_then(|it| it.pointer("/data")?.as_object()) {
            Some(data) => all.extend(data.clone()),
            None => drop(all.insert("from elsewhere".to_owned(), source.clone())),
        }
    }
    for variable in list(container, "/env") {
        let value = variable.get("value").or_else(|| variable.get("valueFrom"));
        all.insert(text(variable, "/name").to_owned(), value.cloned().unwrap_or(Value::Null));
    }
    all
}

/// A volume in short: the files of its secrets, or the volume as it stands.
fn volume(volume: &Value) -> Value {
    let sources = list(volume, "/projected/sources");
    if sources.is_empty() || sources.iter().any(|source| source.get("secret").is_none()) {
        let mut rest = volume.clone();
        if let Some(rest) = rest.as_object_mut() {
            rest.remove("name");
        }
        return rest;
    }
    let secrets: Map<String, Value> = sources
        .iter()
        .map(|source| {
            let items = list(source, "/secret/items").iter();
            let files: Vec<String> =
                items.map(|it| format!("{} as {}", text(it, "/key"), text(it, "/path"))).collect();
            (text(source, "/secret/name").to_owned(), json!(files))
        })
        .collect();
    let mode = volume.pointer("/projected/defaultMode").and_then(Value::as_u64).unwrap_or(0o644);
    json!({"secrets": secrets, "mode": format!("{mode:04o}")})
}

/// Every flow that one policy lets through, one line each, such as `muster-worker -> nats/nats TCP 4222`, and which pods it
/// closes to what else.
fn policy(policy: &Value) -> Vec<String> {
    let pods = pods(policy.pointer("/spec/podSelector"));
    let types: Vec<&str> = list(policy, "/spec/policyTypes").iter().filter_map(Value::as_str).collect();
    let mut flows = vec![format!("{pods}: nothing else, {}", types.join(" and "))];
    for (rules, side, of_rule) in [("/spec/ingress", "/from", true), ("/spec/egress", "/to", false)] {
        for rule in list(policy, rules) {
            let mut peers: Vec<String> = list(rule, side).iter().map(peer).collect();
            if peers.is_empty() {
                peers.push("anywhere".to_owned());
            }
            let mut ports: Vec<String> = list(rule, "/ports").iter().map(port).collect();
            if ports.is_empty() {
                ports.push("any port".to_owned());
            }
            for peer in &peers {
                for port in &ports {
                    flows.push(if of_rule {
                        format!("{peer} -> {pods} {port}")
                    } else {
                        format!("{pods} -> {peer} {port}")
                    });
                }
            }
        }
    }
    flows
}

/// The pods that a selector takes: by the one label that names a program, else as the selector stands.
fn pods(selector: Option<&Value>) -> String {
    let Some(selector) = selector else { return "every pod".to_owned() };
    let labels = selector.get("matchLabels").and_then(Value::as_object);
    match (selector.as_object().map(Map::len), labels.map(|it| it.iter().collect::<Vec<_>>()).as_deref()) {
        (Some(0), _) => "every pod".to_owned(),
        (Some(1), Some([(key, Value::String(name))]))
            if matches!(
                key.as_str(),
                "app.kubernetes.io/name" | "k8s-app" | "kubernetes.io/metadata.name"
            ) =>
        {
            name.clone()
        }
        _ => selector.to_string(),
    }
}

fn peer(peer: &Value) -> String {
    match (peer.get("ipBlock"), peer.get("namespaceSelector"), peer.get("podSelector")) {
        (Some(block), None, None) => {
            let except: Vec<&str> = list(block, "/except").iter().filter_map(Value::as_str).collect();
            format!("{} but {}", text(block, "/cidr"), except.join(", "))
        }
        (None, Some(namespace), pod) => format!("{}/{}", pods(Some(namespace)), pods(pod)),
        (None, None, Some(pod)) => pods(Some(pod)),
        _ => peer.to_string(),
    }
}

fn port(port: &Value) -> String {
    let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
    match (port.get("port"), port.get("endPort")) {
        (Some(port), None) => format!("{protocol} {port}"),
        (Some(first), Some(last)) => format!("{protocol} {first} to {last}"),
        _ => format!("{protocol} any port"),
    }
}

/// Where the worker's configuration sends it, as `namespace:port`, from the names of Services (`nats.nats.svc`); what is named
/// otherwise stands as it is.
pub(super) fn destinations(environment: &Value) -> Vec<String> {
    let urls = ["MUSTER__NATS__URLS", "MUSTER__TRACES__ENDPOINT"];
    let urls = urls.iter().filter_map(|key| environment.get(*key)?.as_str()).flat_map(|urls| urls.split(','));
    urls.map(|url| {
        let authority = url.split_once("://").map_or(url, |(_, rest)| rest).split('/').next().unwrap_or(url);
        let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "443"));
        let labels: Vec<&str> = host.trim_end_matches('.').split('.').collect();
        let namespace =
            labels.iter().position(|label| *label == "svc").and_then(|at| labels.get(at.checked_sub(1)?));
        format!("{}:{port}", namespace.unwrap_or(&host))
    })
    .collect()
}
