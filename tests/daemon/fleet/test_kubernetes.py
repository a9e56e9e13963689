"""deploy/kubernetes, as far as it can be checked without a cluster: what it names is there, what it sets is a configuration."""

import os
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from typer.testing import CliRunner

from daemon.commands import app
from daemon.config import DEFAULT_BUNDLE, Config, load_config
from daemon.fleet.keys import GROUP, FleetKeys
from model.bundle import read_bundle

FOLDER: Final = Path(__file__).parents[3] / "deploy" / "kubernetes"
OBJECTS: Final[list[dict[str, Any]]] = [
    found for path in sorted(FOLDER.glob("*.yaml")) for found in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]
SECRETS: Final = {
    "gateway-url": "rediss://medusa-gateway:secret@redis:6380/0",
    "worker-url": "rediss://medusa-worker:secret@redis:6380/0",
    "keys": '{"desk": {"key_file": "/run/secrets/desk", "roles": ["read"]}}',
    "token-secret": "0123456789abcdef0123456789abcdef",
}
KEDA_OPTIONS: Final = {
    *("address", "host", "port", "usernameFromEnv", "passwordFromEnv", "stream", "consumerGroup", "lagCount"),
    *("pendingEntriesCount", "streamLength", "activationLagCount", "databaseIndex", "enableTLS", "unsafeSsl"),
}
"""Of the trigger `redis-streams`, as KEDA documents it."""


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in OBJECTS if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pod(role: str) -> dict[str, Any]:
    found: dict[str, Any] = named("Deployment", f"medusa-{role}")["spec"]["template"]["spec"]
    return found


def configured(role: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    """What the container's arguments and environment make of the daemon."""
    for name in [name for name in os.environ if name.startswith("MEDUSA_")]:
        monkeypatch.delenv(name)
    (container,) = pod(role)["containers"]
    for variable in container["env"]:
        secret = variable.get("valueFrom", {}).get("secretKeyRef")
        monkeypatch.setenv(variable["name"], variable["value"] if secret is None else SECRETS[secret["key"]])
    command, *words = container["args"]
    assert command == "serve"
    flags = dict(zip(words[::2], words[1::2], strict=True))
    return load_config(None, {flag.removeprefix("--"): value for flag, value in flags.items()})


def test_there_is_what_a_fleet_needs() -> None:
    kinds = sorted((each["kind"], each["metadata"]["name"]) for each in OBJECTS)
    assert {
        ("Deployment", "medusa-gateway"),
        ("Deployment", "medusa-worker"),
        ("ScaledObject", "medusa-worker"),
    } <= set(kinds)
    assert len(kinds) == len(set(kinds)) == 7


@pytest.mark.parametrize("role", ["gateway", "worker"])
def test_what_a_pod_runs_is_a_configuration(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(role, monkeypatch)
    assert config.role == role
    assert config.host == "0.0.0.0"
    assert config.insecure, "it would not listen there else"
    assert config.redis == SECRETS[f"{role}-url"]
    rounds = 3 if role == "gateway" else 1
    assert pod(role)["terminationGracePeriodSeconds"] > rounds * config.drain_timeout_s
    flags = [word for word in pod(role)["containers"][0]["args"] if word.startswith("--")]
    text = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    assert [flag for flag in flags if flag not in text] == []


@pytest.mark.parametrize("role", ["gateway", "worker"])
def test_probes_ask_what_is_answered(role: str) -> None:
    (container,) = pod(role)["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": Config.model_fields["port"].default}]
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > 60, "a gateway waits a minute for the first worker"


@pytest.mark.parametrize("role", ["gateway", "worker"])
def test_pods_have_no_rights(role: str) -> None:
    spec = pod(role)
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}


def test_workers_are_scaled_by_the_lag_of_their_group() -> None:
    scaled = named("ScaledObject", "medusa-worker")["spec"]
    (trigger,) = scaled["triggers"]
    assert scaled["scaleTargetRef"]["name"] == named("Deployment", "medusa-worker")["metadata"]["name"]
    assert "replicas" not in named("Deployment", "medusa-worker")["spec"], "KEDA sets them"
    assert trigger["type"] == "redis-streams"
    assert set(trigger["metadata"]) <= KEDA_OPTIONS
    assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes text alone"
    assert trigger["metadata"]["consumerGroup"] == GROUP
    wanted = FleetKeys(read_bundle(DEFAULT_BUNDLE).id).work
    assert trigger["metadata"]["stream"] == wanted, "deploy/kubernetes/scaling.yaml names the bundle that ships"
    assert int(trigger["metadata"]["lagCount"]) > 0
    assert 0 < scaled["minReplicaCount"] < scaled["maxReplicaCount"]
    assert named("TriggerAuthentication", trigger["authenticationRef"]["name"])


def test_selectors_meet_labels() -> None:
    labels = [
        named("Deployment", f"medusa-{role}")["spec"]["template"]["metadata"]["labels"]
        for role in ("gateway", "worker")
    ]
    assert named("Service", "medusa")["spec"]["selector"] == labels[0]
    assert named("PodDisruptionBudget", "medusa-gateway")["spec"]["selector"]["matchLabels"] == labels[0]
    assert named("NetworkPolicy", "medusa-worker")["spec"]["podSelector"]["matchLabels"] == labels[1]
    for role, own in zip(("gateway", "worker"), labels, strict=True):
        assert named("Deployment", f"medusa-{role}")["spec"]["selector"]["matchLabels"] == own
