"""Writes a bundle from a trained checkpoint, or refuses to."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from export.errors import ExportError
from export.parity import TOLERANCES, measure, require
from export.quantize import quantize_text_encoder
from export.to_onnx import OPSET, export_fusion, export_meta, export_text_encoder, fusion_encoders
from model.bundle import ENSEMBLE_GRAPH, TEXT_GRAPH, TEXT_TOKENIZER, Manifest, hash_files, read_bundle, write_manifest
from model.network.checkpoint import Checkpoint, load_checkpoint
from model.network.encoders import TextEncoder, load_text_encoder
from model.runtime import ENSEMBLE_OUTPUTS, EnsembleRuntime
from model.sources import resolve, sha256_of
from model.spec import EncoderSpec, EnsembleSpec

Step = Callable[[str], None]
WHISPER_WEIGHTS = "model.bin"


def write_bundle(checkpoint_folder: Path, out: Path, on_step: Step = lambda name: None) -> Manifest:
    """Exports, proves parity, and only then puts the bundle in place; an existing bundle at `out` is replaced whole.

    Raises:
        ParityError: if a graph does not compute what its network computes; nothing is written then.
        ExportError: if `out` holds something that is not a bundle.
    """
    if out.exists() and not (out / "manifest.json").is_file() and any(out.iterdir()):
        raise ExportError(f"{out} holds files but no bundle: choose an empty folder")
    checkpoint = load_checkpoint(checkpoint_folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=".bundle-") as temporary:
        folder = Path(temporary) / "bundle"
        text_encoder = _write_graphs(checkpoint, folder, on_step)
        on_step("parity")
        figures = measure(checkpoint, folder, text_encoder)
        require(figures)
        (folder / "MODEL_CARD.md").write_text(checkpoint.model_card, encoding="utf-8")
        manifest = _manifest(checkpoint, folder, figures)
        write_manifest(folder, manifest)
        EnsembleRuntime(read_bundle(folder), threads=1)
        if out.exists():
            shutil.rmtree(out)
        shutil.move(folder, out)
    return manifest


def _write_graphs(checkpoint: Checkpoint, folder: Path, on_step: Step) -> TextEncoder | None:
    encoders = {encoder.name: encoder for encoder in checkpoint.spec.encoders}
    for member in checkpoint.members:
        on_step(f"member {member.spec.name}")
        path = folder / "members" / f"{member.spec.name}.onnx"
        export_fusion(member, fusion_encoders(member, encoders), ["logits", "attributes"], path)
    on_step("meta-classifier")
    export_meta(checkpoint.meta, len(checkpoint.members), folder / "meta.onnx")
    on_step("ensemble")
    ensemble = checkpoint.ensemble()
    export_fusion(ensemble, fusion_encoders(ensemble, encoders), ENSEMBLE_OUTPUTS, folder / ENSEMBLE_GRAPH)
    if "text" not in encoders:
        return None
    on_step("text encoder")
    source = resolve(encoders["text"].sources)
    text_encoder = load_text_encoder(source)
    with TemporaryDirectory() as temporary:
        exact = Path(temporary) / "text.onnx"
        export_text_encoder(text_encoder, exact)
        quantize_text_encoder(exact, folder / TEXT_GRAPH)
    (folder / TEXT_TOKENIZER).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "tokenizer.json", folder / TEXT_TOKENIZER)
    return text_encoder


def _manifest(checkpoint: Checkpoint, folder: Path, figures: dict[str, float]) -> Manifest:
    encoders = tuple(_served(encoder, folder) for encoder in checkpoint.spec.encoders)
    spec = checkpoint.spec
    return Manifest(
        name=checkpoint.name,
        ensemble=EnsembleSpec(encoders, spec.members, spec.trained_classes, spec.trained_attributes),
        temperature=checkpoint.temperature,
        abstain_below=checkpoint.abstain_below,
        metrics=checkpoint.metrics,
        training=checkpoint.training,
        opset=OPSET,
        tolerances=dict(TOLERANCES),
        parity=figures,
        files=hash_files(folder),
    )


def _served(encoder: EncoderSpec, folder: Path) -> EncoderSpec:
    """An encoder as the bundle carries it: with the hash of its weights, wherever they are."""
    if encoder.kind == "text-transformer":
        graph = sha256_of(folder / TEXT_GRAPH)
        return replace(encoder, sources=(f"bundle:{TEXT_GRAPH}",), sha256=graph, compute_type="int8")
    if encoder.kind == "whisper-ctranslate2":
        return replace(encoder, sha256=sha256_of(resolve(encoder.sources) / WHISPER_WEIGHTS))
    return encoder
