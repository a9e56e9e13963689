"""The data that flows, in one direction: chunk, utterance, scores, event.

Time is integer samples at 16 kHz since the stream began; `created_ms` is wall-clock time since the epoch.
"""

from dataclasses import dataclass, field
from typing import Literal

from daemon.calls.summary import CallSummary
from model.adaptation import NO_HISTORY, History
from model.audio import Samples
from model.posteriors import Posteriors
from model.transcript import Transcript


@dataclass(frozen=True, slots=True)
class Utterance:
    """A stretch of speech of one channel.

    Attributes:
        index: counts the channel's utterances from 0.
        start: first sample.
        end: one past the last sample.
        audio: `float32 [end - start]`.
        interim: 0 for the final utterance, else the count of this interim cut from 1.
        decided: sample position of the stream at which the cut was decided (`end` plus the endpoint wait).
    """

    channel: int
    index: int
    start: int
    end: int
    audio: Samples
    interim: int
    decided: int

    @property
    def final(self) -> bool:
        """Whether the utterance is complete."""
        return self.interim == 0


@dataclass(frozen=True, slots=True)
class Latency:
    """Where the time went, in ms.

    Attributes:
        endpoint: audio time between the utterance's end and the decision that it ended.
        queue: waiting for a place in a batch.
        asr: Whisper encoder and decoder.
        encoders: other encoders (prosody, text).
        fusion: the ensemble.
        total: decision to result: queue, asr, encoders and fusion, or what was left of them where they were done ahead.
    """

    endpoint: float
    queue: float
    asr: float
    encoders: float
    fusion: float
    total: float


@dataclass(frozen=True, slots=True)
class Scores:
    """What the engine says about an utterance.

    Attributes:
        posteriors: of its emotions.
        transcript: its words; None for interim results.
        latency: where the time went.
        history: of its channel, with this utterance in it.
        adaptation: how far the channel was known before it: 0 for a channel's first utterance, towards 1 later; 0 too where
            the bundle adapts to no channel.
    """

    posteriors: Posteriors
    transcript: Transcript | None
    latency: Latency
    history: History = NO_HISTORY
    adaptation: float = 0.0


@dataclass(frozen=True, slots=True)
class CallInfo:
    """One stream's identity: shared by all its events.

    Attributes:
        call: the client's call id, or the session's if it gave none.
        session: unique per stream.
        roles: role per channel.
        model: the bundle's id.
        language: requested language, None to detect it.
        metadata: the client's own key-value pairs, copied into `call.started`.
    """

    call: str
    session: str
    roles: tuple[str, ...]
    model: str
    language: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Totals:
    """What a stream received and produced; a client compares them with its own counts."""

    received_samples: int = 0
    utterances: int = 0
    finals: int = 0
    interims: int = 0
    dropped_interims: int = 0


@dataclass(frozen=True, slots=True)
class EmotionEvent:
    """The posteriors of one utterance."""

    info: CallInfo
    utterance: Utterance
    scores: Scores
    created_ms: int

    @property
    def type(self) -> Literal["emotion", "emotion.interim"]:
        """The event's type in Redis."""
        return "emotion" if self.utterance.final else "emotion.interim"

    @property
    def event_id(self) -> str:
        """Deterministic: publishing the same event again adds nothing."""
        kind = "final" if self.utterance.final else f"interim-{self.utterance.interim}"
        return f"{self.info.session}:{self.utterance.channel}:{self.utterance.index}:{kind}"


@dataclass(frozen=True, slots=True)
class CallEvent:
    """Begin or end of a stream.

    Attributes:
        type: which.
        totals: counts so far.
        reason: why it ended, "" at the beginning.
    """

    type: Literal["call.started", "call.ended", "call.failed"]
    info: CallInfo
    totals: Totals
    reason: str
    created_ms: int

    @property
    def event_id(self) -> str:
        """Deterministic, one per session and type."""
        return f"{self.info.session}:{self.type}"


@dataclass(frozen=True, slots=True)
class AlertEvent:
    """A rule that was met.

    Attributes:
        utterance: the one that met it.
        rule: the rule's name.
        emotions: whose probabilities it adds up.
        above: what they had to reach, 0..1.
        score: what they were in the streak, the mean weighted with time.
        start: first sample of the streak.
        speech_ms: speech of the streak.
        utterances: results of the streak.
    """

    info: CallInfo
    utterance: Utterance
    rule: str
    emotions: tuple[str, ...]
    above: float
    score: float
    start: int
    speech_ms: float
    utterances: int
    created_ms: int

    @property
    def type(self) -> Literal["alert"]:
        """The event's type in Redis."""
        return "alert"

    @property
    def event_id(self) -> str:
        """Deterministic: a rule is met at most once by an utterance."""
        return f"{self.info.session}:{self.utterance.channel}:{self.utterance.index}:alert:{self.rule}"


@dataclass(frozen=True, slots=True)
class SummaryEvent:
    """A call in numbers, when the last of its streams in this process has ended.

    Attributes:
        info: of the stream that ended last; its roles are those of the whole call.
        summary: over all streams of the call in this process since the first of them began.
        totals: the same.
        reason: why the last stream ended.
    """

    info: CallInfo
    summary: CallSummary
    totals: Totals
    reason: str
    created_ms: int

    @property
    def type(self) -> Literal["call.summary"]:
        """The event's type in Redis."""
        return "call.summary"

    @property
    def event_id(self) -> str:
        """Deterministic: a stream is the last one of its call at most once."""
        return f"{self.info.session}:call.summary"


Event = EmotionEvent | CallEvent | AlertEvent | SummaryEvent
