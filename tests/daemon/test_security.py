"""A daemon that needs keys, as it looks to those who have none, wrong ones or too many; a good stream beside them goes on."""

import asyncio
import gzip
import http.client
import itertools
import json
import logging
import random
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import jwt
import pytest
import pytest_asyncio
from deepgram import AsyncDeepgramClient
from deepgram.core.api_error import ApiError
from deepgram.environment import DeepgramClientEnvironment
from hume_expression_measurement import AsyncExpressionMeasurementClient
from hume_expression_measurement.environment import ExpressionMeasurementClientEnvironment
from hume_expression_measurement.types.session_close import SessionClose
from starlette.routing import Mount, Route, WebSocketRoute
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from daemon.access.keys import digest, new_key
from daemon.access.policy import Special, need
from daemon.config import load_config
from tests.daemon.conftest import ASSETS, Served, linear16_of, pieces
from tests.daemon.transports.test_whip_sdp import AUDIO, BROWSER, HEAD
from tests.daemon.transports.whip_client import needs_network

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS: Final = {name: new_key() for name in ("edge", "desk", "boss", "scraper", "both", "small", "short")}
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


WRONG: Final[dict[str, tuple[dict[str, str], int, str]]] = {
    "nothing": ({}, 401, "no_credential"),
    "another scheme": ({"Authorization": "Basic YTpi"}, 401, "no_credential"),
    "a wrong key": ({"Authorization": f"Bearer {new_key()}"}, 401, "bad_credential"),
    "a hash": ({"Authorization": f"Bearer {digest(KEYS['edge'])}"}, 401, "bad_credential"),
    "a letter less": ({"Authorization": f"Token {KEYS['edge'][:-1]}"}, 401, "bad_credential"),
    "a very long one": ({"Authorization": f"Bearer {'a.' * 2000}"}, 401, "bad_credential"),
    "an expired token": ({"Authorization": f"Bearer {token(exp=1)}"}, 401, "expired"),
    "a token for others": ({"Authorization": f"Bearer {token(aud='other')}"}, 401, "bad_credential"),
    "no algorithm": ({"Authorization": f"Bearer {token('none')}"}, 401, "bad_credential"),
    "another algorithm": ({"Authorization": f"Bearer {token('HS512')}"}, 401, "bad_credential"),
    "another role": (bearer("desk"), 403, "no_role"),
    "a token of another role": ({"Authorization": f"Bearer {token(roles=['read'])}"}, 403, "no_role"),
    "a token without roles": ({"Authorization": f"Bearer {token(roles=None)}"}, 403, "no_role"),
    "a key as a cookie": ({"Cookie": f"medusa_session={KEYS['edge']}"}, 401, "bad_credential"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_nobody_streams_without_the_right_credential(served: Served, case: str) -> None:
    headers, status, code = WRONG[case]
    for path in DOORS:
        answer = await refused(opened(served, path, headers))
        assert (answer.status, answer.json["code"]) == (status, code), path
        assert answer.headers.get("www-authenticate", "").startswith('Bearer realm="medusa"'), path
    answer = await ask(served, "/whip", headers | {"Content-Type": "application/sdp"}, "POST", BROWSER.encode())
    assert (answer.status, answer.json["code"]) == (status, code)
    assert (await ask(served, "/whip/some-id/events", headers)).status == status
    assert (await ask(served, "/whip/some-id", headers, "DELETE")).status == status


async def test_the_right_credential_in_every_place(served: Served) -> None:
    path = DOORS[0]
    await streamed(opened(served, path, bearer("edge")))
    await streamed(opened(served, path, {"Authorization": f"Token {KEYS['edge']}"}))
    await streamed(opened(served, path, {"Authorization": f"Bearer {token()}"}))
    await streamed(opened(served, path, offers=("bearer", token(roles="ingest read"))))
    await streamed(opened(served, "/v1/stream"), {"token": KEYS["edge"], "interim_ms": 0})
    await streamed(opened(served, "/v1/stream", bearer("edge")), {"token": "not looked at, and no mistake"})
    async with opened(served, path, offers=("bearer", KEYS["edge"])) as connection:
        assert connection.subprotocol == "bearer", "else a browser closes the connection"
    async with opened(served, DOORS[1], offers=("token", KEYS["edge"])) as connection:
        assert connection.subprotocol == "token"
    async with opened(served, DOORS[2], {"X-Hume-Api-Key": KEYS["edge"]}) as connection:
        assert json.loads(await connection.recv())["type"] == "session.created"
    answer = await ask(served, "/whip/some-id/events", bearer("edge"))
    assert (answer.status, answer.json["code"]) == (404, "no_session"), "it came to the door"


@pytest.mark.filterwarnings("ignore:.*websockets.*:DeprecationWarning")  # Deepgram's SDK uses its old client
async def test_clients_of_others_show_their_key_as_they_always_do(served: Served) -> None:
    """Deepgram's and Hume's own SDKs: the API key that they are given is one of ours."""
    here = f"ws://127.0.0.1:{served.port}"
    places = DeepgramClientEnvironment(base=here, production=here, agent=here, agent_rest=here)
    hume_places = ExpressionMeasurementClientEnvironment(base=here, production=here)
    deepgram = AsyncDeepgramClient(api_key=KEYS["edge"], environment=places)
    async with deepgram.listen.v1.connect(model="any", encoding="linear16", sample_rate=16000) as listening:
        await listening.send_close_stream()
        assert [message.type async for message in listening] == ["Metadata"]
    stranger = AsyncDeepgramClient(api_key=new_key(), environment=places)
    with pytest.raises(ApiError, match="invalid credentials"):
        async with stranger.listen.v1.connect(model="any", encoding="linear16", sample_rate=16000):
            pass
    hume = AsyncExpressionMeasurementClient(api_key=KEYS["edge"], environment=hume_places)
    async with hume.audio.connect() as measuring:
        await measuring.send_audio_session_close(SessionClose(type="session.close"))
        assert [message.type async for message in measuring] == ["session.created", "session.closed"]


@needs_network
async def test_a_session_over_whip_with_a_key(served: Served) -> None:
    offer = bearer("edge") | {"Content-Type": "application/sdp"}
    made = await ask(served, "/whip?interim_ms=0", offer, "POST", BROWSER.encode())
    assert made.status == 201
    where = made.headers["location"]
    for headers, status in (({}, 401), (bearer("desk"), 403)):
        assert (await ask(served, where, headers, "DELETE")).status == status
        assert (await ask(served, f"{where}/events", headers)).status == status
    assert (await ask(served, f"{where}/events", bearer("edge"))).status == 200
    assert (await ask(served, where, bearer("edge"), "DELETE")).status == 200


@pytest.mark.parametrize(
    "first",
    [
        '{"type": "start"}',
        '{"type": "start", "token": ""}',
        '{"type": "start", "token": 5}',
        json.dumps({"type": "start", "token": new_key()}),
        json.dumps({"type": "start", "token": KEYS["desk"]}),
        json.dumps({"type": "start", "token": token(exp=1)}),
        "not JSON",
        "[" * 20_000,
        json.dumps({"type": "start", "token": KEYS["edge"], "metadata": {"long": "x" * 40_000}}),
        json.dumps({"type": "start", "token": "a." * 20_000}),
        b"\0" * 3200,
        b"",
    ],
)
async def test_a_first_message_without_the_right_credential(served: Served, first: str | bytes) -> None:
    accepted = served.daemon.streams.metrics.accepted._value.get()
    async with opened(served, "/v1/stream") as connection:
        await connection.send(first)
        messages, closed = await rest_of(connection)
    assert closed == 1008
    (error,) = messages
    assert (error["type"], error["code"], error["seq"]) == ("error", "unauthorized", 0)
    assert served.daemon.streams.metrics.accepted._value.get() == accepted, "it took no place"


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


async def test_connections_that_have_not_said_who_they_are_take_no_place(served: Served) -> None:
    here, accepted = {"X-Forwarded-For": next(ADDRESSES)}, served.daemon.streams.metrics.accepted._value.get()
    waiting = [await opened(served, "/v1/stream", here) for _ in range(32)]
    assert (await refused(opened(served, "/v1/stream", here))).status == 403, "not even to wait"
    assert served.daemon.streams.metrics.accepted._value.get() == accepted
    await streamed(opened(served, "/v1/stream"), {"token": KEYS["edge"]})
    for connection in waiting:
        await connection.close()


@pytest.mark.parametrize("name", ["token", "access_token", "apiKey", "api-key", "key", "AUTHORIZATION"])
async def test_a_credential_in_a_url_is_refused_and_not_kept(served: Served, logged: list[str], name: str) -> None:
    """Whatever it is worth: even where it would be good."""
    logged.append("something is logged at all")
    for value in ("in-the-url", KEYS["edge"]):
        query = f"{name}={quote(value)}"
        for answer in (
            await refused(opened(served, f"/v1/stream?{query}")),
            await refused(opened(served, f"{DOORS[1]}&{query}", bearer("edge"))),
            await refused(opened(served, f"/twilio?{query}")),
            await ask(served, f"/api/calls?{query}", bearer("desk")),
            await ask(served, f"/whip?{query}", bearer("edge"), "POST"),
            await ask(served, f"/v1/token?{query}", bearer("edge"), "POST"),
        ):
            assert (answer.status, answer.json["code"]) == (400, "token_in_url")
            assert "Authorization: Bearer" in answer.json["message"]
            assert value not in answer.body.decode()


async def test_pages_of_other_sites_are_refused(served: Served) -> None:
    """Cross-site WebSocket hijacking and its relatives; whatever credentials their visitor has."""
    own = f"http://127.0.0.1:{served.port}"
    for origin in (ELSEWHERE, "null", f"{own}0", "http://127.0.0.1", "file://", own.replace("127.0.0.1", "localhost")):
        for path in (*DOORS, "/v1/stream", "/twilio", "/audiohook"):
            answer = await refused(opened(served, path, bearer("edge"), origin=origin))
            assert (answer.status, answer.json["code"]) == (403, "bad_origin"), (origin, path)
        page = {"Origin": origin}
        assert (await ask(served, "/api/calls", bearer("desk") | page)).status == 403
        assert (await ask(served, "/api/calls/some", bearer("boss") | page, "DELETE")).status == 403
        assert (await ask(served, "/v1/token", bearer("edge") | page, "POST")).status == 403
        assert (await ask(served, "/v1/session", bearer("edge") | page, "POST")).status == 403
        answer = await ask(served, "/whip", bearer("edge") | page, "POST", b"v=0")
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers
    await streamed(opened(served, DOORS[0], bearer("edge"), origin=own))


async def test_pages_of_sites_that_are_named_may(served: Served) -> None:
    await streamed(opened(served, DOORS[0], bearer("edge"), origin=FRIEND))
    page = {"Origin": FRIEND}
    for path, headers, status in (
        ("/api/calls", bearer("desk") | page, 200),
        ("/api/calls", page, 401),
        ("/whip/some-id/events", page, 401),
    ):
        answer = await ask(served, path, headers)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, FRIEND)
        assert "access-control-allow-credentials" not in answer.headers, "cookies are for our own pages"
    preflight = await ask(served, "/api/calls", page | {"Access-Control-Request-Method": "GET"}, "OPTIONS")
    assert (preflight.status, preflight.body) == (204, b"")
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    assert (await ask(served, "/api/calls", {"Origin": ELSEWHERE}, "OPTIONS")).status == 403


async def test_each_role_opens_its_own(served: Served) -> None:
    allowed = {
        ("GET", "/api/calls"): ("desk", "boss", "both"),
        ("GET", "/api/calls/none"): ("desk", "boss", "both"),
        ("GET", "/api/calls/stream"): ("desk", "boss", "both"),
        ("DELETE", "/api/calls/none"): ("boss", "both"),
        ("GET", "/metrics"): ("scraper",),
        ("POST", "/v1/session"): tuple(KEYS),
        ("POST", "/v1/token"): ("edge", "desk", "boss", "both", "small", "short"),
    }
    for (method, path), names in allowed.items():
        assert (await ask(served, path, method=method)).status == 401, path
        for name in KEYS:
            own = {"Origin": f"http://127.0.0.1:{served.port}"}
            answer = await ask(served, path, bearer(name) | own, method)
            assert (answer.status != 403) == (name in names), (method, path, name)
            assert answer.status in (200, 404, 403), (method, path, name)


async def test_pages_and_health_are_open_and_say_nothing(served: Served) -> None:
    for path in ("/", "/calls", "/access.js", "/health", "/ready", "/demo/call.flac"):
        answer = await ask(served, path)
        assert answer.status == 200, path
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_no_route_is_open_by_accident(served: Served) -> None:
    found = {
        (method, route.path.replace("{", "").replace("}", ""))
        for route in served.daemon.app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    opened_up = {path for method, path in found if method != "OPTIONS" and need("http", method, path) is Special.OPEN}
    assert opened_up == {"/calls", "/health", "/ready", "/demo/call.flac", "/v1/session"}
    assert {route.path for route in served.daemon.app.routes if isinstance(route, Mount)} <= {"", "/client"}
    sockets = {route.path for route in served.daemon.app.routes if isinstance(route, WebSocketRoute)}
    assert {path for path in sockets if need("websocket", "GET", path) is Special.OPEN} == set()
    assert {path for path in sockets if need("websocket", "GET", path) is Special.SIGNED_DOOR} == {
        "/audiohook",
        "/telnyx",
        "/twilio",
    }


async def test_doors_of_carriers(served: Served) -> None:
    """One whose signature is configured looks at that; the others are closed, and say what would open them."""
    answer = await refused(opened(served, "/twilio"))
    assert (answer.status, answer.body.partition(b" ")[0]) == (403, b"X-Twilio-Signature")
    for path, secret in {"/telnyx": "telnyx_auth_token", "/audiohook": "audiohook_keys"}.items():
        for headers in ({}, bearer("edge")):
            answer = await refused(opened(served, path, headers))
            assert (answer.status, answer.json["code"]) == (403, "door_closed")
            assert f"telephony.{secret} is not configured" in answer.json["message"]


async def test_a_signature_that_is_wrong_is_a_failed_attempt(served: Served) -> None:
    here = {"X-Forwarded-For": next(ADDRESSES)}
    for _ in range(FAILURES):
        assert (await refused(opened(served, "/twilio", here))).status == 403
    assert (await refused(opened(served, "/twilio", here))).status == 429


async def test_a_token_for_a_browser(served: Served) -> None:
    answer = await ask(served, "/v1/token", bearer("both"), "POST")
    made = answer.json
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
    assert (made["roles"], made["expires_in"]) == (["ingest", "read"], 60), "never admin"
    shows = {"Authorization": f"Bearer {made['token']}"}
    await streamed(opened(served, DOORS[0], shows))
    assert (await ask(served, "/api/calls", shows)).status == 200
    assert (await ask(served, "/api/calls/none", shows, "DELETE")).status == 403
    for path in ("/v1/token", "/v1/session"):
        again = await ask(served, path, shows, "POST")
        assert (again.status, again.json["code"]) == (403, "no_role"), "it makes nothing that lasts longer"
    less = await ask(served, "/v1/token", bearer("both"), "POST", b'{"roles": ["ingest"]}')
    assert less.json["roles"] == ["ingest"]
    assert (await ask(served, "/api/calls", {"Authorization": f"Bearer {less.json['token']}"})).status == 403
    head, body, signature = made["token"].split(".")
    for broken in (
        f"{head}.{body}.",
        f"{head}.{body}.{signature[:-4]}AAAA",
        f"{less.json['token'].rpartition('.')[0]}.{signature}",
    ):
        assert (await ask(served, "/api/calls", {"Authorization": f"Bearer {broken}"})).status == 401
    assert (await ask(served, "/api/calls", {"Cookie": f"medusa_session={made['token']}"})).status == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"roles": ["admin"]}', 403),
        (b'{"roles": ["ingest", "metrics"]}', 403),
        (b'{"roles": []}', 400),
        (b'{"roles": "ingest"}', 400),
        (b'{"roles": [["ingest"]]}', 400),
        (b"[]", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b"[" * 4000, 400),
        (b'{"a":' * 800, 400),
        (b" " * 4097, 413),
        (b"x" * 200_000, 413),
    ],
)
async def test_a_body_that_asks_for_no_token(served: Served, body: bytes, status: int) -> None:
    try:
        answer = await ask(served, "/v1/token", bearer("both"), "POST", body)
    except (BrokenPipeError, ConnectionResetError):
        assert status == 413, "it was answered before all of it was sent"
        return
    assert answer.status == status


