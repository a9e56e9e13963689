"""Attention of networks of one shape, written for a group, in one of two ways that compute the same.

    composed   matrix products with the scores and their softmax between them, in ONNX's own operators: what 16 bits and
               TensorRT take apart and put together as they like
    fused      ONNX Runtime's `MultiHeadAttention`, which on a CPU goes over keys block by block and never holds all scores:
               for 1200 steps and 16 heads it takes half the time (docs/LOG.md). It does so without a mask only, so the mask
               goes in as one more number of every query (1) and key (its bias): their product adds the bias to the score

Shapes: B = batch, T = steps, K = steps that are attended to, D = width of a member, G = networks in a group, H = heads. Rows of
a group are flat: `[G, B T, D]`.

Source: Dao et al., "FlashAttention", arXiv:2205.14135, for the fused way.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from export.graph_writer import CONTRIBUTED, GraphWriter

Kernel = Literal["composed", "fused"]


@dataclass(frozen=True, slots=True)
class Mask:
    """What a group needs of a mask `[B, T]`: names of tensors.

    Attributes:
        kept: `bool [B, T]`.
        shape: B and T.
        steps: T.
        bias: of the scores of keys `[B, T]`.
        share: of each step in the mean `[B, 1, T]`.
    """

    kept: str
    shape: str
    steps: str
    bias: str
    share: str


@dataclass(frozen=True, slots=True)
class Sizes:
    """G, H and D."""

    group: int
    heads: int
    dim: int

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.dim // self.heads

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return 1.0 / math.sqrt(self.head)


class GroupAttention:
    """Writes softmax(Q K^T / sqrt(d_k) + guide) V into a graph.

    Args:
        graph: the graph.
        kernel: which way. What has a guide, which no product of queries and keys gives, is composed in either.
    """

    def __init__(self, graph: GraphWriter, kernel: Kernel) -> None:
        self._graph, self._kernel = graph, kernel
        self._made: dict[tuple[str, str, Sizes], str] = {}

    def __call__(self, qkv: Sequence[str], sizes: Sizes, masks: tuple[Mask, Mask], guide: str | None) -> str:
        """What is heard, `[G, B T, D]`.

        Args:
            qkv: queries `[G, B T, D]`, keys and values `[G, B K, D]`.
            sizes: of the group.
            masks: of the queries and of the keys.
            guide: added to the scores, `[G, B, 1, T, K]`.
        """
        fused = guide is None and self._kernel == "fused"
        heard = self._fused(qkv, sizes, masks) if fused else self._composed(qkv, sizes, masks, guide)
        return self._graph.op("Reshape", heard, self._graph.ints(sizes.group, -1, sizes.dim))

    def _composed(self, qkv: Sequence[str], sizes: Sizes, masks: tuple[Mask, Mask], guide: str | None) -> str:
        op, (q, k, v), (mask, keys) = self._graph.op, qkv, masks
        scaled = op("Mul", self._in_heads(q, sizes, mask, [0, 1, 3, 2, 4]), self._graph.scalar(sizes.scale))
        scores = op("MatMul", scaled, self._in_heads(k, sizes, keys, [0, 1, 3, 4, 2]))
        scores = op("Add", scores, op("Unsqueeze", keys.bias, self._graph.ints(1, 2)))
        if guide is not None:
            scores = op("Add", scores, guide)
        attended = op("MatMul", op("Softmax", scores, axis=-1), self._in_heads(v, sizes, keys, [0, 1, 3, 2, 4]))
        return op("Transpose", attended, perm=[0, 1, 3, 2, 4])

    def _in_heads(self, x: str, sizes: Sizes, mask: Mask, perm: list[int]) -> str:
        """`[G, B T, D]` as `[G, B, T, H, D / H]`, its axes in another order."""
        ints = self._graph.ints
        shape = self._graph.joined(ints(sizes.group), mask.shape, ints(sizes.heads, sizes.head))
        return self._graph.op("Transpose", self._graph.op("Reshape", x, shape), perm=perm)

    def _fused(self, qkv: Sequence[str], sizes: Sizes, masks: tuple[Mask, Mask]) -> str:
        (q, k, v), (mask, keys) = qkv, masks
        queries = self._extended(q, sizes, mask, self._ones(sizes, mask))
        heard = self._extended(k, sizes, keys, self._biases(sizes, keys))
        values = self._graph.op("Reshape", v, self._rows(keys, sizes.dim))
        return self._graph.op(
            "MultiHeadAttention", queries, heard, values, domain=CONTRIBUTED, num_heads=sizes.heads, scale=sizes.scale
        )

    def _rows(self, mask: Mask, *last: int) -> str:
        """The shape `[G B, T, ...]`."""
        return self._graph.joined(self._graph.ints(-1), mask.steps, self._graph.ints(*last))

    def _extended(self, x: str, sizes: Sizes, mask: Mask, further: str) -> str:
        """`[G, B T, D]` with one more number for each head, `[G B, T, D + H]`."""
        op = self._graph.op
        heads = op("Reshape", x, self._rows(mask, sizes.heads, sizes.head))
        return op("Reshape", op("Concat", heads, further, axis=3), self._graph.ints(0, 0, sizes.dim + sizes.heads))

    def _ones(self, sizes: Sizes, mask: Mask) -> str:
        """`[G B, T, H, 1]`, for queries."""
        return self._once("ones", sizes, mask, lambda: self._graph.scalar(1.0))

    def _biases(self, sizes: Sizes, mask: Mask) -> str:
        """The bias of each key before scores are scaled, `[G B, T, H, 1]`."""
        op = self._graph.op

        def values() -> str:
            raised = op("Mul", mask.bias, self._graph.scalar(1.0 / sizes.scale))
            return op("Unsqueeze", raised, self._graph.ints(2, 3))

        return self._once("biases", sizes, mask, values)

    def _once(self, what: str, sizes: Sizes, mask: Mask, values: Callable[[], str]) -> str:
        """Numbers that go with every step of a group, `[B, T, 1, 1]` or one for all, as `[G B, T, H, 1]`; written once."""
        if (what, mask.kept, sizes) not in self._made:
            op, ints = self._graph.op, self._graph.ints
            shape = self._graph.joined(ints(sizes.group), mask.shape, ints(sizes.heads, 1))
            spread = op("Expand", values(), shape)
            self._made[what, mask.kept, sizes] = op("Reshape", spread, self._rows(mask, sizes.heads, 1))
        return self._made[what, mask.kept, sizes]
