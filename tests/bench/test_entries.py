"""Counting what is lost, repeated and nobody's, on entries that are made up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.entries import Bounds, Entry, Tally, bounds_of, tally, wanted_of
from model.recording import read_recording
from tests.daemon.conftest import ASSETS

WANTED: list[Bounds] = [(0, 100.0, 900.0), (0, 1500.0, 2600.5), (0, 4000.0, 5000.0)]


def final(index: int, call: str = "one", bounds: Bounds | None = None) -> Entry:
    channel, start, end = bounds or WANTED[index]
    place = {"channel": str(channel), "start_ms": f"{start:g}", "end_ms": f"{end:g}"}
    return {"type": "emotion", "call": call, "event_id": f"{call}:{index}", **place}


def ended(call: str = "one", utterances: int = 3) -> Entry:
    return {"type": "call.ended", "call": call, "event_id": f"{call}:end", "total_utterances": str(utterances)}


ALL = [final(0), final(1), final(2), ended()]
IDS = [entry["event_id"] for entry in ALL[:3]]


def test_everything_is_there_once() -> None:
    assert tally(ALL, "one", WANTED, IDS) == Tally(utterances=3)
    assert tally(ALL, "one", WANTED, IDS).clean


@pytest.mark.parametrize(
    ("found", "heard", "expected"),
    [
        ([final(0), final(2), ended()], None, Tally(3, lost=1)),
        ([final(0), final(2), ended()], [IDS[0]], Tally(3, lost=2)),
        (ALL, [], Tally(3, lost=3)),
        ([*ALL, final(1)], IDS, Tally(3, repeated=1)),
        (ALL, [*IDS, IDS[0], IDS[0]], Tally(3, repeated=2)),
        ([*ALL, final(3, bounds=WANTED[1])], None, Tally(3, repeated=1)),
        ([*ALL, final(3, bounds=(0, 7000.0, 7500.0))], None, Tally(3, unexpected=1)),
        (ALL[:3], IDS, Tally(3, unended=1)),
        ([final(0), final(1), final(2, bounds=(1, 4000.0, 5000.0)), ended()], IDS, Tally(3, lost=1, unexpected=1)),
    ],
)
def test_each_trouble_is_counted_as_what_it_is(found: list[Entry], heard: list[str] | None, expected: Tally) -> None:
    counted = tally(found, "one", WANTED, heard)
    assert counted == expected
    assert not counted.clean


def test_other_calls_do_not_count() -> None:
    others = [final(index, "two") for index in range(3)] + [ended("two")]
    assert tally(others, "one", WANTED, None) == Tally(3, lost=3, unended=1)


@pytest.mark.parametrize(("told", "lost", "unexpected"), [(3, 0, 0), (5, 2, 0), (2, 0, 1)])
def test_behind_a_lossy_codec_the_server_s_own_total_counts(told: int, lost: int, unexpected: int) -> None:
    found = [final(0), final(1), final(2), ended(utterances=told)]
    assert tally(found, "one", None, IDS) == Tally(told, lost=lost, unexpected=unexpected)


@given(st.lists(st.sampled_from([final(0), final(1), final(2)]), max_size=12))
def test_what_is_there_lost_and_repeated_add_up(finals: list[Entry]) -> None:
    counted = tally([*finals, ended()], "one", WANTED, None)
    assert len(finals) == len(WANTED) - counted.lost + counted.repeated


def test_tallies_add_up_by_name() -> None:
    assert Tally(3, 1, 2, 0, 1) + Tally(2, 0, 1, 4, 0) == Tally(5, 1, 3, 4, 1)


def test_utterances_are_found_offline_where_redis_says_they_are() -> None:
    wanted = wanted_of(read_recording(ASSETS / "two_sentences.flac"))
    assert len(wanted) == 2
    assert [bounds_of(final(0, bounds=bounds)) for bounds in wanted] == wanted
