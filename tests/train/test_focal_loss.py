"""Options of the classes' loss, the focal exponent and label smoothing: formula, gradients, and what they name anew."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from model.labels import CLASSES, class_mask
from model.network.linear import Linear
from model.network.member import build_member
from tests.model.tiny import tiny_linear
from tests.train.synthetic import ENCODERS, TRAINED, make_examples, make_member, make_recipe
from train.config import LinearConfig, ObjectiveConfig, Recipe, StageConfig
from train.dataset import make_batch
from train.execution import Execution
from train.linear import fit_linear
from train.loop import StageData, Step, class_bias, predict
from train.losses import PAPER, Labels, Terms, multitask_loss, smoothed
from train.stages.members import Job, last_key
from train.stored_stack import stack_key

BATCH = 6
MASK = class_mask(TRAINED)
BIAS = class_bias(TRAINED)
WEIGHTS = torch.linspace(0.5, 2.0, len(CLASSES))
NOTHING_RATED = torch.zeros(BATCH, 3, dtype=torch.bool)


def labels_over(mask: npt.NDArray[np.bool_], seed: int) -> Labels:
    """Soft targets over some classes, no attribute."""
    rng = np.random.default_rng(seed)
    targets = np.where(mask, rng.dirichlet(np.ones(len(CLASSES)), BATCH), 0.0)
    targets /= targets.sum(axis=1, keepdims=True)
    return Labels(torch.from_numpy(targets.astype(np.float32)), torch.ones(BATCH, 3), NOTHING_RATED)


def loss_of(logits: Tensor, labels: Labels, terms: Terms, bias: Tensor = BIAS) -> Tensor:
    return multitask_loss(logits, torch.ones(BATCH, 3), labels, WEIGHTS, bias, terms=terms)


def gradient_of(logits: Tensor, labels: Labels, terms: Terms) -> Tensor:
    own = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss_of(own, labels, terms), own)
    return found


def by_hand(logits: npt.NDArray[np.float64], targets: npt.NDArray[np.float64], gamma: float, smoothing: float) -> float:
    """-mean_b sum_c w_c t'_c (1 - p_c)^gamma log p_c over trained classes, in float64."""
    total = 0.0
    for row, truth in zip(logits[:, MASK], targets[:, MASK], strict=True):
        p = np.exp(row - row.max())
        p /= p.sum()
        mixed = (1 - smoothing) * truth + smoothing / len(row)
        total -= float((WEIGHTS.numpy()[MASK] * mixed * (1 - p) ** gamma * np.log(p)).sum())
    return total / len(logits)


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.0, 5.0), st.floats(0.0, 0.9))
def test_the_loss_follows_the_formula(seed: int, gamma: float, smoothing: float) -> None:
    labels = labels_over(MASK, seed)
    logits = np.random.default_rng(seed).normal(0, 2, (BATCH, len(CLASSES)))
    found = loss_of(torch.from_numpy(logits).float(), labels, Terms(1.5, 0.0, gamma, smoothing))
    expected = 1.5 * by_hand(logits, labels.classes.double().numpy(), gamma, smoothing)
    assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_of_hard_targets_it_is_the_focal_loss_of_the_paper() -> None:
    """-(1 - p_t)^gamma log p_t, with p_t of the true class alone."""
    truth = torch.tensor([0, 7, 0, 7, 0, 0])
    classes = torch.nn.functional.one_hot(truth, len(CLASSES)).float()
    logits = torch.randn(BATCH, len(CLASSES))
    ones, zeros = torch.ones(len(CLASSES)), torch.zeros(len(CLASSES))
    labels = Labels(classes, torch.ones(BATCH, 3), NOTHING_RATED)
    found = multitask_loss(logits, labels.attributes, labels, ones, zeros, terms=Terms(1.0, 0.0, focal_gamma=2.0))
    p = torch.softmax(logits, dim=1)[torch.arange(BATCH), truth]
    torch.testing.assert_close(found, -((1 - p).square() * p.log()).mean())


