"""Events as the outside sees them: flat Redis fields, and the JSON messages of the native protocol v1.

Sans-IO: values in, values out. docs/asyncapi.yaml is tested against the messages built here.
"""

from collections.abc import Iterable
from typing import Any, Final

from daemon.calls.summary import RoleSummary
from daemon.calls.trend import MEASURES, Trend
from daemon.messages import (
    AlertEvent,
    CallEvent,
    CallInfo,
    EmotionEvent,
    Event,
    Latency,
    SummaryEvent,
    Totals,
)
from model.audio import ms_from_samples
from model.labels import ATTRIBUTES, CLASSES

WIRE_VERSION: Final = "1"
_DECIMALS: Final = 6
"""Enough that probabilities compare equal to 1e-6 on both sides."""

DELETED: Final = "call.deleted"
"""The type of the entry that tells readers to forget a call."""

Message = dict[str, Any]
"""A server message, ready for JSON; `seq` is added by the connection that sends it."""


def redis_fields(event: Event) -> dict[str, str]:
    """The flat fields of an event's stream entry. A value that is not known is an empty string."""
    common = {
        "v": WIRE_VERSION,
        "type": event.type,
        "event_id": event.event_id,
        "call": event.info.call,
        "session": event.info.session,
        "model": event.info.model,
        "ts": str(event.created_ms),
    }
    match event:
        case CallEvent():
            return common | _call_fields(event)
        case AlertEvent():
            return common | _alert_fields(event)
        case SummaryEvent():
            return common | _summary_fields(event)
        case EmotionEvent():
            return common | _emotion_fields(event)


def _call_fields(event: CallEvent) -> dict[str, str]:
    totals = {f"total_{name}": _number(value) for name, value in totals_message(event.totals).items()}
    metadata = {f"meta_{key}": value for key, value in event.info.metadata.items()}
    return {"role": ",".join(event.info.roles), "reason": event.reason} | totals | metadata


def _emotion_fields(event: EmotionEvent) -> dict[str, str]:
    utterance, scores = event.utterance, event.scores
    posteriors, transcript = scores.posteriors, scores.transcript
    return {
        "channel": str(utterance.channel),
        "role": event.info.roles[utterance.channel],
        "utterance": str(utterance.index),
        "start_ms": _number(ms_from_samples(utterance.start)),
        "end_ms": _number(ms_from_samples(utterance.end)),
        "top": posteriors.top,
        "confidence": _number(posteriors.confidence),
        **{f"p_{name}": _number(p) for name, p in zip(CLASSES, posteriors.probabilities, strict=True)},
        **{name: _number(value) for name, value in zip(ATTRIBUTES, posteriors.attributes, strict=True)},
        "uncertainty": _number(posteriors.uncertainty),
        **{f"share_{name}": _number(share) for name, share in posteriors.modality_share},
        **({"members_used": ",".join(posteriors.members_used)} if posteriors.members_used else {}),
        "adaptation": _number(scores.adaptation),
        "abstained": str(int(posteriors.abstained)),
        "text": transcript.text if transcript else "",
        "text_trusted": str(int(transcript.trusted)) if transcript else "",
        "lang": transcript.language if transcript else "",
        "lat_ms": _number(scores.latency.total),
    }


def _alert_fields(event: AlertEvent) -> dict[str, str]:
    return {
        "channel": str(event.utterance.channel),
        "role": event.info.roles[event.utterance.channel],
        "utterance": str(event.utterance.index),
        "start_ms": _number(ms_from_samples(event.start)),
        "end_ms": _number(ms_from_samples(event.utterance.end)),
        "rule": event.rule,
        "emotions": ",".join(event.emotions),
        "above": _number(event.above),
        "score": _number(event.score),
        "speech_ms": _number(event.speech_ms),
        "utterances": str(event.utterances),
    }


