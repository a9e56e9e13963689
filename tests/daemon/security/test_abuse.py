"""What is sent to do harm: it is refused in time, nothing crashes, and the stream beside it goes on."""

import asyncio
import gzip
import random
import socket
import time
import zlib

import pytest

from tests.daemon.conftest import Served
from tests.daemon.security.conftest import (
    DOORS,
    MOST_BYTES,
    ask,
    bearer,
    opened,
    refused,
    rest_of,
)
from tests.daemon.transports.test_whip_sdp import AUDIO, BROWSER, HEAD

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_path_that_only_looks_like_another_is_refused(served: Served) -> None:
    """To a route, a line's end behind its path is nothing; to who compares paths, it is another path."""
    own = {"Content-Type": "application/sdp"}
    for path in ("/whip%0A", "/metrics%0a", "/api/calls%0A", "/v1/token%0A", "/whip%00", "/%7f"):
        for method in ("GET", "POST"):
            answer = await ask(served, path, own, method, BROWSER.encode() if method == "POST" else None)
            assert (answer.status, answer.json["code"]) == (400, "bad_path")
    assert (await refused(opened(served, "/v1/stream%0A"))).status == 400
    for path in (
        "/api%2Fcalls",
        "/%61pi/calls",
        "/API/calls",
        "//api/calls",
        "/./api/calls",
        "/api/../api/calls",
        "/api//calls",
    ):
        answer = await ask(served, path)
        assert answer.status in (401, 404), path
        assert b"calls" not in answer.body
    assert (await ask(served, "/anything", method="POST")).status == 401, "pages are only read"


async def exchanged(served: Served, data: bytes, within_s: float = 10.0) -> bytes:
    """What the server says to bytes until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    try:
        async with asyncio.timeout(within_s):
            writer.write(data)
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_headers_that_are_too_long(served: Served) -> None:
    for head in (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Long: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + b"X-Many: 1\r\n" * 5000 + b"\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX: "
        + b"y" * 20_000,
    ):
        answer = await exchanged(served, head)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431")), answer[:40]


async def test_a_request_that_never_ends_is_given_up(served: Served) -> None:
    """Slow handshakes: none at all, half a one, one byte after the other, and a second one behind a good one."""
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    half = b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    begun = time.monotonic()
    answers = await asyncio.gather(exchanged(served, b""), exchanged(served, half), _behind(served, whole, half))
    assert [answer.split(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 408 Request Timeout"] * 3
    assert 0.9 < time.monotonic() - begun < 4


async def _behind(served: Served, first: bytes, second: bytes) -> bytes:
    """What is said behind the answer to a first request, to a second one that comes byte by byte and never ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(first)
    assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
    for byte in second[:12]:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.05)
    async with asyncio.timeout(4.0):
        answer = await reader.read()
    writer.close()
    return answer


async def test_a_connection_that_is_used_is_not_given_up(served: Served) -> None:
    """The time limit is of requests' heads, not of answers, streams or connections."""
    async with opened(served, DOORS[0], bearer("edge")) as connection:
        await asyncio.sleep(1.3)
        await connection.send('{"type": "close"}')
        assert (await rest_of(connection))[1] == 1000
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    async with asyncio.timeout(10):
        for _ in range(3):
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.5)
    writer.close()


async def test_frames_that_are_too_big(served: Served) -> None:
    for size in (MOST_BYTES + 2, 8 * MOST_BYTES):
        async with opened(served, DOORS[0], bearer("edge")) as connection:
            await connection.send(b"\0" * size)
            assert (await rest_of(connection))[1] == 1009
        async with opened(served, "/v1/stream") as connection:
            await connection.send("x" * size)
            assert (await rest_of(connection))[1] == 1009


