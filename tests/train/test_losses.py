import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from train.loop import class_bias
from train.losses import Labels, class_weights, draw_mixing, multitask_loss, totals_of

BATCH = 6
ONES, ZEROS = torch.ones(8), torch.zeros(8)


def random_labels(seed: int = 0) -> Labels:
    torch.manual_seed(seed)
    return Labels(torch.softmax(torch.randn(BATCH, 8), 1), 1 + 6 * torch.rand(BATCH, 3), torch.rand(BATCH, 3) > 0.4)


def attribute_part(attributes: Tensor, labels: Labels) -> float:
    """What the attributes add to the loss."""
    logits = torch.zeros(len(attributes), 8)
    alone = multitask_loss(logits, attributes, Labels(labels.classes, attributes, labels.rated), ONES, ZEROS)
    return float(multitask_loss(logits, attributes, labels, ONES, ZEROS) - alone)


def test_cross_entropy_against_soft_targets_weighs_one_and_a_half() -> None:
    logits, labels = torch.randn(BATCH, 8), random_labels()
    loss = multitask_loss(logits, labels.attributes, labels, ONES, ZEROS)
    torch.testing.assert_close(loss, 1.5 * torch.nn.functional.cross_entropy(logits, labels.classes))


def test_squared_error_of_attributes_weighs_two_fifths() -> None:
    """On the unit scale: being wrong by the whole range costs 1."""
    rated = torch.ones(2, 3, dtype=torch.bool)
    labels = Labels(torch.full((2, 8), 1 / 8), torch.tensor([[1.0, 1.0, 7.0], [4.0, 4.0, 4.0]]), rated)
    guess = torch.tensor([[7.0, 1.0, 1.0], [1.0, 4.0, 4.0]])
    assert attribute_part(guess, labels) == pytest.approx(0.4 * (1 + 1 + 0.25) / 6, abs=1e-6)


def test_a_missing_attribute_is_masked() -> None:
    rated = torch.tensor([[True, False, False], [True, False, True]])
    truth = torch.tensor([[4.0, 1e6, -1e6], [4.0, 1e6, 4.0]])
    labels = Labels(torch.full((2, 8), 1 / 8), truth, rated)
    guess = torch.tensor([[7.0, 3.0, 2.0], [4.0, 1.0, 4.0]], requires_grad=True)
    assert attribute_part(guess.detach(), labels) == pytest.approx(0.4 * 0.25 / 3, abs=1e-6)
    multitask_loss(torch.zeros(2, 8), guess, labels, ONES, ZEROS).backward()  # type: ignore[no-untyped-call]
    assert guess.grad is not None
    assert (guess.grad[~rated] == 0).all()
    assert guess.grad[0, 0] != 0


