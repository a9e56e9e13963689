"""The dashboard's calls, read from a real Valkey and over real HTTP."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
import uvicorn
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from daemon.calls import board as board_module
from daemon.calls.api import CallsApi
from daemon.calls.board import MAX_CALLS, MAX_WATCHERS, Board, running_board
from daemon.embedded import EmbeddedRedis
from daemon.errors import CapacityError
from daemon.headers import SecurityHeaders
from daemon.sinks.redis import DEFAULT_STREAMS
from tests.daemon.calls.build import alert, begin, end, result
from tests.waiting import until

Json = dict[str, Any]
Fields = dict[str, str]

WEB: Final = Path(__file__).parents[3] / "daemon" / "web"
EVENTS: Final = DEFAULT_STREAMS.events_key


def recent(*entries: Fields) -> list[Fields]:
    """Entries as if they were made just now: an old call without an end would be lost."""
    newest = max(int(fields["ts"]) for fields in entries)
    by = time.time_ns() // 1_000_000 - newest
    return [fields | {"ts": str(int(fields["ts"]) + by)} for fields in entries]


def a_call(call: str, top: str = "angry", *, over: bool = True) -> list[Fields]:
    """A short call of one stream, its own session."""
    session = f"session-of-{call}"
    entries = [
        begin(session, call=call),
        result(0, 1, 4, "happy", channel=1, role="agent", session=session, call=call),
        result(0, 5, 9, top, session=session, call=call, final=False),
        result(0, 5, 9, top, session=session, call=call),
    ]
    return recent(*entries, *([end(session, at_s=10, received_s=10, call=call)] if over else []))


@dataclass
class Site:
    """A dashboard over one Valkey."""

    url: str
    redis: "Redis"
    board: Board
    http: httpx2.AsyncClient
    stopping: asyncio.Event
    dropped: list[int] = field(default_factory=list)

    async def add(self, *entries: Fields) -> None:
        """Publishes entries as a daemon does: to the common stream, then to the call's own."""
        for fields in entries:
            body: Any = fields
            await self.redis.xadd(EVENTS, body)
            await self.redis.xadd(DEFAULT_STREAMS.call_key(fields["call"]), body)

    async def calls(self) -> list[Json]:
        answer = await self.http.get("/api/calls")
        assert answer.status_code == 200, answer.text
        found: list[Json] = answer.json()["calls"]
        return found

    async def names(self) -> list[str]:
        return [call["call"] for call in await self.calls()]

    async def until_names(self, names: set[str]) -> None:
        async with asyncio.timeout(10):
            while set(await self.names()) != names:  # noqa: ASYNC110 - another process' event
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def watching(self, call: str = "") -> AsyncIterator[AsyncIterator[tuple[str, Json]]]:
        params = {"call": call} if call else {}
        async with self.http.stream("GET", "/api/calls/stream", params=params) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            yield server_sent(answer)


async def server_sent(answer: httpx2.Response) -> AsyncIterator[tuple[str, Json]]:
    event = ""
    async with asyncio.timeout(20):
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                event = value
            elif name == "data":
                yield event, json.loads(value)


async def next_of(events: AsyncIterator[tuple[str, Json]], kind: str) -> Json:
    async for event, data in events:
        if event == kind:
            return data
    raise AssertionError(f"the stream ended without {kind}")


