from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.features import Frames, collate
from model.network.deepser import DeepSER, FrameStack
from model.network.enc import Enc, masked_mean
from model.spec import EncoderSpec, SpecError
from tests.model.tiny import DIM, tiny_member

TOLERANCE = 1e-5
ENCODERS = {
    "whisper": EncoderSpec("whisper", "whisper-ctranslate2", 6, 4),
    "prosody": EncoderSpec("prosody", "prosody", 5, 8),
    "text": EncoderSpec("text", "text-transformer", 7, 1),
}
MODALITIES = [("whisper",), ("whisper", "text"), ("whisper", "prosody", "text")]
LAYERS = [1, 2, 3]
Item = dict[str, Frames]


def network(modalities: tuple[str, ...], layers: int) -> DeepSER:
    torch.manual_seed(layers)
    member = DeepSER(tiny_member("member", modalities, layers), ENCODERS).eval()
    for stack in member.stacks.values():
        assert isinstance(stack, FrameStack)
        stack.set_statistics(torch.randn_like(stack.mean), 0.5 + torch.rand_like(stack.mean))
    return member


def random_item(seed: int, lengths: dict[str, int]) -> Item:
    generator = np.random.default_rng(seed)
    return {
        name: generator.standard_normal((lengths[name], encoder.dim)).astype(np.float32)
        for name, encoder in ENCODERS.items()
    }


def run(member: DeepSER, items: list[Item], extra_steps: int = 0, filling: float = 0.0) -> list[Tensor]:
    frames, masks = {}, {}
    for name in member.spec.modalities:
        values, mask = collate([item[name] for item in items], ENCODERS[name].stack)
        extra = (0, extra_steps * ENCODERS[name].stack)
        frames[name] = torch.from_numpy(np.pad(values, ((0, 0), extra, (0, 0)), constant_values=filling))
        masks[name] = torch.from_numpy(np.pad(mask, ((0, 0), extra)))
    with torch.no_grad():
        return list(member(frames, masks))


lengths = st.fixed_dictionaries(
    {"whisper": st.integers(1, 20), "prosody": st.integers(1, 40), "text": st.integers(0, 9)}
)


@pytest.mark.parametrize("modalities", MODALITIES)
@pytest.mark.parametrize("layers", LAYERS)
@settings(deadline=None, max_examples=15)
@given(own=lengths, others=st.lists(lengths, max_size=3), place=st.integers(0, 3), extra=st.integers(0, 4))
def test_outputs_depend_on_neither_padding_nor_neighbours(
    modalities: tuple[str, ...],
    layers: int,
    own: dict[str, int],
    others: list[dict[str, int]],
    place: int,
    extra: int,
) -> None:
    member, item = network(modalities, layers), random_item(0, own)
    batch = [random_item(1 + index, other) for index, other in enumerate(others)]
    place = min(place, len(batch))
    batch.insert(place, item)
    for alone, together in zip(run(member, [item]), run(member, batch, extra, filling=50.0), strict=True):
        torch.testing.assert_close(together[place : place + 1], alone, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("modalities", MODALITIES)
def test_every_modality_and_its_order_in_time_matter(modalities: tuple[str, ...]) -> None:
    member, item = network(modalities, 2), random_item(0, {"whisper": 12, "prosody": 24, "text": 5})
    before = run(member, [item])[0]
    for name in modalities:
        changed = run(member, [{**item, name: item[name] * 2.0}])[0]
        assert not torch.allclose(before, changed, atol=10 * TOLERANCE)


@pytest.mark.parametrize("modalities", MODALITIES)
@pytest.mark.parametrize("layers", LAYERS)
def test_every_parameter_receives_gradient(modalities: tuple[str, ...], layers: int) -> None:
    member = network(modalities, layers)
    batch = [random_item(seed, {"whisper": 9, "prosody": 17, "text": 4}) for seed in range(8)]
    inputs = {n: collate([item[n] for item in batch], ENCODERS[n].stack) for n in modalities}
    logits, attributes = member(
        {name: torch.from_numpy(frames) for name, (frames, _) in inputs.items()},
        {name: torch.from_numpy(mask) for name, (_, mask) in inputs.items()},
    )
    (logits.square().sum() + attributes.square().sum()).backward()
    for name, parameter in member.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_evaluation_holds_no_randomness() -> None:
    member, item = network(("whisper", "text"), 2), random_item(0, {"whisper": 9, "prosody": 1, "text": 4})
    first, second = run(member, [item]), run(member, [item])
    assert torch.equal(first[0], second[0])
    member.train()
    assert not torch.equal(first[0], run(member, [item])[0])


def test_attributes_lie_in_their_range() -> None:
    member = network(("text",), 1)
    with torch.no_grad():
        member.regressor.bias.copy_(torch.tensor([100.0, -100.0, 0.0]))
    attributes = run(member, [random_item(0, {"whisper": 1, "prosody": 1, "text": 3})])[1]
    assert attributes[0, 0] == pytest.approx(7.0)
    assert attributes[0, 1] == pytest.approx(1.0)


def test_frame_stack_standardises_and_joins() -> None:
    stack = FrameStack(dim=2, stack=2)
    stack.set_statistics(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]))
    frames = torch.tensor([[[3.0, 6.0], [1.0, 2.0], [5.0, 9.0], [9.0, 9.0]]])
    steps, mask = stack(frames, torch.tensor([[True, True, True, False]]))
    assert steps.tolist() == [[[1.0, 1.0, 0.0, 0.0], [2.0, 1.75, 0.0, 0.0]]]
    assert mask.tolist() == [[True, True]]


