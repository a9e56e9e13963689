"""Packets come out in order, each as soon as it can, and no good one is thrown away."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.transports.whip.intake import Intake
from daemon.transports.whip.reorder import DEPTH, Encoded, Reorder
from tests.daemon.transports.whip_client import PACKET, opus_packets


@dataclass
class Sent:
    """An RTP packet, by its place in the stream."""

    number: int
    start: int = 65530
    clock: int = 2**32 - 3000
    _data: bytes = b""

    def __post_init__(self) -> None:
        self.sequence_number = (self.start + self.number) % 65536
        self.timestamp = (self.clock + 960 * self.number) % 2**32
        self._data = str(self.number).encode()


def out(order: Reorder, numbers: list[int]) -> list[Encoded]:
    return [encoded for number in numbers for encoded in order.add(Sent(number))]


def places(found: list[Encoded]) -> list[int]:
    return [int(encoded.data) for encoded in found]


def losses(found: list[Encoded]) -> dict[int, int]:
    """Place of a packet -> how many were lost before it."""
    return {int(encoded.data): encoded.lost for encoded in found if encoded.lost}


def test_a_packet_in_order_comes_out_at_once() -> None:
    found = out(Reorder(), list(range(50)))
    assert places(found) == list(range(50)), "through the wrap of both numbers"
    assert [encoded.timestamp for encoded in found] == [960 * number for number in range(50)]
    assert not losses(found)


def test_a_lost_packet_costs_itself_only() -> None:
    sent = [number for number in range(100) if number not in (10, 40, 41, 42)]
    found = out(Reorder(), sent)
    assert places(found) == sent
    assert losses(found) == {11: 1, 43: 3}


def test_what_waited_for_a_lost_packet_comes_out_together() -> None:
    order = Reorder()
    out(order, [0])
    assert [places(order.add(Sent(number))) for number in range(2, 2 + DEPTH)] == [[]] * DEPTH
    assert places(order.add(Sent(2 + DEPTH))) == list(range(2, 3 + DEPTH)), "given up"
    assert places(order.add(Sent(3 + DEPTH))) == [3 + DEPTH]


def test_what_still_waits_at_the_end_is_not_lost() -> None:
    order = Reorder()
    assert places(out(order, [0, 2, 3, 5])) == [0]
    found = order.finish()
    assert places(found) == [2, 3, 5]
    assert losses(found) == {2: 1, 5: 1}
    assert order.finish() == []


def test_losses_are_counted_where_they_were() -> None:
    found = out(Reorder(), [0, 1, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16])
    assert losses(found) == {5: 3, 11: 1}


@given(st.permutations(range(DEPTH)), st.integers(0, 20))
def test_packets_that_overtake_each_other_are_put_right(shuffled: list[int], at: int) -> None:
    numbers = [*range(at + 1), *(at + 1 + step for step in shuffled), *range(at + 1 + DEPTH, at + 30)]
    found = out(Reorder(), numbers)
    assert places(found) == list(range(at + 30))
    assert not losses(found)


@given(st.lists(st.integers(0, 60), max_size=120))
def test_whatever_comes_comes_out_once_and_in_order(numbers: list[int]) -> None:
    order = Reorder()
    found = out(order, numbers) + order.finish()
    assert places(found) == sorted(set(places(found)))
    assert set(places(found)) <= set(numbers)
    first = places(found)[0] if found else 0
    assert all(encoded.timestamp == 960 * (int(encoded.data) - first) for encoded in found)


def test_a_sender_that_begins_anew_is_followed() -> None:
    order = Reorder()
    found = out(order, [0, 1, 2, 3000, 3001, 3002])
    assert places(found) == [0, 1, 2, 3000, 3001, 3002]
    assert [encoded.anew for encoded in found] == [False, False, False, True, False, False]
    found = out(order, [7, 8])
    assert places(found) == [7, 8]
    assert [encoded.anew for encoded in found] == [True, False]


@pytest.mark.parametrize("clock", [0, 10**9, 2**31 + 5, 2**32 - 5])
def test_a_new_clock_loses_nothing_wherever_it_begins(clock: int) -> None:
    order, intake = Reorder(), Intake(1, 60.0)
    (packet,) = opus_packets(np.zeros((PACKET, 2), np.int16))
    sent = [Sent(number, clock=3 * 10**9) for number in range(100)]
    sent += [Sent(number, start=20_000, clock=clock) for number in range(100)]
    for number, one in enumerate(sent):
        one._data = packet
        for encoded in order.add(one):
            assert intake.push(encoded, 0.02 * number) is None
    assert intake.position == 200 * PACKET // 3


def test_packets_without_audio_are_passed_over() -> None:
    order, empty = Reorder(), Sent(1)
    empty._data = b""
    assert places(order.add(Sent(0))) == [0]
    assert order.add(empty) == []
    assert losses(order.add(Sent(2))) == {}
