"""Utterances and entries of calls, of which a test names only what it is about."""

from daemon.calls.said import Said
from model.labels import CLASSES

BEGUN_MS = 1_700_000_000_000


def posterior(top: str, confidence: float = 0.7) -> tuple[float, ...]:
    """Probabilities in canonical order that favour one class; the rest is shared by the others."""
    rest = (1.0 - confidence) / (len(CLASSES) - 1)
    return tuple(confidence if name == top else rest for name in CLASSES)


def make_said(
    start_s: float,
    end_s: float,
    top: str = "neutral",
    *,
    role: str = "customer",
    confidence: float = 0.7,
    valence: float | None = None,
    abstained: bool = False,
    session: str = "session-1",
) -> Said:
    """A final result."""
    return Said(
        key=(session, 0, round(start_s * 1000)),
        role=role,
        start_ms=start_s * 1000,
        end_ms=end_s * 1000,
        probabilities=posterior(top, confidence),
        arousal=valence,
        valence=valence,
        abstained=abstained,
        text="hello",
        text_trusted=True,
    )


def entry(
    kind: str, *, call: str = "call-1", session: str = "session-1", at_s: float = 0.0, **more: str
) -> dict[str, str]:
    """The fields that every entry has, and `more`; made `at_s` after the call began."""
    ts = round(BEGUN_MS + at_s * 1000)
    return {
        "v": "1",
        "type": kind,
        "event_id": f"{session}:{kind}:{ts}",
        "call": call,
        "session": session,
        "model": "bundle-1",
        "ts": str(ts),
        **more,
    }


def begin(
    session: str = "session-1", *, at_s: float = 0.0, role: str = "customer,agent", call: str = "call-1"
) -> dict[str, str]:
    """`call.started`."""
    return entry("call.started", call=call, session=session, at_s=at_s, role=role, reason="", total_received_ms="0")


def end(
    session: str = "session-1",
    *,
    at_s: float = 60.0,
    received_s: float = 60.0,
    failed: bool = False,
    role: str = "customer,agent",
    call: str = "call-1",
) -> dict[str, str]:
    """`call.ended` or `call.failed`."""
    kind, reason = ("call.failed", "model_failed") if failed else ("call.ended", "client_closed")
    received = str(round(received_s * 1000))
    return entry(kind, call=call, session=session, at_s=at_s, role=role, reason=reason, total_received_ms=received)


def result(
    index: int,
    start_s: float,
    end_s: float,
    top: str = "neutral",
    *,
    channel: int = 0,
    role: str = "customer",
    session: str = "session-1",
    final: bool = True,
    confidence: float = 0.7,
    begun_s: float = 0.0,
    call: str = "call-1",
) -> dict[str, str]:
    """`emotion`, of a stream that began `begun_s` after the call; half a second after its end."""
    kind = "emotion" if final else "emotion.interim"
    probabilities = zip(CLASSES, posterior(top, confidence), strict=True)
    return entry(
        kind,
        call=call,
        session=session,
        at_s=begun_s + end_s + 0.5,
        channel=str(channel),
        role=role,
        utterance=str(index),
        start_ms=str(round(start_s * 1000)),
        end_ms=str(round(end_s * 1000)),
        top=top,
        confidence=str(confidence),
        **{f"p_{name}": f"{p:.6f}" for name, p in probabilities},
        arousal="",
        valence="",
        dominance="",
        uncertainty="0.1",
        abstained="0",
        text="hello" if final else "",
        text_trusted="1" if final else "",
        lang="en" if final else "",
        lat_ms="10",
    )


def alert(
    index: int, end_s: float, *, rule: str = "upset", role: str = "customer", call: str = "call-1"
) -> dict[str, str]:
    """`alert`."""
    return entry(
        "alert",
        call=call,
        at_s=end_s + 0.5,
        channel="0",
        role=role,
        utterance=str(index),
        start_ms=str(round(end_s * 1000) - 2000),
        end_ms=str(round(end_s * 1000)),
        rule=rule,
        emotions="angry",
        above="0.5",
        score="0.7",
        speech_ms="2000",
        utterances="1",
    )
