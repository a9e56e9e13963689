"""Graphs in other precisions: what is computed how, how far results move, and that no row depends on its neighbours."""

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.errors import ExportError
from export.graph_parts import GraphParts
from export.half import emulated
from export.precision import PRECISIONS, Precision, PrecisionError, Precisions, converted
from export.to_onnx import OPSET
from model.onnx_session import make_session
from tests.model.tiny import tiny_spec

Array = npt.NDArray[Any]

WIDTH, HIDDEN, CLASSES = 16, 112, 3
RESIDUAL = {"fp16": 2e-3, "bf16": 2e-2, "int8": 3e-2, "fp16-weights": 1e-3, "fp32": 1e-6}


def constant(name: str, *shape: int, seed: int = 0, scale: float = 0.3) -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return numpy_helper.from_array(values.astype(np.float32), name)


def graph_of(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], outputs: list[str]) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "frames", WIDTH])
    ranks = {"posterior": 2}
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * ranks.get(name, 3)) for name in outputs]
    graph = helper.make_graph(nodes, "network", [x], shapes, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def network() -> onnx.ModelProto:
    """A block of a transformer: norm, attention of one head, feed-forward, residual sums, a head of three classes."""
    node = helper.make_node
    nodes = [
        node("LayerNormalization", ["x", "gain", "shift"], ["normed"], axis=-1, name="norm"),
        node("MatMul", ["normed", "w_key"], ["key"], name="key"),
        node("Transpose", ["key"], ["key_t"], perm=[0, 2, 1], name="transpose"),
        node("MatMul", ["normed", "key_t"], ["scores"], name="scores"),
        node("Softmax", ["scores"], ["attention"], axis=-1, name="softmax"),
        node("MatMul", ["attention", "normed"], ["attended"], name="attend"),
        node("Add", ["x", "attended"], ["residual"], name="residual"),
        node("MatMul", ["residual", "w_expand"], ["expanded"], name="expand"),
        node("Add", ["expanded", "b_expand"], ["biased"], name="bias"),
        node("Gelu", ["biased"], ["active"], name="gelu"),
        node("MatMul", ["active", "w_contract"], ["contracted"], name="contract"),
        node("Add", ["residual", "contracted"], ["hidden"], name="sum"),
        node("ReduceMean", ["hidden", "axis"], ["pooled"], keepdims=0, name="pool"),
        node("MatMul", ["pooled", "w_head"], ["logits"], name="head"),
        node("Softmax", ["logits"], ["posterior"], axis=-1, name="posterior"),
    ]
    constants = [
        numpy_helper.from_array(np.ones(WIDTH, np.float32), "gain"),
        constant("shift", WIDTH),
        constant("w_key", WIDTH, WIDTH, seed=1),
        constant("w_expand", WIDTH, HIDDEN, seed=2),
        constant("b_expand", HIDDEN, seed=3),
        constant("w_contract", HIDDEN, WIDTH, seed=4),
        constant("w_head", WIDTH, CLASSES, seed=5),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
    ]
    return graph_of(nodes, constants, ["hidden", "posterior"])


def linear(weight: Array) -> onnx.ModelProto:
    """One product that is no output layer."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["y", "y"], ["double"])]
    return graph_of(nodes, [numpy_helper.from_array(weight.astype(np.float32), "w")], ["double"])


def run(model: onnx.ModelProto, x: Array) -> list[Array]:
    runnable = emulated(copy.deepcopy(model))  # only what is in bfloat16 changes
    found: list[Array] = make_session(runnable.SerializeToString(), threads=1).run(None, {"x": x.astype(np.float32)})
    return found


def frames(*shape: int, seed: int = 9) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def operators(model: onnx.ModelProto) -> dict[str, str]:
    return {node.name: node.op_type for node in model.graph.node if node.name}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_results_stay_near_and_the_graph_is_sound(precision: Precision) -> None:
    x = frames(2, 5, WIDTH)
    exact, found = network(), converted(network(), precision)
    onnx.checker.check_model(found, full_check=True)
    assert found.graph.input == exact.graph.input
    assert found.graph.output == exact.graph.output
    for right, near in zip(run(exact, x), run(found, x), strict=True):
        assert near.dtype == np.float32
        assert np.linalg.norm(near - right) <= RESIDUAL[precision] * np.linalg.norm(right)


@pytest.mark.parametrize(("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_products_are_in_16_bits_and_sums_norms_and_softmax_are_not(precision: Precision, kind: int) -> None:
    found = converted(network(), precision)
    known = onnx.shape_inference.infer_shapes(found, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*known.value_info, *known.input, *known.output)}
    types |= {tensor.name: tensor.data_type for tensor in known.initializer}
    read = {node.name: {types[name] for name in node.input} - {TensorProto.INT64} for node in found.graph.node}
    in_half = {"key", "scores", "attend", "expand", "contract", "head", "transpose", "bias", "gelu"}
    assert {name for name, kinds in read.items() if name and kinds == {kind}} == in_half
    exact = {"norm", "softmax", "residual", "sum", "pool", "posterior"}
    assert {name for name, kinds in read.items() if name and kinds == {TensorProto.FLOAT}} == exact
    assert {tensor.name for tensor in known.initializer if tensor.data_type == kind} == {
        f"{name}_{precision}" for name in ("w_key", "w_expand", "b_expand", "w_contract", "w_head")
    }


def test_a_weight_that_16_bits_cannot_hold_is_refused() -> None:
    weight = np.eye(WIDTH) * 1e5
    with pytest.raises(ExportError, match="w holds 100000, which fp16 cannot: choose fp32"):
        converted(linear(weight), "fp16")
    assert run(converted(linear(weight), "bf16"), np.ones((1, 1, WIDTH)))[0] == pytest.approx(2e5, rel=1e-2)


def test_a_stored_weight_that_float16_cannot_hold_is_refused() -> None:
    with pytest.raises(ExportError, match="w holds 100000, float16 at most 65504: choose fp32"):
        converted(linear(np.full((WIDTH, 1000), 1e5)), "fp16-weights")


def test_a_constant_behind_a_product_that_float16_cannot_hold_keeps_its_step_in_float32() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Mul", ["y", "large"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["out"]),
    ]
    large = numpy_helper.from_array(np.array([1e6], np.float32), "large")
    model = graph_of(nodes, [numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32), "w"), large], ["out", "scaled"])
    x = np.zeros((1, 1, WIDTH))
    x[..., 3] = 2.0
    _, scaled = run(converted(model, "fp16"), x)
    assert scaled[0, 0, 3] == 2e6


def test_int8_takes_layers_and_leaves_attention_and_the_head() -> None:
    found = converted(network(), "int8")
    assert {"scores", "attend", "head"} <= operators(found).keys()
    assert {"key", "expand", "contract"}.isdisjoint(operators(found))
    stored = {tensor.name: tensor.data_type for tensor in found.graph.initializer}
    assert {name for name, kind in stored.items() if kind == TensorProto.INT8} == {
        "w_key_int8",
        "w_expand_int8",
        "w_contract_int8",
    }


def test_int8_leaves_output_layers_that_stand_side_by_side() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["y1"], name="first"),
        helper.make_node("MatMul", ["x", "w2"], ["y2"], name="second"),
        helper.make_node("Concat", ["y1", "y2"], ["y"], axis=0),
        helper.make_node("Softmax", ["y"], ["out"]),
    ]
    model = graph_of(nodes, [constant("w1", WIDTH, 3), constant("w2", WIDTH, 3)], ["out"])
    assert operators(converted(model, "int8")) == {"first": "MatMul", "second": "MatMul"}


def test_int8_leaves_convolutions() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv"), helper.make_node("Add", ["y", "y"], ["double"])]
    model = graph_of(nodes, [constant("w", 4, 5, 1)], ["double"])
    assert operators(converted(model, "int8")) == {"conv": "Conv"}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), before=st.integers(0, 4), padding=st.integers(0, 5), loud=st.floats(0, 1e6))
def test_a_row_in_int8_is_the_same_bits_whatever_is_around_it(
    seed: int, before: int, padding: int, loud: float
) -> None:
    weight = np.random.default_rng(seed).standard_normal((WIDTH, 24))
    session = make_session(converted(linear(weight), "int8").SerializeToString(), threads=1)
    rows = frames(1, 3, WIDTH, seed=seed)
    (alone,) = session.run(None, {"x": rows})
    neighbours = frames(before + 1, 3 + padding, WIDTH, seed=seed + 1) * np.float32(loud)
    neighbours[before, :3] = rows[0]
    (together,) = session.run(None, {"x": neighbours})
    np.testing.assert_array_equal(together[before, :3], alone[0])
    (single,) = session.run(None, {"x": rows[:, 1:2]})
    np.testing.assert_array_equal(single[0, 0], alone[0, 1])


def test_int8_is_exact_where_nothing_is_rounded() -> None:
    generator = np.random.default_rng(0)
    weight, x = generator.integers(-127, 128, (WIDTH, 6)), generator.integers(-127, 128, (2, 4, WIDTH))
    weight[0], x[..., 0] = 127, -127
    (found,) = run(converted(linear(weight), "int8"), x)
    np.testing.assert_allclose(found, 2.0 * (x @ weight), rtol=1e-6, atol=1e-2)


def test_int8_rows_and_columns_of_zeros_stay_zero() -> None:
    weight = np.eye(WIDTH)
    weight[:, 2] = 0
    x = np.ones((1, 2, WIDTH))
    x[0, 1] = 0
    (found,) = run(converted(linear(weight), "int8"), x)
    assert (found[0, 1] == 0).all()
    np.testing.assert_allclose(found[0, 0], 2.0 * (np.arange(WIDTH) != 2), rtol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_stacked_weights_are_converted_like_single_ones(precision: Precision) -> None:
    """An ensemble's graph stacks the transposed weights of members of one shape: a constant expression."""
    nodes = [
        helper.make_node("Transpose", ["a"], ["a_t"], perm=[1, 0]),
        helper.make_node("Transpose", ["b"], ["b_t"], perm=[1, 0]),
        helper.make_node("Concat", ["a_t", "b_t"], ["both"], axis=0),
        helper.make_node("Reshape", ["both", "shape"], ["stacked"]),
        helper.make_node("MatMul", ["x", "stacked"], ["y"]),
        helper.make_node("Add", ["y", "y"], ["double"]),
    ]
    shape = numpy_helper.from_array(np.array([2, WIDTH, 640], np.int64), "shape")
    model = graph_of(nodes, [constant("a", 640, WIDTH), constant("b", 640, WIDTH, seed=1), shape], ["double"])
    x = frames(2, 5, WIDTH)
    (right,) = run(model, x)
    found = converted(copy.deepcopy(model), precision)
    (near,) = run(found, x)
    assert 0 < np.linalg.norm(near - right) <= RESIDUAL[precision] * np.linalg.norm(right) or precision == "fp32"
    if precision not in ("fp32", "bf16"):
        assert len(found.SerializeToString()) < 0.55 * len(model.SerializeToString())


def test_a_table_of_words_is_stored_small_and_read_back() -> None:
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["tokens"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["tokens", 40])
    table = constant("table", 500, 40)
    graph = helper.make_graph([helper.make_node("Gather", ["table", "ids"], ["out"])], "g", [ids], [out], [table])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    wanted = np.array([3, 499, 0])
    values = numpy_helper.to_array(table)[wanted]
    for precision, stored in (("fp16-weights", 1), ("int8", 1), ("fp16", 2)):
        small = converted(copy.deepcopy(model), Precisions.parse([f"encoders={precision}"]).chosen["encoders"])
        assert len(small.SerializeToString()) < 500 * (40 * stored + 4) + 1000
        (found,) = onnx.reference.ReferenceEvaluator(small).run(None, {"ids": wanted})
        np.testing.assert_allclose(np.asarray(found), values, atol=np.abs(values).max() / 127)


def test_compact_stores_in_half_what_half_can_hold() -> None:
    exact, rest = np.ones((200, 100), np.float32) / 4, np.ones((200, 100), np.float32) / 3
    constants = [numpy_helper.from_array(values, name) for name, values in (("exact", exact), ("rest", rest))]
    node = helper.make_node("Add", ["exact", "rest"], ["sum"])
    output = helper.make_tensor_value_info("sum", TensorProto.FLOAT, exact.shape)
    small = converted(helper.make_model(helper.make_graph([node], "g", [], [output], constants)), "fp32")
    kinds = {tensor.name: tensor.data_type for tensor in small.graph.initializer}
    assert kinds == {"exact_half": TensorProto.FLOAT16, "rest": TensorProto.FLOAT}
    (found,) = onnx.reference.ReferenceEvaluator(small).run(None, {})
    np.testing.assert_array_equal(found, exact + rest)


def test_a_large_constant_with_infinities_stays_what_it_is() -> None:
    model = linear(np.eye(WIDTH))
    mask = np.triu(np.full((128, 128), -np.inf, np.float32), 1)
    model.graph.initializer.append(numpy_helper.from_array(mask, "mask"))
    model.graph.node.append(helper.make_node("Relu", ["mask"], ["positive"]))
    model.graph.output.append(helper.make_tensor_value_info("positive", TensorProto.FLOAT, mask.shape))
    found = converted(model, "fp32")
    np.testing.assert_array_equal(run(found, np.ones((1, 1, WIDTH)))[1], np.zeros_like(mask))


def test_a_value_read_twice_is_emulated_once() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Transpose", ["y"], ["same"], perm=[0, 1, 2]),
        helper.make_node("Concat", ["same", "same"], ["out"], axis=0),
    ]
    model = converted(graph_of(nodes, [constant("w", WIDTH, 4)], ["out"]), "bf16")
    (found,) = run(model, frames(1, 2, WIDTH))
    np.testing.assert_array_equal(found[0], found[1])


