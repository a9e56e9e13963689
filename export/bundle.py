"""Writing a bundle: export, check, and only then move it into place."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from export.cost import component_costs
from export.encoders import write_graph
from export.errors import DestinationError
from export.parity import Figure, Limits, check, encoder_figure, measure
from export.precision import ENSEMBLE_COMPONENT, Precision, Precisions, converted, kernel_of
from export.references import reference_of
from export.shared_weights import WeightStore
from export.to_onnx import OPSET, export_ensemble, export_member, export_meta
from model.bundle import (
    ADAPTATION,
    ENSEMBLE,
    Manifest,
    ensemble_inputs,
    ensemble_outputs,
    fallback_file,
    graph_file,
    read_bundle,
    tokenizer_file,
    write_manifest,
)
from model.network.checkpoint import Checkpoint, load_checkpoint
from model.network.speech_encoder import described
from model.onnx_encoders import with_graphs
from model.sources import WEIGHTS, resolve_encoder, sha256_of
from model.spec import EncoderSpec, EnsembleSpec

Progress = Callable[[str, int, int], None]
"""(what, done, total)."""


def write_bundle(
    checkpoint_folder: Path,
    out: Path,
    progress: Progress = lambda what, done, total: None,
    limits: Limits | None = None,
    precisions: Precisions | None = None,
) -> Manifest:
    """Exports a checkpoint to a new folder `out`, which appears only once everything is written and checked.

    Args:
        checkpoint_folder: what `train` wrote.
        out: the bundle's folder; must not exist.
        progress: told what is done.
        limits: largest accepted differences from the networks.
        precisions: of encoders, members and ensemble.

    Raises:
        DestinationError: if `out` exists.
        PrecisionError: if a precision is chosen for what the ensemble does not have.
        ParityError: if a graph does not compute what its network computes; nothing is written then.
        SpecError: if the checkpoint is not complete.
        SourceError: if the weights of an encoder are not to be had.
    """
    if out.exists():
        raise DestinationError(f"{out} exists already: remove it or name another folder")
    checkpoint, limits = load_checkpoint(checkpoint_folder), limits or Limits()
    chosen = (precisions or Precisions()).of(checkpoint.spec)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        staged = Path(temporary) / out.name
        staged.mkdir()
        figures = _write_graphs(checkpoint, chosen, staged, progress, limits)
        if checkpoint.adaptation is not None:
            np.save(staged / ADAPTATION, checkpoint.adaptation.reference)
        (staged / "MODEL_CARD.md").write_text(checkpoint.model_card, encoding="utf-8")
        described = replace(
            _manifest(checkpoint, staged),
            precisions=dict(chosen),
            kernels=_kernels(checkpoint, chosen),
            costs=component_costs(checkpoint, staged),
        )
        manifest = write_manifest(staged, described)
        figures += measure(checkpoint, read_bundle(staged), limits)
        check(figures)
        parity = {figure.name: figure.value for figure in figures}
        tolerances = {figure.name: figure.limit for figure in figures}
        manifest = write_manifest(staged, replace(manifest, parity=parity, tolerances=tolerances))
        read_bundle(staged)
        os.replace(staged, out)
    return manifest


def _kernels(checkpoint: Checkpoint, precisions: Mapping[str, Precision]) -> dict[str, str]:
    """Of what is written node by node: members and ensemble."""
    components = [*(f"member {member.spec.name}" for member in checkpoint.members), ENSEMBLE_COMPONENT]
    return {component: kernel_of(precisions[component]) for component in components}


def _write_graphs(
    checkpoint: Checkpoint, precisions: Mapping[str, Precision], folder: Path, progress: Progress, limits: Limits
) -> list[Figure]:
    """Writes every graph and tokenizer; measures the encoders' float32 graphs, which may not stay."""
    total = len(checkpoint.members) + len(checkpoint.fallbacks) + 3
    for name in ("encoders", "members", "tokenizers"):
        (folder / name).mkdir()
    figures = _write_encoders(checkpoint.spec, precisions, folder, limits)
    progress("export", 1, total)
    store = WeightStore(folder)
    for done, member in enumerate(checkpoint.members, 2):
        precision = precisions[f"member {member.spec.name}"]
        graph = converted(export_member(member, kernel_of(precision)), precision)
        store.write_with_weights(graph, f"members/{member.spec.name}.onnx")
        progress("export", done, total)
    onnx.save(export_meta(checkpoint.meta, len(checkpoint.members)), folder / "meta.onnx")
    progress("export", len(checkpoint.members) + 2, total)
    precision = precisions[ENSEMBLE_COMPONENT]
    parts = {ENSEMBLE: checkpoint}
    parts |= {fallback_file(n): checkpoint.fallback(n) for n in range(1, len(checkpoint.fallbacks) + 1)}
    for file, part in parts.items():
        store.write(converted(export_ensemble(part.ensemble(), kernel_of(precision)), precision), file)
    progress("export", total, total)
    return figures


def _write_encoders(
    spec: EnsembleSpec, precisions: Mapping[str, Precision], folder: Path, limits: Limits
) -> list[Figure]:
    figures: list[Figure] = []
    for encoder in with_graphs(spec):
        path = folder / graph_file(encoder)
        figures.append(_write_float32(encoder, path, limits))
        check(figures)  # the other graphs take minutes
        write_graph(converted(onnx.load(path), precisions[f"encoder {encoder.name}"]), path)
        if encoder.kind == "text-transformer":
            shutil.copyfile(resolve_encoder(encoder) / "tokenizer.json", folder / tokenizer_file(encoder.name))
    return figures


def _write_float32(encoder: EncoderSpec, path: Path, limits: Limits) -> Figure:
    """In a function of its own: one encoder is in memory at a time, and none while its graph is converted."""
    reference = reference_of(encoder)
    write_graph(reference.graph(), path)
    return encoder_figure(reference, path, limits)


def _manifest(checkpoint: Checkpoint, folder: Path) -> Manifest:
    spec = replace(checkpoint.spec, encoders=tuple(_located(e, folder) for e in checkpoint.spec.encoders))
    return Manifest(
        name=checkpoint.name,
        ensemble=spec,
        temperature=checkpoint.temperature,
        abstain_below=checkpoint.abstain_below,
        metrics=checkpoint.metrics,
        training=checkpoint.training,
        opset=OPSET,
        tolerances={},
        parity={},
        inputs=ensemble_inputs(spec),
        outputs=ensemble_outputs(spec),
        adaptation_strength=checkpoint.adaptation.strength if checkpoint.adaptation else None,
        lineage=checkpoint.lineage,
        fallbacks=tuple(fallback.spec for fallback in checkpoint.fallbacks),
        prior_log_ratio=checkpoint.prior_log_ratio,
    )


def _located(encoder: EncoderSpec, folder: Path) -> EncoderSpec:
    """The encoder as the bundle describes it: with its own graph, or with the hash of the weights outside."""
    graph = graph_file(encoder)
    if encoder.kind in ("text-transformer", "speech-transformer"):
        if not (folder / graph).exists():  # no member reads it
            return encoder
        known = described(encoder, resolve_encoder(encoder)) if encoder.kind == "speech-transformer" else encoder
        return replace(known, sources=(f"bundle:{graph}",), sha256=sha256_of(folder / graph))
    if encoder.kind in WEIGHTS:
        return replace(encoder, sha256=sha256_of(resolve_encoder(encoder) / WEIGHTS[encoder.kind]))
    return encoder
