"""A call from its entries, in whatever order its streams' entries come."""

import random
from typing import Any

import pytest

from daemon.calls.attention import alarm_of, attention, mood_of
from daemon.calls.state import LOST_AFTER_MS, MAX_ROLES, CallState
from daemon.calls.view import SPARK, row, timeline
from tests.daemon.calls.build import BEGUN_MS, alert, begin, end, entry, make_said, result

Fields = dict[str, str]


def folded(*entries: Fields, max_said: int = 2_000) -> CallState:
    state = CallState("call-1", max_said)
    for fields in entries:
        state.fold(fields)
    return state


def test_a_call_of_one_stream() -> None:
    state = folded(
        begin(),
        result(0, 1, 4, "happy", channel=1, role="agent"),
        result(0, 5, 9, "angry", final=False),
        result(0, 5, 9, "angry"),
        alert(0, 9),
        end(received_s=12, at_s=12),
    )
    assert state.status(BEGUN_MS) == "ended"
    assert state.roles == ("customer", "agent")
    assert [(one.role, one.start_ms, one.top) for one in state.said()] == [
        ("agent", 1000, "happy"),
        ("customer", 5000, "angry"),
    ]
    assert (state.begun_ms, state.duration_ms, state.count) == (BEGUN_MS, 12_000, 2)
    assert [(one.rule, one.at_ms) for one in state.alerts()] == [("upset", 9000)]
    assert state.now["customer"].top == "angry"


TWO_STREAMS = (
    begin("a", role="customer"),
    begin("b", role="agent", at_s=2.0),
    result(0, 1, 4, "angry", session="a"),
    result(0, 3, 5, "happy", session="b", role="agent", begun_s=2.0),
    end("a", received_s=8, at_s=8, role="customer"),
    end("b", received_s=9, at_s=11, role="agent"),
)


def test_streams_of_one_call_lie_on_one_clock() -> None:
    state = folded(*TWO_STREAMS)
    assert [(one.role, one.start_ms, one.end_ms) for one in state.said()] == [
        ("customer", 1000, 4000),
        ("agent", 5000, 7000),
    ]
    assert state.duration_ms == 11_000


def shown(state: CallState) -> dict[str, Any]:
    view = timeline(state, BEGUN_MS + 20_000)
    view["roles"].sort(key=lambda role: str(role["role"]))
    view["analysis"]["roles"].sort(key=lambda role: str(role["role"]))
    view["reasons"].sort()
    return view


@pytest.mark.parametrize("seed", range(5))
def test_neither_order_of_the_streams_nor_repetition_changes_a_call(seed: int) -> None:
    chance = random.Random(seed)
    one = [fields for fields in TWO_STREAMS if fields["session"] == "a"]
    other = [fields for fields in TWO_STREAMS if fields["session"] == "b"]
    mixed: list[Fields] = []
    while one or other:
        source = chance.choice([stream for stream in (one, other) if stream])
        mixed.append(source.pop(0))
    assert shown(folded(*mixed)) == shown(folded(*TWO_STREAMS))
    assert shown(folded(*mixed, *mixed)) == shown(folded(*TWO_STREAMS))


def test_a_call_whose_beginning_is_gone_is_reckoned_from_its_results() -> None:
    state = folded(result(3, 10, 12))
    assert state.status(BEGUN_MS) == "live"
    assert state.begun_ms == BEGUN_MS + 500  # half a second from the end of the utterance to its result
    assert state.said()[0].start_ms == 10_000
    assert state.fold(begin())
    assert state.begun_ms == BEGUN_MS


def test_status() -> None:
    live = folded(begin(), begin("session-2", at_s=5))
    assert live.status(BEGUN_MS + 6_000) == "live"
    assert live.status(BEGUN_MS + 6_000 + LOST_AFTER_MS) == "lost"
    live.fold(end("session-2"))
    assert live.status(BEGUN_MS + 60_000) == "live"
    live.fold(end(failed=True))
    assert live.status(BEGUN_MS) == "failed"
    live.fold(begin("session-3", at_s=70))
    assert live.status(BEGUN_MS + 70_000) == "live"


