"""Speech detection of all streams: what becomes due within a moment shares one trip to a thread.

A trip there and back costs as much as judging a window or two, and hundreds of streams are due a dozen times a second each.
So trips leave no oftener than every few milliseconds: a stream alone waits for nobody, many share what they cost. Whoever
brings much, as a client that sends a recording faster than it was spoken, travels alone.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from daemon.session import Output

Work = Callable[[], list[Output]]
"""What a session does in a thread; one piece of a session at a time."""

_INTERVAL_S: Final = 0.008
"""Least time between two trips: a quarter of a window."""
_MUCH: Final = 32
"""Windows, a second of one channel, that hold up others for more than they wait anyway."""


@dataclass(frozen=True, slots=True)
class _Passenger:
    work: Work
    future: "asyncio.Future[list[Output]]"


class Detection:
    """Runs sessions in the threads of an executor.

    Args:
        threads: run trips; several at a time where one takes long.
        interval_s: least time between two trips.
    """

    def __init__(self, threads: Executor, interval_s: float = _INTERVAL_S) -> None:
        self._threads = threads
        self._interval_s = interval_s
        self._waiting: list[_Passenger] = []
        self._left_at = -float("inf")
        """When the last trip left, on the event loop's clock."""

    def judge(self, work: Work, windows: int) -> "asyncio.Future[list[Output]]":
        """Has a thread do `work`, soon, on so many windows; what it gives, or the error that it raises.

        It is done even if nobody waits for it any more.
        """
        loop = asyncio.get_running_loop()
        passenger = _Passenger(work, loop.create_future())
        if windows > _MUCH:
            self._send([passenger], loop)
            return passenger.future
        self._waiting.append(passenger)
        if len(self._waiting) == 1:
            loop.call_at(max(loop.time(), self._left_at + self._interval_s), self._leave, loop)
        return passenger.future

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        passengers, self._waiting = self._waiting, []
        self._left_at = loop.time()
        self._send(passengers, loop)

    def _send(self, passengers: Sequence[_Passenger], loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._threads.submit(_travel, passengers, loop)
        except RuntimeError as error:  # the threads are shut down: whoever waits must not wait for ever
            _arrive(passengers, [error] * len(passengers))


def _travel(passengers: Sequence[_Passenger], loop: asyncio.AbstractEventLoop) -> None:
    """One after the other, in a thread; one that fails fails alone."""
    results: list[list[Output] | Exception] = []
    for passenger in passengers:
        try:
            results.append(passenger.work())
        except Exception as error:  # the boundary of one session
            results.append(error)
    loop.call_soon_threadsafe(_arrive, passengers, results)


def _arrive(passengers: Sequence[_Passenger], results: Sequence[list[Output] | Exception]) -> None:
    for passenger, result in zip(passengers, results, strict=True):
        if passenger.future.done():  # given up
            continue
        if isinstance(result, Exception):
            passenger.future.set_exception(result)
        else:
            passenger.future.set_result(result)
