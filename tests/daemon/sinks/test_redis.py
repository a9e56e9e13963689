"""The Redis sink against a real Valkey server that fails in every way it can."""

import asyncio
import logging
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.crc import key_slot

from daemon.embedded import EmbeddedRedis
from daemon.errors import ConfigError
from daemon.events import read_call
from daemon.interfaces import Sink
from daemon.messages import Event
from daemon.sinks.redis import DEFAULT_STREAMS, RedisSink, StreamSettings, without_password
from daemon.sinks.spool import Spool
from daemon.wire import redis_fields
from tests.factories import make_call_event, make_emotion_event, make_info
from tests.waiting import until

DRAIN_S = 10.0


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedRedis]:
    """A server of the test's own."""
    async with EmbeddedRedis.start() as running:
        yield running


@pytest.fixture
async def client(server: EmbeddedRedis) -> AsyncIterator["Redis"]:
    """What an operator does to `server`."""
    async with Redis.from_url(server.url, decode_responses=True, protocol=2) as connection:
        yield connection


@asynccontextmanager
async def sink_to(
    url: str, directory: Path, *, settings: StreamSettings = DEFAULT_STREAMS, memory: int = 1_000, disk: int = 1_000
) -> AsyncIterator[RedisSink]:
    """A started sink, closed at the end."""
    sink = RedisSink(url, spool=Spool(directory, memory_limit=memory, disk_limit=disk), settings=settings)
    await sink.start()
    try:
        yield sink
    finally:
        await sink.close()


async def entries(url: str, key: str = DEFAULT_STREAMS.events_key) -> list[dict[str, str]]:
    """Everything in a stream."""
    async with Redis.from_url(url, decode_responses=True, protocol=2) as connection:
        found: Any = await connection.xrange(key)
        return [fields for _, fields in found]


async def ids(url: str, key: str = DEFAULT_STREAMS.events_key) -> list[str]:
    """The event ids in a stream."""
    return [fields["event_id"] for fields in await entries(url, key)]


def some_events(count: int, *, first: int = 0) -> list[Event]:
    """Finals and interims of three calls, in turn."""
    infos = [make_info(call=f"call-{number}", session=f"session-{number}") for number in range(3)]
    return [
        make_emotion_event(index, interim=index % 2, info=infos[index % 3]) for index in range(first, first + count)
    ]


def publish(sink: Sink, events: list[Event]) -> list[str]:
    """Publishes all of them and gives their ids."""
    for event in events:
        sink.publish(event)
    return [event.event_id for event in events]


def free_port() -> int:
    """A port where nobody listens yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_an_event_arrives_whole_in_both_streams(server: EmbeddedRedis, client: "Redis", tmp_path: Path) -> None:
    """Every field, the call's stream with its expiry, the common one without."""
    events: list[Event] = [
        make_call_event("call.started"),
        make_emotion_event(text='né "so"\n'),
        make_call_event("call.ended"),
    ]
    async with sink_to(server.url, tmp_path) as sink:
        publish(sink, events)
        assert await sink.drain(DRAIN_S) == 0
        assert sink.healthy() is None
        assert (sink.published, sink.retries, sink.waiting) == (3, 0, 0)
    wanted = [redis_fields(event) for event in events]
    assert await entries(server.url) == wanted
    assert await read_call(server.url, "call-1") == wanted
    assert await client.ttl("medusa:events") == -1
    assert 86_000 < await client.ttl("medusa:call:call-1") <= 86_400


async def test_a_repetition_is_known_for_a_month_until_the_delivery_is_acknowledged(
    server: EmbeddedRedis, client: "Redis", tmp_path: Path
) -> None:
    """Then for an hour: Redis need not remember a month of events. The next batch tells it."""
    first, second = (
        [f"{{{key}}}:seen:session-1:0:{index}:final" for key in ("medusa:events", "medusa:call:call-1")]
        for index in range(2)
    )
    async with sink_to(server.url, tmp_path) as sink:
        publish(sink, [make_emotion_event(0)])
        assert await sink.drain(DRAIN_S) == 0
        for key in first:
            assert 29 * 86_400 < await client.ttl(key) <= 30 * 86_400
        publish(sink, [make_emotion_event(1)])
        assert await sink.drain(DRAIN_S) == 0
        for key in first:
            assert 3_500 < await client.ttl(key) <= 3_600
        for key in second:
            assert 29 * 86_400 < await client.ttl(key) <= 30 * 86_400
        assert sink.retries == 0


