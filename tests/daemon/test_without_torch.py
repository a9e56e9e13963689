"""The daemon's environment has no torch: nothing that it imports or runs may ask for it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon.conftest import ASSETS

ROOT = Path(__file__).parents[2]

BLOCKED = """
import asyncio, importlib, importlib.abc, json, pkgutil, sys
from pathlib import Path

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers"}:
            raise ImportError(f"{name} is blocked")
        return None

sys.meta_path.insert(0, Blocker())
"""

SCORE = """
import daemon

modules = [module.name for module in pkgutil.walk_packages(daemon.__path__, "daemon.")]
for name in modules:
    if not name.endswith("__main__"):
        importlib.import_module(name)

from daemon.config import load_config
from daemon.offline import score_recording

events = asyncio.run(score_recording(Path(sys.argv[1]), load_config(None, {})))
print(json.dumps({
    "modules": modules,
    "sums": [sum(event.scores.posteriors.probabilities) for event in events],
    "texts": [event.scores.transcript.text for event in events],
    "blocked": [name for name in sys.modules if name.split(".")[0] in {"torch", "transformers"}],
}))
"""


def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A Python of its own."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_default_bundle_scores_a_clip() -> None:
    """With every module of the daemon imported."""
    done = run(BLOCKED + SCORE, str(ASSETS / "two_sentences.flac"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"daemon.server", "daemon.cli", "daemon.sinks.redis", "daemon.transports.websocket"} <= set(found["modules"])
    assert found["sums"] == [pytest.approx(1.0, abs=1e-5)] * 2
    assert all(found["texts"])
    assert found["blocked"] == []


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_the_blocker_blocks(name: str) -> None:
    """Else the test above could not fail."""
    done = run(BLOCKED + f"import {name}")
    assert done.returncode == 1
    assert f"{name} is blocked" in done.stderr
