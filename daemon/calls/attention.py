"""How much a call needs somebody to look at it: 0 for not at all, to 100. Pure.

    attention = 100 * (1 - (1 - mood) * (1 - alarm))

    mood  = sum(w * negativity) / (sum(w) + 5 s)     over the last results of everybody but the agent
            w = length in s * confidence * 2 ^ -(age / 30 s); the 5 s stand for "nothing known", so that one short
            angry word, or anger that is long past, moves little
    alarm = 1 - 2 ^ -sum(2 ^ -(age / 120 s))         over the call's alerts: a new one alone gives 0.5

Age is time on the call's clock between the end of what was said and `now`. A live call calms down while it is silent; an ended
one keeps the score of its last moment. Results that the bundle would rather not give (`abstained`) count half.
"""

from collections.abc import Iterable
from typing import Final

from daemon.calls.said import Said
from daemon.calls.state import CallState, Raised

AGENT: Final = "agent"
"""The role whose mood is nobody's alarm; every other one is a customer, whatever its name."""

RECENT: Final = 64
"""Results that are looked at: more lie too far back to count."""

_HALF_MOOD_MS: Final = 30_000.0
_HALF_ALARM_MS: Final = 120_000.0
_NOTHING_KNOWN_S: Final = 5.0
_ABSTAINED: Final = 0.5
_MS_PER_S: Final = 1000.0


def attention(state: CallState, now_ms: int) -> float:
    """The score of a call at `now_ms` (ms since 1970), 0..100."""
    at_ms = state.duration_ms if state.status(now_ms) != "live" else max(0.0, float(now_ms - state.begun_ms))
    mood = mood_of((one for one in state.newest(RECENT) if one.role != AGENT), at_ms)
    alarm = alarm_of(state.alerts(), at_ms)
    return 100.0 * (1.0 - (1.0 - mood) * (1.0 - alarm))


def mood_of(said: Iterable[Said], at_ms: float) -> float:
    """Recent negativity, 0..1, at a time of the call's clock."""
    heard, weights = 0.0, _NOTHING_KNOWN_S
    for one in said:
        certainty = one.confidence * (_ABSTAINED if one.abstained else 1.0)
        weight = one.duration_ms / _MS_PER_S * certainty * _fading(at_ms - one.end_ms, _HALF_MOOD_MS)
        heard += weight * one.negativity
        weights += weight
    return heard / weights


def alarm_of(alerts: Iterable[Raised], at_ms: float) -> float:
    """Recent alerts, 0..1, at a time of the call's clock."""
    return 1.0 - 2.0 ** -sum(_fading(at_ms - alert.at_ms, _HALF_ALARM_MS) for alert in alerts)


def _fading(age_ms: float, half_ms: float) -> float:
    return float(2.0 ** -(max(0.0, age_ms) / half_ms))
