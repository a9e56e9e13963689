"""The streams of this process, whatever door they came through: admission, the life of one, the end of all.

A transport admits a connection, opens a stream once it knows what the client wants, feeds it audio and finishes it. Whatever
ends a stream - a close, a mistake, a vanished client, our own shutdown - the audio accepted before is scored and published.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from daemon import wire
from daemon.errors import (
    CLOSE_GOING_AWAY,
    CLOSE_INTERNAL,
    CLOSE_NORMAL,
    CLOSE_UNSUPPORTED,
    CapacityError,
    PeerError,
    UpstreamError,
)
from daemon.messages import CallInfo
from daemon.metrics import Metrics
from daemon.pipeline import Call, Notify, Services
from daemon.request import StreamRequest
from daemon.session import Previews, Session
from model.audio import Samples, samples_from_ms
from model.segmenter import Endpointing
from model.vad import SpeechDetector

GOODBYE_S: Final = 5.0
"""How long the last messages of a stream may take to a client that is slow."""


@dataclass(frozen=True, slots=True)
class StreamRules:
    """What streams share.

    Attributes:
        bundle_id: stamped on results.
        trained_classes: told to the client.
        trained_attributes: told to the client.
        languages: ISO 639-1 codes that a stream may ask for.
        endpointing: when speech begins and ends.
        interim_ms: default distance of interim results.
        ahead_silence_ms: silence after which an utterance is scored ahead; 0 for never.
        max_streams: streams at a time.
        max_message_bytes: of one message.
        idle_timeout_s: without any message.
        outbox: messages that may wait for a slow reader.
    """

    bundle_id: str
    trained_classes: tuple[str, ...]
    trained_attributes: tuple[str, ...]
    languages: tuple[str, ...]
    endpointing: Endpointing
    interim_ms: int
    ahead_silence_ms: int
    max_streams: int
    max_message_bytes: int
    idle_timeout_s: float
    outbox: int


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


@dataclass(frozen=True, slots=True)
class _Stopping:
    """How far the process is on its way down: first streams are finished, then what is not finished is given up."""

    draining: asyncio.Event = field(default_factory=asyncio.Event)
    giving_up: asyncio.Event = field(default_factory=asyncio.Event)


class Streams:
    """All streams of the process.

    Attributes:
        rules: what streams share.
        metrics: counts them.
    """

    def __init__(self, rules: StreamRules, services: Services, metrics: Metrics) -> None:
        self.rules = rules
        self.metrics = metrics
        self._services = services
        self._open = 0
        self._all_closed = asyncio.Event()
        self._all_closed.set()
        self._stopping = _Stopping()

    @property
    def draining(self) -> bool:
        """Whether new streams are refused and open ones are being finished."""
        return self._stopping.draining.is_set()

    async def drained(self) -> None:
        """Returns once streams are to be finished."""
        await self._stopping.draining.wait()

    async def drain(self, timeout_s: float) -> int:
        """Ends every stream at its next message boundary, finished properly; returns how many were not in time.

        Those are given up: what they still had to score is counted in their `call.failed`, never left out in silence.
        """
        self._stopping.draining.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_closed.wait(), timeout_s)
        late = self._open
        self._stopping.giving_up.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_closed.wait(), 3 * GOODBYE_S)
        return late

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place for one connection, from its first byte to its last.

        Raises:
            CapacityError: if there is none; nothing was accepted.
        """
        if self._open >= self.rules.max_streams or self.draining:
            self.metrics.refused.inc()
            reason = "the server is shutting down" if self.draining else f"{self._open} streams are open, the limit"
            raise CapacityError(f"{reason}: come back later")
        self._open += 1
        self._all_closed.clear()
        self.metrics.streams.set(self._open)
        self.metrics.accepted.inc()
        try:
            yield
        finally:
            self._open -= 1
            self.metrics.streams.set(self._open)
            if self._open == 0:
                self._all_closed.set()

    def open(self, request: StreamRequest, notify: Notify, endpointing: Endpointing | None = None) -> "Stream":
        """Begins a stream; it must be finished.

        Args:
            request: what the client asks for.
            notify: hands a message to the client; never blocks.
            endpointing: another than everybody's.

        Raises:
            PeerError: if it cannot be served.
        """
        rules = self.rules
        info = self._info(request)
        interim_ms = rules.interim_ms if request.interim_ms is None else request.interim_ms
        previews = Previews(samples_from_ms(interim_ms), samples_from_ms(rules.ahead_silence_ms))
        session = Session([SpeechDetector() for _ in info.roles], endpointing or rules.endpointing, previews)
        stream = Stream(info, session, self._services, notify, self._stopping.giving_up)
        stream.notify(wire.session_created(info, rules.trained_classes, rules.trained_attributes))
        return stream

    def _info(self, request: StreamRequest) -> CallInfo:
        known = self.rules.languages
        if request.language is not None and request.language not in known:
            raise PeerError(
                "bad_language",
                f"language {request.language!r} is not known to this bundle; it knows {', '.join(known)}",
                CLOSE_UNSUPPORTED,
            )
        session = uuid.uuid4().hex
        return CallInfo(
            call=request.call_id or session,
            session=session,
            roles=request.role_names(),
            model=self.rules.bundle_id,
            language=request.language,
            metadata=request.metadata,
        )


class Stream:
    """One accepted stream, from `call.started` to `call.ended`. `Streams.open` makes it.

    Attributes:
        info: who it is.
        scoring: ends early if a model fails, or when the process gives up.
    """

    def __init__(
        self, info: CallInfo, session: Session, services: Services, notify: Notify, giving_up: asyncio.Event
    ) -> None:
        self.info = info
        self._notify = notify
        self._seq = 0
        self._call = Call(info, session, services, self.notify)
        self._log = logging.LoggerAdapter(logging.getLogger(__name__), {"session": info.session})
        self._call.started()
        self.scoring = asyncio.create_task(self._call.run(), name="scoring")
        self._giving_up = asyncio.create_task(self._give_up(giving_up), name="giving up")

    def notify(self, message: wire.Message) -> None:
        """Tells the client something; numbers it."""
        self._notify(message | {"seq": self._seq})
        self._seq += 1

    async def feed(self, channels: Sequence[Samples]) -> None:
        """Takes the next samples `float32 [T]` at 16 kHz of every channel; waits while too much waits to be scored.

        Raises:
            ValueError: if the number of channels is not the stream's.
        """
        await self._call.feed(channels)

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
