"""Graphs against networks: does a bundle compute what was trained, each component at its precision?

A figure is one difference and what is accepted, named after its component: "encoder text, neighbours". The networks are
float32 in torch, however a graph computes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnx

from export.errors import ParityError
from export.graph_writer import CONTRIBUTED, CONTRIBUTED_VERSION
from export.parity_encoders import compare
from export.parity_graphs import Differences, ensemble_differences, member_difference, meta_difference
from export.parity_utterances import bundle_posteriors, example_utterances
from export.precision import ENSEMBLE_COMPONENT, META, Precision, Precisions
from export.references import Reference, reference_of
from model.bundle import ENSEMBLE, Bundle, Manifest, fallback_file, graph_file
from model.network.checkpoint import Checkpoint
from model.onnx_encoders import with_graphs
from model.spec import EnsembleSpec

BUNDLE: Final = "bundle"
REFUSED: Final = "graphs that ONNX's checker refuses"
OTHER_OPSET: Final = "graphs of another opset"
_FEW_UTTERANCES: Final = 24


def _by_precision(*, half: float, int8: float) -> Mapping[Precision, float]:
    """Limits of what is not float32."""
    return MappingProxyType({"fp16-weights": half, "fp16": half, "bf16": half, "int8": int8})


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest accepted differences.

    Attributes:
        hidden: of a float32 encoder's hidden states from its network, relative L2.
        posterior: of a float32 graph's posterior from its network.
        coarse_hidden: the same as `hidden` for other precisions. Wide: it finds mistakes; what counts is the posterior.
        coarse_posterior: the same as `posterior` for other precisions.
        coarse_invariance: of what padding and neighbours do to results in coarser arithmetic: a value at the edge of two
            steps goes either way. In float32 `hidden` and `posterior` hold for it, however weights are stored.
        other_class: share of utterances whose top class a bundle with an int8 component may change.
        utterances: how many an int8 component is judged by.
    """

    hidden: float = 1e-5
    posterior: float = 1e-5
    coarse_hidden: Mapping[Precision, float] = field(default_factory=lambda: _by_precision(half=2e-2, int8=1e-1))
    coarse_posterior: Mapping[Precision, float] = field(default_factory=lambda: _by_precision(half=5e-3, int8=2e-2))
    coarse_invariance: Mapping[Precision, float] = field(default_factory=lambda: _by_precision(half=5e-3, int8=1e-2))
    other_class: float = 5e-3
    utterances: int = 400

    def accepted(self, precision: Precision) -> float:
        """What is accepted of a posterior's difference."""
        return self.posterior if precision == "fp32" else self.coarse_posterior[precision]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured difference and what is accepted."""

    name: str
    value: float
    limit: float

    @property
    def passes(self) -> bool:
        """Whether it is accepted; NaN is not."""
        return self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Component:
    """A part of a bundle that has a graph.

    Attributes:
        name: "encoder NAME", "member NAME", "meta-classifier", "ensemble" or "fallback NUMBER".
        file: its graph; large constants may lie beside it in a file that ends in ".weights".
        precision: its arithmetic.
    """

    name: str
    file: str
    precision: Precision


def components(manifest: Manifest) -> tuple[Component, ...]:
    """The parts of a bundle, encoders first."""
    precisions = {**Precisions().of(manifest.ensemble), **manifest.precisions}
    return components_of(manifest.ensemble, precisions, len(manifest.fallbacks))


def components_of(spec: EnsembleSpec, precisions: Mapping[str, str], fallbacks: int = 0) -> tuple[Component, ...]:
    """The parts of an ensemble at these precisions (`Precisions.of`), and so many fallbacks at the ensemble's."""
    files = {f"encoder {encoder.name}": graph_file(encoder) for encoder in with_graphs(spec)}
    files |= {f"member {member.name}": f"members/{member.name}.onnx" for member in spec.members}
    files |= {META: "meta.onnx", ENSEMBLE_COMPONENT: ENSEMBLE}
    found = [Component(name, file, _known(precisions[name])) for name, file in files.items()]
    alike = _known(precisions[ENSEMBLE_COMPONENT])
    numbers = range(1, fallbacks + 1)
    return (*found, *(Component(_fallback(number), fallback_file(number), alike) for number in numbers))


def _fallback(number: int) -> str:
    return f"fallback {number}"


def _known(precision: str) -> Precision:
    return Precisions.parse([f"encoders={precision}"]).chosen["encoders"]


def check(figures: Sequence[Figure]) -> None:
    """Accepts figures that all pass.

    Raises:
        ParityError: naming the worst.
    """
    failed = [figure for figure in figures if not figure.passes]
    if failed:
        worst = max(failed, key=lambda figure: np.nan_to_num(figure.value, nan=np.inf) / max(figure.limit, 1e-30))
        raise ParityError(
            f"{worst.name}: the difference is {worst.value:.3g}, at most {worst.limit:g} is accepted "
            f"({len(failed)} of {len(figures)} figures fail)"
        )


