"""The streams of this process, whatever door they came through: which may begin, and the end of all.

A transport admits a connection and opens a stream once it knows what the client wants; `daemon.stream` is the life of one.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from daemon import wire
from daemon.access.usage import UNLIMITED, Account
from daemon.errors import CLOSE_UNSUPPORTED, CapacityError, PeerError
from daemon.messages import CallInfo
from daemon.metrics import Metrics
from daemon.parking import Parking
from daemon.pipeline import Notify, Services
from daemon.policy import EVERYTHING, Policy
from daemon.request import StreamRequest
from daemon.session import Previews, Session
from daemon.stream import Stream
from model.audio import samples_from_ms
from model.segmenter import Endpointing
from model.vad import SpeechDetector

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
        opened: Callable[[Stream], None] = lambda stream: None,
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
    ) -> Stream:
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
