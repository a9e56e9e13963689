"""One utterance as a call knows it, and sums over many of them. Pure: values in, values out.

Times are milliseconds on the call's clock: 0 where its first stream began.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from model.labels import CLASS_INDEX, CLASSES

UNSURE: Final = "unsure"
"""Stands beside the classes for speech whose emotion is better treated as not known (`abstained`)."""

NEGATIVE: Final = ("angry", "sad", "fear", "disgust", "contempt")
_NEGATIVE_AT: Final = tuple(CLASS_INDEX[name] for name in NEGATIVE)

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Said:
    """A final result.

    Attributes:
        key: session, channel and index: the same for a repetition.
        role: who spoke.
        start_ms: on the call's clock.
        end_ms: on the call's clock.
        probabilities: 8 values in canonical order.
        arousal: 1..7, None where the bundle was not trained on it.
        valence: 1..7, None where the bundle was not trained on it.
        abstained: the emotion is better treated as not known.
        text: the words, "" where none were heard.
        text_trusted: whether the words are believed.
    """

    key: tuple[str, int, int]
    role: str
    start_ms: float
    end_ms: float
    probabilities: tuple[float, ...]
    arousal: float | None
    valence: float | None
    abstained: bool
    text: str
    text_trusted: bool

    @property
    def duration_ms(self) -> float:
        """How long it is, with the margins that every utterance has around its speech."""
        return self.end_ms - self.start_ms

    @property
    def top(self) -> str:
        """The most probable class."""
        return CLASSES[self.probabilities.index(max(self.probabilities))]

    @property
    def confidence(self) -> float:
        """The probability of `top`."""
        return max(self.probabilities)

    @property
    def label(self) -> str:
        """What it counts as: `top`, or `UNSURE`."""
        return UNSURE if self.abstained else self.top

    @property
    def negativity(self) -> float:
        """The probability of the negative classes together, 0..1: known for every bundle, as valence is not."""
        return sum(self.probabilities[index] for index in _NEGATIVE_AT)


def speech_ms(said: Iterable[Said]) -> float:
    """Speech together."""
    return sum(one.duration_ms for one in said)


def shares(said: Sequence[Said]) -> dict[str, float]:
    """The share of the speech time that counts as each class, or as `UNSURE`; sum 1, all 0 where nothing was said."""
    total = speech_ms(said)
    found = dict.fromkeys((*CLASSES, UNSURE), 0.0)
    for one in said:
        found[one.label] += one.duration_ms / total if total > 0 else 0.0
    return found


def mean_posterior(said: Sequence[Said]) -> tuple[float, ...]:
    """The mean of the posteriors, each weighted with its time."""
    total = speech_ms(said)
    return tuple(sum(one.probabilities[c] * one.duration_ms for one in said) / total for c in range(len(CLASSES)))


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The union of intervals, as intervals that do not touch, in order."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def length_ms(intervals: Iterable[Interval]) -> float:
    """Intervals that do not overlap, together."""
    return sum(end - start for start, end in intervals)


def overlaps(said: Iterable[Said]) -> list[Interval]:
    """When at least two roles speak at the same time.

    An utterance has margins of silence around its speech (0.2 s before, 0.12 s behind), so short overlaps at a change of
    speaker may be margins alone.
    """
    lanes: dict[str, list[Interval]] = {}
    for one in said:
        lanes.setdefault(one.role, []).append((one.start_ms, one.end_ms))
    edges = [edge for lane in lanes.values() for start, end in merged(lane) for edge in ((start, 1), (end, -1))]
    found: list[Interval] = []
    speaking, since = 0, 0.0
    for at, step in sorted(edges):  # an end sorts before a beginning at the same time: touching is no overlap
        before, speaking = speaking, speaking + step
        if before < 2 <= speaking:
            since = at
        elif speaking < 2 <= before:
            found.append((since, at))
    return merged(found)
