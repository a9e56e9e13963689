"""Where a call is heading: the slope of a measure, and the points at which it turned. Pure functions.

Both are computed for one role, over its final results in order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from daemon.calls.said import Said, mean_posterior, speech_ms
from model.labels import CLASSES

MEASURES: Final[dict[str, Callable[[Said], float | None]]] = {
    "arousal": lambda said: said.arousal,
    "valence": lambda said: said.valence,
    "negativity": lambda said: said.negativity,
}
"""What has a trend. `negativity` is known for every bundle; the two attributes only where they were trained."""

LEAST_FOR_SLOPE: Final = 5
"""Utterances under which a slope says nothing."""

WINDOW_MS: Final = 30_000.0
"""Speech of a role on each side of a turning point that is compared."""
LEAST_MS: Final = 12_000.0
LEAST_UTTERANCES: Final = 2
"""On each side: less is no state that lasts."""
SHIFT: Final = {"valence": 1.0, "negativity": 0.35}
"""A change of the mean that counts: of valence (1..7) where the bundle was trained on it, else of negativity (0..1)."""
VARIATION: Final = 0.5
"""Total variation distance of the two mean posteriors that counts where the dominant class changed."""

Posterior = tuple[float, ...]

_REACH: Final = 80
"""Utterances that are looked at on each side; the shortest last 0.4 s, so they are more than fit the window."""
_MS_PER_MIN: Final = 60_000.0


@dataclass(frozen=True, slots=True)
class Trend:
    """A measure over a call.

    Attributes:
        mean: weighted with the time of each utterance.
        slope: per minute, least squares; None with fewer than `LEAST_FOR_SLOPE` utterances.
        low: lower end of the slope's 95 % interval.
        high: upper end of it. Utterances that follow each other are alike, which the interval does not know: it is
            rather too narrow.
    """

    mean: float
    slope: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class TurningPoint:
    """A moment after which a role's emotion differs, for as long as `WINDOW_MS` of its speech (or what there is).

    Attributes:
        at_ms: where the first utterance after it begins, on the call's clock.
        before: dominant class of the mean posterior before.
        after: dominant class after.
        measure: "valence" where the bundle was trained on it, else "negativity".
        change: of the measure's mean.
        strength: the change in units of what counts; at least 1.
    """

    at_ms: float
    role: str
    before: str
    after: str
    measure: str
    change: float
    strength: float


def trend(said: Sequence[Said], measure: str) -> Trend | None:
    """The trend of a measure; None where it is not known of any utterance."""
    value_of = MEASURES[measure]
    known = [(one, value) for one in said if (value := value_of(one)) is not None]
    total = speech_ms(one for one, _ in known)
    if total <= 0:
        return None
    mean = sum(value * one.duration_ms for one, value in known) / total
    minutes = [(one.start_ms + one.end_ms) / 2 / _MS_PER_MIN for one, _ in known]
    return Trend(mean, *_slope(minutes, [value for _, value in known]))


def _slope(x: Sequence[float], y: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """The least-squares slope with its 95 % interval."""
    n = len(x)
    if n < LEAST_FOR_SLOPE:
        return None, None, None
    x_mean, y_mean = sum(x) / n, sum(y) / n
    spread = sum((a - x_mean) ** 2 for a in x)
    if spread <= 0:
        return None, None, None
    slope = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / spread
    residual = sum((b - y_mean - slope * (a - x_mean)) ** 2 for a, b in zip(x, y, strict=True))
    half = student_t975(n - 2) * (residual / (n - 2) / spread) ** 0.5
    return slope, slope - half, slope + half


def student_t975(freedom: int) -> float:
    """The 97.5 % point of Student's t, within 1 % from 3 degrees of freedom on.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    z = 1.959964
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / float(freedom) ** power for power, term in enumerate(terms))


def turning_points(said: Sequence[Said]) -> list[TurningPoint]:
    """Turning points of one role, in order.

    At every boundary between two utterances, the last `WINDOW_MS` of speech before it are compared with the first after
    it. It is a candidate where the mean of the measure shifts by `SHIFT`, or where the dominant class changes and the mean
    posteriors lie `VARIATION` apart, and at least two utterances of each window are more like their own side than like the
    other. Of candidates whose windows share speech, the strongest stays.
    """
    candidates = [found for at in range(1, len(said)) if (found := _candidate(said, at)) is not None]
    kept: list[tuple[int, TurningPoint]] = []
    for at, point in sorted(candidates, key=lambda found: -found[1].strength):
        if all(speech_ms(said[min(at, other) : max(at, other)]) >= WINDOW_MS for other, _ in kept):
            kept.append((at, point))
    return [point for _, point in sorted(kept, key=lambda found: found[0])]


def _candidate(said: Sequence[Said], at: int) -> tuple[int, TurningPoint] | None:
    before, after = _window(said[max(0, at - _REACH) : at][::-1]), _window(said[at : at + _REACH])
    if min(len(before), len(after)) < LEAST_UTTERANCES or min(speech_ms(before), speech_ms(after)) < LEAST_MS:
        return None
    measure = "valence" if all(one.valence is not None for one in (*before, *after)) else "negativity"
    one, other = trend(before, measure), trend(after, measure)
    if one is None or other is None:
        return None
    change = other.mean - one.mean
    left, right = mean_posterior(before), mean_posterior(after)
    tops = CLASSES[left.index(max(left))], CLASSES[right.index(max(right))]
    variation = sum(abs(a - b) for a, b in zip(left, right, strict=True)) / 2 if tops[0] != tops[1] else 0.0
    strength = max(abs(change) / SHIFT[measure], variation / VARIATION)
    if strength < 1 or not (_belong(before, left, right) and _belong(after, right, left)):
        return None
    return at, TurningPoint(said[at].start_ms, said[at].role, *tops, measure, change, strength)


def _belong(said: Sequence[Said], here: Posterior, there: Posterior) -> bool:
    """Whether one side of a point is a state: the utterance at the point and another one are more like their own side.

    Else a single utterance that passes, if it is long enough, would make a turning point of the boundary before it.
    """

    def distance(one: Said, mean: Posterior) -> float:
        return sum(abs(p - q) for p, q in zip(one.probabilities, mean, strict=True))

    like_here = [distance(one, here) <= distance(one, there) for one in said]
    return like_here[0] and sum(like_here) >= LEAST_UTTERANCES


def _window(said: Sequence[Said]) -> Sequence[Said]:
    """The first utterances that together have `WINDOW_MS` of speech; all, where there is less."""
    total = 0.0
    for count, one in enumerate(said, 1):
        total += one.duration_ms
        if total >= WINDOW_MS:
            return said[:count]
    return said
