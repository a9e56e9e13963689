"""Alert rules over the results of a call."""

from dataclasses import replace

import pytest

from daemon.calls.alerts import AlertRule, AlertRules
from daemon.calls.said import Said
from daemon.calls.state import CallState
from daemon.errors import ConfigError
from daemon.messages import AlertEvent, EmotionEvent
from daemon.wire import redis_fields
from model.labels import CLASSES
from tests.factories import make_emotion_event, make_info

RULE = AlertRule("upset", "customer", ("angry",), 0.5, None, 3, 0.0)
UTTERANCE_MS, DISTANCE_MS = 400, 800
"""Of the factory's utterances."""


def abstaining(event: EmotionEvent) -> EmotionEvent:
    posteriors = replace(event.scores.posteriors, abstained=True)
    return replace(event, scores=replace(event.scores, posteriors=posteriors))


class Listening:
    """Rules, and the call that they are told of."""

    def __init__(self, *rules: AlertRule) -> None:
        self.rules = AlertRules(rules, CLASSES)
        self.state = CallState("call-1")

    def hear(self, event: EmotionEvent) -> list[AlertEvent]:
        self.state.fold(redis_fields(event))
        (said,) = self.state.newest(1)
        assert isinstance(said, Said)
        return self.rules.heard(said, event)

    def raised(self, tops: str, **more: int) -> list[int]:
        """Indices of utterances that raise an alert; a letter per utterance: angry, neutral, `?` for an unsure one."""
        found = []
        for index, letter in enumerate(tops):
            event = make_emotion_event(index, top="neutral" if letter == "n" else "angry", **more)  # type: ignore[arg-type]
            found += [index] * len(self.hear(abstaining(event) if letter == "?" else event))
        return found


@pytest.mark.parametrize(
    ("tops", "raised"),
    [
        ("aa", []),
        ("aaa", [2]),
        ("aana", []),
        ("aanaaa", [5]),
        ("aaaa", [2, 3]),
        ("aa?a", [3]),
        ("aa?n?a", []),
        ("???", []),
    ],
)
def test_so_many_in_a_row(tops: str, raised: list[int]) -> None:
    assert Listening(RULE).raised(tops) == raised


def test_so_much_speech() -> None:
    rule = replace(RULE, utterances=None, speech_ms=2.0 * UTTERANCE_MS + 1)
    assert Listening(rule).raised("aaa") == [2]
    assert Listening(rule).raised("aanaa") == []


def test_the_threshold_counts_all_named_emotions_together() -> None:
    both = replace(RULE, emotions=("angry", "sad"), above=0.74, utterances=1)
    assert Listening(both).raised("a") == [0], "0.7 and 0.3 / 7 are 0.743"
    assert Listening(replace(both, above=0.75)).raised("a") == []
    assert Listening(replace(both, emotions=("angry",), above=0.71)).raised("a") == []


def test_no_second_alert_while_it_cools_down() -> None:
    rule = replace(RULE, cooldown_ms=3.0 * DISTANCE_MS)
    assert Listening(rule).raised("a" * 10) == [2, 5, 8]


def test_a_rule_looks_at_its_role() -> None:
    assert Listening(RULE).raised("aaa", channel=1) == []
    everybody = replace(RULE, role=None)
    assert Listening(everybody).raised("aaa", channel=1) == [2]
    mixed = Listening(everybody)
    assert [mixed.raised("aa"), mixed.raised("aa", channel=1)] == [[], []], "a streak is of one role"


def test_a_new_stream_begins_a_new_streak_but_not_a_new_cooldown() -> None:
    listening = Listening(replace(RULE, cooldown_ms=60_000.0))
    assert listening.raised("aa") == []
    again = make_info(session="session-2")
    events = [make_emotion_event(n, info=again) for n in range(4)]
    assert [len(listening.hear(event)) for event in events] == [0, 0, 1, 0]


def test_what_an_alert_says() -> None:
    listening = Listening(RULE)
    alerts = [listening.hear(make_emotion_event(n)) for n in range(3)]
    (alert,) = alerts[2]
    assert (alert.rule, alert.emotions, alert.above, alert.utterances) == ("upset", ("angry",), 0.5, 3)
    assert alert.score == pytest.approx(0.7, abs=1e-6)
    assert (alert.start, alert.utterance.index, alert.speech_ms) == (0, 2, 3 * UTTERANCE_MS)
    assert alert.event_id == "session-1:0:2:alert:upset"
    assert alert.event_id == listening_again().event_id, "the same when it is worked out again"


def listening_again() -> AlertEvent:
    listening = Listening(RULE)
    return [alert for n in range(3) for alert in listening.hear(make_emotion_event(n))][0]


def test_a_call_that_is_over_is_forgotten() -> None:
    listening = Listening(RULE)
    assert listening.raised("aa") == []
    listening.rules.forget("call-1")
    assert listening.raised("aa") == []


def test_a_rule_that_can_never_be_met_is_a_mistake() -> None:
    with pytest.raises(
        ConfigError, match="'upset' waits for surprise, of which this bundle knows none; it knows angry, sad"
    ):
        AlertRules([replace(RULE, emotions=("surprise",))], ("angry", "sad"))
    AlertRules([replace(RULE, emotions=("surprise", "sad"))], ("angry", "sad"))
