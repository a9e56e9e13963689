"""A real daemon for tests: the default bundle, an embedded Valkey, a WebSocket on a free port."""

import asyncio
import urllib.error
import urllib.request
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import pytest_asyncio

from daemon.client import stream
from daemon.config import load_config
from daemon.events import read_events
from daemon.server import Daemon, serve
from daemon.sinks.redis import DEFAULT_STREAMS
from model.recording import read_recording

ASSETS: Final = Path(__file__).parents[1] / "assets"
CALL: Final = Path(__file__).parents[2] / "daemon" / "demo" / "call.flac"
TOLERANCE: Final = 1e-4
"""How far the same utterance's posteriors may lie apart in two batches (docs: batch neighbours do not matter)."""

_CHUNK_BYTES: Final = 1280
_WITHIN_S: Final = 60.0
_CALM: Final = 0.3

Message = dict[str, Any]
"""A server message of the native protocol."""


@dataclass(frozen=True, slots=True)
class Served:
    """A running daemon, as its clients reach it."""

    daemon: Daemon
    port: int

    @property
    def url(self) -> str:
        """Of streams."""
        return f"ws://127.0.0.1:{self.port}/v1/stream"

    async def stream(self, chunks: Iterable[bytes] | AsyncIterable[bytes], **parameters: Any) -> list[Message]:
        """Every message of a stream made of `chunks`, through our own client."""
        async with asyncio.timeout(_WITHIN_S):
            return [message async for message in stream(self.url, each(chunks), **parameters)]

    async def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page."""
        return await asyncio.to_thread(_get, f"http://127.0.0.1:{self.port}{path}")

    async def calm(self) -> None:
        """Waits until what came before has left the engine room for interim results."""
        async with asyncio.timeout(_WITHIN_S):
            while True:
                _, page = await self.get("/metrics")
                if float(page.split("\nmedusa_asr_load ")[1].split()[0]) < _CALM:
                    return
                await asyncio.sleep(0.2)

    async def events(self, call: str) -> list[dict[str, str]]:
        """What Redis holds of a call, from its begin to its end."""
        return await events_of(self.daemon.redis_url, call)


async def events_of(redis_url: str, call: str) -> list[dict[str, str]]:
    """The entries of a call, waiting for the one that ends it."""
    events: list[dict[str, str]] = []
    async with (
        asyncio.timeout(_WITHIN_S),
        aclosing(read_events(redis_url, key=DEFAULT_STREAMS.call_key(call), start="0")) as entries,
    ):
        async for _, fields in entries:
            events.append(fields)
            if fields["type"] in ("call.ended", "call.failed"):
                break
    return events


async def each(chunks: Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(chunks, AsyncIterable):
        async for chunk in chunks:
            yield chunk
    else:
        for chunk in chunks:
            yield chunk


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@asynccontextmanager
async def serving(spool: Path, **flags: Any) -> AsyncIterator[Served]:
    """A daemon of the test's own; at the end it stops as it does on SIGTERM, and that must succeed."""
    streams = {"embedded_port": 0, "spool_dir": spool}
    config = load_config(None, {"port": 0, "streams": streams, "log_level": "WARNING", **flags})
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[Served] = loop.create_future()
    stop = asyncio.Event()
    running = asyncio.create_task(serve(config, lambda daemon, port: ready.set_result(Served(daemon, port)), stop))
    either: set[asyncio.Future[Any]] = {running, ready}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        raise RuntimeError(f"the daemon did not start: status {running.result()}")
    try:
        yield ready.result()
    finally:
        stop.set()
        status = await running
    assert status == 0


@pytest.fixture(scope="module")
def daemon_flags() -> dict[str, Any]:
    """How this module's daemon is configured; a module may say it differently."""
    return {}


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this module's daemon keeps events that wait."""
    return tmp_path_factory.mktemp("spool")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(spool: Path, daemon_flags: dict[str, Any]) -> AsyncIterator[Served]:
    """One daemon for the whole module, which needs `pytestmark = pytest.mark.asyncio(loop_scope="module")`."""
    async with serving(spool, **daemon_flags) as running:
        yield running


def linear16_of(path: Path) -> bytes:
    """A recording at 16 kHz as interleaved 16-bit samples: the file's own, no bit is lost."""
    pcm: bytes = np.round(read_recording(path).T * 32768.0).astype("<i2").tobytes()
    return pcm


def pieces(data: bytes, size: int = _CHUNK_BYTES) -> list[bytes]:
    """Messages of `size` bytes, the last one shorter."""
    return [data[start : start + size] for start in range(0, len(data), size)]


def of_type(messages: Iterable[Message], kind: str) -> list[Message]:
    """The messages of one type."""
    return [message for message in messages if message["type"] == kind]


def finals(messages: Iterable[Message]) -> list[Message]:
    """Final results, by channel and utterance."""
    found = [message for message in of_type(messages, "emotion") if message["final"]]
    return sorted(found, key=lambda message: (message["channel"], message["utterance"]))


def assert_same_results(got: Sequence[Message], wanted: Sequence[Message]) -> None:
    """The same utterances, words and, within `TOLERANCE`, posteriors."""
    for exact in ("channel", "utterance", "role", "start_ms", "end_ms", "text", "language", "model"):
        assert [message[exact] for message in got] == [message[exact] for message in wanted]
    for one, other in zip(got, wanted, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=TOLERANCE)
        for value in ("arousal", "valence", "dominance", "uncertainty"):
            assert one[value] == pytest.approx(other[value], abs=TOLERANCE)
