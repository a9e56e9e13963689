"""Which arithmetic each part of a bundle has, and the transforms that give it.

    fp32           as exported; large constants that float16 holds exactly are stored so
    fp16-weights   weights of products stored in float16 and a text encoder's table in int8; arithmetic in float32
    fp16, bf16     matrix products and convolutions in 16 bits; norms, softmax, reductions and sums in float32
    int8           products by constant matrices in int8, a scale per row and per column; the rest in float32

Components are called "encoder NAME", "member NAME", "meta-classifier" and "ensemble"; docs/export.md has what each costs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Self, get_args

import onnx

from export.errors import ExportError
from export.group_attention import Kernel
from export.half import compute_half
from export.int8 import compute_int8
from export.quantize import compact, store_half
from model.onnx_encoders import with_graphs
from model.spec import EnsembleSpec

Precision = Literal["fp32", "fp16-weights", "fp16", "bf16", "int8"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)

META: Final = "meta-classifier"
ENSEMBLE_COMPONENT: Final = "ensemble"
_GROUPS: Final = ("encoders", "members", "ensemble")
_KINDS: Final = ("encoder", "member")


class PrecisionError(ExportError):
    """Precisions that cannot be had; the message lists every mistake."""


@dataclass(frozen=True, slots=True)
class Precisions:
    """The precision of every component.

    Attributes:
        chosen: "encoders", "members", "ensemble", "encoder.NAME" or "member.NAME" -> precision. "members" holds for the
            ensemble too, which is what is served, unless "ensemble" is there.
    """

    chosen: Mapping[str, Precision] = field(default_factory=dict)

    @classmethod
    def parse(cls, settings: Sequence[str]) -> Self:
        """Reads settings like "encoders=fp16" and "encoder.whisper=int8".

        Raises:
            PrecisionError: with every mistake in them.
        """
        wrong: list[str] = []
        chosen: dict[str, Precision] = {}
        for setting in settings:
            what, equals, precision = (part.strip() for part in setting.partition("="))
            kind, dot, name = what.partition(".")
            if not equals or (what not in _GROUPS and not (kind in _KINDS and dot and name)):
                expected = "encoders=P, members=P, ensemble=P, encoder.NAME=P or member.NAME=P"
                wrong.append(f"{setting!r}: a precision is given as {expected}")
            elif precision not in PRECISIONS:
                wrong.append(f"{setting!r}: the precisions are {', '.join(PRECISIONS)}")
            elif what in chosen:
                wrong.append(f"{setting!r}: {what} has a precision already, {chosen[what]}")
            else:
                chosen[what] = precision
        _refuse(wrong)
        return cls(chosen)

    def of(self, spec: EnsembleSpec) -> dict[str, Precision]:
        """Component -> precision, as the manifest records it.

        A text encoder is stored in 16 bits where nothing else is said, everything else is float32. The meta-classifier is
        an output layer: always float32.

        Raises:
            PrecisionError: if an encoder or member is named that the ensemble does not have.
        """
        encoders = {f"encoder.{encoder.name}": encoder for encoder in with_graphs(spec)}
        members = [f"member.{member.name}" for member in spec.members]
        known = {*_GROUPS, *encoders, *members}
        _refuse(f"{what}: there are {', '.join(sorted(known))}" for what in self.chosen if what not in known)
        everyone = self.chosen.get("members", "fp32")
        found: dict[str, Precision] = {}
        for key, encoder in encoders.items():
            usual: Precision = "fp16-weights" if encoder.kind == "text-transformer" else "fp32"
            found[f"encoder {encoder.name}"] = self.chosen.get(key, self.chosen.get("encoders", usual))
        for member in spec.members:
            found[f"member {member.name}"] = self.chosen.get(f"member.{member.name}", everyone)
        found[META] = "fp32"
        found[ENSEMBLE_COMPONENT] = self.chosen.get("ensemble", everyone)
        return found


def kernel_of(precision: Precision) -> Kernel:
    """Of attention in a graph of this precision: 16 bits are for GPUs, and TensorRT fuses what it is given in parts."""
    return "composed" if precision in ("fp16", "bf16") else "fused"


def _refuse(wrong: Iterable[str]) -> None:
    if mistakes := list(wrong):
        raise PrecisionError("; ".join(mistakes))


def converted(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """A float32 graph in another precision, changed in place; returns the graph.

    Raises:
        ExportError: if 16 bits cannot hold one of its constants.
    """
    if precision == "fp16-weights":
        store_half(model)
    elif precision == "int8":
        compute_int8(model)
    elif precision != "fp32":
        compute_half(model, precision)
    return compact(model)
