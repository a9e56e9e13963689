"""Packets come out in order, each as soon as it can, and no good one is thrown away."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from daemon.transports.whip.reorder import DEPTH, Reorder


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


def out(order: Reorder, numbers: list[int]) -> list[int]:
    """What comes out, by place."""
    found = []
    for number in numbers:
        asks, frame = order.add(Sent(number))
        assert not asks
        if frame is not None:
            assert frame.timestamp == Sent(int(frame.data)).timestamp
            found.append(int(frame.data))
    return found


def test_a_packet_in_order_comes_out_at_once() -> None:
    assert out(Reorder(), list(range(50))) == list(range(50)), "through the wrap of both numbers"


def test_a_lost_packet_costs_itself_only() -> None:
    sent = [number for number in range(100) if number not in (10, 40, 41, 42)]
    order = Reorder()
    assert out(order, sent) == sent[:-DEPTH], "the last few are awaited"
    assert [number for number in range(100) if order.lost_before(960 * number)] == [11, 43]


def test_losses_are_counted_where_they_were() -> None:
    order = Reorder()
    out(order, [0, 1, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16])
    assert [order.lost_before(960 * number) for number in (0, 1, 5, 6, 7, 8, 9, 11)] == [0, 0, 3, 0, 0, 0, 0, 1]


@given(st.permutations(range(DEPTH)), st.integers(0, 20))
def test_packets_that_overtake_each_other_are_put_right(shuffled: list[int], at: int) -> None:
    numbers = [*range(at + 1), *(at + 1 + step for step in shuffled), *range(at + 1 + DEPTH, at + 30)]
    order = Reorder()
    found = out(order, numbers)
    assert found == list(range(len(found)))
    assert len(found) >= at + 30 - DEPTH
    assert not any(order.lost_before(960 * number) for number in found)


@given(st.lists(st.integers(0, 60), max_size=120))
def test_whatever_comes_comes_out_once_and_in_order(numbers: list[int]) -> None:
    found = out(Reorder(), numbers)
    assert found == sorted(set(found))
    assert set(found) <= set(numbers)


def test_a_sender_that_begins_anew_is_followed() -> None:
    order = Reorder()
    assert out(order, [0, 1, 2, 3000, 3001, 3002]) == [0, 1, 2, 3000, 3001, 3002]
    assert out(order, [7, 8]) == [7, 8]


def test_packets_without_audio_are_passed_over() -> None:
    order, empty = Reorder(), Sent(1)
    empty._data = b""
    assert order.add(Sent(0))[1] is not None
    assert order.add(empty) == (False, None)
    assert order.add(Sent(2))[1] is not None
    assert order.lost_before(2 * 960) == 0
