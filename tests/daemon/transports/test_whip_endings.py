"""How WHIP sessions end, whoever ends them, and that their places are free again."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from tests.daemon.conftest import ASSETS, Served, finals, serving
from tests.daemon.transports.test_whip_sdp import BROWSER
from tests.daemon.transports.whip_client import (
    RATE_HZ,
    SDP,
    SoundTrack,
    http_call,
    needs_network,
    server_sent_events,
    sound_of,
    whip,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_network]

HELLO = ASSETS / "hello_3s.flac"


async def test_a_client_that_hangs_up_frees_its_place(served: Served) -> None:
    track = SoundTrack(sound_of(HELLO))
    async with whip(served.port, track, "?call_id=hangup&interim_ms=0") as session:
        await session.connected()
        await asyncio.sleep(2.5)
    *_, final, ended = await served.events("hangup")
    assert (final["type"], ended["type"], ended["reason"]) == ("emotion", "call.ended", "client_closed")
    await until_free(served)


async def until_free(served: Served) -> None:
    async with asyncio.timeout(20):
        while "\nmedusa_streams 0.0\n" not in (await served.get("/metrics"))[1]:  # noqa: ASYNC110  # over HTTP
            await asyncio.sleep(0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def small(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """A daemon with room for one stream, and little patience."""
    limits = {"idle_timeout_s": 4.0, "max_streams": 1}
    async with serving(tmp_path_factory.mktemp("spool"), limits=limits) as running:
        yield running


async def test_a_peer_that_never_connects_is_given_up(small: Served) -> None:
    offer = BROWSER.replace("192.0.2.1", "192.0.2.200")
    answer = await http_call(small.port, "POST", "/whip?call_id=never", offer, content_type=SDP)
    assert answer.status == 201
    ended = (await small.events("never"))[-1]
    assert (ended["type"], ended["reason"]) == ("call.ended", "idle")
    await until_free(small)


@pytest.mark.parametrize("vanishes", [False, True])
async def test_a_dead_peer_is_given_up(small: Served, vanishes: bool) -> None:
    """One that sends nothing any more, or is gone without a word; what it had said is scored."""
    track, call = SoundTrack(sound_of(HELLO)), f"dead-{vanishes}"
    async with whip(small.port, track, f"?call_id={call}&interim_ms=0", data_channel=False) as session:
        if vanishes:
            await session.connected()
            await asyncio.sleep(2.5)
            for protocol in session.pc.getSenders()[0].transport.transport._connection._protocols:
                protocol.transport.abort()
        _, emotion, ended = await small.events(call)
    assert (emotion["type"], ended["type"], ended["reason"]) == ("emotion", "call.ended", "idle")
    await until_free(small)


async def test_a_full_server_says_when_to_come_back(small: Served) -> None:
    first = await http_call(small.port, "POST", "/whip", BROWSER, content_type=SDP)
    second = await http_call(small.port, "POST", "/whip", BROWSER, content_type=SDP)
    assert (first.status, second.status) == (201, 503)
    assert second.headers["retry-after"].isdigit()
    assert '"code":"overloaded"' in second.text
    assert (await http_call(small.port, "DELETE", first.headers["location"])).status == 200
    await until_free(small)
    third = await http_call(small.port, "POST", "/whip", BROWSER, content_type=SDP)
    assert third.status == 201
    await http_call(small.port, "DELETE", third.headers["location"])
    await until_free(small)


async def test_a_shutdown_finishes_sessions(tmp_path: Path) -> None:
    track = SoundTrack(np.concatenate([sound_of(HELLO), np.zeros((60 * RATE_HZ, 2), np.int16)]))
    async with serving(tmp_path / "spool") as served:
        context = whip(served.port, track, "?call_id=drained&interim_ms=0")
        session = await context.__aenter__()
        await session.connected()
        await asyncio.sleep(2.0)
        reading = asyncio.create_task(server_sent_events(served.port, f"{session.location}/events"))
        await asyncio.sleep(0.2)
    try:
        events = await asyncio.wait_for(reading, 10)
        messages = [message for _, message in events]
        assert messages[-1]["reason"] == "going_away"
        assert len(finals(messages)) == 1
        assert session.closed
        assert session.told == messages
    finally:
        await context.__aexit__(None, None, None)
