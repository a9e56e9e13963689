"""A whole daemon that analyses customers alone and redacts their words: what of a call can be found anywhere afterwards."""

import asyncio
import http.client
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from websockets.asyncio.client import connect

from daemon.access.keys import digest, new_key
from daemon.audit.entries import Kind
from daemon.audit.writer import AUDIT_KEY
from daemon.config import DEFAULT_BUNDLE, load_config
from daemon.embedded import EmbeddedRedis
from daemon.engine import EngineSettings, load_models, running_engine
from daemon.fleet.serving import running_worker
from daemon.messages import Utterance
from daemon.policy import NUMBER, Transcripts
from daemon.sinks.redis import DEFAULT_STREAMS
from model.audio import SAMPLE_RATE_HZ
from model.recording import read_recording
from tests.daemon.conftest import CALL, Message, Served, finals, linear16_of, of_type, pieces, serving
from tests.factories import make_info

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS: Final = {"edge": new_key(), "boss": new_key(), "scraper": new_key()}
HEARD_S: Final = 16
"""Of the call: the customer gives the number of an order, 4719, and the agent speaks before and after."""
PCM: Final = linear16_of(CALL)[: HEARD_S * SAMPLE_RATE_HZ * 4]
PAGE: Final = (Path(__file__).parents[2] / "docs" / "compliance.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything that this daemon could write without being told a place would be."""
    return tmp_path_factory.mktemp("everywhere")


@pytest.fixture(scope="module")
def daemon_flags(folder: Path) -> dict[str, Any]:
    roles = {"edge": ["ingest"], "boss": ["read", "admin"], "scraper": ["metrics"]}
    keys = {name: {"sha256": digest(key), "roles": roles[name]} for name, key in KEYS.items()}
    return {"access": {"keys": keys}, "policy": {"analyze": ["customer"], "transcripts": "redacted", "retain_s": 7200}}


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def everywhere(folder: Path) -> AsyncIterator[None]:
    """The working directory and the folder for temporary files are the test's; they are before the daemon starts."""
    before, cwd = tempfile.tempdir, Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        tempfile.tempdir = str(folder)
        os.chdir(folder)
        yield
        os.chdir(cwd)
        tempfile.tempdir = before


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told(everywhere: None, served: Served) -> list[Message]:
    """What the client of the call was told; the call is over and its events are in Redis."""
    messages = await served.stream(
        pieces(PCM, 32_000), token=KEYS["edge"], channels=2, roles="customer,agent", interim_ms=500, call_id="order"
    )
    await served.events("order")
    return messages


def ask(served: Served, path: str, method: str = "GET", key: str | None = "boss") -> tuple[int, str]:
    """An HTTP request; of server-sent events, the first line."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    try:
        connection.request(method, path, headers={"Authorization": f"Bearer {KEYS[key]}"} if key else {})
        response = connection.getresponse()
        endless = response.getheader("content-type", "").startswith("text/event-stream")
        return response.status, (response.readline() if endless else response.read()).decode()
    finally:
        connection.close()


async def asked(served: Served, path: str, method: str = "GET", key: str | None = "boss") -> tuple[int, str]:
    return await asyncio.to_thread(ask, served, path, method, key)


async def everything_in_redis(url: str) -> dict[str, bytes]:
    """Every key, with all that it holds."""
    found = {}
    async with Redis.from_url(url, protocol=2) as client:
        async for key in client.scan_iter(count=1000):
            kind: Any = await client.type(key)
            content: Any
            match kind.decode():
                case "stream":
                    content = await client.xrange(key)
                case "string":
                    content = await client.get(key)
                case "hash":
                    content = await client.hgetall(key)
                case "zset":
                    content = await client.zrange(key, 0, -1)
                case _:
                    raise AssertionError(f"{key!r} is a {kind}, which nobody looks into here")
            found[key.decode()] = key + b"\0" + flattened(content)
    return found


def flattened(value: Any) -> bytes:
    """All bytes of an answer of Redis."""
    match value:
        case bytes():
            return value
        case dict():
            return b"\0".join(flattened(part) for pair in value.items() for part in pair)
        case list() | tuple():
            return b"\0".join(flattened(part) for part in value)
    return b""


def audio_in(data: bytes) -> bool:
    """Whether bytes hold a stretch of 4 ms of either channel or of both, as 16 bits or as float32."""
    return any(needle in data for needle in NEEDLES)


def _needles() -> list[bytes]:
    both = np.frombuffer(PCM, "<i2").reshape(-1, 2)
    found = []
    for channel in range(2):
        loud = np.argsort(-np.abs(both[:, channel].astype(np.int32)), kind="stable")[:4000:200]
        for at in (int(at) for at in loud if at + 64 < len(both)):
            for part in (both[at : at + 64], both[at : at + 64, channel]):
                found += [np.ascontiguousarray(part).tobytes(), (part.astype(np.float32) / 32768.0).tobytes()]
    return found


NEEDLES: Final = _needles()


async def test_no_audio_is_stored_anywhere(told: list[Message], served: Served, folder: Path, spool: Path) -> None:
    assert len(finals(told)) >= 2, "else there was none to be stored"
    for folder_ in (folder, spool):
        for file in (path for path in folder_.rglob("*") if path.is_file()):
            assert not audio_in(file.read_bytes()), file
    in_redis = await everything_in_redis(served.daemon.redis_url)
    assert any(key.endswith(":order") for key in in_redis)
    for key, data in in_redis.items():
        assert not audio_in(data), key


@pytest.mark.parametrize(
    "write", [lambda both: both, lambda both: both[:, 1], lambda both: both[:, 0] / np.float32(32768)]
)
async def test_audio_would_be_found(write: Callable[[Any], Any]) -> None:
    """Else the test above could not fail."""
    part = np.frombuffer(PCM, "<i2").reshape(-1, 2)
    assert audio_in(b"RIFF" + np.ascontiguousarray(write(part)).tobytes())
    assert not audio_in(b"RIFF" + bytes(len(PCM)))


async def test_the_agent_is_not_analysed_and_the_client_knows(told: list[Message], served: Served) -> None:
    assert [message["code"] for message in of_type(told, "warning")] == ["not_analyzed"]
    assert {m["role"] for m in told if m["type"] in ("emotion", "speech.started")} == {"customer"}
    assert told[-1]["totals"]["received_ms"] == HEARD_S * 1000
    events = await served.events("order")
    assert {event["role"] for event in events if event["type"].startswith("emotion")} == {"customer"}
    assert b"Tom" not in b"".join((await everything_in_redis(served.daemon.redis_url)).values())


async def test_the_number_of_the_order_is_nowhere(told: list[Message], served: Served) -> None:
    words = [message["text"] for message in finals(told)]
    assert any(NUMBER in text for text in words), words
    assert not any(character.isdigit() for text in words for character in text)
    stored = {event["text"] for event in await served.events("order") if event["type"] == "emotion"}
    assert stored == set(words)
    status, body = await asked(served, "/api/calls/order")
    assert status == 200
    assert {said["text"] for said in json.loads(body)["said"]} == set(words)


HAPPENS: Final = set(get_args(Kind)) - {"bundle.changed"}
"""What is done here; `test_swap.py` changes the bundle."""


async def audit_of(served: Served) -> list[Message]:
    async with Redis.from_url(served.daemon.redis_url, protocol=2, decode_responses=True) as client:
        found: Any = await client.xrange(AUDIT_KEY)
        return [fields for _, fields in found]


async def audit_with(served: Served, kinds: set[str]) -> list[Message]:
    """The audit once it has entries of all these kinds."""
    async with asyncio.timeout(20):
        while True:
            found = await audit_of(served)
            if kinds <= {entry["type"] for entry in found}:
                return found
            await asyncio.sleep(0.05)


async def test_who_did_what_is_written_down_and_then_the_call_is_gone(told: list[Message], served: Served) -> None:
    session = told[0]["session"]
    for _ in range(5):
        assert (await asked(served, "/api/calls"))[0] == 200
        assert (await asked(served, "/api/calls/order"))[0] == 200
    assert (await asked(served, "/api/calls/stream?call=order"))[1] == "event: calls\n"
    assert (await asked(served, "/api/calls/order", key=None))[0] == 401
    assert (await asked(served, "/api/calls/order", "DELETE", key="edge"))[0] == 403
    assert (await asked(served, "/api/calls/nobody"))[0] == 404
    assert (await asked(served, "/api/calls/order", "DELETE"))[0] == 200
    entries = await audit_with(served, HAPPENS)

    def of(kind: Kind) -> list[Message]:
        return [entry for entry in entries if entry["type"] == kind]

    (started,) = of("daemon.started")
    assert (started["analyze"], started["transcripts"], started["access"]) == ("customer", "redacted", "required")
    assert (started["retain_s"], started["call_ttl_s"]) == ("7200", "7200")
    (opened,) = of("stream.opened")
    assert (opened["who"], opened["call"], opened["session"]) == ("edge", "order", session)
    assert (opened["roles"], opened["analyzed"]) == ("customer,agent", "customer")
    for kind in ("calls.listed", "call.read", "calls.watched", "calls.left"):
        assert len(of(kind)) == 1, "what is repeated is counted within the minute"
        assert of(kind)[0]["who"] == "boss"
    assert of("call.read")[0]["call"] == of("calls.watched")[0]["call"] == "order"
    assert {entry["code"] for entry in of("refused")} == {"no_credential", "no_role"}
    (deleted,) = of("call.deleted")
    assert (deleted["who"], deleted["call"]) == ("boss", "order")
    assert int(deleted["entries"]) > 4
    assert "nobody" not in {entry.get("call") for entry in entries}
    assert not any(key in str(entries) for key in KEYS.values())
    assert NUMBER not in str(entries)

    async with Redis.from_url(served.daemon.redis_url, protocol=2) as client, asyncio.timeout(10):
        while await client.exists(DEFAULT_STREAMS.open_key):  # noqa: ASYNC110  # another program's, nobody sets an event
            await asyncio.sleep(0.05)
    remains = {
        key: data
        for key, data in (await everything_in_redis(served.daemon.redis_url)).items()
        if b"order" in data or session.encode() in data
    }
    streams = {key for key in remains if ":seen:" not in key}
    assert streams == {AUDIT_KEY, DEFAULT_STREAMS.events_key}
    seen = [data for key, data in remains.items() if ":seen:" in key]
    assert seen
    assert all(data.endswith(b"\0") for data in seen), "they hold nothing"
    async with Redis.from_url(served.daemon.redis_url, protocol=2, decode_responses=True) as client:
        events: Any = await client.xrange(DEFAULT_STREAMS.events_key)
        assert [fields["type"] for _, fields in events if fields["call"] == "order"] == ["call.deleted"]
        for key in remains:
            if ":seen:" in key:
                assert 0 < await client.ttl(key) <= DEFAULT_STREAMS.unsure_ttl_s


async def test_the_page_describes_every_entry(told: list[Message], served: Served) -> None:
    described = {
        cells[1].strip(" `"): set(cells[2].replace("`", "").split())
        for line in PAGE.splitlines()
        if len(cells := line.split("|")) == 5 and cells[1].strip(" `") in get_args(Kind)
    }
    assert described.pop("bundle.changed") == {"who", "model", "before"}
    entries = await audit_with(served, HAPPENS)
    common = {"v", "type", "ts", "node", "count"}
    assert described == {entry["type"]: set(entry) - common for entry in entries}


async def test_the_loss_of_entries_is_a_metric(served: Served) -> None:
    status, page = await asked(served, "/metrics", key="scraper")
    assert status == 200
    assert "medusa_audit_lost_total 0.0\n" in page


async def test_another_door_analyses_nobody_else(told: list[Message], served: Served) -> None:
    """They all lead to the same streams; a client of Deepgram asks for two channels, and gets results of one."""
    url = f"ws://127.0.0.1:{served.port}/v1/listen?encoding=linear16&sample_rate=16000&channels=2&multichannel=true"
    async with connect(url, additional_headers={"Authorization": f"Token {KEYS['edge']}"}) as connection:
        for piece in pieces(PCM, 32_000):
            await connection.send(piece)
        await connection.send('{"type": "CloseStream"}')
        async with asyncio.timeout(60):
            messages = [json.loads(text) async for text in connection]
    results = [message for message in messages if message["type"] == "Results" and message["is_final"]]
    assert {tuple(result["channel_index"]) for result in results} == {(0, 2)}
    said = [result["channel"]["alternatives"][0]["transcript"] for result in results]
    assert said == [message["text"] for message in finals(told)]
    assert messages[-1]["duration"] == HEARD_S


async def test_in_a_fleet_it_is_the_same(tmp_path: Path) -> None:
    """The worker publishes the words, so it is the worker that must not let them out."""
    policy = {"analyze": ["customer"], "transcripts": "redacted"}
    async with EmbeddedRedis.start() as server:
        config = load_config(None, {"role": "worker", "redis": server.url, "policy": policy})
        async with (
            running_worker(config) as worker,
            serving(tmp_path, role="gateway", redis=server.url, policy=policy) as served,
        ):
            messages = await served.stream(
                pieces(PCM, 32_000), channels=2, roles="customer,agent", interim_ms=0, call_id="order"
            )
            events = await served.events("order")
            in_redis = await everything_in_redis(server.url)
    assert worker.worker.scored == len(finals(messages)) >= 2
    stored = [event["text"] for event in events if event["type"] == "emotion"]
    assert stored == [message["text"] for message in finals(messages)]
    assert any(NUMBER in text for text in stored)
    assert not any(character.isdigit() for text in stored for character in text)
    session = messages[0]["session"]
    work = f"medusa:work:v1:{worker.bundle_id}:redacted"
    assert {key for key in in_redis if ":channel:" in key} == {f"{{{work}}}:channel:{session}:0"}, "not of channel 1"
    assert [key for key, data in in_redis.items() if audio_in(data)] == [], "it goes when it is scored"


async def test_who_lets_out_different_words_does_not_meet() -> None:
    works = {load_config(None, {"policy": {"transcripts": each}}).work_of("bundle-1") for each in get_args(Transcripts)}
    assert works == {"bundle-1", "bundle-1:redacted", "bundle-1:off"}


async def test_the_models_read_what_is_not_shown() -> None:
    """So a posterior does not depend on what of the words may leave."""
    start, end = round(12.8 * SAMPLE_RATE_HZ), round(14.3 * SAMPLE_RATE_HZ)
    audio = read_recording(CALL)[0, start:end]
    utterance = Utterance(0, 0, start, end, audio, interim=0, decided=end)
    models = await asyncio.to_thread(load_models, DEFAULT_BUNDLE, EngineSettings())
    found = {}
    for transcripts in get_args(Transcripts):
        settings = EngineSettings(transcripts=transcripts)
        async with running_engine(models, settings) as engine:
            found[transcripts] = await engine.score(make_info(), utterance)
    full, off = found["full"].transcript, found["off"].transcript
    assert full is not None
    assert any(character.isdigit() for character in full.text)
    assert off == replace(full, text="")
    assert {scores.posteriors for scores in found.values()} == {found["full"].posteriors}
