"""A client of the native protocol: `async for message in stream(url, chunks): ...`."""

import asyncio
import json
import math
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Mapping
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, WebSocketException

from daemon.errors import ConfigError
from daemon.reconnect import Tape, early_end, resuming
from daemon.resample import ENCODINGS
from daemon.transports.opus import OPUS
from model.audio import SAMPLE_RATE_HZ, Samples

DEFAULT_URL: Final = "ws://127.0.0.1:8765/v1/stream"
_CHUNK_MS: Final = 40
_BLOCK_BYTES: Final = 1280
"""As much as `paced` sends of one channel at a time."""


async def stream(
    url: str, chunks: AsyncIterable[bytes], *, token: str | None = None, reconnect_s: float = 0.0, **parameters: Any
) -> AsyncIterator[dict[str, Any]]:
    """Streams audio and gives every server message, the last one `session.closed`.

    With `reconnect_s`, a connection that is lost is made again and the stream goes on: `session.resumed` says so. Where it
    cannot go on (the server was restarted), another stream of the same call begins, with a `session.created` of its own. Its
    times count from its own begin; `begins_ms`, which we add to `session.created`, says where in the audio that is. See
    `daemon.reconnect`.

    Args:
        url: `ws://host:port/v1/stream`; parameters in its query go along.
        chunks: binary audio messages, with encoding="opus" a packet each; the stream is closed behind the last one.
        token: API key or token, where the server asks for one.
        reconnect_s: how long a lost connection is tried again; 0 gives the stream up with it.
        parameters: of the stream: encoding, sample_rate, channels, roles, language, interim_ms, call_id. They win over
            the same ones in the URL.

    Raises:
        ConfigError: if `url` cannot be one of a stream, or Opus packets are to outlive their connection.
        ConnectionError: if there is no such server, or the connection ended before `session.closed`.
    """
    if reconnect_s > 0:
        async with aclosing(_resuming(url, parameters, chunks, token, reconnect_s)) as messages:
            async for message in messages:
                yield message
        return
    async with await _connected(stream_url(url, parameters), token) as connection:
        async for message in _exchange(connection, chunks):
            yield message


def _resuming(
    url: str, parameters: dict[str, Any], chunks: AsyncIterable[bytes], token: str | None, reconnect_s: float
) -> AsyncGenerator[dict[str, Any], None]:
    asked = parse_qs(urlsplit(stream_url(url, parameters)).query)
    encoding, rate, channels = (asked.get(name, [""])[-1] for name in ("encoding", "sample_rate", "channels"))
    if encoding == OPUS:
        raise ConfigError("a stream of Opus packets cannot go on over another connection: leave reconnect_s out")
    frame = ENCODINGS.get(encoding, 1) * (int(channels) if channels.isdecimal() else 1)
    tape = Tape(frame * (int(rate) if rate.isdecimal() else SAMPLE_RATE_HZ), frame)  # the server refuses what is wrong

    def connect(values: dict[str, Any]) -> Awaitable[ClientConnection]:
        return _connected(stream_url(url, values) if values else url.partition("?")[0], token)

    return resuming(connect, parameters, chunks, tape, reconnect_s)


def stream_url(url: str, parameters: Mapping[str, Any]) -> str:
    """`url` with the stream's parameters in its query; those that are None were not given.

    Raises:
        ConfigError: if `url` cannot be one of a stream.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed
        known = False
    if not known:
        raise ConfigError(
            f"{url!r} is no URL of a stream: it is ws:// or wss://, a host and a path, like {DEFAULT_URL}"
        )
    # Without any parameter the server would wait for a start message.
    query = {"encoding": "linear16"} | dict(parse_qsl(parts.query, keep_blank_values=True))
    query |= {name: str(value) for name, value in parameters.items() if value is not None}
    return urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(query), ""))


async def _connected(url: str, token: str | None) -> ClientConnection:
    server = url.partition("?")[0]
    headers = {"Authorization": f"Bearer {token}"} if token else None
    try:
        # A server that holds us back does not read our pings either, for as long as that takes.
        return await connect(url, max_size=None, ping_timeout=None, additional_headers=headers)
    except InvalidHandshake as error:
        raise ConnectionError(f"{server} is no stream server: {error}") from error
    except ConnectionRefusedError as error:
        raise ConnectionError(f"cannot reach the server: nobody listens at {server}") from error
    except TimeoutError as error:
        raise ConnectionError(f"cannot reach the server: {server} does not answer") from error
    except (OSError, UnicodeError, WebSocketException) as error:  # UnicodeError: what no name of a host can look like
        problem = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConnectionError(f"cannot reach the server: {server}: {problem}") from error


async def _exchange(connection: ClientConnection, chunks: AsyncIterable[bytes]) -> AsyncIterator[dict[str, Any]]:
    failures: list[Exception] = []
    sending = asyncio.create_task(_send(connection, chunks, failures))
    try:
        async for text in connection:
            message = json.loads(text)
            yield message
            if message["type"] == "session.closed":
                return
        raise early_end(connection)
    except ConnectionClosed as error:
        raise ConnectionError(f"the server closed the connection early ({error})") from error
    finally:
        sending.cancel()
        await asyncio.wait({sending})
        if failures:
            raise failures[0]  # that is why the connection ended


async def _send(connection: ClientConnection, chunks: AsyncIterable[bytes], failures: list[Exception]) -> None:
    try:
        async for chunk in chunks:
            await connection.send(chunk)
        await connection.send(json.dumps({"type": "close"}))
    except ConnectionClosed:
        return  # the reading side says why
    except Exception as error:  # the audio's own source failed: the server shall not wait for more of it
        failures.append(error)
        await connection.close()


def paced(audio: Samples, speed: float = 1.0, chunk_ms: int = _CHUNK_MS) -> AsyncIterator[bytes]:
    """A recording `float32 [channels, T]` as interleaved linear16 messages, as fast as it was spoken.

    Args:
        audio: samples at 16 kHz.
        speed: 1 for real time; 0 for as fast as the server takes it.
        chunk_ms: audio per message.

    Raises:
        ConfigError: if `speed` is negative or no number.
    """
    if not (math.isfinite(speed) and speed >= 0):
        raise ConfigError(
            f"the speed is {speed:g}; it is 1 for real time, 2 for twice as fast, 0 for as fast as can be"
        )
    return _paced(audio, speed, chunk_ms)


async def _paced(audio: Samples, speed: float, chunk_ms: int) -> AsyncIterator[bytes]:
    step = SAMPLE_RATE_HZ * chunk_ms // 1000
    pcm = np.clip(np.round(audio * 32768.0), -32768, 32767).astype("<i2").T
    begun = asyncio.get_running_loop().time()
    for start in range(0, len(pcm), step):
        yield pcm[start : start + step].tobytes()
        if speed > 0:
            due = begun + (start + step) / SAMPLE_RATE_HZ / speed
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))


async def piped(descriptor: int, frame_bytes: int = 2) -> AsyncIterator[bytes]:
    """What comes out of a pipe, a terminal or a file, in whole frames, until its end.

    A thread that reads could not be stopped while nothing comes, and with it not the program.
    """
    rest = b""
    while block := await _read(descriptor):
        data = rest + block
        whole = len(data) - len(data) % frame_bytes
        rest = data[whole:]
        if whole:
            yield data[:whole]


async def _read(descriptor: int) -> bytes:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except PermissionError:  # epoll's answer to a plain file, which is always ready
        return os.read(descriptor, _BLOCK_BYTES)
    try:
        await ready.wait()
        return os.read(descriptor, _BLOCK_BYTES)
    finally:
        loop.remove_reader(descriptor)