async def test_an_idle_sink_lets_the_last_seen_keys_go_too(
    server: EmbeddedRedis, client: "Redis", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without another batch."""
    monkeypatch.setattr("daemon.sinks.redis._QUIET_S", 0.05)
    async with sink_to(server.url, tmp_path) as sink:
        publish(sink, [make_emotion_event(0)])
        assert await sink.drain(DRAIN_S) == 0
        async with asyncio.timeout(DRAIN_S):
            while await client.ttl("{medusa:events}:seen:session-1:0:0:final") > 3_600:  # noqa: ASYNC110 - Redis sets no event
                await asyncio.sleep(0.01)


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


@pytest.mark.parametrize("batch", [1, 7, 64])
async def test_order_is_kept_for_any_batch(server: EmbeddedRedis, tmp_path: Path, batch: int) -> None:
    """In the common stream, and in each call's own."""
    async with sink_to(server.url, tmp_path, settings=StreamSettings(batch=batch), memory=10) as sink:
        wanted = publish(sink, some_events(50))
        assert await sink.drain(DRAIN_S) == 0
        assert sink.spooled > 0
    assert await ids(server.url) == wanted
    for number in range(3):
        own = [event_id for event_id in wanted if event_id.startswith(f"session-{number}:")]
        assert await ids(server.url, f"medusa:call:call-{number}") == own


async def test_publishing_again_adds_nothing(server: EmbeddedRedis, tmp_path: Path) -> None:
    """Neither in the same batch, nor later, nor from another process."""
    for _ in range(2):
        async with sink_to(server.url, tmp_path) as sink:
            wanted = publish(sink, some_events(5))
            publish(sink, some_events(5))
            await sink.drain(DRAIN_S)
            publish(sink, some_events(5))
            assert await sink.drain(DRAIN_S) == 0
    assert await ids(server.url) == wanted


async def test_a_kill_between_delivery_and_acknowledgement_repeats_nothing(
    server: EmbeddedRedis, tmp_path: Path
) -> None:
    """The next process finds everything on disk, sends it once more, and Redis knows it."""
    spool = Spool(tmp_path / "before", memory_limit=0)
    for event in some_events(9):
        spool.append(redis_fields(event), interim=False)
    spool.close()
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    for directory in ("before", "after"):
        async with sink_to(server.url, tmp_path / directory) as sink:
            assert await sink.drain(DRAIN_S) == 0
            assert sink.published == 9
    assert await ids(server.url) == [event.event_id for event in some_events(9)]


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


async def test_streams_are_capped(server: EmbeddedRedis, client: "Redis", tmp_path: Path) -> None:
    """About `maxlen` entries stay: Redis removes whole nodes of a hundred."""
    async with sink_to(server.url, tmp_path, settings=StreamSettings(maxlen=100)) as sink:
        wanted = publish(sink, some_events(500))
        assert await sink.drain(DRAIN_S) == 0
    kept = await ids(server.url)
    assert 100 <= len(kept) <= 300
    assert wanted[-len(kept) :] == kept


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


async def test_text_that_utf8_cannot_write_stops_nothing(server: EmbeddedRedis, tmp_path: Path) -> None:
    """Half a surrogate pair in a client's metadata becomes a question mark."""
    async with sink_to(server.url, tmp_path) as sink:
        publish(sink, [make_call_event(info=make_info(metadata={"note": "a\ud800b"})), make_emotion_event()])
        assert await sink.drain(DRAIN_S) == 0
    assert [fields.get("meta_note") for fields in await entries(server.url)] == ["a?b", None]


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


async def test_a_url_that_is_none_is_a_configuration_error(tmp_path: Path) -> None:
    """Told at once, and without the password that it may hold."""
    spool = Spool(tmp_path)
    with pytest.raises(ConfigError, match="not a Redis URL") as raised:
        RedisSink("http://:secret@localhost", spool=spool)
    assert "secret" not in str(raised.value)
    spool.close()


@given(st.text(min_size=1), st.sampled_from(["medusa:call:", "{medusa}:call:"]))
def test_a_stream_and_its_seen_keys_share_a_cluster_slot(call: str, prefix: str) -> None:
    """For any call id, which is the client's: else a Cluster would refuse the script."""
    settings = StreamSettings(call_prefix=prefix)
    key = settings.call_key(call)
    seen = settings.seen_key(key, "session-1:0:0:final")
    assert key_slot(key.encode()) == key_slot(seen.encode())


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user:s@ecret@host:6379/0", "redis://***@host:6379/0"),
        ("redis://:secret@host", "redis://***@host"),
        ("redis://host/0?password=secret", "redis://host/0"),
        ("user:secret@host", "***@host"),
        ("embedded", "embedded"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown
