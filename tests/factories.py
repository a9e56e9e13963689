"""Events for tests: valid ones, of which a test names only what it is about."""

from typing import Literal

import numpy as np

from daemon.calls.said import UNSURE
from daemon.calls.summary import CallSummary, RoleSummary
from daemon.calls.trend import MEASURES, Trend, TurningPoint
from daemon.messages import (
    AlertEvent,
    CallEvent,
    CallInfo,
    EmotionEvent,
    Latency,
    Scores,
    SummaryEvent,
    Totals,
    Utterance,
)
from model.audio import MIN_UTTERANCE, POST_PAD
from model.labels import CLASSES
from model.posteriors import Posteriors
from model.transcript import Transcript

CREATED_MS = 1_700_000_000_000


def make_info(
    call: str = "call-1",
    session: str = "session-1",
    roles: tuple[str, ...] = ("customer", "agent"),
    metadata: dict[str, str] | None = None,
) -> CallInfo:
    """A two-party call."""
    return CallInfo(call=call, session=session, roles=roles, model="bundle-1", metadata=metadata or {})


def make_utterance(index: int = 0, interim: int = 0, channel: int = 0) -> Utterance:
    """The shortest utterance that is scored, silent; utterances of one channel follow each other."""
    start = index * 2 * MIN_UTTERANCE
    end = start + MIN_UTTERANCE
    audio = np.zeros(MIN_UTTERANCE, np.float32)
    return Utterance(channel, index, start, end, audio, interim, decided=end + POST_PAD)


def make_scores(top: str = "angry", text: str | None = "hello there") -> Scores:
    """Scores that favour `top`; `text` None for no transcript, as in interim results."""
    rest = 0.3 / (len(CLASSES) - 1)
    return Scores(
        posteriors=Posteriors(
            probabilities=tuple(0.7 if name == top else rest for name in CLASSES),
            attributes=(5.5, 2.25, 4.0),
            uncertainty=0.125,
            abstained=False,
        ),
        transcript=None if text is None else Transcript(text, "en", -0.25, 0.01, trusted=True),
        latency=Latency(endpoint=500.0, queue=1.5, asr=40.0, encoders=20.0, fusion=3.0, total=64.5),
    )


def make_emotion_event(
    index: int = 0,
    interim: int = 0,
    text: str = "hello there",
    *,
    channel: int = 0,
    top: str = "angry",
    info: CallInfo | None = None,
) -> EmotionEvent:
    """The event of a channel's utterance `index`: final, or its interim cut number `interim`, which has no text."""
    return EmotionEvent(
        info=info or make_info(),
        utterance=make_utterance(index, interim, channel),
        scores=make_scores(top, None if interim else text),
        created_ms=CREATED_MS + index,
    )


def make_alert_event(*, info: CallInfo | None = None) -> AlertEvent:
    """Three angry utterances of the customer in a row."""
    return AlertEvent(
        info=info or make_info(),
        utterance=make_utterance(3),
        rule="customer upset",
        emotions=("angry", "disgust"),
        above=0.6,
        score=0.7,
        start=2 * MIN_UTTERANCE,
        speech_ms=1200.0,
        utterances=3,
        created_ms=CREATED_MS,
    )


def make_summary_event(*, attributes: bool = True) -> SummaryEvent:
    """A customer who turned angry, and an agent who said nothing; `attributes` where the bundle knows them."""
    known = Trend(3.5, -0.5, -0.75, -0.25)
    turn = TurningPoint(30_000.0, "customer", "neutral", "angry", "valence", -1.5, 1.5)
    shares = dict.fromkeys((*CLASSES, UNSURE), 0.0)
    trends = {"arousal": known, "valence": known} if attributes else {"arousal": None, "valence": None}
    customer = RoleSummary(
        "customer",
        20,
        60_000.0,
        1.0,
        {**shares, "angry": 0.25, "neutral": 0.75},
        {**trends, "negativity": Trend(0.5)},
        (turn,),
    )
    agent = RoleSummary("agent", 0, 0.0, 0.0, shares, dict.fromkeys(MEASURES), ())
    summary = CallSummary(1, 90_000.0, 1_500.5, 0.25, 2, 71.5, (customer, agent))
    return SummaryEvent(
        make_info(), summary, Totals(received_samples=1_440_000, finals=20), "client_closed", CREATED_MS
    )


def make_call_event(
    type: Literal["call.started", "call.ended", "call.failed"] = "call.started",
    *,
    info: CallInfo | None = None,
) -> CallEvent:
    """Begin or end of a call."""
    reason = {"call.started": "", "call.ended": "the client closed", "call.failed": "the connection was lost"}[type]
    return CallEvent(type, info or make_info(), Totals(), reason, CREATED_MS)
