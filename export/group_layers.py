"""Layers of networks of one shape, written as one: each constant once, each product with the networks' weights stacked.

Shapes: B = batch, T = steps, K = steps that are attended to, D = width of a member, E = width of a layer, G = networks in a
group, H = heads. Rows of a group are flat: `[G, B T, D]`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from onnx import TensorProto
from torch import Tensor, nn

from export.graph_writer import GraphWriter
from export.group_attention import GroupAttention, Kernel, Mask, Sizes
from model.network.cross_attention import CrossLayer
from model.network.enc import MASKED_SCORE, Enc, TransformerLayer
from model.network.vga import AXES, NEAREST, VadGuide


@dataclass(frozen=True, slots=True)
class Named:
    """A network, and the name of its member for the names of its constants."""

    name: str
    module: nn.Module

    def part(self, path: str) -> "Named":
        """A network within."""
        return Named(f"{self.name}.{path}", self.module.get_submodule(path))


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a group of ENCs gives: every layer's output `[G, B, T, D]`, the pooled last one `[G, B, D]`."""

    layers: list[str]
    pooled: str


class GroupLayers:
    """Writes layers into a graph.

    Args:
        graph: the graph.
        kernel: of attention.
    """

    def __init__(self, graph: GraphWriter, kernel: Kernel) -> None:
        self._graph = graph
        self._attention = GroupAttention(graph, kernel)
        self._masks: dict[str, Mask] = {}
        self._present: dict[str, str] = {}

    def mask(self, kept: str) -> Mask:
        """What follows from a mask, written once."""
        if kept not in self._masks:
            op, ints = self._graph.op, self._graph.ints
            weight = op("Cast", kept, to=TensorProto.FLOAT)
            padded = op("Mul", op("Cast", op("Not", kept), to=TensorProto.FLOAT), self._graph.scalar(MASKED_SCORE))
            total = op("Max", op("ReduceSum", weight, ints(1), keepdims=1), self._graph.scalar(1.0))
            self._masks[kept] = Mask(
                kept,
                shape=op("Shape", kept),
                steps=op("Shape", kept, start=1),
                bias=padded,
                share=op("Unsqueeze", op("Div", weight, total), ints(1)),
            )
        return self._masks[kept]

    def present(self, mask: Mask) -> str:
        """1 where any step is real, else 0, `[B, 1]`; written once."""
        if mask.kept not in self._present:
            weight = self._graph.op("Cast", mask.kept, to=TensorProto.FLOAT)
            self._present[mask.kept] = self._graph.op("ReduceMax", weight, self._graph.ints(1), keepdims=1)
        return self._present[mask.kept]

    # ENCs

    def first(self, steps: str, linears: Sequence[Named]) -> list[str]:
        """relu(W1 x) `[B, T, D]` of each ENC from one wide product."""
        op = self._graph.op
        weight = self.concat([self._weight(linear) for linear in linears], 1)
        bias = self.concat([self._vector(linear, "bias") for linear in linears], 0)
        wide = op("Relu", op("Add", op("MatMul", steps, weight), bias))
        if len(linears) == 1:
            return [wide]
        widths = [cast("nn.Linear", linear.module).out_features for linear in linears]
        return self._graph.split(wide, widths, axis=2)

    def enc(self, hidden: str, encs: Sequence[Named], mask: Mask) -> Encoded:
        """ENCs of one shape behind relu(W1 x) `[G, B T, D]`."""
        first = cast("Enc", encs[0].module)
        dim = first.w2.out_features
        x = self.linear(hidden, [enc.part("w2") for enc in encs])
        layers = []
        for level in range(len(first.layers)):
            x = self._layer(x, [enc.part(f"layers.{level}") for enc in encs], mask)
            layers.append(self.in_time(x, len(encs), mask, dim))
        return Encoded(layers, self.pooled(layers[-1], mask))

    def in_time(self, x: str, group: int, mask: Mask, dim: int) -> str:
        """`[G, B T, D]` -> `[G, B, T, D]`."""
        ints = self._graph.ints
        return self._graph.op("Reshape", x, self._graph.joined(ints(group), mask.shape, ints(dim)))

    def flat(self, x: str, group: int, dim: int) -> str:
        """`[G, B, T, D]` -> `[G, B T, D]`."""
        return self._graph.op("Reshape", x, self._graph.ints(group, -1, dim))

    def pooled(self, x: str, mask: Mask) -> str:
        """The mean over real steps: `[G, B, T, D]` -> `[G, B, D]`."""
        return self._graph.op("Squeeze", self._graph.op("MatMul", mask.share, x), self._graph.ints(2))

    def _layer(self, x: str, layers: Sequence[Named], mask: Mask) -> str:
        op, first = self._graph.op, cast("TransformerLayer", layers[0].module)
        normal = self._norm(x, parts(layers, "attention_norm"))
        guide = self._guide(normal, normal, parts(layers, "guide"), mask, mask) if first.guide is not None else None
        attended = self._attend(self.linear(normal, parts(layers, "qkv")), layers, mask, guide)
        x = op("Add", x, self.linear(attended, parts(layers, "attention_out")))
        return self._feed_forward(x, layers)

    def _feed_forward(self, x: str, layers: Sequence[Named]) -> str:
        op = self._graph.op
        normal = self._norm(x, parts(layers, "feed_forward_norm"))
        wide = op("Gelu", self.linear(normal, parts(layers, "expand")))
        return op("Add", x, self.linear(wide, parts(layers, "contract")))

    def _attend(self, qkv: str, layers: Sequence[Named], mask: Mask, guide: str | None) -> str:
        """Attention of `[G, B T, 3 D]`, each network for itself."""
        first = cast("TransformerLayer", layers[0].module)
        sizes = Sizes(len(layers), first.heads, first.attention_out.in_features)
        return self._attention(self._graph.split(qkv, [sizes.dim] * 3, axis=2), sizes, (mask, mask), guide)

    # Attention between modalities

    def cross(self, x: str, others: str, layers: Sequence[Named], mask: Mask, others_mask: Mask) -> str:
        """Layers of cross-attention: `[G, B T, D]`, `[G, B K, D]` -> `[G, B T, D]`."""
        op, ints, first = self._graph.op, self._graph.ints, cast("CrossLayer", layers[0].module)
        sizes = Sizes(len(layers), first.heads, first.q.in_features)
        normal, heard = self._norm(x, parts(layers, "query_norm")), self._norm(others, parts(layers, "key_norm"))
        q = self.linear(normal, parts(layers, "q"))
        k, v = self._unbiased(heard, parts(layers, "k")), self.linear(heard, parts(layers, "v"))
        guide = None
        if first.guide is not None:
            guide = self._guide(normal, heard, parts(layers, "guide"), mask, others_mask)
        attended = self._attention((q, k, v), sizes, (mask, others_mask), guide)
        out = self.in_time(self.linear(attended, parts(layers, "attention_out")), sizes.group, mask, sizes.dim)
        kept = op("Mul", out, op("Unsqueeze", self.present(others_mask), ints(2)))
        return self._feed_forward(op("Add", x, self.flat(kept, sizes.group, sizes.dim)), layers)

    def _guide(self, queries: str, keys: str, guides: Sequence[Named], mask: Mask, keys_mask: Mask) -> str:
        """lambda M of `[G, B T, D]` and `[G, B K, D]`: `[G, B, 1, T, K]`."""
        op, ints, group = self._graph.op, self._graph.ints, len(guides)
        v_query = self.in_time(self.head(queries, parts(guides, "query")), group, mask, AXES)
        v_key = self.in_time(self._head_product(keys, parts(guides, "key")), group, keys_mask, AXES)
        apart = op("Sub", op("Unsqueeze", v_query, ints(3)), op("Unsqueeze", v_key, ints(2)))
        squared = op("ReduceSum", op("Mul", apart, apart), ints(4), keepdims=0)
        distance = op("Sqrt", op("Add", squared, self._graph.scalar(NEAREST)))
        weights = torch.stack([cast("VadGuide", guide.module).weight for guide in guides])  # [G, 1]
        name = f"{guides[0].name}.weight.of_{group}"
        weight = self._graph.constant(-weights.reshape(group, 1, 1, 1), name)
        return op("Unsqueeze", op("Mul", distance, weight), ints(2))

    # Products, norms and constants

    def linear(self, x: str, linears: Sequence[Named]) -> str:
        """`[G, R, D]` -> `[G, R, E]`."""
        return self._graph.op("Add", self._unbiased(x, linears), self.vectors(linears, "bias"))

    def head(self, x: str, linears: Sequence[Named]) -> str:
        """The same by small layers. Members' graphs hold these weights as torch does, output first."""
        return self._graph.op("Add", self._head_product(x, linears), self.vectors(linears, "bias"))

    def vectors(self, modules: Sequence[Named], which: str) -> str:
        """Vectors `[E]` as `[G, 1, E]`; a single one as it is."""
        if len(modules) == 1:
            return self._vector(modules[0], which)
        stacked = torch.stack([cast("Tensor", getattr(module.module, which)) for module in modules]).unsqueeze(1)
        return self._graph.constant(stacked, f"{modules[0].name}.{which}.of_{len(modules)}")

    def concat(self, tensors: Sequence[str], axis: int) -> str:
        """Tensors in a row; a single one as it is."""
        return tensors[0] if len(tensors) == 1 else self._graph.op("Concat", *tensors, axis=axis)

    def _unbiased(self, x: str, linears: Sequence[Named]) -> str:
        weight = self._stack([self._weight(linear) for linear in linears], linears)
        return self._graph.op("MatMul", x, weight)

    def _head_product(self, x: str, linears: Sequence[Named]) -> str:
        weights = self._stack([self._vector(linear, "weight") for linear in linears], linears)
        perm = [1, 0] if len(linears) == 1 else [0, 2, 1]
        return self._graph.op("MatMul", x, self._graph.op("Transpose", weights, perm=perm))

    def _norm(self, x: str, norms: Sequence[Named]) -> str:
        op, first = self._graph.op, cast("nn.LayerNorm", norms[0].module)
        if len(norms) == 1:
            weight, bias = (self._vector(norms[0], which) for which in ("weight", "bias"))
            return op("LayerNormalization", x, weight, bias, axis=-1, epsilon=first.eps)
        ones = self._graph.constant(torch.ones(first.normalized_shape), f"ones.{first.normalized_shape[0]}")
        normal = op("LayerNormalization", x, ones, axis=-1, epsilon=first.eps)
        return op("Add", op("Mul", normal, self.vectors(norms, "weight")), self.vectors(norms, "bias"))

    def _stack(self, weights: Sequence[str], linears: Sequence[Named]) -> str:
        """Matrices in a row as `[G, rows, columns]`; a single one as it is: onnxruntime packs it in advance."""
        if len(weights) == 1:
            return weights[0]
        return self._graph.op("Concat", *(self._graph.op("Unsqueeze", w, self._graph.ints(0)) for w in weights), axis=0)

    def _weight(self, linear: Named) -> str:
        """A weight `[D, E]`, input first, as the members' graphs hold it."""
        weight = cast("nn.Linear", linear.module).weight
        return self._graph.constant(weight.t(), f"{linear.name}.weight")

    def _vector(self, module: Named, which: str) -> str:
        return self._graph.constant(cast("Tensor", getattr(module.module, which)), f"{module.name}.{which}")


def parts(modules: Sequence[Named], path: str) -> list[Named]:
    """The same network within each."""
    return [module.part(path) for module in modules]
