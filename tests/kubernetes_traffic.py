"""What we promise of a set of Kubernetes objects about traffic and change.

Who reaches what, probes, draining, rollouts, scaling, and the gateway. Policies as in kubernetes_policies.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from kubernetes_policies import Policy, options_of, quantity, servers
from kubernetes_tools import ROOT, Object, of_kind, template_of

from polylip.client.triton import STREAM_ID_KEY
from polylip.serving import control
from polylip.serving.guard import GRACE_S
from polylip.serving.metrics import FAMILIES

STOPPING_S = 3 * GRACE_S  # Server.stop waits so long
REPOSITORY = ROOT / "model_repository"
METRICS = {"metrics", "8002"}  # that port, by name or number
ENDPOINTS_S = 5.0  # until everybody has been told that a server is going
KUBELET_S = 10.0  # for the rest of a pod's end
HOUR_S = 3600.0
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": HOUR_S}
NEVER_PROCESSED = {"connect-failure", "refused-stream"}  # may be sent again: no server has begun


def servers_are_probed(objects: Sequence[Object]) -> Iterator[str]:
    asking = ["python", "-m", control.__name__]
    wanted = {"startupProbe": [*asking, "--ready"], "readinessProbe": [*asking, "--ready"], "livenessProbe": asking}
    for owner, _, container in servers(objects):
        for name, command in wanted.items():
            probe = container.get(name)
            if probe is None:
                yield f"{owner} has no {name}"
            elif probe.get("exec", {}).get("command") != command:
                yield f"{owner}: the {name} asks the wrong question"
            elif probe.get("timeoutSeconds", 1) < 5:
                yield f"{owner}: the {name} gives a busy machine no time"


def servers_drain_before_they_end(objects: Sequence[Object]) -> Iterator[str]:
    for owner, pod, container in servers(objects):
        hook = hook_of(container)
        if hook is None:
            yield f"{owner} does not drain"
            continue
        elsewhere_s, drain_s = hook
        grace_s = pod.get("terminationGracePeriodSeconds", 30)
        if elsewhere_s + drain_s + STOPPING_S + KUBELET_S > grace_s:
            yield f"{owner} is killed after {grace_s} s, before it has drained for {drain_s:g} s and ended"
        if elsewhere_s < ENDPOINTS_S:
            yield f"{owner} is gone before new streams are sent elsewhere"
        if float(options_of(container).get("drain-timeout", "30")) != drain_s:
            yield f"{owner} drains for another time when it only gets a signal"


def hook_of(container: Object) -> tuple[float, float] | None:
    """Seconds of a server's preStop hook: until it begins to drain, and for that at most."""
    command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    found = re.fullmatch(r"sh -c sleep (\d+); exec polylip drain --timeout (\d+)", " ".join(command))
    return (float(found[1]), float(found[2])) if found else None


def updates_take_no_server_away(objects: Sequence[Object]) -> Iterator[str]:
    scaled = {item["spec"]["scaleTargetRef"]["name"] for item in of_kind(objects, "ScaledObject")}
    for item in of_kind(objects, "Deployment"):
        name, spec = item["metadata"]["name"], item["spec"]
        rolling = spec.get("strategy", {}).get("rollingUpdate", {})
        if rolling.get("maxUnavailable") != 0 or rolling.get("maxSurge", 0) < 1:
            yield f"Deployment {name} updates with {rolling or 'the defaults'}"
        if (name in scaled) is ("replicas" in spec):
            yield f"Deployment {name} has its number of replicas {'in two places' if name in scaled else 'nowhere'}"
        if spec.get("replicas", 2) < 2:
            yield f"Deployment {name} has no second server"
        keys = {spread["topologyKey"] for spread in spec["template"]["spec"].get("topologySpreadConstraints", [])}
        if not {"kubernetes.io/hostname", "topology.kubernetes.io/zone"} <= keys:
            yield f"Deployment {name} is not spread over nodes and zones"
        budgets = [b["spec"] for b in of_kind(objects, "PodDisruptionBudget") if _selects(b["spec"]["selector"], item)]
        if [budget.get("maxUnavailable") for budget in budgets] != [1]:
            yield f"Deployment {name} has no disruption budget of one server"


def selectors_find_pods(objects: Sequence[Object]) -> Iterator[str]:
    workloads = [*of_kind(objects, "Deployment", "Job", "Pod")]
    for item in of_kind(objects, "Deployment"):
        if not _selects(item["spec"]["selector"], item):
            yield f"Deployment {item['metadata']['name']} does not select its own pods"
    for item in objects:
        spec = item.get("spec", {})
        selector = {
            "Service": {"matchLabels": spec.get("selector")},
            "PodDisruptionBudget": spec.get("selector"),
            "PodMonitor": spec.get("selector"),
            "NetworkPolicy": spec.get("podSelector"),
        }.get(item["kind"])
        if selector and not any(_selects(selector, workload) for workload in workloads):
            yield f"{item['kind']} {item['metadata']['name']} selects nothing"


