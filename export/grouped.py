"""The graphs of members and of the ensemble, in which networks of one shape run as one.

They compute what `DeepSER` and `Ensemble` compute. Networks of one shape take one matrix product with their weights stacked
where the networks in torch take one each:

    first projections   W1 of every ENC that reads an encoder side by side: one product over frames that are standardised once
    legs                ENCs of one shape that read one encoder, whichever members they are of
    fusions             fusion ENCs, joins and heads of members with the same modalities and sizes
    meta-classifier     the soup with temperature, class bias and the attributes' range in its one matrix

They are written node by node: `torch.export` spends minutes on proving shapes such as batch times (steps of one encoder plus
steps of another). The ensemble's constants are those of its members' graphs, joined by `Concat`, so that they are kept on
disk once (`export.shared_weights`); onnxruntime joins them once, when it loads the graph.

Shapes: B = batch, F = frames, T = steps, d = width of a frame, D = width of a member, E = width of a layer, G = networks in a
group, M = members, H = heads. Inside, rows of a group are flat: `[G, B T, D]`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn

from export.graph_writer import GraphWriter
from model.bundle import Shape, ensemble_outputs, inputs_of, mask_of
from model.labels import ATTRIBUTE_RANGE, ATTRIBUTES, CLASSES
from model.network.deepser import DeepSER, FrameStack
from model.network.enc import MASKED_SCORE, Enc, TransformerLayer
from model.network.metaclassifier import WIDTH, Ensemble
from model.posteriors import EPSILON

Item = TypeVar("Item")
_NETWORK: Final = "network"
_TO_THE_END: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class _Mask:
    """What a group needs of a mask `[B, T]`: names of tensors.

    Attributes:
        kept: `bool [B, T]`.
        shape: B and T.
        bias: of the scores of keys `[B, 1, 1, T]`.
        share: of each step in the mean `[B, 1, T]`.
    """

    kept: str
    shape: str
    bias: str
    share: str


@dataclass(frozen=True, slots=True)
class _Named:
    """A network, and the name of its member for the names of its constants."""

    name: str
    module: nn.Module

    def part(self, path: str) -> "_Named":
        return _Named(f"{self.name}.{path}", self.module.get_submodule(path))


@dataclass(frozen=True, slots=True)
class _Encoded:
    """What a group of ENCs gives: every layer's output `[G, B, T, D]`, the pooled last one `[G, B, D]`."""

    layers: list[str]
    pooled: str


@dataclass(frozen=True, slots=True)
class _Legs:
    """An encoder's legs: groups of ENCs, the steps' mask, and (group, row) of each member."""

    groups: list[_Encoded]
    mask: _Mask
    places: dict[int, tuple[int, int]]


def member_graph(member: DeepSER, outputs: tuple[str, str], opset: int) -> onnx.ModelProto:
    """One member: frames and masks of its modalities to logits `[B, 8]` and attributes `[B, 3]` in 1..7."""
    builder = _Builder({_NETWORK: member})
    builder.inputs(member.spec.modalities)
    logits, attributes = builder.member()
    builder.outputs({outputs[0]: (logits, (None, len(CLASSES))), outputs[1]: (attributes, (None, len(ATTRIBUTES)))})
    return builder.graph.model(member.spec.name, opset)


def ensemble_graph(ensemble: Ensemble, opset: int) -> onnx.ModelProto:
    """Members, meta-classifier and calibration as one graph: what is served."""
    members = [cast("DeepSER", member) for member in ensemble.members]
    builder = _Builder({member.spec.name: member for member in members})
    builder.inputs([encoder.name for encoder in inputs_of(ensemble.spec)])
    found = builder.ensemble(ensemble)
    shapes = ensemble_outputs(ensemble.spec).items()
    builder.outputs({name: (tensor, shape) for (name, shape), tensor in zip(shapes, found, strict=True)})
    return builder.graph.model("ensemble", opset)