async def test_nothing_is_inflated(served: Served) -> None:
    """Decompression bombs: the WebSocket extension is not taken, and a body's encoding changes nothing."""
    async with opened(served, DOORS[0], bearer("edge")) as connection:
        assert connection.protocol.extensions == []
        deflated = zlib.compress(b"\0" * 30_000)[2:-8]
        length = 0x80 | len(deflated)
        assert length < 0xFE, "else its length would need more bytes"
        # As permessage-deflate marks a message (RFC 7692, 6), though nobody agreed on it; masked with zeros.
        connection.transport.write(b"\xc2" + bytes([length]) + bytes(4) + deflated)
        _, closed = await rest_of(connection)
        assert closed == 1002
    bomb = gzip.compress(b"\0" * 30_000_000)
    assert len(bomb) < 64 << 10
    headers = bearer("both") | {"Content-Encoding": "gzip"}
    for path, kind in (("/whip", "application/sdp"), ("/v1/token", "application/json")):
        answer = await ask(served, path, headers | {"Content-Type": kind}, "POST", bomb[:4000])
        assert answer.status == 400, path


@pytest.mark.parametrize(
    "path",
    [
        "/../config.py",
        "/%2e%2e/config.py",
        "/..%2fconfig.py",
        "/web/../../config.py",
        "/client/%2e%2e/%2e%2e/config.py",
        "/%2e%2e%5cconfig.py",
        "//etc/passwd",
        "/%2fetc/passwd",
        "/....//config.py",
        "/%00",
        "/index.html%00.css",
        "/demo/../../pyproject.toml",
        "/~root",
        "/" + "a/" * 2000,
    ],
)
async def test_no_path_leads_out_of_the_pages(served: Served, path: str) -> None:
    answer = await ask(served, path)
    assert answer.status in (400, 404, 405)
    assert b"import" not in answer.body
    assert b"root:" not in answer.body


def bombs() -> dict[str, tuple[bytes, int]]:
    """Offers that are made to hurt, and the status that each gets at least."""
    line = "a=candidate:1 1 udp 1 192.0.2.1 1 typ host\r\n"
    ring = "".join(f"a=rtpmap:{n} rtx/90000\r\na=fmtp:{n} apt={96 + (n - 95) % 30}\r\n" for n in range(96, 126))
    return {
        "too long": (b"v=0\r\n" * 20_000, 413),
        "all sections": ((HEAD + "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n" * 1800).encode(), 400),
        "all candidates": ((HEAD + AUDIO + line * 1300).encode(), 400),
        "a ring of formats": ((HEAD + "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n" + ring).encode(), 400),
        "a number without end": ((HEAD + f"m=audio {'9' * 50_000} UDP/TLS/RTP/SAVPF 111\r\n").encode(), 400),
        "a line without end": ((HEAD + "a=" + "x" * 60_000).encode(), 400),
        "formats without end": ((HEAD + "m=audio 9 UDP/TLS/RTP/SAVPF" + " 111" * 15_000 + "\r\n").encode(), 400),
        "NUL": (BROWSER.encode().replace(b"opus", b"\0\0\0\0"), 400),
        "no text": (b"\xff\xfe" * 20_000, 400),
        "nothing": (b"", 400),
    }


@pytest.mark.parametrize("case", bombs())
async def test_an_offer_that_is_made_to_hurt(served: Served, case: str) -> None:
    offer, status = bombs()[case]
    begun = time.monotonic()
    answer = await ask(served, "/whip", bearer("edge") | {"Content-Type": "application/sdp"}, "POST", offer)
    assert status <= answer.status < 500
    assert answer.json["type"] == "error"
    assert time.monotonic() - begun < 2


async def test_any_bytes_are_no_crash(served: Served) -> None:
    chance = random.Random(23)
    good = b"GET /v1/stream?interim_ms=0 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    for _ in range(40):
        at = chance.randrange(len(good))
        data = good[:at] + chance.randbytes(chance.randrange(1, 60)) + good[at:] + b"\r\n"
        with socket.create_connection(("127.0.0.1", served.port), timeout=5) as connection:
            connection.sendall(data)
    assert (await ask(served, "/health")).status == 200