def _summary_fields(event: SummaryEvent) -> dict[str, str]:
    summary = event.summary
    fields = {
        "role": ",".join(event.info.roles),
        "reason": event.reason,
        "sessions": str(summary.sessions),
        "duration_ms": _number(summary.duration_ms),
        "overlap_ms": _number(summary.overlap_ms),
        "silence_share": _number(summary.silence_share),
        "alerts": str(summary.alerts),
        "attention": _number(summary.attention),
        "total_received_ms": _number(ms_from_samples(event.totals.received_samples)),
        "total_finals": str(event.totals.finals),
    }
    for index, role in enumerate(summary.roles):
        fields |= {f"r{index}_{name}": value for name, value in _role_fields(role).items()}
    return fields


def _role_fields(role: RoleSummary) -> dict[str, str]:
    turns = role.turning_points
    turn = max(turns, key=lambda point: point.strength, default=None)
    fields = {
        "role": role.role,
        "utterances": str(role.utterances),
        "speech_ms": _number(role.speech_ms),
        "talk_share": _number(role.talk_share),
        **{f"share_{name}": _number(share) for name, share in role.shares.items()},
        "turns": str(len(turns)),
        "turn_ms": _number(turn.at_ms if turn else None),
        "turn_before": turn.before if turn else "",
        "turn_after": turn.after if turn else "",
    }
    for measure in MEASURES:
        found = role.trends[measure] or Trend(mean=0.0)
        known = role.trends[measure] is not None
        fields[measure] = _number(found.mean if known else None)
        fields[f"{measure}_slope"] = _number(found.slope)
        fields[f"{measure}_slope_low"] = _number(found.low)
        fields[f"{measure}_slope_high"] = _number(found.high)
    return fields


def deletion_fields(call: str, created_ms: int) -> dict[str, str]:
    """The entry that tells every reader of the common stream to forget a call."""
    return {
        "v": WIRE_VERSION,
        "type": DELETED,
        "event_id": f"{call}:deleted:{created_ms}",
        "call": call,
        "session": "",
        "model": "",
        "ts": str(created_ms),
    }


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if value == int(value) else f"{value:.{_DECIMALS}f}"


def emotion_message(event: EmotionEvent) -> Message:
    """`emotion`: the posteriors of one utterance."""
    utterance, scores = event.utterance, event.scores
    posteriors, transcript = scores.posteriors, scores.transcript
    return {
        "type": "emotion",
        "final": utterance.final,
        "event_id": event.event_id,
        "utterance": utterance.index,
        "channel": utterance.channel,
        "role": event.info.roles[utterance.channel],
        "start_ms": ms_from_samples(utterance.start),
        "end_ms": ms_from_samples(utterance.end),
        "probabilities": {name: round(p, _DECIMALS) for name, p in zip(CLASSES, posteriors.probabilities, strict=True)},
        "top": posteriors.top,
        "confidence": round(posteriors.confidence, _DECIMALS),
        **{
            name: None if value is None else round(value, _DECIMALS)
            for name, value in zip(ATTRIBUTES, posteriors.attributes, strict=True)
        },
        "uncertainty": round(posteriors.uncertainty, _DECIMALS),
        **_where_known(
            modality_share={name: round(share, _DECIMALS) for name, share in posteriors.modality_share},
            members_used=list(posteriors.members_used),
        ),
        "adaptation": round(scores.adaptation, _DECIMALS),
        "abstained": posteriors.abstained,
        "text": transcript.text if transcript else None,
        "language": transcript.language if transcript else None,
        "text_trusted": transcript.trusted if transcript else None,
        "model": event.info.model,
        "latency_ms": latency_message(scores.latency),
    }


def _where_known(**fields: Any) -> Message:
    """Fields that only some results have: not there, rather than empty, where there is nothing to say."""
    return {name: value for name, value in fields.items() if value}


