"""Pages of our own and of others, tokens and sessions, and what a key may take."""

import asyncio
import json

import pytest

from daemon.access.keys import new_key
from tests.daemon.conftest import Served
from tests.daemon.security.conftest import (
    ADDRESSES,
    DOORS,
    ELSEWHERE,
    FAILURES,
    FRIEND,
    ask,
    bearer,
    opened,
    refused,
    rest_of,
    streamed,
)
from tests.daemon.transports.test_whip_sdp import BROWSER

pytestmark = pytest.mark.asyncio(loop_scope="module")


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


async def until_free(served: Served, name: str) -> None:
    """A place is free a moment after its stream's connection was closed."""
    async with asyncio.timeout(10):
        while True:
            async with opened(served, DOORS[0], bearer(name)) as again:
                if json.loads(await again.recv())["type"] == "session.created":
                    return


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
    await until_free(served, "small")


async def test_a_stream_that_waits_for_its_client_counts(served: Served) -> None:
    """Else who drops connections has as many streams as it likes; and who lost its only one can still go on with it."""
    path = f"{DOORS[0]}&resume=true"
    async with opened(served, path, bearer("waits")) as first:
        created = json.loads(await first.recv())
        resuming = json.dumps({"type": "resume", "resume": created["resume"]})
        async with opened(served, "/v1/stream", bearer("waits")) as second:  # the first one hangs, for all we know
            await second.send(resuming)
            assert json.loads(await second.recv())["type"] == "session.created", "what it was told is repeated"
            second.transport.abort()
    async with opened(served, path, bearer("waits")) as another:
        messages, closed = await rest_of(another)
    assert (closed, messages[0]["code"]) == (1013, "overloaded")
    assert "waits has 1 streams open, its limit, 1 of them waiting for their clients" in messages[0]["message"]
    answer = await ask(served, "/whip", bearer("waits") | {"Content-Type": "application/sdp"}, "POST", BROWSER.encode())
    assert answer.status == 429
    async with opened(served, "/v1/stream", bearer("waits")) as last:
        await last.send(resuming)
        await last.send('{"type": "close"}')
        messages, closed = await rest_of(last)
    assert (closed, messages[-1]["type"]) == (1000, "session.closed")
    await until_free(served, "waits")


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