class _Server(uvicorn.Server):
    """Leaves signals to pytest."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def site(url: str) -> AsyncIterator[Site]:
    stopping = asyncio.Event()
    dropped: list[int] = []

    async def stopped() -> None:
        await stopping.wait()

    async with running_board(url, stopped, lambda: dropped.append(1)) as board:
        web = Mount("/", StaticFiles(directory=WEB, html=True))
        app = Starlette(routes=[*CallsApi(board).routes(), web], middleware=[Middleware(SecurityHeaders)])
        server = _Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
        serving = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            async with (
                Redis.from_url(url, decode_responses=True) as redis,
                httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
            ):
                yield Site(url, redis, board, http, stopping, dropped)
        finally:
            stopping.set()
            server.should_exit = True
            await serving


@asynccontextmanager
async def fresh_site() -> AsyncIterator[Site]:
    async with EmbeddedRedis.start() as server, site(server.url) as found:
        yield found


async def test_calls_that_were_there_before_are_shown() -> None:
    async with fresh_site() as found:
        await found.add(*a_call("calm", "neutral"), *a_call("upset"), *a_call("on", "neutral", over=False))
        rows = await found.calls()
    assert [(row["call"], row["status"]) for row in rows] == [("on", "live"), ("upset", "ended"), ("calm", "ended")]
    upset = rows[1]
    assert upset["attention"] > rows[2]["attention"]
    assert upset["utterances"] == 2
    assert [(role["role"], role["now"]["top"]) for role in upset["roles"]] == [
        ("customer", "angry"),
        ("agent", "happy"),
    ]


async def test_the_whole_of_a_call() -> None:
    async with fresh_site() as found:
        await found.add(*a_call("one"), *recent(alert(0, 9, call="one")))
        answer = await found.http.get("/api/calls/one")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    call = answer.json()
    assert [(said["role"], said["top"], said["start_ms"], said["text"]) for said in call["said"]] == [
        ("agent", "happy", 1000, "hello"),
        ("customer", "angry", 5000, "hello"),
    ]
    assert [raised["rule"] for raised in call["raised"]] == ["upset"]
    assert call["analysis"]["roles"][0]["shares"]["angry"] == 1
    assert not call["truncated"]


async def test_what_comes_is_told() -> None:
    async with fresh_site() as found, found.watching("new") as events:
        assert (await next_of(events, "calls")) == {"calls": [], "problem": None}
        begun, agent, _, customer, over = a_call("new")
        await found.add(begun, agent)
        news = await next_of(events, "changed")
        assert news["calls"][0]["call"] == "new"
        assert [said["role"] for said in (await next_of(events, "said"))["said"]] == ["agent"]
        await found.add(customer)
        assert [said["role"] for said in (await next_of(events, "said"))["said"]] == ["customer"], "each once"
        await found.add(over)
        while (await next_of(events, "changed"))["calls"][0]["status"] == "live":
            pass


async def test_a_restart_shows_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.calls.store.MAX_HISTORY", 1_000)
    async with EmbeddedRedis.start() as server:
        async with site(server.url) as first:
            await first.add(*(fields for n in range(9) for fields in a_call(f"call-{n}", over=n % 2 == 0)))
            before = {row["call"]: row["status"] for row in await first.calls()}
        async with site(server.url) as second:
            assert {row["call"]: row["status"] for row in await second.calls()} == before
    assert len(before) == 9


async def test_two_gateways_show_one_call_with_both_its_streams() -> None:
    async with EmbeddedRedis.start() as server, site(server.url) as one, site(server.url) as other:
        await one.calls()
        await other.calls()
        customer = [begin("a", role="customer", call="both"), result(0, 1, 3, session="a", call="both")]
        agent = [
            begin("b", role="agent", at_s=2, call="both"),
            result(0, 1, 3, session="b", role="agent", begun_s=2, call="both"),
        ]
        entries = recent(*customer, *agent)
        await one.add(*entries[:2])
        await other.add(*entries[2:])
        for found in (one, other):
            await found.until_names({"both"})
            call = (await found.http.get("/api/calls/both")).json()
            assert [(said["role"], said["start_ms"]) for said in call["said"]] == [("customer", 1000), ("agent", 3000)]


async def test_a_deleted_call_is_gone_everywhere() -> None:
    async with EmbeddedRedis.start() as server, site(server.url) as one, site(server.url) as other:
        await one.add(*a_call("secret"), *a_call("kept"))
        assert {*await one.names()} == {*await other.names()} == {"secret", "kept"}
        answer = await one.http.delete("/api/calls/secret")
        assert (answer.status_code, answer.json()) == (200, {"call": "secret", "deleted": 10})
        await other.until_names({"kept"})
        assert await one.names() == ["kept"]
        assert (await other.http.get("/api/calls/secret")).status_code == 404
        assert await one.redis.exists(DEFAULT_STREAMS.call_key("secret")) == 0
        left: Any = await one.redis.xrange(EVENTS)
        mine = [fields for _, fields in left if fields["call"] == "secret"]
        assert [fields["type"] for fields in mine] == ["call.deleted"], "only that it is gone"
        assert len(left) == 5 + 1
        assert (await one.http.delete("/api/calls/secret")).status_code == 404
        async with site(server.url) as third:
            assert await third.names() == ["kept"], "also to one who reads it all later"


async def test_a_call_that_lasts_is_not_deleted() -> None:
    async with fresh_site() as found:
        await found.add(*a_call("on", over=False))
        answer = await found.http.delete("/api/calls/on")
        assert answer.status_code == 409
        assert "still lasts" in answer.json()["error"]
        assert await found.names() == ["on"]


async def test_what_no_call_is_called_and_no_limit_is() -> None:
    async with fresh_site() as found:
        for name in ("a%20b", "a%00", "%7Bx%7D", "x" * 129, "é", "a%0Ab"):
            for method in ("GET", "DELETE"):
                answer = await found.http.request(method, f"/api/calls/{name}")
                assert (answer.status_code, "is no call id" in answer.json()["error"]) == (400, True), name
        assert (await found.http.get("/api/calls/..%2F..%2Fetc")).status_code == 404, "a slash is another path"
        assert (await found.http.get("/api/calls/stream", params={"call": "a b"})).status_code == 400
        for limit in ("0", "-1", "201", "many", "1e2", "9" * 5000, ""):
            assert (await found.http.get("/api/calls", params={"limit": limit})).status_code == 400, limit
        await found.add(*a_call("a"), *a_call("b"))
        assert len((await found.http.get("/api/calls", params={"limit": "1"})).json()["calls"]) == 1


async def test_a_call_that_never_was() -> None:
    async with fresh_site() as found:
        assert (await found.http.get("/api/calls/nobody")).status_code == 404
        assert (await found.http.delete("/api/calls/nobody")).status_code == 404


async def test_entries_of_somebody_else_do_no_harm() -> None:
    async with fresh_site() as found:
        await found.redis.xadd(EVENTS, {"hello": "world"})
        await found.redis.xadd(EVENTS, {"type": "emotion", "call": "x", "ts": "no"})
        await found.redis.xadd(EVENTS, {"type": "gap", "call": ""})
        await found.add(*a_call("good"))
        assert await found.names() == ["good"]


async def test_without_redis_the_reason_is_told_and_it_heals() -> None:
    async with EmbeddedRedis.start() as server:
        port = server.port
    async with site(f"redis://127.0.0.1:{port}/0") as found:
        answer = await found.http.get("/api/calls")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert answer.json()["error"]
        async with EmbeddedRedis.start(port=port) as _, Redis.from_url(found.url) as redis:
            found.redis = redis
            await found.add(*a_call("back"))
            async with asyncio.timeout(15):
                while (await found.http.get("/api/calls")).status_code != 200:  # noqa: ASYNC110 - likewise
                    await asyncio.sleep(0.1)
            assert await found.names() == ["back"]


async def test_one_who_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "_TICK_S", 0.001)
    async with fresh_site() as found:
        await found.calls()
        with found.board.watching() as watcher:
            for n in range(board_module._OUTBOX + 1):
                await found.add(*a_call(f"call-{n}"))
            await until(lambda: bool(found.dropped), within_s=20)
            assert len(watcher.outbox) <= board_module._OUTBOX
        assert await found.names(), "and the others go on"


async def test_only_so_many_watch() -> None:
    async with fresh_site() as found:
        await found.board.ready()
        watching = [found.board.watching() for _ in range(MAX_WATCHERS)]
        for one in watching:
            one.__enter__()
        with pytest.raises(CapacityError, match=f"the limit is {MAX_WATCHERS}"):
            found.board.check_room()
        assert (await found.http.get("/api/calls/stream")).status_code == 503
        watching[0].__exit__(None, None, None)
        async with found.watching() as events:
            await next_of(events, "calls")
        await until(lambda: found.board.watchers < MAX_WATCHERS)


async def test_watchers_are_let_go_when_the_daemon_stops() -> None:
    async with fresh_site() as found, found.watching() as events:
        await next_of(events, "calls")
        found.stopping.set()
        async with asyncio.timeout(5):
            async for _ in events:
                pass


async def test_calls_out_of_view_are_still_in_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "MAX_CALLS", 3)
    async with fresh_site() as found:
        for n in range(6):
            await found.add(*a_call(f"call-{n}"))
        assert len(await found.names()) == 3 < MAX_CALLS
        assert (await found.http.get("/api/calls/call-0")).status_code == 200