class _Builder:
    """Writes one graph.

    Args:
        members: by the name that their constants begin with.
    """

    def __init__(self, members: Mapping[str, DeepSER]) -> None:
        self._names, self._members = list(members), list(members.values())
        self.graph = GraphWriter()
        self._masks: dict[str, _Mask] = {}

    def inputs(self, modalities: Sequence[str]) -> None:
        """Declares frames `float32 [B, F, d]` and mask `bool [B, F]` of every modality."""
        for name in modalities:
            stack = next(m.stacks[name] for m in self._members if name in m.spec.modalities)
            shape = ["batch", f"{name}_frames"]
            self.graph.input(name, TensorProto.FLOAT, [*shape, len(cast("FrameStack", stack).mean)])
            self.graph.input(mask_of(name), TensorProto.BOOL, shape)

    def outputs(self, tensors: Mapping[str, tuple[str, Shape]]) -> None:
        """Declares outputs: name -> tensor and its shape."""
        for name, (tensor, shape) in tensors.items():
            self.graph.output(name, tensor, ["batch" if size is None else size for size in shape])

    def member(self) -> tuple[str, str]:
        """Logits and attributes of the only member."""
        low, high = ATTRIBUTE_RANGE
        (logits, units), op = self._heads(), self.graph.op
        attributes = op("Add", op("Mul", units, self.graph.scalar(float(high - low))), self.graph.scalar(float(low)))
        return op("Squeeze", logits, self.graph.ints(1)), op("Squeeze", attributes, self.graph.ints(1))

    def ensemble(self, ensemble: Ensemble) -> tuple[str, str, str, str]:
        """Probabilities, attributes, members' probabilities and uncertainty."""
        logits, units = self._heads()
        bias = self.graph.constant(ensemble.class_bias, "class_bias")
        probabilities = self.graph.op("Softmax", self.graph.op("Add", logits, bias), axis=-1)
        posterior, attributes = self._meta(ensemble, probabilities, units)
        return posterior, attributes, probabilities, self._uncertainty(probabilities)

    # Legs

    def _legs(self, name: str) -> _Legs:
        op, ints = self.graph.op, self.graph.ints
        readers = [number for number, member in enumerate(self._members) if name in member.spec.modalities]
        stacks = {number: cast("FrameStack", self._members[number].stacks[name]) for number in readers}
        stride = stacks[readers[0]].stack
        kept = op("Slice", mask_of(name), ints(0), ints(_TO_THE_END), ints(1), ints(stride))
        weight = op("Unsqueeze", op("Cast", mask_of(name), to=TensorProto.FLOAT), ints(2))
        hidden: dict[int, str] = {}
        for numbers in _alike(readers, lambda number: _statistics(stacks[number])):
            first = self._of(numbers[0], f"stacks.{name}")
            centred = op("Sub", name, self.graph.constant(stacks[numbers[0]].mean, f"{first.name}.mean"))
            scaled = op("Mul", centred, self.graph.constant(stacks[numbers[0]].scale, f"{first.name}.scale"))
            width = stride * len(stacks[numbers[0]].mean)
            steps = op("Reshape", op("Mul", scaled, weight), ints(0, -1, width))
            hidden |= zip(numbers, self._first(steps, [self._of(n, f"encs.{name}.w1") for n in numbers]), strict=True)
        mask, groups = self._mask(kept), []
        places: dict[int, tuple[int, int]] = {}
        for group, numbers in enumerate(_alike(readers, lambda number: _sizes(self._members[number]))):
            flat = [op("Reshape", hidden[n], ints(1, -1, self._members[n].spec.dim)) for n in numbers]
            groups.append(self._enc(self._concat(flat, 0), [self._of(n, f"encs.{name}") for n in numbers], mask))
            places |= {number: (group, row) for row, number in enumerate(numbers)}
        return _Legs(groups, mask, places)

    def _first(self, steps: str, linears: Sequence[_Named]) -> list[str]:
        """relu(W1 x) `[B, T, D]` of each ENC from one wide product."""
        op = self.graph.op
        weight = self._concat([self._weight(linear) for linear in linears], 1)
        bias = self._concat([self._vector(linear, "bias") for linear in linears], 0)
        wide = op("Relu", op("Add", op("MatMul", steps, weight), bias))
        if len(linears) == 1:
            return [wide]
        widths = [cast("nn.Linear", linear.module).out_features for linear in linears]
        return self.graph.split(wide, widths, axis=2)

    # ENCs

    def _enc(self, hidden: str, encs: Sequence[_Named], mask: _Mask) -> _Encoded:
        """ENCs of one shape behind relu(W1 x) `[G, B T, D]`."""
        op, ints, first = self.graph.op, self.graph.ints, cast("Enc", encs[0].module)
        dim = first.w2.out_features
        shape = self.graph.joined(ints(len(encs)), mask.shape, ints(dim))
        x = self._linear(hidden, [enc.part("w2") for enc in encs])
        layers = []
        for level in range(len(first.layers)):
            x = self._layer(x, [enc.part(f"layers.{level}") for enc in encs], mask)
            layers.append(op("Reshape", x, shape))
        pooled = op("Squeeze", op("MatMul", mask.share, layers[-1]), ints(2))
        return _Encoded(layers, pooled)

    def _layer(self, x: str, layers: Sequence[_Named], mask: _Mask) -> str:
        op = self.graph.op
        normal = self._norm(x, [layer.part("attention_norm") for layer in layers])
        attended = self._attend(self._linear(normal, [layer.part("qkv") for layer in layers]), layers, mask)
        x = op("Add", x, self._linear(attended, [layer.part("attention_out") for layer in layers]))
        normal = self._norm(x, [layer.part("feed_forward_norm") for layer in layers])
        wide = op("Gelu", self._linear(normal, [layer.part("expand") for layer in layers]))
        return op("Add", x, self._linear(wide, [layer.part("contract") for layer in layers]))

    def _attend(self, qkv: str, layers: Sequence[_Named], mask: _Mask) -> str:
        """Attention of `[G, B T, 3 D]`, each network for itself."""
        op, ints, first = self.graph.op, self.graph.ints, cast("TransformerLayer", layers[0].module)
        dim, heads = first.attention_out.in_features, first.heads
        shape = self.graph.joined(ints(len(layers)), mask.shape, ints(3 * heads, dim // heads))
        apart = op("Transpose", op("Reshape", qkv, shape), perm=[0, 1, 3, 2, 4])  # [G, B, 3 H, T, D / H]
        q, k, v = self.graph.split(apart, [heads] * 3, axis=2)
        scaled = op("Mul", q, self.graph.scalar(1.0 / math.sqrt(dim // heads)))
        scores = op("Add", op("MatMul", scaled, op("Transpose", k, perm=[0, 1, 2, 4, 3])), mask.bias)
        attended = op("MatMul", op("Softmax", scores, axis=-1), v)
        return op("Reshape", op("Transpose", attended, perm=[0, 1, 3, 2, 4]), ints(len(layers), -1, dim))

    def _norm(self, x: str, norms: Sequence[_Named]) -> str:
        op, first = self.graph.op, cast("nn.LayerNorm", norms[0].module)
        if len(norms) == 1:
            weight, bias = (self._vector(norms[0], which) for which in ("weight", "bias"))
            return op("LayerNormalization", x, weight, bias, axis=-1, epsilon=first.eps)
        ones = self.graph.constant(torch.ones(first.normalized_shape), f"ones.{first.normalized_shape[0]}")
        normal = op("LayerNormalization", x, ones, axis=-1, epsilon=first.eps)
        return op("Add", op("Mul", normal, self._vectors(norms, "weight")), self._vectors(norms, "bias"))

    def _mask(self, kept: str) -> _Mask:
        if kept not in self._masks:
            op, ints = self.graph.op, self.graph.ints
            weight = op("Cast", kept, to=TensorProto.FLOAT)
            padded = op("Mul", op("Cast", op("Not", kept), to=TensorProto.FLOAT), self.graph.scalar(MASKED_SCORE))
            total = op("Max", op("ReduceSum", weight, ints(1), keepdims=1), self.graph.scalar(1.0))
            self._masks[kept] = _Mask(
                kept,
                shape=op("Shape", kept),
                bias=op("Unsqueeze", padded, ints(1, 2)),
                share=op("Unsqueeze", op("Div", weight, total), ints(1)),
            )
        return self._masks[kept]

    # Fusion and heads

    def _heads(self) -> tuple[str, str]:
        """Members' logits `[B, M, 8]` and attributes in 0..1 `[B, M, 3]`."""
        read = dict.fromkeys(name for member in self._members for name in member.spec.modalities)
        legs = {name: self._legs(name) for name in read}
        order: list[int] = []
        logits: list[str] = []
        units: list[str] = []
        for numbers in _alike(range(len(self._members)), lambda number: _fusion_shape(self._members[number], number)):
            fuse = self._fuse if self._members[numbers[0]].spec.fusion == "deep" else self._late
            found = fuse(numbers, legs)
            order += numbers
            logits.append(found[0])
            units.append(self.graph.op("Sigmoid", found[1]))
        return self._ordered(logits, order), self._ordered(units, order)

    def _fuse(self, numbers: Sequence[int], legs: Mapping[str, _Legs]) -> tuple[str, str]:
        """Logits `[G, B, 8]` and ratings `[G, B, 3]` of deep members with the same modalities and sizes."""
        op, ints, spec = self.graph.op, self.graph.ints, self._members[numbers[0]].spec
        parts = [self._part(legs[name], numbers) for name in spec.modalities]
        modality_mask = self._concat([legs[name].mask.kept for name in spec.modalities], 1)
        fused: list[tuple[str, str]] = []
        pooled = ""
        for level in range(spec.layers):
            kept = self._concat([modality_mask, *(before for _, before in fused)], 1)
            streams = self._concat([*(part.layers[level] for part in parts), *(x for x, _ in fused)], 2)
            flat = op("Reshape", streams, ints(len(numbers), -1, spec.dim))
            encs = [self._of(number, f"fusions.{level}") for number in numbers]
            hidden = op("Relu", self._linear(flat, [enc.part("w1") for enc in encs]))
            encoded = self._enc(hidden, encs, self._mask(kept))
            fused, pooled = [(encoded.layers[-1], kept)], encoded.pooled
        joined = self._concat([*(part.pooled for part in parts), pooled], 2)
        active = op("Relu", self._head(joined, numbers, "join"))
        return self._head(active, numbers, "classifier"), self._head(active, numbers, "regressor")

    def _late(self, numbers: Sequence[int], legs: Mapping[str, _Legs]) -> tuple[str, str]:
        """Logits `[1, B, 8]` and ratings `[1, B, 3]` of one late member: the mean over its modalities."""
        op, names = self.graph.op, self._members[numbers[0]].spec.modalities
        heads: dict[str, list[str]] = {"classifiers": [], "regressors": []}
        for name in names:
            active = op("Relu", self._head(self._part(legs[name], numbers).pooled, numbers, f"joins.{name}"))
            for kind, found in heads.items():
                found.append(self._head(active, numbers, f"{kind}.{name}"))
        logits, ratings = (op("Mean", *found) for found in heads.values())
        return logits, ratings

    def _part(self, legs: _Legs, numbers: Sequence[int]) -> _Encoded:
        """Members' own rows of an encoder's legs."""
        group, rows = legs.places[numbers[0]][0], [legs.places[number][1] for number in numbers]
        size = sum(place[0] == group for place in legs.places.values())
        found = legs.groups[group]
        return _Encoded([self._rows(x, rows, size) for x in found.layers], self._rows(found.pooled, rows, size))

    def _rows(self, x: str, rows: Sequence[int], size: int) -> str:
        if list(rows) == list(range(size)):
            return x
        return self.graph.op("Gather", x, self.graph.ints(*rows), axis=0)

    def _ordered(self, groups: Sequence[str], order: Sequence[int]) -> str:
        """`[G, B, E]` of every group, whose members are `order`, as `[B, M, E]` in the members' own order."""
        rows = [order.index(number) for number in range(len(order))]
        return self.graph.op("Transpose", self._rows(self._concat(groups, 0), rows, len(order)), perm=[1, 0, 2])

    # Meta-classifier

    def _meta(self, ensemble: Ensemble, probabilities: str, units: str) -> tuple[str, str]:
        """Probabilities `[B, 8]` and attributes `[B, 3]` in 1..7 from the members' own."""
        op, ints = self.graph.op, self.graph.ints
        flat = op("Reshape", op("Concat", probabilities, units, axis=2), ints(0, WIDTH * len(self._members)))
        weight, bias = _folded_meta(ensemble)
        weights = self.graph.constant(weight, "meta.weight"), self.graph.constant(bias, "meta.bias")
        logits, values = self.graph.split(op("Gemm", flat, *weights, transB=1), [len(CLASSES), len(ATTRIBUTES)], axis=1)
        low, high = (self.graph.scalar(float(end)) for end in ATTRIBUTE_RANGE)
        return op("Softmax", logits, axis=-1), op("Clip", values, low, high)

    def _uncertainty(self, probabilities: str) -> str:
        """`model.posteriors.disagreement` of `[B, M, 8]`: `[B]`."""
        op, ints, scalar = self.graph.op, self.graph.ints, self.graph.scalar
        if len(self._members) < 2:
            return op("Mul", op("ReduceSum", probabilities, ints(1, 2), keepdims=0), scalar(0.0))
        raised = op("Add", probabilities, scalar(EPSILON))
        p = op("Div", raised, op("ReduceSum", raised, ints(2), keepdims=1))
        ratio = op("Div", p, op("ReduceMean", p, ints(1), keepdims=1))
        divergence = op("ReduceSum", op("Mul", p, op("Log", ratio)), ints(1, 2), keepdims=0)
        most = len(self._members) * math.log(len(self._members))
        return op("Clip", op("Mul", divergence, scalar(1.0 / most)), scalar(0.0), scalar(1.0))

    # Constants

    def _of(self, number: int, path: str) -> _Named:
        return _Named(self._names[number], self._members[number]).part(path)

    def _linear(self, x: str, linears: Sequence[_Named]) -> str:
        """`[G, R, D]` -> `[G, R, E]`."""
        return self._product(x, self._stack([self._weight(linear) for linear in linears], linears), linears)

    def _head(self, x: str, numbers: Sequence[int], path: str) -> str:
        """The same on a row per utterance. Members' graphs hold these weights as torch does, output first."""
        linears = [self._of(number, path) for number in numbers]
        weights = self._stack([self._vector(linear, "weight") for linear in linears], linears)
        perm = [1, 0] if len(linears) == 1 else [0, 2, 1]
        return self._product(x, self.graph.op("Transpose", weights, perm=perm), linears)

    def _product(self, x: str, weight: str, linears: Sequence[_Named]) -> str:
        return self.graph.op("Add", self.graph.op("MatMul", x, weight), self._vectors(linears, "bias"))

    def _stack(self, weights: Sequence[str], linears: Sequence[_Named]) -> str:
        """Matrices in a row as `[G, rows, columns]`; a single one as it is: onnxruntime packs it in advance."""
        if len(weights) == 1:
            return weights[0]
        return self.graph.op("Concat", *(self.graph.op("Unsqueeze", w, self.graph.ints(0)) for w in weights), axis=0)

    def _weight(self, linear: _Named) -> str:
        """A weight `[D, E]`, input first, as the members' graphs hold it."""
        weight = cast("nn.Linear", linear.module).weight
        return self.graph.constant(weight.t(), f"{linear.name}.weight")

    def _vector(self, module: _Named, which: str) -> str:
        return self.graph.constant(cast("Tensor", getattr(module.module, which)), f"{module.name}.{which}")

    def _vectors(self, modules: Sequence[_Named], which: str) -> str:
        """Vectors `[E]` as `[G, 1, E]`; a single one as it is."""
        if len(modules) == 1:
            return self._vector(modules[0], which)
        stacked = torch.stack([cast("Tensor", getattr(module.module, which)) for module in modules]).unsqueeze(1)
        return self.graph.constant(stacked, f"{modules[0].name}.{which}.of_{len(modules)}")

    def _concat(self, parts: Sequence[str], axis: int) -> str:
        return parts[0] if len(parts) == 1 else self.graph.op("Concat", *parts, axis=axis)


def _statistics(stack: FrameStack) -> tuple[bytes, bytes]:
    """Members that were trained on the same clips standardise alike."""
    return stack.mean.cpu().numpy().tobytes(), stack.scale.cpu().numpy().tobytes()


def _sizes(member: DeepSER) -> tuple[int, ...]:
    return member.spec.dim, member.spec.heads, member.spec.layers, member.spec.feed_forward


def _fusion_shape(member: DeepSER, number: int) -> object:
    """What deep members of one group have in common; a late member, which fuses nothing, is a group by itself."""
    return (member.spec.modalities, _sizes(member)) if member.spec.fusion == "deep" else number


def _folded_meta(ensemble: Ensemble) -> tuple[Tensor, Tensor]:
    """Weight `[11, 11 M]` and bias `[11]`: temperature and class bias within the logits, attributes in 1..7."""
    low, high = ATTRIBUTE_RANGE
    scale = torch.full((WIDTH,), float(high - low))
    scale[: len(CLASSES)] = 1.0 / ensemble.temperature
    offset = torch.full((WIDTH,), float(low))
    offset[: len(CLASSES)] = ensemble.class_bias
    linear = ensemble.meta.linear
    return linear.weight.detach() * scale.unsqueeze(1), linear.bias.detach() * scale + offset


def _alike(items: Iterable[Item], key: Callable[[Item], object]) -> list[list[Item]]:
    """Items with equal keys together, in the order of their first."""
    groups: dict[object, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
