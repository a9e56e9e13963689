"""The Redis sink against a real Valkey server: what is published arrives whole, once and in order."""

import asyncio
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.crc import key_slot

from daemon.embedded import EmbeddedRedis
from daemon.errors import ConfigError
from daemon.events import read_call
from daemon.messages import Event
from daemon.sinks.redis import RedisSink, StreamSettings, without_password
from daemon.sinks.spool import Spool
from daemon.wire import redis_fields
from tests.daemon.sinks.conftest import DRAIN_S, entries, ids, publish, sink_to, some_events
from tests.factories import make_call_event, make_emotion_event, make_info


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


async def test_streams_are_capped(server: EmbeddedRedis, client: "Redis", tmp_path: Path) -> None:
    """About `maxlen` entries stay: Redis removes whole nodes of a hundred."""
    async with sink_to(server.url, tmp_path, settings=StreamSettings(maxlen=100)) as sink:
        wanted = publish(sink, some_events(500))
        assert await sink.drain(DRAIN_S) == 0
    kept = await ids(server.url)
    assert 100 <= len(kept) <= 300
    assert wanted[-len(kept) :] == kept


async def test_text_that_utf8_cannot_write_stops_nothing(server: EmbeddedRedis, tmp_path: Path) -> None:
    """Half a surrogate pair in a client's metadata becomes a question mark."""
    async with sink_to(server.url, tmp_path) as sink:
        publish(sink, [make_call_event(info=make_info(metadata={"note": "a\ud800b"})), make_emotion_event()])
        assert await sink.drain(DRAIN_S) == 0
    assert [fields.get("meta_note") for fields in await entries(server.url)] == ["a?b", None]


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