def test_a_batch_without_ratings_has_a_loss() -> None:
    labels = Labels(torch.full((2, 8), 1 / 8), torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    assert attribute_part(torch.full((2, 3), 7.0), labels) == 0.0


def test_class_weights_follow_the_formula_on_soft_counts() -> None:
    targets = np.zeros((4, 8), np.float32)
    targets[:, 0] = [1.0, 1.0, 0.5, 0.5]
    targets[:, 1] = [0.0, 0.0, 0.5, 0.5]
    weights = class_weights(targets)
    assert weights[0] == pytest.approx((4 / (2 * 3)) ** 0.5)
    assert weights[1] == pytest.approx((4 / (2 * 1)) ** 0.5)
    assert (weights[2:] == 1.0).all()  # never occurs: no infinite weight
    assert weights.dtype == torch.float32


def test_equally_frequent_classes_weigh_one() -> None:
    torch.testing.assert_close(class_weights(np.eye(8, dtype=np.float32)), ONES)


def test_class_weights_of_exponent_one_give_every_class_the_same_mass() -> None:
    targets = np.zeros((6, 8), np.float32)
    targets[:, 7] = 0.5  # raters hear neutral in every clip
    targets[np.arange(6), [0, 0, 0, 1, 1, 4]] = 0.5
    mass = torch.from_numpy(targets).sum(dim=0) * class_weights(targets, 1.0)
    assert mass[[0, 1, 4, 7]].tolist() == pytest.approx([1.5] * 4)
    assert torch.equal(class_weights(targets, 0.0), ONES)


def test_class_weights_scale_each_class_own_term() -> None:
    logits, labels = torch.randn(BATCH, 8), random_labels()
    parts = [
        multitask_loss(logits, labels.attributes, labels, weight, ZEROS) for weight in (ONES, *torch.eye(8).unbind())
    ]
    torch.testing.assert_close(parts[0], torch.stack(parts[1:]).sum())
    expected = -1.5 * (labels.classes[:, 2] * torch.log_softmax(logits, 1)[:, 2]).mean()
    torch.testing.assert_close(parts[3], expected)


def test_an_untrained_class_takes_no_part() -> None:
    bias = class_bias(("angry", "neutral"))
    classes = torch.zeros(BATCH, 8)
    classes[:, 0] = 1.0
    labels = Labels(classes, torch.zeros(BATCH, 3), torch.zeros(BATCH, 3, dtype=torch.bool))
    logits = torch.randn(BATCH, 8, requires_grad=True)
    loss = multitask_loss(logits, torch.zeros(BATCH, 3), labels, ONES, bias)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    torch.testing.assert_close(
        loss, 1.5 * torch.nn.functional.cross_entropy(logits[:, [0, 7]], torch.zeros(BATCH).long())
    )
    assert logits.grad is not None
    assert (logits.grad[:, 1:7] == 0).all()


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 2.0))
def test_mixup_mixes_x_and_every_label_column_alike(seed: int, alpha: float) -> None:
    """Rows of the identity show how each row was mixed."""
    labels = random_labels(seed)
    mixing = draw_mixing(BATCH, alpha, np.random.default_rng(seed))
    shares, mixed = mixing.values(torch.eye(BATCH)), mixing.labels(labels)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(BATCH))
    assert ((shares > 0).sum(dim=1) <= 2).all()
    torch.testing.assert_close(mixed.classes, shares @ labels.classes)
    torch.testing.assert_close(mixed.attributes, shares @ labels.attributes)
    torch.testing.assert_close(mixed.classes.sum(dim=1), torch.ones(BATCH))
    for row in range(BATCH):
        sources = torch.nonzero(shares[row]).flatten()
        assert (mixed.rated[row] <= labels.rated[sources].all(dim=0)).all()


def test_mixup_keeps_ratings_that_both_rows_have() -> None:
    full = random_labels()
    rated = Labels(full.classes, full.attributes, torch.ones(BATCH, 3).bool())
    assert draw_mixing(BATCH, 0.2, rng()).labels(rated).rated.all()


def test_mixup_draws_a_share_per_sample() -> None:
    shares = draw_mixing(400, 1.0, rng()).values(torch.eye(400))
    own = shares.diagonal()
    assert len(set(own.tolist())) > 390
    assert own.std() == pytest.approx(12**-0.5, abs=0.03)  # Beta(1, 1) is uniform
    sharp = draw_mixing(400, 0.2, rng()).values(torch.eye(400))
    assert ((sharp.diagonal() - 0.5).abs() > 0.4).float().mean() > 0.5  # Beta(0.2, 0.2) stays near 0 and 1


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_the_parts_of_a_step_add_up_to_the_loss_of_one_large_batch(cut: int) -> None:
    """Batches of unequal size, with unequally many ratings: a mean of their means would be another loss."""
    labels = random_labels(3)
    logits, attributes = torch.randn(BATCH, 8), torch.rand(BATCH, 3) * 6 + 1
    whole = multitask_loss(logits, attributes, labels, ONES, ZEROS)
    parts = [slice(None, cut), slice(cut, None)]
    cuts = [Labels(labels.classes[part], labels.attributes[part], labels.rated[part]) for part in parts]
    totals = totals_of(cuts)
    losses = [
        multitask_loss(logits[part], attributes[part], found, ONES, ZEROS, totals)
        for part, found in zip(parts, cuts, strict=True)
    ]
    torch.testing.assert_close(losses[0] + losses[1], whole)
    means = [multitask_loss(logits[p], attributes[p], found, ONES, ZEROS) for p, found in zip(parts, cuts, strict=True)]
    assert abs(float((means[0] + means[1]) / 2 - whole)) > 1e-4
