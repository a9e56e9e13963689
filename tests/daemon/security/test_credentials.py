"""Who may what, with which credential, through which door."""

import json
from typing import Any, Final
from urllib.parse import quote

import pytest
from deepgram import AsyncDeepgramClient
from deepgram.core.api_error import ApiError
from deepgram.environment import DeepgramClientEnvironment
from hume_expression_measurement import AsyncExpressionMeasurementClient
from hume_expression_measurement.environment import ExpressionMeasurementClientEnvironment
from hume_expression_measurement.types.session_close import SessionClose
from starlette.routing import Mount, Route, WebSocketRoute

from daemon.access.keys import digest, new_key
from daemon.access.policy import Special, need
from daemon.config import load_config
from tests.daemon.conftest import Served
from tests.daemon.security.conftest import (
    ADDRESSES,
    DOORS,
    FAILURES,
    KEYS,
    SECRET,
    ask,
    bearer,
    opened,
    refused,
    rest_of,
    streamed,
    token,
)
from tests.daemon.transports.test_whip_sdp import BROWSER
from tests.daemon.transports.whip_client import needs_network

pytestmark = pytest.mark.asyncio(loop_scope="module")


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


FIRST: Final[dict[str, str | bytes]] = {
    "no key": '{"type": "start"}',
    "an empty key": '{"type": "start", "token": ""}',
    "a number": '{"type": "start", "token": 5}',
    "nobody's key": json.dumps({"type": "start", "token": new_key()}),
    "another role's": json.dumps({"type": "start", "token": KEYS["desk"]}),
    "expired": json.dumps({"type": "start", "token": token(exp=1)}),
    "text": "not JSON",
    "deep": "[" * 20_000,
    "long": json.dumps({"type": "start", "token": KEYS["edge"], "metadata": {"long": "x" * 40_000}}),
    "many parts": json.dumps({"type": "start", "token": "a." * 20_000}),
    "audio": b"\0" * 3200,
    "nothing": b"",
}


@pytest.mark.parametrize("case", FIRST)
async def test_a_first_message_without_the_right_credential(served: Served, case: str) -> None:
    accepted = served.daemon.streams.metrics.accepted._value.get()
    async with opened(served, "/v1/stream") as connection:
        await connection.send(FIRST[case])
        messages, closed = await rest_of(connection)
    assert closed == 1008
    (error,) = messages
    assert (error["type"], error["code"], error["seq"]) == ("error", "unauthorized", 0)
    assert served.daemon.streams.metrics.accepted._value.get() == accepted, "it took no place"


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


async def test_each_role_opens_its_own(served: Served) -> None:
    allowed = {
        ("GET", "/api/calls"): ("desk", "boss", "both"),
        ("GET", "/api/calls/none"): ("desk", "boss", "both"),
        ("GET", "/api/calls/stream"): ("desk", "boss", "both"),
        ("DELETE", "/api/calls/none"): ("boss", "both"),
        ("GET", "/metrics"): ("scraper",),
        ("POST", "/v1/session"): tuple(KEYS),
        ("POST", "/v1/token"): ("edge", "desk", "boss", "both", "small", "waits", "short"),
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


async def test_no_secret_is_in_what_is_printed(daemon_flags: dict[str, Any]) -> None:
    config = load_config(None, daemon_flags)
    for text in (repr(config), str(config), config.model_dump_json()):
        assert not any(secret in text for secret in (*KEYS.values(), SECRET, "twilio's"))
