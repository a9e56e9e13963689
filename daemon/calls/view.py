"""Calls as the dashboard is told of them: JSON objects. Pure.

`row` is what the list shows of a call, `timeline` everything that was said in it, `analysis` what follows from that.
"""

from typing import Any, Final

from daemon.calls.attention import attention
from daemon.calls.said import Said, overlaps
from daemon.calls.state import CallState, Raised
from daemon.calls.summary import RoleSummary, summarise
from daemon.calls.trend import Trend, TurningPoint
from model.labels import CLASSES

Json = dict[str, Any]

SPARK: Final = 40
"""Results per role in a row's sparkline."""
_SPARK_OF: Final = 120
"""Results that are looked through for it."""


def row(state: CallState, now_ms: int) -> Json:
    """A call in the list."""
    newest = state.newest(_SPARK_OF)
    return {
        "call": state.call,
        "status": state.status(now_ms),
        "begun_ms": state.begun_ms,
        "updated_ms": state.updated_ms,
        "duration_ms": round(state.duration_ms),
        "attention": round(attention(state, now_ms), 1),
        "utterances": state.count,
        "alerts": len(state.alerts()),
        "model": state.model,
        "roles": [
            {"role": role, "now": _now(state, role), "spark": _spark([one for one in newest if one.role == role])}
            for role in state.roles
        ],
    }


def timeline(state: CallState, now_ms: int) -> Json:
    """A call with all that was said in it."""
    return {
        **row(state, now_ms),
        "metadata": state.metadata,
        "reasons": [s.reason for s in state.sessions.values() if s.reason],
        "sessions": len(state.sessions),
        "truncated": state.dropped > 0,
        "said": [spoken(one) for one in state.said()],
        "raised": [raised(one) for one in state.alerts()],
        "analysis": analysis(state, now_ms),
    }


def analysis(state: CallState, now_ms: int) -> Json:
    """A call's summary as it would be if it ended now."""
    said = state.said()
    found = summarise(
        said,
        state.roles,
        duration_ms=state.duration_ms,
        sessions=len(state.sessions),
        alerts=len(state.alerts()),
        attention=attention(state, now_ms),
    )
    return {
        "overlap_ms": round(found.overlap_ms),
        "overlaps": [[round(start), round(end)] for start, end in overlaps(said)],
        "silence_share": _short(found.silence_share),
        "roles": [_role(role) for role in found.roles],
    }


def spoken(one: Said) -> Json:
    """A final result."""
    return {
        "key": ":".join(map(str, one.key)),
        "role": one.role,
        "start_ms": round(one.start_ms, 1),
        "end_ms": round(one.end_ms, 1),
        "top": one.top,
        "confidence": _short(one.confidence),
        "probabilities": {name: _short(p) for name, p in zip(CLASSES, one.probabilities, strict=True)},
        "arousal": _short(one.arousal),
        "valence": _short(one.valence),
        "negativity": _short(one.negativity),
        "abstained": one.abstained,
        "text": one.text,
        "text_trusted": one.text_trusted,
    }


def raised(one: Raised) -> Json:
    """An alert."""
    return {
        "event_id": one.event_id,
        "rule": one.rule,
        "role": one.role,
        "at_ms": round(one.at_ms, 1),
        "start_ms": round(one.start_ms, 1),
        "emotions": one.emotions.split(","),
        "score": _short(one.score),
        "ts": one.ts,
    }


def _now(state: CallState, role: str) -> Json | None:
    now = state.now.get(role)
    if now is None:
        return None
    return {"top": now.top, "confidence": _short(now.confidence), "abstained": now.abstained, "final": now.final}


def _spark(said: list[Said]) -> Json:
    """The last values of valence where the bundle knows it, else of negativity."""
    said = said[-SPARK:]
    valence = [one.valence for one in said]
    if said and None not in valence:
        return {"measure": "valence", "values": [_short(value) for value in valence]}
    return {"measure": "negativity", "values": [_short(one.negativity) for one in said]}


def _role(role: RoleSummary) -> Json:
    return {
        "role": role.role,
        "utterances": role.utterances,
        "speech_ms": round(role.speech_ms),
        "talk_share": _short(role.talk_share),
        "shares": {name: _short(share) for name, share in role.shares.items()},
        "trends": {name: _trend(found) for name, found in role.trends.items()},
        "turning_points": [_turn(point) for point in role.turning_points],
    }


def _trend(found: Trend | None) -> Json | None:
    if found is None:
        return None
    return {
        "mean": _short(found.mean),
        "slope": _short(found.slope),
        "low": _short(found.low),
        "high": _short(found.high),
    }


def _turn(point: TurningPoint) -> Json:
    return {
        "at_ms": round(point.at_ms, 1),
        "before": point.before,
        "after": point.after,
        "measure": point.measure,
        "change": _short(point.change),
    }


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
