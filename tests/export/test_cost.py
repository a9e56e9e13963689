from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from export.cost import component_costs, flops_of, frame_sizes, graph_flops, run_flops
from export.encoders import export_speech_encoder, write_graph
from export.precision import converted
from export.to_onnx import export_member
from model.audio import SAMPLE_RATE_HZ
from model.bundle import SPEECH_AUDIO, SPEECH_AUDIO_MASK
from model.network.checkpoint import load_checkpoint
from model.network.deepser import DeepSER
from model.network.speech_encoder import SpeechEncoder
from model.spec import EncoderSpec, MemberSpec
from tests.model.tiny import tiny_bundle
from tests.model.tiny_speech import tiny_speech

STEPS, WIDTH, D, HEADS, LAYERS, FF, CLASSES, ATTRIBUTES = 14, 12, 16, 2, 1, 24, 8, 3


def graph_of(
    node: onnx.NodeProto, inputs: dict[str, list[int | str]], weights: dict[str, list[int]]
) -> onnx.ModelProto:
    """A graph of one node, whose output has as many dimensions as its first input."""
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    rank = len(next(iter(inputs.values())))
    out = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, [None] * rank)
    constants = [onnx.numpy_helper.from_array(torch.zeros(shape).numpy(), name) for name, shape in weights.items()]
    graph = helper.make_graph([node], "g", given, [out], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_linear_layer_by_hand() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = graph_of(node, {"x": ["batch", "steps", 5]}, {"w": [5, 7]})
    assert graph_flops(model, {"x": [2, 11, 5]}) == 2 * (2 * 11) * 5 * 7
    assert graph_flops(model, {}) == 2 * 5 * 7  # one step of one utterance


def test_a_convolution_by_hand() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2], group=2)
    model = graph_of(node, {"x": ["batch", 4, "samples"]}, {"w": [6, 2, 3]})
    assert graph_flops(model, {"x": [1, 4, 21]}) == 2 * (6 * 10) * (2 * 3)  # ten places, six channels


def test_attention_and_all_else_of_a_member_by_hand() -> None:
    encoder = EncoderSpec("text", "text-transformer", WIDTH, 1)
    member = DeepSER(MemberSpec("m", ("text",), D, HEADS, LAYERS, FF, 0.0, 1), {"text": encoder}).eval()
    # Scores, with the mask's bias of each head, and the values that they weigh.
    attention = STEPS * STEPS * (2 * D + HEADS)
    layer = STEPS * (3 * D * D + D * D + 2 * D * FF) + attention
    pooling = STEPS * D
    leg = STEPS * (WIDTH * D + D * D) + layer + pooling
    fusion = STEPS * (D * D + D * D) + layer + pooling
    heads = 2 * D * D + D * (CLASSES + ATTRIBUTES)
    found = graph_flops(export_member(member, "fused"), frame_sizes([encoder], 4.0))
    assert found == 2 * (leg + fusion + heads)


def test_every_component_of_a_bundle_has_its_costs() -> None:
    exported = tiny_bundle()
    checkpoint = load_checkpoint(exported.checkpoint)
    costs = component_costs(checkpoint, exported.bundle)
    names = {"encoder whisper", "encoder text", "member voice", "member words", "meta-classifier", "ensemble"}
    assert set(costs) == names
    assert min(value for cost in costs.values() for value in cost.values()) > 0
    without = {name for name, cost in costs.items() if set(cost) != {"flops", "cpu_ms", "parameters", "bytes"}}
    assert without == {"encoder whisper"}  # this one takes a second of speech at most
    assert set(costs["encoder whisper"]) == {"parameters", "bytes"}
    counted = sum(parameter.numel() for parameter in checkpoint.members[0].parameters())
    assert costs["member voice"]["parameters"] == counted
    parts = ("member voice", "member words", "meta-classifier")
    assert costs["ensemble"]["parameters"] == sum(costs[part]["parameters"] for part in parts)
    assert costs["ensemble"]["flops"] == pytest.approx(sum(costs[part]["flops"] for part in parts), rel=1e-3)
    weights = [exported.bundle / "members" / f"voice.{kind}" for kind in ("onnx", "weights")]
    assert costs["member voice"]["bytes"] == sum(path.stat().st_size for path in weights)


def test_a_longer_utterance_costs_more() -> None:
    exported = tiny_bundle()
    checkpoint = load_checkpoint(exported.checkpoint)
    short, long = (component_costs(checkpoint, Path(exported.bundle), seconds) for seconds in (2.0, 8.0))
    for name in ("encoder text", "member voice", "ensemble"):
        assert long[name]["flops"] > 2 * short[name]["flops"]


def test_a_run_counts_as_the_shapes_say(tmp_path: Path) -> None:
    path = tiny_bundle().bundle / "encoders" / "text.onnx"
    sizes = dict.fromkeys(("ids", "mask"), [1, STEPS])
    assert run_flops(path, sizes) == graph_flops(onnx.load(path), sizes) > 0
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2], group=2)
    onnx.save(graph_of(node, {"x": ["batch", 4, "samples"]}, {"w": [6, 2, 3]}), tmp_path / "conv.onnx")
    assert run_flops(tmp_path / "conv.onnx", {"x": [1, 4, 21]}) == 2 * (6 * 10) * (2 * 3)
    with pytest.raises(ValueError, match="no run on inputs of"):
        run_flops(tmp_path / "conv.onnx", {"x": [1, 5, 21]})


def test_a_graph_whose_shapes_cannot_be_followed_is_counted_on_a_run(tmp_path: Path) -> None:
    encoder = EncoderSpec("text", "text-transformer", WIDTH, 1)
    member = DeepSER(MemberSpec("m", ("text",), D, HEADS, LAYERS, FF, 0.0, 1), {"text": encoder}).eval()
    graph, sizes = export_member(member, "fused"), frame_sizes([encoder], 4.0)
    exact = graph_flops(graph, sizes)
    coarse = converted(graph, "int8")
    with pytest.raises(ValueError, match="no shapes follow"):
        graph_flops(coarse, sizes)
    write_graph(coarse, tmp_path / "int8.onnx")
    assert flops_of(tmp_path / "int8.onnx", sizes) == pytest.approx(exact, rel=1e-2)


def test_a_speech_encoder_whose_shapes_follow_from_its_mask_is_counted(tmp_path: Path) -> None:
    write_graph(export_speech_encoder(SpeechEncoder(tiny_speech()).eval()), tmp_path / "speech.onnx")
    sizes = dict.fromkeys((SPEECH_AUDIO, SPEECH_AUDIO_MASK), [1, SAMPLE_RATE_HZ])
    flops, longer = (
        run_flops(tmp_path / "speech.onnx", {name: [1, factor * SAMPLE_RATE_HZ] for name in sizes}) for factor in (1, 2)
    )
    assert 0 < flops < longer
