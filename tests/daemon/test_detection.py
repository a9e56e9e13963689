"""Streams share trips to a thread: nobody waits for company, and nobody gets another's fate."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from daemon.detection import Detection
from daemon.session import Output, SpeechResumed

NEVER_S = 3600.0


def telling(number: int, where: list[int]) -> "list[Output]":
    where.append(threading.get_ident())
    return [SpeechResumed(number, 0)]


async def test_a_stream_alone_waits_for_nobody() -> None:
    where: list[int] = []
    with ThreadPoolExecutor(1) as threads:
        detection = Detection(threads, NEVER_S)
        assert await asyncio.wait_for(detection.judge(lambda: telling(3, where), 1), 10) == [SpeechResumed(3, 0)]
    assert where != [threading.get_ident()]


async def test_what_becomes_due_together_shares_a_trip_and_everybody_gets_their_own() -> None:
    trips = 0

    class Counting(ThreadPoolExecutor):
        def submit(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal trips
            trips += 1
            return super().submit(*args, **kwargs)

    with Counting(4) as threads:
        detection = Detection(threads, 0.05)
        first = await detection.judge(lambda: telling(0, []), 1)
        rest = await asyncio.gather(*(detection.judge(lambda n=n: telling(n, []), 3) for n in range(1, 9)))  # type: ignore[misc]
    assert [first, *rest] == [[SpeechResumed(n, 0)] for n in range(9)]
    assert trips == 2


async def test_one_that_fails_fails_alone() -> None:
    def failing() -> list[Output]:
        raise ValueError("a speech probability lies in 0..1, got nan")

    with ThreadPoolExecutor(1) as threads:
        detection = Detection(threads)
        works = (lambda: telling(0, []), failing, lambda: telling(2, []))
        ends = await asyncio.gather(*(detection.judge(work, 1) for work in works), return_exceptions=True)
    assert [ends[0], ends[2]] == [[SpeechResumed(0, 0)], [SpeechResumed(2, 0)]]
    assert isinstance(ends[1], ValueError)


async def test_what_is_given_up_is_done_all_the_same_and_disturbs_nobody() -> None:
    where: list[int] = []
    with ThreadPoolExecutor(1) as threads:
        detection = Detection(threads)
        given_up, other = (detection.judge(lambda n=n: telling(n, where), 1) for n in range(2))  # type: ignore[misc]
        given_up.cancel()
        assert await other == [SpeechResumed(1, 0)]
    assert len(where) == 2


async def test_who_brings_much_holds_up_nobody() -> None:
    gate = threading.Event()

    def slow() -> list[Output]:
        assert gate.wait(10)
        return []

    with ThreadPoolExecutor(2) as threads:
        detection = Detection(threads)
        long, short = detection.judge(slow, 1000), detection.judge(lambda: telling(1, []), 3)
        assert await asyncio.wait_for(short, 10) == [SpeechResumed(1, 0)]
        assert not long.done()
        gate.set()
        assert await long == []


async def test_nobody_waits_for_threads_that_are_gone() -> None:
    threads = ThreadPoolExecutor(1)
    threads.shutdown()
    for windows in (1, 1000):
        with pytest.raises(RuntimeError, match="after shutdown"):
            await asyncio.wait_for(Detection(threads).judge(lambda: [], windows), 10)
