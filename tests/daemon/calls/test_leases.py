"""Streams of a daemon that was killed are ended by the others, once, and only those."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from redis.asyncio import Redis

from daemon.calls.beside import ended
from daemon.calls.leases import Leases, Times
from daemon.calls.store import CallStore
from daemon.embedded import EmbeddedRedis
from daemon.messages import Event
from daemon.metrics import Metrics
from daemon.sinks.redis import DEFAULT_STREAMS
from daemon.watched import WatchedSink
from tests.daemon.sinks.conftest import DRAIN_S, entries, sink_to
from tests.factories import make_call_event, make_emotion_event, make_info
from tests.waiting import until

QUICK: Final = Times(beat_s=0.1, lease_s=0.8, grace_s=0.8)
OPEN: Final = DEFAULT_STREAMS.open_key
INFO: Final = make_info(call="long", session="session-of-dead")


class Daemon:
    """What a daemon has of all this."""

    def __init__(self, url: str, sink: WatchedSink, times: Times) -> None:
        self.ended = 0
        self.sink = sink
        self.store = CallStore(url)
        self.leases = Leases(url, sink, self.store, self._count, times=times)
        sink.observers.append(self.leases.observe)
        self.running = [asyncio.create_task(work) for work in (self.leases.renew(), self.leases.look())]

    def _count(self) -> None:
        self.ended += 1

    def publish(self, *events: Event) -> None:
        for event in events:
            self.sink.publish(event)

    async def kill(self) -> None:
        """It says nothing any more, to nobody."""
        for task in self.running:
            await ended(task)

    async def stop(self) -> None:
        await self.kill()
        await self.leases.close()


@asynccontextmanager
async def daemon(url: str, folder: Path, times: Times = QUICK) -> AsyncIterator[Daemon]:
    async with sink_to(url, folder) as sink:
        found = Daemon(url, WatchedSink(sink, Metrics()), times)
        try:
            yield found
        finally:
            await found.stop()
            await found.store.close()


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedRedis]:
    async with EmbeddedRedis.start() as running:
        yield running


@pytest.fixture
async def client(server: EmbeddedRedis) -> AsyncIterator["Redis"]:
    async with Redis.from_url(server.url, decode_responses=True, protocol=2) as connection:
        yield connection


async def written(client: "Redis") -> dict[str, Any]:
    found: Any = await client.hgetall(OPEN)
    return {session: json.loads(text) for session, text in found.items()}


async def types(url: str, call: str) -> list[tuple[str, str]]:
    return [(fields["type"], fields.get("reason", "")) for fields in await entries(url, DEFAULT_STREAMS.call_key(call))]


async def settled(*daemons: Daemon) -> None:
    """Until everything is delivered and looked at a few times."""
    await asyncio.sleep(QUICK.lease_s + QUICK.grace_s + 10 * QUICK.beat_s)
    for one in daemons:
        assert await one.sink.drain(DRAIN_S) == 0


async def test_a_dead_daemons_call_is_ended_once_and_summed_up(
    server: EmbeddedRedis, client: "Redis", tmp_path: Path
) -> None:
    """By one of two that live, from what Redis has; what it found before its death counts."""
    async with daemon(server.url, tmp_path / "dead") as dead:
        dead.publish(make_call_event(info=INFO), make_emotion_event(0, info=INFO), make_emotion_event(2, info=INFO))
        await dead.sink.drain(DRAIN_S)
        await until(lambda: not dead.leases._unwritten)  # the moment from which it may be killed
        await dead.kill()
        assert (await written(client)).keys() == {INFO.session}
        async with daemon(server.url, tmp_path / "a") as first, daemon(server.url, tmp_path / "b") as second:
            await until(lambda: first.ended + second.ended > 0)
            await settled(first, second)
            assert first.ended + second.ended == 1
            await until(lambda: not first.leases._over | second.leases._over)  # it is crossed out
        found = await entries(server.url, DEFAULT_STREAMS.call_key("long"))
        assert [fields["type"] for fields in found] == [
            "call.started",
            "emotion",
            "emotion",
            "call.failed",
            "call.summary",
        ]
        failed, summary = found[-2:]
        assert (failed["reason"], failed["session"], failed["role"]) == ("lost", INFO.session, "customer,agent")
        assert (failed["total_finals"], failed["total_utterances"]) == ("2", "3")
        assert float(failed["total_received_ms"]) == float(found[2]["end_ms"])
        assert (summary["reason"], summary["sessions"]) == ("lost", "1")
        assert await written(client) == {}


async def test_a_call_of_two_streams_is_summed_up_once(server: EmbeddedRedis, tmp_path: Path) -> None:
    """Behind the second end, over both."""
    both = [make_info(call="long", session=f"session-{number}") for number in range(2)]
    async with daemon(server.url, tmp_path / "dead") as dead:
        for info in both:
            dead.publish(make_call_event(info=info), make_emotion_event(0, info=info))
        await until(lambda: not dead.leases._unwritten)  # the moment from which it may be killed
        await dead.sink.drain(DRAIN_S)
        await dead.kill()
        async with daemon(server.url, tmp_path / "living") as living:
            await until(lambda: living.ended == 2)
            assert await living.sink.drain(DRAIN_S) == 0
    found = await entries(server.url, DEFAULT_STREAMS.call_key("long"))
    assert [fields["type"] for fields in found[4:]] == ["call.failed", "call.failed", "call.summary"]
    assert {fields["session"] for fields in found[4:6]} == {info.session for info in both}
    assert found[-1]["sessions"] == "2"


async def test_who_lives_and_who_stops_has_nothing_ended(
    server: EmbeddedRedis, client: "Redis", tmp_path: Path
) -> None:
    stopped = make_info(call="short", session="session-of-stopped")
    async with daemon(server.url, tmp_path / "watcher") as watcher:
        async with daemon(server.url, tmp_path / "other") as other:
            other.publish(make_call_event(info=INFO))
            other.publish(make_call_event(info=stopped), make_call_event("call.ended", info=stopped))
            await settled(other, watcher)
            assert (await written(client)).keys() == {INFO.session}, "it lives, and is still served"
            other.publish(make_call_event("call.ended", info=INFO))
            assert await other.sink.drain(DRAIN_S) == 0
        assert await written(client) == {}, "it said so before it went"
        await settled(watcher)
        assert watcher.ended == 0
    assert await types(server.url, "long") == [("call.started", ""), ("call.ended", "the client closed")]


async def test_an_end_that_redis_has_is_only_crossed_out(
    server: EmbeddedRedis, client: "Redis", tmp_path: Path
) -> None:
    """It was killed between its end and the note about it."""
    async with daemon(server.url, tmp_path / "dead") as dead:
        dead.publish(make_call_event(info=INFO))
        await until(lambda: not dead.leases._unwritten)  # as above
        await dead.kill()
        dead.publish(make_call_event("call.ended", info=INFO))
        await dead.sink.drain(DRAIN_S)
        async with daemon(server.url, tmp_path / "watcher") as watcher, asyncio.timeout(10):
            while await written(client):  # noqa: ASYNC110  # another program's, nobody sets an event
                await asyncio.sleep(QUICK.beat_s)
            assert watcher.ended == 0
        assert await types(server.url, "long") == [("call.started", ""), ("call.ended", "the client closed")]


async def test_a_call_that_goes_on_elsewhere_is_not_summed_up(server: EmbeddedRedis, tmp_path: Path) -> None:
    """Its client came back with another stream, to another daemon."""
    again = make_info(call="long", session="session-of-living")
    async with daemon(server.url, tmp_path / "dead") as dead, daemon(server.url, tmp_path / "living") as living:
        dead.publish(make_call_event(info=INFO))
        living.publish(make_call_event(info=again))
        await until(lambda: not dead.leases._unwritten)  # as above
        await dead.sink.drain(DRAIN_S)
        await dead.kill()
        await until(lambda: living.ended == 1)
        assert await living.sink.drain(DRAIN_S) == 0
        found = await entries(server.url, DEFAULT_STREAMS.call_key("long"))
        assert [(fields["type"], fields["session"]) for fields in found if fields["type"] != "call.started"] == [
            ("call.failed", INFO.session)
        ]


async def test_a_redis_that_forgot_everything_is_told_again_and_nobody_dies_of_it(
    server: EmbeddedRedis, client: "Redis", tmp_path: Path
) -> None:
    async with daemon(server.url, tmp_path / "one") as one, daemon(server.url, tmp_path / "two") as two:
        one.publish(make_call_event(info=INFO))
        await settled(one)
        await client.flushall()
        await settled(one, two)
        assert (await written(client)).keys() == {INFO.session}
        assert one.ended == two.ended == 0


async def test_nobody_is_declared_dead_while_redis_is_away(tmp_path: Path) -> None:
    """All were cut off for longer than a daemon may be silent; with Redis back, each has its time anew."""
    async with AsyncExitStack() as stack:
        async with EmbeddedRedis.start(data_dir=tmp_path / "data") as server:
            url = server.url
            one, two = [await stack.enter_async_context(daemon(url, tmp_path / name)) for name in ("one", "two")]
            one.publish(make_call_event(info=INFO))
            await settled(one, two)
        await asyncio.sleep(QUICK.lease_s + QUICK.grace_s + 0.5)
        port = int(url.rpartition(":")[2].partition("/")[0])
        async with EmbeddedRedis.start(port=port, data_dir=tmp_path / "data"):
            await settled(one, two)
            assert one.ended == two.ended == 0
            await stack.aclose()


async def test_who_cannot_deliver_an_end_leaves_it_to_who_can(
    server: EmbeddedRedis, client: "Redis", tmp_path: Path
) -> None:
    async with daemon(server.url, tmp_path / "dead") as dead:
        dead.publish(make_call_event(info=INFO))
        await until(lambda: not dead.leases._unwritten)  # as above
        await dead.sink.drain(DRAIN_S)
        await dead.kill()
    await client.set(DEFAULT_STREAMS.call_key("other"), "no stream")
    async with daemon(server.url, tmp_path / "stuck") as stuck:
        stuck.publish(make_emotion_event(0, info=make_info(call="other", session="stuck")))
        await until(lambda: stuck.sink.healthy() is not None)
        await asyncio.sleep(QUICK.lease_s + QUICK.grace_s + 10 * QUICK.beat_s)
        assert stuck.ended == 0
        async with daemon(server.url, tmp_path / "able") as able:
            await until(lambda: able.ended == 1)
            assert await able.sink.drain(DRAIN_S) == 0
            assert stuck.ended == 0
        await client.delete(DEFAULT_STREAMS.call_key("other"))
        assert await stuck.sink.drain(DRAIN_S) == 0
    assert [kind for kind, _ in await types(server.url, "long")] == ["call.started", "call.failed", "call.summary"]


async def test_an_own_stream_that_redis_remembers_again_is_crossed_out(
    server: EmbeddedRedis, client: "Redis", tmp_path: Path
) -> None:
    """Redis came back with what it knew a while ago; with an end, or without."""
    async with daemon(server.url, tmp_path / "one") as one:
        other = make_info(call="short", session="session-of-short")
        for info in (INFO, other):
            one.publish(make_call_event(info=info), make_emotion_event(0, info=info))
        await until(lambda: not one.leases._unwritten)  # as above
        known: Any = await client.hgetall(OPEN)
        for info in (INFO, other):
            one.publish(make_call_event("call.ended", info=info))
        assert await one.sink.drain(DRAIN_S) == 0
        await until(lambda: not one.leases._over)  # they are crossed out
        found: Any = await client.xrange(DEFAULT_STREAMS.call_key("short"))
        await client.xdel(DEFAULT_STREAMS.call_key("short"), found[-1][0])
        await client.hset(OPEN, mapping=known)
        await until(lambda: one.ended == 1)
        assert await one.sink.drain(DRAIN_S) == 0
        await until(lambda: not one.leases._over)  # they are crossed out
        assert await written(client) == {}
    assert [kind for kind, _ in await types(server.url, "long")] == ["call.started", "emotion", "call.ended"]
    assert (await types(server.url, "short"))[-1] == ("call.summary", "lost")


async def test_what_somebody_else_wrote_there_is_left_alone(
    server: EmbeddedRedis, client: "Redis", tmp_path: Path
) -> None:
    strange = {"a": "no json", "b": "[]", "c": '{"daemon": "gone"}', "d": "[" * 200_000}
    for field, text in strange.items():
        await client.hset(OPEN, field, text)
    async with daemon(server.url, tmp_path / "watcher") as watcher:
        await settled(watcher)
        assert watcher.ended == 0
        assert not any(task.done() for task in watcher.running)
    left: Any = await client.hgetall(OPEN)
    assert left == strange