def test_label_smoothing_over_all_classes_is_that_of_torch() -> None:
    labels, logits = labels_over(np.ones(len(CLASSES), np.bool_), 3), torch.randn(BATCH, len(CLASSES))
    found = loss_of(logits, labels, Terms(1.0, 0.0, label_smoothing=0.2), torch.zeros(len(CLASSES)))
    per_row = torch.nn.functional.cross_entropy(
        logits, labels.classes, weight=WEIGHTS, label_smoothing=0.2, reduction="none"
    )
    torch.testing.assert_close(found, per_row.mean())


@pytest.mark.parametrize("terms", [PAPER, Terms(1.0, 0.3)])
def test_without_either_it_is_cross_entropy_to_the_bit(terms: Terms) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(BATCH, len(CLASSES)), labels_over(MASK, 1)
    log_posterior = torch.log_softmax(logits + BIAS, dim=1)
    plain = -(WEIGHTS * labels.classes * log_posterior).sum(dim=1)
    rated = replace(labels, attributes=torch.full((BATCH, 3), 3.0), rated=torch.ones(BATCH, 3, dtype=torch.bool))
    said = torch.rand(BATCH, 3) + 1.0
    error = ((said - rated.attributes) / 6.0).square().sum() / rated.rated.sum()
    found = multitask_loss(logits, said, rated, WEIGHTS, BIAS, terms=terms)
    assert torch.equal(found, terms.cross_entropy * plain.mean() + terms.attributes * error)
    assert smoothed(labels.classes, BIAS, 0.0) is labels.classes


def test_a_focal_loss_counts_what_is_known_already_for_less() -> None:
    labels, logits = labels_over(MASK, 2), torch.randn(BATCH, len(CLASSES))
    losses = [float(loss_of(logits, labels, Terms(1.0, 0.0, gamma))) for gamma in (0.0, 0.5, 2.0, 5.0)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] > 0


@pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.5, 1.0, 2.0, 100.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("height", [1e-8, 15.0, 17.0, 90.0, 1e3])
def test_gradients_are_finite_where_a_posterior_is_0_or_1(gamma: float, smoothing: float, height: float) -> None:
    """The true class is certain in one row, excluded in the next; soft targets in the others."""
    labels, trained = labels_over(MASK, 4), [int(index) for index in np.flatnonzero(MASK)]
    labels.classes[:2] = 0.0
    labels.classes[:2, trained[0]] = 1.0
    logits = torch.zeros(BATCH, len(CLASSES))
    logits[0::2, trained[0]] = height
    logits[1::2, trained[1]] = height
    found = gradient_of(logits, labels, Terms(1.0, 0.0, gamma, smoothing))
    assert torch.isfinite(found).all()
    assert torch.isfinite(loss_of(logits, labels, Terms(1.0, 0.0, gamma, smoothing)))
    if gamma == 0.5 and height == 1e3:
        posterior = torch.softmax(logits + BIAS, dim=1)
        assert posterior[0, trained[0]] == 1.0
        assert posterior[1, trained[0]] == 0.0
        assert found[1, trained[0]] < 0, "what is wrong for certain is still learned"


def test_the_slope_is_that_of_the_formula() -> None:
    labels, terms, step = labels_over(MASK, 5), Terms(1.0, 0.0, 0.5, 0.1), 1e-5
    logits = np.random.default_rng(5).normal(0, 2, (BATCH, len(CLASSES)))
    found, truth = gradient_of(torch.from_numpy(logits).float(), labels, terms), labels.classes.double().numpy()
    for place in ((0, 0), (3, 7)):
        around = [logits.copy(), logits.copy()]
        around[0][place] -= step
        around[1][place] += step
        low, high = (by_hand(values, truth, 0.5, 0.1) for values in around)
        assert float(found[place]) == pytest.approx((high - low) / (2 * step), abs=1e-5)


@pytest.mark.parametrize("terms", [Terms(focal_gamma=2.0), Terms(label_smoothing=0.3), Terms(1.0, 0.0, 0.5, 0.3)])
def test_classes_without_a_logit_get_no_mass_and_no_gradient(terms: Terms) -> None:
    labels, logits = labels_over(MASK, 6), torch.randn(BATCH, len(CLASSES))
    targets = smoothed(labels.classes, BIAS, terms.label_smoothing)
    assert (targets[:, ~MASK] == 0).all()
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(BATCH))
    assert (targets[:, MASK] >= terms.label_smoothing / MASK.sum() - 1e-7).all()
    found = gradient_of(logits, labels, terms)
    assert (found[:, ~MASK] == 0).all()
    assert (found[:, MASK] != 0).all()


