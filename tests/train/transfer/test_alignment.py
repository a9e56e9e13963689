"""Distances of representations against their formulas, and the reversed gradient."""

import math
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.train.synthetic import ENCODERS, TRAINED, make_clip, make_examples, make_member
from train.dataset import tensors
from train.transfer.alignment import Alignment, Discriminator, Method, aligning, coral, mmd, reversed_gradient
from train.transfer.start import Rows
from train.transfer.unlabelled import Unlabelled, unlabelled

METHODS: tuple[Method, ...] = ("coral", "mmd", "dann")
Matrix = npt.NDArray[np.float64]


def batches(shift: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(9, 5, generator=generator), shift + 1.7 * torch.randn(7, 5, generator=generator)


def target(seed: int = 4) -> Unlabelled:
    examples = make_examples(TRAINED * 5, seed=seed)
    return Unlabelled(examples.ids, examples.speakers, examples.frames)


def test_coral_is_the_distance_of_covariances() -> None:
    source, other = batches()
    expected = np.square(np.cov(source.numpy().T) - np.cov(other.numpy().T)).sum() / (4 * 5**2)
    assert float(coral(source, other)) == pytest.approx(expected, rel=1e-5)
    assert float(coral(source, source + 3.0)) == pytest.approx(0.0, abs=1e-6), "means are not its business"


def test_mmd_is_the_unbiased_sum_over_pairs() -> None:
    source, other = batches()
    a, b = source.double().numpy(), other.double().numpy()
    both = np.concatenate([a, b])
    pairs = [float(np.square(x - y).sum()) for i, x in enumerate(both) for j, y in enumerate(both) if i != j]
    typical = sum(pairs) / len(pairs)

    def kernel(x: Matrix, y: Matrix) -> float:
        widths = (0.25, 0.5, 1.0, 2.0, 4.0)
        return sum(math.exp(-float(np.square(x - y).sum()) / (w * typical)) for w in widths) / len(widths)

    def within(rows: Matrix) -> float:
        found = [kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
        return sum(found) / len(found)

    across = [kernel(x, y) for x in a for y in b]
    expected = within(a) + within(b) - 2 * sum(across) / len(across)
    assert float(mmd(source, other)) == pytest.approx(expected, rel=1e-4)
    assert float(mmd(*batches(shift=4.0))) > 2 * float(mmd(*batches(shift=1.0))) > 0


def test_gradients_are_reversed() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = reversed_gradient(x, 0.25)
    torch.testing.assert_close(y, x)
    (y * torch.tensor([3.0, 5.0])).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    torch.testing.assert_close(x.grad, torch.tensor([-0.75, -1.25]))


def test_the_discriminator_learns_what_the_representation_unlearns() -> None:
    """One step down the loss helps the discriminator by its own weights, and hinders it by the representation's."""
    torch.manual_seed(0)
    discriminator = Discriminator(5)
    source, other = (part.requires_grad_() for part in batches())
    loss = discriminator(source, other, 1.0)
    loss.backward()
    assert source.grad is not None
    assert other.grad is not None
    with torch.no_grad():
        moved = discriminator(source - source.grad, other - other.grad, 1.0)
        for values in discriminator.parameters():
            assert values.grad is not None
            values.sub_(0.1 * values.grad)
        learned = discriminator(source, other, 1.0)
    assert float(learned) < float(loss.detach()) < float(moved)


def test_the_reversal_rises_over_the_stage_from_nothing() -> None:
    member, x = make_member(), torch.randn(6, 8, requires_grad=True)
    found = Alignment(member, target(), "dann", 1.0, seed=1, steps=20)
    sizes = []
    for _ in range(21):
        (gradient,) = torch.autograd.grad(found(member, x, lambda rows: torch.zeros(6, 8)), x)
        sizes.append(float(gradient.norm()))
    assert sizes[0] == 0.0
    rise = [2.0 / (1.0 + math.exp(-0.5 * step)) - 1.0 for step in range(21)]
    np.testing.assert_allclose(np.array(sizes) / sizes[-1], np.array(rise) / rise[-1], rtol=1e-5)


@pytest.mark.parametrize(("method", "distance", "weight"), [("coral", coral, 3000.0), ("mmd", mmd, 1.0)])
def test_training_on_the_distance_draws_the_target_nearer(
    method: Method, distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], weight: float
) -> None:
    examples = make_examples(TRAINED * 8, seed=1)
    shifted = {name: [rows + np.float16(2.0) for rows in found] for name, found in target().frames.items()}
    other = Unlabelled(target().ids, target().speakers, shifted)
    member = make_member(seed=2).eval()
    inputs = {name: ENCODERS[name] for name in member.spec.modalities}

    def represent(rows: Rows) -> torch.Tensor:
        return member.represent(*tensors(rows.frames, inputs))

    def gap() -> float:
        with torch.no_grad():
            return float(distance(represent(examples), represent(other)))

    before = gap()
    aligned = aligning(other, method, weight)(member, 1, 60)
    optimizer = torch.optim.Adam(member.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        aligned(member, represent(examples), represent).backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
    assert gap() < 0.7 * before


def test_the_discriminator_alone_is_learned_with_the_member() -> None:
    sizes = {method: len(list(aligning(target(), method, 1.0)(make_member(), 1, 5).parameters())) for method in METHODS}
    assert sizes == {"coral": 0, "mmd": 0, "dann": 4}


def test_a_batch_of_one_has_no_spread() -> None:
    member = make_member()
    for method in METHODS:
        assert (
            float(Alignment(member, target(), method, 1.0, 1, 5)(member, torch.ones(1, 8), lambda rows: 1 / 0)) == 0.0
        )
    with pytest.raises(ValueError, match="two utterances"):
        aligning(target().subset([0]), "mmd", 1.0)


def test_what_is_aligned_with_has_no_field_for_a_label() -> None:
    assert [field.name for field in fields(Unlabelled)] == ["ids", "speakers", "frames"]
    clips = [make_clip(id=f"{n}", intended="sad") for n in range(3)]
    frames = {"prosody": {clip.id: np.zeros((2, 5), np.float16) for clip in clips}}
    found = unlabelled(clips, frames)
    assert not hasattr(found, "__dict__")
    assert found.ids == ("0", "1", "2")
