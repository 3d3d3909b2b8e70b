"""deploy/monitoring: rules and dashboard ask for metrics and labels that the server has, and Prometheus takes them."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from support.deploy import DEPLOY, documents

from latentrt.serve.messages import FailedKind, RefusedReason
from latentrt.serve.metrics import Metrics

FOLDER = DEPLOY / "monitoring"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
(ALERTS,) = documents("monitoring/alerts.yml")
RULES = ALERTS["groups"][0]["rules"]
OF_PROMETHEUS = {"job", "instance", "namespace", "pod"}


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *words], cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False)


def exported() -> dict[str, set[str]]:
    """Names of samples as Prometheus stores them, and their labels."""
    found = {}
    for metric in Metrics().registry._collector_to_names:
        (family,) = metric.describe()
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        for suffix in suffixes:
            found[family.name + suffix] = {*metric._labelnames, *(["le"] if suffix == "_bucket" else [])}
    return found


def panels() -> Iterator[tuple[str, str]]:
    """Title and query of each curve."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


QUERIES = [*((rule["alert"], rule["expr"]) for rule in RULES), *panels()]
VARIABLES = [(entry["name"], entry["query"]["query"]) for entry in DASHBOARD["templating"]["list"][1:]]


def selectors(query: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Metrics of the server in a query, and the labels that they are chosen by."""
    for name, inner in re.findall(r"\b(latentrt_\w+)(?:\{([^}]*)\})?", query):
        yield name, dict(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', inner))


@pytest.mark.parametrize(("title", "query"), [*QUERIES, *VARIABLES])
def test_metrics_and_labels_are_exported(title: str, query: str) -> None:
    known = exported()
    for name, labels in selectors(query):
        assert name in known, f"{title} asks for {name}"
        assert set(labels) <= known[name] | OF_PROMETHEUS, f"{title}: {name} has no such label"
    grouped = {
        label
        for words in re.findall(r"\b(?:by|without|ignoring|on)\s*\(([^)]*)\)", query)
        for label in re.split(r"\s*,\s*", words.strip())
    }
    labels = {label for name, _ in selectors(query) for label in known[name]}
    assert grouped <= labels | OF_PROMETHEUS, title


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_alerts_name_outcomes_and_labels_that_exist(rule: dict[str, Any]) -> None:
    values = {"reason": {*get_args(RefusedReason)}, "outcome": {"done", *get_args(FailedKind)}}
    for _, labels in selectors(rule["expr"]):
        for label in values.keys() & labels:
            assert {*labels[label].split("|")} <= values[label]
    assert rule["labels"]["severity"] in ("critical", "warning")


def test_prometheus_takes_the_rules_and_they_fire_when_they_should() -> None:
    for words in (("check", "rules", "alerts.yml"), ("test", "rules", "alerts.test.yml")):
        child = promtool(*words)
        assert child.returncode == 0, child.stdout + child.stderr
    tests = yaml.safe_load((FOLDER / "alerts.test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in RULES}


def test_prometheus_takes_the_dashboards_queries(tmp_path: Path) -> None:
    def rules(queries: list[str]) -> str:
        made = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries)]
        file = tmp_path / "panels.yml"
        file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]}))
        return str(file)

    queries = [re.sub(r"\$(job|instance)\b", ".*", query.replace("$__rate_interval", "1m")) for _, query in panels()]
    assert not [query for query in queries if "$" in query]
    child = promtool("check", "rules", rules(queries))
    assert child.returncode == 0, child.stdout + child.stderr
    assert promtool("check", "rules", rules([f"{queries[0]})"])).returncode != 0


@pytest.mark.parametrize("file", ["prometheus.yml", "prometheus-kubernetes.yml"])
def test_prometheus_takes_the_configuration(file: str, tmp_path: Path) -> None:
    """Debian's promtool does not know Kubernetes' discovery: a fixed address stands in for it."""
    config = yaml.safe_load((FOLDER / file).read_text())
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "latentrt"  # the alerts say so
    if discovery := job.pop("kubernetes_sd_configs", None):
        assert discovery == [{"role": "pod"}]
        job["static_configs"] = [{"targets": ["pod:8000"]}]
    (tmp_path / "alerts.yml").write_bytes((FOLDER / "alerts.yml").read_bytes())
    (tmp_path / file).write_text(yaml.safe_dump(config))
    child = promtool("check", "config", str(tmp_path / file))
    assert child.returncode == 0, child.stdout + child.stderr


def test_pods_are_found_by_the_label_and_port_that_they_have() -> None:
    (deployment,) = documents("kubernetes/deployment.yaml")
    pod = deployment["spec"]["template"]
    (config,) = documents("monitoring/prometheus-kubernetes.yml")
    kept = {
        rule["source_labels"][0]: rule["regex"]
        for rule in config["scrape_configs"][0]["relabel_configs"]
        if "regex" in rule
    }
    assert kept == {
        "__meta_kubernetes_pod_label_app_kubernetes_io_name": pod["metadata"]["labels"]["app.kubernetes.io/name"],
        "__meta_kubernetes_pod_container_port_name": pod["spec"]["containers"][0]["ports"][0]["name"],
    }
    (adapter,) = documents("kubernetes/prometheus-adapter.yaml")
    labels = {rule.get("target_label") for rule in config["scrape_configs"][0]["relabel_configs"]}
    assert set(adapter["rules"]["custom"][0]["resources"]["overrides"]) <= labels


def test_the_dashboard_can_be_imported() -> None:
    """What Grafana needs: unique ids, panels that do not overlap within 24 columns, a data source that is chosen."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["type"] in ("stat", "timeseries")
    assert DASHBOARD["templating"]["list"][0]["type"] == "datasource"
