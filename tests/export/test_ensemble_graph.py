"""The graphs of members and ensemble, with and without groups, against the networks in torch."""

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor

from export.group_attention import Kernel
from export.shared_weights import WeightStore
from export.to_onnx import export_ensemble, export_member
from model.bundle import ensemble_inputs, ensemble_outputs, inputs_of, mask_of
from model.features import Frames, collate
from model.network.deepser import FrameStack
from model.network.metaclassifier import Ensemble
from model.onnx_session import load_graph, make_session
from model.posteriors import disagreement
from model.spec import Attention, EnsembleSpec, Fusion, Gates, MemberSpec
from tests.model.tiny import tiny_encoders, tiny_frames, tiny_member, tiny_networks, tiny_spec

CLOSE = 1e-6
ALL = ("whisper", "prosody", "text")
Array = npt.NDArray[np.float32]


def member(
    name: str, modalities: tuple[str, ...], layers: int = 2, dim: int = 16, fusion: Fusion = "deep"
) -> MemberSpec:
    return replace(tiny_member(name, modalities, layers), dim=dim, fusion=fusion)


def same(count: int, modalities: tuple[str, ...] = ("whisper", "text"), dim: int = 16) -> tuple[MemberSpec, ...]:
    return tuple(member(f"same-{number}", modalities, dim=dim) for number in range(count))


def crossed(name: str, modalities: tuple[str, ...], attention: Attention, gates: Gates) -> MemberSpec:
    return replace(member(name, modalities), family="vga", attention=attention, gates=gates)


RECIPES: dict[str, tuple[MemberSpec, ...]] = {
    "one": same(1),
    "two": same(2),
    "three": same(3, ALL),
    "four": same(4, ("text",)),
    "every kind": (
        member("a", ("whisper", "text")),
        member("b", ("prosody",), layers=1),
        member("c", ("whisper", "text")),
        member("other order", ("text", "whisper")),
        member("all", ALL),
        member("late", ("whisper", "text"), fusion="late"),
        member("wide", ("whisper", "text"), dim=32),
        member("deeper", ("text",), layers=3),
        member("d", ("whisper", "text")),
        member("late too", ("prosody",), fusion="late"),
        member("wide too", ("whisper", "text"), dim=32),
    ),
    "cross-attention": tuple(crossed(f"same-{n}", ("whisper", "text"), "vad-guided", "shares") for n in range(3)),
    "both families": (
        crossed("full", ALL, "vad-guided", "shares"),
        member("deep", ("whisper", "text")),
        crossed("baseline", ("whisper", "text"), "plain", "none"),
        crossed("other order", ("text", "whisper"), "vad-guided", "shares"),
        replace(member("guided", ("whisper", "text")), attention="vad-guided", contrast=4),
        crossed("free", ALL, "vad-guided", "free"),
        crossed("free too", ALL, "vad-guided", "free"),
        replace(member("guided too", ("whisper", "text")), attention="vad-guided"),
        replace(crossed("one layer", ("prosody", "text"), "plain", "shares"), layers=1, contrast=3),
        member("late", ("whisper", "text"), fusion="late"),
    ),
}


GROUPS = {"one of all": same(1, ALL), "four of all": same(4, ALL), "stored": same(2, dim=64)}


@cache
def trained(name: str, alike: bool) -> Ensemble:
    """Random networks; members that read an encoder standardise its frames alike, or each in its own way."""
    spec = replace(tiny_spec(tiny_encoders()), members=(RECIPES | GROUPS)[name])
    networks, meta = tiny_networks(spec)
    first: dict[str, FrameStack] = {}
    for network in networks:
        for modality, stack in network.stacks.items():
            assert isinstance(stack, FrameStack)
            if alike:
                stack.load_state_dict(first.setdefault(modality, stack).state_dict())
    return Ensemble(spec, networks, meta, temperature=1.7).eval()


@cache
def graph(name: str, alike: bool, kernel: Kernel = "fused") -> onnx.ModelProto:
    model = export_ensemble(trained(name, alike), kernel)
    onnx.checker.check_model(model, full_check=True)
    return model


@cache
def session(name: str, alike: bool = True, kernel: Kernel = "fused") -> InferenceSession:
    return make_session(graph(name, alike, kernel).SerializeToString(), threads=1)


def fused_nodes(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "MultiHeadAttention" for node in model.graph.node)


