//! What Muster requires of its manifests beyond the schema.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Verdict;
use super::configuration::Facts;

/// The image that is configured as the worker is.
const WORKER: &str = "muster-worker";
/// The mode of a file that only its owner reads, as Kubernetes writes it: in decimal digits.
const OWNER_READS: u64 = 0o400;
const POSTGRESQL: u64 = 5432;

/// An object by kind and name.
pub(super) fn name(object: &Value) -> String {
    format!("{} {}", text(object, "/kind"), text(object, "/metadata/name"))
}

/// Checks every object of one overlay.
pub(super) fn check(overlay: &str, objects: &[Value], facts: &Facts) -> Vec<Verdict> {
    let mut rules = Rules { objects, facts, verdicts: Vec::new() };
    match overlay {
        "monitoring" => {
            rules.monitoring();
            return rules.verdicts;
        }
        // What the policies refuse is theirs to show.
        "admission" => return rules.verdicts,
        _ => {}
    }
    rules.namespace();
    rules.default_deny();
    for object in objects {
        match text(object, "/kind") {
            "Deployment" => {
                rules.pod(object, overlay.ends_with("production"));
                rules.deployment(object);
            }
            "Job" => rules.pod(object, overlay.ends_with("production")),
            "Service" => rules.service(object),
            "HorizontalPodAutoscaler" => rules.autoscaler(object),
            "ConfigMap" => rules.variables(object),
            "PodSecurityPolicy" => {
                rules.say("no kind that is gone", object, false, "gone since Kubernetes 1.25")
            }
            _ => {}
        }
    }
    for kind in ["ResourceQuota", "LimitRange", "HorizontalPodAutoscaler", "PodDisruptionBudget"] {
        let found = objects.iter().any(|object| text(object, "/kind") == kind);
        rules.overall("there is a limit of each kind", kind, found, "is missing");
    }
    rules.verdicts
}

struct Rules<'a> {
    objects: &'a [Value],
    facts: &'a Facts,
    verdicts: Vec<Verdict>,
}

impl<'a> Rules<'a> {
    fn say(&mut self, rule: &'static str, object: &Value, holds: bool, problem: &str) {
        self.overall(rule, &name(object), holds, problem);
    }

    fn overall(&mut self, rule: &'static str, object: &str, holds: bool, problem: &str) {
        let problem = (!holds).then(|| problem.to_owned());
        self.verdicts.push(Verdict { rule, object: object.to_owned(), problem });
    }

