"""A client of the native protocol: `async for message in stream(url, chunks): ...`."""

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, Final
from urllib.parse import urlencode

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from model.audio import SAMPLE_RATE_HZ, Samples

DEFAULT_URL: Final = "ws://127.0.0.1:8765/v1/stream"
_CHUNK_MS: Final = 40


async def stream(url: str, chunks: AsyncIterable[bytes], **parameters: Any) -> AsyncIterator[dict[str, Any]]:
    """Streams audio and gives every server message, the last one `session.closed`.

    Args:
        url: `ws://host:port/v1/stream`.
        chunks: binary audio messages; the stream is closed behind the last one.
        parameters: of the stream: encoding, sample_rate, channels, roles, language, interim_ms, call_id.

    Raises:
        ConnectionError: if there is no such server, or the connection ended before `session.closed`.
    """
    # Without any parameter the server would wait for a start message.
    given = {"encoding": "linear16"} | {name: value for name, value in parameters.items() if value is not None}
    try:
        # A server that holds us back does not read our pings either, for as long as that takes.
        async with connect(f"{url}?{urlencode(given)}", max_size=None, ping_timeout=None) as connection:
            async for message in _exchange(connection, chunks):
                yield message
    except InvalidHandshake as error:
        raise ConnectionError(f"{url} is no stream server: {error}") from error


async def _exchange(connection: ClientConnection, chunks: AsyncIterable[bytes]) -> AsyncIterator[dict[str, Any]]:
    sending = asyncio.create_task(_send(connection, chunks))
    try:
        async for text in connection:
            message = json.loads(text)
            yield message
            if message["type"] == "session.closed":
                return
        raise ConnectionError(f"the server closed the connection early ({connection.close_code})")
    except ConnectionClosed as error:
        raise ConnectionError(f"the server closed the connection early ({error})") from error
    finally:
        sending.cancel()
        await asyncio.wait({sending})


async def _send(connection: ClientConnection, chunks: AsyncIterable[bytes]) -> None:
    try:
        async for chunk in chunks:
            await connection.send(chunk)
        await connection.send(json.dumps({"type": "close"}))
    except ConnectionClosed:
        return  # the reading side says why


async def paced(audio: Samples, speed: float = 1.0, chunk_ms: int = _CHUNK_MS) -> AsyncIterator[bytes]:
    """A recording `float32 [channels, T]` as interleaved linear16 messages, as fast as it was spoken.

    Args:
        audio: samples at 16 kHz.
        speed: 1 for real time; 0 for as fast as the server takes it.
        chunk_ms: audio per message.
    """
    step = SAMPLE_RATE_HZ * chunk_ms // 1000
    pcm = np.clip(np.round(audio * 32768.0), -32768, 32767).astype("<i2").T
    begun = asyncio.get_running_loop().time()
    for start in range(0, len(pcm), step):
        yield pcm[start : start + step].tobytes()
        if speed > 0:
            due = begun + (start + step) / SAMPLE_RATE_HZ / speed
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