def test_constants_that_nothing_reads_are_left_out() -> None:
    model = linear(np.eye(WIDTH))
    model.graph.initializer.append(constant("unread", 400, 400))
    assert [tensor.name for tensor in converted(model, "fp32").graph.initializer] == ["w"]


def test_a_constant_expression_is_worth_what_it_computes() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["w_t"], perm=[1, 0]),
        helper.make_node("Mul", ["w_t", "two"], ["scaled"]),
        helper.make_node("MatMul", ["x", "scaled"], ["y"]),
    ]
    two = numpy_helper.from_array(np.array(2, np.float32), "two")
    parts = GraphParts(graph_of(nodes, [constant("w", 4, WIDTH), two], ["y"]))
    np.testing.assert_array_equal(parts.value("scaled"), 2 * numpy_helper.to_array(constant("w", 4, WIDTH)).T)
    assert parts.constants == {"w", "two", "w_t", "scaled"}


def test_precisions_are_read_and_recorded_for_every_component() -> None:
    chosen = Precisions.parse(["encoders=fp16", "encoder.whisper=int8", "members=bf16", "member.words=fp32"])
    assert chosen.of(tiny_spec()) == {
        "encoder whisper": "int8",
        "encoder text": "fp16",
        "member voice": "bf16",
        "member words": "fp32",
        "meta-classifier": "fp32",
        "ensemble": "bf16",
    }


def test_without_a_choice_a_text_encoder_is_stored_in_16_bits_and_the_rest_is_float32() -> None:
    usual = Precisions().of(tiny_spec())
    assert usual.pop("encoder text") == "fp16-weights"
    assert set(usual.values()) == {"fp32"}


def test_the_ensemble_can_differ_from_its_members() -> None:
    found = Precisions.parse(["ensemble=int8"]).of(tiny_spec())
    assert (found["member voice"], found["ensemble"]) == ("fp32", "int8")


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(PrecisionError) as caught:
        Precisions.parse(["encoders=fp8", "whisper=int8", "members", "encoder.=fp16", "members=fp16", "members=fp32"])
    message = str(caught.value)
    for part in ("'encoders=fp8'", "'whisper=int8'", "'members':", "'encoder.=fp16'", "'members=fp32': members has"):
        assert part in message
    assert "fp32, fp16-weights, fp16, bf16, int8" in message


def test_a_component_that_is_not_there_is_refused_with_those_that_are() -> None:
    chosen = Precisions.parse(["encoder.prosody=fp16", "member.nobody=int8"])
    with pytest.raises(PrecisionError, match=r"encoder.prosody: there are .*encoder.text.*; member.nobody: there are"):
        chosen.of(tiny_spec())
