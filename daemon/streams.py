"""The streams of this process, whatever door they came through: admission, the life of one, the end of all.

A transport admits a connection, opens a stream once it knows what the client wants, feeds it audio and finishes it. Whatever
ends a stream - a close, a mistake, a vanished client, our own shutdown - the audio accepted before is scored and published.
"""

import asyncio
import contextlib
import logging
import secrets
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from daemon import wire
from daemon.access.usage import UNLIMITED, Account
from daemon.errors import (
    CLOSE_GOING_AWAY,
    CLOSE_INTERNAL,
    CLOSE_NORMAL,
    CLOSE_POLICY,
    CLOSE_UNSUPPORTED,
    CapacityError,
    PeerError,
    UpstreamError,
)
from daemon.messages import CallInfo
from daemon.metrics import Metrics
from daemon.parking import Parking
from daemon.pipeline import Call, Notify, Services
from daemon.policy import EVERYTHING, Policy
from daemon.request import StreamRequest
from daemon.session import Previews, Session
from model.audio import SAMPLE_RATE_HZ, Samples, samples_from_ms
from model.segmenter import Endpointing
from model.vad import SpeechDetector

_SETTLED_STEP: Final = SAMPLE_RATE_HZ
"""Audio after which a client is told again how much of it is settled."""

_KEPT_PERCENT: Final = 75
"""Of the messages that may wait for a reader: what is repeated to one that comes back must leave room for what is new."""

_CONNECTIONS_PER_STREAM: Final = 2
"""The one that has it, which may hang, and the one over which its client comes back."""

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
        max_streams: streams at a time, those included that wait for their clients.
        max_wait_s: no stream begins while finals wait longer for the engine.
        max_message_bytes: of one message.
        idle_timeout_s: without any message.
        resume_window_s: how long a stream waits for a client that lost its connection; 0 never waits.
        outbox: messages that may wait for a slow reader.
        policy: whose audio is analysed.
    """

    bundle_id: str
    trained_classes: tuple[str, ...]
    trained_attributes: tuple[str, ...]
    languages: tuple[str, ...]
    endpointing: Endpointing
    interim_ms: int
    ahead_silence_ms: int
    max_streams: int
    max_wait_s: float
    max_message_bytes: int
    idle_timeout_s: float
    resume_window_s: float
    outbox: int
    policy: Policy = EVERYTHING


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

    Args:
        rules: what streams share.
        services: the engine, the sink and the threads that they share.
        metrics: counts them.
        wait_s: how long finals waited lately for the engine.
        opened: told of every stream that begins.

    Attributes:
        rules: what streams share.
        metrics: counts them.
        parking: those without a connection.
        connections: admitted ones, those included that have begun nothing.
    """

    def __init__(
        self,
        rules: StreamRules,
        services: Services,
        metrics: Metrics,
        wait_s: Callable[[], float] = lambda: 0.0,
        opened: Callable[["Stream"], None] = lambda stream: None,
    ) -> None:
        self.rules = rules
        self._wait_s = wait_s
        self._opened = opened
        self.metrics = metrics
        self._services = services
        self.connections = 0
        self._open = 0
        """Streams that have begun and not ended, with a connection or without."""
        self._all_closed = asyncio.Event()
        self._all_closed.set()
        self._stopping = _Stopping()
        self.parking = Parking(rules.resume_window_s, self.drained, self._left)

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
        late = self.connections + len(self.parking)
        self._stopping.giving_up.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_closed.wait(), 3 * GOODBYE_S)
        return late

    @contextmanager
    def admitted(self, account: Account = UNLIMITED) -> Iterator[None]:
        """A place for one connection, from its first byte to its last.

        What it wants is not known yet. So it is let in although no stream may begin: it may come for one that is here.

        Args:
            account: of whoever asks for it.

        Raises:
            CapacityError: if there is none; nothing was accepted.
        """
        most = _CONNECTIONS_PER_STREAM * self.rules.max_streams
        with contextlib.ExitStack() as place:
            with self._refusals_counted():
                if self.draining:
                    raise CapacityError("the server is shutting down: come back later")
                if self.connections >= most:
                    raise CapacityError(f"{most} connections are open, the limit: come back later")
                place.enter_context(account.connection())
            self.connections += 1
            self._all_closed.clear()
            try:
                yield
            finally:
                self.connections -= 1
                self._left()

    @contextmanager
    def place(self, account: Account) -> Iterator[None]:
        """The place of a stream that begins, here and among those of whoever streams, until it has ended.

        Whatever connections it goes on with, it needs no other: a client that comes back finds it.

        Raises:
            CapacityError: if there is none; nothing was accepted.
        """
        with contextlib.ExitStack() as held:
            with self._refusals_counted():
                if (problem := self._full()) is not None:
                    raise CapacityError(f"{problem}: come back later")
                held.enter_context(account.stream())
            self._open += 1
            self.metrics.streams.set(self._open)
            try:
                yield
            finally:
                self._open -= 1
                self.metrics.streams.set(self._open)

    @contextmanager
    def _refusals_counted(self) -> Iterator[None]:
        try:
            yield
        except CapacityError:
            self.metrics.refused.inc()
            raise

    def _full(self) -> str | None:
        """Why no stream may begin now: one more must not make those wrong that are here."""
        if self.draining:
            return "the server is shutting down"
        if self._open >= self.rules.max_streams:
            parked = self.parking.unfinished
            waiting = f", {parked} of them waiting for their clients" if parked else ""
            return f"{self._open} streams are open, the limit{waiting}"
        if (wait_s := self._wait_s()) > self.rules.max_wait_s:
            return f"results wait {wait_s:.1f} s for the engine, more than {self.rules.max_wait_s:g} s"
        return None

    def _left(self) -> None:
        if self.connections == 0 and not len(self.parking):
            self._all_closed.set()

    def open(
        self,
        request: StreamRequest,
        notify: Notify,
        endpointing: Endpointing | None = None,
        account: Account = UNLIMITED,
    ) -> "Stream":
        """Begins a stream; it must be finished.

        Args:
            request: what the client asks for.
            notify: hands a message to the client; never blocks.
            endpointing: another than everybody's.
            account: of whoever streams; it counts the audio.

        Raises:
            PeerError: if it cannot be served.
        """
        rules = self.rules
        info = self._info(request)
        interim_ms = rules.interim_ms if request.interim_ms is None else request.interim_ms
        previews = Previews(samples_from_ms(interim_ms), samples_from_ms(rules.ahead_silence_ms))
        analyzed = rules.policy.analyzed(info.roles)
        detectors = [SpeechDetector() if role in analyzed else None for role in info.roles]
        session = Session(detectors, endpointing or rules.endpointing, previews)
        stream = Stream(info, session, self._services, notify, self._stopping.giving_up, account)
        self.metrics.accepted.inc()
        token = (
            stream.resumable(rules.outbox * _KEPT_PERCENT // 100) if request.resume and rules.resume_window_s else None
        )
        classes, attributes = rules.trained_classes, rules.trained_attributes
        stream.notify(wire.session_created(info, classes, attributes, token, rules.resume_window_s))
        if unheard := [role for role in info.roles if role not in analyzed]:
            roles = ", ".join(unheard)
            stream.notify(wire.warning("not_analyzed", f"not analysed here, there will be no results of: {roles}"))
        self._opened(stream)
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
