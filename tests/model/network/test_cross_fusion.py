"""Members of the family "vga", and DeepSERs with guided attention: what holds for any member."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.features import Frames, collate
from model.network.cross_fusion import CrossFusion
from model.network.deepser import DeepSER, FrameStack
from model.network.member import Member, build_member
from model.network.metaclassifier import Ensemble, MetaClassifier
from model.spec import Attention, EncoderSpec, EnsembleSpec, Gates, MemberSpec, SpecError
from tests.model.tiny import tiny_member

TOLERANCE = 1e-5
ENCODERS = {
    "whisper": EncoderSpec("whisper", "whisper-ctranslate2", 6, 4),
    "prosody": EncoderSpec("prosody", "prosody", 5, 8),
    "text": EncoderSpec("text", "text-transformer", 7, 1),
}
TWO, THREE = ("whisper", "text"), ("whisper", "prosody", "text")
Item = dict[str, Frames]
lengths = st.fixed_dictionaries(
    {"whisper": st.integers(1, 20), "prosody": st.integers(1, 40), "text": st.integers(0, 9)}
)


def vga(
    modalities: tuple[str, ...] = TWO, attention: Attention = "vad-guided", gates: Gates = "shares", contrast: int = 4
) -> MemberSpec:
    spec = tiny_member("member", modalities)
    return replace(spec, family="vga", attention=attention, gates=gates, contrast=contrast)


MEMBERS = {
    "baseline": vga(attention="plain", gates="none", contrast=0),
    "guided": vga(gates="none", contrast=0),
    "free": vga(THREE, gates="free"),
    "full": vga(THREE),
    "full of two": vga(),
    "guided DeepSER": replace(tiny_member("member", TWO), attention="vad-guided"),
    "guided DeepSER of one": replace(tiny_member("member", ("whisper",)), attention="vad-guided"),
}


def network(spec: MemberSpec) -> Member:
    torch.manual_seed(spec.layers)
    member = build_member(spec, ENCODERS).eval()
    for stack in member.stacks.values():
        assert isinstance(stack, FrameStack)
        stack.set_statistics(torch.randn_like(stack.mean), 0.5 + torch.rand_like(stack.mean))
    return member


def random_item(seed: int, counts: dict[str, int]) -> Item:
    generator = np.random.default_rng(seed)
    return {
        name: generator.standard_normal((counts[name], encoder.dim)).astype(np.float32)
        for name, encoder in ENCODERS.items()
    }


def several(count: int = 8) -> list[Item]:
    return [random_item(seed, {"whisper": 9, "prosody": 17, "text": 4}) for seed in range(count)]


def batch(
    member: Member, items: list[Item], extra_steps: int = 0, filling: float = 0.0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    frames, masks = {}, {}
    for name in member.spec.modalities:
        values, mask = collate([item[name] for item in items], ENCODERS[name].stack)
        extra = (0, extra_steps * ENCODERS[name].stack)
        frames[name] = torch.from_numpy(np.pad(values, ((0, 0), extra, (0, 0)), constant_values=filling))
        masks[name] = torch.from_numpy(np.pad(mask, ((0, 0), extra)))
    return frames, masks


def run(member: Member, items: list[Item], extra_steps: int = 0, filling: float = 0.0) -> list[Tensor]:
    with torch.no_grad():
        inputs = batch(member, items, extra_steps, filling)
        fused = member.fuse(*inputs)
        return [*member(*inputs), *(part for part in fused if part is not None)]


@pytest.mark.parametrize("name", MEMBERS)
@settings(deadline=None, max_examples=12)
@given(own=lengths, others=st.lists(lengths, max_size=3), place=st.integers(0, 3), extra=st.integers(0, 4))
def test_outputs_depend_on_neither_padding_nor_neighbours(
    name: str, own: dict[str, int], others: list[dict[str, int]], place: int, extra: int
) -> None:
    member, item = network(MEMBERS[name]), random_item(0, own)
    items = [random_item(1 + index, other) for index, other in enumerate(others)]
    place = min(place, len(items))
    items.insert(place, item)
    for alone, together in zip(run(member, [item]), run(member, items, extra, filling=50.0), strict=True):
        torch.testing.assert_close(together[place : place + 1], alone, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", MEMBERS)
def test_every_parameter_receives_gradient(name: str) -> None:
    """Lambda and the projections of VGA, the gates of EAAF and the views of MICL among them; no part of any is dead."""
    member = network(MEMBERS[name])
    fused = member.fuse(*batch(member, several()))
    logits, attributes = member.classify(fused.x)
    loss = logits.square().sum() + attributes.square().sum()
    if fused.views is not None:
        loss = loss + fused.views.sum(dim=1).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for parameter_name, parameter in member.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 1e-7, parameter_name
    guided = [n for n, _ in member.named_parameters() if ".guide." in n]
    assert bool(guided) == (member.spec.attention == "vad-guided")


@pytest.mark.parametrize("name", [n for n, spec in MEMBERS.items() if spec.attention == "vad-guided"])
def test_lambda_changes_what_the_member_says(name: str) -> None:
    member, items = network(MEMBERS[name]), several()
    before = run(member, items)
    with torch.no_grad():
        for parameter_name, parameter in member.named_parameters():
            if parameter_name.endswith("guide.weight"):
                parameter.fill_(4.0)
    for was, now in zip(before[:3], run(member, items)[:3], strict=True):
        assert (was - now).abs().max() > 1e-4


@pytest.mark.parametrize("name", MEMBERS)
def test_evaluation_holds_no_randomness(name: str) -> None:
    member, items = network(MEMBERS[name]), several(3)
    first = run(member, items)
    assert all(torch.equal(a, b) for a, b in zip(first, run(member, items), strict=True))
    member.train()
    assert not torch.equal(first[0], run(member, items)[0])


@pytest.mark.parametrize("modalities", [TWO, THREE])
def test_every_modality_matters(modalities: tuple[str, ...]) -> None:
    member, item = network(vga(modalities)), random_item(0, {"whisper": 12, "prosody": 24, "text": 5})
    before = run(member, [item])[0]
    for name in modalities:
        moved = run(member, [{**item, name: item[name] * 2.0}])[0]
        assert not torch.allclose(before, moved, atol=10 * TOLERANCE), name


def test_one_modality_moves_what_another_hears() -> None:
    """Bidirectional: the text's steps depend on the voice, and the voice's on the text."""
    member = network(vga(gates="none", contrast=0))
    assert isinstance(member, CrossFusion)
    x = {name: torch.randn(1, 5, member.spec.dim) for name in TWO}
    masks = {name: torch.ones(1, 5, dtype=torch.bool) for name in TWO}
    with torch.no_grad():
        before = member._cross(x, masks)
        for changed, heard in (TWO, TWO[::-1]):
            after = member._cross({**x, changed: x[changed].flip(2)}, masks)
            assert not torch.allclose(before[heard], after[heard], atol=1e-3)


def test_views_are_of_single_modalities_and_of_length_one() -> None:
    """Made before cross-attention: another text leaves the view of the voice alone."""
    member, item = network(vga()), random_item(0, {"whisper": 12, "prosody": 24, "text": 5})
    other = {**item, "text": item["text"] * 3.0}
    with torch.no_grad():
        before, after = (member.fuse(*batch(member, [one])).views for one in (item, other))
    assert before is not None
    assert after is not None
    torch.testing.assert_close(before.norm(dim=2), torch.ones(1, 2))
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1], atol=1e-3)


def test_a_transcript_without_words_has_no_share() -> None:
    member = network(vga(THREE))
    silent = random_item(0, {"whisper": 9, "prosody": 9, "text": 0})
    with torch.no_grad():
        shares = member.fuse(*batch(member, [silent, several(1)[0]])).shares
    assert shares is not None
    assert (shares[0, [2, 4, 5]] == 0).all()
    assert (shares[1] > 0).all()
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2))


def test_an_ensemble_tells_the_mean_share_of_every_modality() -> None:
    specs = (
        replace(vga(THREE), name="three"),
        tiny_member("deep", ("text",)),
        replace(vga(("text", "whisper")), name="two"),
    )
    members = [network(spec) for spec in specs]
    spec = EnsembleSpec(tuple(ENCODERS.values()), specs, ("sad", "happy"), ())
    assert spec.shared_by == ("whisper", "prosody", "text", "interaction")
    ensemble = Ensemble(spec, members, MetaClassifier(3)).eval()
    frames, masks = batch(members[0], several(3))
    with torch.no_grad():
        found = ensemble.modality_share(frames, masks)
        three, two = (members[index].fuse(frames, masks).shares for index in (0, 2))
    assert three is not None
    assert two is not None
    expected = [
        (three[:, 0] + two[:, 1]) / 2,  # whisper is the second modality of the member of two
        three[:, 1] / 2,
        (three[:, 2] + two[:, 0]) / 2,
        (three[:, 3:].sum(dim=1) + two[:, 2]) / 2,
    ]
    torch.testing.assert_close(found, torch.stack(expected, dim=1))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3))
    plain = replace(spec, members=specs[1:2])
    assert plain.shared_by == ()
    with pytest.raises(ValueError, match="no member has shares"):
        Ensemble(plain, members[1:2], MetaClassifier(1)).modality_share(frames, masks)


def test_a_deepser_without_new_parts_has_the_tensors_it_always_had() -> None:
    member = network(tiny_member("member", TWO))
    assert isinstance(member, DeepSER)
    assert not [name for name in member.state_dict() if "guide" in name or "views" in name]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"family": "bert"}, "family is one of deepser, vga, linear, got 'bert'"),
        ({"attention": "soft"}, "attention is one of plain, vad-guided, got 'soft'"),
        ({"gates": "open"}, "gates is one of none, free, shares, got 'open'"),
        ({"modalities": ("text",), "contrast": 0}, "fuses two or more modalities, and deeply, got \\('text',\\)"),
        ({"fusion": "late"}, "and deeply, got \\('whisper', 'text'\\) and fusion 'late'"),
        ({"family": "deepser"}, "gates belong to family 'vga', got 'shares'"),
        ({"family": "deepser", "gates": "none", "fusion": "late"}, "there is no fusion ENC to guide"),
        ({"contrast": -1}, "contrast is the width of projections of two or more modalities, 0 for none, got -1"),
        ({"family": "deepser", "gates": "none", "modalities": ("text",)}, "contrast is the width of projections"),
    ],
)
def test_a_description_that_cannot_be_built_is_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        replace(vga(), **change)  # type: ignore[arg-type]  # as a file might say it
