"""What is kept of streams without a connection, and for how long."""

import asyncio

import pytest

from daemon.errors import PeerError
from daemon.parking import ENDED_KEPT, Parked, Parking

ME = object()


class Stream:
    """A stream that is still scored, without an end of its own."""

    def __init__(self) -> None:
        self.scoring = asyncio.create_task(asyncio.sleep(60))

    def detach(self) -> None:
        pass


async def never() -> None:
    await asyncio.Event().wait()


async def test_of_streams_that_have_ended_only_the_last_ones_wait_for_their_clients() -> None:
    emptied: list[int] = []
    parking = Parking(60.0, never, lambda: emptied.append(1))
    finished: list[str] = []

    async def finish() -> None:
        finished.append("open")

    parking.park("open", Parked(Stream(), ME, None, finish))
    for number in range(ENDED_KEPT + 3):
        parking.park(f"ended-{number}", Parked(Stream(), ME, None, None))
    await asyncio.sleep(0)
    assert len(parking) == ENDED_KEPT + 1
    assert parking.unfinished == 1
    for gone in ("ended-0", "ended-2"):
        with pytest.raises(PeerError, match="no stream waits"):
            await parking.take(gone, ME)
    for kept in ("ended-3", f"ended-{ENDED_KEPT + 2}", "open"):
        assert (await parking.take(kept, ME)).owner is ME
    assert not finished, "a stream that goes on is not given up for those that have ended"
    assert not emptied


async def test_what_nobody_fetches_is_finished_when_its_time_is_over() -> None:
    empty, finished = asyncio.Event(), asyncio.Event()
    parking = Parking(0.01, never, empty.set)

    async def finish() -> None:
        finished.set()

    parking.park("open", Parked(Stream(), ME, None, finish))
    parking.park("ended", Parked(Stream(), ME, None, None))
    async with asyncio.timeout(10):
        await empty.wait()
    assert finished.is_set()
    assert len(parking) == 0