def alert_message(event: AlertEvent) -> Message:
    """`alert`: a rule was met."""
    return {
        "type": "alert",
        "event_id": event.event_id,
        "rule": event.rule,
        "utterance": event.utterance.index,
        "channel": event.utterance.channel,
        "role": event.info.roles[event.utterance.channel],
        "start_ms": ms_from_samples(event.start),
        "end_ms": ms_from_samples(event.utterance.end),
        "emotions": list(event.emotions),
        "above": round(event.above, _DECIMALS),
        "score": round(event.score, _DECIMALS),
        "speech_ms": round(event.speech_ms, 1),
        "utterances": event.utterances,
    }


def latency_message(latency: Latency) -> dict[str, float]:
    """The latency budget, ms to one decimal."""
    names = ("endpoint", "queue", "asr", "encoders", "fusion", "total")
    return {name: round(getattr(latency, name), 1) for name in names}


def totals_message(totals: Totals) -> dict[str, int | float]:
    """A stream's totals."""
    return {
        "received_ms": ms_from_samples(totals.received_samples),
        "utterances": totals.utterances,
        "finals": totals.finals,
        "interims": totals.interims,
        "dropped_interims": totals.dropped_interims,
    }


def session_created(
    info: CallInfo,
    trained_classes: tuple[str, ...],
    trained_attributes: tuple[str, ...],
    resume: str | None = None,
    resume_window_s: float = 0.0,
) -> Message:
    """`session.created`: the stream was accepted.

    Args:
        info: the stream.
        trained_classes: of the bundle.
        trained_attributes: of the bundle.
        resume: token with which the client may go on after a lost connection, None if it did not ask.
        resume_window_s: for how long.
    """
    return {
        "type": "session.created",
        "session": info.session,
        "call": info.call,
        "model": info.model,
        "roles": list(info.roles),
        "trained_classes": list(trained_classes),
        "trained_attributes": list(trained_attributes),
        "resume": resume,
        "resume_window_ms": round(resume_window_s * 1000) if resume else 0,
    }


def session_resumed(info: CallInfo, received: int, missed: int) -> Message:
    """`session.resumed`: the stream goes on with this connection, behind the messages that it had not got.

    Args:
        info: the stream.
        received: samples per channel taken so far, as the client counts them: it goes on with the next one.
        missed: messages that are not kept any more; finals among them are in Redis.
    """
    return {"type": "session.resumed", "session": info.session, "received": received, "missed": missed}


def audio_settled(settled: int) -> Message:
    """`audio.settled`: whatever becomes of us, audio before this will not be needed again.

    Args:
        settled: one past the last such sample, at 16 kHz.
    """
    return {"type": "audio.settled", "settled_ms": ms_from_samples(settled)}


def speech_started(channel: int, role: str, start: int) -> Message:
    """`speech.started`: somebody began to speak."""
    return {"type": "speech.started", "channel": channel, "role": role, "start_ms": ms_from_samples(start)}


def warning(code: str, message: str) -> Message:
    """`warning`: something was off, the stream goes on."""
    return {"type": "warning", "code": code, "message": message}


def gap(channels: Iterable[int], start: int, end: int, missing: int, reason: str) -> Message:
    """`gap`: audio did not arrive; silence stands in its place, so that times stay true.

    Args:
        channels: that miss it.
        start: first missing sample.
        end: one past the last one.
        missing: samples missing between the two.
        reason: "lost" on the way, "paused" by the sender, or "dropped" here.
    """
    return {
        "type": "gap",
        "channels": list(channels),
        "start_ms": ms_from_samples(start),
        "end_ms": ms_from_samples(end),
        "duration_ms": ms_from_samples(missing),
        "reason": reason,
    }


def error(code: str, message: str) -> Message:
    """`error`: the stream ends because of this."""
    return {"type": "error", "code": code, "message": message}


def session_closed(totals: Totals, reason: str) -> Message:
    """`session.closed`: the last message of a stream."""
    return {"type": "session.closed", "reason": reason, "totals": totals_message(totals)}