def _selects(selector: Object, workload: Object) -> bool:
    labels = template_of(workload)["metadata"].get("labels", {})
    return all(labels.get(name) == value for name, value in (selector.get("matchLabels") or {}).items())


def ports_agree(objects: Sequence[Object]) -> Iterator[str]:
    named: dict[str, int] = {}
    for owner, _, container in servers(objects):
        named = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        options = options_of(container)
        if named != {"grpc": int(options["grpc-port"]), "metrics": int(options["metrics-port"])}:
            yield f"{owner} listens on other ports than {named}"
    offered = {port["port"] for item in of_kind(objects, "Service") for port in item["spec"]["ports"]}
    for item in objects:
        for port in _ports_of(item):
            there = port in offered if item["kind"] == "GRPCRoute" else port in named or port in named.values()
            if not there:
                yield f"{item['kind']} {item['metadata']['name']} leads to {port}, where nobody listens"
        if item["kind"] == "Service" and any(p["targetPort"] not in ("grpc", 8001) for p in item["spec"]["ports"]):
            yield f"Service {item['metadata']['name']} offers more than gRPC"
        if item["kind"] == "PodMonitor" and [*_ports_of(item)] != ["metrics"]:
            yield f"PodMonitor {item['metadata']['name']} does not ask for the metrics"


def _ports_of(item: Object) -> Iterator[int | str]:
    """The ports that an object leads to, by name or number."""
    spec = item.get("spec", {})
    match item["kind"]:
        case "Service":
            yield from (port["targetPort"] for port in spec["ports"])
        case "NetworkPolicy":
            yield from (port["port"] for rule in spec.get("ingress", []) for port in rule.get("ports", []))
        case "PodMonitor":
            yield from (endpoint["port"] for endpoint in spec["podMetricsEndpoints"])
        case "GRPCRoute":
            yield from (backend["port"] for rule in spec["rules"] for backend in rule["backendRefs"])


