"""A call in numbers: what `call.summary` holds. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from daemon.calls.said import Said, length_ms, merged, overlaps, shares, speech_ms
from daemon.calls.trend import MEASURES, Trend, TurningPoint, trend, turning_points


@dataclass(frozen=True, slots=True)
class RoleSummary:
    """One party.

    Attributes:
        role: who.
        utterances: final results.
        speech_ms: their length together.
        talk_share: of the speech of all roles, 0..1.
        shares: of the role's speech, by class and `said.UNSURE`; sum 1, all 0 where it said nothing.
        trends: by measure; None where the bundle was not trained on it, or nothing was said.
        turning_points: in order.
    """

    role: str
    utterances: int
    speech_ms: float
    talk_share: float
    shares: dict[str, float]
    trends: dict[str, Trend | None]
    turning_points: tuple[TurningPoint, ...]


@dataclass(frozen=True, slots=True)
class CallSummary:
    """One call.

    Attributes:
        sessions: streams that it is made of.
        duration_ms: from the beginning of the first to the end of the last.
        overlap_ms: when at least two roles spoke.
        silence_share: of the duration in which nobody spoke, 0..1.
        alerts: how many were raised.
        attention: at its end, 0..100; see `daemon.calls.attention`.
        roles: in the order in which they came.
    """

    sessions: int
    duration_ms: float
    overlap_ms: float
    silence_share: float
    alerts: int
    attention: float
    roles: tuple[RoleSummary, ...]


def role_summary(role: str, said: Sequence[Said], all_speech_ms: float) -> RoleSummary:
    """One party, from what it said, in order."""
    spoken_ms = speech_ms(said)
    return RoleSummary(
        role=role,
        utterances=len(said),
        speech_ms=spoken_ms,
        talk_share=spoken_ms / all_speech_ms if all_speech_ms > 0 else 0.0,
        shares=shares(said),
        trends={measure: trend(said, measure) for measure in MEASURES},
        turning_points=tuple(turning_points(said)),
    )


def summarise(
    said: Sequence[Said], roles: Sequence[str], *, duration_ms: float, sessions: int, alerts: int, attention: float
) -> CallSummary:
    """A call, from what was said in it, on its clock and in order."""
    speech = length_ms(merged((one.start_ms, one.end_ms) for one in said))
    return CallSummary(
        sessions=sessions,
        duration_ms=duration_ms,
        overlap_ms=length_ms(overlaps(said)),
        silence_share=max(0.0, 1.0 - speech / duration_ms) if duration_ms > 0 else 0.0,
        alerts=alerts,
        attention=attention,
        roles=tuple(role_summary(role, [one for one in said if one.role == role], speech_ms(said)) for role in roles),
    )
