"""deploy/ and the Dockerfile: valid for Kubernetes, consistent among themselves, and in step with the code."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from api.keys import read_keys
from api.metrics import METRICS as INGEST
from config.catalog import sample_text
from config.settings import PREFIX, Settings
from telemetry import catalogue
from telemetry.catalogue import Kind
from tests.docs.commands import parse
from tests.docs.markdown import ROOT
from tests.docs.test_compose import SERVICES
from webhooks.endpoints import load_endpoints

FOLDER = ROOT / "deploy" / "kubernetes"
_NO_MANIFESTS = ("kustomization.yaml", "catalog.yaml")
MANIFESTS: dict[str, dict[str, Any]] = {
    f"{path.name}: {document['kind']}/{document['metadata']['name']}": document
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.name not in _NO_MANIFESTS
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
}
PODS = {
    name: m["spec"]["template"] for name, m in MANIFESTS.items() if "template" in m["spec" if "spec" in m else "kind"]
}
_SETTINGS = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
_DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def one(kind: str, name: str) -> dict[str, Any]:
    (found,) = [m for m in MANIFESTS.values() if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize("version", ["1.34", "1.37"])
def test_kubernetes_knows_every_manifest(name: str, version: str) -> None:
    """`make lint` validates as well, but takes a kind without a schema for a warning."""
    kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


def test_every_file_is_applied_but_the_example() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
    files = {path.name for path in FOLDER.glob("*.yaml")} - {*_NO_MANIFESTS, "secrets.example.yaml"}
    assert set(kustomization["resources"]) == files - {"webhooks.yaml"}
    (generated,) = kustomization["configMapGenerator"]
    assert generated == {"name": "tally-catalog", "files": ["catalog.yaml"]}
    assert (FOLDER / "catalog.yaml").read_text(encoding="utf-8") == sample_text("api")
    assert kustomization["images"] == [{"name": "tallyflow", "newTag": _PROJECT["project"]["version"]}]


@pytest.mark.parametrize("name", PODS)
def test_pods_have_no_rights_and_bounds(name: str) -> None:
    pod = PODS[name]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True and security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["image"] == f"tallyflow:{_PROJECT['project']['version']}"
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"] and "cpu" in container["resources"]["requests"]
        assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        if "ports" in container:
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
                assert container[probe]["httpGet"]["path"] == path
                assert container[probe]["httpGet"]["port"] in ports


@pytest.mark.parametrize("name", PODS)
def test_commands_settings_and_references_are_known(name: str) -> None:
    pod = PODS[name]["spec"]
    (container,) = pod["containers"]
    parse([argument.replace("$(PROCESS)", "1") for argument in container["args"]])
    named = {entry["name"] for entry in container.get("env", []) if entry["name"].startswith(PREFIX)}
    for source in container["envFrom"]:
        kind, reference = (
            ("ConfigMap", source["configMapRef"]) if "configMapRef" in source else ("Secret", source["secretRef"])
        )
        found = one(kind, reference["name"])
        named |= set(found["data"] if kind == "ConfigMap" else found["stringData"])
    assert named <= _SETTINGS
    for volume in pod["volumes"]:
        if "secret" in volume:
            one("Secret", volume["secret"]["secretName"])
        if "persistentVolumeClaim" in volume:
            assert one("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])["spec"][
                "accessModes"
            ] == ["ReadWriteMany"]
    settings = {
        key.removeprefix(PREFIX).lower(): value for key, value in one("ConfigMap", "tally-settings")["data"].items()
    }
    secrets = {
        key.removeprefix(PREFIX).lower(): value for key, value in one("Secret", "tally-passwords")["stringData"].items()
    }
    Settings(**settings, **secrets)


def test_the_processes_of_the_flow_find_each_other() -> None:
    flow, service = one("StatefulSet", "tally-flow"), one("Service", "tally-flow")
    spec = flow["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    arguments = container["args"]
    addresses = arguments[arguments.index("--addresses") + 1].split(",")
    port = {entry["name"]: entry["containerPort"] for entry in container["ports"]}["cluster"]
    assert addresses == [f"tally-flow-{i}.{spec['serviceName']}:{port}" for i in range(spec["replicas"])]
    assert service["metadata"]["name"] == spec["serviceName"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
    assert spec["podManagementPolicy"] == "Parallel" and spec["updateStrategy"] == {"type": "OnDelete"}
    assert (
        container["env"][0]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['apps.kubernetes.io/pod-index']"
    )
    workers = int(arguments[arguments.index("--workers") + 1])
    assert int(one("ConfigMap", "tally-settings")["data"]["TALLY_RECOVERY_PARTITIONS"]) >= workers * spec["replicas"]


@pytest.mark.parametrize("name", ["tally-flow", "tally-ingest"])
def test_selectors_select(name: str) -> None:
    kind = "StatefulSet" if name == "tally-flow" else "Deployment"
    labels = one(kind, name)["spec"]["template"]["metadata"]["labels"]
    assert one(kind, name)["spec"]["selector"]["matchLabels"] == labels
    assert one("Service", name)["spec"]["selector"] == labels
    assert one("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"] == labels
    assert one("NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"] == labels


def test_the_example_of_keys_can_be_read_and_matches() -> None:
    example = one("Secret", "tally-ingest-keys")["stringData"]["keys.yaml"]
    assert read_keys(example, "the example").find(b"change-me") is not None


def test_the_example_of_webhooks_can_be_read(tmp_path: Path) -> None:
    example = one("Secret", "tally-webhooks")["stringData"]
    for name, text in example.items():
        (tmp_path / name).write_text(text.replace("/run/secrets/tally", str(tmp_path)))
    assert [endpoint.name for endpoint in load_endpoints(tmp_path / "webhooks.yaml", {}).endpoints] == ["billing"]


def test_the_image_holds_what_is_installed_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    packages = set(_PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    files = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert lines[0] == "*" and lines[-1] == "**/__pycache__"
    assert sorted(line.removeprefix("!") for line in lines[1:-1]) == sorted(packages | files)
    assert "[embedded" not in _DOCKERFILE and "pip install ." in _DOCKERFILE


def test_the_image_runs_as_nobody_in_particular() -> None:
    assert re.findall(r"^USER (.+)$", _DOCKERFILE, flags=re.M) == ["10001:10001"]
    bases = re.findall(r"^FROM (\S+)", _DOCKERFILE, flags=re.M)
    assert len(bases) == 2 and len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.12-slim-\w+", bases[0])
    assert "TALLY_DATA_DIR=/var/lib/tally" in _DOCKERFILE and "VOLUME /var/lib/tally" in _DOCKERFILE
    (check,) = re.findall(r'^HEALTHCHECK .*CMD \["python", "-c", \\\n\s+"(.+)"\]$', _DOCKERFILE, flags=re.M)
    compile(check, "HEALTHCHECK", "exec")


def test_prometheus_asks_a_service_that_answers() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text(encoding="utf-8"))
    for job in config["scrape_configs"]:
        for target in job["static_configs"][0]["targets"]:
            name, _, port = target.partition(":")
            environment = SERVICES[name]["environment"]
            assert str(environment["TALLY_METRICS_PORT"]) == port and environment["TALLY_METRICS_HOST"] == "0.0.0.0"


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    known: set[str] = set()
    for metric in (*catalogue.METRICS, *INGEST):
        ends = ("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",)
        known |= {metric.name + end for end in ends}
    board = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "tallyflow.json").read_text(encoding="utf-8"))
    used = {name for panel in board["panels"] for t in panel["targets"] for name in re.findall(r"tally_\w+", t["expr"])}
    assert used and used <= known
    sources = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"] for source in sources}