def items_for(spec: EnsembleSpec) -> list[dict[str, Frames]]:
    return tiny_frames(spec, np.random.default_rng(3), 5)


def batch(
    spec: EnsembleSpec, items: list[dict[str, Frames]], extra_steps: int = 0
) -> dict[str, npt.NDArray[np.generic]]:
    feed: dict[str, npt.NDArray[np.generic]] = {}
    for encoder in inputs_of(spec):
        frames, mask = collate([item[encoder.name] for item in items], encoder.stack)
        extra = (0, extra_steps * encoder.stack)
        feed[encoder.name] = np.pad(frames, ((0, 0), extra, (0, 0)), constant_values=9.0)
        feed[mask_of(encoder.name)] = np.pad(mask, ((0, 0), extra))
    return feed


def in_torch(ensemble: Ensemble, feed: dict[str, npt.NDArray[np.generic]]) -> list[Array]:
    names = [encoder.name for encoder in inputs_of(ensemble.spec)]
    tensors: dict[str, Tensor] = {name: torch.from_numpy(values) for name, values in feed.items()}
    with torch.no_grad():
        found = ensemble({name: tensors[name] for name in names}, {name: tensors[mask_of(name)] for name in names})
    return [values.numpy() for values in found]


def run(model: bytes | Path | InferenceSession, feed: dict[str, npt.NDArray[np.generic]]) -> list[Array]:
    return list((model if isinstance(model, InferenceSession) else make_session(model, threads=1)).run(None, feed))


@pytest.mark.parametrize("kernel", get_args(Kernel))
@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("name", RECIPES)
def test_groups_compute_what_the_loop_of_members_computes(name: str, alike: bool, kernel: Kernel) -> None:
    ensemble = trained(name, alike)
    feed = batch(ensemble.spec, items_for(ensemble.spec), extra_steps=2)
    posterior, attributes, votes = in_torch(ensemble, feed)
    found = run(session(name, alike, kernel), feed)
    np.testing.assert_allclose(found[0], posterior, atol=CLOSE, rtol=0)
    np.testing.assert_allclose(found[1] / 6, attributes / 6, atol=CLOSE, rtol=0)
    np.testing.assert_allclose(found[2], votes, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("kernel", get_args(Kernel))
@pytest.mark.parametrize("name", RECIPES)
def test_an_utterance_depends_on_neither_padding_nor_neighbours(name: str, kernel: Kernel) -> None:
    spec = trained(name, True).spec
    items = items_for(spec)
    graph_session = session(name, kernel=kernel)
    together = run(graph_session, batch(spec, items, extra_steps=3))
    for row, item in enumerate(items):
        for alone, all_rows in zip(run(graph_session, batch(spec, [item])), together, strict=True):
            np.testing.assert_allclose(all_rows[row : row + 1], alone, atol=6 * CLOSE, rtol=0)


@pytest.mark.parametrize("name", RECIPES)
def test_uncertainty_is_the_members_disagreement(name: str) -> None:
    spec = trained(name, True).spec
    _, _, votes, uncertainty, *_ = run(session(name), batch(spec, items_for(spec)))
    np.testing.assert_allclose(uncertainty, [disagreement(rows) for rows in votes], atol=CLOSE, rtol=0)
    assert (uncertainty > 1e-4).all() == (len(spec.members) > 1)


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("name", RECIPES)
def test_shares_of_modalities_are_told_where_members_have_them(name: str, alike: bool) -> None:
    ensemble = trained(name, alike)
    feed = batch(ensemble.spec, items_for(ensemble.spec), extra_steps=2)
    found = run(session(name, alike), feed)[4:]
    assert len(found) == (1 if name in ("cross-attention", "both families") else 0)
    for shares in found:
        names = [encoder.name for encoder in inputs_of(ensemble.spec)]
        tensors = {key: torch.from_numpy(values) for key, values in feed.items()}
        with torch.no_grad():
            expected = ensemble.modality_share(tensors, {key: tensors[mask_of(key)] for key in names}).numpy()
        np.testing.assert_allclose(shares, expected, atol=CLOSE, rtol=0)
        np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=CLOSE)
        assert shares[0, ensemble.spec.shared_by.index("text")] == 0  # the first utterance has no words
        assert np.ptp(shares[1:], axis=0).max() > 0.01


