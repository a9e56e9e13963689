"""Writing a bundle: export, check, and only then move it into place."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from export.errors import DestinationError
from export.parity import Figure, Limits, TextReference, check, measure, measure_text_graph
from export.quantize import compact, shrink_text_encoder
from export.shared_weights import WeightStore
from export.to_onnx import (
    OPSET,
    export_ensemble,
    export_member,
    export_meta,
    export_text_encoder,
    export_whisper_encoder,
)
from model.bundle import (
    ENSEMBLE,
    Manifest,
    ensemble_inputs,
    ensemble_outputs,
    graph_file,
    read_bundle,
    tokenizer_file,
    write_manifest,
)
from model.network.checkpoint import Checkpoint, load_checkpoint
from model.network.whisper_encoder import load_whisper_encoder
from model.sources import WEIGHTS, resolve_encoder, sha256_of
from model.spec import EncoderSpec, EnsembleSpec

Progress = Callable[[str, int, int], None]
"""(what, done, total)."""


def write_bundle(
    checkpoint_folder: Path,
    out: Path,
    progress: Progress = lambda what, done, total: None,
    limits: Limits | None = None,
) -> Manifest:
    """Exports a checkpoint to a new folder `out`, which appears only once everything is written and checked.

    Args:
        checkpoint_folder: what `train` wrote.
        out: the bundle's folder; must not exist.
        progress: told what is done.
        limits: largest accepted differences from the networks.

    Raises:
        DestinationError: if `out` exists.
        ParityError: if a graph does not compute what its network computes; nothing is written then.
        SpecError: if the checkpoint is not complete.
        SourceError: if the weights of an encoder are not to be had.
    """
    if out.exists():
        raise DestinationError(f"{out} exists already: remove it or name another folder")
    checkpoint, limits = load_checkpoint(checkpoint_folder), limits or Limits()
    text = text_reference(checkpoint.spec)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        staged = Path(temporary) / out.name
        staged.mkdir()
        figures = _write_graphs(checkpoint, text, staged, progress, limits)
        (staged / "MODEL_CARD.md").write_text(checkpoint.model_card, encoding="utf-8")
        manifest = write_manifest(staged, _manifest(checkpoint, staged))
        figures += measure(checkpoint, read_bundle(staged), text, limits)
        check(figures)
        parity = {figure.name: figure.value for figure in figures}
        tolerances = {figure.name: figure.limit for figure in figures}
        manifest = write_manifest(staged, replace(manifest, parity=parity, tolerances=tolerances))
        read_bundle(staged)
        os.replace(staged, out)
    return manifest


def text_reference(spec: EnsembleSpec) -> TextReference | None:
    """The text encoder in torch, None where the ensemble reads no text.

    Raises:
        SourceError: if no source has its weights.
    """
    encoder = next((encoder for encoder in spec.encoders if encoder.kind == "text-transformer"), None)
    return TextReference(encoder) if encoder else None


def _write_graphs(
    checkpoint: Checkpoint, text: TextReference | None, folder: Path, progress: Progress, limits: Limits
) -> list[Figure]:
    """Writes every graph and tokenizer; measures the encoders' graphs, of which the float32 one of text does not stay."""
    encoders = {encoder.name: encoder for encoder in checkpoint.spec.encoders}
    total = len(checkpoint.members) + 3
    for name in ("encoders", "members", "tokenizers"):
        (folder / name).mkdir()
    figures = _write_encoders(checkpoint.spec, text, folder, limits)
    progress("export", 1, total)
    store = WeightStore(folder)
    for done, member in enumerate(checkpoint.members, 2):
        store.write_with_weights(compact(export_member(member, encoders)), f"members/{member.spec.name}.onnx")
        progress("export", done, total)
    onnx.save(export_meta(checkpoint.meta, len(checkpoint.members)), folder / "meta.onnx")
    progress("export", total - 1, total)
    store.write(compact(export_ensemble(checkpoint.ensemble())), ENSEMBLE)
    progress("export", total, total)
    return figures


def _write_encoders(spec: EnsembleSpec, text: TextReference | None, folder: Path, limits: Limits) -> list[Figure]:
    figures: list[Figure] = []
    for encoder in spec.encoders:
        if encoder.kind == "text-transformer" and text is not None:
            graph = export_text_encoder(text.network)
            figures.append(measure_text_graph(text, graph.SerializeToString(), limits))
            onnx.save(shrink_text_encoder(graph), folder / graph_file(encoder))
            shutil.copyfile(text.folder / "tokenizer.json", folder / tokenizer_file(encoder.name))
        if encoder.kind == "whisper-onnx":
            onnx.save(compact(export_whisper_encoder(load_whisper_encoder(encoder))), folder / graph_file(encoder))
    check(figures)  # the other graphs take minutes
    return figures


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
    )


def _located(encoder: EncoderSpec, folder: Path) -> EncoderSpec:
    """The encoder as the bundle describes it: with its own graph, or with the hash of the weights outside."""
    if encoder.kind == "text-transformer":
        graph = graph_file(encoder)
        return replace(encoder, sources=(f"bundle:{graph}",), sha256=sha256_of(folder / graph))
    if encoder.kind in WEIGHTS:
        return replace(encoder, sha256=sha256_of(resolve_encoder(encoder) / WEIGHTS[encoder.kind]))
    return encoder
