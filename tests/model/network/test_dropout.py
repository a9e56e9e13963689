"""Dropout: how much is lost, what is kept of a sum, and that a seed decides it."""

import pytest
import torch
from torch import Tensor

from model.network.dropout import dropout

SHAPE = (50, 41, 101)
"""Values that are no multiple of those that one draw decides about."""


def drawn(p: float, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return dropout(torch.ones(SHAPE), p, training=True)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_each_value_is_lost_as_often_as_asked_and_the_mean_is_kept(p: float) -> None:
    found = drawn(p)
    deviation = (p * (1 - p) / found.numel()) ** 0.5
    assert float((found == 0).float().mean()) == pytest.approx(p, abs=4 * deviation)
    assert found[found != 0].tolist() == pytest.approx([1 / (1 - p)] * int((found != 0).sum()), rel=1e-3)
    assert float(found.mean()) == pytest.approx(1.0, abs=5 * deviation / (1 - p))


def test_neighbours_are_lost_independently() -> None:
    """Four of them come out of one draw."""
    lost = (drawn(0.3) == 0).flatten().double()
    lost = lost - lost.mean()
    for distance in range(1, 9):
        correlation = (lost[:-distance] * lost[distance:]).mean() / lost.square().mean()
        assert abs(float(correlation)) < 4 / len(lost) ** 0.5


def test_a_seed_decides_what_is_lost() -> None:
    assert torch.equal(drawn(0.2, 7), drawn(0.2, 7))
    assert not torch.equal(drawn(0.2, 7), drawn(0.2, 8))
    state = torch.get_rng_state()
    first = dropout(torch.ones(5), 0.5, training=True)
    torch.set_rng_state(state)
    assert torch.equal(dropout(torch.ones(5), 0.5, training=True), first)


def test_gradients_go_where_values_went() -> None:
    x = torch.ones(SHAPE, requires_grad=True)
    found = dropout(x, 0.25, training=True)
    found.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert torch.equal(x.grad, found.detach()) if x.grad is not None else False


def test_nothing_is_lost_where_nothing_is_to_be() -> None:
    x = torch.randn(3, 5)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x
    assert torch.equal(dropout(x, 1.0, training=True), torch.zeros(3, 5))
    assert dropout(x.bfloat16(), 0.5, training=True).dtype == torch.bfloat16
