"""deploy/, as far as it can be checked without Docker: well-formed files, paths that exist, metrics that there are."""

import ast
import asyncio
import inspect
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from daemon import server
from daemon.audit import assembled
from daemon.config import Config, load_config
from daemon.drift import Drift
from daemon.engine import EngineSettings
from daemon.fleet import serving
from daemon.metrics import Metrics
from daemon.shadow.counts import ShadowCounts
from daemon.swap import Bundles
from daemon.vitals import vitals
from tests.daemon.test_drift import WIDTH, heard

ROOT: Final = Path(__file__).parents[1]
DEPLOY: Final = ROOT / "deploy"
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
DASHBOARD: Final[dict[str, Any]] = json.loads((DEPLOY / "grafana/dashboards/medusa.json").read_text(encoding="utf-8"))
PANELS: Final[list[dict[str, Any]]] = DASHBOARD["panels"]
IMAGES: Final = ("Dockerfile", "Dockerfile.gpu")
EXTRAS: Final = {"Dockerfile": {"demo"}, "Dockerfile.gpu": {"demo", "gpu"}}
"""The daemon, and the words' weights; no torch."""


def instructions(name: str, image: str) -> list[list[str]]:
    """The words behind every instruction of a kind in a Dockerfile."""
    text = (DEPLOY / image).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.partition(" ") for line in text.splitlines() if line.startswith(f"{name} ")]
    return [shlex.split(words, posix=False) for _, _, words in lines]


def provisioned(kind: str) -> dict[str, Any]:
    (path,) = (DEPLOY / "grafana" / "provisioning" / kind).iterdir()
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


class TwoBundles(Bundles):
    """One that serves, one that retires; neither is loaded."""

    def streams(self) -> dict[str, int]:
        return {"one": 1, "two": 2}


def everything() -> Metrics:
    """All that has a collector of its own."""
    metrics = Metrics()
    drift = Drift()
    heard(drift, np.ones((60, WIDTH)))
    metrics.registry.register(drift)
    metrics.registry.register(TwoBundles(ROOT, EngineSettings()))
    ShadowCounts(metrics, lambda: 0)
    return metrics


async def page(metrics: Metrics) -> str:
    """As Prometheus scrapes it, from a process with an event loop."""
    async with vitals(metrics):
        return metrics.page().decode()


def metric_names() -> dict[str, set[str]]:
    """Names of samples that the daemon can give, with their labels; what is watched somewhere included."""
    metrics = everything()
    labelled = [value for value in vars(metrics).values() if hasattr(value, "_labelnames")]
    for metric in labelled:
        if metric._labelnames:
            metric.labels(*("x" for _ in metric._labelnames))
    for kind, name in kept_elsewhere():
        getattr(metrics, kind)(name, "", lambda: 0.0)
    found = text_string_to_metric_families(asyncio.run(page(metrics)))
    samples = (sample for family in found for sample in family.samples)
    return {sample.name: set(sample.labels) for sample in samples if sample.name.startswith("medusa_")}


def kept_elsewhere() -> set[tuple[str, str]]:
    """What the daemon has read when it is asked for: `watch` or `count`, and the name."""
    found: set[tuple[str, str]] = set()
    for module in (assembled, server, serving):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="watch" | "count" as kind), args=[ast.Constant(str() as name), *_]
                ):
                    found.add((kind, name))
                case ast.Call(func=ast.Attribute(attr="watch" | "count" as kind), args=[ast.JoinedStr() as name, *_]):
                    found |= {(kind, ast.unparse(name)[2:-1].format(name=model)) for model in ("asr", "emotion")}
    assert len(found) >= 20
    return found


def queries() -> list[tuple[str, str]]:
    return [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]