async def test_a_session_of_our_pages(served: Served) -> None:
    own = {"Origin": f"http://127.0.0.1:{served.port}"}
    before = await ask(served, "/v1/session")
    assert before.json == {"required": True, "roles": []}
    answer = await ask(served, "/v1/session", bearer("both") | own, "POST")
    cookie, *attributes = answer.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(attributes)
    assert "Secure" not in attributes, "the page came without TLS"
    shows = {"Cookie": f"other=1; {cookie}"}
    assert (await ask(served, "/v1/session", shows)).json == {"required": True, "roles": ["admin", "ingest", "read"]}
    assert (await ask(served, "/api/calls", shows)).status == 200
    assert (await ask(served, "/api/calls/stream", shows | {"Sec-Fetch-Site": "same-origin"})).status == 200
    assert (await ask(served, "/api/calls/none", shows | own, "DELETE")).status == 404
    await streamed(opened(served, DOORS[0], shows, origin=own["Origin"]))
    minted = await ask(served, "/v1/token", shows | own, "POST")
    assert minted.json["roles"] == ["ingest", "read"]
    assert (await ask(served, "/v1/session", shows | own, "POST")).status == 403, "it does not prolong itself"
    for foreign in ({"Origin": FRIEND}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
        assert (await ask(served, "/api/calls", shows | foreign)).status == 401, "a cookie is for our own pages"
        assert (await refused(opened(served, DOORS[0], shows | foreign))).status == 401
    as_header = {"Authorization": f"Bearer {cookie.partition('=')[2]}"}
    assert (await ask(served, "/api/calls", as_header)).status == 401, "nor is it a token"
    gone = await ask(served, "/v1/session", shows | own, "DELETE")
    assert "Max-Age=0" in gone.headers["set-cookie"]
    behind_proxy = await ask(
        served, "/v1/session", bearer("desk") | {"Origin": "https://127.0.0.1:" + str(served.port)}, "POST"
    )
    assert "Secure" in behind_proxy.headers["set-cookie"]


async def test_a_key_has_as_many_streams_as_it_may(served: Served) -> None:
    async with opened(served, DOORS[0], bearer("small")) as first:
        assert json.loads(await first.recv())["type"] == "session.created"
        async with opened(served, DOORS[0], bearer("small")) as second:
            messages, closed = await rest_of(second)
        assert closed == 1013
        assert "small has 1 streams open, its limit" in messages[0]["message"]
        handed_on = (await ask(served, "/v1/token", bearer("small"), "POST")).json["token"]
        async with opened(served, DOORS[0], {"Authorization": f"Bearer {handed_on}"}) as third:
            assert (await rest_of(third))[1] == 1013, "its tokens share its limit"
        answer = await ask(
            served, "/whip", bearer("small") | {"Content-Type": "application/sdp"}, "POST", BROWSER.encode()
        )
        assert (answer.status, answer.headers["retry-after"]) == (429, "5")
        await streamed(opened(served, DOORS[0], bearer("edge")))
    async with asyncio.timeout(10):
        while True:
            async with opened(served, DOORS[0], bearer("small")) as again:
                if json.loads(await again.recv())["type"] == "session.created":
                    break


async def test_a_stream_is_as_long_as_it_may_be(served: Served) -> None:
    async with opened(served, DOORS[0], bearer("short")) as connection:
        for _ in range(2):
            await connection.send(b"\0" * 32_000)
        messages, closed = await rest_of(connection)
    assert closed == 1008
    *_, error, last = messages
    assert (error["code"], last["reason"]) == ("quota", "quota")
    assert last["totals"]["received_ms"] == 1000, "what was allowed is scored"


async def test_who_fails_too_often_waits_and_nobody_else(served: Served) -> None:
    here = {"X-Forwarded-For": next(ADDRESSES)}
    for _ in range(FAILURES):
        assert (await ask(served, "/api/calls", here | {"Authorization": f"Bearer {new_key()}"})).status == 401
    answer = await ask(served, "/api/calls", here | bearer("desk"))
    assert answer.status == 429, "the credential is not even looked at"
    assert 0 < int(answer.headers["retry-after"]) <= 60
    assert (await refused(opened(served, DOORS[0], here | bearer("edge")))).status == 429
    assert (await ask(served, "/api/calls", bearer("desk"))).status == 200
    for _ in range(FAILURES + 1):
        fine = await ask(served, "/api/calls", {"X-Forwarded-For": "10.255.255.1"})
        assert fine.status == 401, "who shows nothing has not failed"


async def test_refusals_are_counted_by_few_codes(served: Served) -> None:
    await ask(served, "/api/calls", {"Authorization": f"Bearer {new_key()}"})
    answer = await ask(served, "/metrics", bearer("scraper"))
    codes = [line for line in answer.body.decode().splitlines() if line.startswith("medusa_peer_errors_total{")]
    assert any('code="bad_credential"' in line for line in codes)
    assert len(codes) < 40


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


async def test_no_secret_is_in_what_is_printed(daemon_flags: dict[str, Any]) -> None:
    config = load_config(None, daemon_flags)
    for text in (repr(config), str(config), config.model_dump_json()):
        assert not any(secret in text for secret in (*KEYS.values(), SECRET, "twilio's"))