    fn of_kind(&self, kind: &str) -> impl Iterator<Item = &'a Value> {
        self.objects.iter().filter(move |object| text(object, "/kind") == kind)
    }

    fn namespace(&mut self) {
        let namespaces: Vec<&Value> = self.of_kind("Namespace").collect();
        self.overall("one namespace", "Namespace", namespaces.len() == 1, "there is not one");
        for namespace in namespaces {
            let label =
                |key: &str| text(namespace, &format!("/metadata/labels/pod-security.kubernetes.io~1{key}"));
            let pinned = label("enforce-version").starts_with("v1.");
            let holds = label("enforce") == "restricted" && pinned;
            self.say(
                "Pod Security restricted, at a pinned version",
                namespace,
                holds,
                "enforce is not restricted, or its version moves",
            );
            let named = text(namespace, "/metadata/name");
            let of_cluster = |object: &&Value| matches!(text(object, "/kind"), "Namespace" | "PriorityClass");
            for object in self.objects.iter().filter(|object| !of_cluster(object)) {
                let holds = text(object, "/metadata/namespace") == named;
                self.say("in the namespace", object, holds, "would be made elsewhere");
            }
        }
    }

    fn default_deny(&mut self) {
        let denies = |policy: &&Value| {
            let selects_all =
                policy.pointer("/spec/podSelector").and_then(Value::as_object).is_some_and(|s| s.is_empty());
            let types = list(policy, "/spec/policyTypes").len() == 2;
            let empty = list(policy, "/spec/ingress").is_empty() && list(policy, "/spec/egress").is_empty();
            selects_all && types && empty
        };
        let found = self.of_kind("NetworkPolicy").any(|policy| denies(&policy));
        self.overall("everything is denied first", "NetworkPolicy", found, "no policy denies all in and out");
    }

    fn pod(&mut self, object: &Value, production: bool) {
        let Some(pod) = object.pointer("/spec/template/spec") else { return };
        let account = text(pod, "/serviceAccountName");
        let accounts: Vec<&Value> =
            self.of_kind("ServiceAccount").filter(|it| text(it, "/metadata/name") == account).collect();
        let without_token = accounts.iter().all(|it| is(it, "/automountServiceAccountToken", false));
        self.say("its ServiceAccount exists", object, accounts.len() == 1, "no pod would be made");
        let holds = without_token && is(pod, "/automountServiceAccountToken", false);
        self.say(
            "no token of the Kubernetes API",
            object,
            holds,
            "automountServiceAccountToken is not false",
        );
        let shared = ["/hostNetwork", "/hostPID", "/hostIPC"].iter().any(|key| is(pod, key, true));
        let holds = is(pod, "/hostUsers", false) && !shared;
        self.say("nothing shared with the host", object, holds, "hostUsers is not false, or a host* is true");
        let context = pod.pointer("/securityContext").unwrap_or(&Value::Null);
        self.context(object, context);
        let fs_group = number(context, "/fsGroup") == Some(self.facts.user);
        self.say("mounted secrets can be read", object, fs_group, "fsGroup is not the image's user");

        let volumes = list(pod, "/volumes");
        for volume in volumes {
            self.volume(object, volume);
        }
        let names: BTreeSet<&str> = volumes.iter().map(|volume| text(volume, "/name")).collect();
        for container in list(pod, "/containers").iter().chain(list(pod, "/initContainers")) {
            self.container(object, container, production);
            let mounts = list(container, "/volumeMounts");
            let known = mounts.iter().all(|mount| names.contains(text(mount, "/name")));
            self.say("every mount has its volume", object, known, "a mount names no volume");
            if is_worker(container) {
                self.files(object, container, volumes);
            }
        }
        self.policy(object);
    }

    fn context(&mut self, object: &Value, context: &Value) {
        let user = Some(self.facts.user);
        let holds = is(context, "/runAsNonRoot", true)
            && number(context, "/runAsUser") == user
            && number(context, "/runAsGroup") == user;
        self.say(
            "the image's user, not root",
            object,
            holds,
            "runAsNonRoot, runAsUser or runAsGroup differs",
        );
        let profile = |key: &str| text(context, &format!("/{key}/type"));
        let holds =
            profile("seccompProfile") == "RuntimeDefault" && profile("appArmorProfile") == "RuntimeDefault";
        self.say("seccomp and AppArmor", object, holds, "a profile is not RuntimeDefault");
    }

    fn container(&mut self, object: &Value, container: &Value, production: bool) {
        let context = container.pointer("/securityContext").unwrap_or(&Value::Null);
        self.context(object, context);
        let root = is(context, "/readOnlyRootFilesystem", true);
        self.say("read-only root", object, root, "readOnlyRootFilesystem is not true");
        let dropped = list(context, "/capabilities/drop").iter().any(|it| it.as_str() == Some("ALL"));
        let holds = dropped
            && list(context, "/capabilities/add").is_empty()
            && is(context, "/allowPrivilegeEscalation", false)
            && !is(context, "/privileged", true);
        self.say(
            "no capability, no new privilege",
            object,
            holds,
            "capabilities or privileges are not dropped",
        );
        let bounded = ["requests", "limits"].iter().all(|which| {
            let has = |what: &str| container.pointer(&format!("/resources/{which}/{what}")).is_some();
            has("cpu") && has("memory") && has("ephemeral-storage")
        });
        self.say(
            "requests and limits",
            object,
            bounded,
            "one of cpu, memory, ephemeral-storage is not bounded",
        );
        let image = text(container, "/image");
        let digest = image.split_once("@sha256:").is_some_and(|(_, digest)| digest.len() == 64);
        let (_, last) = image.rsplit_once('/').unwrap_or(("", image));
        let tag = last.split_once(':').map(|(_, tag)| tag);
        let fixed = digest || (!production && tag.is_some_and(|tag| tag != "latest"));
        self.say("a fixed image", object, fixed, &format!("{image} moves: name its digest"));
        let secret = list(container, "/env").iter().any(|it| it.pointer("/valueFrom/secretKeyRef").is_some())
            || list(container, "/envFrom").iter().any(|it| it.pointer("/secretRef").is_some());
        self.say("no secret in a variable", object, !secret, "mount it as a file");
        if is_worker(container) {
            for variable in list(container, "/env") {
                let key = text(variable, "/name");
                let known = self.facts.variables.contains(key);
                self.say("the worker knows the variable", object, known, &format!("{key} is unknown"));
            }
        }
    }

    fn volume(&mut self, object: &Value, volume: &Value) {
        let problem = if let Some(projected) = volume.pointer("/projected") {
            (number(projected, "/defaultMode") != Some(OWNER_READS)).then_some("a secret's mode is not 0400")
        } else if let Some(directory) = volume.pointer("/emptyDir") {
            directory.pointer("/sizeLimit").is_none().then_some("an emptyDir has no sizeLimit")
        } else {
            Some("it is neither projected nor an emptyDir")
        };
        self.say(
            "volumes are bounded, secrets closed",
            object,
            problem.is_none(),
            problem.unwrap_or_default(),
        );
    }

    /// Every file that the configuration names lies in a volume that is mounted there.
    fn files(&mut self, object: &Value, container: &Value, volumes: &[Value]) {
        let mut paths = BTreeSet::new();
        for mount in list(container, "/volumeMounts") {
            let volume = volumes.iter().find(|volume| text(volume, "/name") == text(mount, "/name"));
            for source in volume.map_or(&[][..], |volume| list(volume, "/projected/sources")) {
                for item in list(source, "/secret/items") {
                    paths.insert(format!("{}/{}", text(mount, "/mountPath"), text(item, "/path")));
                }
            }
        }
        for (key, value) in self.configuration(container) {
            if key.ends_with("_FILE") {
                let there = paths.contains(&value);
                self.say("the files it reads are mounted", object, there, &format!("{key}: {value} is not"));
            }
        }
    }

    /// The variables that a container takes from configuration maps.
    fn configuration(&self, container: &Value) -> Vec<(String, String)> {
        let named: Vec<&str> =
            list(container, "/envFrom").iter().map(|source| text(source, "/configMapRef/name")).collect();
        let maps = self.of_kind("ConfigMap").filter(|map| named.contains(&text(map, "/metadata/name")));
        let maps = maps.filter_map(|map| map.pointer("/data")?.as_object());
        let data = maps.flatten().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
        data.collect()
    }

    fn variables(&mut self, map: &Value) {
        let keys = map.pointer("/data").and_then(Value::as_object).into_iter().flatten();
        for (key, _) in keys {
            let known = self.facts.variables.contains(key);
            self.say("the worker knows the variable", map, known, &format!("{key} is unknown"));
        }
    }

    fn deployment(&mut self, deployment: &Value) {
        let labels = deployment.pointer("/spec/template/metadata/labels").unwrap_or(&Value::Null);
        let selects = selects(deployment.pointer("/spec/selector/matchLabels"), labels);
        self.say("it selects its own pods", deployment, selects, "selector and labels differ");
        let update = deployment.pointer("/spec/strategy/rollingUpdate").unwrap_or(&Value::Null);
        let lossless = number(update, "/maxUnavailable") == Some(0);
        self.say("an update loses no replica", deployment, lossless, "maxUnavailable is not 0");
        let Some(pod) = deployment.pointer("/spec/template/spec") else { return };
        let spread: BTreeSet<&str> = list(pod, "/topologySpreadConstraints")
            .iter()
            .filter(|it| selects_some(it.pointer("/labelSelector/matchLabels"), labels))
            .map(|it| text(it, "/topologyKey"))
            .collect();
        let holds =
            ["topology.kubernetes.io/zone", "kubernetes.io/hostname"].iter().all(|it| spread.contains(it));
        self.say(
            "spread over zones and hosts",
            deployment,
            holds,
            "a constraint is missing or selects nothing",
        );
        for container in list(pod, "/containers") {
            self.probes(deployment, container);
            let pause = number(container, "/lifecycle/preStop/sleep/seconds");
            let grace = number(pod, "/terminationGracePeriodSeconds").unwrap_or(30);
            let holds = pause.is_some_and(|pause| grace > pause + self.facts.drain_seconds);
            let needed = self.facts.drain_seconds;
            self.say(
                "grace outlasts preStop and drain",
                deployment,
                holds,
                &format!("{grace} s is not more than preStop and {needed} s"),
            );
        }
    }

    fn probes(&mut self, deployment: &Value, container: &Value) {
        let port = number(container, "/ports/0/containerPort");
        let agrees = port == Some(self.facts.http_port) && port == Some(self.facts.exposed_port);
        self.say("the port that is listened on", deployment, agrees, "differs from http.address or EXPOSE");
        let names: BTreeSet<&str> =
            list(container, "/ports").iter().map(|port| text(port, "/name")).collect();
        let mut asked = BTreeSet::new();
        for kind in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let probe = container.pointer(&format!("/{kind}/httpGet")).unwrap_or(&Value::Null);
            let named = names.contains(text(probe, "/port"));
            self.say(
                "probes by a declared port's name",
                deployment,
                named,
                &format!("{kind} asks another port"),
            );
            let no_host = probe.pointer("/host").is_none();
            self.say("probes without a host", deployment, no_host, "refused by the baseline profile");
            let patience = ["periodSeconds", "failureThreshold"]
                .map(|key| number(container, &format!("/{kind}/{key}")).unwrap_or(1));
            asked.insert((text(probe, "/path"), patience.iter().product::<u64>()));
        }
        self.say("probes differ in meaning", deployment, asked.len() == 3, "two ask the same");
        let path = |kind: &str| text(container, &format!("/{kind}/httpGet/path"));
        let holds = path("livenessProbe") == "/livez" && path("readinessProbe") == "/readyz";
        self.say(
            "alive is not ready",
            deployment,
            holds,
            "liveness asks not /livez, or readiness not /readyz",
        );
        let patience = ["periodSeconds", "failureThreshold"]
            .map(|key| number(container, &format!("/startupProbe/{key}")).unwrap_or(0));
        let holds =
            patience.iter().product::<u64>() > self.facts.start_seconds && path("startupProbe") == "/readyz";
        self.say(
            "a start may take as long as the worker tries",
            deployment,
            holds,
            "the startup probe ends before startup.wait_ms, or does not ask /readyz",
        );
    }

    fn service(&mut self, service: &Value) {
        let deployments: Vec<&Value> = self.of_kind("Deployment").collect();
        let chosen = deployments.iter().find(|it| {
            let labels = it.pointer("/spec/template/metadata/labels").unwrap_or(&Value::Null);
            selects_some(service.pointer("/spec/selector"), labels)
        });
        let containers = chosen.map_or(&[][..], |it| list(it, "/spec/template/spec/containers"));
        let names: BTreeSet<&str> =
            containers.iter().flat_map(|it| list(it, "/ports")).map(|port| text(port, "/name")).collect();
        for port in list(service, "/spec/ports") {
            let holds = names.contains(text(port, "/targetPort"))
                && number(port, "/port") == Some(self.facts.http_port);
            self.say("the Service leads to a port", service, holds, "it selects no pod with that port");
        }
    }

    fn autoscaler(&mut self, autoscaler: &Value) {
        let target = text(autoscaler, "/spec/scaleTargetRef/name");
        let found = self.of_kind("Deployment").find(|it| text(it, "/metadata/name") == target);
        let holds = found.is_some_and(|it| it.pointer("/spec/replicas").is_none());
        self.say(
            "it alone says how many replicas",
            autoscaler,
            holds,
            "no such Deployment, or it has replicas",
        );
    }

    /// The network policy of a pod: in from Prometheus only, out to what it needs only.
    fn policy(&mut self, object: &Value) {
        let labels = object.pointer("/spec/template/metadata/labels").unwrap_or(&Value::Null);
        let policies: Vec<&Value> = self
            .of_kind("NetworkPolicy")
            .filter(|it| selects_some(it.pointer("/spec/podSelector/matchLabels"), labels))
            .collect();
        let [policy] = policies.as_slice() else {
            return self.say("one network policy", object, false, "none, or more than one, selects it");
        };
        self.say("one network policy", object, true, "");
        let from: Vec<&Value> = list(policy, "/spec/ingress").iter().collect();
        let wanted = if text(object, "/kind") == "Deployment" { 1 } else { 0 };
        let only_prometheus = from.iter().all(|rule| {
            let peers = list(rule, "/from");
            !peers.is_empty()
                && peers.iter().all(|peer| {
                    text(peer, "/podSelector/matchLabels/app.kubernetes.io~1name") == "prometheus"
                        && peer.pointer("/namespaceSelector/matchLabels").is_some()
                })
                && ports(rule) == BTreeSet::from([("TCP", self.facts.http_port)])
        });
        let holds = from.len() == wanted && only_prometheus;
        self.say("in: Prometheus only, at the port", object, holds, "others may, or at another port");

        let mut expected = BTreeSet::from([("UDP", 53), ("TCP", 53)]);
        let is_migration = text(object, "/kind") == "Job";
        if !is_migration {
            expected.extend(self.nats_ports().into_iter().map(|port| ("TCP", port)));
        }
        let containers = list(object, "/spec/template/spec/containers");
        if containers.iter().any(is_worker) {
            expected.insert(("TCP", POSTGRESQL));
        } else {
            expected.insert(("TCP", 443));
        }
        let out = list(policy, "/spec/egress");
        let allowed: BTreeSet<(&str, u64)> = out.iter().flat_map(ports).collect();
        let bound = out.iter().all(|rule| {
            let peers = list(rule, "/to");
            !peers.is_empty()
                && peers.iter().all(|peer| {
                    peer.pointer("/namespaceSelector").is_some() && peer.pointer("/podSelector").is_some()
                        || !list(peer, "/ipBlock/except").is_empty()
                })
        });
        let holds = allowed == expected && bound;
        self.say(
            "out: DNS and what it speaks to, no more",
            object,
            holds,
            &format!("it may {allowed:?}, it needs {expected:?}, each to a named peer"),
        );
    }

    fn nats_ports(&self) -> BTreeSet<u64> {
        let maps = self.of_kind("ConfigMap");
        let urls = maps.filter_map(|map| map.pointer("/data/MUSTER__NATS__URLS")?.as_str()).next();
        let urls = urls.unwrap_or_default();
        urls.split(',').filter_map(|url| url.rsplit_once(':')?.1.trim_end_matches('/').parse().ok()).collect()
    }

    fn monitoring(&mut self) {
        for object in self.objects {
            match text(object, "/kind") {
                "PrometheusRule" => {
                    for metric in metrics(&object.to_string()) {
                        let known = self.facts.metrics.contains(&format!("\"{metric}\""));
                        self.say("the worker has the metric", object, known, &format!("{metric} is unknown"));
                    }
                }
                "ServiceMonitor" => {
                    let holds = text(object, "/spec/endpoints/0/port") == "http"
                        && text(object, "/spec/endpoints/0/path") == "/metrics";
                    self.say("it asks the worker's metrics", object, holds, "another port or path");
                }
                _ => self.say("monitoring objects only", object, false, "belongs elsewhere"),
            }
        }
    }
}