@pytest.mark.parametrize("image", IMAGES)
def test_every_path_that_the_dockerfile_copies_is_there(image: str) -> None:
    copied = [words for words in instructions("COPY", image) if not words[0].startswith("--from")]
    sources = [source for *paths, _ in copied for source in paths]
    assert {"daemon", "model", "train", "export", "pyproject.toml", "constraints.txt"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []
    let_in = (DEPLOY / f"{image}.dockerignore").read_text(encoding="utf-8").split()
    assert {line[1:] for line in let_in if line.startswith("!")} == set(sources), "what is copied reaches the build"


@pytest.mark.parametrize("image", IMAGES)
def test_the_image_is_pinned_small_and_without_rights(image: str) -> None:
    installs = [words for words in instructions("RUN", image) if "install" in words]
    assert all("--constraint" in run for run in installs)
    extras = re.search(r"\.\[(.*?)\]", " ".join(installs[0]))
    assert extras is not None
    assert set(extras[1].split(",")) == EXTRAS[image]
    assert instructions("USER", image) == [["medusa"]]
    assert instructions("HEALTHCHECK", image)
    assert all(not words[0].endswith(":latest") for words in instructions("FROM", image))


@pytest.mark.parametrize("image", IMAGES)
def test_what_the_container_runs_is_a_command(image: str) -> None:
    entry = json.loads(" ".join(instructions("ENTRYPOINT", image)[0]))
    command = json.loads(" ".join(instructions("CMD", image)[0]))
    assert entry == ["medusa-daemon"]
    assert command == ["serve", "--host", "0.0.0.0"]
    assert instructions("EXPOSE", image) == [[str(Config.model_fields["port"].default)]]


def environment(image: str) -> dict[str, str]:
    """What an image sets for its programs."""
    return dict(pair.split("=", 1) for words in instructions("ENV", image) for pair in words)


def test_both_images_are_one_but_for_the_gpu() -> None:
    for name in ("FROM", "COPY", "USER", "WORKDIR", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD"):
        assert instructions(name, "Dockerfile") == instructions(name, "Dockerfile.gpu"), name
    plain, gpu = map(environment, IMAGES)
    assert plain.items() <= gpu.items()


def test_the_gpu_image_has_one_onnxruntime() -> None:
    """Else the one that was installed last, which may be the CPU's, is what there is."""
    (_, repair) = [" ".join(words) for words in instructions("RUN", "Dockerfile.gpu") if "pip" in " ".join(words)]
    removed, installed, checked = (part.strip() for part in repair.split("&&"))
    assert removed.endswith("uninstall --yes onnxruntime onnxruntime-gpu")
    assert "--no-deps" in installed.split(), "its dependencies are there, and the CPU's package is not to come back"
    assert installed.endswith("onnxruntime-gpu")
    assert "CUDAExecutionProvider" in checked


def test_the_gpu_image_asks_for_a_gpu_and_finds_every_library(monkeypatch: pytest.MonkeyPatch) -> None:
    found = environment("Dockerfile.gpu")
    for name, value in found.items():
        if name.startswith("MEDUSA_"):
            monkeypatch.setenv(name, value)
    assert load_config(None, {}).models.device == "cuda"
    assert found["NVIDIA_TF32_OVERRIDE"] == "0"
    folders = found["LD_LIBRARY_PATH"].split(":")
    version = re.search(r"python:(\d+\.\d+)", instructions("FROM", "Dockerfile.gpu")[-1][0])
    assert version is not None
    assert all(folder.startswith(f"/opt/medusa/lib/python{version[1]}/site-packages/nvidia/") for folder in folders)
    assert {folder.split("/")[-2] for folder in folders} == {"cublas", "cu13", "cudnn"}


def test_the_gpu_extra_is_pinned_and_as_new_as_the_cpu() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {re.split(r"[\[<>=]", line)[0] for line in project["optional-dependencies"]["gpu"]} - {project["name"]}
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split())
    assert wanted <= set(pins)
    assert pins["onnxruntime-gpu"] == pins["onnxruntime"]
    assert pins["nvidia-cublas"].split(".")[0] == "13", "what onnxruntime-gpu is linked against"
    assert pins["nvidia-cublas-cu12"].split(".")[0] == "12", "what CTranslate2 loads"


def test_paths_of_compose_are_there() -> None:
    mounted = [
        volume.partition(":")[0]
        for service in COMPOSE["services"].values()
        for volume in service.get("volumes", ())
        if volume.startswith(".")
    ]
    assert len(mounted) >= 3
    assert [path for path in mounted if not (DEPLOY / path).exists()] == []
    build = COMPOSE["services"]["daemon"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    named = {v.partition(":")[0] for s in COMPOSE["services"].values() for v in s.get("volumes", ()) if v[0] != "."}
    assert named == set(COMPOSE["volumes"])


def test_compose_opens_ports_to_this_machine_alone() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_images_of_compose_are_pinned() -> None:
    images = [service["image"] for service in COMPOSE["services"].values() if "image" in service]
    assert len(images) == 3
    assert all(re.fullmatch(r"[a-z/]+:v?\d+\.\d+(\.\d+)?", image) for image in images)


def test_the_environment_of_the_daemon_is_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in COMPOSE["services"]["daemon"]["environment"].items():
        monkeypatch.setenv(name, value)
    config = load_config(None, {})
    assert config.redis == "redis://redis:6379/0"
    assert "redis" in COMPOSE["services"]
    grace = COMPOSE["services"]["daemon"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > 2 * config.drain_timeout_s


def test_prometheus_scrapes_the_daemon() -> None:
    prometheus = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"daemon:{Config.model_fields['port'].default}"]}]
    assert "metrics_path" not in job, "/metrics is the default, and ours"


