"""The life of one stream, whatever door it came through: from `call.started` to `call.ended`.

A transport feeds it audio and finishes it. Whatever ends it - a close, a mistake, a vanished client, our own shutdown - the
audio accepted before is scored and published. `daemon.streams` says which may begin.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from daemon import wire
from daemon.access.usage import Account
from daemon.errors import CLOSE_GOING_AWAY, CLOSE_INTERNAL, CLOSE_NORMAL, CLOSE_POLICY, PeerError, UpstreamError
from daemon.messages import CallInfo
from daemon.pipeline import Call, Notify, Services
from daemon.session import Session
from model.audio import SAMPLE_RATE_HZ, Samples

_SETTLED_STEP: Final = SAMPLE_RATE_HZ
"""Audio after which a client is told again how much of it is settled."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a stream ended.

    Attributes:
        reason: short machine-readable name; in `session.closed` and in Redis.
        code: WebSocket close code (RFC 6455, 7.4.1), the only scale of endings that all our protocols can be mapped from.
        error: what the client did wrong.
    """

    reason: str
    code: int = CLOSE_NORMAL
    error: PeerError | None = None

    @classmethod
    def of(cls, error: PeerError) -> "Ending":
        """The end that a client's mistake brings."""
        return cls(error.code, error.close_code, error)


GOING_AWAY: Final = Ending("going_away", CLOSE_GOING_AWAY)
MODEL_FAILED: Final = Ending("model_failed", CLOSE_INTERNAL)
SERVER_ERROR: Final = Ending("server_error", CLOSE_INTERNAL)


class Stream:
    """One accepted stream, from `call.started` to `call.ended`. `Streams.open` makes it.

    Attributes:
        info: who it is.
        owner: name of whoever streams.
        token: with which its client may come back, None if it may not.
        ended: how it ended, None while it lasts.
        scoring: ends early if a model fails, or when the process gives up.
    """

    def __init__(
        self,
        info: CallInfo,
        session: Session,
        services: Services,
        notify: Notify,
        giving_up: asyncio.Event,
        account: Account,
    ) -> None:
        self.info = info
        self.owner = account.name
        self._meter = account.meter()
        self._notify: Notify | None = notify
        self._seq = 0
        self._sent: deque[wire.Message] = deque(maxlen=0)
        """The latest messages, for a client that comes back."""
        self._settled = 0
        self.token: str | None = None
        self.ended: Ending | None = None
        self._call = Call(info, session, services, self.notify)
        self._log = logging.LoggerAdapter(logging.getLogger(__name__), {"session": info.session})
        self._call.started()
        self.scoring = asyncio.create_task(self._call.run(), name="scoring")
        self._giving_up = asyncio.create_task(self._give_up(giving_up), name="giving up")

    def notify(self, message: wire.Message) -> None:
        """Tells the client something; numbers it."""
        numbered = message | {"seq": self._seq}
        self._seq += 1
        self._sent.append(numbered)
        if self._notify is not None:
            self._notify(numbered)

    def resumable(self, kept: int) -> str:
        """Has the stream go on if its client loses the connection; gives the token for coming back.

        Args:
            kept: messages for a client that comes back.
        """
        self._sent = deque(maxlen=kept)
        self.token = secrets.token_urlsafe(24)
        return self.token

    def detach(self) -> None:
        """Has no connection from here on."""
        self._notify = None

    def attach(self, notify: Notify, after: int, received: int) -> None:
        """Speaks to another connection, beginning with what came behind message `after`.

        Args:
            notify: hands a message to the client; never blocks.
            after: `seq` of the last message that the client has, -1 for none.
            received: audio taken so far, in the client's samples.
        """
        behind = [message for message in self._sent if message["seq"] > after]
        missed = max(0, self._seq - after - 1 - len(behind))
        for message in behind:
            notify(message)
        if self.ended is None:
            self._notify = notify
            # About this connection alone: not numbered, or the next connection would be told of it again.
            notify(wire.session_resumed(self.info, received, missed) | {"seq": self._seq - 1})

    async def feed(self, channels: Sequence[Samples]) -> None:
        """Takes the next samples `float32 [T]` at 16 kHz of every channel; waits while too much waits to be scored.

        Raises:
            ValueError: if the number of channels is not the stream's.
            PeerError: if whoever streams has had as much audio as it may have; these samples are not taken.
        """
        samples = len(channels[0]) if channels else 0
        if (problem := self._meter.problem(samples)) is not None:
            raise PeerError("quota", problem, CLOSE_POLICY)
        taken = self._call.totals.received_samples
        try:
            await self._call.feed(channels)
        finally:
            # A call may wait before it takes audio, and fail or be cancelled there. Counted it was before: else several
            # streams that wait at once would be over the limit together.
            if self._call.totals.received_samples == taken:
                self._meter.give_back(samples)
        if self.token is not None and (settled := self._call.settled) >= self._settled + _SETTLED_STEP:
            self._settled = settled
            self.notify(wire.audio_settled(settled))

    async def finalize(self) -> None:
        """Ends open utterances; the stream goes on."""
        await self._call.finalize()

    async def finish(self, ending: Ending) -> Ending:
        """Scores what was accepted, publishes the end, says goodbye; returns how it ended in fact."""
        call = self._call
        closing = asyncio.create_task(call.close())
        await asyncio.wait({closing, self.scoring}, return_when=asyncio.FIRST_COMPLETED)
        if self.scoring.done() and not closing.done():
            await cancelled(closing)
        await asyncio.wait({self.scoring})
        if self.scoring.cancelled():
            self._log.error("gave up with %d of %d utterances scored", call.totals.finals, call.totals.utterances)
            ending = Ending("going_away", CLOSE_INTERNAL)
        elif (problem := _problem(self.scoring) or _problem(closing)) is not None:
            # A model's trace is its own; any other failure is ours, and its trace is wanted.
            ours = None if isinstance(problem, UpstreamError) else problem
            self._log.error("the stream failed: %s", problem, exc_info=ours)
            ending = Ending("model_failed" if ours is None else "server_error", CLOSE_INTERNAL)
        if ending.error is not None:
            self.notify(wire.error(ending.error.code, ending.error.message))
        call.ended(ending.reason, failed=ending.code == CLOSE_INTERNAL)
        self.notify(wire.session_closed(call.totals, ending.reason))
        self.ended = Ending(ending.reason, ending.code)
        self._giving_up.cancel()
        self._log.info("stream ended: %s, %d utterances", ending.reason, call.totals.finals)
        return ending

    async def _give_up(self, when: asyncio.Event) -> None:
        await when.wait()
        self.scoring.cancel()


async def cancelled(task: "asyncio.Task[object] | asyncio.Task[None]") -> None:
    """Cancels a task and waits for its end, whatever that is."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


def _problem(task: "asyncio.Task[None]") -> BaseException | None:
    """What a task that is done failed with."""
    return None if task.cancelled() else task.exception()