def nobody_reaches_what_is_not_theirs(objects: Sequence[Object]) -> Iterator[str]:
    """Of sets with network policies. One about what goes out alone can go without the others."""
    policies = [*of_kind(objects, "NetworkPolicy")]
    inward = any("Ingress" in policy["spec"]["policyTypes"] for policy in policies)
    if inward and not any(p["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} for p in policies):
        yield "no policy denies everything"
    for policy in policies:
        name = policy["metadata"]["name"]
        for way, side in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(way, []):
                if not rule.get("ports") or not rule.get(side):
                    yield f"NetworkPolicy {name}: a rule for {way} has no peers or no ports"
                for peer in rule.get(side, []):
                    if not peer.get("namespaceSelector", {}).get("matchLabels"):
                        yield f"NetworkPolicy {name}: {way} is open to more than some namespaces: {peer}"
                opened = {str(port.get("port")) for port in rule.get("ports", [])}
                if way == "ingress" and opened & METRICS:
                    peers = [peer.get("namespaceSelector", {}).get("matchLabels") for peer in rule.get("from", [])]
                    if opened - METRICS or peers != [{"kubernetes.io/metadata.name": "monitoring"}]:
                        yield f"NetworkPolicy {name} opens the metrics to {peers}"
    for service in of_kind(objects, "Service"):
        if service["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield f"Service {service['metadata']['name']} is open to the outside"


def scaling_follows_the_streams(objects: Sequence[Object]) -> Iterator[str]:
    for item in of_kind(objects, "ScaledObject"):
        name, namespace = item["metadata"]["name"], item["metadata"]["namespace"]
        for trigger in item["spec"]["triggers"]:
            yield from (f"ScaledObject {name} {problem}" for problem in _query_problems(trigger["metadata"]["query"]))
            if set(re.findall(r'namespace="([^"]*)"', trigger["metadata"]["query"])) != {namespace}:
                yield f"ScaledObject {name} counts another namespace's streams"
            if trigger.get("metricType") != "Value" or trigger["metadata"].get("ignoreNullValues") != "false":
                yield f"ScaledObject {name} misreads servers that load, or missing figures"
            if not 0 < float(trigger["metadata"]["threshold"]) < 1:
                yield f"ScaledObject {name} leaves no slot free"


def _query_problems(query: str) -> Iterator[str]:
    metrics = set(re.findall(r"\bpolylip_\w+", query))
    for metric in sorted(metrics - {family.name for family in FAMILIES}):
        yield f"asks for {metric}, which no model publishes"
    if not {"polylip_live_sequences", "polylip_slots"} <= metrics:
        yield "does not compare live streams with slots"
    for model in "|".join(re.findall(r'model=~?"([^"]*)"', query)).split("|"):
        if not (REPOSITORY / model / "config.pbtxt").is_file():
            yield f"asks for streams of {model!r}, which is no model"


def servers_leave_one_by_one(objects: Sequence[Object]) -> Iterator[str]:
    """Of sets with an autoscaler."""
    drain_s = max((sum(hook_of(container) or (0.0, 0.0)) for _, _, container in servers(objects)), default=0.0)
    for item in of_kind(objects, "ScaledObject"):
        name, spec = item["metadata"]["name"], item["spec"]
        if not 2 <= spec["minReplicaCount"] <= spec["maxReplicaCount"]:
            yield f"ScaledObject {name} may leave fewer than two servers"
        down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
        for policy in down["policies"]:
            if policy["type"] != "Pods" or policy["value"] > 1 or policy["periodSeconds"] < drain_s:
                yield f"ScaledObject {name} takes servers away faster than they drain"
        if down["stabilizationWindowSeconds"] < drain_s:
            yield f"ScaledObject {name} takes servers away in a lull"


def a_stream_stays_with_its_server(objects: Sequence[Object]) -> Iterator[str]:
    """Of sets with a gateway."""
    policies = {
        target["name"]: policy["spec"]
        for policy in of_kind(objects, "BackendTrafficPolicy")
        for target in policy["spec"]["targetRefs"]
    }
    for route in of_kind(objects, "GRPCRoute"):
        name, policy = route["metadata"]["name"], policies.get(route["metadata"]["name"], {})
        matches = [match for rule in route["spec"]["rules"] for match in rule.get("matches", [{}])]
        by_stream = {header["name"] for match in matches for header in match.get("headers", [])} == {STREAM_ID_KEY}
        balancer = policy.get("loadBalancer", {})
        header = balancer.get("consistentHash", {}).get("header", {}).get("name")
        if by_stream and (balancer.get("type"), header) != ("ConsistentHash", STREAM_ID_KEY):
            yield f"GRPCRoute {name} does not keep a stream on one server"
        if any("method" not in match for match in matches):
            yield f"GRPCRoute {name} lets every call in"
        if policy.get("timeout", {}).get("http", {}).get("requestTimeout") != "0s":
            yield f"GRPCRoute {name} ends streams by the clock"
        if not set(policy.get("retry", {}).get("retryOn", {}).get("triggers", [""])) <= NEVER_PROCESSED:
            yield f"GRPCRoute {name} may send twice what a server has begun"
    for item in of_kind(objects, "Gateway"):
        name = item["metadata"]["name"]
        idle = [
            policy["spec"].get("timeout", {}).get("http", {}).get("streamIdleTimeout", "5m")
            for policy in of_kind(objects, "ClientTrafficPolicy")
            if any(target["name"] == name for target in policy["spec"]["targetRefs"])
        ]
        if not idle or min(map(seconds, idle)) < HOUR_S:
            yield f"Gateway {name} ends streams that are silent for a while"
        if any(listener["protocol"] != "HTTPS" for listener in item["spec"]["listeners"]):
            yield f"Gateway {name} listens without TLS"


def both_ends_speak_tls_or_neither(objects: Sequence[Object]) -> Iterator[str]:
    wanted = {"tls-cert", "tls-key", "tls-client-ca"}
    given = [wanted & options_of(container).keys() for _, _, container in servers(objects)]
    if any(options not in (set(), wanted) for options in given):
        yield "a server has a part of the TLS options"
    tls = any(given)
    plain = any(p.get("appProtocol") for s in of_kind(objects, "Service") for p in s["spec"]["ports"])
    if plain is tls and [*of_kind(objects, "Service")]:
        yield f"the service says {'plain HTTP/2' if plain else 'nothing'}, servers speak {'TLS' if tls else 'plain'}"
    gateway = any(True for _ in of_kind(objects, "Gateway"))
    if gateway and any(True for _ in of_kind(objects, "BackendTLSPolicy")) is not tls:
        yield "gateway and servers do not agree on TLS"


def seconds(text: str) -> float:
    """A duration of Gateway API."""
    return sum(float(number) * SECONDS[unit] for number, unit in re.findall(r"(\d+)(ms|s|m|h)", text))


def windows_hold_a_chunk(objects: Sequence[Object]) -> Iterator[str]:
    """A chunk of key frames is 3.5 MB; a smaller HTTP/2 window makes it wait for the line's delay again and again."""
    for item in of_kind(objects, "BackendTrafficPolicy", "ClientTrafficPolicy"):
        if quantity(item["spec"].get("http2", {}).get("initialStreamWindowSize", "64Ki")) < 4 * 2**20:
            yield f"{item['kind']} {item['metadata']['name']} has a small window"


TRAFFIC_POLICIES: tuple[Policy, ...] = (
    servers_are_probed,
    servers_drain_before_they_end,
    updates_take_no_server_away,
    selectors_find_pods,
    ports_agree,
    nobody_reaches_what_is_not_theirs,
    scaling_follows_the_streams,
    servers_leave_one_by_one,
    a_stream_stays_with_its_server,
    both_ends_speak_tls_or_neither,
    windows_hold_a_chunk,
)
