"""When members drop out and when they come back, on a clock that jumps."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.overload import Steps

BEYOND_S = 0.5
LONG, MIDDLE, NONE = 0.6, 0.4, 0.1
"""Waits: members drop out, nothing changes, calm."""


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Engine:
    """What an engine does with its steps: it asks again and again."""

    clock: Clock = field(default_factory=Clock)
    fallbacks: int = 2

    def __post_init__(self) -> None:
        self.steps = Steps(BEYOND_S, self.clock)

    def after(self, seconds: float, wait_s: float) -> int:
        self.clock.now += seconds
        return self.steps.number(wait_s, self.fallbacks)

    def during(self, seconds: float, wait_s: float) -> list[int]:
        """The changes, asked ten times a second."""
        found: list[int] = []
        for _ in range(round(seconds * 10)):
            number = self.after(0.1, wait_s)
            if not found or found[-1] != number:
                found.append(number)
        return found


def test_all_members_score_while_nobody_waits() -> None:
    assert Engine().during(60, MIDDLE) == [0]


def test_members_drop_out_in_the_declared_order_and_come_back_in_reverse() -> None:
    engine = Engine()
    assert engine.during(20, LONG) == [1, 2], "the last fallback stays the last"
    assert engine.during(60, NONE) == [2, 1, 0]


def test_a_step_has_time_to_tell_before_the_next_one() -> None:
    engine = Engine()
    assert engine.after(0, LONG) == 1
    assert engine.after(1.9, LONG) == 1
    assert engine.after(0.2, LONG) == 2


def test_members_come_back_after_calm_alone() -> None:
    engine = Engine()
    assert engine.after(0, LONG) == 1
    assert engine.during(60, MIDDLE) == [1], "neither out nor in between the two thresholds"
    assert engine.during(9.5, NONE) == [1]
    assert engine.after(0.1, MIDDLE) == 1
    assert engine.during(9.5, NONE) == [1], "calm is counted anew"
    assert engine.after(0.6, NONE) == 0


def test_where_they_could_not_stay_the_next_try_comes_later() -> None:
    engine = Engine(fallbacks=1)
    waits = []
    for _ in range(7):
        assert engine.after(2, LONG) == 1
        begun = engine.clock.now
        while engine.after(0.5, NONE):
            pass
        waits.append(engine.clock.now - begun)
    assert waits == [10, 20, 40, 80, 160, 160, 160]
    assert engine.during(61, NONE) == [0]
    assert engine.after(0, LONG) == 1, "much later, which is no relapse"
    begun = engine.clock.now
    assert engine.during(11, NONE) == [1, 0]


def test_after_a_night_without_calls_all_members_are_back_at_once() -> None:
    engine = Engine()
    assert engine.during(20, LONG)[-1] == 2
    assert engine.after(8 * 3600, NONE) == 0


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 3)), max_size=40), st.integers(0, 3))
def test_no_fallback_is_skipped_on_the_way_down(course: list[tuple[float, float]], fallbacks: int) -> None:
    engine, before = Engine(fallbacks=fallbacks), 0
    for seconds, wait_s in course:
        number = engine.after(seconds, wait_s)
        assert 0 <= number <= min(fallbacks, before + 1)
        assert number == before or (number > before) == (wait_s > BEYOND_S)
        before = number


def test_a_bundle_without_fallbacks_always_scores_with_all_members() -> None:
    assert Engine(fallbacks=0).during(30, LONG) == [0]


def test_a_change_is_told(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    engine.during(1, LONG)
    assert [record.message for record in caplog.records] == [
        "finals wait 0.60 s: from fallback 0 to 1 (0 has all members)"
    ]
