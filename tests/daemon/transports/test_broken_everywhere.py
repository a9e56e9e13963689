"""Broken dialogues over real connections, through every door: nothing crashes, nothing stays, nobody else suffers.

What each protocol makes of ten thousand broken messages is tried without a server, in the protocols' own tests.
"""

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from daemon.transports.dialect import Frame
from tests.daemon.conftest import ASSETS, Served, assert_same_results, finals, linear16_of, pieces
from tests.daemon.transports import test_audiohook, test_deepgram, test_hume, test_native, test_telnyx, test_twilio
from tests.daemon.transports.conftest import mutated
from tests.daemon.transports.test_whip_sdp import BROWSER
from tests.daemon.transports.test_whip_sdp import mutated as mutated_offer
from tests.daemon.transports.whip_client import SDP, http_call, needs_network
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

TIMES: Final = 60
"""Broken dialogues per door."""
WITHIN_S: Final = 30.0
PATIENCE_S: Final = 0.3
DOORS: Final[dict[str, tuple[str, Sequence[Frame]]]] = {
    "native": ("/v1/stream", [json.dumps(test_native.START), bytes(640), *test_native.CONTROL]),
    "resume": ("/v1/stream", [test_native.RESUME, bytes(640)]),
    "opus": (
        "/v1/stream",
        ['{"type": "start", "encoding": "opus"}', *test_native.PACKETS[:4], '{"type": "close"}'],
    ),
    "deepgram": (f"/v1/listen?{test_deepgram.RAW}", test_deepgram.DIALOGUE),
    "hume": ("/v1/expression/audio/realtime", [test_hume.UPDATE, test_hume.FRAME, test_hume.CLOSE]),
    "twilio": ("/twilio", test_twilio.DIALOGUE),
    "telnyx": ("/telnyx", test_telnyx.DIALOGUE),
    "audiohook": ("/audiohook", [test_audiohook.frame_of(step) for step in test_audiohook.DIALOGUE]),
}


@pytest.fixture(scope="module")
def daemon_flags() -> dict[str, Any]:
    return {"limits": {"resume_window_s": 0.2}, "log_level": "ERROR"}


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def neighbour(served: Served) -> AsyncIterator[None]:
    """Somebody speaks all the while, and gets what he gets when nobody else is there."""
    chunks = pieces(linear16_of(ASSETS / "two_sentences.flac"), 32_000)
    alone = finals(await served.stream(chunks, interim_ms=0))
    half, go_on = asyncio.Event(), asyncio.Event()

    async def paused() -> AsyncIterator[bytes]:
        for index, chunk in enumerate(chunks):
            if index == len(chunks) // 2:
                half.set()
                await go_on.wait()
            yield chunk

    speaking = asyncio.create_task(served.stream(paused(), interim_ms=0))
    await half.wait()
    yield
    go_on.set()
    assert_same_results(finals(await speaking), alone)


async def broken(served: Served, path: str, dialogue: Sequence[Frame], chance: random.Random) -> int | str | None:
    """One dialogue in which something is wrong; how the server ended it, None where it had no reason to."""
    first = chance.randrange(len(dialogue))
    try:
        async with connect(f"ws://127.0.0.1:{served.port}{path}", ping_interval=None) as connection:
            for index, frame in enumerate(dialogue):
                await connection.send(mutated(frame, chance) if index == first or chance.random() < 0.2 else frame)
            with contextlib.suppress(TimeoutError):  # where nothing was wrong enough, the server waits for more
                async with asyncio.timeout(PATIENCE_S):
                    async for text in connection:
                        if json.loads(text)["type"] == "disconnect":  # AudioHook's way; the client closes
                            return "disconnect"
                    return connection.close_code
            connection.transport.abort()
            return None
    except ConnectionClosed:
        return connection.close_code


@pytest.mark.parametrize("door", DOORS)
async def test_broken_dialogues_harm_nobody(served: Served, door: str, caplog: pytest.LogCaptureFixture) -> None:
    path, dialogue = DOORS[door]
    chance = random.Random(door)
    before = len(asyncio.all_tasks())
    ends: set[int | str | None] = set()
    with caplog.at_level(logging.ERROR):
        async with asyncio.timeout(WITHIN_S):
            for _ in range(TIMES // 6):
                ends |= set(await asyncio.gather(*(broken(served, path, dialogue, chance) for _ in range(6))))
        await until(lambda: gauge(served) == 1 and not len(served.daemon.streams.parking), within_s=WITHIN_S)
        await until(lambda: len(asyncio.all_tasks()) <= before, within_s=WITHIN_S)
    assert [record.getMessage() for record in caplog.records] == [], "nobody's stream failed through our fault"
    assert ends <= {None, "disconnect", 1000, 1003, 1006, 1007, 1008, 1009}, "never 1011: that would be our own mistake"
    assert ends & {"disconnect", 1003, 1007, 1008}, "nothing was refused"
    assert (await served.get("/health"))[0] == 200


def gauge(served: Served) -> float:
    """Open streams, as the metrics say."""
    (sample,) = [
        sample
        for metric in served.daemon.streams.metrics.streams.collect()
        for sample in metric.samples
        if sample.name == "medusa_streams"
    ]
    return sample.value


@needs_network
async def test_broken_offers_harm_nobody(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(7)
    before = len(asyncio.all_tasks())
    statuses = set()
    with caplog.at_level(logging.ERROR):
        async with asyncio.timeout(WITHIN_S):
            for _ in range(TIMES // 2):
                offer = mutated_offer(mutated_offer(BROWSER, chance), chance)
                answer = await http_call(served.port, "POST", "/whip", offer.encode(), content_type=SDP)
                statuses.add(answer.status)
                if answer.status == 201:
                    gone = await http_call(served.port, "DELETE", answer.headers["location"])
                    assert gone.status == 200
        await until(lambda: gauge(served) == 1, within_s=WITHIN_S)
        await until(lambda: len(asyncio.all_tasks()) <= before, within_s=WITHIN_S)
    assert [record.getMessage() for record in caplog.records] == []
    assert statuses <= {201, 400, 413, 422}
    assert {201, 400} <= statuses
