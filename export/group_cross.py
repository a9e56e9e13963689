"""Members of the family "vga" in a graph: `model.network.cross_fusion` and `model.network.eaaf`, written for a group.

Shapes: B = batch, T = steps, D = width of a member, G = members in a group, N = modalities, S = terms of a fusion.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import cast

import torch

from export.graph_writer import GraphWriter
from export.group_attention import Mask
from export.group_layers import GroupLayers, Named, parts
from model.network.cross_fusion import CrossFusion
from model.network.eaaf import LARGEST_SCORE, QUIET, FreeGates
from model.network.enc import MASKED_SCORE


class GroupCross:
    """Writes cross-attention and gated fusion into a graph.

    Args:
        graph: the graph.
        layers: of the same graph.
    """

    def __init__(self, graph: GraphWriter, layers: GroupLayers) -> None:
        self._graph, self._layers = graph, layers

    def fused(
        self, members: Sequence[Named], steps: Mapping[str, str], masks: Mapping[str, Mask]
    ) -> tuple[str, str | None]:
        """What the join reads, `[G, B, E]`, and the shares `[G, B, S]` where members have them.

        Args:
            members: of one shape.
            steps: modality -> last layer of the members' ENCs, `[G, B, T, D]`.
            masks: modality -> its steps' mask.
        """
        spec = cast("CrossFusion", members[0].module).spec
        crossed = self._cross(members, steps, masks)
        pooled = [self._layers.pooled(crossed[name], masks[name]) for name in spec.modalities]
        if spec.gates == "none":
            return self._layers.concat(pooled, 2), None
        op = self._graph.op
        terms = [*pooled, *(op("Mul", a, b) for a, b in combinations(pooled, 2))]
        if spec.gates == "free":
            return self._free(members, terms, len(pooled)), None
        return self._shared(members, terms, [self._layers.present(masks[name]) for name in spec.modalities])

    def _cross(
        self, members: Sequence[Named], steps: Mapping[str, str], masks: Mapping[str, Mask]
    ) -> Mapping[str, str]:
        layers, spec = self._layers, cast("CrossFusion", members[0].module).spec
        names, group = spec.modalities, len(members)
        others = {name: [other for other in names if other != name] for name in names}
        joined = {n: layers.mask(layers.concat([masks[o].kept for o in rest], 1)) for n, rest in others.items()}
        for level in range(spec.layers):
            heard = {name: layers.concat([steps[other] for other in rest], 2) for name, rest in others.items()}
            steps = {
                name: layers.in_time(
                    layers.cross(
                        layers.flat(steps[name], group, spec.dim),
                        layers.flat(heard[name], group, spec.dim),
                        parts(members, f"crossings.{level}.{name}"),
                        masks[name],
                        joined[name],
                    ),
                    group,
                    masks[name],
                    spec.dim,
                )
                for name in names
            }
        return steps

    def _free(self, members: Sequence[Named], terms: Sequence[str], modalities: int) -> str:
        op, spec = self._graph.op, cast("CrossFusion", members[0].module).spec
        gates = op("Sigmoid", self._layers.head(self._layers.concat(terms, 2), parts(members, "gates.gates")))
        weights = self._graph.split(gates, [spec.dim] * modalities, axis=2)
        betas = torch.stack([cast("FreeGates", gate.module).beta for gate in parts(members, "gates")])  # [G, pairs]
        for pair, beta in enumerate(betas.unbind(dim=1)):
            name = f"{members[0].name}.gates.beta.{pair}.of_{len(members)}"
            weights.append(self._graph.constant(beta.reshape(-1, 1, 1), name))
        return op("Sum", *(op("Mul", weight, term) for weight, term in zip(weights, terms, strict=True)))

    def _shared(self, members: Sequence[Named], terms: Sequence[str], present: Sequence[str]) -> tuple[str, str]:
        op, scalar = self._graph.op, self._graph.scalar
        units = [self._unit(term) for term in terms]
        hidden = op("Relu", self._layers.head(self._layers.concat(units, 2), parts(members, "gates.hidden")))
        scores = self._layers.head(hidden, parts(members, "gates.scores"))
        scores = op("Mul", op("Tanh", op("Div", scores, scalar(LARGEST_SCORE))), scalar(LARGEST_SCORE))
        there = self._layers.concat([*present, *(op("Mul", a, b) for a, b in combinations(present, 2))], 1)
        absent = op("Mul", op("Sub", scalar(1.0), there), scalar(MASKED_SCORE))
        shares = op("Softmax", op("Add", scores, absent), axis=-1)
        each = self._graph.split(shares, [1] * len(terms), axis=2)
        return op("Sum", *(op("Mul", s, unit) for s, unit in zip(each, units, strict=True))), shares

    def _unit(self, x: str) -> str:
        op = self._graph.op
        square = op("ReduceMean", op("Mul", x, x), self._graph.ints(2), keepdims=1)
        return op("Div", x, op("Sqrt", op("Add", square, self._graph.scalar(QUIET))))
