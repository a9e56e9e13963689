"""A Valkey server that fails in every way it can, or is not there: the Redis sink says so, waits, and repeats nothing."""

import asyncio
import logging
import shutil
from pathlib import Path

import pytest
from redis.asyncio import Redis

from daemon.embedded import EmbeddedRedis
from daemon.events import read_call
from daemon.sinks.redis import RedisSink, StreamSettings
from daemon.sinks.spool import Spool
from tests.daemon.sinks.conftest import DRAIN_S, entries, ids, publish, sink_to, some_events
from tests.factories import make_call_event, make_emotion_event, make_info
from tests.ports import free_port
from tests.waiting import until


async def test_a_lost_acknowledgement_repeats_nothing_after_a_long_outage(
    server: EmbeddedRedis, client: "Redis", tmp_path: Path
) -> None:
    """Longer than an acknowledged event is known: a proxy passes the batch on and swallows the answer."""
    settings = StreamSettings(seen_ttl_s=1)
    swallowed = asyncio.Event()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, downstream = await asyncio.open_connection("127.0.0.1", server.port)
        while not swallowed.is_set() and (data := await reader.read(1 << 16)):
            downstream.write(data)
            answer = await upstream.read(1 << 16)
            if await client.xlen("medusa:events"):
                swallowed.set()
            else:
                writer.write(answer)
        for end in (downstream, writer):
            end.close()

    proxy = await asyncio.start_server(forward, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    async with sink_to(f"redis://127.0.0.1:{port}/0", tmp_path, settings=settings) as sink:
        wanted = publish(sink, some_events(3))
        await asyncio.wait_for(swallowed.wait(), DRAIN_S)
        proxy.close()
        await asyncio.sleep(1.5)
        assert sink.waiting == 3
    async with sink_to(server.url, tmp_path, settings=settings) as sink:
        assert await sink.drain(DRAIN_S) == 0
    assert await ids(server.url) == wanted


async def test_from_the_drain_on_everything_is_on_disk(tmp_path: Path) -> None:
    """While Redis is away: whoever waits for the drain may be killed."""
    async with sink_to(f"redis://127.0.0.1:{free_port()}/0", tmp_path / "killed") as sink:
        wanted = publish(sink, some_events(5))
        assert sink.spooled == 0
        assert await sink.drain(0) == 5
        wanted += publish(sink, some_events(5, first=5))
        shutil.copytree(tmp_path / "killed", tmp_path / "copy")
    after = Spool(tmp_path / "copy")
    assert [fields["event_id"] for fields in after.peek(99)] == wanted
    after.close()


async def test_out_of_memory_is_waited_out(server: EmbeddedRedis, client: "Redis", tmp_path: Path) -> None:
    """A refused XADD leaves no trace that would make its retry look like a repetition."""
    async with sink_to(server.url, tmp_path) as sink:
        wanted = publish(sink, some_events(3))
        await sink.drain(DRAIN_S)
        await client.config_set("maxmemory", "1")
        wanted += publish(sink, some_events(5, first=3))
        await until(lambda: "out of memory" in (sink.healthy() or ""))
        await until(lambda: sink.retries >= 2)
        assert await client.xlen("medusa:events") == 3
        await client.config_set("maxmemory", "0")
        assert await sink.drain(DRAIN_S) == 0
        assert sink.healthy() is None
    assert await ids(server.url) == wanted


async def test_a_read_only_replica_is_waited_out(server: EmbeddedRedis, client: "Redis", tmp_path: Path) -> None:
    """As in a failover: the server takes no writes for a while."""
    async with sink_to(server.url, tmp_path) as sink:
        wanted = publish(sink, some_events(3))
        await sink.drain(DRAIN_S)
        await client.replicaof("127.0.0.1", str(free_port()))
        wanted += publish(sink, some_events(5, first=3))
        await until(lambda: sink.healthy() == "Redis is a read-only replica (stream 'medusa:events')")
        await client.replicaof("NO", "ONE")
        assert await sink.drain(DRAIN_S) == 0
    assert await ids(server.url) == wanted


async def test_a_restart_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """Before, while it is away (more than fits into memory), and after: one stream, in order."""
    port = free_port()
    async with sink_to(f"redis://127.0.0.1:{port}", tmp_path / "spool", memory=3) as sink:
        async with EmbeddedRedis.start(port=port, data_dir=tmp_path / "data"):
            wanted = publish(sink, some_events(20))
            await until(lambda: sink.published > 0)
        wanted += publish(sink, some_events(20, first=20))
        await until(lambda: "cannot reach Redis" in (sink.healthy() or ""))
        async with EmbeddedRedis.start(port=port, data_dir=tmp_path / "data") as server:
            wanted += publish(sink, some_events(20, first=40))
            assert await sink.drain(DRAIN_S) == 0
            assert sink.healthy() is None
            assert await ids(server.url) == wanted


async def test_events_wait_for_a_redis_that_is_absent_at_the_start(tmp_path: Path) -> None:
    """Starting returns at once, and says that nothing is connected."""
    port = free_port()
    async with sink_to(f"redis://127.0.0.1:{port}", tmp_path) as sink:
        assert sink.healthy() == "not connected to Redis yet"
        wanted = publish(sink, some_events(5))
        assert await sink.drain(0.05) == 5
        await until(lambda: "cannot reach Redis" in (sink.healthy() or ""))
        async with EmbeddedRedis.start(port=port) as server:
            assert await sink.drain(DRAIN_S) == 0
            assert await ids(server.url) == wanted


async def test_health_needs_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness is known before the first call, and a Redis that goes away between calls is noticed."""
    monkeypatch.setattr("daemon.sinks.redis._QUIET_S", 0.05)
    async with EmbeddedRedis.start() as server:
        sink = RedisSink(server.url, spool=Spool(tmp_path))
        await sink.start()
        await until(lambda: sink.healthy() is None)
    await until(lambda: "cannot reach Redis" in (sink.healthy() or ""))
    await sink.close()


async def test_the_next_process_delivers_what_this_one_could_not(server: EmbeddedRedis, tmp_path: Path) -> None:
    """A clean stop without Redis writes everything to disk; new events come behind it."""
    async with sink_to(f"redis://127.0.0.1:{free_port()}", tmp_path, memory=3) as sink:
        wanted = publish(sink, some_events(8))
    async with sink_to(server.url, tmp_path) as sink:
        wanted += publish(sink, some_events(2, first=8))
        assert await sink.drain(DRAIN_S) == 0
    assert await ids(server.url) == wanted


async def test_a_stream_that_redis_refuses_is_named_and_nothing_is_lost(
    server: EmbeddedRedis, client: "Redis", tmp_path: Path
) -> None:
    """A key of another type stops delivery at that entry until an operator removes it."""
    await client.set("medusa:call:call-1", "not a stream")
    async with sink_to(server.url, tmp_path, settings=StreamSettings(batch=2)) as sink:
        wanted = publish(sink, some_events(6))
        await until(lambda: "WRONGTYPE" in (sink.healthy() or ""))
        await until(lambda: sink.retries >= 2)
        assert "(stream 'medusa:call:call-1')" in (sink.healthy() or "")
        assert (sink.published, sink.waiting) == (1, 5)
        await client.delete("medusa:call:call-1")
        assert await sink.drain(DRAIN_S) == 0
    assert await ids(server.url) == wanted
    assert await ids(server.url, "medusa:call:call-1") == [wanted[1], wanted[4]]


async def test_wrong_credentials_are_named(server: EmbeddedRedis, client: "Redis", tmp_path: Path) -> None:
    """Events wait until the password is right."""
    async with sink_to(server.url.replace("//", "//:secret@"), tmp_path) as sink:
        wanted = publish(sink, some_events(2))
        await until(lambda: "credentials" in (sink.healthy() or ""))
        assert "secret" not in (sink.healthy() or "")
        await client.config_set("requirepass", "secret")
        assert await sink.drain(DRAIN_S) == 0
        await client.auth("secret")
        await client.config_set("requirepass", "")
    assert await ids(server.url) == wanted


async def test_a_server_that_forgot_the_script_is_no_failure(
    server: EmbeddedRedis, client: "Redis", tmp_path: Path
) -> None:
    """As after a failover: the script is sent again."""
    async with sink_to(server.url, tmp_path) as sink:
        for first in (0, 3):
            publish(sink, some_events(3, first=first))
            assert await sink.drain(DRAIN_S) == 0
            await client.script_flush()
        assert sink.retries == 0
    assert len(await ids(server.url)) == 6


async def test_a_server_that_never_answers_stops_neither_publish_nor_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is bounded in time, and what was not answered is on disk."""
    monkeypatch.setattr("daemon.sinks.redis._LAST_BATCH_S", 0.1)

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(hold, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with asyncio.timeout(5.0), sink_to(f"redis://127.0.0.1:{port}", tmp_path) as sink:
        assert await sink.drain(DRAIN_S) == 0, "nothing to wait for"
        publish(sink, some_events(4))
        assert await sink.drain(0.05) == 4
    silent.close()
    await silent.wait_closed()
    spool = Spool(tmp_path)
    assert len(spool) == 4
    spool.close()


async def test_a_gap_reaches_the_calls_stream(tmp_path: Path) -> None:
    """Past the bound, interims went; whoever reads the call can see it."""
    port = free_port()
    info = make_info()
    async with sink_to(
        f"redis://127.0.0.1:{port}", tmp_path, memory=2, disk=2, settings=StreamSettings(batch=1)
    ) as sink:
        publish(sink, [make_call_event(info=info)])
        await until(lambda: "cannot reach Redis" in (sink.healthy() or ""))
        publish(sink, [make_emotion_event(0, interim=number, info=info) for number in range(1, 6)])
        publish(sink, [make_emotion_event(0, info=info)])
        assert sink.dropped_interims == 3
        async with EmbeddedRedis.start(port=port) as server:
            assert await sink.drain(DRAIN_S) == 0
            found = await read_call(server.url, info.call)
    types = ["call.started", "gap", "emotion.interim", "emotion.interim", "emotion"]
    assert [fields["type"] for fields in found] == types
    assert found[1]["dropped_interims"] == "3"


async def test_lost_finals_are_counted_and_told(server: EmbeddedRedis, tmp_path: Path) -> None:
    """A gap that stands for several calls goes to the common stream only."""
    spool = Spool(tmp_path, memory_limit=1, disk_limit=0)
    sink = RedisSink(server.url, spool=spool)
    for number in range(4):
        sink.publish(make_call_event(info=make_info(f"call-{number}", f"session-{number}")))
    assert sink.refused == 3
    await sink.start()
    assert await sink.drain(DRAIN_S) == 0
    assert sink.healthy() is None
    await sink.close()
    found = [(fields["type"], fields["call"], fields.get("dropped_finals")) for fields in await entries(server.url)]
    assert found == [("call.started", "call-0", None), ("gap", "call-1", "1"), ("gap", "", "2")]
    assert await read_call(server.url, "") == []


async def test_logs_tell_of_the_outage_and_nothing_of_the_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two lines for one outage, however often it was tried; neither words nor emotions nor the password."""
    caplog.set_level(logging.DEBUG, "daemon")
    port = free_port()
    async with sink_to(f"redis://:secret@127.0.0.1:{port}", tmp_path, memory=1, disk=1) as sink:
        for index in range(5):
            sink.publish(make_emotion_event(index, text="my diagnosis", top="disgust"))
        await until(lambda: sink.retries >= 2)
    levels = [record.levelname for record in caplog.records]
    assert levels == ["ERROR", "WARNING"]
    assert not any(word in caplog.text for word in ("diagnosis", "disgust", "secret"))
