"""Members of the family "linear": heads on means over time."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.features import FUNCTIONALS_STEPS, Frames, collate
from model.network.deepser import FrameStack
from model.network.linear import Linear
from model.network.member import build_member
from model.spec import EncoderSpec, MemberSpec, SpecError
from tests.model.tiny import tiny_linear, tiny_member

ENCODERS = {
    "prosody": EncoderSpec("prosody", "prosody", 5, 8),
    "text": EncoderSpec("text", "text-transformer", 7, 1),
}
SPEC = tiny_linear("flat", ("prosody", "text"))
LOGIT = 1e-5


def network() -> Linear:
    member = build_member(SPEC, ENCODERS).eval()
    assert isinstance(member, Linear)
    torch.manual_seed(3)
    for parameter in member.parameters():
        torch.nn.init.normal_(parameter)
    for stack in member.stacks.values():
        assert isinstance(stack, FrameStack)
        stack.set_statistics(torch.randn_like(stack.mean), 0.5 + torch.rand_like(stack.mean))
    return member


def item(seed: int, prosody: int, text: int) -> dict[str, Frames]:
    rng = np.random.default_rng(seed)
    counts = {"prosody": prosody, "text": text}
    return {n: rng.standard_normal((counts[n], e.dim)).astype(np.float32) for n, e in ENCODERS.items()}


def said(member: Linear, items: list[dict[str, Frames]]) -> list[torch.Tensor]:
    padded = {name: collate([one[name] for one in items], encoder.stack) for name, encoder in ENCODERS.items()}
    frames = {name: torch.from_numpy(values) for name, (values, _) in padded.items()}
    with torch.no_grad():
        return list(member(frames, {name: torch.from_numpy(mask) for name, (_, mask) in padded.items()}))


def test_it_says_what_two_matrices_say_of_the_means() -> None:
    member, one = network(), item(0, 11, 3)
    means = []
    for name, stack in member.stacks.items():
        mean, scale = (getattr(stack, which).numpy() for which in ("mean", "scale"))
        means.append(((one[name] - mean) * scale).mean(axis=0))
    x = np.concatenate(means)
    logits = member.classifier.weight.detach().numpy() @ x + member.classifier.bias.detach().numpy()
    ratings = member.regressor.weight.detach().numpy() @ x + member.regressor.bias.detach().numpy()
    found = said(member, [one])
    np.testing.assert_allclose(found[0][0], logits, atol=LOGIT)
    np.testing.assert_allclose(found[1][0], 1.0 + 6.0 / (1.0 + np.exp(-ratings)), atol=LOGIT)


def test_without_words_it_goes_by_the_rest() -> None:
    """As if the words were what they are on average."""
    member, one = network(), item(0, 11, 0)
    words = member.stacks["text"]
    assert isinstance(words, FrameStack)
    usual = {**one, "text": words.mean.numpy()[None]}
    torch.testing.assert_close(said(member, [one]), said(member, [usual]), atol=LOGIT, rtol=0)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9)), min_size=1, max_size=4))
def test_it_depends_on_neither_padding_nor_neighbours(lengths: list[tuple[int, int]]) -> None:
    member = network()
    items = [item(seed, *counts) for seed, counts in enumerate(lengths)]
    together = said(member, items)
    for row, one in enumerate(items):
        alone = said(member, [one])
        for which in range(2):
            torch.testing.assert_close(together[which][row], alone[which][0], atol=LOGIT, rtol=0)


def test_functionals_are_read_side_by_side() -> None:
    """The mean over the whole and its halves would lose what tells a beginning from an end."""
    encoders = {"functionals": EncoderSpec("functionals", "functionals", 4, 1)}
    member = build_member(tiny_linear("flat", ("functionals",)), encoders)
    frames = torch.arange(24.0).reshape(2, FUNCTIONALS_STEPS, 4)
    x = member.represent({"functionals": frames}, {"functionals": torch.ones(2, FUNCTIONALS_STEPS, dtype=torch.bool)})
    assert torch.equal(x, frames.reshape(2, 12))


def test_functionals_that_cannot_be_read_side_by_side_are_refused() -> None:
    encoders = {"functionals": EncoderSpec("functionals", "functionals", 4, 2)}
    with pytest.raises(SpecError, match="so their stack is 1 or 3, got 2"):
        build_member(tiny_linear("flat", ("functionals",)), encoders)


def test_it_begins_with_every_class_alike() -> None:
    fresh = build_member(SPEC, ENCODERS)
    assert isinstance(fresh, Linear)
    logits, attributes = said(fresh, [item(0, 9, 2)])
    assert not logits.any()
    assert (attributes == 4.0).all()


@pytest.mark.parametrize(
    "given",
    [
        {"dim": 16},
        {"heads": 2},
        {"layers": 1},
        {"dropout": 0.1},
        {"fusion": "late"},
        {"contrast": 4},
        {"gates": "free"},
    ],
    ids=str,
)
def test_a_size_or_switch_that_it_has_not_is_refused(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(SpecError, match=f"a linear member has heads and nothing that these set: {name} = "):
        replace(SPEC, **given)


def test_other_families_still_need_their_sizes() -> None:
    with pytest.raises(SpecError, match="heads must divide dim, got 0 and 0"):
        MemberSpec(**{**{n: getattr(SPEC, n) for n in MemberSpec.__dataclass_fields__}, "family": "deepser"})
    assert tiny_member("deep", ("text",)).dim > 0
