"""What the README shows is run as it stands there, but for addresses and the recording."""

import asyncio
import re
import sys
import tomllib
from pathlib import Path
from typing import Final

import pytest

from daemon.cli import app as daemon_app
from daemon.config import load_config
from export.cli import app as export_app
from tests.daemon.conftest import Served
from train.cli import app as train_app

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT: Final = Path(__file__).parents[2]
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
CLIENT, DASHBOARD = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
APPS: Final = {"medusa-daemon": daemon_app, "medusa-train": train_app, "medusa-export": export_app}


def changed(code: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    return code


async def run(code: str) -> str:
    """Output of a program that must succeed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out.decode()


async def test_the_client_and_the_dashboard_see_the_same(served: Served) -> None:
    changes = {"ws://127.0.0.1:8765/v1/stream": served.url, "daemon/demo/call.flac": "tests/assets/two_sentences.flac"}
    results = (await run(changed(CLIENT, changes))).splitlines()
    assert len(results) == 2
    events = await run(changed(DASHBOARD, {"redis://127.0.0.1:6390/0": served.daemon.redis_url}))
    shown = [line.split() for line in events.splitlines()]
    assert [line[0] for line in shown if line[0] != "emotion.interim"] == [
        "call.started",
        "emotion",
        "emotion",
        "call.ended",
        "call.summary",
    ]
    finals = [line for line in shown if line[0] == "emotion"]
    assert [line[3] for line in finals] == [result.split()[1] for result in results]


async def test_its_configuration_loads(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "daemon.toml"
    path.write_text(block, encoding="utf-8")
    config = load_config(path, {})
    assert config.model_fields_set == set(tomllib.loads(block))
    assert load_config(None, {}).model_dump(exclude={"host", "redis"}) == config.model_dump(exclude={"host", "redis"})


async def test_its_commands_and_files_exist() -> None:
    for program, command in re.findall(r"`(medusa-\w+) (\w+)", README):
        assert command in {known.callback.__name__ for known in APPS[program].registered_commands if known.callback}
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`?make (\w+)", README)) <= targets
    for linked in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / linked).is_file(), linked
