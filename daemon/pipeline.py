"""One call from audio to events: feeds the session, scores what it cuts, publishes in order.

Audio that was accepted is always scored and published: when a client vanishes, its open utterance is cut and finished like
any other. Utterances of a stream are scored one after the other, so that streams share the engine fairly and a stream's
events keep their order; waiting interim cuts are replaced by newer ones and give way to finals, even while they are scored.
An utterance is scored ahead, in the silence that may end it, in its turn among others: it is wanted when that silence is
over. If it does end there, the result is the same, and it is there at once or sooner than it would be.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from daemon import wire
from daemon.detection import Detection
from daemon.errors import CapacityError, UpstreamError
from daemon.interfaces import Scorer, Sink
from daemon.messages import CallEvent, CallInfo, EmotionEvent, Scores, Totals, Utterance
from daemon.session import Ahead, Output, Session, SpeechResumed, SpeechStarted
from model.adaptation import NO_HISTORY, History
from model.audio import SAMPLE_RATE_HZ, Samples, ms_from_samples

Notify = Callable[[wire.Message], None]
"""Hands a message to the client; never blocks."""

_MS_PER_S = 1000.0
_MAX_WAITING_FINALS = 8
"""Finals of one stream that may wait; more audio is then not read (the socket's own back-pressure holds the client)."""


def now_ms() -> int:
    """Wall-clock milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Services:
    """What calls share.

    Attributes:
        scorer: the engine.
        sink: where events go.
        detection: of speech, for all streams.
    """

    scorer: Scorer
    sink: Sink
    detection: Detection


@dataclass(frozen=True, slots=True)
class _ScoredAhead:
    """An utterance as it would be if its pause ended it, and its scores to come."""

    utterance: Utterance
    task: "asyncio.Task[Scores | None]"

    def is_of(self, utterance: Utterance) -> bool:
        """Whether `utterance`, of the same channel and index, is the same audio."""
        return (self.utterance.start, self.utterance.end) == (utterance.start, utterance.end)


class Call:
    """One stream while it lasts. `run` must run beside `feed` and `close`."""

    def __init__(self, info: CallInfo, session: Session, services: Services, notify: Notify) -> None:
        self.info = info
        self.totals = Totals()
        self._session = session
        self._services = services
        self._notify = notify
        self._waiting: deque[Utterance] = deque()
        self._judging: asyncio.Future[list[Output]] | None = None
        """The session at work in a thread, which goes on if its caller is cancelled; it is for one at a time."""
        self._outputs: deque[Output] = deque()
        """What the session gave and is not accepted yet."""
        self._ahead: dict[tuple[int, int], _ScoredAhead] = {}
        """By channel and index."""
        self._histories: dict[int, History] = {}
        """What each channel sounded like so far: all its finals up to the last one that was scored."""
        self._scored: dict[int, int] = {}
        """Finals of each channel that were scored."""
        self._needed_from = 0
        """The first sample that a later utterance can hold."""
        self._settled = 0
        self._finals: deque[int] = deque()
        """First samples of finals that are not published yet."""
        self._interim: asyncio.Task[None] | None = None
        """The interim cut that is being scored."""
        self._group: asyncio.TaskGroup | None = None
        self._changed = asyncio.Condition()
        self._closed = False
        self._scoring = True

    def started(self) -> None:
        """Publishes `call.started`."""
        self._publish_call("call.started", "")

    async def feed(self, channels: Sequence[Samples]) -> None:
        """Takes the next samples of every channel; waits while too many finals wait."""
        await self._accept()
        self._session.push(channels)
        self.totals = replace(self.totals, received_samples=self._session.received)
        if self._session.due:
            await self._judge(self._session.judge)

    @property
    def settled(self) -> int:
        """One past the last sample whose results, if there are any, the sink has delivered: nobody needs it again."""
        if not self._services.sink.waiting:
            self._settled = min([self._needed_from, *self._finals])
        return self._settled

    async def finalize(self) -> None:
        """Ends open utterances at the client's request; the stream goes on."""
        await self._accept()
        await self._judge(self._session.finish)

    async def close(self) -> None:
        """Ends the stream: cuts what is open; `run` returns once it is scored."""
        try:
            await self._accept()
            await self._judge(self._session.close)
        finally:
            async with self._changed:  # else `run` would wait for ever for what cannot come
                self._closed = True
                self._changed.notify_all()

    async def _judge(self, work: Callable[[], list[Output]]) -> None:
        """Has the session do compute, and accepts what comes of it."""
        self._judging = self._services.detection.judge(work, self._session.windows)
        await self._accept()

    async def run(self) -> None:
        """Scores and publishes until the stream is closed and everything accepted is done."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                while (utterance := await self._next()) is not None:
                    await self._score(utterance, group)
                self._forget_ahead(self._ahead)
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None  # work ahead raises nothing: this is ours
        finally:
            self._group = None
            async with self._changed:
                self._scoring = False
                self._changed.notify_all()

    def ended(self, reason: str, *, failed: bool = False) -> None:
        """Publishes `call.ended` or `call.failed` with the totals."""
        self._publish_call("call.failed" if failed else "call.ended", reason)

    async def _accept(self) -> None:
        """Takes over what the session gave: all of it, or the rest of what a cancelled caller left."""
        if self._judging is not None:
            try:
                outputs = await asyncio.shield(self._judging)
            except Exception:
                self._judging = None
                raise
            self._judging = None
            self._take_charge(outputs)
        while self._outputs:
            await self._hand_on(self._outputs[0])
            self._outputs.popleft()
        self._needed_from = self._session.needed_from

    def _take_charge(self, outputs: Sequence[Output]) -> None:
        """From here on nothing of it is lost, whoever is cancelled."""
        self._outputs.extend(_timely(outputs))
        for output in outputs:
            if isinstance(output, Utterance) and output.final:
                self._services.scorer.accept(self.info, output)
                self._finals.append(output.start)
                self.totals = replace(self.totals, utterances=self.totals.utterances + 1)

    async def _hand_on(self, output: Output) -> None:
        """To the client, or to be scored as soon as there is room; cancelled, it has done nothing."""
        if isinstance(output, SpeechStarted):
            self._notify(wire.speech_started(output.channel, self.info.roles[output.channel], output.start))
        elif isinstance(output, Ahead):
            self._score_ahead(output)
        elif isinstance(output, SpeechResumed):
            self._forget_ahead([(output.channel, output.index)])
        else:
            async with self._changed:
                if output.final:
                    if self._interim is not None:
                        self._interim.cancel()
                    # Once scoring failed nothing makes room any more: waiting for it would hold the stream for ever.
                    await self._changed.wait_for(lambda: self._final_count() < _MAX_WAITING_FINALS or not self._scoring)
                self._drop_interims_of(output.channel)
                self._waiting.append(output)
                self._changed.notify_all()

    def _final_count(self) -> int:
        return sum(utterance.final for utterance in self._waiting)

    def _drop_interims_of(self, channel: int) -> None:
        """A newer cut replaces interim cuts that still wait: the latest wins."""
        kept = [u for u in self._waiting if u.final or u.channel != channel]
        self._count_dropped(len(self._waiting) - len(kept))
        self._waiting = deque(kept)

    def _count_dropped(self, count: int) -> None:
        if count:
            self.totals = replace(self.totals, dropped_interims=self.totals.dropped_interims + count)

    async def _next(self) -> Utterance | None:
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._waiting) or self._closed)
            if not self._waiting:
                return None
            turn = next((n for n, waiting in enumerate(self._waiting) if waiting.final), 0)
            utterance = self._waiting[turn]
            del self._waiting[turn]
            self._changed.notify_all()
            return utterance

    def _score_ahead(self, ahead: Ahead) -> None:
        utterance = ahead.utterance
        key = utterance.channel, utterance.index
        # What its channel sounded like is not known before all that was said on it is scored.
        if self._group is not None and self._scored.get(utterance.channel, 0) == utterance.index:
            # Of the silence a part may be here already; never 0, which says that it is certain.
            ahead_s = max(1, ahead.certain - self._session.received) / SAMPLE_RATE_HZ
            self._ahead[key] = _ScoredAhead(utterance, self._group.create_task(self._scores_ahead(utterance, ahead_s)))

    async def _scores_ahead(self, utterance: Utterance, ahead_s: float) -> Scores | None:
        """None where the utterance is better scored when it is certain."""
        try:
            return await self._services.scorer.score(self.info, utterance, self._history(utterance), ahead_s=ahead_s)
        except (CapacityError, UpstreamError):
            return None

    def _forget_ahead(self, keys: Iterable[tuple[int, int]]) -> None:
        for key in list(keys):
            if (ahead := self._ahead.pop(key, None)) is not None:
                ahead.task.cancel()

    async def _scores_of(self, utterance: Utterance) -> Scores:
        """The scores made ahead if they are those of this very audio, else new ones."""
        key = utterance.channel, utterance.index
        ahead = self._ahead.get(key) if utterance.final else None
        if ahead is not None and ahead.is_of(utterance):
            begun = time.perf_counter()
            scores = await self._ahead.pop(key).task
            if scores is not None:
                waited_ms = (time.perf_counter() - begun) * _MS_PER_S
                endpoint_ms = ms_from_samples(utterance.decided - utterance.end)
                return replace(scores, latency=replace(scores.latency, endpoint=endpoint_ms, total=waited_ms))
        elif utterance.final:
            self._forget_ahead([key])
        return await self._services.scorer.score(self.info, utterance, self._history(utterance))

    def _history(self, utterance: Utterance) -> History:
        return self._histories.get(utterance.channel, NO_HISTORY)

    async def _score(self, utterance: Utterance, group: asyncio.TaskGroup) -> None:
        if utterance.final:
            await self._score_final(utterance)
            return
        self._interim = group.create_task(self._score_interim(utterance), name="interim")
        await asyncio.wait({self._interim})
        if self._interim.cancelled():
            self._count_dropped(1)
        self._interim = None

    async def _score_final(self, utterance: Utterance) -> None:
        try:
            scores = await self._scores_of(utterance)  # a scorer must never refuse finals
        except UpstreamError as error:
            self._notify(wire.error("model_failed", f"utterance {utterance.index}: {error}"))
            raise
        self.totals = replace(self.totals, finals=self.totals.finals + 1)
        self._histories[utterance.channel] = scores.history
        self._scored[utterance.channel] = utterance.index + 1
        self._publish(utterance, scores)
        self._finals.remove(utterance.start)

    async def _score_interim(self, utterance: Utterance) -> None:
        try:
            scores = await self._scores_of(utterance)
        except (CapacityError, UpstreamError):
            self._count_dropped(1)
            return
        self.totals = replace(self.totals, interims=self.totals.interims + 1)
        self._publish(utterance, scores)

    def _publish(self, utterance: Utterance, scores: Scores) -> None:
        event = EmotionEvent(self.info, utterance, scores, now_ms())
        self._services.sink.publish(event)
        self._notify(wire.emotion_message(event))

    def _publish_call(self, kind: Literal["call.started", "call.ended", "call.failed"], reason: str) -> None:
        self._services.sink.publish(CallEvent(kind, self.info, self.totals, reason, now_ms()))


def _timely(outputs: Sequence[Output]) -> list[Output]:
    """All but the work ahead of pauses that are over in the same outputs: it would wait to be wanted, and it is certain."""
    over: set[tuple[int, int]] = set()
    kept: list[Output] = []
    for output in reversed(outputs):
        if isinstance(output, Ahead) and (output.utterance.channel, output.utterance.index) in over:
            continue
        if isinstance(output, SpeechResumed) or (isinstance(output, Utterance) and output.final):
            over.add((output.channel, output.index))
        kept.append(output)
    return kept[::-1]