def test_the_data_source_of_the_dashboard_is_provisioned() -> None:
    (source,) = provisioned("datasources")["datasources"]
    assert source["url"].removeprefix("http://").partition(":")[0] in COMPOSE["services"]
    asked = {panel["datasource"]["uid"] for panel in PANELS} | {
        t["datasource"]["uid"] for p in PANELS for t in p["targets"]
    }
    assert asked == {source["uid"]}
    (provider,) = provisioned("dashboards")["providers"]
    mounts = [volume.split(":")[1] for volume in COMPOSE["services"]["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounts


NAMES: Final = metric_names()


@pytest.mark.parametrize(("panel", "query"), queries())
def test_every_metric_of_the_dashboard_is_one_of_ours(panel: str, query: str) -> None:
    known = NAMES
    used = re.findall(r"(medusa_\w+)\{(.*?)\}", query)
    assert used, panel
    assert len(used) == len(re.findall(r"medusa_\w+", query)), "each is of the chosen daemons alone"
    for name, selectors in used:
        assert name in known, panel
        asked = set(re.findall(r"(\w+)(?:=~|!=|!~|=)\"", selectors)) - {"instance"}
        assert asked <= known[name] | {"le"}, panel
        if name.endswith("_bucket"):
            assert "le" in query
    for label in re.findall(r"by \((\w+)\)", query):
        assert any(label in known[name] for name, _ in used), panel
    assert query.count("(") == query.count(")")


def test_panels_lie_side_by_side() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        mine = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not mine & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        cells |= mine
    assert len({panel["id"] for panel in PANELS}) == len(PANELS) >= 12


def test_metrics_that_matter_are_on_the_dashboard() -> None:
    shown = " ".join(query for _, query in queries())
    assert {name for name in families() if name not in shown} == set()


def families() -> set[str]:
    """Names without what the kind of metric adds to its samples."""
    return {re.sub(r"_(total|created|bucket|sum|count)$", "", name) for name in NAMES}


def test_the_page_about_operations_names_every_metric() -> None:
    """Or the one about fleets; and none that is not there."""
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("operations.md", "scale-out.md")]
    rows = [line for page in pages for line in page.splitlines() if line.startswith("| `medusa_")]
    named = {name for row in rows for name in re.findall(r"`(medusa_\w+)`", row.split("|")[1])}
    assert {re.sub(r"_total$", "", name) for name in named} == families()
    counters = [row.split("|") for row in rows if row.split("|")[2].strip() == "counter"]
    for _, names, _, labels, *_ in counters:
        for name in re.findall(r"`(medusa_\w+)`", names):
            assert set(re.findall(r"`(\w+)`", labels)) == NAMES[name], name


def test_alerts_are_about_metrics_of_ours() -> None:
    alerts = yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))
    prometheus = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    mounted = [volume.split(":")[1] for volume in COMPOSE["services"]["prometheus"]["volumes"]]
    assert [f"/etc/prometheus/{name}" for name in prometheus["rule_files"]] == mounted[1:2]
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    assert len(rules) - len(recorded) >= 4
    for rule in rules:
        used = re.findall(r"medusa[\w:]+", rule["expr"])
        assert used
        assert set(used) <= set(NAMES) | recorded
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert "record" in rule or set(rule["annotations"]) == {"summary"}
