"""WHIP as plain HTTP: what an offer and its trickled candidates are answered, and all that a client may do wrong."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from aiortc import RTCPeerConnection
from redis.asyncio import Redis

from daemon.sinks.redis import DEFAULT_STREAMS
from daemon.transports.whip.resource import MAX_BODY_BYTES
from tests.daemon.conftest import Served, serving
from tests.daemon.transports.test_whip_sdp import BROWSER, FRAGMENT
from tests.daemon.transports.whip_client import (
    FRAGMENT as FRAGMENT_TYPE,
)
from tests.daemon.transports.whip_client import RATE_HZ, SDP, SoundTrack, http_call, needs_network

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_network]


async def test_video_is_refused_and_audio_taken(served: Served) -> None:
    answer = await http_call(served.port, "POST", "/whip", BROWSER, content_type=SDP)
    assert answer.status == 201
    lines = [line for line in answer.text.splitlines() if line.startswith("m=")]
    assert [line.split()[0] for line in lines] == ["m=audio", "m=video", "m=application"]
    assert [line.split()[1] == "0" for line in lines] == [False, True, False]
    assert "a=fmtp:111 minptime=10;useinbandfec=1\r\n" in answer.text
    assert (await http_call(served.port, "DELETE", answer.headers["location"])).status == 200


async def test_what_an_answer_says(served: Served) -> None:
    answer = await http_call(served.port, "POST", "/whip", BROWSER, content_type=f"{SDP}; charset=utf-8")
    assert (answer.status, answer.headers["content-type"]) == (201, SDP)
    assert re.fullmatch(r"/whip/[\w-]{24}", answer.headers["location"])
    assert re.fullmatch(r'"\w+"', answer.headers["etag"])
    assert answer.headers["access-control-expose-headers"] == "Location, ETag, Link"
    await http_call(served.port, "DELETE", answer.headers["location"])


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        *[(method, "/whip", "POST, OPTIONS") for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE")],
        *[(method, "/whip/abc", "PATCH, DELETE, OPTIONS") for method in ("GET", "HEAD", "PUT", "POST")],
        *[(method, "/whip/abc/events", "GET, OPTIONS") for method in ("POST", "PUT", "DELETE")],
    ],
)
async def test_other_methods_are_not_for_these_resources(served: Served, method: str, path: str, allowed: str) -> None:
    answer = await http_call(served.port, method, path)
    assert (answer.status, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("path", ["/whip", "/whip/abc"])
async def test_options(served: Served, path: str) -> None:
    answer = await http_call(served.port, "OPTIONS", path)
    assert answer.status == 200
    assert answer.headers.get("accept-post") == (SDP if path == "/whip" else None)
    assert answer.headers.get("accept-patch") == (None if path == "/whip" else FRAGMENT_TYPE)


@pytest.mark.parametrize(
    ("body", "content_type", "query", "status", "code"),
    [
        (BROWSER, "application/json", "", 415, "bad_content_type"),
        (BROWSER, "", "", 415, "bad_content_type"),
        ("hello", SDP, "", 400, "bad_sdp"),
        (b"\xff\xfe", SDP, "", 400, "bad_sdp"),
        (BROWSER.replace("opus", "pcm"), SDP, "", 422, "unsupported_offer"),
        (BROWSER.replace("m=video", "m=audio"), SDP, "", 422, "unsupported_offer"),
        ("a=" + "x" * MAX_BODY_BYTES, SDP, "", 413, "too_big"),
        (BROWSER, SDP, "?sample_rate=8000", 400, "bad_request"),
        (BROWSER, SDP, "?language=xx", 400, "bad_language"),
        (BROWSER, SDP, "?channels=3", 400, "bad_channels"),
        (BROWSER, SDP, "?channels=2&roles=customer", 400, "bad_roles"),
        (BROWSER, SDP, "?metadata=x", 400, "bad_json"),
        (BROWSER, SDP, "?colour=red", 400, "bad_request"),
    ],
)
async def test_what_cannot_be_taken_is_refused_with_its_reason(
    served: Served, body: str | bytes, content_type: str, query: str, status: int, code: str
) -> None:
    begun = await calls_begun(served)
    answer = await http_call(served.port, "POST", f"/whip{query}", body, content_type=content_type)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert f'"code":"{code}"' in answer.text
    assert await calls_begun(served) == begun


async def calls_begun(served: Served) -> int:
    """How many calls Redis has ever seen the begin of."""
    client = Redis.from_url(served.daemon.redis_url, decode_responses=True)
    try:
        entries: Any = await client.xrange(DEFAULT_STREAMS.events_key)
    finally:
        await client.aclose()
    return sum(fields["type"] == "call.started" for _, fields in entries)


async def test_bombs_do_not_hold_up_others(served: Served) -> None:
    head = BROWSER.partition("m=")[0]
    bombs = [
        head + "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n" * 1800,
        BROWSER + "a=candidate:1 1 udp 1 ::1 1 typ host\r\n" * 1200,
    ]
    begun = time.perf_counter()
    answers = await asyncio.gather(
        *(http_call(served.port, "POST", "/whip", bomb, content_type=SDP) for bomb in bombs * 10)
    )
    assert time.perf_counter() - begun < 10
    assert {answer.status for answer in answers} <= {400, 413}


async def test_trickled_candidates(served: Served) -> None:
    """The offer holds no address; they come one by one, and the connection stands."""
    track = SoundTrack(np.zeros((3 * RATE_HZ, 2), np.int16))
    pc = RTCPeerConnection()
    try:
        pc.addTransceiver(track, direction="sendonly")
        await pc.setLocalDescription(await pc.createOffer())
        offer = pc.localDescription.sdp
        candidates = re.findall(r"^a=candidate:.*\r\n", offer, re.MULTILINE)
        bare = re.sub(r"^a=(candidate:.*|end-of-candidates)\r\n", "", offer, flags=re.MULTILINE)
        answer = await http_call(served.port, "POST", "/whip", bare, content_type=SDP)
        here, etag = answer.headers["location"], answer.headers["etag"]
        fragment = "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n{}"

        async def patch(body: str, content_type: str = FRAGMENT_TYPE, **headers: str) -> int:
            answer = await http_call(served.port, "PATCH", here, body, content_type=content_type, **headers)
            return answer.status

        assert await patch(fragment.format(candidates[0])) == 428
        assert await patch(fragment.format(candidates[0]), if_match='"old"') == 412
        assert await patch(fragment.format(candidates[0]), SDP, if_match=etag) == 415
        assert await patch("hello", if_match=etag) == 400
        assert await patch("", if_match=etag) == 400
        many = "".join(f"a=candidate:1 1 udp 1 192.0.2.1 {port} typ host\r\n" for port in range(1, 60))
        assert await patch(fragment.format(many), if_match=etag) == 204
        assert await patch(fragment.format(many.replace("192.0.2.1", "192.0.2.9")), if_match=etag) == 422
        assert await patch("a=end-of-candidates\r\n" + fragment.format(candidates[0]), if_match=f'"x", {etag}') == 204
        assert await patch(FRAGMENT, if_match=etag.replace('"', 'W/"', 1)) == 412
        assert (await http_call(served.port, "DELETE", here)).status == 200
    finally:
        await pc.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def origins(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """A daemon behind a NAT, with a TURN server and a page elsewhere."""
    webrtc = {
        "allowed_origins": ("https://calls.example.org",),
        "public_address": "203.0.113.9",
        "ice_servers": ({"urls": ("turn:127.0.0.1:9?transport=udp",), "username": "joe", "credential": 'a"b'},),
    }
    async with serving(tmp_path_factory.mktemp("spool"), webrtc=webrtc) as running:
        yield running


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (lambda port: f"http://127.0.0.1:{port}", 201),
        (lambda port: "https://calls.example.org", 201),
        (lambda port: "https://evil.example.org", 403),
        (lambda port: "https://calls.example.org.evil.org", 403),
        (lambda port: "null", 403),
    ],
)
async def test_pages_of_other_sites_need_leave(origins: Served, origin: Callable[[int], str], status: int) -> None:
    here = origin(origins.port)
    before = await http_call(origins.port, "OPTIONS", "/whip", origin=here, access_control_request_method="POST")
    assert before.headers.get("access-control-allow-origin") == (here if status == 201 else None)
    answer = await http_call(origins.port, "POST", "/whip", BROWSER, content_type=SDP, origin=here)
    assert answer.status == status
    if status == 201:
        assert {"Authorization", "Content-Type", "If-Match"} <= {
            name.strip() for name in before.headers["access-control-allow-headers"].split(",")
        }
        assert answer.headers["access-control-expose-headers"] == "Location, ETag, Link"
        gone = await http_call(origins.port, "DELETE", answer.headers["location"], origin=here)
        assert (gone.status, gone.headers["access-control-allow-origin"]) == (200, here)


async def test_clients_are_told_of_the_ice_servers(origins: Served) -> None:
    answer = await http_call(origins.port, "POST", "/whip", BROWSER, content_type=SDP)
    assert (
        '<turn:127.0.0.1:9?transport=udp>; rel="ice-server"; username="joe"; '
        'credential="a\\"b"; credential-type="password"' in answer.headers["link"]
    )
    assert "203.0.113.9" in answer.text, "the public address"
    await http_call(origins.port, "DELETE", answer.headers["location"])
