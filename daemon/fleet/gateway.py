"""The engine as a gateway sees it: utterances go to Redis, and what a worker found comes back.

A final utterance goes out as soon as it is certain (`accept`), long before its turn to be asked for (`score`); from then on it
is scored and published whatever becomes of this gateway. Until Redis has taken it, it waits here. What Redis lost with its
memory is handed in again when it is asked for, with the history of its channel, so that it gets the same scores.
"""

import asyncio
import logging
from collections import OrderedDict
from contextlib import suppress
from typing import Final

from daemon.errors import CapacityError, UpstreamError
from daemon.fleet.store import AWAY, Status, WorkStore, end_if_cancelled
from daemon.fleet.wire import Failure, Result, Work, decode_result
from daemon.messages import CallInfo, Scores, Utterance
from model.adaptation import NO_HISTORY, History

_log = logging.getLogger(__name__)

_PAUSE_S: Final = 0.2
"""Between attempts to reach a Redis that is away."""


class RemoteScorer:
    """A `Scorer` whose models are elsewhere. `run` must run beside it.

    Args:
        store: the work of the bundle that results are stamped with.
        name: of this gateway; no other has it.

    Attributes:
        accepted: final utterances that Redis has taken, so far.
        repeated: those that were handed in again, because Redis had lost them.
    """

    def __init__(self, store: WorkStore, name: str) -> None:
        self.accepted = 0
        self.repeated = 0
        self._store = store
        self._settings = store.settings
        self._name = name
        self._outbox: OrderedDict[str, Work] = OrderedDict()
        """What Redis has not taken yet, by event id."""
        self._arrived = asyncio.Event()
        self._waiters: dict[str, asyncio.Event] = {}
        """Set once there is a result, by event id."""
        self._seen = "0-0"
        self._status: Status | None = None
        self._problem: str | None = "not connected to Redis yet"
        self._refused: str | None = None
        """Why Redis did not take the utterance whose turn it is."""

    @property
    def unsent(self) -> int:
        """Final utterances that wait here for Redis."""
        return len(self._outbox)

    @property
    def status(self) -> Status | None:
        """What there was to do a moment ago, None where Redis did not say."""
        return self._status

    def problem(self) -> str | None:
        """None where work is taken and somebody is there to do it, else what is wrong."""
        if (problem := self._problem or self._refused) is not None:
            return problem
        if self._status is not None and self._status.workers == 0:
            return f"no worker with the bundle {self._store.keys.bundle} is there: utterances wait for one"
        return None

    def accept(self, info: CallInfo, utterance: Utterance) -> None:
        """Takes charge of a final utterance; never blocks."""
        work = Work(info, utterance, self._name)
        self._outbox[work.event_id] = work
        self._arrived.set()

    async def score(
        self, info: CallInfo, utterance: Utterance, history: History = NO_HISTORY, *, ahead_s: float = 0.0
    ) -> Scores:
        """The scores of an utterance, once a worker has found them.

        Raises:
            CapacityError: if the utterance is interim and no worker has time for it, or it is not certain.
            UpstreamError: if the workers gave it up, or nobody asked for its result until that expired.
        """
        if ahead_s:
            raise CapacityError("workers elsewhere score what is certain: nothing is scored ahead")
        work = Work(info, utterance, self._name, history)
        arrived = self._waiters[work.event_id] = asyncio.Event()
        try:
            data = await (self._final(work, arrived) if utterance.final else self._interim(work, arrived))
        finally:
            del self._waiters[work.event_id]
        result: Result = decode_result(data)
        if isinstance(result, Failure):
            raise UpstreamError(result.reason)
        return result

    async def run(self) -> None:
        """Sends and listens until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send(), name="send")
            group.create_task(self._listen(), name="listen")
            group.create_task(self._watch(), name="watch")

    async def drain(self, timeout_s: float) -> int:
        """Waits until Redis has everything; returns how many utterances were still here at the end."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._outbox:  # noqa: ASYNC110  # at the very end, once
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pass
        return len(self._outbox)

    async def _final(self, work: Work, arrived: asyncio.Event) -> bytes:
        while True:
            end_if_cancelled()
            try:
                data = await self._look(work)
            except AWAY as error:
                _log.debug("Redis is away, the result is asked for again: %s", error)
            else:
                if data is not None:
                    return data
            try:
                async with asyncio.timeout(self._settings.poll_s):
                    await arrived.wait()
            except TimeoutError:  # a notice may be lost, its result is not
                continue
            arrived.clear()

    async def _look(self, work: Work) -> bytes | None:
        """The result if it is there; hands the utterance in again if it is nowhere."""
        data, waiting = await self._store.look(work)
        if data is None and not waiting and work.event_id not in self._outbox:
            if await self._store.accept(work, fenced=False) == "stored":
                self.repeated += 1
                return None
            data = await self._store.result(work.event_id)
            if data is None and not (await self._store.look(work))[1]:
                raise UpstreamError(f"the result of {work.event_id} is gone: nobody asked for it in time")
        if data is not None:
            with suppress(*AWAY):  # it goes by itself too; asked for again, it might be gone
                await self._store.forget(work.event_id)
        return data

    async def _interim(self, work: Work, arrived: asyncio.Event) -> bytes:
        try:
            if not await self._store.offer(work):
                raise CapacityError("the workers have enough to do: interim work is refused")
            end_if_cancelled()
            async with asyncio.timeout(self._settings.interim_s):
                await arrived.wait()
            data = await self._store.result(work.event_id)
        except TimeoutError as error:
            raise CapacityError(f"no worker had time for it within {self._settings.interim_s:g} s") from error
        except AWAY as error:
            raise CapacityError("Redis is away: interim work is refused") from error
        if data is None:
            raise CapacityError("the result of interim work came too late")
        return data

    async def _send(self) -> None:
        """Hands in what was accepted, in order."""
        while True:
            end_if_cancelled()
            await self._arrived.wait()
            self._arrived.clear()
            while self._outbox:
                end_if_cancelled()
                work = next(iter(self._outbox.values()))
                try:
                    answer = await self._store.accept(work, fenced=True)
                except AWAY as error:
                    if self._refused is None:
                        _log.warning("Redis takes no utterances, they are handed in again: %s", error)
                    self._refused = f"Redis takes no utterances: {type(error).__name__}: {error}"
                    await asyncio.sleep(_PAUSE_S)
                    continue
                except (UpstreamError, ValueError) as error:
                    _log.error("an utterance cannot be handed in: %s", error)
                    answer = "gap"  # `score` fails of it too, and ends its stream alone
                self._refused = None
                del self._outbox[work.event_id]
                self.accepted += answer == "stored"
                if answer == "gap" and (waiter := self._waiters.get(work.event_id)) is not None:
                    waiter.set()  # it is asked for at this moment: `score` hands it in, with its history

    async def _listen(self) -> None:
        while True:
            end_if_cancelled()
            try:
                notices = await self._store.notices(self._name, self._seen)
            except AWAY:
                await asyncio.sleep(_PAUSE_S)
                continue
            for self._seen, event_id in notices:
                if (waiter := self._waiters.get(event_id)) is not None:
                    waiter.set()

    async def _watch(self) -> None:
        while True:
            end_if_cancelled()
            try:
                if self._problem is not None:
                    await self._store.prepare()  # what workers are scaled by is there before the first of them
                self._status = await self._store.status()
                self._tell(None)
            except AWAY as error:
                self._status = None
                self._tell(f"cannot reach the Redis of the workers: {type(error).__name__}: {error}")
            await asyncio.sleep(self._settings.poll_s)

    def _tell(self, problem: str | None) -> None:
        if problem != self._problem:
            _log.log(logging.INFO if problem is None else logging.WARNING, "%s", problem or "Redis takes utterances")
        self._problem = problem