def test_input_dropout_takes_whole_features_in_training_alone() -> None:
    torch.manual_seed(0)
    stack = FrameStack(dim=200, stack=1, dropout=0.5)
    frames, mask = torch.ones(2, 7, 200), torch.ones(2, 7, dtype=torch.bool)
    kept = stack.train()(frames, mask)[0]
    assert set(kept.unique().tolist()) == {0.0, 2.0}  # what is left is scaled up, so that the mean stays
    assert torch.equal(kept, kept[:, :1].expand(-1, 7, -1))
    assert not torch.equal(kept[0], kept[1])
    assert 0.35 < float((kept == 0).float().mean()) < 0.65
    torch.testing.assert_close(stack.eval()(frames, mask)[0], frames)


def test_masked_mean_of_nothing_is_zero() -> None:
    x = torch.tensor([[[2.0], [4.0], [9.0]], [[1.0], [1.0], [1.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(x, mask).tolist() == [[3.0], [0.0]]


def test_enc_returns_every_layer() -> None:
    enc = Enc(in_dim=5, dim=DIM, heads=2, layers=3, feed_forward=8, dropout=0.0)
    layers, pooled = enc(torch.randn(2, 4, 5), torch.ones(2, 4, dtype=torch.bool))
    assert [tuple(layer.shape) for layer in layers] == [(2, 4, DIM)] * 3
    torch.testing.assert_close(pooled, layers[-1].mean(dim=1))


def late_network(modalities: tuple[str, ...] = ("whisper", "prosody", "text")) -> DeepSER:
    torch.manual_seed(3)
    return DeepSER(replace(tiny_member("member", modalities), fusion="late"), ENCODERS).eval()


def test_late_fusion_has_a_network_per_modality_and_no_fusion_enc() -> None:
    deep, late = network(("whisper", "prosody", "text"), 2), late_network()
    assert any(name.startswith("fusions.") for name, _ in deep.named_parameters())
    parts = {name.split(".")[0] for name, _ in late.named_parameters()}
    assert parts == {"encs", "joins", "classifiers", "regressors"}


def test_late_fusion_is_the_mean_of_logits_that_read_one_modality_each() -> None:
    """A change of one modality moves the mean by its own share alone, whatever the others say."""
    member, item = late_network(), random_item(0, {"whisper": 12, "prosody": 24, "text": 5})
    other = random_item(1, {"whisper": 9, "prosody": 11, "text": 3})
    before = run(member, [item])[0]
    moved = [run(member, [{**item, name: other[name]}])[0] - before for name in member.spec.modalities]
    assert all(float(change.abs().max()) > 10 * TOLERANCE for change in moved)
    torch.testing.assert_close(run(member, [other])[0] - before, sum(moved), atol=TOLERANCE, rtol=0)
    alone = DeepSER(replace(member.spec, modalities=("text",)), ENCODERS).eval()
    alone.load_state_dict({name: values for name, values in member.state_dict().items() if ".text." in name})
    with torch.no_grad():
        for name in ("whisper", "prosody"):
            for parameter in (*member.classifiers[name].parameters(), *member.regressors[name].parameters()):
                parameter.zero_()
    torch.testing.assert_close(3 * run(member, [item])[0], run(alone, [item])[0], atol=TOLERANCE, rtol=0)


def test_late_fusion_depends_on_neither_padding_nor_neighbours() -> None:
    member, item = late_network(), random_item(0, {"whisper": 7, "prosody": 3, "text": 0})
    neighbour = random_item(1, {"whisper": 12, "prosody": 24, "text": 5})
    for alone, together in zip(run(member, [item]), run(member, [neighbour, item], 2, filling=50.0), strict=True):
        torch.testing.assert_close(together[1:], alone, atol=TOLERANCE, rtol=0)


def test_every_parameter_of_late_fusion_receives_gradient() -> None:
    member = late_network()
    batch = [random_item(seed, {"whisper": 9, "prosody": 17, "text": 4}) for seed in range(8)]
    inputs = {n: collate([item[n] for item in batch], ENCODERS[n].stack) for n in member.spec.modalities}
    logits, attributes = member(
        {name: torch.from_numpy(frames) for name, (frames, _) in inputs.items()},
        {name: torch.from_numpy(mask) for name, (_, mask) in inputs.items()},
    )
    (logits.square().sum() + attributes.square().sum()).backward()
    for name, parameter in member.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_an_unknown_fusion_is_refused() -> None:
    with pytest.raises(SpecError, match="fusion is one of deep, late, got 'early'"):
        replace(tiny_member("member", ("text",)), fusion="early")  # type: ignore[arg-type]  # as a file might say it
