"""Sums over what was said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.calls.said import UNSURE, Interval, length_ms, mean_posterior, merged, overlaps, shares
from model.labels import CLASSES
from tests.daemon.calls.build import make_said, posterior

Times = st.integers(0, 200)
Intervals = st.lists(st.tuples(Times, st.integers(1, 40)).map(lambda pair: (float(pair[0]), float(sum(pair)))))


def test_a_share_is_of_the_time() -> None:
    said = [make_said(0, 3, "angry"), make_said(4, 5, "happy"), make_said(6, 10, "sad", abstained=True)]
    found = shares(said)
    assert list(found) == [*CLASSES, UNSURE]
    assert (found["angry"], found["happy"], found[UNSURE]) == pytest.approx((3 / 8, 1 / 8, 4 / 8))
    assert found["sad"] == 0
    assert set(shares([]).values()) == {0.0}


def test_negativity_is_the_probability_of_the_negative_classes() -> None:
    assert make_said(0, 1, "happy", confidence=1.0).negativity == 0
    assert make_said(0, 1, "fear", confidence=1.0).negativity == 1
    assert make_said(0, 1, "neutral", confidence=0.3).negativity == pytest.approx(0.5)


def test_a_mean_posterior_is_weighted_with_time() -> None:
    mean = mean_posterior([make_said(0, 3, "angry", confidence=1.0), make_said(3, 4, "sad", confidence=1.0)])
    assert mean == pytest.approx([0.75 if name == "angry" else 0.25 if name == "sad" else 0.0 for name in CLASSES])
    assert mean_posterior([make_said(0, 1, "sad")]) == pytest.approx(posterior("sad"))


@given(intervals=Intervals)
def test_merged_intervals_cover_the_same_and_do_not_touch(intervals: list[Interval]) -> None:
    found = merged(intervals)

    def covered(at: float, of: list[Interval]) -> bool:
        return any(start <= at < end for start, end in of)

    for tick in range(250):
        assert covered(tick, found) == covered(tick, intervals)
    assert all(before[1] < after[0] for before, after in zip(found, found[1:], strict=False))


@given(customer=Intervals, agent=Intervals)
def test_overlap_is_what_both_say_at_once(customer: list[Interval], agent: list[Interval]) -> None:
    said = [make_said(a, b, role="customer") for a, b in customer] + [make_said(a, b, role="agent") for a, b in agent]
    both = sum(any(a <= tick < b for a, b in customer) and any(a <= tick < b for a, b in agent) for tick in range(300))
    assert length_ms(overlaps(said)) == pytest.approx(both * 1000)


def test_one_role_never_overlaps_itself() -> None:
    assert overlaps([make_said(0, 5), make_said(3, 8)]) == []