@pytest.mark.parametrize(
    "broken",
    [
        {"type": "emotion"},
        result(0, 1, 2) | {"p_angry": "nan"},
        result(0, 1, 2) | {"start_ms": "inf"},
        result(0, 1, 2) | {"utterance": "first"},
        {name: value for name, value in result(0, 1, 2).items() if name != "role"},
        entry("alert"),
        begin() | {"total_received_ms": ""},
    ],
)
def test_an_entry_of_somebody_else_is_refused_and_changes_nothing(broken: Fields) -> None:
    state = folded(begin())
    before = timeline(state, BEGUN_MS)
    with pytest.raises((KeyError, ValueError)):
        state.fold(broken)
    assert timeline(state, BEGUN_MS) == before


def test_events_that_a_newer_daemon_may_send_are_passed_over() -> None:
    assert not folded(begin()).fold(entry("call.weather"))


def test_what_is_kept_is_bounded() -> None:
    state = folded(begin(), *(result(n, n, n + 0.5) for n in range(30)), max_said=10)
    assert (len(state.said()), state.count, state.dropped) == (10, 30, 20)
    assert state.said()[0].start_ms == 20_000
    for n in range(MAX_ROLES + 5):
        state.fold(result(100 + n, 50 + n, 51 + n, role=f"role {n}"))
    assert len(state.roles) == MAX_ROLES


def test_a_call_that_is_read_again_keeps_what_only_the_other_reader_saw() -> None:
    seen = folded(result(5, 20, 22), result(6, 25, 27), alert(6, 27))
    read = folded(begin(), *(result(n, 4 * n, 4 * n + 2) for n in range(6)))
    read.absorb(seen)
    assert [one.key[2] for one in read.said()] == [0, 1, 2, 3, 4, 5, 6]
    assert len(read.alerts()) == 1
    assert read.begun_ms == BEGUN_MS


def test_a_row_is_small_however_long_the_call() -> None:
    state = folded(begin(), *(result(n, n, n + 0.5, "sad") for n in range(500)))
    (customer, agent) = row(state, BEGUN_MS)["roles"]
    assert len(customer["spark"]["values"]) == SPARK
    assert customer["spark"]["measure"] == "negativity"
    assert agent == {"role": "agent", "now": None, "spark": {"measure": "negativity", "values": []}}


def test_mood_counts_what_is_negative_certain_and_recent() -> None:
    angry, calm = make_said(0, 10, "angry", confidence=0.9), make_said(0, 10, "neutral", confidence=0.9)
    assert mood_of([], 10_000) == 0
    assert mood_of([calm], 10_000) < 0.1 < 0.5 < mood_of([angry], 10_000) < angry.negativity
    assert mood_of([make_said(0, 1, "angry", confidence=0.9)], 1_000) < 0.25
    assert mood_of([angry], 40_000) < mood_of([angry], 10_000)
    unsure = make_said(0, 10, "angry", confidence=0.9, abstained=True)
    assert mood_of([unsure], 10_000) < mood_of([angry], 10_000)
    # The formula of the module, by hand: w = 10 * 0.9, negativity 0.9 + 4 * 0.1 / 7.
    assert mood_of([angry], 10_000) == pytest.approx(9 * (0.9 + 0.4 / 7) / 14)


def test_alarm_is_half_for_a_new_alert_and_fades() -> None:
    alerts = folded(begin(), alert(0, 10), alert(1, 20)).alerts()
    assert alarm_of([], 0) == 0
    assert alarm_of(alerts[:1], 10_000) == 0.5
    assert alarm_of(alerts[:1], 130_000) == pytest.approx(1 - 2**-0.5)
    assert alarm_of(alerts, 20_000) > 0.7


def test_the_agent_alone_asks_for_no_attention() -> None:
    state = folded(begin(), result(0, 0, 10, "angry", channel=1, role="agent"))
    assert attention(state, BEGUN_MS + 10_000) == 0
    state.fold(result(0, 0, 10, "angry"))
    assert attention(state, BEGUN_MS + 10_000) > 30
    calmer = attention(state, BEGUN_MS + 300_000)
    assert calmer < 2
    state.fold(end(at_s=10, received_s=10))
    assert attention(state, BEGUN_MS + 300_000) > 30, "an ended call keeps its last score"
