"""Our client: the URLs it takes, the audio it sends, and how it fails."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve

from daemon.client import paced, piped, stream, stream_url
from daemon.errors import ConfigError

WITHIN_S = 10.0


def test_the_parameters_join_the_query_that_is_there() -> None:
    """Ours win, for they describe the audio that we send; what else was asked for stays."""
    url = stream_url(
        "ws://host:1/v1/stream?call_id=a%26b&sample_rate=8000&roles=", {"sample_rate": 16_000, "language": None}
    )
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc, parts.path) == ("ws", "host:1", "/v1/stream")
    wanted = {"encoding": "linear16", "call_id": "a&b", "sample_rate": "16000", "roles": ""}
    assert dict(parse_qsl(parts.query, keep_blank_values=True)) == wanted


@pytest.mark.parametrize(
    "url",
    ["http://host/v1/stream", "host:8765", "", "ws://", "ws:///v1", "ws://host:port/", "ws://host:70000/", "ws://[::1"],
)
async def test_a_url_of_no_stream_is_a_configuration_error(url: str) -> None:
    """It names the URL, and what one looks like."""
    with pytest.raises(ConfigError, match=r"is no URL of a stream: .* like ws://127.0.0.1:8765") as caught:
        await anext(stream(url, paced(np.zeros((1, 0), np.float32))))
    assert repr(url) in str(caught.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ws://127.0.0.1:1/v1/stream", "nobody listens at ws://127.0.0.1:1/v1/stream"),
        ("ws://nowhere.invalid/v1/stream", "ws://nowhere.invalid/v1/stream: "),
        (f"ws://{'a' * 64}.invalid/v1/stream", "cannot reach the server"),
        ("wss://127.0.0.1:1/v1/stream", "nobody listens at wss://127.0.0.1:1/v1/stream"),
    ],
)
async def test_a_server_that_is_not_there_is_one_line(url: str, says: str) -> None:
    with pytest.raises(ConnectionError, match="cannot reach the server") as caught:
        await anext(stream(url, paced(np.zeros((1, 0), np.float32))))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_audio_that_fails_ends_the_stream_with_its_own_error() -> None:
    """Not with a server that waits for the rest until it gives up."""

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(1280)
        raise OSError(5, "the microphone is gone")

    async def silent(connection: ServerConnection) -> None:
        async for _ in connection:
            pass

    async with serve(silent, "127.0.0.1", 0) as server, asyncio.timeout(WITHIN_S):
        port = next(iter(server.sockets)).getsockname()[1]
        with pytest.raises(OSError, match="the microphone is gone"):
            async for _ in stream(f"ws://127.0.0.1:{port}/", broken()):
                pass


@pytest.mark.parametrize("speed", [-1.0, float("nan"), float("inf")])
def test_a_speed_that_is_none(speed: float) -> None:
    with pytest.raises(ConfigError, match=f"the speed is {speed:g}"):
        paced(np.zeros((1, 0), np.float32), speed)


@given(st.lists(st.binary(min_size=1, max_size=3000), max_size=6), st.sampled_from([2, 4]))
def test_a_pipe_gives_whole_frames_for_any_writes(writes: list[bytes], frame_bytes: int) -> None:
    """Nothing is lost or moved but the part of a last frame."""

    async def read(descriptor: int) -> list[bytes]:
        return [block async for block in piped(descriptor, frame_bytes)]

    reading, writing = os.pipe()
    for data in writes:
        os.write(writing, data)
    os.close(writing)
    blocks = asyncio.run(read(reading))
    os.close(reading)
    everything = b"".join(writes)
    assert all(len(block) % frame_bytes == 0 for block in blocks)
    assert b"".join(blocks) == everything[: len(everything) // frame_bytes * frame_bytes]


async def test_a_plain_file_is_a_pipe_too(tmp_path: Path) -> None:
    (tmp_path / "audio.raw").write_bytes(bytes(range(250)) * 20 + b"x")
    with (tmp_path / "audio.raw").open("rb") as file:
        blocks = [block async for block in piped(file.fileno())]
    assert b"".join(blocks) == bytes(range(250)) * 20


async def test_a_silent_pipe_can_be_left() -> None:
    """A thread that waits in `read` would hold the program until something comes."""
    reading, writing = os.pipe()
    try:

        async def first() -> bytes:
            return await anext(aiter(piped(reading)))

        waiting = asyncio.create_task(first())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, WITHIN_S)
    finally:
        os.close(reading)
        os.close(writing)
