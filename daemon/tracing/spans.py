"""A span per final utterance, with a child per stage, under the trace of the client's request.

    utterance  |-----------------------------------------|    from the end of speech until the sink has the result
    endpoint   |----------------|                             the silence that ended it
    queue                        |--|                         waiting for a place in a batch (or for a worker elsewhere)
    asr                             |-----|                   Whisper, and the words
    encoders                              |--|                the other encoders
    fusion                                   |-|              the ensemble
    publish                                     |             handing the result to the sink

They are written down when the result is there, from the latencies that it carries, so scoring itself is not touched. What was
scored ahead lies where it was done: inside `endpoint`. A span names session, channel, utterance and bundle; never a word, an
emotion, or the client's own names.
"""

import time
from collections.abc import Iterator
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from daemon.errors import UpstreamError
from daemon.interfaces import Scorer
from daemon.messages import CallEvent, CallInfo, EmotionEvent, Event, Latency, Scores, Utterance
from daemon.tracing.parent import carrier
from model.adaptation import NO_HISTORY, History
from model.audio import ms_from_samples

_NS_PER_MS: Final = 1_000_000
_STAGES: Final = ("queue", "asr", "encoders", "fusion")
_Key = tuple[int, int]
"""Channel and index of an utterance."""


class Tracing:
    """Writes spans.

    Args:
        provider: where they go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("medusa-rt")
        self._parents: dict[str, Context] = {}
        self._scored: dict[str, dict[_Key, tuple[int, int]]] = {}
        """When scoring began and ended, in ns since the epoch, by session."""

    def opened(self, session: str) -> None:
        """A stream began: its utterances belong to the trace of the request that is being served."""
        self._parents[session] = TraceContextTextMapPropagator().extract(carrier(), Context())

    def traced(self, scorer: Scorer) -> Scorer:
        """The scorer, whose times are taken."""
        return _TracedScorer(scorer, self)

    def observe(self, event: Event) -> None:
        """Writes the spans of a final result that was just published."""
        session = event.info.session
        if isinstance(event, CallEvent) and event.type != "call.started":
            self._parents.pop(session, None)
            self._scored.pop(session, None)
        elif isinstance(event, EmotionEvent) and event.utterance.final:
            key = event.utterance.channel, event.utterance.index
            now = time.time_ns()
            begun, scored = self._scored.get(session, {}).pop(key, (now, now))
            self._write(event, begun, scored, now)

    def scored(self, info: CallInfo, utterance: Utterance, begun: int) -> None:
        """An utterance was scored just now, maybe ahead."""
        if utterance.final:
            times = self._scored.setdefault(info.session, {})
            times[utterance.channel, utterance.index] = begun, time.time_ns()

    def failed(self, info: CallInfo, utterance: Utterance, begun: int, error: UpstreamError) -> None:
        """An utterance could not be scored: its span says why."""
        span = self._begin("utterance", info, utterance, begun, self._parents.get(info.session, Context()))
        span.set_status(Status(StatusCode.ERROR, str(error)))
        span.end()

    def _write(self, event: EmotionEvent, begun: int, scored: int, now: int) -> None:
        info, utterance, latency = event.info, event.utterance, event.scores.latency
        published = max(scored, event.created_ms * _NS_PER_MS)
        decided = published - _ns(latency.total)
        ended = decided - _ns(latency.endpoint)
        parent = self._parents.get(info.session, Context())
        root = self._begin("utterance", info, utterance, ended, parent)
        inside = set_span_in_context(root, Context())
        for name, start, end in _stages(latency, begun, scored):
            self._tracer.start_span(name, inside, start_time=start).end(end)
        self._tracer.start_span("endpoint", inside, start_time=ended).end(decided)
        self._tracer.start_span("publish", inside, start_time=published).end(max(now, published))
        root.end(max(now, published))

    def _begin(self, name: str, info: CallInfo, utterance: Utterance, start: int, parent: Context) -> Span:
        attributes: dict[str, str | int | float] = {
            "medusa.session": info.session,
            "medusa.channel": utterance.channel,
            "medusa.utterance": utterance.index,
            "medusa.model": info.model,
            "medusa.speech_ms": ms_from_samples(utterance.end - utterance.start),
        }
        return self._tracer.start_span(name, parent, attributes=attributes, start_time=start)


class _TracedScorer:
    """A `Scorer` that takes the time of another."""

    def __init__(self, scorer: Scorer, tracing: Tracing) -> None:
        self._scorer = scorer
        self._tracing = tracing
        self.accept = scorer.accept

    async def score(
        self, info: CallInfo, utterance: Utterance, history: History = NO_HISTORY, *, ahead_s: float = 0.0
    ) -> Scores:
        begun = time.time_ns()
        try:
            scores = await self._scorer.score(info, utterance, history, ahead_s=ahead_s)
        except UpstreamError as error:
            if utterance.final and not ahead_s:  # what failed ahead is tried again
                self._tracing.failed(info, utterance, begun, error)
            raise
        self._tracing.scored(info, utterance, begun)
        return scores


def _stages(latency: Latency, begun: int, scored: int) -> Iterator[tuple[str, int, int]]:
    """Name, begin and end of each stage, one behind the other; workers elsewhere may have begun before they were asked."""
    lasted = {name: _ns(getattr(latency, name)) for name in _STAGES}
    at = min(begun, scored - sum(lasted.values()))
    for name, length in lasted.items():
        yield name, at, at + length
        at += length


def _ns(ms: float) -> int:
    return round(ms * _NS_PER_MS)
