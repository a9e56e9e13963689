"""A daemon that needs keys, as it looks to those who have none, wrong ones or too many; a good stream beside them goes on."""

import asyncio
import http.client
import itertools
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Final

import jwt
import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from daemon.access.keys import digest, new_key
from tests.daemon.conftest import ASSETS, Served, linear16_of, pieces

KEYS: Final = {name: new_key() for name in ("edge", "desk", "boss", "scraper", "both", "small", "waits", "short")}
SECRET: Final = "a secret that is long enough for every kind of HMAC that there is"
ADDRESSES: Final = (f"10.{a}.{b}.1" for a, b in itertools.product(range(256), repeat=2))
MOST_BYTES: Final = 65_536
FAILURES: Final = 10
ELSEWHERE: Final = "https://evil.example"
FRIEND: Final = "https://calls.example.org"
DOORS: Final = (
    "/v1/stream?interim_ms=0",
    "/v1/listen?encoding=linear16&sample_rate=16000",
    "/v1/expression/audio/realtime",
)


def key(name: str, *roles: str, **limits: Any) -> dict[str, Any]:
    return {"sha256": digest(KEYS[name]), "roles": roles, **limits}


@pytest.fixture(scope="module")
def daemon_flags() -> dict[str, Any]:
    keys = {
        "edge": key("edge", "ingest"),
        "desk": key("desk", "read"),
        "boss": key("boss", "read", "admin"),
        "scraper": key("scraper", "metrics"),
        "both": key("both", "ingest", "read", "admin"),
        "small": key("small", "ingest", max_streams=1),
        "waits": key("waits", "ingest", max_streams=1),
        "short": key("short", "ingest", max_stream_s=1),
    }
    tokens = {"algorithms": ["HS256"], "secret": SECRET, "audience": "medusa"}
    access = {"keys": keys, "jwt": tokens, "failures_per_minute": FAILURES, "allowed_origins": [FRIEND]}
    limits = {"max_message_bytes": MOST_BYTES, "idle_timeout_s": 200, "max_header_bytes": 8192, "request_timeout_s": 1}
    return {"access": access, "limits": limits, "telephony": {"twilio_auth_token": "twilio's"}}


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


def token(algorithm: str = "HS256", **claims: Any) -> str:
    body = {"sub": "anna", "aud": "medusa", "exp": time.time() + 86_400, "roles": ["ingest"]} | claims
    return jwt.encode(body, "" if algorithm == "none" else SECRET, algorithm)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def _ask(port: int, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        is_stream = found.get("content-type", "").startswith("text/event-stream")
        return Answer(response.status, found, response.readline() if is_stream else response.read())
    finally:
        connection.close()


async def ask(
    served: Served, path: str, headers: dict[str, str] | None = None, method: str = "GET", body: bytes | None = None
) -> Answer:
    """An HTTP request; unless it says otherwise, from an address that nobody has used before."""
    given = {"X-Forwarded-For": next(ADDRESSES)} | (headers or {})
    return await asyncio.to_thread(_ask, served.port, method, path, given, body)


def opened(
    served: Served, path: str, headers: dict[str, str] | None = None, offers: tuple[str, ...] = (), origin: str = ""
) -> connect:
    given = {"X-Forwarded-For": next(ADDRESSES)} | (headers or {}) | ({"Origin": origin} if origin else {})
    subprotocols = [Subprotocol(each) for each in offers] or None
    return connect(f"ws://127.0.0.1:{served.port}{path}", additional_headers=given, subprotocols=subprotocols)


async def refused(attempt: connect) -> Answer:
    """How a handshake is answered that must not succeed."""
    with pytest.raises(InvalidStatus) as caught:
        async with attempt:
            pass
    response = caught.value.response
    return Answer(response.status_code, {n.lower(): v for n, v in response.headers.raw_items()}, bytes(response.body))


async def rest_of(connection: ClientConnection) -> tuple[list[dict[str, Any]], int | None]:
    """All messages up to the end, and the close code."""
    messages = []
    async with asyncio.timeout(20):
        try:
            async for text in connection:
                messages.append(json.loads(text))
        except ConnectionClosed:
            pass  # the code says what it was
        await connection.wait_closed()
    return messages, connection.close_code


async def streamed(attempt: connect, start: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """A short stream that must succeed."""
    async with attempt as connection:
        if start is not None:
            await connection.send(json.dumps({"type": "start"} | start))
        await connection.send(b"\0" * 3200)
        await connection.send('{"type": "close"}')
        messages, closed = await rest_of(connection)
    assert closed == 1000
    assert [message["type"] for message in messages] == ["session.created", "session.closed"]
    return messages


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def neighbour(served: Served) -> AsyncIterator[None]:
    """A well-behaved stream that is open for as long as this module is at its work: it loses nothing."""
    audio = pieces(linear16_of(ASSETS / "two_sentences.flac"), 32_000)
    path = "/v1/stream?interim_ms=0"

    async def spoken(pause: bool) -> AsyncGenerator[list[dict[str, Any]]]:
        async with opened(served, path, bearer("edge")) as connection:
            for index, chunk in enumerate(audio):
                if pause and index == len(audio) // 2:
                    yield []
                await connection.send(chunk)
            await connection.send('{"type": "close"}')
            messages, _ = await rest_of(connection)
        yield [message for message in messages if message["type"] == "emotion"]

    (alone,) = [found async for found in spoken(pause=False)]
    beside = spoken(pause=True)
    await anext(beside)
    yield
    results = await anext(beside)
    assert len(results) == len(alone) > 0
    for one, other in zip(results, alone, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)
    await beside.aclose()


@pytest.fixture(scope="module", autouse=True)
def logged() -> Iterator[list[str]]:
    """Everything that anybody logs during these tests, uvicorn's own too."""
    lines: list[str] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name != "websockets.client":  # our own side, which may say what it shows
                lines.append(f"{record.name}: {self.format(record)}")

    handler = Keeping(logging.DEBUG)
    root, uvicorn = logging.getLogger(), logging.getLogger("uvicorn")  # which does not pass its records on
    before = root.level
    root.setLevel(logging.DEBUG)
    for logger in (root, uvicorn):
        logger.addHandler(handler)
    yield lines
    for logger in (root, uvicorn):
        logger.removeHandler(handler)
    root.setLevel(before)
    secrets = [*KEYS.values(), SECRET, "in-the-url"]
    assert [line for line in lines if any(secret in line for secret in secrets)] == []
