"""What the README shows is run as it stands there, but for addresses and the recording."""

import asyncio
import re
import sys
import tomllib
import wave
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from daemon.cli import app as daemon_app
from daemon.config import Config, load_config
from export.cli import app as export_app
from tests.daemon.conftest import ASSETS, Served, linear16_of
from train.cli import app as train_app

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT: Final = Path(__file__).parents[2]
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
CLIENT, DEEPGRAM, DASHBOARD = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TWILIO, SERVED, EXAMPLE = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
(TWIML,) = re.findall(r"```xml\n(.*?)```", README, re.DOTALL)
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


async def test_a_client_of_deepgram(served: Served, tmp_path: Path) -> None:
    """As its user has it: from a WAV file, with the SDK."""
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(linear16_of(ASSETS / "two_sentences.flac"))
    changes = {"127.0.0.1:8765": f"127.0.0.1:{served.port}", "speech-16k-mono.wav": str(tmp_path / "speech.wav")}
    lines = (await run(DEEPGRAM.replace(*changes.popitem()).replace(*changes.popitem()))).splitlines()
    assert len(lines) == 2
    assert "order" in lines[0]
    assert all(re.match(r"\w+ \d+% \w", line) for line in lines)


def loaded(block: str, folder: Path) -> Config:
    """A configuration, which says no more than stands there."""
    path = folder / "daemon.toml"
    path.write_text(block, encoding="utf-8")
    config = load_config(path, {})
    assert config.model_fields_set == set(tomllib.loads(block))
    return config


async def test_a_call_centre(tmp_path: Path) -> None:
    stream = ElementTree.fromstring(TWIML).find("./Start/Stream")
    config = loaded(TWILIO, tmp_path)
    assert stream is not None
    assert (stream.get("url"), stream.get("track")) == (f"{config.telephony.public_url}/twilio", "both_tracks")
    assert config.policy.analyze == ("customer",)
    assert config.telephony.twilio_auth_token is not None


async def test_a_server_that_others_reach(tmp_path: Path) -> None:
    config = loaded(SERVED, tmp_path)
    assert (config.host, config.access.required, list(config.access.keys)) == ("0.0.0.0", True, ["call-centre"])
    made = CliRunner().invoke(daemon_app, ["key", "call-centre", "--roles", "ingest"])
    (lines,) = re.findall(r"(\[access\.keys.*)", made.stdout, re.DOTALL)
    hidden = re.sub('"[0-9a-f]{64}"', f'"{"0" * 64}"', lines)
    assert tomllib.loads(hidden)["access"] == tomllib.loads(SERVED)["access"], (
        "what the command prints is what stands there"
    )


async def test_its_configuration_loads(tmp_path: Path) -> None:
    config = loaded(EXAMPLE, tmp_path)
    assert load_config(None, {}).model_dump(exclude={"host", "redis"}) == config.model_dump(exclude={"host", "redis"})


async def test_its_commands_and_files_exist() -> None:
    for program, command in re.findall(r"`(medusa-\w+) (\w+)", README):
        assert command in {known.callback.__name__ for known in APPS[program].registered_commands if known.callback}
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`?make (\w+)", README)) <= targets
    titles = re.findall(r"^## (.*)", README, re.MULTILINE)
    headings = {re.sub(r"[^a-z -]", "", title.lower()).replace(" ", "-") for title in titles}
    for linked in re.findall(r"\]\(([^)]+)\)", README):
        page, _, heading = linked.partition("#")
        assert (heading in headings) if not page else (ROOT / page).is_file(), linked
