"""The data that flows, in one direction: chunk, utterance, scores, event.

Time is integer samples at 16 kHz since the stream began; `created_ms` is wall-clock time since the epoch.
"""

from dataclasses import dataclass, field
from typing import Literal

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
    """What the engine says about an utterance. `transcript` is None for interim results."""

    posteriors: Posteriors
    transcript: Transcript | None
    latency: Latency


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


Event = EmotionEvent | CallEvent
