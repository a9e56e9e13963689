"""What gets installed: names that nobody else owns, programs that start, and a wheel with everything in it."""

import json
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import Distribution, distribution, entry_points, packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

from daemon.config import DEFAULT_BUNDLE
from model.bundle import MANIFEST, SUMS

ROOT = Path(__file__).parents[1]
OURS = "medusa-rt"
PACKAGES = ("daemon", "model", "train", "export")


def is_editable(installed: Distribution) -> bool:
    """Whether it is only a pointer to this tree: such a distribution lists none of its packages."""
    origin = installed.read_text("direct_url.json")
    return bool(origin and json.loads(origin).get("dir_info", {}).get("editable"))


def owners(name: str) -> set[str]:
    """Distributions that install a top-level name."""
    found = set(packages_distributions().get(name, []))
    if name in PACKAGES and is_editable(distribution(OURS)):
        found.add(OURS)
    return found


@pytest.mark.parametrize("name", PACKAGES)
def test_our_names_are_ours_alone(name: str) -> None:
    """python-daemon, for one, installs a `daemon` too: one of the two would not work."""
    assert owners(name) == {OURS}
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).parent == ROOT / name


def test_onnxruntime_has_one_owner() -> None:
    """The CPU and the GPU distribution install the same files, and the last one wins silently."""
    assert len(owners("onnxruntime")) == 1


def test_the_metadata_agrees_with_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert tuple(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == PACKAGES
    assert distribution(OURS).version == project["project"]["version"]


@pytest.mark.parametrize("program", ["medusa-daemon", "medusa-train", "medusa-export"])
def test_console_scripts_resolve(program: str) -> None:
    (script,) = entry_points(group="console_scripts", name=program)
    assert script.dist is not None
    assert script.dist.name == OURS
    assert callable(script.load())


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Files of the built wheel, with their sizes."""
    pytest.importorskip("hatchling", reason="building the wheel needs hatchling")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {item.filename: item.file_size for item in archive.infolist()}


def test_the_wheel_holds_the_whole_default_bundle(wheel_files: dict[str, int]) -> None:
    manifest = json.loads((DEFAULT_BUNDLE / MANIFEST).read_text(encoding="utf-8"))
    wanted = {*manifest["files"], MANIFEST, SUMS}
    prefix = "daemon/bundles/default/"
    assert {name.removeprefix(prefix) for name in wheel_files if name.startswith(prefix)} == wanted
    assert all(wheel_files[prefix + name] == (DEFAULT_BUNDLE / name).stat().st_size for name in wanted)


@pytest.mark.parametrize("name", ["daemon/demo/call.flac", "daemon/demo/call.json", "daemon/web/index.html"])
def test_the_wheel_holds_the_page_and_the_demo_call(wheel_files: dict[str, int], name: str) -> None:
    assert wheel_files[name] == (ROOT / name).stat().st_size > 0


def test_the_wheel_holds_our_packages_and_nothing_else(wheel_files: dict[str, int]) -> None:
    assert {name.split("/")[0] for name in wheel_files if ".dist-info/" not in name} == set(PACKAGES)
    assert not [name for name in wheel_files if "__pycache__" in name or name.startswith("tests/")]
