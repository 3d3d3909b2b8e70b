"""deploy/kubernetes: valid for the versions of Kubernetes in use, and in agreement with the server and each other."""

import copy
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support.deploy import DEPLOY, LAST_ANSWERS, documents, probe_paths, settings_of

from latentrt.serve.metrics import Metrics
from latentrt.serve.ray.settings import application

FOLDER = DEPLOY / "kubernetes"
VERSIONS = ("1.30", "1.33", kubernetes_validate.latest_version())
CUSTOM = ("rayservice.yaml", "kustomization.yaml", "prometheus-adapter.yaml")  # not of Kubernetes itself
CORE = sorted(file.name for file in FOLDER.glob("*.yaml") if file.name not in CUSTOM)


def of(file: str) -> list[dict[str, Any]]:
    return documents(f"kubernetes/{file}")


(DEPLOYMENT,), (AUTOSCALER,), (RAY,) = of("deployment.yaml"), of("autoscaler.yaml"), of("rayservice.yaml")
(SERVICE,), (BUDGET,), (SECRET,) = of("service.yaml"), of("disruption-budget.yaml"), of("secret.example.yaml")
(ADAPTER,) = of("prometheus-adapter.yaml")
CLAIMS = {claim["metadata"]["name"] for claim in of("claims.yaml")}
POD = DEPLOYMENT["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
RAY_CONFIG = yaml.safe_load(RAY["spec"]["serveConfigV2"])
(RAY_APP,) = RAY_CONFIG["applications"]
RAY_HEAD = RAY["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
(RAY_WORKERS,) = RAY["spec"]["rayClusterConfig"]["workerGroupSpecs"]
PODS = {"deployment": POD, "ray head": RAY_HEAD, "ray worker": RAY_WORKERS["template"]}


def validate(document: dict[str, Any], version: str = VERSIONS[0]) -> None:
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", CORE)
def test_manifests_are_valid(file: str, version: str) -> None:
    for document in of(file):
        validate(document, version)


def test_unknown_and_wrong_fields_are_found() -> None:
    wrong = copy.deepcopy(DEPLOYMENT)
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(wrong)
    wrong = copy.deepcopy(AUTOSCALER)
    wrong["spec"]["maxReplicas"] = "16"
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(wrong)


@pytest.mark.parametrize("name", PODS)
def test_pods_are_valid_also_inside_of_a_rayservice(name: str) -> None:
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": PODS[name]["spec"]})


def test_kustomization_has_every_manifest() -> None:
    (kustomization,) = of("kustomization.yaml")
    assert set(kustomization["resources"]) == {*CORE} - {"secret.example.yaml"}


# --- the server as it is ----------------------------------------------------------------------------------------------


def variables(container: dict[str, Any]) -> dict[str, str]:
    """Those of a container, with the values of the example's Secret."""
    found = {}
    for entry in container["env"]:
        reference = entry.get("valueFrom", {}).get("secretKeyRef")
        assert reference is None or reference["name"] == SECRET["metadata"]["name"]
        found[entry["name"]] = entry["value"] if reference is None else SECRET["stringData"][reference["key"]]
    return found


def test_arguments_and_variables_are_settings() -> None:
    settings = settings_of(CONTAINER["args"], variables(CONTAINER))
    assert [model.name for model in settings.models] == ["sd15"]
    assert "postgres" in str(settings.state)
    (keys,) = (volume for volume in POD["spec"]["volumes"] if volume["name"] == "keys")
    (item,) = keys["secret"]["items"]
    assert item["key"] in SECRET["stringData"]
    assert settings.keys == Path("/etc/latentrt", item["path"])


@pytest.mark.parametrize(("kind", "path"), [("startup", "/live"), ("liveness", "/live"), ("readiness", "/ready")])
def test_probes_are_the_servers(kind: str, path: str) -> None:
    probe = CONTAINER[f"{kind}Probe"]["httpGet"]
    assert probe == {"path": path, "port": "http"}
    assert path in probe_paths()
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports["http"] == settings_of([], {}).port


def test_pods_have_the_time_to_drain() -> None:
    """Until proxies know, then what was accepted, then the last answers."""
    settings = settings_of(CONTAINER["args"], variables(CONTAINER))
    pause = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    noticed = CONTAINER["readinessProbe"]["periodSeconds"] * CONTAINER["readinessProbe"]["failureThreshold"]
    assert pause >= noticed
    needed = pause + max(settings.drain_seconds, settings.grace_seconds) + LAST_ANSWERS
    assert POD["spec"]["terminationGracePeriodSeconds"] > needed
    assert PODS["ray worker"]["spec"]["terminationGracePeriodSeconds"] > RAY_APP["args"]["drain_seconds"] + LAST_ANSWERS


@pytest.mark.parametrize("name", PODS)
def test_pods_may_do_little(name: str) -> None:
    spec = PODS[name]["spec"]
    assert spec["enableServiceLinks"] is False  # LATENTRT_SERVE_PORT=tcp://… would be a setting
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"]
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in spec["volumes"]}
    claims = {
        volume["persistentVolumeClaim"]["claimName"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume
    }
    assert claims <= CLAIMS


def test_what_a_server_writes_is_writable() -> None:
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    writable = {mount["mountPath"] for mount in CONTAINER["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/tmp", "/var/cache/latentrt", "/var/lib/latentrt"}


def test_only_those_that_draw_have_a_gpu() -> None:
    limits = {name: pod["spec"]["containers"][0]["resources"]["limits"] for name, pod in PODS.items()}
    assert {name for name, limit in limits.items() if limit.get("nvidia.com/gpu") == "1"} == {
        "deployment",
        "ray worker",
    }


def test_selectors_find_the_pods() -> None:
    labels = POD["metadata"]["labels"].items()
    assert SERVICE["spec"]["selector"].items() <= labels
    for selector in (DEPLOYMENT["spec"]["selector"], BUDGET["spec"]["selector"]):
        assert selector["matchLabels"].items() <= labels
    assert SERVICE["spec"]["ports"][0]["targetPort"] in {port["name"] for port in CONTAINER["ports"]}
    assert "replicas" not in DEPLOYMENT["spec"]  # it would undo the autoscaler's at every change


# --- scaling ----------------------------------------------------------------------------------------------------------


def test_the_autoscaler_looks_at_a_metric_of_the_server(tmp_path: Path) -> None:
    target = AUTOSCALER["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (DEPLOYMENT["kind"], DEPLOYMENT["metadata"]["name"])
    (metric,) = AUTOSCALER["spec"]["metrics"]
    assert metric["type"] == "Pods"
    assert metric["pods"]["target"]["type"] == "AverageValue"
    (rule,) = ADAPTER["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"] == rule["name"]["matches"]
    assert rule["name"]["as"] in {family.name for family in Metrics().registry.collect()}
    query = rule["metricsQuery"]
    for mark, text in {"Series": rule["name"]["as"], "LabelMatchers": 'pod=~"a|b"', "GroupBy": "pod"}.items():
        assert f"<<.{mark}>>" in query
        query = query.replace(f"<<.{mark}>>", text)
    test = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    {"series": f'{rule["name"]["as"]}{{pod="a",device="cuda:{device}"}}', "values": values}
                    for device, values in enumerate(("1x20", "3x20"))
                ],
                "promql_expr_test": [
                    {"expr": query, "eval_time": "4m", "exp_samples": [{"labels": '{pod="a"}', "value": 4}]}
                ],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(test))
    child = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stdout + child.stderr


# --- Ray --------------------------------------------------------------------------------------------------------------


def test_the_rayservice_has_the_form_of_its_definition() -> None:
    """Its schema is in KubeRay's repository; these are the names that are used of it."""
    assert (RAY["apiVersion"], RAY["kind"]) == ("ray.io/v1", "RayService")
    assert set(RAY["spec"]) == {"serveConfigV2", "rayClusterConfig"}
    cluster = RAY["spec"]["rayClusterConfig"]
    assert set(cluster) == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert set(cluster["headGroupSpec"]) == {"rayStartParams", "template"}
    assert set(RAY_WORKERS) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    assert RAY_WORKERS["minReplicas"] <= RAY_WORKERS["replicas"] <= RAY_WORKERS["maxReplicas"]
    values = [*RAY_WORKERS["rayStartParams"].values(), *cluster["headGroupSpec"]["rayStartParams"].values()]
    assert all(isinstance(value, str) for value in values)


def test_ray_starts_the_application_with_settings_that_exist() -> None:
    assert RAY_APP["import_path"] == "latentrt.serve.ray_app:build"
    ports = {port["name"]: port["containerPort"] for port in RAY_HEAD["spec"]["containers"][0]["ports"]}
    assert ports["serve"] == RAY_CONFIG["http_options"]["port"]
    assert RAY_HEAD["spec"]["containers"][0]["env"] == RAY_WORKERS["template"]["spec"]["containers"][0]["env"]
    found = application(RAY_APP["args"], variables(RAY_HEAD["spec"]["containers"][0]))
    workers = RAY_WORKERS["minReplicas"], RAY_WORKERS["maxReplicas"]
    assert (found.ray.min_replicas, found.ray.max_replicas) == workers
    assert (found.keeps_jobs, found.gpus, str(found.settings.state_files)) == (True, 1, "/var/lib/latentrt")
