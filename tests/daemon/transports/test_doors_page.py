"""The page about doors says what is there, and what it tells people to write works."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Final

import pytest
from starlette.routing import WebSocketRoute

from daemon.config import load_config
from daemon.transports.deepgram_query import read_query
from model.segmenter import Endpointing
from tests.daemon.conftest import Served

PAGE: Final = (Path(__file__).parents[3] / "docs" / "doors.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.asyncio(loop_scope="module")
async def test_every_door_is_on_the_page(served: Served) -> None:
    told = set(re.findall(r"^\| [^|]+ \| `(/[^`]+)` \|", PAGE, re.MULTILINE))
    assert told == {route.path for route in served.daemon.app.routes if isinstance(route, WebSocketRoute)}


def test_what_is_to_be_configured_is_configuration(tmp_path: Path) -> None:
    found = blocks("toml")
    assert len(found) == 3
    for block in found:
        tomllib.loads(block)
        file = tmp_path / "medusa.toml"
        file.write_text(block.replace("the client secret, base64", "c2VjcmV0"))
        assert load_config(file, {}).telephony != load_config(None, {}).telephony


def test_the_programs_are_programs() -> None:
    found = blocks("python")
    assert len(found) == 2
    for block in found:
        compile(block, "doors.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_deepgrams_parameters_are_those_that_are_read() -> None:
    """Each one of the table makes a difference, or an error where its value cannot be."""
    table = PAGE[PAGE.index("| parameter |") :]
    told = {
        name for cell in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }
    plain = {"encoding": "linear16", "sample_rate": "16000"}
    other = {
        **{
            "encoding": "mulaw",
            "sample_rate": "8000",
            "channels": "2",
            "interim_results": "true",
            "endpointing": "200",
        },
        **{
            "utterance_end_ms": "1000",
            "vad_events": "true",
            "language": "en",
            "tag": "a",
            "extra": "a:b",
            "call_id": "c",
        },
        **{"roles": "caller", "multichannel": "true"},
    }
    assert told == set(other)
    before = plain | {"channels": "2"}
    for name, value in other.items():
        base = before if name == "multichannel" else plain
        assert read_query(base | {name: value}, Endpointing()) != read_query(base, Endpointing()), name