def measure(checkpoint: Checkpoint, bundle: Bundle, limits: Limits) -> list[Figure]:
    """Every graph of a bundle against the checkpoint it should come from.

    Raises:
        ParityError: if the bundle has other encoders or members, if ONNX's checker refuses a graph, or if one is of
            another operator set.
        PrecisionError: if the manifest names a precision that is not known.
        SourceError: if the weights of an encoder are not to be had.
    """
    parts = {part.name: part for part in components(bundle.manifest)}
    fallbacks = len(checkpoint.fallbacks)
    wanted = {part.name for part in components_of(checkpoint.spec, Precisions().of(checkpoint.spec), fallbacks)}
    if wanted != parts.keys():
        raise ParityError(f"the bundle has {', '.join(sorted(parts))}, the checkpoint {', '.join(sorted(wanted))}")
    figures = _facts(bundle, parts.values())
    check(figures)  # what ONNX refuses is not run
    for encoder in with_graphs(checkpoint.spec):
        part = parts[f"encoder {encoder.name}"]
        found = compare(reference_of(encoder), bundle.path / part.file)
        figures.append(Figure(part.name, found.network, _limit(part, limits.hidden, limits.coarse_hidden)))
        invariance = _invariance(part, limits.hidden, limits)
        figures.append(Figure(f"{part.name}, neighbours", found.neighbours, invariance))
        if found.padding is not None:
            figures.append(Figure(f"{part.name}, padding", found.padding, invariance))
    for member in checkpoint.members:
        part = parts[f"member {member.spec.name}"]
        difference = member_difference(checkpoint, member, bundle.path / part.file)
        figures.append(Figure(part.name, difference, limits.accepted(part.precision)))
    figures.append(Figure(META, meta_difference(checkpoint, bundle.path / parts[META].file), limits.posterior))
    ensembles = {ENSEMBLE_COMPONENT: checkpoint}
    ensembles |= {_fallback(number): checkpoint.fallback(number) for number in range(1, fallbacks + 1)}
    for name, trained in ensembles.items():
        differences = ensemble_differences(trained, bundle.path / parts[name].file)
        figures += _ensemble_figures(differences, parts[name], limits)
    return figures + _bundle_figures(checkpoint, bundle, parts, limits)


def encoder_figure(reference: Reference[Any], graph: Path, limits: Limits) -> Figure:
    """The float32 graph of an encoder against its network, before it is given another precision."""
    return Figure(f"encoder {reference.name}, float32", compare(reference, graph).network, limits.hidden)


def _facts(bundle: Bundle, parts: Iterable[Component]) -> list[Figure]:
    """What is not a difference but is checked of every graph: ONNX's own checker, and the operator set."""
    refused = others = 0
    for part in parts:
        path = bundle.path / part.file
        try:
            onnx.checker.check_model(str(path), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
            refused += 1
        opsets = {entry.domain: entry.version for entry in onnx.load(path, load_external_data=False).opset_import}
        others += opsets not in (
            {"": bundle.manifest.opset},
            {"": bundle.manifest.opset, CONTRIBUTED: CONTRIBUTED_VERSION},
        )
    return [Figure(REFUSED, refused, 0), Figure(OTHER_OPSET, others, 0)]


def _ensemble_figures(found: Differences, part: Component, limits: Limits) -> list[Figure]:
    invariance = _invariance(part, limits.posterior, limits)
    return [
        Figure(part.name, found.network, limits.accepted(part.precision)),
        Figure(f"{part.name}, padding", found.padding, invariance),
        Figure(f"{part.name}, neighbours", found.neighbours, invariance),
    ]


def _bundle_figures(
    checkpoint: Checkpoint, bundle: Bundle, parts: Mapping[str, Component], limits: Limits
) -> list[Figure]:
    """What a client sees: made utterances through encoders, features and ensemble."""
    served = [part for part in parts.values() if part.name == ENSEMBLE_COMPONENT or part.name.startswith("encoder ")]
    coarsest = max(limits.accepted(part.precision) for part in served)
    int8 = any(part.precision == "int8" for part in served)
    utterances = example_utterances(limits.utterances if int8 else _FEW_UTTERANCES)
    expected, found = bundle_posteriors(checkpoint, bundle.path, utterances)
    figures = [Figure(BUNDLE, float(np.abs(expected - found).max()), coarsest)]
    if int8:
        changed = float((expected.argmax(axis=1) != found.argmax(axis=1)).mean())
        figures.append(Figure(f"{BUNDLE}, other top class", changed, limits.other_class))
    return figures


def _limit(part: Component, exact: float, coarse: Mapping[Precision, float]) -> float:
    return exact if part.precision == "fp32" else coarse[part.precision]


def _invariance(part: Component, exact: float, limits: Limits) -> float:
    """What padding and neighbours may do: nothing but rounding where the arithmetic is float32, however weights are stored."""
    return exact if part.precision in ("fp32", "fp16-weights") else limits.coarse_invariance[part.precision]