/// The names of metrics in a text; the parts of a histogram go by the histogram's name.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let metrics = words.filter(|word| word.starts_with("muster_"));
    let whole = |word: &str| {
        let suffix = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix));
        suffix.unwrap_or(word).to_owned()
    };
    metrics.map(whole).collect()
}

fn is_worker(container: &Value) -> bool {
    let image = text(container, "/image");
    let (_, last) = image.rsplit_once('/').unwrap_or(("", image));
    last.split([':', '@']).next() == Some(WORKER)
}

fn ports(rule: &Value) -> BTreeSet<(&str, u64)> {
    list(rule, "/ports")
        .iter()
        .map(|port| (text(port, "/protocol"), number(port, "/port").unwrap_or(0)))
        .collect()
}

/// Whether every label that is asked for is there, and at least one is asked for.
fn selects_some(wanted: Option<&Value>, labels: &Value) -> bool {
    wanted.and_then(Value::as_object).is_some_and(|it| !it.is_empty()) && selects(wanted, labels)
}

fn selects(wanted: Option<&Value>, labels: &Value) -> bool {
    wanted
        .and_then(Value::as_object)
        .is_some_and(|it| it.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

pub(super) fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn number(value: &Value, pointer: &str) -> Option<u64> {
    value.pointer(pointer).and_then(Value::as_u64)
}

fn is(value: &Value, pointer: &str, wanted: bool) -> bool {
    value.pointer(pointer).and_then(Value::as_bool) == Some(wanted)
}

pub(super) fn list<'v>(value: &'v Value, pointer: &str) -> &'v [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests::render;

    const PRODUCTION: &str = "overlays/production";

    fn rendered() -> Option<(String, Facts)> {
        let root = crate::cargo::root();
        let Some(kubectl) = render::kubectl() else {
            println!("NOT RUN: no kubectl");
            assert!(std::env::var_os("GITHUB_ACTIONS").is_none(), "no kubectl");
            return None;
        };
        let text = render::text(&kubectl, &root.join("infra/k8s").join(PRODUCTION)).unwrap();
        Some((text, Facts::read(&root).unwrap()))
    }

    fn broken(text: &str, facts: &Facts) -> BTreeSet<&'static str> {
        let objects = render::parse(text).unwrap();
        let verdicts = check(PRODUCTION, &objects, facts);
        verdicts.into_iter().filter(|verdict| verdict.problem.is_some()).map(|verdict| verdict.rule).collect()
    }

    /// Each fault is planted into manifests that are otherwise right, and is found by its rule alone or with others.
    #[test]
    fn every_planted_fault_is_found() {
        let Some((text, facts)) = rendered() else { return };
        assert_eq!(broken(&text, &facts), BTreeSet::new());
        let digest = format!("@sha256:{}", "0".repeat(64));
        let faults = [
            (digest.as_str(), ":latest", "a fixed image"),
            ("runAsUser: 65532", "runAsUser: 0", "the image's user, not root"),
            ("runAsNonRoot: true", "runAsNonRoot: false", "the image's user, not root"),
            ("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "read-only root"),
            ("- ALL", "- NET_RAW", "no capability, no new privilege"),
            ("privileged: false", "privileged: true", "no capability, no new privilege"),
            ("hostUsers: false", "hostNetwork: true", "nothing shared with the host"),
            ("type: RuntimeDefault", "type: Unconfined", "seccomp and AppArmor"),
            ("fsGroup: 65532", "fsGroup: 0", "mounted secrets can be read"),
            ("defaultMode: 256", "defaultMode: 420", "volumes are bounded, secrets closed"),
            ("sizeLimit: 16Mi", "x: 1", "volumes are bounded, secrets closed"),
            ("serviceAccountName: muster-worker", "serviceAccountName: gone", "its ServiceAccount exists"),
            ("kind: ServiceAccount", "kind: Gone", "its ServiceAccount exists"),
            ("automountServiceAccountToken: false", "x: 1", "no token of the Kubernetes API"),
            (
                "enforce-version: v1.34",
                "enforce-version: latest",
                "Pod Security restricted, at a pinned version",
            ),
            ("ephemeral-storage: 32Mi", "x: 1", "requests and limits"),
            ("containerPort: 8080", "containerPort: 9090", "the port that is listened on"),
            ("port: http", "port: web", "probes by a declared port's name"),
            ("path: /livez", "path: /readyz", "alive is not ready"),
            ("failureThreshold: 66", "failureThreshold: 6", "a start may take as long as the worker tries"),
            ("maxUnavailable: 0", "maxUnavailable: 1", "an update loses no replica"),
            (
                "terminationGracePeriodSeconds: 45",
                "terminationGracePeriodSeconds: 25",
                "grace outlasts preStop and drain",
            ),
            ("topologyKey: topology.kubernetes.io/zone", "topologyKey: rack", "spread over zones and hosts"),
            ("protocol: UDP", "protocol: SCTP", "out: DNS and what it speaks to, no more"),
            ("port: 4222", "port: 4223", "out: DNS and what it speaks to, no more"),
            ("port: 5432", "port: 5433", "out: DNS and what it speaks to, no more"),
            ("- port: 8080", "- port: 9090", "in: Prometheus only, at the port"),
            (
                "app.kubernetes.io/name: prometheus",
                "app.kubernetes.io/name: any",
                "in: Prometheus only, at the port",
            ),
            ("podSelector: {}", "podSelector: {matchLabels: {a: b}}", "everything is denied first"),
            ("MUSTER__NATS__URLS", "MUSTER__NATS__URSL", "the worker knows the variable"),
            ("/etc/muster/database/url", "/etc/muster/url", "the files it reads are mounted"),
            ("targetPort: http", "targetPort: web", "the Service leads to a port"),
            ("kind: LimitRange", "kind: Limits", "there is a limit of each kind"),
        ];
        for (right, wrong, rule) in faults {
            assert!(text.contains(right), "{right} is no longer in the manifests");
            let found = broken(&text.replace(right, wrong), &facts);
            assert!(found.contains(rule), "{right} -> {wrong}: found {found:?}, not {rule}");
        }
    }

    #[test]
    fn an_alert_on_a_metric_that_is_not_there_is_found() {
        let facts = Facts::read(&crate::cargo::root()).unwrap();
        let rule =
            |metric: &str| serde_json::json!({"kind": "PrometheusRule", "expr": format!("{metric} > 0")});
        let holds = |metric: &str| check("monitoring", &[rule(metric)], &facts)[0].problem.is_none();
        assert!(holds("muster_ready") && holds("muster_request_duration_seconds_bucket"));
        assert!(!holds("muster_readyness"));
    }
}
