"""Which results raise an alert: rules, and what they remember of each call. Sans-IO.

A rule looks at the final results of one role. Its score of a result is the probability of its emotions together. Results
in a row whose score is at least `above` make a streak; an alert is raised by the result with which the streak is long
enough, and again while it lasts, but not before `cooldown_ms` are over on the call's clock. A result that the bundle would
rather not give (`abstained`) neither lengthens a streak nor ends one. A new stream of the role begins a new streak.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from daemon.calls.said import Said
from daemon.errors import ConfigError
from daemon.messages import AlertEvent, EmotionEvent
from model.labels import CLASS_INDEX

_NEVER: Final = float("-inf")


@dataclass(frozen=True, slots=True)
class AlertRule:
    """When to raise an alert.

    Attributes:
        name: in the alert.
        role: whom it looks at; None for everybody.
        emotions: whose probabilities are added up.
        above: score from which a result counts, 0..1.
        speech_ms: length of a streak that raises an alert; None where `utterances` says it.
        utterances: results of a streak that raise an alert; None where `speech_ms` says it.
        cooldown_ms: between two alerts of the rule about one role of a call.
    """

    name: str
    role: str | None
    emotions: tuple[str, ...]
    above: float
    speech_ms: float | None
    utterances: int | None
    cooldown_ms: float

    def score(self, probabilities: Sequence[float]) -> float:
        """Of one result with 8 probabilities in canonical order, 0..1."""
        return float(sum(probabilities[CLASS_INDEX[name]] for name in self.emotions))


@dataclass(slots=True)
class _Streak:
    """Results in a row; `start` is the first one's first sample, `weighted_ms` the sum of score times length."""

    session: str = ""
    start: int = 0
    count: int = 0
    speech_ms: float = 0.0
    weighted_ms: float = 0.0
    raised_ms: float = _NEVER


class AlertRules:
    """The rules, and the streaks of every call.

    Args:
        rules: in the order in which their alerts are raised.
        trained_classes: of the bundle.

    Raises:
        ConfigError: if a rule can never be met, because the bundle knows none of its emotions.
    """

    def __init__(self, rules: Iterable[AlertRule], trained_classes: Sequence[str]) -> None:
        self._rules = tuple(rules)
        self._streaks: dict[str, dict[tuple[str, str], _Streak]] = {}
        """By call; then by rule and role."""
        for rule in self._rules:
            if not set(rule.emotions) & set(trained_classes):
                raise ConfigError(
                    f"the alert rule {rule.name!r} waits for {', '.join(rule.emotions)}, of which this bundle knows none; "
                    f"it knows {', '.join(trained_classes)}"
                )

    def heard(self, said: Said, event: EmotionEvent) -> list[AlertEvent]:
        """The alerts that a final result raises.

        Args:
            said: the result on its call's clock.
            event: the same, as it was published.
        """
        raised = []
        for rule in self._rules:
            if rule.role in (None, said.role):
                streaks = self._streaks.setdefault(event.info.call, {})
                streak = streaks.setdefault((rule.name, said.role), _Streak())
                if (
                    _lengthened(rule, streak, said, event.utterance.start)
                    and said.end_ms - streak.raised_ms >= rule.cooldown_ms
                ):
                    streak.raised_ms = said.end_ms
                    raised.append(_alert(rule, streak, event))
        return raised

    def forget(self, call: str) -> None:
        """The call is over."""
        self._streaks.pop(call, None)


def _lengthened(rule: AlertRule, streak: _Streak, said: Said, start: int) -> bool:
    """Adds a result to a streak, or ends it; whether it is long enough with it."""
    if streak.session != said.key[0]:
        streak.session, streak.count = said.key[0], 0
    if said.abstained:
        return False
    score = rule.score(said.probabilities)
    if score < rule.above:
        streak.count = 0
        return False
    if streak.count == 0:
        streak.start, streak.speech_ms, streak.weighted_ms = start, 0.0, 0.0
    streak.count += 1
    streak.speech_ms += said.duration_ms
    streak.weighted_ms += score * said.duration_ms
    if rule.utterances is not None:
        return streak.count >= rule.utterances
    return streak.speech_ms >= (rule.speech_ms or 0.0)


def _alert(rule: AlertRule, streak: _Streak, event: EmotionEvent) -> AlertEvent:
    return AlertEvent(
        info=event.info,
        utterance=event.utterance,
        rule=rule.name,
        emotions=rule.emotions,
        above=rule.above,
        score=streak.weighted_ms / streak.speech_ms,
        start=streak.start,
        speech_ms=streak.speech_ms,
        utterances=streak.count,
        created_ms=event.created_ms,
    )
