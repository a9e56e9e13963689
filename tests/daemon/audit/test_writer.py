"""Audit entries and old events in a real Valkey: written, lost, and gone in time."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from daemon.audit import writer as writer_module
from daemon.audit.entries import AuditSettings
from daemon.audit.retention import keep_trimmed
from daemon.audit.writer import AUDIT_KEY, Audit, running_audit
from daemon.calls.beside import beside
from daemon.embedded import EmbeddedRedis
from daemon.errors import ConfigError
from daemon.sinks.redis import DEFAULT_STREAMS
from tests.daemon.fleet.test_redis_rules import RULES, command, words
from tests.waiting import until

Json = dict[str, str]


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedRedis]:
    async with EmbeddedRedis.start() as running:
        yield running


@asynccontextmanager
async def admin_of(server: EmbeddedRedis) -> AsyncIterator["Redis"]:
    async with Redis.from_url(server.url, decode_responses=True, protocol=2) as client:
        yield client


async def audited(client: "Redis", key: str = AUDIT_KEY) -> list[Json]:
    found: Any = await client.xrange(key)
    return [fields for _, fields in found]


async def length(client: "Redis", wanted: int, key: str = AUDIT_KEY) -> None:
    """Waits until a stream has that many entries."""
    async with asyncio.timeout(10):
        while await client.xlen(key) != wanted:  # noqa: ASYNC110  # Redis sets no event
            await asyncio.sleep(0.005)


async def test_entries_are_there_in_order_and_at_once(server: EmbeddedRedis) -> None:
    async with admin_of(server) as admin, running_audit(server.url, AuditSettings("a")) as audit:
        before_ms = time.time_ns() // 1_000_000
        for n in range(200):
            audit.note("call.read", who="desk", call=str(n))
        await length(admin, 200)
        found = await audited(admin)
    assert [entry["call"] for entry in found] == [str(n) for n in range(200)]
    assert before_ms <= int(found[0]["ts"]) <= time.time_ns() // 1_000_000
    assert audit.lost == 0


async def test_repetitions_are_an_entry_a_window(server: EmbeddedRedis) -> None:
    async with admin_of(server) as admin:
        async with running_audit(server.url, AuditSettings("a", window_s=0.2)) as audit:
            for _ in range(50):
                audit.tally("calls.listed", who="desk")
            await length(admin, 2)
            audit.tally("calls.listed", who="desk")
        found = await audited(admin)
    assert sum(int(entry["count"]) for entry in found) == 51, "the last window's too"
    assert [entry["count"] for entry in found] == ["1", "49", "1"]


async def test_the_stream_is_bounded(server: EmbeddedRedis) -> None:
    async with admin_of(server) as admin:
        async with running_audit(server.url, AuditSettings("a", maxlen=100)) as audit:
            for n in range(1_000):
                audit.note("call.read", who="desk", call=str(n))
        assert 100 <= await admin.xlen(AUDIT_KEY) <= 300
        assert (await audited(admin))[-1]["call"] == "999"


async def test_while_redis_is_away_nobody_waits_and_the_loss_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer_module, "_LAST_WORDS_S", 0.1)
    async with running_audit("redis://127.0.0.1:1/0", AuditSettings("a")) as audit:
        for n in range(10_050):
            audit.note("call.read", who="desk", call=str(n))
        await until(lambda: "takes no audit entries" in caplog.text)
        assert audit.lost == 50
    assert audit.lost == 10_050
    assert "10000 audit entries are lost" in caplog.text
    assert "desk" not in caplog.text


async def test_what_waited_for_redis_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_PAUSE_S", 0.02)
    async with EmbeddedRedis.start() as running:
        port = running.port
    async with running_audit(f"redis://127.0.0.1:{port}/0", AuditSettings("a")) as audit:
        audit.note("call.deleted", who="desk", call="c-1")
        await asyncio.sleep(0.1)
        async with EmbeddedRedis.start(port=port) as again, admin_of(again) as admin:
            await length(admin, 1)
            assert [entry["call"] for entry in await audited(admin)] == ["c-1"]
    assert audit.lost == 0


async def test_what_redis_refuses_waits_and_is_said(server: EmbeddedRedis, caplog: pytest.LogCaptureFixture) -> None:
    async with admin_of(server) as admin:
        await admin.set(AUDIT_KEY, "no stream")
        async with running_audit(server.url, AuditSettings("a")) as audit:
            audit.note("call.deleted", who="desk", call="c-1")
            await until(lambda: "WRONGTYPE" in caplog.text)
    assert audit.lost == 1


async def test_entries_go_when_they_are_old_and_not_before(server: EmbeddedRedis) -> None:
    events = DEFAULT_STREAMS.events_key
    async with admin_of(server) as admin:
        now_s = (await admin.time())[0]
        for age_s in (7200, 3700, 3500, 10):
            for key in (events, AUDIT_KEY):
                await admin.xadd(key, {"age": str(age_s)}, id=f"{(now_s - age_s) * 1000}-0")
        async with beside(keep_trimmed(server.url, {events: 3600, AUDIT_KEY: 5000}, every_s=0.05), "retention"):
            await length(admin, 3)
            assert [fields["age"] for fields in await audited(admin, events)] == ["3500", "10"]
            assert [fields["age"] for fields in await audited(admin)] == ["3700", "3500", "10"]
            await admin.xadd(events, {"age": "9"})
            await asyncio.sleep(0.15)
            assert await admin.xlen(events) == 3


async def test_retention_waits_for_redis_and_ends_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async with beside(keep_trimmed("redis://127.0.0.1:1/0", {AUDIT_KEY: 60}, every_s=0.01), "retention"):
        await until(lambda: "old entries of medusa:audit stay" in caplog.text)
        await asyncio.sleep(0.05)
    assert caplog.text.count("stay") == 1, "said once"


async def test_a_gateways_rights_are_enough(server: EmbeddedRedis) -> None:
    """Those that docs/scale-out.md gives it."""
    async with admin_of(server) as admin:
        await command(admin, "ACL", "SETUSER", "medusa-gateway", "reset", *words(RULES["medusa-gateway"]))
        url = f"redis://medusa-gateway:secret@127.0.0.1:{server.port}/0"
        old = {AUDIT_KEY: 60, DEFAULT_STREAMS.events_key: 60}  # trimmed in this order
        for key in old:
            await admin.xadd(key, {"old": "1"}, id="1-0")
        async with running_audit(url, AuditSettings("a")) as audit, beside(keep_trimmed(url, old), "retention"):
            audit.note("call.deleted", who="desk", call="c-1")
            await length(admin, 0, DEFAULT_STREAMS.events_key)
            await until(lambda: not audit.waiting)
        assert audit.lost == 0
        assert [entry["type"] for entry in await audited(admin)] == ["call.deleted"]
        assert await command(admin, "ACL", "LOG") == []


async def test_a_url_that_is_none_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="not a Redis URL"):
        Audit("http://example.org", AuditSettings("a"))
