"""Telnyx' media streams: as Twilio's, but in any order."""

import asyncio
import base64
import json
import random
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from streamdouble import g711
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from daemon.errors import PeerError
from daemon.transports.dialect import Close, Start
from daemon.transports.telnyx import TelnyxDialect
from tests.daemon.conftest import ASSETS, Served, serving
from tests.daemon.transports.conftest import (
    assert_same_events,
    carried_out,
    handshake,
    offline,
    survives_mutations,
    telephone,
)

in_module_loop = pytest.mark.asyncio(loop_scope="module")

STREAM: Final = "32DE0DEA-53CB-4B21-89A4-9E1819C043BC"
CALL: Final = "v3:T02llQxIyaRkhfRKxgAP8nY511EhFLizdvdUKJiSw8d6A9BborherQ"
MULAW: Final = {"encoding": "PCMU", "sample_rate": 8000, "channels": 1}


def start(call: str = CALL, media_format: object = MULAW, **parameters: str) -> dict[str, Any]:
    return {
        "event": "start",
        "sequence_number": "1",
        "stream_id": STREAM,
        "start": {
            "user_id": "3E6F995F-85F7-4705-9741-53B116D28237",
            "call_control_id": call,
            "call_session_id": "ff55a038-6f5d-11ef-9692-02420aeffb1f",
            "from": "+13122010094",
            "to": "+13122123456",
            "custom_parameters": parameters,
            "media_format": media_format,
        },
    }


def media(track: str, index: int, payload: bytes, sequence: int) -> dict[str, Any]:
    return {
        "event": "media",
        "sequence_number": str(sequence),
        "stream_id": STREAM,
        "media": {
            "track": track,
            "chunk": str(index + 1),
            "timestamp": str(20 * index),
            "payload": base64.b64encode(payload).decode(),
        },
    }


STOP: Final = {"event": "stop", "sequence_number": "9", "stream_id": STREAM, "stop": {"call_control_id": CALL}}
DIALOGUE: Final = [
    json.dumps(message)
    for message in (
        {"event": "connected", "version": "1.0.0"},
        start(language="en", customer_id="c1"),
        media("inbound", 1, b"\x11" * 160, 3),
        media("inbound", 0, b"\x11" * 160, 2),
        media("outbound", 0, b"\x11" * 160, 4),
        {"event": "dtmf", "stream_id": STREAM, "sequence_number": "5", "dtmf": {"digit": "1"}},
        {"event": "error", "stream_id": STREAM, "payload": {"code": 100002, "title": "unknown_error"}},
        STOP,
    )
]


def dialect(headers: dict[str, str] | None = None, token: str | None = None) -> TelnyxDialect:
    return TelnyxDialect(handshake("/telnyx", headers), token)


def started(message: dict[str, Any]) -> Start:
    (command,) = carried_out(dialect().receive(json.dumps(message)))
    assert isinstance(command, Start)
    return command


def test_what_a_call_is_called() -> None:
    request = started(start(language="en", customer_id="c1")).request
    assert (request.call_id, request.language, request.metadata) == (CALL, "en", {"customer_id": "c1"})
    assert request.role_names() == ("customer", "agent")
    for tracks, roles in [("inbound", ("customer",)), ("outbound", ("agent",)), ("both", ("customer", "agent"))]:
        assert started(start(tracks=tracks)).request.role_names() == roles


def test_a_dialogue() -> None:
    one = dialect()
    commands = [command for frame in DIALOGUE for command in carried_out(one.receive(frame))]
    assert isinstance(commands[0], Start)
    assert commands[-1] == Close()


@pytest.mark.parametrize(
    ("message", "code", "says"),
    [
        (start(media_format=MULAW | {"encoding": "G722"}), "bad_encoding", "ask Telnyx for the codec PCMU or PCMA"),
        (start(media_format=MULAW | {"sample_rate": 1}), "bad_sample_rate", "sample_rate 1 lies outside"),
        (start(tracks="sideways"), "bad_tracks", "inbound, outbound, or both"),
        (start(call="../.."), "bad_request", "call_id"),
        (STOP, "bad_start", "'stop' came before start"),
    ],
)
def test_what_is_wrong_is_told(message: dict[str, Any], code: str, says: str) -> None:
    with pytest.raises(PeerError, match=says) as caught:
        carried_out(dialect().receive(json.dumps(message)))
    assert caught.value.code == code


def test_the_token() -> None:
    shows = {"x-telnyx-streaming-auth-token": "s\u00e9cret"}
    assert dialect().refusal() is None
    assert dialect(shows, "s\u00e9cret").refusal() is None
    for headers in ({}, {"x-telnyx-streaming-auth-token": "other"}):
        refusal = dialect(headers, "s\u00e9cret").refusal()
        assert refusal is not None
        assert refusal.status == 403


def test_mutations() -> None:
    survives_mutations(dialect, DIALOGUE)


def messages(tracks: dict[str, bytes], seed: int) -> list[dict[str, Any]]:
    """The media of a call, each message up to 140 ms away from its place, and some of them twice."""
    chance = random.Random(seed)
    found: list[tuple[float, dict[str, Any]]] = []
    for track, audio in tracks.items():
        for index in range(len(audio) // 160):
            sent = (
                index + chance.uniform(0, 7),
                media(track, index, audio[160 * index : 160 * (index + 1)], len(found) + 2),
            )
            found += [sent] * (2 if chance.random() < 0.05 else 1)
    return [message for _, message in sorted(found, key=lambda each: each[0])]


@in_module_loop
async def test_messages_out_of_order_are_the_call_that_was_spoken(served: Served) -> None:
    one, other = g711.encode(telephone(ASSETS / "two_sentences.flac")), g711.encode(telephone(ASSETS / "hello_3s.flac"))
    one = one[: len(one) // 160 * 160]
    other = other[: len(other) // 160 * 160]
    sent = messages({"inbound": one, "outbound": other}, seed=3)
    assert [message["sequence_number"] for message in sent] != sorted(message["sequence_number"] for message in sent)
    async with asyncio.timeout(60), connect(f"ws://127.0.0.1:{served.port}/telnyx") as connection:
        for message in ({"event": "connected", "version": "1.0.0"}, start("telnyx-call"), *sent, STOP):
            await connection.send(json.dumps(message))
        assert [text async for text in connection] == [], "nothing is said to the caller"
    columns = np.stack([np.frombuffer(side.ljust(len(one), b"\xff"), np.uint8) for side in (one, other)], axis=1)
    wanted = await offline(columns.tobytes(), "mulaw", 8000)
    assert {event["role"] for event in wanted} == {"customer", "agent"}
    assert_same_events(await served.events("telnyx-call"), wanted)


@in_module_loop
async def test_only_who_shows_the_token_is_taken(tmp_path: Path) -> None:
    async with serving(tmp_path, telephony={"telnyx_auth_token": "agreed"}) as other:
        url = f"ws://127.0.0.1:{other.port}/telnyx"
        with pytest.raises(InvalidStatus) as caught:
            await connect(url, additional_headers={"x-telnyx-streaming-auth-token": "guessed"})
        assert caught.value.response.status_code == 403
        async with connect(url, additional_headers={"x-telnyx-streaming-auth-token": "agreed"}) as connection:
            await connection.send(json.dumps(start("telnyx-token")))
            await connection.send(json.dumps(STOP))
            await connection.wait_closed()
        assert (await other.events("telnyx-token"))[-1]["type"] == "call.ended"
