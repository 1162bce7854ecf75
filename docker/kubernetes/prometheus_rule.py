"""`python docker/kubernetes/prometheus_rule.py` makes docker/monitoring/prometheus-rule.yaml of rules.yaml.

Prometheus reads the rules as they are; Prometheus Operator wants them as the `spec` of an object, and kustomize cannot
make an object out of a file.
"""

from pathlib import Path
from textwrap import indent

MONITORING = Path(__file__).parents[1] / "monitoring"
RULES = MONITORING / "rules.yaml"
OBJECT = MONITORING / "prometheus-rule.yaml"
HEADER = """\
# Written by docker/kubernetes/prometheus_rule.py from rules.yaml; change that.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: polylip
  labels: {app.kubernetes.io/name: polylip}
spec:
"""


def prometheus_rule(rules: str) -> str:
    """The object that holds a file of rules, comments included."""
    return HEADER + indent(rules, "  ")


if __name__ == "__main__":
    OBJECT.write_text(prometheus_rule(RULES.read_text()))
