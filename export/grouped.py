"""The graphs of members and of the ensemble, in which networks of one shape run as one.

They compute what members and `Ensemble` compute. Networks of one shape take one matrix product with their weights stacked
where the networks in torch take one each:

    first projections   W1 of every ENC that reads an encoder side by side: one product over frames that are standardised once
    legs                ENCs of one shape that read one encoder, whichever members they are of
    fusions             fusion ENCs or cross-attention, joins and heads of members with the same modalities and sizes
    linear members      heads of those with the same modalities
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
from torch import Tensor

from export.graph_writer import GraphWriter
from export.group_attention import Kernel, Mask
from export.group_cross import GroupCross
from export.group_layers import Encoded, GroupLayers, Named, parts
from model.bundle import Shape, ensemble_outputs, inputs_of, mask_of
from model.labels import ATTRIBUTE_RANGE, ATTRIBUTES, CLASSES
from model.network.deepser import FrameStack
from model.network.member import Member
from model.network.metaclassifier import WIDTH, Ensemble
from model.posteriors import EPSILON
from model.spec import INTERACTION

Item = TypeVar("Item")
_NETWORK: Final = "network"
_TO_THE_END: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class _Said:
    """What a group of members says: logits `[G, B, 8]`, ratings `[G, B, 3]`, shares `[G, B, S]` where it has them."""

    logits: str
    ratings: str
    shares: str | None = None


@dataclass(frozen=True, slots=True)
class _Legs:
    """An encoder's legs: groups of ENCs, the steps' mask, and (group, row) of each member."""

    groups: list[Encoded]
    mask: Mask
    places: dict[int, tuple[int, int]]


def member_graph(member: Member, outputs: tuple[str, str], opset: int, kernel: Kernel) -> onnx.ModelProto:
    """One member: frames and masks of its modalities to logits `[B, 8]` and attributes `[B, 3]` in 1..7."""
    builder = _Builder({_NETWORK: member}, kernel)
    builder.inputs(member.spec.modalities)
    logits, attributes = builder.member()
    builder.outputs({outputs[0]: (logits, (None, len(CLASSES))), outputs[1]: (attributes, (None, len(ATTRIBUTES)))})
    return builder.graph.model(member.spec.name, opset)


def ensemble_graph(ensemble: Ensemble, opset: int, kernel: Kernel) -> onnx.ModelProto:
    """Members, meta-classifier and calibration as one graph: what is served."""
    members = [cast("Member", member) for member in ensemble.members]
    builder = _Builder({member.spec.name: member for member in members}, kernel, ensemble.spec.shared_by)
    builder.inputs([encoder.name for encoder in inputs_of(ensemble.spec)])
    found = builder.ensemble(ensemble)
    shapes = ensemble_outputs(ensemble.spec).items()
    builder.outputs({name: (tensor, shape) for (name, shape), tensor in zip(shapes, found, strict=True)})
    return builder.graph.model("ensemble", opset)


class _Builder:
    """Writes one graph.

    Args:
        members: by the name that their constants begin with.
        kernel: of attention.
        shared_by: as `EnsembleSpec.shared_by`; without it, shares are not told.
    """

    def __init__(self, members: Mapping[str, Member], kernel: Kernel, shared_by: Sequence[str] = ()) -> None:
        self._names, self._members = list(members), list(members.values())
        self._shared_by = shared_by
        self.graph = GraphWriter()
        self._layers = GroupLayers(self.graph, kernel)
        self._crossing = GroupCross(self.graph, self._layers)
        self._real: dict[str, str] = {}
        self._kept: dict[tuple[str, int], str] = {}

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
        said, op = self._heads(), self.graph.op
        scaled = op("Mul", said.ratings, self.graph.scalar(float(high - low)))
        attributes = op("Add", scaled, self.graph.scalar(float(low)))
        return op("Squeeze", said.logits, self.graph.ints(1)), op("Squeeze", attributes, self.graph.ints(1))

    def ensemble(self, ensemble: Ensemble) -> tuple[str, ...]:
        """Probabilities, attributes, members' probabilities, uncertainty, and shares where members have some."""
        said = self._heads()
        bias = self.graph.constant(ensemble.class_bias, "class_bias")
        probabilities = self.graph.op("Softmax", self.graph.op("Add", said.logits, bias), axis=-1)
        posterior, attributes = self._meta(ensemble, probabilities, said.ratings)
        shares = () if said.shares is None else (said.shares,)
        return posterior, attributes, probabilities, self._uncertainty(probabilities), *shares

    # Legs

    def _legs(self, name: str) -> _Legs:
        op, ints = self.graph.op, self.graph.ints
        readers = [number for number in self._with_legs() if name in self._members[number].spec.modalities]
        hidden: dict[int, str] = {}
        for numbers in _alike(readers, lambda number: _statistics(self._stack_of(number, name))):
            steps = self._steps(numbers[0], name)
            hidden |= zip(
                numbers, self._layers.first(steps, [self._of(n, f"encs.{name}.w1") for n in numbers]), strict=True
            )
        mask, groups = self._mask(readers[0], name), []
        places: dict[int, tuple[int, int]] = {}
        for group, numbers in enumerate(_alike(readers, lambda number: _sizes(self._members[number]))):
            flat = [op("Reshape", hidden[n], ints(1, -1, self._members[n].spec.dim)) for n in numbers]
            encs = [self._of(n, f"encs.{name}") for n in numbers]
            groups.append(self._layers.enc(self._layers.concat(flat, 0), encs, mask))
            places |= {number: (group, row) for row, number in enumerate(numbers)}
        return _Legs(groups, mask, places)

    def _with_legs(self) -> list[int]:
        """Members that have ENCs: all but linear ones."""
        return [number for number, member in enumerate(self._members) if member.spec.family != "linear"]

    def _stack_of(self, number: int, name: str) -> FrameStack:
        return cast("FrameStack", self._members[number].stacks[name])

    def _steps(self, number: int, name: str) -> str:
        """A modality's standardised frames as a member reads them, `[B, T, stack d]`, padded ones zero."""
        op, constant = self.graph.op, self.graph.constant
        stack, of = self._stack_of(number, name), self._of(number, f"stacks.{name}").name
        centred = op("Sub", name, constant(stack.mean, f"{of}.mean"))
        scaled = op("Mul", centred, constant(stack.scale, f"{of}.scale"))
        if name not in self._real:
            weight = op("Cast", mask_of(name), to=TensorProto.FLOAT)
            self._real[name] = op("Unsqueeze", weight, self.graph.ints(2))
        width = stack.stack * len(stack.mean)
        return op("Reshape", op("Mul", scaled, self._real[name]), self.graph.ints(0, -1, width))

    def _mask(self, number: int, name: str) -> Mask:
        """Of these steps: one is real if its first frame is."""
        ints, stride = self.graph.ints, self._stack_of(number, name).stack
        if (name, stride) not in self._kept:
            self._kept[name, stride] = self.graph.op(
                "Slice", mask_of(name), ints(0), ints(_TO_THE_END), ints(1), ints(stride)
            )
        return self._layers.mask(self._kept[name, stride])

    # Fusion and heads

    def _heads(self) -> _Said:
        """Members' logits `[B, M, 8]`, attributes in 0..1 `[B, M, 3]`, mean shares `[B, S]` where members have some."""
        read = dict.fromkeys(name for number in self._with_legs() for name in self._members[number].spec.modalities)
        legs = {name: self._legs(name) for name in read}
        order: list[int] = []
        logits: list[str] = []
        units: list[str] = []
        shares: dict[int, list[str]] = {}
        for numbers in _alike(range(len(self._members)), lambda number: _fusion_shape(self._members[number], number)):
            found = self._said(numbers, legs)
            order += numbers
            logits.append(found.logits)
            units.append(self.graph.op("Sigmoid", found.ratings))
            if self._shared_by and found.shares is not None:
                shares |= {number: self._single(found.shares, row, number) for row, number in enumerate(numbers)}
        shared = self._mean_shares(shares) if self._shared_by else None
        return _Said(self._ordered(logits, order), self._ordered(units, order), shared)

    def _said(self, numbers: Sequence[int], legs: Mapping[str, _Legs]) -> _Said:
        spec = self._members[numbers[0]].spec
        if spec.family == "linear":
            return self._linear(numbers)
        if spec.family == "vga":
            return self._cross(numbers, legs)
        return self._fuse(numbers, legs) if spec.fusion == "deep" else self._late(numbers, legs)

    def _linear(self, numbers: Sequence[int]) -> _Said:
        """Linear members with the same modalities: heads on means over time."""
        names = self._members[numbers[0]].spec.modalities
        x = self._layers.concat([self._means(numbers, name) for name in names], 2)
        return _Said(self._head(x, numbers, "classifier"), self._head(x, numbers, "regressor"))

    def _means(self, numbers: Sequence[int], name: str) -> str:
        """Means over time of a modality's steps as each member standardises them, `[G, B, d]`."""
        mask, means = self._mask(numbers[0], name), dict.fromkeys(numbers, "")
        for alike in _alike(numbers, lambda number: _statistics(self._stack_of(number, name))):
            steps = self.graph.op("Unsqueeze", self._steps(alike[0], name), self.graph.ints(0))
            means |= dict.fromkeys(alike, self._layers.pooled(steps, mask))
        return self._layers.concat(list(means.values()), 0)

    def _cross(self, numbers: Sequence[int], legs: Mapping[str, _Legs]) -> _Said:
        """Members of the family "vga" with the same modalities and sizes."""
        names = self._members[numbers[0]].spec.modalities
        steps = {name: self._part(legs[name], numbers).layers[-1] for name in names}
        members = [Named(self._names[number], self._members[number]) for number in numbers]
        fused, shares = self._crossing.fused(members, steps, {name: legs[name].mask for name in names})
        active = self.graph.op("Relu", self._head(fused, numbers, "join"))
        return _Said(self._head(active, numbers, "classifier"), self._head(active, numbers, "regressor"), shares)

    def _fuse(self, numbers: Sequence[int], legs: Mapping[str, _Legs]) -> _Said:
        """Deep members with the same modalities and sizes."""
        op, ints, spec = self.graph.op, self.graph.ints, self._members[numbers[0]].spec
        own = [self._part(legs[name], numbers) for name in spec.modalities]
        modality_mask = self._layers.concat([legs[name].mask.kept for name in spec.modalities], 1)
        fused: list[tuple[str, str]] = []
        pooled = ""
        for level in range(spec.layers):
            kept = self._layers.concat([modality_mask, *(before for _, before in fused)], 1)
            streams = self._layers.concat([*(part.layers[level] for part in own), *(x for x, _ in fused)], 2)
            flat = op("Reshape", streams, ints(len(numbers), -1, spec.dim))
            encs = [self._of(number, f"fusions.{level}") for number in numbers]
            hidden = op("Relu", self._layers.linear(flat, parts(encs, "w1")))
            encoded = self._layers.enc(hidden, encs, self._layers.mask(kept))
            fused, pooled = [(encoded.layers[-1], kept)], encoded.pooled
        joined = self._layers.concat([*(part.pooled for part in own), pooled], 2)
        active = op("Relu", self._head(joined, numbers, "join"))
        return _Said(self._head(active, numbers, "classifier"), self._head(active, numbers, "regressor"))

    def _late(self, numbers: Sequence[int], legs: Mapping[str, _Legs]) -> _Said:
        """One late member: the mean over its modalities."""
        op, names = self.graph.op, self._members[numbers[0]].spec.modalities
        heads: dict[str, list[str]] = {"classifiers": [], "regressors": []}
        for name in names:
            active = op("Relu", self._head(self._part(legs[name], numbers).pooled, numbers, f"joins.{name}"))
            for kind, found in heads.items():
                found.append(self._head(active, numbers, f"{kind}.{name}"))
        logits, ratings = (op("Mean", *found) for found in heads.values())
        return _Said(logits, ratings)

    def _part(self, legs: _Legs, numbers: Sequence[int]) -> Encoded:
        """Members' own rows of an encoder's legs."""
        group, rows = legs.places[numbers[0]][0], [legs.places[number][1] for number in numbers]
        size = sum(place[0] == group for place in legs.places.values())
        found = legs.groups[group]
        return Encoded([self._rows(x, rows, size) for x in found.layers], self._rows(found.pooled, rows, size))

    def _rows(self, x: str, rows: Sequence[int], size: int) -> str:
        if list(rows) == list(range(size)):
            return x
        return self.graph.op("Gather", x, self.graph.ints(*rows), axis=0)

    def _ordered(self, groups: Sequence[str], order: Sequence[int]) -> str:
        """`[G, B, E]` of every group, whose members are `order`, as `[B, M, E]` in the members' own order."""
        rows = [order.index(number) for number in range(len(order))]
        return self.graph.op("Transpose", self._rows(self._layers.concat(groups, 0), rows, len(order)), perm=[1, 0, 2])

    # Shares

    def _single(self, shares: str, row: int, number: int) -> list[str]:
        """A member's own shares `[G, B, S]` as S tensors `[B, 1]`."""
        own = self.graph.op(
            "Squeeze", self.graph.op("Gather", shares, self.graph.ints(row), axis=0), self.graph.ints(0)
        )
        modalities = len(self._members[number].spec.modalities)
        return self.graph.split(own, [1] * (modalities * (modalities + 1) // 2), axis=1)

    def _mean_shares(self, shares: Mapping[int, Sequence[str]]) -> str:
        """`Ensemble.modality_share`, `[B, S]`, from members' shares."""
        columns: dict[str, list[str]] = {}
        for number, own in shares.items():
            names = self._members[number].spec.modalities
            for place, share in enumerate(own):
                columns.setdefault(names[place] if place < len(names) else INTERACTION, []).append(share)
        totals = [self._total(columns[name]) for name in self._shared_by]
        return self.graph.op("Mul", self._layers.concat(totals, 1), self.graph.scalar(1.0 / len(shares)))

    def _total(self, tensors: Sequence[str]) -> str:
        return tensors[0] if len(tensors) == 1 else self.graph.op("Sum", *tensors)

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

    def _head(self, x: str, numbers: Sequence[int], path: str) -> str:
        return self._layers.head(x, [self._of(number, path) for number in numbers])

    def _of(self, number: int, path: str) -> Named:
        return Named(self._names[number], self._members[number]).part(path)


def _statistics(stack: FrameStack) -> tuple[bytes, bytes]:
    """Members that were trained on the same clips standardise alike."""
    return stack.mean.cpu().numpy().tobytes(), stack.scale.cpu().numpy().tobytes()


def _sizes(member: Member) -> tuple[int, ...]:
    return member.spec.dim, member.spec.heads, member.spec.layers, member.spec.feed_forward


def _fusion_shape(member: Member, number: int) -> object:
    """What deep members of one group have in common; a late member, which fuses nothing, is a group by itself."""
    spec = member.spec
    kind = spec.family, spec.attention, spec.gates
    return (spec.modalities, _sizes(member), kind) if spec.fusion == "deep" else number


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