def test_smoothed_targets_are_mixed_with_equal_parts_of_the_trained_classes() -> None:
    labels = labels_over(MASK, 7)
    expected = 0.8 * labels.classes + 0.2 * torch.from_numpy(MASK) / len(TRAINED)
    torch.testing.assert_close(smoothed(labels.classes, BIAS, 0.2), expected)


@pytest.mark.parametrize("changed", [Terms(1.5, 0.4, focal_gamma=2.0), Terms(1.5, 0.4, label_smoothing=0.2)])
def test_a_training_step_has_them_in_its_loss(changed: Terms) -> None:
    """In one batch and in accumulated ones; a class that the step does not compare is given nothing."""
    examples, rng = make_examples(TRAINED * 6), np.random.default_rng(0)
    trained = (*TRAINED, "surprise")
    losses = []
    for terms in (changed, PAPER):
        data = StageData(lambda rng: examples, None, WEIGHTS, trained, terms, compared=TRAINED)
        member = make_member()
        step = Step(
            member, ENCODERS, data, StageConfig(epochs=1, batch_size=8, learning_rate=1e-3, mixup=0), Execution()
        )
        losses.append(step.gradients([examples], rng))
        parts = step.gradients([examples.subset(range(10)), examples.subset(range(10, 24))], rng)
        assert parts == pytest.approx(losses[-1], rel=1e-5)
        batch = make_batch(examples, {n: ENCODERS[n] for n in member.spec.modalities})
        with torch.no_grad():
            logits, attributes = member(batch.frames, batch.masks)
            expected = multitask_loss(logits, attributes, batch.labels, WEIGHTS, BIAS, terms=terms)
        assert losses[-1] == pytest.approx(float(expected), rel=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("terms", [Terms(1.0, 0.0, focal_gamma=2.0), Terms(1.0, 0.0, label_smoothing=0.5)])
def test_a_linear_fit_is_less_certain_with_either(terms: Terms) -> None:
    examples = make_examples(TRAINED * 10, signal=2.0)
    certain = []
    for each in (Terms(1.0, 0.0), terms):
        member = build_member(tiny_linear("flat", ("prosody", "text")), ENCODERS)
        assert isinstance(member, Linear)
        data = StageData(lambda rng: examples, None, torch.ones(len(CLASSES)), TRAINED, each)
        fit_linear(member, ENCODERS, data, LinearConfig(l2=(0.01,), draws=1), seed=0)
        posterior = predict(member, ENCODERS, examples, BIAS)[0]
        assert (posterior[:, ~MASK] == 0).all()
        certain.append(posterior.max(axis=1).mean())
    assert certain[1] < certain[0] - 0.05


def test_smoothing_leaves_classes_of_a_linear_fit_the_same_mass() -> None:
    """Of unequally frequent classes: a fit that can tell nothing says that all are as likely."""
    examples = make_examples((*("angry",) * 20, *("sad",) * 4, *("happy",) * 2, *("neutral",) * 2), signal=0.0)
    member = build_member(tiny_linear("flat", ("prosody", "text")), ENCODERS)
    assert isinstance(member, Linear)
    data = StageData(
        lambda rng: examples, None, torch.ones(len(CLASSES)), TRAINED, Terms(1.0, 0.0, label_smoothing=0.4)
    )
    fit_linear(member, ENCODERS, data, LinearConfig(l2=(1e4,), draws=1), seed=0)
    assert predict(member, ENCODERS, examples, BIAS)[0][:, MASK] == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("section", [(), ("vga",)])
@pytest.mark.parametrize(
    ("name", "value"),
    [("focal_gamma", -0.1), ("focal_gamma", float("inf")), ("focal_gamma", float("nan"))]
    + [("label_smoothing", value) for value in (-0.1, 1.0, 1.5, float("nan"))],
)
def test_what_makes_no_loss_is_refused(section: tuple[str, ...], name: str, value: float) -> None:
    given: dict[str, Any] = {name: value}
    for outer in section:
        given = {outer: given}
    with pytest.raises(ValidationError, match=name):
        ObjectiveConfig.model_validate(given)


def test_each_family_has_its_own() -> None:
    objective = ObjectiveConfig.model_validate(
        {"focal_gamma": 2, "label_smoothing": 0.1, "vga": {"focal_gamma": 1, "label_smoothing": 0.05}}
    )
    assert objective.terms("deepser") == objective.terms("linear") == Terms(1.5, 0.4, 2.0, 0.1)
    assert objective.terms("vga") == Terms(1.0, 0.3, 1.0, 0.05)
    assert ObjectiveConfig().terms("vga") == Terms(1.0, 0.3, 0.0, 0.0)


def recipe_of(objective: dict[str, Any]) -> Recipe:
    """One member a family; nothing that a shipped recipe may change is in their keys."""
    own = {"modalities": ["prosody", "text"]}
    guided = {"family": "vga", "attention": "vad-guided", "gates": "shares", "contrast": 6}
    members = [
        {"name": "deep", "seed": 5, **own},
        {"name": "full", "seed": 6, **own, **guided},
        {"name": "flat", "seed": 7, **own, "family": "linear"},
    ]
    plain: dict[str, Any] = {"seed": 0, "text": None, "augment": {}, "linear": {}}
    return make_recipe(members=members, objective=objective, **plain)


def keys_of(objective: dict[str, Any]) -> dict[str, str]:
    recipe = recipe_of(objective)
    keys = {spec.name: last_key(Job(spec, 0), recipe, "data") for spec in recipe.member_specs()}
    return keys | {"stack": stack_key(recipe, ["a", "b"])}


OFF = {"focal_gamma": 0.0, "label_smoothing": 0.0}
OTHER = {
    "targets": "one-hot",
    "cross_entropy_weight": 1.0,
    "attribute_weight": 0.2,
    "vga": {"cross_entropy_weight": 1.2, "attribute_weight": 0.1},
}


@pytest.mark.parametrize(
    ("objective", "pinned"),
    [
        (
            {},
            {
                "deep": "811442aa47e265adf208578427cc9176de843a74d4088d73afd2d40979f5ea8d",
                "full": "acba3e4971558a19139b277879dea005664bc1e6b63ec92213993ea96fa69479",
                "flat": "98b98f6eb9aa74092e3e7d6a5186b37084198d665b668efb7376f1a24c942a0d",
                "stack": "984097ce71a1b355f4a24942a468cf2110651ea1009e79f7bc159f937100a28a",
            },
        ),
        (
            OTHER,
            {
                "deep": "def4f9be081f22f3fe10111cf926e2ad92eff38f7fde68c0f5b899984ac65375",
                "full": "53e0f0abee6c138d8dfaacb4cd9707637f58532e20236e67c45af505f32ccd45",
                "flat": "bed30d3973e82dfac44f748eb40675c6ddfb3b114b59b963e2cfaaca7a30933e",
                "stack": "eb11d2228d2334c168b61710cf275af4c0318b3faa3ce1e59efd7be7deaf3700",
            },
        ),
    ],
)
def test_results_from_before_these_options_keep_their_keys(objective: dict[str, Any], pinned: dict[str, str]) -> None:
    """The keys that the program without these options gave, whether a recipe leaves them out or says that they are off."""
    assert keys_of(objective) == pinned
    assert keys_of({**objective, **OFF, "vga": {**objective.get("vga", {}), **OFF}}) == pinned


@pytest.mark.parametrize("option", [{"focal_gamma": 2.0}, {"label_smoothing": 0.1}])
def test_they_name_anew_what_reads_them(option: dict[str, float]) -> None:
    plain, first, second = keys_of({}), keys_of(option), keys_of({"vga": option})
    assert {name for name in plain if plain[name] != first[name]} == {"deep", "flat", "stack"}
    assert {name for name in plain if plain[name] != second[name]} == {"full"}