def test_members_of_opposite_opinion_are_as_uncertain_as_can_be() -> None:
    ensemble = Ensemble(trained("two", True).spec, *tiny_networks(trained("two", True).spec))
    with torch.no_grad():
        for place, network in enumerate(ensemble.members):
            network.get_submodule("classifier").bias[place] = 1000.0  # type: ignore[operator]  # torch types it as a module
    (*_, uncertainty) = run(
        export_ensemble(ensemble.eval(), "fused").SerializeToString(), batch(ensemble.spec, items_for(ensemble.spec))
    )
    np.testing.assert_allclose(uncertainty, 1.0, atol=1e-5)


def test_members_of_one_shape_take_the_products_of_one() -> None:
    def products(name: str) -> int:
        return Counter(node.op_type for node in graph(name, True).graph.node)["MatMul"]

    assert products("four of all") == products("one of all")


def test_every_reader_of_an_encoder_shares_its_first_product() -> None:
    """Members of other shapes too: their frames are standardised once, and W1 stands side by side."""
    model = graph("every kind", True)
    assert Counter(node.op_type for node in model.graph.node)["Sub"] == len(ALL)
    apart = graph("every kind", False)
    assert Counter(node.op_type for node in apart.graph.node)["Sub"] == sum(
        len(m.modalities) for m in RECIPES["every kind"]
    )


def test_inputs_and_outputs_are_those_of_the_manifest(tmp_path: Path) -> None:
    spec = trained("every kind", True).spec
    (tmp_path / "ensemble.onnx").write_bytes(graph("every kind", True).SerializeToString())
    load_graph(tmp_path / "ensemble.onnx", 1, ("CPUExecutionProvider",), ensemble_inputs(spec), ensemble_outputs(spec))


def test_weights_of_a_group_are_kept_once(tmp_path: Path) -> None:
    ensemble = trained("stored", True)
    (tmp_path / "members").mkdir()
    store = WeightStore(tmp_path)
    networks, _ = tiny_networks(ensemble.spec)
    for network in networks:
        store.write_with_weights(export_member(network, "fused"), f"members/{network.spec.name}.onnx")
    networks, meta = tiny_networks(ensemble.spec)
    ensemble = Ensemble(ensemble.spec, networks, meta).eval()
    store.write(export_ensemble(ensemble, "fused"), "ensemble.onnx")
    stored = onnx.load(tmp_path / "ensemble.onnx", load_external_data=False)
    weights = sum(path.stat().st_size for path in (tmp_path / "members").glob("*.weights"))
    assert sum(len(tensor.raw_data) for tensor in stored.graph.initializer) < 0.05 * weights
    assert weights > 4 * 0.9 * sum(parameter.numel() for parameter in ensemble.members.parameters())
    feed = batch(ensemble.spec, items_for(ensemble.spec))
    for found, expected in zip(run(tmp_path / "ensemble.onnx", feed), in_torch(ensemble, feed), strict=False):
        np.testing.assert_allclose(found, expected, atol=6 * CLOSE, rtol=0)


@pytest.mark.parametrize("kernel", get_args(Kernel))
@pytest.mark.parametrize(
    ("name", "number"), [(name, n) for name in ("every kind", "both families") for n in range(len(RECIPES[name]))]
)
def test_a_member_alone_computes_its_logits(name: str, number: int, kernel: Kernel) -> None:
    ensemble = trained(name, False)
    networks, _ = tiny_networks(ensemble.spec)
    network = networks[number]
    spec = replace(ensemble.spec, members=(network.spec,))
    model = export_member(network, kernel)
    onnx.checker.check_model(model, full_check=True)
    feed = batch(spec, items_for(spec), extra_steps=1)
    tensors = {name: torch.from_numpy(values) for name, values in feed.items()}
    names = network.spec.modalities
    with torch.no_grad():
        expected = network({n: tensors[n] for n in names}, {n: tensors[mask_of(n)] for n in names})
    for found, right in zip(run(model.SerializeToString(), feed), expected, strict=True):
        np.testing.assert_allclose(found, right.numpy(), atol=6 * CLOSE, rtol=0)


def test_attention_is_fused_but_where_scores_have_a_guide() -> None:
    legs, fusions = len(ALL) * 2, 2 * 2  # of two layers each, once for all four members
    assert fused_nodes(graph("four of all", True)) == legs + fusions
    assert fused_nodes(graph("four of all", True, "composed")) == 0
    guided = export_member(tiny_networks(trained("both families", False).spec)[0][0], "fused")
    assert fused_nodes(guided) == legs
    assert sum(node.op_type == "Softmax" for node in guided.graph.node) > 0
