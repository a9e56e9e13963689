"""What members begin with, what is frozen, and what holds them there."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.labels import CLASSES
from model.network.deepser import FrameStack
from model.network.member import Member
from tests.train.synthetic import ENCODERS, TRAINED, make_examples, make_member, make_recipe, make_training_set
from train.config import STARTED, Recipe
from train.loop import class_bias, predict
from train.stages.members import ALL_SPEAKERS, Job, TrainingSet, train_member
from train.transfer.start import HEADS, Anchor, Start

LABELS: Sequence[str | None] = (*TRAINED, None) * 6


def recipe(**stage: object) -> Recipe:
    plain = make_recipe().model_dump() | {"members": [{"name": "member", "modalities": ["prosody", "text"], "seed": 5}]}
    plain["stage1"] |= {"epochs": 3, "learning_rate": 1e-2, **stage}
    plain["stage2"]["epochs"] = 0
    return Recipe.model_validate(plain, context={STARTED: True})


def begun(source: Member, start: Start) -> TrainingSet:
    data = make_training_set(make_examples(LABELS))
    return replace(data, start=start, content=f"{start.heads_only} {start.auxiliary is None}")


def trained(folder: Path, source: Member, start: Start, **stage: object) -> Member:
    made = recipe(**stage)
    return train_member(Job(made.member_specs()[0], ALL_SPEAKERS), made, begun(source, start), folder)


def source() -> Member:
    member = make_member(seed=9)
    for stack in member.stacks.values():
        assert isinstance(stack, FrameStack)
        stack.set_statistics(torch.full_like(stack.mean, 0.5), torch.full_like(stack.mean, 2.0))
    return member.eval()


def start_of(member: Member, heads_only: bool = False, strength: float = 0.0) -> Start:
    anchor = (lambda found, seed, steps: Anchor(found, member.state_dict(), strength)) if strength else None
    return Start({"member": member.state_dict()}, heads_only, anchor)


def distance(one: Member, other: Member) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return float(sum(float((a - b).detach().square().sum()) for a, b in pairs))


def test_no_step_leaves_the_source_as_it_was(tmp_path: Path) -> None:
    """Statistics of the inputs included, which a fresh member would take from the new corpus."""
    found, own, dev = trained(tmp_path, source(), start_of(source()), epochs=0), source(), make_examples(TRAINED * 9)
    bias = class_bias(TRAINED)
    for ours, theirs in zip(predict(found, ENCODERS, dev, bias), predict(own, ENCODERS, dev, bias), strict=True):
        # The weights of a source are those of a bundle, rounded already; these here are not.
        np.testing.assert_allclose(ours, theirs, atol=2e-3)
    halved = source()
    with torch.no_grad():
        for parameter in halved.parameters():
            parameter.copy_(parameter.half())
    for ours, theirs in zip(predict(found, ENCODERS, dev, bias), predict(halved, ENCODERS, dev, bias), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_recipe_that_does_not_begin_with_weights_must_train() -> None:
    plain = make_recipe().model_dump()
    plain["stage1"]["epochs"] = 0
    with pytest.raises(ValueError, match=r"stage1\.epochs is 0"):
        Recipe.model_validate(plain)


def test_what_it_began_with_stays_where_no_epoch_is_better(tmp_path: Path) -> None:
    """A rate that destroys the weights, on a source that tells the classes."""
    taught = trained(tmp_path / "first", source(), start_of(source()), epochs=40)
    kept = trained(tmp_path / "second", taught, start_of(taught), learning_rate=1e3)
    assert distance(kept, taught) == 0.0


def test_linear_probing_moves_the_heads_alone(tmp_path: Path) -> None:
    """Of a member whose heads have been exchanged: what lies before them is right."""
    taught = trained(tmp_path / "taught", source(), start_of(source()), epochs=40)
    with torch.no_grad():
        for name in ("classifier.weight", "classifier.bias"):
            values = taught.get_parameter(name)
            values.copy_(values.roll(1, dims=0))
    found = trained(tmp_path / "probed", taught, start_of(taught, heads_only=True), epochs=20)
    names = dict(taught.named_parameters())
    moved = {name for name, values in found.named_parameters() if not torch.equal(values, names[name])}
    assert {"classifier.weight", "classifier.bias"} <= moved
    assert {name.split(".")[0] for name in moved} <= set(HEADS)
    everything = trained(tmp_path / "all", taught, start_of(taught), epochs=20)
    assert not torch.equal(everything.get_parameter("join.weight"), taught.get_parameter("join.weight"))


def test_the_anchor_is_half_the_squared_distance_from_the_start() -> None:
    member = source()
    anchor = Anchor(member, member.state_dict(), strength=0.3)
    x = torch.zeros(2, 8)
    assert float(anchor(member, x, lambda rows: x).detach()) == 0.0
    assert list(anchor.parameters()) == []
    before = [values.detach().clone() for values in member.parameters()]
    with torch.no_grad():
        for values in member.parameters():
            values.add_(torch.randn_like(values))
    expected = 0.15 * sum(
        float((a.detach() - b).square().sum()) for a, b in zip(member.parameters(), before, strict=True)
    )
    penalty = anchor(member, x, lambda rows: x)
    assert float(penalty.detach()) == pytest.approx(expected, rel=1e-5)
    penalty.backward()
    for values, held in zip(member.parameters(), before, strict=True):
        torch.testing.assert_close(values.grad, 0.3 * (values.detach() - held))


def test_a_strong_anchor_holds_the_weights(tmp_path: Path) -> None:
    """Over as many steps and with the same draws."""
    own = source()
    free, held = (
        trained(tmp_path / name, own, start_of(own, strength=strength), epochs=6, weight_decay=0.0)
        for name, strength in (("free", 0.0), ("held", 30.0))
    )
    assert distance(held, own) < 0.5 * distance(free, own)


def test_the_second_stage_is_held_to_the_source_too(tmp_path: Path) -> None:
    """Not to where the first one has ended: with a free first stage, a strong anchor brings the weights back."""
    own = source()
    made = recipe(epochs=6, weight_decay=0.0)
    second = made.stage2.model_copy(update={"epochs": 6, "learning_rate": 1e-2, "weight_decay": 0.0})
    both, first = made.model_copy(update={"stage2": second}), trained(tmp_path / "free", own, start_of(own), epochs=6)
    stages: list[float] = []

    def held_in_the_second(member: Member, seed: int, steps: int) -> Anchor:
        stages.append(distance(member, own))
        return Anchor(member, own.state_dict(), 0.0 if len(stages) == 1 else 30.0)

    data = begun(own, Start({"member": own.state_dict()}, auxiliary=held_in_the_second))
    data = replace(data, selects=False)
    found = train_member(Job(both.member_specs()[0], ALL_SPEAKERS), both, data, tmp_path / "held")
    assert stages[0] == 0.0
    assert stages[1] > 0.1 * distance(first, own), "the first stage has moved them"
    assert distance(found, own) < 0.5 * stages[1]


def test_a_class_that_does_not_occur_is_not_unlearned(tmp_path: Path) -> None:
    """Its logit has no gradient at all, and inputs that had the class keep it; a loss that compares it would push it down."""
    own = trained(tmp_path / "taught", source(), start_of(source()), epochs=40)
    rare = TRAINED[-1]
    without = make_examples([None if label == rare else label for label in LABELS])
    without = without.subset(np.flatnonzero(without.targets[:, CLASSES.index(rare)] == 0))
    data = replace(make_training_set(without), start=start_of(own), content="without", trained_classes=TRAINED)
    data = replace(data, selects=False)
    made = recipe(epochs=6, weight_decay=0.0, mixup=0.0)
    found = train_member(Job(made.member_specs()[0], ALL_SPEAKERS), made, data, tmp_path / "tuned")
    row = CLASSES.index(rare)
    for name in ("classifier.weight", "classifier.bias"):
        torch.testing.assert_close(found.get_parameter(name)[row], own.get_parameter(name)[row], atol=0, rtol=0)
    assert not torch.equal(found.get_parameter("classifier.weight"), own.get_parameter("classifier.weight"))
    had = make_examples([rare] * 12)
    before, after = (predict(member, ENCODERS, had, class_bias(TRAINED))[0][:, row].mean() for member in (own, found))
    assert before > 0.5
    assert after > 0.8 * before
