"""What a terminal shows of a result, told by a WebSocket or by Redis."""

import io
from collections.abc import Mapping
from dataclasses import replace

import pytest
from rich.console import Console

from daemon.live import flat, show
from daemon.wire import emotion_message, redis_fields
from tests.daemon.test_wire import FINAL, REDUCED, SHARED


def printed(fields: Mapping[str, str]) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(console, fields)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("fields", [redis_fields(SHARED), flat(emotion_message(SHARED))], ids=["redis", "socket"])
def test_shares_are_told(fields: Mapping[str, str]) -> None:
    assert "made of 50% whisper, 33% text, 17% interaction" in printed(fields)


@pytest.mark.parametrize("fields", [redis_fields(FINAL), flat(emotion_message(FINAL))], ids=["redis", "socket"])
def test_no_shares_are_made_up(fields: Mapping[str, str]) -> None:
    shown = printed(fields)
    assert "disagreement 0.12" in shown
    assert "made of" not in shown
    assert "for lack of time" not in shown


def test_a_result_of_fewer_members_says_so() -> None:
    whole = replace(REDUCED, utterance=FINAL.utterance)
    for fields in (redis_fields(whole), flat(emotion_message(whole))):
        assert "for lack of time by voice, course alone" in printed(fields)
