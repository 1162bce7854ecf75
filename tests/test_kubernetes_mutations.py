"""Every check of Kubernetes objects catches what it is there for: one thing is broken at a time, and must be found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from kubernetes_policies import POD_POLICIES, shared_memory_fits
from kubernetes_tools import Object, is_installed, render, schema_problems
from kubernetes_traffic import TRAFFIC_POLICIES

GONE = object()  # as a value: the field is taken away
POD = "spec template spec"
SERVER = f"{POD} containers 0"
CONTEXT = f"{SERVER} securityContext"
HOOK = f"{SERVER} lifecycle preStop exec command"
HPA = "spec advanced horizontalPodAutoscalerConfig behavior"
TRIGGER = "spec triggers 0"


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    if not is_installed():
        pytest.fail("the Kubernetes tools are missing; run: python tests/kubernetes_tools.py")


def broken(where: str, value: object) -> list[Object]:
    """The objects of the full overlay with one field of one of them changed."""
    objects = render("overlays/full")
    (what, *parents, last) = (int(word) if word.isdigit() else word for word in where.split(" "))
    item: Any = find(objects, str(what))
    for key in parents:
        item = item[key]
    if value is GONE:
        del item[last]
    elif isinstance(item, list) and last == len(item):
        item.append(value)
    else:
        assert (item.get(last) if isinstance(item, dict) else item[last]) != value
        item[last] = value
    return objects


def find(objects: list[Object], what: str) -> Object:
    """The object of a kind, or KIND/the start of its name."""
    kind, _, name = what.partition("/")
    return next(o for o in objects if o["kind"] == kind and o["metadata"]["name"].startswith(name or "polylip"))


# policy -> what is broken: kind of the object (/start of its name) and path of the field, its new value, what is said
BROKEN: dict[str, list[tuple[str, object, str]]] = {
    "pods_can_do_no_more_than_they_must": [
        (f"Deployment {POD} hostNetwork", True, "has hostNetwork"),
        (f"Deployment {POD} securityContext runAsUser", 0, "as user"),
        (f"Deployment {POD} securityContext seccompProfile", GONE, "seccomp"),
        (f"Deployment {POD} automountServiceAccountToken", GONE, "token"),
        ("ServiceAccount automountServiceAccountToken", True, "hands out"),
        (f"Deployment {POD} enableServiceLinks", GONE, "addresses"),
        (f"Deployment {POD} volumes 6", {"name": "node", "hostPath": {"path": "/"}}, "mounts node of its node"),
    ],
    "containers_can_do_no_more_than_they_must": [
        (f"Deployment {CONTEXT} privileged", True, "privileged True"),
        (f"Deployment {CONTEXT} readOnlyRootFilesystem", GONE, "None"),
        (f"Deployment {CONTEXT} capabilities", {"add": ["NET_RAW"]}, "NET_RAW"),
        (f"Deployment {CONTEXT} runAsUser", 0, "for itself"),
        (f"Deployment {POD} initContainers 0 securityContext", GONE, "container link has privileged"),
    ],
    "the_namespace_admits_no_others": [
        ("Namespace metadata labels pod-security.kubernetes.io/enforce", "baseline", "enforce"),
        ("Service metadata namespace", "default", "in namespace default"),
    ],
    "containers_say_what_they_take": [
        (f"Deployment {SERVER} resources limits memory", GONE, "limit for memory"),
        (f"Deployment {SERVER} resources", {}, "limit for cpu"),
        (f"Deployment {SERVER} resources requests memory", "32Gi", "more memory"),
        (f"Deployment {SERVER} resources requests nvidia.com/gpu", GONE, "GPUs"),
        (f"Deployment {POD} volumes 5 emptyDir", {}, "without limit"),
    ],
    "images_are_of_one_version": [
        (f"Deployment {SERVER} image", "polylip-server:latest", "latest"),
        (f"Deployment {SERVER} image", "polylip-server", "neither"),
    ],
    "what_is_written_is_mounted": [
        (f"Deployment {SERVER} volumeMounts", [], "cannot write /models"),
        (f"Deployment {POD} volumes", [], "is no volume"),
    ],
    "references_lead_somewhere": [
        (f"Deployment {SERVER} envFrom 0 configMapRef name", "polylip-settings", "not there"),
        (f"Deployment {POD} serviceAccountName", "default", "ServiceAccount default"),
        ("Gateway spec listeners 0 tls certificateRefs 0 name", "other", "Secret other"),
        ("GRPCRoute/polylip-any spec parentRefs 0 name", "other", "Gateway other"),
        ("GRPCRoute/polylip-any spec rules 0 backendRefs 0 name", "other", "Service other"),
        ("BackendTrafficPolicy/polylip-any spec targetRefs 0 name", "other", "GRPCRoute other"),
        ("ScaledObject spec scaleTargetRef name", "other", "Deployment other"),
        ("BackendTLSPolicy spec validation caCertificateRefs 0 name", "other", "ConfigMap other"),
        ("EnvoyProxy spec backendTLS clientCertificateRef name", "other", "Secret other"),
    ],
    "servers_are_probed": [
        (f"Deployment {SERVER} startupProbe", GONE, "no startupProbe"),
        (f"Deployment {SERVER} livenessProbe", GONE, "no livenessProbe"),
        (f"Deployment {SERVER} readinessProbe exec command",
         ["python", "-m", "polylip.serving.control"], "wrong question"),
        (f"Deployment {SERVER} livenessProbe timeoutSeconds", GONE, "no time"),
    ],
    "servers_drain_before_they_end": [
        (f"Deployment {SERVER} lifecycle", GONE, "does not drain"),
        (f"Deployment {HOOK} 2", "sleep 1; exec polylip drain --timeout 600", "sent elsewhere"),
        (f"Deployment {HOOK} 2", "sleep 10; exec polylip drain --timeout 60", "only gets a signal"),
        (f"Deployment {HOOK} 2", "exec polylip drain", "does not drain"),
        (f"Deployment {POD} terminationGracePeriodSeconds", 600, "killed after 600"),
        (f"Deployment {POD} terminationGracePeriodSeconds", GONE, "killed after 30"),
    ],
    "updates_take_no_server_away": [
        ("Deployment spec strategy rollingUpdate maxUnavailable", 1, "updates with"),
        ("Deployment spec strategy", GONE, "the defaults"),
        ("Deployment spec replicas", 3, "two places"),
        (f"Deployment {POD} topologySpreadConstraints", GONE, "not spread"),
        ("PodDisruptionBudget spec maxUnavailable", "100%", "disruption budget"),
        ("PodDisruptionBudget spec selector matchLabels app.kubernetes.io/name", "x", "budget"),
    ],
    "selectors_find_pods": [
        ("Service spec selector app.kubernetes.io/name", "x", "Service polylip selects nothing"),
        ("PodMonitor spec selector matchLabels app.kubernetes.io/name", "x", "PodMonitor"),
        ("NetworkPolicy/polylip-grpc spec podSelector matchLabels app.kubernetes.io/name", "x", "Network"),
        ("Deployment spec selector matchLabels app.kubernetes.io/name", "x", "its own pods"),
    ],
    "ports_agree": [
        (f"Deployment {SERVER} ports 0 containerPort", 9001, "other ports"),
        (f"Deployment {SERVER} args 7", "--metrics-port=8003", "other ports"),
        ("Service spec ports 0 targetPort", "metrics", "more than gRPC"),
        ("NetworkPolicy/polylip-grpc spec ingress 0 ports 0 port", 9999, "where nobody listens"),
        ("PodMonitor spec podMetricsEndpoints 0 port", "grpc", "not ask for the metrics"),
        ("GRPCRoute/polylip-any spec rules 0 backendRefs 0 port", 9001, "leads to 9001"),
    ],
    "nobody_reaches_what_is_not_theirs": [
        ("NetworkPolicy/deny-all spec policyTypes", ["Ingress"], "denies everything"),
        ("NetworkPolicy/polylip-grpc spec ingress 0 from", GONE, "no peers"),
        ("NetworkPolicy/polylip-grpc spec ingress 0 ports", GONE, "no ports"),
        ("NetworkPolicy/polylip-grpc spec ingress 0 from 0", {"ipBlock": {"cidr": "0.0.0.0/0"}}, "0.0.0.0"),  # noqa: S104
        ("NetworkPolicy/polylip-grpc spec ingress 0 from 0 namespaceSelector", {}, "open to more"),
        ("NetworkPolicy/polylip-grpc spec ingress 0 ports 1", {"port": "metrics"}, "opens the metrics"),
        ("NetworkPolicy/polylip-traces spec egress 0 to", GONE, "egress has no peers"),
        ("Service spec type", "LoadBalancer", "open to the outside"),
    ],
    "scaling_follows_the_streams": [
        (f"ScaledObject {TRIGGER} metadata query", "sum(polylip_live{namespace='polylip'})", "no model publishes"),
        (f"ScaledObject {TRIGGER} metadata query", 'sum(polylip_live_sequences{namespace="polylip"})', "with slots"),
        (f"ScaledObject {TRIGGER} metadata query",
         'polylip_live_sequences{namespace="x"} / polylip_slots{namespace="x"}', "another namespace"),
        (f"ScaledObject {TRIGGER} metadata query", 'polylip_slots{model="gates"}', "'gates', which is no model"),
        (f"ScaledObject {TRIGGER} metricType", "AverageValue", "misreads"),
        (f"ScaledObject {TRIGGER} metadata ignoreNullValues", GONE, "misreads"),
        (f"ScaledObject {TRIGGER} metadata threshold", "1.0", "no slot free"),
    ],
    "servers_leave_one_by_one": [
        ("ScaledObject spec minReplicaCount", 0, "fewer than two"),
        (f"ScaledObject {HPA} scaleDown policies 0 value", 2, "faster than they drain"),
        (f"ScaledObject {HPA} scaleDown policies 0 periodSeconds", 60, "faster"),
        (f"ScaledObject {HPA} scaleDown stabilizationWindowSeconds", 0, "in a lull"),
    ],
    "a_stream_stays_with_its_server": [
        ("BackendTrafficPolicy/polylip-by spec loadBalancer consistentHash header name", "x-user", "does not keep"),
        ("BackendTrafficPolicy/polylip-by spec loadBalancer type", "RoundRobin", "does not keep"),
        ("BackendTrafficPolicy/polylip-any spec timeout http", {}, "by the clock"),
        ("BackendTrafficPolicy/polylip-any spec retry retryOn triggers", ["unavailable"], "send twice"),
        ("BackendTrafficPolicy/polylip-any spec retry", GONE, "send twice"),
        ("GRPCRoute/polylip-any spec rules 0 matches", GONE, "every call"),
        ("ClientTrafficPolicy spec timeout http streamIdleTimeout", "300s", "silent"),
        ("Gateway spec listeners 0 protocol", "HTTP", "without TLS"),
    ],
    "both_ends_speak_tls_or_neither": [
        (f"Deployment {SERVER} args 11", GONE, "a part of"),
        ("Service spec ports 0 appProtocol", "kubernetes.io/h2c", "plain HTTP/2"),
        ("BackendTLSPolicy kind", "X", "do not agree"),
    ],
    "windows_hold_a_chunk": [
        ("ClientTrafficPolicy spec http2", GONE, "small window"),
    ],
}  # fmt: skip
POLICIES: dict[str, Callable[[Sequence[Object]], object]] = {p.__name__: p for p in (*POD_POLICIES, *TRAFFIC_POLICIES)}


@pytest.mark.parametrize(
    ("name", "where", "value", "said"), [(name, *case) for name, cases in BROKEN.items() for case in cases]
)
def test_a_policy_catches(name: str, where: str, value: object, said: str):
    assert [*POLICIES[name](render("overlays/full"))] == []
    problems = [*POLICIES[name](broken(where, value))]
    assert any(said in problem for problem in problems), problems


def test_every_policy_is_tried():
    assert BROKEN.keys() == POLICIES.keys()


@pytest.mark.parametrize(
    ("path", "value"), [("emptyDir sizeLimit", "64Mi"), ("emptyDir medium", GONE), ("name", "other")]
)
def test_other_shared_memory_is_caught(path: str, value: object):
    volumes = find(render("overlays/full"), "Deployment")["spec"]["template"]["spec"]["volumes"]
    number = next(i for i, volume in enumerate(volumes) if volume["name"] == "shm")
    fits = int(volumes[number]["emptyDir"]["sizeLimit"].removesuffix("Mi"))
    assert [*shared_memory_fits(render("overlays/full"), {"gpu": fits}.__getitem__)] == []
    assert [*shared_memory_fits(broken(f"Deployment {POD} volumes {number} {path}", value), {"gpu": fits}.__getitem__)]


def test_memory_that_is_all_shared_is_caught():
    assert [*shared_memory_fits(broken(f"Deployment {SERVER} resources limits memory", "256Mi"), lambda profile: 128)]


# What a schema has something against.
AGAINST_SCHEMA: list[tuple[str, object]] = [
    (f"Deployment {SERVER} securityContext readonlyRootFilesystem", True),
    (f"Deployment {POD} terminationGracePeriodSeconds", "660"),
    (f"Deployment {SERVER} resources limits cpu", ["4"]),
    ("Service spec ports 0 port", GONE),
    ("NetworkPolicy/polylip-grpc spec ingress 0 form", []),
    ("PodDisruptionBudget spec maxUnavailabel", 1),
    ("Gateway spec listeners 0 tls mode", "Terminated"),
    ("Gateway spec listeners 0 port", 70000),
    ("GRPCRoute/polylip-any spec rules 0 match", []),
    ("GRPCRoute/polylip-by-stream spec rules 0 matches 0 headers 0 type", "Prefix"),
    ("BackendTrafficPolicy/polylip-by-stream spec loadBalancer type", "Sticky"),
    ("BackendTrafficPolicy/polylip-by-stream spec loadBalancer consistentHash headerName", "x-stream-id"),
    ("ClientTrafficPolicy spec timeout http streamTimeout", "1h"),
    ("BackendTLSPolicy spec validation hostname", GONE),
    ("EnvoyProxy spec backendTls", {}),
    ("ScaledObject spec triggers 0 metricTyp", "Value"),
    ("ScaledObject spec minReplicaCount", "2"),
    ("PodMonitor spec podMetricsEndpoints 0 intervall", "15s"),
    ("PodMonitor spec podMetricsEndpoints 0 interval", "quarter"),
    ("PrometheusRule spec groups 0 rule", []),
    ("Namespace metadata label", {}),
    ("ConfigMap/polylip-settings data POLYLIP_SLOTS", 2),
]


def test_a_schema_catches():
    changed = []
    for where, value in AGAINST_SCHEMA:
        item = find(broken(where, value), where.split(" ")[0])
        changed.append({**item, "metadata": {**item["metadata"], "name": where}})
    found = schema_problems(changed)
    assert [where for where, _ in AGAINST_SCHEMA if not any(f" {where}: " in line for line in found)] == []


def test_a_kind_without_a_schema_is_caught():
    unknown = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GRPCRout", "metadata": {"name": "x"}}
    assert schema_problems([unknown]) == ["GRPCRout x: no schema for gateway.networking.k8s.io/v1 GRPCRout"]
